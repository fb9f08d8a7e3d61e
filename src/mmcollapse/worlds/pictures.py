"""Picture files: opened, prepared, and a whole collection of them checked before anything rests on it.

A picture is turned as its EXIF entry says, cut to its central square, converted to RGB (transparency is laid on white,
16-bit grey divided by 257), and resized by Pillow's BICUBIC, whose support grows with the reduction, so that fine
detail is averaged instead of aliased.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from mmcollapse.pool import cores

MANY = 2000  # files: from here on a check shows its progress, and is remembered
REMEMBERED = ".mmcollapse.checked.json"  # in the folder of the pictures; hidden, so no reader of layouts takes it
CHECKING = 1  # raise it when a check would find something else in the same file


class Checked(NamedTuple):
    """key: hash of the file's bytes, 32 hex digits, "" of a file that cannot be used; reason: why it cannot, or None;
    pixels: uint8 (size, size, 3), or None where they were not asked for."""

    key: str
    reason: str | None
    pixels: np.ndarray | None = None


def open_picture(path: Path, size: int) -> Checked:
    """A picture file as uint8 (size, size, 3), prepared as the module's text says. Never raises: see `reason`."""
    data = b""
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as picture:
            return Checked(hashlib.sha256(data).hexdigest()[:32], None, prepare(picture, size))
    except UnidentifiedImageError:
        return Checked("", "is no picture" if data else "is an empty file")
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        return Checked("", f"cannot be read as a picture ({error})")


def prepare(picture: Image.Image, size: int) -> np.ndarray:
    """Upright, central square, RGB, BICUBIC to (size, size, 3) uint8; see the module's text."""
    picture = ImageOps.exif_transpose(picture)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    elif picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def check(folder: Path, files: list[str], size: int | None) -> dict[str, Checked]:
    """Open every file (a path below `folder`): {file: what was found}, in the order of `files`; with a size, the pixels
    of what was opened too.

    What was found in MANY files or more is remembered in the folder, if it can be written to: a file whose size and
    date are the same is not opened by the next check. (Whoever uses a picture sees by its key if that was wrong.)
    """
    before = _remembered(folder) if len(files) >= MANY else {}
    states = {file: _state(folder / file) for file in files}
    known = {file: Checked(*before[file][2:]) for file in files if file in before and before[file][:2] == states[file]}

    def work(file: str) -> Checked:
        # Without a size something small will do: all of the file is decoded, and resizing is what costs.
        found = open_picture(folder / file, size or 8)
        return found if size else found._replace(pixels=None)

    new = [file for file in files if file not in known]
    with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes outside the interpreter lock
        found = tqdm(pool.map(work, new), "checking photos", len(new), disable=len(new) < MANY)
        known |= zip(new, found, strict=True)
    if new and len(files) >= MANY:
        _remember(folder, {file: [*states[file], known[file].key, known[file].reason] for file in files})
    return {file: known[file] for file in files}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _remembered(folder: Path) -> dict[str, list]:
    """{file: [bytes, nanoseconds, key, reason]}; nothing if there is no such file, or it is of another version."""
    try:
        document = json.loads((folder / REMEMBERED).read_bytes())
        return document["files"] if document["checking"] == CHECKING else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(folder: Path, files: dict[str, list]) -> None:
    draft = folder / f"{REMEMBERED}.{os.getpid()}"  # of its own, for several processes may open the folder at once
    try:
        draft.write_text(json.dumps({"checking": CHECKING, "files": files}))
        os.replace(draft, folder / REMEMBERED)
    except OSError:  # read-only or full: the next opening checks again
        try:
            draft.unlink(missing_ok=True)
        except OSError:
            pass
