"""Claims: what they conclude from tables whose truth is known."""

import json
import math
import subprocess

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

import claims_data
import synthetic
from mmcollapse import claims, stats
from mmcollapse import verdicts as verdict_page
from mmcollapse.claims import COLUMNS, EVERY, SECONDARY, conclude, in_words, say, secondary
from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import load_settings
from mmcollapse.table import write_table

CLAIMS = claims.of_tables({"01_variance": None})
PRIMARY = {"C1": 3, "C2a": 2, "C2b": 2, "C3": 3, "C3-generator": 2, "Q1": 2}
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
    parts = frame[frame.contrast != EVERY]
    assert len(frame) == sum(PRIMARY.values()) + len(CLAIMS) + 1  # C1 has a secondary contrast with these arms
    assert parts[parts.part == "primary"].claim.value_counts().to_dict() == PRIMARY
    assert parts[parts.part == "secondary"].contrast.tolist() == ["marginal: gen0 - recursive"]
    assert (frame.over == "generations 3-4 of 4").all() and (frame.seeds == 5).all()
    assert (parts["at"] == "late").all() and (frame.experiment == "01_variance").all()


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
    assert one.low.isna().all() and one.effect.notna().sum() == sum(PRIMARY.values()) + 1
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
    table = table.assign(
        experiment="01_variance",
        model={"image": "generator", "text": "captioner"}[modality],
        claims="",
        modality=modality,
        measurement=measurement,
        subset="test",
        n=n,
        hash="",
    )
    return table.assign(missing=np.where(table.value.isna(), "no reason", ""))


C1 = [c for c in CLAIMS if c.id == "C1"]


def nuisance(chains):
    """A table for C1 of chains (3 arms, seeds, generations + 1)."""
    arms = {(arm, "nuisance_ratio", "oracle"): chains[i] for i, arm in enumerate(("gen0", "real", "recursive"))}
    return curves(arms, *np.subtract(chains.shape[1:], (0, 1)))


def test_p_of_the_t_test_and_holm_over_the_contrasts_of_a_claim():
    frame = conclude(FIVE)
    for _, rows in frame.groupby("claim"):
        parts = rows[(rows.contrast != EVERY) & (rows.part == "primary")]
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


# ---- claims of the other experiments


@pytest.fixture(scope="module")
def others():
    return claims_data.tables()


def contrasts(frame, claim):
    return frame[(frame.claim == claim) & (frame.contrast != EVERY)].set_index("contrast")


def of(name):
    return [claim for claim in claims.all_claims() if claim.id == name]


def auc(table, arm, seed, modality="image", model=None, metric="all_right"):
    rows = table[(table.arm == arm) & (table.seed == seed) & (table.modality == modality) & (table.metric == metric)]
    rows = rows[(rows.model == (model or claims_data.MODELS[modality][0])) & (rows.generation > 0)]
    assert len(rows) == 4
    rate = rows.value.mean()
    return math.log(rate / (1 - rate))


def test_a_difference_of_differences_is_each_side_net_of_its_own_control(others):
    table = others["02_decoding_budget"]
    frame = contrasts(conclude(others, of("C4")), "C4")
    row = frame.loc["steps 50 - 2, each net of its gen0"]
    arms = {"steps-50": 1, "steps-50-gen0": -1, "steps-2": -1, "steps-2-gen0": 1}
    d = [sum(w * auc(table, arm, seed) for arm, w in arms.items()) for seed in range(5)]
    assert row.effect == pytest.approx(np.mean(d)) and (row.low, row.high) == pytest.approx(stats.t_interval(d))
    assert row["at"] == "auc" and row.over == "generations 1-4 of 4"
    # a knob that moves the control as much as the chain is no budget
    same = table.copy()
    for high, low in (("steps-50", "steps-2"), ("steps-50-gen0", "steps-2-gen0")):
        keys = ["seed", "generation", "metric", "model"]
        like = table[table.arm == low].set_index(keys).value
        where = same.arm == high
        same.loc[where, "value"] = like.reindex(pd.MultiIndex.from_frame(same.loc[where, keys])).to_numpy()
    assert contrasts(conclude({"02_decoding_budget": same}, of("C4")), "C4").effect[row.name] == pytest.approx(0)


