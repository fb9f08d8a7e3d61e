"""The explorer: what it offers leads somewhere, what it shows is what was kept and what the table says, and it works in
a real JupyterLab."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import t

import synthetic
from mmcollapse import explore as explorer
from mmcollapse.errors import MMCollapseError
from mmcollapse.explore import cards, experiments, explore, metrics, open_experiment, settle, timelapse
from mmcollapse.figures import FIGURES, open_source
from mmcollapse.runner import prepare
from mmcollapse.table import read_table, write_table

NAME, OTHER = "01_variance", "03_diversity"
BAD = "<img src=x onerror=\"document.title='run'\">"


def change(folder, name, **columns):
    """Columns of the samples as functions of the rows; rows whose arm becomes None are left out."""
    path = folder / f"{name}.samples.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for column, value in columns.items():
        new = pa.array([value(row) for row in rows])
        at = table.schema.get_field_index(column)
        table = table.append_column(column, new) if at < 0 else table.set_column(at, column, new)
    pq.write_table(table.filter(table["arm"].is_valid()), path)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two experiments: 01, in which generation 2 of the real pictures was not kept; and 03, with several models."""
    folder = synthetic.results(tmp_path_factory.mktemp("results"), False, seeds=(0, 1, 2), generations=4)
    synthetic.samples(folder, seeds=(0, 1), generations=4)
    lost = ("real", "image", 2)
    change(
        folder,
        NAME,
        model=lambda r: {"world": ""}.get(r["arm"], {"image": "generator", "text": "captioner"}[r["modality"]]),
        arm=lambda r: None if (r["arm"], r["modality"], r["generation"]) == lost else r["arm"],
    )
    return synthetic.study_results(folder, OTHER, seeds=(0,), generations=2, grid="corners", profile="nano")


@pytest.fixture(scope="module")
def opened(results):
    return open_experiment(results, NAME)


def view(opened, **wanted):
    return settle(opened.kept, {name.replace("_", " "): value for name, value in wanted.items()})[2]


# ---- what there is


def test_what_is_offered_leads_somewhere(results):
    """Every option of every choice can be chosen, and what comes after it is chosen from what is there."""
    for name in (NAME, OTHER):
        kept = open_experiment(results, name).kept
        options, chosen, _ = settle(kept, {})
        assert list(options) == [*explorer.CHOICES, "generation"]
        for modality in options["modality"]:
            for measurement in settle(kept, {"modality": modality})[0]["measurement"]:
                first = {"modality": modality, "measurement": measurement}
                for choice, values in settle(kept, first)[0].items():
                    for value in values:
                        _, chosen, shown = settle(kept, first | {choice: value})
                        assert chosen[choice] == value
                        assert chosen["generation"] in shown.generations
                        assert any(chosen["generation"] in kept.get(key, {}) for key in shown.sides)
                        assert len({key.arm for key in shown.sides}) == 2


def test_what_is_not_there_is_not_offered(opened, results):
    options, chosen, shown = settle(opened.kept, {"measurement": "guidance 9", "left": "joint"})
    assert options["measurement"] == ["guidance 1", "guidance 3"] and chosen["measurement"] == "guidance 1"
    assert chosen["left"] == "recursive" and chosen["right"] == "real" and shown.generations == (0, 1, 2, 3, 4)
    assert view(opened, modality="text").at.measurement == "greedy"
    options, chosen, shown = settle(opened.kept, {"left": "real"})  # the two change places
    assert chosen["right"] == "recursive" and "real" not in options["right"]
    several = settle(open_experiment(results, OTHER).kept, {"left": "pool-3"})[0]["left model"]
    assert {"generator", "generator-sdxl"} <= set(several)


def test_generations_that_neither_side_kept_are_not_offered(results, tmp_path):
    write_table(read_table(results / f"{NAME}.parquet"), tmp_path / f"{NAME}.parquet")
    (tmp_path / f"{NAME}.samples.parquet").write_bytes((results / f"{NAME}.samples.parquet").read_bytes())
    change(tmp_path, NAME, arm=lambda r: None if r["generation"] in (1, 3) else r["arm"])
    found = open_experiment(tmp_path, NAME)
    assert view(found).generations == (0, 2, 4)
    assert view(found, left="real", right="gen0").generations == (0, 2, 4)  # generation 2 of one of them
    change(tmp_path, NAME, arm=lambda r: "world" if r["arm"] == "world" else "real")
    lonely = view(open_experiment(tmp_path, NAME))
    assert [key.arm for key in lonely.sides] == ["real"]


