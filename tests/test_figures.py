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
from mmcollapse import claims, figures, gates, verdicts
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS
from mmcollapse.figures import ARM_STYLE, FIGURES, draw, house, remedies, robustness, styles, variance
from mmcollapse.figures import verdicts as verdict_figures
from mmcollapse.figures.wording import wrong_words
from mmcollapse.settings import load_settings

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
        told = [word for word in ("n =", "seed", "generation") if word not in record["caption"].lower()]
        assert told == [] and record["n"] and record["seeds"] and 4 in record["generations"], name
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
    assert "10⁻³" in small.get_ylabel() and "10⁻³" not in ax.get_ylabel()
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
    assert ARM_STYLE["your-arm"] == ARM_STYLE["your-arm"] != ARM_STYLE["another-arm"]  # any look, always the same
    assert ARM_STYLE["your-arm"]["label"] == "your-arm"
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
        assert record["n"] and record["seeds"] and 2 in record["generations"] and "n = " in record["caption"], figure
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
    """In its panels and its caption."""
    texts = [*(text for ax in figure.axes for text in ax.texts), *figure.texts]
    return " ".join(text.get_text() for text in texts).replace("\n", " ")


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
    mine = robustness._left_out(source, "image", chosen)[""]
    found = source.correlations("image").set_index(["metric", "space"]).predicts
    assert [rho for rho, _, _ in mine] == pytest.approx([found[pair] for pair in chosen])
    worst = compute_failures(one, *chosen[0])
    assert list(source.failures("image", *chosen[0]).arm) == list(worst.arm)


def compute_failures(folder, metric, space):
    from mmcollapse.robustness import failures, read_tables

    return failures(read_tables(folder), "image", metric, space)


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


# ---- every arm, repeats, walls by generation


def look(line):
    """How a line is told from another when printed grey."""
    return line._unscaled_dash_pattern, line.get_marker(), str(line.get_markerfacecolor())


def luminance(line):
    from matplotlib.colors import to_rgb

    return float(np.dot(to_rgb(line.get_color()), (0.299, 0.587, 0.114)))


@pytest.mark.parametrize("name", OTHERS)
def test_printed_grey_the_lines_of_a_panel_are_told_apart(name, five):
    """By dashes, marker or its filling; else by a sixth of the way from black to white."""
    source, compared = figures.open_source(five, name), 0
    for make in FIGURES[name].values():
        for ax in make(source).figure.axes:
            shown = [ln for ln in ax.lines if ln.get_alpha() is None and ln.get_marker() not in ("", "None", None)]
            shown = [ln for ln in shown if len(ln.get_xdata()) > 1 and ln.get_linestyle() != "None"]
            for one, other in itertools.combinations(shown, 2):
                if one.get_color() != other.get_color():
                    compared += 1
                    told = look(one) != look(other) or abs(luminance(one) - luminance(other)) > 1 / 6
                    assert told, (make.__name__, ax.get_title(), one.get_color(), other.get_color())
    assert compared > 20


@pytest.mark.parametrize("name", OTHERS)
def test_the_supplement_leaves_no_arm_out(name, five):
    source = figures.open_source(five, name)
    axes = [ax for ax in FIGURES[name]["arms"](source).figure.axes if ax.get_yticks().size]
    said = {label.get_text() for ax in axes for label in ax.get_yticklabels()}
    further = styles.FURTHER
    arms = [arm for arm in source.table.arm.unique() if arm not in figures.REFERENCES and not further.fullmatch(arm)]
    assert {ARM_STYLE[arm]["label"] for arm in arms} <= said and len(arms) > 7
    panel = house.Panel("", "", "all_right", "image", "guidance 1", house.plain_arms(source, "image"), "rate")
    means = house.scalars(source, panel, "late" if name == "06_remedies" else "auc")
    spots = [line.get_xdata()[0] for line in axes[0].lines if line.get_linestyle() == "None"]
    assert spots == pytest.approx([values.mean() for values in means.values()])


def test_repeats_are_differences_paired_by_seed(tmp_path):
    folder = synthetic.results(tmp_path, with_samples=False, seeds=range(3), repeats=True)
    source = figures.open_source(folder, "01_variance")
    figure = variance._repeats(source).figure
    rows = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert rows[0] == "as in the other figures" and rows[3:] == [
        "half the learning rate",
        "double the learning rate",
        "on generator-2",
        "on generator-pixart",
    ]
    t = source.table[(source.table.metric == "all_right") & (source.table.measurement == "guidance 1")]
    late = t[t.generation.isin((3, 4)) & (t.seed >= 0)].pivot_table(index="seed", columns="arm", values="value")
    known = {k: line.get_xdata()[0] for k, line in enumerate(figure.axes[1].lines) if line.get_linestyle() == "None"}
    for kind in ("", "-fresh", "-lr-half", "-lr-double", "-generator-2"):
        for arm in ("gen0", "real"):
            mean = (late[arm + kind] - late["recursive" + kind]).mean()
            assert any(abs(mean - spot) < 1e-9 for spot in known.values()), (arm, kind)
    # a table without any repeat has the plain row, and one without these arms says so
    bare = figures.open_source(synthetic.results(tmp_path / "bare", False, seeds=(0,)), "01_variance")
    assert len(variance._repeats(bare).figure.axes[0].get_yticklabels()) == 1
    bare.table = bare.table[~bare.table.arm.isin(["real", "gen0"])]
    assert "not measured" in said_by(variance._repeats(bare).figure)


