"""Worlds: sources of real image-caption pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Batch:
    """Real pairs. images: (n, size, size, 3) uint8 RGB; captions: n lists of reference captions, of which the first is
    *the* caption (or prompt) of the picture wherever one is needed; scenes: n `grammar.Scene`s, or None in a world
    without known truth; keys: n strings that name the samples for good."""

    images: np.ndarray
    captions: list[list[str]]
    scenes: list | None
    keys: list[str]


def open_world(
    name: str, data: str | Path | None = None, image_size: int = 64, layout: str = "", on_bad: str = "refuse"
):
    """The world called `name`: "scenes" (no data needed) or "photos" (`data` is the folder; the rest as `Photos` says).
    MMCollapseError: there is no such world, it lacks its data, or it has no pictures of `image_size` pixels a side."""
    from mmcollapse.errors import MMCollapseError

    if name == "scenes":
        from mmcollapse.worlds.scenes import Scenes

        if image_size != Scenes.image_size:
            raise MMCollapseError(
                f"setting image_size={image_size}: pictures of the world 'scenes' have {Scenes.image_size} pixels"
            )
        return Scenes()
    if name == "photos":
        from mmcollapse.worlds.photos import Photos

        if not data:
            raise MMCollapseError("world='photos' needs data: the folder of your pictures and captions (DATA=folder)")
        return Photos(data, image_size, on_bad, layout=layout)
    raise MMCollapseError(f"world={name!r}: allowed are 'scenes' and 'photos'")
