"""One chain by several processes: the same results, and no process waits for ever."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mmcollapse import parallel
from mmcollapse.errors import MMCollapseError
from mmcollapse.models.stand_ins import SPACES, stand_in
from mmcollapse.table import read_table
from test_readme import photos

GENERATOR, CAPTIONER = "CompVis/stable-diffusion-v1-4", "Salesforce/blip2-opt-2.7b"
KEYS = ["arm", "seed", "generation", "measurement", "subset", "metric", "space", "model", "modality"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Of a study of stand-ins on photos, one arm of each role."""
    folder = tmp_path_factory.mktemp("several")
    for name in (GENERATOR, CAPTIONER, SPACES["clip"]):
        stand_in(name, folder / name)
    (folder / "instruments").mkdir()
    (folder / "instruments" / "clip").symlink_to(folder / SPACES["clip"])
    told = {"instruments": folder / "instruments", "spaces": "clip", "method": "lora", "rank": 2, "students": 0}
    told |= {"generators": folder / GENERATOR, "captioners": folder / CAPTIONER, "arms": "real,gen0", "generations": 1}
    command = ["study", "--profile", "smoke", "--only", "01_variance", "--world", "photos"]
    command += ["--data", photos(folder / "photos")]
    return command + [word for name, value in told.items() for word in ("--set", f"{name}={value}")]


def run(words, place, gpus: int, *more: str):
    folders = [word for n in ("runs", "results", "figures") for word in (f"--{n}", str(place / n))]
    command = [sys.executable, "-m", "mmcollapse", *words, *folders, "--workers", "1", "--gpus", str(gpus), *more]
    return subprocess.run(command, text=True, capture_output=True, timeout=600)


def trained(place) -> dict:
    manifests = [json.loads(path.read_text()) for path in (place / "runs" / "weights").glob("*/manifest.json")]
    return {m["name"]: m["facts"]["losses"] for m in manifests}


def test_two_processes_give_the_results_of_one(words, tmp_path):
    one, two = run(words, tmp_path / "one", 1), run(words, tmp_path / "two", 2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    ours, theirs = (read_table(tmp_path / n / "results" / "01_variance.parquet") for n in ("one", "two"))
    both = ours.merge(theirs, on=KEYS, suffixes=("", "_two"))
    assert len(both) == len(ours) == len(theirs)
    np.testing.assert_allclose(both.value_two, both.value, rtol=2e-3, atol=2e-4)
    # shares of a batch are not summed in the order of the whole: were they not shared, they would be the very same
    some, others = trained(tmp_path / "one"), trained(tmp_path / "two")
    same = [name for name in some.keys() & others.keys() if name in others]
    assert same and any(some[name] != others[name] for name in same)
    assert all(np.allclose(some[name], others[name], rtol=1e-4) for name in same)
    assert two.stdout.count("fine-tuning (") == 4  # one of the two speaks


def test_a_chain_that_breaks_ends_for_all(words, tmp_path):
    wild = {"method": "full", "lr_generator": 1, "steps": 60, "warmup": 0, "arms": "real", "roles": "generator"}
    ended = run(words, tmp_path, 2, *(word for name, value in wild.items() for word in ("--set", f"{name}={value}")))
    assert ended.returncode == 1
    assert "1 of 1 chains of 01_variance ended early" in ended.stderr and "lower the learning rate" in ended.stderr


STORED = """
import sys, time
from accelerate.utils import gather_object
from mmcollapse import parallel
from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import load_settings

folder, job, breaks = sys.argv[1:]
with parallel.one_of_several({"": load_settings("smoke", "01_variance", device="cpu")}):
    store = parallel.SharedStore(folder)

    def maker(name):
        def make(folder):
            time.sleep(0.5)
            digest = "".join(gather_object([name]))
            if breaks == name and parallel.rank() == 1:
                raise MMCollapseError("broken here")
            return {"digest": digest}

        return make

    for name in "abc":
        try:
            found = store.make("scores", {"name": name}, maker(name)).digest
        except MMCollapseError as error:
            found = str(error)
        sys.stderr.write(f"job {job} rank {parallel.rank()} {name}: {found}\\n")
"""


def jobs(tmp_path, n: int, breaks: str = "") -> list[str]:
    """What both processes of n jobs on one store, begun together, say."""
    script = tmp_path / "stored.py"
    script.write_text(STORED)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    begun = [subprocess.Popen([*two, tmp_path / "runs", str(k), breaks], stderr=-1, text=True) for k in range(n)]
    lines = [line for job in begun for line in job.communicate(timeout=120)[1].splitlines()]
    assert all(job.returncode == 0 for job in begun), lines
    return sorted(line for line in lines if line.startswith("job "))


def test_two_studies_share_a_store(tmp_path):
    """What one has begun the other waits for, all of its processes."""
    assert jobs(tmp_path, 2) == [f"job {j} rank {r} {x}: {2 * x}" for j in "01" for r in "01" for x in "abc"]


def test_an_error_of_any_process_is_one_of_all(tmp_path):
    """And they go on with the same things."""
    found = {"a": "aa", "b": "broken here", "c": "cc"}
    expected = [f"job 0 rank {r} {name}: {what}" for r in "01" for name, what in found.items()]
    assert jobs(tmp_path, 1, "b") == expected


def test_shares_are_all_of_it(monkeypatch):
    for n in (1, 7, 64):
        for several in (1, 2, 3):
            monkeypatch.setattr(parallel, "processes", lambda several=several: several)
            rows = []
            for k in range(several):
                monkeypatch.setattr(parallel, "rank", lambda k=k: k)
                rows += list(range(n))[parallel.share(n)]
            assert rows == list(range(n))


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(MMCollapseError, match="gpus=4: this machine has 2"):
        parallel.launch(4, "cuda", ["study"])
