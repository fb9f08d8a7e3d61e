"""`make verify`: the numbers of a folder of results, computed again from what is shipped, on this machine's CPU.

a  aggregates, intervals and verdicts from the rows, and what figures say that they were drawn from
b  rows of generation 0 from their recipe: the base models make the measured samples again
c  rows of the last generation from what was kept of a few measured sets (see kept.py), without any model of a chain
d  rows of generation 1 of a few chains, which are run again

A study is made on GPUs in bfloat16 and checked here in float32: (b) to (d) agree within RULES, not to the last digit.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy import stats as scipy_stats

from mmcollapse import alarms, claims, gates, kept, robustness, verdicts
from mmcollapse.claims import CLONE, Contrast, Correlation, Endpoint
from mmcollapse.digests import digest_of
from mmcollapse.earlier import semantics
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS, listed, seeds_of
from mmcollapse.figures.house import selected
from mmcollapse.protocol import MODALITY, ROLES, Member, Protocol, of_json
from mmcollapse.settings import ROOT, Settings
from mmcollapse.table import KEY, check_complete, is_member, is_student, read_table

PARTS = {
    "a": "aggregates, intervals and verdicts from the rows",
    "b": "rows of generation 0 from their recipe",
    "c": "rows of the last generation from what was kept of measured sets",
    "d": "rows of generation 1 from chains that are run again",
}
AGAIN = ("01_variance", ("recursive",))  # the chains of (d), first seed each, one for each role
SPREAD = 3.0  # standard deviations between the other seeds that a chain of (d) may be off
MOST = 40  # mismatches that are listed


# ---- what may differ


ROUNDED = 2.0**-20  # relative: tables hold 20 bits of a value (see table.rounded)
AGGREGATE = 1e-9  # relative: the same numbers of the same rows, in another order of adding


@dataclass(frozen=True)
class Limit:
    """What a recomputed value of n samples may be off: share / sqrt(n) + samples / n + relative |value| + absolute, and
    what the rounding of tables takes."""

    share: float = 0.0
    samples: float = 0.0
    relative: float = 0.0
    absolute: float = 1e-9

    def of(self, value: float, n: int) -> float:
        """What a value of n samples may be off."""
        n = max(1, n)
        return self.share / math.sqrt(n) + self.samples / n + (self.relative + ROUNDED) * abs(value) + self.absolute


@dataclass(frozen=True)
class Rule:
    """For metrics, by how their name begins, what may differ from a row that was made on a GPU (or in bfloat16), from
    one that was made on a CPU in float32, and when it is computed from what was kept; and why."""

    metrics: tuple[str, ...]
    gpu: Limit
    cpu: Limit
    kept: Limit
    why: str


EXACT = Limit()
# The first that fits. GPUs are allowed two to three times what generation 0 of a preview (made in bfloat16 on an H200,
# 1,000 pictures and 500 captions) was found to be off in float32 on a CPU: the largest, which is told in brackets.
RULES = (
    Rule(
        ("all_right", "two_right", "right_", "abstains", "unreadable", "tail_coverage"),
        gpu=Limit(share=0.25),
        cpu=Limit(samples=1),
        kept=EXACT,
        why="rounding turns some samples, either way (.004): a net that falls with sqrt(n), .006 of 2,000 and .011 of "
        "500; another CPU turns one; what was read is kept as it was",
    ),
    Rule(
        ("precision", "recall", "coverage", "density"),
        gpu=Limit(share=0.4, relative=0.02),
        cpu=Limit(samples=2),
        kept=Limit(samples=2, absolute=0.005),
        why="shares of samples within a distance: rounding moves those that lie at its end (.007; density .015 of it)",
    ),
    Rule(
        ("nuisance_ratio_",),
        gpu=Limit(relative=0.05),
        cpu=Limit(relative=1e-3),
        kept=Limit(relative=0.01),
        why="variances of what the oracle read in a few pictures a prompt (.021 of it); float16 rounds by .02 pixels",
    ),
    Rule(
        ("nuisance_ratio",),
        gpu=Limit(relative=0.01),
        cpu=Limit(relative=1e-3),
        kept=Limit(relative=0.01),
        why="the geometric mean of five of them (.0003 of it)",
    ),
    Rule(
        ("kid",),
        gpu=Limit(relative=0.02, absolute=1e-3),
        cpu=Limit(relative=1e-3, absolute=1e-4),
        kept=Limit(relative=5e-3, absolute=1e-3),
        why="a difference of large means, which may be near 0 (.0001); cubes triple a rounding",
    ),
    Rule(
        ("clip_score",),
        gpu=Limit(absolute=0.15),
        cpu=Limit(absolute=0.01),
        kept=Limit(absolute=0.1),
        why="a hundred times a mean of cosines (.04)",
    ),
    Rule(
        ("P", "W", "RMG", "L2M"),
        gpu=Limit(absolute=0.002),
        cpu=Limit(absolute=1e-4),
        kept=Limit(absolute=1e-3),
        why="means of cosines and of vectors of length 1 (.0006)",
    ),
    Rule(
        ("bleu4", "cider", "rouge_l", "self_bleu", "distinct"),
        gpu=Limit(relative=0.06, absolute=1e-3),
        cpu=Limit(samples=1, relative=1e-3),
        kept=EXACT,
        why="some captions in a hundred get another word (CIDEr .028 of it, others .016); texts are kept as they were",
    ),
    Rule(
        ("vocabulary",),
        gpu=Limit(absolute=3),
        cpu=Limit(absolute=1),
        kept=EXACT,
        why="a count of words, of which the rarest come and go (1)",
    ),
    Rule(
        ("fid",),
        gpu=Limit(relative=0.05),
        cpu=Limit(relative=1e-3),
        kept=Limit(relative=2e-3),
        why="a small difference of large traces (.020 of it, of 2,000 pictures made on an H100)",
    ),
    Rule(("sampling_floor",), gpu=EXACT, cpu=EXACT, kept=EXACT, why="arithmetic"),
    Rule(
        ("",),
        gpu=Limit(relative=0.02),
        cpu=Limit(relative=1e-3),
        kept=Limit(relative=2e-3),
        why="variances, distances, entropies, lengths and perplexity: smooth in samples of which few change (spectrum "
        ".010 of it); float16 has 11 bits",
    ),
)
UNEQUAL_N = ("nuisance_ratio", "cell_entropy")  # whose n is what the oracle could read


def rule_of(metric: str) -> Rule:
    """The first rule that fits a metric."""
    return next(rule for rule in RULES if metric.startswith(rule.metrics))


# ---- what is found


@dataclass
class Mismatch:
    """A number that came out otherwise than it was shipped."""

    part: str
    what: str
    shipped: object
    recomputed: object
    allowed: object
    more: int = 0  # further rows of the same value: arms and seeds share generation 0

    def __str__(self) -> str:
        told = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in (self.shipped, self.recomputed, self.allowed)]
        more = f" (and {self.more} more rows of that value)" if self.more else ""
        return f"({self.part}) {self.what}: shipped {told[0]}, recomputed {told[1]}, allowed {told[2]}{more}"


@dataclass
class Results:
    """A folder of results under check. checked: of each part and experiment which rows (by number) were recomputed."""

    settings: Settings
    tables: dict[str, pd.DataFrame]
    records: dict[str, dict]  # provenance
    checked: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    mismatches: list[Mismatch] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    folder = property(lambda self: self.settings.results_folder)

    def say(self, text: str):
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)

    def wrong(self, part: str, what: str, shipped, recomputed, allowed="equal"):
        self.mismatches.append(Mismatch(part, what, shipped, recomputed, allowed))

    def mark(self, part: str, name: str, rows: pd.Index):
        table = self.tables[name]
        self.checked.setdefault(part, {}).setdefault(name, np.zeros(len(table), bool))[
            table.index.get_indexer(rows)
        ] = 1

    def on_cpu(self, name: str) -> bool:
        record = self.records[name]
        devices = {made.get("device") for made in (record, *record.get("runs", ()))}
        return devices == {"cpu"} and record["settings"].get("dtype") == "float32"

    def compare(self, part: str, name: str, rows: pd.DataFrame, found: Iterable[dict], limit: Callable) -> int:
        """Compare rows of a table with those found again, by modality and what was measured how; returns how many.
        limit(row): what may differ, or None where that cannot be said."""
        keys = ["modality", "measurement", "subset", "metric", "space"]
        again = {tuple(r[k] for k in keys): {"missing": ""} | r for r in found}
        done, seen = [], {}
        for row in rows.itertuples():
            key = tuple(getattr(row, k) for k in keys)
            own = again.get(key)
            allowed = None if own is None else limit(row)
            if allowed is None:
                continue
            done.append(row.Index)
            if bool(row.missing) != bool(own["missing"]):
                told = (_named(row), row.missing or row.value, own["missing"] or own["value"])
            elif not row.missing and not abs(row.value - own["value"]) <= allowed:
                told = (_named(row), row.value, own["value"], allowed)
            elif row.n != own["n"] and not row.metric.startswith(UNEQUAL_N):
                told = (f"n of {_named(row)}", row.n, own["n"])
            else:
                continue
            if (key, told[1]) in seen:
                seen[key, told[1]].more += 1
            else:
                self.wrong(part, *told)
                seen[key, told[1]] = self.mismatches[-1]
        self.mark(part, name, pd.Index(done))
        return len(done)


def _named(row) -> str:
    return ", ".join(f"{k} {getattr(row, k)}" for k in KEY if getattr(row, k) not in ("",))


def verify(
    settings: Settings, parts: Sequence[str] = tuple(PARTS), every: bool = False, only: str | None = None
) -> int:
    """Check the results of a profile and print what was found: 0, or 1 if anything does not match.

    every: in (b) all base models, decodings and subsets, and the references of the world too. only: one experiment.
    MMCollapseError: a part that does not exist, no table, or one without provenance."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise MMCollapseError(f"parts={','.join(parts)!r}: {unknown[0]!r} is none of {', '.join(PARTS)}")
    results = open_results(settings, only)
    if set(parts) - {"a"}:
        _quiet()
    with tempfile.TemporaryDirectory() as place:
        for part in parts:
            results.say(f"({part}) {PARTS[part]}")
            if part == "a":
                aggregates(results)
            elif part == "b":
                generation_0(results, Path(place), every)
            elif part == "c":
                from_kept(results, Path(place))
            else:
                generation_1(results, Path(place))
    print("\n".join(["", *_summary(results, parts), "", *_mismatches(results)]), flush=True)
    return 1 if results.mismatches else 0


