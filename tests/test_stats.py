"""Statistics: closed forms, enumeration, and the edges of the verdict rule."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mmcollapse import stats
from mmcollapse.errors import MMCollapseError
from mmcollapse.stats import Effect


def chain(values, seed=0, n=100, first=0):
    """Rows of one chain, generation `first` and on."""
    generations = range(first, first + len(values))
    return pd.DataFrame({"seed": seed, "generation": list(generations), "value": values, "n": n})


def scalars(by_seed, n=1000):
    return pd.DataFrame({"value": by_seed, "n": n, "missing": [[] for _ in by_seed]}, index=range(len(by_seed)))


# ---- one scalar a chain


def test_late_is_the_last_third_but_at_most_three():
    assert stats.late_generations(10) == [8, 9, 10]
    expected = {
        1: [1],
        2: [2],
        3: [3],
        4: [3, 4],
        6: [5, 6],
        7: [5, 6, 7],
        8: [6, 7, 8],
        9: [7, 8, 9],
        20: [18, 19, 20],
    }
    assert {planned: stats.late_generations(planned) for planned in expected} == expected


def test_late_auc_and_start_are_means_over_their_generations():
    rows = chain([100.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    values = {s: stats.chain_scalars(rows, s, 10).value[0] for s in ("late", "auc", "start")}
    assert values == {"late": 9.0, "auc": 5.5, "start": 100.0}


def test_a_missing_generation_is_never_filled_in():
    rows = chain([0.9, 0.8, math.nan, 0.6])
    late, auc = (stats.chain_scalars(rows, s, 4) for s in ("late", "auc"))
    assert math.isnan(late.value[0]) and late.missing[0] == [4]
    assert math.isnan(auc.value[0]) and auc.missing[0] == [2, 4]
    assert stats.chain_scalars(rows, "late", 3).value[0] == 0.6


def test_scalars_do_not_depend_on_the_order_of_rows_and_keep_the_smallest_n():
    rows = pd.concat([chain([1.0, 0.7, 0.1], seed=1), chain([1.0, 0.6, 0.3], seed=0, n=50)])
    rows.loc[(rows.seed == 0) & (rows.generation == 2), "n"] = 40
    one, other = stats.chain_scalars(rows, "auc", 2), stats.chain_scalars(rows[::-1], "auc", 2)
    pd.testing.assert_frame_equal(one, other)
    assert one.index.tolist() == [0, 1] and one.n.tolist() == [40, 100]


def test_bad_chains_are_named():
    with pytest.raises(MMCollapseError, match="seed 3 generation 1"):
        stats.chain_scalars(pd.concat([chain([1.0, 2.0], seed=3), chain([5.0], seed=3, first=1)]), "late", 1)
    with pytest.raises(MMCollapseError, match="middle"):
        stats.chain_scalars(chain([1.0, 2.0]), "middle", 1)
    with pytest.raises(MMCollapseError, match="0 planned"):
        stats.late_generations(0)


# ---- scales


def test_scales_and_their_inverses():
    values, n = np.array([0.2, 0.5, 0.9]), np.full(3, 1000)
    for scale in stats.SCALES:
        np.testing.assert_allclose(stats.from_scale(stats.on_scale(values, n, scale), scale), values)
    np.testing.assert_allclose(stats.on_scale([math.e, 1.0], [1, 1], "log"), [1, 0])
    np.testing.assert_allclose(stats.on_scale([0.75], [100], "logit"), math.log(3))


def test_rates_of_0_and_1_are_clipped_half_a_sample_from_the_end():
    low, high = stats.on_scale([0.0, 1.0], [50, 50], "logit")
    assert low == pytest.approx(math.log(0.01 / 0.99)) and high == pytest.approx(-low)


def test_values_that_do_not_fit_their_scale_are_refused():
    with pytest.raises(MMCollapseError, match="log of 0"):
        stats.on_scale([1.0, 0.0], [1, 1], "log")
    with pytest.raises(MMCollapseError, match="outside 0-1"):
        stats.on_scale([1.5], [10], "logit")
    with pytest.raises(MMCollapseError, match="no samples"):
        stats.on_scale([0.5], [0], "logit")
    with pytest.raises(MMCollapseError, match="sqrt"):
        stats.on_scale([0.5], [10], "sqrt")


def test_smallest_effect_of_a_rate_moves_it_by_as_much():
    for rate in (0.1, 0.5, 0.8):
        s = stats.smallest_effect(0.03, "logit", rate, 1000)
        around = stats.on_scale([rate], [1000], "logit")
        up, down = stats.from_scale(around + s / 2, "logit"), stats.from_scale(around - s / 2, "logit")
        assert up - down == pytest.approx(0.03, rel=0.02)
    assert stats.smallest_effect(0.1, "log", 3.0, 10) == 0.1
    assert math.isfinite(stats.smallest_effect(0.03, "logit", 0.0, 100))


# ---- paired differences


def test_differences_are_paired_by_seed():
    more, less = scalars([2.0, 8.0, 3.0]), scalars([1.0, 2.0, 3.0]).loc[[2, 0, 1]]
    assert stats.paired_differences(more, less, "identity").tolist() == [1.0, 6.0, 0.0]
    np.testing.assert_allclose(stats.paired_differences(more, less, "log"), np.log([2, 4, 1]))
    only = stats.paired_differences(more.loc[[1]], less, "identity")
    assert only.index.tolist() == [1] and only.tolist() == [6.0]
    with pytest.raises(MMCollapseError, match="no seed in common"):
        stats.paired_differences(more.loc[[0]], less.loc[[1, 2]], "identity")


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_t_interval_is_scipys(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    test = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(stats.t_interval(values), (test.low, test.high))


def test_t_interval_covers_as_promised():
    samples = np.random.default_rng(0).normal(1.0, 2.0, (4000, 5))
    covered = np.mean([low <= 1.0 <= high for low, high in map(stats.t_interval, samples)])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_value_has_no_interval_and_equal_values_a_point():
    assert all(math.isnan(end) for end in stats.t_interval([1.0]))
    assert stats.t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("d", [[1.0], [0.3, -0.1], [0.2, 0.5, 0.1], [1, 1, -1, 2.5], [0.1, 0.2, 0.3, 0.4, -1.0, 0.0]])
def test_sign_flip_p_is_that_of_enumeration(d):
    means = [abs(np.dot(signs, d)) for signs in itertools.product([1, -1], repeat=len(d))]
    assert stats.sign_flip_p(d) == pytest.approx(np.mean([m >= abs(sum(d)) - 1e-12 for m in means]))


def test_sign_flip_p_has_a_floor_and_limits():
    assert stats.sign_flip_p([0.4]) == 1.0
    assert stats.sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5]) == 2 / 32
    assert stats.sign_flip_p([0.1] * 10) == 2 / 1024  # equal sums that differ in rounding
    assert stats.sign_flip_p([0.0] * 4) == 1.0
    for wrong in ([], [0.1] * 21):
        with pytest.raises(MMCollapseError, match="1 to 20"):
            stats.sign_flip_p(wrong)


def test_effect_counts_the_seeds_that_agree_by_rule():
    d = [0.3, -0.05, 0.05, -0.2, 0.0]
    assert [stats.effect_of(d, 0.1, rule).agree for rule in ("above", "not below", "within")] == [2, 4, 3]
    effect = stats.effect_of(d, 0.1)
    assert effect.effect == pytest.approx(0.02) and effect.seeds == 5
    assert (effect.low, effect.high) == stats.t_interval(d) and effect.p == stats.sign_flip_p(d)
    with pytest.raises(MMCollapseError, match="finite"):
        stats.effect_of([0.1, math.nan], 0.1)


# ---- verdicts


def verdict(effect, low, high, rule="above", seeds=5):
    return stats.verdict(Effect(effect, low, high, seeds, 0, 1.0), 0.10, rule)


@pytest.mark.parametrize(
    ("effect", "low", "high", "expected"),
    [
        (0.30, 0.10, 0.50, "reproduced"),
        (0.10, 1e-9, 0.20, "reproduced"),  # at least S, interval just above 0
        (0.10, 0.00, 0.20, "inconclusive"),  # interval touches 0
        (0.09, 0.01, 0.17, "inconclusive"),  # estimate below S, interval above 0 and beyond S
        (0.05, 0.01, 0.09, "inconclusive: present but small"),
        (0.05, 0.01, 0.10, "inconclusive"),  # upper end not below S
        (0.00, -0.09, 0.09, "contradicted"),  # absent
        (-0.3, -0.4, -0.2, "contradicted"),  # reversed
        (0.04, 0.00, 0.08, "contradicted"),  # lower end at most 0
        (0.00, -0.2, 0.10, "inconclusive"),  # upper end not below S
        (0.50, -0.2, 1.20, "inconclusive"),
    ],
)
def test_the_rule_at_its_edges(effect, low, high, expected):
    assert verdict(effect, low, high) == expected


@pytest.mark.parametrize(
    ("effect", "low", "high", "expected"),
    [
        (0.30, 0.20, 0.40, "reproduced"),  # growth is no collapse
        (0.00, -0.09, 0.09, "reproduced"),
        (-0.08, -0.0999, -0.06, "reproduced"),  # declines, but by less than S
        (0.00, -0.10, 0.10, "inconclusive"),  # touches -S
        (-0.11, -0.2, -0.02, "contradicted"),
        (-0.10, -0.2, 0.00, "inconclusive"),  # the decline may be none
        (-0.09, -0.16, -0.02, "inconclusive"),  # a decline by less than S is what the claim allows
    ],
)
def test_non_inferiority_at_its_edges(effect, low, high, expected):
    assert verdict(effect, low, high, "not below") == expected


@pytest.mark.parametrize(
    ("effect", "low", "high", "expected"),
    [
        (0.00, -0.09, 0.09, "reproduced"),
        (0.05, 0.01, 0.09, "reproduced"),
        (0.05, 0.00, 0.10, "inconclusive"),
        (-0.05, -0.10, 0.00, "inconclusive"),
        (0.20, 0.10, 0.30, "contradicted"),
        (-0.20, -0.3, -0.1, "contradicted"),
        (0.09, 0.01, 0.17, "inconclusive"),
    ],
)
def test_equivalence_at_its_edges(effect, low, high, expected):
    assert verdict(effect, low, high, "within") == expected


def test_below_five_seeds_there_is_no_verdict():
    for rule in stats.RULES:
        assert verdict(0.5, 0.4, 0.6, rule, seeds=4) == "no verdict: 4 seeds, 5 needed"
        assert verdict(0.5, math.nan, math.nan, rule, seeds=1) == "no verdict: 1 seed, 5 needed"
        assert not verdict(0.5, 0.4, 0.6, rule, seeds=5).startswith("no verdict")
    with pytest.raises(MMCollapseError, match="beside"):
        verdict(0.5, 0.4, 0.6, "beside")


def test_a_conjunction_needs_every_part():
    yes, no, unsure, none = (
        "reproduced",
        "contradicted",
        "inconclusive: present but small",
        "no verdict: 1 seed, 5 needed",
    )
    assert stats.conjunction([yes, yes]) == "reproduced"
    assert stats.conjunction([yes, no, unsure]) == "contradicted"
    assert stats.conjunction([yes, unsure]) == "inconclusive"
    assert stats.conjunction([no, none]) == none
