"""What raters said: files refused by name, published vectors, closed forms, and simulated raters who are recovered."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import synthetic
from mmcollapse import human, rate
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures import human as figures
from mmcollapse.figures.house import save
from mmcollapse.figures.styles import STYLE
from mmcollapse.settings import load_settings
from mmcollapse.table import write_table

ARMS = ["gen0", "recursive", "real", "world"]


def a_page(folder, arms=ARMS, tasks=24):
    """A page of plain pictures: here only its key counts."""
    keys = [(f"caption {i}", 0) for i in range(8)]
    rng = np.random.default_rng(0)
    sets = {arm: {key: rng.integers(0, 255, (4, 4, 3), np.uint8) for key in keys} for arm in (*arms, "checks")}
    source = {"experiment": "01_variance", "generation": 4, "seed": 0, "measurement": "guidance 1"}
    source["models"] = {arm: "" if arm == "world" else "generator" for arm in arms}
    shown = rate.Pictures({arm: sets[arm] for arm in arms}, sets["checks"], [], source)
    return rate.write_page(shown, folder, tasks, secret="s")


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return human.read_key(a_page(tmp_path_factory.mktemp("page")).key)


def answers(key, strengths, lapses=0.0, same=0.1, habit="", seed=0, share=1.0):
    """One simulated rater's file, as the page saves it. strengths: by question and arm, in logarithms; lapses: share of
    tasks (checks too) that are answered at random; same: share of pairs in which no difference is seen; habit: the
    side that is always chosen, as shown; share: of the tasks that are answered."""
    rng = np.random.default_rng([seed, 7])
    mirrored, given = bool(rng.random() < 0.5), []
    for task, row in key.tasks.sample(frac=share, random_state=seed).iterrows():
        if row.check:
            answer = row.check
        else:
            s = strengths[row.question]
            wins = rng.random() < 1 / (1 + np.exp(s[row.right] - s[row.left]))
            answer = "same" if rng.random() < same else "left" if wins else "right"
        if rng.random() < lapses:
            answer = str(rng.choice(human.ANSWERS))
        answer = habit or (human.OPPOSITE[answer] if mirrored else answer)
        given.append({"task": task, "answer": answer, "seconds": 3.5, "at": "2026-11-23T00:00:00.000Z"})
    complete = len(given) == len(key.tasks)
    told = {"format": human.FORMAT, "page": key.page, "rater": f"rater {seed}", "mirrored": mirrored}
    return told | {"started": "", "saved": "", "complete": complete, "answers": given}


def read(key, folder, records):
    paths = []
    for k, record in enumerate(records):
        paths.append(folder / f"rating-{k:03d}.json")
        paths[-1].write_text(json.dumps(record))
    return human.read_ratings(paths, key)


TRUTH = {
    "fidelity": {"gen0": 0.0, "recursive": -1.2, "real": 0.4, "world": 1.5},
    "realism": {"gen0": 0.0, "recursive": -0.5, "real": 0.0, "world": 1.0},
    "variety": {"gen0": 0.0, "recursive": 0.0, "real": 0.0, "world": 0.0},
}


@pytest.fixture(scope="module")
def ratings(key, tmp_path_factory):
    """40 raters who answer by TRUTH."""
    return read(key, tmp_path_factory.mktemp("ratings"), [answers(key, TRUTH, seed=k) for k in range(40)])


# ---- reading


def test_a_file_is_read_in_the_sides_of_the_key(key, tmp_path):
    """Whether a rater saw the page mirrored or not."""
    record = answers(key, TRUTH)
    turned = record | {"mirrored": not record["mirrored"], "rater": "other"}
    turned["answers"] = [a | {"answer": human.OPPOSITE[a["answer"]]} for a in record["answers"]]
    both = read(key, tmp_path, [record, turned])
    one, other = (both[both.rater == rater].set_index("task") for rater in ("rater 0", "other"))
    assert (one.answer == other.answer).all() and (one.shown != other.shown).sum() > len(one) / 2
    assert (one.answer[one.check != ""] == one.check[one.check != ""]).all() and one.complete.all()
    assert set(one.columns) == {*"rater answer shown seconds complete question left right check".split()}
    assert len(one) == len(key.tasks) == 81


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r | {"page": "0" * 16}, "is of page 0000000000000000, and the key of page"),
        (lambda r: r | {"rater": "rater 1"}, "rater 'rater 1' has a file already, .*rating-000.json"),
        (lambda r: r | {"answers": [{"task": "f00", "answer": "left", "seconds": 1}]}, "task 'f00' is not on page"),
        (lambda r: r | {"answers": [*r["answers"], r["answers"][3]]}, "is answered twice"),
        (lambda r: r | {"answers": [r["answers"][0] | {"answer": "both"}]}, "answer 'both' .* left, same, right"),
        (lambda r: r | {"answers": [{"task": 7}]}, "is no answer with task, answer and seconds"),
        (lambda r: r | {"answers": [5]}, "5 is no answer"),
        (lambda r: r | {"format": "other"}, "is no file of ratings as the page saves it"),
        (lambda r: {k: v for k, v in r.items() if k != "mirrored"}, "is no file of ratings as the page saves it"),
        (lambda r: [r], "no JSON object"),
        (lambda r: None, "no JSON object"),
    ],
)
def test_a_file_is_refused_by_name(key, tmp_path, change, said):
    with pytest.raises(MMCollapseError, match=said) as refused:
        read(key, tmp_path, [answers(key, TRUTH, seed=1), change(answers(key, TRUTH))])
    assert "rating-001.json" in str(refused.value)


def test_damaged_files_are_refused(key, tmp_path):
    path = tmp_path / "rating-a.json"
    whole = json.dumps(answers(key, TRUTH)).encode()
    for content in (whole[:-40], b"", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(MMCollapseError, match="rating-a.json is damaged"):
            human.read_ratings([path], key)


def test_a_key_that_was_changed_is_refused(tmp_path):
    path = a_page(tmp_path, ["a", "b"], 8).key
    told = json.loads(path.read_text())
    some = next(name for name, task in told["tasks"].items() if "left" in task)
    for change in (
        {"arms": ["b", "a"]},
        {"tasks": told["tasks"] | {some: told["tasks"][some] | {"left": "b", "right": "b"}}},
        {"page": "0" * 16},
        {"more": 1},
    ):
        path.write_text(json.dumps(told | change))
        with pytest.raises(MMCollapseError, match="is not the key that `make rate` wrote"):
            human.read_key(path)
    path.unlink()
    with pytest.raises(MMCollapseError, match="no key of a page at"):
        human.read_key(path)


# ---- raters


def test_raters_of_known_accuracy_are_told_apart(key, tmp_path):
    records = [answers(key, TRUTH, seed=k) for k in range(10)]
    records += [answers(key, TRUTH, lapses=1.0, seed=k) for k in range(10, 20)]
    records += [answers(key, TRUTH, habit="left", seed=20), answers(key, TRUTH, habit="same", seed=21)]
    found = human.check_raters(read(key, tmp_path, records), len(key.tasks))
    assert (found.checks == 9).all() and (found.failed[:10] == 0).all() and (found.note[:10] == "").all()
    guessed = found[10:20]
    assert abs(guessed.failed.mean() - 2 / 3) < 0.15 and guessed.note.str.startswith("left out: failed ").all()
    assert found.note.iloc[20].startswith("left out") and found.left.iloc[20] == 1.0
    assert found.note.iloc[21] == "left out: failed 100% of 9 attention checks" and np.isnan(found.left.iloc[21])
    assert abs(found.left[:10].mean() - 0.5) < 0.1 and (found.seconds == 3.5).all()


def test_who_stopped_before_any_check_does_not_count(key, tmp_path):
    record = answers(key, TRUTH)
    record["answers"] = [a for a in record["answers"] if not key.tasks.check[a["task"]]][:5]
    found = human.check_raters(read(key, tmp_path, [record]), len(key.tasks))
    assert found.note.tolist() == ["left out: answered no attention check"] and found.answers.tolist() == [5]


# ---- agreement


def counts(rows: list[str], values: str) -> np.ndarray:
    return np.array([[unit.count(v) for v in values] for unit in zip(*rows, strict=True)])


def test_alpha_is_that_of_krippendorff_2011():
    """Sections A (two observers, binary) and C (four observers, missing data) of his paper; and none of one value."""
    binary = counts(["0100000010", "1110010000"], "01")
    for level in human.LEVELS:
        assert human.alpha(binary, level) == pytest.approx(0.095, abs=5e-4)
    missing = counts(["123321412...", "1233224125.3", ".3332342251.", "12332441251."], "12345")
    assert human.alpha(missing, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert human.alpha(missing, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert np.isnan(human.alpha(counts(["111", "111"], "12"), "ordinal"))


def test_agreement_of_perfect_and_of_random_raters(key, tmp_path):
    one = answers(key, TRUTH, seed=0)
    same = read(key, tmp_path, [one | {"rater": f"r{k}"} for k in range(4)])
    assert human.agreement(same, 50)[["alpha", "low", "high"]].eq(1).all(axis=None)
    flat = dict.fromkeys(TRUTH, dict.fromkeys(ARMS, 0.0))
    random = read(key, tmp_path, [answers(key, flat, same=1 / 3, seed=k) for k in range(30)])
    found = human.agreement(random, 300)
    assert (found.alpha.abs() < 0.03).all() and ((found.low < 0.01) & (found.high > -0.01)).all()
    assert (found.tasks == 24).all() and (found.raters == 30).all()


def test_agreement_ignores_a_habit_and_checks(key, tmp_path):
    """All raters choose left: they agree on the screen, not on the arms. Checks, on which all agree, are no part."""
    habits = read(key, tmp_path, [answers(key, TRUTH, habit="left", seed=k) for k in range(20)])
    assert (human.agreement(habits, 20).alpha < 0.1).all()


def test_agreement_that_does_not_exist_says_why(key, tmp_path):
    alone = human.agreement(read(key, tmp_path, [answers(key, TRUTH)]), 20)
    assert alone.alpha.isna().all() and (alone.note == "no task has two raters").all()
    constant = human.agreement(read(key, tmp_path, [answers(key, TRUTH, same=1.0, seed=k) for k in range(2)]), 20)
    assert constant.alpha.isna().all() and (constant.note == "all answers are the same").all()


def test_more_accurate_raters_agree_more(key, tmp_path):
    sharp = {q: {arm: 6 * s for arm, s in own.items()} for q, own in TRUTH.items()}
    values = []
    for lapses in (0.0, 0.3, 0.8):
        found = human.agreement(read(key, tmp_path, [answers(key, sharp, lapses, 0, seed=k) for k in range(20)]), 20)
        values.append(found.alpha[(found.question == "fidelity") & (found.level == "ordinal")].item())
    assert values[0] > 0.9 > values[1] + 0.2 and values[1] > values[2] + 0.2


# ---- preferences

# Citations among journals of statistics (Stigler 1994), and the strengths that Turner and Firth give for them, with
# Biometrika as 0 (Bradley-Terry Models in R, J. Stat. Softw. 48(9), 2012): Biometrika, Comm. Statist., JASA, JRSS-B.
CITED = np.array([[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]])


def test_strengths_are_the_published_ones():
    assert human.bradley_terry(CITED) == pytest.approx([0, -2.9491, -0.4796, 0.2690], abs=1e-4)
    assert human.bradley_terry(3 * CITED) == pytest.approx(human.bradley_terry(CITED))
    order = [2, 0, 3, 1]
    turned, strengths = human.bradley_terry(CITED[np.ix_(order, order)]), human.bradley_terry(CITED)[order]
    assert turned == pytest.approx(strengths - strengths[0])


def test_strengths_of_two_arms_in_closed_form_and_none_without_a_win():
    assert human.bradley_terry([[0, 3], [12.5, 0]]) == pytest.approx([0, np.log(12.5 / 3)])
    for wins in ([[0, 3], [0, 0]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]]):
        with pytest.raises(MMCollapseError, match="never won"):
            human.bradley_terry(wins)


def rows_of(wins: int, losses: int, same: int, raters: int = 1) -> pd.DataFrame:
    given = ["left"] * wins + ["right"] * losses + ["same"] * same
    rows = [(f"r{r}", f"t{k}", a, "fidelity", "b", "a", "") for r in range(raters) for k, a in enumerate(given)]
    return pd.DataFrame(rows, columns=["rater", "task", "answer", "question", "left", "right", "check"])


@pytest.mark.parametrize(("wins", "losses", "same"), [(7, 3, 0), (7, 3, 4), (5, 0, 0), (0, 0, 6), (1, 8, 3)])
def test_the_probability_of_two_arms_in_closed_form(wins, losses, same):
    found = human.preferences(rows_of(wins, losses, same), ["a", "b"]).set_index(["question", "arm"])
    n = wins + losses + same
    assert found.probability["fidelity", "b"] == pytest.approx((wins + same / 2 + 0.5) / (n + 1))
    assert found.probability["fidelity", "a"] == 0.5 and found.n["fidelity", "b"] == n
    assert np.isnan(found.low["fidelity", "b"])  # one rater has no spread
    assert found.note["realism", "b"] == "some arms were not compared" and np.isnan(found.probability["realism", "b"])


def test_the_interval_is_over_raters():
    """Raters who all say the same leave none; of raters who each say one thing it is that of a binomial."""
    found = human.preferences(rows_of(6, 2, 0, raters=5), ["a", "b"], 100).set_index(["question", "arm"])
    assert found.low["fidelity", "b"] == pytest.approx(found.high["fidelity", "b"]) == pytest.approx(30.5 / 41)
    split = pd.concat([rows_of(8, 0, 0).assign(rater=f"y{k}") for k in range(14)])
    split = pd.concat([split, *(rows_of(0, 8, 0).assign(rater=f"n{k}") for k in range(6))])
    found = human.preferences(split, ["a", "b"]).set_index(["question", "arm"]).loc[("fidelity", "b")]
    half = 1.96 * np.sqrt(0.7 * 0.3 / 20)
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.03)


def test_known_preferences_are_recovered(ratings):
    found = human.preferences(ratings, ARMS).set_index(["question", "arm"])
    for question, truth in TRUTH.items():
        for arm, strength in truth.items():
            row, p = found.loc[(question, arm)], 1 / (1 + np.exp(-strength))
            p = 0.9 * p + 0.05  # a tenth see no difference, which counts as half
            assert row.low - 0.04 <= p <= row.high + 0.04 and row.high - row.low < 0.2, (question, arm)
            assert row.n == 12 * 40 and row.raters == 40
    strengths = found.strength["fidelity"]
    assert list(strengths.sort_values().index) == ["recursive", "gen0", "real", "world"]
    assert found.low["realism", "world"] > 0.5 > found.high["fidelity", "recursive"]
    assert (found.probability["variety"] - 0.5).abs().max() < 0.08


def test_intervals_cover_as_often_as_they_say(tmp_path):
    """Of 45 studies with 25 raters without ties; an interval that is half as wide shows."""
    key = human.read_key(a_page(tmp_path, ["a", "b"], 8).key)
    truth = dict.fromkeys(rate.QUESTIONS, {"a": 0.0, "b": 0.8})
    p, inside, folder = 1 / (1 + np.exp(-0.8)), [], tmp_path / "files"
    folder.mkdir()
    for study in range(15):
        records = [answers(key, truth, same=0, seed=100 * study + k) for k in range(25)]
        found = human.preferences(read(key, folder, records), ["a", "b"], 200)
        inside += [row.low <= p <= row.high for row in found[found.arm == "b"].itertuples()]
    assert 0.85 <= np.mean(inside) <= 0.99


# ---- metrics


def the_table():
    """A result table whose metrics are ordered as TRUTH's fidelity is, or the other way round."""
    frame = synthetic.table(seeds=(0, 1), generations=4)
    rank = {"recursive": 0, "gen0": 1, "real": 2, "world": 3}
    order = frame.arm.map(rank)
    here = (frame.modality == "image") & (frame.measurement == "guidance 1") & order.notna()
    here &= ((frame.generation == 4) & (frame.seed == 0)) | (frame.arm == "world")
    for metric, values in {"all_right": 0.2 + 0.2 * order, "kid": 1 - 0.2 * order, "vendi": 9 - order}.items():
        frame.loc[here & (frame.metric == metric), "value"] = values
    return frame


