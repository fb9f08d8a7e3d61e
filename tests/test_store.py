"""The store: what it promises, and what it does when processes are killed, files are damaged and disks are full."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from mmcollapse import store as store_module
from mmcollapse.digests import digest_arrays, digest_of
from mmcollapse.errors import Damaged, MMCollapseError, ParentChanged, StoreFull
from mmcollapse.store import KINDS, Store, item_name, load_pairs, save_pairs

SRC = str(Path(store_module.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": SRC}
INPUTS = {"parent": "abc", "lr": 1e-4, "steps": 40, "data": {"pairs": ["p", "q"]}}


class Maker:
    """Writes a file and a nested one, and counts how often it was asked."""

    def __init__(self, text="hello", digest=None):
        self.text, self.digest, self.calls = text, digest, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "a.txt").write_text(self.text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(self.text * 100)
        return {"digest": self.digest or digest_of(self.text), "device": "cpu"}


def leftovers(root):
    return [path for path in Path(root).rglob("*") if path.name.endswith(".part")]


def python(script, *args):
    """A process that runs `script` with this project on its path."""
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def until(there, process, seconds=10):
    """Wait for the file `there`, which `process` writes."""
    deadline = time.monotonic() + seconds
    while not there.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- once


def test_equal_inputs_are_made_once(tmp_path):
    maker = Maker()
    first = Store(tmp_path).make("weights", INPUTS, maker)
    again = Store(tmp_path).make("weights", dict(reversed(INPUTS.items())), maker)
    other = Store(tmp_path).make("weights", {**INPUTS, "steps": 41}, maker)
    assert maker.calls == 2
    assert first.name == again.name != other.name
    assert (first.files() / "a.txt").read_text() == (again.files() / "a.txt").read_text() == "hello"
    assert again.inputs == INPUTS and again.kind == "weights" and again.digest == digest_of("hello")
    assert again.facts == {"device": "cpu"}


def test_the_manifest_says_how_it_was_made(tmp_path):
    item = Store(tmp_path).make("pairs", INPUTS, Maker())
    manifest = json.loads((item.folder / "manifest.json").read_text())
    assert item.folder == tmp_path / "pairs" / item.name
    assert manifest["version"] == KINDS["pairs"] and manifest["packages"]["python"] and manifest["packages"]["numpy"]
    assert set(manifest["files"]) == {"a.txt", "sub/b.txt"} and manifest["files"]["sub/b.txt"]["bytes"] == 500
    assert manifest["seconds"] >= 0 and manifest["made_at"].endswith("+00:00")


def test_a_name_depends_on_kind_inputs_and_version_and_on_nothing_else(tmp_path, monkeypatch):
    name = item_name("pairs", INPUTS)
    changes = [
        {"parent": "abd"},
        {"lr": np.nextafter(1e-4, 1)},
        {"steps": 41},
        {"data": {"pairs": ["q", "p"]}},
        {"x": 1},
    ]
    names = {name, item_name("weights", INPUTS), *(item_name("pairs", {**INPUTS, **change}) for change in changes)}
    for left_out in INPUTS:
        names.add(item_name("pairs", {key: value for key, value in INPUTS.items() if key != left_out}))
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "pairs", KINDS["pairs"] + 1)
        names.add(item_name("pairs", INPUTS))
    assert len(names) == 1 + 1 + len(changes) + len(INPUTS) + 1

    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "weights", 7)  # of another kind
        patch.chdir(tmp_path)
        patch.setenv("PYTHONHASHSEED", "1")
        assert item_name("pairs", {key: INPUTS[key] for key in sorted(INPUTS)}) == name
    stores = [Store(tmp_path / "here"), Store(tmp_path / "there")]
    assert {store.make("pairs", INPUTS, maker).name for store in stores for maker in (Maker("x"), Maker("y"))} == {name}
    # Written down: were it another on another machine or day, every stored thing would be lost.
    assert item_name("scores", {"a": [1, 0.1, "é"]}) == "scores-92b6fa815eab7cd5bc71"


def test_what_cannot_be_named_is_refused(tmp_path):
    store = Store(tmp_path)
    for kind, inputs in [("pictures", {}), ("pairs", {"lr": float("nan")}), ("pairs", {"path": Path("x")})]:
        with pytest.raises(MMCollapseError, match=r"unknown kind 'pictures'|cannot be recorded as JSON"):
            store.make(kind, inputs, Maker())
    for maker in (lambda folder: {}, lambda folder: None, lambda folder: {"digest": 3}):
        with pytest.raises(MMCollapseError, match="must return a digest"):
            store.make("pairs", {}, maker)
    assert store.items() == [] and not leftovers(tmp_path)


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def fails(folder):
        (folder / "a.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).make("pairs", INPUTS, fails)
    assert not leftovers(tmp_path) and Store(tmp_path).items() == []
    assert Store(tmp_path).make("pairs", INPUTS, Maker()).digest == digest_of("hello")


def test_inputs_are_recorded_as_named_whatever_the_maker_does_to_them(tmp_path):
    inputs = {"tags": ["a"]}
    item = Store(tmp_path).make("pairs", inputs, lambda folder: inputs["tags"].append("b") or {"digest": "d"})
    assert item.inputs == {"tags": ["a"]} and item.name == item_name("pairs", {"tags": ["a"]})


def test_find_and_items(tmp_path):
    store = Store(tmp_path)
    made = [store.make(kind, {"n": n}, Maker()) for kind in ("pairs", "weights") for n in range(3)]
    store.prune(made[0])
    assert [item.name for item in Store(tmp_path).items()] == sorted(item.name for item in made)
    assert [item.name for item in store.items("pairs")] == sorted(item.name for item in made[:3])
    for item in made:
        assert store.find(item.name).inputs == store.find(item.name.split("-")[1][:12]).inputs == item.inputs
    with pytest.raises(MMCollapseError, match="weights-"):
        store.find("weights")
    with pytest.raises(MMCollapseError, match="none"):
        store.find("zzz")
    assert Store(tmp_path / "new").items() == []
    assert (Store(tmp_path).find(made[1].name).files() / "a.txt").read_text() == "hello"


def test_digests_of_arrays():
    a = np.arange(6, dtype=np.float32)
    base = digest_arrays({"a": a, "b": a[:0]})
    assert base == digest_arrays({"b": a[:0], "a": a.copy()})
    same_values_laid_out_otherwise = np.stack([a, a], 1)[:, 0]
    assert base == digest_arrays({"a": same_values_laid_out_otherwise, "b": a[:0]})
    others = [{"a": a}, {"a": a.reshape(2, 3), "b": a[:0]}, {"a": a.view(np.int32), "b": a[:0]}, {"c": a, "b": a[:0]}]
    others += [{"a": a + np.float32(1e-6), "b": a[:0]}, {"a": a[:0], "b": a}]
    assert len({base, *map(digest_arrays, others)}) == 1 + len(others)
    with pytest.raises(MMCollapseError, match="Python objects"):
        digest_arrays({"a": np.array([None])})


# ---- killed


# A life of an item: made, read, pruned, made again. Every step that touches the disk counts, and the one numbered
# `fatal` is the last thing the process does. One process forks them all, because imports are slow.
KILLED_ANYWHERE = """
import json, os, shutil, signal, sys, warnings
from pathlib import Path
from mmcollapse.digests import digest_of
from mmcollapse.store import Store

