"""Chains side by side: the same tables as one by one, whatever dies, and in pieces."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

from mmcollapse.__main__ import main
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import Chain, Done, Run
from mmcollapse.experiments import arms_of
from mmcollapse.pool import Pool, cost, open_pool
from mmcollapse.settings import load_settings
from mmcollapse.store import load_pairs
from mmcollapse.study import run_chains

EXPERIMENT = "04_relabeling"  # which has an arm that copies what another one did
RUN = [sys.executable, "-m", "mmcollapse", "study", "--profile", "smoke", "--only", EXPERIMENT, "--workers", "2"]


def start(folder, *more) -> subprocess.Popen:
    command = [*RUN, "--runs", str(folder / "runs"), "--results", str(folder / "results"), *more]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def table(folder) -> pd.DataFrame:
    return pd.read_parquet(folder / "results" / f"{EXPERIMENT}.parquet")


def samples(folder, tmp_path):
    (tmp_path / "s").mkdir(exist_ok=True)
    (tmp_path / "s" / "pairs.parquet").write_bytes((folder / "results" / f"{EXPERIMENT}.samples.parquet").read_bytes())
    images, captions, columns = load_pairs(tmp_path / "s")
    rows = zip(*columns.values(), captions, [image.tobytes() for image in images], strict=True)
    return sorted(map(repr, rows))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, output) of a run in which a worker was killed."""
    folder = tmp_path_factory.mktemp("study")
    run, lines = start(folder), []
    for line in run.stdout:
        lines.append(line)
        if line.startswith("[1/"):
            workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in str(p.cmdline())]
            assert len(workers) == 2
            os.kill(workers[0].pid, signal.SIGKILL)
    assert run.wait() == 0, "".join(lines)
    return folder, "".join(lines)


def test_side_by_side_is_one_by_one_even_if_a_worker_dies(done, smoke, tmp_path):
    folder, output = done
    assert re.search(r"^\[10/10\] 04_relabeling generator and captioner ", output, re.M)
    pd.testing.assert_frame_equal(table(folder), table(smoke.folder))
    assert samples(folder, tmp_path) == samples(smoke.folder, tmp_path)


def test_a_notebook_runs_its_chains_side_by_side(smoke, tmp_path):
    """In a kernel, on a store where all is there to be looked up."""
    some = ["--only", EXPERIMENT, "--runs", str(smoke.folder / "runs"), "--results", str(tmp_path / "results")]
    command = [sys.executable, "-m", "mmcollapse", "run", "--profile", "smoke", *some, "--set", "workers=2"]
    run = subprocess.run([*command, "--figures", str(tmp_path / "figures")], text=True, capture_output=True)
    assert run.returncode == 0 and "[10/10] 04_relabeling generator and captioner " in run.stdout, run.stdout
    pd.testing.assert_frame_equal(table(tmp_path), table(smoke.folder))


def test_what_earlier_runs_have_is_taken_over(done, tmp_path):
    """All but one arm: that alone is run, and once more the one whose errors it copies, whose rows stay."""
    before, again = done[0], tmp_path / "again"
    less = tmp_path / "less" / "results"
    less.mkdir(parents=True)
    for path in (before / "results").iterdir():
        (less / path.name).write_bytes(path.read_bytes())
    part = table(before)
    part.loc[(part.arm == "joint") & (part.metric == "vendi"), "value"] += 1
    part[part.arm != "noised"].to_parquet(less / f"{EXPERIMENT}.parquet", index=False)
    run = start(again, "--before", str(less))
    output = run.communicate()[0]
    assert run.returncode == 0 and "10 chains, 9 of them done by earlier runs" in output, output
    assert "[2/2] 04_relabeling generator and captioner noised seed 0" in output
    pd.testing.assert_frame_equal(table(again), part)
    assert samples(again, tmp_path) == samples(before, tmp_path)


def test_tables_of_other_settings_are_left_alone(done, tmp_path):
    run = start(tmp_path, "--before", str(done[0] / "results"), "--set", "steps=3", "--minutes", "0.001")
    output = run.communicate()[0]
    assert run.returncode == 0, output
    assert f"{EXPERIMENT}.parquet: not taken over, it has another steps (" in output
    assert "10 of 10 chains are left for another run" in output  # there was no time for any


