"""Experiment 3, diversity: claim C6."""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from mmcollapse.figures.house import (
    BETTER,
    EMBEDDING,
    LOWER,
    Drawn,
    Panel,
    Source,
    curves,
    estimate,
    every_arm,
    facts,
    generations_wall,
    grid,
    handle,
    last_pictures,
    legend,
    level,
    nothing,
    over,
    plain_arms,
    right_and_varied,
    say,
    scalars,
    sheet,
    spread,
    ticks_at,
    wall,
    y_axis,
)
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, POPULATIONS, in_order
from mmcollapse.table import is_member


def _sizes(source: Source, modality: str) -> dict[int, list[str]]:
    """Pools of different models by their size M: their arms."""
    t = source.table
    found = (re.fullmatch(r"pool-(\d+)[a-j]?", arm) for arm in sorted(t.arm[t.modality == modality].unique()))
    out: dict[int, list[str]] = {}
    for f in found:
        if f:
            out.setdefault(int(f.group(1)), []).append(f.group(0))
    return dict(sorted(out.items()))


def _largest(source: Source, modality: str) -> tuple[str, ...]:
    """The largest pool, and what it is compared with: arms of the same size."""
    sizes = _sizes(source, modality)
    if not sizes:
        return ("alone",)
    most = max(sizes)
    return (*sizes[most][:1], *(f"{kind}-{most}" for kind in POPULATIONS), "alone")


def _there(source: Source, panels: list[Panel]) -> list[Panel]:
    """Those of the modalities that were run; all if none was."""
    run = set(source.table.modality[source.table.seed >= 0])
    return [p for p in panels if p.modality in run] or panels


def _panels(source: Source, arms=None) -> list[Panel]:
    pictures, captions = ((*(arms or _largest)(source, m), "gen0", "real") for m in ("image", "text"))
    return _there(source, right_and_varied(pictures, captions))


def _models(source: Source, modality: str, arm: str = "") -> list[str]:
    """The models of a modality, or those of an arm, without clones."""
    t = source.table
    rows = t[is_member(t.model) & (t.modality == modality) & ((t.arm == arm) | (arm == ""))]
    return sorted(m for m in rows.model.unique() if " clone " not in m)


def _short(model: str) -> str:
    """The name of a model without its role: "sdxl" of generator-sdxl; the first of its role is "default"."""
    return model.partition("-")[2] or "default"


def _curves(source: Source) -> Drawn:
    panels = _panels(source)
    about = (
        "Populations that feed one pool, against each model alone: mean over the models of an arm, each of them "
        "measured by itself (pictures at guidance 1; captions greedy and, for the variance, sampled). Pool: every "
        "model makes an equal share of the N pairs and is trained on all N. Clones: one base model several times. "
        "Frozen pool: "
        "generation 0 of all makes the pairs, every generation. Alone: on its own N pairs. " + _who(source)
    )
    return Drawn(grid(source, panels, 2, about), [p.rows(source.table) for p in panels])


def _who(source: Source) -> str:
    """Of which models each mean is, where it is not all of them."""
    parts = []
    for modality, what in (("image", "generators"), ("text", "captioners")):
        every = _models(source, modality, "alone")
        if not every:
            continue
        parts.append(f"{what}: {', '.join(_short(m) for m in every)}")
        for arm in _largest(source, modality):
            own = _models(source, modality, arm)
            if own and own != every:
                parts[-1] += f"; {ARM_STYLE[arm]['label']}: {', '.join(_short(m) for m in own)} only"
    return f"Models: {'. '.join(p.capitalize() for p in parts)}." if parts else ""


# ---- model by model