def _quiet():
    """No bars of what is loaded between the lines that are printed."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def open_results(settings: Settings, only: str | None = None) -> Results:
    """The tables of a folder and their provenance. MMCollapseError: there is none, or one cannot be read."""
    tables, records = {}, {}
    for name, arms in EXPERIMENTS.items():
        path = settings.results_folder / f"{name}.parquet"
        if arms is None or only not in (None, name) or not path.is_file():
            continue
        tables[name] = read_table(path)
        try:
            records[name] = json.loads(path.with_suffix(".json").read_text())
        except (OSError, ValueError) as error:
            raise MMCollapseError(f"{path} has no provenance that can be read beside it: {error}") from error
    if not tables:
        raise MMCollapseError(
            f"no result table in {settings.results_folder}: run the experiments first (make reproduce)"
        )
    return Results(settings, tables, records)


# ---- a: from the rows


def aggregates(results: Results):
    """Part (a): everything that follows from the rows alone."""
    for name, table in results.tables.items():
        check_table(results, name, table)
        check_switches(results, name, table)
    check_digests(results)
    check_verdicts(results)
    check_correlations(results)
    check_figures(results)


def check_table(results: Results, name: str, table: pd.DataFrame):
    """Keys, claims, arithmetic, and whether chains are whole. A chain that is not there at all is no mismatch: a study
    is run in pieces."""
    record = results.records[name]
    if twice := int(table.duplicated(KEY).sum()):
        results.wrong("a", f"{name}: {_named(table[table.duplicated(KEY)].iloc[0])}", f"{twice + 1} rows", "1 row")
    frozen, hashes = claims.freezing(), set(table.claims)
    known = claims.frozen_digests()
    if preview := hashes & {""}:
        results.say(f"    {name}: {verdicts.PREVIEW}")
    elif not frozen:
        results.say(f"    {name}: the claims were not frozen")
    if other := hashes - known - preview:
        results.wrong("a", f"{name}: hash of the claims file in the rows", ", ".join(other), ", ".join(sorted(known)))
    floor = table[table.metric == "sampling_floor"]
    bad = floor[~np.isclose(floor.value, (1 - 1 / floor.n) ** floor.generation, rtol=ROUNDED)]
    for row in bad.itertuples():
        results.wrong("a", _named(row), row.value, (1 - 1 / row.n) ** row.generation, ROUNDED)
    results.mark("a", name, floor.index)
    absent, recipe = [], _recipe(record, ROOT)
    for p in protocols_of(record):
        try:
            seeds = seeds_of(name, p, recipe)
        except KeyError:  # an arm that is no longer in the grid
            seeds = sorted(set(table.seed[table.arm == p.arm]))
        for modality in p.modalities:
            rows = table[(table.arm == p.arm) & (table.modality == modality)]
            ended = {k for k in seeds if any(t.startswith(f"{p.name} seed {k}:") for t in record.get("failures", ()))}
            there = [k for k in seeds if k in set(rows.seed) - ended]
            absent += [f"{p.name} seed {k}" for k in seeds if k not in there]
            try:
                check_complete(rows, [(modality, p.arm)], there, recipe.generations)
            except MMCollapseError as error:
                results.wrong("a", f"{name}: {error}", "rows are missing", "whole chains")
    if absent := list(dict.fromkeys(absent)):
        results.say(f"    {name}: {len(absent)} chains are not there yet, the first {absent[0]}")


def check_switches(results: Results, name: str, table: pd.DataFrame):
    """Remedies that wait for alarms came in the generation after the first of these, which follows from the rows."""
    planned = results.records[name]["settings"]["generations"]
    for p in protocols_of(results.records[name]):
        if not (p.switch and isinstance(p.switch, tuple)):
            continue
        sounds = alarms.sounded(table[table.arm == p.arm], planned, alarms.thresholds(table, planned))
        sounds = sounds[sounds.alarm.isin(p.switch)].groupby("seed").generation.min() + 1
        switched = table[(table.arm == p.arm) & (table.metric == "switched") & table.modality.isin(p.modalities)]
        for seed, since in switched.groupby("seed").value.min().items():
            due = sounds.get(seed, math.nan)
            due = due if due <= planned else math.nan  # in the last generation it is too late
            if not (since == due or math.isnan(since) and math.isnan(due)):
                results.wrong(
                    "a", f"{name}: {p.name} seed {seed}: the generation since which its remedy holds", since, due
                )
        results.mark("a", name, switched.index)


def check_digests(results: Results):
    """Every table against the digest and the number of rows in its provenance; kept sets against theirs."""
    for path in sorted(results.folder.glob("*.json")):
        record, table = json.loads(path.read_text()), path.with_suffix(".parquet")
        if "table" not in record or not table.is_file():
            continue
        frame = pd.read_parquet(table)
        digest = digest_of(frame.astype(object).where(frame.notna(), None).values.tolist())
        if (digest, len(frame)) != (record["table"], record["rows"]):
            found = [f"digest {d[:12]}, {n} rows" for d, n in ((record["table"], record["rows"]), (digest, len(frame)))]
            results.wrong("a", f"{table.name} is not what its provenance {path.name} tells of", *found)
    for name, record in results.records.items():
        path = kept.path_of(results.folder, name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        if digest != record.get("kept", ""):
            results.wrong("a", f"{path} is not what {name}.json tells of", record.get("kept", "")[:12], digest[:12])


def check_verdicts(results: Results):
    """07_claims.parquet: every cell from the rows by the code that made it; and of every contrast effect and interval
    in a few lines of their own (see by_hand). Says of each which rows it came from."""
    path = results.folder / "07_claims.parquet"
    if not path.is_file():
        results.say(f"    no verdicts at {path}: none is checked")
        return
    frame = pd.read_parquet(path)
    profile = next(iter(results.records.values()))["settings"]["profile"]
    if others := sorted(set(frame.profile) - {profile}):
        results.say(f"    verdicts of {', '.join(others)} are checked with their own tables (PROFILE=...)")
    frame = frame[frame.profile == profile].reset_index(drop=True)
    tables, _ = verdicts.read_results(results.folder)  # all, whatever is looked at here
    again = verdicts.verdicts(tables, gates.read_gates(results.folder)).assign(profile=profile)
    again = again.assign(claims=claims.claims_digest())[verdicts.COLUMNS]
    _cells(results, "07_claims", frame, again, ["claim", "contrast"])
    for claim in claims.all_claims():
        for part in claim.contrasts:
            _check_part(results, claim, part, tables, frame)


def _check_part(results: Results, claim: claims.Claim, part: Contrast | Correlation, tables, frame: pd.DataFrame):
    if isinstance(part, Correlation):
        shown = frame[(frame.claim == claim.id) & (frame.contrast == part.name) & frame.effect.notna()]
        for end in (part.endpoint, part.outcome) if len(shown) else ():
            told = f"experiment in ({', '.join(claim.experiments)}) {_of_sets_or_students(end)}"
            results.say(f"    {claim.id}, {part.name}: {shown.verdict.iloc[0]}; rows: {told}")
        for name in results.tables.keys() & set(claim.experiments) if len(shown) else ():
            for end in (part.endpoint, part.outcome):
                results.mark("a", name, of_endpoint(results.tables[name], end).index)
        return
    if (table := tables.get(name := claim.experiments[0])) is None:
        return
    contrast, _ = claims.resolve(part, table)
    if contrast is None:
        return
    shown = frame[(frame.claim == claim.id) & (frame.contrast == contrast.name) & frame.effect.notna()]
    if shown.empty:
        return
    planned, row = int(table.generation.max()), shown.iloc[0]
    rows = rows_of(table, contrast, planned)
    if name in results.tables:
        results.mark("a", name, rows.index)
    if contrast.part == "primary":
        results.say(f"    {claim.id}, {contrast.name}: {row.verdict}; {named_rows(name, contrast, rows)}")
    for what, value in zip(("effect", "low", "high"), by_hand(rows, contrast, planned), strict=True):
        if not _close(row[what], value):
            results.wrong("a", f"{claim.id}, {contrast.name}: {what}, by hand", row[what], value, AGGREGATE)


def named_rows(experiment: str, part: Contrast | Correlation, rows: pd.DataFrame) -> str:
    """The rows of one experiment that a contrast or correlation is computed from, in words."""
    if isinstance(part, Contrast):
        arms = ", ".join(dict.fromkeys(t.arm for t in part.terms))
        told = [f"rows: experiment={experiment} arm in ({arms})", *_ends(part.endpoint)]
    else:
        told = [f"rows: experiment={experiment} {rows.arm.nunique()} arms", _of_sets_or_students(part.endpoint), "and"]
        told += [_of_sets_or_students(part.outcome)]
    told += [f"generation {rows.generation.min()}-{rows.generation.max()}"]
    return " ".join([*told, f"seed {rows.seed.min()}-{rows.seed.max()}: {len(rows)} rows"])


def _ends(e: Endpoint) -> list[str]:
    names = ("modality", "metric", "measurement", "subset", "space")
    return [f'{k}="{v}"' if " " in (v := getattr(e, k)) else f"{k}={v}" for k in names]


def _of_sets_or_students(e: Endpoint) -> str:
    return " ".join([f"model {'set' if e.models == 'set' else 'student 0, ...'}", *_ends(e)])


def spans(planned: int) -> dict[str, list[int]]:
    """The generations of each summary, as they were preregistered: late is the last third, at most three."""
    late = min(3, -(-planned // 3))
    return {"late": [*range(planned - late + 1, planned + 1)], "auc": [*range(1, planned + 1)], "start": [0]}


def rows_of(table: pd.DataFrame, c: Contrast, planned: int) -> pd.DataFrame:
    """The rows of a table that a contrast is computed from."""
    rows, over = of_endpoint(table, c.endpoint), spans(planned)
    used = pd.Series(False, rows.index)
    for term in c.terms:
        used |= (rows.arm == term.arm) & rows.generation.isin(over[term.at])
    return rows[used]


def of_endpoint(table: pd.DataFrame, e: Endpoint) -> pd.DataFrame:
    """The rows of a table that an endpoint may be computed from."""
    rows = table[table.metric == e.metric]
    for name in ("modality", "measurement", "subset", "space"):
        rows = rows[rows[name] == getattr(e, name)]
    kinds = {"set": rows.model == "set", "students": is_student(rows.model)}
    return rows[kinds.get(e.models, is_member(rows.model))]


def by_hand(rows: pd.DataFrame, c: Contrast, planned: int) -> tuple[float, float, float]:
    """(effect, low, high) of a contrast, from its rows, by NumPy and SciPy alone: a second way to the same numbers."""
    over, total = spans(planned), []
    for term in c.terms:
        own = rows[(rows.arm == term.arm) & rows.generation.isin(over[term.at])]
        chains = own.groupby(["model", "seed"]).agg(value=("value", "mean"), n=("n", "min")).reset_index()
        x = chains.value
        if c.endpoint.scale == "log":
            x = np.log(x)
        elif c.endpoint.scale == "logit":
            x = np.clip(x, 0.5 / chains.n, 1 - 0.5 / chains.n)
            x = np.log(x / (1 - x))
        who = chains.model.str.replace(CLONE, "", regex=True) if c.endpoint.models == "matched" else "any"
        total.append(term.weight * chains.assign(x=x, who=who).pivot_table(index="seed", columns="who", values="x"))
    both = sorted(set.intersection(*(set(wide.columns) for wide in total)))
    d = (
        sum(wide[both].mean(axis=1, skipna=False) for wide in total).dropna().to_numpy()
    )  # a seed that one side lacks has no sum
    if len(d) < 2:
        return float(d.mean()), math.nan, math.nan
    half = scipy_stats.t.ppf(0.975, len(d) - 1) * scipy_stats.sem(d)
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def _cells(results: Results, name: str, shipped: pd.DataFrame, again: pd.DataFrame, key: list[str]):
    """Compare two frames cell by cell; rows are known by `key`."""
    sides = [frame.set_index(key) for frame in (shipped, again)]
    names = [side.index.tolist() for side in sides]
    if names[0] != names[1]:
        apart = [[n for n in one if n not in other][:3] for one, other in (names, names[::-1])]
        results.wrong("a", f"{name}: its rows", *(told or "in another order" for told in apart))
        return
    for column in sides[0].columns:
        for row, one, other in zip(names[0], *(side[column] for side in sides), strict=True):
            if not _close(one, other):
                results.wrong("a", f"{name}, {', '.join(row)}: {column}", one, other, AGGREGATE)


def _close(one, other) -> bool:
    if pd.isna(one) or pd.isna(other):
        return bool(pd.isna(one) and pd.isna(other))
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=AGGREGATE, abs_tol=1e-12)


def check_correlations(results: Results):
    """05_quality_robustness.parquet from the rows of training sets and students."""
    path = results.folder / "05_quality_robustness.parquet"
    if not path.is_file():
        results.say(f"    no correlations at {path}: none is checked")
        return
    tables = robustness.read_tables(results.folder)
    frames = [robustness.correlate(tables, modality) for modality in robustness.modalities(tables)]
    key = ["modality", "metric", "space"]
    sides = [
        f.sort_values(key, ignore_index=True) for f in (pd.read_parquet(path), pd.concat(frames, ignore_index=True))
    ]
    _cells(results, "05_quality_robustness", *sides, key)
    for name, table in results.tables.items():
        used = (table.model == "set") | (is_student(table.model) & (table.metric == "all_right"))
        results.mark("a", name, table.index[used])


def check_figures(results: Results):
    """Every figure's sidecar: the files that it names are as they were, and hold the rows that it names."""
    places = sorted(results.settings.figures_folder.glob("*.json"))
    if not places:
        results.say(f"    no figures in {results.settings.figures_folder}: none is checked")
    frames: dict[tuple, pd.DataFrame] = {}
    for about in places:
        try:
            record = json.loads(about.read_text())
            sources, filters = record["sources"], record["rows"]
        except (ValueError, KeyError, TypeError) as error:
            results.wrong("a", f"figure {about.name}", "damaged", repr(error))
            continue
        there = []
        for name, sha256 in sources.items():
            place = next((p for p in (results.folder / Path(name).name, ROOT / name) if p.is_file()), None)
            if place is None:
                results.wrong("a", f"figure {about.stem}: {name}", sha256[:12], "not there")
                continue
            there.append(place)
            if (now := hashlib.sha256(place.read_bytes()).hexdigest()) != sha256:
                results.wrong("a", f"figure {about.stem}: digest of {name}", sha256[:12], now[:12])
        for wanted in filters:
            named = wanted.get("experiment", ())  # of several sources these
            own = [place for place in there if place.stem in named] or there
            if own != there:
                wanted = {k: v for k, v in wanted.items() if k != "experiment"}
            found = [] in wanted.values()  # nothing is shown, and nothing named
            for place in own:
                if set(wanted) <= set(pq.read_schema(place).names):
                    key = (place, *sorted(wanted))
                    if key not in frames:
                        frames[key] = pd.read_parquet(place, columns=sorted(wanted))
                    found = found or bool(selected(frames[key], wanted).any())
            if not found:
                results.wrong("a", f"figure {about.stem}: rows {json.dumps(wanted)}", "named", "none there")


