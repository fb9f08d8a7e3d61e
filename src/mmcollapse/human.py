"""What people said on the page of `make rate`: do they agree, which arm do they prefer, and which metric says the same?

Files of raters are read with the key of their page. Raters who fail too many attention checks are left out, and said.
Agreement: Krippendorff's alpha. Preferences: a Bradley-Terry model. Both have intervals by bootstrap. The pictures are
those of one seed and the raters whoever was asked, so a preference holds for these pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mmcollapse import stats
from mmcollapse.digests import digest_of
from mmcollapse.errors import MMCollapseError
from mmcollapse.rate import FOLDER, KEY, QUESTIONS, TASKS
from mmcollapse.robustness import sign_of
from mmcollapse.settings import Settings
from mmcollapse.table import read_table, write_table

EXPERIMENT = "09_human"
FORMAT = "mmcollapse ratings 1"
ANSWERS = ("left", "same", "right")  # ordinal: "no difference" lies between
OPPOSITE = {"left": "right", "same": "same", "right": "left"}
# Of 9 checks a rater who guesses passes 7 or more once in 120 times; one who is careless once in 20 fails 3 or more
# once in 120 times.
MOST_FAILED = 0.25
LEVELS = ("ordinal", "nominal")
DRAWS = 2000  # bootstrap resamples
SPREAD = 0.1  # taken for planning: standard deviation, between raters, of the share that prefers
COLUMNS = ["part", "question", "name", "space", "value", "low", "high", "p", "n", "note"]


# ---- reading


@dataclass(frozen=True)
class Key:
    """What a page was made of. arms: in the order of the command; source: where their pictures come from; tasks: by
    task, with columns question, left, right (arms; "" of a check) and check (the side that is right; "" of a pair)."""

    page: str
    arms: list[str]
    source: dict
    tasks: pd.DataFrame


def read_key(path: Path) -> Key:
    """The key that `make rate` wrote beside a page. MMCollapseError: none there, damaged, or changed since."""
    told = _json(path, "the key of a page")
    content = {name: value for name, value in told.items() if name != "page"}
    if set(content) != {"secret", "arms", "source", "tasks"} or digest_of(content)[:16] != told.get("page"):
        raise MMCollapseError(f"{path} is not the key that `make rate` wrote: its digest is another than its page's id")
    rows = pd.DataFrame.from_dict(told["tasks"], orient="index")
    tasks = rows.reindex(columns=["question", "left", "right", "check"]).fillna("").rename_axis("task")
    return Key(told["page"], told["arms"], told["source"], tasks)


def read_ratings(files: Iterable[Path], key: Key) -> pd.DataFrame:
    """The files that raters saved, a row an answer: rater, task, question, left, right, check (as in the key), answer
    ("left", "same" or "right" in the key's sides), shown (the same as the rater saw it), seconds, complete.

    MMCollapseError names the file that is damaged, of another page, of a rater who has one already, or has an answer to
    a task that is not in the key, a second one to the same task, or one that is none of ANSWERS."""
    rows, seen = [], {}
    for path in map(Path, files):
        told = _ratings(path, key)
        if told["rater"] in seen:
            raise MMCollapseError(f"{path}: rater {told['rater']!r} has a file already, {seen[told['rater']]}")
        seen[told["rater"]] = path
        done = set()
        for answer in told["answers"]:
            task, shown = answer["task"], answer["answer"]
            if task not in key.tasks.index:
                raise MMCollapseError(f"{path}: task {task!r} is not on page {key.page}")
            if task in done:
                raise MMCollapseError(f"{path}: task {task!r} is answered twice")
            if shown not in ANSWERS:
                raise MMCollapseError(f"{path}: answer {shown!r} to task {task!r}: allowed are {', '.join(ANSWERS)}")
            done.add(task)
            given = OPPOSITE[shown] if told["mirrored"] else shown
            rows.append((told["rater"], task, given, shown, answer["seconds"], len(told["answers"]) == len(key.tasks)))
    frame = pd.DataFrame(rows, columns=["rater", "task", "answer", "shown", "seconds", "complete"])
    return frame.join(key.tasks, on="task")


def _ratings(path: Path, key: Key) -> dict:
    """One file, whose parts are there and of the right kind."""
    told = _json(path, "a file of ratings")
    kinds = {"rater": str, "page": str, "mirrored": bool, "complete": bool, "answers": list}
    if told.get("format") != FORMAT or not all(isinstance(told.get(name), kind) for name, kind in kinds.items()):
        raise MMCollapseError(f"{path} is no file of ratings as the page saves it ({FORMAT!r})")
    if told["page"] != key.page:
        raise MMCollapseError(f"{path} is of page {told['page']}, and the key of page {key.page}")
    parts = {"task": str, "answer": str, "seconds": (int, float)}
    for answer in told["answers"]:
        if not (isinstance(answer, dict) and all(isinstance(answer.get(k), kind) for k, kind in parts.items())):
            raise MMCollapseError(f"{path}: {str(answer)[:60]} is no answer with task, answer and seconds")
    return told


def _json(path: Path, what: str) -> dict:
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MMCollapseError(f"no {what.partition(' ')[2]} at {path}: `make rate` makes page and key") from None
    except (ValueError, OSError) as error:
        raise MMCollapseError(f"{path} is damaged, it cannot be read as {what}: {error}") from error
    if not isinstance(told, dict):
        raise MMCollapseError(f"{path} is damaged, it cannot be read as {what}: no JSON object")
    return told


# ---- raters


def check_raters(ratings: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """A row a rater, of `tasks` on the page: answers, checks, failed (share of the checks answered otherwise than is
    right, "no difference" too), seconds (median of an answer), left (share of the decided answers that chose the left
    side as shown; .5 without a habit), note (why the rater is left out; "" for those who count)."""
    rows = {}
    for rater, own in ratings.groupby("rater", sort=False):
        checks, decided = own[own.check != ""], own[own.shown != "same"]
        failed = float((checks.answer != checks.check).mean()) if len(checks) else math.nan
        note = "" if failed <= MOST_FAILED else f"left out: failed {failed:.0%} of {len(checks)} attention checks"
        if not len(checks):
            note = "left out: answered no attention check"
        left = float((decided.shown == "left").mean()) if len(decided) else math.nan
        rows[rater] = (len(own), tasks, len(checks), failed, float(own.seconds.median()), left, note)
    columns = ["answers", "tasks", "checks", "failed", "seconds", "left", "note"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("rater")


# ---- agreement


def agreement(ratings: pd.DataFrame, draws: int = DRAWS) -> pd.DataFrame:
    """Krippendorff's alpha ("Computing Krippendorff's alpha-reliability", 2011) of the answers to pairs, by question
    and level: 1 - observed / expected disagreement, 1 for perfect agreement, 0 for that of chance, below 0 for less.

    Columns question, level ("ordinal": between left and right lies no difference; "nominal": any two answers differ
    equally), alpha, low, high (95%, bootstrap over tasks), tasks and raters (with two raters or more of a task), note
    (why there is none). Sides are those of the key: raters see them mirrored by turns, so a habit is no agreement."""
    rows = []
    for question in QUESTIONS:
        own = ratings[(ratings.question == question) & (ratings.check == "")]
        counts = pd.crosstab(own.task, own.answer).reindex(columns=ANSWERS, fill_value=0).to_numpy()
        counts = counts[counts.sum(axis=1) > 1]
        raters = own[own.duplicated("task", keep=False)].rater.nunique()
        rng = np.random.default_rng(0)
        resamples = [counts[rng.integers(len(counts), size=len(counts))] for _ in range(draws)] if len(counts) else []
        for level in LEVELS:
            value, note = alpha(counts, level), ""
            if math.isnan(value):
                note = "all answers are the same" if len(counts) else "no task has two raters"
            known = [a for a in (alpha(c, level) for c in resamples) if not math.isnan(a)]
            low, high = np.percentile(known, [2.5, 97.5]) if known else (math.nan, math.nan)
            rows.append((question, level, value, low, high, len(counts), raters, note))
    return pd.DataFrame(rows, columns=["question", "level", "alpha", "low", "high", "tasks", "raters", "note"])


def alpha(counts: np.ndarray, level: str) -> float:
    """Krippendorff's alpha by the package `krippendorff`. counts: (tasks, values in order), how many raters of a task
    gave a value; level: "ordinal" or "nominal". NaN where all answers are the same: nothing is told apart."""
    import krippendorff

    if (counts.sum(axis=0) > 0).sum() < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement=level))


# ---- preferences


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """Strengths of k arms (natural logarithm, the first 0) of the Bradley-Terry model, by maximum likelihood (choix):

        P(i is preferred to j) = 1 / (1 + exp(s_j - s_i))                                   Bradley and Terry 1952

    wins: (k, k), how often i won against j, 0 or more, whole or not. MMCollapseError: the estimate does not exist,
    for some arms never won against the others (Ford 1957)."""
    import choix
    from scipy.sparse.csgraph import connected_components

    wins = np.asarray(wins, float)
    if connected_components(wins > 0, connection="strong")[0] > 1:
        raise MMCollapseError("strengths do not exist: some arms never won, or never lost, against the others")
    strengths = choix.ilsr_pairwise_dense(wins, max_iter=10_000)
    return strengths - strengths[0]


def preferences(ratings: pd.DataFrame, arms: Sequence[str], draws: int = DRAWS) -> pd.DataFrame:
    """Of each question and arm the strength and the probability to be preferred to the first of `arms`.

    Columns question, arm, strength (bradley_terry), probability (0 to 1; .5 for the first arm itself), low, high (95%
    of the probability, bootstrap over raters, whose answers hang together; NaN below 2), n (comparisons with the arm),
    raters, note (why there is none).

    No difference counts as half a win for each: probabilities then are "preferred, or half the time where no difference
    is seen", and need no model of when that is said (Davidson 1970 gives it a parameter; the order of the arms is the
    same). Half a win is added to each side of every pair that was compared, as `stats.on_scale` keeps half a sample
    from the ends: for two arms this is Firth's (1993) correction, and an arm that always wins has a finite strength."""
    rows = []
    for question in QUESTIONS:
        own = ratings[(ratings.question == question) & (ratings.check == "")]
        by_rater = np.array([_wins(answers, arms) for _, answers in own.groupby("rater")])
        total = by_rater.sum(axis=0) if len(by_rater) else np.zeros((len(arms), len(arms)))
        halves = 0.5 * ((total + total.T) > 0)
        try:
            strengths, note = bradley_terry(total + halves), ""
        except MMCollapseError:
            strengths, note = np.full(len(arms), math.nan), "some arms were not compared"
        low, high = np.full((2, len(arms)), math.nan)
        if len(by_rater) > 1 and not note:
            rng = np.random.default_rng(0)
            which = rng.integers(len(by_rater), size=(draws, len(by_rater)))
            found = [bradley_terry(by_rater[w].sum(axis=0) + halves) for w in which]
            low, high = np.percentile(stats.from_scale(found, "logit"), [2.5, 97.5], axis=0)
        n = (total + total.T).sum(axis=1).astype(int)
        for i, arm in enumerate(arms):
            shown = (strengths[i], float(stats.from_scale(strengths[i], "logit")), low[i], high[i])
            rows.append((question, arm, *shown, n[i], len(by_rater), note))
    columns = ["question", "arm", "strength", "probability", "low", "high", "n", "raters", "note"]
    return pd.DataFrame(rows, columns=columns)


