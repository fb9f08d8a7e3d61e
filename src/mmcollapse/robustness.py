"""Does the quality of a synthetic set predict how robust training on it is (claim C5)? From result tables alone.

Predictor: a metric of the pairs that a generation was trained on (rows of model "set"). Outcome: what a fresh base
model loses that is trained on these pairs by one recipe (rows of model "student 0", ...), measured on test prompts,
which no training set holds. Units are arms; generations are compared only within themselves, for both fall with the
generation.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from mmcollapse import stats
from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS, EXPLORATORY
from mmcollapse.settings import Settings
from mmcollapse.table import is_student, read_table

OUTCOME = {"image": "guidance 1", "text": "greedy"}  # measurement of all_right of the students
ARMS_NEEDED = 12
# Metrics of which more is better, by how their name begins; of the others less is. Which way "better" points is what
# turns a correlation into a prediction.
HIGHER = (
    "all_right",
    "two_right",
    "right_",
    "tail_coverage",
    "cell_entropy",
    "precision",
    "recall",
    "density",
    "vendi",
)
HIGHER += (
    "coverage",
    "clip_score",
    "bleu4",
    "cider",
    "rouge_l",
    "vocabulary",
    "distinct",
    "variance",
    "caption_variance",
)
HIGHER += ("caption_vendi", "length", "W")
COLUMNS = [
    "modality",
    "metric",
    "space",
    "rho",
    "low",
    "high",
    "p",
    "predicts",
    "arms",
    "generations",
    "pooled",
    "reason",
]


def units(tables: dict[str, pd.DataFrame], modality: str) -> pd.DataFrame:
    """One row for each set that students were trained on, of every arm once: experiment, arm, seed, generation, hash,
    n (pairs), loss (of all_right, base model minus the mean of its students; range -1 to 1)."""
    out, cell = [], ["arm", "seed", "generation"]
    for experiment, table in tables.items():
        students = _right(table, modality)
        students = students[is_student(students.model)]
        if students.empty:
            continue
        sets = table[(table.modality == modality) & (table.model == "set")].groupby(cell)
        frame_ = pd.DataFrame({"hash": sets.hash.first(), "n": sets.n.max()})
        frame_["loss"] = -students.groupby(cell).value.mean()
        out.append(frame_[frame_.loss.notna()].reset_index().assign(experiment=experiment))
    if not out:
        raise MMCollapseError(f"no table has students for {modality}: run the experiments with students=1 or more")
    whole = pd.concat(out, ignore_index=True)
    if whole.empty:
        raise MMCollapseError(f"no student for {modality} has a share of all attributes right: it needs a known truth")
    whole["loss"] += _base(tables, modality)
    # Metrics are biased in n, and n alone changes what a student learns: sets of one size are compared.
    whole = whole[whole.n == whole.n.mode().iloc[0]]
    kept: list[pd.DataFrame] = []
    for _, rows in whole.groupby(["experiment", "arm"]):
        if not any(_same(rows, other) for other in kept):
            kept.append(rows)
    names = ["experiment", *cell, "hash", "n", "loss"]
    return pd.concat(kept)[names].sort_values(names[:4], ignore_index=True)


def _same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two arms are one chain, which two experiments share, perhaps with more seeds in one of them. Arms that
    share only some generations (all of a kind begin with the same data) are two."""
    a, b = (dict(zip(zip(f.seed, f.generation, strict=True), f.hash, strict=True)) for f in (one, other))
    both = a.keys() & b.keys()
    return bool(both) and all(a[k] == b[k] for k in both)


def _right(table: pd.DataFrame, modality: str) -> pd.DataFrame:
    """The rows of all_right on test samples, in the measurement that students are judged by."""
    rows = table[(table.modality == modality) & (table.metric == "all_right") & (table.subset == "test")]
    return rows[(rows.measurement == OUTCOME[modality]) & (rows.model != "")]  # "": real data


def _base(tables: dict[str, pd.DataFrame], modality: str) -> float:
    """all_right of the base model that students start from, which all experiments have; a constant, which moves no
    rank."""
    start = pd.concat([_right(table, modality).assign(experiment=name) for name, table in tables.items()])
    start = start[(start.generation == 0) & (start.model != "pool")]
    if start.empty:
        raise MMCollapseError(f"no table has generation 0 for {modality}")
    shared = start.groupby("model", sort=False).experiment.nunique().idxmax()
    return float(start.value[start.model == shared].iloc[0])


