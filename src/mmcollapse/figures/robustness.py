"""Experiment 5, quality and robustness: claim C5. Drawn from the tables of the other experiments."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmcollapse import robustness, stats
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS, EXPLORATORY
from mmcollapse.figures.house import Drawn, Source, caption, handle, legend, provenance, say, sheet, span, spread
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, LINE, WIDTH
from mmcollapse.table import read_table

OTHERS = tuple(name for name, arms in EXPERIMENTS.items() if arms is not None and name not in EXPLORATORY)
PAPER = {"image": "fid", "text": "bleu4"}
TITLES = {"image": "Pictures", "text": "Captions"}
SHOWN = ("recursive", "alone", "joint", "real", "gen0")  # arms with the marker that they have in every figure
EXPERIMENT_STYLE = {
    name: {"color": color, "marker": marker, "linestyle": "", "label": name[3:].replace("_", " ")}
    for name, color, marker in zip(
        OTHERS, ("#4D4D4D", "#3E8A4E", "#7A5195", "#9C5A1A", "#12828C"), ("p", "D", "X", "<", "v"), strict=True
    )
}


@dataclass
class Tables(Source):
    """The tables of all experiments in a folder; `table` is all of them together. missing: those that are not there."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    _known: dict = field(default_factory=dict)  # what is computed once for several figures

    def files(self, samples: bool) -> list[Path]:
        """The tables, those with training sets first, and the one of correlations if it was written."""
        with_sets = sorted(self.tables, key=lambda name: not (self.tables[name].model == "set").any())
        return [self.folder / f"{name}.parquet" for name in with_sets] + [self.table_path]

    def units(self, modality: str) -> pd.DataFrame:
        if ("units", modality) not in self._known:
            self._known["units", modality] = robustness.units(self.tables, modality)
        return self._known["units", modality]

    def data(self, modality: str, metric: str, space: str, without: str = "") -> pd.DataFrame:
        """Predictor and outcome by arm and generation (robustness.frame), without the arms of one experiment."""
        found = self.units(modality)
        return robustness.frame(self.tables, modality, metric, space, found[found.experiment != without])

    def failures(self, modality: str, metric: str, space: str, most: int = 5) -> pd.DataFrame:
        """As robustness.failures, of units that are known already: the arms whose ranks differ most."""
        data = self.data(modality, metric, space)
        data = data.assign(predictor=robustness.sign_of(metric) * data.predictor)
        ranks = data.groupby("generation")[["predictor", "outcome"]].rank()
        far = (ranks.predictor - ranks.outcome).abs().sort_values(ascending=False, kind="stable")
        return data.loc[far.index[:most]]

    def correlations(self, modality: str) -> pd.DataFrame:
        """Of every metric of the sets: as the experiment wrote it, else computed."""
        if modality not in self._known:
            if self.table_path.is_file():
                written = pd.read_parquet(self.table_path)
                self._known[modality] = written[written.modality == modality].reset_index(drop=True)
            else:
                self._known[modality] = robustness.correlate(self.tables, modality)
        return self._known[modality]

    def chosen(self, modality: str, most: int) -> list[tuple[str, str]]:
        """(metric, space) of the paper's metric and of the best others, at most `most`: the paper's first, in the space
        that C5 rests on where there are several."""
        found = self.correlations(modality)
        known = found[found.rho.notna()]
        paper = known[known.metric == PAPER[modality]].sort_values("space", kind="stable")  # judge before judge-2
        rest = known[~known.index.isin(paper.index[:1])]
        rows = pd.concat([paper.head(1), rest]).head(most)
        return list(zip(rows.metric, rows.space, strict=True))


def has_students(results: Path) -> bool:
    """Whether a table in the folder has training sets, of which this experiment can be drawn."""
    for name in OTHERS:
        path = Path(results) / f"{name}.parquet"
        if path.is_file():
            try:
                if (read_table(path).model == "set").any():
                    return True
            except MMCollapseError:  # the experiment itself says so
                continue
    return False


def open_tables(results: Path, experiment: str) -> Tables:
    """All result tables of a folder. MMCollapseError: there is none, or one of them is none."""
    tables, abouts = {}, []
    for name in OTHERS:
        path = Path(results) / f"{name}.parquet"
        if path.is_file():
            table = read_table(path)
            keys = ["arm", "modality", "measurement", "subset", "metric", "space", "model", "seed", "generation"]
            tables[name] = table.sort_values(keys, ignore_index=True)
            abouts.append(provenance(path)[0])
    if not tables:
        raise MMCollapseError(f"no result table in {results}: run the experiments first (make reproduce)")
    missing = [name for name in OTHERS if name not in tables]
    whole = pd.concat(tables.values(), ignore_index=True)
    return Tables(experiment, Path(results), whole, "; ".join(dict.fromkeys(abouts)), tables=tables, missing=missing)