def _wins(answers: pd.DataFrame, arms: Sequence[str]) -> np.ndarray:
    """(k, k): how often each arm won against each, ties as half a win for both."""
    wins, place = np.zeros((len(arms), len(arms))), {arm: i for i, arm in enumerate(arms)}
    share = {"left": 1.0, "same": 0.5, "right": 0.0}
    for row in answers.itertuples():
        i, j = place[row.left], place[row.right]
        wins[i, j] += share[row.answer]
        wins[j, i] += 1 - share[row.answer]
    return wins


# ---- metrics


def correlations(found: pd.DataFrame, table: pd.DataFrame, source: dict) -> pd.DataFrame:
    """Spearman's correlation, across arms, of the strengths that people gave and every metric of the pictures' chains.

    found: as `preferences` returns it; table: the result table of the experiment; source: of the key. Columns question,
    metric, space, rho (turned so that above 0 the metric points where people do: robustness.sign_of), low, high, p
    (stats.rank_correlation: arms are the units), n (arms), note (why there is none; four arms are needed), best first.
    A metric of real pictures (arm "world") is the mean of what was measured of several real sets."""
    rows = table[(table.modality == "image") & (table.subset == "test") & (table.measurement == source["measurement"])]
    rows = rows[rows.value.notna()]
    own = (rows.generation == source.get("generation")) & (rows.seed == source.get("seed"))
    own &= rows.model == rows.arm.map(source["models"])
    values = rows[own | (rows.arm == "world")].groupby(["metric", "space", "arm"]).value.mean()
    out = []
    for (metric, space), by_arm in values.groupby(["metric", "space"]):
        sign = -sign_of(metric)
        for question, people in found.groupby("question", sort=False):
            frame = people.set_index("arm")[["strength"]].rename(columns={"strength": "outcome"})
            frame["predictor"] = sign * by_arm.droplevel(["metric", "space"])
            frame = frame.dropna().reset_index().assign(generation=0)
            known = (math.nan, math.nan, math.nan, math.nan)
            try:
                r = stats.rank_correlation(frame)
                known, note = (r.rho, r.low, r.high, r.p), r.reason
            except MMCollapseError as error:
                note = str(error)
            out.append((question, metric, space, *known, len(frame), note))
    columns = ["question", "metric", "space", "rho", "low", "high", "p", "n", "note"]
    return pd.DataFrame(out, columns=columns).sort_values(
        ["question", "rho", "metric", "space"], ascending=[True, False, True, True], ignore_index=True
    )