def test_ends_of_a_knob_are_those_of_the_table_and_what_is_beside_needs_none(others):
    frame = contrasts(conclude(others, of("C4")), "C4")
    # two values of guidance have no middle, one temperature no ends, and nobody varied the length
    assert frame.part.to_dict() == {
        "steps 50 - 2, each net of its gen0": "primary",
        "beams 5 - 1, each net of its gen0": "primary",
        "guidance 10 - 1, each net of its gen0": "exploratory",
    }
    assert frame.verdict["guidance 10 - 1, each net of its gen0"] == "exploratory"
    assert math.isnan(frame.p_holm["guidance 10 - 1, each net of its gen0"])
    table = others["02_decoding_budget"]
    one = {"02_decoding_budget": table[~table.arm.str.startswith("steps-2")]}
    assert claims.lacking(one, of("C4")[0]) == "1 arm steps-<number>, 2 needed"
    with pytest.raises(MMCollapseError, match="1 arm steps-<number>, 2 needed"):
        conclude(one, of("C4"))


def test_populations_are_compared_model_by_model(others):
    table = others["03_diversity"]
    frame = contrasts(conclude(others, of("C6")), "C6")
    row, names = frame.loc["pool of 3 - alone"], claims_data.MODELS["image"]
    d = [np.mean([auc(table, "pool-3", s, model=m) - auc(table, "alone", s, model=m) for m in names]) for s in range(5)]
    assert row.effect == pytest.approx(np.mean(d)) and row.models == ", ".join(names)
    # a model that is good alone must not make up for another: each is compared with itself
    shifted = table.copy()
    shifted.loc[(shifted.model == "generator-b") & (shifted.metric == "all_right"), "value"] -= 0.2
    assert contrasts(conclude({"03_diversity": shifted}, of("C6")), "C6").verdict["pool of 3 - alone"] == "reproduced"


def test_clones_are_averaged_and_compared_with_the_model_they_are_clones_of(others):
    table = others["03_diversity"]
    row = contrasts(conclude(others, of("C6")), "C6").loc["pool of 3 - 3 clones"]
    clones = ["generator", "generator clone 2", "generator clone 3"]
    d = [auc(table, "pool-3", s) - np.mean([auc(table, "clones-3", s, model=m) for m in clones]) for s in range(5)]
    assert row.effect == pytest.approx(np.mean(d)) and row.models == "generator"
    strangers = table[~((table.arm == "clones-3") | (table.arm == "pool-3") & (table.model == "generator"))]
    strangers = pd.concat([strangers, table[table.arm == "clones-3"]])
    verdict = contrasts(conclude({"03_diversity": strangers}, of("C6")), "C6").verdict["pool of 3 - 3 clones"]
    assert verdict.startswith("no verdict: the arms pool-3, clones-3 have no model in common")


def test_rows_of_pools_sets_and_students_are_no_models_of_a_chain(others):
    table = others["03_diversity"]
    more = table[table.model == "generator"].assign(model="pool", value=0.01)
    both = {"03_diversity": pd.concat([table, more])}
    pd.testing.assert_frame_equal(conclude(both, of("C6")), conclude(others, of("C6")))
    several = others["04_relabeling"]
    twice = pd.concat([several, several[several.model == "generator"].assign(model="generator-b")])
    with pytest.raises(MMCollapseError, match=r"arm .* has several models \(generator, generator-b\)"):
        conclude({"04_relabeling": twice}, of("C7b"))


