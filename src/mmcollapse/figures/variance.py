"""Experiment 1, variance: claims C1 to C3 and question Q1."""

from __future__ import annotations

import math
import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.stats import t

from mmcollapse import claims, stats
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures import alarms
from mmcollapse.figures.house import (
    EMBEDDING,
    Drawn,
    Panel,
    Source,
    caption,
    facts,
    grid,
    nothing,
    pixels,
    repeated,
    repeats,
    spread,
    y_axis,
)
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, LINE, WIDTH

TRAINED = ("recursive", "real", "gen0")


def image_panels(guidance: str) -> list[Panel]:
    """What is shown of pictures made at this guidance."""
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
    panels = image_panels("guidance 1")
    about = "Text-to-image chains, measured at guidance 1 (what was learned) on test prompts."
    return Drawn(grid(source, panels, 4, about, 6), [p.rows(source.table) for p in panels])


def _generators_as_used(source: Source) -> Drawn:
    measured = source.table.measurement[source.table.modality == "image"].unique()
    others = sorted(m for m in measured if m.startswith("guidance") and m != "guidance 1")
    guidance = others[0] if others else "guidance 1"  # the same setting twice if the default guidance is 1
    panels = image_panels(guidance)
    about = f"Text-to-image chains, measured at the default {guidance} (as used) on test prompts."
    return Drawn(grid(source, panels, 4, about, 6), [p.rows(source.table) for p in panels])


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
    return Drawn(grid(source, panels, 3, about), [p.rows(source.table) for p in panels])


def more_image_panels(measurement: str) -> list[Panel]:
    """Further metrics of pictures."""
    pictures = {"modality": "image", "measurement": measurement, "arms": TRAINED}
    better, varied = "(higher is better)", "(lower = less varied)"
    return [
        Panel("Frechet distance", "{space} features\n(lower is better)", "fid", **pictures),
        Panel("Recall", f"share of real pictures\n{better}", "recall", **pictures, scale="rate"),
        Panel("Coverage", f"share of real pictures\n{better}", "coverage", **pictures, scale="rate"),
        Panel("Vendi score, pictures", f"effective number\n{varied}", "vendi", **pictures, scale="log"),
        Panel("Power spectrum", "distance to real, powers of ten\n(lower is better)", "spectrum", **pictures),
        Panel("Entropy", f"bits, of shape-colour pairs\n{varied}", "cell_entropy", **pictures),
    ]


def _more(source: Source) -> Drawn:
    greedy = {"modality": "text", "measurement": "greedy", "arms": TRAINED}
    sampled = greedy | {"measurement": "sampled"}
    better, varied = "(higher is better)", "(lower = less varied)"
    panels = [
        *more_image_panels("guidance 1"),
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
    return Drawn(grid(source, panels, 4, about, 6), [p.rows(source.table) for p in panels])


def _drift(source: Source) -> Drawn:
    chains = ("recursive", "real", "gen0", "recursive-drift", "gen0-drift")
    frozen = ("frozen-drift", "frozen-length", "frozen-temperature", "real", "gen0")
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
        "temperature alone, beside the controls under the whole schedule. One y axis a row."
    )
    figure = grid(source, panels, 3, about)
    axes = figure.axes
    for start in range(0, len(panels), 3):
        drawn = [(ax, p) for ax, p in zip(axes[start : start + 3], panels[start : start + 3], strict=True) if ax.lines]
        limits = [limit for ax, _ in drawn for limit in ax.get_ylim()]
        for ax, panel in drawn:
            ax.set_ylim(min(limits), max(limits))
            y_axis(ax, panel, panel.space(source.table))
    return Drawn(figure, [p.rows(source.table) for p in panels])


def _repeats(source: Source) -> Drawn:
    """Whether the losses are there at other rates, prompts, starts and on other base models too."""
    image = {"modality": "image", "measurement": "guidance 1", "arms": ()}
    text = {"modality": "text", "arms": ()}
    panels = {
        Panel("Generators: variance", "", "nuisance_ratio", **image, scale="log"): 0.10,
        Panel("Generators: all right", "", "all_right", **image, scale="rate"): 0.05,
        Panel("Captioners: variance", "", "caption_variance", measurement="sampled", **text, scale="log"): 0.10,
        Panel("Captioners: all right", "", "all_right", measurement="greedy", **text, scale="rate"): 0.05,
    }
    kinds = list(dict.fromkeys([*repeated(source, "generator"), *repeated(source, "captioner")]))
    about = (
        "What recursion loses, late, against generation-0 and real data, and the same when all three arms are repeated "
        "with something changed. Variance: of nuisance factors within prompts (pictures at guidance 1), of embeddings "
        "(captions, sampled); all right: pictures at guidance 1, captions greedy."
    )
    return repeats(source, panels, ("gen0", "real"), kinds, about)


