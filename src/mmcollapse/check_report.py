"""What a check found: on a page, in figures, in JSON, in a dozen lines."""

from __future__ import annotations

import base64
import json
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcollapse.check_subsets import METRICS
from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError

if TYPE_CHECKING:
    from mmcollapse.check import Check

COLUMNS = 4  # panels a row
FOUND, REAL, BAND = "#8C1D40", "#2E86C1", "#9A9A9A"  # as in the figures of studies: made, real
STATES = {"collapsing": "failed", "passing": "inconclusive", "no sign": "passed", "left out": ""}  # colour on the page


def in_words(found: dict) -> str:
    """Warning, verdict, a line a dimension, and what this cannot know."""
    lines = textwrap.wrap(found["warning"], 110) + textwrap.wrap(found["verdict"], 110)
    alarms = f"a false alarm in {100 * found['alpha']:.3g}% of checks"
    lines.append(f"{found['n']} pictures a generation, space {found['space']}; {alarms}")
    first, last = (f"gen {found['generations'][g]['number']}" for g in (0, -1))
    rows = [("dimension", "metric", first, last, "real", "change", "band", "p", "")]
    for name, dimension in found["dimensions"].items():
        if dimension["state"] == "left out":
            rows.append((name, f"left out: {dimension['why']}", *[""] * 7))
        else:
            rows.append((name, *_row(found, telling(found, name)), said(dimension)))
    short = [row for row in rows if not row[1].startswith("left out")]
    widths = [max(len(row[k]) for row in short) for k in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines += ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("What this cannot know:")
    for line in found["cannot"]:
        lines += textwrap.wrap(line, 110, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def said(dimension: dict) -> str:
    """The state of a dimension in a few words."""
    if dimension["state"] == "passing":
        return "no sign at the end"
    if dimension["state"] == "collapsing":
        return f"collapsing since {dimension['since']}" if dimension["since"] else "collapsing, by its trend"
    return dimension["state"]


def telling(found: dict, dimension: str) -> str:
    """The metric of a dimension whose last generation is farthest beyond its band, or nearest to that."""

    def beyond(metric: str) -> float:
        last = found["metrics"][metric]["generations"][-1]
        towards = last["change"] if METRICS[metric].rises else -last["change"]
        return towards / last["band"] if last["band"] else -math.inf

    own = [metric for metric, about in found["metrics"].items() if about["dimension"] == dimension]
    chosen = found["dimensions"][dimension]["by"] or own
    return max(chosen, key=beyond)


def _row(found: dict, metric: str) -> tuple[str, ...]:
    about = found["metrics"][metric]
    last, start = about["generations"][-1], about["values"][0]
    real = f"{about['real']['level']:.3g}" if about["real"] else "-"
    p = found["dimensions"][about["dimension"]]["p"]
    change, band = in_share(last["change"], about, start), in_share(last["band"], about, start)
    return metric, f"{start:.3g}", f"{about['values'][-1]:.3g}", real, change, f"±{band.lstrip('+')}", f"{p:.2g}"


def in_share(value: float, about: dict, start: float) -> str:
    """A change: in percent of generation 0's value, or as it is where a metric has no such share."""
    if about["generations"][-1]["share"] is None:
        return f"{value:+.2g}"
    share = 100 * value / abs(start)
    return f"{share:+.0f}%" if abs(share) >= 10 else f"{share:+.2g}%"


# ---- files


def save(check: Check, out: Path) -> Path:
    """Write check.json, metrics.png, pictures.png and report.html, which holds the figures too; returns the page.
    MMCollapseError: `out` is a file."""
    if out.is_file():
        raise MMCollapseError(f"{out} is a file: a folder is needed for the report")
    out.mkdir(parents=True, exist_ok=True)
    pictures = figures(check)
    write_whole(out / "check.json", (json.dumps(check.found, indent=1) + "\n").encode())
    for name, png in pictures.items():
        write_whole(out / f"{name}.png", png)
    write_whole(out / "report.html", page(check.found, pictures).encode())
    return out / "report.html"


def page(found: dict, pictures: dict[str, bytes]) -> str:
    """One page that holds all it shows."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from mmcollapse.report.found import TEMPLATES

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    known = {"f": found, "labels": {metric: about.label for metric, about in METRICS.items()}, "states": STATES}
    known |= {"style": (TEMPLATES / "style.css").read_text(), "in_share": in_share, "said": said}
    known["telling"] = {
        name: telling(found, name) for name, about in found["dimensions"].items() if about["state"] != "left out"
    }
    known["images"] = {name: base64.b64encode(png).decode() for name, png in pictures.items()}
    return templates.get_template("check.html").render(known)


def figures(check: Check) -> dict[str, bytes]:
    """PNG files by name: curves of the metrics, and pictures of every set."""
    import matplotlib

    from mmcollapse.figures.house import png_of
    from mmcollapse.figures.styles import STYLE

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own style is
        matplotlib.rcParams.update(STYLE)
        return {"metrics": png_of(_metrics(check.found)), "pictures": png_of(_wall(check.shown, check.found["side"]))}


def _metrics(found: dict):
    import seaborn as sns
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    from mmcollapse.figures.house import sheet
    from mmcollapse.figures.styles import LETTERS

    note = (
        f"Generations at equal n = {found['n']} pictures, space {found['space']}. Grey: generation 0, and what two "
        "sets of one origin and this size differ by; a point beyond it on the side of collapse is filled (the chance "
        f"of one such in the whole check, if nothing changes, is {found['alpha']:.3g}). Blue: real pictures, and 95% "
        "of their sets of this size."
    )
    metrics = found["metrics"]
    figure, axes = sheet(len(metrics), COLUMNS, textwrap.wrap(note, LETTERS), 1, cell=1.8, left=0.74, below=0.4)
    for (metric, about), ax in zip(metrics.items(), axes, strict=True):
        values, later = np.array(about["values"]), about["generations"]
        band = np.array([later[0]["band"], *(cell["band"] for cell in later)])
        x = np.array([generation["number"] for generation in found["generations"]])
        ax.fill_between(x, values[0] - band, values[0] + band, color=BAND, alpha=0.25, linewidth=0)
        ax.axhline(values[0], color=BAND, linewidth=0.8)
        if real := about["real"]:
            ax.axhline(real["level"], color=REAL, linewidth=1.1, linestyle=(0, (5, 1.5)))
            if real["low"] is not None:
                ax.axhspan(real["low"], real["high"], color=REAL, alpha=0.12, linewidth=0)
        ax.plot(x, values, color=FOUND, linewidth=1.4)
        outside = np.array([False, *(cell["outside"] for cell in later)])
        for which, face in ((outside, FOUND), (~outside, "white")):
            ax.plot(x[which], values[which], "o", color=FOUND, markerfacecolor=face, markersize=4)
        ax.set_title(METRICS[metric].label)
        ax.set_ylabel(f"{about['dimension']}\n({'higher' if about['rises'] else 'lower'} = collapse)")
        ax.set_xlabel("generation")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=2))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
        ax.margins(x=0.06, y=0.1)
        sns.despine(ax=ax)
    handles = [
        Line2D([], [], color=FOUND, marker="o", markersize=4, label="generations given"),
        Patch(color=BAND, alpha=0.4, label="generation 0: sets of one origin"),
    ]
    if any(about["real"] for about in metrics.values()):
        handles.append(Line2D([], [], color=REAL, linestyle=(0, (5, 1.5)), label="real"))
    figure.legend(handles=handles, loc="upper center", ncols=3, frameon=False, borderaxespad=0.3)
    return figure


def _wall(shown: list[tuple[str, np.ndarray]], side: int):
    from mmcollapse.figures.house import wall

    rows = {k: name for k, (name, _) in enumerate(shown)}
    pictures = {(column, k): picture for k, (_, some) in enumerate(shown) for column, picture in enumerate(some)}
    columns = [("", column) for column in range(max(len(some) for _, some in shown))]
    note = f"Of each set pictures drawn by chance, as they were measured: {side} x {side} pixels."
    return wall([("", columns)], pictures, rows, note, left=0.95)