def modalities(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The modalities that have students. MMCollapseError: none has."""
    found = [m for m in OUTCOME if any(is_student(_right(t, m).model).any() for t in tables.values())]
    if not found:
        raise MMCollapseError("no table has students: run the experiments with students=1 or more")
    return found


def frame(tables: dict[str, pd.DataFrame], modality: str, metric: str, space: str, found: pd.DataFrame) -> pd.DataFrame:
    """What stats.rank_correlation takes, of the units `found`: arm, generation, predictor, outcome; means over seeds.
    Arms that lack a generation or a finite value are left out."""
    parts = []
    for experiment, table in tables.items():
        rows = table[(table.modality == modality) & (table.model == "set") & (table.metric == metric)]
        parts.append(rows[rows.space == space].assign(experiment=experiment))
    keys = ["experiment", "arm", "seed", "generation"]
    values = pd.concat(parts)[[*keys, "value"]].rename(columns={"value": "predictor"})
    both = found.merge(values, on=keys)
    both = both.assign(arm=both.experiment.str.slice(0, 2) + " " + both.arm)
    means = both.groupby(["arm", "generation"])[["predictor", "loss"]].mean().rename(columns={"loss": "outcome"})
    means = means[means.notna().all(axis=1)].reset_index()
    complete = means.groupby("arm").generation.nunique()
    return means[means.arm.isin(complete.index[complete == means.generation.nunique()])].reset_index(drop=True)


def sign_of(metric: str) -> int:
    """1 where more of the metric should mean more loss (distances), -1 where it should mean less (BLEU, ...)."""
    return -1 if metric.startswith(HIGHER) else 1


def correlate(tables: dict[str, pd.DataFrame], modality: str) -> pd.DataFrame:
    """A row a metric of the sets, COLUMNS, the best predictor first: rho, its interval and p as stats.rank_correlation
    gives them; predicts: rho turned so that above 0 the metric predicts as its direction says; pooled: Spearman over
    all sets at once, which generation and arm confound."""
    found = units(tables, modality)
    whole = pd.concat(tables.values())
    sets = whole[(whole.modality == modality) & (whole.model == "set") & (whole.metric != "passes")]
    out = []
    for (metric, space), rows in sets.groupby(["metric", "space"]):
        row = {"modality": modality, "metric": metric, "space": space, "reason": ""}
        data = frame(tables, modality, metric, space, found)
        if data.arm.nunique() < 4:
            told = rows.missing[rows.missing != ""]
            row["reason"] = told.iloc[0] if len(told) else f"{data.arm.nunique()} arms are too few"
        else:
            r = stats.rank_correlation(data)
            row |= {"rho": r.rho, "low": r.low, "high": r.high, "p": r.p, "arms": r.arms, "generations": r.generations}
            row |= {"reason": r.reason, "predicts": sign_of(metric) * r.rho}
            row["pooled"] = spearmanr(data.predictor, data.outcome).statistic if not r.reason else math.nan
        out.append(row)
    frame_ = pd.DataFrame(out, columns=COLUMNS)
    return frame_.sort_values(["predicts", "metric", "space"], ascending=[False, True, True], ignore_index=True)


def leave_one_out(tables: dict[str, pd.DataFrame], modality: str, metrics: list[tuple[str, str]]) -> pd.DataFrame:
    """`predicts` of some (metric, space), columns left_out and one a metric, each experiment left out in turn."""
    out = []
    for name in ["", *tables]:
        rest = {k: t for k, t in tables.items() if k != name}
        try:
            found = correlate(rest, modality).set_index(["metric", "space"]).predicts
        except MMCollapseError:  # nothing remains
            continue
        out.append({"left out": name or "nothing"} | {f"{m} ({s})": found.get((m, s), math.nan) for m, s in metrics})
    return pd.DataFrame(out)


def failures(tables: dict[str, pd.DataFrame], modality: str, metric: str, space: str, most: int = 5) -> pd.DataFrame:
    """The arms that a metric judges worst: columns arm, generation, by quality, by loss (ranks, 1 is best, of `of`
    arms), those with the largest difference first."""
    data = frame(tables, modality, metric, space, units(tables, modality))
    data = data.assign(predictor=sign_of(metric) * data.predictor)
    ranks = data.groupby("generation")[["predictor", "outcome"]].rank()
    out = data[["arm", "generation"]].assign(**{"by quality": ranks.predictor, "by loss": ranks.outcome})
    out["of"] = data.groupby("generation").arm.transform("nunique")
    order = (out["by quality"] - out["by loss"]).abs().sort_values(ascending=False, kind="stable").index
    return out.loc[order].head(most).reset_index(drop=True)


def read_tables(results: Path) -> dict[str, pd.DataFrame]:
    """The result tables in a folder, by experiment. MMCollapseError: there is none."""
    names = [name for name, arms in EXPERIMENTS.items() if arms is not None and name not in EXPLORATORY]
    found = {name: read_table(p) for name in names if (p := Path(results) / f"{name}.parquet").is_file()}
    if not found:
        raise MMCollapseError(f"no result table in {results}: run the experiments first (make reproduce)")
    return found


def write_correlations(tables: dict[str, pd.DataFrame], settings: Settings) -> pd.DataFrame:
    """`correlate` of the modalities that have students as RESULTS/05_quality_robustness.parquet."""
    frame_ = pd.concat([correlate(tables, modality) for modality in modalities(tables)], ignore_index=True)
    buffer = io.BytesIO()
    frame_.to_parquet(buffer, index=False)
    write_whole(settings.results_folder / "05_quality_robustness.parquet", buffer.getvalue())
    return frame_
