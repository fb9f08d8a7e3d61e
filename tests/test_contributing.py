"""CONTRIBUTING.md: its recipes are followed to the letter, in a copy of the checkout. LIMITS.md: its numbers and
licences are those of what ships."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmcollapse.table import read_table

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = ("A new metric", "A new model family", "A new protocol")


@dataclass
class Block:
    """A piece of code in the document. kind: its language; file: the one that its first line names."""

    kind: str
    file: str
    code: str

    @property
    def is_test(self) -> bool:
        return self.kind == "python" and self.file.startswith("tests/")

    @property
    def tests(self) -> list[str]:
        return [f"{self.file}::{name}" for name in re.findall(r"^def (test_\w+)", self.code, re.M)]

    def apply(self, checkout: Path):
        """As the document says: at the end of its file, or in place of what it shows."""
        path = checkout / self.file
        if self.kind == "python":
            path.write_text((path.read_text() if path.exists() else "") + self.code)
            return
        text = path.read_text()
        for hunk in self.code.split("@@\n"):
            lines = hunk.splitlines()
            assert {line[0] for line in lines} <= set(" +-"), hunk
            old, new = ("\n".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
            assert text.count(old) == 1, f"{self.file} has this {text.count(old)} times, not once:\n{old}"
            text = text.replace(old, new)
        path.write_text(text)


def blocks(recipe: str) -> list[Block]:
    """The blocks of a recipe, in order."""
    section = TEXT.split(f"### {recipe}\n")[1].split("\n### ")[0].split("\n## ")[0]
    found = []
    for kind, first, code in re.findall(r"^```(python|diff)\n(?:# |\+\+\+ )(\S+)\n(.*?)^```$", section, re.M | re.S):
        found.append(Block(kind, first, code))
    assert len(found) == section.count("\n```") / 2, f"{recipe}: a block that is none of the two kinds"
    return found


def copy(folder: Path, wanted) -> Path:
    """A checkout with those blocks of all recipes that are wanted."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("Makefile", "pyproject.toml", "data", "notebooks", "figures", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    for recipe in RECIPES:
        for block in blocks(recipe):
            if wanted(block):
                block.apply(folder)
    return folder


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess:
    """A command in the checkout, with its own source."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    environment = inherited | {"PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900)


def pytest_of(checkout: Path, *arguments: str) -> dict[str, str]:
    """{test: its outcome}, of a case each; what was parametrized counts once, as the worst of its cases."""
    out = run(
        checkout, sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--durations=0", *arguments
    )
    found: dict[str, str] = {}
    for outcome, test in re.findall(r"^(PASSED|FAILED|ERROR) (\S+?::\w+)", out.stdout, re.M):
        found[test] = outcome if found.get(test, "PASSED") == "PASSED" else found[test]
    assert found, out.stdout + out.stderr
    return found


TESTS = [test for recipe in RECIPES for block in blocks(recipe) if block.is_test for test in block.tests]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy(tmp_path_factory.mktemp("contributed") / "checkout", lambda block: True)


@pytest.fixture(scope="module")
def tested(checkout):
    """The tests of all recipes, run; their temporary files stay."""
    return pytest_of(checkout, *TESTS, f"--basetemp={checkout.parent / 'tmp'}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_covered_by_its_own_test(recipe, tested):
    own = [test for block in blocks(recipe) if block.is_test for test in block.tests]
    assert own and {test: tested.get(test) for test in own} == dict.fromkeys(own, "PASSED")


def test_the_tests_of_the_recipes_fail_without_their_code(tmp_path):
    bare = copy(tmp_path / "checkout", lambda block: block.is_test)
    assert set(pytest_of(bare, *TESTS).items()).isdisjoint((test, "PASSED") for test in TESTS)


def test_what_is_stored_is_noticed_and_recorded(checkout):
    """The command that the document names ends the complaint; the version of the metric's group is a new one."""
    assert "tests/test_semantics.py`" in TEXT
    recorded = run(checkout, sys.executable, "tests/test_semantics.py")
    for name in ("mmcollapse.metrics.captions", "mmcollapse.models.generator.AuraFlow"):
        assert name in recorded.stdout.replace(",", "").split(), recorded.stdout + recorded.stderr
    assert set(pytest_of(checkout, "tests/test_semantics.py").values()) == {"PASSED"}


def test_the_recipes_are_in_the_style_of_the_house(checkout):
    files = {block.file for recipe in RECIPES for block in blocks(recipe)}
    assert len(files) == 6
    for command in (["check"], ["format", "--check"]):
        out = run(checkout, sys.executable, "-m", "ruff", *command, "--no-cache", *sorted(files))
        assert out.returncode == 0, out.stdout
    chosen = "06_remedies and (style_of_its_own or full_grid_is_drawn)"
    figures = pytest_of(checkout, "tests/test_figures.py", "-k", chosen)
    assert len(figures) == 2 and set(figures.values()) == {"PASSED"}