def test_mistakes_are_refused_by_name(results, tmp_path):
    with pytest.raises(MMCollapseError, match="nowhere'.*no such folder.*make reproduce"):
        explore(tmp_path / "nowhere", tmp_path)
    with pytest.raises(MMCollapseError, match="no result table"):
        explore(tmp_path, tmp_path)
    table = (results / f"{NAME}.parquet").read_bytes()
    (tmp_path / f"{NAME}.parquet").write_bytes(table)
    with pytest.raises(MMCollapseError, match="no samples were kept.*01_variance"):
        explore(tmp_path, tmp_path)
    with pytest.raises(MMCollapseError, match="experiment='02_nothing'.*01_variance, 03_diversity"):
        explore(results, tmp_path, "02_nothing")
    samples = tmp_path / f"{NAME}.samples.parquet"
    for content, told in ((b"PAR1 no", "cannot be read as samples"), (table, "cannot be read as samples")):
        samples.write_bytes(content)
        with pytest.raises(MMCollapseError, match=f"01_variance.samples.parquet {told}"):
            explore(tmp_path, tmp_path)
    samples.write_bytes((results / samples.name).read_bytes())
    change(tmp_path, NAME, arm=lambda r: "mine" if r["arm"] == "gen0" else r["arm"])
    explore(tmp_path, tmp_path)  # an arm that nobody has given a look has one
    change(tmp_path, NAME, arm=lambda r: "world")
    with pytest.raises(MMCollapseError, match="no samples of any arm"):
        explore(tmp_path, tmp_path)
    assert experiments(results) == [NAME, OTHER]


# ---- what is shown


def test_pictures_are_those_that_were_kept(opened, results):
    frame = pd.read_parquet(results / f"{NAME}.samples.parquet")
    frame = frame[(frame.modality == "image") & (frame["index"] == 1)]
    shown = view(opened, number=1, measurement="guidance 3", seed=1)
    for g in (0, 1, 3, 4):
        real, *sides = cards(opened, shown, g)
        assert [card.title for card in (real, *sides)] == ["real picture", "recursive", "real data"]
        for card, arm, of in zip(
            (real, *sides), ("world", "recursive", "real"), ("", *["guidance 3"] * 2), strict=True
        ):
            own = frame[(frame.arm == arm) & (frame.measurement == of) & (frame.generation == (g if of else 0))]
            row = own[own.seed == (1 if of else -1)].iloc[0]
            assert card.picture == row.image["bytes"] and not card.missing
        assert explorer.prompt_of(opened, shown, g) == row.prompt


def test_a_picture_that_is_missing_is_said(opened):
    _, left, right = cards(opened, view(opened), 2)
    assert left.picture and right.picture is None and right.missing == "generation 2 was not kept"
    page = explorer.stage_html(opened, view(opened), 2)
    assert page.count("<img") == 2 and "generation 2 was not kept" in page


def test_a_real_picture_of_another_prompt_is_not_shown(opened):
    """What was trained on has prompts of its own, under the same numbers."""
    key = view(opened).sides[0]
    own = explorer.Opened(NAME, {key: {0: opened.kept[key][0]._replace(prompt="another")}}, opened.real, opened.rows)
    assert [card.title for card in cards(own, view(own), 0)] == ["recursive"]


def test_captions_of_a_picture(opened):
    shown = view(opened, modality="text", number=2)
    real, left, right = cards(opened, shown, 4)
    assert real.picture == opened.real["text", 2, explorer.prompt_of(opened, shown, 4)].picture
    assert left.picture is right.picture is None
    assert left.caption == opened.kept[shown.sides[0]][4].caption
    page = explorer.captions_html(opened, shown, 4)
    assert page.count("<tr") == 1 + 5 and page.count('aria-current="true"') == 1
    assert '<tr class="now" aria-current="true"><td>4</td>' in page
    assert explorer.captions_html(opened, view(opened), 4) == ""


def test_wrong_words_are_underlined_and_nothing_is_run():
    said = explorer.marked("a large red circle on a gray wall", "a large blue circle on a gray wall")
    assert said == "a large <u>red</u> circle on a gray wall"
    assert "<img" not in explorer.marked(BAD, "a large blue circle on a gray wall")


