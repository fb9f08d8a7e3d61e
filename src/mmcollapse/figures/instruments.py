"""What the instruments see of known damage, of sample size, and against an eye."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.stats import spearmanr

from mmcollapse.figures.house import Drawn, Source, caption, say
from mmcollapse.figures.styles import LETTERS, LINE, WIDTH

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
                    if len(ends) > 16:  # wider than its cell
                        ends = f"{mean.iloc[0]:.1g} to {mean.iloc[-1]:.1g}"
                    color = "white" if abs(values[i, j]) > 0.7 else "#222222"
                    ax.text(j, i + 0.27, ends, ha="center", va="center", fontsize=4.2, color=color)
                    ax.text(j, i - 0.14, f"{values[i, j]:+.2f}", ha="center", va="center", fontsize=6, color=color)
        ax.imshow(np.ma.masked_invalid(values), cmap="PuOr_r", vmin=-1.35, vmax=1.35, aspect="auto")
        ax.set_xticks(range(len(damages)), [textwrap.fill(DAMAGES[d], 9) for d in damages], fontsize=6)
        ax.xaxis.tick_top()
        labels = [f"{m}, {s} {'↑' if d > 0 else '↓'}" for m, s, d in metrics]
        ax.set_yticks(range(len(metrics)), labels, fontsize=6)
        ax.tick_params(length=0)
        ax.set_title(title, pad=26)
        sns.despine(ax=ax, left=True, bottom=True)
        x += wide * len(damages) + 1.75
    caption(figure, note)
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
    caption(figure, note)
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
        "viewer (an AI model that looked at them) who knew neither generation nor oracle (00_eyes); bars: 95% "
        "intervals (Wilson). "
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
            ax.plot(wide.truth, wide.oracle, linestyle="", marker="o", markersize=4, color="#333333", alpha=0.8)
            ax.set(xlabel=f"exact, {unit}", ylabel=f"oracle, {unit}", title=title)
        elif generations:
            places = np.arange(len(generations))
            for offset, (space, color, hatch) in zip(
                (-0.2, 0.2), (("truth", "#B5B5B5", ""), ("oracle", "#5A5A5A", "//")), strict=True
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
                sizes = [int(eye[eye.measurement == m].n.max()) for m in generations]
                for x, share, n in zip(places + offset, values, sizes, strict=True):
                    ax.plot([x, x], _wilson(share, n), color="black", linewidth=0.9)
            ax.set_xticks(places, [m.split()[-1] for m in generations])
            ax.set(
                xlabel="generation, recursive",
                ylabel="share of pictures right\n(higher is better)",
                title="By eye",
                ylim=(0, 1),
            )
            ax.legend(frameon=False, loc="upper right")
        else:
            say(ax, "no pictures were\nchecked by eye")
        sns.despine(ax=ax)
    caption(figure, note)
    names = [{"arm": d, "metric": m} for m, d, _, _ in exact]
    return Drawn(figure, names + ([{"arm": "by eye"}] if generations else []))


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of n."""
    z = 1.96
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


FIGURES = {"damage": _damage, "size": _size, "truth": _truth}
