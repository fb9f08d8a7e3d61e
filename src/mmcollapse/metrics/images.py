"""Metrics of sets of pictures, on features (n, d) of one feature space (judge, Inception, CLIP, ...)."""

from __future__ import annotations

import numpy as np

from mmcollapse.errors import MMCollapseError


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """Frechet distance of two feature sets (Heusel et al. 2017), by clean-fid. Range 0 and up, lower is better. Biased
    upwards at small n: refused below 10 samples a dimension."""
    from cleanfid.fid import frechet_distance

    n, d = min(len(real), len(fake)), real.shape[1]
    if n < 10 * d:
        raise MMCollapseError(f"Frechet distance of {n} samples in {d} dimensions: needs at least {10 * d}")
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return float(frechet_distance(real.mean(0), np.cov(real.T), fake.mean(0), np.cov(fake.T)))


def kid(real: np.ndarray, fake: np.ndarray, subsets: int = 50) -> float:
    """Kernel inception distance (Binkowski et al. 2018): squared MMD with the cubic polynomial kernel, unbiased, the
    mean over `subsets` random subsets of up to 1,000 (one where that is all there is), by clean-fid. Around 0 for equal
    distributions (it can be slightly negative), lower is better. Features are standardised by the real set's mean and
    standard deviation, for the kernel is not scale-free and the judge's features are not Inception's."""
    from cleanfid.fid import kernel_distance

    if min(len(real), len(fake)) < 2:
        raise MMCollapseError(f"KID of {len(real)} real and {len(fake)} made pictures: needs at least 2 of each")
    if len(real) == len(fake) <= 1000:
        subsets = 1  # a subset would be the whole, every time
    centre, scale = real.mean(0), real.std(0) + 1e-8
    state = np.random.get_state()
    np.random.seed(0)  # clean-fid draws its subsets from NumPy's global state
    try:
        value = kernel_distance((real - centre) / scale, (fake - centre) / scale, num_subsets=subsets)
    finally:
        np.random.set_state(state)
    return float(value)


def embedding_variance(features: np.ndarray) -> float:
    """Mean over dimensions of the unbiased variance over samples (DESIGN's `variance`). Range 0 and up; falls when
    variety is lost."""
    if len(features) < 2:
        raise MMCollapseError(f"variance of {len(features)} embeddings: needs at least 2")
    return float(features.astype(np.float64).var(0, ddof=1).mean())


def split_variance(features: np.ndarray, noises: int) -> tuple[float, float]:
    """(within, between): the embedding variance over the pictures of one prompt, averaged over prompts, and that of the
    prompts' true means (variance of the sample means less within/noises; one-way random-effects decomposition, floored
    at 0). Pictures come prompt by prompt, `noises` >= 2 of each."""
    if noises < 2 or len(features) % noises or len(features) < 2 * noises:
        raise MMCollapseError(f"{len(features)} pictures of {noises} a prompt: needs 2 prompts and 2 pictures of each")
    groups = features.astype(np.float64).reshape(-1, noises, features.shape[1])
    within = groups.var(1, ddof=1).mean()
    between = groups.mean(1).var(0, ddof=1).mean() - within / noises
    return float(within), float(max(between, 0.0))