def _power(source: Source) -> Drawn:
    """What size of effect can be seen: the chance of *reproduced*, by true effect, spread between seeds and seeds."""
    colors = {0.5: "#B8B8B8", 1.0: "#777777", 2.0: "#111111"}
    marks = {0.5: "v", 1.0: "D", 2.0: "P"}
    lines = {5: (0, (5, 1.5)), 10: "-"}
    effects = np.linspace(0, 4, 17)
    apart = _spread_between_seeds(source.table)
    found = "; ".join(f"{name} {sd:.2g}" for name, sd in apart)
    note = textwrap.wrap(
        "Share of simulated studies (5,000 a point) whose verdict on one contrast is 'reproduced', by the true effect "
        "in units of the smallest effect of interest S. Left: the claim that something changes (interval above 0, "
        "estimate at least S: an effect of exactly S is found at most every other time; at 0 are the false positives). "
        "Right: the claim that nothing is lost (interval above -S). Spread: standard deviation over seeds of the "
        "paired difference. "
        + (
            f"In this table, primary contrasts in units of S: {found}. "
            if found
            else "In this table it is not known: one seed. "
        )
        + _about_table(source),
        LETTERS,
    )
    height = 2.95 + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    for k, (rule, title, sign) in enumerate((("above", "An effect is there", 1), ("not below", "Nothing is lost", -1))):
        ax = figure.add_axes(((0.65 + 4.9 * k) / WIDTH, 1 - 2.5 / height, 4.1 / WIDTH, 2.2 / height))
        for sd, color in colors.items():
            mark = {"marker": marks[sd], "markersize": 3.5, "markevery": 2}
            for seeds, line in lines.items():
                share = [stats.power(sign * e, sd, 1.0, seeds, rule, draws=5000) for e in effects]
                label = f"spread {sd:g} S, {seeds} seeds"
                ax.plot(effects, share, color=color, linestyle=line, linewidth=1.4, label=label, **mark)
        ax.axvline(1, color="#333333", linewidth=0.8, linestyle=(0, (1, 1.6)))
        unit = "true effect / S" if sign > 0 else "true loss / S"
        label = "share of studies 'reproduced'\n(" + ("higher is better)" if sign > 0 else "1 where nothing is lost)")
        ax.set(title=title, xlabel=unit, ylabel=label, ylim=(-0.02, 1.02))
        ax.legend(frameon=False, fontsize=6.5, loc="lower right" if sign > 0 else "upper right")
        sns.despine(ax=ax)
    caption(figure, note)
    return Drawn(figure, [{"arm": list(TRAINED), "subset": "test", "metric": "all_right"}])


def _about_table(source: Source) -> str:
    right = [Panel("", "", "all_right", m, d, TRAINED) for m, d in (("image", "guidance 1"), ("text", "greedy"))]
    return f"The table: {facts(source, right, False)}"


def _spread_between_seeds(table: pd.DataFrame) -> list[tuple[str, float]]:
    """(contrast, standard deviation over seeds / S) of the contrasts of the claims that the table answers."""
    found = []
    for claim in claims.answerable(table):
        primary = tuple(part for part in claim.contrasts if part.part == "primary")
        try:
            rows = claims.conclude(table, [replace(claim, contrasts=primary)])
        except MMCollapseError:  # a table that lacks an endpoint altogether
            continue
        rows = rows[(rows.contrast != claims.EVERY) & rows.low.notna() & (rows.seeds > 1) & (rows.low < rows.high)]
        for row in rows.itertuples():
            sd = 0.5 * (row.high - row.low) / t.ppf(0.975, row.seeds - 1) * math.sqrt(row.seeds)
            found.append((f"{claim.id} {row.contrast}", sd / row.S))
    return found


def _wall(source: Source) -> Drawn:
    """A wall an arm: rows are prompts, columns generations; the same prompts and noise everywhere."""
    frame = source.samples("image", "guidance 1", TRAINED)
    if frame.empty:
        return nothing("pictures")
    chains = frame[frame.arm != "world"]
    arms = [arm for arm in TRAINED if (chains.arm == arm).any()]
    generations = spread(chains.generation.unique(), 11)
    across = len(arms) if len(arms) * (len(generations) + 1) <= 16 else 1  # few generations: walls stand side by side
    numbers = sorted(int(i) for i in chains.number.unique())[: 4 if across == 1 else 8]
    prompts = chains.drop_duplicates("number").set_index("number").prompt
    pictures = {(r.arm, r.generation, r.number): pixels(r.image) for r in frame.itertuples() if r.number in numbers}
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
    caption(figure, note)
    shown = {"modality": "image", "measurement": "guidance 1", "arm": ["world", *arms], "seed": [-1, seed]}
    return Drawn(figure, [shown | {"generation": generations, "index": numbers}], samples=True)


def _captions(source: Source) -> Drawn:
    """A table: real pictures, and what each generation of recursive and real says of them."""
    frame = source.samples("text", "greedy", ("recursive", "real"))
    if frame.empty:
        return nothing("captions")
    chains = frame[frame.arm != "world"]
    arms = [arm for arm in ("recursive", "real") if (chains.arm == arm).any()]
    generations = spread(chains.generation.unique(), 6)
    numbers = sorted(int(i) for i in chains.number.unique())[:4]
    said = {(r.arm, r.generation, r.number): r.caption for r in chains.itertuples()}
    real = chains.drop_duplicates("number").set_index("number")
    seed = int(chains.seed.iloc[0])
    note = textwrap.wrap(
        f"Greedy captions of the same test pictures by generation. n = {len(numbers)} pictures, seed {seed}, "
        f"generations {', '.join(map(str, generations))}; {source.about}.",
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
        inset.imshow(pixels(real.image[i]))
        inset.set_axis_off()
        down = y + 0.09
        for g, cells in rows:
            put(start[0] - 0.12, down, [g], ha="right")
            for x, words in zip(start, cells, strict=False):
                put(x, down, words, **({} if g else {"style": "italic", "color": "#555555"}))
            down += max(map(len, cells), default=1) * LINE + gap
        y += tall
    rule(y)
    caption(figure, note)
    shown = {"modality": "text", "measurement": "greedy", "arm": arms, "seed": [seed]}
    return Drawn(figure, [shown | {"generation": generations, "index": numbers}], samples=True)


FIGURES = {
    "generators": _generators,
    "generators_as_used": _generators_as_used,
    "captioners": _captioners,
    "more_metrics": _more,
    "power": _power,
    "drift": _drift,
    "repeats": _repeats,
    "wall": _wall,
    "captions": _captions,
    "alarms": alarms.draw,
}
