"""Statistics: one scalar a chain, paired differences by seed, and the rule that makes a verdict of them.

Generations of a chain are never independent observations, so every chain is first reduced to one number; seeds are the
only replicates. Intervals are conditional on the base models that all chains start from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mmcollapse.errors import MMCollapseError

SCALES = ("identity", "log", "logit")
RULES = ("above", "not below", "within")
SEEDS_NEEDED = 5
DRAWS = 10_000  # of permutations, where they are too many to enumerate, and of bootstrap resamples


# ---- one scalar a chain


def late_generations(planned: int) -> list[int]:
    """The generations whose mean is *late*: the last third of the planned ones, rounded up, but at most three: 8-10 of
    10, 5-6 of 6, 3 of 3."""
    if planned < 1:
        raise MMCollapseError(f"{planned} planned generations: late needs at least 1")
    return list(range(planned - min(3, math.ceil(planned / 3)) + 1, planned + 1))


def summary_generations(summary: str, planned: int) -> list[int]:
    """The generations that a summary averages: "late", "auc" (1 to the last planned) or "start" (0)."""
    if summary == "start":
        return [0]
    if summary == "auc" and planned >= 1:
        return list(range(1, planned + 1))
    if summary == "late":
        return late_generations(planned)
    raise MMCollapseError(
        f"summary {summary!r} of {planned} generations: known are late and auc (of 1 or more) and start"
    )


def chain_scalars(rows: pd.DataFrame, summary: str, planned: int) -> pd.DataFrame:
    """One number a chain: the mean of `value` over the generations of `summary`, in the metric's own unit.

    rows: one arm, one metric, with columns seed, generation, value, n. Returns a frame indexed by seed (ascending) with
    value (NaN if a generation is missing or was not computed: nothing is filled in), n (the smallest) and missing (the
    generations that are). Two rows for one seed and generation: MMCollapseError.
    """
    wanted = summary_generations(summary, planned)
    values = _curves(rows, wanted)
    counts = rows[rows.generation.isin(wanted)].groupby("seed")["n"].min()
    return pd.DataFrame(
        {
            "value": values.mean(axis=1, skipna=False),
            "n": counts.reindex(values.index),
            "missing": [[g for g in wanted if math.isnan(values.at[seed, g])] for seed in values.index],
        }
    )


def _curves(rows: pd.DataFrame, wanted: list[int]) -> pd.DataFrame:
    """The values of the generations `wanted` (columns) of each seed (index, ascending); NaN where there is none."""
    twice = rows[rows.duplicated(["seed", "generation"])]
    if len(twice):
        named = ", ".join(f"seed {s} generation {g}" for s, g in zip(twice.seed, twice.generation, strict=True))
        raise MMCollapseError(f"more than one value for {named}: rows must be unique")
    return rows.pivot(index="seed", columns="generation", values="value").reindex(columns=wanted).sort_index()


def half_life(rows: pd.DataFrame, planned: int) -> pd.Series:
    """Generations until half of what a chain had at generation 0 is lost, by seed: the first g, between generations by
    linear interpolation, at which value(g) = value(0) / 2.

    rows as for chain_scalars; a measure in its own unit whose loss is a fall (a rate, a variance; not a distance).
    Range above 0 to `planned`; inf for a chain that keeps more than half to the planned end (censored: its half-life
    is longer than `planned`, nothing is extrapolated). NaN if a generation is missing before the crossing, or if the
    start is not above 0 and so has no half. Two rows for one seed and generation: MMCollapseError."""
    curves = _curves(rows, list(range(planned + 1)))
    return pd.Series([_crossing(curve) for curve in curves.to_numpy(float)], index=curves.index, dtype=float)


def _crossing(curve: np.ndarray) -> float:
    half = curve[0] / 2
    if not half > 0:
        return math.nan
    for g in range(1, len(curve)):
        if math.isnan(curve[g]):
            return math.nan
        if curve[g] <= half:
            return g - 1 + float((curve[g - 1] - half) / (curve[g - 1] - curve[g]))
    return math.inf


def median_half_life(lives: Iterable[float]) -> float:
    """Median over seeds, which needs no value of the censored chains while they are fewer than half: inf (longer than
    planned) if they are half or more; NaN if the half-life of any seed is not known, or there is none."""
    lives = np.asarray(list(lives), float)
    return float(np.median(lives)) if len(lives) else math.nan


# ---- scales


def on_scale(values: np.ndarray, n: np.ndarray, scale: str) -> np.ndarray:
    """Values where differences are compared: "identity", "log" (variances, ratios, distances) or "logit" (rates).

    A rate of n samples is first clipped to 1/(2n) .. 1 - 1/(2n), half a sample from the ends. NaN stays NaN. A log of
    something not above 0, a rate outside 0-1, an unknown scale: MMCollapseError."""
    values, n = np.asarray(values, float), np.asarray(n, float)
    if scale == "identity":
        return values
    if scale == "log":
        if (values <= 0).any():
            raise MMCollapseError(f"log of {values[values <= 0][0]:g}: values on the log scale must be above 0")
        return np.log(values)
    if scale == "logit":
        if ((values < 0) | (values > 1)).any():
            raise MMCollapseError("a rate outside 0-1 has no logit")
        if (n[~np.isnan(values)] < 1).any():
            raise MMCollapseError("a rate of no samples has no logit")
        clipped = np.clip(values, 0.5 / n, 1 - 0.5 / n)
        return np.log(clipped / (1 - clipped))
    raise MMCollapseError(f"scale {scale!r}: known are {', '.join(SCALES)}")


def from_scale(values: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of on_scale, but for its clip."""
    values = np.asarray(values, float)
    return {"identity": lambda v: v, "log": np.exp, "logit": lambda v: 1 / (1 + np.exp(-v))}[scale](values)


