"""Experiment 9, human judgement: what raters prefer, which metrics say the same, and how many raters it takes."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from mmcollapse.errors import MMCollapseError
from mmcollapse.figures.house import Drawn, handle, legend, say, sheet
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, MARKERS

TITLES = {
    "fidelity": "Fits the caption better",
    "realism": "Looks more like a real picture",
    "variety": "Set of four is more varied",
}
NO_RATINGS = "no ratings were made"
MOST = 14  # metrics a panel


@dataclass
class Judgements:
    """The table of human.write_human."""

    folder: Path
    experiment: str
    frame: pd.DataFrame

    def files(self, samples: bool) -> list[Path]:
        return [self.folder / f"{self.experiment}.parquet"]

    def named(self, *parts: str) -> list[dict]:
        """The filter of the rows that a figure shows; none where there are none."""
        there = [name for name in parts if (self.frame.part == name).any()]
        return [{"part": there}] if there else []

    def part(self, name: str, question: str = "") -> pd.DataFrame:
        return self.frame[(self.frame.part == name) & (self.frame.question == question)]

    @property
    def about(self) -> str:
        """Who was asked, for a caption."""
        raters = self.part("rater")
        out = raters.note.str.startswith("left out").sum()
        return f"n = {len(raters) - out} raters, {out} left out" if len(raters) else NO_RATINGS.capitalize()


def has_judgements(results: Path) -> bool:
    """Whether raters have saved anything to draw."""
    return (Path(results) / "09_human.parquet").is_file()


def open_judgements(results: Path, experiment: str) -> Judgements:
    """What raters said, in a folder of results. MMCollapseError: nothing there."""
    path = Path(results) / f"{experiment}.parquet"
    if not path.is_file():
        raise MMCollapseError(f"no judgements at {path}: run 09_human first (make reproduce ONLY=09_human)")
    return Judgements(Path(results), experiment, pd.read_parquet(path))


def _preferences(source: Judgements) -> Drawn:
    """A row an arm: the probability to be preferred to the first."""
    note = (
        "What people prefer: probability that an arm is chosen against the first one (top), from the Bradley-Terry "
        "model; no difference counts as half. Right of the line it is preferred. Bars: 95%, bootstrap over raters; for "
        "these pictures. alpha: Krippendorff's, ordinal, with its 95% bootstrap over tasks; 1 is perfect agreement of "
        f"the raters, 0 that of chance. {source.about}."
    )
    figure, axes = sheet(len(TITLES), 3, textwrap.wrap(note, LETTERS), 2, left=0.25, below=0.45)
    for ax, question in zip(axes, TITLES, strict=True):
        rows = source.part("preference", question)
        _title(ax, question, source.part("agreement", question))
        if rows.value.isna().all():
            say(ax, rows.note.iloc[0] if len(rows) else NO_RATINGS)
            continue
        for y, row in enumerate(rows.itertuples()):
            style = _style(row.name)
            ax.plot([row.low, row.high], [y, y], color=style["color"], linewidth=1.2)
            ax.plot(row.value, y, markersize=5, **style | {"linestyle": ""})
        ax.axvline(0.5, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=0)
        ax.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), yticks=[])
        first = _style(rows["name"].iloc[0])["label"]
        ax.set_xlabel(f"preferred to {first}\n(higher is better)")
        sns.despine(ax=ax, left=True)
    named = [*dict.fromkeys(source.frame["name"][source.frame.part == "preference"])]
    legend(figure, (), 4, [handle(_style(arm) | {"linestyle": ""}) for arm in named])
    return Drawn(figure, source.named("preference", "agreement"), counts=_counts(source, "preference"))


def _title(ax, question: str, agreement: pd.DataFrame):
    rows = agreement[agreement["name"] == "ordinal"]
    known = [f"\nalpha {r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in rows.itertuples() if r.value == r.value]
    ax.set_title(TITLES[question] + "".join(known))


def _style(arm: str) -> dict:
    """Of an arm its own, of the world that of real pictures."""
    return ARM_STYLE[arm] | ({"marker": "*", "label": "real pictures"} if arm == "world" else {})


def _metrics(source: Judgements) -> Drawn:
    """A row a metric: rho with what people prefer."""
    found = {q: source.part("correlation", q) for q in TITLES}
    known = {q: rows[rows.value.notna()].head(MOST) for q, rows in found.items()}
    note = (
        "Which metrics say what people say? Spearman's rho across arms between the strength that raters gave and the "
        f"metric, turned so that right of 0 it points where people do; the {MOST} highest of each question. Bar: 95% "
        "over resampled arms; p: permutations of the arms. So few arms decide nothing by themselves. "
        f"{source.about}."
    )
    figure, axes = sheet(len(TITLES), 3, textwrap.wrap(note, LETTERS), 0, cell=2.9, left=1.35)
    for ax, question in zip(axes, TITLES, strict=True):
        rows = known[question]
        ax.set_title(TITLES[question])
        if rows.empty:
            told = found[question].note[found[question].note != ""]
            say(ax, textwrap.fill(told.iloc[0] if len(told) else NO_RATINGS, 34))
            continue
        for y, row in enumerate(rows.itertuples()):
            ax.plot([row.low, row.high], [y, y], color="#333333", linewidth=0.9)
            ax.plot(row.value, y, marker="o", markersize=4, color="#333333")
            ax.text(1.1, y, f"p {row.p:.2f}", fontsize=5.5, va="center")
        ax.set_yticks(range(len(rows)), [f"{r.name}, {r.space}" for r in rows.itertuples()], fontsize=5.5)
        ax.set(xlim=(-1.05, 1.4), ylim=(len(rows) - 0.5, -0.5), xticks=(-1, 0, 1))
        ax.axvline(0, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=0)
        ax.set_xlabel(f"rho, turned (n = {rows.n.min()} arms)\n(higher = as people say)")
        sns.despine(ax=ax)
    return Drawn(figure, source.named("correlation"), counts=_counts(source, "correlation"))


def _raters(source: Judgements) -> Drawn:
    """Power by the number of raters, by the true preference."""
    rows = source.part("plan")
    note = (
        "How many raters does it take? Share of studies in which the 95% interval of a preference lies above one half, "
        "by the true share that prefers one arm of a pair (no ratings enter: computed for "
        f"{rows.note.iloc[0]} and a standard deviation of .1 between raters). {source.about}."
    )
    figure, (ax,) = sheet(1, 2, textwrap.wrap(note, LETTERS), 1)
    names, colors = [*dict.fromkeys(rows["name"])], ("#B9B9B9", "#8C8C8C", "#5A5A5A", "#1E1E1E")
    styles = [
        {"color": color, "marker": marker, "linestyle": "-", "label": f"{name} prefer it"}
        for name, color, marker in zip(names, colors, MARKERS, strict=False)
    ]
    for name, style in zip(names, styles, strict=True):
        own = rows[rows["name"] == name]
        ax.plot(own.n, own.value, markersize=4, **style)
    ax.axhline(0.8, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=0)
    ax.set_xscale("log")
    ax.set_xticks(sorted(set(rows.n)), [str(n) for n in sorted(set(rows.n))])
    ax.minorticks_off()
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set(ylim=(-0.03, 1.03), xlabel="raters", ylabel="preference is seen\n(share of studies)")
    sns.despine(ax=ax)
    legend(figure, (), 4, [handle(style) for style in styles])
    return Drawn(figure, source.named("plan"), counts=_counts(source, "plan"))


def _counts(source: Judgements, part: str) -> dict:
    n = source.frame.n[source.frame.part == part]
    return {"n": [int(n.min()), int(n.max())] if len(n) else [], "seeds": [], "generations": []}


FIGURES = {"preferences": _preferences, "metrics": _metrics, "raters": _raters}
