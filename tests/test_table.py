"""The result table: canonical order, whole files, merging, completeness."""

from math import inf, isnan, nan

import pandas as pd
import pytest

from mmcollapse.errors import MMCollapseError
from mmcollapse.table import COLUMNS, check_complete, merge, read_table, rounded, to_table, write_table

ARMS = [("image", "recursive"), ("image", "real")]


def rows(arms=("recursive", "real"), seeds=(0, 1), generations=3, metrics=("all_right", "kid")):
    """A complete little table as rows."""
    common = {"experiment": "x", "modality": "image", "measurement": "guidance 1", "subset": "test", "space": "oracle"}
    return [
        common
        | {"arm": arm, "seed": s, "generation": g, "metric": m, "value": s + g / 8, "n": 64, "hash": f"{arm}{s}{g}"}
        for arm in arms
        for s in seeds
        for g in range(generations + 1)
        for m in metrics
    ]


def complete(changed):
    check_complete(to_table(changed), ARMS, [0, 1], 3)


def test_equal_results_give_equal_bytes(tmp_path):
    write_table(to_table(rows()), tmp_path / "new" / "a.parquet")
    write_table(to_table(rows()[::-1]), tmp_path / "b.parquet")
    assert (tmp_path / "new" / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    pd.testing.assert_frame_equal(read_table(tmp_path / "b.parquet"), to_table(rows()))
    assert {path.name for path in tmp_path.iterdir()} == {"new", "b.parquet"}  # no drafts


def test_two_values_for_one_thing_are_refused():
    with pytest.raises(MMCollapseError, match="two values for .*'recursive'"):
        to_table([*rows(), rows()[0] | {"value": 7.0}])


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(MMCollapseError, match="no result table at .*make reproduce"):
        read_table(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(MMCollapseError, match="a.parquet is no result table"):
        read_table(tmp_path / "a.parquet")
    to_table(rows()).drop(columns=["n", "hash"]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(MMCollapseError, match="it has no column hash, n"):
        read_table(tmp_path / "a.parquet")


def test_columns_and_types():
    table = to_table(rows())
    assert list(table.columns) == list(COLUMNS)
    assert {c: str(t) for c, t in table.dtypes.items()} == COLUMNS


def test_merging_joins_what_is_equal_and_refuses_what_is_not():
    whole = rows()
    whole[3] |= {"value": nan, "n": 0}
    first, second = to_table(whole[:10]), to_table(whole[2:])
    pd.testing.assert_frame_equal(merge([first, second]), to_table(whole))
    for change in ({"value": 9.0}, {"hash": "other"}, {"n": 1}):
        with pytest.raises(MMCollapseError, match="2 rows conflict, the first: .*'recursive'"):
            merge([to_table(whole), to_table([whole[0] | change])])


def test_a_complete_table_passes():
    complete(rows())
    marked = rows()
    marked[5] |= {"value": nan, "missing": "this world has no known truth", "n": 0}
    complete(marked)


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        (lambda r: r["arm"] == "real", "image arm 'real', seed 0: no generation"),
        (lambda r: r["arm"] == "real" and r["seed"] == 1, "image arm 'real', seed 1: no generation"),
        (lambda r: r["generation"] == 3, "seed 0: no generation [3]"),
        (
            lambda r: r["generation"] == 2 and r["metric"] == "kid",
            "generation 2: lacks [('', 'guidance 1', 'test', 'kid', 'oracle')]",
        ),
        (
            lambda r: r["generation"] == 0 and r["metric"] == "kid",
            "generation 0: lacks [('', 'guidance 1', 'test', 'kid', 'oracle')]",
        ),
        (lambda r: r["seed"] == 1 and r["metric"] == "kid", "seed 1, generation 0: lacks"),
    ],
    ids=["arm", "seed", "generation", "metric", "metric at the beginning", "metric of a seed"],
)
def test_what_a_table_lacks_is_named(drop, says):
    with pytest.raises(MMCollapseError) as error:
        complete([r for r in rows() if not drop(r)])
    assert says in str(error.value)


def test_models_of_an_arm_are_told_apart_and_none_may_be_missing():
    several = [r | {"model": model} for r in rows() for model in ("a", "b", "pool")]
    complete(several)
    with pytest.raises(
        MMCollapseError, match="seed 0, generation 2: lacks .*'b', 'guidance 1', 'test', 'kid', 'oracle'"
    ):
        complete([r for r in several if (r["model"], r["generation"], r["metric"]) != ("b", 2, "kid")])
    assert set(to_table(rows()).model) == {""}  # where there is one alone it need not be named


def test_sets_and_students_are_only_where_they_were_asked_for():
    """At generations of their own: but a value of theirs must be finite too."""
    for model in ("set", "student 0", "student 1"):
        some = [r | {"model": model} for r in rows() if r["generation"] == 2]
        complete([*rows(), *some])
        with pytest.raises(MMCollapseError, match="1 values are not finite"):
            complete([*rows(), *some[1:], some[0] | {"value": nan}])
        with pytest.raises(MMCollapseError, match="no generation"):
            complete([*(r for r in rows() if r["generation"] != 2), *some])  # they stand in for nobody


def test_rows_keep_the_claims_of_their_run():
    old, new = to_table([r | {"claims": "1"} for r in rows()]), to_table([r | {"claims": "2"} for r in rows()])
    assert set(merge([old, old]).claims) == {"1"}
    with pytest.raises(MMCollapseError, match="rows conflict"):
        merge([old, new])


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_value_that_is_not_finite_is_named(value):
    changed = rows()
    changed[5] |= {"value": value}
    with pytest.raises(MMCollapseError, match="1 values are not finite, the first: .*'kid'"):
        complete(changed)


def test_values_are_rounded_to_six_digits():
    values = [0.123456789, -98765.4321, 0.0, 1.0, 3e-12, 0.8125, nan]
    table = to_table([rows()[0] | {"seed": i, "value": v} for i, v in enumerate(values)])
    kept = rounded(table)
    assert kept.value[:-1].tolist() == pytest.approx(values[:-1], rel=1e-6) and isnan(kept.value.iloc[-1])
    assert (kept.value.iloc[[2, 3, 5]] == table.value.iloc[[2, 3, 5]]).all()  # these need no more bits
    assert not (kept.value.iloc[[0, 1, 4]] == table.value.iloc[[0, 1, 4]]).any()
    pd.testing.assert_frame_equal(rounded(kept), kept)