def smallest_effect(smallest: float, scale: str, mean: float, n: float) -> float:
    """S as used on `scale`. For rates S is given as a difference of rates, and becomes the log-odds between r, the mean
    rate of the two sides (clipped by n as in on_scale), and the rate that lies S nearer to one half: 1.1
    from .985 to .955 (S / (r (1 - r)), its limit for small S, would be 2.0). On the other scales S is in their unit."""
    if scale != "logit":
        return smallest
    rate = min(max(mean, 0.5 / n), 1 - 0.5 / n)
    other = rate - smallest if rate >= 0.5 else rate + smallest
    return abs(math.log(rate / (1 - rate)) - math.log(other / (1 - other)))


# ---- paired differences


def paired_differences(more: pd.DataFrame, less: pd.DataFrame, scale: str) -> pd.Series:
    """more - less on `scale`, for the seeds that both have (ascending); each as chain_scalars returns them."""
    seeds = sorted(set(more.index) & set(less.index))
    if not seeds:
        raise MMCollapseError(f"no seed in common: {sorted(more.index)} and {sorted(less.index)} cannot be paired")
    sides = [on_scale(side.loc[seeds, "value"], side.loc[seeds, "n"], scale) for side in (more, less)]
    return pd.Series(sides[0] - sides[1], index=seeds)


def t_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student t interval of the mean of independent values; (nan, nan) for fewer than two."""
    values = np.asarray(list(values), float)
    if len(values) < 2:
        return math.nan, math.nan
    low, high = _t_ends(values, confidence)
    return float(low), float(high)


def _t_ends(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The ends of t_interval over the last axis."""
    n = values.shape[-1]
    half = scipy_stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(axis=-1, ddof=1) / math.sqrt(n)
    return values.mean(axis=-1) - half, values.mean(axis=-1) + half


def t_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test of "no difference": t = mean / (sd / sqrt(n)) against n - 1 degrees of freedom.
    Below .05 exactly where t_interval excludes 0.

    1 if all differences are 0; NaN for fewer than two, for one that is NaN, and where all are equal and not 0: seeds
    without any spread (a frozen model) are no replicates, and t has no value there."""
    d = np.asarray(differences, float)
    if len(d) < 2 or np.isnan(d).any():
        return math.nan
    if not d.any():
        return 1.0
    return math.nan if _no_replicates(d) else float(scipy_stats.ttest_1samp(d, 0.0).pvalue)


def _no_replicates(d: np.ndarray) -> bool:
    """Whether several differences are all equal and not 0; equal ones may differ in rounding."""
    return len(d) > 1 and bool(d.any()) and float(np.ptp(d)) <= 1e-12 * float(np.abs(d).max())


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of "no difference": the share of all 2^n choices of signs whose |mean| is at least the observed
    one. Never below 2 / 2^n: 1 for one seed, 0.0625 for five. NaN where seeds are no replicates (see t_p). More than 20
    differences: MMCollapseError."""
    d = np.asarray(differences, float)
    if not 1 <= len(d) <= 20:
        raise MMCollapseError(f"exact sign flips of {len(d)} differences: 1 to 20 are possible")
    if _no_replicates(d):
        return math.nan
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(sums[0])  # all signs as they are
    return float((np.abs(sums) >= observed - 1e-12 * np.abs(d).sum()).mean())  # equal sums may differ in rounding


