"""Figures: drawn from the table and its samples alone, the same bytes every time, whatever is missing."""

import hashlib
import itertools
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
from mmcollapse.experiments import EXPERIMENTS
from mmcollapse.figures import ARM_STYLE, FIGURES, draw, house, robustness, styles, variance
from mmcollapse.figures.wording import wrong_words

SRC = str(Path(figures.__file__).parents[2])
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
    shown = house.curves(ax, source.table, panel)
    return shown, ax, " ".join(text.get_text() for text in ax.texts).replace("\n", " ")


def test_a_panel_without_values_says_why(tmp_path):
    source = figures.open_source(synthetic.results(tmp_path, False, seeds=(0,), truth=False), "01_variance")
    panels = {panel.metric: panel for panel in variance.image_panels("guidance 1")}
    shown, _, said = panel_texts(source, panels["all_right"])
    assert shown == [] and "world photos has no known truth" in said
    source.table = source.table[source.table.metric != "kid"]
    assert "no such rows" in panel_texts(source, panels["kid"])[2]
    shown, ax, said = panel_texts(source, panels["variance_within"])
    assert shown == ["recursive", "real", "gen0", "world", "vae"] and said == ""
    assert len(ax.lines) == 5 and not ax.collections  # one line an arm, no band of one seed


def test_lines_and_bands_are_of_the_seeds(results):
    source = figures.open_source(results, "01_variance")
    panel = variance.image_panels("guidance 1")[1]
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
        house.reference(ax, measured, "plain", "world")
        low, high = ax.patches[0].get_extents().y0, ax.patches[0].get_extents().y1
        low, high = (ax.transData.inverted().transform((0, y))[1] for y in (low, high))
        inside.append(low <= further <= high)
    assert abs(np.mean(inside) - 0.95) < 0.035  # three standard errors


def test_small_values_are_counted_in_thousandths(results):
    source = figures.open_source(results, "01_variance")
    panel = next(p for p in variance.image_panels("guidance 1") if p.metric == "variance_within")
    _, ax, _ = panel_texts(source, panel)
    source.table.loc[source.table.metric == panel.metric, "value"] /= 1000
    _, small, _ = panel_texts(source, panel)
    assert "10^{-3}" in small.get_ylabel() and "10^{-3}" not in ax.get_ylabel()
    labels = [[axes.yaxis.get_major_formatter()(t) for t in axes.get_yticks()] for axes in (ax, small)]
    assert labels[0] == labels[1]


def distance(one, other):
    """Between two colours, 0 to 442."""
    return np.linalg.norm([int(one[i : i + 2], 16) - int(other[i : i + 2], 16) for i in (1, 3, 5)])


@pytest.mark.parametrize("experiment", [name for name, arms in EXPERIMENTS.items() if arms])
@pytest.mark.parametrize("profile", ["study", "nano", "smoke"])
def test_every_arm_has_a_style_of_its_own(experiment, profile):
    """Told apart in colour and, in grey, by line and marker: within what one role has in an experiment."""
    protocols = [p for grid in ("full", "corners") for p in synthetic.protocols(experiment, grid, profile)]
    for role in ("generator", "captioner"):
        arms = {p.arm for p in protocols if role in p.roles} | set(house.REFERENCES)
        for one, other in itertools.combinations(sorted(arms), 2):
            a, b = ARM_STYLE[one], ARM_STYLE[other]
            assert distance(a["color"], b["color"]) > 5, (one, other)
            grey = [(s["linestyle"], s["marker"], s.get("markerfacecolor")) for s in (a, b)]
            assert grey[0] != grey[1] and a["label"] != b["label"], (one, other)
        assert all(ARM_STYLE[arm]["marker"] for arm in arms - set(house.REFERENCES))


def test_an_arm_looks_the_same_whatever_the_grid():
    ramp = [ARM_STYLE[f"steps-{v}"] for v in (1, 2, 4, 10, 20, 50)]
    light = [sum(int(s["color"][i : i + 2], 16) for i in (1, 3, 5)) for s in ramp]
    assert light == sorted(light, reverse=True) and len({s["marker"] for s in ramp}) == len(ramp)
    assert ARM_STYLE["steps-4"] == ARM_STYLE["steps-4"] and "steps-4" not in ARM_STYLE  # made, not kept
    with pytest.raises(KeyError):
        ARM_STYLE["no such arm"]
    order = ["recursive", "real", "gen0", "steps-2", "steps-10", "steps-10-gen0", "world"]
    assert styles.in_order(reversed(order)) == order


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


# ---- the other experiments

OTHERS = ["02_decoding_budget", "03_diversity", "04_relabeling", "06_remedies"]
ONE = {"seeds": (0,), "generations": 2, "grid": "corners", "profile": "nano"}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Results of all experiments: the full grid of the study, five seeds."""
    folder = tmp_path_factory.mktemp("five")
    for name in OTHERS:
        synthetic.study_results(folder, name, generations=2)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Results of all experiments: the corners, one seed."""
    folder = tmp_path_factory.mktemp("one")
    for name in OTHERS:
        synthetic.study_results(folder, name, **ONE)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_a_full_grid_is_drawn_of_the_rows_that_the_sidecar_names(name, five, tmp_path):
    draw(five, tmp_path, name)
    table = pd.read_parquet(five / f"{name}.parquet")
    for figure in FIGURES[name]:
        record = json.loads((tmp_path / f"{name}_{figure}.json").read_text())
        assert len(record["sources"]) == 1 and record["rows"], figure
        if ".samples." in next(iter(record["sources"])):
            continue
        assert "nan" not in (tmp_path / f"{name}_{figure}.svg").read_text()
        for rows in record["rows"]:
            found = table
            for column, values in rows.items():
                if column in table:
                    found = found[found[column].isin(values if isinstance(values, list) else [values])]
            assert len(found), (figure, rows)


