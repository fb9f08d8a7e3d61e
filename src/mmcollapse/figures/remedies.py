"""Experiment 6, remedies: question Q2. Arm *recursive* is "replace"."""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace

import seaborn as sns

from mmcollapse.figures.house import (
    Drawn,
    Panel,
    Source,
    arms_wall,
    every_arm,
    facts,
    generations_wall,
    grid,
    handle,
    legend,
    level,
    nothing,
    over,
    plain_arms,
    reference,
    repeated,
    repeats,
    right_and_varied,
    said,
    say,
    scalars,
    sheet,
    ticks_at,
    y_axis,
)
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, REFERENCES, SHARES

KEPT = ("recursive", "accumulate", "subsample", "accumulate-synthetic")
CONTROLS = ("real", "gen0")


def _shares(source: Source, kind: str = "") -> dict[float, str]:
    """Per cent of real pairs -> arm, as the table has them."""
    found = (re.fullmatch(rf"real-(\d+)%{kind}", arm) for arm in source.table.arm.unique())
    return dict(sorted((float(f.group(1)), f.group(0)) for f in found if f))


def _curves(source: Source) -> Drawn:
    panels = []
    for what, arms in (("Kept", KEPT), ("Real", ("recursive", *_shares(source).values()))):
        every = (*arms, *CONTROLS)
        panels += [
            replace(p, title=f"{what}: {p.title[0].lower()}{p.title[1:]}") for p in right_and_varied(every, every)
        ]
    about = (
        "Remedies against collapse. Recursive replaces: each generation is trained on the pairs of the one before "
        "alone. Above, what is kept: accumulate, the pairs of all generations so far and the real ones, with as many "
        "times the steps; synthetic only, without these; subsample, N drawn from all of these, at equal steps. Below: "
        "that share of the N pairs is real, the same ones every generation. Pictures at guidance 1; captions greedy "
        "(all right) and sampled (variance)."
    )
    return Drawn(grid(source, panels, 4, about, 6), [p.rows(source.table) for p in panels])


def _every_arm(source: Source) -> Drawn:
    """The supplement: every arm but the repeats on further base models."""
    panels = right_and_varied(plain_arms(source, "image"), plain_arms(source, "text"))
    about = (
        "Every remedy: fresh, new real pairs every generation; alone, the synthetic pairs are left out, at equal "
        "steps; N, another number of pairs. Pictures at guidance 1; captions greedy, their variance sampled."
    )
    return every_arm(source, [panels[:2], panels[2:]], about, "late")


def _repeats(source: Source) -> Drawn:
    """Whether remedies do on other base models what they do here."""
    kinds = list(dict.fromkeys([*repeated(source, "generator"), *repeated(source, "captioner")]))
    smallest = {"rate": 0.05, "log": 0.10}
    panels = {panel: smallest[panel.scale] for panel in right_and_varied((), ())}
    about = (
        "What remedies save of what recursion loses, late, beside generation-0 and real data, and the same on further "
        "base models. Pictures at guidance 1; captions greedy, their variance sampled."
    )
    return repeats(source, panels, ("subsample", "real-25%", "gen0", "real"), kinds, about)


def _by_generation(source: Source) -> Drawn:
    """Pictures by generation, a row an arm."""
    arms = [*KEPT, *_shares(source).values(), "gen0", "real"]
    frame = source.samples("image", "guidance 1", arms)
    if frame.empty:
        return nothing("pictures")
    rows = {ARM_STYLE[arm]["label"]: (arm,) for arm in arms if (frame.arm == arm).any()}
    note = (
        "Pictures by generation under each remedy, at guidance 1, the same noise everywhere. A block is one test "
        "prompt, first column: its real picture. n = {n} prompts, seed {seed}, generations {generations}; "
        f"{source.about}."
    )
    return generations_wall(frame, rows, note)


def _points(source: Source, panel: Panel, summary: str, names: dict[float, str]) -> dict:
    found = scalars(source, panel, summary)
    return {x: found[arm] for x, arm in names.items() if arm in found}