def test_planted_effects_of_the_other_experiments(others):
    found = verdicts(
        others,
        claims=[
            c
            for c in claims.all_claims()
            if not claims.lacking({**others, "01_variance": FIVE}, c) and c.experiments[0] != "01_variance"
        ],
    )
    assert {k: v for k, v in found.items() if not k.startswith("Q2")} == dict.fromkeys(
        ["C4", "C6", "C6-captioner", "C7a", "C7a-captioner", "C7b", "C7b-captioner"], "reproduced"
    )
    assert found["Q2 accumulate"] == found["Q2-captioner accumulate"] == "reproduced"
    # better than replace, but not by S, and far from real
    assert found["Q2 real-25%"] in ("inconclusive", "contradicted")
    rows = contrasts(conclude(others, of("Q2 accumulate")), "Q2 accumulate")
    assert len(rows) == 8 and rows.loc["accumulate - real: nuisance variance, late"].rule == "not below"


def test_a_notebook_judges_its_own_claims_only(others):
    told = {name: say({name: table}) for name, table in others.items()}
    assert "**C4**" in told["02_decoding_budget"] and "C6" not in told["02_decoding_budget"]
    assert "C1" not in told["03_diversity"] and "**C6-captioner**" in told["03_diversity"]
    assert "Not judged" in told["06_remedies"] and "Q2 subsample" in told["06_remedies"]
    assert "**C5**" in say(others, ["C5"]) and "C4" not in say(others, ["C5"])


def test_quality_predicts_robustness(others):
    frame = contrasts(conclude(others, of("C5")), "C5")
    assert frame.scale.eq("rank correlation").all() and (frame.effect > 0.8).all()
    assert frame.part.to_dict()["KID of pictures"] == "secondary"
    assert (frame.low < frame.effect).all() and (frame.p < 0.01).all() and (frame.seeds == 5).all()
    assert conclude(others, of("C5")).verdict.iloc[-1] == "reproduced"
    blind = {name: t.copy() for name, t in others.items()}
    for t in blind.values():
        where = (t.model == "set") & (t.metric == "fid")
        t.loc[where, "value"] = np.random.default_rng(1).normal(5, 1, where.sum())
    assert verdicts(blind, claims=of("C5"))["C5"] in ("contradicted", "inconclusive")
    few = {name: others[name] for name in ("04_relabeling", "06_remedies")}
    few = {name: t[t.arm.isin(["joint", "oracle", "real", "recursive", "accumulate"])] for name, t in few.items()}
    row = contrasts(conclude(few, of("C5")), "C5").loc["FID of pictures"]
    assert row.verdict == "no verdict: 6 arms, 12 needed" or row.verdict.endswith("arms, 12 needed")
    one = {name: t[t.seed == 0] for name, t in others.items()}
    assert verdicts(one, claims=of("C5"))["C5"] == "no verdict: 1 seed, 2 needed"
    two = {name: t[t.seed < 2] for name, t in others.items()}  # arms are the units: two seeds of students will do
    assert verdicts(two, claims=of("C5"))["C5"] == "reproduced"
    none = {name: t[t.model != "set"] for name, t in others.items()}
    assert claims.lacking(none, of("C5")[0]).startswith("no fid of training sets")


# ---- the file


TINY = """
[endpoint.e]
modality = "image"
metric = "m"
measurement = "guidance 1"
space = "oracle"
scale = "log"
S = 0.1

[[claim]]
id = "X"
text = "x"
experiment = "01_variance"
gates = ["toy"]
figure = "f"

[[claim.contrast]]
name = "a - b"
endpoint = "e"
more = ["a"]
less = [{ arm = "b", at = "start", weight = 2 }]
"""


