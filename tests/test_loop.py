"""The recursion, on the toy generator: closed form, sharing, resumption, faults."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from mmcollapse import loop
from mmcollapse.errors import StoreFull, TrainingDiverged
from mmcollapse.experiments import gen0, real, recursive
from mmcollapse.loop import Model, Study, run_chain
from mmcollapse.measure import Instruments
from mmcollapse.models.toy import Gaussian
from mmcollapse.settings import load_settings
from mmcollapse.store import Store
from mmcollapse.worlds.scenes import Scenes

RECURSIVE = recursive("generator")
REAL_LIKE = gen0("generator")


def toy(root, **changes):
    settings = load_settings(
        "smoke", **{"pairs": 10, "batch": 10, "steps": 150, "lr_generator": 0.05, "generations": 6} | changes
    )
    zoo = {"generator": ("generator",), "captioner": ("captioner",)}
    return Study(settings, Store(root), Scenes(), {"generator": Model(Gaussian(), settings)}, zoo, "cpu")


def variances(study, protocol, seed=0):
    """Mean variance of the 768 Gaussians at each generation."""
    out = []

    def measure(weights, g, sets):
        (held,) = weights.values()
        adapter = study.models["generator"].hold(held)
        out.append(float((2 * adapter.log_std.detach()).exp().mean()))

    run_chain(study, protocol, seed, measure)
    return np.array(out)


def test_recursion_loses_variance_at_the_rate_of_the_closed_form(tmp_path):
    got = variances(toy(tmp_path), RECURSIVE)
    want = (1 - 1 / 10) ** np.arange(7)
    # the mean over 768 dimensions of a product of chi-squares: relative standard error about sqrt(2 g / n / 768)
    assert np.all(np.abs(got / want - 1) < 4 * np.sqrt(2 * np.arange(7) / 10 / 768) + 0.01), got / want


def test_generation_zero_data_do_not_compound(tmp_path):
    got = variances(toy(tmp_path), REAL_LIKE)
    assert np.all(np.abs(got[1:] / 0.9 - 1) < 0.06), got  # one loss of 1/n, whatever the generation


def test_more_pairs_collapse_slower(tmp_path):
    few = variances(toy(tmp_path, pairs=5, batch=5), RECURSIVE)[-1]
    many = variances(toy(tmp_path, pairs=20, batch=20), RECURSIVE)[-1]
    assert few < many


def test_learning_rate_zero_is_exactly_flat(tmp_path):
    assert np.all(variances(toy(tmp_path, lr_generator=0.0), RECURSIVE) == 1.0)


def test_arms_share_generation_one_and_a_rerun_does_nothing(tmp_path, monkeypatch):
    study, calls = toy(tmp_path, steps=3, generations=3), []
    monkeypatch.setattr(loop, "train", lambda *a, **k: calls.append(1) or [0.0])
    variances(study, RECURSIVE)
    assert len(calls) == 3
    variances(study, REAL_LIKE)  # generation 1 is the recursive arm's
    assert len(calls) == 3 + 2
    variances(toy(tmp_path, steps=3, generations=3), RECURSIVE)
    assert len(calls) == 5


def test_names_know_nothing_of_arms_profiles_and_planned_generations(tmp_path):
    def names(root, protocol, **changes):
        study = toy(root, steps=2, **changes)
        variances(study, protocol)
        return {i.name for i in study.store.items()}

    short = names(tmp_path / "a", RECURSIVE, generations=2)
    assert short <= names(tmp_path / "b", recursive("generator", "another name"), generations=4)
    assert not short & names(tmp_path / "c", RECURSIVE, generations=2, lr_generator=0.06) - {
        i.name for i in toy(tmp_path / "a").store.items("pairs")
    }


def test_real_data_are_the_real_pictures(tmp_path, monkeypatch):
    study, seen = toy(tmp_path, steps=1, generations=2), []

    def encode(images, captions):
        seen.append((images, captions))
        return {"x": torch.zeros(10, 768)}

    monkeypatch.setattr(study.models["generator"].adapter, "encode", encode)
    variances(study, real("generator"))
    _, there = loop.prompts(study, 0)
    assert len(seen) == 2
    for images, captions in seen:
        assert np.array_equal(images, there.images) and captions == [five[0] for five in there.captions]


def test_seeds_have_prompts_of_their_own(tmp_path):
    study = toy(tmp_path)
    a, b = (loop.prompts(study, seed)[1] for seed in (0, 1))
    assert not set(a.keys) & set(b.keys)
    assert a.keys == loop.prompts(study, 0)[1].keys


def test_every_weight_but_the_last_and_the_shared_is_retired(tmp_path):
    study = toy(tmp_path, steps=1, generations=5)
    run_chain(study, RECURSIVE, 0, lambda weights, g, sets: None)
    kept = [i for i in study.store.items("weights") if not i.manifest.get("pruned")]
    assert sorted(i.inputs["seed"][1] for i in kept) == [1, 5]


def test_a_retired_generation_is_made_again_when_asked_for(tmp_path):
    study, kept = toy(tmp_path, steps=2, generations=4), {}
    run_chain(study, RECURSIVE, 0, lambda weights, g, sets: kept.update({g: next(iter(weights.values()))}))
    pruned = kept[2].item
    study.retire([pruned])
    adapter = study.models["generator"].hold(kept[2])
    assert float(adapter.log_std.detach().abs().sum()) > 0  # made from generation 1, with the same digest


def test_nan_ends_the_chain_and_leaves_the_rest(tmp_path, monkeypatch):
    study = toy(tmp_path, steps=2, generations=3)
    adapter, count = study.models["generator"].adapter, []
    sound = adapter.loss

    def loss(batch):
        count.append(1)
        return sound(batch) * (float("nan") if len(count) > 2 else 1.0)  # the second generation's first step

    monkeypatch.setattr(adapter, "loss", loss)
    with pytest.raises(TrainingDiverged, match="nan.*step 2"):
        variances(study, RECURSIVE)
    assert len(study.store.items("weights")) == 1
    monkeypatch.setattr(adapter, "loss", sound)
    fresh = variances(toy(tmp_path / "other", steps=2, generations=3), RECURSIVE)
    assert np.array_equal(variances(study, RECURSIVE), fresh)  # and the rerun goes on as if nothing had been


def test_a_full_disk_ends_the_chain_with_a_clear_message(tmp_path, monkeypatch):
    study = toy(tmp_path, steps=2, generations=2)
    import safetensors.torch

    def full(*_a, **_k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StoreFull, match="disk full while writing weights-"):
        variances(study, RECURSIVE)
    monkeypatch.undo()
    assert len(variances(study, RECURSIVE)) == 3


def test_a_damaged_file_is_found_set_aside_and_made_again(tmp_path):
    study = toy(tmp_path, steps=2, generations=2)
    before = variances(study, RECURSIVE)
    last = max(study.store.items("weights"), key=lambda i: i.inputs["seed"][1])
    path = last.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=last.name):
        after = variances(toy(tmp_path, steps=2, generations=2), RECURSIVE)
    assert np.array_equal(before, after)
    assert list((tmp_path / "damaged").iterdir())


CHAIN = textwrap.dedent("""
    import sys, torch
    sys.path.insert(0, sys.argv[2])
    from test_loop import RECURSIVE, toy, variances
    print("begun", flush=True)
    print(variances(toy(sys.argv[1], steps=150, generations=8), RECURSIVE).tolist(), flush=True)
