"""`make bench` on its metrics: that it measures what it says. How fast that is belongs to no test."""

from dataclasses import replace

import pytest

from mmcollapse import bench, speedup
from mmcollapse.experiment import open_study
from mmcollapse.pool import Pool
from mmcollapse.settings import load_settings


def test_both_frechet_distances_are_timed_and_equal(capsys):
    ours, theirs, off = bench.frechet_beside_cleanfid(n=200, d=16)
    assert ours > 0 and theirs > 0 and off < 1e-6
    assert "16 dimensions, n = 200" in capsys.readouterr().out


def test_every_group_of_metrics_is_timed_and_none_is_left_patched(tmp_path, capsys):
    study, tools = open_study(load_settings("smoke", runs=str(tmp_path)))
    seconds = bench.metrics(study, tools, prompts=4, noises=2, captions=6)
    groups = {"oracle", "parser", "pixels", "words", "language model", "numbers from features"}
    assert set(seconds) == groups | {f"features of {name}" for name in tools.spaces}
    assert all(spent > 0 for spent in seconds.values())
    out = capsys.readouterr().out
    assert "metrics of 8 pictures and 6 captions" in out and all(group in out for group in seconds)
    assert "clocked" not in str([bench.measure.word_scores, *(s.images for s in tools.spaces.values())])
    assert not list(tmp_path.iterdir()) and len(tools.prompts.images) == study.settings.prompts  # a store of its own


def test_the_ways_to_run_are_timed_by_the_functions_that_chains_call(tmp_path, capsys):
    class Inline:
        """Two workers of dask, which are this process."""

        def scheduler_info(self, n_workers):
            return {"workers": {"one": {}, "two": {}}}

        def submit(self, function, *args, workers, pure):
            return function(*args)

        def gather(self, results):
            return results

    settings = load_settings("smoke", runs=str(tmp_path), compute_batch=4, pairs=6, steps=2, batch=3)
    found = speedup.speedups(settings, Pool(Inline()), 0.01)
    assert set(found) == set(speedup.WANTED)
    out = capsys.readouterr().out
    for kind, paces in found.items():
        assert min(paces.values()) > 0 and paces["plain"] == paces["recorded"] and kind in out
    flops = {kind: speedup.flops_of(settings, kind) for kind in found}
    # three denoising steps with guidance, at least, are more than one forward pass and its gradient
    assert flops["making pictures"] > 0.5 * flops["fine-tuning the generator"] > 0
    again = speedup.flops_of(replace(settings, compute_batch=2), "making pictures")
    assert again == pytest.approx(flops["making pictures"], rel=0.05)  # a picture, whatever the batch