# ---- recomputing rows


def protocols_of(record: dict) -> list[Protocol]:
    """The protocols that a provenance names. MMCollapseError: it is of an older version, which told them otherwise."""
    known = {f.name for f in fields(Protocol)}
    try:
        return [of_json({k: v for k, v in told.items() if k in known}) for told in record["protocols"]]
    except (MMCollapseError, KeyError, TypeError) as error:
        raise MMCollapseError(f"the provenance of {record.get('experiment')} is of another version: {error}") from error


def _recipe(record: dict, place: Path) -> Settings:
    """The settings of a provenance, for this CPU and a store in `place`."""
    known = {f.name for f in fields(Settings)}
    told = {k: v for k, v in record["settings"].items() if k in known}
    told |= {k: str(ROOT / told[k]) for k in ("models", "instruments", "data") if told.get(k)}  # absolute ones stay
    own = {"runs": str(place), "results": str(place), "figures": str(place), "device": "cpu", "dtype": "float32"}
    batch = told.get("compute_batch", 64) if record.get("device") == "cpu" else 64  # samples do not depend on it
    return Settings(**told | own | {"compute_batch": batch, "students": 0})


def _same_models(results: Results, part: str, name: str, digests: dict[str, str]) -> bool:
    """Whether models and instruments here are those of the provenance; those that are not are mismatches."""
    told = results.records[name]["models"]
    other = {k: d for k, d in digests.items() if told.get(k, d) != d}
    for model, digest in other.items():
        results.wrong(part, f"{name}: digest of {model}", told[model][:12], digest[:12])
    if (made := results.records[name].get("semantics")) != semantics():
        now = semantics()
        changed = [k for k in now if (made or {}).get(k) != now[k]]
        results.say(f"    {name} was made when the code meant something else by: {', '.join(changed)}")
    return not other


