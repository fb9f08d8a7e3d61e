"""The figures of verdicts: an overview (headline curves, primary contrasts of every claim, gates), every contrast, and
the page of gates."""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmcollapse.claims import EVERY, GATES, all_claims
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures.house import (
    BETTER,
    Drawn,
    Panel,
    caption,
    curves,
    facts,
    first_upper,
    legend,
    open_source,
    provenance,
    say,
    span,
    spread,
)
from mmcollapse.figures.styles import ARM_STYLE, LETTERS, LINE, WIDTH
from mmcollapse.gates import read_gates

# A verdict has one letter, colour and marker; letter and marker tell it when printed grey, and no arm has its colour.
VERDICT_STYLE = {
    "reproduced": ("R", "#0B6E4F", "o"),
    "contradicted": ("C", "#6A3D9A", "X"),
    "inconclusive": ("I", "#7A7A7A", "s"),
    "void": ("V", "#111111", "D"),
    "no verdict": ("-", "#9A9A9A", "o"),
    "not run": ("-", "#9A9A9A", "o"),
}
GATE_STYLE = {  # colour of the box, of its text
    "passed": ("#1B7F6B", "white"),
    "FAILED": ("#111111", "white"),
    "shown": ("#DDDDDD", "#222222"),
    "not run": ("#FFFFFF", "#222222"),
}
REACH = 200.0  # units of S, beyond which an interval is cut
CELL, AXIS, RIGHT = 0.16, (4.5, 2.85), 7.45  # height of a row; start and width of the axis, and what stands right of it
HEADLINES = [
    Panel("Generators", f"pictures all right\n{BETTER}", "all_right", "image", "guidance 1", (), "rate"),
    Panel("Captioners", f"captions all right\n{BETTER}", "all_right", "text", "greedy", (), "rate"),
]


@dataclass
class Verdicts:
    """What is drawn: the verdicts of one profile, and the gates beside them."""

    folder: Path
    frame: pd.DataFrame
    gates: pd.DataFrame | None
    profile: str

    def files(self, samples: bool) -> list[Path]:
        """What the figures were drawn from."""
        return [self.folder / name for name in ("07_claims.parquet", "00_gates.parquet")]

    @cached_property
    def counts(self) -> dict:
        """n, seeds and generations of the tables that the verdicts were drawn from, as far as they lie beside them."""
        parts = []
        for path in sorted(self.folder.glob("0[1-6]_*.parquet")):
            if not path.name.endswith(".samples.parquet") and not path.name.startswith("05"):
                part = pd.read_parquet(path, columns=["seed", "generation", "n", "metric", "subset"])
                parts.append(part[(part.metric == "all_right") & (part.subset == "test") & (part.seed >= 0)])
        rows = pd.concat(parts) if parts else pd.DataFrame({"seed": [], "generation": [], "n": []})
        found = {"seeds": rows.seed, "generations": rows.generation}
        ends = [int(rows.n.min()), int(rows.n.max())] if len(rows) else []
        return {"n": ends} | {name: sorted(int(v) for v in values.unique()) for name, values in found.items()}

    def told(self) -> str:
        """The same in words, for a caption."""
        counts, over = self.counts, self.frame[self.frame["at"].isin(["late", "auc"])].drop_duplicates("at")
        means = [
            f"{'AUC' if r.at == 'auc' else r.at} is the mean of {r.over}" for r in over.sort_values("at").itertuples()
        ]
        n = f"n = {span(counts['n'])} samples a point; " if counts["n"] else ""
        return first_upper(f"{'; '.join(means)}{'; ' * bool(means)}{n}profile {self.profile}.")


def open_verdicts(results: Path, experiment: str) -> Verdicts:
    """The verdicts in a folder; of several profiles those of the one that it belongs to. MMCollapseError: none."""
    path = Path(results) / f"{experiment}.parquet"
    if not path.is_file():
        raise MMCollapseError(f"no verdicts at {path}: run 07_claims first (make reproduce ONLY=07_claims)")
    frame = pd.read_parquet(path)
    named = provenance(Path(results) / "00_gates.parquet")[1].get("profile", frame.profile.iloc[-1])
    return Verdicts(Path(results), frame[frame.profile == named], read_gates(results), named)


