"""Experiment 8, intervention: what a remedy saves that comes early, late, or when an alarm sounds."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mmcollapse.figures.house import (
    Drawn,
    Panel,
    Source,
    arms_wall,
    estimate,
    every_arm,
    facts,
    first_upper,
    grid,
    handle,
    legend,
    level,
    over,
    plain_arms,
    right_and_varied,
    said,
    say,
    scalars,
    sheet,
)
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, in_order
from mmcollapse.intervention import CONTROLS, NEVER, PER, of_sets, since

TOTALS = ("total-early", "total-evenly", "total-late")
ON_ALARM = ("on-alarm", "on-alarm-matched")
OTHERS = ("on-alarm-labels", "on-alarm-budget")


def _late(source: Source) -> list[str]:
    """The arms late-k, by k."""
    found = (re.fullmatch(r"late-(\d+)", arm) for arm in source.table.arm.unique())
    return [f.group(0) for f in sorted((f for f in found if f), key=lambda f: int(f.group(1)))]


def _panels(*arms: str) -> list[Panel]:
    """What is right and what varies, of pictures and of captions, with those that never have a remedy and the
    controls."""
    return right_and_varied(*((NEVER[m], *arms, *CONTROLS[m]) for m in ("image", "text")))


def _sets_shown(source: Source, arms: Sequence[str]) -> list[dict]:
    """The filter of the rows that say when remedies came to these arms, if there are any."""
    t = source.table
    known = set(t.arm[t.metric == "switched"])
    there = [arm for arm in arms if arm in known]
    return [{"metric": ["real_pairs", "switched"], "model": ["set"], "arm": there}] if there else []


def _avoided(source: Source, panel: Panel) -> dict[str, pd.Series]:
    """By arm, how much more of late it has than the arm without a remedy, paired by seed: a difference of shares, or of
    logarithms."""
    found = scalars(source, panel, "late")
    if panel.scale == "log":
        found = {arm: np.log(values[values > 0]) for arm, values in found.items()}
    if (never := found.pop(NEVER[panel.modality], None)) is None:
        return {}
    return {arm: both for arm, values in found.items() if len(both := (values - never).dropna())}


def _curves(source: Source) -> Drawn:
    arms = ("always", *_late(source), "on-alarm")
    panels = _panels(*arms)
    for k in (2, 3):  # is a healthy captioner left alone?
        panels[k] = replace(panels[k], arms=(*panels[k].arms, "on-alarm-matched", "recursive"))
    about = (
        "A remedy never, always, from a generation on, or on alarm: a quarter of the pairs is real from then on, at "
        "equal numbers of pairs and steps. Marks at the foot: where a remedy came on alarm, a mark a seed. Pictures at "
        "guidance 1. Captioners are trained under the published drifting schedule, for with matched decoding "
        "(recursive, and on alarm) they do not collapse; captions greedy (all right) and sampled (variance)."
    )
    figure = grid(source, panels, 2, about, 4)
    for ax, panel in zip(figure.axes, panels, strict=True):
        came = [
            (arm, g) for arm in ON_ALARM for g in since(source.table, panel.modality, arm).dropna() if arm in panel.arms
        ]
        for k, (arm, g) in enumerate(came):
            look = {"color": ARM_STYLE[arm]["color"], "marker": "^", "markersize": 5, "clip_on": False}
            ax.plot(g, 0.03 * k, transform=ax.get_xaxis_transform(), zorder=5, **look)
    return Drawn(figure, [panel.rows(source.table) for panel in panels] + _sets_shown(source, ON_ALARM))


def _upright(ax, x: float, values: pd.Series, style: dict):
    """A mean over seeds and its 95% t interval, from foot to top; of two seeds the seeds themselves."""
    mean, low, high = estimate(values.to_numpy(), "plain")
    if not math.isnan(low):
        ax.plot([x, x], [low, high], color=style["color"], linewidth=1.2, zorder=4)
    elif len(values) > 1:
        ax.plot([x] * len(values), values, ".", markersize=2.5, color=style["color"], zorder=4)
    own = {"markersize": 9 if style["marker"] == "*" else 5.5, "markeredgecolor": "white", "markeredgewidth": 0.4}
    ax.plot([x], [mean], color=style["color"], marker=style["marker"], linestyle="", zorder=5, **own)


def _against_when(source: Source, panels: list[Panel], about: str, draw, label: str, units: tuple[str, str]) -> Drawn:
    """Panels of what is avoided against when it came. draw(ax, panel, avoided) -> names of what it shows; label: of the
    x axis; units: of shares and of logarithms."""
    note = textwrap.wrap(f"{about} {first_upper(said(source, 'late'))}. {facts(source, panels, False)}", LETTERS)
    figure, axes = sheet(len(panels), 4, note, 2, cell=2.3)
    shown: set[str] = set()
    for ax, panel in zip(axes, panels, strict=True):
        ax.set_title(panel.title)
        names = draw(ax, panel, _avoided(source, panel))
        if not names:
            told = [m for m in panel.of(source.table)[0].missing if m]
            say(ax, textwrap.fill(told[0] if told else "no arm of this table has a remedy", 26))
            continue
        shown |= names
        ax.axhline(0, color=ARM_STYLE[NEVER[panel.modality]]["color"], linewidth=1.1, zorder=1)
        shown.add(NEVER[panel.modality])
        ax.set_xlabel(label)
        varied = panel.scale == "log"
        ax.set_ylabel(f"{units[varied]}\n(higher = {'more varied' if varied else 'more is saved'})")
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
        ax.margins(x=0.08, y=0.1)
        sns.despine(ax=ax)
    line = handle(ARM_STYLE["always"] | {"label": "remedy from a generation on"})
    legend(figure, shown - {"always"}, 6, [line] if "always" in shown else [])
    rows = [panel.rows(source.table) for panel in panels]
    return Drawn(figure, rows + _sets_shown(source, in_order({arm for panel in panels for arm in panel.arms})))


def _by_switch(source: Source) -> Drawn:
    """Loss avoided against the generation since which the remedy holds."""
    steady, last = ["always", *_late(source)], source.planned + 1

    def draw(ax, panel: Panel, avoided: dict[str, pd.Series]) -> set[str]:
        when = {arm: 1 if arm == "always" else int(arm.removeprefix("late-")) for arm in steady}
        points = {when[arm]: avoided[arm] for arm in steady if arm in avoided}
        if not points:
            return set()
        over(ax, points, "plain", ARM_STYLE["always"])
        names, ticks = {"always"}, set(points)
        if "on-alarm" in avoided:
            came = since(source.table, panel.modality, "on-alarm").fillna(last)
            _upright(ax, came.mean(), avoided["on-alarm"], ARM_STYLE["on-alarm"])
            names.add("on-alarm")
            ticks |= {last} if (came == last).any() else set()
        for control in (c for c in CONTROLS[panel.modality] if c in avoided):
            level(ax, avoided[control], "plain", control)
            names.add(control)
        ax.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: "never" if v == last else f"{v:g}"))
        return names

    about = (
        "What is saved of what the chain without a remedy loses, against the generation since which a quarter of the "
        "pairs is real: late, less late without (the line at 0), paired by seed. On alarm: at the mean of when it came "
        "(never: its alarm did not sound, or could not). Mean over seeds and 95% t interval."
    )
    label, units = "generation since which it holds", ("difference of shares", "log ratio")
    return _against_when(source, _panels(*steady, "on-alarm"), about, draw, label, units)


def _by_unit(source: Source) -> Drawn:
    """Loss avoided for each PER uses of real pairs, against the mean generation in which they came."""
    steady = ["always", *_late(source)]

    def draw(ax, panel: Panel, avoided: dict[str, pd.Series]) -> set[str]:
        bought = {}  # arm -> (mean generation of its real pairs, avoided a unit by seed)
        for arm in (a for a in (*steady, "on-alarm", *TOTALS) if a in avoided):
            pairs = of_sets(source.table, "real_pairs", panel.modality, arm)
            if pairs.empty:
                continue
            total = pairs.sum()[lambda v: v > 0]
            a_unit = (avoided[arm] / (total / PER)).dropna()
            if len(a_unit):
                when = pairs.mul(pairs.index, axis=0).sum()[total.index] / total
                bought[arm] = float(when[a_unit.index].mean()), a_unit
        names: set[str] = set()
        for line, style in ((steady, ARM_STYLE["always"]), (TOTALS, ARM_STYLE["total-evenly"] | {"marker": ""})):
            points = {bought[arm][0]: bought[arm][1] for arm in line if arm in bought}
            over(ax, points, "plain", style)
        names |= {"always"} & set(bought)
        for arm in (a for a in ("on-alarm", *TOTALS) if a in bought):
            _upright(ax, *bought[arm], ARM_STYLE[arm])
            names.add(arm)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return names

    totals = (
        "All early, evenly or late: the same total of real pairs, new ones every generation, in the first half of the "
        "generations, in all, or in the last half. "
    ) * (not set(TOTALS).isdisjoint(source.table.arm))
    about = (
        f"What a unit of real data buys by when it comes: late, less late without a remedy, for each {PER} uses of "
        "real pairs in all generations together, against the mean generation in which they came. From a "
        "generation on: a quarter of the pairs, always the same real ones. "
        + totals
        + "Mean over seeds and 95% t interval."
    )
    label, each = "mean generation of its real pairs", f"per {PER} uses of real pairs"
    units = (f"share {each}", f"log ratio {each}")
    return _against_when(source, _panels(*steady, "on-alarm", *TOTALS), about, draw, label, units)


def _every_arm(source: Source) -> Drawn:
    """The supplement: every arm."""
    panels = right_and_varied(plain_arms(source, "image"), plain_arms(source, "text"))
    there = set(source.table.arm)
    others = "; on alarm also others than real pairs" * (not there.isdisjoint(OTHERS))
    others += (
        "; apart: several models that were pretrained and are trained apart, in one pool on alarm, and their controls"
    ) * ("apart" in there)
    about = (
        "Every remedy" + others + ". Captioners under the drifting schedule, but for "
        "recursive, generation-0 data and matched decoding. Pictures at guidance 1; captions greedy, their variance "
        "sampled."
    )
    return every_arm(source, [panels[:2], panels[2:]], about, "late")


def _wall(source: Source) -> Drawn:
    when = {"recursive": "never"} | {arm: f"from {arm.removeprefix('late-')}" for arm in reversed(_late(source))}
    blocks = {"Before": {"world": "real", "start": "base"}}
    blocks["A quarter real pairs"] = when | {"on-alarm": "on\nalarm", "always": "always"}
    blocks["On alarm"] = dict(zip(OTHERS, ("labels", "budget"), strict=True))
    blocks["One total"] = dict(zip(TOTALS, ("early", "evenly", "late"), strict=True))
    blocks["Controls"] = {"gen0": "generation-\n0 data", "real": "real\ndata"}
    note = (
        "Pictures after {last} generations by when the remedy came, at guidance 1: a row is one test prompt, the same "
        "noise everywhere. Base: generation 0. n = {n} prompts"
    )
    return arms_wall(source, blocks, note)


FIGURES = {"curves": _curves, "switch": _by_switch, "unit": _by_unit, "arms": _every_arm, "wall": _wall}
