"""Why an answer may differ from the paper's, in numbers: what causes.toml says, filled in from result tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mmcollapse.stats import chain_scalars
from mmcollapse.table import is_member

FILE = Path(__file__).with_name("causes.toml")
SPACES = ("judge", "oracle", "parser", "words")  # of a metric that several have measured, that of the first


def causes(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A line for each cause whose numbers the tables (by experiment) have, with its claims and seeds."""
    lines = []
    for cause in tomllib.loads(FILE.read_text())["cause"]:
        table = tables.get(cause["experiment"])
        if table is None or not (planned := int(table.generation.max())):
            continue
        found = {name: _number(table, planned, *row) for name, row in cause["values"].items()}
        if all(found.values()):
            seeds = {n for _, n in found.values()}
            text = cause["text"].format(**{name: value for name, (value, _) in found.items()})
            lines.append(f"**{', '.join(cause['claims'])}** ({_seeds(min(seeds), max(seeds))}): {text}")
    return lines


def _number(table, planned: int, modality, metric, measurement, arm, at) -> tuple[float, int] | None:
    """(mean over seeds, seeds); None if there is none, or a chain of them is not whole."""
    named = {"modality": modality, "metric": metric, "measurement": measurement, "arm": arm, "subset": "test"}
    of_chain = is_member(table.model)
    rows = table[(table[list(named)] == pd.Series(named)).all(axis=1) & of_chain]
    rows = rows[rows.space == next((space for space in SPACES if space in set(rows.space)), "")]
    if rows.empty or rows.model.nunique() > 1:
        return None
    values = chain_scalars(rows, at, planned).value
    return None if values.isna().any() else (float(values.mean()), len(values))


def _seeds(fewest: int, most: int) -> str:
    return f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' * (most > 1)}"