def _by_model(source: Source) -> Drawn:
    """Paired differences of AUC between the pool and what it is compared with, a row a model."""
    panels = [p for p in _panels(source) if p.metric == "all_right"]
    about = (
        "What a pool of different models does to each of them: difference of all right (AUC, mean of generations 1 "
        "to the last) between the model in the pool and alone, as one of clones, or under a frozen pool; paired by "
        "seed. Dot: mean over seeds; small dots: seeds; bar: 95% t interval. Right of 0: better in the pool; dashed: "
        "S, .05. Clones are of one model, so only this one is compared with them (their mean); last row: all."
    )
    note = textwrap.wrap(f"{about} {facts(source, panels, False)}", LETTERS)
    count = max([len(_models(source, p.modality)) for p in panels] + [1])
    figure, axes = sheet(len(panels), 2, note, 1, cell=0.8 + 0.22 * (count + 1), left=1.15)
    shown = set()
    for ax, panel in zip(axes, panels, strict=True):
        ax.set_title("Generators" if panel.modality == "image" else "Captioners")
        shown |= set(_differences(ax, source, panel))
    more = [
        handle(ARM_STYLE[a] | {"linestyle": "", "label": f"pool - {ARM_STYLE[a]['label']}"}) for a in in_order(shown)
    ]
    legend(figure, (), 4, more)
    return Drawn(figure, [p.rows(source.table) for p in panels])


def _scalars_of(source: Source, panel: Panel, arm: str, model: str) -> pd.Series | None:
    """AUC by seed of a model in an arm; of clones their mean."""
    t = source.table
    own = (t.arm == arm) & ((t.model == model) | t.model.str.startswith(f"{model} clone "))
    return scalars(replace(source, table=t[own]), replace(panel, arms=(arm,)), "auc").get(arm)


def _differences(ax, source: Source, panel: Panel) -> list[str]:
    pool, *others = _largest(source, panel.modality)
    others = [arm for arm in ("alone", *others[:2]) if arm in others]  # alone, the frozen pool, clones
    models, drawn, every = _models(source, panel.modality, pool), [], {}
    for row, model in enumerate(models):
        mine = _scalars_of(source, panel, pool, model)
        for k, arm in enumerate(others):
            theirs = None if mine is None else _scalars_of(source, panel, arm, model)
            if theirs is None:
                continue
            every.setdefault(arm, {})[model] = (mine - theirs).dropna()
            drawn += _whisker(ax, row + 0.22 * (k - (len(others) - 1) / 2), every[arm][model], arm)
    if not drawn:
        say(ax, "this table has no pool\nof different models")
        return []
    labels = [_short(m) for m in models]
    if len(models) > 1:
        for k, arm in enumerate(others):
            whole = every.get(arm, {})
            if len(whole) == len(models):
                mean = pd.concat(whole.values(), axis=1).mean(axis=1, skipna=False).dropna()
                _whisker(ax, len(models) + 0.22 * (k - (len(others) - 1) / 2), mean, arm)
        labels.append("mean")
        ax.axhline(len(models) - 0.5, color="#888888", linewidth=0.5)
    for x, line in ((0, "-"), (0.05, (0, (4, 2)))):
        ax.axvline(x, color="#333333", linewidth=0.8, linestyle=line, zorder=0)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    what = "pictures" if panel.modality == "image" else "captions"
    ax.set_xlabel(f"difference of the share of {what} all right (higher = the pool is better)")
    sns.despine(ax=ax)
    return drawn


def _whisker(ax, y: float, values: pd.Series, arm: str) -> list[str]:
    """Mean, interval and seeds of a difference, in the style of the arm that is compared with."""
    if values.empty:
        return []
    style = ARM_STYLE[arm]
    mean, low, high = estimate(values.to_numpy(), "plain")
    if len(values) > 1:
        ax.plot(values, np.full(len(values), y), ".", markersize=2.5, color=style["color"], alpha=0.5, zorder=2)
    if not np.isnan(low):
        ax.plot([low, high], [y, y], color=style["color"], linewidth=1.2, zorder=2)
    size = 9 if style["marker"] == "*" else 6
    ax.plot(
        [mean], [y], marker=style["marker"], markersize=size, color=style["color"], markeredgecolor="white", zorder=3
    )
    return [arm]


# ---- several as one