def _open(results: Results, part: str, name: str, settings: Settings, protocols: Sequence[Protocol] = ()):
    """(Study, Instruments), or None if they are not those that made the table."""
    from mmcollapse.experiment import open_study

    study, tools = open_study(settings, protocols)
    models = {model: m.base.digest for model, m in study.models.items()}
    return (study, tools) if _same_models(results, part, name, models | tools.digests) else None


def generation_0(results: Results, place: Path, every: bool):
    """Rows of generation 0 of all arms and seeds, which do not depend on them: default models at guidance 1, sampled
    and greedy; every: all models, decodings and subsets, and the world."""
    from mmcollapse.measure import measure_member, measure_world

    left = (
        "all models and subsets" if every else "the default models, guidance 1, sampled and greedy, test prompts alone"
    )
    results.say(f"    {left}" + ("" if every else "; EVERY=yes recomputes the rest"))
    for name, table in results.tables.items():
        record = results.records[name]
        settings = replace(_recipe(record, place), **({} if every else {"measure": "brief"}))
        zoo = {role: tuple(listed(settings, f"{role}s")) for role in ROLES}
        start = table[(table.generation == 0) & (table.seed >= 0) & ~is_student(table.model)]
        base = start.model.str.replace(CLONE, "", regex=True)
        asked = [Member(role, zoo[role][0]) for role in ROLES]
        if every:
            asked += [m for p in protocols_of(record) for m in p.members(zoo) if not m.copy]
        asked = [m for m in dict.fromkeys(asked) if (base == m.label).any()]
        for member in [m for m in asked if not settings.model_folder(m.model).is_dir()]:
            results.say(f"    {name}: {member.label} is not here, so its rows are not recomputed")
            asked.remove(member)
        opened = _open(
            results, "b", name, settings, [Protocol("gen0", (m.role,), population=(m.model,)) for m in asked]
        )
        if opened is None:
            continue
        study, tools = opened
        for member in asked:
            protocol = Protocol("gen0", (member.role,), population=(member.model,))
            weights = study.models[member.model].base
            found = measure_member(study, tools, protocol, member, weights, settings.first_seed, 0)
            rows = start[(base == member.label) & (start.modality == MODALITY[member.role])]
            rows = rows[(rows.subset != "train") | (rows.seed == settings.first_seed)]  # a chain's own prompts
            count = results.compare("b", name, rows, found, _limit(results, name))
            results.say(f"    {name}: {member.label}: {count} rows")
        if every:
            found = measure_world(study, tools)
            for arm, seed in sorted({(r["arm"], r["seed"]) for r in found}):
                rows = table[(table.arm == arm) & (table.seed == seed)]
                again = [r for r in found if (r["arm"], r["seed"]) == (arm, seed)]
                results.compare("b", name, rows, again, _limit(results, name))
            results.say(f"    {name}: world and autoencoder")