def test_all_three_reach_a_result_table(checkout, tested):
    """By the document's own command, at smoke: the arm, made by the stand-in of the family, measured by the metric."""
    (command,) = re.findall(r"^    (make reproduce .*)$", TEXT, re.M)
    (arms,) = re.findall(r"arms=(\S+)\"", command)
    place = checkout.parent / "smoke"
    given = {"ONLY": "06_remedies", "PROFILE": "smoke", "VENV": "no", "PYTHON": sys.executable}
    given |= {name: str(place / name.lower()) for name in ("RUNS", "RESULTS", "FIGURES")}
    stand_in = next((checkout.parent / "tmp").glob("stand-in*/generator-auraflow"))
    given["SET"] = f"arms={arms} generators={stand_in} generations=1 students=0"
    done = run(checkout, "make", "reproduce", *(f"{name}={value}" for name, value in given.items()))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = read_table(place / "results" / "06_remedies.parquet")
    assert set(arms.split(",")) <= set(table.arm)
    made = table[(table.arm == "restart-accumulate") & (table.generation == 1) & (table.subset == "test")]
    assert set(made.model) == {"generator-auraflow", "captioner"}
    own = table[table.metric == "seq_rep_2"]
    assert set(own.modality) == {"text"} and {"restart-accumulate", "world"} <= set(own.arm)
    assert own.value.between(0, 1).all() and (own.n > 0).all() and {"sampled", "greedy", "data"} <= set(own.measurement)


def test_a_recipe_changes_one_place():
    """Beside its tests."""
    for recipe in RECIPES:
        places = {block.file for block in blocks(recipe) if not block.file.startswith("tests/")}
        assert len(places) == 1, (recipe, places)


def test_the_examples_of_the_readme_run(checkout, tmp_path):
    """Its block of shell commands, on what ships. A check of pictures that collapse fails with 3."""
    (script,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "results").mkdir()
    for path in (ROOT / "data/results/study").glob("01_variance.*"):
        shutil.copy(path, tmp_path / "results")
    given = f"VENV=no PYTHON={sys.executable} PROFILE=smoke RESULTS={tmp_path / 'results'}"
    done = run(checkout, "bash", "-c", f'make() {{ command make "$@" {given}; }}\n{script}')
    assert done.returncode == 0, done.stderr
    assert "collapsing in alignment" in done.stdout and "[Makefile" in done.stderr and "Error 3" in done.stderr
    assert (checkout / "check" / "report.html").is_file() and (tmp_path / "results/ratings/rate.html").is_file()
    assert "tasks on recursive, real, gen0" in done.stdout


LIMITS = (ROOT / "LIMITS.md").read_text()
ROWS = re.findall(r"^\| (.*) \| (-?[\d.]+) \| `(\S+)` (.*) \|$", LIMITS, re.M)


@pytest.fixture(scope="module")
def instruments():
    return read_table(ROOT / "data" / "results" / "study" / "00_instruments.parquet")


@pytest.mark.parametrize(("what", "said", "source", "where"), ROWS)
def test_a_number_of_the_limits_is_that_of_its_source(what, said, source, where, instruments):
    if source == "scores.json":
        name, _, measure = where.partition(", ")
        value = json.loads((ROOT / "data/models/scenes" / source).read_text())[name][measure]
    else:
        assert source == "00_instruments"
        rows = instruments
        for column, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|(\S+))', where):
            rows = rows[rows[column] == (quoted or plain)]
        assert rows.groupby(["metric", "modality", "space", "measurement"]).ngroups == 1, "more than one thing"
        for n in re.findall(r'measurement="n (\d+)"', where):
            assert what.rpartition("| ")[2].replace(",", "") == n
        value = rows.value.mean()
    digits = len(said.partition(".")[2])
    assert said == f"{value:.{digits}f}"


def test_the_limits_have_no_number_without_a_source():
    """Of what was measured; sizes, versions and thresholds of the method are words of it."""
    assert len(ROWS) == len(re.findall(r"^\|(?!-)(?!.*\| (?:found|of) \|).*\d.*`(?:00_|scores)", LIMITS, re.M)) > 20
    text = re.sub(r"^\|.*$|`[^`]*`|\(figures[^)]*\)", "", LIMITS, flags=re.M)
    assert not re.findall(r"\d*\.\d+(?!\.0| 4\.0)", text.replace("CC BY 4.0", "")), "a decimal in prose"


def test_the_licences_are_those_of_the_sources():
    sources = tomllib.loads((ROOT / "src/mmcollapse/sources.toml").read_text())
    entries = sources["models"] | sources["instruments"] | sources["data"]
    licences = {name: entry["licence"] for name, entry in entries.items() if "licence" in entry}
    rows = re.findall(r"^\| (.*) \| (`.*`) \|$", LIMITS.split("## Licences")[1], re.M)
    told = {name: licence for licence, names in rows for name in re.findall(r"`(.*?)`", names)}
    assert set(told) <= set(licences)
    for name, licence in licences.items():
        free = re.match(r"MIT$|BSD|Apache", licence)
        assert bool(free) != (name in told) and (free or licence.startswith(told[name])), f"{name}: {licence}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "LIMITS.md"])
def test_files_and_links_that_are_named_are_there(name):
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.M | re.S)
    places = [ROOT, ROOT / "data/models/scenes", ROOT / "src/mmcollapse"]
    places += [ROOT / "src/mmcollapse" / name for name in ("metrics", "models")]
    named = re.findall(r"`([\w./-]+\.(?:py|toml|json|md|parquet|in|lock|png))`", text)
    named += re.findall(r"`((?:src|tests|data|figures|notebooks|metrics|models)/[\w./-]*)`", text)
    named += [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert len(named) > 4
    for path in named:
        assert any((place / path).exists() for place in places), f"{name} names {path}, which is not there"


def test_the_document_says_which_recipes_there_are():
    assert re.findall(r"^### (.*)$", TEXT, re.M) == list(RECIPES)
    assert max(map(len, TEXT.splitlines())) <= 120
