"""The plan: its counts are those of a run."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from mmcollapse import costs, sources
from mmcollapse import plan as plan_module
from mmcollapse.__main__ import main
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import open_study
from mmcollapse.experiments import PRIORITY, TURNS, arms_of, seeds_of
from mmcollapse.plan import COLUMNS, Counting, count, plan
from mmcollapse.rates import read_rates
from mmcollapse.settings import load_settings
from mmcollapse.store import Item, Store


def settings(profile="smoke", names=PRIORITY, **changes):
    return {name: load_settings(profile, name, **changes) for name in names}


@pytest.fixture(scope="module")
def counted():
    return count(settings())


def of_store(store: Store, until: str) -> Counter:
    """What a run put into a store until then, of what a plan counts."""
    found = Counter()
    for item in store.items():
        inputs = item.inputs
        if item.manifest["made_at"] > until:
            continue  # by another test, on the same store
        if item.kind == "weights":
            _, _, role, *own = inputs["seed"]
            found["students" if "student" in str(own) else "model-generations"] += 1
            what = {"generator": "pictures trained on", "captioner": "captions trained on"}[role]
            found[what] += inputs["recipe"]["steps"] * inputs["recipe"]["batch"]
        elif item.kind == "pairs" and inputs.get("noise") == "measure":
            found["pictures measured" if "prompts" in inputs else "captions measured"] += item.facts["n"]
        elif item.kind == "pairs" and inputs["seed"][2] != "oracle":
            found[{"generator": "pictures made", "captioner": "captions made"}[inputs["seed"][2]]] += item.facts["n"]
    return found


class Known(Counting):
    """Counts like a plan, over a store in which all is there; so what came out equal there has one name."""

    def __init__(self, store: Store):
        super().__init__()
        self.store = store

    def make(self, kind, inputs, maker) -> Item:
        name = super().make(kind, inputs, maker).name
        assert (manifest := self.store._read(name)), f"{name} was planned and not made: {inputs}"
        return Item(self.store, manifest)


def test_a_plan_counts_what_a_run_does(smoke, counted, monkeypatch):
    results, store = smoke.folder / "results", Store(smoke.folder / "runs")
    until = max(json.loads((results / f"{name}.json").read_text())["made_at"] for name in PRIORITY)
    made = of_store(store, until)
    assert set(made) == set(COLUMNS) - {"arms", "chains", "rows"}
    total = sum(counted.values(), Counter())
    for name, number in made.items():
        # two training steps change little: some captions come out as those of the generation before, and are shared
        assert 0.8 * total[name] <= number <= total[name]
    assert made["pictures made"] == total["pictures made"]
    for name in PRIORITY:
        assert counted[name]["rows"] == len(pd.read_parquet(results / f"{name}.parquet"))

    def opened(settings, protocols, counting):
        study, tools = open_study(settings, protocols)
        study.store = counting
        return study, tools

    monkeypatch.setattr(plan_module, "SOUNDS", math.inf)  # at these sizes no alarm does
    monkeypatch.setattr(plan_module, "Counting", lambda: Known(store))
    monkeypatch.setattr(plan_module, "_open", opened)
    again = sum(count(settings()).values(), Counter())
    assert {name: again[name] for name in made} == made  # exactly


def test_experiments_come_by_priority_with_their_arms_and_chains(counted):
    assert list(counted) == list(PRIORITY)
    for name, s in settings().items():
        assert counted[name]["arms"] == counted[name]["chains"] == len(arms_of(name, s))
    more = count(settings(seeds=3))
    for name, counts in counted.items():
        for what in ("chains", "model-generations", "students", "pictures made", "captions trained on"):
            assert more[name][what] == 3 * counts[what]  # seeds share nothing of these
        assert more[name]["pictures measured"] <= 3 * counts["pictures measured"]
    both = [c["01_variance"]["pictures measured"] for c in (counted, more)]
    assert both[1] == 3 * both[0] - 2 * (2 * 3 * 2 + 2 * 4)  # but generation 0: two guidances, withheld and uniform


def test_what_is_shared_is_counted_once(counted):
    """And once more where something keeps it from being shared."""
    alone = count(settings(names=["06_remedies"]))["06_remedies"]
    # both roles: two generations of *recursive* and *real*, and the second of *gen0*, whose first is the recursive one
    assert alone["model-generations"] - counted["06_remedies"]["model-generations"] == 2 * (2 + 2 + 1)
    apart = settings()
    apart["06_remedies"] = replace(apart["06_remedies"], lr_generator=3e-4, lr_captioner=3e-4)
    assert count(apart)["06_remedies"]["model-generations"] == alone["model-generations"]
    # what generation 0 makes is still the others'
    assert count(apart)["06_remedies"]["pictures made"] < alone["pictures made"]


def test_populations_of_2_and_4_are_a_part_of_their_own():
    zoo = {"generators": "a,b,c", "captioners": "d,e,f", "populations": "1,2,3"}
    pools = count(settings(names=["03_diversity"], **zoo))
    assert list(pools) == ["03_diversity", "03_diversity, pools of 2 and 4"]
    last = pools["03_diversity, pools of 2 and 4"]
    assert last["arms"] == 6 and last["model-generations"] == 6 * 2 * 2  # two models, two generations
    assert last["pictures made"] == 3 * 2 * 8 and last["students"] == 6 * 2


def test_the_plan_of_the_study():
    """Of two generations, which take a fifth of the time."""
    study = settings("study", generations=2, student_generations="1")
    parts = count(study)
    for name, s in study.items():
        own = [counts for part, counts in parts.items() if part.startswith(name)]
        protocols = arms_of(name, s)
        assert sum(c["arms"] for c in own) == len(protocols)
        assert sum(c["chains"] for c in own) == sum(len(seeds_of(name, p, s)) for p in protocols)
        students = sum(2 * len(p.trains) for p in protocols)  # one generation of two seeds
        assert bool(s.students) <= sum(c["students"] for c in own) <= s.students * students
    assert list(parts)[-2:] == ["03_diversity, pools of 2 and 4", "08_intervention"]


def test_the_plan_as_text(counted, capsys):
    text = plan(settings())
    head, rows = text.splitlines()[:2], text.split("\n\n")[0].splitlines()[2:]
    assert [row.split()[0] for row in rows] == [*PRIORITY, "all"]
    assert len({len(row) for row in (*head, *rows)}) == 1
    numbers = [[int(cell.replace(",", "")) for cell in row.split()[1:-1]] for row in rows]
    assert numbers[:-1] == [[counts[name] for name in COLUMNS] for counts in counted.values()]
    assert numbers[-1] == [sum(column) for column in zip(*numbers[:-1], strict=True)]
    spent = [float(row.split()[-1]) for row in rows]
    assert all(hours > 0 for hours in spent) and spent[-1] == pytest.approx(sum(spent[:-1]), rel=0.1)
    turns = [line.split() for line in text.splitlines() if re.match(r"[1-4]\. ", line)]
    assert sum(int(turn[-2]) for turn in turns) == numbers[-1][1] and len(turns) == len(TURNS)
    assert main(["plan", "--profile", "smoke"]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert "optimiser steps; about 0.00" in text and " on one core (data/rates.json)" in text and "WARNING" not in text
    assert "judge-2: look" in text and "memory of models and training: 1" in text
    assert main(["plan", "--profile", "smoke", "--only", "06_remedies"]) == 0
    assert "01_variance" not in capsys.readouterr().out


# ---- photos, of which none is opened


PHOTOS = {"world": "photos", "data": "coco-2014", "generators": "CompVis/stable-diffusion-v1-4", "spaces": "clip"}
PHOTOS |= {"captioners": "Salesforce/blip-image-captioning-base", "image_size": 512, "device": "cuda"}


@pytest.fixture
def nothing_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DATA", tmp_path)
    return tmp_path


def test_a_plan_needs_neither_photos_nor_models(nothing_fetched):
    text = plan(settings(names=["01_variance"], **PHOTOS))
    assert (
        "coco-2014 is not here; assumed are the sizes of its splits as published: base 73,303, judge 19,992, " in text
    )
    assert "never fetched, and no folder here (and 5 more): run `make fetch`" in text
    assert (
        "512 px, bfloat16, batch 16, compiled" in text
        and "CompVis/stable-diffusion-v1-4: denoise" in text
        and "WARNING" not in text
    )
    assert re.search(r"about [\d.]+ hours on one NVIDIA H100 80GB HBM3 \(data/rates.json\)", text)
    text = plan(settings(names=["01_variance"], **PHOTOS | {"spaces": "clip,inception"}))
    assert re.search(r"at least [\d.]+ hours on one NVIDIA H100 80GB HBM3; 1 of \d+ kinds of work were never mea", text)


def test_a_plan_of_a_folder_counts_its_captions_and_opens_no_picture(tmp_path, nothing_fetched):
    rows = [{"file_name": f"{i}.jpg", "caption": "a"} for i in range(100)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = PHOTOS | {"data": str(tmp_path)}
    text = plan(settings(names=["01_variance"], **own))
    assert "assumed" not in text and "WARNING" not in text
    text = plan(settings(names=["01_variance"], **own, pairs=16))  # of 100, 15 are for chains
    assert "WARNING: setting pairs=16, arm 'recursive': the chain split of world 'photos' has only 15 pairs" in text
    with pytest.raises(MMCollapseError, match="has no karpathy captions; there are image-folder"):
        plan(settings(names=["01_variance"], **own, layout="karpathy"))
    with pytest.raises(MMCollapseError, match="photos folder nowhere does not exist"):
        plan(settings(names=["01_variance"], **own | {"data": "nowhere"}))


def test_arms_that_need_the_truth_are_named_and_the_others_counted(nothing_fetched):
    both = settings(names=["04_relabeling"], **PHOTOS)
    store = Counting()
    counts = count(both, store)["04_relabeling"]
    arms = arms_of("04_relabeling", both["04_relabeling"])
    blind = [p.arm for p in arms if p.captions in ("oracle", "noised")]
    assert blind and counts["arms"] == len(arms) - len(blind)
    assert [line.split("'")[1] for line in store.told] == blind


def test_what_will_not_fit_is_told_before(nothing_fetched, monkeypatch):
    photos = settings(names=["01_variance"], **PHOTOS, method="lora")
    assert "WARNING" not in plan(photos)
    monkeypatch.setattr(costs, "gpu_memory", lambda: 4 * 10**9)
    monkeypatch.setattr(costs, "free", lambda folder: 1)  # MiB
    text = plan(photos)
    assert re.search(r"WARNING: the store would take \d+ MB, and .* has 1 MB free", text)
    assert re.search(r"WARNING: the models and their training hold \d\.\d GB, and the GPU has 4.0 GB", text)
    large = plan(settings(names=["01_variance"], **PHOTOS | {"image_size": 4096}, prompts=10**4, noises=10))
    assert "WARNING: pictures of one measurement take" in large


def test_the_hours_are_those_of_what_is_counted(nothing_fetched, monkeypatch):
    """Twice the seeds, about twice the work; and a rate twice as slow, twice the hours."""
    photos = {"names": ["06_remedies"]} | PHOTOS

    def hours(**changes):
        return float(
            re.search(r"about ([\d.]+) hours", plan(settings(**photos, prompts=500, measure_steps=50, **changes)))[1]
        )

    one = hours()
    assert one > 0 and 1.7 * one < hours(seeds=2) < 2.1 * one
    slow = [replace(rate, ms=2 * rate.ms) for rate in read_rates()]
    monkeypatch.setattr(plan_module, "read_rates", lambda: slow)
    assert hours() == pytest.approx(2 * one, rel=0.05)


def test_what_the_settings_keep_is_what_fills_the_store():
    def peak(**changes) -> int:
        store = Counting()
        count(settings(names=["06_remedies"], generations=6, students=0, **changes), store)
        return store.work.peak

    last = peak()
    assert peak(keep_weights="all") > 2 * last and last < peak(keep_pictures="all") < 2 * last


def test_the_store_is_no_fuller_than_planned(smoke):
    """What is left after a run, of weights and pictures, which alone are planned."""
    store = Counting()
    count(settings(), store)
    items = Store(smoke.folder / "runs").items()
    kept = [f for item in items if not item.manifest.get("pruned") for f in item.folder.iterdir()]
    size = sum(f.stat().st_size for f in kept if f.name in ("weights.safetensors", "pairs.parquet"))
    assert 0.3 * store.work.peak < size <= 1.2 * store.work.peak


def test_models_that_are_not_there_are_named():
    said = plan({"01_variance": load_settings("smoke", "01_variance", generators="nonsense", roles="generator")})
    assert "not ready: no " in said and "/nonsense: `make pretrain STAGES=...` makes those of the zoo" in said


def test_who_has_read_enough_is_no_error():
    """As `make plan | head -1`."""
    words = [sys.executable, "-m", "mmcollapse", "plan", "--profile", "smoke", "--only", "01_variance"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == 141
