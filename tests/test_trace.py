"""From a row or a figure back to the run."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import claims_data
from mmcollapse.__main__ import main
from mmcollapse.store import Store
from mmcollapse.table import read_table, write_table

RIGHT = "arm=recursive metric=all_right generation=2 modality=image measurement=guidance 1 subset=test model=generator"


@pytest.fixture
def trace(smoke, capsys):
    """trace(option, value, ...): what the command says, or its error."""

    def call(*arguments):
        code = main(["trace", *smoke.options, *arguments])
        said = capsys.readouterr()
        assert code == (1 if said.err else 0)
        return said.err or said.out

    return call


@pytest.fixture
def table(smoke):
    return read_table(smoke.folder / "results" / "01_variance.parquet")


def test_a_row_is_traced_to_the_base_model(trace, table, smoke):
    said = trace("--row", RIGHT)
    (row,) = table.query(
        "arm == 'recursive' and metric == 'all_right' and generation == 2 and modality == 'image'"
        " and measurement == 'guidance 1' and subset == 'test' and model == 'generator'"
    ).itertuples()
    assert f"row {row.Index}: " in said and f": {row.value:.6g} (n {row.n})" in said
    store = Store(smoke.folder / "runs")
    measured = store.find(row.hash)
    assert f"measured   {measured.folder} (made {measured.manifest['made_at']}, files pruned)" in said
    # of equal weights (a clone's first generation is a lone model's) the lone model's, and those that were made first
    alone = {item.digest for item in store.items("pairs")}
    made = sorted(store.items("weights"), key=lambda item: item.manifest["made_at"], reverse=True)
    made.sort(key=lambda item: item.inputs["pairs"] in alone)
    by_digest = {item.digest: item for item in made}
    second = by_digest[measured.inputs["makers"]]
    first = by_digest[second.inputs["parent"]]
    places = [said.index(f"generation 2  {second.folder}"), said.index(f"generation 1  {first.folder}")]
    places += [said.index(f"generation 0  the base generator, digest {first.inputs['parent']}")]
    assert places == sorted(places)
    assert said.count("trained on ") == 2 and "by generation 1" in said and "by the base generator" in said
    assert "2 steps of 4, rate 0.0001, full, seed 0" in said
    assert "again: make reproduce PROFILE=smoke ONLY=01_variance WORLD=scenes RUNS=" in said


def test_a_number_a_hash_and_a_filter_mean_the_same_row(trace, table):
    said = trace("--row", RIGHT)
    number = said.split("row ")[2].split(":")[0] if "1 row\n" not in said else said.split("  row ")[1].split(":")[0]
    assert trace("--row", number) == said
    hash_ = table.hash[int(number)]
    for way in (hash_, hash_[:12], hash_.split("-")[1][:10]):
        assert hash_ in trace("--row", way)


def test_rows_of_several_seeds_are_summed_up(table):
    from mmcollapse.trace import _over_seeds

    some = table[(table.arm == "real") & (table.metric == "all_right") & (table.measurement == "guidance 1")]
    some = some[(some.subset == "test") & (some.generation == 1) & (some.model == "generator")]
    assert len(some) == 1 and _over_seeds(some) == []
    three = pd.concat([some.assign(seed=s, value=v) for s, v in enumerate((0.5, 0.75, 0.25))])
    (line,) = _over_seeds(three)
    assert "mean of 3 seeds 0.5 (0.25 to 0.75)" in line and "generation 1" in line and "seed 0" not in line
    assert len(_over_seeds(three.assign(claims=["1", "2", "3"]))) == 1  # whatever the claims were at the time


def test_other_kinds_of_rows(trace):
    assert "of world scenes" in trace("--row", "arm=world metric=kid measurement=guidance 1")
    floor = trace("--row", "metric=sampling_floor arm=real generation=2")
    assert "generation 2  " in floor and floor.count("trained on 8 real pairs") == 2
    frozen = trace("--row", "arm=frozen-length metric=bleu4 generation=1")
    assert "min_tokens 33" in frozen and "the base captioner" in frozen and "trained on" not in frozen
    made = trace("--row", "arm=recursive model=set generation=2 metric=variance space=judge")
    assert "training pairs, digest " in made and made.count("\n  made       ") == 1 and "by the base generator" in made
    assert "no model made them" in trace("--row", "arm=real model=set generation=2 metric=variance space=judge")
    student = trace("--row", "arm=gen0 model=student 0 generation=2 metric=all_right modality=image")
    assert "generation 2  " in student and student.count("trained on ") == 1 and "by the base generator" in student


def test_of_equal_content_what_was_made_first_is_told(tmp_path):
    """The first of a pool of clones, say, is bit for bit the recursive model, but its pairs were made in parts."""
    import time

    from mmcollapse.trace import Lineages

    store, recipe = Store(tmp_path), {"steps": 2, "batch": 4, "lr": 0.1, "method": "full"}
    for k in range(3):
        inputs = {"parent": "base", "pairs": f"pairs {k}", "recipe": recipe, "seed": [0, 1, "generator"]}
        store.make("weights", inputs, lambda folder: {"digest": "same", "n": 8})
        time.sleep(1.1 if k == 0 else 0)  # times are told to the second
    assert Lineages(store, {}).weights["same"].inputs["pairs"] == "pairs 0"


def test_sets_of_several_makers(trace):
    joint = ["--only", "04_relabeling", "--row"]
    said = trace(*joint, "arm=joint model=set generation=2 modality=text metric=bleu4")
    assert said.count("\n  made       ") == 2  # pictures, and their captions
    assert "the base generator, digest" in said and "the base captioner, digest" in said
    told = trace(*joint, "arm=oracle model=set generation=1 modality=text metric=bleu4")
    assert "written by the oracle" in told and "the base oracle" in told


def test_the_command_that_makes_a_table_again_names_what_differs_from_its_profile(trace):
    assert "SET=" not in trace("--row", RIGHT)  # nothing does, not even from what it says of this experiment


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("123456", "row 123456: the table has rows 0 to "),
        ("arm=reel", "no row with arm=reel"),
        ("colour=red", "colour='red': the columns are experiment, "),
        ("pairs-xyz", "no row with pairs-xyz"),
    ],
)
def test_a_row_that_is_not_there(trace, row, says):
    assert says in trace("--row", row)


@pytest.mark.parametrize("ending", ["png", "svg", "json"])
def test_a_figure_is_traced(trace, smoke, ending):
    said = trace("--figure", str(smoke.folder / "figures" / f"01_variance_drift.{ending}"))
    assert "figure 01_variance_drift, drawn by: python -m mmcollapse figures" in said and "(unchanged since)" in said
    for arm in ("recursive", "recursive-drift", "gen0-drift", "real", "frozen-length"):
        assert f"\n{arm}, captioner, seed 0, generation 2:\n" in said
    assert "again: make reproduce PROFILE=smoke" in said


def test_a_wall_of_pictures_is_traced(trace, smoke):
    said = trace("--figure", str(smoke.folder / "figures" / "01_variance_wall.png"))
    assert "01_variance.samples.parquet (unchanged since)" in said
    assert "\nrecursive, generator, seed 0, generation 2:\n" in said


def test_a_figure_of_a_table_that_changed_says_so(trace, smoke, tmp_path):
    figure = tmp_path / "01_variance_drift.json"
    record = json.loads((smoke.folder / "figures" / figure.name).read_text())
    record["sources"] = dict.fromkeys(record["sources"], "0" * 64)
    figure.write_text(json.dumps(record))
    assert "CHANGED since: draw the figure again" in trace("--figure", str(figure))
    figure.write_text("{}")
    assert "is no figure of this project" in trace("--figure", str(figure))


def test_a_shipped_table_is_traced_without_its_store(trace, smoke, tmp_path):
    said = trace("--row", RIGHT, "--runs", str(tmp_path / "no"))
    assert f"is not in the store {tmp_path / 'no'}" in said and "pairs=8" in said and "again: make" in said
    for name in ("01_variance.parquet",):
        shutil.copy(smoke.folder / "results" / name, tmp_path)
    assert "01_variance.json is missing" in trace("--row", RIGHT, "--results", str(tmp_path))


def test_a_verdict_is_traced_to_the_rows_that_it_rests_on(trace, table):
    said = trace("--claim", "C1")
    assert said.startswith("C1: recursive fine-tuning of the text-to-image model collapses image variance: no verdict")
    rows = table[(table.metric == "variance") & (table.space == "judge") & (table.measurement == "guidance 1")]
    rows = rows[(rows.subset == "test") & (rows.model == "generator") & (rows.generation == 2)]
    rows = rows[rows.arm.isin(["gen0", "recursive"])]
    assert len(rows) == 2 and f"space=judge generation 2-2 seed 0-0: {len(rows)} rows" in said
    assert "primary, gen0 - recursive: no verdict: nuisance_ratio is missing in 2 chain(s)" in said
    effect = float(np.log(rows[rows.arm == "gen0"].value.item() / rows[rows.arm == "recursive"].value.item()))
    assert f"secondary, marginal: gen0 - recursive: {effect:+.3g} no verdict: 1 seed" in said
    assert "recursive, generator, seed 0, generation 2:" in said and "the base generator, digest" in said
    assert "claim='C9': the claims are C1, C2a" in trace("--claim", "C9")
    assert "trace needs a row, a figure or a claim" in trace("--claim", "C1", "--row", "1")


def test_a_verdict_on_several_experiments_is_traced_to_each(trace, tmp_path):
    """To the sets and to the students that were trained on them."""
    tables = claims_data.tables(seeds=range(2))
    for name, table in tables.items():
        write_table(table, tmp_path / f"{name}.parquet")
    said = trace("--claim", "C5", "--results", str(tmp_path))
    assert said.startswith("C5: FID and BLEU-4 of a synthetic dataset predict how robust training on it is: ")
    for modality, metric, name in (("image", "fid", "FID of pictures"), ("text", "bleu4", "BLEU-4 of captions")):
        shown = said.split(f"  primary, {name}: ")[1].split("  secondary")[0].split("  primary")[0]
        for experiment, table in tables.items():
            own = table[table.modality == modality]
            students = own[(own.model == "student 0") & (own.metric == "all_right")]
            sets = own[(own.model == "set") & (own.metric == metric)]
            line = next(line for line in shown.splitlines() if f"experiment={experiment} " in line)
            assert f" {own.arm.nunique()} arms model set modality={modality} metric={metric} " in line
            assert line.endswith(f"seed 0-1: {len(students) + len(sets)} rows") and "and model student 0, ..." in line
    for name in tables:
        assert f"{tmp_path / name}.parquet: " in said
