"""`make verify`: what was not touched matches, and one number that was changed is named. Part (a) on a study drawn from
formulas, all parts on a finished run at smoke, which this CPU made: so it comes out as it was."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import claims_data
import synthetic
from mmcollapse import kept, stats, verdicts
from mmcollapse import verify as module
from mmcollapse.__main__ import main
from mmcollapse.claims import all_claims, claims_digest, resolve
from mmcollapse.digests import digest_of
from mmcollapse.experiments import arms_of
from mmcollapse.figures import draw
from mmcollapse.robustness import read_tables, write_correlations
from mmcollapse.settings import ROOT, as_dict, load_settings
from mmcollapse.stats import late_generations
from mmcollapse.table import write_table
from mmcollapse.verify import PARTS, RULES, by_hand, rows_of, rule_of, spans, verify

SEEDS, GENERATIONS = 5, 4


def settings_of(folder, experiment="", **changes):
    at = {"results": str(folder / "results"), "figures": str(folder / "figures"), "runs": str(folder / "runs")}
    return load_settings("nano", experiment, seeds=SEEDS, generations=GENERATIONS, **at | changes)


def provenance(folder, name):
    """Write what a run tells of a table beside it."""
    frame, settings = pd.read_parquet(folder / "results" / f"{name}.parquet"), settings_of(folder, name)
    digest = digest_of(frame.astype(object).where(frame.notna(), None).values.tolist())
    record = {"experiment": name, "settings": as_dict(settings), "rows": len(frame), "table": digest, "kept": ""}
    arms = [vars(p) for p in arms_of(name, settings)] if name == "01_variance" else []
    record |= {"protocols": arms, "failures": [], "models": {}, "device": "cpu"}
    (folder / "results" / f"{name}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study drawn from formulas, with verdicts, correlations and a figure."""
    with pytest.MonkeyPatch.context() as few:
        few.setattr(stats, "DRAWS", 100)
        yield _made(tmp_path_factory.mktemp("study"))


def _made(folder):
    results = folder / "results"
    tables = {"02_decoding_budget": claims_data.table("02_decoding_budget", claims=claims_digest())}
    table = synthetic.table(seeds=range(SEEDS), generations=GENERATIONS, pairs=500).assign(claims=claims_digest())
    tables["01_variance"] = table.assign(n=table.n.where(table.metric != "sampling_floor", 500))
    for name, table in tables.items():
        write_table(table, results / f"{name}.parquet")
        provenance(folder, name)
    settings = settings_of(folder)
    write_correlations(read_tables(results), settings)
    verdicts.write_page(settings, {"nano": results})
    draw(results, folder / "figures", "01_variance_drift")
    return folder


@pytest.fixture
def study(made, tmp_path, monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 100)
    return shutil.copytree(made, tmp_path / "study")


def check(folder, capsys, parts="a", **options):
    """(exit status, what was said) of a folder of the study."""
    code = verify(settings_of(folder), parts.split(","), **options)
    return code, capsys.readouterr().out


def change(path, rows, column, value):
    """Change one cell of a table: the first of the rows that `rows` picks."""
    frame = pd.read_parquet(path)
    at = frame.index[rows(frame)][0]
    frame.loc[at, column] = value(frame.loc[at, column]) if callable(value) else value
    frame.to_parquet(path, index=False)
    return frame.loc[at]


def test_an_untouched_study_matches_and_every_verdict_names_its_rows(study, capsys):
    code, said = check(study, capsys)
    assert code == 0 and "all that was checked matches" in said, said
    frame = pd.read_parquet(study / "results" / "07_claims.parquet")
    shown = frame[(frame.part == "primary") & frame.effect.notna()]
    assert len(shown) > 10
    for row in shown.itertuples():
        lines = [line for line in said.splitlines() if f" {row.claim}, {row.contrast}: " in line]
        assert lines and all("; rows: experiment" in line and " metric=" in line for line in lines), row
    c1 = "arm in (gen0, recursive) modality=image metric=nuisance_ratio"
    assert f'rows: experiment=01_variance {c1} measurement="guidance 1" subset=test space=oracle' in said
    assert "generation 3-4 seed 0-4: 20 rows" in said
    line = next(line for line in said.splitlines() if line.split()[:2] == ["01_variance", "image"])
    rows, a = line.split()[2:4]
    assert int(rows) > int(a) > 0 and line.split()[4:7] == ["-", "-", "-"]