def test_the_file_as_data(tmp_path):
    (tmp_path / "claims.toml").write_text(TINY)
    (claim,) = claims.load_claims(tmp_path / "claims.toml")
    (contrast,) = claim.contrasts
    assert contrast.more == (claims.Term("a"),) and contrast.less == (claims.Term("b", "start", 2.0),)
    assert contrast.smallest == 0.1 and contrast.rule == "above" and contrast.part == "primary"
    assert contrast.terms[1].weight == -2.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('scale = "log"', 'scale = "logarithm"', "endpoint 'e': scale 'logarithm' is unknown; known are identity, log"),
        ('space = "oracle"', "", "endpoint 'e': the key 'space' is missing"),
        ('text = "x"', 'txt = "x"', "claim 'X': unknown key 'txt'"),
        ('text = "x"', "text = 3", "claim 'X': text=3 must be a text"),
        ("S = 0.1", 'S = "much"', "endpoint 'e': S='much' must be a number"),
        ("S = 0.1", "S = true", "S=True must be a number"),
        ("S = 0.1", "S = -1", "S=-1 must be above 0"),
        ("S = 0.1", "", "neither it nor its endpoint 'e' says what S is"),
        ('endpoint = "e"', 'endpoint = "f"', "contrast 'a - b': endpoint 'f' is unknown"),
        ('endpoint = "e"', 'endpoint = "e"\nrule = "up"', "rule 'up' is unknown; known are above, not below, within"),
        ('endpoint = "e"', 'endpoint = "e"\nat = "end"', "summary at = 'end' is unknown; known are late, auc, start"),
        ('endpoint = "e"', 'endpoint = "e"\npart = "third"', "part 'third' is unknown"),
        ('gates = ["toy"]', 'gates = ["toys"]', "claim 'X': gate 'toys' is unknown"),
        ('more = ["a"]', "more = []", "both sides need a term"),
        ('more = ["a"]', "more = [3]", "a term of claim 'X', contrast 'a - b' must be a table"),
        ('at = "start"', 'when = "start"', "unknown key 'when'"),
        ("[[claim.contrast]]", "[[claim.correlation]]", "unknown key 'endpoint'; known are name, predictor"),
        ("[[claim]]", "[[claim]", "cannot be read"),
        ('modality = "image"', 'modality = "sound"', "modality 'sound' is unknown"),
        ('endpoint = "e"', 'endpoint = "e"\npart = "secondary"', "none of its contrasts is primary"),
        ('text = "x"', 'text = "x"\nrepeats = [3]', "claim 'X': repeats=[3] must be a list of texts"),
        ('text = "x"', 'text = "x"\nbases = "b"', "claim 'X': bases='b' must be a list"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, old, new, message):
    assert old in TINY
    (tmp_path / "claims.toml").write_text(TINY.replace(old, new))
    with pytest.raises(MMCollapseError, match="claims file") as error:
        claims.load_claims(tmp_path / "claims.toml")
    assert message in str(error.value)


def test_repeats_of_the_primary_contrasts(tmp_path):
    more = 'repeats = ["half"]\nbases = ["b"]\neach = ["one", "two"]\n'
    text = TINY.replace('text = "x"\n', f'text = "x"\n{more}').replace('id = "X"', 'id = "X {each}"')
    text = text.replace('more = ["a"]', 'more = ["{each}"]').replace('"a - b"', '"{each} - b"')
    (tmp_path / "claims.toml").write_text(
        text + TINY[TINY.index("[[claim.con") :].replace("a - b", "c").rstrip() + '\npart = "exploratory"\n'
    )
    one, two = claims.load_claims(tmp_path / "claims.toml")
    assert [c.name for c in two.contrasts] == ["two - b", "c", "half: two - b", "b: two - b"]
    first, _, half, base = two.contrasts
    assert half.more == (claims.Term("two-half"),) and half.less == (claims.Term("b-half", "start", 2.0),)
    assert (half.part, half.repeats, half.base) == ("secondary", "two - b", "")
    assert (base.more[0].arm, base.repeats, base.base) == ("two-b", "two - b", "b") and not first.repeats
    assert (base.endpoint, base.smallest, base.rule) == (first.endpoint, first.smallest, first.rule)


def further(table, name, factor=1.0):
    """The table with its three generators once more, as chains of another base model; *recursive* loses by another
    factor there."""
    rows = table[table.arm.isin(["recursive", "real", "gen0"]) & (table.modality == "image")]
    lost = (rows.arm == "recursive") & (rows.metric == "nuisance_ratio") & (rows.generation > 0)
    rows = rows.assign(value=rows.value.mask(lost, rows.value * factor), arm=rows.arm + f"-{name}", model=name)
    return pd.concat([table, rows])


def general(table):
    frame = conclude(table, C1)
    assert (frame.general[frame.contrast != EVERY] == "").all()
    return frame.general.iloc[-1]