def test_a_hostile_caption_stays_a_text(results, tmp_path):
    for path in results.glob(f"{NAME}.*parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path, NAME, caption=lambda r: BAD, prompt=lambda r: BAD)
    shown = explore(tmp_path, tmp_path)
    shown.choices["modality"].value = "text"
    for widget in (shown.stage, shown.captions):
        assert "<img src=x" not in widget.value and "&lt;img" in widget.value


@pytest.mark.parametrize("size, times", [((64, 64), 4), ((200, 100), 1), ((300, 300), 1), ((50, 64), 4)])
def test_pixels_stay_squares(size, times):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    large = np.asarray(explorer.enlarged(explorer.png(Image.fromarray(pixels))))
    assert (large == pixels.repeat(times, 0).repeat(times, 1)).all()


# ---- metrics


def test_directions_are_those_of_the_figures(results):
    """The words of every panel of the figures that shows the same metric."""
    source, compared = open_source(results, NAME), set()
    for name in ("generators", "generators_as_used", "captioners", "more_metrics"):
        drawn = FIGURES[NAME][name](source)
        for ax, rows in zip(drawn.figure.axes, drawn.rows, strict=True):
            own = [p for p in explorer.panels(rows["modality"], rows["measurement"]) if p.metric == rows["metric"][0]]
            assert len(own) == 1, rows["metric"]
            unit, _, direction = own[0].label.partition("\n")
            there = ax.get_ylabel().replace(", $10^{-3}$", "").partition("\n")
            assert (unit.replace("{space}", rows["space"][0]), direction) == (there[0], there[2])
            compared.add((rows["modality"], rows["metric"][0]))
    every = {(m, p.metric) for m in ("image", "text") for p in explorer.panels(m, "greedy")}
    assert compared == every


def test_metrics_are_those_of_the_table(opened, results):
    table = read_table(results / f"{NAME}.parquet")
    found = explorer.measured(opened, view(opened))
    rows = metrics(found, 1, 3)
    assert set(rows.arm) == {"recursive", "real"} and (rows.seeds == 3).all()
    for row in rows.itertuples():
        own = table[(table.metric == row.panel.metric) & (table.arm == row.arm) & (table.measurement == "guidance 1")]
        own = own[(own.modality == "image") & (own.subset == "test") & (own.space == row.panel.space(table))]
        now = own[own.generation == 3].set_index("seed").value
        assert row.value == now[1] and row.start == own[(own.generation == 0) & (own.seed == 1)].value.item()
        values = np.log(now) if row.panel.scale == "log" else now
        half = t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
        ends = np.array([values.mean(), values.mean() - half, values.mean() + half])
        ends = np.exp(ends) if row.panel.scale == "log" else ends
        ends[1:] = ends[1:].clip(0, 1) if row.panel.scale == "rate" else ends[1:]
        assert (row.mean, row.low, row.high) == pytest.approx(ends)


def test_metrics_of_one_model_of_several(results):
    """Not the mean of all of them, which is what the figures show."""
    opened, table = open_experiment(results, OTHER), read_table(results / f"{OTHER}.parquet")
    models = settle(opened.kept, {"left": "pool-3"})[0]["left model"]
    shown = view(opened, left="pool-3")
    for model in (*models, "pool"):
        left, right = shown.sides
        found = explorer.measured(opened, shown._replace(sides=(left._replace(model=model), right)))
        rows = metrics(found, 0, 2)
        row = rows[(rows.arm == "pool-3") & rows.panel.map(lambda p: p.metric == "all_right")].iloc[0]
        own = table[(table.arm == "pool-3") & (table.model == model) & (table.metric == "all_right")]
        own = own[(own.measurement == "guidance 1") & (own.generation == 2) & (own.subset == "test")]
        assert row.value == own.value.item() and row.seeds == 1 and np.isnan(row.low)


def test_metrics_of_what_was_trained_on(results):
    opened = open_experiment(results, OTHER)
    rows = metrics(explorer.measured(opened, view(opened, measurement="data")), 0, 1)
    assert {p.subset for p in rows.panel} == {"chain"} and rows.value.notna().all() and rows.start.isna().all()


def test_a_value_that_is_missing_says_why(results, tmp_path):
    table = read_table(results / f"{NAME}.parquet")
    kid, right = table.metric == "kid", (table.metric == "all_right") & (table.arm == "real")
    table.loc[kid, ["value", "missing"]] = np.nan, "too few <pictures>"
    write_table(table[~(right & (table.generation == 3))], tmp_path / f"{NAME}.parquet")
    (tmp_path / f"{NAME}.samples.parquet").write_bytes((results / f"{NAME}.samples.parquet").read_bytes())
    opened = open_experiment(tmp_path, NAME)
    found = explorer.measured(opened, view(opened))
    rows = metrics(found, 0, 3).assign(metric=lambda f: [p.metric for p in f.panel]).set_index(["metric", "arm"])
    assert rows.missing["kid", "real"] == "too few <pictures>" and np.isnan(rows.value["kid", "real"])
    assert rows.missing["all_right", "real"] == "no such rows in the table"
    assert rows.missing["all_right", "recursive"] == ""
    page = explorer.metrics_html(found, view(opened), 3)
    assert "not measured: too few &lt;pictures&gt;" in page and "nan" not in page


def test_the_mark_stands_at_its_generation(opened):
    found = explorer.measured(opened, view(opened))
    curve = explorer.draw_curve(found, found.panels[0])
    places = []
    for g in range(5):
        pixels = np.asarray(Image.open(io.BytesIO(explorer.mark(curve, g))))
        rows, columns = np.nonzero((pixels != curve.pixels).any(-1))
        assert curve.top <= rows.min() and rows.max() < curve.bottom and np.ptp(columns) < 4
        places.append(columns.mean())
    assert np.diff(places) == pytest.approx(np.full(4, curve.x[1]), abs=1.1)
    # ticks stand below the axis, at every generation: dark where the mark is
    below = curve.pixels[curve.bottom + 3].min(-1)
    assert all(below[round(x) - 3 : round(x) + 4].min() < 120 for x in places)


# ---- the time-lapse


def frames(path):
    with Image.open(path) as film:
        out, times = [], []
        for k in range(film.n_frames):
            film.seek(k)
            out.append(np.asarray(film.convert("RGB")).astype(int))
            times.append(film.info["duration"])
    return out, times, film.info


def test_a_time_lapse_is_of_the_pictures(opened, tmp_path):
    shown = view(opened, number=3)
    found, times, info = frames(timelapse(opened, shown, tmp_path / "new" / "film.gif"))
    assert len(found) == 5 and times == [700] * 4 + [2000] and info["loop"] == 0
    for g, pixels in enumerate(found):
        made = [card for card in cards(opened, shown, g) if card.picture]
        places = [0, 1] if g == 2 else [0, 1, 2]  # one was not kept
        for card, place in zip(made, places, strict=True):
            x, side = 16 + place * (explorer.SIDE + 16), explorer.SIDE
            there = pixels[-16 - side : -16, x : x + side]
            off = np.abs(there - np.asarray(explorer.enlarged(card.picture)).astype(int))
            assert off.mean() < 6 and off.max() < 40  # 256 colours, and much noise in these
    heads = [pixels[:40, :200].tobytes() for pixels in found]
    assert len(set(heads)) == 5  # the number of the generation


def test_a_time_lapse_of_captions(opened, tmp_path):
    found, _, _ = frames(timelapse(opened, view(opened, modality="text"), tmp_path / "film.gif"))
    middle = [pixels[100:, 280:560] for pixels in found]
    assert all((part < 100).any() for part in middle) and (middle[0] != middle[4]).any()


def test_a_time_lapse_is_the_same_bytes_and_never_written_over(opened, results, tmp_path):
    path = timelapse(opened, view(opened), tmp_path / "film.gif")
    again = timelapse(open_experiment(results, NAME), view(opened), tmp_path / "again.gif")
    assert path.read_bytes() == again.read_bytes()
    path.write_bytes(b"mine")
    with pytest.raises(MMCollapseError, match="film.gif is there already"):
        timelapse(opened, view(opened), path)
    assert path.read_bytes() == b"mine"
    timelapse(opened, view(opened), path, overwrite=True)
    assert path.read_bytes() == again.read_bytes()
    names = [
        explorer.timelapse_name(opened, view(opened, **more))
        for more in (
            {},
            {"number": 1},
            {"seed": 1},
            {"right": "gen0"},
            {"modality": "text"},
            {"measurement": "guidance 3"},
        )
    ]
    assert len(set(names)) == 6 and not any(set(name) & set(" %/") for name in names)


# ---- the widget


def test_moving_the_slider_shows_another_point_and_reads_nothing(results, tmp_path, monkeypatch):
    read = Counter()
    true = pq.read_table

    def counted(path, *more, **options):
        read[str(path).rpartition("/")[2]] += 1
        return true(path, *more, **options)

    monkeypatch.setattr(pq, "read_table", counted)
    shown = explore(results, tmp_path)
    seen, slider = set(), shown.choices["generation"]
    for index in range(5):
        slider.index = index
        assert f"<b>generation {index}</b>" in shown.stage.value and f"generation {index}" in shown.table.value
        assert f"marked at generation {index}" in shown.curve.value
        seen.add((shown.stage.value, shown.table.value, shown.curve.value))
    assert len(seen) == 5
    for name in ("modality", "measurement", "left", "number"):
        shown.choices[name].index = len(shown.choices[name].options) - 1
    shown.metric.index = 3
    assert read == {f"{NAME}.parquet": 1, f"{NAME}.samples.parquet": 1}


def test_choices_are_kept_where_they_are_offered(results, tmp_path):
    shown = explore(results, tmp_path, OTHER)
    choices = shown.choices
    assert shown.experiment.value == OTHER and choices["left model"].layout.display is None
    choices["left"].value, choices["number"].value, choices["generation"].value = "pool-3", 2, 2
    choices["left model"].value = "generator-sdxl"
    assert "pool of 3 (generator-sdxl)" in shown.stage.value
    choices["right"].value = "gen0"
    assert choices["left model"].value == "generator-sdxl" and choices["number"].value == 2
    shown.experiment.value = NAME
    assert choices["left"].value == "recursive" and choices["right"].value == "gen0" and choices["number"].value == 2
    assert choices["left model"].layout.display == "none" and choices["generation"].value == 2
    shown.metric.value = "Recall"
    choices["measurement"].value = "guidance 3"
    assert shown.metric.value == "Recall" and shown.play.max == 4
    choices["modality"].value = "text"
    assert shown.metric.value == "All right" and choices["number"].description == "reference"


def test_a_change_that_comes_while_another_is_under_way_waits(results, tmp_path, monkeypatch):
    """JupyterLab may report two changes in two threads of the kernel: none is lost."""
    shown, began, go = explore(results, tmp_path), threading.Event(), threading.Event()
    true = shown._show

    def slow():
        true()
        began.set()
        assert go.wait(30)

    monkeypatch.setattr(shown, "_show", slow)
    first = threading.Thread(target=lambda: setattr(shown.choices["seed"], "value", 1))
    second = threading.Thread(target=lambda: setattr(shown.choices["generation"], "value", 3))
    first.start()
    assert began.wait(30)
    second.start()
    second.join(0.5)
    go.set()
    first.join(30)
    second.join(30)
    assert "<b>generation 3</b>" in shown.stage.value and "<th>seed 1</th>" in shown.table.value


def test_the_button_saves_and_says_where(results, tmp_path):
    shown = explore(results, tmp_path / "figures")
    shown.save.click()
    (path,) = (tmp_path / "figures").iterdir()
    assert path.name.startswith("01_variance_timelapse_guidance-1") and path.suffix == ".gif"
    assert f"saved {path}" in shown.said.value
    path.write_bytes(b"mine")
    shown.save.click()
    assert "is there already" in shown.said.value and path.read_bytes() == b"mine"
    shown.overwrite.value = True
    shown.save.click()
    assert "saved" in shown.said.value and path.read_bytes().startswith(b"GIF89a")


def test_an_experiment_that_cannot_be_read_is_said(results, tmp_path):
    for path in results.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / f"{OTHER}.samples.parquet").write_bytes(b"no")
    shown = explore(tmp_path, tmp_path)
    before = shown.stage.value
    shown.experiment.value = OTHER
    assert "03_diversity.samples.parquet cannot be read" in shown.said.value
    assert shown.experiment.value == NAME and shown.stage.value == before
    shown.choices["generation"].value = 3
    assert "<b>generation 3</b>" in shown.stage.value


