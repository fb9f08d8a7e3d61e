"""The caption files of a folder of pictures, in the layouts that are in use.

Tried in this order; the first that is there is taken, unless another is named:

image-folder  `metadata.jsonl` here, or else in the folders below: a row has `file_name`, relative to that file, and
              `captions`, `caption` or `text`, a string or a list; rows of one picture are joined in order
coco          `captions*.json` here or in `annotations/`, with `images` and `annotations`; the pictures lie in
              `train2014/`, `val2014/` (or 2017), `images/`, or beside the file
flickr8k      `captions.txt`, comma-separated with the header `image,caption`; the pictures lie in `Images/`,
              `images/` or beside it
flickr30k     `results_20130124.token`, or `Flickr8k.token.txt` of the same form: a line is `name#k`, a tab and a
              caption; the pictures lie in `flickr30k-images/`, `Flicker8k_Dataset/`, `images/` or beside it
karpathy      `dataset_coco.json`, `dataset_flickr8k.json` or `dataset_flickr30k.json` (Karpathy and Fei-Fei 2015): each
              of `images` has `filepath` (COCO's), `filename`, `split` and `sentences` with `raw`; the pictures lie as
              for coco and flickr30k. Its splits are kept, and pictures that it does not name are passed over

Runs of white space in a caption become one space; nothing else is changed.
"""

from __future__ import annotations

import csv
import functools
import json
import os
from pathlib import Path

from mmcollapse.errors import MMCollapseError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
PUBLISHED = ("train", "restval", "val", "test")  # the splits of Karpathy's files
COCO = ("train2014", "val2014", "train2017", "val2017", "images", "Images")
FLICKR = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
LAYOUTS = {  # name: files to look for
    "image-folder": ["metadata.jsonl", "*/metadata.jsonl"],
    "coco": ["captions*.json", "annotations/captions*.json"],
    "flickr8k": ["captions.txt"],
    "flickr30k": ["results_20130124.token", "Flickr8k.token.txt"],
    "karpathy": ["dataset_coco.json", "dataset_flickr8k.json", "dataset_flickr30k.json"],
}