def test_a_verdict_is_general_if_the_signs_agree_on_the_further_base_models():
    assert general(FIVE) == general(further(FIVE, "generator-2")) == "not tested"
    both = further(further(FIVE, "generator-2"), "generator-pixart", 0.9)
    assert general(both) == "yes"
    rows = conclude(both, C1)
    again = rows[rows.contrast.str.startswith("generator-")]
    assert len(again) == 2 * 3 and (again.part == "secondary").all() and (again.effect > 0).all()
    assert rows.verdict.iloc[-1] == "reproduced"  # which needs none of them
    against = further(further(FIVE, "generator-2"), "generator-pixart", 9.0)
    assert general(against) == "no" and conclude(against, C1).verdict.iloc[-1] == "reproduced"
    assert general(further(FIVE, "generator-2", 9.0)) == "no"  # one is enough
    assert "**reproduced** (general: also on further base models)" in in_words(rows, C1)
    assert "**reproduced** (not general: " in in_words(conclude(against, C1), C1)
    one = conclude(both[both.seed.isin([0, -1])], C1)
    assert one.general.iloc[-1] == "yes" and "general" not in in_words(one, C1)  # of no verdict nothing is said
    half = conclude(further(FIVE, "lr-half"), C1)
    assert half.contrast.str.startswith("lr-half: ").sum() == 3 and half.general.iloc[-1] == "not tested"


@pytest.mark.parametrize(
    ("rule", "effects", "found"),
    [
        ("above", (0.3, 0.01), "yes"),
        ("above", (0.3, -0.01), "no"),
        ("above", (-0.3, -0.01), "yes"),
        ("not below", (0.3, -0.05), "yes"),  # neither loses S
        ("not below", (0.3, -0.15), "no"),
        ("within", (0.05, -0.05), "yes"),
        ("within", (0.05, 0.15), "no"),
        ("above", (0.3, math.nan), "not tested"),
        ("above", (0.3, None), "not tested"),
    ],
)
def test_the_sign_is_of_what_a_rule_asks(rule, effects, found):
    first = claims.Contrast("a", None, (), (), 0.1, rule)
    again = claims.Contrast("b: a", None, (), (), 0.1, rule, "secondary", "a", "b")
    claim = claims.Claim("X", "", (first, again), ())
    named = zip(("a", "b: a"), effects, strict=True)
    assert claims.general(claim, {n: {"effect": e, "S": 0.1} for n, e in named if e is not None}) == found
    assert claims.general(claims.Claim("X", "", (first,), ()), {"a": {"effect": 1.0, "S": 0.1}}) == "not tested"


def test_a_claim_is_there_once(tmp_path):
    (tmp_path / "claims.toml").write_text(TINY + TINY[TINY.index("[[claim]]") :])
    with pytest.raises(MMCollapseError, match="claim 'X' is there twice"):
        claims.load_claims(tmp_path / "claims.toml")


def test_the_claims_are_those_of_the_design():
    every = {claim.id: claim for claim in claims.all_claims()}
    assert {"C1", "C2a", "C2b", "C3", "C4", "C5", "C6", "C7a", "C7b", "Q1", "Q2 accumulate", "Q2 real-75%"} <= set(
        every
    )
    primary = {k: [p for p in c.contrasts if p.part == "primary"] for k, c in every.items()}
    assert {p.smallest for p in primary["C1"] + primary["C2a"] + primary["Q1"]} == {0.10}
    assert [p.smallest for p in primary["C3"]] == [0.01, 0.02, 0.03]
    assert {p.smallest for k in ("C4", "C6", "C7a", "C7b") for p in primary[k]} == {0.05}
    assert {p.endpoint.scale for k in ("C4", "C6", "C7a", "C7b") for p in primary[k]} == {"logit"}
    assert {t.at for k in ("C4", "C6", "C7a", "C7b") for p in primary[k] for t in p.terms} == {"auc"}
    assert [p.rule for p in primary["C2a"]] == ["not below"] * 2 and primary["Q1"][1].rule == "within"
    assert [(p.smallest, p.arms) for p in primary["C5"]] == [(0.5, 12)] * 2
    assert {(p.smallest, p.rule) for p in primary["Q2 accumulate"]} == {
        (s, rule) for s in (0.05, 0.10) for rule in ("above", "not below")
    }
    assert all(set(claim.gates) <= set(claims.GATES) and claim.gates for claim in every.values())