def test_changed_verdicts_and_correlations_are_named(study, capsys):
    def c1(frame):
        return (frame.claim == "C1") & frame.effect.notna() & (frame.part == "primary")

    path, columns = study / "results" / "07_claims.parquet", ("effect", "low", "high", "p_t", "seeds", "S")
    for column in columns:
        row = change(path, c1, column, lambda v: type(v)(v + 1))
    change(path, c1, "verdict", "reproduced!")
    correlations = study / "results" / "05_quality_robustness.parquet"
    change(correlations, lambda f: (f.metric == "fid") & f.rho.notna(), "rho", 0.123)
    code, said = check(study, capsys)
    assert code == 1 and "05_quality_robustness, image, fid, judge: rho: shipped 0.123" in said
    for column in (*columns, "verdict"):
        assert f"07_claims, C1, {row.contrast}: {column}: shipped" in said
        assert (f"C1, {row.contrast}: {column}, by hand" in said) == (column in ("effect", "low", "high"))


def test_a_changed_row_is_named_by_its_digest_and_by_what_rests_on_it(study, capsys):
    def c1(t):
        return (t.metric == "nuisance_ratio") & (t.arm == "recursive") & (t.generation == 4)

    change(study / "results" / "01_variance.parquet", c1, "value", lambda v: v * 1.0001)
    code, said = check(study, capsys)
    assert code == 1 and "01_variance.parquet is not what its provenance 01_variance.json tells of" in said
    assert "07_claims, C1, gen0 - recursive: effect" in said and "gen0 - recursive: low, by hand" in said
    assert "figure 01_variance_drift: digest of " in said


def test_what_a_figure_was_drawn_from_is_checked(study):
    about = study / "figures" / "01_variance_drift.json"
    record = json.loads(about.read_text())
    other = {
        "a": {"sources": dict.fromkeys(record["sources"], "0" * 64)},
        "b": {"rows": [{"arm": ["no such arm"], "metric": ["kid"]}]},
        "c": {"sources": {"elsewhere/09_other.parquet": "0" * 64}, "rows": []},
    }
    for name, changes in other.items():
        about.with_stem(name).write_text(json.dumps(record | changes))
    about.with_stem("d").write_text("{")
    results = module.open_results(settings_of(study))
    module.check_figures(results)
    said = [str(one) for one in results.mismatches]
    assert len(said) == 4
    assert said[0].startswith("(a) figure a: digest of ") and "shipped 000000000000" in said[0]
    assert said[1].startswith('(a) figure b: rows {"arm": ["no such arm"]')
    assert "figure c: elsewhere/09_other.parquet: shipped 000000000000, recomputed not there" in said[2]
    assert "figure d.json: shipped damaged" in said[3]


@pytest.mark.parametrize(
    ("spoil", "failures", "says"),
    [
        (lambda t: t, [], None),
        (lambda t: t[(t.arm != "recursive") | (t.seed != 3)], [], None),  # a study is run in pieces
        (lambda t: t[(t.arm != "real") | (t.seed != 3) | (t.generation != 2)], [], "seed 3: no generation [2]"),
        (lambda t: t[(t.arm != "real") | (t.seed != 3) | (t.generation != 2)], ["generator", "captioner"], None),
        (lambda t: pd.concat([t, t[:1]], ignore_index=True), [], "shipped 2 rows, recomputed 1 row"),
        (lambda t: t.assign(claims="0123456789ab"), [], "hash of the claims file in the rows: shipped 0123456789ab"),
        (lambda t: t.assign(value=t.value + 0.1 * (t.metric == "sampling_floor")), [], "sampling_floor: shipped 1.1"),
    ],
)
def test_chains_must_be_whole_and_rows_unique(study, capsys, spoil, failures, says):
    results = module.open_results(settings_of(study), "01_variance")
    table = spoil(results.tables["01_variance"]).reset_index(drop=True)
    results.tables["01_variance"] = table
    results.records["01_variance"]["failures"] = [f"{role} real seed 3: diverged" for role in failures]
    module.check_table(results, "01_variance", table)
    said = [str(one) for one in results.mismatches]
    assert any(says in line for line in said) if says else not said
    if len(set(table[table.arm == "recursive"].seed)) < SEEDS:
        assert "2 chains are not there yet, the first generator recursive seed 3" in capsys.readouterr().out