def has_verdicts(results: Path) -> bool:
    """Whether there are verdicts to draw."""
    return (Path(results) / "07_claims.parquet").is_file()


# ---- a forest of contrasts


@dataclass
class Line:
    """A row of the forest: a claim with its verdict, or a contrast of one. note: why there is no contrast; others:
    effects / S that are drawn beside it."""

    name: str
    verdict: str
    contrast: object = None
    note: str = ""
    others: tuple[float, ...] = ()
    claim: str = ""


def _kind(verdict: str) -> str:
    return next((name for name in VERDICT_STYLE if str(verdict).startswith(name)), "no verdict")


def _lines(frame: pd.DataFrame, parts: tuple[str, ...]) -> list[Line]:
    """Every claim and its contrasts of these parts. Of a question that is asked of many arms (Q2 of every remedy) the
    best answer, as its weakest contrast, and how many of each verdict there are."""
    whole = frame[frame.contrast == EVERY].set_index("claim").verdict
    texts, lines, many = {c.id: c.text for c in all_claims()}, [], {}
    for claim in dict.fromkeys(frame.claim):
        if " " in claim:
            many.setdefault(claim.split()[0], []).append(claim)
            continue
        verdict = str(whole.get(claim, "no verdict"))
        own = frame[(frame.claim == claim) & (frame.contrast != EVERY) & frame.part.isin(parts)]
        short = verdict.partition(":")[0] if own.empty else verdict  # the reason stands below
        lines.append(Line(texts.get(claim, ""), short, claim=claim))
        lines += [Line(_name(row), row.verdict, row) for row in own.itertuples()]
        if own.empty:
            lines.append(Line("no contrast", "not run", note=verdict))
    for question, claims in many.items():
        lines += _of_many(frame, whole, question, claims)
    return lines


def _of_many(frame: pd.DataFrame, whole: pd.Series, question: str, claims: list[str]) -> list[Line]:
    """The rows of a question that is asked of many arms."""
    kinds = [_kind(whole.get(claim, "no verdict")) for claim in claims]
    tally = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(k for k in VERDICT_STYLE if k in kinds))
    who = "captioner" if "captioner" in question else "generator"
    text = f"{who}: a remedy stops collapse, and costs nothing against real data ({len(claims)} asked)"
    out = [Line(text, tally, claim=question)]
    weakest = {claim: row for claim in claims if (row := _weakest(frame, claim)) is not None}
    if not weakest:
        return [*out, Line("no contrast", "not run", note=str(whole.get(claims[0], "")))]
    best = max(weakest, key=lambda claim: _margin(weakest[claim]))
    row, others = weakest[best], tuple(r.effect / r.S for claim, r in weakest.items() if claim != best)
    remedy = best.partition(" ")[2]
    name = f"best: {remedy}, by {_name(row).replace(remedy, 'it', 1)}"
    return [*out, Line(name, whole[best], row, others=others)]


def _name(row) -> str:
    return row.contrast + {"not below": " (no loss)", "within": " (no change)"}.get(row.rule, "")


def _margin(row) -> float:
    """How far an effect lies above what its rule asks for, in units of S."""
    value = row.effect / row.S
    return {"above": value - 1, "not below": value + 1, "within": 1 - abs(value)}[row.rule]


def _weakest(frame: pd.DataFrame, claim: str):
    """The primary contrast of a claim furthest below, or least above, what its rule asks for; or None."""
    rows = frame[(frame.claim == claim) & (frame.contrast != EVERY) & (frame.part == "primary")]
    return min(rows[rows.effect.notna()].itertuples(), key=_margin, default=None)