class Found:
    """What the caption files of a folder say: `captions` by picture (a path below the folder), `splits` by picture
    where the layout has them, and `problems`, pairs of (file, reason); `layout` says what was read. layout: take this
    one, whatever else is there. Raises MMCollapseError if there is nothing to read."""

    def __init__(self, folder: Path, layout: str = "") -> None:
        if layout and layout not in LAYOUTS:
            raise MMCollapseError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}")
        if not folder.is_dir():
            why = "is a file: give the folder that it lies in" if folder.exists() else "does not exist"
            raise MMCollapseError(f"photos folder {folder} {why}")
        self.folder, self.captions, self.splits, self.problems = folder, {}, {}, []
        there = {name: files for name in LAYOUTS if (files := self._look_for(name))}
        if not there:
            raise MMCollapseError(
                f"photos folder {folder} {'holds no captions' if any(folder.iterdir()) else 'is empty'}; looked for "
                "metadata.jsonl, for captions*.json in COCO's form (also in annotations/), for captions.txt, for "
                "results_20130124.token and for dataset_coco.json or its like"
            )
        if layout and layout not in there:
            raise MMCollapseError(f"photos folder {folder} has no {layout} captions; there are {', '.join(there)}")
        taken = layout or next(iter(there))
        for file in there[taken]:
            getattr(self, f"_read_{taken.replace('-', '_')}")(file)
        if not self.splits:  # a published split is a list of what belongs to it
            self._add_other_pictures()
        unused = ", ".join(file for name, files in there.items() if name != taken for file in files)
        self.layout = f"{taken}: {', '.join(there[taken])}" + (unused and f" (there too, not used: {unused})")

    def _look_for(self, layout: str) -> list[str]:
        paths = [path for pattern in LAYOUTS[layout] for path in self.folder.glob(pattern)]
        files = sorted(path.relative_to(self.folder).as_posix() for path in paths)
        if "metadata.jsonl" in files:  # one further down may be the same pictures again
            return ["metadata.jsonl"]
        if layout == "coco":  # captions.json may be of another form
            return [file for file in files if b'"images"' in (self.folder / file).read_bytes()]
        return files[:1] if layout in ("flickr30k", "karpathy") else files  # of two, the second is another collection

    def _add(self, places: list[str], name: object, captions: object, where: str) -> str | None:
        """Note the captions (a string or a list of them) of picture `name`, which lies in the first of `places` that
        has it, and return where that is. Only the words of a path are judged, so that a folder of pictures may be a
        link to another disk."""
        if not isinstance(name, str) or not name:
            self.problems.append((where, "names no picture file"))
            return None
        files = [os.path.normpath(os.path.join(place, name)) for place in places]
        if any(file.split(os.sep)[0] in ("..", "") for file in files):
            self.problems.append((where, f"the path {name} leaves the folder"))
            return None
        file = next((file for file in files if os.path.isfile(os.path.join(self.folder, file))), files[0])
        kept = self.captions.setdefault(file, [])
        for caption in captions if isinstance(captions, list) else [captions]:
            if not isinstance(caption, str) or not caption.strip():
                what = "is empty" if isinstance(caption, str) else "is no text"
                self.problems.append((where, f"a caption of {name} {what}"))
            else:
                kept.append(" ".join(caption.split()))
        return file

    def _places(self, *names: str) -> list[str]:
        """Which of these folders are there (by listing: some file systems answer to a name in any case), and "."."""
        there = os.listdir(self.folder)
        return [name for name in names if name in there] + ["."]

    def _add_other_pictures(self) -> None:
        """Note the pictures that no caption file names, without a caption. Links are followed, each folder is walked
        once, and what is hidden is passed over."""
        real = functools.cache(os.path.realpath)  # of folders: for each of many files it would take seconds

        def place(path: str) -> str:
            folder, name = os.path.split(path)
            path = os.path.join(real(folder), name)
            return os.path.realpath(path) if os.path.islink(path) else path

        known, walked = {place(os.path.join(self.folder, file)) for file in self.captions}, set()
        for folder, below, files in os.walk(self.folder, followlinks=True):
            below[:] = sorted(name for name in below if name[0] != "." and real(folder) not in walked)
            walked.add(real(folder))
            for path in (os.path.join(folder, name) for name in sorted(files) if name[0] != "."):
                if path.lower().endswith(SUFFIXES) and (there := place(path)) not in known:
                    known.add(there)
                    self.captions[os.path.relpath(path, self.folder)] = []

    def _read_image_folder(self, source: str) -> None:
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
        places = [*self._places(*COCO), os.path.dirname(source)]
        for image, texts in captions.items():
            if image in files:
                self._add(places, files[image], texts, f"{source}, image {image}")
            else:
                self.problems.append((source, f"caption without its picture: no image has the id {image}"))

    def _read_flickr8k(self, source: str) -> None:
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

    def _read_flickr30k(self, source: str) -> None:
        places = self._places(*FLICKR)
        for number, line in enumerate((self.folder / source).read_bytes().splitlines(), 1):
            try:
                label, tab, caption = line.decode("utf-8-sig").partition("\t")
            except ValueError as error:
                self.problems.append((f"{source}:{number}", f"is no text ({error})"))
                continue
            name, mark, which = label.strip().rpartition("#")
            if tab and mark and which.isdecimal():
                self._add(places, name, caption, f"{source}:{number}")
            elif line.strip():
                self.problems.append((f"{source}:{number}", "is not of the form name#number, tab, caption"))

    def _read_karpathy(self, source: str) -> None:
        try:
            images = [
                (i["split"], os.path.join(i.get("filepath", ""), i["filename"]), [s["raw"] for s in i["sentences"]])
                for i in json.loads((self.folder / source).read_bytes())["images"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.problems.append((source, f"is no JSON in the form of Karpathy's split files ({error!r})"))
            return
        places = self._places(*FLICKR)
        for split, name, captions in images:
            if split not in PUBLISHED:
                self.problems.append((source, f"{name} is of split {split!r}; known are {', '.join(PUBLISHED)}"))
            elif file := self._add(places, name, captions, f"{source}, {name}"):
                self.splits[file] = split
