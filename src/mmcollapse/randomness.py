"""Random numbers that depend on what they are for, and on nothing else.

Every sample has its own noise, drawn from its key, so a picture is the same whatever the batch it was made in, and
whatever was made before it. Where noise is drawn on a GPU, its generator is of integers alone, and so the same there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

WORD = 2**32 - 1  # the bits of one


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
    draws = [np.random.Generator(np.random.Philox(seed_of("gumbel", *key))) for key in keys]
    return _of_uniform(torch.from_numpy(np.stack([draw.random(shape, dtype=np.float32) for draw in draws])))


def gumbel_rows(keys: list[tuple], words: int, device: torch.device | str) -> Callable[[int], torch.Tensor]:
    """A function of k = 0, 1, ... that draws standard Gumbel (len(keys), words) float32 on `device`: for vocabularies
    so large that `gumbel` takes longer than what its noise is for. It depends on key, k and word alone."""
    seeds = [seed_of("gumbel", *key) for key in keys]
    key = torch.tensor([[seed & WORD, seed >> 32] for seed in seeds], device=device)[:, None]
    counter = torch.zeros((1, -(-words // 4), 4), dtype=torch.long, device=device)
    counter[..., 0] = torch.arange(counter.shape[1], device=device)

    def row(k: int) -> torch.Tensor:
        counter[..., 1] = k
        uniform = (philox(counter, key) >> 8).float() * 2**-24
        return _of_uniform(uniform.flatten(1)[:, :words])

    return row


def philox(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Random words (..., 4) by Philox4x32-10 (Salmon et al. 2011) of counters (..., 4) and keys (..., 2), which
    broadcast. All are int64 from 0 to 2**32 - 1."""
    device = counter.device
    times = torch.tensor([0xD2511F53, 0xCD9E8D57], device=device)
    bumps = torch.arange(10, device=device)[:, None] * torch.tensor([0x9E3779B9, 0xBB67AE85], device=device)
    even, odd = counter[..., ::2], counter[..., 1::2]
    for bumped in (key[..., None, :] + bumps).unbind(-2):
        both = (even * times).flip(-1)  # where it overflows, its bits are still those of the unsigned product
        even, odd = ((both >> 32) ^ odd ^ bumped) & WORD, both
    return torch.stack([even, odd & WORD], -1).flatten(-2)


def _of_uniform(uniform: torch.Tensor) -> torch.Tensor:
    # numpy's own gumbel takes ten times as long
    return -(-(uniform.clamp_(min=2**-25)).log()).log()