def _limit(results: Results, name: str) -> Callable:
    kind = "cpu" if results.on_cpu(name) else "gpu"
    return lambda row: getattr(rule_of(row.metric), kind).of(row.value, row.n)


def from_kept(results: Results, place: Path):
    """Rows of the measured sets that were kept, of every arm that has them."""
    there = {name: path for name in results.tables if (path := kept.path_of(results.folder, name)).is_file()}
    if not there:
        results.say(f"    nothing was kept in {results.folder / 'kept'}: no row is checked")
    for name, path in there.items():
        sets = kept.read(path)
        settings = _recipe(results.records[name], place)
        study, tools = _instruments(settings)
        if not _same_models(results, "c", name, tools.digests):
            continue
        for one in sets:
            found, count = _scores(study, tools, one), 0
            for other, table in results.tables.items():
                rows = table[(table.hash == one.hash) & (table.measurement == one.measurement)]
                count += results.compare("c", other, rows, found, lambda r: rule_of(r.metric).kept.of(r.value, r.n))
            if not count:
                results.wrong("c", f"{path.name}: kept set {one.hash}", "kept", "no row of any table")
            results.say(f"    {name}: {one.hash}, {one.measurement}: {count} rows")


def _instruments(settings: Settings):
    """(Study, Instruments) without any model of a chain."""
    from mmcollapse.loop import Study
    from mmcollapse.measure import open_instruments
    from mmcollapse.models.oracle import Oracle
    from mmcollapse.store import Store
    from mmcollapse.worlds import open_world

    photos = settings.data_folder if settings.data else None
    world = open_world(settings.world, photos, settings.image_size, settings.layout, settings.on_bad)
    store = Store(settings.runs_folder)
    study = Study(settings, store, world, {}, {}, "cpu", Oracle(settings.models_folder / "oracle"))
    return study, open_instruments(study, "cpu")


