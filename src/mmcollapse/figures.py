"""Figures, drawn from the result table and its samples alone: in seconds, without torch, the same bytes every time.

A figure is a PNG, an SVG, and a JSON file that says from which files and rows it was drawn, and by which command.
"""

from __future__ import annotations

import io
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.dataset
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure  # without pyplot: a notebook's own backend stays as it is
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image
from scipy.stats import spearmanr, t

from mmcollapse import claims, stats
from mmcollapse.disk import checksum, write_whole
from mmcollapse.errors import MMCollapseError
from mmcollapse.table import read_table

# ---- house style: an arm has one colour, line and marker in every figure; line and marker tell it when printed grey


def _arm(color: str, linestyle, marker: str, label: str) -> dict:
    return {"color": color, "linestyle": linestyle, "marker": marker, "label": label}


ARM_STYLE = {
    "recursive": _arm("#8C1D40", "-", "o", "recursive"),
    "real": _arm("#2E86C1", (0, (5, 1.5)), "s", "real data"),
    "gen0": _arm("#E59400", (0, (5, 1.2, 1, 1.2)), "^", "generation-0 data"),
    "recursive-drift": _arm("#C75B9B", (0, (8, 1)), "D", "recursive, drifting data"),
    "gen0-drift": _arm("#857800", (0, (3, 1, 1, 1, 1, 1)), "v", "generation-0, drifting data"),
    "frozen-drift": _arm("#111111", (0, (10, 1.5)), "*", "frozen, whole schedule"),
    "frozen-length": _arm("#1B7F6B", (0, (4, 2)), "p", "frozen, length only"),
    "frozen-temperature": _arm("#8E7CC3", (0, (1.5, 1)), "<", "frozen, temperature only"),
    "world": _arm("#333333", (0, (1, 1.6)), "", "real against real, 95% of new sets"),
    "vae": _arm("#777777", (0, (3, 1.5, 1, 1.5)), "", "real through the autoencoder"),
}
REFERENCES = ("world", "vae")
# Of a metric that was measured in several spaces a panel shows the first of these that is there.
SPACES = ("oracle", "parser", "words", "pixels", "language", "judge", "clip", "inception", "dino", "judge-2", "")
FLOOR = {"color": "#333333", "linestyle": (0, (6, 2, 1, 2, 1, 2)), "linewidth": 0.9}
STYLE = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same on every machine
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "svg.hashsalt": "mmcollapse",  # the ids in an SVG are random without it
    "svg.fonttype": "path",
}
WIDTH, DPI = 10.0, 150  # inches, dots an inch


# ---- what is read


@dataclass
class Source:
    """What the figures of an experiment are drawn from. about: profile and world, as the provenance has them."""

    experiment: str
    folder: Path
    table: pd.DataFrame
    about: str

    @property
    def table_path(self) -> Path:
        return self.folder / f"{self.experiment}.parquet"

    @property
    def samples_path(self) -> Path:
        return self.folder / f"{self.experiment}.samples.parquet"

    def samples(self, modality: str, measurement: str, arms: Sequence[str]) -> pd.DataFrame:
        """Kept pictures (PNG files in `image`) and captions of the first seed that has any, of `arms` and the real ones
        (arm "world"); an empty frame if the run kept none."""
        if not self.samples_path.is_file():
            return pd.DataFrame()
        field = pyarrow.dataset.field
        wanted = (field("modality") == modality) & field("arm").isin(["world", *arms])
        wanted &= (field("measurement") == measurement) | (field("arm") == "world")
        try:
            frame = pyarrow.dataset.dataset(self.samples_path, format="parquet").to_table(filter=wanted).to_pandas()
        except (pyarrow.ArrowException, OSError) as error:
            raise MMCollapseError(f"{self.samples_path} cannot be read as samples: {error}") from error
        chains = frame[frame.arm != "world"]
        if chains.empty:
            return chains
        return frame[(frame.arm == "world") | (frame.seed == chains.seed.min())].rename(columns={"index": "number"})


def open_source(results: Path, experiment: str) -> Source:
    """The result table of an experiment. MMCollapseError: there is none, or it is none, or it is empty."""
    path = Path(results) / f"{experiment}.parquet"
    table = read_table(path)
    if table.empty:
        raise MMCollapseError(f"{path} has no rows: nothing to draw")
    # Sorted, so that the order of rows in the file cannot move a pixel.
    table = table.sort_values(["arm", "modality", "measurement", "subset", "metric", "seed", "generation"])
    settings, provenance = {}, path.with_suffix(".json")
    if provenance.is_file():
        settings = json.loads(provenance.read_text()).get("settings", {})
    about = ", ".join(f"{key} {settings[key]}" for key in ("profile", "world") if key in settings)
    return Source(experiment, Path(results), table, about or "profile not recorded")


# ---- curves


