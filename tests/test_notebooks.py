"""Every notebook through papermill and nbval at `smoke`, and what the commands say of that run."""

import json
import re
from dataclasses import fields

import papermill
import pytest

from mmcollapse.__main__ import main
from mmcollapse.experiment import check_run
from mmcollapse.experiments import EXPERIMENTS, arms_of
from mmcollapse.runner import EXPLORER, NOTEBOOKS, prepare
from mmcollapse.settings import Settings, configure, load_settings
from mmcollapse.status import ALL_ENDINGS, ENDINGS
from mmcollapse.store import Store
from mmcollapse.table import read_table

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb") if path.stem != EXPLORER)
WITH_ARMS = [name for name in NAMES if EXPERIMENTS.get(name)]


def smoke_arms(name):
    return arms_of(name, load_settings("smoke", name))


def test_every_experiment_has_its_notebook():
    assert NAMES == sorted(EXPERIMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_declares_every_setting_and_nothing_else(name, recwarn, caplog):
    found = papermill.inspect_notebook(NOTEBOOKS / f"{name}.ipynb")
    assert list(found) == [f.name for f in fields(Settings)]
    assert not caplog.records  # a line that papermill cannot parse is a parameter that it cannot set
    defaults = {k: p["default"] for k, p in found.items()}
    assert defaults == dict.fromkeys(defaults, "None") | {"profile": '"nano"'}
    assert all(p["help"] for p in found.values())


@pytest.mark.parametrize("name", [EXPLORER, *NAMES])
def test_a_notebook_is_stored_clean(name):
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    book = json.loads(text)
    assert text == json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    for cell in book["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None and set(cell["metadata"]) <= {"tags"}


@pytest.mark.parametrize("name", NAMES)
def test_what_papermill_puts_in_is_understood(name, tmp_path):
    """Small numbers, quotes and such reach the settings as they are."""
    told = {"profile": "smoke", "lr_generator": 1e-5, "runs": 'it\'s "here"\\', "seeds": 3}
    book = json.loads(prepare(name, told, tmp_path / "copy.ipynb").read_text())
    namespace = {}
    for cell in book["cells"]:
        if {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", [])):
            exec("".join(cell["source"]), namespace)
    assert configure(namespace, name) == load_settings(**told, experiment=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_its_own_experiment(name):
    """Not one that it was copied from."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and "parameters" not in str(c["metadata"])]
    assert f'configure(globals(), "{name}")' in "".join(code)
    others = [other for other in EXPERIMENTS if other != name]
    assert not [other for other in others if other in "".join(code)]
    assert f'check_run("{name}", settings)' in code[-1] if name in WITH_ARMS else "assert " in code[-1]
    assert "".join(cells[0]["source"]).startswith(f"# {int(name[:2])}. ")


def test_a_run_makes_everything_and_says_so(smoke):
    assert smoke.code == 0, smoke.output
    assert "one seed decides nothing" in smoke.output
    assert "- C1 (" in smoke.output
    assert {path.name for path in smoke.folder.iterdir()} == {"runs", "results", "figures"}  # also seen from the kernel


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_makes_its_files(name, smoke):
    for ending in (*ENDINGS.get(name, ALL_ENDINGS), ".log"):
        assert (smoke.folder / "results" / (name + ending)).is_file()
        assert re.search(rf"^  results/{name}{re.escape(ending)} +[\d,]+ KiB$", smoke.output, re.M)
    figures = list((smoke.folder / "figures").glob(f"{name}_*.png"))
    assert figures and all(f"  figures/{path.name} " in smoke.output for path in figures)
    *stages, total = map(float, re.search(rf" {name} +(.*)", smoke.output)[1].split())
    assert sum(stages) == pytest.approx(total, abs=0.3)
    # drawing and the rest; what notebooks share is made and trained by the first of them
    assert min(stages[2:] if name in WITH_ARMS else stages[3:]) > 0


def test_every_stage_is_timed_where_its_work_is_done(smoke):
    rows = [re.search(rf" {name} +(.*)", smoke.output)[1].split() for name in WITH_ARMS]
    assert all(sum(float(row[k]) for row in rows) > 0 for k in range(4)), rows


@pytest.mark.parametrize("name", WITH_ARMS)
def test_a_table_is_complete_and_every_stage_was_told(name, smoke):
    settings, protocols = load_settings("smoke", name), smoke_arms(name)
    table = read_table(smoke.folder / "results" / f"{name}.parquet")
    check_run(name, settings, table)
    students = {int(g) for g in settings.student_generations.split(",")} if settings.students else set()
    for p in protocols:
        for g in range(1, settings.generations + 1):  # a line for each stage of each chain
            stages = ["measuring"]
            stages += ["making data", "fine-tuning", *(["student 0"] if g in students else [])] if p.trains else []
            for stage in stages:
                assert f"] {p.name} seed 0, generation {g}: {stage} (" in smoke.output
        rows = table[table.arm == p.arm]
        for modality, role in zip(p.modalities, p.roles, strict=True):
            own = rows[rows.modality == modality]
            trained = role in p.trains
            sets = own[own.model == "set"]
            assert set(sets.generation) == (set(range(1, settings.generations + 1)) if trained else set())
            assert set(own[own.model == "student 0"].generation) == (students if trained else set())
            models = {m.label for m in p.members({r: settings_zoo(settings, r) for r in p.roles}) if m.role == role}
            assert set(own.model) - {"set", "student 0", "pool"} == models
            assert ("pool" in set(own.model)) == (len(models) > 1)
    assert not (smoke.folder / "results" / f"{name}.progress.json").exists()


def settings_zoo(settings, role):
    return tuple(getattr(settings, f"{role}s").split(","))


@pytest.mark.parametrize("name", NAMES)
def test_the_executed_notebook_shows_pictures_and_conclusions(name, smoke):
    book = json.loads((smoke.folder / "results" / f"{name}.ipynb").read_text())
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= (3 if name in WITH_ARMS else 1) and "text/markdown" in kinds
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "injected-parameters" in str(book["cells"])


def test_nbval_runs_copies_on_the_finished_store(smoke, capfd):
    before = {path: path.read_bytes() for path in (smoke.folder / "results").glob("*.parquet")}
    started = {path.name for path in (smoke.folder / "runs").glob("*/*")}
    assert main(["validate", *smoke.options]) == 0, capfd.readouterr().out
    said = capfd.readouterr().out
    assert re.search(r"\d+ passed", said) and all(f"{name}.ipynb" in said for name in (EXPLORER, *NAMES))
    assert before == {path: path.read_bytes() for path in before}  # the same tables, byte for byte
    assert started == {path.name for path in (smoke.folder / "runs").glob("*/*")}  # and nothing was done again


def test_status_after_a_run(smoke, capsys):
    assert main(["status", *smoke.options]) == 0
    said = capsys.readouterr().out
    assert "missing" not in said and said.count("  complete") == len(NAMES)
    assert said.count("in the table   3 of 3") == sum(len(smoke_arms(name)) for name in NAMES)


def test_status_says_what_is_missing(smoke, capsys):
    assert main(["status", *smoke.options, "--only", "01_variance", "--set", "seeds=2", "--set", "steps=3"]) == 0
    said = capsys.readouterr().out
    assert "the table was made with other settings: steps 2 (now 3)" in said
    assert re.search(r"generator gen0 +in the table   3 of 6, .*missing: seed 1 generation 0 and later", said)
    assert "make reproduce" in said and "complete" not in said
    assert main(["status", *smoke.options, "--only", "01_variance", "--set", "generations=3"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"captioner recursive-drift +in the table   3 of 4, .*missing: seed 0 generation 3$", said, re.M)


def test_status_of_nothing(tmp_path, capsys):
    folders = ["--runs", str(tmp_path / "no"), "--results", str(tmp_path / "no"), "--figures", str(tmp_path / "no")]
    assert main(["status", "--profile", "smoke", *folders]) == 0
    said = capsys.readouterr().out
    assert "in the table   0 of 3" in said and "0 of 10 figures" in said and "complete" not in said
    assert not (tmp_path / "no").exists()  # looking changes nothing


def test_status_of_a_run_under_way(tmp_path, capsys):
    """How far chains are is in a file beside the tables, until the table is there."""
    (tmp_path / "results").mkdir()
    reached = {"generator recursive seed 0": 2, "generator real seed 0": 0}
    (tmp_path / "results" / "01_variance.progress.json").write_text(json.dumps(reached))
    Store(tmp_path / "runs").make("scores", {}, lambda folder: {"digest": "x"})
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["status", "--profile", "smoke", "--only", "01_variance", *folders]) == 0
    said = capsys.readouterr().out
    for chain, done in {"generator recursive": 3, "generator real": 1, "generator gen0": 0}.items():
        assert re.search(rf"  {chain} +in the table   0 of 3, measured in the store   {done};", said)
