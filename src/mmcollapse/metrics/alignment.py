"""Alignment of pictures with their own captions, in a joint embedding space."""

from __future__ import annotations

import numpy as np

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.images import unit_length


def _check(x: np.ndarray, y: np.ndarray):
    if x.shape != y.shape or x.ndim != 2 or len(x) < 2:
        raise MMCollapseError(f"alignment of embeddings {x.shape} and {y.shape}: needs equal shapes of 2 rows or more")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MMCollapseError("alignment of embeddings with NaN or infinite values")


def clip_score(x: np.ndarray, y: np.ndarray) -> float:
    """CLIPScore (Hessel et al. 2021) of pictures x (n, d) with their *own* captions y (n, d), as MLPerf scales it: mean
    of max(100 cos, 0). 0-100, higher is better aligned; no bias in n. It is 100 (1 - P) where no cosine is negative,
    kept because it is what others report."""
    _check(x, y)
    x, y = unit_length(x), unit_length(y)
    return float((100 * (x * y).sum(1)).clip(min=0).mean())


def alignment(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Pair distance P, spread W, relative modality gap RMG and L2M of embeddings x (n, d) of pictures and y (n, d) of
    their own captions, as the public code of the paper defines them:

        d(a, b) = 1 - cos(a, b);   P = mean_i d(x_i, y_i)
        W = (sum_{i != j} d(x_i, x_j) + sum_{i != j} d(y_i, y_j)) / (2 N (N - 1))
        RMG = P / (W + P);         L2M = || mean(x) - mean(y) ||_2 of the normalised embeddings

    P in 0-2, lower is better aligned. RMG in 0-1; it rises when W falls at equal P, so read it beside P and W. None
    has a bias in n but L2M, which falls to its limit as n grows. Costs one pass over the embeddings."""
    _check(x, y)
    x, y = unit_length(x), unit_length(y)
    n = len(x)
    pair = float((1 - (x * y).sum(1)).mean())
    # the sum of all cosines is the squared norm of the sum, and the diagonal is n ones
    spread = sum((n * (n - 1) - (np.square(v.sum(0)).sum() - n)) for v in (x, y)) / (2 * n * (n - 1))
    gap = float(np.linalg.norm(x.mean(0) - y.mean(0)))
    return {"P": pair, "W": float(spread), "RMG": pair / (spread + pair), "L2M": gap}