def _forest(figure: Figure, lines: list[Line], bottom: float):
    """The rows, their axis at `bottom` inches."""
    height, tall = figure.get_figheight(), CELL * max(len(lines), 1)
    ax = figure.add_axes((AXIS[0] / WIDTH, bottom / height, AXIS[1] / WIDTH, tall / height))
    for x, style in ((0, "-"), (1, (0, (4, 2))), (-1, (0, (1, 2)))):
        ax.axvline(x, color="#333333", linewidth=0.7, linestyle=style, zorder=0)
    ax.set_xscale("symlog", linthresh=2, linscale=1)
    rows = [line.contrast for line in lines if line.contrast is not None and not math.isnan(line.contrast.effect)]
    ends = [abs(v) / r.S for r in rows for v in (r.effect, r.low, r.high) if not math.isnan(v)]
    reach = min(REACH, 1.15 * max([5.0, *ends]))
    ax.set(xlim=(-reach, reach), ylim=(0.5 - max(len(lines), 1), 0.5))
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100) if t <= reach]
    ax.xaxis.set_major_locator(FixedLocator([*(-t for t in ticks), 0, *ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_xlabel("effect / S (higher = as the claim says)")
    ax.set_yticks([])
    sns.despine(ax=ax, left=True)
    place = ax.get_yaxis_transform()

    def put(inches: float, y: float, text: str, **style):
        at = (inches - AXIS[0]) / AXIS[1]
        ax.text(at, y, text, transform=place, va="center_baseline", **{"ha": "left", "color": "#222222"} | style)

    for y, line in zip(range(0, -len(lines), -1), lines, strict=True):
        kind = _kind(line.verdict)
        letter, color, marker = VERDICT_STYLE[kind]
        if line.claim:
            band = Rectangle((-AXIS[0] / AXIS[1], y - 0.5), WIDTH / AXIS[1], 1, transform=place, clip_on=False)
            band.set(facecolor="#EFEFEF", linewidth=0, zorder=-2)
            ax.add_patch(band)
            put(0.1, y, line.claim, weight="bold")
            put(1.15, y, line.name, bbox={"facecolor": "#EFEFEF", "edgecolor": "none", "pad": 0.6})
            verdict = textwrap.shorten(line.verdict, 40, placeholder=" ...")
            put(RIGHT, y, verdict, weight="bold", color=color if kind != "no verdict" else "#222222")
            continue
        put(0.28, y, textwrap.shorten(line.name, 76, placeholder=" ..."))
        note = line.note or (line.verdict if math.isnan(line.contrast.effect) else "")
        if note:
            look = {"ha": "center", "style": "italic", "color": "#555555", "fontsize": 6.5}
            look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
            put(AXIS[0] + AXIS[1] / 2, y, textwrap.shorten(note, 52, placeholder=" ..."), **look)
            continue
        row = line.contrast
        _interval(ax, y, row, color, marker, reach)
        ax.plot(line.others, [y] * len(line.others), "|", color="#666666", markersize=5, markeredgewidth=0.6, zorder=2)
        effect, low, high = (value / row.S for value in (row.effect, row.low, row.high))
        numbers = _signed(effect) + ("" if math.isnan(low) else f" [{_signed(low)}, {_signed(high)}]")
        put(RIGHT, y, numbers)
        put(9.32, y, f"{row.seeds} seed{'s' * (row.seeds != 1)}", ha="right")
        named = letter if row.part == "primary" else f"({letter})"
        put(9.62, y, named, ha="center", weight="bold", color=color)
    put(RIGHT, 1.0, "effect / S [95% interval]", fontsize=6.5, color="#555555")
    put(9.32, 1.0, "seeds", ha="right", fontsize=6.5, color="#555555")
    put(9.62, 1.0, "verdict", ha="center", fontsize=6.5, color="#555555")


def _interval(ax, y: float, row, color: str, marker: str, reach: float):
    """The effect of one contrast and its interval, in units of S, and what its rule asks for."""
    effect, low, high = (value / row.S for value in (row.effect, row.low, row.high))
    for bound in {"above": (1,), "not below": (-1,), "within": (-1, 1)}[row.rule]:
        ax.plot([bound, bound], [y - 0.36, y + 0.36], color="#333333", linewidth=1.6, zorder=1)
    if not math.isnan(low):
        ends = [min(max(end, -reach), reach) for end in (low, high)]
        ax.plot(ends, [y, y], color=color, linewidth=1.4, solid_capstyle="butt", zorder=3)
    face = color if row.part == "primary" and not math.isnan(low) else "white"
    shape = {"marker": marker, "markersize": 4.8, "markeredgewidth": 0.9, "clip_on": abs(effect) <= reach, "zorder": 4}
    ax.plot([min(max(effect, -reach), reach)], [y], color=color, markerfacecolor=face, **shape)


def _key(secondary: bool) -> list[Line2D]:
    """The legend: of each verdict its letter and marker."""
    styles = {name: VERDICT_STYLE[name] for name in list(VERDICT_STYLE)[:4]}
    handles = [
        Line2D([], [], color=color, marker=marker, linewidth=1.2, markersize=4.8, label=f"{letter}  {name}")
        for name, (letter, color, marker) in styles.items()
    ]
    hollow = {"marker": "o", "linestyle": "", "color": "#555555", "markerfacecolor": "white", "markersize": 4.8}
    handles.append(
        Line2D([], [], label="no verdict" if not secondary else "hollow: secondary, or no verdict", **hollow)
    )
    bound = {"marker": "|", "linestyle": "", "color": "#333333", "markersize": 8, "markeredgewidth": 1.6}
    return [*handles, Line2D([], [], label="what the rule asks for", **bound)]


RULES = (
    "Effect over seeds, paired by seed, and its 95% t interval (C5: over resampled arms), in units of the smallest "
    "effect of interest S; above 0 where the claim predicts it. The axis is linear between -2 and 2 and logarithmic "
    "beyond; dashed: S; dotted: -S, above which the interval must lie where nothing is said to be lost. "
)


def _overview(source: Verdicts) -> Drawn:
    """The first page: headline curves, every claim by its primary contrasts, and the gates."""
    lines = _lines(source.frame, ("primary",))
    panels, table, told = [], None, "no table of 01_variance beside the verdicts."
    if (source.folder / "01_variance.parquet").is_file():
        opened = open_source(source.folder, "01_variance")
        table = opened.table
        arms = tuple(arm for arm in ("recursive", "real", "gen0") if (table.arm == arm).any())
        panels = [Panel(**vars(panel) | {"arms": arms}) for panel in HEADLINES]
        told = facts(opened, panels)
    note = textwrap.wrap(
        "Above: share of test samples with every attribute right, of models trained on what they made (recursive), on "
        f"real pairs, and every generation on what generation 0 made. {told} Below: every claim and its primary "
        f"contrasts, all of which it needs. {RULES}Q2: of many remedies the best one, by its weakest part; small "
        f"bars: the others. Boxes: the gates, which must hold before a verdict counts. {source.told()}",
        LETTERS,
    )
    chips, foot, top, tall = 0.62, 0.5, 0.34, 1.75
    bottom = LINE * len(note) + 0.15 + chips + foot
    height = bottom + CELL * len(lines) + 0.55 + tall + 0.72
    figure = Figure(figsize=(WIDTH, height))
    for k, panel in enumerate(panels or HEADLINES):
        place = ((0.75 + 4.9 * k) / WIDTH, (height - top - 0.16 - tall) / height, 3.1 / WIDTH, tall / height)
        ax = figure.add_axes(place)
        if table is None:
            say(ax, "no table of 01_variance")
            continue
        shown = curves(ax, table, panel)
        ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1.04)
        _label_ends(ax, table, panel, shown)
    _forest(figure, lines, bottom)
    handles = _key(False)
    start = (bottom + CELL * len(lines) + 0.22) / height
    at = {"loc": "lower left", "bbox_to_anchor": (0.005, start), "ncols": len(handles), "borderaxespad": 0}
    figure.legend(handles=handles, frameon=False, columnspacing=1.4, **at)
    _chips(figure, source.gates, LINE * len(note) + 0.15, height)
    caption(figure, note)
    legend(figure, {"recursive", "real", "gen0"} | ({"world"} if table is not None else set()))
    # of the curves, and of the verdicts, whose table is named, so that no row of the other is meant
    rows = [panel.rows(table) for panel in panels]
    rows.append({"experiment": ["07_claims"], "profile": [source.profile], "part": ["primary"]})
    return Drawn(figure, rows, counts=source.counts, files=[source.folder / "01_variance.parquet"])


def _label_ends(ax, table: pd.DataFrame, panel: Panel, shown: list[str]):
    """The names of the arms at the ends of their lines, none over another."""
    rows, _ = panel.of(table)
    last = rows[rows.generation == rows.generation.max()].groupby("arm").value.mean()
    before = -math.inf
    for arm in sorted((arm for arm in shown if arm in last.index), key=lambda arm: last[arm]):
        y = before = max(last[arm], before + 0.09)
        style = {"color": ARM_STYLE[arm]["color"], "va": "center", "annotation_clip": False}
        at = (rows.generation.max() * 1.045, y)
        ax.annotate(ARM_STYLE[arm]["label"], at, (4, 0), textcoords="offset points", **style)


def _verdicts(source: Verdicts, first: bool = True) -> Drawn:
    """The supplement: every contrast of the claims about 01, or of the others, but for the question that is asked of
    many remedies."""
    frame, about_01 = source.frame, [c.id for c in all_claims() if c.experiments == ("01_variance",)]
    own = frame[~frame.claim.str.contains(" ") & (frame.claim.isin(about_01) == first)]
    lines = _lines(own, ("primary", "secondary", "exploratory"))
    which = "about collapse itself (01)" if first else "from the other experiments"
    about = f"Every claim {which} and its contrasts. Filled: primary contrasts, of which a claim needs every one; "
    return _page(source, lines, about + "hollow, in brackets: secondary and exploratory. ")


def _remedies(source: Verdicts) -> Drawn:
    """The same of every remedy: its weakest primary contrast."""
    frame, lines = source.frame[source.frame.claim.str.contains(" ")], []
    whole = frame[frame.contrast == EVERY].set_index("claim").verdict
    for question in dict.fromkeys(claim.split()[0] for claim in frame.claim):
        claims = [claim for claim in dict.fromkeys(frame.claim) if claim.split()[0] == question]
        lines.append(_of_many(frame, whole, question, claims)[0])
        for claim in claims:
            remedy, verdict = claim.partition(" ")[2], str(whole.get(claim, "no verdict"))
            if (row := _weakest(frame, claim)) is None:
                lines.append(Line(remedy, verdict, note=verdict))
            else:
                lines.append(Line(f"{remedy}, by {_name(row).replace(remedy, 'it', 1)}", verdict, row))
    about = "Q2 of every remedy: its weakest primary contrast, of all that it needs, and its verdict. "
    return _page(source, lines, about)


def _page(source: Verdicts, lines: list[Line], about: str) -> Drawn:
    """A forest alone on its page."""
    one = "Hollow without an interval: one seed, which decides nothing. "
    note = textwrap.wrap(f"{about}{one}{RULES}{source.told()}", LETTERS)
    bottom = LINE * len(note) + 0.15 + 0.5
    figure = Figure(figsize=(WIDTH, bottom + CELL * max(len(lines), 1) + 0.55))
    _forest(figure, lines, bottom)
    figure.legend(handles=_key(True), loc="upper center", ncols=6, frameon=False, borderaxespad=0.3, columnspacing=1.2)
    caption(figure, note)
    return Drawn(figure, [{"profile": [source.profile]}], counts=source.counts)


# ---- gates


def _state(rows: pd.DataFrame | None) -> str:
    """What became of a gate."""
    if rows is None or rows.empty:
        return "not run"
    if rows.passed.eq(False).fillna(False).any():
        return "FAILED"
    return "passed" if rows.passed.eq(True).fillna(False).any() else "shown"


def _chips(figure: Figure, gates: pd.DataFrame | None, bottom: float, height: float):
    """A row of boxes: the gates, and what became of them."""
    wide = (WIDTH - 0.3) / len(GATES)
    ax = figure.add_axes((0, 0, 1, 1), zorder=-1)
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.axis("off")
    for k, name in enumerate(GATES):
        state = _state(gates[gates.gate == name] if gates is not None else None)
        face, color = GATE_STYLE[state]
        place = (0.15 + k * wide, bottom + 0.08)
        ax.add_patch(Rectangle(place, wide - 0.06, 0.42, facecolor=face, edgecolor="#777777", linewidth=0.6))
        text = "\n".join([*textwrap.wrap(name, 13), state])
        look = {"color": color, "fontsize": 6.3, "linespacing": 1.05}
        ax.text(place[0] + (wide - 0.06) / 2, bottom + 0.29, text, ha="center", va="center", **look)


NUMBER = r"(-?[\d.]+(?:e[-+]?\d+)?)"
SPOT, EDGE = (4.55, 1.7), 2.6  # start and width of the axis in inches, its ends


def _allowed(row) -> tuple[float, float, list[float]] | None:
    """Where what was measured lies to what is allowed: (low end, high end of the allowed, [value, low, high]), all in
    units of the bound; None where nothing is judged."""
    values = [row.value, row.low, row.high]
    if found := re.match(f"{NUMBER} to {NUMBER}", row.allowed):
        low, high = map(float, found.groups())
        middle, half = (low + high) / 2, (high - low) / 2 or 1.0
        return -1.0, 1.0, [(v - middle) / half for v in values]
    if found := re.match(f"at (least|most) {NUMBER}", row.allowed):
        bound = float(found.group(2))
        ends = (1.0, math.inf) if found.group(1) == "least" else (-math.inf, 1.0)
        return *ends, [v / (bound or 1.0) for v in values]
    if found := re.match(f"exactly {NUMBER}", row.allowed):
        return 0.0, 0.0, [v - float(found.group(1)) for v in values]
    if row.allowed.startswith("interval not below 0"):
        unit = max(abs(v) for v in values if not math.isnan(v)) or 1.0
        return 0.0, math.inf, [v / unit for v in values]
    return None


def _signed(value: float) -> str:
    """In units of S, of which thousandths are nothing and would not fit; but the sign stays."""
    return f"{value:+.2f}" if abs(value) < 0.095 else f"{value:+.2g}"


def _gates(source: Verdicts) -> Drawn:
    """A page of gates: what was measured against what is allowed."""
    lines: list[tuple[str, object]] = []
    for gate, why in GATES.items():
        rows = source.gates[source.gates.gate == gate] if source.gates is not None else pd.DataFrame()
        lines.append(("gate", (gate, why, _state(rows), rows.needs.iloc[0] if len(rows) else "")))
        shown = list(rows[rows.passed.isna()].itertuples()) if len(rows) else []
        kept = {shown[k].Index for k in spread(range(len(shown)), 3)}
        judged = list(rows.itertuples()) if len(rows) else []
        lines += [("measure", row) for row in judged if not pd.isna(row.passed) or row.Index in kept]
        if len(shown) > len(kept):
            lines.append(("more", f"and {len(shown) - len(kept)} more that are shown and not judged: see 07_claims.md"))
    note = textwrap.wrap(
        "The gates, which must hold before a verdict counts: what was measured (dot; bar: its 95% interval) against "
        "what is allowed (grey). A range lies between -1 and 1; of a bound 1 is the bound itself; of an interval that "
        "must not lie below 0, 1 is its far end. Arrow: further out. A claim whose gate failed or was not run is void; "
        f"where only the instruments disagree it is inconclusive. {source.told()}",
        LETTERS,
    )
    bottom = LINE * len(note) + 0.15 + 0.5
    height = bottom + CELL * len(lines) + 0.28
    figure = Figure(figsize=(WIDTH, height))
    ax = figure.add_axes((SPOT[0] / WIDTH, bottom / height, SPOT[1] / WIDTH, CELL * len(lines) / height))
    ax.set(xlim=(-EDGE, EDGE), ylim=(0.5 - len(lines), 0.5), xlabel="measured, in units of what is allowed")
    ax.set_xticks([-2, -1, 0, 1, 2])
    ax.set_yticks([])
    sns.despine(ax=ax, left=True)
    place = ax.get_yaxis_transform()

    def put(inches: float, y: float, text: str, **style):
        at = (inches - SPOT[0]) / SPOT[1]
        ax.text(at, y, text, transform=place, va="center_baseline", **{"fontsize": 6.8, "color": "#222222"} | style)

    for y, (kind, what) in zip(range(0, -len(lines), -1), lines, strict=True):
        if kind == "gate":
            gate, why, state, needs = what
            band = Rectangle((-SPOT[0] / SPOT[1], y - 0.5), WIDTH / SPOT[1], 1, transform=place, clip_on=False)
            band.set(facecolor="#EFEFEF", linewidth=0, zorder=2)
            ax.add_patch(band)
            put(0.1, y, gate, weight="bold", fontsize=7.5)
            put(1.55, y, why)
            put(
                6.4, y, textwrap.shorten(f"needed by {needs}" if needs else "", 52, placeholder=" ..."), color="#555555"
            )
            _stamp(ax, place, y, state, True)
        elif kind == "more":
            put(0.28, y, what, style="italic", color="#555555")
        else:
            _measure(ax, place, y, what, put)
    for inches, text in ((6.4, "measured"), (7.95, "allowed"), (9.2, "result")):
        put(inches, 1.0, text, color="#555555")
    caption(figure, note)
    return Drawn(figure, [{"gate": list(GATES)}], counts=source.counts)


def _measure(ax, place, y: float, row, put):
    """One measure of a gate."""
    judged = not pd.isna(row.passed)  # what is only shown has no dot and no result, so its words have more room
    put(0.28, y, textwrap.shorten(row.measure, 74 if judged else 104, placeholder=" ..."))
    if not math.isnan(row.value):
        ends = "" if math.isnan(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
        put(6.4, y, f"{row.value:.4g}{ends}")
    allowed = row.allowed.partition(" (")[0].replace("shown, not judged", "shown")
    put(7.95, y, textwrap.shorten(allowed, 27 if judged else 42, placeholder=" ..."))
    _stamp(ax, place, y, "" if not judged else "passed" if row.passed else "FAILED", False)
    if not judged or (found := _allowed(row)) is None:
        return
    low, high, (value, *ends) = found
    left, right = max(low, -EDGE), min(high, EDGE)
    if right > left:
        ax.add_patch(Rectangle((left, y - 0.4), right - left, 0.8, facecolor="#D5D5D5", linewidth=0, zorder=0))
    for bound in (low, high):
        if abs(bound) < EDGE:
            ax.plot([bound, bound], [y - 0.4, y + 0.4], color="#555555", linewidth=0.9, zorder=1)
    color = "#0B6E4F" if row.passed else "#111111"
    if not math.isnan(ends[0]):
        ax.plot([min(max(e, -EDGE), EDGE) for e in ends], [y, y], color=color, linewidth=1.2, zorder=3)
    marker = ">" if value > EDGE else "<" if value < -EDGE else "o" if row.passed else "X"
    spot = min(max(value, 0.03 - EDGE), EDGE - 0.03)
    ax.plot([spot], [y], marker, color=color, markersize=4.2, clip_on=False, zorder=4)


def _stamp(ax, place, y: float, state: str, whole: bool):
    """The result of a gate in a box, or of one measure in words."""
    if not state:
        return
    at = (9.2 - SPOT[0]) / SPOT[1]
    style = {
        "transform": place,
        "va": "center_baseline",
        "fontsize": 6.8,
        "weight": "bold" if whole or state == "FAILED" else None,
    }
    if not whole:
        ax.text(at, y, state, **style)
        return
    face, color = GATE_STYLE[state]
    box = Rectangle((at - 0.03, y - 0.4), 0.7 / SPOT[1], 0.8, transform=place, clip_on=False, zorder=3)
    box.set(facecolor=face, edgecolor="#777777", linewidth=0.6)
    ax.add_patch(box)
    ax.text(at + 0.35 / SPOT[1] - 0.03, y, state, ha="center", color=color, zorder=4, **style)


def _verdicts_others(source: Verdicts) -> Drawn:
    return _verdicts(source, first=False)


FIGURES = {
    "overview": _overview,
    "verdicts": _verdicts,
    "verdicts_others": _verdicts_others,
    "remedies": _remedies,
    "gates": _gates,
}