def test_no_chain_is_begun_that_would_not_end(monkeypatch):
    settings = load_settings("study", "06_remedies")
    arms = [p for p in arms_of("06_remedies", settings) if "generator" in p.roles]
    chains = {p.arm: Chain("06_remedies", p, 0, settings) for p in arms}
    assert cost(chains["accumulate"]) > 2 * cost(chains["recursive"])
    now = 1000.0
    monkeypatch.setattr("mmcollapse.pool.time.monotonic", lambda: now)
    pool = Pool(None, until=now + 60)
    assert pool._fits(chains["accumulate"])  # nothing is known yet
    pool.paces.append(50 / cost(chains["recursive"]))
    assert pool._fits(chains["recursive"]) and not pool._fits(chains["accumulate"])
    assert Pool(None)._fits(chains["accumulate"])


class Future:
    status = "finished"

    def __init__(self, done: Done):
        self.done = done

    def result(self) -> Done:
        return self.done


class Finished(list):
    """dask's as_completed, of futures that are done at once."""

    add = list.append

    def __next__(self):
        return self.pop(0)


@pytest.mark.parametrize("broken", ["", "joint"])
def test_an_arm_that_copies_another_waits_for_it_and_falls_with_it(broken, monkeypatch):
    settings, ran = load_settings("smoke", EXPERIMENT), {}
    arms = {p.arm: p for p in arms_of(EXPERIMENT, settings)}

    class Inline:
        """A dask client whose two workers are this process."""

        def wait_for_workers(self, n):
            pass

        def scheduler_info(self, n_workers):
            return {"workers": {"one": {}, "two": {}}}

        def submit(self, function, chain, errors, pure):
            arm = chain.protocol.arm
            ran[arm] = dict(errors)
            told = {("joint", 0, 1): {"wrong": 1}} if chain.copied else {}
            return Future(Done(chain, errors=told, failure="it diverged" if arm == broken else ""))

    monkeypatch.setattr("distributed.as_completed", Finished)
    chains = [Chain(EXPERIMENT, arms[name], 0, settings, name == "joint") for name in ("noised", "joint", "real")]
    done = [d.chain.protocol.arm for d in Pool(Inline()).run(chains)]
    assert done == ["joint", "real"] + ["noised"] * (not broken)
    assert ran == {"joint": {}, "real": {}} | ({} if broken else {"noised": {("joint", 0, 1): {"wrong": 1}}})


def out_of_memory_on_the_second_worker(chain, errors):
    """Stands for a chain on a GPU that several share."""
    import torch
    from distributed import get_worker

    from mmcollapse import experiment
    from mmcollapse.pool import work

    def run_one(study, tools, chain):
        if get_worker().name == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return Done(chain)

    experiment.open_study, experiment.run_one = lambda *a: (SimpleNamespace(), None), run_one
    return work(chain, errors)


def test_a_full_gpu_costs_one_worker_and_no_chain(monkeypatch, capfd):
    settings = load_settings("smoke", EXPERIMENT)
    chains = [Chain(EXPERIMENT, p, 0, settings) for p in arms_of(EXPERIMENT, settings)[:4]]
    monkeypatch.setattr("mmcollapse.pool.work", out_of_memory_on_the_second_worker)
    with open_pool(2, False) as pool:
        done = [d.chain.name for d in pool.run(chains)]
        assert len(pool.client.scheduler_info()["workers"]) == 1
    assert sorted(done) == sorted(c.name for c in chains)
    assert "out of memory (CUDA out of memory): 1 chains at once from here on" in capfd.readouterr().err


def test_a_chain_that_fits_no_gpu_is_told_in_a_line(monkeypatch):
    settings = load_settings("smoke", EXPERIMENT)
    chain = Chain(EXPERIMENT, arms_of(EXPERIMENT, settings)[0], 0, settings)
    monkeypatch.setattr("mmcollapse.pool.work", out_of_memory_on_the_second_worker)
    with open_pool(1, False) as pool:
        pool.client.run(rename)
        with pytest.raises(MMCollapseError, match="does not hold one chain .CUDA out of memory.: a GPU with more"):
            list(pool.run([chain]))


def rename(dask_worker):
    dask_worker.name = 1


@pytest.mark.parametrize("ending", ["interrupted", "killed"])
def test_what_was_done_is_written_whatever_ends_a_study(monkeypatch, ending):
    """Interrupted between two of the times at which tables are written anyway; or killed while the next chain runs,
    after one of them."""
    monkeypatch.setattr("mmcollapse.study.WRITTEN", 60.0 if ending == "interrupted" else 0.05)
    settings = load_settings("smoke", EXPERIMENT)
    chain = Chain(EXPERIMENT, arms_of(EXPERIMENT, settings)[0], 0, settings)

    class Written:
        experiment, todo, again, reference, added, written = EXPERIMENT, [chain], {}, [], [], 0

        def __init__(self):
            self.settings, self.add = settings, self.added.append

        def measure_world(self):
            pass

        def write(self):
            self.written = len(self.added)

    class Interrupted:
        def run(self, chains):
            yield Done(chains[0])
            until = time.monotonic() + 10
            while ending == "killed" and not run.written and time.monotonic() < until:
                time.sleep(0.01)
            assert run.written == (ending == "killed")
            raise KeyboardInterrupt

    run = Written()
    with pytest.raises(KeyboardInterrupt):
        run_chains({EXPERIMENT: run}, Interrupted())
    assert run.written == 1


