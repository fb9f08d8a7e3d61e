"""The result table: tidy, one row a value. Everything downstream (figures, statistics, claims) reads only this."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd

from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError

COLUMNS = {
    "experiment": "str",
    "arm": "str",
    "seed": "int64",
    "generation": "int64",
    "model": "str",  # "generator", "captioner-blip", ...; "pool" of several; "set" of training pairs; "student 0"; ""
    "modality": "str",  # "image" or "text"
    "measurement": "str",  # the decoding that was measured: "guidance 1", "sampled", "greedy", "drifting", ...
    "subset": "str",  # "test", "withheld", "uniform", "train"; "chain": the pairs that were trained on
    "metric": "str",
    "space": "str",  # what it was measured in: a feature space ("judge", "clip", ...), "oracle", "parser", "words", ...
    "value": "float64",
    "missing": "str",  # why the value could not be computed; "" where it was
    "n": "int64",  # samples behind the value
    "hash": "str",  # store name of what was measured
    "claims": "str",  # hash of the claims file at the time of the run; "" before there was one
}
RESERVED = ("set", "pool", "")  # what is in the place of a model's name where it is not of one model
KEY = [c for c in COLUMNS if c not in ("value", "missing", "n", "hash", "claims")]


def progress_path(results: Path, experiment: str) -> Path:
    """The file that says, while an experiment runs, how far each chain is."""
    return results / f"{experiment}.progress.json"


def to_table(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table in canonical order, so that equal results give equal bytes. Duplicate keys are refused."""
    rows = [{"missing": "", "model": "", "claims": ""} | r for r in rows]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    twice = table[table.duplicated(KEY, keep=False)]
    if len(twice):
        raise MMCollapseError(f"the table has two values for {dict(twice.iloc[0][KEY])}")
    return table.sort_values(KEY, kind="stable").reset_index(drop=True)


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with values to 20 bits, six significant digits: far below the noise of any, and a study's table takes a
    third of the space."""
    mantissa, exponent = np.frexp(table.value)
    return table.assign(value=np.ldexp(np.round(mantissa * 2**20) / 2**20, exponent))


def write_table(table: pd.DataFrame, path: Path):
    """Write whole or not at all."""
    buffer, named = io.BytesIO(), [name for name in table.columns if name != "value"]
    # bytes of one significance together: those of rounded values are mostly zeros
    how = {"compression": "zstd", "compression_level": 15, "column_encoding": {"value": "BYTE_STREAM_SPLIT"}}
    table.to_parquet(buffer, index=False, use_dictionary=named, **how)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def read_table(path: Path) -> pd.DataFrame:
    """The table at `path`, its columns checked."""
    if not Path(path).is_file():
        raise MMCollapseError(f"no result table at {path}: run the experiment first (make reproduce)")
    try:
        table = pd.read_parquet(path)
    except Exception as error:
        raise MMCollapseError(f"{path} is no result table: {error}") from error
    if missing := set(COLUMNS) - set(table.columns):
        raise MMCollapseError(f"{path} is no result table: it has no column {', '.join(sorted(missing))}")
    return table[list(COLUMNS)]


def merge(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of several. Equal rows are joined; two different values for one key are refused, by name."""
    both = pd.concat(tables, ignore_index=True).drop_duplicates()
    twice = both[both.duplicated(KEY, keep=False)]
    if len(twice):
        raise MMCollapseError(f"{len(twice)} rows conflict, the first: {dict(twice.iloc[0][KEY])}")
    return to_table(both.to_dict("records"))


def is_student(model: pd.Series) -> pd.Series:
    """Whether it is a fresh base model that was trained on a generation's data."""
    return model.str.startswith("student ")


def is_member(model: pd.Series) -> pd.Series:
    """Whether it is one model of a chain: no training set, no student, not several models as one."""
    return ~model.isin(RESERVED) & ~is_student(model)


def check_complete(table: pd.DataFrame, arms: list[tuple[str, str]], seeds: list[int], generations: int):
    """Refuse a table that lacks a chain, a generation or a metric of an arm, or has a value that is not finite and not
    marked as missing. arms: (modality, arm) pairs. Of training sets and students there is only what was asked for."""
    models = table[(table.model != "set") & ~is_student(table.model)]
    for modality, arm in arms:
        part = models[(models.modality == modality) & (models.arm == arm)]
        names = ["model", "measurement", "subset", "metric", "space"]
        every = set(map(tuple, part[names].values))
        for seed in seeds:
            chain = part[part.seed == seed]
            if missing := set(range(generations + 1)) - set(chain.generation):
                raise MMCollapseError(f"{modality} arm {arm!r}, seed {seed}: no generation {sorted(missing)}")
            per = chain.groupby("generation")[names].apply(lambda g: set(map(tuple, g.values)))
            for g, have in per.items():
                if lacks := every - have:
                    raise MMCollapseError(
                        f"{modality} arm {arm!r}, seed {seed}, generation {g}: lacks {sorted(lacks)[:3]}"
                    )
    undefined = table[~np.isfinite(table.value) & (table.missing == "")]
    # a ratio or coverage can be undefined when nothing could be read or asked for; it says so by n = 0
    if len(bad := undefined[undefined.n > 0]):
        raise MMCollapseError(f"{len(bad)} values are not finite, the first: {dict(bad.iloc[0][KEY])}")
