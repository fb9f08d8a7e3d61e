"""Figures: drawn from the table and its samples alone, the same bytes every time, whatever is missing."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import synthetic
from mmcollapse import figures
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures import ARM_STYLE, FIGURES, draw
from mmcollapse.protocol import VARIANCE

SRC = str(Path(figures.__file__).parents[1])
NAMES = [f"01_variance_{name}" for name in FIGURES["01_variance"]]
TABLE = "01_variance.parquet"


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return synthetic.results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def drawn(results, tmp_path_factory):
    """All figures, drawn by a process that then tells which modules it has imported."""
    folder = tmp_path_factory.mktemp("figures")
    script = "import sys; from mmcollapse.figures import draw; print(len(draw(*sys.argv[1:3]))); print(*sys.modules)"
    command = [sys.executable, "-c", script, results, folder]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SRC})
    assert run.returncode == 0, run.stderr
    count, modules = run.stdout.splitlines()
    return folder, int(count), modules.split()


def test_every_figure_is_drawn_and_can_be_opened(drawn):
    folder, count, _ = drawn
    assert sorted(files(folder)) == sorted(f"{n}.{ending}" for n in NAMES for ending in ("json", "png", "svg"))
    assert count == 3 * len(NAMES)
    for name in NAMES:
        with Image.open(folder / f"{name}.png") as image:
            assert image.width == 1500 and round(image.info["dpi"][0]) == 150
            assert len(image.convert("L").getcolors(256)) > 20
        svg = (folder / f"{name}.svg").read_text()
        assert svg.rstrip().endswith("</svg>") and "<dc:date>" not in svg


def test_drawing_does_not_import_torch(drawn):
    assert "matplotlib.figure" in drawn[2]
    assert not {"torch", "diffusers", "transformers", "datasets", "mmcollapse.loop"} & set(drawn[2])


def test_redrawing_gives_the_same_bytes_but_where_the_data_changed(drawn, tmp_path):
    """In another process, with rows in another order and matplotlib in another state: one value moves one figure."""
    import matplotlib

    changed = synthetic.results(tmp_path / "results")
    table = pd.read_parquet(changed / TABLE).sample(frac=1, random_state=1)
    where = (table.metric == "kid") & (table.measurement == "guidance 1") & (table.arm == "recursive")
    where &= (table.generation == 4) & (table.seed == 1)
    assert where.sum() == 1
    value = table.value[where]
    table.loc[where, "value"] *= 1.5
    table.to_parquet(changed / TABLE)
    with matplotlib.rc_context({"font.size": 20, "axes.titlepad": 20, "svg.fonttype": "none"}):
        draw(changed, tmp_path / "figures")
        assert matplotlib.rcParams["font.size"] == 20
    moved = {f"01_variance_generators.{ending}" for ending in ("png", "svg")}
    assert different(drawn[0], tmp_path / "figures") == moved
    table.loc[where, "value"] = value
    table.to_parquet(changed / TABLE)
    draw(changed, tmp_path / "figures", "01_variance_generators")
    assert different(drawn[0], tmp_path / "figures") == set()


def different(one, other):
    """Names of pictures that differ; sidecars do, for they name the folder."""
    one, other = files(one), files(other)
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name] and not name.endswith("json")}


def test_the_sidecar_names_its_files_rows_and_command(drawn, results):
    table = pd.read_parquet(results / TABLE)
    for name in NAMES:
        record = json.loads((drawn[0] / f"{name}.json").read_text())
        assert record["figure"] == name and record["command"].endswith(f"--only {name}")
        ((source, sha),) = record["sources"].items()
        assert hashlib.sha256(Path(source).read_bytes()).hexdigest() == sha
        if not source.endswith(TABLE):
            continue
        for panel in record["rows"]:
            rows = table
            for column, value in panel.items():
                rows = rows[rows[column].isin(value if isinstance(value, list) else [value])]
            assert len(rows) and set(panel["arm"]) - set(figures.REFERENCES) <= set(rows.arm)


@pytest.mark.parametrize(
    ("options", "with_samples"),
    [
        ({"seeds": (0,), "generations": 2, "truth": False}, True),  # world photos
        ({"seeds": (0, 1), "generations": 1, "arms": ["recursive", "world"]}, False),
        ({"seeds": (7,), "generations": 2, "arms": ["real", "frozen-length"]}, True),
    ],
)
def test_tables_that_lack_much_are_drawn_all_the_same(options, with_samples, tmp_path):
    folder = synthetic.results(tmp_path / "results", with_samples, **options)
    if options["seeds"] == (7,):  # the default guidance is 1, so it was measured once
        table = pd.read_parquet(folder / TABLE)
        table[table.measurement != "guidance 3"].to_parquet(folder / TABLE)
    source = figures.open_source(folder, "01_variance")
    for name, make in FIGURES["01_variance"].items():
        figure = make(source).figure
        axes = [ax for ax in figure.axes if ax.axison]
        assert name == "captions" or all(ax.lines or ax.images or ax.texts for ax in axes), name
    assert len(draw(folder, tmp_path / "figures", "01_variance_drift")) == 3
    assert "nan" not in (tmp_path / "figures" / "01_variance_drift.svg").read_text()


def panel_texts(source, panel):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    shown = figures._curves(ax, source.table, panel)
    return shown, ax, " ".join(text.get_text() for text in ax.texts).replace("\n", " ")


def test_a_panel_without_values_says_why(tmp_path):
    source = figures.open_source(synthetic.results(tmp_path, False, seeds=(0,), truth=False), "01_variance")
    panels = {panel.metric: panel for panel in figures._image_panels("guidance 1")}
    shown, _, said = panel_texts(source, panels["all_right"])
    assert shown == [] and "world photos has no known truth" in said
    source.table = source.table[source.table.metric != "kid"]
    assert "no such rows" in panel_texts(source, panels["kid"])[2]
    shown, ax, said = panel_texts(source, panels["variance_within"])
    assert shown == ["recursive", "real", "gen0", "world", "vae"] and said == ""
    assert len(ax.lines) == 5 and not ax.collections  # one line an arm, no band of one seed


def test_lines_and_bands_are_of_the_seeds(results):
    source = figures.open_source(results, "01_variance")
    panel = figures._image_panels("guidance 1")[1]
    _, ax, _ = panel_texts(source, panel)
    assert ax.get_yscale() == "log" and len(ax.collections) == 3
    assert len(ax.lines) == 3 * (3 + 1) + 2  # a line a seed and their mean, for three arms; the references
    two = source.table[source.table.seed != 2]
    source.table = two
    _, ax, _ = panel_texts(source, panel)
    assert not ax.collections and len(ax.lines) == 3 * (2 + 1) + 2


def test_the_band_of_real_against_real_holds_most_further_sets():
    from matplotlib.figure import Figure

    inside, random = [], np.random.default_rng(0)
    for _ in range(400):
        measured, further = random.normal(3, 0.5, 5), random.normal(3, 0.5)
        ax = Figure().subplots()
        figures._reference(ax, measured, "plain", "world")
        low, high = ax.patches[0].get_extents().y0, ax.patches[0].get_extents().y1
        low, high = (ax.transData.inverted().transform((0, y))[1] for y in (low, high))
        inside.append(low <= further <= high)
    assert abs(np.mean(inside) - 0.95) < 0.035  # three standard errors


def test_small_values_are_counted_in_thousandths(results):
    source = figures.open_source(results, "01_variance")
    panel = next(p for p in figures._image_panels("guidance 1") if p.metric == "variance_within")
    _, ax, _ = panel_texts(source, panel)
    source.table.loc[source.table.metric == panel.metric, "value"] /= 1000
    _, small, _ = panel_texts(source, panel)
    assert "10^{-3}" in small.get_ylabel() and "10^{-3}" not in ax.get_ylabel()
    labels = [[axes.yaxis.get_major_formatter()(t) for t in axes.get_yticks()] for axes in (ax, small)]
    assert labels[0] == labels[1]


def test_every_arm_has_a_style_of_its_own():
    assert {p.arm for p in VARIANCE} | set(figures.REFERENCES) == set(ARM_STYLE)
    styles = list(ARM_STYLE.values())
    for key in ("color", "linestyle", "label"):
        assert len({str(style[key]) for style in styles}) == len(styles)
    arms = [style["marker"] for arm, style in ARM_STYLE.items() if arm not in figures.REFERENCES]
    assert len(set(arms)) == len(arms) and "" not in arms


def test_only_draws_one_experiment_or_figure(results, tmp_path):
    names = {path.name for path in draw(results, tmp_path, "01_variance_captions")}
    assert names == {f"01_variance_captions.{ending}" for ending in ("png", "svg", "json")} == set(files(tmp_path))
    with pytest.raises(MMCollapseError, match="'02_variance'.*01_variance_wall"):
        draw(results, tmp_path, "02_variance")


def test_a_missing_or_broken_table_is_named(tmp_path):
    with pytest.raises(MMCollapseError, match=r"no result table at .*01_variance\.parquet"):
        draw(tmp_path / "empty", tmp_path / "figures")
    (tmp_path / TABLE).write_bytes(b"not a table")
    with pytest.raises(MMCollapseError, match=r"01_variance\.parquet is no result table"):
        draw(tmp_path, tmp_path / "figures")
    synthetic.table(seeds=(0,), generations=1).iloc[:0].to_parquet(tmp_path / TABLE)
    with pytest.raises(MMCollapseError, match="has no rows"):
        draw(tmp_path, tmp_path / "figures")
    synthetic.results(tmp_path, seeds=(0,), generations=1)
    (tmp_path / "01_variance.samples.parquet").write_bytes(b"no samples")
    with pytest.raises(MMCollapseError, match="cannot be read as samples"):
        draw(tmp_path, tmp_path / "figures", "01_variance_wall")
