"""When alarms sound: on collapsing chains against the half-life of their quality, and on healthy ones."""

from __future__ import annotations

import textwrap

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmcollapse import alarms
from mmcollapse.figures.house import Drawn, Source, caption, nothing
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, LINE, WIDTH

ROW = 0.26  # inches of an alarm
PARTS = {"image": "pictures", "text": "captions"}


def _counted(parts) -> str:
    """How many chains of either kind there are."""
    told = [f"{rows.collapsing.max()} and {rows.healthy.max()} ({PARTS[modality]})" for modality, rows in parts]
    return f"n = {', '.join(told)} seeds"


def draw(source: Source) -> Drawn:
    """A row an alarm, the earliest honest one on top: left when it first sounds, right how often it does so on real."""
    found, judged = alarms.sounded(source.table, source.planned), alarms.honesty(source.table, source.planned)
    if judged.empty:
        return nothing("two sets of real data, or chains of recursive and real")
    parts = [(m, judged[judged.modality == m]) for m in ("image", "text") if (judged.modality == m).any()]
    collapsing, healthy, slow = (_named(arms, parts) for arms in (alarms.COLLAPSING, alarms.HEALTHY, alarms.SLOW))
    note = textwrap.wrap(
        f"When alarms first sound in chains that collapse ({collapsing}; small: one seed, large: their median; none: "
        "it never sounds), beside the half-life of their quality (line: median, band: all seeds; none: more than half "
        "is left; numbers: generations from alarm to half-life, median), and how often they sound in healthy chains "
        f"({healthy}; 95% Clopper-Pearson interval; lower is better) and in those whose data are made once (hollow: "
        f"{slow}). An alarm sounds when a metric has moved from generation 0 by more than two sets of real data of "
        f"this size differ, at a rate of {alarms.RATE:.0%} a chain (dotted). Bold: the rate on healthy chains may be "
        f"the stated one. Earliest of these: {alarms.earliest(judged)}. Quality: all right. {_counted(parts)}, "
        f"generations 0 to {source.planned}; {source.about}.",
        LETTERS,
    )
    head, foot, left, split = 0.35, 0.5, 2.5, 0.62
    height = sum(head + foot + ROW * len(rows) for _, rows in parts) + LINE * len(note) + 0.15
    figure, down = Figure(figsize=(WIDTH, height)), 0.0
    for modality, rows in parts:
        tall = ROW * len(rows)
        bottom = height - down - head - tall
        wide = WIDTH - left - 0.15
        times, rates = (
            figure.add_axes((x / WIDTH, bottom / height, w / WIDTH, tall / height))
            for x, w in ((left, split * wide - 0.2), (left + split * wide + 0.1, (1 - split) * wide - 0.1))
        )
        _times(times, rows, found, alarms.half_lives(source.table, modality, source.planned), source.planned)
        _rates(rates, rows, ARM_STYLE[alarms.SLOW[modality]])
        times.set_title(f"{PARTS[modality].title()}: first alarm in chains of {alarms.COLLAPSING[modality]}")
        rates.set_title("share of healthy chains")
        down += head + tall + foot
    caption(figure, note)
    metrics = sorted({a.metric for a in alarms.ALARMS})
    arms = sorted({*alarms.COLLAPSING.values(), alarms.HEALTHY, *alarms.SLOW.values(), "world"})
    return Drawn(figure, [{"arm": arms, "metric": metrics, "subset": "test"}])


def _named(arms, parts: list) -> str:
    """An arm, or those of the modalities that are there."""
    return arms if isinstance(arms, str) else " and ".join(dict.fromkeys(arms[m] for m, _ in parts))


def _times(ax, rows, found, lives, planned: int):
    arm = alarms.COLLAPSING[rows.modality.iloc[0]]
    color, lives = ARM_STYLE[arm]["color"], lives.dropna()
    if np.isfinite(lives).any():
        ax.axvspan(lives.min(), min(lives.max(), planned + 0.6), color="#888888", alpha=0.18, linewidth=0)
    if len(lives) and np.isfinite(median := lives.median()):
        ax.axvline(median, color="#333333", linewidth=1.1)
    for y, row in enumerate(rows.itertuples()):
        own = found[(found.alarm == row.alarm) & (found.modality == row.modality) & (found.arm == arm)]
        first = own.sort_values("seed").generation.to_numpy()
        spread = np.linspace(-0.28, 0.28, len(first)) if len(first) > 1 else [0.0]
        ax.plot(first, y + np.asarray(spread), "o", color=color, markersize=2.6, alpha=0.6, linestyle="")
        if np.isfinite(row.generation):
            ax.plot(row.generation, y, "D", color=color, markersize=5.5, markeredgecolor="white", markeredgewidth=0.5)
        if np.isfinite(row.lead):
            ax.text(planned + 0.6, y, f"{row.lead:+.1f}", ha="right", va="center", fontsize=6.5, color="#555555")
    ax.set(xlim=(0.4, planned + 0.6), ylim=(len(rows) - 0.5, -0.5), xlabel="generation (earlier is better)")
    ax.set_yticks(range(len(rows)), rows.alarm, fontsize=7)
    for label, honest in zip(ax.get_yticklabels(), rows.honest, strict=True):
        label.set_fontweight("bold" if honest else "normal")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)


def _rates(ax, rows, slow: dict):
    style = ARM_STYLE[alarms.HEALTHY]
    hollow = {"markerfacecolor": "none", "markeredgecolor": slow["color"], "markeredgewidth": 1.1, "markersize": 6.0}
    for y, row in enumerate(rows.itertuples()):
        ax.plot(row.slow, y, marker=slow["marker"], linestyle="", **hollow)
        ax.plot([row.low, row.high], [y, y], color=style["color"], linewidth=1.4)
        ax.plot(row.false, y, marker=style["marker"], color=style["color"], markersize=4.5)
    ax.axvline(alarms.RATE, color="#333333", linewidth=0.9, linestyle=(0, (1, 1.6)))
    ax.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5), yticks=[], xlabel="false alarms (lower is better)")
    sns.despine(ax=ax, left=True)