def test_mistakes_are_refused_by_name(capsys, tmp_path):
    assert main(["study", "--profile", "smoke", "--only", "07_claims"]) == 1
    assert "only='07_claims': the experiments with chains are 01_variance, " in capsys.readouterr().err
    assert main(["study", "--profile", "smoke", "--before", str(tmp_path / "none")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    for words, told in {
        ("--minutes", "-1"): "minutes=-1: allowed are 0 or more",
        ("--gpus", "2", "--minutes", "3"): "gpus=2: then all GPUs work at one chain at a time, and minutes= has no",
    }.items():
        assert main(["study", "--profile", "smoke", *words]) == 1 and told in capsys.readouterr().err
    with pytest.raises(MMCollapseError, match="no dask scheduler answers there"):
        with open_pool(1, False, scheduler="tcp://127.0.0.1:9"):
            pass


def test_arms_whose_models_are_not_at_hand_are_left_for_another_run(tmp_path, capsys):
    """In a study; a notebook, which is to have them all, refuses them by name."""
    folders = {name: str(tmp_path / name) for name in ("runs", "results", "figures")}
    s = load_settings("smoke", "03_diversity", generators="generator,generator-none", populations="1,2", **folders)
    run = Run("03_diversity", s, partly=True)
    todo = {c.protocol.arm for c in run.todo if c.protocol.roles == ("generator",)}
    left = {c.protocol.arm for c in run.chains if c.protocol.roles == ("generator",)} - todo
    assert todo == {"clones-2", "alone-compute-2"} and left == {"alone", "real", "gen0", "pool-2", "frozen-pool-2"}
    assert sum(c.protocol.roles == ("captioner",) for c in run.todo) == len(run.chains) // 2
    assert (
        "generator alone is left for another run: generator-none not at hand (make pretrain" in capsys.readouterr().out
    )
    run.world = []
    run.finish()
    assert f"{len(run.chains)} of {len(run.chains)} chains are left for another run" in capsys.readouterr().out
    with pytest.raises(MMCollapseError, match="no model in .*generator-none: make pretrain STAGES=generator-none"):
        Run("03_diversity", s)
    with pytest.raises(MMCollapseError, match="no model in .*generator-none"):  # the first is needed in any case
        Run("03_diversity", replace(s, generators="generator-none,generator"), partly=True)


@pytest.mark.parametrize(
    "named, change",
    [
        ("world", lambda record, table: record.update(world="scenes-9")),
        ("model 'generator'", lambda record, table: record["models"].update(generator="other/full")),
        ("instrument 'judge'", lambda record, table: record["models"].update(judge="other")),
        ("instrument 'oracle'", lambda record, table: record["models"].pop("oracle")),
        ("claims file", lambda record, table: table.__setitem__("claims", "0123456789ab")),
        ("version of the code's meaning", lambda record, table: record["semantics"].update(pairs=0)),
    ],
)
def test_tables_made_by_other_things_are_left_alone(named, change, done, tmp_path, capsys):
    folder = tmp_path / "before"
    shutil.copytree(done[0] / "results", folder)
    part, about = table(done[0]), folder / f"{EXPERIMENT}.json"
    record = json.loads(about.read_text())
    change(record, part)
    about.write_text(json.dumps(record))
    part.to_parquet(folder / f"{EXPERIMENT}.parquet", index=False)
    own = {name: str(tmp_path / name) for name in ("runs", "results", "figures")}
    run = Run(EXPERIMENT, load_settings("smoke", EXPERIMENT, **own), folder)
    assert len(run.todo) == len(run.chains) and f"not taken over, it has another {named}" in capsys.readouterr().out


def test_chains_of_another_model_are_not_taken_over(done, tmp_path):
    own = {name: str(tmp_path / name) for name in ("runs", "results", "figures")}
    s = load_settings("smoke", EXPERIMENT, generators="generator-2", **own)
    run = Run(EXPERIMENT, s, done[0] / "results")
    assert len(run.todo) == len(run.chains), "every one of them has a generator"
