"""Running notebooks: what the terminal shows, failures, interruptions, folders. The notebooks here need no models."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import nbformat.v4 as nb
import pytest

from mmcollapse import runner
from mmcollapse.__main__ import main
from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import load_settings


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """(write(name, code), lines of the terminal, react(line) hooks): a folder of notebooks of our own."""
    place = tmp_path / "notebooks"
    place.mkdir()
    names, lines, reactions = {}, [], []
    monkeypatch.setattr(runner, "NOTEBOOKS", place)
    monkeypatch.setattr(runner, "EXPERIMENTS", names)
    monkeypatch.setattr(runner, "arms_of", lambda name, settings: [])
    monkeypatch.setattr(runner, "_verdicts", lambda name, table: "- C1: no verdict")
    monkeypatch.chdir(tmp_path)

    def spy(*words, **options):
        lines.append(" ".join(map(str, words)).rstrip("\n"))
        for react in reactions:
            react(lines[-1])

    monkeypatch.setattr(runner, "print", spy, raising=False)
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}

    def write(name, code):
        parameters = nb.new_code_cell(
            "runs = results = figures = profile = seeds = None", metadata={"tags": ["parameters"]}
        )
        cells = [parameters, *(nb.new_code_cell(c) for c in code)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
        (place / f"{name}.ipynb").write_text(json.dumps(nb.new_notebook(cells=cells, metadata=kernel)))
        names[name] = not name.endswith("reads")  # such a one has no arms of its own

    yield write, lines, reactions
    for number, handler in before.items():
        signal.signal(number, handler)


FOLDERS = {"runs": "r", "results": "out", "figures": "pictures"}


def test_a_failing_notebook_does_not_stop_the_others(notebooks, tmp_path):
    write, lines, reactions = notebooks
    write(
        "01_bad", ["from mmcollapse.errors import TrainingDiverged\nraise TrainingDiverged('loss is\\nNaN at step 3')"]
    )
    # This cell ends only when the terminal has shown its first line: progress is seen while it works.
    wait = "import time\nfrom pathlib import Path\nprint('fine-tuning begins')\nfor _ in range(600):\n"
    wait += "    if Path('seen').exists(): break\n    time.sleep(0.05)\nelse: raise TimeoutError"
    files = (
        "Path(results, '02_good.parquet').write_text('made')\nassert Path(runs).is_absolute() and profile == 'smoke'"
    )
    write("02_good", [wait, files])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "02_good_old.parquet").write_text("not made now")
    os.utime(tmp_path / "out" / "02_good_old.parquet", (1, 1))
    reactions.append(lambda line: Path("seen").touch() if line.endswith("fine-tuning begins") else None)

    assert runner.run("smoke", FOLDERS | {"seeds": 2}) == 1
    text = "\n".join(lines)
    made = [line.split()[0] for line in lines if line.endswith("KiB")]
    assert made == [
        f"out/{n}" for n in ("01_bad.ipynb", "01_bad.log", "02_good.ipynb", "02_good.log", "02_good.parquet")
    ]
    assert "1 of 2 notebooks FAILED" in text
    assert "  01_bad: TrainingDiverged: loss is NaN at step 3\n    log: out/01_bad.log" in text
    assert "Traceback" not in text  # an error raised on purpose is one line
    assert "ONLY=01_bad" in text and "what is finished in r is not done again" in text
    assert "2 seeds decide nothing" in text and "- C1: no verdict" in text
    (times,) = [line.split() for line in lines if line.split()[:1] == ["02_good"]]
    assert len(times) == 2 + len(runner.STAGES) + 1 and float(times[-1]) > 0
    assert "fine-tuning begins" in (tmp_path / "out" / "02_good.log").read_text()


def test_the_log_of_a_silent_notebook_is_among_what_was_made(notebooks, tmp_path, monkeypatch):
    """Files are stamped by a clock that ticks a hundred times a second: its log may seem older than the notebook."""
    write, lines, _ = notebooks
    write("01_silent", ["pass"])
    note = runner.Job._note

    def early(self, text, mode):
        note(self, text, mode)
        os.utime(self.log, (time.time() - 0.01,) * 2)

    monkeypatch.setattr(runner.Job, "_note", early)
    assert runner.run("smoke", FOLDERS) == 0
    assert any(line.startswith("  out/01_silent.log ") for line in lines)


def test_notebooks_run_at_once_but_those_that_read_the_others_wait(notebooks):
    write, lines, _ = notebooks
    meet = "import time\nfrom pathlib import Path\nPath('{0}').touch()\nfor _ in range(1200):\n"
    meet += "    if Path('{1}').exists(): break\n    time.sleep(0.05)\nelse: raise TimeoutError\nprint('met')"
    write("01_a", [meet.format("a", "b")])
    write("02_b", [meet.format("b", "a"), "import time\ntime.sleep(1)\nPath('slow').touch()"])
    write("03_reads", ["from pathlib import Path\nassert Path('slow').exists()"])
    assert runner.run("smoke", FOLDERS, jobs=2) == 0, "\n".join(lines)
    assert "01 | met" in lines and "02 | met" in lines and "03_reads: done" in lines
    times = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in ("01_a", "02_b", "03_reads")]
    assert times == ["01_a", "02_b", "03_reads"]  # the table, in their order


def test_an_interrupted_run_ends_its_kernel_and_says_how_to_resume(notebooks):
    write, lines, reactions = notebooks
    write("01_slow", ["import os, time\nprint('kernel', os.getpid())\ntime.sleep(600)"])
    write("02_never", ["1"])

    def interrupt(line):
        if line.startswith("kernel "):
            raise KeyboardInterrupt

    reactions.append(interrupt)
    assert runner.run("smoke", FOLDERS, jobs=1) == 130
    assert lines[-1].startswith("\nmmcollapse: interrupted. To resume, give the same command again")
    assert not any("02_never" in line for line in lines)
    (kernel,) = [int(line.split()[1]) for line in lines if line.startswith("kernel ")]
    deadline = time.monotonic() + 15
    while Path(f"/proc/{kernel}/stat").exists() and Path(f"/proc/{kernel}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the kernel lives on"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("changes", "only", "says"),
    [
        ({"learning_rate": 3}, None, "setting learning_rate=3 is unknown"),
        ({"seeds": "3"}, None, "setting seeds='3': must be a whole number"),
        ({"arms": "reel"}, "01_variance", "01_variance has no arm 'reel'"),
        ({"arms": "real"}, None, "arms='real': of which experiment? Name it, such as ONLY=01_variance"),
        ({"arms": "recursive,real"}, "01_variance", "cannot be read without its control gen0; give "),
        ({"roles": "painter"}, None, "setting roles='painter': 'painter' is none of generator, captioner"),
        ({"populations": "7"}, None, "setting populations='7': a population of 7 is larger than the zoo"),
        ({"student_generations": "a"}, None, "setting student_generations='a': 'a' is no whole number"),
        ({"grid_real": "0"}, None, "setting grid_real='0': 0 is not allowed, 1 to 99 is"),
        ({}, "02_varance", "only='02_varance': the notebooks are 01_variance"),
    ],
)
def test_mistakes_are_refused_before_any_notebook_starts(changes, only, says, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(MMCollapseError) as error:
        runner.run("smoke", changes, only)
    assert says in str(error.value)


def test_no_run_writes_over_a_shipped_table(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "01_variance.parquet").touch()
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    stood_in = [runner.Outcome("01_variance", "stood in", Path("log"), [], _zero())]
    monkeypatch.setattr(runner, "run_all", lambda *_: stood_in)
    assert runner.run("smoke", {"results": str(tmp_path)}) == 1
    subprocess.run(["git", "add", "01_variance.parquet"], cwd=tmp_path, check=True)
    with pytest.raises(MMCollapseError, match="is shipped, and no run writes over it"):
        runner.run("smoke", {"results": str(tmp_path)})


def _zero():
    return dict.fromkeys((*runner.STAGES, "all"), 0.0)


def test_relative_folders_mean_where_the_command_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes, names = {"results": "out", "models": "../m", "pairs": 9}, ["01_variance", "03_diversity"]
    settings, told = runner.parameters("smoke", changes, names)
    assert settings == {name: load_settings("smoke", name, **changes) for name in names}
    assert told == {
        "profile": "smoke",
        "pairs": 9,
        "results": f"{tmp_path}/out",
        "models": f"{tmp_path}/../m",
    }


def test_an_error_is_one_line_and_an_exit_status(capsys, tmp_path):
    assert main(["run", "--profile", "smoke", "--world", "photos"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "DATA=folder" in said
    assert main(["trace", "--results", str(tmp_path), "--row", "1"]) == 1
    assert "no result table at" in capsys.readouterr().err
    assert main(["trace", "--results", str(tmp_path)]) == 1
    assert "ROW=12" in capsys.readouterr().err
    assert main(["figures", "--results", str(tmp_path), "--figures", str(tmp_path / "f")]) == 1
    assert "run the experiment first" in capsys.readouterr().err
    assert main(["pretrain", "--set", "seeds=3"]) == 1
    assert "pretraining takes no settings" in capsys.readouterr().err


def test_what_reads_students_is_left_out_where_there_are_none(notebooks, monkeypatch):
    _, lines, _ = notebooks
    for name in ("01_makes", "05_quality_robustness"):
        (runner.NOTEBOOKS / f"{name}.ipynb").touch()
        runner.EXPERIMENTS[name] = name == "01_makes"
    ran = []
    monkeypatch.setattr(runner, "run_all", lambda settings, told, jobs: ran.append(list(settings)) or [])
    for only, students in ((None, 0), (None, 1), ("05_quality_robustness", 0)):  # asked for by name it runs
        assert runner.run("smoke", FOLDERS | {"students": students}, only) == 0
    assert ran == [["01_makes"], ["01_makes", "05_quality_robustness"], ["05_quality_robustness"]]
    assert "\n".join(lines).count("05_quality_robustness is left out: ") == 1