def _over(source: Source, lines: dict[str, dict[float, str]], styles: dict[str, dict], levels, about: str, axis: tuple):
    """Late, of four measures, over a number that arms carry. lines: name -> number -> arm; levels: arms beside them;
    axis: label, whether logarithmic, what is said if there is nothing."""
    label, log, lacking = axis
    arms = tuple(dict.fromkeys([*(arm for names in lines.values() for arm in names.values()), *levels]))
    panels = right_and_varied(arms, arms)
    note = textwrap.wrap(f"{about} {facts(source, panels)}", LETTERS)
    figure, axes = sheet(len(panels), 4, note, 2)
    used, flat, rows = [], set(), []
    for ax, panel in zip(axes, panels, strict=True):
        ax.set_title(panel.title)
        found = {name: _points(source, panel, "late", names) for name, names in lines.items()}
        ticks = [x for points in found.values() for x in points]
        if len(set(ticks)) < 2:
            told = panel.of(source.table)[0].missing
            why = next((m for m in told if m), "") or lacking
            say(ax, textwrap.fill(why, 30))
            continue
        for name, points in found.items():
            if points:
                over(ax, points, panel.scale, styles[name])
                used.append(name)
        levelled = scalars(source, panel, "late")
        for arm in (a for a in levels if a in levelled):
            level(ax, levelled[arm], panel.scale, arm)
            flat.add(arm)
        known = panel.of(source.table)[1]
        for arm in REFERENCES:
            values = known.value[known.arm == arm].to_numpy()
            if values.size and (panel.scale != "log" or (values > 0).all()):
                reference(ax, values, panel.scale, arm)
                flat.add(arm)
        ticks_at(ax, ticks, log)
        ax.set_xlabel(label)
        y_axis(ax, panel, panel.space(source.table))
        sns.despine(ax=ax)
        rows.append(panel.rows(source.table))
    more = [handle(styles[name]) for name in dict.fromkeys(used)]
    legend(figure, flat, 6, more)
    return Drawn(figure, rows)


def _by_share(source: Source) -> Drawn:
    """Late by the share of real pairs: 0 is replace, 100% is real."""
    lines, styles = {}, {}
    for kind, label in {
        "": "real share, fixed",
        "-fresh": "real share, fresh",
        "-alone": "the real part alone",
    }.items():
        names = _shares(source, kind)
        if names or not kind:
            ends = {0.0: "recursive"} if kind != "-alone" else {}
            lines[label] = ends | names | {100.0: "real"}
            styles[label] = ARM_STYLE[f"real-50%{kind}"] | {"label": label, "linestyle": SHARES[kind][2]}
            styles[label] |= {"marker": {"": "D", "-fresh": "v", "-alone": "X"}[kind]}
    about = (
        "How many real pairs are enough? Late against the share of real pairs among the N: 0% is replace "
        "(recursive), 100% real data. Fixed: the same real pairs every generation, fresh: new ones. The real part "
        "alone: the synthetic pairs are left out, at equal steps, so where it lies above the others the synthetic "
        f"part does not help. Horizontal: the controls. {said(source, 'late').capitalize()}."
    )
    axis = ("real pairs, %", False, "no arm of this table mixes in real pairs")
    return _over(source, lines, styles, ("recursive", "real", "gen0"), about, axis)


def _by_pairs(source: Source) -> Drawn:
    """Late by the number of pairs."""
    sizes = sorted({int(f.group(1)) for a in source.table.arm.unique() if (f := re.fullmatch(r"N-(\d+)(-\w+)?", a))})
    usual, lines, styles = _usual(source), {}, {}
    for arm, ending in (("recursive", ""), ("real", "-real"), ("gen0", "-gen0")):
        names = {float(n): f"N-{n}{ending}" for n in sizes}
        lines[arm] = dict(sorted((names | ({float(usual): arm} if usual else {})).items()))
        styles[arm] = ARM_STYLE[arm]
    about = (
        "Is collapse slower with more pairs? Late against N, the pairs that each generation is trained on, at equal "
        f"steps. {said(source, 'late').capitalize()}."
    )
    axis = ("N, pairs a generation", True, "this table has no arm with another number of pairs")
    return _over(source, lines, styles, (), about, axis)


def _usual(source: Source) -> int:
    """The number of pairs of arms that name none: what one generation's set of the recursive arm holds."""
    t = source.table
    rows = t[(t.arm == "recursive") & (t.metric == "passes") & (t.model == "set")]
    return int(rows.n.max()) if len(rows) else int(source.settings.get("pairs", 0))


def _wall(source: Source) -> Drawn:
    kept = ("replace", "accumulate", "sub-\nsample", "synthetic\nonly")
    blocks = {"Before": {"world": "real", "start": "base"}, "Keeping": dict(zip(KEPT, kept, strict=True))}
    blocks["Real pairs"] = {arm: f"{v:g}%" for v, arm in _shares(source).items()}
    blocks["Controls"] = {"gen0": "generation-\n0 data", "real": "real\ndata"}
    note = (
        "Pictures after {last} generations under each remedy, at guidance 1: a row is one test prompt, the same noise "
        "everywhere. Base: generation 0. n = {n} prompts"
    )
    return arms_wall(source, blocks, note)


FIGURES = {
    "curves": _curves,
    "shares": _by_share,
    "pairs": _by_pairs,
    "repeats": _repeats,
    "arms": _every_arm,
    "wall": _wall,
    "generations": _by_generation,
}
