"""Sets of pictures, with captions or without, as anybody has them on disk.

A set is one of

a folder      with captions in a layout that worlds/layouts.py knows; else pictures alone (anywhere below it, hidden
              ones passed over), without captions; else Parquet files, as an item of the store has one
a Parquet     file with a column `image`, as the Image feature of `datasets` has it, and perhaps `caption` (a string,
              or a list of which the first counts); FILE.parquet:generation=2 arm=real takes rows of it

A picture that is there twice counts twice: repeating itself is what a collapsed model does.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from mmcollapse.errors import MMCollapseError
from mmcollapse.worlds.layouts import SUFFIXES, Found
from mmcollapse.worlds.pictures import prepare

LARGEST = 512  # pixels a side: no feature space looks at more
BATCH = 64  # pictures decoded at once


@dataclass(frozen=True)
class Entry:
    """A picture of a set. where: file or row, for errors; source: the file, or its bytes; caption: None without."""

    where: str
    source: Path | bytes
    caption: str | None

    def data(self) -> bytes:
        try:
            return self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        except OSError as error:
            raise MMCollapseError(f"{self.where} cannot be read: {error.strerror}") from None


@dataclass
class Set:
    """Pictures of one origin. name: the path as it was given; keys: hashes of the pictures' files, in the order of
    `entries`, which is by chance but the same whatever the files are called."""

    name: str
    entries: list[Entry]
    keys: list[str]

    @property
    def captioned(self) -> bool:
        return self.entries[0].caption is not None

    def first(self, n: int) -> Set:
        """Its first `n` pictures, or all: as good as drawn by chance."""
        return Set(self.name, self.entries[:n], self.keys[:n])


def read_set(path: str | Path) -> Set:
    """The set at `path` (see the module's text); no picture is decoded. MMCollapseError: there is none, it is empty, or
    captions that some pictures have are missing of others."""
    name = os.fspath(path)
    place, wanted = Path(name), ""
    if not place.exists() and (parts := re.fullmatch(r"(.*\.parquet):(.+)", name)):
        place, wanted = Path(parts[1]), parts[2]
    if not place.exists():
        raise MMCollapseError(f"{place} does not exist: a folder of pictures or a Parquet file is needed")
    entries = _folder(place) if place.is_dir() else _parquet(place, wanted)
    if not entries:
        raise MMCollapseError(f"{name} holds no pictures: it needs {', '.join(SUFFIXES)} or a Parquet file of them")
    without = [entry.where for entry in entries if entry.caption is None]
    if 0 < len(without) < len(entries):
        raise MMCollapseError(
            f"{len(without)} of {len(entries)} pictures of {name} have no caption, the first {without[0]}: "
            "all need one, or none"
        )
    return _in_order(name, entries)


def _in_order(name: str, entries: list[Entry]) -> Set:
    """In the order of a hash of each picture, so that the first n are n by chance. Of a picture that is there several
    times every one has a hash of its own: else all of them came together, or none."""
    hashed = tqdm(entries, f"reading {name}", disable=len(entries) <= 2000)
    keys = [hashlib.sha256(entry.data()).hexdigest() for entry in hashed]
    seen, placed = Counter(), []
    for key, entry in sorted(zip(keys, entries, strict=True), key=lambda pair: (pair[0], pair[1].caption or "")):
        seen[key] += 1
        placed.append((hashlib.sha256(f"{key}/{seen[key]}".encode()).digest(), key, entry))
    placed.sort(key=lambda one: one[0])
    return Set(name, [entry for _, _, entry in placed], [key for _, key, _ in placed])


def _folder(folder: Path) -> list[Entry]:
    try:
        found = Found(folder)
    except MMCollapseError:  # the folder is there, so what it lacks is captions
        return _pictures(folder) or [e for file in sorted(folder.glob("*.parquet")) for e in _parquet(file, "")]
    missing = [(f, "caption without its picture") for f in sorted(found.captions) if not (folder / f).is_file()]
    if problems := found.problems + missing:
        lines = "".join(f"\n  {file}: {reason}" for file, reason in problems[:10])
        raise MMCollapseError(
            f"{len(problems)} bad entries in {folder}{', the first 10' * (len(problems) > 10)}:{lines}"
        )
    return [Entry(str(folder / f), folder / f, c[0] if c else None) for f, c in sorted(found.captions.items())]


def _pictures(folder: Path) -> list[Entry]:
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
    shown = (p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return [Entry(str(path), path, None) for path in shown]


def _parquet(file: Path, wanted: str) -> list[Entry]:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise MMCollapseError(f"{file} cannot be read as a Parquet file: {error}") from None
    if "image" not in table.column_names:
        raise MMCollapseError(f"{file} has no column image; its columns are {', '.join(table.column_names)}")
    rows = table.select([name for name in ("image", "caption") if name in table.column_names]).to_pylist()
    chosen = range(len(rows))
    for column, value in re.findall(r"(\w+)=(.*?)(?=\s+\w+=|\s*$)", wanted):
        if column not in table.column_names:
            raise MMCollapseError(f"{file}: {column}={value!r}: the columns are {', '.join(table.column_names)}")
        cells = table.column(column).to_pylist()
        chosen = [i for i in chosen if str(cells[i]) == value]
    for column in ("generation", "arm", "modality"):  # those of a study's samples
        values = {table.column(column)[i].as_py() for i in chosen} if column in table.column_names else set()
        if len(values) > 1:
            some = ", ".join(map(str, sorted(values)[:5]))
            raise MMCollapseError(f"{file} has several of the column {column} ({some}): take one, {file}:{column}=...")
    return [_row(f"{file}, row {i}", rows[i]) for i in chosen]


def _row(where: str, row: dict) -> Entry:
    picture, caption = row["image"], row.get("caption")
    data = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(data, bytes):
        raise MMCollapseError(f"{where}: the column image holds {picture!r:.60}: the bytes of a picture are needed")
    caption = caption[0] if isinstance(caption, list) and caption else caption
    if not isinstance(caption, str | None):
        raise MMCollapseError(f"{where}: the caption is {caption!r:.60}: a string is needed")
    return Entry(where, data, caption)


def sides(sets: Sequence[Set]) -> set[tuple[int, int]]:
    """(width, height) of all pictures, from their heads."""
    found = set()
    for entry in (entry for one in sets for entry in one.entries):
        try:
            with Image.open(BytesIO(entry.data())) as picture:
                found.add(picture.size)
        except Exception as error:  # Pillow's decoders raise many kinds for damaged files
            raise _damaged(entry, error) from None
    return found


def decoded(one: Set, side: int) -> Iterator[np.ndarray]:
    """Its pictures in batches (at most BATCH, side, side, 3) uint8: upright, cut to the central square, RGB, BICUBIC,
    as worlds/pictures.py prepares them. MMCollapseError: a damaged picture, by name."""
    for start in range(0, len(one.entries), BATCH):
        yield np.stack([_decode(entry, side) for entry in one.entries[start : start + BATCH]])


def _decode(entry: Entry, side: int) -> np.ndarray:
    try:
        with Image.open(BytesIO(entry.data())) as picture:
            return prepare(picture, side)
    except MMCollapseError:
        raise
    except Exception as error:  # as above
        raise _damaged(entry, error) from None


def _damaged(entry: Entry, error: Exception) -> MMCollapseError:
    why = "no picture that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
    return MMCollapseError(f"{entry.where} is a damaged picture: {why}")
