"""Every notebook through papermill and nbval at `smoke`, and what the commands say of that run."""

import json
import re
import shutil
from dataclasses import fields

import papermill
import pytest

from mmcollapse.__main__ import main
from mmcollapse.protocol import EXPERIMENTS, arms_of
from mmcollapse.runner import NOTEBOOKS, prepare
from mmcollapse.settings import Settings, configure, load_settings
from mmcollapse.status import Made
from mmcollapse.store import Store
from mmcollapse.table import check_complete, read_table

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


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


@pytest.mark.parametrize("name", NAMES)
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
    assert configure(namespace) == load_settings(**told)


def test_a_run_makes_everything_and_says_so(smoke):
    assert smoke.code == 0, smoke.output
    for name in NAMES:
        for ending in (".parquet", ".samples.parquet", ".json", ".ipynb", ".log"):
            assert (smoke.folder / "results" / (name + ending)).is_file()
            assert re.search(rf"^  results/{name}{re.escape(ending)} +[\d,]+ KiB$", smoke.output, re.M)
        figures = list((smoke.folder / "figures").glob(f"{name}_*.png"))
        assert figures and all(f"  figures/{path.name} " in smoke.output for path in figures)
        settings = load_settings("smoke")
        chains = [(p.modality, p.arm) for p in arms_of(name)]
        check_complete(read_table(smoke.folder / "results" / f"{name}.parquet"), chains, [0], settings.generations)
        # a line for each stage of each chain, and the time of each stage
        for arm in arms_of(name):
            for g in range(1, settings.generations + 1):
                stages = ["measuring"] if arm.data == "none" else ["making data", "fine-tuning", "measuring"]
                for stage in stages:
                    assert f"] {arm.role} {arm.arm} seed 0, generation {g}: {stage} (" in smoke.output
        making, tuning, measuring, drawing, other, total = map(
            float, re.search(rf" {name} +(.*)", smoke.output)[1].split()
        )
        assert min(making, tuning, measuring, drawing, other) > 0
        assert making + tuning + measuring + drawing + other == pytest.approx(total, abs=0.3)
    assert "one seed decides nothing" in smoke.output
    assert "- C1 (" in smoke.output
    assert {path.name for path in smoke.folder.iterdir()} == {"runs", "results", "figures"}  # also seen from the kernel


@pytest.mark.parametrize("name", NAMES)
def test_the_executed_notebook_shows_pictures_and_conclusions(name, smoke):
    book = json.loads((smoke.folder / "results" / f"{name}.ipynb").read_text())
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 4 and "text/markdown" in kinds
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "injected-parameters" in str(book["cells"])


def test_nbval_runs_copies_on_the_finished_store(smoke, capfd):
    before = {path: path.read_bytes() for path in (smoke.folder / "results").glob("*.parquet")}
    started = {path.name for path in (smoke.folder / "runs").glob("*/*")}
    assert main(["validate", *smoke.options]) == 0, capfd.readouterr().out
    assert re.search(r"\d+ passed", capfd.readouterr().out)
    assert before == {path: path.read_bytes() for path in before}  # the same tables, byte for byte
    assert started == {path.name for path in (smoke.folder / "runs").glob("*/*")}  # and nothing was done again


def test_status_after_a_run(smoke, capsys):
    assert main(["status", *smoke.options]) == 0
    said = capsys.readouterr().out
    assert "missing" not in said and said.count("  complete") == len(NAMES)
    assert said.count("in the table   3 of 3") == len(arms_of("01_variance"))
    assert said.count("trained in the store   2 of 2") == len([p for p in arms_of("01_variance") if p.data != "none"])


def test_status_says_what_is_missing(smoke, capsys):
    assert main(["status", *smoke.options, "--set", "seeds=2", "--set", "steps=3"]) == 0
    said = capsys.readouterr().out
    assert "the table was made with other settings: steps 2 (now 3)" in said
    assert "generator gen0                 in the table   3 of 6, trained in the store   0 of 4" in said
    assert "missing: seed 1 generation 0 and later" in said and "make reproduce" in said
    assert main(["status", *smoke.options, "--set", "seeds=2", "--set", "generations=3"]) == 0
    assert "recursive-drift      in the table   3 of 8, trained in the store   2 of 6" in capsys.readouterr().out


def test_status_of_nothing(tmp_path, capsys):
    folders = ["--runs", str(tmp_path / "no"), "--results", str(tmp_path / "no"), "--figures", str(tmp_path / "no")]
    assert main(["status", "--profile", "smoke", *folders]) == 0
    said = capsys.readouterr().out
    assert "in the table   0 of 3, trained in the store   0 of 2" in said and "0 of 8 figures" in said
    assert not (tmp_path / "no").exists()  # looking changes nothing


def test_status_tells_arms_apart_by_their_data(smoke, tmp_path):
    """In a store without the chains whose data decoding drifts, those arms are missing and no others."""
    store, settings = Store(smoke.folder / "runs"), load_settings("smoke")
    pairs = [item for item in store.items("pairs") if "seed" in item.inputs]
    drifting = {item.digest for item in pairs if item.inputs["decoding"].get("temperature", 1.0) != 1.0}
    for item in store.items():
        if item.digest not in drifting and item.inputs.get("pairs") not in drifting:
            folder = tmp_path / item.kind / item.name
            folder.mkdir(parents=True)
            shutil.copy(item.folder / "manifest.json", folder)
    made = Made(Store(tmp_path), settings)
    reached = {(p.role, p.arm): made.generations(p, 0) for p in arms_of("01_variance") if p.data != "none"}
    assert drifting and reached == {key: 0 if "drift" in key[1] else 2 for key in reached}