def _scores(study, tools, one: kept.Kept) -> list[dict]:
    """Rows of a kept set, by the functions that measured it."""
    from mmcollapse import measure

    part, s = measure.Rows(one.measurement, "test", one.hash), study.settings
    if one.captions is not None:
        real = tools.sample("test", s.captions)
        seen = {name: space.images(real.images) for name, space in tools.reading.items()}
        modality = "text"
        scores = measure.captions_found(study, tools, seen, one.captions, real.captions, real.scenes)
    else:
        scenes = [scene for scene in tools.prompts.scenes for _ in range(s.noises)]
        asked = [five[0] for five in tools.prompts.captions for _ in range(s.noises)]
        # an oracle that has read the pictures already
        reader = SimpleNamespace(oracle=SimpleNamespace(read=lambda _: one.reading), real_nuisance=tools.real_nuisance)
        modality = "image"
        scores = {"oracle": measure._picture_truth(study, reader, None, scenes, s.noises, True)}
        scores[kept.SPACE] = measure._picture_features(tools, kept.SPACE, one.features, s.noises)
        read = tools.spaces[kept.SPACE].texts(asked)
        scores[kept.SPACE] |= measure.alignment_scores(one.features, read)
    for space, found in scores.items():
        part.add(space, found)
    return [row | {"modality": modality} for row in part.rows]


