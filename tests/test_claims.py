"""Claims: what they conclude from tables whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

import synthetic
from mmcollapse import claims, stats
from mmcollapse.claims import CLAIMS, COLUMNS, EVERY, SECONDARY, conclude, in_words, say, secondary, secondary_in_words
from mmcollapse.errors import MMCollapseError

FIVE = synthetic.table(seeds=range(5), generations=4)


def verdicts(table, **options):
    frame = conclude(table, **options)
    return frame[frame.contrast == EVERY].set_index("claim").verdict.to_dict()


def scaled(table, factor, metric, arm, measurement="sampled", modality="text"):
    """The table with a metric of an arm multiplied by `factor`, from generation 1 on."""
    table = table.copy()
    where = (table.metric == metric) & (table.arm == arm) & (table.modality == modality) & (table.generation > 0)
    where &= table.measurement == measurement
    assert where.any()
    table.loc[where, "value"] *= factor
    return table


def test_every_claim_and_contrast_has_its_row():
    frame = conclude(FIVE)
    assert list(frame.columns) == COLUMNS
    assert frame.claim.unique().tolist() == ["C1", "C2a", "C2b", "C3", "C3-generator", "Q1"] == [c.id for c in CLAIMS]
    assert len(frame) == sum(len(c.contrasts) + 1 for c in CLAIMS)
    assert (frame.late == "generations 3-4 of 4").all() and (frame.seeds == 5).all()


def test_an_effect_is_the_paired_difference_of_logs():
    def late(arm, seed, generations=(3, 4)):
        rows = FIVE[(FIVE.arm == arm) & (FIVE.seed == seed) & (FIVE.metric == "nuisance_ratio")]
        rows = rows[(rows.measurement == "guidance 1") & rows.generation.isin(generations)]
        return math.log(rows.value.mean())

    rows = conclude(FIVE).set_index(["claim", "contrast"])
    paired = [late("gen0", s) - late("recursive", s) for s in range(5)]
    own = [late("recursive", s, (0,)) - late("recursive", s) for s in range(5)]
    assert rows.effect["C1", "gen0 - recursive"] == pytest.approx(np.mean(paired))
    assert rows.effect["C1", "generation 0 - late, recursive"] == pytest.approx(np.mean(own))
    assert rows.agree["C1", "gen0 - recursive"] == 5 and rows.p["C1", "gen0 - recursive"] == 2 / 32


def test_planted_effects_are_found_and_their_opposite_refused():
    assert verdicts(FIVE)["C1"] == "reproduced"
    flat = FIVE.copy()
    flat.loc[(flat.metric == "nuisance_ratio") & (flat.arm != "world"), "value"] = 0.9
    assert verdicts(flat)["C1"] == "contradicted"
    # collapse, but no more than in both controls, is none
    same = FIVE.copy()
    like = same[(same.metric == "nuisance_ratio") & (same.arm == "recursive")].set_index(
        ["seed", "generation", "measurement"]
    )
    for arm in ("real", "gen0"):
        where = (same.metric == "nuisance_ratio") & (same.arm == arm)
        keys = pd.MultiIndex.from_frame(same.loc[where, ["seed", "generation", "measurement"]])
        same.loc[where, "value"] = like.value.reindex(keys).to_numpy()
    assert verdicts(same)["C1"] == "contradicted"


def test_caption_variance_that_grows_stays_or_falls():
    for factor, c2a, c2b in ((1.5, "reproduced", "reproduced"), (1.0, "reproduced", "contradicted")):
        even = FIVE.copy()
        where = (
            (even.metric == "caption_variance") & (even.measurement == "sampled") & even.arm.isin(synthetic.GENERATORS)
        )
        even.loc[where, "value"] = 1.8
        found = verdicts(scaled(even, factor, "caption_variance", "recursive"))
        assert (found["C2a"], found["C2b"]) == (c2a, c2b)
        assert found["Q1"] == ("reproduced" if factor == 1 else "contradicted")
    found = verdicts(scaled(FIVE, 0.5, "caption_variance", "recursive"))
    assert (found["C2a"], found["C2b"]) == ("contradicted", "contradicted")


def test_alignment_up_means_a_smaller_distance():
    table = scaled(FIVE, 0.5, "P", "recursive", "greedy")
    rows = conclude(table).set_index(["claim", "contrast"])
    assert rows.effect["C3", "alignment up: P, gen0 - recursive"] > 0
    assert verdicts(table)["C3"] == "reproduced" and verdicts(FIVE)["C3"] == "contradicted"
    assert rows.scale["C3", "quality down: all right, gen0 - recursive"] == "logit"
    assert rows.S["C3", "quality down: all right, gen0 - recursive"] > 0.03 / 0.25


def test_one_seed_decides_nothing():
    one = conclude(FIVE[FIVE.seed.isin([0, -1])])
    assert one.verdict.eq("no verdict: 1 seed, 5 needed").all()
    assert one.low.isna().all() and one.effect.notna().sum() == sum(len(c.contrasts) for c in CLAIMS)
    words = in_words(one)
    assert words.startswith("**One seed decides nothing.**")
    assert not {"reproduced", "contradicted", "inconclusive"} & set(words.replace("*", " ").split())
    four = conclude(FIVE[FIVE.seed != 4])
    assert four.verdict.eq("no verdict: 4 seeds, 5 needed").all()
    assert "Nothing is decided" in in_words(four)


def test_order_of_rows_does_not_matter():
    pd.testing.assert_frame_equal(conclude(FIVE), conclude(FIVE.sample(frac=1, random_state=3)))


def test_duplicates_and_missing_arms_are_named():
    with pytest.raises(MMCollapseError, match=r"2 duplicate row.*arm .*, seed \d"):
        conclude(pd.concat([FIVE, FIVE.iloc[[5, 9]]]))
    with pytest.raises(MMCollapseError, match=r"frozen-drift \(text, for Q1\), gen0 \(image, for C1\), gen0 \(text"):
        conclude(FIVE[~FIVE.arm.isin(["gen0", "frozen-drift"])])
    with pytest.raises(MMCollapseError, match=r"no bleu4 .*greedy.* of arm gen0"):
        conclude(FIVE[FIVE.metric != "bleu4"])
    only = [c for c in CLAIMS if c.id == "C1"]
    assert conclude(FIVE[FIVE.modality == "image"], only).claim.unique().tolist() == ["C1"]


def test_metrics_without_truth_are_missing_with_their_reason():
    frame = conclude(synthetic.table(seeds=range(5), generations=2, truth=False)).set_index(["claim", "contrast"])
    c1 = frame.verdict["C1", EVERY]
    assert c1.startswith("no verdict: nuisance_ratio is missing") and "world photos has no known truth" in c1
    assert frame.seeds["C1", EVERY] == 0 and math.isnan(frame.effect["C1", "gen0 - recursive"])
    assert frame.verdict["C3", EVERY].startswith("no verdict: all_right is missing")
    assert not frame.verdict["C2a", EVERY].startswith("no verdict")
    assert "no known truth" in in_words(frame.reset_index())


def test_a_chain_that_ended_early_is_named_and_not_left_out():
    cut = FIVE[~((FIVE.arm == "recursive") & (FIVE.seed == 2) & (FIVE.generation == 4))]
    found = verdicts(cut)["C1"]
    assert found == "no verdict: nuisance_ratio is missing in 1 chain(s), the first recursive seed 2 generation 4"
    assert verdicts(FIVE, generations=6)["C1"].startswith("no verdict: nuisance_ratio is missing in 10 chain(s)")
    collapsed = FIVE.copy()
    where = (FIVE.arm == "recursive") & (FIVE.seed == 1) & (FIVE.generation == 3) & (FIVE.metric == "nuisance_ratio")
    collapsed.loc[where, "value"] = math.nan
    assert "too little could be read" in verdicts(collapsed)["C1"]


def test_seeds_that_only_one_side_has_are_left_out():
    fewer = FIVE[~((FIVE.arm == "gen0") & (FIVE.seed == 4))]
    rows = conclude(fewer).set_index(["claim", "contrast"])
    assert rows.seeds["C1", "gen0 - recursive"] == 4 and rows.seeds["C1", "real - recursive"] == 5
    assert rows.verdict["C1", EVERY] == "no verdict: 4 seeds, 5 needed"


def test_words_are_computed_from_the_numbers():
    frame = conclude(FIVE)
    words = in_words(frame)
    row = frame[(frame.claim == "C1") & (frame.contrast == "gen0 - recursive")].iloc[0]
    assert f"{row.effect:+.3g} (x {math.exp(row.effect):.2f}) | {row.low:+.3g} to {row.high:+.3g}" in words
    assert "generations 3-4 of 4" in words
    for claim, verdict in verdicts(FIVE).items():
        assert any(line.startswith(f"- **{claim}** (") and f"**{verdict}**" in line for line in words.splitlines())
    other = in_words(conclude(scaled(FIVE, 0.5, "nuisance_ratio", "recursive", "guidance 1", "image")))
    assert other != words


def test_a_run_of_some_arms_is_told_what_they_can_answer():
    some = FIVE[~FIVE.arm.str.contains("drift|frozen")]
    text = say(some)
    assert "**C1**" in text and "Not judged, for lack of arms or metrics: Q1" in text
    assert "No claim is judged" in say(FIVE[FIVE.arm == "real"])
    assert say(FIVE) == in_words(conclude(FIVE))


# ---- p of the t test, corrected within a claim


def curves(metrics, seeds=5, generations=4, modality="image", measurement="guidance 1", n=1000):
    """A table of {(arm, metric, space): values (seeds, generations + 1)}."""
    rows = []
    for (arm, metric, space), values in metrics.items():
        for seed, g in np.ndindex(seeds, generations + 1):
            rows.append((arm, seed, g, metric, space, values[seed, g]))
    table = pd.DataFrame(rows, columns=["arm", "seed", "generation", "metric", "space", "value"])
    table = table.assign(experiment="e", modality=modality, measurement=measurement, subset="test", n=n, hash="")
    return table.assign(missing=np.where(table.value.isna(), "no reason", ""))


C1 = [c for c in CLAIMS if c.id == "C1"]


def nuisance(chains):
    """A table for C1 of chains (3 arms, seeds, generations + 1)."""
    arms = {(arm, "nuisance_ratio", "oracle"): chains[i] for i, arm in enumerate(("gen0", "real", "recursive"))}
    return curves(arms, *np.subtract(chains.shape[1:], (0, 1)))


def test_p_of_the_t_test_and_holm_over_the_contrasts_of_a_claim():
    frame = conclude(FIVE)
    for _, rows in frame.groupby("claim"):
        parts = rows[rows.contrast != EVERY]
        np.testing.assert_allclose(parts.p_holm, stats.holm(parts.p_t))
        assert rows.p_t[rows.contrast == EVERY].isna().all()
    chains = np.exp(np.random.default_rng(0).normal(0, 0.1, (3, 6, 5)))
    rows = conclude(nuisance(chains), C1).set_index("contrast")
    late = np.log(chains[:, :, 3:].mean(-1))
    expected = scipy_stats.ttest_rel(late[0], late[2]).pvalue
    assert rows.p_t["gen0 - recursive"] == pytest.approx(expected)
    words = in_words(rows.reset_index()[COLUMNS], C1)
    assert f"| {rows.p.iloc[0]:.2g} | {rows.p_holm.iloc[0]:.2g} | {rows.verdict.iloc[0].split(':')[0]} |" in words
    assert all(line.count("|") == 11 for line in words.splitlines() if line.startswith("|"))


def test_seeds_that_are_all_the_same_have_no_p_of_a_t_test():
    rows = conclude(FIVE).set_index(["claim", "contrast"])
    frozen = rows.loc["Q1", "late - generation 0, frozen, drifting"]
    assert math.isnan(frozen.p_t) and math.isnan(frozen.p_holm) and frozen.low == frozen.high
    other = rows.loc["Q1", "recursive - gen0, matched decoding"]
    assert other.p_holm == other.p_t


def test_only_the_space_of_the_endpoint_counts():
    chains = np.exp(np.random.default_rng(1).normal(0, 0.1, (3, 5, 5)))
    table = nuisance(chains)
    both = pd.concat([table, table.assign(space="another", value=99.0)])
    pd.testing.assert_frame_equal(conclude(both, C1), conclude(table, C1))
    table.loc[7, ["value", "missing"]] = [math.nan, "the oracle is away"]
    found = conclude(table.assign(generation=table.generation.replace({2: 4, 4: 2})), C1).verdict.iloc[-1]
    assert found.endswith("gen0 seed 1 generation 4 (the oracle is away)")
    with pytest.raises(MMCollapseError, match="no nuisance_ratio"):
        conclude(table.assign(space="another"), C1)


# ---- no effect


def null_studies(count, seeds, spread, quiet=1.0):
    """(count, 3 arms, seeds, 11): chains that leave their common generation 0 by AR(1) noise alone. spread: sd of the
    paired difference of two late means, in S; quiet: factor on the noise of the two controls."""
    out = np.zeros((count, 3, seeds, 11))
    rng = np.random.default_rng(seeds)
    for g in range(1, 11):
        out[..., g] = 0.8 * out[..., g - 1] + 0.6 * rng.standard_normal(out.shape[:-1])
    out[:, :2] *= quiet
    late = out[..., 8:].mean(-1)
    return np.exp(out * spread * 0.10 / (late[:, 0] - late[:, 2]).std())


def reproduced(chains):
    """(count, 3): whether each contrast of C1 is, all studies at once."""
    late, start = np.log(chains[..., 8:].mean(-1)), np.log(chains[:, 2, :, 0])
    d = np.stack([late[:, 0] - late[:, 2], late[:, 1] - late[:, 2], start - late[:, 2]], 1)
    return stats._reproduced(d.mean(-1), *stats._t_ends(d), 0.10, "above")


def test_all_at_once_is_what_conclude_does():
    chains = null_studies(30, 5, 2.0)
    chains[::2, 2, :, 1:] *= 0.8  # some have an effect
    found = reproduced(chains)
    assert 0.1 < found.mean() < 0.9
    for study, parts in zip(chains, found, strict=True):
        frame = conclude(nuisance(study), C1)
        assert (frame.verdict == "reproduced").tolist() == [*parts, parts.all()]


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 8.0])
def test_no_effect_is_hardly_ever_reproduced(seeds, spread):
    found = reproduced(null_studies(20_000, seeds, spread))
    assert found.all(1).mean() < 0.004  # the claim: three contrasts, which share the recursive arm
    assert (found.mean(0) < 0.029).all()  # one contrast: at most one side of a 95% interval, 0.025
    if spread <= 1:
        assert (found.mean(0) < 0.01).all()  # S holds them down


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_worst_case_of_no_effect_is_one_side_of_the_interval(seeds):
    # controls without noise: three contrasts are then one and the same, and a conjunction protects no longer
    assert reproduced(null_studies(20_000, seeds, 1.0, quiet=0.1)).all(1).mean() < 0.01
    assert 0.01 < reproduced(null_studies(20_000, seeds, 2.0, quiet=0.1)).all(1).mean() < 0.029


# ---- secondary metrics


def two_arms(seeds=5):
    """recursive and gen0, late = 3 and 4: metrics with an effect on each scale, and some without."""
    rng = np.random.default_rng(7)

    def made(level, factor=1.0, spread=0.02):
        values = level * np.exp(spread * rng.standard_normal((2, seeds, 5)))
        return {"gen0": values[0], "recursive": values[1] * factor}

    metrics = {
        ("vendi", "judge"): made(20.0, 0.5),
        ("vendi", "clip"): made(30.0),
        ("recall", "judge"): made(0.8, 0.5),
        ("kid", "judge"): made(0.1, 1.5),
        ("density", "judge"): made(0.9),
        ("nuisance_ratio", "oracle"): made(0.9, 0.5),  # an endpoint of C1
        ("sampling_floor", ""): {arm: np.full((seeds, 5), 0.9) for arm in ("gen0", "recursive")},
    }
    return curves({(arm, *name): v for name, arms in metrics.items() for arm, v in arms.items()}, seeds)


def test_secondary_metrics_are_late_paired_differences_on_their_scale():
    table = two_arms()
    frame = secondary(table)
    assert list(frame.columns) == SECONDARY and frame.q.is_monotonic_increasing and (frame.seeds == 5).all()
    rows = frame.set_index(["metric", "space"])
    scales = {("vendi", "judge"): "log", ("vendi", "clip"): "log", ("recall", "judge"): "logit"}
    scales |= {("kid", "judge"): "identity", ("density", "judge"): "identity"}
    assert rows.scale.to_dict() == scales
    late = table[table.generation >= 3].groupby(["metric", "space", "arm", "seed"]).value.mean()
    for (metric, space), scale in scales.items():
        change = {"log": np.log, "logit": lambda r: np.log(r / (1 - r)), "identity": lambda v: v}[scale]
        d = change(late[metric, space, "recursive"]) - change(late[metric, space, "gen0"])
        row = rows.loc[(metric, space)]
        assert row.effect == pytest.approx(d.mean()) and (row.low, row.high) == pytest.approx(stats.t_interval(d))
        assert row.p_t == pytest.approx(scipy_stats.ttest_1samp(d, 0).pvalue)
    np.testing.assert_allclose(frame.q, stats.benjamini_hochberg(frame.p_t))
    assert set(frame.metric[frame.q < 0.05]) == {"vendi", "recall", "kid"} and rows.q["vendi", "clip"] > 0.05
    pd.testing.assert_frame_equal(frame, secondary(table.sample(frac=1, random_state=2)))


def test_secondary_metrics_leave_out_what_is_missing():
    table = two_arms()

    def without(where, value=math.nan):
        return table.assign(value=table.value.mask(where, value))

    kid = table.metric == "kid"
    assert "kid" not in set(secondary(without(kid)).metric)
    last = kid & (table.arm == "gen0") & (table.seed == 2) & (table.generation == 4)
    assert "kid" not in set(secondary(without(last)).metric) and "kid" not in set(secondary(table[~last]).metric)
    early = secondary(without(kid & (table.generation == 1)))
    pd.testing.assert_frame_equal(early, secondary(table))  # it is not late
    gone = (table.metric == "vendi") & (table.space == "judge") & (table.seed == 0) & (table.arm == "recursive")
    frame = secondary(without(gone, 0.0)).set_index(["metric", "space"])
    assert math.isnan(frame.q["vendi", "judge"]) and frame.q.notna().sum() == 4  # no log of 0, and it is not counted
    assert "1 more could not be tested" in secondary_in_words(frame.reset_index())
    assert secondary(table[table.metric.isin(["nuisance_ratio", "sampling_floor"])]).empty
    for few in (table[table.seed == 0], table[table.arm == "recursive"], table[table.subset == "train"]):
        assert secondary(few, 4).empty and list(secondary(few, 4).columns) == SECONDARY
    assert secondary(table[table.seed < 2]).seeds.eq(2).all()
    with pytest.raises(MMCollapseError, match="duplicate"):
        secondary(pd.concat([table, table.iloc[[3]]]))


def test_secondary_metrics_without_effect_are_found_rarely():
    rng, found = np.random.default_rng(11), []
    for _ in range(40):
        names = [(arm, f"density {k}", "judge") for arm in ("gen0", "recursive") for k in range(6)]
        found.append(secondary(curves({name: rng.normal(1, 0.1, (5, 2)) for name in names}, 5, 1)).q.min() < 0.05)
    assert np.mean(found) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 40)


def test_secondary_metrics_in_words():
    frame = secondary(two_arms())
    words = secondary_in_words(frame)
    assert words.startswith("Of 5 secondary metrics, 3 differ between the arms recursive and gen0 at q < .05")
    assert "mean of generations 3-4 of 4" in words
    row = frame[(frame.metric == "vendi") & (frame.space == "judge")].iloc[0]
    cells = f"| vendi, log | image, guidance 1, judge | {row.effect:+.3g} (x {math.exp(row.effect):.2f}) |"
    assert cells in words and words.count("\n|") == 5
    assert not {"reproduced", "contradicted", "inconclusive"} & set(words.split())
    none = secondary_in_words(frame[frame.q > 0.05])
    assert none.startswith("Of 2 secondary metrics, 0 differ") and "|" not in none
    assert "takes two seeds" in secondary_in_words(frame.iloc[:0])


def test_a_variance_of_0_stops_the_verdict_and_nothing_else():
    frame = synthetic.table(seeds=range(5), generations=10)
    gone = (frame.arm == "recursive") & (frame.metric == "caption_variance") & (frame.generation >= 8)
    frame.loc[gone, "value"] = 0.0
    whole = conclude(frame).set_index(["claim", "contrast"]).verdict
    assert "log of 0" in whole["C2a", "recursive - gen0"] and whole["C2a", "every part"].startswith("no verdict")
    assert whole["C1", "every part"] == "reproduced"


def test_a_run_in_other_spaces_is_told_what_it_can_answer():
    frame = synthetic.table(seeds=(0, 1), generations=2)
    frame.loc[frame.space == "judge", "space"] = "clip"
    assert [c.id for c in claims.answerable(frame)] == ["C1"]
    assert "Not judged, for lack of arms or metrics: C2a, C2b, C3, C3-generator, Q1" in claims.say(frame)


def test_unequal_n_is_not_compared():
    frame = synthetic.table(seeds=range(5), generations=10)
    frame.loc[(frame.arm == "real") & (frame.metric == "caption_variance"), "n"] = 100
    whole = conclude(frame).set_index(["claim", "contrast"]).verdict
    assert whole["C2a", "recursive - real"] == "no verdict: caption_variance was measured at unequal n (100 and 2000)"
    assert not whole["C2a", "recursive - gen0"].startswith("no verdict")
