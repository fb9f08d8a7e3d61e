"""The set-up: imports in any order, the commands of the Makefile, the lock. No test here needs a network."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmcollapse import torchvision_ops

ROOT = Path(__file__).parents[1]
TARGETS = "env reproduce study figures ship plan report rate check test lint lab pretrain fetch".split()
TARGETS += "sweep instruments freeze bench status trace verify clean clean-env".split()
VARIABLES = "PROFILE ONLY WORLD DATA MODELS SET RUNS RESULTS FIGURES SITE JOBS WORKERS MINUTES BEFORE".split()
VARIABLES += "SCHEDULER GPUS STAGES ROW FIGURE CLAIM ARMS GENERATION TASKS DRY MIRROR FROM WHAT".split()
VARIABLES += "GENS REAL SPACE INSTRUMENTS ALPHA OUT PARTS EVERY ARGS INDEX PYTHON VENV".split()


# ---- imports ----


def test_libraries_import_in_any_order():
    orders = [
        "mmcollapse torch torchvision transformers diffusers peft cleanfid.fid",
        "cleanfid.fid peft diffusers transformers torchvision torch mmcollapse",
        "torchvision diffusers cleanfid.fid mmcollapse transformers peft torch",
    ]
    # Together, because each takes seconds; the last lines touch what transformers and diffusers import lazily.
    use = "from transformers import CLIPProcessor, Blip2Processor; from diffusers import StableDiffusionPipeline"
    programs = ["\n".join([*(f"import {name}" for name in order.split()), use]) for order in orders]
    running = [subprocess.Popen([sys.executable, "-c", p], stderr=subprocess.PIPE, text=True) for p in programs]
    for order, process in zip(orders, running, strict=True):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"importing {order}:\n{errors}"


@pytest.fixture
def compiled_part(monkeypatch, tmp_path):
    """A stand-in for torchvision's folder, with one operator that no library declares; returns where `_C.so` goes."""
    spec = ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torchvision_ops, "_libraries", [])
    return tmp_path / "_C.so"


def test_operators_are_declared_when_the_compiled_part_cannot_load(compiled_part, monkeypatch):
    monkeypatch.setattr(torchvision_ops, "SCHEMAS", {"stand_in_a": "stand_in_a(Tensor x) -> Tensor"})
    compiled_part.write_text("not a shared library")
    torchvision_ops.register()
    torchvision_ops.register()  # a second call declares nothing twice
    assert len(torchvision_ops._libraries) == 1
    with pytest.raises(NotImplementedError, match="stand_in_a"):
        torch.ops.torchvision.stand_in_a(torch.zeros(1))


def test_nothing_is_declared_when_the_compiled_part_loads(compiled_part, monkeypatch):
    monkeypatch.setattr(torchvision_ops, "SCHEMAS", {"stand_in_b": "stand_in_b(Tensor x) -> Tensor"})
    compiled_part.symlink_to(torch._C.__file__)  # a shared library that surely loads
    torchvision_ops.register()
    assert torchvision_ops._libraries == []
    assert not hasattr(torch.ops.torchvision, "stand_in_b")


def test_nothing_is_declared_without_torchvision(compiled_part, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    torchvision_ops.register()
    assert torchvision_ops._libraries == []


# ---- make ----


def make(*arguments, folder=ROOT, path=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    if path is not None:
        environment["PATH"] = str(path)
    return subprocess.run(
        [shutil.which("make"), *arguments], cwd=folder, env=environment, text=True, capture_output=True, timeout=60
    )


def test_make_alone_lists_every_target_and_variable():
    lines = make().stdout.splitlines()
    assert max(map(len, lines)) <= 120
    for name in TARGETS:
        assert len([line for line in lines if re.match(rf"  {name} +\w", line)]) == 1, name
    for name in VARIABLES:
        assert len([line for line in lines if re.match(rf"  {name}=\S* +\w", line)]) == 1, name
    # and nothing that works is left out of the list
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split()) == {*TARGETS, "help", "FORCE"}
    assert {line.split("=")[0].strip() for line in lines if re.match("  [A-Z]+=", line)} == set(VARIABLES)


def test_variables_reach_the_program_and_empty_ones_do_not():
    words = make("trace", "VENV=no", "PYTHON=echo", "SET=seeds=3 generations=4", "DATA=a b", "ROW=7").stdout
    assert words.split("mmcollapse trace ")[1].strip() == (
        "--profile nano --data a b --runs runs --results data/results/nano --figures figures/nano "
        "--set seeds=3 --set generations=4 --row 7"
    )
    photos = make("plan", "VENV=no", "PYTHON=echo", "WORLD=photos", "DATA=a b").stdout
    assert "--world photos --data a b --runs runs --results data/results/nano-photos" in photos
    own = make("plan", "VENV=no", "PYTHON=echo", "PROFILE=paper").stdout
    assert "--world" not in own and "--results data/results/paper --figures figures/paper" in own
    assert "--results data/results/smoke --figures elsewhere" in make(
        "reproduce", "VENV=no", "PYTHON=echo", "PROFILE=smoke", "FIGURES=elsewhere"
    ).stdout.replace("'", "")


# ---- make env, with stand-ins for Python and pip ----

TOOLS = "sh awk cat cp grep mkdir rm tail touch".split()


@pytest.fixture
def machine(tmp_path):
    """A checkout on a machine without any Python: (its folder, the folder of its programs)."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    for name in ["Makefile", "pyproject.toml", "requirements.lock"]:
        shutil.copy(ROOT / name, checkout)
    for name in TOOLS:
        (programs / name).symlink_to(shutil.which(name))
    return checkout, programs


def fake_python(programs, name, version, has_venv=True, pip="exit 0"):
    """A program that answers as Python `version` does; its `-m venv` makes an environment whose pip runs `pip`."""
    script = f"""#!/bin/sh
case "$*" in
  -V) echo "Python {version}";;
  -c*ensurepip*) {"exit 0" if has_venv else 'echo "No module named ensurepip" >&2; exit 1'};;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo "{version}" >>built;;
  "-m pip install"*) {pip};;
  *) echo "unexpected call: $*" >&2; exit 9;;
