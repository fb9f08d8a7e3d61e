"""Metrics of sets of pictures, on features (n, d) of one feature space (judge, Inception, CLIP, ...).

`device`: where what takes longest is computed ("cpu", "cuda", ...)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError


def check_images(images: np.ndarray):
    """Refuse what is no set of pictures (n, height, width, 3) uint8, n >= 1."""
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise MMCollapseError(f"pictures {getattr(images, 'shape', type(images))}: need an array (n, height, width, 3)")
    if images.dtype != np.uint8:
        raise MMCollapseError(f"pictures of {images.dtype}: need uint8, values 0-255")


def in_threads(prepare: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """prepare(part) of parts of `images`, side by side in as many threads as torch has, one after the other in the
    result: resizing photos takes longer than looking at them."""
    parts = np.array_split(images, min(len(images), torch.get_num_threads()))
    with ThreadPoolExecutor(len(parts)) as threads:
        return np.concatenate(list(threads.map(prepare, parts)))


def processed(processor, images: np.ndarray) -> np.ndarray:
    """Pictures (n, height, width, 3) as a processor of transformers gives them to its model."""
    return np.asarray(processor(list(images), return_tensors="np").pixel_values)


def _check(*sets: np.ndarray):
    """Refuse features that are not arrays (n, d) of numbers, finite, and of one d."""
    for features in sets:
        plain = isinstance(features, np.ndarray) and features.dtype.kind in "fiu" and features.ndim == 2
        if not plain or features.shape[1] != sets[0].shape[1] or not features.shape[1]:
            shapes = " and ".join(str(getattr(f, "shape", type(f))) for f in sets)
            raise MMCollapseError(f"features {shapes}: need arrays of numbers (n, d) of one feature space")
        if not np.isfinite(features).all():
            rows = (~np.isfinite(features)).any(1).sum()
            raise MMCollapseError(f"features with NaN or infinite values, in {rows} rows")


def unit_length(features: np.ndarray) -> np.ndarray:
    """Rows (n, d) of length 1, float64. MMCollapseError: a row of zeros, which has no direction."""
    features = features.astype(np.float64)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not length.all():
        raise MMCollapseError(f"{int((length == 0).sum())} of {len(features)} features are all zeros: no direction")
    return features / length


def frechet(real: np.ndarray, fake: np.ndarray, least: int = 10) -> float:
    """Frechet distance of two feature sets (Heusel et al. 2017):

        |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

    Range 0 and up, lower is better. Biased upwards at small n: refused below `least` samples a dimension (less than
    10 is for measuring that bias). Costs O(n d^2 + d^3), in float64. The matrices are
    symmetric, so with S1 = R R' the last trace is the sum of the roots of the eigenvalues of R' S2 R: equal to
    clean-fid's, by a general square root of a matrix, to 1e-6, and several times faster."""
    _check(real, fake)
    n, d = min(len(real), len(fake)), real.shape[1]
    if n < max(2, least * d):
        raise MMCollapseError(f"Frechet distance of {n} samples in {d} dimensions: needs at least {max(2, least * d)}")
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    s1, s2 = np.atleast_2d(np.cov(real.T)), np.atleast_2d(np.cov(fake.T))
    try:
        root = np.linalg.cholesky(s1)
    except np.linalg.LinAlgError:  # a feature that never changes
        values, vectors = np.linalg.eigh(s1)
        root = vectors * np.sqrt(values.clip(min=0))
    cross = np.sqrt(np.linalg.eigvalsh(root.T @ s2 @ root).clip(min=0)).sum()
    apart = np.square(real.mean(0) - fake.mean(0)).sum()
    return float(max(apart + np.trace(s1) + np.trace(s2) - 2 * cross, 0.0))


