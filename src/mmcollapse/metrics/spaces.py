"""Feature spaces: frozen networks that turn pictures, and some of them captions, into vectors.

Every metric on features works in every space, and its row in the result table names the space. A space has `digest`
and `images` (n, size, size, 3) uint8 -> (n, d) float32; those of CLIP's kind also have `texts` [n captions] -> (n, d).

    judge       CLIP trained on the world, 64 dimensions; shipped for scenes, works offline; made by `make pretrain`
    judge-2     the same with another seed: a finding that only one of them sees is the judge's
    inception   Inception v3 of 2015, 2,048 dimensions, clean-fid's network and resizing: what published FIDs use
    clip        any CLIP folder, 512 dimensions for ViT-B/32
    dino        any DINOv2 folder, 768 dimensions for ViT-B/14: its class token
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.images import check_images, in_threads, processed
from mmcollapse.models import folder_digest
from mmcollapse.models.judge import Judge

# Space -> the file that must be there; the judges lie with the base models, the others in a folder of instruments.
FILES = {
    "judge": "model.safetensors",
    "judge-2": "model.safetensors",
    "inception": "inception-2015-12-05.pt",
    "clip": "model.safetensors",
    "dino": "model.safetensors",
}


def open_space(name: str, models: Path, instruments: Path, device: str = "cpu"):
    """The space of that name. MMCollapseError: no such space, or its weights are not at hand (says which file)."""
    if name not in FILES:
        raise MMCollapseError(f"feature space {name!r}: allowed are {', '.join(FILES)}")
    own = name.startswith("judge")
    folder = Path(models if own else instruments) / name
    if not (folder / FILES[name]).is_file():
        how = "`make pretrain` makes it" if own else f"`make fetch WHAT={name}` brings it"
        how += "" if own else ", or give the folder that has it (setting, or option of check: instruments)"
        raise MMCollapseError(f"feature space {name!r} needs {folder / FILES[name]}, which is not there: {how}")
    return {"inception": Inception, "dino": Dino}.get(name, Judge)(folder, device)


class Inception:
    """clean-fid's TorchScript Inception on its resizing (PIL, bicubic, float, to 299)."""

    def __init__(self, folder: Path, device: str = "cpu"):
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        self.digest, self.device = folder_digest(folder), torch.device(device)
        self.net = InceptionV3W(str(folder), download=False).to(device).eval()
        self.resize = build_resizer("clean")

    @torch.no_grad()
    def images(self, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """Features (n, 2048)."""
        check_images(images)
        out = []
        for start in range(0, len(images), batch):
            part = in_threads(lambda some: np.stack([self.resize(x) for x in some]), images[start : start + batch])
            out.append(self.net(torch.from_numpy(part).permute(0, 3, 1, 2).to(self.device)).cpu().numpy())
        return np.concatenate(out)


class Dino:
    """`transformers.Dinov2Model` with its own picture processor."""

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import AutoImageProcessor, Dinov2Model

        self.digest, self.device = folder_digest(folder), torch.device(device)
        self.model = Dinov2Model.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device).eval()
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def images(self, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """Features (n, d): the class token after the last layer's norm."""
        check_images(images)
        out = []
        for start in range(0, len(images), batch):
            pixels = in_threads(partial(processed, self.processor), images[start : start + batch])
            out.append(self.model(pixel_values=torch.from_numpy(pixels).to(self.device)).pooler_output.cpu().numpy())
        return np.concatenate(out)
