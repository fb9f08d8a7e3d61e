"""Does the quality of a set predict the robustness of training on it: on tables whose ranks are known."""

from math import isnan, nan

import numpy as np
import pandas as pd
import pytest

from mmcollapse.errors import MMCollapseError
from mmcollapse.robustness import (
    COLUMNS,
    correlate,
    failures,
    frame,
    leave_one_out,
    read_tables,
    sign_of,
    units,
    write_correlations,
)
from mmcollapse.settings import load_settings
from mmcollapse.table import read_table, to_table, write_table

ARMS = tuple("abcdefghijkl")  # 12
BASE, GENERATIONS, SEEDS = 0.9, (1, 3, 5), (0, 1)
OUTCOME = {"image": "guidance 1", "text": "greedy"}


def loss(arm: str, g: int) -> float:
    """What a student loses: more in later arms, and more in later generations."""
    return 0.02 * (ord(arm) - ord("a")) + 0.3 * GENERATIONS.index(g)


def table(metrics, arms=ARMS, modality="image", experiment="01_variance", students=2, prefix="", seeds=SEEDS):
    """metrics: {(metric, space): value(arm, g), or a reason why there is none}."""
    rows = []
    common = {"experiment": experiment, "modality": modality, "n": 10, "claims": ""}
    right = common | {"metric": "all_right", "space": "oracle", "subset": "test", "measurement": OUTCOME[modality]}
    for reference in ("world", "vae"):  # real pictures are no base model
        rows.append(right | {"arm": reference, "seed": -1, "generation": 0, "model": "", "value": 1.0, "hash": "world"})
    for arm in arms:
        for seed in seeds:
            at = {"arm": arm, "seed": seed}
            other = {"measurement": "guidance 3" if modality == "image" else "sampled", "value": 0.1}
            for name, value in {"generator": BASE, "generator-sdxl": 0.2, "pool": 0.1}.items():
                rows.append(right | at | {"generation": 0, "model": name, "value": value, "hash": "base"})
                rows.append(rows[-1] | other)
            for g in GENERATIONS:
                at["generation"] = g
                held = {"model": "set", "measurement": "data", "subset": "chain", "hash": f"set-{prefix}{arm}{seed}{g}"}
                for (metric, space), value in metrics.items():
                    found = value if isinstance(value, str) else value(arm, g)
                    why = found if isinstance(found, str) else ""
                    rows.append(common | at | held | {"metric": metric, "space": space, "missing": why})
                    rows[-1]["value"] = nan if why else found
                shift = 0.004 * (np.arange(students) - (students - 1) / 2)  # they differ; their mean is what counts
                for k in range(students):
                    value = BASE - loss(arm, g) + shift[k]
                    rows.append(right | at | {"model": f"student {k}", "value": value, "hash": "w"})
                    rows.append(rows[-1] | other)
                    rows.append(rows[-2] | {"subset": "train", "value": 0.0})
    return to_table(rows)


def perfect(arm, g):
    return 1 + loss(arm, g)


def against(arm, g):
    return 1 - loss(arm, g)


def by_generation(arm, g):
    """Knows the generation alone; of the arms it says something that has nothing to do with what they lose."""
    order = [5, 0, 8, 2, 11, 6, 1, 9, 3, 10, 4, 7]
    return GENERATIONS.index(g) + 0.01 * order[ARMS.index(arm)]


METRICS = {
    ("kid", "judge"): perfect,  # less is better: predicts
    ("vendi", "judge"): against,  # more is better: predicts too
    ("precision", "judge"): perfect,  # more is better, but it goes with more loss
    ("spectrum", "pixels"): against,
    ("P", "judge"): by_generation,
    ("fid", "judge"): "12 pictures are too few for 64 dimensions: 640 are needed",
    ("abstains", "oracle"): lambda arm, g: 0.0,
    ("passes", "cost"): perfect,
}


def found(tables, modality="image", **more):
    return correlate(tables, modality, **more).set_index(["metric", "space"])


