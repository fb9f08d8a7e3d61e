"""The `photos` world: real pictures with human captions, read from a folder of the user's.

Where captions may lie is said in `layouts`, how a picture is prepared in `pictures`.

The roles base, judge, chain and test share the pictures 55:15:15:15, in the order of a hash of each. Where the layout
has published splits (karpathy), these are kept: train and restval become base, judge and chain, 55:15:15; test and val
become test, the published test pictures first, so that the first 5,000 of COCO, or 1,000 of Flickr, are those that the
literature reports on. Published captioners have seen COCO's train and restval pictures, those of base, judge and chain
that is, and not those of test.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmcollapse.errors import MMCollapseError
from mmcollapse.pool import cores
from mmcollapse.worlds import Batch
from mmcollapse.worlds.layouts import Found
from mmcollapse.worlds.pictures import check, open_picture

READING = 1  # enters the digest: raise it when the same folder would give other pixels, captions or splits
REFERENCES = 5
FEWEST_PAIRS = 40
CACHE_BYTES = 512 * 2**20
SHARES = {"base": 55, "judge": 15, "chain": 15, "test": 15}  # percent of the pictures
LARGEST = 4096  # pixels a side


class Photos:
    """Real image-caption pairs; see the texts of this module, of `layouts` and of `pictures`.

    folder: where the pairs lie. image_size: side of the pictures given out, in pixels. on_bad: "refuse" raises one
    error that lists what is wrong with the folder, "skip" leaves it out, listed in `skipped` as (file, reason), with a
    warning. seed: of the division into splits. layout: which captions to read where a folder has several; "" is the
    first in the order of `layouts`. Raises MMCollapseError for a folder that cannot be used.
    Every file is decoded once on opening, and of a large folder never again while it is unchanged (see `check`). A
    picture's key is a hash of its bytes, so a renamed file or folder is the same world. A picture that is there twice
    is left out the second time, with a warning. The first five captions of a picture are its references, in the order
    found; it needs at least one. Pictures are decoded when they are asked for, on all cores, and the first CACHE_BYTES
    of them are kept.
    """

    name = "photos"
    truth = False  # nobody knows the attributes of a photo

    def __init__(
        self, folder: str | Path, image_size: int = 64, on_bad: str = "refuse", seed: int = 0, layout: str = ""
    ) -> None:
        if on_bad not in ("refuse", "skip"):
            raise MMCollapseError(f'on_bad must be "refuse" or "skip", not {on_bad!r}')
        if type(image_size) is not int or not 1 <= image_size <= LARGEST:
            raise MMCollapseError(f"image_size={image_size!r}: allowed are 1 to {LARGEST} pixels")
        self.folder, self.image_size = Path(folder), image_size
        found = Found(self.folder, layout)
        self.layout = found.layout
        self._most = CACHE_BYTES // (image_size * image_size * 3)  # pictures that are kept
        files, twice = self._usable(found)
        if found.problems and on_bad == "refuse":
            raise MMCollapseError(
                f"{len(found.problems)} bad entries in the photos folder {folder}:\n  {_first(found.problems, 10)}\n"
                'Mend them, or set on_bad to "skip", which leaves them out and counts them.'
            )
        self.skipped: list[tuple[str, str]] = found.problems + twice
        left_out = f"{len(self.skipped)} bad entries left out: {_first(self.skipped, 3, '; ')}" if self.skipped else ""
        if len(files) < FEWEST_PAIRS:
            raise MMCollapseError(
                f"photos folder {folder} has {len(files)} usable pictures with captions; at least {FEWEST_PAIRS} are "
                "needed, because they are divided into base models, judge, chains and test, and the smaller of these "
                f"would hold fewer than {FEWEST_PAIRS * min(SHARES.values()) // 100}" + (left_out and f" ({left_out})")
            )
        if left_out:
            warnings.warn(f"photos folder {folder}: {left_out}", stacklevel=2)
        further = sum(max(0, len(found.captions[file]) - REFERENCES) for file in files.values())
        if further:
            warnings.warn(f"photos: {further} captions beyond the fifth of a picture are not used", stacklevel=2)

        # In the order of a hash of each key, a picture added later shifts every split's ends by one place at most.
        keys = sorted(files, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
        published = {key: found.splits[file] for key, file in files.items()} if found.splits else {}
        self._keys, self._spans = _divide(keys, published)
        if not all(start < stop for start, stop in self._spans.values()):
            there = sorted(set(published.values()))
            raise MMCollapseError(
                f"photos folder {folder} has pictures of {', '.join(there)} alone: no role may be empty"
            )
        self._files = [files[key] for key in self._keys]
        self._captions = [found.captions[file][:REFERENCES] for file in self._files]
        self._kept = {row: self._kept[key] for row, key in enumerate(self._keys) if key in self._kept}
        content = [READING, image_size, seed, sorted(zip(self._keys, self._captions, strict=True))]
        content += [sorted(published.items())] if published else []
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _usable(self, found: Found) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """{key: file} of the pictures that can be used, and (file, reason) of those that are there twice; what else is
        wrong is added to the problems. If all fit, their pixels are kept, for they were decoded anyway."""
        there = []
        for file, captions in sorted(found.captions.items()):
            if not os.path.isfile(os.path.join(self.folder, file)):
                found.problems.append((file, "caption without its picture: no such file"))
            elif not captions:
                found.problems.append((file, "picture without a caption"))
            else:
                there.append(file)
        files, twice = {}, []
        self._kept: dict = {}
        for file, (key, reason, pixels) in check(
            self.folder, there, self.image_size if len(there) <= self._most else None
        ).items():
            if reason is not None:
                found.problems.append((file, reason))
            elif key in files:
                twice.append((file, f"is the same picture as {files[key]}"))
            else:
                files[key] = file
                if pixels is not None:
                    self._kept[key] = pixels
        return files, twice

    def size(self, split: str) -> int:
        """How many pictures a split ("base", "judge", "chain", "test") has."""
        start, stop = self._span(split)
        return stop - start

    def sample(self, split: str, indices: Sequence[int]) -> Batch:
        """The pairs of a split at `indices` (0 <= index < size), pictures uint8 (n, size, size, 3), scenes None.

        Raises MMCollapseError for an index outside the split, or a file that changed since the world was opened.
        """
        start, stop = self._span(split)
        for index in indices:
            if not 0 <= index < stop - start:
                raise MMCollapseError(f'split "{split}" of photos has {stop - start} pictures, so no index {index}')
        rows = [start + int(index) for index in indices]
        images = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)

        def decode(place: int) -> None:
            row = rows[place]
            images[place] = pixels = self._decode(row)
            if len(self._kept) < self._most:
                self._kept[row] = pixels

        missing = []
        for place, row in enumerate(rows):
            if row in self._kept:
                images[place] = self._kept[row]
            else:
                missing.append(place)
        if missing:
            with ThreadPoolExecutor(cores()) as pool:
                list(pool.map(decode, missing))
        keys = [f"{self._keys[row]} {self.image_size} px" for row in rows]  # of what is seen, not of the file alone
        return Batch(images, [list(self._captions[row]) for row in rows], None, keys)

    def references_length(self) -> float:
        """Mean number of words of a reference caption; a token without a letter or digit is no word."""
        texts = [text for captions in self._captions for text in captions]
        return float(np.mean([sum(any(map(str.isalnum, word)) for word in text.split()) for text in texts]))

    def _span(self, split: str) -> tuple[int, int]:
        if split not in self._spans:
            raise MMCollapseError(f'photos has no split "{split}"; it has {", ".join(self._spans)}')
        return self._spans[split]

    def _decode(self, row: int) -> np.ndarray:
        key, reason, pixels = open_picture(self.folder / self._files[row], self.image_size)
        if key != self._keys[row]:
            reason = reason or "other bytes"
            raise MMCollapseError(f"{self._files[row]} in {self.folder} changed since it was opened ({reason})")
        return pixels


def roles(own: int, held: int = 0) -> dict[str, int]:
    """How many pictures each role has of `own`; with published splits of `own` in train and restval, and of `held` in
    test and val."""
    shares = {role: share for role, share in SHARES.items() if role != "test" or not held}
    sizes = {role: stop - start for role, (start, stop) in _spans(shares, own).items()}
    return sizes | {"test": held} if held else sizes


def planned_roles(folder: str | Path, layout: str = "") -> dict[str, int]:
    """How many pictures each role of a folder will have at most, by its captions alone: no picture is opened.
    MMCollapseError: the folder has no captions, or none in that layout."""
    found = Found(Path(folder), layout)
    files = [file for file, captions in found.captions.items() if captions]
    held = sum(found.splits[file] in ("test", "val") for file in files) if found.splits else 0
    return roles(len(files) - held, held)


def _divide(keys: list[str], published: dict[str, str]) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """The keys in the order of the roles, and where each role begins and ends; see the module's text. published: the
    split of each key, if there are any."""
    if not published:
        return keys, _spans(SHARES, len(keys))
    own = [key for key in keys if published[key] in ("train", "restval")]
    held = [key for split in ("test", "val") for key in keys if published[key] == split]
    shares = {role: share for role, share in SHARES.items() if role != "test"}
    return own + held, _spans(shares, len(own)) | {"test": (len(own), len(keys))}


def _spans(shares: dict[str, int], n: int) -> dict[str, tuple[int, int]]:
    ends = np.cumsum([0, *shares.values()]) * n // sum(shares.values())
    return {role: (int(ends[i]), int(ends[i + 1])) for i, role in enumerate(shares)}


def _first(problems: list[tuple[str, str]], count: int, between: str = "\n  ") -> str:
    lines = [f"{file}: {reason}" for file, reason in problems[:count]]
    return between.join(lines + [f"and {len(problems) - count} more"] * (len(problems) > count))
