"""Claims: what they conclude from tables whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest

import synthetic
from mmcollapse.claims import CLAIMS, COLUMNS, EVERY, conclude, in_words, say
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
    assert "**C1**" in text and "Not judged, for lack of arms: Q1" in text
    assert "No claim is judged" in say(FIVE[FIVE.arm == "real"])
    assert say(FIVE) == in_words(conclude(FIVE))
