"""Experiment 2, decoding budget: claim C4."""

from __future__ import annotations

import re
import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import FixedLocator

from mmcollapse import stats
from mmcollapse.figures.house import (
    EMBEDDING,
    Drawn,
    Panel,
    Source,
    by_arm,
    curves,
    estimate,
    every_arm,
    facts,
    handle,
    last_pictures,
    legend,
    level,
    nothing,
    over,
    plain_arms,
    right_and_varied,
    said,
    say,
    scalars,
    sheet,
    spread,
    ticks_at,
    wall,
    within,
    y_axis,
)
from mmcollapse.figures.styles import ARM_STYLE, KNOBS, LETTERS, REFERENCES, in_order

# knob: modality, label of its axis, whether that is logarithmic
AXES = {
    "steps": ("image", "denoising steps", True),
    "guidance": ("image", "guidance", True),
    "beams": ("text", "beams", True),
    "temperature": ("text", "temperature", False),
    "length": ("text", "most tokens", True),
}
CONTROLS = ("recursive", "real", "gen0")
# Where the number of a point stands, in points from it, in the figure of cost: apart from those of other knobs.
LABEL = {
    "steps": (-5, 5, "right"),
    "guidance": (7, 0, "left"),
    "beams": (5, -6, "left"),
    "temperature": (7, 1, "left"),
    "length": (-5, 6, "right"),
}
NEAR = 0.05  # S of C4: a value this near to the best of its knob is as good


def _values(source: Source, knob: str) -> list[float]:
    """The numbers of a knob that the table has."""
    found = (re.fullmatch(rf"{knob}-([\d.]+)", arm) for arm in source.table.arm.unique())
    return sorted(float(f.group(1)) for f in found if f)


def _arms(source: Source, knob: str) -> dict[float, str]:
    return {v: f"{knob}-{v:g}" for v in _values(source, knob)}


def _knobs(source: Source) -> list[str]:
    """The knobs that the table has arms of; all of them if none."""
    return [knob for knob in AXES if _values(source, knob)] or list(AXES)


def _rest(source: Source) -> str:
    """The others, in words."""
    rest = [knob for knob in AXES if not _values(source, knob)]
    return f" This table has no arms of {', '.join(rest)}." if rest else ""


def _right(modality: str, arms) -> Panel:
    """All right, under the one decoding by which all arms are measured."""
    measurement = "guidance 1" if modality == "image" else "greedy"
    what = "pictures" if modality == "image" else "captions"
    label = f"share of {what}\n(higher is better)"
    return Panel("All right", label, "all_right", modality, measurement, tuple(arms), "rate")


def _line(knob: str) -> dict:
    """Of a whole knob: its colour and line, the points are those of its arms."""
    first, last, low, high, *_ = KNOBS[knob]
    style = ARM_STYLE[f"{knob}-{(low * high) ** 0.5:.4g}"]
    return style | {
        "marker": "",
        "linestyle": {"steps": "-", "beams": "-"}.get(knob, style["linestyle"]),
        "label": knob,
    }


def _points(ax, points: dict[float, pd.Series], names: dict[float, str], scale: str = "rate"):
    """The means of arms, each with its own marker."""
    for x, values in points.items():
        style = ARM_STYLE[names[x]] | {"linestyle": "", "zorder": 4}
        style["markersize"] = 8.5 if style["marker"] == "*" else 5.5  # a star is thin
        ax.plot([x], [estimate(values.to_numpy(), scale)[0]], **{"markeredgecolor": "white", **style})