# ---- how many raters


def plan(comparisons: float, raters: Sequence[int] = (5, 10, 20, 40, 80)) -> pd.DataFrame:
    """How many raters see a preference: columns preference (the true share that prefers one arm of a pair), raters,
    power (share of studies whose 95% interval lies above one half; see stats.power).

    A rater compares the pair `comparisons` times (above 0), so that the standard deviation of a rater's share is
    sqrt(p (1 - p) / comparisons + SPREAD^2); normal approximation."""
    rows = []
    for preference in (0.55, 0.6, 0.7, 0.8):
        sd = math.sqrt(preference * (1 - preference) / comparisons + SPREAD**2)
        rows += [(preference, n, stats.power(preference - 0.5, sd, 0.0, n)) for n in raters]
    return pd.DataFrame(rows, columns=["preference", "raters", "power"])


# ---- all of it, as a table


def write_human(settings: Settings) -> pd.DataFrame:
    """Read the key and every rating-*.json in RESULTS/ratings and write RESULTS/09_human.parquet, COLUMNS, a row a
    value: part ("rater", "agreement", "preference", "correlation" or "plan") says what it is, see in_parts and plan.
    Without ratings there is the plan alone. Pseudonyms are replaced by numbers."""
    results = settings.results_folder
    folder = results / FOLDER
    files = sorted(folder.glob("rating-*.json"))
    parts, pairs = [], TASKS / 6  # of the four usual arms
    if files or (folder / KEY).is_file():
        key = read_key(folder / KEY)
        pairs = _comparisons(key)
        parts = in_parts(read_ratings(files, key), key, _table(results, key)) if files else []
    planned = plan(pairs)
    told = planned.rename(columns={"power": "value", "raters": "n"}).assign(part="plan")
    told = told.assign(name=planned.preference.map("{:.0%}".format), note=f"{pairs:g} comparisons of a pair a rater")
    frame = pd.concat([*parts, told], ignore_index=True).reindex(columns=COLUMNS)
    texts = dict.fromkeys(["part", "question", "name", "space", "note"], "")
    frame = frame.astype(dict.fromkeys(texts, object)).fillna(texts).astype(dict.fromkeys(texts, str) | {"n": int})
    write_table(frame, results / f"{EXPERIMENT}.parquet")
    return frame