def test_a_remedy_comes_when_the_rows_say():
    """Of the shipped table; an alarm on the last generation calls nobody."""
    settings = load_settings("study", results=str(ROOT / "data" / "results" / "study"))
    results = module.open_results(settings, "08_intervention")
    ((name, table),) = results.tables.items()
    module.check_switches(results, name, table)
    assert not results.mismatches and results.checked["a"][name].sum() == 90
    came = table[(table.metric == "switched") & (table.arm == "on-alarm") & table.value.notna()]
    results.tables[name] = late = table.assign(value=table.value + table.index.isin(came.index))
    module.check_switches(results, name, late)
    assert len(results.mismatches) == 6
    first = "generator on-alarm seed 0: the generation since which its remedy holds: shipped 4, recomputed 3, "
    assert first in str(results.mismatches[0])


def test_by_hand_follows_the_design():
    assert all(spans(planned)["late"] == late_generations(planned) for planned in range(1, 12))
    table = synthetic.table(seeds=range(4), generations=10)
    contrast = next(c for claim in all_claims() for c in claim.contrasts if claim.id == "C1" and c.part == "primary")
    contrast, _ = resolve(contrast, table)
    assert set(rows_of(table, contrast, 10).generation) == {8, 9, 10}
    simple = pd.DataFrame(
        [
            {"arm": arm, "model": "m", "seed": s, "generation": g, "value": np.exp(v), "n": 10}
            for arm, vs in {"gen0": (3.0, 4.0), "recursive": (1.0, 1.5)}.items()
            for s, v in enumerate(vs)
            for g in (8, 9, 10)
        ]
    )
    end = replace(contrast.endpoint, scale="log", models="one")
    terms = {"more": (replace(contrast.more[0], arm="gen0"),), "less": (replace(contrast.less[0], arm="recursive"),)}
    effect, low, high = by_hand(simple, replace(contrast, endpoint=end, **terms), 10)
    assert effect == pytest.approx(2.25) and high - effect == pytest.approx(12.7062 * 0.25, rel=1e-5)
    assert effect - low == pytest.approx(high - effect)


def test_every_rule_says_why_and_the_last_fits_all():
    assert rule_of("no such metric") is RULES[-1] and all(len(rule.why) > 9 for rule in RULES)
    assert rule_of("all_right").gpu.of(0.5, 2000) == pytest.approx(0.0056, rel=0.01)
    assert rule_of("all_right").gpu.of(0.5, 500) == pytest.approx(0.0112, rel=0.01)
    assert rule_of("precision").metrics != rule_of("P").metrics and rule_of("length") is RULES[-1]


def test_what_is_not_there_is_said_in_one_line(tmp_path, capsys):
    options = ["--results", str(tmp_path), "--figures", str(tmp_path)]
    assert main(["verify", *options]) == 1
    assert f"no result table in {tmp_path}" in capsys.readouterr().err
    assert main(["verify", *options, "--parts", "a,x"]) == 1
    assert "'x' is none of a, b, c, d" in capsys.readouterr().err
    write_table(synthetic.table(seeds=[0]), tmp_path / "01_variance.parquet")
    assert main(["verify", *options]) == 1
    assert "has no provenance that can be read" in capsys.readouterr().err


# ---- a run at smoke


@pytest.fixture
def copy(smoke, tmp_path):
    for name in ("results", "figures"):
        shutil.copytree(smoke.folder / name, tmp_path / name)
    return tmp_path