def test_known_orders_have_known_correlations():
    got = found({"01_variance": table(METRICS)})
    for metric, rho, predicts in [
        (("kid", "judge"), 1, 1),
        (("vendi", "judge"), -1, 1),
        (("precision", "judge"), 1, -1),
        (("spectrum", "pixels"), -1, -1),
    ]:
        row = got.loc[metric]
        assert (row.rho, row.predicts) == pytest.approx((rho, predicts)), metric
        assert (row.arms, row.generations, row.reason) == (12, 3, "") and row.p < 0.001
        assert (row.low, row.high) == pytest.approx((rho, rho))
    assert ("passes", "cost") not in got.index  # a cost is no quality
    order = correlate({"01_variance": table(METRICS)}, "image")
    assert list(order.columns) == COLUMNS and set(order.metric[:2]) == {"kid", "vendi"}  # the best predictors first
    assert order.predicts.dropna().is_monotonic_decreasing


def test_what_the_generation_alone_explains_is_no_prediction():
    row = found({"01_variance": table(METRICS)}).loc["P", "judge"]
    assert abs(row.rho) < 0.35 and row.p > 0.05 and row.low < 0 < row.high
    assert row.pooled > 0.8  # over all sets at once it looks like one


def test_what_cannot_be_computed_says_why():
    got = found({"01_variance": table(METRICS)})
    row = got.loc["fid", "judge"]
    assert isnan(row.rho) and isnan(row.predicts) and row.reason.startswith("12 pictures are too few for 64 dimensions")
    row = got.loc["abstains", "oracle"]
    assert isnan(row.rho) and "the same in all arms in generation 1" in row.reason
    few = found({"01_variance": table(METRICS, arms=ARMS[:3])})
    assert few.loc["kid", "judge"].reason == "3 arms are too few" and isnan(few.loc["kid", "judge"].rho)


def test_an_arm_that_lacks_a_value_in_one_generation_is_left_out():
    def holes(arm, g):
        return "undefined: too little could be read" if (arm, g) == ("c", 5) else perfect(arm, g)

    row = found({"01_variance": table({("kid", "judge"): holes})}).loc["kid", "judge"]
    assert (row.arms, row.generations, row.rho) == (11, 3, pytest.approx(1))


def test_sets_of_another_size_are_left_out_and_a_chain_with_more_seeds_is_the_same_chain():
    first = table(METRICS, prefix="x")
    small = first.assign(n=first.n.where(first.arm != "b", 3))
    assert set(units({"01_variance": small}, "image").arm) == set(ARMS) - {"b"}
    again = table(METRICS, experiment="06_remedies", prefix="x", seeds=(0, 1, 2), arms=ARMS[:2])
    both = units({"01_variance": first, "06_remedies": again}, "image")
    assert set(both.experiment) == {"01_variance"} and len(both) == len(first[first.metric == "kid"])


def test_the_outcome_is_what_students_lose_on_test_prompts():
    data = units({"01_variance": table(METRICS)}, "image")
    assert len(data) == 12 * 2 * 3 and set(data.columns) == {*"experiment arm seed generation hash n loss".split()}
    for row in data.itertuples():
        assert row.loss == pytest.approx(loss(row.arm, row.generation))  # against the default base model
        assert row.hash == f"set-{row.arm}{row.seed}{row.generation}"
    means = frame({"01_variance": table(METRICS)}, "image", "kid", "judge", data)
    assert len(means) == 12 * 3 and means.outcome.tolist() == pytest.approx(
        [loss(arm[-1], g) for arm, g in zip(means.arm, means.generation, strict=True)]
    )


def test_arms_that_experiments_share_count_once():
    one, two = (table(METRICS, arms=ARMS[:8]), table(METRICS, arms=ARMS[5:], experiment="06_remedies"))
    tables = {"01_variance": one, "06_remedies": two}  # f, g and h are in both, with the same sets
    data = units(tables, "image")
    assert len(data.drop_duplicates(["experiment", "arm"])) == 12
    assert set(data[data.arm.isin(["f", "g", "h"])].experiment) == {"01_variance"}
    row = found(tables).loc["kid", "judge"]
    assert (row.arms, row.rho) == (12, pytest.approx(1))
    # of the same name but not the same data: two arms
    other = table(METRICS, arms=ARMS[5:], experiment="06_remedies", prefix="other ")
    assert found({"01_variance": one, "06_remedies": other}).loc["kid", "judge"].arms == 15


def test_arms_that_share_only_their_first_generation_are_several():
    one = table(METRICS, arms=ARMS[:6])
    begin = one.hash.str.startswith("set-") & (one.generation == 1) & (one.arm == "b")
    one.loc[begin, "hash"] = "set-a" + one[begin].seed.astype(str) + "1"
    assert found({"01_variance": one}).loc["kid", "judge"].arms == 6