@pytest.mark.parametrize("name", OTHERS)
def test_one_seed_is_drawn_twice_alike(name, one, tmp_path):
    draw(one, tmp_path / "a", name)
    draw(one, tmp_path / "b", name)
    assert different(tmp_path / "a", tmp_path / "b") == set()
    assert len(files(tmp_path / "a")) == 3 * len(FIGURES[name])


def said_by(figure):
    return " ".join(text.get_text() for ax in figure.axes for text in ax.texts).replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "lacks", "says"),
    [
        ("02_decoding_budget", ("steps-2", "steps-50", "steps-2-gen0", "steps-50-gen0"), "no arms of steps"),
        ("03_diversity", ("pool-3",), "no pool of different models"),
        ("04_relabeling", ("all_right", "nuisance_ratio", "caption_variance"), "no such rows in the table"),
        ("06_remedies", ("real-25%",), "no arm of this table mixes in real pairs"),
    ],
)
def test_what_is_missing_is_said(name, lacks, says, tmp_path):
    folder = synthetic.study_results(tmp_path / "results", name, with_samples=False, lacks=lacks, **ONE)
    table = pd.read_parquet(folder / f"{name}.parquet")
    if name == "06_remedies":
        table = table[table.arm != "real"]  # the other end of the axis
        table.to_parquet(folder / f"{name}.parquet")
    source = figures.open_source(folder, name)
    texts = " ".join(said_by(make(source).figure) for make in FIGURES[name].values())
    assert says in texts and "nothing to show: this run kept no" in texts


def test_members_are_averaged_and_no_set_student_or_pool_is_a_member(one):
    source = figures.open_source(one, "03_diversity")
    panel = house.Panel("", "", "all_right", "image", "guidance 1", ("alone",), "rate")
    rows, _ = panel.of(source.table)
    assert not rows.duplicated(["seed", "generation"]).any()
    t = source.table[(source.table.arm == "alone") & (source.table.metric == "all_right")]
    t = t[t.model.str.startswith("generator") & (t.measurement == "guidance 1") & (t.generation == 2)]
    assert len(t) == 3 and rows.value[rows.generation == 2].item() == pytest.approx(t.value.mean())


def test_robustness_is_drawn_from_the_tables_that_are_there(one, tmp_path):
    name = "05_quality_robustness"
    assert robustness.has_students(one) and not robustness.has_students(tmp_path)
    draw(one, tmp_path / "a", name)
    before = files(tmp_path / "a")
    draw(one, tmp_path / "a", f"{name}_scatter")
    assert files(tmp_path / "a") == before
    for figure in FIGURES[name]:
        record = json.loads((tmp_path / "a" / f"{name}_{figure}.json").read_text())
        assert [Path(p).stem for p in record["sources"]] == OTHERS
        assert record["command"].endswith(f"--only {name}_{figure}")
    source = robustness.open_tables(one, name)
    assert source.missing == ["01_variance"] and "not there yet: 01_variance" in robustness._about(source)
    chosen = source.chosen("image", 2)
    assert chosen[0] == ("fid", "judge")
    mine = robustness._left_out(source.tables, "image", chosen).iloc[0]
    found = source.correlations("image").set_index(["metric", "space"]).predicts
    assert [mine[f"{m}, {s}"] for m, s in chosen] == pytest.approx([found[pair] for pair in chosen])


def test_robustness_without_students_says_so(tmp_path):
    folder = synthetic.results(tmp_path, with_samples=False, seeds=(0,), generations=1)
    source = robustness.open_tables(folder, "05_quality_robustness")
    for make in FIGURES["05_quality_robustness"].values():
        assert "no table has students" in said_by(make(source).figure)


@pytest.mark.parametrize(
    ("caption", "prompt", "wrong"),
    [
        ("a small red circle on a gray wall", "a tiny scarlet dot against a grey backdrop", []),
        ("a large red circle on a gray wall", "a tiny scarlet dot against a grey backdrop", ["large"]),
        ("on a mint wall we see a small star in red", "a tiny scarlet dot on a grey wall", ["mint", "star"]),
        (
            "a big blue ring below a small red dot on a gray wall",
            "a little red circle above a large ring in azure on a gray wall",
            [],
        ),
        (
            "a picture of a small red dot to the left of a big blue ring on a gray wall",
            "a little red circle above a large ring in azure on a gray wall",
            ["to", "the", "left", "of"],
        ),
        ("a small red dot over a big blue ring on a gray wall", "a big blue hoop on a gray wall", "small red dot over"),
    ],
)
def test_wrong_words_are_those_that_the_grammar_reads_otherwise(caption, prompt, wrong):
    found, words = wrong_words(caption, prompt), caption.split()
    assert [words[k] for k in sorted(found)] == (wrong.split() if isinstance(wrong, str) else wrong)


def test_no_sentence_has_no_wrong_words():
    assert wrong_words("red red red", "a small red dot on a gray wall") is None