def test_arms_of_the_claims_are_arms_of_the_study():
    from mmcollapse.experiments import EXPERIMENTS, arms_of
    from mmcollapse.settings import load_settings

    for claim in claims.all_claims():
        experiment = claim.experiments[0]
        assert experiment in EXPERIMENTS
        if claim.id == "C5":
            continue
        protocols = arms_of(experiment, load_settings("study", experiment))
        table = pd.DataFrame([(p.arm, m) for p in protocols for m in p.modalities], columns=["arm", "modality"])
        for part in claim.contrasts:
            contrast, why = claims.resolve(part, table)
            assert not why, (claim.id, why)
            there = set(table.arm[table.modality == part.endpoint.modality])
            missing = {t.arm for t in contrast.terms} - there
            # of the remedies two are repeated on further base models
            some = claim.id.startswith("Q2") and part.base and not claim.id.endswith((" subsample", " real-25%"))
            assert not missing or part.part == "exploratory" or some, (claim.id, missing)


# ---- frozen


def test_a_frozen_file_that_differs_is_refused_until_the_deviation_is_written_down(tmp_path, monkeypatch):
    path, frozen = tmp_path / "claims.toml", tmp_path / "claims.frozen.json"
    path.write_text(TINY)
    assert claims.freezing(frozen) is None
    record = claims.freeze(path, frozen)
    assert record["digest"] == claims._digest(path) and json.loads(frozen.read_text())["deviations"] == []
    claims.check_frozen(path, frozen)
    with pytest.raises(MMCollapseError, match="were frozen on .* nothing to do"):
        claims.freeze(path, frozen)
    path.write_text(TINY.replace("S = 0.1", "S = 0.2"))
    for refuse in (lambda: claims._all(path, frozen), lambda: claims.freeze(path, frozen)):
        with pytest.raises(MMCollapseError, match="is not what was frozen on .*deviation") as error:
            refuse()
    new = claims._digest(path)
    assert new in str(error.value)
    deviation = {"date": "2026-12-01", "what": "S is .2.", "why": "a slip", "digest": new}
    frozen.write_text(json.dumps(record | {"deviations": [deviation]}))
    assert claims._all(path, frozen)[0].contrasts[0].smallest == 0.2
    monkeypatch.setattr(claims, "FROZEN", frozen)  # rows of before the deviation are still of this study
    monkeypatch.setattr(claims, "claims_digest", lambda: new)
    assert claims.frozen_digests() == {record["digest"], new}
    path.write_text(TINY)  # the old file is no longer what holds
    with pytest.raises(MMCollapseError, match="is not what was frozen"):
        claims.check_frozen(path, frozen)
    frozen.write_text(json.dumps(record | {"deviations": [{"date": "2026-12-01", "what": "S", "digest": new}]}))
    with pytest.raises(MMCollapseError, match="damaged"):
        claims.check_frozen(path, frozen)


def test_a_run_after_freezing_refuses_other_claims(tmp_path, monkeypatch):
    path, frozen = tmp_path / "claims.toml", tmp_path / "claims.frozen.json"
    path.write_text(TINY)
    monkeypatch.setattr(claims, "FILE", path)
    monkeypatch.setattr(claims, "FROZEN", frozen)
    assert len(claims.claims_digest()) == 12 and [c.id for c in claims.all_claims()] == ["X"]
    claims.freeze()
    path.write_text(TINY + "\n# changed\n")
    with pytest.raises(MMCollapseError, match="is not what was frozen"):
        claims.claims_digest()