def _pool_variance(source: Source) -> Drawn:
    """Variance and tail coverage of a population measured as one, apart from its members' own."""
    together = source.table.assign(
        arm=source.table.arm.where(source.table.model != "pool", source.table.arm + " as one")
    )
    together = together.assign(model=together.model.where(together.model != "pool", "together"))
    whole = replace(source, table=together)

    def arms(source: Source, modality: str) -> tuple[str, ...]:
        kept = [arm for arm in _largest(source, modality) if arm.startswith(("pool", "clones", "alone"))]
        kept = [arm for arm in kept if "compute" not in arm]
        return tuple(name for arm in kept for name in (arm, f"{arm} as one"))

    nuisance, variance = right_and_varied(*((*arms(source, m), "gen0", "real") for m in ("image", "text")))[1::2]
    marginal = replace(nuisance, title="Variance of pictures", label=EMBEDDING + LOWER, metric="variance")
    tail = {"label": f"share of rare cells shown\n{BETTER}", "metric": "tail_coverage", "scale": "rate"}
    panels = [
        replace(nuisance, title="Nuisance variance, pictures"),
        marginal,
        replace(nuisance, title="Tail coverage, pictures", **tail),
        variance,
        replace(variance, title="Tail coverage, captions", **tail),
    ]
    panels = _there(source, panels)
    about = (
        "A population measured as one (hollow, thin), every sample by the next of its models in turn, and its "
        "members' own mean (filled, thick): as one it varies more because its models differ, which says nothing "
        "about what became of any of them. Pictures at guidance 1, captions sampled."
    )
    note = textwrap.wrap(f"{about} {facts(whole, panels)}", LETTERS)
    figure, axes = sheet(len(panels), 3, note, 2)
    shown = []
    for ax, panel in zip(axes, panels, strict=True):
        shown += curves(ax, whole.table, panel)
    legend(figure, shown)
    rows = []
    for panel in panels:
        names = [arm for arm in panel.arms if not arm.endswith(" as one")]
        rows.append(panel.rows(source.table) | {"arm": names})
        rows.append(rows[-1] | {"model": ["pool"]})
    return Drawn(figure, rows)


# ---- how many


def _size(source: Source) -> Drawn:
    """AUC against the number of models that feed one pool."""

    def arms(source: Source, modality: str) -> tuple[str, ...]:
        pools = [arm for names in _sizes(source, modality).values() for arm in names]
        return tuple(dict.fromkeys([*pools, *_largest(source, modality)]))

    panels = _panels(source, arms)
    about = (
        "How many models does a pool need? AUC (mean of generations 1 to the last) against the number M of different "
        "models that feed it, each seed a mean over the pools of that size and their models; M = 1: each alone. "
        "Small open dots: pools of other members, mean over seeds. Right of the line, of the largest size: clones, the "
        "frozen pool, alone with M times the steps, and seeds of one architecture; horizontal: controls."
    )
    note = textwrap.wrap(f"{about} {facts(source, panels)}", LETTERS)
    figure, axes = sheet(len(panels), len(panels), note, 2)
    shown, line = set(), ARM_STYLE["pool-5"] | {"label": "pool of M (M = 1: alone)"}
    for ax, panel in zip(axes, panels, strict=True):
        ax.set_title(panel.title)
        found, sizes = scalars(source, panel, "auc"), _sizes(source, panel.modality)
        points = {m: [found[a] for a in names if a in found] for m, names in ({1: ["alone"]} | sizes).items()}
        points = {m: some for m, some in points.items() if some}
        if len(points) < 2:
            told = panel.of(source.table)[0].missing
            why = next((m for m in told if m), "") or "this table has no pool of different models"
            say(ax, textwrap.fill(why, 30))
            continue
        mean = {m: pd.concat(some, axis=1).mean(axis=1, skipna=False).dropna() for m, some in points.items()}
        for m, some in points.items():
            for values in some if len(some) > 1 else ():
                own = estimate(values.to_numpy(), panel.scale)[0]
                ax.plot([m], [own], "o", markersize=3, markerfacecolor="none", color=line["color"], alpha=0.7)
        over(ax, mean, panel.scale, line)
        for k, kind in enumerate(POPULATIONS):
            if (arm := f"{kind}-{max(sizes)}") in found:
                _bar(ax, max(sizes) + 0.09 * (k + 1) * max(sizes) ** 0.5, found[arm], panel.scale, arm)
                shown.add(arm)
        for arm in ("gen0", "real"):
            if arm in found:
                level(ax, found[arm], panel.scale, arm)
                shown.add(arm)
        ax.axvline(max(sizes) + 0.1, color="#AAAAAA", linewidth=0.6)  # right of it all are of the largest size
        ticks_at(ax, mean, False)
        ax.set_xlabel("M, models in the pool")
        y_axis(ax, panel, panel.space(source.table))
        sns.despine(ax=ax)
    legend(figure, shown, 5, [handle(line)])
    return Drawn(figure, [p.rows(source.table) for p in panels])