def _comparisons(key: Key) -> float:
    """How often a rater compares a pair of arms in a question, fewest and rounded down."""
    own = key.tasks[(key.tasks.check == "") & (key.tasks.question == "fidelity")]
    return int(len(own) / (len(key.arms) * (len(key.arms) - 1) / 2))


def _table(results: Path, key: Key) -> pd.DataFrame | None:
    """Of the experiment that the pictures come from, if it lies beside them."""
    path = results / f"{key.source.get('experiment', '')}.parquet"
    return read_table(path) if path.is_file() else None


def in_parts(ratings: pd.DataFrame, key: Key, table: pd.DataFrame | None) -> list[pd.DataFrame]:
    """The parts of the table, with what `value` is: "rater" (share of attention checks failed; n: answers), "agreement"
    (alpha; name: level; n: tasks), "preference" (probability to be preferred to gen0 or else to the first arm, which
    comes first; n: comparisons) and "correlation" (rho, turned; name: metric; n: arms)."""
    raters = check_raters(ratings, len(key.tasks))
    kept = ratings[ratings.rater.isin(raters.index[raters.note == ""])]
    found = preferences(kept, sorted(key.arms, key=lambda arm: arm != "gen0"))
    raters["note"] = raters.note.where(raters.note != "", raters.answers.map(str) + f" of {len(key.tasks)} answered")
    raters["name"] = [f"rater {i}" for i in range(1, len(raters) + 1)]
    parts = {
        "rater": raters.rename(columns={"failed": "value", "answers": "n"}),
        "agreement": agreement(kept).rename(columns={"alpha": "value", "level": "name", "tasks": "n"}),
        "preference": found.rename(columns={"probability": "value", "arm": "name"}),
    }
    if table is not None:
        rho = correlations(found, table, key.source)
        parts["correlation"] = rho.rename(columns={"rho": "value", "metric": "name"})
    return [frame.assign(part=name) for name, frame in parts.items()]