""")


def test_kill_nine_and_rerun_equals_an_uninterrupted_run(tmp_path):
    want = variances(toy(tmp_path / "whole", steps=150, generations=8), RECURSIVE)
    command = [sys.executable, "-c", CHAIN, str(tmp_path / "cut"), os.path.dirname(__file__)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    while not list((tmp_path / "cut").glob("weights/weights-*")):  # in the middle of a later generation
        time.sleep(0.01)
        assert process.poll() is None, "the chain ended before it could be killed"
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "cut").glob("weights/weights-*")) == []
    assert np.array_equal(variances(toy(tmp_path / "cut", steps=150, generations=8), RECURSIVE), want)


def test_the_prompts_that_memory_is_measured_on_are_those_of_training(tmp_path):
    """Of an arm with a number of pairs of its own, and of one with new prompts every generation, too."""

    class Finite(Scenes):
        def size(self, split):
            return 64

    study = toy(tmp_path, probes=5)
    study.world = Finite()
    tools = Instruments(study, {}, None, None)
    for arm in (RECURSIVE, recursive("generator", "N-4", pairs=4), recursive("generator", "fresh", fresh=True)):
        for g in range(4):
            _, real = loop.prompts(study, 0, arm.pairs, max(0, g - 1) if arm.fresh else 0)
            theirs = tools.trained_on(0, arm, g).captions
            assert theirs == real.captions[:5] and len(theirs) == min(5, arm.pairs or 10), (arm.arm, g)