# ---- in a real JupyterLab

PANEL = "[...(window.jupyterapp?.shell.widgets('main') ?? [])][0]"
READY = f"{PANEL}?.context?.sessionContext?.session?.kernel?.connectionStatus == 'connected' && "
READY += "document.querySelectorAll('.jp-CodeCell').length == 4 && "
READY += "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'"
RUN = f"{PANEL}.context.sessionContext.ready.then(() => jupyterapp.shell.activateById({PANEL}.id))"
RUN += ".then(() => jupyterapp.commands.execute('notebook:run-all-cells')).then(() => true)"
POINT = "document.querySelector('.mmc.stage b').innerText"
SHOWN = "[...document.querySelectorAll('.mmc.stage img')].map((image) => image.src)"
NUMBER = "document.querySelector('.metrics tr[data-metric=all_right] td:nth-child(2)').innerText"
MARK = "[...document.querySelectorAll('img')].find((image) => image.alt.includes('marked at')).src"


@pytest.fixture
def lab(results, tmp_path):
    """The address of a JupyterLab on a copy of the notebook, with nothing of the user's own, and no news."""
    told = {"profile": "study", "results": str(results), "figures": str(tmp_path / "figures")}
    prepare("00_explore", told, tmp_path / "notebooks" / "00_explore.ipynb")
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name) for name in ("SETTINGS", "WORKSPACES")}
    news = tmp_path / "SETTINGS" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    options = {"port": 0, "token": "explore", "expose_app_in_browser": True, "extension_manager": "readonly"}
    owners = {"token": "IdentityProvider", "port": "ServerApp"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", str(tmp_path / "notebooks")]
    command += [f"--{owners.get(name, 'LabApp')}.{name}={value}" for name, value in options.items()]
    with open(tmp_path / "lab.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=os.environ | folders)
    try:
        until = time.monotonic() + 60
        while not (found := list((tmp_path / "RUNTIME").glob("jpserver-*.json"))) or not found[0].stat().st_size:
            assert time.monotonic() < until and server.poll() is None, (tmp_path / "lab.log").read_text()
            time.sleep(0.1)
        yield json.loads(found[0].read_text())["url"]
    finally:
        server.terminate()
        server.wait(30)


def test_in_jupyterlab_the_slider_moves_pictures_and_numbers(browser, lab, results, tmp_path):
    browser.open(f"{lab}doc/tree/00_explore.ipynb?token=explore", 1440, 1500)
    browser.until(READY)
    assert browser.value(RUN)
    browser.until("document.querySelector('.mmc.stage img') && document.querySelector('.noUi-handle')")
    assert browser.value(POINT) == "generation 0"
    browser.value("document.querySelector('.noUi-handle').focus()")
    seen = [[browser.value(script) for script in (SHOWN, NUMBER, MARK)]]
    table = read_table(results / f"{NAME}.parquet")
    rows = table[(table.arm == "recursive") & (table.metric == "all_right") & (table.measurement == "guidance 1")]
    rows = rows[(rows.seed == 0) & (rows.subset == "test")].set_index("generation").value
    for g in range(1, 5):
        browser.value(f"window.before = {MARK}")
        browser.press("ArrowRight")
        browser.until(f"{POINT} == 'generation {g}' && {NUMBER} == '{rows[g]:.3g}' && {MARK} != window.before")
        seen.append([browser.value(script) for script in (SHOWN, NUMBER, MARK)])
    pictures, numbers, marks = zip(*seen, strict=True)
    assert [len(sources) for sources in pictures] == [3, 3, 2, 3, 3]  # one was not kept
    assert len({sources[0] for sources in pictures}) == 1  # the real one
    assert len({sources[1] for sources in pictures}) == len(set(numbers)) == len(set(marks)) == 5
    assert browser.value("[...document.querySelectorAll('.mmc img')].every((i) => i.complete && i.naturalWidth > 0)")
    browser.picture(tmp_path / "pictures.png")

    choose = (
        "(() => { const chosen = document.querySelectorAll('.widget-dropdown select')[1]; chosen.selectedIndex = 1; "
    )
    browser.value(choose + "chosen.dispatchEvent(new Event('change', {bubbles: true})) })()")
    browser.until("document.querySelectorAll('.mmc.said tr').length == 6")
    browser.value("document.querySelector('.noUi-handle').focus()")
    browser.press("Home")
    browser.until(f"{POINT} == 'generation 0'")
    browser.value("document.querySelector('.widget-play button').click()")
    browser.until(f"{POINT} == 'generation 4'")
    browser.value("[...document.querySelectorAll('button')].find((b) => b.innerText.includes('time-lapse')).click()")
    browser.until("document.body.innerText.includes('saved ')")
    (film,) = (tmp_path / "figures").iterdir()
    assert film.suffix == ".gif" and film.read_bytes().startswith(b"GIF89a")
    browser.picture(tmp_path / "captions.png")
    assert [what for what in browser.wrong() if not of_jupyterlab(what, lab)] == []


def of_jupyterlab(what, lab: str) -> bool:
    """What `Browser.wrong` finds and is no fault: requests to the server itself, of which JupyterLab cancels those that
    it no longer waits for; and that a plugin of its own starts slowly, on a busy machine."""
    if isinstance(what, str):
        return what.startswith((lab, "blob:" + lab))
    if "taking too long to activate" in str(what.get("args")):
        return True
    return what.get("canceled") is True and what.get("errorText") == "net::ERR_ABORTED"