def kid(real: np.ndarray, fake: np.ndarray, subsets: int = 50, standardise: bool = True, device="cpu") -> float:
    """Kernel inception distance (Binkowski et al. 2018): squared MMD with the cubic polynomial kernel, unbiased, the
    mean over `subsets` random subsets of up to 1,000 (one where that is all there is). Around 0 for equal
    distributions (it can be slightly negative), lower is better. Features are standardised by the real set's mean and
    standard deviation, for the kernel is not scale-free and the judge's features are not Inception's; not where
    `standardise` is off: then it is the KID of Inception features that others report. Equal to clean-fid's of the same
    features after `numpy.random.seed(0)`, up to its rounding, and computed on a GPU where there is one. The zero holds
    for independent sets: where real and made pictures answer to the same prompts, as in this project's tables, equal
    distributions come out below 0 (-.012 at 100 prompts with 10 pictures each), so compare it with real against real,
    not with 0."""
    _check(real, fake)
    m, d = min(len(real), len(fake), 1000), real.shape[1]
    if m < 2:
        raise MMCollapseError(f"KID of {len(real)} real and {len(fake)} made pictures: needs at least 2 of each")
    if len(real) == len(fake) == m:
        subsets = 1  # a subset would be the whole, every time
    centre, scale = real.mean(0), real.std(0)
    scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, 1.0)  # a feature that never changes stays as it is
    if not standardise:
        centre, scale = 0.0, 1.0
    real, fake = (torch.from_numpy(np.ascontiguousarray((v - centre) / scale)).to(device) for v in (real, fake))

    def kernel(a, b):
        inner = (a @ b.T).div_(d).add_(1)
        return inner * inner * inner  # a power takes several times as long

    draw, total = np.random.RandomState(0), 0.0
    for _ in range(subsets):  # drawn in clean-fid's order
        x, y = (v[torch.from_numpy(draw.choice(len(v), m, replace=False)).to(device)] for v in (fake, real))
        for alike in (kernel(x, x), kernel(y, y)):
            total += (alike.sum(dtype=torch.float64) - alike.trace()) / (m * (m - 1))
        total -= 2 * kernel(x, y).mean(dtype=torch.float64)
    return float(total / subsets)