def _budget(source: Source) -> Drawn:
    """What a unit of compute buys: all right by the value of a knob, and the part of it that recursion takes."""
    about = (
        "What a larger decoding budget of the data buys: all right, mean of generations 1 to the last (AUC), all arms "
        "measured alike. Above: the recursive arm of each value (filled) and its own control, trained every generation "
        "on generation 0's data of that same value (hollow, dotted), beside real data. Below: their difference, what "
        "recursion takes net of what the decoding does to one generation; 0: nothing."
    )
    knobs = _knobs(source)
    panels = [_right(AXES[knob][0], (*_arms(source, knob).values(), "real")) for knob in knobs]
    note = textwrap.wrap(f"{about}{_rest(source)} {facts(source, panels)}", LETTERS)
    figure, axes = sheet(2 * len(knobs), len(knobs), note, 1, left=0.68)
    shown, rows = set(), []
    for k, knob in enumerate(knobs):
        modality, label, log = AXES[knob]
        names = _arms(source, knob)
        own = {v: f"{name}-gen0" for v, name in names.items()}
        panel = _right(modality, (*names.values(), *own.values(), "real"))
        found, upper, lower = scalars(source, panel, "auc"), axes[k], axes[k + len(knobs)]
        upper.set_title(knob.capitalize())
        made = {v: found[name] for v, name in names.items() if name in found}
        if not made:
            for ax in (upper, lower):
                say(ax, f"this table has\nno arms of {knob}")
            continue
        rows.append(panel.rows(source.table))
        begin = {v: found[name] for v, name in own.items() if name in found}
        net = {v: (made[v] - begin[v]).dropna() for v in made if v in begin}
        style = _line(knob)
        over(upper, made, "rate", style | {"linestyle": "-"})
        over(upper, begin, "rate", style | {"linestyle": (0, (1, 1.2))})
        _points(upper, made, names)
        _points(upper, begin, own)
        over(lower, net, "plain", style | {"linestyle": "-"})
        _points(lower, {v: d for v, d in net.items() if len(d)}, names, "plain")
        lower.axhline(0, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)))
        for ax in (upper, lower):
            ticks_at(ax, made, log and min(made) > 0)
            ax.set_xlabel(f"{label} of the data" if knob != "length" else f"{label} of a caption")
        if "real" in found:
            level(upper, found["real"], "rate", "real")
            shown.add("real")
        y_axis(upper, panel, "")
        within(upper, "rate")
        within(lower, "plain")
        lower.set_ylabel("net of generation 0\n(higher is better)", labelpad=0)
        for ax in (upper, lower):
            sns.despine(ax=ax)
    for modality in ("image", "text"):
        alike(axes, [k for k, knob in enumerate(knobs) if AXES[knob][0] == modality])
    grey = {"color": "#555555", "markeredgecolor": "white"}
    outline = {"color": "#888888", "markerfacecolor": "white", "markeredgecolor": "#555555"}
    more = [handle({"marker": "D", "linestyle": "-", "label": "recursive, by value", **grey})]
    more.append(handle({"marker": "D", "linestyle": (0, (1, 1.2)), "label": "its own generation 0", **outline}))
    legend(figure, shown, more=more)
    return Drawn(figure, rows)


def alike(axes, columns: list[int]):
    """One y axis for the panels of `columns` in each of two rows, for values of knobs are compared; those that have
    nothing to show are left out."""
    half = len(axes) // 2
    for row in (0, half):
        drawn = [axes[row + k] for k in columns if axes[row + k].lines]
        limits = [limit for ax in drawn for limit in ax.get_ylim()]
        for ax in drawn:
            ax.set_ylim(min(limits), max(limits))