def _bar(ax, x: float, values: pd.Series, scale: str, arm: str):
    """Mean and interval of an arm beside a line."""
    style = ARM_STYLE[arm]
    mean, low, high = estimate(values.to_numpy(), scale)
    if not np.isnan(low):
        ax.plot([x, x], [low, high], color=style["color"], linewidth=0.9, zorder=3)
    own = {
        "marker": style["marker"],
        "markersize": 8 if style["marker"] == "*" else 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }
    ax.plot([x], [mean], color=style["color"], zorder=4, **own)


def _every_arm(source: Source) -> Drawn:
    """The supplement: every population."""
    panels = _there(source, right_and_varied(plain_arms(source, "image"), plain_arms(source, "text")))
    about = (
        "Every population: mean over its models, each measured by itself (pictures at guidance 1; captions greedy, "
        "their variance sampled). Letters: pools of other members."
    )
    return every_arm(source, [group for group in (panels[:2], panels[2:]) if group], about)


# ---- pictures


def _wall(source: Source) -> Drawn:
    """Pictures of the last generation by each member, alone and in the pool."""
    pool = _largest(source, "image")[0]
    arms = list(dict.fromkeys(["alone", pool]))
    frame = source.samples("image", "guidance 1", arms)
    if frame.empty:
        return nothing("pictures")

    def by_member(row, last: int):
        return "world" if row.arm == "world" else (row.arm, row.model) if row.generation == last else None

    own = frame[(frame.arm == "world") | is_member(frame.model)]
    pictures, prompts, last, seed = last_pictures(own, by_member)
    there = {key for key, _ in pictures}
    members = sorted({key[1] for key in there if key != "world"})
    members = [members[k] for k in spread(range(len(members)), 5)]
    blocks = [("", [("real", "world")])] if "world" in there else []
    for model in members:
        columns = [(label, (arm, model)) for arm, label in zip(arms, ("alone", "pool"), strict=False)]
        blocks.append((_short(model), [(label, key) for label, key in columns if key in there]))
    note = (
        f"Pictures after {last} generations, a block a model: trained on its own pictures alone, and in the "
        f"{ARM_STYLE[pool]['label'] if pool != 'alone' else 'pool'}; at guidance 1, the same noise everywhere. A row "
        f"is one test prompt. n = {len(prompts)} prompts, seed {seed}; {source.about}."
    )
    figure = wall(blocks, pictures, prompts, note)
    shown = {"modality": "image", "measurement": "guidance 1", "arm": ["world", *arms], "model": ["", *members]}
    return Drawn(figure, [shown | {"seed": [-1, seed], "generation": [0, last], "index": list(prompts)}], samples=True)


def _by_generation(source: Source) -> Drawn:
    """Pictures by generation: some members alone and in the largest pool, and the controls."""
    pool = _largest(source, "image")[0]
    frame = source.samples("image", "guidance 1", ["alone", pool, "gen0", "real"])
    if frame.empty:
        return nothing("pictures")
    frame = frame[(frame.arm == "world") | is_member(frame.model)]
    members = _models(source, "image", pool)
    rows = {}
    for model in [members[k] for k in spread(range(len(members)), 3)]:
        rows |= {f"{_short(model)}, {ARM_STYLE[arm]['label']}": (arm, model) for arm in dict.fromkeys(("alone", pool))}
    for arm in ("gen0", "real"):
        first = sorted(frame.model[frame.arm == arm].unique())[:1]
        rows |= {f"{_short(model)}, {ARM_STYLE[arm]['label']}": (arm, model) for model in first}
    note = (
        "Pictures by generation: models alone and in the largest pool, and the controls of one of them; at guidance 1, "
        "the same noise everywhere. A block is one test prompt, first column: its real picture. n = {n} prompts, seed "
        f"{{seed}}, generations {{generations}}; {source.about}."
    )
    return generations_wall(frame, rows, note)


FIGURES = {
    "curves": _curves,
    "models": _by_model,
    "pool_variance": _pool_variance,
    "size": _size,
    "arms": _every_arm,
    "wall": _wall,
    "generations": _by_generation,
}