def generation_1(results: Results, place: Path):
    """Generations 0 and 1 of AGAIN once more, by the recipe of the table. A chain that was made on a CPU comes out the
    same within RULES; one that was made on a GPU may be off by SPREAD standard deviations between the other seeds (this
    one's own value is what is tested), and by what RULES allow."""
    from mmcollapse.experiment import measure_generation
    from mmcollapse.loop import run_chain

    name, arms = AGAIN
    if name not in results.tables:
        results.say(f"    no table of {name}: no chain is run again")
        return
    table, record = results.tables[name], results.records[name]
    settings = replace(_recipe(record, place), generations=1, measure="brief")
    seed = settings.first_seed
    for told in [p for p in protocols_of(record) if p.arm in arms]:
        p = replace(told, measured_drift=())
        first = table[(table.arm == p.arm) & table.modality.isin(p.modalities) & (table.generation == 1)]
        rows = first[(first.seed == seed) & ~is_student(first.model)]
        if rows.empty:
            results.say(f"    {p.name} seed {seed}: not in the table")
            continue
        if (opened := _open(results, "d", name, settings, [p])) is None:
            return
        study, tools = opened
        study.say = lambda chain, g, stage: results.say(f"    {chain}, generation {g}: {stage}")
        found: list[dict] = []

        def measure(weights, g, sets, p=p, study=study, tools=tools, found=found):
            if g == 1:
                found += measure_generation(study, tools, p, weights, g, sets, seed)

        run_chain(study, p, seed, measure)
        limit = _limit(results, name) if results.on_cpu(name) else _between(results, name, first, seed)
        count = results.compare("d", name, rows, found, limit)
        why = "" if count else f"; {first.seed.nunique()} seeds tell no spread, and three are needed"
        results.say(f"    {p.name} seed {seed}: {count} rows of generation 1{why}")


