"""The `photos` world: real pictures with human captions, read from a folder of the user's.

Three layouts are known, tried in this order; `Photos.layout` says which was taken and what else lay there:

image-folder  `metadata.jsonl` here, or else in the folders below: a row has `file_name`, relative to that file, and
              `captions`, `caption` or `text`, a string or a list; rows of one picture are joined in order
coco          `captions*.json` here or in `annotations/`, with `images` and `annotations`; the pictures lie in
              `train2014/`, `val2014/` (or 2017), `images/`, or beside the file
flickr8k      `captions.txt`, comma-separated with the header `image,caption`; the pictures lie in `Images/`,
              `images/` or beside it

A picture is turned as its EXIF entry says, cut to its central square, converted to RGB (transparency is laid on white,
16-bit grey divided by 257), and resized by Pillow's BICUBIC, whose support grows with the reduction, so that fine
detail is averaged instead of aliased. Runs of white space in a caption become one space; nothing else is changed.
"""

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from mmcollapse.errors import MMCollapseError
from mmcollapse.worlds import Batch

READING = 1  # enters the digest: raise it when the same folder would give other pixels, captions or splits
REFERENCES = 5
FEWEST_PAIRS = 40
CACHE_BYTES = 512 * 2**20
SHARES = {"base": 55, "judge": 15, "chain": 15, "test": 15}  # percent of the pictures
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class Photos:
    """Real image-caption pairs; see the module's text for layouts and the preparation of pictures.

    folder: where the pairs lie. image_size: side of the pictures given out, in pixels. on_bad: "refuse" raises one
    error that lists what is wrong with the folder, "skip" leaves it out, listed in `skipped` as (file, reason), with a
    warning. seed: of the division into splits. Raises MMCollapseError for a folder that cannot be used.
    Every file is decoded once on opening. A picture's key is a hash of its bytes, so a renamed file or folder is the
    same world, and a picture that is there twice counts as bad the second time. The first five captions of a picture
    are its references, in the order found; it needs at least one.
    """

    name = "photos"
    truth = False  # nobody knows the attributes of a photo

    def __init__(self, folder: str | Path, image_size: int = 64, on_bad: str = "refuse", seed: int = 0) -> None:
        if on_bad not in ("refuse", "skip"):
            raise MMCollapseError(f'on_bad must be "refuse" or "skip", not {on_bad!r}')
        self.folder, self.image_size = Path(folder), image_size
        found = _Found(self.folder)
        self.layout = found.layout
        cached = len(found.captions) * image_size * image_size * 3 <= CACHE_BYTES
        pairs = _check(found, image_size, cached)
        self.skipped: list[tuple[str, str]] = found.problems
        if self.skipped and on_bad == "refuse":
            raise MMCollapseError(
                f"{len(self.skipped)} bad entries in the photos folder {folder}:\n  {_first(self.skipped, 10)}\n"
                'Mend them, or set on_bad to "skip", which leaves them out and counts them.'
            )
        left_out = f"{len(self.skipped)} bad entries left out: {_first(self.skipped, 3, '; ')}" if self.skipped else ""
        if len(pairs) < FEWEST_PAIRS:
            raise MMCollapseError(
                f"photos folder {folder} has {len(pairs)} usable pictures with captions; at least {FEWEST_PAIRS} are "
                "needed, because they are divided into base models, judge, chains and test, and the smaller of these "
                f"would hold fewer than {FEWEST_PAIRS * min(SHARES.values()) // 100}" + (left_out and f" ({left_out})")
            )
        if left_out:
            warnings.warn(f"photos folder {folder}: {left_out}", stacklevel=2)
        further = sum(max(0, len(captions) - REFERENCES) for _, captions, _ in pairs.values())
        if further:
            warnings.warn(f"photos: {further} captions beyond the fifth of a picture are not used", stacklevel=2)

        # In the order of a hash of each key, a picture added later shifts every split's ends by one place at most.
        self._keys = sorted(pairs, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
        self._files = [pairs[key][0] for key in self._keys]
        self._captions = [pairs[key][1][:REFERENCES] for key in self._keys]
        self._pixels = np.stack([pairs[key][2] for key in self._keys]) if cached else None
        ends = np.cumsum([0, *SHARES.values()]) * len(pairs) // 100
        self._spans = {split: (int(ends[i]), int(ends[i + 1])) for i, split in enumerate(SHARES)}
        content = [READING, image_size, seed, sorted(zip(self._keys, self._captions, strict=True))]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()

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
        if self._pixels is not None:
            images = self._pixels[rows]
        else:
            images = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
            for place, row in enumerate(rows):
                images[place] = self._decode_again(row)
        return Batch(images, [list(self._captions[row]) for row in rows], None, [self._keys[row] for row in rows])

    def references_length(self) -> float:
        """Mean number of words of a reference caption; a token without a letter or digit is no word."""
        texts = [text for captions in self._captions for text in captions]
        return float(np.mean([sum(any(map(str.isalnum, word)) for word in text.split()) for text in texts]))

    def _span(self, split: str) -> tuple[int, int]:
        if split not in self._spans:
            raise MMCollapseError(f'photos has no split "{split}"; it has {", ".join(self._spans)}')
        return self._spans[split]

    def _decode_again(self, row: int) -> np.ndarray:
        key, pixels, reason = _open(self.folder / self._files[row], self.image_size)
        if key != self._keys[row]:
            reason = reason or "other bytes"
            raise MMCollapseError(f"{self._files[row]} in {self.folder} changed since it was opened ({reason})")
        return pixels


class _Found:
    """What the caption files of a folder say: `captions` by picture (a path below the folder) and `problems`, pairs of
    (file, reason); `layout` says what was read. Raises MMCollapseError if there is nothing to read."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            why = "is a file: give the folder that it lies in" if folder.exists() else "does not exist"
            raise MMCollapseError(f"photos folder {folder} {why}")
        self.folder, self.captions, self.problems = folder, {}, []
        layouts = {
            "image-folder": (self._read_rows, ["metadata.jsonl", "*/metadata.jsonl"]),
            "coco": (self._read_coco, ["captions*.json", "annotations/captions*.json"]),
            "flickr8k": (self._read_table, ["captions.txt"]),
        }
        there = {}
        for name, (_, patterns) in layouts.items():
            files = sorted(path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern))
            if "metadata.jsonl" in files:  # one further down may be the same pictures again
                files = ["metadata.jsonl"]
            if name == "coco":  # captions.json may be of another form
                files = [file for file in files if b'"images"' in (folder / file).read_bytes()]
            if files:
                there[name] = files
        if not there:
            raise MMCollapseError(
                f"photos folder {folder} {'holds no captions' if any(folder.iterdir()) else 'is empty'}; looked for "
                "metadata.jsonl, for captions*.json in COCO's form (also in annotations/) and for captions.txt"
            )
        taken = next(iter(there))
        for file in there[taken]:
            layouts[taken][0](file)
        self._add_other_pictures()
        unused = ", ".join(file for name, files in there.items() if name != taken for file in files)
        self.layout = f"{taken}: {', '.join(there[taken])}" + (unused and f" (there too, not used: {unused})")

    def _add(self, places: list[str], name: object, captions: object, where: str) -> None:
        """Note the captions (a string or a list of them) of picture `name`, which lies in the first of `places` that
        has it. Only the words of a path are judged, so that a folder of pictures may be a link to another disk."""
        if not isinstance(name, str) or not name:
            self.problems.append((where, "names no picture file"))
            return
        files = [os.path.normpath(os.path.join(place, name)) for place in places]
        if any(file.split(os.sep)[0] in ("..", "") for file in files):
            self.problems.append((where, f"the path {name} leaves the folder"))
            return
        file = next((file for file in files if os.path.isfile(self.folder / file)), files[0])
        kept = self.captions.setdefault(file, [])
        for caption in captions if isinstance(captions, list) else [captions]:
            if not isinstance(caption, str) or not caption.strip():
                what = "is empty" if isinstance(caption, str) else "is no text"
                self.problems.append((where, f"a caption of {name} {what}"))
            else:
                kept.append(" ".join(caption.split()))

    def _places(self, *names: str) -> list[str]:
        """Which of these folders are there (by listing: some file systems answer to a name in any case), and "."."""
        return [name for name in names if name in os.listdir(self.folder)] + ["."]

    def _add_other_pictures(self) -> None:
        """Note the pictures that no caption file names, without a caption. Links are followed, each folder is walked
        once, and what is hidden is passed over."""
        known = {os.path.realpath(self.folder / file) for file in self.captions}
        for folder, below, files in os.walk(self.folder, followlinks=True):
            below[:] = sorted(name for name in below if name[0] != "." and os.path.realpath(folder) not in known)
            known.add(os.path.realpath(folder))
            for path in (os.path.join(folder, name) for name in sorted(files) if name[0] != "."):
                if path.lower().endswith(SUFFIXES) and os.path.realpath(path) not in known:
                    known.add(os.path.realpath(path))
                    self.captions[os.path.relpath(path, self.folder)] = []

    def _read_rows(self, source: str) -> None:
        for number, line in enumerate((self.folder / source).read_bytes().splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError as error:
                self.problems.append((f"{source}:{number}", f"is no JSON ({error})"))
                continue
            if isinstance(row, dict):
                captions = next((row[key] for key in ("captions", "caption", "text") if key in row), [])
                self._add([os.path.dirname(source)], row.get("file_name"), captions, f"{source}:{number}")
            elif line.strip():
                self.problems.append((f"{source}:{number}", "is no JSON object"))

    def _read_coco(self, source: str) -> None:
        try:
            document = json.loads((self.folder / source).read_bytes())
            files = {image["id"]: image["file_name"] for image in document["images"]}
            captions = {image: [] for image in files}
            for note in document["annotations"]:
                captions.setdefault(note["image_id"], []).append(note["caption"])
        except (ValueError, KeyError, TypeError) as error:
            self.problems.append((source, f"is no JSON in the COCO captions form ({error!r})"))
            return
        places = self._places("train2014", "val2014", "train2017", "val2017", "images", "Images")
        for image, texts in captions.items():
            if image in files:
                self._add([*places, os.path.dirname(source)], files[image], texts, f"{source}, image {image}")
            else:
                self.problems.append((source, f"caption without its picture: no image has the id {image}"))

    def _read_table(self, source: str) -> None:
        places = self._places("Images", "images")
        for number, line in enumerate((self.folder / source).read_bytes().splitlines(), 1):
            try:  # a line at a time: a quote left open then spoils its own row and not all that follow
                row = next(csv.reader([line.decode("utf-8-sig")], strict=True), [])
            except (csv.Error, ValueError) as error:
                self.problems.append((f"{source}:{number}", f"is no comma-separated text ({error})"))
                continue
            if number == 1:
                if [cell.strip().lower() for cell in row] != ["image", "caption"]:
                    self.problems.append((f"{source}:1", 'header is not "image,caption"'))
            elif row:
                self._add(places, row[0].strip(), ",".join(row[1:]), f"{source}:{number}")


def _check(found: _Found, size: int, cached: bool) -> dict[str, tuple[str, list[str], np.ndarray | None]]:
    """Decode every file: {key: (file, captions, pixels if cached)}; what fails is added to the problems."""
    files = []
    for file, captions in sorted(found.captions.items()):
        if not os.path.isfile(found.folder / file):
            found.problems.append((file, "caption without its picture: no such file"))
        elif not captions:
            found.problems.append((file, "picture without a caption"))
        else:
            files.append(file)

    def work(file: str) -> tuple[str, np.ndarray | None, str | None]:
        key, pixels, reason = _open(found.folder / file, size)
        return key, pixels if cached else None, reason

    pairs = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter lock
        opened = tqdm(pool.map(work, files), "checking photos", len(files), disable=len(files) <= 2000)
        for file, (key, pixels, reason) in zip(files, opened, strict=True):
            if key in pairs:
                reason = f"is the same picture as {pairs[key][0]}"
            if reason is None:
                pairs[key] = (file, found.captions[file], pixels)
            else:
                found.problems.append((file, reason))
    return pairs


def _open(path: Path, size: int) -> tuple[str, np.ndarray | None, str | None]:
    """(hash of the bytes, pixels uint8 (size, size, 3), None), or ("", None, why the file cannot be used)."""
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as picture:
            return hashlib.sha256(data).hexdigest()[:32], _prepare(picture, size), None
    except UnidentifiedImageError:
        return "", None, "is no picture" if data else "is an empty file"
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        return "", None, f"cannot be read as a picture ({error})"


def _prepare(picture: Image.Image, size: int) -> np.ndarray:
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


def _first(problems: list[tuple[str, str]], count: int, between: str = "\n  ") -> str:
    lines = [f"{file}: {reason}" for file, reason in problems[:count]]
    return between.join(lines + [f"and {len(problems) - count} more"] * (len(problems) > count))
