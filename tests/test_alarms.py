"""Alarms: they keep their stated rate, find what moves in the direction of collapse, and say so at once."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

import synthetic
from mmcollapse import alarms
from mmcollapse.alarms import ALARMS, Watch, earliest, honesty, sounded, thresholds
from mmcollapse.figures import draw
from mmcollapse.table import to_table, write_table

G = 10
ALARM = {alarm.name: alarm for alarm in ALARMS}


def rows(name: str, arm: str, seed: int, curve, model="generator", n=100) -> list[dict]:
    """Of a chain, or one value of a set of real data."""
    alarm = ALARM[name]
    common = {k: getattr(alarm, k) for k in ("modality", "metric", "measurement", "space")}
    common |= {"arm": arm, "seed": seed, "model": model, "subset": "test", "n": n, "missing": "", "hash": "h"}
    return [common | {"generation": g, "value": float(v), "claims": ""} for g, v in enumerate(curve)]


def world(name: str, values) -> list[dict]:
    return [row for k, v in enumerate(values) for row in rows(name, "world", -1 - k, [v], model="")]


def test_a_threshold_is_what_two_sets_of_real_data_differ_by():
    values = [1.0, 1.2, 0.9, 1.1]
    found = thresholds(pd.DataFrame(world("FID rises", values)), G)
    expected = scipy_stats.t.ppf(1 - 0.05 / G, 3) * np.std(values, ddof=1) * math.sqrt(2)
    assert found["FID rises"] == pytest.approx(expected)
    logs = thresholds(pd.DataFrame(world("variance falls", np.exp(values))), G)["variance falls"]
    assert logs == pytest.approx(expected)  # variances are compared as logarithms
    assert all(math.isnan(found[a.name]) for a in ALARMS if a.name != "FID rises")  # nothing to compare with
    one = (
        thresholds(pd.DataFrame(world("FID rises", [1.0])), G),
        thresholds(pd.DataFrame(world("FID rises", [1, 1])), G),
    )
    assert all(math.isnan(found["FID rises"]) for found in one)


@pytest.mark.parametrize("sets", [2, 5, 20])
def test_a_chain_that_only_sampling_moves_sounds_as_rarely_as_stated(sets):
    """Bonferroni is on the safe side, for generations share generation 0: so at most RATE, but not never."""
    random, chains = np.random.default_rng(0), 4000
    real, chain = random.normal(size=(chains, sets)), random.normal(size=(chains, G + 1))
    t = scipy_stats.t.ppf(1 - alarms.RATE / G, sets - 1)
    wrong = ((chain[:, 1:] - chain[:, :1]) > t * math.sqrt(2) * real.std(1, ddof=1)[:, None]).any(1).mean()
    assert alarms.RATE / 5 < wrong < alarms.RATE * 1.1
    few = 60  # the same by the functions themselves
    told = 0
    for k in range(few):
        table = pd.DataFrame(world("FID rises", real[k]) + rows("FID rises", "real", 0, chain[k]))
        told += sounded(table, G).generation.notna().sum()
    by_hand = ((chain[:few, 1:] - chain[:few, :1]) > t * math.sqrt(2) * real[:few].std(1, ddof=1)[:, None]).any(1).sum()
    assert told == by_hand


def test_only_the_direction_of_collapse_counts_and_the_first_time():
    limits = dict.fromkeys(ALARM, 0.5)
    curve = [1.0, 1.2, 1.6, 1.0, 1.9]
    table = pd.DataFrame(rows("FID rises", "a", 0, curve) + rows("recall falls", "a", 0, curve))
    first = sounded(table, G, limits).set_index("alarm").generation
    assert first["FID rises"] == 2 and math.isnan(first["recall falls"])
    table = pd.DataFrame(
        rows("FID rises", "a", 0, [3 - v for v in curve]) + rows("recall falls", "a", 0, [3 - v for v in curve])
    )
    first = sounded(table, G, limits).set_index("alarm").generation
    assert math.isnan(first["FID rises"]) and first["recall falls"] == 2


def test_training_sets_pools_students_and_real_data_have_no_alarms():
    parts = [rows("FID rises", "a", 0, [0, 9], model=m) for m in ("set", "pool", "student 0", "generator")]
    found = sounded(pd.DataFrame(sum(parts, []) + rows("FID rises", "world", -1, [0, 9])), G, dict.fromkeys(ALARM, 1.0))
    assert found.model.tolist() == ["generator"] and found.seed.tolist() == [0]
    assert sounded(pd.DataFrame(rows("FID rises", "a", 0, [0, 9])[1:]), G, dict.fromkeys(ALARM, 1.0)).empty  # no start


def test_what_an_alarm_is_worth():
    """Known chains: recall falls at 3 in all collapsing chains and in no healthy one, FID at 2 in all of both."""
    steps = np.arange(G + 1)
    parts = world("recall falls", [0.9, 0.91, 0.92]) + world("FID rises", [1.0, 1.01, 1.02])
    for seed in range(8):
        for arm in ("recursive", "real"):
            falls = arm == "recursive"
            parts += rows("recall falls", arm, seed, np.where(falls & (steps >= 3), 0.2, 0.9))
            parts += rows("FID rises", arm, seed, np.where(steps >= 2, 9.0, 1.0))
        quality = [
            {**r, "metric": "all_right", "space": "oracle"}
            for r in rows("FID rises", "recursive", seed, 0.8 - 0.05 * steps)
        ]
        parts += quality  # half is left at generation 8
    found = honesty(pd.DataFrame(parts), G).set_index("alarm")
    assert list(found.index) == ["recall falls", "FID rises"]  # the honest one first, though it is later
    recall, fid = found.loc["recall falls"], found.loc["FID rises"]
    assert (recall.generation, recall.lead, recall.missed, recall.false, recall.honest) == (
        3,
        pytest.approx(5),
        0,
        0,
        True,
    )
    assert (fid.generation, fid.lead, fid.false, fid.honest) == (2, pytest.approx(6), 1, False)
    assert fid.low == pytest.approx(0.025 ** (1 / 8)) and fid.high == 1  # Clopper-Pearson of 8 of 8
    assert recall.collapsing == recall.healthy == 8 and math.isnan(recall.slow)
    assert earliest(found.reset_index()) == "of pictures 'recall falls'"


def test_captions_are_judged_where_they_collapse():
    """Under drift; with matched decoding none of their alarms need sound. And few healthy chains allow no verdict."""
    parts = world("BLEU-4 falls", [0.5, 0.51, 0.52])
    for seed in range(4):
        for arm, fall in {
            "recursive-drift": 0.4,
            "recursive": 0.0,
            "real": 0.0,
            "gen0-drift": 0.2 * (seed < 1),
        }.items():
            parts += rows("BLEU-4 falls", arm, seed, [0.5] + [0.5 - fall] * G)
    found = honesty(pd.DataFrame(parts), G).set_index("alarm").loc["BLEU-4 falls"]
    assert (found.generation, found.missed, found.false, found.slow) == (1, 0, 0, 0.25) and not found.honest
    assert earliest(honesty(pd.DataFrame(parts), G)) == "of captions not to be said, of 4 healthy chains (5 needed)"


def test_a_watch_says_at_once_what_the_table_says_later():
    table = synthetic.table(seeds=range(2), generations=6, pairs=200)
    table["n"] = table.n.astype(int)
    reference = table[table.arm == "world"]
    parts = [reference.assign(seed=-2, value=reference.value * 1.01), reference]
    watch, later = Watch(pd.concat(parts).to_dict("records"), 6), []
    for (arm, seed, g), part in table[table.seed >= 0].sort_values("generation").groupby(["arm", "seed", "generation"]):
        lines = watch(f"{arm} {seed}", g, part.to_dict("records"))
        assert all(f"{arm} {seed}, generation {g}: " in line for line in lines)
        later += [(arm, seed, g, line.split(": ")[1].rsplit(" (", 1)[0]) for line in lines]
    chains = table[table.seed >= 0]
    found = sounded(chains, 6, watch.limits)
    found = found[found.generation.notna()]
    assert sorted(later) == sorted((r.arm, r.seed, r.generation, r.alarm) for r in found.itertuples()) and later
    assert (
        watch("recursive 0", 6, chains[(chains.arm == "recursive") & (chains.generation == 6)].to_dict("records")) == []
    )
    assert set(Watch([], 6).silent) == set(ALARM)


def test_what_cannot_sound_is_told():
    """By name, in a line of the log; where all can, there is none."""
    values = [1.0, 1.2, 0.9]
    told = Watch(world("FID rises", values), G).silence()
    assert "recall falls" in told and "self-BLEU rises" in told and "FID rises" not in told
    assert told.startswith("ALARMS that cannot sound, for fewer than two sets of real data were measured, or they do")
    assert Watch(sum((world(name, values) for name in ALARM), []), G).silence() == ""


def test_the_figure_and_what_it_says_without_chains(tmp_path):
    table = synthetic.table(seeds=range(3), generations=6, pairs=200)
    more = table[table.arm == "world"].assign(seed=-2)
    table = pd.concat([table, more.assign(value=more.value * 1.02)])
    write_table(table, tmp_path / "01_variance.parquet")
    png = draw(tmp_path, tmp_path / "figures", "01_variance_alarms")[0]
    first = png.read_bytes()
    write_table(table[table.arm != "real"], tmp_path / "01_variance.parquet")
    assert draw(tmp_path, tmp_path / "figures", "01_variance_alarms")[0].read_bytes() != first
    assert len(first) > 10_000


def test_a_run_tells_of_alarms(smoke):
    """In the log of the notebook, at the generation in which they sound, as the table has it."""
    table = pd.read_parquet(smoke.folder / "results" / "01_variance.parquet")
    found = sounded(to_table(table.to_dict("records")), 2)
    told = [line for line in smoke.output.splitlines() if "ALARM" in line]
    for row in found[found.generation.notna()].itertuples():
        chain = {"image": "generator", "text": "captioner"}[row.modality] + f" {row.arm} seed {row.seed}"
        assert any(f"ALARM {chain}, generation {row.generation:.0f}: {row.alarm} " in line for line in told)
    assert len(told) >= found.generation.notna().sum() > 0