warnings.simplefilter("error", UserWarning)

def life(root):
    def maker(folder):
        (folder / "a.txt").write_text("hello"); step()
        (folder / "sub").mkdir(); step()
        (folder / "sub" / "b.txt").write_text("x" * 1000); step()
        return {"digest": digest_of("hello")}
    store = Store(root)
    item = store.make("pairs", {"n": 1}, maker)
    item.files()
    store.prune(item)
    item.files()
    store.prune(item)
    return store.make("pairs", {"n": 1}, maker).files()

def step(): pass

def count_steps(fatal):
    global step
    steps = 0
    def step():
        nonlocal steps
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
    for module, name in [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")]:
        def stepping(*args, real=getattr(module, name), **kwargs):
            step()
            return real(*args, **kwargs)
        setattr(module, name, stepping)

def in_child(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

top, fatal = Path(sys.argv[1]), 0
while True:
    fatal += 1
    root = top / str(fatal)
    root.mkdir()
    if (code := in_child(lambda: (count_steps(fatal), life(root)))) != -signal.SIGKILL:
        break
    assert in_child(lambda: life(root)) == 0, fatal
    there = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
    manifest = next(root.glob("pairs/*/manifest.json"))
    kept = json.loads(manifest.read_text())
    print(json.dumps([there, kept["digest"], kept["files"], (manifest.parent / "a.txt").read_text()]))
    shutil.rmtree(root)
print(json.dumps([fatal - 1, code]))
"""


def test_killed_at_any_step_and_run_again_gives_the_same_and_leaves_nothing(tmp_path):
    process = python(KILLED_ANYWHERE, tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    *results, (kills, last) = map(json.loads, out.splitlines())
    assert kills > 50 and last == 0, "the life without a kill ends well, and the kills were many"
    assert all(result == results[0] for result in results)
    name = item_name("pairs", {"n": 1})
    assert results[0][0] == sorted(
        ["locks/in-use", f"locks/{name}", *(f"pairs/{name}/{file}" for file in ("a.txt", "manifest.json", "sub/b.txt"))]
    )


SLOW = """
import sys, time
from pathlib import Path
from mmcollapse.digests import digest_of
from mmcollapse.store import Store
root, ready, seconds, n = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
def maker(folder):
    (folder / "a.txt").write_text("hello")
    with open(ready, "a") as log: log.write("made\\n")
    time.sleep(seconds)
    return {"digest": digest_of("hello")}
item = Store(root).make("pairs", {"n": n}, maker)
print((item.files() / "a.txt").read_text(), item.digest)
"""


def test_killed_from_outside_in_the_middle_of_making(tmp_path):
    process = python(SLOW, tmp_path, tmp_path / "ready", 60, 1)
    until(tmp_path / "ready", process)
    assert len(leftovers(tmp_path)) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(leftovers(tmp_path)) == 1
    # Whatever is made next clears up, though nobody asks for the killed thing any more.
    Store(tmp_path).make("pairs", {"n": 2}, Maker())
    assert not leftovers(tmp_path)


# ---- two processes


def test_two_processes_make_a_thing_once_and_the_loser_says_that_it_waits(tmp_path):
    both = [python(SLOW, tmp_path, tmp_path / "log", 2.6, 1) for _ in range(2)]
    until(tmp_path / "log", both[0])
    third = Store(tmp_path).make("pairs", {"n": 2}, Maker())  # does not wait for others, nor clear them away
    assert third.files().exists() and len(leftovers(tmp_path)) == 1
    results = [process.communicate(timeout=30) for process in both]
    assert [out for out, _ in results] == [f"hello {digest_of('hello')}\n"] * 2
    assert (tmp_path / "log").read_text() == "made\n"
    assert sorted(err.count("waiting for another process") for _, err in results) == [0, 1]
    assert not leftovers(tmp_path)


USING = """
import sys, time
from pathlib import Path
from mmcollapse.store import Store
Store(sys.argv[1]).find("pairs").files()
Path(sys.argv[2]).touch()
time.sleep(60)
"""


def test_files_in_use_by_another_process_are_not_pruned_until_it_ends(tmp_path):
    store, maker = Store(tmp_path), Maker()
    item = store.make("pairs", INPUTS, maker)
    item.files()
    process = python(USING, tmp_path, tmp_path / "ready")
    until(tmp_path / "ready", process)
    assert store.prune(item) is False
    assert (item.files() / "a.txt").exists() and maker.calls == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.prune(item) is True
    assert not (item.folder / "a.txt").exists()


# ---- damaged


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_file_is_named_set_aside_and_made_again(tmp_path, damage):
    item = Store(tmp_path).make("weights", INPUTS, Maker())
    damage(item.folder / "sub" / "b.txt")
    maker = Maker()
    again = Store(tmp_path).make("weights", INPUTS, maker)
    with pytest.warns(UserWarning, match=rf"{item.name} is damaged: sub/b.txt .*set aside as .*{tmp_path}/damaged"):
        folder = again.files()
    assert maker.calls == 1 and (folder / "sub" / "b.txt").read_text() == "hello" * 100
    aside = list((tmp_path / "damaged").iterdir())
    assert len(aside) == 1 and aside[0].name.startswith(item.name) and (aside[0] / "a.txt").read_text() == "hello"
    with warnings.catch_warnings(action="error"):
        assert Store(tmp_path).make("weights", INPUTS, maker).files() == folder
    assert maker.calls == 1


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_text("{}")])
def test_a_damaged_manifest_is_set_aside_too(tmp_path, damage):
    item = Store(tmp_path).make("weights", INPUTS, Maker())
    damage(item.folder / "manifest.json")
    with pytest.warns(UserWarning, match=f"{item.name} is damaged: manifest.json"):
        assert Store(tmp_path).items() == []
    with pytest.warns(UserWarning, match=f"{item.name} is damaged: manifest.json.*set aside"):
        assert Store(tmp_path).make("weights", INPUTS, Maker()).digest == item.digest
    assert len(Store(tmp_path).items()) == 1


def test_what_is_damaged_stays_when_nobody_can_make_it_again(tmp_path):
    item = Store(tmp_path).make("weights", INPUTS, Maker())
    flip(item.folder / "a.txt")
    with pytest.raises(Damaged, match=rf"{item.name} is damaged: a.txt"):
        Store(tmp_path).find(item.name).files()
    assert item.folder.exists()


def test_files_are_checked_once_a_process(tmp_path, monkeypatch):
    checks = []
    real = store_module.disk.checksum
    item = Store(tmp_path).make("weights", INPUTS, Maker())
    monkeypatch.setattr(store_module.disk, "checksum", lambda path: checks.append(path) or real(path))
    for _ in range(3):
        item.files()
    assert len(checks) == 2


# ---- pruned, and made again


def test_pruned_files_are_made_again_when_asked_for(tmp_path):
    store, maker = Store(tmp_path), Maker()
    item = store.make("weights", INPUTS, maker)
    assert store.prune(item, keep=["a.txt"])
    assert sorted(path.name for path in item.folder.iterdir()) == ["a.txt", "manifest.json"]
    assert json.loads((item.folder / "manifest.json").read_text())["pruned"] is True
    assert store.prune(item) and sorted(path.name for path in item.folder.iterdir()) == ["manifest.json"]

    later = Store(tmp_path).make("weights", INPUTS, maker)
    assert maker.calls == 1 and later.digest == item.digest, "a pruned thing still has its digest"
    assert (later.files() / "sub" / "b.txt").read_text() == "hello" * 100
    assert maker.calls == 2 and "pruned" not in json.loads((item.folder / "manifest.json").read_text())
    assert (item.files() / "a.txt").exists() and maker.calls == 2
    store.prune(item)
    with pytest.raises(MMCollapseError, match="were pruned"):
        Store(tmp_path).find(item.name).files()


def test_a_parent_made_again_with_another_digest_makes_its_descendants_anew(tmp_path):
    def run(text):
        """A parent, and a child that reads it."""
        store = Store(tmp_path)
        parent = store.make("weights", INPUTS, Maker(text))

        def child(folder):
            (folder / "c.txt").write_text((parent.files() / "a.txt").read_text())
            return {"digest": digest_of(["child", parent.digest])}

        return store, parent, store.make("pairs", {"weights": parent.digest, "n": len(before)}, child)

    before = []
    store, parent, child = run("first")
    assert store.prune(parent)
    before.append(child)  # the next run needs the parent for a further child
    with pytest.raises(ParentChanged, match=parent.name):
        run("second")
    assert not leftovers(tmp_path)

    store, again, new = run("second")
    assert again.name == parent.name and again.digest != parent.digest
    assert (new.files() / "c.txt").read_text() == "second" and new.name != child.name
    for _ in range(2):  # whoever still holds the old one learns of it, without making it once more, pruned or not
        with pytest.raises(ParentChanged, match=parent.name):
            parent.files()
        assert store.prune(again)
    assert not (again.folder / "a.txt").exists()


def test_a_damaged_parent_made_again_with_another_digest_is_noticed_too(tmp_path):
    item = Store(tmp_path).make("weights", INPUTS, Maker())
    flip(item.folder / "a.txt")
    changed = Store(tmp_path).make("weights", INPUTS, Maker("other"))
    with pytest.warns(UserWarning, match="set aside"), pytest.raises(ParentChanged, match=item.name):
        changed.files()
    assert Store(tmp_path).make("weights", INPUTS, Maker("other")).digest == digest_of("other")


# ---- full


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Foreign(Exception):
    """As a library written in Rust raises it."""


FULL_DISKS = [
    OSError(errno.ENOSPC, "no"),
    OSError(errno.EDQUOT, "no"),
    Foreign("I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL_DISKS)
def test_a_full_disk_while_making_is_said_and_the_rest_stays(tmp_path, error):
    store = Store(tmp_path)
    item = store.make("weights", INPUTS, Maker())

    def maker(folder):
        (folder / "a.txt").write_text("half")
        raise error

    with pytest.raises(StoreFull, match=rf"disk full while writing pairs-\w+ under {tmp_path}.*free more and rerun"):
        store.make("pairs", INPUTS, maker)
    assert not leftovers(tmp_path) and [found.name for found in store.items()] == [item.name]
    assert (Store(tmp_path).make("weights", INPUTS, maker).files() / "a.txt").read_text() == "hello"
    assert store.make("pairs", INPUTS, Maker()).files().exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_while_the_store_itself_writes(tmp_path, monkeypatch, call):
    store, maker = Store(tmp_path), Maker()
    item = store.make("weights", INPUTS, maker)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        with pytest.raises(StoreFull):
            store.make("pairs", INPUTS, Maker())
        with pytest.raises(StoreFull):
            store.prune(item)
    assert not leftovers(tmp_path)
    assert (item.files() / "a.txt").exists() and maker.calls == 1, "it was not pruned by halves"


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    def maker(folder):
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        Store(tmp_path).make("weights", INPUTS, maker)


REALLY_FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from mmcollapse.errors import StoreFull
from mmcollapse.store import Store, load_pairs, save_pairs
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
def maker(n): return lambda folder: {"digest": save_pairs(folder, noise[:n], ["noise"] * n)}
root = Path(sys.argv[1]) / "runs"
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
small = Store(root).make("pairs", {"n": 8}, maker(8))
for _ in range(2):
    try:
        Store(root).make("pairs", {"n": 64}, maker(64))
    except StoreFull as full:
        print(full)
assert [item.name for item in Store(root).items()] == [small.name]
assert not list(root.rglob("*.part*"))
assert (load_pairs(Store(root).find(small.name).files())[0] == noise[:8]).all()
"""


def really_full(command):
    process = subprocess.run(command, capture_output=True, text=True, timeout=30, env=ENVIRONMENT)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("disk full while writing pairs-") == 2


def test_a_real_limit_on_the_size_of_files(tmp_path):
    really_full([sys.executable, "-c", REALLY_FULL, tmp_path, "limit"])


def test_a_real_small_disk(tmp_path):
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]  # a mount that ends with its process
    mount = f"mount -t tmpfs -o size=500k tmpfs '{tmp_path}'"
    try:
        allowed = subprocess.run([*own, mount], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this system lets nobody mount a small disk; the limit on the size of files stands in")
    really_full([*own, f'{mount} && exec "$@"', "sh", sys.executable, "-c", REALLY_FULL, tmp_path, "disk"])


# ---- pairs


def pictures(n=5, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


COLUMNS = {"key": ["a", "b", "c", "d", "e"], "seed": [1, 2, 3, 4, 2**40], "weight": [0.1, 2, 3.5, 1e-300, 5]}
CAPTIONS = ["a red circle", "", 'größer, "quoted"\nand broken', "d", "ü" * 1000]


@pytest.mark.parametrize("threads", [1, 4])
def test_pairs_come_back_as_they_were(tmp_path, monkeypatch, threads):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    digest = save_pairs(tmp_path, pictures(), CAPTIONS, COLUMNS)
    images, captions, columns = load_pairs(tmp_path)
    assert images.dtype == np.uint8 and (images == pictures()).all()
    assert captions == CAPTIONS and columns == COLUMNS
    assert save_pairs(tmp_path, list(images), captions, columns) == digest, "a list will do, and read is as written"


def test_the_digest_of_pairs_is_of_everything_in_them(tmp_path):
    changed = pictures()
    changed[4, 3, 2, 1] ^= 1
    variants = [
        (pictures(), CAPTIONS, COLUMNS),
        (changed, CAPTIONS, COLUMNS),
        (pictures(), [*CAPTIONS[:4], "x"], COLUMNS),
        (pictures(), CAPTIONS, {**COLUMNS, "key": list("abcdf")}),
        (pictures(), CAPTIONS, {}),
        (pictures()[::-1], CAPTIONS, COLUMNS),
    ]
    assert len({save_pairs(tmp_path, *variant) for variant in variants}) == len(variants)
    assert save_pairs(tmp_path, *variants[0]) == save_pairs(tmp_path, *variants[0])


@pytest.mark.parametrize(
    ("images", "captions", "columns", "says"),
    [
        ([], [], {}, "no pairs to save"),
        (pictures(0), [], {}, "no pairs to save"),
        (pictures(2), ["one"], {}, "'captions' of 1 values does not go with 2 pictures"),
        (pictures(2), ["a", "b"], {"seed": [1]}, "'seed' of 1 values"),
        (pictures(1), ["a"], {"caption": ["b"]}, "'caption'"),
        (pictures(1).astype(np.float32), ["a"], {}, "must be uint8"),
        (pictures(1)[..., :1], ["a"], {}, "must be uint8"),
        (pictures(1), [None], {}, "captions must be strings"),
        (pictures(1), [3], {}, "captions must be strings"),
        (pictures(2), ["a", "b"], {"x": [1, "a"]}, "values of one plain type"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path, images, captions, columns, says):
    with pytest.raises(MMCollapseError, match=says):
        save_pairs(tmp_path, images, captions, columns)
    assert not list(tmp_path.iterdir())


def test_pairs_open_with_datasets_as_pictures_and_captions(tmp_path):
    datasets = pytest.importorskip("datasets")
    save_pairs(tmp_path, pictures(), CAPTIONS, COLUMNS)
    files = str(tmp_path / "pairs.parquet")
    data = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="train")
    assert isinstance(data.features["image"], datasets.Image)
    assert (np.stack([np.asarray(row["image"]) for row in data]) == pictures()).all()
    assert data["caption"][:] == CAPTIONS and data["seed"][:] == COLUMNS["seed"]
