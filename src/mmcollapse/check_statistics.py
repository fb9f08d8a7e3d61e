"""What several sets of pictures differ by, against what chance alone would make of them.

Every generation is compared with generation 0 at equal n. What two sets of one origin differ by at this size is found
by dealing the pictures of both (with their captions) anew, DRAWS times, into two sets of n: exact for any metric, where
halves of generation 0 would be sets of n / 2. A metric counts as changed where it moved towards collapse by more than
its band, that is max-T (Westfall and Young 1993): the largest of all metrics' differences, each by its standard
deviation, exceeds it in at most alpha / F of the deals; F is the number of generations compared, and one for the trend
(Bonferroni). So if nothing changes, something is found in at most `alpha` of all checks.

The trend is the slope over generations, against sums of independent deals with the slope's weights; it is approximate,
for a deal stands for an independent set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from mmcollapse.check_subsets import METRICS, OF_CAPTIONS, OF_PAIRS, OF_REAL, Rows, Subsets, pool

DRAWS = 999  # deals; the lowest p is 1 / (1 + DRAWS)
SPLITS = 20  # of real pictures into two sets: the level that they would have
POWER = 0.84  # standard deviations beyond the band: of such changes 80% are found


def compare(
    sets: Sequence[Rows],
    real: Rows | None,
    wanted: Sequence[str],
    alpha: float = 0.05,
    standardise: bool = True,
    progress: bool = False,
) -> dict[str, dict]:
    """`metrics` of a Check. sets: of equal size n, generation 0 first; real: up to 2 n, or None; wanted: names of
    METRICS; standardise: see images.kid."""
    n, later = len(sets[0].images), len(sets) - 1
    families = later + (later > 1)
    against = None if real is None else real.images[:n]
    signs = np.array([1 if METRICS[metric].rises else -1 for metric in wanted])
    apart = np.arange(2 * n) % 2 == 0  # the rows of generation 0 in a pool
    deals = np.random.default_rng(0).permuted(np.tile(apart, (DRAWS, 1)), axis=1)

    def towards(measure: Subsets, masks):
        """(b, metrics) what a subset's complement has more than the subset, towards collapse; and both values."""
        first, second = (np.stack([v[m] for m in wanted], 1) for v in (measure(masks), measure(~masks)))
        return signs * (second - first), first, second

    values, changes, chance = [], [], []
    for generation in tqdm(sets[1:], "comparing generations", disable=not progress):
        measure = Subsets(pool([sets[0], generation]), against, wanted, standardise)
        change, first, second = towards(measure, apart[None])
        values = values or [first[0]]
        values.append(second[0])
        changes.append(change[0])
        chance.append(towards(measure, deals)[0])
    out = {
        metric: {
            "dimension": METRICS[metric].dimension,
            "rises": METRICS[metric].rises,
            "values": [value[k] for value in values],
            "real": None,
            "trend": None,
            "generations": [],
        }
        for k, metric in enumerate(wanted)
    }
    for change, by_chance in zip(changes, chance, strict=True):
        p, limit, spread = max_t(change, by_chance, alpha / families)
        for k, metric in enumerate(wanted):
            start, adjusted = values[0][k], min(1.0, families * p[k])
            share = change[k] * signs[k] / start if METRICS[metric].share and start else None
            cell = {"change": change[k] * signs[k], "share": share, "band": limit * spread[k]}
            cell |= {"visible": (limit + POWER) * spread[k], "p": adjusted, "outside": bool(adjusted <= alpha)}
            out[metric]["generations"].append(cell)
    if later > 1:
        weights = np.arange(later + 1) - later / 2
        weights /= np.square(weights).sum()
        # A deal's difference is that of two independent sets: one of them varies by its root of a half.
        sources = [chance[max(0, g - 1)] for g in range(later + 1)]
        shifted = [np.roll(s, g * DRAWS // (later + 1), axis=0) for g, s in enumerate(sources)]
        by_chance = sum(w * s for w, s in zip(weights, shifted, strict=True)) / math.sqrt(2)
        slope = weights @ np.array(values)
        p, _, _ = max_t(signs * slope, by_chance, alpha / families)
        for k, metric in enumerate(wanted):
            out[metric]["trend"] = {"slope": slope[k], "p": min(1.0, families * p[k])}
    if real is not None:
        for metric, level in _real_levels(real, n, wanted, standardise).items():
            out[metric]["real"] = level
    return out


def max_t(change: np.ndarray, by_chance: np.ndarray, level: float) -> tuple[np.ndarray, float, np.ndarray]:
    """(p, limit, spread) of changes (m,) among those by chance (b, m), whose mean is 0: p of each, adjusted for all m
    (single-step max-T); spread: standard deviation by chance; a change is found at `level` if it exceeds limit x
    spread."""
    spread = np.sqrt(np.square(by_chance).mean(0))
    safe = np.where(spread > 1e-12, spread, np.inf)  # a metric that never changes says nothing
    largest = np.sort((by_chance / safe).max(1))
    beyond = len(largest) - np.searchsorted(largest, change / safe - 1e-9)
    allowed = math.floor(level * (len(largest) + 1) + 1e-9) - 1
    return (1 + beyond) / (1 + len(largest)), float(largest[-1 - allowed]), spread


def _real_levels(real: Rows, n: int, wanted: Sequence[str], standardise: bool) -> dict[str, dict]:
    """{metric: {level, low, high}} of n real pictures, measured against n others where it takes others; of captions if
    the real have any. With fewer than 2 n a level alone, of what needs no others; with fewer than n nothing."""
    known = [m for m in wanted if real.captions is not None or m not in (*OF_CAPTIONS, *OF_PAIRS)]
    count = len(real.images)
    if count < n:
        return {}
    if count < 2 * n:
        known = [m for m in known if m not in OF_REAL]
        once = Subsets(real.take(slice(n)), None, known)(np.ones((1, n), bool))
        return {m: {"level": v[0], "low": None, "high": None} for m, v in once.items()}
    random, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = random.permutation(2 * n)
        other = real.images[np.sort(order[n:])]
        measure = Subsets(real.take(np.sort(order[:n])), other, known, standardise)
        found.append([v[0] for v in measure(np.ones((1, n), bool)).values()])
    mean = np.mean(found, 0)
    # half of a finite set varies by the root of a half of what a new set would
    half = 1.96 * math.sqrt(2) * np.std(found, 0, ddof=1)
    return {m: {"level": mean[k], "low": mean[k] - half[k], "high": mean[k] + half[k]} for k, m in enumerate(known)}
