"""Statistics: one scalar a chain, paired differences by seed, and the rule that makes a verdict of them.

Generations of a chain are never independent observations, so every chain is first reduced to one number; seeds are the
only replicates. Intervals are conditional on the base models that all chains start from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mmcollapse.errors import MMCollapseError

SCALES = ("identity", "log", "logit")
RULES = ("above", "not below", "within")
SEEDS_NEEDED = 5


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
    twice = rows[rows.duplicated(["seed", "generation"])]
    if len(twice):
        named = ", ".join(f"seed {s} generation {g}" for s, g in zip(twice.seed, twice.generation, strict=True))
        raise MMCollapseError(f"more than one value for {named}: rows must be unique")
    wanted = summary_generations(summary, planned)
    values = rows.pivot(index="seed", columns="generation", values="value").reindex(columns=wanted).sort_index()
    counts = rows[rows.generation.isin(wanted)].groupby("seed")["n"].min()
    return pd.DataFrame(
        {
            "value": values.mean(axis=1, skipna=False),
            "n": counts.reindex(values.index),
            "missing": [[g for g in wanted if math.isnan(values.at[seed, g])] for seed in values.index],
        }
    )


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
    """S as used on `scale`. For rates S is given as a difference of rates, and becomes S / (r (1 - r)) log-odds at r,
    the mean rate of the two sides, clipped by n as in on_scale; on the other scales S is in their unit already."""
    if scale != "logit":
        return smallest
    rate = min(max(mean, 0.5 / n), 1 - 0.5 / n)
    return smallest / (rate * (1 - rate))


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
    half = scipy_stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of "no difference": the share of all 2^n choices of signs whose |mean| is at least the observed
    one. Never below 2 / 2^n: 1 for one seed, 0.0625 for five. More than 20 differences: MMCollapseError."""
    d = np.asarray(differences, float)
    if not 1 <= len(d) <= 20:
        raise MMCollapseError(f"exact sign flips of {len(d)} differences: 1 to 20 are possible")
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(sums[0])  # all signs as they are
    return float((np.abs(sums) >= observed - 1e-12 * np.abs(d).sum()).mean())  # equal sums may differ in rounding


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


# ---- verdicts


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
    if rule == "above":
        yes, no = e.low > 0 and e.effect >= smallest, e.high < smallest and e.low <= 0
        if 0 < e.low and e.high < smallest:
            return "inconclusive: present but small"
    elif rule == "not below":
        yes, no = e.low > -smallest, e.high < 0 and e.effect <= -smallest
    else:
        yes, no = -smallest < e.low and e.high < smallest, (e.low > 0 or e.high < 0) and abs(e.effect) >= smallest
    return "reproduced" if yes else "contradicted" if no else "inconclusive"


def conjunction(verdicts: Sequence[str]) -> str:
    """The verdict on a claim that needs every part: none while a part has none; then contradicted if one part is,
    reproduced if all parts are, else inconclusive."""
    without = [v for v in verdicts if v.startswith("no verdict")]
    if without:
        return without[0]
    if "contradicted" in verdicts:
        return "contradicted"
    return "reproduced" if all(v == "reproduced" for v in verdicts) else "inconclusive"