def _cost(source: Source) -> Drawn:
    """All right against forward passes a pair, and the fits over guidance."""
    about = (
        "All right against the cost of the data: forward passes of the model that one training pair takes. A line "
        f"joins the values of one knob; ring: the cheapest value whose mean lies within {NEAR:g} of the best of its "
        f"knob, beyond which more buys nothing. The star is the default decoding. Above: {said(source, 'auc')}; "
        f"below: {said(source, 'late')}.{_rest(source)}"
    )
    guided = "guidance" in _knobs(source)
    if guided:
        about += (
            " Guidance above 1 takes two passes a step, whatever its value, so right: all right against guidance "
            "itself, with a line and a parabola in its logarithm, fitted to each seed."
        )
    names = {knob: _arms(source, knob) for knob in AXES}
    panels = {}
    for modality in ("image", "text"):
        arms = [arm for knob, (m, *_) in AXES.items() if m == modality for arm in names[knob].values()]
        panels[modality] = _right(modality, (*arms, *CONTROLS))
    note = textwrap.wrap(f"{about} {facts(source, list(panels.values()))}", LETTERS)
    columns = 2 + guided
    figure, axes = sheet(2 * columns, columns, note, 1, cell=2.35)
    shown, rows, knobs = set(), [], []
    for row, summary in enumerate(("auc", "late")):
        for column, (modality, panel) in enumerate(panels.items()):
            ax, who = axes[columns * row + column], ("Generators", "Captioners")[column]
            ax.set_title(f"{who}, {'AUC' if summary == 'auc' else summary}")
            found, passes = scalars(source, panel, summary), _passes(source, modality)
            ticks = []
            for knob in (k for k, (m, *_) in AXES.items() if m == modality):
                points = {v: (passes[a], found[a]) for v, a in names[knob].items() if a in found and a in passes}
                if not points:
                    continue
                knobs.append(knob)
                ticks += _knob_line(ax, knob, names[knob], points)
            if not ticks:
                say(ax, "the cost of no arm\nis in this table")
                continue
            if "recursive" in found and "recursive" in passes:
                mean = estimate(found["recursive"].to_numpy(), "rate")[0]
                ax.plot([passes["recursive"]], [mean], marker="*", markersize=9, color="#8C1D40", zorder=5)
                ticks.append(passes["recursive"])
            for arm in ("real", "gen0"):
                if arm in found:
                    level(ax, found[arm], "rate", arm)
                    shown.add(arm)
            ticks_at(ax, _apart(ticks), True)
            within(ax, "rate")
            ax.set_xlabel("forward passes a pair")
            y_axis(ax, panel, "")
            sns.despine(ax=ax)
            if row == 0:
                rows += [panel.rows(source.table), _cost_rows(panel)]
        if guided:
            _fits(axes[columns * row + 2], source, panels["image"], names["guidance"], summary)
    more = [handle(_line(knob) | {"marker": ""}) for knob in dict.fromkeys(knobs)]
    star = {"marker": "*", "linestyle": "", "color": "#8C1D40", "markersize": 7, "label": "default decoding"}
    legend(figure, shown, 8, [*more, handle(star)])
    return Drawn(figure, rows)


def _cost_rows(panel: Panel) -> dict:
    return {"metric": "passes", "space": "cost", "modality": panel.modality, "measurement": "data", "model": "set"}


def _passes(source: Source, modality: str) -> dict[str, float]:
    """Forward passes a pair that making the training data took, by arm: mean over generations and seeds; only of what
    a model made, so that it is above 0."""
    t = source.table
    rows = t[(t.metric == "passes") & (t.modality == modality) & (t.model == "set") & (t.value > 0)]
    return rows.groupby("arm").value.mean().to_dict()


def _apart(ticks: list[float]) -> list[float]:
    """Those of the ticks whose labels do not run into one another on a logarithmic axis."""
    kept: list[float] = []
    whole = max(ticks) / min(ticks) if ticks else 1
    for tick in sorted(set(round(v, 1) for v in ticks)):
        if not kept or tick / kept[-1] >= max(1.06, whole**0.11):
            kept.append(tick)
    return kept


def _knob_line(ax, knob: str, names: dict, points: dict) -> list[float]:
    """One knob: passes against all right, joined in the order of its values. Returns where its points lie."""
    style, means = _line(knob), {}
    for v, (cost, values) in points.items():
        means[v] = estimate(values.to_numpy(), "rate")
        if not np.isnan(means[v][1]):
            ax.plot([cost, cost], means[v][1:], color=style["color"], linewidth=0.8, zorder=2)
    for seed in sorted(set.union(*(set(values.index) for _, values in points.values()))):
        line = [(cost, values.get(seed, np.nan)) for cost, values in points.values()]
        if len(points) > 1 and max(len(values) for _, values in points.values()) > 1:
            ax.plot(*zip(*line, strict=True), color=style["color"], linewidth=0.5, alpha=0.4, zorder=1)
    costs = [cost for cost, _ in points.values()]
    line = {k: style[k] for k in ("color", "linestyle")}
    ax.plot(costs, [m for m, *_ in means.values()], linewidth=1.3, zorder=3, **line)
    best = max(m for m, *_ in means.values())
    enough = min((points[v][0], v) for v in points if means[v][0] >= best - NEAR)[1]
    for v, (cost, _) in points.items():
        _points(ax, {cost: points[v][1]}, {cost: names[v]})
        away = {"xytext": LABEL[knob][:2], "textcoords": "offset points", "ha": LABEL[knob][2], "va": "center"}
        ax.annotate(f"{v:g}", (cost, means[v][0]), fontsize=6, color=style["color"], **away)
        if v == enough and len(points) > 1:
            ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": style["color"]}
            ax.plot([cost], [means[v][0]], linestyle="", markeredgewidth=0.8, zorder=4, **ring)
    return costs


