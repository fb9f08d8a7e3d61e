"""Intervention: a remedy holds from its switch on and not before, whatever says when; and what it is said to save."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import synthetic
from mmcollapse import alarms, experiment, verify
from mmcollapse.experiments import ALARM, arms_of, gen0, recursive, switched
from mmcollapse.figures import FIGURES, draw, open_source
from mmcollapse.intervention import PER, late_of, say, summary
from mmcollapse.loop import run_chain
from mmcollapse.protocol import ROLES, Protocol, of_json
from mmcollapse.settings import load_settings
from mmcollapse.table import to_table, write_table
from test_experiments import ZOO, equal, marks, open_toys, real_of, run, short, state

NAME = "08_intervention"
HALF = {"real_share": 0.5}


@pytest.fixture
def study(tmp_path):
    return open_toys(tmp_path / "store", generations=5)


def digests(study, protocol, sounds=math.inf, seed=0) -> list[str]:
    """Of the weights by generation, in a chain in which an alarm sounds from a generation on."""
    found = []

    def measure(weights, g, sets):
        found.append([held.digest for held in weights.values()])
        return g >= sounds

    run_chain(study, protocol, seed, measure)
    return found


def held(chain, g) -> list[str]:
    """Digests of the weights of a generation."""
    return [weights.digest for weights in chain[g][0].values()]


# ---- the loop


@pytest.mark.parametrize("role", ROLES)
def test_a_remedy_holds_from_its_generation_on(study, role):
    """Before it the chain is the recursive one, bit for bit; from it on half of the pairs are real."""
    never, late = run(study, recursive(role)), run(study, switched(role, "late", 3, HALF))
    images, captions = real_of(study)
    for g in (1, 2):
        assert held(late, g) == held(never, g)
    for g in (3, 4, 5):
        own = late.set(g)
        assert equal((own[0][6:], own[1][6:]), (images[6:], captions[6:]))
        assert not equal((own[0][:6], own[1][:6]), (images[:6], captions[:6])) and len(own[1]) == 12
        assert held(late, g) != held(never, g)


def test_always_is_the_arm_without_a_switch(study):
    assert digests(study, switched("generator", "always", 1, HALF)) == digests(study, recursive("generator", **HALF))


def test_an_alarm_brings_the_remedy_in_the_generation_after(study):
    waits = switched("generator", "on-alarm", ("recall falls",), HALF)
    for sounds in (1, 2, 4):
        late = switched("generator", "late", sounds + 1, HALF)
        assert digests(study, waits, sounds) == digests(study, late)
    assert digests(study, waits) == digests(study, recursive("generator")) == digests(study, waits, 5)  # too late


def test_what_is_shared_is_made_once_and_a_rerun_does_nothing(study):
    digests(study, recursive("generator"))
    before = {item.name for item in study.store.items()}
    made = digests(study, switched("generator", "late", 4, HALF))
    new = {item.name for item in study.store.items("weights")} - before
    assert len(new) == 2  # generations 4 and 5
    after = {item.name for item in study.store.items()}
    assert digests(study, switched("generator", "on-alarm", ("recall falls",), HALF), 3) == made
    assert {item.name for item in study.store.items()} == after


def test_an_interrupted_chain_switches_where_it_would_have(tmp_path):
    waits = switched("captioner", "on-alarm", ("BLEU-4 falls",), HALF)
    want = digests(open_toys(tmp_path / "whole", generations=5), waits, 2)

    def cut(weights, g, sets):
        if g == 3:
            raise KeyboardInterrupt
        return g >= 2

    with pytest.raises(KeyboardInterrupt):
        run_chain(open_toys(tmp_path / "cut", generations=5), waits, 0, cut)
    assert digests(open_toys(tmp_path / "cut", generations=5), waits, 2) == want


def test_the_frozen_captioner_relabels_what_the_generator_makes(study):
    """The first captioner of the zoo, which the chain has no model of and does not measure."""
    chain = run(study, switched("generator", "labels", 3, {"captions": "base"}))
    asked, base = real_of(study)[1], state(study, study.models["s1"].base)
    for g in (1, 2):
        assert chain.set(g)[1] == asked
    for g in (3, 4):
        images, told = chain.set(g)
        maker = state(study, chain.weights(g - 1, "p1"))
        assert {m[:2] for m in marks(images)} == {(short("p1"), maker)} and told != asked
        wrote = [made[0] for made in study.models["s1"].adapter.made if np.array_equal(made[1], images)]
        assert wrote == [base]
    assert [member.role for member in chain[5][0]] == ["generator"]


def test_a_study_of_one_kind_of_model_needs_no_other(study):
    study.zoo = study.zoo | {"captioner": ()}
    assert len(digests(study, switched("generator", "late", 3, HALF))) == 6


def test_models_that_were_apart_share_one_pool_on_alarm(study):
    several = {"population": ZOO["generator"], "exchange": False}
    apart = run(study, recursive("generator", "apart", **several))
    pool = run(study, switched("generator", "pool", 3, {"exchange": True}, **several))
    assert held(pool, 2) == held(apart, 2)
    own = [marks(images) for images, _ in pool[2][1].values()]
    assert [{m[0] for m in made} for made in own] == [{short(name)} for name in ZOO["generator"]]
    shared = [marks(images) for images, _ in pool[3][1].values()]
    assert shared[0] == shared[1] == shared[2]
    assert [m[0] for m in shared[0]] == [short(name) for name in ZOO["generator"] for _ in range(4)]


def test_a_larger_budget_and_real_pairs_that_go(study):
    run(study, switched("generator", "budget", 3, {"decoding": (("steps", 7),)}))
    steps = [made[3].steps for made in study.models["p1"].adapter.made]
    assert steps == [2, 2, 7, 7, 7]
    early = run(study, switched("generator", "early", 3, {"real_share": 0.0}, **HALF))
    assert [sum(m == (0, 0, 0) for m in marks(early.set(g)[0])) for g in (1, 2, 3, 4, 5)] == [6, 6, 0, 0, 0]


# ---- the arms


@pytest.mark.parametrize("generations", range(1, 13))
def test_totals_are_equal_whenever_they_come(generations):
    """In every number of generations, up to what rounding to whole pairs does."""
    s = replace(load_settings("study", NAME), generations=generations)
    there = {(p.roles[0], p.arm): p for p in arms_of(NAME, s)}
    for role in ROLES:
        totals, comes = {}, {}
        for arm in ("total-early", "total-evenly", "total-late"):
            each = [there[role, arm].at(g).parts(s.pairs)[1] for g in range(1, generations + 1)]
            totals[arm], comes[arm] = sum(each), np.average(range(1, generations + 1), weights=each)
            assert all(there[role, arm].at(g).real_fresh for g, n in enumerate(each, 1) if n)
        assert max(totals.values()) - min(totals.values()) <= generations / 2
        assert totals["total-evenly"] == 160 * generations
        assert comes["total-early"] <= comes["total-evenly"] <= comes["total-late"]
        assert generations == 1 or comes["total-early"] < comes["total-late"]


def test_when_the_remedy_comes():
    def late(generations):
        arms = arms_of(NAME, replace(load_settings("study", NAME), generations=generations, grid="corners"))
        return [p.switch for p in arms if p.arm.startswith("late-") and p.roles == ("generator",)]

    assert late(10) == [3, 5, 7] and late(3) == [2, 3] and late(2) == [2] and late(1) == []
    for p in arms_of(NAME, load_settings("study", NAME)):
        if p.arm.startswith("on-alarm"):
            assert p.switch == (ALARM[p.roles[0]],)
        if p.remedy and "pool" not in p.arm:  # before and without it the chain is the one that it is compared with
            drift = p.roles == ("captioner",) and p.arm != "on-alarm-matched"
            plain = replace(p, remedy=(), switch=(), arm="recursive", real_share=0.0, real_fresh=False, controls=())
            assert plain == recursive(p.roles[0], controls=(), drift=p.drift) and bool(p.drift) == drift


def test_a_provenance_gives_the_arms_back():
    """Those with a switch, and those of an older version, which had none."""
    for p in arms_of(NAME, load_settings("study", NAME)):
        told = json.loads(json.dumps(vars(p), default=list))
        assert of_json(told) == p == verify.protocols_of({"protocols": [told]})[0]
    old = {k: v for k, v in vars(gen0("generator")).items() if k not in ("remedy", "switch")}
    assert of_json(json.loads(json.dumps(old))) == gen0("generator")


# ---- what decides, and what is told of it


@pytest.fixture
def chain(study, monkeypatch):
    """chain(protocol, recalls, spread): Done of a chain whose recall is that, beside real data that spread so."""

    def go(protocol: Protocol, recalls, spread=0.01):
        of = {"modality": "image", "metric": "recall", "measurement": "guidance 1", "space": "judge", "subset": "test"}
        of |= {"n": 100, "hash": "h", "missing": ""}
        world = [
            of | {"arm": "world", "seed": -1 - k, "generation": 0, "model": "", "value": 0.9 + spread * k}
            for k in (0, 1, 2)
        ]

        def rows(study, tools, protocol, weights, g, sets, seed):
            held.append(protocol)
            return [of | {"model": "p1", "value": recalls[g]}]

        held = []
        monkeypatch.setattr(experiment, "measure_world", lambda study, tools: world)
        monkeypatch.setattr(experiment, "measure_generation", rows)
        settings = replace(study.settings, students=0)
        done = experiment.run_one(study, SimpleNamespace(shown={}), experiment.Chain(NAME, protocol, 0, settings))
        assert not done.failure, done.failure
        return done, held

    return go


def of_metric(done, metric):
    return [r["value"] for r in done.rows if r["metric"] == metric]


def test_the_alarm_that_is_named_decides(chain):
    waits = switched("generator", "on-alarm", ("recall falls",), HALF)
    done, held = chain(waits, [0.9, 0.9, 0.2, 0.9, 0.9, 0.2])
    assert of_metric(done, "switched")[2:] == [3, 3, 3] and np.isnan(of_metric(done, "switched")[:2]).all()
    assert of_metric(done, "real_pairs") == [0, 0, 6, 6, 6]
    assert [p.real_share for p in held] == [0, 0, 0, 0.5, 0.5, 0.5]  # what is measured is what held
    assert experiment.switch_in_words(done) == ("SWITCH generator on-alarm seed 0, since generation 3 (real_share=0.5)")
    table = pd.DataFrame(done.rows)
    first = alarms.sounded(table, 5, {a.name: 0.1 for a in alarms.ALARMS}).set_index("alarm").generation
    assert first["recall falls"] == 2  # the table says the same
    other = switched("generator", "on-alarm", ("precision falls",), HALF)
    assert np.isnan(of_metric(chain(other, [0.9, 0.9, 0.2, 0.9, 0.9, 0.2])[0], "switched")).all()


def test_an_alarm_that_is_silent_or_cannot_sound_is_told(chain):
    waits = switched("generator", "on-alarm", ("recall falls",), HALF)
    quiet, blind = chain(waits, [0.9] * 6)[0], chain(waits, [0.9] + [0.1] * 5, spread=0.0)[0]
    for done, why in ((quiet, "its alarms have not sounded"), (blind, "its alarms cannot sound")):
        assert {r["missing"] for r in done.rows if r["metric"] == "switched"} == {why}
        assert f"seed 0, never: {why} (real_share=0.5)" in experiment.switch_in_words(done)
    late = chain(switched("generator", "late-3", 3, HALF), [0.9] * 6)[0]
    told = [r.get("missing", "") for r in late.rows if r["metric"] == "switched"]
    assert told == ["the remedy comes later"] * 2 + [""] * 3
    assert experiment.switch_in_words(chain(recursive("generator"), [0.9] * 6)[0]) == ""
    assert not of_metric(chain(recursive("generator"), [0.9] * 6)[0], "real_pairs")


# ---- figures and conclusion


def table_of(generations=10, seeds=(0, 1, 2), never=(), **options) -> pd.DataFrame:
    """A synthetic table of the experiment with what its sets tell; alarms sound in generation 2, 3, 4, ... by seed, and
    in none of the seeds `never`."""
    options = {"grid": "full", "profile": "study"} | options
    table = synthetic.study(NAME, generations=generations, seeds=seeds, **options)
    kept = {k: v for k, v in options.items() if k in ("grid", "profile")}
    rows = []
    for p in (p for p in synthetic.protocols(NAME, **kept) if p.remedy):
        for seed in seeds:
            alarm = math.inf if seed in never else 2 + seed
            sets = {m: SimpleNamespace(digest="d" * 20, real=SimpleNamespace(keys=range(640))) for m in p.trains}
            pairs = SimpleNamespace(settings=SimpleNamespace(pairs=640))
            for g in range(1, generations + 1):
                own = {"experiment": NAME, "arm": p.arm, "seed": seed, "generation": g}
                rows += [own | r for r in experiment.switch_rows(pairs, p, sets, g, alarm)]
    return to_table(table.to_dict("records") + rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    synthetic.study_results(folder, NAME, generations=10, seeds=(0, 1, 2))
    write_table(table_of(), folder / f"{NAME}.parquet")
    return folder


def test_every_figure_is_drawn_of_the_rows_that_the_sidecar_names(results, tmp_path):
    draw(results, tmp_path, NAME)
    table = pd.read_parquet(results / f"{NAME}.parquet")
    for figure in FIGURES[NAME]:
        record = json.loads((tmp_path / f"{NAME}_{figure}.json").read_text())
        assert record["rows"] and record["seeds"] and 10 in record["generations"] and "n = " in record["caption"]
        assert "nan" not in (tmp_path / f"{NAME}_{figure}.svg").read_text()
        for rows in record["rows"] if figure != "wall" else ():
            found = table
            for column, values in rows.items():
                found = found[found[column].isin(values if isinstance(values, list) else [values])]
            assert len(found), (figure, rows)


def test_a_point_is_what_the_table_says(results):
    """Of pictures all right, by hand: what is avoided, when, and for how many real pairs."""
    t = pd.read_parquet(results / f"{NAME}.parquet")
    right = t[(t.metric == "all_right") & (t.measurement == "guidance 1") & (t.model == "generator") & (t.seed >= 0)]
    late = right[right.generation >= 8].pivot_table(index="seed", columns="arm", values="value")
    avoided = late.sub(late["recursive"], axis=0)
    source = open_source(results, NAME)
    switch, unit = (FIGURES[NAME][name](source).figure.axes[0] for name in ("switch", "unit"))
    lines = {tuple(np.round(line.get_xdata(), 6)): line.get_ydata() for line in switch.lines}
    by_hand = [avoided[arm].mean() for arm in ("always", "late-3", "late-5", "late-7")]
    assert lines[1, 3, 5, 7] == pytest.approx(by_hand)
    assert lines[4.0,] == pytest.approx([avoided["on-alarm"].mean()])  # alarms in 2, 3 and 4
    lines = {tuple(np.round(line.get_xdata(), 6)): line.get_ydata() for line in unit.lines}
    pairs = [1600, 1280, 960, 640]
    assert lines[5.5, 6.5, 7.5, 8.5] == pytest.approx([PER * a / n for a, n in zip(by_hand, pairs, strict=True)])
    totals = [PER * avoided[f"total-{when}"].mean() / 1600 for when in ("early", "evenly", "late")]
    assert lines[3, 5.5, 8] == pytest.approx(totals)


def test_one_seed_and_little_else_is_drawn_and_said(tmp_path):
    one = {"seeds": (0,), "generations": 3, "grid": "corners", "profile": "nano"}
    folder = synthetic.study_results(tmp_path / "results", NAME, with_samples=False, **one)
    table = table_of(never=(0,), **one)
    write_table(table, folder / f"{NAME}.parquet")
    source = open_source(folder, NAME)
    axes = FIGURES[NAME]["switch"](source).figure.axes
    labels = [axes[0].xaxis.get_major_formatter()(tick) for tick in axes[0].get_xticks()]
    assert labels == ["1", "2", "3", "never"]
    remedied = set(table.arm[table.metric == "switched"])
    write_table(table[~table.arm.isin(remedied)], folder / f"{NAME}.parquet")
    source = open_source(folder, NAME)
    for name in ("curves", "switch", "unit", "arms", "wall"):
        figure = FIGURES[NAME][name](source).figure
        said = " ".join(text.get_text() for ax in figure.axes for text in ax.texts).replace("\n", " ")
        assert name not in ("switch", "unit") or "no arm of this table has a remedy" in said
    assert say(source.table, 3) == "No arm of this table has a remedy, or none its chain without.\n"


def test_the_conclusion_is_what_the_table_says():
    table = table_of(never=(1,))
    found = summary(table, 10).set_index(["modality", "arm"])
    right = table[(table.metric == "all_right") & (table.measurement == "greedy") & (table.model == "captioner")]
    late = right[(right.generation >= 8) & (right.seed >= 0)].pivot_table(index="seed", columns="arm", values="value")
    row = found.loc["text", "late-5"]
    saved = late["late-5"] - late["recursive-drift"]
    assert (row.since, row.pairs, row.never, row.seeds) == (5, 960, 0, 3)
    assert row.saved == pytest.approx(saved.mean()) and row.low < row.saved < row.high
    assert row.each == pytest.approx(PER * saved.mean() / 960)
    waited = found.loc["image", "on-alarm"]
    assert (waited.never, waited.since, waited.pairs) == (1, 4, 160 * (8 + 0 + 6) / 3)
    assert ("image", "on-alarm-pool") not in found.index  # of several models
    matched = late["on-alarm-matched"] - late["recursive"]
    assert found.loc["text", "on-alarm-matched"].saved == pytest.approx(matched.mean())
    said = say(table, 10)
    assert said.startswith("**3 seeds decide nothing;**")
    assert "  - *on-alarm*, since generation 4, in 1 of 3 seeds never: +" in said
    assert f"  - *late-5*, since generation 5: {row.saved:+.2f} [{row.low:+.2f}, {row.high:+.2f}]; " in said
    lost = (late_of(table, "image", 10)["on-alarm"] - late_of(table, "image", 10)["always"]).dropna()
    assert f"to wait for the alarm instead of starting with the remedy: {lost.mean():+.2f} [" in said
    silent = say(table_of(never=(0, 1, 2)), 10)
    assert "the remedy never came (its alarms have not sounded)" in silent
    assert said.count("to wait for the alarm") == 2 and "to wait for the alarm" not in silent


def test_a_run_tells_of_switches(smoke):
    """In the log and in the table, for every arm that has a remedy."""
    settings = load_settings("smoke", NAME)
    table = pd.read_parquet(smoke.folder / "results" / f"{NAME}.parquet")
    sounded = alarms.sounded(table, 2)
    for p in (p for p in arms_of(NAME, settings) if p.remedy):
        rows = table[(table.arm == p.arm) & (table.metric == "switched") & (table.modality == p.modalities[0])]
        assert sorted(rows.generation) == [1, 2]
        came = rows.value.min()
        if isinstance(p.switch, tuple):  # what decided can be seen in the table
            first = sounded.generation[(sounded.arm == p.arm) & sounded.alarm.isin(p.switch)].min()
            assert came == first + 1 or (math.isnan(came) and not first < 2)
        told = f"SWITCH {p.name} seed 0, " + ("never: " if math.isnan(came) else f"since generation {came:.0f} (")
        assert told in smoke.output
        real = table[(table.arm == p.arm) & (table.metric == "real_pairs") & (table.modality == p.modalities[0])]
        assert {g: v for g, v in zip(real.generation, real.value, strict=True)} == {
            g: 2.0 * (g >= came) for g in (1, 2)
        }
    assert f"{NAME}: ALARMS that cannot sound, " in smoke.output