def _about(source: Tables, modalities=("image", "text")) -> str:
    """Arms, seeds, generations, profile, and what is missing."""
    parts = []
    for modality in modalities:
        try:
            found = source.units(modality)
        except MMCollapseError:
            continue
        chains, generations = found.groupby(["experiment", "arm"]).ngroups, sorted(found.generation.unique())
        seeds = found.seed.nunique()
        text = f"{TITLES[modality].lower()}: {chains} arms, n = {span(found.n)} pairs a set, "
        text += f"{seeds} seed{'s' * (seeds != 1)}, generations "
        parts.append(text + ", ".join(map(str, generations)))
    if source.missing:
        parts.append(f"not there yet: {', '.join(source.missing)}")
    few = [m for m in modalities if _arms(source, m) < robustness.ARMS_NEEDED]
    if few:
        parts.append(f"fewer than {robustness.ARMS_NEEDED} arms decide nothing")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}; {source.about}." if parts else f"{source.about}."


def _arms(source: Tables, modality: str) -> int:
    try:
        return source.units(modality).groupby(["experiment", "arm"]).ngroups
    except MMCollapseError:
        return 0


def _why(source: Tables, modality: str) -> str:
    """Why there is nothing to correlate, or ""."""
    try:
        found = source.correlations(modality)
    except MMCollapseError as error:
        return str(error)
    if found.rho.notna().any():
        return ""
    told = found.reason[found.reason != ""]
    return told.iloc[0] if len(told) else "no metric of a training set in the tables"


def _rows(metrics: dict[str, list[tuple[str, str]]]) -> list[dict]:
    """Filters: the sets' metrics, and what students make of them."""
    rows = []
    for modality, chosen in metrics.items():
        names, spaces = ([*dict.fromkeys(parts)] for parts in zip(*chosen, strict=True)) if chosen else ([], [])
        rows.append({"modality": modality, "model": "set", "metric": names, "space": spaces})
        outcome = {"metric": "all_right", "subset": "test", "measurement": robustness.OUTCOME[modality]}
        students = sorted({f"student {k}" for k in range(10)})
        rows.append({"modality": modality, "model": students} | outcome)
    return rows


def _predictors(source: Tables) -> Drawn:
    """rho of every metric, sorted, with its interval."""
    found = {m: None if _why(source, m) else source.correlations(m) for m in TITLES}
    known = {m: f[f.rho.notna()] for m, f in found.items() if f is not None}
    note = textwrap.wrap(
        "Does the quality of a training set predict what a fresh base model loses by training on it? Spearman's rho "
        "across arms, mean over generations, between a metric of the set and the loss of all right of fresh base "
        "models on test prompts; turned by the direction that the metric should have, so that right of 0 it "
        "predicts. Triangle up: more of it should mean more loss; down: less. Bar: 95% interval over resampled arms. "
        "Bold, filled: the paper's "
        "metric. Grey circle: all sets of all generations pooled, which generation and arm confound. " + _about(source),
        LETTERS,
    )
    cell, count = 0.135, max([len(f) for f in known.values()] + [6])
    height = 0.35 + cell * count + 0.5 + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    for k, modality in enumerate(TITLES):
        own = len(known.get(modality, ())) or count
        place = (5 * k + 1.65) / WIDTH, 1 - (0.3 + cell * own) / height, 3.2 / WIDTH, cell * own / height
        ax = figure.add_axes(place)
        ax.set_title(TITLES[modality])
        if modality not in known:
            say(ax, textwrap.fill(_why(source, modality), 44))
            continue
        _forest(ax, known[modality], PAPER[modality])
    caption(figure, note)
    return Drawn(figure, _rows({m: list(zip(f.metric, f.space, strict=True)) for m, f in known.items()}))


def _forest(ax, found: pd.DataFrame, paper: str):
    """A row a metric, the best predictor on top."""
    for y, row in enumerate(found.itertuples()):
        sign = robustness.sign_of(row.metric)
        color = "#333333"
        low, high = sorted((sign * row.low, sign * row.high))
        ax.plot([low, high], [y, y], color=color, linewidth=0.9, zorder=2)
        fill = color if row.metric == paper else "white"
        marker = {"marker": "^" if sign > 0 else "v", "markersize": 4.5, "markerfacecolor": fill}
        ax.plot([row.predicts], [y], color=color, markeredgewidth=0.8, zorder=3, **marker)
        if not math.isnan(row.pooled):
            ax.plot([sign * row.pooled], [y], "o", markersize=2.8, markerfacecolor="none", color="#888888", zorder=1)
    labels = [f"{r.metric}, {r.space}" for r in found.itertuples()]
    ax.set_yticks(range(len(found)), labels, fontsize=6)
    for text, metric in zip(ax.get_yticklabels(), found.metric, strict=True):
        if metric == paper:
            text.set_fontweight("bold")
    ax.axvline(0, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=0)
    ax.set(xlim=(-1.04, 1.04), ylim=(len(found) - 0.4, -0.6))
    ax.set_xlabel("rho, turned (higher = predicts as it should)")
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)