def _between(results: Results, name: str, rows: pd.DataFrame, seed: int) -> Callable:
    """The limit from the spread between the seeds other than `seed`; None for fewer than two of them."""
    same = [k for k in KEY if k != "seed"]
    spread = rows[rows.seed != seed].groupby(same).value.std(ddof=1).dropna()
    at_least = _limit(results, name)

    def limit(row):
        sd = spread.get(tuple(getattr(row, k) for k in same))
        return None if sd is None else SPREAD * float(sd) + at_least(row)

    return limit


# ---- in words


def _summary(results: Results, parts: Sequence[str]) -> list[str]:
    """A line an experiment and modality: rows, and how many of them each part recomputed."""
    head = ["experiment", "modality", "rows", *(f"({part})" for part in PARTS), "none"]
    lines = [head]
    for name, table in results.tables.items():
        marks = {p: results.checked.get(p, {}).get(name, np.zeros(len(table), bool)) for p in PARTS}
        for modality in sorted(set(table.modality)):
            here = (table.modality == modality).to_numpy()
            counts = [str(int((marks[p] & here).sum())) if p in parts else "-" for p in PARTS]
            none = int((here & ~np.any(list(marks.values()), axis=0)).sum())
            lines.append([name, modality, str(int(here.sum())), *counts, str(none)])
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = [
        "  ".join(v.ljust(w) if k < 2 else v.rjust(w) for k, (v, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    told = [f"({part}) {PARTS[part]}" for part in PARTS]
    return [*text, *told, "none: not recomputed; (a) compares the digest of every table with its provenance"]


def _mismatches(results: Results) -> list[str]:
    found = results.mismatches
    if not found:
        return ["all that was checked matches"]
    lines = [f"{len(found)} MISMATCH{'ES' * (len(found) > 1)}", *(f"  {one}" for one in found[:MOST])]
    return lines + (["  ..."] if len(found) > MOST else [])