def test_walls_by_generation_show_what_was_kept(five):
    source = figures.open_source(five, "06_remedies")
    drawn = remedies._by_generation(source)
    assert drawn.rows[0]["generation"] == [0, 1, 2] and len(drawn.rows[0]["index"]) == 2
    left = drawn.figure.axes[0]
    assert [label.get_text() for label in left.get_xticklabels()] == ["real", "0", "1", "2"]
    rows = [label.get_text() for label in left.get_yticklabels()]
    assert rows[0] == "recursive" and rows[-2:] == ["generation-0 data", "real data"]
    pixels = np.asarray(left.images[0].get_array())
    frame = source.samples("image", "guidance 1", ["recursive"])
    made = frame[(frame.arm == "recursive") & (frame.generation == 2) & (frame.number == drawn.rows[0]["index"][0])]
    size = house.pixels(made.image.iloc[0]).shape[0]
    cell = size + max(1, size // 20)
    assert (pixels[:size, 3 * cell : 3 * cell + size] == house.pixels(made.image.iloc[0])).all()


# ---- verdicts and gates


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Verdicts on the table of 01 alone, with gates of which one failed and some were not run."""
    folder = synthetic.results(tmp_path_factory.mktemp("judged"), with_samples=False, seeds=range(5), generations=2)
    rows = [gates._between("in a range", 0.5, 0.4, 0.8) | {"gate": "toy"}]
    rows.append(gates._at_least("high enough", 1.0, 2.0) | {"gate": "dose"})
    rows.append(gates._row("nothing moved", 0, "exactly 0", True) | {"gate": "learning rate 0"})
    rows += [gates._row(f"seen {k}", k, gates.SHOWN, None) | {"gate": "power"} for k in range(9)]
    gates.as_frame(rows).to_parquet(folder / "00_gates.parquet")
    (folder / "00_gates.json").write_text(json.dumps({"settings": {"profile": "nano"}}))
    verdicts.write_page(load_settings("nano", results=str(folder)), {"nano": folder})
    return folder


def texts_of(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_the_overview_shows_every_claim_and_what_its_table_says(judged, tmp_path):
    source = verdict_figures.open_verdicts(judged, "07_claims")
    drawn = verdict_figures._overview(source)
    said = texts_of(drawn.figure)
    assert {claim.id.split()[0] for claim in claims.all_claims()} <= set(said)
    assert sum("not run" in text for text in said) >= 5 and any("no table of" in text for text in said)
    rows = source.frame[(source.frame.part == "primary") & (source.frame.contrast != claims.EVERY)]
    rows = rows[rows.effect.notna()]
    forest = next(ax for ax in drawn.figure.axes if "effect / S" in ax.get_xlabel())
    spots = [line.get_xdata()[0] for line in forest.lines if line.get_marker() in "oXsD" and len(line.get_xdata()) == 1]
    assert len(rows) > 8 and spots == pytest.approx(list((rows.effect / rows.S).clip(-200, 200)))
    letters = [text for text in said if text in ("R", "C", "I", "V", "-")]
    assert len(letters) == len(rows) and "V" in letters  # void: gates were not run
    draw(judged, tmp_path, "07_claims")
    for figure in FIGURES["07_claims"]:
        record = json.loads((tmp_path / f"07_claims_{figure}.json").read_text())
        assert record["n"] and record["seeds"] == [0, 1, 2, 3, 4] and record["generations"] == [0, 1, 2]
        assert "n = " in record["caption"]


def test_the_overview_is_drawn_without_gates_tables_or_enough_seeds(tmp_path):
    folder = synthetic.results(tmp_path, with_samples=False, seeds=(0,), generations=2)
    verdicts.write_page(load_settings("nano", results=str(folder)), {"nano": folder})
    source = verdict_figures.open_verdicts(folder, "07_claims")
    assert "not run" in " ".join(texts_of(verdict_figures._overview(source).figure))
    assert texts_of(verdict_figures._gates(source).figure).count("not run") == len(claims.GATES)
    (folder / "01_variance.parquet").unlink()
    assert "no table of 01_variance" in texts_of(verdict_figures._overview(source).figure)


def test_the_page_of_gates_holds_what_was_measured_against_what_is_allowed(judged):
    source = verdict_figures.open_verdicts(judged, "07_claims")
    said = texts_of(verdict_figures._gates(source).figure)
    assert set(claims.GATES) <= set(said) and said.count("FAILED") == 2 and said.count("not run") == 7
    assert {"0.4 to 0.8", "at least 2", "exactly 0", "high enough"} <= set(said)
    assert sum(text.startswith("seen ") for text in said) == 3 and any("and 6 more" in text for text in said)
    for row in source.gates.itertuples():
        place = verdict_figures._allowed(row)
        if place is None:
            assert pd.isna(row.passed)
        else:
            low, high, (value, *_) = place
            assert bool(row.passed) == (low <= value <= high), row.measure