def support(real: np.ndarray, fake: np.ndarray, k: int = 5, device="cpu") -> dict[str, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020). With balls
    around each sample that reach to its k-th nearest neighbour in its own set:

        precision   share of made pictures inside a ball of a real one           0-1
        recall      share of real pictures inside a ball of a made one           0-1
        density     real balls that hold a made picture, mean over those, / k    0 and up, 1 for equal distributions
        coverage    share of real balls that hold a made picture                 0-1

    Higher is better; coverage of equal, independent distributions is 1 - 2^-k, .97 at k = 5. They depend on n and on
    how many pictures of one prompt there are: of equal Gaussians in 64 dimensions precision and recall fall from .84 at
    n = 64 to .73 at 1,024 (in 2 dimensions they stay at .99; density and coverage do not move). With one picture a
    prompt precision is nearly blind to noise in the judge's features (.996 of 240 scenes at a noise of 15 of 255);
    with ten, more than k, balls lie within one prompt and it is sharp (.03). So compare arms at equal prompts and
    pictures a prompt only, never profiles. Costs three n x n matrices of distances."""
    _check(real, fake)
    if k < 1:
        raise MMCollapseError(f"precision and recall by neighbour k = {k}: needs at least 1")
    if min(len(real), len(fake)) <= k:
        raise MMCollapseError(f"precision and recall of {len(real)} real and {len(fake)} made pictures: needs {k + 1}")
    real, fake = (torch.from_numpy(v.astype(np.float64, order="C")).to(device) for v in (real, fake))
    # a sample is the nearest of itself
    reach = [distances(v, v).topk(k + 1, largest=False).values[:, k] for v in (real, fake)]
    apart = distances(real, fake)
    inside = apart < reach[0][:, None]
    found = {
        "precision": inside.any(0).double().mean(),
        "recall": (apart < reach[1]).any(1).double().mean(),
        "density": inside.sum(0).double().mean() / k,
        "coverage": inside.any(1).double().mean(),
    }
    return {name: float(value) for name, value in found.items()}


def distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances (n, m) of rows (n, d) and (m, d)."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_(min=0)


def vendi(features: np.ndarray) -> float:
    """Vendi score (Friedman and Dieng 2023): exp of the entropy of the eigenvalues of K / n, K the cosine similarities.
    The effective number of different samples, 1 to min(n, d); falls when variety is lost, grows with n (compare at
    equal n)."""
    _check(features)
    if len(features) < 2:
        raise MMCollapseError(f"Vendi score of {len(features)} pictures: needs at least 2")
    unit = unit_length(features)
    smaller = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T  # both have the same eigenvalues above 0
    p = np.linalg.eigvalsh(smaller / len(unit))
    p = p[p > 1e-12]
    return float(np.exp(-(p * np.log(p)).sum()))


def embedding_variance(features: np.ndarray) -> float:
    """Mean over dimensions of the unbiased variance over samples (a table's `variance`). Range 0 and up; falls when
    variety is lost."""
    _check(features)
    if len(features) < 2:
        raise MMCollapseError(f"variance of {len(features)} embeddings: needs at least 2")
    return float(features.astype(np.float64).var(0, ddof=1).mean())


def split_variance(features: np.ndarray, noises: int) -> tuple[float, float]:
    """(within, between): the embedding variance over the pictures of one prompt, averaged over prompts, and that of the
    prompts' true means (variance of the sample means less within/noises; one-way random-effects decomposition, floored
    at 0). Pictures come prompt by prompt, `noises` >= 2 of each."""
    _check(features)
    if noises < 2 or len(features) % noises or len(features) < 2 * noises:
        raise MMCollapseError(f"{len(features)} pictures of {noises} a prompt: needs 2 prompts and 2 pictures of each")
    groups = features.astype(np.float64).reshape(-1, noises, features.shape[1])
    within = groups.var(1, ddof=1).mean()
    between = groups.mean(1).var(0, ddof=1).mean() - within / noises
    return float(within), float(max(between, 0.0))


def spectrum(images: np.ndarray, device="cpu") -> np.ndarray:
    """Radial power spectrum (size // 2,): for each whole radius 1.. of spatial frequency (cycles a picture), log10 of
    the power of the grey picture (mean of the channels, 0-1, Hann window, mean removed), averaged over the ring and
    then over pictures. Needs no network, so it sees what judges may be blind to: noise lifts its end, blur lowers it.
    """
    check_images(images)
    height, width = images.shape[1:3]
    if min(height, width) < 4:  # the window is 0 at the edges
        raise MMCollapseError(f"spectrum of pictures {images.shape}: needs 4 pixels a side")
    window = torch.from_numpy(np.outer(np.hanning(height), np.hanning(width))).to(device)
    radius = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width).round().astype(int)
    radius = torch.from_numpy(radius.ravel()).to(device)  # of each frequency
    most = min(height, width) // 2
    inside = torch.bincount(radius)[1 : most + 1]
    total = torch.zeros(most, dtype=torch.float64, device=device)
    rows = max(1, min(256, 2**24 // (height * width)))  # at once: transforms of photos are large
    for start in range(0, len(images), rows):
        grey = torch.from_numpy(np.ascontiguousarray(images[start : start + rows])).to(device)
        grey = grey.sum(3).double() / (3 * 255)
        power = torch.fft.fft2((grey - grey.mean((1, 2), keepdim=True)) * window).abs().square().flatten(1)
        rings = power.new_zeros(len(power), int(radius.max()) + 1).index_add_(1, radius, power)
        total += (rings[:, 1 : most + 1] / inside + 1e-10).log10().sum(0)
    return total.cpu().numpy() / len(images)


def spectrum_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Root mean square difference of two radial power spectra (see `spectrum`), in powers of ten. 0 and up, lower is
    better; a set against another of its kind is above 0 by chance, less so as n grows."""
    real, fake = np.asarray(real), np.asarray(fake)
    if real.shape != fake.shape or real.ndim != 1 or not len(real) or not np.isfinite([real, fake]).all():
        raise MMCollapseError(f"spectra {real.shape} and {fake.shape}: need two of one length, without NaN")
    return float(np.sqrt(np.square(real - fake).mean()))