LEAST = 0.1  # of loss on an axis: less is a few samples


def _scatter(source: Tables) -> Drawn:
    """Quality against loss, a panel a generation, of the paper's metric and the best other one."""
    chosen = {m: [] if _why(source, m) else source.chosen(m, 2) for m in TITLES}
    lines = [(m, metric, space) for m, pairs in chosen.items() for metric, space in pairs]
    note = textwrap.wrap(
        "Quality of a training set against what fresh base models lose by training on it (all right of the base "
        "minus theirs, on test prompts; mean over seeds and students), a point an arm. Of each modality first the "
        "paper's metric if it could be computed, then the best other one, by generation. Named: where the ranks by "
        "quality and by loss differ most; recursive, real and generation-0 data in their own colours. rho: Spearman's, "
        "turned so that above 0 the metric predicts, with its 95% interval over resampled arms. " + _about(source),
        LETTERS,
    )
    if not lines:
        figure, axes = sheet(2, 2, note, 1)
        for ax, modality in zip(axes, TITLES, strict=True):
            ax.set_title(TITLES[modality])
            say(ax, textwrap.fill(_why(source, modality), 60))
        return Drawn(figure, [])
    found = {line: source.data(*line) for line in lines}
    generations = sorted({int(g) for f in found.values() for g in f.generation})
    generations = [generations[k] for k in spread(range(len(generations)), 5)]
    panels = [(line, g) for line in lines for g in generations]
    columns = len(generations) if len(generations) > 1 else 2  # of one generation the metrics stand side by side
    figure, axes = sheet(len(panels), columns, note, 2, cell=2.2, left=0.74, below=0.6)
    shown, failed = set(), {line: source.failures(*line) for line in lines}
    for ax, (line, g) in zip(axes, panels, strict=True):
        data, worst = found[line][found[line].generation == g], failed[line]
        shown |= _cloud(ax, data, worst[worst.generation == g], line, g)
    styles = [EXPERIMENT_STYLE[name] for name in OTHERS if name[:2] in shown]
    arms = {arm[3:] for data in found.values() for arm in data.arm}
    joined = {"recursive": ARM_STYLE["recursive"] | {"label": "recursive, alone or joint"}}
    chains = {a: joined.get(a, ARM_STYLE[a]) | {"linestyle": ""} for a in ("recursive", "real", "gen0") if a in arms}
    legend(figure, (), 4, [handle(style) for style in (*chains.values(), *styles)])
    return Drawn(figure, _rows(chosen))


def _cloud(ax, data: pd.DataFrame, failed: pd.DataFrame, line: tuple, g: int) -> set[str]:
    modality, metric, space = line
    ax.set_title(f"Generation {g}")
    if data.empty:
        say(ax, "no arm has both\nat this generation")
        return set()
    named = set(failed.arm)
    for name, style in EXPERIMENT_STYLE.items():
        part = data[data.arm.str.startswith(name[:2])]
        own = {k: v for k, v in style.items() if k != "label"}
        ax.plot(part.predictor, part.outcome, markersize=3.6, markeredgecolor="white", markeredgewidth=0.3, **own)
    for arm in SHOWN:
        part, style = data[data.arm.str.slice(3) == arm], ARM_STYLE[arm]
        own = {"marker": style["marker"], "color": style["color"], "markersize": 5.5, "markeredgecolor": "black"}
        ax.plot(part.predictor, part.outcome, linestyle="", markeredgewidth=0.5, zorder=4, **own)
    sign = robustness.sign_of(metric)
    if data.arm.nunique() > 3:
        r = stats.rank_correlation(data)
        low, high = sorted((sign * r.low, sign * r.high))
        ends = "" if math.isnan(r.rho) else f"\nrho {sign * r.rho:+.2f} [{low:+.2f}, {high:+.2f}]"
        ax.set_title(f"Generation {g}{ends}", fontsize=6.5)
    ax.set_xlabel(f"{metric}, {space}\n({'lower' if sign > 0 else 'higher'} is better)")
    ax.set_ylabel(f"loss, {TITLES[modality].lower()} all right\n(lower is better)")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.margins(0.12)
    low, high = ax.get_ylim()
    if (more := (LEAST - (high - low)) / 2) > 0:
        ax.set_ylim(low - more, high + more)
    _name(ax, data[data.arm.isin(named)].sort_values("outcome"))
    sns.despine(ax=ax)
    return set(data.arm.str.slice(0, 2))


