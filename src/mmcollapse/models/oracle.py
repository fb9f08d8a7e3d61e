"""The oracle: a small convolutional network that reads the attributes of a scene back from its pixels.

It abstains below a calibrated confidence: pictures that are no scene at all (blurred, mixed, between two colours) must
not be given a truth they do not have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmcollapse.models import folder_digest
from mmcollapse.worlds.grammar import Scene, Thing

# name -> number of classes; two slots, left or top thing first
HEADS = {"count": 2, "relation": 2, "background": 5}
SLOT_HEADS = {"shape": 10, "colour": 10, "size": 2}
CLASSES = HEADS | {f"{name}{slot}": n for slot in (0, 1) for name, n in SLOT_HEADS.items()}


class OracleNet(nn.Module):
    """(n, 3, 64, 64) in [-1, 1] to {head: logits (n, classes)} and the nuisance factors (n, 2, 5), each scaled to
    about [-1, 1] (see `nuisance_scale`)."""

    def __init__(self, widths: tuple[int, ...] = (48, 96, 128), hidden: int = 256):
        super().__init__()
        layers, previous = [nn.Conv2d(3, widths[0], 5, 2, 2)], widths[0]
        for width in widths:
            if width != previous:
                layers += [nn.GroupNorm(8, previous), nn.SiLU(), nn.Conv2d(previous, width, 3, 2, 1)]
            layers.append(_Residual(width))
            previous = width
        layers += [nn.GroupNorm(8, previous), nn.SiLU(), nn.Conv2d(previous, 32, 1), nn.Flatten()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(32 * 8 * 8, hidden), nn.SiLU())
        self.out = nn.Linear(hidden, sum(CLASSES.values()) + 10)

    def forward(self, pixels: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        out = self.out(self.hidden(self.trunk(pixels))).float()
        *logits, nuisance = out.split([*CLASSES.values(), 10], 1)
        return dict(zip(CLASSES, logits, strict=True)), nuisance.view(-1, 2, 5)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1)),
            *(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def nuisance_scale() -> tuple[np.ndarray, np.ndarray]:
    """(centre, half range) of x, y, radius, rotation, hue: scaled = (value - centre) / half range."""
    from mmcollapse.worlds.scenes import HUE, ROTATION, SIZE

    return np.array([SIZE / 2, SIZE / 2, 10.0, 0, 0]), np.array([SIZE / 2, SIZE / 2, 4.0, ROTATION, HUE])


def attributes(scenes: list[Scene]) -> dict[str, np.ndarray]:
    """Each head's class (n,), -1 where it does not apply."""
    rows = {name: np.full(len(scenes), -1, np.int64) for name in CLASSES}
    for i, scene in enumerate(scenes):
        rows["count"][i], rows["background"][i] = len(scene.things) - 1, scene.background
        if scene.relation is not None:
            rows["relation"][i] = scene.relation
        for slot, thing in enumerate(scene.things):
            rows[f"shape{slot}"][i], rows[f"colour{slot}"][i], rows[f"size{slot}"][i] = thing
    return rows


def targets(scenes: list[Scene], nuisance: np.ndarray) -> dict[str, np.ndarray]:
    """Training targets: `attributes` and "nuisance" (n, 2, 5) scaled, NaN where there is no thing."""
    centre, half = nuisance_scale()
    return attributes(scenes) | {"nuisance": ((nuisance - centre) / half).astype(np.float32)}


@dataclass
class Reading:
    """What the oracle read. scenes: n `Scene`s, its best guess even where it abstains; confidence: (n,) probability of
    the whole reading; abstains: (n,) bool; nuisance: (n, 2, 5) x, y, radius (pixels), rotation (radians), hue (turns),
    NaN for an absent thing."""

    scenes: list[Scene]
    confidence: np.ndarray
    abstains: np.ndarray
    nuisance: np.ndarray


class Oracle:
    """The trained oracle in `folder`: config.json (widths, threshold) and model.safetensors."""

    def __init__(self, folder: str | Path, device: str = "cpu"):
        from safetensors.torch import load_file

        self.digest, self.device = folder_digest(folder), torch.device(device)
        config = json.loads((Path(folder) / "config.json").read_text())
        self.threshold = config["threshold"]
        self.net = OracleNet(tuple(config["widths"]), config["hidden"])
        self.net.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()})
        self.net.to(device).eval()

    def read(self, images: np.ndarray) -> Reading:
        """Read pictures (n, 64, 64, 3) uint8."""
        return read(self.net, images, self.threshold, self.device)


@torch.no_grad()
def read(net: OracleNet, images: np.ndarray, threshold: float, device, batch: int = 128) -> Reading:
    """Read pictures with `net`; abstain where the joint probability of the reading is below `threshold`."""
    scenes, confidences, factors = [], [], []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(device)
        logits, nuisance = net(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        best = {name: v.softmax(1).max(1) for name, v in logits.items()}
        p = {name: b.values.double().cpu().numpy() for name, b in best.items()}
        at = {name: b.indices.cpu().numpy() for name, b in best.items()}
        two = at["count"] == 1
        confidence = p["count"] * p["background"] * p["shape0"] * p["colour0"] * p["size0"]
        second = p["relation"] * p["shape1"] * p["colour1"] * p["size1"]
        confidences.append(np.where(two, confidence * second, confidence))
        rows = np.stack([at[k] for k in ("shape0", "colour0", "size0", "shape1", "colour1", "size1")], 1).tolist()
        for row, pair, relation, background in zip(
            rows, two.tolist(), at["relation"].tolist(), at["background"].tolist(), strict=True
        ):
            things = (Thing(*row[:3]), Thing(*row[3:]))
            scenes.append(Scene(things, relation, background) if pair else Scene(things[:1], None, background))
        centre, half = nuisance_scale()
        values = nuisance.double().cpu().numpy() * half + centre
        values[~two, 1] = np.nan
        factors.append(values)
    confidence = np.concatenate(confidences)
    return Reading(scenes, confidence, confidence < threshold, np.concatenate(factors))