# ---- several p at once


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's (1979) adjusted p, in the order given: the i-th smallest of m becomes max over j <= i of (m - j + 1) p_j,
    at most 1. Rejecting those below .05 holds the chance of any false rejection to .05, however they depend on one
    another. NaN stay NaN and do not count towards m. A p outside 0-1: MMCollapseError."""

    def adjust(known):
        order = np.argsort(known, kind="stable")
        steps = np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1))
        out = np.empty_like(known)
        out[order] = np.minimum(steps, 1.0)
        return out

    return _adjusted(p, adjust)


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Benjamini and Hochberg's (1995) adjusted p, often called q, in the order given (by scipy): the i-th smallest of m
    becomes the min over j >= i of m p_j / j. Rejecting those below .05 holds the expected share of false ones among
    the rejected to .05 if the p are independent or positively dependent. NaN and errors as in holm."""
    return _adjusted(p, scipy_stats.false_discovery_control)


def _adjusted(p: Sequence[float], adjust: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    out = np.array(p, float)
    known = ~np.isnan(out)
    if (wrong := out[(out < 0) | (out > 1)]).size:
        raise MMCollapseError(f"p {wrong[0]:g}: a p lies in 0-1")
    if known.any():
        out[known] = adjust(out[known])
    return out


# ---- effects and verdicts


@dataclass(frozen=True)
class Effect:
    """A contrast over seeds. effect: mean difference; low, high: its 95% t interval (NaN for one seed); seeds: their
    number; agree: how many of them lie on the side that the rule asks for; p: exact sign-flip p of no difference."""

    effect: float
    low: float
    high: float
    seeds: int
    agree: int
    p: float


def effect_of(differences: Sequence[float], smallest: float, rule: str = "above") -> Effect:
    """The effect of paired differences (finite, one a seed). A seed agrees if its difference is above 0 (rule "above"),
    above -smallest ("not below") or between -smallest and smallest ("within")."""
    d = np.asarray(differences, float)
    if len(d) == 0 or not np.isfinite(d).all():
        raise MMCollapseError(f"differences must be finite and at least one: {d.tolist()}")
    low, high = t_interval(d)
    sides = {"above": d > 0, "not below": d > -smallest, "within": np.abs(d) < smallest}
    return Effect(float(d.mean()), low, high, len(d), int(sides[rule].sum()), sign_flip_p(d))


def verdict(e: Effect, smallest: float, rule: str = "above") -> str:
    """What an effect, oriented so that the claim predicts > 0, says about the claim; S is `smallest`.

    "above":     reproduced if the interval lies above 0 and the estimate is at least S; contradicted (absent, or
                 reversed) if its upper end is below S and its lower end at most 0.
    "not below": non-inferiority. reproduced if the interval lies above -S; contradicted if it lies below 0 and the
                 estimate is at most -S (the decline that the claim denies is there).
    "within":    equivalence. reproduced if the interval lies between -S and S; contradicted if it excludes 0 and the
                 estimate is at least S away from it.
    Else inconclusive. With fewer than SEEDS_NEEDED seeds: no verdict.
    """
    if rule not in RULES:
        raise MMCollapseError(f"rule {rule!r}: known are {', '.join(RULES)}")
    if e.seeds < SEEDS_NEEDED:
        return f"no verdict: {e.seeds} seed{'s' * (e.seeds != 1)}, {SEEDS_NEEDED} needed"
    if _reproduced(e.effect, e.low, e.high, smallest, rule):
        return "reproduced"
    if rule == "above":
        no = e.high < smallest and e.low <= 0
        if 0 < e.low and e.high < smallest:
            return "inconclusive: present but small"
    elif rule == "not below":
        no = e.high < 0 and e.effect <= -smallest
    else:
        no = (e.low > 0 or e.high < 0) and abs(e.effect) >= smallest
    return "contradicted" if no else "inconclusive"


def _reproduced(effect, low, high, smallest: float, rule: str):
    """Whether numbers, or arrays of them, are reproduced by `rule`: one place for verdict and power."""
    if rule == "above":
        return (low > 0) & (effect >= smallest)
    if rule == "not below":
        return low > -smallest
    return (low > -smallest) & (high < smallest)


def conjunction(verdicts: Sequence[str]) -> str:
    """The verdict on a claim that needs every part: none while a part has none; then contradicted if one part is,
    reproduced if all parts are, else inconclusive."""
    without = [v for v in verdicts if v.startswith("no verdict")]
    if without:
        return without[0]
    if "contradicted" in verdicts:
        return "contradicted"
    return "reproduced" if all(v == "reproduced" for v in verdicts) else "inconclusive"


def power(effect: float, sd: float, smallest: float, seeds: int, rule: str = "above", draws: int = 20_000) -> float:
    """Share of simulated studies whose verdict on one contrast is "reproduced": differences of `seeds` pairs are drawn
    from a normal of mean `effect` and standard deviation `sd` (of the paired difference, between seeds, on the
    contrast's scale) and judged as `verdict` does, with S = `smallest`.

    At effect 0 under the rule "above" it is the false-positive rate. 0 for fewer than SEEDS_NEEDED seeds, which have no
    verdict. The draws are the same on every call, so curves over `effect` are smooth; the standard error is at most
    0.5 / sqrt(draws). A negative sd or an unknown rule: MMCollapseError."""
    if rule not in RULES:
        raise MMCollapseError(f"rule {rule!r}: known are {', '.join(RULES)}")
    if not sd >= 0:
        raise MMCollapseError(f"standard deviation {sd:g}: 0 or more is possible")
    if seeds < SEEDS_NEEDED:
        return 0.0
    d = effect + sd * np.random.default_rng(0).standard_normal((draws, seeds))
    return float(_reproduced(d.mean(axis=-1), *_t_ends(d), smallest, rule).mean())


# ---- rank correlation across arms


@dataclass(frozen=True)
class RankCorrelation:
    """What rank_correlation found. rho: mean correlation, -1 to 1; low, high: its 95% interval; p: of no correlation;
    arms, generations: their numbers; left_out: bootstrap resamples that had no correlation, and are not in the
    interval; reason: why rho is NaN, else ""."""

    rho: float
    low: float
    high: float
    p: float
    arms: int
    generations: int
    left_out: int
    reason: str = ""


def rank_correlation(frame: pd.DataFrame) -> RankCorrelation:
    """Mean over generations of Spearman's correlation, across arms within a generation, of `predictor` and `outcome`.

        rho = mean_g corr(rank_a predictor[a, g], rank_a outcome[a, g]);   equal values share their mean rank

    So what both do over the generations plays no part. frame: columns arm, generation, predictor, outcome, one row for
    each arm in each generation. An arm's generations hang together, so arms are the units of both:
    p:          two-sided, the share of permutations of the arms' predictors (one and the same in every generation)
                with |rho| at least the observed; all of them up to 8 arms, else DRAWS drawn, (1 + count) / (1 + DRAWS).
    low, high:  2.5 and 97.5% of rho over DRAWS resamples of the arms with replacement. Covers .93 to .95 with 8 to 20
                normal arms; of a perfect order it is a point. A resample in which all values of a generation are equal
                has no rho: it is left out and counted in `left_out` (about 1 in 64 of 4 arms).
    Both are seeded. If all arms are equal in a generation rho has no value: NaN, with the reason. Fewer than 4 arms, a
    missing (or not finite) or a doubled cell: MMCollapseError."""
    twice = frame[frame.duplicated(["arm", "generation"])]
    if len(twice):
        raise MMCollapseError(f"more than one row for arm {twice.arm.iloc[0]} generation {twice.generation.iloc[0]}")
    sides = {}
    for name in ("predictor", "outcome"):
        values = frame.pivot(index="arm", columns="generation", values=name).sort_index().sort_index(axis=1)
        holes = [f"arm {values.index[a]} generation {values.columns[g]}" for a, g in np.argwhere(~np.isfinite(values))]
        if holes:
            raise MMCollapseError(f"no {name} in {len(holes)} cell(s), the first {holes[0]}: every arm needs every one")
        sides[name] = values
    arms, generations = sides["predictor"].shape
    if arms < 4:
        raise MMCollapseError(f"rank correlation across {arms} arms: at least 4 are needed")
    for name, values in sides.items():
        same = values.nunique() == 1
        if same.any():
            reason = f"{name} is the same in all arms in generation {same.idxmax()}"
            return RankCorrelation(math.nan, math.nan, math.nan, math.nan, arms, generations, 0, reason)
    x, y = (values.to_numpy(float) for values in sides.values())
    rho = float(_mean_spearman(x, y))
    resamples = _resampled_spearman(x, y)
    known = resamples[~np.isnan(resamples)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    left_out = len(resamples) - len(known)
    return RankCorrelation(rho, float(low), float(high), _permutation_p(x, y), arms, generations, left_out)


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks across arms, of mean 0 and length 1, of values (..., arms, generations); NaN where all are equal."""
    ranks = scipy_stats.rankdata(values, axis=-2)
    ranks -= ranks.mean(axis=-2, keepdims=True)
    length = np.sqrt(np.square(ranks).sum(axis=-2, keepdims=True))
    return ranks / np.where(length > 0, length, np.nan)


def _mean_spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (_unit_ranks(x) * _unit_ranks(y)).sum(axis=-2).mean(axis=-1)


def _permutation_p(x: np.ndarray, y: np.ndarray) -> float:
    # rho of permuted arms is a sum over one entry a row of the table of what each predictor gives with each outcome
    together, arms = _unit_ranks(x) @ _unit_ranks(y).T / x.shape[1], len(x)
    exact = arms <= 8
    if exact:
        orders = np.array(list(itertools.permutations(range(arms))))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(arms), (DRAWS, 1)), axis=1)
    rhos = together[orders, np.arange(arms)].sum(axis=1)
    count = (np.abs(rhos) >= abs(np.trace(together)) - 1e-12).sum()  # equal sums may differ in rounding
    return float(count / len(orders) if exact else (1 + count) / (1 + DRAWS))


def _resampled_spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    which = np.random.default_rng(0).integers(len(x), size=(DRAWS, len(x)))
    return _mean_spearman(x[which], y[which])


# ---- a curve over a knob


def log_quadratic(frame: pd.DataFrame) -> pd.DataFrame:
    """How an outcome depends on a positive number x: least squares of value = a + b ln x ("linear") and of value =
    a + b ln x + c (ln x)^2 ("quadratic"), for each seed by itself.

    frame: columns seed, x (above 0), value; a seed that lacks a finite value for one of the x is left out. Returns a
    frame indexed by (fit, term), terms "intercept", "slope" and "curvature": estimate (mean over seeds), low, high (95%
    t interval over seeds; NaN for one) and seeds. Without a seed, or with fewer numbers x than terms, NaN. An x not
    above 0, or two values of a seed at one x: MMCollapseError."""
    if (frame.x <= 0).any():
        raise MMCollapseError(f"x = {frame.x[frame.x <= 0].iloc[0]:g} has no logarithm")
    if (twice := frame.duplicated(["seed", "x"])).any():
        raise MMCollapseError(f"more than one value for seed {frame.seed[twice].iloc[0]}")
    wide = frame.pivot(index="x", columns="seed", values="value").sort_index()
    wide = wide.loc[:, np.isfinite(wide).all()]
    logs, terms, out = np.log(wide.index.to_numpy(float)), ("intercept", "slope", "curvature"), {}
    for fit, count in (("linear", 2), ("quadratic", 3)):
        known = wide.shape[1] > 0 and len(logs) >= count
        found = np.linalg.lstsq(np.vander(logs, count, increasing=True), wide.to_numpy(float))[0] if known else None
        for k, term in enumerate(terms[:count]):
            low, high = t_interval(found[k]) if known else (math.nan, math.nan)
            out[fit, term] = (float(found[k].mean()) if known else math.nan, low, high, wide.shape[1])
    index = pd.MultiIndex.from_tuples(out, names=["fit", "term"])
    return pd.DataFrame(list(out.values()), index, columns=["estimate", "low", "high", "seeds"])