def test_each_experiment_is_left_out_in_turn():
    good = table(METRICS, arms=ARMS[:6])
    bad = table({("kid", "judge"): against}, arms=ARMS[6:], experiment="06_remedies")
    tables = {"01_variance": good, "06_remedies": bad}
    out = leave_one_out(tables, "image", [("kid", "judge"), ("vendi", "judge"), ("nothing", "x")])
    assert out["left out"].tolist() == ["nothing", "01_variance", "06_remedies"]
    whole, without_good, without_bad = out["kid (judge)"]
    assert without_bad == pytest.approx(1) and without_good == pytest.approx(-1) and without_good < whole < without_bad
    assert out["vendi (judge)"].iloc[2] == pytest.approx(1) and isnan(out["vendi (judge)"].iloc[1])
    assert out["nothing (x)"].isna().all()
    assert found({n: t for n, t in tables.items() if n != "06_remedies"}).loc["kid", "judge"].predicts == pytest.approx(
        1
    )
    alone = leave_one_out({"01_variance": good}, "image", [("kid", "judge")])
    assert alone["left out"].tolist() == ["nothing"]  # without it nothing remains


def test_the_arm_on_which_a_metric_fails_is_named():
    def deceived(arm, g):  # the best set by the metric, the worst by what it does
        return 0.0 if arm == "l" else perfect(arm, g)

    tables = {"01_variance": table({("kid", "judge"): deceived, ("vendi", "judge"): lambda a, g: -deceived(a, g)})}
    for metric in ("kid", "vendi"):  # whichever way is better
        worst = failures(tables, "image", metric, "judge", most=3)
        assert worst.arm.tolist() == ["01 l"] * 3 and sorted(worst.generation) == [1, 3, 5]
        assert (worst["by quality"] == 1).all() and (worst["by loss"] == 12).all() and (worst["of"] == 12).all()


def test_captions_are_judged_by_greedy_captions():
    text = table({("bleu4", "words"): against, ("self_bleu", "words"): against}, modality="text")
    got = found({"01_variance": text}, "text")
    assert got.loc["bleu4", "words"].predicts == pytest.approx(1)
    assert got.loc["self_bleu", "words"].predicts == pytest.approx(-1)
    assert units({"01_variance": text}, "text").loss.max() == pytest.approx(loss("l", 5))


@pytest.mark.parametrize(
    ("metric", "sign"),
    [("fid", 1), ("kid", 1), ("P", 1), ("RMG", 1), ("L2M", 1), ("perplexity", 1), ("self_bleu", 1), ("unreadable", 1)]
    + [("abstains", 1), ("spectrum", 1), ("bleu4", -1), ("cider", -1), ("precision", -1), ("W", -1), ("recall", -1)]
    + [("all_right", -1), ("right_colour", -1), ("clip_score", -1), ("variance", -1), ("distinct_2", -1)],
)
def test_which_way_is_better(metric, sign):
    assert sign_of(metric) == sign


def test_tables_without_students_are_refused(tmp_path):
    with pytest.raises(MMCollapseError, match="no table has students for image: run the experiments with students=1"):
        units({"01_variance": table(METRICS, students=0)}, "image")
    with pytest.raises(MMCollapseError, match="no table has students for text"):
        correlate({"01_variance": table(METRICS)}, "text")
    with pytest.raises(MMCollapseError, match="no result table in .*: run the experiments first"):
        read_tables(tmp_path)


def test_from_files_to_a_file(tmp_path):
    both = [table(METRICS), table({("bleu4", "words"): against}, modality="text")]
    write_table(to_table(pd.concat(both).to_dict("records")), tmp_path / "01_variance.parquet")
    write_table(table(METRICS, experiment="06_remedies", prefix="x"), tmp_path / "06_remedies.parquet")
    tables = read_tables(tmp_path)
    assert list(tables) == ["01_variance", "06_remedies"]
    assert tables["01_variance"].equals(read_table(tmp_path / "01_variance.parquet"))
    written = write_correlations(tables, load_settings("smoke", results=str(tmp_path)))
    again = pd.read_parquet(tmp_path / "05_quality_robustness.parquet")
    assert list(again.columns) == COLUMNS and len(again) == len(written) == len(METRICS) - 1 + 1
    assert again[again.metric == "bleu4"].predicts.tolist() == pytest.approx([1])
    assert again[again.metric == "kid"].arms.tolist() == [24]
