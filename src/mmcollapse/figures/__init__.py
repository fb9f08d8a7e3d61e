"""Figures, drawn from the result table and its samples alone: in seconds, without torch, the same bytes every time.

A figure is a PNG, an SVG, and a JSON file that says from which files and rows it was drawn, and by which command.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

from mmcollapse.errors import MMCollapseError
from mmcollapse.figures import (
    decoding_budget,
    diversity,
    human,
    instruments,
    intervention,
    relabeling,
    remedies,
    robustness,
    variance,
    verdicts,
)
from mmcollapse.figures.house import Drawn, Panel, Source, open_source, save
from mmcollapse.figures.styles import ARM_STYLE, REFERENCES, STYLE

__all__ = ["ARM_STYLE", "FIGURES", "REFERENCES", "STYLE", "Drawn", "Panel", "Source", "draw", "open_source"]

FIGURES: dict[str, dict[str, Callable[[Source], Drawn]]] = {
    "01_variance": variance.FIGURES,
    "02_decoding_budget": decoding_budget.FIGURES,
    "03_diversity": diversity.FIGURES,
    "04_relabeling": relabeling.FIGURES,
    "05_quality_robustness": robustness.FIGURES,
    "06_remedies": remedies.FIGURES,
    "07_claims": verdicts.FIGURES,
    "08_intervention": intervention.FIGURES,
    "09_human": human.FIGURES,
    "00_instruments": instruments.FIGURES,
}
# What opens an experiment that is drawn from the tables of others, and says whether there is anything to draw.
OPEN = {
    "05_quality_robustness": (robustness.open_tables, robustness.has_students),
    "07_claims": (verdicts.open_verdicts, verdicts.has_verdicts),
    "09_human": (human.open_judgements, human.has_judgements),
}


def draw(results: Path, figures: Path, only: str | None = None) -> list[Path]:
    """Draw the figures of the result tables in `results` into `figures`; returns the files written.

    only: one experiment ("01_variance") or one figure ("01_variance_wall"). Without it: every experiment that has a
    table. MMCollapseError: nothing of that name, or no table."""
    results, figures = Path(results), Path(figures)
    every = {f"{e}_{f}": (e, make) for e, members in FIGURES.items() for f, make in members.items()}
    chosen = {name: what for name, what in every.items() if not only or only in (name, what[0])}
    if not chosen:
        raise MMCollapseError(f"no experiment or figure {only!r}: there are {', '.join([*FIGURES, *every])}")
    if not only:  # all that have a table; if none has, the error names the first
        there = {e for e in FIGURES if (OPEN[e][1](results) if e in OPEN else (results / f"{e}.parquet").is_file())}
        chosen = {n: w for n, w in chosen.items() if w[0] in there} or chosen
    experiments = dict.fromkeys(e for e, _ in chosen.values())
    sources = {e: (OPEN[e][0] if e in OPEN else open_source)(results, e) for e in experiments}
    figures.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (experiment, make) in chosen.items():
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever the user's own style is
            matplotlib.rcParams.update(STYLE)
            written += save(make(sources[experiment]), sources[experiment], figures, name)
    return written