@dataclass(frozen=True)
class Panel:
    """One panel of curves over generations."""

    title: str
    label: str  # of the y axis: unit and direction
    metric: str
    modality: str
    measurement: str
    arms: tuple[str, ...]
    scale: str = "plain"  # "log": axis, mean and interval on the log scale; "rate": interval cut at 0 and 1
    floor: bool = False  # the sampling floor beside it

    def space(self, table: pd.DataFrame) -> str:
        """The space it shows: of those that its metric was measured in, the first of SPACES."""
        there = set(table.space[(table.modality == self.modality) & (table.metric == self.metric)])
        return next((s for s in SPACES if s in there), "")

    def rows(self, table: pd.DataFrame) -> dict:
        """The filter of the rows of the table that it shows."""
        metrics = [self.metric, "sampling_floor"] if self.floor else [self.metric]
        shown = {"metric": metrics, "modality": self.modality, "measurement": self.measurement, "subset": "test"}
        spaces = [self.space(table), ""] if self.floor else [self.space(table)]  # the floor is of no space
        return shown | {"space": spaces, "arm": [*self.arms, *REFERENCES]}

    def of(self, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Its rows in the table: of its arms, and of the references."""
        rows = table[(table.modality == self.modality) & (table.metric == self.metric) & (table.subset == "test")]
        rows = rows[rows.space == self.space(table)]
        known = rows[rows.arm.isin(REFERENCES) & rows.value.notna()]
        same = known[known.measurement == self.measurement]
        # Captions that people wrote come from no decoding, so they hold for every measurement.
        reference = known.drop_duplicates(["arm", "seed", "value"]) if same.empty else same
        return rows[(rows.measurement == self.measurement) & rows.arm.isin(self.arms)], reference


def _curves(ax, table: pd.DataFrame, panel: Panel) -> list[str]:
    """Draw a panel; returns what it shows, for the legend."""
    ax.set_title(panel.title)
    rows, reference = panel.of(table)
    values = rows[rows.value.notna()]
    if panel.scale == "log":
        # A variance of exactly 0 has no place on a logarithmic axis.
        values, reference = values[values.value > 0], reference[reference.value > 0]
    if values.empty:
        told = rows.missing[rows.missing != ""]
        why = told.iloc[0] if len(told) else "no such rows in the table"
        _say(ax, "not measured:\n" + textwrap.fill(why, 30))
        return []
    shown = [arm for arm in panel.arms if (values.arm == arm).any()]
    for arm in shown:
        _chains(ax, values[values.arm == arm], panel.scale, arm)
    for arm in REFERENCES:
        if (known := reference.value[reference.arm == arm].to_numpy()).size:
            _reference(ax, known, panel.scale, arm)
            shown.append(arm)
    if panel.floor and _floor(ax, table, panel, values):
        shown.append("floor")
    ax.set_xlabel("generation (n = " + "-".join(f"{n:,}" for n in sorted({values.n.min(), values.n.max()})) + ")")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=2))
    ax.margins(x=0.04, y=0.08)
    _y_axis(ax, panel, rows.space.iloc[0])
    sns.despine(ax=ax)
    return shown


def _chains(ax, chains: pd.DataFrame, scale: str, arm: str):
    """One thin line a seed; from 2 seeds on their mean, from 3 on its 95% t interval."""
    style = {k: v for k, v in ARM_STYLE[arm].items() if k != "label"}
    size = 5.5 if style["marker"] == "*" else 3.6
    thick = {"linewidth": 1.6, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.4, "zorder": 3}
    wide = chains.pivot(index="generation", columns="seed", values="value").sort_index()
    if wide.shape[1] == 1:
        ax.plot(wide.index, wide.iloc[:, 0], **style, **thick)
        return
    for seed in wide:
        ax.plot(wide.index, wide[seed], **style | {"marker": "", "linewidth": 0.5, "alpha": 0.45, "zorder": 2})
    points = []
    for values in wide.to_numpy():
        values = values[~np.isnan(values)]
        values = np.log(values) if scale == "log" else values
        interval = stats.t_interval(values) if len(values) >= 3 else (math.nan, math.nan)
        points.append((values.mean(), *(np.clip(interval, 0, 1) if scale == "rate" else interval)))
    mean, low, high = np.exp(np.array(points).T) if scale == "log" else np.array(points).T
    if wide.shape[1] >= 3:
        ax.fill_between(wide.index, low, high, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    ax.plot(wide.index, mean, **style, **thick)


def _reference(ax, values: np.ndarray, scale: str, arm: str):
    """The mean of a reference and, of two measurements or more, the band that holds 95% of further ones: mean and
    t x standard deviation x sqrt(1 + 1/k)."""
    style = ARM_STYLE[arm]
    values = np.log(values) if scale == "log" else values
    centre, k = values.mean(), len(values)
    low, high = stats.t_interval(values)  # of the mean: t x sd / sqrt(k)
    half = 0.5 * (high - low) * math.sqrt(k + 1) if k > 1 else 0.0
    ends = np.array([centre, centre - half, centre + half])
    ends = np.exp(ends) if scale == "log" else ends.clip(0, 1) if scale == "rate" else ends
    ax.axhline(ends[0], color=style["color"], linestyle=style["linestyle"], linewidth=1.1, zorder=2)
    if half:
        ax.axhspan(ends[1], ends[2], color=style["color"], alpha=0.13, linewidth=0, zorder=0)


def _floor(ax, table: pd.DataFrame, panel: Panel, values: pd.DataFrame) -> bool:
    """What drawing N pairs anew each generation would lose with no learning error: relative to generation 0."""
    floor = table[(table.metric == "sampling_floor") & (table.modality == panel.modality) & table.arm.isin(panel.arms)]
    curve = floor.groupby("generation").value.mean()
    if curve.empty:
        return False
    start = values[values.generation == values.generation.min()].value.mean()
    ax.plot(curve.index, start * curve, **FLOOR, zorder=4)
    return True


def _y_axis(ax, panel: Panel, space: str):
    if panel.scale == "log":
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high / low > 8:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:  # numbers at even steps: powers of ten would leave the axis without a label
            for bins in (4, 5, 6, 7):
                ticks = MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
                ticks = [t for t in ticks if low <= t <= high]
                if len(ticks) >= 4:
                    break
            ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_minor_locator(NullLocator())
    small = (
        max(map(abs, ax.get_ylim())) < 0.05
    )  # the label counts in thousandths, so that those of the ticks stay short
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / (1e-3 if small else 1):.4g}"))
    unit, _, direction = panel.label.replace("{space}", space).partition("\n")
    ax.set_ylabel(f"{unit}{', $10^{-3}$' if small else ''}\n{direction}")


def _say(ax, text: str):
    """An axis that has nothing to show says why."""
    ax.set(xticks=[], yticks=[], facecolor="#F2F2F2")
    sns.despine(ax=ax, left=True, bottom=True)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#444444")


def _legend(figure: Figure, shown: Iterable[str], most: int = 5):
    shown = set(shown)
    handles = [Line2D([], [], linewidth=1.6, markersize=4, **s) for arm, s in ARM_STYLE.items() if arm in shown]
    if "floor" in shown:
        handles.append(Line2D([], [], **FLOOR, label="sampling floor: generation 0 $\\times$ (1 - 1/N)$^g$"))
    if not handles:
        return
    columns = min(most, len(handles))
    handles = [h for first in range(columns) for h in handles[first::columns]]  # so that it reads row by row
    layout = {"ncols": columns, "frameon": False, "handlelength": 3.2, "columnspacing": 1.4}
    figure.legend(handles=handles, loc="upper center", borderaxespad=0.3, **layout)


LETTERS, LINE = 178, 0.15  # a caption: letters that fit into WIDTH, height of a line in inches


def _facts(source: Source, panels: Sequence[Panel]) -> str:
    """Seeds, generations and profile of what the panels show."""
    rows = pd.concat([panel.of(source.table)[0] for panel in panels])
    rows = rows[rows.value.notna()]
    if rows.empty:
        return f"Nothing was measured; {source.about}."
    seeds = sorted(rows.seed.unique())
    if len(seeds) == 1:
        text = f"One seed ({seeds[0]}), which decides nothing"
    else:
        lines = "thick, with band: mean and 95% t interval" if len(seeds) > 2 else "thick: their mean"
        text = f"{len(seeds)} seeds ({', '.join(map(str, seeds))}): thin, one line each; {lines}"
    return f"{text}. Generations 0 to {rows.generation.max()}; n: samples a point; {source.about}."


def _grid(source: Source, panels: Sequence[Panel], columns: int, about: str) -> Figure:
    """Panels in `columns`, row by row, with a legend above and a caption below."""
    note = textwrap.wrap(f"{about} {_facts(source, panels)}", LETTERS)
    entries = len({arm for panel in panels for arm in panel.arms}) + any(panel.floor for panel in panels)
    legend = 0.27 if entries + len(REFERENCES) <= 5 else 0.42  # five entries a row
    # All in inches: a cell is a panel with its title above, its labels left and below.
    rows, cell, title, left, below = math.ceil(len(panels) / columns), 2.1, 0.25, 0.78, 0.42
    wide = (WIDTH - 0.1) / columns
    height = legend + rows * cell + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    shown = []
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        x, y = column * wide + left, height - legend - (row + 1) * cell + below
        size = (wide - left - 0.05) / WIDTH, (cell - title - below) / height
        shown += _curves(figure.add_axes((x / WIDTH, y / height, *size)), source.table, panel)
    _legend(figure, shown)
    _caption(figure, note)
    return figure


def _caption(figure: Figure, lines: list[str]):
    """The caption at the foot of a figure."""
    height = figure.get_figheight()
    for k, text in enumerate(reversed(lines)):
        figure.text(0.012, (0.08 + (k + 0.25) * LINE) / height, text, va="baseline")


@dataclass
class Drawn:
    """A figure, and the filters of the rows that it shows: of the table, or of the samples."""

    figure: Figure
    rows: list[dict]
    samples: bool = False


# ---- experiment 1: variance

TRAINED = ("recursive", "real", "gen0")
EMBEDDING = "{space} embedding variance\n"


def _image_panels(guidance: str) -> list[Panel]:
    what = {"modality": "image", "measurement": guidance, "arms": TRAINED}
    lower = "(lower = less varied)"
    return [
        Panel("All attributes right", "share of pictures\n(higher is better)", "all_right", **what, scale="rate"),
        Panel("Nuisance variance", f"within prompts, ratio to real\n{lower}", "nuisance_ratio", **what, scale="log"),
        Panel("Variance within prompts", EMBEDDING + lower, "variance_within", **what, scale="log"),
        Panel("Variance between prompts", EMBEDDING + lower, "variance_between", **what, scale="log"),
        Panel("Distance to real pictures", "KID, {space} features\n(lower is better)", "kid", **what),
        Panel(
            "Tail coverage",
            "share of rare cells shown\n(higher is better)",
            "tail_coverage",
            **what,
            scale="rate",
            floor=True,
        ),
        Panel("Oracle abstains", "share of pictures\n(lower is better)", "abstains", **what, scale="rate"),
        Panel("Alignment P", "distance to own caption\n(lower = better aligned)", "P", **what),
    ]


def _generators(source: Source) -> Drawn:
    panels = _image_panels("guidance 1")
    about = "Text-to-image chains, measured at guidance 1 (what was learned) on test prompts."
    return Drawn(_grid(source, panels, 4, about), [p.rows(source.table) for p in panels])


def _generators_as_used(source: Source) -> Drawn:
    measured = source.table.measurement[source.table.modality == "image"].unique()
    others = sorted(m for m in measured if m.startswith("guidance") and m != "guidance 1")
    guidance = others[0] if others else "guidance 1"  # the same setting twice if the default guidance is 1
    panels = _image_panels(guidance)
    about = f"Text-to-image chains, measured at the default {guidance} (as used) on test prompts."
    return Drawn(_grid(source, panels, 4, about), [p.rows(source.table) for p in panels])


def _captioners(source: Source) -> Drawn:
    greedy = {"modality": "text", "measurement": "greedy", "arms": TRAINED}
    sampled = greedy | {"measurement": "sampled"}
    lower = "(lower = less varied)"
    panels = [
        Panel("All right, greedy", "share of captions\n(higher is better)", "all_right", **greedy, scale="rate"),
        Panel("BLEU-4, greedy", "BLEU-4, all references\n(higher is better)", "bleu4", **greedy),
        Panel("Alignment P, greedy", "distance to own picture\n(lower = better aligned)", "P", **greedy),
        Panel("Caption variance, sampled", EMBEDDING + lower, "caption_variance", **sampled, scale="log"),
        Panel("Length, sampled", "words a caption\n(nearer to reference is better)", "length", **sampled, scale="log"),
        Panel("Spread W, greedy", f"mean distance between samples\n{lower}", "W", **greedy),
        Panel("Vocabulary, sampled", f"distinct words\n{lower}", "vocabulary", **sampled, scale="log"),
        Panel("Modality gap RMG, greedy", "P / (W + P)\n(lower = smaller gap)", "RMG", **greedy),
        Panel("Modality gap L2M, greedy", "distance of the means\n(lower = smaller gap)", "L2M", **greedy),
    ]
    about = (
        "Captioning chains on test pictures. Sampled: ancestral sampling at temperature 1; greedy: the likeliest word "
        "each time. Real BLEU-4: one reference against the others."
    )
    return Drawn(_grid(source, panels, 3, about), [p.rows(source.table) for p in panels])


def _more(source: Source) -> Drawn:
    pictures = {"modality": "image", "measurement": "guidance 1", "arms": TRAINED}
    greedy = {"modality": "text", "measurement": "greedy", "arms": TRAINED}
    sampled = greedy | {"measurement": "sampled"}
    better, varied = "(higher is better)", "(lower = less varied)"
    panels = [
        Panel("Frechet distance", "{space} features\n(lower is better)", "fid", **pictures),
        Panel("Recall", f"share of real pictures\n{better}", "recall", **pictures, scale="rate"),
        Panel("Coverage", f"share of real pictures\n{better}", "coverage", **pictures, scale="rate"),
        Panel("Vendi score, pictures", f"effective number\n{varied}", "vendi", **pictures, scale="log"),
        Panel("Power spectrum", "distance to real, powers of ten\n(lower is better)", "spectrum", **pictures),
        Panel("Entropy", f"bits, of shape-colour pairs\n{varied}", "cell_entropy", **pictures),
        Panel("CIDEr, greedy", f"0-10, all references\n{better}", "cider", **greedy),
        Panel("ROUGE-L, greedy", f"0-1, all references\n{better}", "rouge_l", **greedy),
        Panel("Perplexity, sampled", "frozen language model\n(higher = less expected)", "perplexity", **sampled),
        Panel("Distinct-2, sampled", f"share of word pairs\n{varied}", "distinct_2", **sampled, scale="rate"),
        Panel("Self-BLEU, sampled", "to 199 other captions\n(higher = more alike)", "self_bleu", **sampled),
        Panel("Vendi score, captions", f"effective number\n{varied}", "caption_vendi", **sampled, scale="log"),
    ]
    about = (
        "Text-to-image chains at guidance 1 (first six panels) and captioning chains (last six), by further metrics. "
        "Real captions are compared with one reference fewer, so CIDEr and ROUGE-L of chains may lie above theirs."
    )
    return Drawn(_grid(source, panels, 4, about), [p.rows(source.table) for p in panels])


def _drift(source: Source) -> Drawn:
    chains = ("recursive", "real", "gen0", "recursive-drift", "gen0-drift")
    frozen = ("frozen-drift", "frozen-length", "frozen-temperature")
    columns = [
        ("matched", {"measurement": "sampled", "arms": chains}),
        ("drifting", {"measurement": "drifting", "arms": chains}),
        ("frozen", {"measurement": "drifting", "arms": frozen}),
    ]
    higher = "(higher = more varied)"
    rows = [
        ("Variance", EMBEDDING + higher, {"metric": "caption_variance", "scale": "log"}),
        ("Variance at equal length", EMBEDDING + higher, {"metric": "caption_variance_equal_length", "scale": "log"}),
        ("Length", "words a caption\n(nearer to reference is better)", {"metric": "length", "scale": "log"}),
    ]
    panels = [
        Panel(f"{row}: {column}", label, modality="text", **metric, **what)
        for row, label, metric in rows
        for column, what in columns
    ]
    about = (
        "Does caption variance grow by training or by decoding? Matched: chains measured by sampling at temperature "
        "1. Drifting: the same, measured under the decoding schedule that drifts with the generation. Frozen: a "
        "captioner that is never trained (the same in every seed) under the whole schedule, its length or its "
        "temperature alone. One y axis a row."
    )
    figure = _grid(source, panels, 3, about)
    axes = figure.axes
    for start in range(0, len(panels), 3):
        drawn = [(ax, p) for ax, p in zip(axes[start : start + 3], panels[start : start + 3], strict=True) if ax.lines]
        limits = [limit for ax, _ in drawn for limit in ax.get_ylim()]
        for ax, panel in drawn:
            ax.set_ylim(min(limits), max(limits))
            _y_axis(ax, panel, panel.space(source.table))
    return Drawn(figure, [p.rows(source.table) for p in panels])


def _power(source: Source) -> Drawn:
    """What size of effect can be seen: the chance of *reproduced*, by true effect, spread between seeds and seeds."""
    colors = {0.5: "#2E86C1", 1.0: "#E59400", 2.0: "#8C1D40"}
    lines = {5: (0, (5, 1.5)), 10: "-"}
    effects = np.linspace(0, 4, 17)
    spread = _spread_between_seeds(source.table)
    found = "; ".join(f"{name} {sd:.2g}" for name, sd in spread)
    note = textwrap.wrap(
        "Share of simulated studies (20,000 a point) whose verdict on one contrast is 'reproduced', by the true effect "
        "in units of the smallest effect of interest S. Left: the claim that something changes (interval above 0, "
        "estimate at least S: an effect of exactly S is found at most every other time; at 0 are the false positives). "
        "Right: the claim that nothing is lost (interval above -S). Spread: standard deviation over seeds of the "
        "paired difference. "
        + (f"In this table, in units of S: {found}. " if found else "In this table it is not known: one seed. ")
        + f"Drawn for {source.about}.",
        LETTERS,
    )
    height = 2.95 + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    for k, (rule, title, sign) in enumerate((("above", "An effect is there", 1), ("not below", "Nothing is lost", -1))):
        ax = figure.add_axes(((0.65 + 4.9 * k) / WIDTH, 1 - 2.5 / height, 4.1 / WIDTH, 2.2 / height))
        for sd, color in colors.items():
            for seeds, line in lines.items():
                share = [stats.power(sign * e, sd, 1.0, seeds, rule) for e in effects]
                label = f"spread {sd:g} S, {seeds} seeds"
                ax.plot(effects, share, color=color, linestyle=line, linewidth=1.4, label=label)
        ax.axvline(1, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)))
        unit = "true effect / S" if sign > 0 else "true loss / S"
        ax.set(title=title, xlabel=unit, ylabel="share of studies\n'reproduced'", ylim=(-0.02, 1.02))
        ax.legend(frameon=False, fontsize=6.5, loc="lower right" if sign > 0 else "upper right")
        sns.despine(ax=ax)
    _caption(figure, note)
    return Drawn(figure, [{"arm": list(TRAINED), "subset": "test"}])


def _spread_between_seeds(table: pd.DataFrame) -> list[tuple[str, float]]:
    """(contrast, standard deviation over seeds / S) of the contrasts of the claims that the table answers."""
    found = []
    for claim in claims.answerable(table):
        try:
            rows = claims.conclude(table, [claim])
        except MMCollapseError:  # a table that lacks an endpoint altogether
            continue
        rows = rows[(rows.contrast != claims.EVERY) & rows.low.notna() & (rows.seeds > 1) & (rows.low < rows.high)]
        for row in rows.itertuples():
            sd = 0.5 * (row.high - row.low) / t.ppf(0.975, row.seeds - 1) * math.sqrt(row.seeds)
            found.append((f"{claim.id} {row.contrast}", sd / row.S))
    return found


# ---- walls of pictures, and captions


def _spread(values: Iterable[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread, with the first and the last."""
    values = sorted(int(v) for v in values)
    if len(values) <= most:
        return values
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def _pixels(picture: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture["bytes"])).convert("RGB"))


