"""Captions from files in COCO's form."""

from __future__ import annotations

import json
from pathlib import Path

from mmcollapse.errors import MMCollapseError


def from_coco(annotations: str | Path, results: str | Path | None = None) -> tuple[list[str] | None, list[list[str]]]:
    """(captions, references) for the caption metrics, from COCO's two kinds of JSON: `annotations` holds "images" (each
    with "id") and "annotations" (each with "image_id" and "caption", the references); `results` is a list of
    {"image_id", "caption"}, at most one for each image. Both come in the order of "images". Results may be of some of
    the images only, as those of a test split are: the references are then of these images. Without results: captions
    is None, and the references are of all images. Numbers of references may differ: for BLEU cut them to one number.

    Errors name file and id: image without reference, unknown image, two results or images of one id, damaged file."""
    form = '{"images": [{"id"}], "annotations": [{"image_id", "caption"}]}'
    document = _read(annotations)
    try:
        ids = [image["id"] for image in document["images"]]
        references: dict = {image: [] for image in ids}
        notes = [(note["image_id"], note["caption"]) for note in document["annotations"]]
    except (KeyError, TypeError) as error:
        raise MMCollapseError(f"{annotations} is not of COCO's form {form}: {error!r}") from None
    if len(references) < len(ids):
        twice = next(image for image in references if ids.count(image) > 1)
        raise MMCollapseError(f"{annotations} has two images of the id {twice!r}")
    for image, caption in notes:
        _check(annotations, image, caption, references)
        references[image].append(caption)

    captions: dict | None = None
    if results is not None:
        captions = {}
        try:
            entries = [(entry["image_id"], entry["caption"]) for entry in _read(results)]
        except (KeyError, TypeError) as error:
            raise MMCollapseError(f'{results} is not of the form [{{"image_id", "caption"}}]: {error!r}') from None
        for image, caption in entries:
            _check(results, image, caption, references)
            if image in captions:
                raise MMCollapseError(f"{results} has two results for image {image!r}")
            captions[image] = caption

    wanted = [image for image in ids if captions is None or image in captions]
    if not wanted:
        raise MMCollapseError(f"{annotations if captions is None else results} has no caption of any image")
    for image in wanted:
        if not references[image]:
            raise MMCollapseError(f"{annotations} has no reference for image {image!r}")
    return captions and [captions[image] for image in wanted], [references[image] for image in wanted]


def _read(path):
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise MMCollapseError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise MMCollapseError(f"{path} is damaged, it is no JSON: {error}") from None


def _check(path, image, caption, references) -> None:
    try:
        known = image in references
    except TypeError:  # a list, which is no key
        known = False
    if not known:
        raise MMCollapseError(f"{path} has a caption for image {image!r}, which is not among the images")
    if not isinstance(caption, str):
        raise MMCollapseError(f"{path}: the caption of image {image!r} is {caption!r}: a string is needed")
