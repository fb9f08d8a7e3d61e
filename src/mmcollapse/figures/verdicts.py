"""The figure of verdicts: every contrast as effect and interval in units of S, by claim, with the gates below."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mmcollapse.claims import EVERY, GATES
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures.house import Drawn, caption, provenance
from mmcollapse.figures.styles import LETTERS, LINE, WIDTH
from mmcollapse.gates import read_gates

# A verdict has one colour and marker; the marker tells it when printed grey.
VERDICT_STYLE = {
    "reproduced": ("#1B7F6B", "o"),
    "contradicted": ("#8C1D40", "X"),
    "inconclusive": ("#E59400", "s"),
    "void": ("#111111", "D"),
    "no verdict": ("#888888", "o"),
}
GATE_STYLE = {"passed": "#1B7F6B", "FAILED": "#8C1D40", "shown": "#BBBBBB", "not run": "#FFFFFF"}
REACH = 6.0  # units of S, beyond which an interval is cut and its number written


def _kind(verdict: str) -> str:
    return next((name for name in VERDICT_STYLE if str(verdict).startswith(name)), "no verdict")


def draw_verdicts(frame: pd.DataFrame, gates: pd.DataFrame | None) -> Figure:
    """frame: the verdicts of one profile (verdicts.COLUMNS), gates: as gates.run_gates returns them, or None. Claims
    that were not run are named in the caption; secondary contrasts are drawn hollow."""
    run = frame[~frame.verdict.str.startswith("not run")]
    rest = list(dict.fromkeys(frame.claim[frame.verdict.str.startswith("not run")]))
    rows = run[(run.contrast != EVERY) & run.effect.notna() & (run.part != "exploratory")]
    whole = run[run.contrast == EVERY].set_index("claim").verdict
    lines = []
    for claim in dict.fromkeys(run.claim):
        own = rows[rows.claim == claim]
        if " " in claim and len(own):  # one of many remedies: its weakest part decides, and is shown
            lines.append((claim, _weakest(own)))
        else:
            lines.append((claim, None))
            lines += [(claim, row) for row in own.itertuples()]
    note = textwrap.wrap(
        "Effect over seeds and its 95% interval, in units of the smallest effect of interest S, above 0 where the "
        "claim predicts it. Dashed: S; dotted: -S, above which the interval must lie where nothing is said to be lost. "
        "Filled: primary contrasts, of which a claim needs every one; hollow: secondary. Arrows: beyond the edge. "
        "No interval: one seed, which decides nothing." + (f" Not run: {', '.join(_short(rest))}." if rest else ""),
        LETTERS,
    )
    cell, top, foot, chips = 0.155, 0.42, 0.5, 0.62
    height = top + cell * max(len(lines), 2) + foot + chips + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    left, right = 4.55, 2.2
    bottom = LINE * len(note) + 0.15 + chips + foot
    size = ((WIDTH - left - right) / WIDTH, cell * max(len(lines), 2) / height)
    ax = figure.add_axes((left / WIDTH, bottom / height, *size))
    for x, style in ((0, "-"), (1, (0, (4, 2))), (-1, (0, (1, 2)))):
        ax.axvline(x, color="#333333", linewidth=0.7, linestyle=style, zorder=0)
    for k, (claim, row) in enumerate(lines):
        y = -k
        if row is None:
            color, _ = VERDICT_STYLE[_kind(whole.get(claim, ""))]
            ax.axhspan(y - 0.5, y + 0.5, color="#F2F2F2", zorder=-1, linewidth=0)
            _beside(ax, y, claim, str(whole.get(claim, "")).split(":")[0], color, bold=True)
        else:
            _interval(ax, y, row, claim if " " in claim else "")
    ax.set(xlim=(-REACH, REACH), ylim=(-max(len(lines), 2) + 0.5, 0.5), xlabel="effect / S")
    ax.set_yticks([])
    sns.despine(ax=ax, left=True)
    handles = [
        Line2D([], [], color=color, marker=marker, linewidth=1.2, markersize=4.5, label=name)
        for name, (color, marker) in VERDICT_STYLE.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=5, frameon=False, borderaxespad=0.3)
    _chips(figure, gates, LINE * len(note) + 0.15, height)
    caption(figure, note)
    return figure


def _short(names: list[str]) -> list[str]:
    """Names of which many are of a kind: Q2 of fifteen remedies is one."""
    kinds = {}
    for name in names:
        kinds.setdefault(name.split()[0], []).append(name)
    return [some[0] if len(some) == 1 else f"{kind} of {len(some)} arms" for kind, some in kinds.items()]


def _beside(ax, y: float, name: str, verdict: str, color: str, bold: bool = False):
    weight = "bold" if bold else "normal"
    at = ax.get_yaxis_transform()
    ax.text(-0.025, y, name, transform=at, ha="right", va="center", weight=weight)
    ax.text(1.03, y, verdict, transform=at, ha="left", va="center", weight=weight, color=color)


def _weakest(rows: pd.DataFrame):
    """The primary contrast that is the furthest below, or the least above, what its rule asks for."""
    primary = rows[rows.part == "primary"]
    rows = primary if len(primary) else rows
    margin = rows.effect / rows.S + rows.rule.map({"above": -1.0, "not below": 1.0, "within": 0.0})
    return next(rows.loc[[margin.idxmin()]].itertuples())


def _interval(ax, y: float, row, remedy: str = ""):
    """One contrast; remedy: the claim, where this is its only line."""
    color, marker = VERDICT_STYLE[_kind(row.verdict)]
    effect, low, high = (value / row.S for value in (row.effect, row.low, row.high))
    if not math.isnan(low):
        ax.plot([max(low, -REACH), min(high, REACH)], [y, y], color=color, linewidth=1.3, solid_capstyle="butt")
        for end, side in ((low, -1), (high, 1)):
            if side * end > REACH:
                arrow = "<" if side < 0 else ">"
                ax.plot([side * REACH], [y], arrow, color=color, markersize=4, clip_on=False)
    face = color if row.part == "primary" else "white"
    if abs(effect) <= REACH:
        ax.plot([effect], [y], marker, color=color, markerfacecolor=face, markersize=4.5, markeredgewidth=0.9)
    number = f"{effect:+.2g} S" + ("" if abs(effect) <= REACH else " (beyond)")
    kind = {"not below": ", no loss", "within": ", no change"}.get(row.rule, "")
    name = textwrap.shorten(row.contrast, 72, placeholder=" ...")
    if remedy:
        name = f"{remedy}, weakest: {name.replace(remedy.partition(' ')[2], 'it', 1)}"
    _beside(ax, y, f"{name}{kind}", f"{number}, {row.seeds} seed{'s' * (row.seeds != 1)}", "#333333")


def _chips(figure: Figure, gates: pd.DataFrame | None, bottom: float, height: float):
    """A row of boxes: the gates, and what became of them."""
    wide = (WIDTH - 0.3) / len(GATES)
    ax = figure.add_axes((0, 0, 1, 1), zorder=-1)
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.axis("off")
    for k, name in enumerate(GATES):
        rows = gates[gates.gate == name] if gates is not None else None
        if rows is None or rows.empty:
            state = "not run"
        elif rows.passed.eq(False).fillna(False).any():
            state = "FAILED"
        else:
            state = "passed" if rows.passed.eq(True).fillna(False).any() else "shown"
        x, white = 0.15 + k * wide, state in ("passed", "FAILED")
        box = Rectangle(
            (x, bottom + 0.08), wide - 0.06, 0.42, facecolor=GATE_STYLE[state], edgecolor="#777777", linewidth=0.6
        )
        ax.add_patch(box)
        text = "\n".join([*textwrap.wrap(name, 13), state])
        look = {"color": "white" if white else "#222222", "fontsize": 6.3, "linespacing": 1.05}
        ax.text(x + (wide - 0.06) / 2, bottom + 0.29, text, ha="center", va="center", **look)


@dataclass
class Verdicts:
    """What is drawn: the verdicts of one profile, and the gates beside them."""

    folder: Path
    frame: pd.DataFrame
    gates: pd.DataFrame | None
    profile: str

    def files(self, samples: bool) -> list[Path]:
        """What the figure was drawn from."""
        return [self.folder / "07_claims.parquet", self.folder / "00_gates.parquet"]


def open_verdicts(results: Path, experiment: str) -> Verdicts:
    """The verdicts in a folder; of several profiles those of the one that it belongs to. MMCollapseError: none."""
    path = Path(results) / f"{experiment}.parquet"
    if not path.is_file():
        raise MMCollapseError(f"no verdicts at {path}: run 07_claims first (make reproduce ONLY=07_claims)")
    frame = pd.read_parquet(path)
    named = provenance(Path(results) / "00_gates.parquet")[1].get("profile", frame.profile.iloc[-1])
    return Verdicts(Path(results), frame[frame.profile == named], read_gates(results), named)


def has_verdicts(results: Path) -> bool:
    return (Path(results) / "07_claims.parquet").is_file()


def _verdicts(source: Verdicts) -> Drawn:
    return Drawn(draw_verdicts(source.frame, source.gates), [{"profile": [source.profile]}])


FIGURES = {"verdicts": _verdicts}