def test_a_metric_that_says_the_same_has_rho_1(key, ratings):
    found = human.correlations(human.preferences(ratings, ARMS, 20), the_table(), key.source)
    rho = found[found.question == "fidelity"].set_index("metric")
    assert rho.rho["all_right"] == pytest.approx(1)
    assert rho.rho["kid"] == pytest.approx(1)  # turned: less of it is better
    assert rho.rho["vendi"] == pytest.approx(-1) and rho.p["all_right"] == pytest.approx(2 / 24)
    assert (rho.n.drop("sampling_floor") == 4).all() and rho.space["kid"] == "judge"
    assert not found.duplicated(["question", "metric", "space"]).any()
    assert (rho.rho.dropna().diff().dropna() <= 0).all()
    text = the_table().query("modality == 'text'").metric.unique()
    assert "bleu4" in text and "bleu4" not in rho.index


def test_other_generations_and_seeds_move_nothing(key, ratings):
    found, table = human.preferences(ratings, ARMS, 20), the_table()
    other = table.copy()
    away = (other.arm != "world") & ((other.generation != 4) | (other.seed != 0) | (other.measurement != "guidance 1"))
    other.loc[away, "value"] *= np.random.default_rng(0).random(away.sum())
    first, second = (human.correlations(found, frame, key.source) for frame in (table, other))
    pd.testing.assert_frame_equal(first, second)