def _name(ax, rows: pd.DataFrame):
    """Names of arms at the other side of the panel, within it, one above the other, each with a line to its point."""
    ax.autoscale_view()
    before = -1.0
    for row in rows.itertuples():
        x, y = ax.transLimits.transform((row.predictor, row.outcome))
        right = x < 0.5
        before = y = min(max(y, before + 0.085), 1.0)
        place = {"xytext": (1.0 if right else 0.02, y), "textcoords": "axes fraction"}
        place |= {"ha": "right" if right else "left", "va": "center", "fontsize": 5.5, "color": "#333333"}
        place["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.3}
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "#888888", "shrinkA": 0, "shrinkB": 2}
        ax.annotate(row.arm[3:], (row.predictor, row.outcome), arrowprops=line, **place)


def _leave_one_out(source: Tables) -> Drawn:
    """The correlation when each experiment is left out in turn."""
    chosen = {m: [] if _why(source, m) else source.chosen(m, 5) for m in TITLES}
    note = textwrap.wrap(
        "Does one experiment make the correlation? rho (turned: above 0 the metric predicts as it should) of the "
        "paper's metric (first, filled, with its 95% interval over resampled arms) and the best others, of all arms, "
        "and without those of one experiment at a time (an arm that several share is of the first). There is none "
        "where all students lost the same, or of three arms. " + _about(source),
        LETTERS,
    )
    figure, axes = sheet(2, 2, note, 3, cell=2.9, left=1.55)
    markers = ("o", "s", "^", "D", "v")
    for ax, modality in zip(axes, TITLES, strict=True):
        ax.set_title(TITLES[modality])
        if not chosen[modality]:
            say(ax, textwrap.fill(_why(source, modality), 44))
            continue
        left = _left_out(source, modality, chosen[modality])
        for k, (metric, space) in enumerate(chosen[modality]):
            color, step = f"#{40 * k:02X}{40 * k:02X}{40 * k:02X}", 0.14 * (k - (len(chosen[modality]) - 1) / 2)
            style = {
                "marker": markers[k],
                "markersize": 5 if k == 0 else 4,
                "markerfacecolor": color if k == 0 else "white",
            }
            y, rho = np.arange(len(left)) + step, [rows[k][0] for rows in left.values()]
            ax.plot(rho, y, linestyle="", color=color, label=f"{metric}, {space}", **style)
            if k == 0:
                for at, rows in zip(y, left.values(), strict=True):
                    ax.plot(rows[0][1:], [at, at], color=color, linewidth=1.2, zorder=1)
        names = list(left)
        labels = [f"without {EXPERIMENT_STYLE[name]['label']}" if name else "all arms" for name in names]
        ax.set_yticks(range(len(names)), labels)
        ax.set_ylim(len(names) - 0.6, -0.4)
        ax.set_xlim(-1.05, 1.05)
        ax.axvline(0, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=0)
        ax.set_xlabel("rho, turned (higher = predicts as it should)")
        for y, rows in enumerate(left.values()):
            if all(math.isnan(rho) for rho, *_ in rows):
                ax.text(0.02, y, "no correlation", fontsize=6, va="center")
        place = {"loc": "lower left", "bbox_to_anchor": (-0.06, 1.08), "borderaxespad": 0, "columnspacing": 1.2}
        ax.legend(frameon=False, fontsize=6, ncol=3, handlelength=1.2, labelspacing=0.3, **place)
        sns.despine(ax=ax)
    return Drawn(figure, _rows(chosen))


def _left_out(source: Tables, modality: str, chosen: list[tuple[str, str]]) -> dict[str, list[tuple]]:
    """As robustness.leave_one_out: by the experiment that is left out ("" first), of every metric rho, turned, and of
    the first its interval: resampling all takes minutes. An arm that several experiments share is of the first."""
    out, there = {}, set(source.units(modality).experiment)
    for name in ["", *(name for name in source.tables if name in there)]:
        rows = []
        for k, (metric, space) in enumerate(chosen):
            data, sign, known = source.data(modality, metric, space, name), robustness.sign_of(metric), math.nan
            low = high = math.nan
            if data.arm.nunique() >= 4:
                ranks = data.groupby("generation")[["predictor", "outcome"]].corr("spearman").predictor
                known = sign * ranks.xs("outcome", level=1).mean(skipna=False)
                if k == 0:
                    r = stats.rank_correlation(data)
                    low, high = sorted((sign * r.low, sign * r.high))
            rows.append((known, low, high))
        out[name] = rows
    return out


FIGURES = {"predictors": _predictors, "scatter": _scatter, "leave_one_out": _leave_one_out}
