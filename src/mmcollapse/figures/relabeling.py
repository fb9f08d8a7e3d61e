"""Experiment 4, relabeling: claim C7."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from mmcollapse.figures.house import (
    BETTER,
    EMBEDDING,
    LOWER,
    Drawn,
    Panel,
    Source,
    caption,
    estimate,
    every_arm,
    facts,
    grid,
    legend,
    nothing,
    pixels,
    plain_arms,
    said,
    say,
    scalars,
    sheet,
    spread,
    x_axis,
    y_axis,
)
from mmcollapse.figures.styles import ARM_STYLE, DPI, LETTERS, LINE, WIDTH
from mmcollapse.figures.wording import wrong_words

ANCHORED = ("joint", "frozen-captioner", "frozen-generator", "original", "oracle", "noised")
CLOSED = tuple(f"{arm}-closed" for arm in ANCHORED if arm != "original")
ARMS = (*ANCHORED, *CLOSED, "gen0", "real")
FOLLOWED = ("joint", "joint-closed", "frozen-captioner", "oracle", "gen0")


def _panels() -> dict[str, Panel]:
    image = {"modality": "image", "measurement": "guidance 1", "arms": ARMS}
    text = {"modality": "text", "arms": ARMS}
    nuisance = f"nuisance variance, to real\n{LOWER}"
    greedy, sampled = text | {"measurement": "greedy"}, text | {"measurement": "sampled"}
    return {
        "right": Panel("Generator all right", f"share of pictures\n{BETTER}", "all_right", **image, scale="rate"),
        "varied": Panel("Variance of pictures", nuisance, "nuisance_ratio", **image, scale="log"),
        "said right": Panel("Captioner all right", f"share of captions\n{BETTER}", "all_right", **greedy, scale="rate"),
        "said": Panel("Variance of captions", EMBEDDING + LOWER, "caption_variance", **sampled, scale="log"),
    }


def _set_panels() -> list[Panel]:
    own = {"measurement": "data", "arms": ARMS, "models": "set"}
    answers = "share that answers to\nthe real prompt (higher is better)"
    agree = "distance of picture and caption\n(lower = they agree better)"
    return [
        Panel("set, pictures all right", answers, "all_right", "image", **own, scale="rate"),
        Panel("set, captions all right", answers, "all_right", "text", **own, scale="rate"),
        Panel("set, alignment P", agree, "P", "image", **own),
    ]


def _by_loop(source: Source, panels: list[Panel]) -> tuple[list[Panel], str]:
    """The panels once for anchored loops and, if any are in the table, once for closed ones, each with the controls;
    and what to say of that."""
    short = [replace(p, title=TITLES.get(p.title, p.title)) for p in panels]
    there = LOOPS if set(CLOSED) & set(source.table.arm) else LOOPS[:1]
    return (
        [replace(p, title=f"{loop}: {p.title}", arms=arms) for loop, arms, _ in there for p in short],
        "; ".join(told for *_, told in there) + ".",
    )


TITLES = {  # in a narrow panel
    "Generator all right": "generator right",
    "Variance of pictures": "picture variance",
    "Captioner all right": "captioner right",
    "Variance of captions": "caption variance",
}


LOOPS = (
    ("Anchored", (*ANCHORED, "gen0", "real"), "Anchored (solid): real prompts every generation"),
    (
        "Closed",
        (*CLOSED, "joint", "gen0", "real"),
        "below, closed (dashed, hollow): the prompts are the captions of the generation before, beside joint of the "
        "anchored loop",
    ),
)


def _curves(source: Source) -> Drawn:
    """Both models over generations."""
    panels, loops = _by_loop(source, list(_panels().values()))
    about = (
        f"Pictures by one model, captions by the other, both trained on the pairs. {loops} The models on test prompts "
        "and pictures, at guidance 1; captions greedy (all right) and sampled (variance)."
    )
    return Drawn(grid(source, panels, 4, about, 5), [p.rows(source.table) for p in panels])


def _sets(source: Source) -> Drawn:
    """What they were trained on, over generations."""
    panels, loops = _by_loop(source, _set_panels())
    whole = replace(source, table=_one_p(source.table))
    about = (
        f"The pairs that each generation was trained on, against the real prompts of the first generation. {loops} A "
        "set of captions is there only where a captioner is trained."
    )
    rows = [p.rows(source.table) for p in panels]
    return Drawn(grid(whole, panels, 3, about, 5), [*rows, *(r | {"modality": "text"} for r in rows[2::3])])


def _every_arm(source: Source) -> Drawn:
    """The supplement: every arm, one number each."""
    panels = list(_panels().values())
    panels = [replace(p, arms=plain_arms(source, p.modality)) for p in panels]
    about = "Every arm, both models (pictures at guidance 1; captions greedy, their variance sampled)."
    return every_arm(source, [panels[:2], panels[2:]], about)


def _one_p(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the alignment of every training set among the rows of pictures: those of captions are the same
    pairs, and the only ones where no generator was trained."""
    rows = table[(table.model == "set") & (table.metric == "P")]
    rows = rows.sort_values("modality", kind="stable").drop_duplicates(["arm", "seed", "generation", "space"])
    added = rows[rows.modality == "text"].assign(modality="image")
    return pd.concat([table, added], ignore_index=True)