esac
"""
    (programs / name).write_text(script)
    (programs / name).chmod(0o755)


def failure(run):
    """The one line that a failed `make env` says, besides make's own."""
    assert run.returncode != 0
    lines = [line for line in run.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1, run.stderr
    return lines[0]


def test_a_wrong_python_is_named(machine):
    checkout, programs = machine
    said = failure(make("status", folder=checkout, path=programs))
    assert "python3 is not Python 3.11, 3.12 or 3.13" in said and "make PYTHON=" in said
    for version in ["3.9.18", "3.10.13", "3.14.0"]:
        fake_python(programs, "python3", version)
        assert "python3 is not Python 3.11, 3.12 or 3.13" in failure(make("test", folder=checkout, path=programs))
    assert not (checkout / ".venv").exists()


def test_another_python_on_the_path_is_found_unless_one_was_named(machine):
    checkout, programs = machine
    fake_python(programs, "python3", "3.9.18")
    fake_python(programs, "python3.12", "3.12.1")
    fake_python(programs, "mine", "3.9.1")
    assert "mine is not Python 3.11" in failure(make("env", "PYTHON=mine", folder=checkout, path=programs))
    run = make("env", folder=checkout, path=programs)
    assert run.returncode == 0 and "building .venv with Python 3.12.1" in run.stdout


def test_a_missing_venv_module_is_named(machine):
    checkout, programs = machine
    fake_python(programs, "python3", "3.12.1", has_venv=False)
    said = failure(make("env", folder=checkout, path=programs))
    assert "no venv module" in said and "apt install python3.12-venv" in said


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError': /simple/torch/\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            ["no package index could be reached", "make INDEX=URL"],
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", ["for torch==2.13.0", "make INDEX=URL"]),
        ("ERROR: [Errno 28] No space left on device", ["the disk is full", "make room"]),
    ],
    ids=["network", "index", "disk"],
)
def test_a_failing_pip_is_explained(machine, log, says):
    checkout, programs = machine
    (checkout / "log").write_text(log + "\n")
    fake_python(programs, "python3", "3.11.7", pip="cat log >&2; exit 1")
    said = failure(make("reproduce", folder=checkout, path=programs))
    assert all(part in said for part in says), said
    assert (checkout / ".venv/pip.log").read_text() == log + "\n"  # the whole story is kept
    assert not (checkout / ".venv/requirements.lock").exists()


def test_the_environment_is_built_once_and_again_when_unfinished_or_outdated(machine):
    checkout, programs = machine

    def built(*arguments):
        make("env", *arguments, folder=checkout, path=programs)
        return (checkout / "built").read_text().count("\n")

    fake_python(programs, "python3", "3.11.7", pip='kill -9 "$PPID"')  # an interrupted build
    assert built() == 1
    fake_python(programs, "python3", "3.11.7")
    assert built() == 2
    assert built() == 2
    os.utime(checkout / "requirements.lock")  # only its date is new
    assert built() == 2
    (checkout / "requirements.lock").write_text("torch==2.13.0\n")
    assert built() == 3
    (checkout / ".venv/bin/python").unlink()  # the Python it was made with is gone
    assert built() == 4