def say(frame: pd.DataFrame) -> str:
    """What write_human found, as Markdown."""
    raters = frame[frame.part == "rater"]
    out = [w for w in raters.note if w.startswith("left out")]
    if raters.empty:
        power = frame[(frame.part == "plan") & (frame["name"] == "70%")]
        enough = power.n[power.value >= 0.8].min()
        many = f"{enough:g} raters" if enough == enough else f"more than {power.n.max()} raters"
        return (
            "**No ratings.** Nobody was asked, so nothing is said of what people see. `make rate` writes a page for "
            f"raters; with {power.note.iloc[0]}, {many} see a preference of 70% in four of five studies."
        )
    lines = [f"**{len(raters) - len(out)} of {len(raters)} raters count.** " + "; ".join(out)]
    for question in QUESTIONS:
        own = frame[frame.question == question]
        alpha = next(own[(own.part == "agreement") & (own["name"] == "ordinal")].itertuples())
        first, *arms = own[own.part == "preference"].itertuples()
        text = f"- *{question}*: alpha {_with_interval(alpha)}; preferred to {first.name}: "
        text += ", ".join(f"{arm.name} {_with_interval(arm)}" for arm in arms)
        asked = own[own.part == "correlation"]
        best = asked[asked.value.notna()]
        if len(best):
            named = (f"{m.name} ({m.space}) rho {m.value:.2f}, p {m.p:.2f}" for m in best.head(3).itertuples())
            text += f"; nearest of {len(best)} metrics, p not corrected for their number: {', '.join(named)}"
            if (ties := int((best.value.abs() >= best.value.abs().max()).sum())) > 3:
                text += f" ({ties} are as near)"
        elif len(asked):
            text += f"; no metric can be compared ({asked.note.iloc[0]})"
        lines.append(text)
    return "\n".join(lines)


def _with_interval(row) -> str:
    if math.isnan(row.value):
        return f"not known ({row.note})"
    return f"{row.value:.2f}" + ("" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]")