def test_what_git_does_not_know_is_not_frozen(tmp_path):
    def git(*args):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *args], cwd=tmp_path, check=True)

    path, frozen = tmp_path / "claims.toml", tmp_path / "claims.frozen.json"
    path.write_text(TINY)
    git("init", "-q")
    with pytest.raises(MMCollapseError, match="commit .* first"):
        claims.freeze(path, frozen)
    git("add", "claims.toml")
    git("commit", "-qm", "claims")
    assert len(claims.freeze(path, frozen)["commit"]) == 40


# ---- gates and the page


def gate_table(**passed):
    """Gates that all passed, but for those named."""
    names = {name.replace(" ", "_"): name for name in claims.GATES}
    rows = [
        {"gate": n, "measure": "m", "value": 1.0, "allowed": "a", "passed": passed.get(k, True)}
        for k, n in names.items()
    ]
    return pd.DataFrame(rows).astype({"passed": "boolean"}).assign(low=math.nan, high=math.nan, needs="")


def test_a_failed_gate_voids_what_rests_on_it():
    frame = conclude(FIVE)
    pd.testing.assert_frame_equal(claims.void(frame, gate_table()), frame)
    pd.testing.assert_frame_equal(claims.void(frame, gate_table(power=pd.NA)), frame)

    def whole(gates):
        found = claims.void(frame, gates)
        return found[found.contrast == EVERY].set_index("claim").verdict

    found = whole(gate_table(round_trip=False))
    assert found["C1"] == found["C3-generator"] == "void: gate round trip failed"
    assert found["C2a"] == "inconclusive"
    assert whole(gate_table(toy=False)).eq("void: gate toy failed").all()
    assert whole(None).str.startswith("void: gate toy was not run").all()
    doubt, sound = "inconclusive: the instruments disagree", whole(gate_table())
    for about, pictures, captions in (("pictures", doubt, sound["Q1"]), ("captions", sound["C1"], doubt)):
        gates = gate_table(instruments=False)
        gates.loc[gates.gate == "instruments", "measure"] = f"{about}: gen0 - recursive, judge"
        found = whole(gates)
        assert (found["C1"], found["Q1"]) == (pictures, captions) and found["C3"] == "contradicted"
        assert (found["C2a"] == doubt) == (about == "captions")
    one = conclude(FIVE[FIVE.seed.isin([0, -1])])
    assert claims.void(one, gate_table(toy=False)).verdict.eq("no verdict: 1 seed, 5 needed").all()


@pytest.fixture
def results(tmp_path, others):
    """Folders of results: nano (01 and 03, one seed, no gates) and study (all but 04, gates)."""
    nano, study = tmp_path / "results" / "nano", tmp_path / "results" / "study"
    write_table(FIVE[FIVE.seed.isin([0, -1])], nano / "01_variance.parquet")
    write_table(claims_data.table("03_diversity", seeds=[0]), nano / "03_diversity.parquet")
    write_table(FIVE.assign(claims=claims.claims_digest()), study / "01_variance.parquet")
    for name in set(others) - {"04_relabeling"}:
        write_table(others[name].assign(claims="0123456789ab"), study / f"{name}.parquet")
    gate_table(shuffled_captions=False).to_parquet(study / "00_gates.parquet")
    return {"nano": nano, "study": study}


