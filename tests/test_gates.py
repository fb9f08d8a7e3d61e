"""Gates: each passes on what is sound, and fails when that which it guards is broken."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import claims_data
import synthetic
from mmcollapse import claims, gates, loop
from mmcollapse.experiment import open_study
from mmcollapse.metrics import truth
from mmcollapse.settings import load_settings
from mmcollapse.store import Store

SOUND = synthetic.table(seeds=range(5), generations=4)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Real models and instruments at smoke; its store is shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("gates")
    settings = load_settings("smoke", "07_claims", runs=str(folder / "runs"), results=str(folder / "results"))
    return open_study(settings)


@pytest.fixture
def fresh(opened, tmp_path):
    """The same with a store of its own: nothing is remembered."""
    study, tools = opened
    study = replace(study, store=Store(tmp_path / "runs"))
    return study, replace(tools, study=study)


def run(gate, study, tools, tables=None):
    return pd.DataFrame(
        gate(study, tools, tables or {}), columns=[c for c in gates.COLUMNS if c not in ("gate", "needs")]
    )


def passed(frame):
    return frame.passed.dropna().tolist()


def broken(frame, word):
    """The measures that failed all speak of `word`, and there are some."""
    bad = frame[frame.passed == False].measure  # noqa: E712
    return len(bad) > 0 and bad.str.contains(word).all()


# ---- the loop


def test_the_loop_keeps_the_laws_of_theory(opened):
    frame = run(gates.toy, *opened)
    assert passed(frame) == [True] * 3
    assert passed(run(gates.dose, *opened)) == [True] and passed(run(gates.accumulate, *opened)) == [True]


def test_a_loop_that_leaks_what_it_was_trained_on_before_is_found(fresh, monkeypatch):
    sound = loop._make

    def leaking(study, protocol, by, weights, *rest):  # generation g-1 is asked, generation 0 answers
        base = {member: study.models[member.model].base for member in weights}
        return sound(study, protocol, by, base, *rest)

    monkeypatch.setattr(loop, "_make", leaking)
    assert broken(run(gates.toy, *fresh), "variance after|replace|accumulate")
    assert broken(run(gates.dose, *fresh), "toy")


def test_a_loop_that_does_not_accumulate_is_found(fresh, monkeypatch):
    monkeypatch.setattr(loop, "_training_sets", lambda study, protocol, history, seed, g: history[-1])
    assert broken(run(gates.toy, *fresh), "accumulate") and broken(
        run(gates.accumulate, *fresh), "over that of replace"
    )


def test_what_a_gate_found_is_kept_until_the_code_it_tests_changes(fresh, monkeypatch):
    calls = []
    sound = gates.toy_chain
    monkeypatch.setattr(gates, "toy_chain", sound)

    def found(name):
        def compute():
            calls.append(name)
            return {"value": 1.0}

        return gates._stored(fresh[0], "any", {"n": 1}, compute)

    assert found("first") == found("second") == {"value": 1.0} and calls == ["first"]
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "changed")
    found("third")
    assert calls == ["first", "third"]


def test_learning_rate_0_moves_nothing_and_any_other_is_found(fresh, monkeypatch):
    frame = run(gates.learning_rate_0, *fresh)
    assert passed(frame) == [True] * 5
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "another")  # forget what was found
    monkeypatch.setattr(gates, "IDLE", gates.IDLE | {"lr_generator": 1e-3, "lr_captioner": 1e-3})
    frame = run(gates.learning_rate_0, *fresh).set_index("measure")
    assert frame.passed.to_dict() == {"toy: variance after 2 generations": True} | dict.fromkeys(
        [
            f"{role}: {what}"
            for role in ("generator", "captioner")
            for what in ("weights that moved", "measured hashes that differ")
        ],
        False,
    )
    assert frame.value["generator: weights that moved"] > 1000


def test_a_toy_that_moves_without_learning_is_found(fresh, monkeypatch):
    monkeypatch.setattr(gates, "_toy", lambda *a, **k: {"variance": [1.0, 1.0, 1.0 - 1e-7], "error": [0.0] * 3})
    monkeypatch.setattr(gates, "_stored", lambda *a: {"weights that moved": 0})
    assert broken(run(gates.learning_rate_0, *fresh), "toy")


# ---- models and instruments


def test_pictures_survive_the_autoencoder_and_damage_on_the_way_is_found(fresh, monkeypatch):
    study, tools = fresh
    frame = run(gates.round_trip, study, tools)
    assert passed(frame) == [True] and len(frame) == 2 * study.settings.generations
    adapter = study.models["generator"].adapter
    sound = adapter.decode
    calls = []

    def worse(latents):  # the second trip is the one that hurts: what counts is what further ones cost
        calls.append(1)
        out = sound(latents)
        return (
            out
            if len(calls) == 1
            else (out // 4 + np.random.default_rng(0).integers(0, 190, out.shape)).astype(np.uint8)
        )

    monkeypatch.setattr(adapter, "decode", worse)
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "another")  # forget what was found
    assert broken(run(gates.round_trip, study, tools), "loss from trip 1 to 2")


def test_what_the_autoencoder_costs_is_held_against_what_recursion_costs(opened, monkeypatch):
    study, tools = opened
    found = {"all_right": [0.99, 0.9, 0.85, 0.8, 0.79], "nuisance_ratio": [0.9, 0.85, 0.82, 0.8, 0.78]}
    monkeypatch.setattr(gates, "_stored", lambda *a: found)
    collapsed = run(gates.round_trip, study, tools, {"01_variance": SOUND})
    assert passed(collapsed) == [True, True] and collapsed.allowed.str.contains("half of what recursion costs").any()
    still = SOUND.assign(
        value=SOUND.value.where(SOUND.arm != "recursive", 0.84)
    )  # nothing was lost: what could be said?
    assert broken(run(gates.round_trip, study, tools, {"01_variance": still}), "loss from trip 1 to 4")


def test_captions_of_other_pictures_ruin_alignment_unless_the_judge_is_blind(fresh, monkeypatch):
    study, tools = fresh
    frame = run(gates.shuffled_captions, study, tools)
    assert passed(frame) == [True] * 4 and frame.measure.str.startswith("judge-2").sum() == 2
    blind = SimpleNamespace(
        images=lambda x: np.ones((len(x), 4)) + np.eye(4)[0], texts=lambda c: np.ones((len(c), 4)), digest="blind"
    )
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "another")  # forget what was found
    frame = run(gates.shuffled_captions, study, replace(tools, spaces=tools.spaces | {"judge-2": blind}))
    assert broken(frame, "judge-2") and len(frame[frame.passed == False]) == 2  # noqa: E712


def test_shuffled_captions_that_are_their_own_are_found(fresh, monkeypatch):
    scores = {"judge": {"P": [0.2, 0.2], "clip_score": [80.0, 80.0]}}
    monkeypatch.setattr(gates, "_shuffled", lambda *a: scores)
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "scores")
    assert broken(run(gates.shuffled_captions, *fresh), "judge")


def test_intervals_hold_0_as_often_as_they_say(fresh, monkeypatch):
    assert passed(run(gates.real_against_real, *fresh)) == [True] * 3
    sound = gates.stats.t_interval
    monkeypatch.setattr(gates.stats, "t_interval", lambda values: sound(values, 0.8))
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "another")  # forget what was found
    assert passed(run(gates.real_against_real, *fresh)) == [False] * 3
    monkeypatch.setattr(gates.stats, "t_interval", lambda values: (-1e9, 1e9))  # nor too wide
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "a third")
    assert passed(run(gates.real_against_real, *fresh)) == [False] * 3


def test_dropped_modes_are_found_and_blind_metrics_are_as_well(fresh, monkeypatch):
    assert passed(run(gates.positive_control, *fresh)) == [True] * 10
    monkeypatch.setattr(truth, "tail_coverage", lambda read, scenes, exponent: (1.0, 9))
    monkeypatch.setattr("mmcollapse.experiment.source_digest", lambda: "another")  # forget what was found
    frame = run(gates.positive_control, *fresh)
    assert broken(frame, "tail_coverage")


def test_a_control_that_touches_more_than_it_says_is_found(fresh, monkeypatch):
    from mmcollapse import instruments

    sound = instruments._only
    monkeypatch.setattr(
        instruments, "_only", lambda scene, place, left: sound(scene, place, left)._replace(background=4)
    )
    assert broken(run(gates.positive_control, *fresh), "right_background|all_right")


# ---- what tables say


def remedies(**changes):
    table = claims_data.table("06_remedies", students=False)
    parts = [table]
    for arm, like in {"N-125": "recursive", "N-2000": "accumulate"}.items():
        parts.append(table[table.arm == changes.get(arm, like)].assign(arm=arm))
    return {"06_remedies": pd.concat(parts, ignore_index=True)}


def test_a_table_can_refute_dose_and_accumulation(opened):
    frame = run(gates.dose, *opened, remedies())
    assert passed(frame) == [True] * 3 and frame.measure[1] == "image: all right, late, N-2000 less N-125 (logit)"
    turned = run(gates.dose, *opened, remedies(**{"N-125": "accumulate", "N-2000": "recursive"}))
    assert broken(turned, "late, N-2000 less N-125") and passed(turned)[0]
    assert passed(run(gates.accumulate, *opened, remedies())) == [True] * 3
    names = {"recursive": "accumulate", "accumulate": "recursive"}
    worse = {name: t.assign(arm=t.arm.replace(names)) for name, t in remedies().items()}
    assert broken(run(gates.accumulate, *opened, worse), "accumulate less replace")
    one = {name: t[t.seed == 0] for name, t in worse.items()}
    assert passed(run(gates.accumulate, *opened, one)) == [True]  # one seed decides nothing


def test_the_sampling_floor_is_shown_beside_the_tail(opened):
    frame = run(gates.sampling_floor, *opened, {"01_variance": SOUND})
    assert passed(frame) == [] and "drawing N alone leaves 0.992" in frame.allowed[0]
    tail = SOUND[(SOUND.metric == "tail_coverage") & (SOUND.arm == "recursive") & (SOUND.measurement == "guidance 1")]
    curves = tail.pivot(index="seed", columns="generation", values="value")
    assert (
        frame.value[0] == pytest.approx((curves[4] / curves[0]).mean())
        and frame.low[0] < frame.value[0] < frame.high[0]
    )
    assert run(gates.sampling_floor, *opened).empty


def second_judge(table, factor=1.0):
    """The table with rows of a second judge, of which variance is raised to a power."""
    rows = table[(table.space == "judge") & table.metric.isin(["variance_within", "caption_variance"])]
    return {
        "01_variance": pd.concat([table, rows.assign(space="judge-2", value=rows.value**factor)], ignore_index=True)
    }


def test_instruments_that_disagree_are_found(opened):
    table = SOUND.copy()
    where = (table.metric == "caption_variance") & (table.measurement == "sampled")
    assert where.any()
    frame = run(gates.instruments, *opened, second_judge(table))
    assert set(passed(frame)) == {True} and len(frame) == 10
    turned = run(gates.instruments, *opened, second_judge(table, -1.0))
    assert set(passed(turned)) == {False}
    spectrum = table.copy()
    where = table.metric == "spectrum"
    spectrum.loc[where, "value"] = 1 / table.value[where]  # nearer to real, the less there is of variance
    frame = run(gates.instruments, *opened, second_judge(spectrum))
    assert broken(frame, "pictures") and set(passed(frame[frame.measure.str.contains("captions")])) == {True}
    one = second_judge(table[table.seed == 0])
    assert passed(run(gates.instruments, *opened, one)) == [] and run(gates.instruments, *opened).empty


def test_power_says_what_can_be_seen_and_more_seeds_see_more(opened):
    frame = run(gates.power, *opened, {"01_variance": SOUND})
    five = frame[frame.measure.str.endswith("5 seeds")].value.to_numpy()
    ten = frame[frame.measure.str.endswith("10 seeds")].value.to_numpy()
    assert len(five) == len(ten) > 5 and (ten <= five).all() and (five >= 1).all()
    noisy = run(gates.power, *opened, {"01_variance": synthetic.table(seeds=range(5), noise=8.0)})
    same = frame.merge(noisy, on="measure")
    assert (same.value_y > same.value_x).mean() > 0.8
    (row,) = [r for r in run(gates.power, *opened).itertuples() if r.measure.endswith("10 seeds")]
    assert gates.stats.power(row.value, 1.0, 1.0, 10) == pytest.approx(0.8, abs=0.02)


# ---- all of them


def test_all_gates_are_run_written_and_named_with_what_rests_on_them(opened, monkeypatch):
    study, tools = opened
    said = []
    monkeypatch.setattr("mmcollapse.experiment.open_study", lambda settings: (study, tools))
    frame = gates.run_gates(study.settings, said.append)
    assert list(frame.columns) == gates.COLUMNS and list(gates._RUN) == list(claims.GATES)
    assert len(said) == len(claims.GATES) and said[0].startswith("gate toy: passed, 3") and gates.failed(frame) == []
    assert frame[frame.gate == "toy"].needs.iloc[0].startswith("C1, C2a")
    assert frame[frame.gate == "accumulate"].needs.iloc[0] == "Q2, Q2-captioner"
    stored = gates.read_gates(study.settings.results_folder)
    pd.testing.assert_frame_equal(stored, frame, check_dtype=False)
    assert (study.settings.results_folder / "00_gates.json").is_file()
    assert gates.read_gates(study.settings.results_folder / "nowhere") is None


def test_a_failed_gate_is_loud(opened, monkeypatch):
    study, tools = opened
    said = []
    monkeypatch.setattr("mmcollapse.experiment.open_study", lambda settings: (study, tools))
    wrong = {"toy": lambda *a: [gates._between("x", 2.0, 0.0, 1.0), gates._between("y", 0.5, 0.0, 1.0)]}
    monkeypatch.setattr(gates, "_RUN", wrong)
    frame = gates.run_gates(study.settings, said.append)
    assert said[0].startswith("gate toy: FAILED in 1 of 2") and gates.failed(frame) == ["toy"]


def test_photos_have_no_truth_and_say_so(opened):
    study, tools = opened
    world = SimpleNamespace(truth=False)
    frame = run(gates.round_trip, replace(study, world=world), tools)
    assert passed(frame) == [] and frame.allowed[0] == "needs a world of known truth"