def _nothing(what: str) -> Drawn:
    figure = Figure(figsize=(WIDTH, 1.5))
    _say(figure.subplots(), f"nothing to show: this run kept no {what}")
    return Drawn(figure, [], samples=True)


def _wall(source: Source) -> Drawn:
    """A wall an arm: rows are prompts, columns generations; the same prompts and noise everywhere."""
    frame = source.samples("image", "guidance 1", TRAINED)
    if frame.empty:
        return _nothing("pictures")
    chains = frame[frame.arm != "world"]
    arms = [arm for arm in TRAINED if (chains.arm == arm).any()]
    generations = _spread(chains.generation.unique(), 11)
    across = len(arms) if len(arms) * (len(generations) + 1) <= 16 else 1  # few generations: walls stand side by side
    numbers = sorted(int(i) for i in chains.number.unique())[: 4 if across == 1 else 8]
    prompts = chains.drop_duplicates("number").set_index("number").prompt
    pictures = {(r.arm, r.generation, r.number): _pixels(r.image) for r in frame.itertuples() if r.number in numbers}
    real = [("world", 0)] * any(("world", 0, i) in pictures for i in numbers)
    size, count = max(max(p.shape[:2]) for p in pictures.values()), len(generations) + len(real)
    cell = size + max(1, size // 20)
    seed = int(chains.seed.iloc[0])
    note = textwrap.wrap(
        "Pictures by generation at guidance 1: a row is one test prompt, the same noise in all arms and generations"
        f"{'; first column: the real picture of the prompt' if real else ''}. n = {len(numbers)} prompts, seed {seed}, "
        f"generations 0 to {generations[-1]}; {source.about}.",
        LETTERS,
    )

    # All in inches, from the top left corner.
    left, head, foot, gap = 2.05, 0.3, 0.45, 0.2
    down = len(arms) // across
    inch = min(0.8, ((WIDTH - left - 0.1) / across - gap) / (count * cell / size))
    wide, tall = (((n - 1) * cell + size) / size * inch for n in (count, len(numbers)))
    height = down * (head + tall + foot) + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    for k, arm in enumerate(arms):
        wall = np.full(((len(numbers) - 1) * cell + size, (count - 1) * cell + size, 3), 255, np.uint8)
        for i, number in enumerate(numbers):
            for j, (who, g) in enumerate([*real, *((arm, g) for g in generations)]):
                picture = pictures.get((who, g, number))
                if picture is not None:
                    wall[i * cell :, j * cell :][: picture.shape[0], : picture.shape[1]] = picture
        row, place = divmod(k, across)
        bottom = height - (row + 1) * (head + tall) - row * foot
        start = left + place * (wide + gap)
        ax = figure.add_axes((start / WIDTH, bottom / height, wide / WIDTH, tall / height))
        ax.imshow(wall, aspect="auto")
        ax.set_title(ARM_STYLE[arm]["label"])
        ax.set_xticks(np.arange(count) * cell + size / 2, ["real"] * len(real) + [str(g) for g in generations])
        labels = [textwrap.fill(textwrap.shorten(prompts[i], 120, placeholder=" ..."), 34) for i in numbers]
        labels = labels if place == 0 else [""] * len(numbers)
        ax.set_yticks(np.arange(len(numbers)) * cell + size / 2, labels, fontsize=6.5)
        ax.tick_params(length=0)
        ax.set_xlabel("generation")
        sns.despine(ax=ax, left=True, bottom=True)
    _caption(figure, note)
    shown = {"modality": "image", "measurement": "guidance 1", "arm": ["world", *arms], "seed": [-1, seed]}
    return Drawn(figure, [shown | {"generation": generations, "index": numbers}], samples=True)


def _captions(source: Source) -> Drawn:
    """A table: real pictures, and what each generation of recursive and real says of them."""
    frame = source.samples("text", "greedy", ("recursive", "real"))
    if frame.empty:
        return _nothing("captions")
    chains = frame[frame.arm != "world"]
    arms = [arm for arm in ("recursive", "real") if (chains.arm == arm).any()]
    generations = _spread(chains.generation.unique(), 6)
    numbers = sorted(int(i) for i in chains.number.unique())[:4]
    said = {(r.arm, r.generation, r.number): r.caption for r in chains.itertuples()}
    real = chains.drop_duplicates("number").set_index("number")
    seed = int(chains.seed.iloc[0])
    note = textwrap.wrap(
        f"Greedy captions of the same {len(numbers)} test pictures by generation, seed {seed}, generations "
        f"{', '.join(map(str, generations))}; {source.about}.",
        LETTERS,
    )

    # All in inches, from the top left corner.
    gap, picture, column, letters = 0.05, 1.0, 4.1, 72
    start = [1.75 + k * column for k in range(len(arms))]
    blocks = []
    for i in numbers:
        rows = [("", [textwrap.wrap(f"reference: {real.prompt[i]}", 2 * letters)])]
        rows += [(str(g), [textwrap.wrap(said.get((a, g, i), ""), letters) for a in arms]) for g in generations]
        tall = sum(max(map(len, cells), default=1) * LINE + gap for _, cells in rows)
        blocks.append((i, rows, max(tall, picture) + 0.18))
    height = 0.34 + sum(tall for _, _, tall in blocks) + len(note) * LINE + 0.2
    figure = Figure(figsize=(WIDTH, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.set_axis_off()

    def put(x: float, y: float, lines: list[str], **style):
        for k, words in enumerate(lines):
            ax.text(x, y + (k + 0.75) * LINE, words, va="baseline", **style)

    def rule(y: float):
        ax.plot([0.1, WIDTH - 0.1], [y, y], color="black", linewidth=0.6)

    y = 0.1
    put(start[0] - 0.12, y, ["generation"], ha="right", fontweight="bold")
    for x, arm in zip(start, arms, strict=True):
        put(x, y, [ARM_STYLE[arm]["label"]], fontweight="bold", color=ARM_STYLE[arm]["color"])
    y += 0.24
    for i, rows, tall in blocks:
        rule(y)
        inset = figure.add_axes((0.12 / WIDTH, 1 - (y + 0.09 + picture) / height, picture / WIDTH, picture / height))
        inset.imshow(_pixels(real.image[i]))
        inset.set_axis_off()
        down = y + 0.09
        for g, cells in rows:
            put(start[0] - 0.12, down, [g], ha="right")
            for x, words in zip(start, cells, strict=False):
                put(x, down, words, **({} if g else {"style": "italic", "color": "#555555"}))
            down += max(map(len, cells), default=1) * LINE + gap
        y += tall
    rule(y)
    _caption(figure, note)
    shown = {"modality": "text", "measurement": "greedy", "arm": arms, "seed": [seed]}
    return Drawn(figure, [shown | {"generation": generations, "index": numbers}], samples=True)


# ---- instruments

# Metric, space, and the direction in which it moves when pictures or captions become worse: 1 up, -1 down.
PICTURE_METRICS = [
    *(("all_right", "oracle", -1), ("abstains", "oracle", 1), ("tail_coverage", "oracle", -1)),
    ("cell_entropy", "oracle", -1),
    *(("nuisance_ratio", "oracle", -1), ("spectrum", "pixels", 1)),
    *((m, s, d) for m, d in (("fid", 1), ("kid", 1), ("precision", -1), ("recall", -1)) for s in ("judge", "judge-2")),
    *(
        (m, s, -1)
        for m in ("density", "coverage", "vendi", "variance", "variance_within")
        for s in ("judge", "judge-2")
    ),
    *(("P", "judge", 1), ("P", "judge-2", 1), ("W", "judge", -1)),
]
CAPTION_METRICS = [
    *(("all_right", "parser", -1), ("tail_coverage", "parser", -1), ("bleu4", "words", -1), ("cider", "words", -1)),
    *(("rouge_l", "words", -1), ("distinct_2", "words", -1), ("vocabulary", "words", -1), ("self_bleu", "words", 1)),
    *(("perplexity", "language", 1), ("caption_vendi", "judge", -1), ("caption_variance", "judge", -1)),
    *(("caption_variance", "judge-2", -1), ("P", "judge", 1), ("P", "judge-2", 1), ("W", "judge", -1)),
]


def _damage(source: Source) -> Drawn:
    """Heat maps: Spearman correlation of each metric with the strength of each damage."""
    table = source.table[source.table.measurement.str.fullmatch(r"[\d.]+") & source.table.value.notna()]
    sides = [("image", PICTURE_METRICS, "Pictures"), ("text", CAPTION_METRICS, "Captions")]
    note = textwrap.wrap(
        "What the metrics see of damage whose strength is known (columns). A number is Spearman's correlation of the "
        "metric with the strength, over five strengths, times the direction in which the metric gets worse (arrow): 1, "
        "it moves with the damage as it should; 0, it is blind to it; -1, it calls the damage an improvement. In "
        f"small print its mean at no damage and at the strongest. Empty: it never changed. {table.seed.nunique()} "
        f"repeats, n = {int(table.n[table.metric == 'kid'].median()):,} pictures, {source.about}.",
        LETTERS,
    )
    cell, left, head = 0.26, 1.5, 0.7
    height = head + cell * max(len(m) for _, m, _ in sides) + LINE * len(note) + 0.2
    figure = Figure(figsize=(WIDTH, height))
    x = left
    for modality, metrics, title in sides:
        part = table[table.modality == modality]
        order = part[(part.space != "truth")].arm.unique()
        damages = [d for d in DAMAGES if d in order]
        metrics = [m for m in metrics if ((part.metric == m[0]) & (part.space == m[1])).any()]
        wide = 0.555
        ax = figure.add_axes(
            (
                x / WIDTH,
                1 - (head + cell * len(metrics)) / height,
                wide * len(damages) / WIDTH,
                cell * len(metrics) / height,
            )
        )
        values = np.full((len(metrics), len(damages)), np.nan)
        for i, (metric, space, worse) in enumerate(metrics):
            for j, damage in enumerate(damages):
                rows = part[(part.metric == metric) & (part.space == space) & (part.arm == damage)]
                mean = rows.groupby(rows.measurement.astype(float)).value.mean()
                if mean.nunique() > 1:
                    values[i, j] = worse * spearmanr(rows.measurement.astype(float), rows.value).statistic
                    ends = f"{mean.iloc[0]:.3g} to {mean.iloc[-1]:.3g}"
                    ax.text(j, i + 0.27, ends, ha="center", va="center", fontsize=3.9, color="#333333")
                    ax.text(j, i - 0.14, f"{values[i, j]:+.2f}", ha="center", va="center", fontsize=6)
        ax.imshow(np.ma.masked_invalid(values), cmap="PuOr_r", vmin=-1.35, vmax=1.35, aspect="auto")
        ax.set_xticks(range(len(damages)), [textwrap.fill(DAMAGES[d], 9) for d in damages], fontsize=6)
        ax.xaxis.tick_top()
        labels = [f"{m}, {s} {'↑' if d > 0 else '↓'}" for m, s, d in metrics]
        ax.set_yticks(range(len(metrics)), labels, fontsize=6)
        ax.tick_params(length=0)
        ax.set_title(title, pad=26)
        sns.despine(ax=ax, left=True, bottom=True)
        x += wide * len(damages) + 1.75
    _caption(figure, note)
    return Drawn(figure, [{"modality": m, "metric": [k for k, _, _ in ms]} for m, ms, _ in sides])


DAMAGES = {d: d for d in ("noise", "blur", "grey", "saturated", "mixed")} | {"autoencoder": "auto- encoder"}
DAMAGES |= {
    d: d for d in ("wrong scene", "lost modes", "less variety", "wrong caption", "one caption", "jumbled words")
}


def _size(source: Source) -> Drawn:
    """Real against real at several sizes: the bias of each metric in n."""
    table = source.table[source.table.measurement.str.fullmatch(r"n \d+")]
    shown = [
        *(("image", m, "judge") for m in ("fid", "kid", "precision", "recall", "density", "coverage", "vendi")),
        *(("image", "variance", "judge"), ("image", "spectrum", "pixels"), ("image", "P", "judge")),
        *(("text", m, "words") for m in ("vocabulary", "distinct_2", "self_bleu", "bleu4", "cider", "rouge_l")),
        *(
            ("text", "tail_coverage", "parser"),
            ("text", "caption_variance", "judge"),
            ("text", "caption_vendi", "judge"),
        ),
    ]
    note = textwrap.wrap(
        "Real against real: what sample size alone does to a metric. Points: mean over "
        f"{table.seed.nunique()} pairs of disjoint sets of real pictures, or of captions (one against four others); "
        "band: their standard deviation. A metric whose curve is not flat is compared at equal n only. The Frechet "
        "distance is not used left of the dashed line, 10 samples a dimension; self-BLEU is always that of the first "
        f"200; {source.about}.",
        LETTERS,
    )
    columns, cell, head = 5, 1.75, 0.15
    rows = math.ceil(len(shown) / columns)
    height = head + rows * cell + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    for k, (modality, metric, space) in enumerate(shown):
        row, column = divmod(k, columns)
        x, y = (column * WIDTH / columns + 0.5) / WIDTH, 1 - (head + (row + 1) * cell - 0.42) / height
        ax = figure.add_axes((x, y, (WIDTH / columns - 0.62) / WIDTH, (cell - 0.72) / height))
        part = table[(table.modality == modality) & (table.metric == metric) & (table.space == space)]
        n = part.measurement.str[2:].astype(int)
        mean, sd = part.value.groupby(n).mean(), part.value.groupby(n).std()
        ax.fill_between(mean.index, mean - sd, mean + sd, color="#2E86C1", alpha=0.25, linewidth=0)
        ax.plot(mean.index, mean, color="#2E86C1", marker="o", markersize=3, linewidth=1.2)
        if metric == "fid":
            ax.axvline(640, color="#333333", linestyle=(0, (4, 2)), linewidth=0.8)
        ax.set_title(f"{metric}, {space}", fontsize=7)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([50, 200, 1000]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.set_xlabel("n", labelpad=0)
        ax.margins(y=0.15)
        sns.despine(ax=ax)
    _caption(figure, note)
    return Drawn(figure, [{"modality": m, "metric": k, "space": s, "arm": "real"} for m, k, s in shown])


def _truth(source: Source) -> Drawn:
    """What the oracle reads against what is exactly known, and against an eye."""
    table = source.table
    exact = [
        ("all_right", "wrong scene", "All attributes right", "share of pictures"),
        ("tail_coverage", "lost modes", "Tail coverage", "share of rare cells"),
        ("nuisance_ratio", "less variety", "Nuisance variance", "ratio to real"),
    ]
    eye = table[table.arm == "by eye"]
    generations = sorted(m for m in eye.measurement.unique() if m[-1].isdigit())
    generations.sort(key=lambda m: int(m.split()[-1]))
    parts = [f"{m.split()[-1]}: n {int(eye[eye.measurement == m].n.max())}" for m in generations]

    def said(metric, space, measurement="generation all"):
        rows = eye[(eye.metric == metric) & (eye.space == space) & (eye.measurement == measurement)]
        return rows.value.iloc[0] if len(rows) else math.nan

    note = textwrap.wrap(
        "First three: the oracle's reading of real pictures that were changed by a known amount, against the exact "
        "truth; on the diagonal it is right. Last: pictures that a text-to-image chain made, judged one by one by a "
        "viewer (an AI model that looked at them) who knew neither generation nor oracle (00_eyes). "
        + (
            f"Pictures a generation: {', '.join(parts)}. All together: oracle and eye agree on "
            f"{said('agreement', 'oracle'):.0%} (kappa {said('kappa', 'oracle'):.2f}); a right picture lies nearer to "
            f"its caption than a wrong one with probability {said('auc', 'judge'):.2f}, {said('auc', 'judge-2'):.2f} "
            "(judge, judge-2). "
            if generations
            else ""
        )
        + f"{source.about}.",
        LETTERS,
    )
    height = 2.3 + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    for k in range(4):
        ax = figure.add_axes(((0.55 + 2.5 * k) / WIDTH, 1 - 1.75 / height, 1.8 / WIDTH, 1.45 / height))
        if k < 3:
            metric, damage, title, unit = exact[k]
            rows = table[(table.arm == damage) & (table.metric == metric)]
            wide = rows.pivot_table(index=["seed", "measurement"], columns="space", values="value")
            ax.plot([0, 1.02], [0, 1.02], color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)))
            ax.plot(wide.truth, wide.oracle, linestyle="", marker="o", markersize=4, color="#8C1D40", alpha=0.8)
            ax.set(xlabel=f"exact, {unit}", ylabel=f"oracle, {unit}", title=title)
        elif generations:
            places = np.arange(len(generations))
            for offset, (space, color, hatch) in zip(
                (-0.2, 0.2), (("truth", "#2E86C1", ""), ("oracle", "#8C1D40", "//")), strict=True
            ):
                values = [said("all_right", space, m) for m in generations]
                label = "by eye" if space == "truth" else "oracle"
                ax.bar(
                    places + offset,
                    values,
                    0.38,
                    color=color,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.4,
                    label=label,
                )
            ax.set_xticks(places, [m.split()[-1] for m in generations])
            ax.set(xlabel="generation, recursive", ylabel="share of pictures right", title="By eye", ylim=(0, 1))
            ax.legend(frameon=False, loc="upper right")
        else:
            _say(ax, "no pictures were\nchecked by eye")
        sns.despine(ax=ax)
    _caption(figure, note)
    names = [{"arm": d, "metric": m} for m, d, _, _ in exact]
    return Drawn(figure, names + ([{"arm": "by eye"}] if generations else []))


# ---- all of them

FIGURES: dict[str, dict[str, Callable[[Source], Drawn]]] = {
    "01_variance": {
        "generators": _generators,
        "generators_as_used": _generators_as_used,
        "captioners": _captioners,
        "more_metrics": _more,
        "power": _power,
        "drift": _drift,
        "wall": _wall,
        "captions": _captions,
    },
    "00_instruments": {"damage": _damage, "size": _size, "truth": _truth},
}


def draw(results: Path, figures: Path, only: str | None = None) -> list[Path]:
    """Draw the figures of the result tables in `results` into `figures`; returns the files written.

    only: one experiment ("01_variance") or one figure ("01_variance_wall"). Without it: every experiment that has a
    table. MMCollapseError: nothing of that name, or no table."""
    results, figures = Path(results), Path(figures)
    every = {f"{e}_{f}": (e, make) for e, members in FIGURES.items() for f, make in members.items()}
    chosen = {name: what for name, what in every.items() if not only or only in (name, what[0])}
    if not chosen:
        raise MMCollapseError(f"no experiment or figure {only!r}: there are {', '.join([*FIGURES, *every])}")
    if not only:  # all that have a table; if none has, the error names the first
        chosen = {n: w for n, w in chosen.items() if (results / f"{w[0]}.parquet").is_file()} or chosen
    sources = {e: open_source(results, e) for e in dict.fromkeys(e for e, _ in chosen.values())}
    figures.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (experiment, make) in chosen.items():
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever the user's own style is
            matplotlib.rcParams.update(STYLE)
            written += _save(make(sources[experiment]), sources[experiment], figures, name)
    return written


def _save(drawn: Drawn, source: Source, figures: Path, name: str) -> list[Path]:
    png, svg, about = (figures / f"{name}.{ending}" for ending in ("png", "svg", "json"))
    write_whole(png, _png(drawn.figure, palette=not drawn.samples))
    for ax in drawn.figure.axes:
        for image in ax.images:
            image.set_interpolation("none")  # in an SVG: the pixels as they are
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_whole(svg, buffer.getvalue())
    folders = f"--results {_here(source.folder)} --figures {_here(figures)}"
    path = source.samples_path if drawn.samples else source.table_path
    record = {
        "figure": name,
        "sources": {_here(path): checksum(path)["sha256"]} if path.is_file() else {},
        "rows": drawn.rows,
        "command": f"python -m mmcollapse figures {folders} --only {name}",
    }
    write_whole(about, (json.dumps(record, indent=1) + "\n").encode())
    return [png, svg, about]


def _png(figure: Figure, palette: bool) -> bytes:
    """The figure as a PNG; curves do with a palette of 256 colours, which makes the file a third as large."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if palette:
        image = image.quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", dpi=(DPI, DPI))
    return buffer.getvalue()


def _here(path: Path) -> str:
    """The path as one would type it here: relative if it lies below the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