def _fits(ax, source: Source, panel: Panel, names: dict[float, str], summary: str):
    """All right against guidance, with a line and a parabola in its logarithm."""
    ax.set_title(f"Guidance, {'AUC' if summary == 'auc' else summary}")
    found = scalars(source, panel, summary)
    made = {v: found[arm] for v, arm in names.items() if arm in found}
    if not made:
        say(ax, "this table has\nno arms of guidance")
        return
    points = [{"seed": s, "x": v, "value": y} for v, values in made.items() for s, y in values.items()]
    over(ax, made, "rate", _line("guidance") | {"linestyle": ""})
    _points(ax, made, names)
    fits = stats.log_quadratic(pd.DataFrame(points))
    logs, told = np.linspace(np.log(min(made)), np.log(max(made)), 60), []
    for fit, line in (("linear", (0, (4, 2))), ("quadratic", "-")):
        terms = fits.loc[fit]
        if terms.seeds.iloc[0] < 3 or terms.estimate.isna().any():
            continue
        ax.plot(
            np.exp(logs), np.polyval(terms.estimate.to_numpy()[::-1], logs), color="#333333", linestyle=line, lw=0.9
        )
        parts = [(n, r) for n, r in terms.iterrows() if n != "intercept"]
        told += [f"{fit}: {n} {r.estimate:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for n, r in parts]
        if fit == "quadratic" and (c := terms.estimate["curvature"]) < 0:
            top = float(np.exp(-terms.estimate["slope"] / (2 * c)))
            inside = min(made) < top < max(made)
            told.append(f"quadratic: highest at guidance {top:.2g}" if inside else "quadratic: no top inside")
    for arm in ("real", "gen0"):
        if arm in found:
            level(ax, found[arm], "rate", arm)
    ticks_at(ax, made, True)
    y_axis(ax, panel, "")
    ax.set_xlabel("guidance of the data")
    sns.despine(ax=ax)
    within(ax, "rate")
    low, high = ax.get_ylim()
    if told:  # room below for what the fits say
        ax.yaxis.set_major_locator(FixedLocator([tick for tick in ax.get_yticks() if low <= tick <= high]))
        ax.set_ylim(low - 0.09 * len(told) * (high - low) / (1 - 0.09 * len(told)), high)
        ax.text(0.03, 0.02, "\n".join(told), transform=ax.transAxes, fontsize=5.8, va="bottom")
    elif len(made) > 1:
        ax.text(0.03, 0.02, "no fit: 3 seeds needed", transform=ax.transAxes, fontsize=5.8, va="bottom")


def _curves(source: Source) -> Drawn:
    """All right and variance over generations, a column a knob."""
    lower, knobs = "(lower = less varied)", _knobs(source)
    first, second = [], []
    for knob in knobs:
        modality = AXES[knob][0]
        arms = (*_arms(source, knob).values(), "real", "gen0")
        right = _right(modality, arms)
        title = knob.capitalize()
        first.append(Panel(title, right.label, "all_right", modality, right.measurement, arms, "rate"))
        if modality == "image":
            label = f"nuisance variance, to real\n{lower}"
            second.append(Panel(title, label, "nuisance_ratio", modality, "guidance 1", arms, "log"))
        else:
            second.append(Panel(title, EMBEDDING + lower, "caption_variance", modality, "sampled", arms, "log"))
    panels = [*first, *second]
    about = (
        "Chains whose data are decoded differently, one knob a column; what is measured is decoded alike in all. "
        "Above: all right, below: variance (pictures: of nuisance factors within prompts; captions: sampled). Their "
        f"controls on generation 0's data of the same value are in the figure `budget`.{_rest(source)}"
    )
    note = textwrap.wrap(f"{about} {facts(source, panels)}", LETTERS)
    most = max(len(_values(source, knob)) for knob in knobs)
    figure, axes = sheet(len(panels), len(knobs), note, 1 + most, left=0.68)
    shown, columns = set(), [set() for _ in knobs]
    for k, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        arms = set(curves(ax, source.table, panel))
        common = {"real", "gen0", *REFERENCES}
        shown |= arms & common
        columns[k % len(knobs)] |= arms - common
    legend(figure, shown)
    for ax, arms in zip(axes, columns, strict=False):  # the values of a knob above its column
        handles = [handle(ARM_STYLE[arm] | {"linewidth": 1.3}) for arm in in_order(arms)]
        if handles:
            place = {"loc": "lower left", "bbox_to_anchor": (-0.05, 1.11), "borderaxespad": 0, "handlelength": 2.6}
            ax.legend(handles=handles, frameon=False, fontsize=6.5, labelspacing=0.3, **place)
    rows = [p.rows(source.table) for p in panels if _values(source, p.title.lower())]
    return Drawn(figure, rows)


def _wall(source: Source) -> Drawn:
    """Pictures of the last generation by value of steps and guidance, the same prompts and noise."""
    knobs = {knob: _arms(source, knob) for knob in ("steps", "guidance")}
    arms = [arm for names in knobs.values() for arm in names.values()]
    frame = source.samples("image", "guidance 1", [*arms, *CONTROLS])
    if frame.empty or not set(frame.arm) & set(arms):
        return nothing("pictures")
    pictures, prompts, last, seed = last_pictures(frame, by_arm)
    there = {key for key, _ in pictures}
    blocks = [("", [(label, k) for k, label in (("world", "real"), ("start", "generation 0")) if k in there])]
    blocks[0] = ("Before", [(textwrap.fill(label, 10), k) for label, k in blocks[0][1]])
    for knob, names in knobs.items():
        values = spread_values(names, there)
        if values:
            blocks.append((f"{knob.capitalize()} of the data", values))
    controls = [(label, a) for a, label in (("gen0", "generation\n0 data"), ("real", "real data")) if a in there]
    blocks += [("Controls", controls)] if controls else []
    note = (
        f"Pictures after {last} generations by how their training data were decoded, all drawn alike at guidance 1: a "
        f"row is one test prompt, with the same noise everywhere. n = {len(prompts)} prompts, seed {seed}; "
        f"{source.about}."
    )
    figure = wall(blocks, pictures, prompts, note)
    shown = {"modality": "image", "measurement": "guidance 1", "arm": ["world", *arms, "gen0", "real"]}
    return Drawn(figure, [shown | {"seed": [-1, seed], "generation": [0, last], "index": list(prompts)}], samples=True)


def _every_arm(source: Source) -> Drawn:
    """The supplement: every arm, also the controls of each value."""
    pictures, captions = (plain_arms(source, m) for m in ("image", "text"))
    panels = right_and_varied(pictures, captions)
    about = (
        "Every arm: its data are decoded as its name says, what is measured is decoded alike in all (pictures at "
        "guidance 1; captions greedy, their variance sampled)."
    )
    return every_arm(source, [panels[:2], panels[2:]], about)


def spread_values(names: dict[float, str], there: set) -> list[tuple[str, str]]:
    """At most five (label, arm) of the values of a knob whose pictures are there."""
    known = [v for v in names if names[v] in there]
    return [(f"{known[k]:g}", names[known[k]]) for k in spread(range(len(known)), 5)]


FIGURES = {"budget": _budget, "cost": _cost, "curves": _curves, "arms": _every_arm, "wall": _wall}