def test_the_page_says_what_is_known_and_what_is_not(results, tmp_path, monkeypatch):
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "01_variance_drift.png").touch()
    settings = load_settings("nano", results=str(results["nano"]), figures=str(figures))
    frame = verdict_page.write_page(settings, results)
    text = (results["nano"] / "07_claims.md").read_text()
    assert text == verdict_page.page(results, settings)
    lines = {line.split("**")[1]: line for line in text.splitlines() if line.startswith("| **")}
    assert list(lines) == [claim.id for claim in claims.all_claims()]
    assert text.index("## Gates, nano") < text.index("## Gates, study") < text.index("## Claims")
    assert "**The gates were not run**" in text and "**1 GATE FAILED: shuffled captions.**" in text
    assert "One seed decides nothing" in text and "preview, not preregistered" in text
    assert "made under another claims file (0123456789ab)" in text
    assert "- 02_decoding_budget: no table; `make reproduce PROFILE=nano ONLY=02_decoding_budget`" in text
    assert "not run: no table of 04_relabeling" in lines["C7a"] and "void: gate shuffled captions failed" in lines["C3"]
    assert "no verdict: 1 seed, 5 needed" in lines["C1"] and "**reproduced**" in lines["C1"]
    assert "gen0 - recursive: +0" in lines["C1"] and "(../../figures/01_variance_drift.png)" in lines["Q1"]
    assert all(line.count(" | ") == lines["C1"].count(" | ") for line in lines.values())
    assert "general" not in text  # nothing was run on further base models
    assert "## How far this reaches" in text and "paper's numbers are wrong" in text
    assert list(frame.columns) == verdict_page.COLUMNS and (frame.claims == claims.claims_digest()).all()
    stored = pd.read_parquet(results["nano"] / "07_claims.parquet")
    assert set(stored.profile) == {"nano", "study"} and (stored.claims == claims.claims_digest()).all()
    where = (stored.profile == "study") & (stored.claim == "C6")
    assert set(stored[where].table_claims) == {"0123456789ab"} and "reproduced" in set(stored[where].verdict)
    frozen = claims.freezing()
    assert f"Claims file {frozen['digest']}, frozen on {frozen['date']} at commit {frozen['commit'][:12]}" in text
    monkeypatch.setattr(claims, "FROZEN", tmp_path / "none.json")
    assert "not frozen yet" in verdict_page.page(results, settings)


def test_deviations_are_listed(results, monkeypatch, tmp_path):
    frozen, digest = tmp_path / "claims.frozen.json", claims.claims_digest()
    deviation = {"date": "2026-12-02", "what": "One arm fewer.", "why": "it could not be run.", "digest": digest}
    record = {"digest": "f" * 12, "date": "2026-12-01", "commit": "c" * 40, "deviations": [deviation]}
    frozen.write_text(json.dumps(record))
    monkeypatch.setattr(claims, "FROZEN", frozen)
    text = verdict_page.page({"nano": results["nano"]}, load_settings("nano", results=str(results["nano"])))
    assert "frozen on 2026-12-01 at commit cccccccccccc" in text
    assert f"- 2026-12-02: One arm fewer. Because: it could not be run. (claims file {digest})" in text


def test_a_table_that_cannot_be_read_is_named(results):
    (results["study"] / "03_diversity.parquet").write_bytes(b"no table")
    text = verdict_page.page({"study": results["study"]}, load_settings("study", results=str(results["study"])))
    assert "- 03_diversity: " in text and "is no result table" in text
    assert "not run: no table of 03_diversity" in text


def test_tables_made_with_other_settings_are_named(results):
    folder = results["study"]
    for name, pairs in {"01_variance": 500, "03_diversity": 96}.items():
        (folder / f"{name}.json").write_text(json.dumps({"settings": {"pairs": pairs, "steps": 200}}))
    text = verdict_page.page({"study": folder}, load_settings("study", results=str(folder)))
    assert "- **pairs differs between tables: 500 (01); 96 (03)**: some may be of an older run" in text
    assert "steps differs" not in text


def test_the_figure_of_verdicts(results, tmp_path):
    from mmcollapse.figures import draw

    settings = load_settings("study", results=str(results["study"]), figures=str(tmp_path / "figures"))
    for name in ("02_decoding_budget", "06_remedies"):  # some will do
        (results["study"] / f"{name}.parquet").unlink()
    verdict_page.write_page(settings, {"study": results["study"]})
    written = draw(results["study"], tmp_path / "figures", "07_claims")
    names = ("overview", "verdicts", "verdicts_others", "remedies", "gates")
    endings = ("png", "svg", "json")
    assert [p.name for p in written] == [f"07_claims_{name}.{ending}" for name in names for ending in endings]
    first = written[0].read_bytes()
    draw(results["study"], tmp_path / "figures", "07_claims")
    assert written[0].read_bytes() == first
    with pytest.raises(MMCollapseError, match="run 07_claims first"):
        draw(tmp_path, tmp_path, "07_claims")
