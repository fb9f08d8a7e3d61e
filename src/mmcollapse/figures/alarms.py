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


def draw(source: Source) -> Drawn:
    """A row an alarm, the earliest honest one on top: left when it first sounds, right how often it does so on real."""
    found, judged = alarms.sounded(source.table, source.planned), alarms.honesty(source.table, source.planned)
    if judged.empty:
        return nothing("two sets of real data, or chains of recursive and real")
    parts = [(m, judged[judged.modality == m]) for m in ("image", "text") if (judged.modality == m).any()]
    counts = {arm: judged[name].max() for arm, name in (("recursive", "collapsing"), ("real", "healthy"))}
    note = textwrap.wrap(
        "When alarms first sound in chains that collapse (recursive; small: one seed, large: their median; none: it "
        "never sounds), beside the half-life of their quality (line: median, band: all seeds), and how often they "
        "sound in healthy chains (fine-tuned on real data; 95% Clopper-Pearson interval; lower is better). An alarm "
        "sounds when a metric has moved from generation 0 by more than two sets of real data of this size differ, at "
        f"a rate of {alarms.RATE:.0%} a chain (dotted). Bold: the rate on healthy chains may be the stated one; the "
        f"topmost of these is the earliest honest alarm. Quality: all right. n = {counts['recursive']} and "
        f"{counts['real']} seeds, generations 0 to {source.planned}; {source.about}.",
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
        _rates(rates, rows)
        what = {"image": "Pictures", "text": "Captions"}[modality]
        times.set_title(f"{what}: first alarm in recursive chains")
        rates.set_title("share of healthy chains")
        down += head + tall + foot
    caption(figure, note)
    metrics = sorted({a.metric for a in alarms.ALARMS})
    return Drawn(figure, [{"arm": ["recursive", "real", "world"], "metric": metrics, "subset": "test"}])


def _times(ax, rows, found, lives, planned: int):
    color = ARM_STYLE["recursive"]["color"]
    known = lives.dropna().clip(upper=planned)
    if len(known):
        ax.axvspan(known.min(), known.max(), color="#888888", alpha=0.18, linewidth=0)
        ax.axvline(known.median(), color="#333333", linewidth=1.1)
    for y, row in enumerate(rows.itertuples()):
        own = found[(found.alarm == row.alarm) & (found.modality == row.modality) & (found.arm == alarms.COLLAPSING)]
        first = own.sort_values("seed").generation.to_numpy()
        spread = np.linspace(-0.28, 0.28, len(first)) if len(first) > 1 else [0.0]
        ax.plot(first, y + np.asarray(spread), "o", color=color, markersize=2.6, alpha=0.6, linestyle="")
        if np.isfinite(row.generation):
            ax.plot(row.generation, y, "D", color=color, markersize=5.5, markeredgecolor="white", markeredgewidth=0.5)
    ax.set(xlim=(0.4, planned + 0.6), ylim=(len(rows) - 0.5, -0.5), xlabel="generation (earlier is better)")
    ax.set_yticks(range(len(rows)), rows.alarm, fontsize=7)
    for label, honest in zip(ax.get_yticklabels(), rows.honest, strict=True):
        label.set_fontweight("bold" if honest else "normal")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)


def _rates(ax, rows):
    style = ARM_STYLE["real"]
    for y, row in enumerate(rows.itertuples()):
        ax.plot([row.low, row.high], [y, y], color=style["color"], linewidth=1.4)
        ax.plot(row.false, y, marker=style["marker"], color=style["color"], markersize=4.5)
    ax.axvline(alarms.RATE, color="#333333", linewidth=0.9, linestyle=(0, (1, 1.6)))
    ax.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5), yticks=[], xlabel="false alarms (lower is better)")
    sns.despine(ax=ax, left=True)
