"""Every command of the README, at PROFILE=smoke and in folders of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mmcollapse import alarms
from mmcollapse.claims import EVERY, all_claims
from mmcollapse.experiments import ALARM, PRIORITY
from mmcollapse.figures import robustness
from mmcollapse.intervention import NEVER, late_of, of_sets
from mmcollapse.plan import plan
from mmcollapse.rates import read_rates
from mmcollapse.settings import load_settings
from mmcollapse.table import is_member, read_table
from mmcollapse.verdicts import page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (make \w.*?)(?:  +#.*)?$", README, re.MULTILINE)


def photos(folder: Path) -> str:
    """A folder of 60 small pictures with captions, as a user may have it."""
    folder.mkdir()
    lines = ["image,caption"]
    for i in range(60):
        Image.new("RGB", (80, 64), (4 * i, 250 - 4 * i, 30 * (i % 8))).save(folder / f"{i}.png")
        lines += [f"{i}.png,a plain picture number {i % 7} of {w}" for w in ("one", "two", "three", "four", "five")]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory, smoke):
    """Options for all commands: the finished smoke run's folders, photos and photo models of the test's own."""
    folder = tmp_path_factory.mktemp("readme")
    return {
        "folder": folder,
        "scenes": {
            "RUNS": smoke.folder / "runs",
            "RESULTS": smoke.folder / "results",
            "FIGURES": smoke.folder / "figures",
            "SITE": folder / "site",
        },
        "photos": {"RUNS": folder / "runs", "RESULTS": folder / "results", "FIGURES": folder / "figures"}
        | {"SITE": folder / "site", "MODELS": folder / "models", "DATA": photos(folder / "photos")},
    }


def test_the_percentages_are_those_of_the_shipped_table():
    start = README.index("A small Stable Diffusion trained on its own")
    said = [int(x) for x in re.findall(r"(\d+)%", README[start : README.index("| claim |", start)])]
    table = read_table(ROOT / "data" / "results" / "study" / "01_variance.parquet")
    last = table[(table.metric == "all_right") & (table.generation == 10) & (table.subset == "test")]
    last = last[last.model.isin(["generator", "captioner"])]  # not fresh students
    means = last.groupby(["modality", "measurement", "arm"]).value.mean()
    arms = [("image", "guidance 1", a) for a in ("recursive", "real", "gen0")]
    arms += [("text", "sampled", "recursive"), ("text", "drifting", "frozen-drift")]
    assert said == [round(100 * means[arm]) for arm in arms]


def test_the_verdicts_are_those_of_the_shipped_page():
    found = pd.read_parquet(ROOT / "data" / "results" / "study" / "07_claims.parquet")
    found = found[found.contrast == EVERY].set_index("claim")
    said = {}
    for row in re.findall(r"^\| (C\d.*|Q\d.*) \|$", README, re.M):
        name, text, seeds, verdict = row.split(" | ")
        said[name] = (text, seeds.strip(), verdict)
    for claim in all_claims():
        if not claim.id.startswith("Q2"):
            row = found.loc[claim.id]
            verdict = "not run" if row.verdict.startswith("not run") else row.verdict
            assert said.pop(claim.id) == (claim.text, str(row.seeds or ""), verdict)
    assert list(said) == ["Q2"] and said["Q2"][2] == "not run"
    assert found[found.index.str.startswith("Q2")].verdict.str.startswith("not run").all()


def test_what_the_arms_show_is_what_the_shipped_tables_say():
    folder = ROOT / "data" / "results" / "study"

    def late(experiment: str, arm: str, modality="image", metric="all_right", model="", after=7) -> float:
        table = read_table(folder / f"{experiment}.parquet")
        measured = {"image": "guidance 1", "text": "greedy"}[modality]
        rows = table[(table.arm == arm) & (table.modality == modality) & (table.measurement == measured)]
        rows = rows[
            (rows.metric == metric) & (rows.subset == "test") & is_member(rows.model) & (rows.generation > after)
        ]
        return rows[rows.model == (model or rows.model.iloc[0])].value.mean()

    def paragraph(name: str) -> str:
        start = README.index(f"- **{name} (C")
        return README[start : min(README.index(end, start + 1) for end in ("\n- **", "\n\n") if end in README[start:])]

    def percentages(name: str) -> list[int]:
        return [int(x) for x in re.findall(r"(\d+)%", paragraph(name))]

    def rounded(values) -> list[int]:
        return [round(100 * value) for value in values]

    steps = [late("02_decoding_budget", f"steps-{arm}") for arm in ("50", "2", "50-gen0", "2-gen0")]
    assert percentages("Decoding") == rounded(steps)
    lost = [late("02_decoding_budget", f"steps-{k}-gen0", after=0) for k in (50, 2)]
    lost = [value - late("02_decoding_budget", f"steps-{k}", after=0) for value, k in zip(lost, (50, 2), strict=True)]
    assert f"({lost[0]:.2f} against {lost[1]:.2f}, mean over generations)" in paragraph("Decoding")
    models = [(arm, f"generator-{m}") for m in ("pixart", "sdxl") for arm in ("alone", "pool-4")]
    assert percentages("Diversity") == rounded(late("03_diversity", arm, model=model) for arm, model in models)
    labels = paragraph("Labels")
    assert percentages("Labels") == rounded(late("04_relabeling", arm, "text") for arm in ("joint", "original"))
    for arm in ("joint", "original"):
        assert f"{late('04_relabeling', arm, metric='nuisance_ratio'):.2f}" in labels
    for modality in ("image", "text"):
        frozen, joint = (late("04_relabeling", arm, modality) for arm in ("frozen-captioner", "joint"))
        assert abs(frozen - joint) < 0.01
    claims, forecast = pd.read_parquet(folder / "07_claims.parquet"), paragraph("Quality as a forecast")
    found = claims[claims.claim == "C5"].set_index("contrast").effect
    tables = robustness.open_tables(folder, "05_quality_robustness")
    without = robustness._left_out(tables, "image", [("fid", "judge")])["02_decoding_budget"][0][0]
    for value in (found["FID of pictures"], found["BLEU-4 of captions"], without):
        assert f"{value:.2f}" in forecast
    contrasts = claims[claims.claim == "C6"].set_index("contrast")
    assert contrasts.high["pool of 4 - alone"] < 0 < contrasts.low["variance: pool of 4 - alone"]


def test_the_shipped_page_is_what_its_tables_say_today():
    folder = ROOT / "data" / "results" / "study"
    settings = load_settings("study", results=str(folder), figures=str(ROOT / "figures" / "study"))
    assert (folder / "07_claims.md").read_text() == page({"study": folder}, settings)


def test_what_remedies_saved_is_what_the_shipped_table_says():
    start = README.index("Generators without real data get")
    said = [int(x) for x in re.findall(r"(\d+)%", README[start : README.index("So waiting", start)])]
    table, expected = read_table(ROOT / "data" / "results" / "study" / "08_intervention.parquet"), []
    for modality, never in NEVER.items():
        late = late_of(table, modality, 10)
        expected += [round(100 * late[arm].mean()) for arm in (never, "always", "on-alarm", "late-7", "real")]
    assert said == expected
    pairs = {arm: of_sets(table, "real_pairs", "image", arm).sum().mean() for arm in ("always", "on-alarm")}
    assert pairs["on-alarm"] / pairs["always"] == pytest.approx(5 / 6) and "a sixth fewer uses" in README
    late = table[(table.arm == "late-7") & (table.metric == "all_right") & (table.measurement == "greedy")]
    late = late[(late.subset == "test") & (late.model == "captioner")].groupby("generation").value.mean()
    assert late[7] == 0 and f"climb again, from none right to {late[10]:.0%} in generation 10" in README
    heard = alarms.sounded(table, 10)
    heard = heard[(heard.alarm == ALARM["generator"]) & (heard.arm == "real")]
    assert len(heard) == 3 and heard.generation.isna().all() and all(f"*{name}*" in README for name in ALARM.values())


def test_the_table_of_the_zoo_is_that_of_the_scores():
    scores = json.loads((ROOT / "data" / "models" / "scenes" / "scores.json").read_text())
    rows = re.findall(r"^\| `(\w[\w-]+)` \| (\.?\d[.\d]*) \| ([.\d]*) \|$", README, re.M)
    assert {name for name, *_ in rows} == {name for name in scores if name.startswith(("generator", "captioner"))}
    for name, used, plain in rows:
        assert used == f"{scores[name]['seen: all right']:.3f}"
        alone = scores[name].get("seen, 10 steps, guidance 1: all right")
        assert plain == ("" if alone is None else f"{alone:.3f}")


def test_the_earliest_honest_alarm_is_that_of_the_shipped_table():
    table = read_table(ROOT / "data" / "results" / "study" / "01_variance.parquet")
    judged = alarms.honesty(table, 10)
    first = judged[(judged.modality == "image") & judged.honest].iloc[0]
    said = f"against (0 of {first.healthy}, which could still be up to {first.high:.0%}), is *{first.alarm}*, in\n"
    assert f"{said}generation {first.generation:.0f}, " in README and first.false == 0
    assert (first.healthy, round(first.lead)) == (5, 5) and "five generations before half" in README
    first = judged[(judged.modality == "text") & judged.honest].iloc[0]
    assert f"it is *{first.alarm}*, in generation {first.generation:.0f}, when half of them are lost already" in README
    assert (first.collapsing, first.healthy) == (3, 5) and first.lead < 0


def test_captioners_that_are_trained_on_what_drifts_write_none_right():
    table = read_table(ROOT / "data" / "results" / "study" / "01_variance.parquet")
    trained = table[(table.arm == "recursive-drift") & (table.metric == "all_right") & (table.subset == "test")]
    greedy = trained[(trained.measurement == "greedy") & ~trained.model.str.startswith("student")]
    assert (
        "writes none right from its third generation on when decoded greedily" in README and greedy.seed.nunique() == 3
    )
    assert (greedy[greedy.generation >= 3].value < 0.005).all() and (greedy[greedy.generation < 2].value > 0.99).all()


@pytest.mark.parametrize("profile", ["single-gpu", "paper"])
def test_the_hours_are_those_of_the_plan(profile):
    settings = {name: load_settings(profile, name) for name in PRIORITY}
    hours = {line.split()[0][:2]: line.split()[-1] for line in plan(settings).splitlines()[2:9]}
    row = re.search(rf"^\| `{profile}` \| (\d[\d. |]*) \|$", README, re.M)
    order = ("01", "02", "03", "04", "06", "08", "al")
    assert row[1].split(" | ") == [hours[name] for name in order]


def test_the_speeds_of_training_are_those_of_the_rates():
    rates = {(r.model, r.work): 1000 / r.ms for r in read_rates() if "H100" in r.device}
    said = re.findall(r"^\| pairs trained on, LoRA, batch 4 \| ([\d.]+) \|", README, re.M)
    names = ("CompVis/stable-diffusion-v1-4", "stabilityai/stable-diffusion-xl-base-1.0")
    assert [float(x) for x in said] == [pytest.approx(rates[name, "train"], rel=0.01) for name in names]


def test_the_readme_has_its_commands():
    assert len(COMMANDS) >= 12 and "make reproduce" in COMMANDS and "make test" in COMMANDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("make test", "make lab")])
def test_command(command, place, smoke):
    given = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', command))
    target = re.match(r"make (\S+)", command)[1]
    options = {"PROFILE": "smoke"} | place["photos" if given.get("WORLD") == "photos" else "scenes"]
    if "FIGURE" in given:  # the same figure, where this test has it
        options["FIGURE"] = next(smoke.folder.glob(f"figures/{Path(given.pop('FIGURE')).name}"))
    if given.get("PYTHON"):  # another Python: this one, which has the packages
        options["PYTHON"] = sys.executable
    if given.get("VENV") == "no":
        options |= {"RUNS": place["folder"] / "gpu"} if target == "reproduce" else {}
    if target == "pretrain" and "MODELS" not in options:
        options["MODELS"] = place["folder"] / "new-models"  # a run never writes over the shipped ones
        if "STAGES" in given:  # beside what is shipped, on which they rest
            options["MODELS"] = place["folder"] / "zoo"
            shutil.copytree(ROOT / "data" / "models" / "scenes", options["MODELS"], symlinks=True)
    given = {k: v.strip('"') for k, v in given.items()}
    if given.get("PROFILE") == "single-gpu":
        if target in ("fetch", "plan"):  # of the profile itself, without a network, a GPU, photos or its models
            options = {"PROFILE": "single-gpu", "RUNS": place["folder"] / "no-runs"}
            options |= {"MIRROR": "http://127.0.0.1:9"} if target == "fetch" else {"SET": "generations=1 grid=corners"}
        else:  # on small models of the same classes
            options |= place["photos"] | {"WORLD": "photos"}
    elif target in ("study", "plan"):
        given.pop("PROFILE")
    if target == "study":  # what the smoke run has made is taken over
        options |= {"RESULTS": place["folder"] / "pieces", "BEFORE": options["RESULTS"]}
    if target in ("trace", "verify") and given.get("PROFILE") == "study":  # what is shipped, only read
        options = {"PARTS": "a"} if target == "verify" else {}  # the others take minutes
    if target == "reproduce" and "SET" in given:
        given["SET"] = given["SET"].replace("device=cuda", "device=auto").replace("seeds=3", "seeds=1")
        options["RESULTS"], options["FIGURES"] = place["folder"] / "set", place["folder"] / "set-figures"
    options = {k: str(v) for k, v in (given | options).items()}
    run = subprocess.run(
        ["make", target, *(f"{k}={v}" for k, v in options.items())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")},
    )
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    assert run.stdout


def test_lab_opens_the_notebooks():
    plan = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True)
    assert "jupyterlab notebooks" in plan.stdout