def test_clean_touches_no_tracked_file(tmp_path):
    checkout, outside = tmp_path / "checkout", tmp_path / "outside"
    outside.mkdir()
    tracked = ["Makefile", ".gitignore", "src/a.py", "data/results/study/table", "figures/study/a.png", "runs/kept"]
    made = ["runs/weights/a", "src/__pycache__/a.pyc", "data/results/study/new", "figures/study/b.png", "outside"]
    mine = ["src/my_arm.py", "data/results/nano/table", ".venv/bin/python", "my/table"]
    for name in tracked + made[:-1] + mine:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    shutil.copy(ROOT / "Makefile", checkout)
    shutil.copy(ROOT / ".gitignore", checkout)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *arguments], cwd=checkout, check=True, text=True, capture_output=True)

    git("init", "-q")
    assert "only in a git checkout" in make("clean", folder=checkout).stderr  # nothing is tracked yet
    git("add", "--force", *tracked)
    git("commit", "-q", "-m", "a")
    assert make("clean", "PROFILE=study", folder=checkout).returncode == 0
    assert git("status", "--porcelain", "--untracked-files=no").stdout == ""
    assert all((checkout / name).exists() for name in tracked + mine)
    assert not any((checkout / name).exists() for name in made)
    for folder in [".", str(outside)]:
        assert "left as it is" in make("clean", f"RUNS={folder}", folder=checkout).stdout
    assert outside.exists() and (checkout / "src/my_arm.py").exists()


# ---- the lock ----


def pins(name):
    """Requirements of a pinned file, by canonical name; several of one name differ by marker."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line := line.split("#")[0].strip():
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def version(requirement):
    """The one version that a requirement pins."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and "*" not in specifier.version and "+" not in specifier.version, requirement
    return specifier.version


def test_the_lock_pins_every_package():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-|@|nvidia", text, re.M)
    lock = pins("requirements.lock")
    for requirements in lock.values():
        for requirement in requirements:
            assert version(requirement)
        assert len(requirements) == 1 or all(requirement.marker for requirement in requirements)
    for name, (direct,) in pins("requirements.in").items():
        assert version(direct) in [version(requirement) for requirement in lock[name]], f"{name}: make the lock anew"


def test_the_lock_has_all_that_its_packages_need():
    """Every requirement of every locked package that is installed here is locked too, at a version it accepts."""
    from importlib.metadata import PackageNotFoundError, requires

    lock = pins("requirements.lock")
    for name in lock:
        try:
            needs = [Requirement(need) for need in requires(name) or []]
        except PackageNotFoundError:  # for another platform
            continue
        for need in needs:
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            other = canonicalize_name(need.name)
            if other.startswith(("cuda", "nvidia", "triton")):
                continue
            here = [r for r in lock.get(other, []) if not r.marker or r.marker.evaluate()]
            assert len(here) == 1, f"{name} needs {need}, which the lock has {len(here)} times"
            assert need.specifier.contains(version(here[0]), prereleases=True), f"{name} needs {need}, got {here[0]}"


def test_supported_ranges_hold_the_locked_versions_and_those_of_the_gpu_machines():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = pins("requirements.in")
    ranges = {canonicalize_name(r.name): r.specifier for r in map(Requirement, project["dependencies"])}
    for name, specifier in ranges.items():
        assert version(direct[name][0]) in specifier, name
    for name, older in {"torch": "2.11.0", "torchvision": "0.26.0", "transformers": "5.17.0"}.items():
        assert older in ranges[name], name


def test_what_is_imported_is_required_directly():
    known, allowed = packages_distributions(), pins("requirements.in").keys() | {"mmcollapse"}
    sources = {path: path.read_text() for path in (ROOT / "src").rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        sources[path] = re.sub(r"^\s*[%!].*", "", code, flags=re.M)
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
                owners = {canonicalize_name(owner) for owner in known.get(name, [])}
                assert owners & allowed, f"{path.relative_to(ROOT)} imports {name}: add it to requirements.in"


def test_conda_users_get_the_lock_too():
    text = (ROOT / "environment.yml").read_text()
    assert re.search(r"^ +- -r requirements\.lock$", text, re.M) and re.search(r"^ +- -e \.$", text, re.M)
    assert not re.search(r"==|://", text)  # no version is stated twice


def test_commit_hooks_are_valid_and_local():
    run = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", ROOT / ".pre-commit-config.yaml"],
        text=True,
        capture_output=True,
    )
    assert run.returncode == 0 and not run.stdout + run.stderr, run.stdout + run.stderr
    assert "http" not in (ROOT / ".pre-commit-config.yaml").read_text()
