"""What is kept of a few measured sets beside their scores, small enough to ship: of pictures what the oracle read and
the judge's features, of captions the texts. Rows of the last generation follow from it without any model of a chain,
which is how `make verify` checks them.

At the scale of `study` a set of pictures takes 0.2 MB and a set of captions 0.01 MB, so only SETS are kept.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmcollapse.digests import digest_of
from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError
from mmcollapse.worlds.grammar import Scene, Thing

VERSION = 1  # of what is kept of a set
# Of these chains the first seed's last generation, on test prompts and pictures, so decoded.
SETS = {"01_variance": ("recursive", "gen0")}
MEASUREMENTS = ("guidance 1", "sampled", "greedy")
SPACE = "judge"
FILE = "kept.parquet"
HEADS = ("count", "relation", "background", "shape0", "colour0", "size0", "shape1", "colour1", "size1")

_found: ContextVar[list | None] = ContextVar("kept", default=None)


def path_of(results: Path, experiment: str) -> Path:
    """The file of an experiment, in a folder of its own: its columns are not those of a table."""
    return Path(results) / "kept" / f"{experiment}.parquet"


@contextmanager
def keeping(experiment: str, arm: str, first: bool) -> Iterator[list[pa.Table]]:
    """What is measured within is kept and put into the list that this yields, if the arm is one of SETS and `first`
    says that it is the first seed's last generation; else the list stays empty."""
    found: list[pa.Table] = []
    token = _found.set(found if first and arm in SETS.get(experiment, ()) else None)
    try:
        yield found
    finally:
        _found.reset(token)


def keep(tools, scored, told: dict, noises: int = 0):
    """Keep a measured set, if that is wanted (see keeping) and the world has a known truth: photos stay their owner's.

    scored: measure._Scored; told: measurement, subset and hash of its rows; noises: pictures a prompt, 0 for captions.
    Lies in the store too, for the samples are pruned and a run may be interrupted."""
    found = _found.get()
    if found is None or told["subset"] != "test" or told["measurement"] not in MEASUREMENTS:
        return
    if not tools.study.world.truth or (noises and SPACE not in tools.spaces):
        return

    def make(folder: Path) -> dict:
        table = _pictures(tools, scored, noises) if noises else _captions(scored.captions)
        _write(table, folder / FILE)
        return {"digest": digest_of([table.num_rows, hashlib.sha256((folder / FILE).read_bytes()).hexdigest()])}

    inputs = {"metric": "kept", "metric version": VERSION, "of": scored.item.digest, "noises": noises}
    inputs |= {"instruments": tools.digests, "device": tools.study.device}
    item = tools.study.store.make("scores", inputs, make)
    table = pq.read_table(item.files() / FILE)
    for name in ("measurement", "hash"):
        table = table.add_column(0, name, pa.array([told[name]] * table.num_rows))
    found.append(table)


def _pictures(tools, scored, noises: int) -> pa.Table:
    from mmcollapse.models.oracle import attributes, nuisance_scale  # here, for it needs torch

    reading = tools.oracle.read(scored.images)
    centre, half = nuisance_scale()
    n, classes = len(reading.scenes), attributes(reading.scenes)
    columns = {"index": pa.array(np.arange(n) // noises, pa.int32()), "caption": pa.nulls(n, pa.string())}
    columns |= {"abstains": pa.array(reading.abstains)}
    columns |= {name: pa.array(classes[name].astype(np.int8)) for name in HEADS}
    columns["nuisance"] = _halves(((reading.nuisance - centre) / half).reshape(n, -1))
    columns["features"] = _halves(scored.seen(SPACE))
    return pa.table(columns)


def _captions(captions: Sequence[str]) -> pa.Table:
    n, half = len(captions), pa.list_(pa.float16())
    columns = {"index": pa.array(np.arange(n), pa.int32()), "caption": pa.array(captions, pa.string())}
    columns |= {"abstains": pa.nulls(n, pa.bool_())} | {name: pa.nulls(n, pa.int8()) for name in HEADS}
    return pa.table(columns | {"nuisance": pa.nulls(n, half), "features": pa.nulls(n, half)})


def _halves(values: np.ndarray) -> pa.Array:
    """Rows as lists of float16."""
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.astype(np.float16).ravel()))


def _write(table: pa.Table, target) -> None:
    split = ["nuisance.list.element", "features.list.element"]  # exponents together, which makes a fifth less
    texts = [name for name in ("measurement", "hash") if name in table.column_names]
    pq.write_table(table, target, compression="zstd", use_dictionary=texts, use_byte_stream_split=split)


def write(results: Path, experiment: str, found: Sequence[pa.Table], before: Path | None, hashes: set[str]) -> str:
    """Write the kept sets of an experiment: those found, and of an earlier run's folder `before` those of the measured
    sets named in `hashes`, whose rows were taken over. Returns the sha256 of the file; "" if nothing is kept."""
    parts = {part["hash"][0].as_py(): part for part in found}
    if before and (path := path_of(before, experiment)).is_file():
        earlier = pq.read_table(path)
        for name in set(earlier["hash"].to_pylist()) & hashes - set(parts):
            parts[name] = earlier.filter(pc.equal(earlier["hash"], name))
    if not parts:
        return ""
    buffer, path = io.BytesIO(), path_of(results, experiment)
    _write(pa.concat_tables([parts[name] for name in sorted(parts)]), buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


# ---- reading it again


@dataclass
class Kept:
    """A kept set. hash: that of its rows; measurement: how it was decoded; captions: None for pictures; reading and
    features (n, d) float32: None for captions."""

    hash: str
    measurement: str
    captions: list[str] | None
    reading: object = None
    features: np.ndarray | None = None


def read(path: Path) -> list[Kept]:
    """The kept sets in a file. MMCollapseError: it is no such file."""
    try:
        frame = pd.read_parquet(path)
        return [_set(*key, rows) for key, rows in frame.groupby(["hash", "measurement"], sort=True)]
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        raise MMCollapseError(f"{path} holds no kept sets: {error}") from error


def _set(name: str, measurement: str, rows: pd.DataFrame) -> Kept:
    if rows.caption.notna().all():
        return Kept(name, measurement, rows.caption.tolist())
    from mmcollapse.models.oracle import Reading, nuisance_scale

    centre, half = nuisance_scale()
    nuisance = np.stack(rows.nuisance.to_list()).astype(np.float64).reshape(len(rows), 2, -1) * half + centre
    scenes = [_scene(*values) for values in rows[list(HEADS)].to_numpy(int).tolist()]
    abstains = rows.abstains.to_numpy(bool)
    reading = Reading(scenes, np.full(len(rows), np.nan), abstains, nuisance)  # confidences are not kept
    return Kept(name, measurement, None, reading, np.stack(rows.features.to_list()).astype(np.float32))


def _scene(count, relation, background, *things) -> Scene:
    if count:
        return Scene((Thing(*things[:3]), Thing(*things[3:])), relation, background)
    return Scene((Thing(*things[:3]),), None, background)
