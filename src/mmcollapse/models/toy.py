"""A toy generator whose collapse has a closed form: independent Gaussians, fitted by the same loop as everything else.

Trained on n of its own samples, a maximum-likelihood Gaussian loses variance by the factor (1 - 1/n) a generation, on
average (Shumailov et al. 2024 for the effect; the factor is the bias of the maximum-likelihood variance), while its
mean wanders by 1/n of the current variance. So the recursion, the store and the trainer together can be checked against
numbers that nobody fitted.
"""

from __future__ import annotations

import numpy as np
import torch

from mmcollapse.randomness import normal

SIDE = 32  # a toy picture of 32x32x3 bytes holds the 768 float32 numbers of one sample


class Gaussian:
    """768 independent one-dimensional Gaussians, starting at mean 0 and variance 1; the interface of a generator."""

    kind, digest, network = "generator", "toy-gaussian-1", None

    def __init__(self):
        n = SIDE * SIDE * 3 // 4
        self.mean, self.log_std = torch.nn.Parameter(torch.zeros(n)), torch.nn.Parameter(torch.zeros(n))

    def prepare(self, method: str, rank: int, targets: str = "", checkpointing: bool = False):
        """Nothing to choose: both parameters are trained."""

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Both parameters, by name."""
        return {"mean": self.mean, "log_std": self.log_std}

    @torch.no_grad()
    def make(self, captions: list[str], decoding, keys: list[tuple], batch: int = 64) -> np.ndarray:
        """Samples as pictures (n, 32, 32, 3) uint8: the bytes of their float32 numbers."""
        x = self.mean + self.log_std.exp() * normal(keys, (len(self.mean),))
        return x.numpy().view(np.uint8).reshape(len(captions), SIDE, SIDE, 3)

    def encode(self, images: np.ndarray, captions: list[str]) -> dict[str, torch.Tensor]:
        """Samples x (n, 768) float32 from the bytes of toy pictures."""
        return {"x": torch.from_numpy(np.ascontiguousarray(images).reshape(len(images), -1).view(np.float32).copy())}

    def draw(self, n: int, g: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    @staticmethod
    def size(batch: dict[str, torch.Tensor]) -> int:
        """Of samples, over which `loss` is a mean."""
        return len(batch["x"])

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Negative log-likelihood summed over dimensions, so that every dimension is its own problem."""
        z = (batch["x"] - self.mean) * (-self.log_std).exp()
        return (0.5 * z**2 + self.log_std).mean(0).sum()