def _fidelity_diversity(source: Source) -> Drawn:
    """Late: what is right against what is varied, a point an arm."""
    panels = _panels()
    closed = source.table.arm.str.endswith("-closed").any()
    twins = (
        "; anchored loops filled, closed ones hollow, joined to their anchored twin by a thin line" if closed else ""
    )
    about = (
        "Fidelity against diversity, late, a point an arm, bars 95% t intervals over seeds: does freezing one side "
        f"save one and lose the other? Better is up and to the right{twins}. Dotted: real against real. "
        f"{said(source, 'late').capitalize()}."
    )
    note = textwrap.wrap(f"{about} {facts(source, list(panels.values()), False)}", LETTERS)
    figure, axes = sheet(2, 2, note, 3, cell=3.4, below=0.55)
    shown = set()
    pairs = (("Generators", "varied", "right"), ("Captioners", "said", "said right"))
    for ax, (title, across, up) in zip(axes, pairs, strict=True):
        ax.set_title(title)
        shown |= _points(ax, source, panels[across], panels[up])
    legend(figure, shown)
    return Drawn(figure, [p.rows(source.table) for p in panels.values()])


def _points(ax, source: Source, across: Panel, up: Panel) -> set[str]:
    """One point an arm, late of both panels."""
    x, y = scalars(source, across, "late"), scalars(source, up, "late")
    places = {arm: (estimate(x[arm].to_numpy(), "log"), estimate(y[arm].to_numpy(), "rate")) for arm in x if arm in y}
    if not places:
        told = [m for panel in (across, up) for m in panel.of(source.table)[0].missing if m]
        say(ax, "not measured:\n" + textwrap.fill(told[0] if told else "no such rows in the table", 30))
        return set()
    for arm, (h, v) in places.items():
        style = ARM_STYLE[arm]
        if (twin := arm.removesuffix("-closed")) != arm and twin in places:
            ends = zip(*[(p[0][0], p[1][0]) for p in (places[twin], places[arm])], strict=True)
            ax.plot(*ends, color=style["color"], linewidth=0.5, zorder=1)
        line = {"color": style["color"], "linewidth": 0.8, "zorder": 2}
        if not np.isnan(h[1]):
            ax.plot(h[1:], [v[0]] * 2, **line)
            ax.plot([h[0]] * 2, v[1:], **line)
        own = {"markersize": 8 if style["marker"] == "*" else 6, "markeredgecolor": "white", "markeredgewidth": 0.5}
        ax.plot(
            [h[0]], [v[0]], **own | {k: s for k, s in style.items() if k != "label"} | {"linestyle": "", "zorder": 3}
        )
    shown = set(places)
    for panel, draw in ((across, ax.axvline), (up, ax.axhline)):
        known = panel.of(source.table)[1]
        values = known.value[known.arm == "world"]
        if len(values):
            style = ARM_STYLE["world"]
            draw(values.mean(), color=style["color"], linestyle=style["linestyle"], linewidth=0.9, zorder=0)
            shown.add("world")
    y_axis(ax, up, "")
    ax.set_xscale("log")
    x_axis(ax, across, across.space(source.table))
    ax.margins(0.08)
    sns.despine(ax=ax)
    return shown


# ---- drift of meaning