def test_three_arms_have_no_correlation_and_it_says_so(key, ratings):
    found = human.preferences(ratings, ARMS, 20)
    rho = human.correlations(found[found.arm != "world"], the_table(), key.source)
    assert rho.rho.isna().all() and rho.note.str.contains("at least 4").all()


# ---- how many raters


def test_the_plan_is_what_simulated_studies_see():
    comparisons = 30  # so many that the spread between raters counts as much as chance
    found = human.plan(comparisons, raters=(5, 20)).set_index(["preference", "raters"]).power
    rng = np.random.default_rng(0)
    for (p, n), power in found.items():
        own = np.clip(rng.normal(p, human.SPREAD, (3000, n)), 0, 1)
        share = rng.binomial(comparisons, own) / comparisons
        low = share.mean(1) - {5: 2.776, 20: 2.093}[n] * share.std(1, ddof=1) / np.sqrt(n)
        assert power == pytest.approx((low > 0.5).mean(), abs=0.03), (p, n)
    assert found.groupby("preference").apply(lambda v: v.is_monotonic_increasing).all()
    assert (human.plan(16).power >= human.plan(4).power).all()


# ---- all of it


def settings_in(folder):
    return load_settings("nano", results=str(folder))


def drawn(folder, target):
    import matplotlib

    source = figures.open_judgements(folder, human.EXPERIMENT)
    target.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        return {name: save(make(source), source, target, f"09_human_{name}") for name, make in figures.FIGURES.items()}