def verified(folder, capsys, *more):
    options = [word for name in ("runs", "results", "figures") for word in (f"--{name}", str(folder / name))]
    code = main(["verify", "--profile", "smoke", *options, *more])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_an_untouched_run_matches_in_every_part(copy, capsys):
    code, said = verified(copy, capsys)
    assert code == 0 and "all that was checked matches" in said, said
    for part, what in PARTS.items():
        assert f"({part}) {what}" in said
    for modality in ("image", "text"):
        line = next(line for line in said.splitlines() if line.split()[:2] == ["01_variance", modality])
        assert min(int(count) for count in line.split()[2:7]) > 0, line
    assert not (copy / "runs").exists()  # what is made again is left nowhere


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ("b", {"metric": "all_right", "measurement": "guidance 1", "subset": "test", "generation": 0, "arm": "real"}),
        ("b", {"metric": "bleu4", "measurement": "greedy", "subset": "test", "generation": 0, "arm": "gen0"}),
        ("c", {"metric": "variance_within", "space": "judge", "generation": 2, "arm": "recursive"}),
        ("c", {"metric": "cider", "measurement": "sampled", "subset": "test", "generation": 2, "arm": "gen0"}),
        ("d", {"metric": "kid", "measurement": "guidance 1", "generation": 1, "arm": "recursive"}),
        ("d", {"metric": "length", "measurement": "greedy", "generation": 1, "arm": "recursive"}),
    ],
)
def test_a_changed_row_of_a_run_is_named(copy, capsys, part, rows):
    wanted = rows | ({"measurement": "guidance 1"} if rows["metric"] == "variance_within" else {})

    def chosen(table):
        return np.all([table[k] == v for k, v in wanted.items()], axis=0) & table.value.notna()

    change(copy / "results" / "01_variance.parquet", chosen, "value", lambda v: v + 0.5)
    code, said = verified(copy, capsys, "--parts", part, "--only", "01_variance")
    assert code == 1 and "1 MISMATCH\n" in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"  ({part}) ")]
    assert all(f"{v}" in line for v in wanted.values()) and "allowed" in line


def test_a_changed_kept_feature_is_named(copy, capsys):
    path = kept.path_of(copy / "results", "01_variance")
    table = pq.read_table(path)
    features = table["features"].to_pylist()
    next(row for row in features if row)[0] = 9.0
    column = table.column_names.index("features")
    pq.write_table(table.set_column(column, "features", pa.array(features, pa.list_(pa.float16()))), path)
    code, said = verified(copy, capsys, "--parts", "a,c", "--only", "01_variance")
    assert code == 1 and f"(a) {path} is not what 01_variance.json tells of" in said
    told = [line for line in said.splitlines() if line.startswith("  (c) ")]
    assert any("metric variance_within" in line for line in told) and all("space judge:" in line for line in told)


def test_other_models_than_those_of_the_table_are_named(copy, capsys):
    path = copy / "results" / "01_variance.json"
    record = json.loads(path.read_text())
    record["models"] |= {"generator": "0" * 64, "judge": "1" * 64}
    path.write_text(json.dumps(record))
    code, said = verified(copy, capsys, "--parts", "b,c", "--only", "01_variance")
    assert code == 1 and "01_variance: digest of generator: shipped 000000000000" in said
    assert "(c) 01_variance: digest of judge: shipped 111111111111" in said


def test_the_spread_between_seeds_is_that_of_the_others(copy):
    settings = load_settings("smoke", results=str(copy / "results"))
    results = module.open_results(settings, "01_variance")
    table = results.tables["01_variance"]
    one = table[
        (table.metric == "kid") & (table.generation == 1) & (table.arm == "recursive") & (table.space == "judge")
    ]
    one = one[(one.measurement == "guidance 1") & (one.model == "generator")]
    assert len(one) == 1
    row = next(one.itertuples())
    assert module._between(results, "01_variance", one, 0)(row) is None  # one seed has no spread
    several = pd.concat([one.assign(seed=k, value=v) for k, v in enumerate((50.0, 0.1, 0.2, 0.3))])
    allowed = module._between(results, "01_variance", several, 0)(next(several.itertuples()))
    by_rule = module._limit(results, "01_variance")(next(several.itertuples()))
    assert allowed == pytest.approx(3 * 0.1 + by_rule)  # 0.1 between the others, however far off this one is


def test_the_kept_file_is_what_its_provenance_tells(smoke):
    path = kept.path_of(smoke.folder / "results", "01_variance")
    record = json.loads((smoke.folder / "results" / "01_variance.json").read_text())
    assert record["kept"] == hashlib.sha256(path.read_bytes()).hexdigest()
    sets = kept.read(path)
    assert sorted(s.measurement for s in sets) == ["greedy"] * 2 + ["guidance 1"] * 2 + ["sampled"] * 2