def _drift(source: Source) -> Drawn:
    """One prompt through the generations: the pair that each was trained on, picture and caption."""
    frame = source.samples("image", "data", [*FOLLOWED, "real"])
    frame = frame[frame.measurement == "data"] if len(frame) else frame
    arms = [arm for arm in FOLLOWED if len(frame) and (frame.arm == arm).any()]
    if not arms:
        return nothing("training pairs")
    number = _telling(frame, arms)
    frame = frame[frame.number == number]
    generations = spread(frame.generation.unique(), 6)
    seed, prompt = int(frame.seed.iloc[0]), frame.prompt.iloc[0]
    pairs = {(r.arm, r.generation): (pixels(r.image), r.caption) for r in frame.itertuples()}
    note = textwrap.wrap(
        "Drift of meaning: one of the training pairs of each generation, all of which answer to the real prompt "
        f"“{prompt}”. Underlined: words that say something else than this prompt; in italics: no sentence of the "
        "grammar. Joint: picture and caption by the generation before, from the real prompt every time; closed: from "
        "the caption before. "
        f"n = 1 prompt, seed {seed}, generations {', '.join(map(str, generations))}; {source.about}.",
        LETTERS,
    )

    # All in inches, from the top left corner.
    left, head, picture, gap = 1.1, 0.42, 0.78, 0.16
    wide = (WIDTH - left - 0.1) / (len(generations) + 1)
    letters = int((wide - 0.12) / MONO)
    said_ = {key: textwrap.wrap(text, letters) for key, (_, text) in pairs.items()}
    real = next((pairs["real", g] for g in generations if ("real", g) in pairs), None)
    most = max(map(len, said_.values()))
    tall = picture + 0.06 + 0.115 * most + gap
    height = head + len(arms) * tall + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    whole = figure.add_axes((0, 0, 1, 1))
    whole.set(xlim=(0, WIDTH), ylim=(height, 0))
    whole.set_axis_off()

    def put(x: float, y: float, pair: tuple):
        inset = figure.add_axes((x / WIDTH, 1 - (y + picture) / height, picture / WIDTH, picture / height))
        inset.imshow(pair[0])
        inset.set_axis_off()
        _words(whole, x, y + picture + 0.06, pair[1], prompt, letters)

    bold = {"fontweight": "bold", "va": "bottom"}
    if real:
        whole.text(left, head - 0.08, "real pair", **bold)
        put(left, head, real)
    for k, g in enumerate(generations):
        whole.text(left + (k + 1) * wide, head - 0.08, f"generation {g}", **bold)
    for row, arm in enumerate(arms):
        y, style = head + row * tall, ARM_STYLE[arm]
        name = textwrap.fill(style["label"], 13)
        whole.text(0.1, y + 0.02, name, color=style["color"], fontweight="bold", va="top", linespacing=1.1)
        for k, g in enumerate(generations):
            if (arm, g) in pairs:
                put(left + (k + 1) * wide, y, pairs[arm, g])
    caption(figure, note)
    shown = {"modality": "image", "measurement": "data", "model": "set", "arm": [*arms, "real"], "seed": [seed]}
    return Drawn(figure, [shown | {"generation": generations, "index": [number]}], samples=True)


# Width of a letter of DejaVu Sans Mono in inches, a whole number of dots, for letters are put on whole dots; its size.
MONO = 8 / DPI
POINTS = 72 * MONO / 0.602


def _telling(frame: pd.DataFrame, arms: list[str]) -> int:
    """The number of the pair whose caption moves away from its prompt most often: the drift is to be seen."""
    rows = frame[frame.arm.isin(arms)]
    wrong = [0 if (w := wrong_words(c, p)) is None else len(w) for c, p in zip(rows.caption, rows.prompt, strict=True)]
    return int(pd.Series(wrong, index=rows.number).groupby(level=0).sum().sort_index().idxmax())


def _words(ax, x: float, y: float, text: str, prompt: str, letters: int):
    """A caption in lines, each letter in its column, so that single words can be underlined."""
    wrong, at = wrong_words(text, prompt), 0
    for k, line in enumerate(textwrap.wrap(text, letters)):
        base = y + 0.115 * (k + 0.75)
        style = {"family": "DejaVu Sans Mono", "fontsize": POINTS, "va": "baseline"}
        style |= {"style": "italic", "color": "#666666"} if wrong is None else {}
        column, plain = 0, ""
        for word in line.split():
            if wrong is not None and at in wrong:
                ax.text(x + column * MONO, base, word, **style | {"fontweight": "bold"})
                under = [x + column * MONO, x + (column + len(word)) * MONO]
                ax.plot(under, [base + 0.025] * 2, color="black", linewidth=0.6)
                plain += " " * (len(word) + 1)
            else:
                plain += word + " "
            column, at = column + len(word) + 1, at + 1
        if plain.strip():
            start = len(plain) - len(plain.lstrip())
            ax.text(x + start * MONO, base, plain.strip(), **style)


FIGURES = {
    "curves": _curves,
    "sets": _sets,
    "fidelity_diversity": _fidelity_diversity,
    "arms": _every_arm,
    "drift": _drift,
}