def test_without_ratings_nothing_is_said_of_people(tmp_path):
    frame = human.write_human(settings_in(tmp_path))
    assert set(frame.part) == {"plan"} and list(frame.columns) == human.COLUMNS
    assert human.say(frame).startswith("**No ratings.** Nobody was asked")
    assert figures.has_judgements(tmp_path) and not figures.has_judgements(tmp_path / "no")
    files = drawn(tmp_path, tmp_path / "figures")
    for paths in files.values():
        about = json.loads(paths[2].read_text())
        assert "No ratings were made" in about["caption"] and all(path.stat().st_size > 1000 for path in paths[:2])
    rate_page = a_page(tmp_path / rate.FOLDER)  # a page alone changes nothing but what is planned
    assert rate_page.key.is_file() and set(human.write_human(settings_in(tmp_path)).part) == {"plan"}


def test_with_ratings_the_table_holds_all_parts(tmp_path, key):
    folder = tmp_path / rate.FOLDER
    assert human.read_key(a_page(folder).key).page == key.page
    for k in range(6):
        lapses = 1.0 if k == 5 else 0.0
        (folder / f"rating-{k}.json").write_text(json.dumps(answers(key, TRUTH, lapses, seed=k, share=1 if k else 0.5)))
    write_table(the_table(), tmp_path / "01_variance.parquet")
    frame = human.write_human(settings_in(tmp_path))
    again = pd.read_parquet(tmp_path / "09_human.parquet")
    pd.testing.assert_frame_equal(frame, again)
    assert frame.part.value_counts()[["rater", "agreement", "preference"]].tolist() == [6, 6, 12]
    raters = frame[frame.part == "rater"]
    assert raters.note.str.startswith("left out").tolist() == [False] * 5 + [True]
    kept = human.read_ratings(sorted(folder.glob("rating-[0-4].json")), key)
    own = kept[(kept.question == "realism") & ((kept.left == "gen0") | (kept.right == "gen0"))]
    assert frame.n[(frame.part == "preference") & (frame.question == "realism")].iloc[0] == len(own) < 60
    assert raters.note.iloc[0].endswith("of 81 answered") and "rater 0" not in frame["name"].tolist()
    said = human.say(frame)
    assert said.startswith("**5 of 6 raters count.** left out: failed ") and re.search(
        r"nearest of \d+ metrics, p not corrected for their number: ", said
    )
    assert all(f"- *{question}*: alpha " in said for question in rate.QUESTIONS)
    for paths in drawn(tmp_path, tmp_path / "figures").values():
        assert "n = 5 raters, 1 left out" in json.loads(paths[2].read_text())["caption"]


def test_a_pair_that_nobody_compared_is_said(key, tmp_path):
    """All stopped early: with arms apart there is no scale, and no number is made up."""
    rows = rows_of(4, 4, 0, raters=3)
    found = human.preferences(rows, ["a", "b", "c"], 20)
    assert found.probability.isna().all() and (found.note == "some arms were not compared").all()
