"""Random numbers that depend on what they are for, and on nothing else.

Every sample has its own noise, drawn on the CPU from its key, so a picture is the same whatever the batch it was made
in, and whatever was made before it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch


def seed_of(*key) -> int:
    """A 63-bit seed from any JSON-able key, such as (chain seed, generation, role, index)."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "little") >> 1


def generator(*key) -> torch.Generator:
    """A CPU generator for one key."""
    return torch.Generator().manual_seed(seed_of(*key))


def normal(keys: list[tuple], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal (len(keys), *shape) float32, one independent draw a key. Not to be changed in place: the last
    ones are kept, for what is measured has the same noise every generation."""
    return _normal(tuple(keys), shape)


@lru_cache(16)
def _normal(keys, shape):
    return torch.stack([torch.randn(shape, generator=generator("normal", *key)) for key in keys])


def gumbel(keys: list[tuple], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard Gumbel (len(keys), *shape) float32, one independent draw a key. Not to be changed in place."""
    return _gumbel(tuple(keys), shape)


@lru_cache(6)
def _gumbel(keys, shape):
    return _of_uniform([draw.random(shape, dtype=np.float32) for draw in _draws(keys)])


def gumbel_rows(keys: list[tuple], words: int) -> Callable[[int], torch.Tensor]:
    """A function that gives `gumbel(keys, (rows, words))[:, k]` for k = 0, 1, ..., each drawn when it is asked for."""
    draws, asked = _draws(keys), itertools.count()

    def row(k: int) -> torch.Tensor:
        if k != next(asked):
            raise RuntimeError(f"row {k} of this noise was not asked for in its order")
        return _of_uniform([draw.random(words, dtype=np.float32) for draw in draws])

    return row


def _draws(keys) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(seed_of("gumbel", *key))) for key in keys]


def _of_uniform(uniform: list[np.ndarray]) -> torch.Tensor:
    # numpy's own gumbel takes ten times as long
    return -(-(torch.from_numpy(np.stack(uniform)).clamp_(min=2**-25)).log()).log()
