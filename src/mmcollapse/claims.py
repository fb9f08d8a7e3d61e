"""The claims, as claims.toml sets them down, and what result tables say about them.

Everything is set down there before a study runs: endpoints, contrasts, gates, and the smallest effect of interest S.
Effects are oriented so that the claim predicts more than 0.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from mmcollapse import stats
from mmcollapse.errors import MMCollapseError
from mmcollapse.table import KEY, is_member, is_student

FILE = Path(__file__).with_name("claims.toml")
FROZEN = Path(__file__).with_name("claims.frozen.json")

# What must hold before a verdict counts (gates.py); a claim names those that it rests on.
GATES = {
    "toy": "the same loop on Gaussians loses variance and wanders as theory says",
    "sampling floor": "what drawing N pairs alone loses, beside the tail that is left",
    "dose": "collapse is slower with more pairs",
    "accumulate": "data that accumulate flatten it",
    "learning rate 0": "without learning nothing changes, exactly",
    "round trip": "pictures survive the autoencoder as often as a chain sends them through",
    "shuffled captions": "captions of other pictures ruin alignment",
    "real against real": "intervals between sets of real data hold 0 as often as they say",
    "positive control": "modes that are dropped on purpose are found, and nothing else",
    "power": "the size of effect that 5 and 10 seeds can see",
    "instruments": "judge, second judge and power spectrum tell the same story",
}
# Where this one fails the truth is not known to be otherwise: the verdict is inconclusive, and not void.
DOUBT = "instruments"


@dataclass(frozen=True)
class Endpoint:
    """What is compared, and on which scale (see stats.on_scale). models and better: see claims.toml."""

    modality: str
    metric: str
    measurement: str
    space: str
    scale: str
    subset: str = "test"
    models: str = "one"
    better: str = ""


@dataclass(frozen=True)
class Term:
    """An arm, and how a chain of it becomes one number: "late", "auc" or "start"."""

    arm: str
    at: str = "late"
    weight: float = 1.0


@dataclass(frozen=True)
class Contrast:
    """The weighted sum of `more` minus that of `less`. smallest: S, in the unit of the scale, for rates as a difference
    of rates. rule: see stats.verdict. part: "primary", "secondary" or "exploratory". repeats: of a repeat of a primary
    contrast the name of that, and base: the further base model that it is repeated on."""

    name: str
    endpoint: Endpoint
    more: tuple[Term, ...]
    less: tuple[Term, ...]
    smallest: float
    rule: str = "above"
    part: str = "primary"
    repeats: str = ""
    base: str = ""

    @property
    def terms(self) -> tuple[Term, ...]:
        """All, those of `less` with their weights negative."""
        return (*self.more, *(replace(term, weight=-term.weight) for term in self.less))


@dataclass(frozen=True)
class Correlation:
    """Rank correlation across arms of the quality of a set (predictor) and what fresh base models make of it (outcome),
    see stats.rank_correlation and robustness. arms, seeds: the fewest that allow a verdict."""

    name: str
    endpoint: Endpoint  # the predictor
    outcome: Endpoint
    smallest: float
    arms: int
    seeds: int
    part: str = "primary"
    rule: str = "above"


@dataclass(frozen=True)
class Claim:
    """A claim, which needs every one of its primary contrasts. experiments: those whose tables it is judged from (a
    contrast: from the first); gates: those that it rests on; figure: the one that shows it."""

    id: str
    text: str
    contrasts: tuple[Contrast | Correlation, ...]
    experiments: tuple[str, ...]
    gates: tuple[str, ...] = ()
    figure: str = ""


Tables = Mapping[str, pd.DataFrame]  # result tables by experiment; one table of one or more experiments will do as well

EVERY = "every part"  # the contrast of the row that holds the verdict on the whole claim
UNDEFINED = "undefined there: too little could be read"
COLUMNS = ["claim", "experiment", "contrast", "part", "endpoint", "scale", "at", "over", "models", "S", "rule"]
COLUMNS += ["effect", "low", "high", "seeds", "agree", "p", "p_t", "p_holm", "verdict", "general"]


# ---- the file


def all_claims() -> tuple[Claim, ...]:
    """The claims of claims.toml, in order. MMCollapseError: the file is wrong, or not the one that was frozen."""
    return _all(FILE, FROZEN)


@cache
def _all(path: Path, frozen: Path) -> tuple[Claim, ...]:
    check_frozen(path, frozen)
    return load_claims(path)


def claims_digest() -> str:
    """The first 12 hex digits of sha256 of the claims file: every row of a table carries those of its day."""
    check_frozen(FILE, FROZEN)
    return _digest(FILE)


def frozen_digests() -> set[str]:
    """Digests of the claims file that rows of one study may carry: as it is now, as it was frozen, and as deviations
    have made it since. What was run is the same under all of them; the verdicts are those of the last."""
    record = freezing()
    return {claims_digest(), *(entry["digest"] for entry in ([record, *record["deviations"]] if record else []))}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def freezing(frozen: Path | None = None) -> dict | None:
    """When the claims were frozen: digest, date, commit, and deviations since (date, what, why, digest); or None."""
    path = frozen or FROZEN
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        every = [record, *record.get("deviations", [])]
        if all(type(entry[name]) is str for entry in every for name in ("digest", "date")):
            if all(type(entry[name]) is str for entry in every[1:] for name in ("what", "why")):
                return {"commit": "", "deviations": []} | record
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MMCollapseError(f"{path} is damaged: {error!r}") from error
    raise MMCollapseError(f"{path} is damaged: digest and date, and what and why of deviations, are texts")


def check_frozen(path: Path, frozen: Path):
    """Refuse claims that are neither the frozen ones nor what the last deviation made of them."""
    if (record := freezing(frozen)) is None:
        return
    allowed, now = [record, *record["deviations"]][-1]["digest"], _digest(path)
    if now != allowed:
        raise MMCollapseError(
            f"{path} (digest {now}) is not what was frozen on {record['date']} (digest {allowed}). Put it back (git "
            f"checkout), or make it a deviation that everybody sees: add {{date, what, why, digest: {now}}} to "
            f'"deviations" in {frozen}'
        )


def freeze(path: Path | None = None, frozen: Path | None = None) -> dict:
    """Freeze the claims: write digest, date (UTC) and commit beside them, and return that. MMCollapseError: the file is
    wrong, was frozen before, or has changes that git does not know yet."""
    import subprocess
    from datetime import UTC, datetime

    from mmcollapse.disk import write_whole

    path, frozen = path or FILE, frozen or FROZEN
    load_claims(path)
    if before := freezing(frozen):
        check_frozen(path, frozen)
        raise MMCollapseError(f"the claims were frozen on {before['date']}, and are as they were; nothing to do")

    def git(*args) -> str:
        try:
            found = subprocess.run(["git", *args], cwd=path.parent, capture_output=True, text=True, check=True)
            return found.stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or no repository
            return ""

    if git("status", "--porcelain", "--", path.name):
        raise MMCollapseError(f"commit {path} first, so that the commit that is noted holds what is frozen")
    record = {"digest": _digest(path), "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": git("rev-parse", "HEAD")}
    write_whole(frozen, (json.dumps(record | {"deviations": []}, indent=1) + "\n").encode())
    return record


_MODELS = ("one", "matched", "set", "students")
_PARTS = ("primary", "secondary", "exploratory")
_SUMMARIES = ("late", "auc", "start")
_NUMBER, _TEXTS = (int, float), (str, list)
_HOLDER = re.compile(r"\{([A-Za-z]+)\.(high|mid|low)\}")
# key: (type, default); without a default it must be there
_KEYS = {
    "file": {"endpoint": (dict,), "claim": (list,)},
    "endpoint": {name: (str,) for name in ("modality", "metric", "measurement", "space", "scale")}
    | {"S": (_NUMBER, None), "subset": (str, "test"), "models": (str, "one"), "better": (str, "")},
    "claim": {"id": (str,), "text": (str,), "experiment": (_TEXTS,), "gates": (list,), "figure": (str,)}
    | {"each": (list, None), "repeats": (list, []), "bases": (list, [])}
    | {"contrast": (list, []), "correlation": (list, [])},
    "contrast": {"name": (str,), "endpoint": (_TEXTS,), "more": (list,), "less": (list,), "at": (_TEXTS, "late")}
    | {"S": (_NUMBER, None), "rule": (str, "above"), "part": (str, "primary")},
    "correlation": {"name": (str,), "predictor": (str,), "outcome": (str,), "S": (_NUMBER,), "arms": (int,)}
    | {"seeds": (int,), "part": (str, "primary")},
    "term": {"arm": (str,), "at": (str, None), "weight": (_NUMBER, 1.0)},
}
_CALLED = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}
_CALLED |= {_NUMBER: "a number", _TEXTS: "a text or a list of texts"}


def load_claims(path: Path) -> tuple[Claim, ...]:
    """The claims of a file in the format of claims.toml. MMCollapseError: what is wrong, and where."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MMCollapseError(f"claims file {path} cannot be read: {error}") from error
    try:
        file = _taken(values, "file", "the file")
        endpoints, smallest = {}, {}
        for name, found in file["endpoint"].items():
            told = _taken(found, "endpoint", f"endpoint {name!r}")
            smallest[name] = told.pop("S")
            for key, known in (("scale", stats.SCALES), ("models", _MODELS), ("better", ("", "lower", "higher"))):
                _one_of(told[key], known, key, f"endpoint {name!r}")
            _one_of(told["modality"], ("image", "text"), "modality", f"endpoint {name!r}")
            endpoints[name] = Endpoint(**told)
        claims = [claim for found in file["claim"] for claim in _claims(found, endpoints, smallest)]
        if twice := sorted({c.id for c in claims if [d.id for d in claims].count(c.id) > 1}):
            raise MMCollapseError(f"claim {twice[0]!r} is there twice")
    except MMCollapseError as error:
        raise MMCollapseError(f"claims file {path.name}: {error}") from error
    return tuple(claims)


def _taken(found, kind: str, where: str) -> dict:
    """The values of a table, with defaults, refused by name if a key is unknown or missing or of the wrong type."""
    if not isinstance(found, dict):
        raise MMCollapseError(f"{where} must be a table")
    keys = _KEYS[kind]
    if unknown := [key for key in found if key not in keys]:
        raise MMCollapseError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(keys)}")
    out = {}
    for key, (want, *default) in keys.items():
        if key not in found and not default:
            raise MMCollapseError(f"{where}: the key {key!r} is missing")
        value = found.get(key, *default)
        if key in found:
            right = isinstance(value, want) and not isinstance(value, bool)
            if want is _TEXTS and isinstance(value, list):
                right = bool(value) and all(isinstance(item, str) for item in value)
            if not right:
                raise MMCollapseError(f"{where}: {key}={value!r} must be {_CALLED[want]}")
        out[key] = value
    return out


def _one_of(value: str, known: Iterable[str], what: str, where: str):
    if value not in known:
        raise MMCollapseError(f"{where}: {what} {value!r} is unknown; known are {', '.join(k for k in known if k)}")


def _claims(found, endpoints: dict, smallest: dict) -> list[Claim]:
    """The claim of a table, or one for each of the names in `each`."""
    told = _taken(found, "claim", f"claim {found.get('id', '?')!r}" if isinstance(found, dict) else "a claim")
    where = f"claim {told['id']!r}"
    for gate in told["gates"]:
        _one_of(gate, GATES, "gate", where)
    if not told["contrast"] and not told["correlation"]:
        raise MMCollapseError(f"{where}: it has neither a contrast nor a correlation")
    parts = [part for entry in told["contrast"] for part in _contrasts(entry, endpoints, smallest, where)]
    parts += [_correlation(entry, endpoints, where) for entry in told["correlation"]]
    if not any(part.part == "primary" for part in parts):
        raise MMCollapseError(f"{where}: none of its contrasts is primary")
    for key in ("repeats", "bases"):
        if not all(isinstance(name, str) for name in told[key]):
            raise MMCollapseError(f"{where}: {key}={told[key]!r} must be a list of texts")
        parts += [again for name in told[key] for again in _repeated(parts, name, key == "bases")]
    common = {
        "experiments": tuple(_listed(told["experiment"])),
        "gates": tuple(told["gates"]),
        "figure": told["figure"],
    }
    if told["each"] is None:
        return [Claim(told["id"], told["text"], tuple(parts), **common)]

    def named(text: str, name: str) -> str:
        return text.replace("{each}", name)

    def of(part, name: str):
        sides = {k: tuple(replace(t, arm=named(t.arm, name)) for t in getattr(part, k)) for k in ("more", "less")}
        return replace(part, name=named(part.name, name), repeats=named(part.repeats, name), **sides)

    out = []
    for name in told["each"]:
        if not isinstance(name, str):
            raise MMCollapseError(f"{where}: each={told['each']!r} must be a list of texts")
        every = tuple(of(part, name) for part in parts)
        out.append(Claim(named(told["id"], name), named(told["text"], name), every, **common))
    return out


def _repeated(parts: list, name: str, base: bool) -> list[Contrast]:
    """The primary contrasts once more, as secondary ones, with the arms <arm>-<name>."""

    def of(c: Contrast) -> Contrast:
        sides = {k: tuple(replace(t, arm=f"{t.arm}-{name}") for t in getattr(c, k)) for k in ("more", "less")}
        own = {"part": "secondary", "repeats": c.name, "base": name if base else ""}
        return replace(c, name=f"{name}: {c.name}", **sides, **own)

    return [of(c) for c in parts if isinstance(c, Contrast) and c.part == "primary"]


def _listed(value) -> list:
    return value if isinstance(value, list) else [value]


def _contrasts(found, endpoints: dict, smallest: dict, where: str) -> list[Contrast]:
    """The contrast of a table, or one for each of its endpoints and summaries."""
    told = _taken(found, "contrast", f"a contrast of {where}")
    where = f"{where}, contrast {told['name']!r}"
    _one_of(told["rule"], stats.RULES, "rule", where)
    _one_of(told["part"], _PARTS, "part", where)
    names, summaries, out = _listed(told["endpoint"]), _listed(told["at"]), []
    for name, at in itertools.product(names, summaries):
        _one_of(name, endpoints, "endpoint", where)
        _one_of(at, _SUMMARIES, "summary at =", where)
        least = smallest[name] if told["S"] is None else told["S"]
        if least is None:
            raise MMCollapseError(f"{where}: neither it nor its endpoint {name!r} says what S is")
        if not least > 0:
            raise MMCollapseError(f"{where}: S={least} must be above 0")
        extra = [name] * (len(names) > 1) + [at] * (len(summaries) > 1)
        title = told["name"] + (f": {', '.join(extra)}" if extra else "")
        sides = {side: tuple(_term(term, at, where) for term in told[side]) for side in ("more", "less")}
        if not all(sides.values()):
            raise MMCollapseError(f"{where}: both sides need a term")
        least = float(least)
        out.append(Contrast(title, endpoints[name], **sides, smallest=least, rule=told["rule"], part=told["part"]))
    return out


def _term(found, at: str, where: str) -> Term:
    told = _taken({"arm": found} if isinstance(found, str) else found, "term", f"a term of {where}")
    told["at"] = told["at"] or at
    _one_of(told["at"], _SUMMARIES, "summary at =", where)
    return Term(told["arm"], told["at"], float(told["weight"]))


def _correlation(found, endpoints: dict, where: str) -> Correlation:
    told = _taken(found, "correlation", f"a correlation of {where}")
    where = f"{where}, correlation {told['name']!r}"
    _one_of(told["part"], _PARTS, "part", where)
    for side in ("predictor", "outcome"):
        _one_of(told[side], endpoints, "endpoint", where)
    predictor, outcome = endpoints[told["predictor"]], endpoints[told["outcome"]]
    if predictor.models != "set" or not predictor.better or outcome.models != "students":
        raise MMCollapseError(f"{where}: it needs a predictor of models 'set' that says what is better, and students")
    told["S"] = float(told["S"])
    return Correlation(told["name"], predictor, outcome, *(told[key] for key in ("S", "arms", "seeds", "part")))


# ---- what tables can answer


def by_experiment(tables: Tables | pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Result tables by experiment, of one table or of several."""
    if isinstance(tables, pd.DataFrame):
        tables = {str(name): rows for name, rows in tables.groupby("experiment")}
    return dict(tables)


def of_tables(tables: Tables | pd.DataFrame, claims: Sequence[Claim] | None = None) -> list[Claim]:
    """The claims that are about these experiments: every one that a claim needs is there, of a correlation several."""
    there = set(by_experiment(tables))
    claims = all_claims() if claims is None else claims
    return [c for c in claims if len(there & set(c.experiments)) >= min(2, len(c.experiments))]


def answerable(tables: Tables | pd.DataFrame) -> list[Claim]:
    """The claims whose arms and endpoints are all in the tables: a run of some arms, or in other feature spaces,
    answers some claims."""
    tables = by_experiment(tables)
    return [claim for claim in of_tables(tables) if not lacking(tables, claim)]


def lacking(tables: Tables, claim: Claim) -> str:
    """What the tables lack to answer a claim, in words; "" if they can. The tables of its experiments must be there."""
    for part in claim.contrasts:
        if part.part != "primary":
            continue
        if isinstance(part, Correlation):
            tried = [tables[e] for e in claim.experiments if e in tables]
            sets = [_of_models(_endpoint_rows(table, part.endpoint), "set") for table in tried]
            if all(rows.empty for rows in sets):
                return f"no {part.endpoint.metric} of training sets ({part.endpoint.modality}, {part.endpoint.space})"
            continue
        table = tables[claim.experiments[0]]
        contrast, why = resolve(part, table)
        if contrast is None:
            return why
        rows = _endpoint_rows(table, contrast.endpoint)
        if absent := [t.arm for t in contrast.terms if t.arm not in set(rows.arm)]:
            e = contrast.endpoint
            modal = set(table.arm[table.modality == e.modality])
            if absent[0] not in modal:
                return f"no arm {absent[0]} ({e.modality})"
            return f"no {e.metric} ({e.modality}, {e.measurement}, {e.space}) of arm {absent[0]}"
    return ""


def resolve(contrast: Contrast, table: pd.DataFrame) -> tuple[Contrast | None, str]:
    """The contrast with the numbers of the table in place of {steps.high} and the like, and ""; None, and what is
    missing, if the table has too few numbers."""
    arms = set(table.arm[table.modality == contrast.endpoint.modality])
    found = {}
    for text in (contrast.name, *(t.arm for t in contrast.terms)):
        for knob, which in _HOLDER.findall(text):
            numbers = {m[1] for arm in arms if (m := re.fullmatch(rf"{knob}-(\d+(?:\.\d+)?)", arm))}
            ordered = sorted(numbers, key=float)
            # two ends need two numbers, and a middle lies between them; a largest one alone will do
            needed = {"mid": 3, "low": 2, "high": 1}[which]
            if len(ordered) < needed:
                return None, f"{len(ordered)} arm{'s' * (len(ordered) != 1)} {knob}-<number>, {needed} needed"
            at = {"high": -1, "low": 0, "mid": len(ordered) // 2}[which]
            found["{" + f"{knob}.{which}" + "}"] = ordered[at]

    def filled(text: str) -> str:
        for holder, number in found.items():
            text = text.replace(holder, number)
        return text

    sides = {s: tuple(replace(t, arm=filled(t.arm)) for t in getattr(contrast, s)) for s in ("more", "less")}
    return replace(contrast, name=filled(contrast.name), **sides), ""


# ---- what they say


def conclude(
    tables: Tables | pd.DataFrame, claims: Sequence[Claim] | None = None, generations: int | None = None
) -> pd.DataFrame:
    """What result tables say about `claims` (default: all that are about these experiments): a tidy frame with COLUMNS,
    one row a contrast and after them one row a claim (contrast "every part").

    generations: how many were planned; default: the last generation in the table. effect, low, high and S are on the
    contrast's scale. Seeds that one side lacks altogether are left out (`seeds` says how many remain); a chain that has
    begun but lacks a value stops the verdict, which then says what is missing. Contrasts that are not primary, and
    whose arms are not there, are left out. MMCollapseError: duplicate rows, arms that are missing altogether, a metric
    with no row at all.

    general, of the row of a claim: "yes" if its effects have the same sign on all further base models (see general),
    "no" if one has another, "not tested" if any was not run there.

    p: exact sign flips, of a correlation permutations of arms; p_t: paired t test (see stats.t_p); both two-sided, of
    no difference whatever the rule. p_holm: p_t after Holm over the primary contrasts of the claim, for reading a
    single contrast. The verdict on a claim uses none of them: it needs every primary contrast, and a conjunction of
    tests errs no more often than each (intersection-union).
    """
    tables = by_experiment(tables)
    claims = of_tables(tables) if claims is None else claims
    for table in tables.values():
        _check_rows(table)
    _check_arms(tables, claims)
    out = []
    for claim in claims:
        found = [(part, row) for part in claim.contrasts for row in _judge(tables, claim, part, generations)]
        rows = [row for _, row in found]
        primary = [row for row in rows if row["part"] == "primary"]
        for row, p in zip(primary, stats.holm([row["p_t"] for row in primary]), strict=True):
            row["p_holm"] = p
        whole = {"claim": claim.id, "contrast": EVERY, "part": "primary", "over": rows[0]["over"]}
        whole |= {"experiment": rows[0]["experiment"], "seeds": min(row["seeds"] for row in primary)}
        whole |= {"general": general(claim, {part.name: row for part, row in found})}
        out += [*rows, whole | {"verdict": stats.conjunction([row["verdict"] for row in primary])}]
    frame = pd.DataFrame(out, columns=COLUMNS)
    numbers = dict.fromkeys(("S", "effect", "low", "high", "p", "p_t", "p_holm"), "float64")
    frame["general"] = frame.general.fillna("")
    return frame.astype(numbers | {"seeds": "int64", "agree": "Int64"})


def general(claim: Claim, rows: Mapping[str, Mapping]) -> str:
    """Whether a claim holds beyond the base model that its chains start from: "yes" if every primary contrast has its
    sign on all further base models too, "no" if one has another there, "not tested" if one was not run or cannot be
    read. rows: those of its contrasts, by the name of the contrast. The sign is of what the rule of the contrast asks:
    of the effect, of what is left to a loss of S, of what is left to a change of S."""
    same, again = [], [c for c in claim.contrasts if isinstance(c, Contrast) and c.base]
    for c in again:
        sides = [_side(rows.get(name), c.rule) for name in (c.repeats, c.name)]
        same.append(None if None in sides else sides[0] == sides[1])
    return "no" if False in same else "not tested" if not again or None in same else "yes"


def _side(row: Mapping | None, rule: str) -> bool | None:
    """On which side of the bound of its rule an effect lies; None if there is none."""
    effect, smallest = (row.get("effect", math.nan), row["S"]) if row else (math.nan, math.nan)
    if math.isnan(effect):
        return None
    return {"above": effect > 0, "not below": effect > -smallest, "within": abs(effect) < smallest}[rule]


def _check_rows(table: pd.DataFrame):
    if twice := int(table.duplicated(KEY).sum()):
        first = table[table.duplicated(KEY)].iloc[0]
        named = ", ".join(f"{k} {first[k]}" for k in KEY)
        raise MMCollapseError(f"{twice} duplicate row(s) in the result table, the first: {named}")


def _check_arms(tables: Tables, claims: Sequence[Claim]):
    wanted = {}
    for claim in reversed(claims):
        contrasts = [c for c in claim.contrasts if isinstance(c, Contrast) and c.part == "primary"]
        if contrasts and claim.experiments[0] not in tables:
            raise MMCollapseError(f"claim {claim.id} needs the table of {claim.experiments[0]}")
        for c in contrasts:
            table = tables[claim.experiments[0]]
            contrast, why = resolve(c, table)
            if contrast is None:
                raise MMCollapseError(f"claim {claim.id}, {c.name}: the result table has {why}")
            there = set(table.arm[table.modality == c.endpoint.modality])
            wanted |= {(t.arm, c.endpoint.modality): claim.id for t in contrast.terms if t.arm not in there}
    if wanted:
        named = ", ".join(f"{arm} ({modality}, for {claim})" for (arm, modality), claim in sorted(wanted.items()))
        raise MMCollapseError(f"the result table lacks arm(s): {named}")


def _endpoint_rows(table: pd.DataFrame, e: Endpoint) -> pd.DataFrame:
    return table[
        (table.modality == e.modality)
        & (table.metric == e.metric)
        & (table.measurement == e.measurement)
        & (table.subset == e.subset)
        & (table.space == e.space)
    ]


def _of_models(rows: pd.DataFrame, which: str) -> pd.DataFrame:
    """The rows of the models of a chain, of the "set" that was trained on, or of the "students"."""
    return rows[{"set": rows.model == "set", "students": is_student(rows.model)}.get(which, is_member(rows.model))]


def _rows(table: pd.DataFrame, arm: str, e: Endpoint) -> pd.DataFrame:
    """The rows of an endpoint in an arm; a value that could not be computed says why in `missing`."""
    rows = _of_models(_endpoint_rows(table[table.arm == arm], e), e.models)
    if rows.empty:
        raise MMCollapseError(
            f"the result table has no {e.metric} ({e.modality}, {e.measurement}, {e.subset}, {e.space}) of arm {arm}"
        )
    if e.models == "one" and rows.model.nunique() > 1:
        names = ", ".join(sorted(set(rows.model)))
        raise MMCollapseError(f"arm {arm} has several models ({names}): the endpoint {e.metric} must say which")
    return rows


def _judge(tables: Tables, claim: Claim, part: Contrast | Correlation, generations: int | None) -> list[dict]:
    """The row of a contrast or correlation; none if it is not primary and its arms are not there."""
    e = part.endpoint
    row = {"claim": claim.id, "contrast": part.name, "part": part.part, "rule": part.rule, "p_holm": math.nan}
    row |= {"endpoint": f"{e.metric}, {e.measurement}", "scale": e.scale, "models": ""}
    if isinstance(part, Correlation):
        tables = {name: tables[name] for name in claim.experiments if name in tables}
        return [row | {"experiment": ", ".join(tables)} | _correlate(tables, part)]
    table = tables[claim.experiments[0]]
    contrast, why = resolve(part, table)
    if part.part != "primary":
        there = set(_of_models(_endpoint_rows(table, e), e.models).arm)
        if contrast is None or not {t.arm for t in contrast.terms} <= there:
            return []
    planned = int(table.generation.max()) if generations is None else generations
    at = " and ".join(dict.fromkeys(term.at for term in contrast.terms if term.at != "start")) or "start"
    row |= {"experiment": claim.experiments[0], "contrast": contrast.name, "at": at, "over": _span(planned, at)}
    row |= _contrast(table, contrast, planned)
    if part.part == "exploratory":
        row["verdict"] = "exploratory"
    return [row]


def contrast_row(table: pd.DataFrame, contrast: Contrast, generations: int | None = None) -> dict:
    """What a table says of one contrast: effect, low, high, seeds, S, p and verdict; see conclude."""
    return _contrast(table, contrast, int(table.generation.max()) if generations is None else generations)


CLONE = re.compile(r" clone \d+$")


def _contrast(table: pd.DataFrame, c: Contrast, planned: int) -> dict:
    none = {"S": math.nan, "seeds": 0, "p_t": math.nan}
    sides, gaps, reasons = [], [], []
    for term in c.terms:
        rows, by_model = _rows(table, term.arm, c.endpoint), {}
        for label, own in rows.groupby("model"):
            chains = stats.chain_scalars(own, term.at, planned)
            # a clone counts as the model that it is a clone of
            by_model.setdefault(CLONE.sub("", label) if c.endpoint.models == "matched" else "", []).append(chains)
            reasons += [why or UNDEFINED for why in own.missing[own.value.isna()]]
            named = f"{term.arm} {label}" if rows.model.nunique() > 1 else term.arm
            for seed, missing in chains.missing.items():
                if missing:
                    gaps.append(f"{named} seed {seed} generation {', '.join(map(str, missing))}")
        sides.append(by_model)
    gaps = list(dict.fromkeys(gaps))
    if gaps:
        why = f" ({reasons[0]})" if reasons else ""
        verdict = f"no verdict: {c.endpoint.metric} is missing in {len(gaps)} chain(s), the first {gaps[0]}{why}"
        return none | {"verdict": verdict}
    models = sorted(set.intersection(*(set(side) for side in sides)))
    if not models:
        return none | {"verdict": f"no verdict: the arms {', '.join(t.arm for t in c.terms)} have no model in common"}
    try:
        differences, both = _differences(c, sides, models)
    except MMCollapseError as error:  # a collapsed chain may leave a variance of 0, which has no logarithm
        return none | {"verdict": f"no verdict: {error}"}
    if not comparable(c.endpoint.metric, both["n"]):
        sizes = " and ".join(str(n) for n in sorted(both["n"].unique()))
        return none | {"verdict": f"no verdict: {c.endpoint.metric} was measured at unequal n ({sizes})"}
    smallest = stats.smallest_effect(c.smallest, c.endpoint.scale, both["value"].mean(), both["n"].min())
    effect = stats.effect_of(differences, smallest, c.rule)
    found = {"S": smallest, **vars(effect), "p_t": stats.t_p(differences), "models": ", ".join(m for m in models if m)}
    return found | {"verdict": stats.verdict(effect, smallest, c.rule)}


def _differences(c: Contrast, sides: list[dict], models: list[str]) -> tuple[pd.Series, pd.DataFrame]:
    """(differences by seed on the scale: the mean over models of the weighted sum over terms; all values behind them).
    Clones of a model are averaged on the scale."""
    chains = [frame for side in sides for name in models for frame in side[name]]
    seeds = sorted(set.intersection(*(set(frame.index) for frame in chains)))
    if not seeds:
        raise MMCollapseError(f"no seed in common: {sorted(chains[0].index)} and {sorted(chains[-1].index)}")
    total = pd.Series(0.0, index=seeds)
    for term, side in zip(c.terms, sides, strict=True):
        for name in models:
            own = [f.loc[seeds] for f in side[name]]
            mean = sum(stats.on_scale(f["value"], f["n"], c.endpoint.scale) for f in own) / len(own)
            total += term.weight * mean / len(models)
    return total, pd.concat([frame.loc[seeds] for frame in chains])


def _correlate(tables: Tables, c: Correlation) -> dict:
    """A correlation as a row. Arms are its units; those with fewer seeds than it needs are left out, unless none has as
    many."""
    from mmcollapse import robustness  # which imports scipy.stats

    e = c.endpoint
    none = {"S": math.nan, "seeds": 0, "p_t": math.nan, "at": "each", "over": "", "scale": "rank correlation"}
    if (c.outcome.metric, c.outcome.measurement) != ("all_right", robustness.OUTCOME[e.modality]):
        raise MMCollapseError(f"{c.name}: students are judged by all_right, {robustness.OUTCOME[e.modality]}")
    try:
        units = robustness.units(tables, e.modality)
        seeds = units.groupby(["experiment", "arm"]).seed.transform("nunique")
        units = units[seeds >= min(c.seeds, seeds.max())]
        data = robustness.frame(tables, e.modality, e.metric, e.space, units)
        r = stats.rank_correlation(data)
    except MMCollapseError as error:
        return none | {"verdict": f"no verdict: {error}"}
    least = int(units.groupby(["experiment", "arm"]).seed.nunique().min())
    over = f"{r.generations} generation{'s' * (r.generations > 1)}"
    # quality and robustness: a metric of which less is better, and loss, are both turned round
    turn = 1.0 if e.better == "lower" else -1.0
    low, high = sorted((turn * r.low, turn * r.high))
    effect = stats.Effect(turn * r.rho, low, high, r.arms, 0, r.p)
    found = none | {"S": c.smallest, "effect": effect.effect, "low": low, "high": high, "seeds": least, "p": r.p}
    found |= {"over": over, "models": f"{r.arms} arms"}
    if r.reason:
        return found | {"verdict": f"no verdict: {r.reason}"}
    if r.arms < c.arms:
        return found | {"verdict": f"no verdict: {r.arms} arms, {c.arms} needed"}
    if least < c.seeds:
        return found | {"verdict": f"no verdict: {least} seed{'s' * (least != 1)}, {c.seeds} needed"}
    return found | {"verdict": stats.verdict(effect, c.smallest)}


def void(conclusions: pd.DataFrame, gates: pd.DataFrame | None, claims: Sequence[Claim] | None = None) -> pd.DataFrame:
    """The conclusions, with the verdicts taken back that rest on a gate that failed or was not run (gates None: none
    was). gates: as gates.run_gates returns them."""
    out = conclusions.copy()
    there = {} if gates is None else {name: rows[rows.passed == False] for name, rows in gates.groupby("gate")}  # noqa: E712
    for claim in all_claims() if claims is None else claims:
        bad = {name: _about(claim, rows) if name == DOUBT else rows for name, rows in there.items()}
        passed = {name: rows.empty for name, rows in bad.items()}
        judged = (out.claim == claim.id) & ~out.verdict.str.startswith(("no verdict", "not run"))
        judged &= out.verdict != "exploratory"
        failed = [name for name in claim.gates if passed.get(name) is False]
        absent = [name for name in claim.gates if name not in passed]
        if hard := [name for name in failed if name != DOUBT]:
            out.loc[judged, "verdict"] = f"void: gate {hard[0]} failed"
        elif absent:
            out.loc[judged, "verdict"] = f"void: gate {absent[0]} was not run"
        elif failed:
            out.loc[judged, "verdict"] = "inconclusive: the instruments disagree"
    return out


def _about(claim: Claim, rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows of the gate DOUBT those about what the claim is about: instruments that disagree on pictures are no doubt
    about captions."""
    endpoints = [part.endpoint for part in claim.contrasts if isinstance(part, Contrast)]
    about = {"image": "pictures:", "text": "captions:"}
    return rows[rows.measure.str.startswith(tuple({about[end.modality] for end in endpoints}))]


# ---- every other metric

# The scale of a secondary metric, by how its name begins; of the others (BLEU, KID, cosines, ...) "identity".
SCALE_OF = {
    # shares of n samples
    "logit": ("all_right", "two_right", "right_", "abstains", "unreadable", "tail_coverage")
    + ("precision", "recall", "coverage"),
    # above 0, and compared as factors
    "log": ("variance", "caption_variance", "nuisance_ratio", "vendi", "length", "vocabulary", "perplexity")
    + ("frechet", "fid"),
}
ARITHMETIC = ("sampling_floor",)  # follows from the number of prompts, so no arm can differ in it
SECONDARY = ["modality", "measurement", "metric", "space", "scale", "late"]
SECONDARY += ["effect", "low", "high", "seeds", "p_t", "q"]


def secondary(tables: Tables | pd.DataFrame, generations: int | None = None) -> pd.DataFrame:
    """Every other metric: a tidy frame with SECONDARY, one row for each metric, measurement and space of the subset
    "test" that the arms recursive and gen0 have in a modality and that is no primary endpoint of a claim about the same
    experiment, sorted by q. tables: of several experiments the first that has both arms (they share them).

    effect: recursive - gen0, mean over seeds of the paired difference of *late*, on the scale of SCALE_OF; low, high:
    95% t interval; p_t: paired t test; q: Benjamini-Hochberg over all rows. No smallest effect was set down for these,
    so they have no verdict. NaN, and not counted in q, where a value has no place on its scale (log of 0). Left out:
    metrics that are missing in any late generation of these arms, were measured at unequal n (see comparable), or have
    fewer than 2 pairs of seeds; with one seed the frame is empty. generations and errors as in conclude, but for the
    arms."""
    tables = by_experiment(tables)
    both = {name: table for name, table in tables.items() if {"recursive", "gen0"} <= set(table.arm)} or tables
    if not both:
        return pd.DataFrame(columns=SECONDARY)
    table = next(iter(both.values()))
    _check_rows(table)
    planned = int(table.generation.max()) if generations is None else generations
    late = _span(planned)
    parts = [part for claim in of_tables(both) for part in claim.contrasts if part.part == "primary"]
    primary = {(e.modality, e.measurement, e.metric, e.space) for e in (part.endpoint for part in parts)}
    tested = table[(table.subset == "test") & table.arm.isin(["recursive", "gen0"]) & ~table.metric.isin(ARITHMETIC)]
    tested = _of_models(tested, "one")
    out = []
    for key, rows in tested.groupby(["modality", "measurement", "metric", "space"]):
        sides = [stats.chain_scalars(rows[rows.arm == arm], "late", planned) for arm in ("recursive", "gen0")]
        seeds = sides[0].index.intersection(sides[1].index)
        if key in primary or len(seeds) < 2 or pd.concat(sides)["value"].isna().any():
            continue
        if not comparable(key[2], pd.concat(sides)["n"]):
            continue
        scale = scale_of(key[2])
        try:
            d = stats.paired_differences(*sides, scale)
        except MMCollapseError:  # a collapsed chain may leave a variance of 0
            d = pd.Series(math.nan, index=seeds)
        out.append((*key, scale, late, d.mean(), *stats.t_interval(d), len(d), stats.t_p(d), math.nan))
    frame = pd.DataFrame(out, columns=SECONDARY)
    frame["q"] = stats.benjamini_hochberg(frame.p_t)
    return frame.sort_values(["q", "p_t", *SECONDARY[:4]], ignore_index=True)


def comparable(metric: str, n: pd.Series) -> bool:
    """Whether chains whose values rest on n samples may be compared: many metrics are biased in n, so n must be equal.
    Nuisance variances are unbiased, and their n is what the oracle could read, so it differs by nature."""
    return metric.startswith("nuisance_ratio") or n.nunique() == 1


def scale_of(metric: str) -> str:
    """The scale on which a secondary metric is compared, by SCALE_OF."""
    return next((scale for scale, names in SCALE_OF.items() if metric.startswith(names)), "identity")


def _span(planned: int, summary: str = "late") -> str:
    over = stats.summary_generations(summary.split(" and ")[0], planned)
    return (
        f"generation{'s' * (len(over) > 1)} {'-'.join(str(g) for g in dict.fromkeys((over[0], over[-1])))} of {planned}"
    )


# ---- in words


def reach(verdict: str, general: str) -> str:
    """What is said beside a verdict on a claim: whether it is general, if there is a verdict and that was tested."""
    if verdict.startswith(("no verdict", "not run", "void")):
        return ""
    told = {"yes": " (general: also on further base models)", "no": " (not general: otherwise on a further base model)"}
    return told.get(general, "")


def in_words(conclusions: pd.DataFrame, claims: Sequence[Claim] | None = None) -> str:
    """Short markdown: what the conclusions (of `conclude`) say, computed from their numbers."""
    claimed = conclusions[conclusions.contrast == EVERY].set_index("claim")
    whole, parts = claimed.verdict, conclusions[conclusions.contrast != EVERY]
    texts = {claim.id: claim.text for claim in (all_claims() if claims is None else claims)}
    lines = [opening(whole, int(parts.seeds.max())), ""]
    for claim, row in claimed.iterrows():
        lines.append(f"- **{claim}** ({texts[claim]}): **{row.verdict}**{reach(row.verdict, row.general)}")
    head = ["claim", "contrast", "endpoint", "effect", "95% interval", "S", "agree", "p", "Holm", "verdict"]
    lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in parts.itertuples():
        if math.isnan(row.effect):
            numbers = [""] * 6
        else:
            holm = "" if math.isnan(row.p_holm) else f"{row.p_holm:.2g}"
            agree = f"{row.models}, {row.seeds} seeds" if pd.isna(row.agree) else f"{row.agree} of {row.seeds}"
            flips = "" if math.isnan(row.p) else f"{row.p:.2g}"
            numbers = [*_effect_cells(row), f"{row.S:.2g}", agree, flips, holm]
        kind = {"above": "", "not below": " (no loss)", "within": " (no change)"}[row.rule]
        kind += "" if row.part == "primary" else f", {row.part}"
        cells = [row.claim, row.contrast + kind, f"{row.endpoint}, {row.scale}", *numbers, row.verdict.split(":")[0]]
        lines.append(f"| {' | '.join(cells)} |")
    spans = parts[parts["at"].isin(["late", "auc"])].drop_duplicates("at").set_index("at").over
    means = " ".join(f"{dict(late='Late', auc='AUC')[at]} is the mean of {over}." for at, over in spans.items())
    lines += [
        "",
        f"{means} An effect is a difference paired by seed, on the scale named, and above 0 where the claim predicts "
        "it; in brackets the same as a factor. S: the smallest effect of interest. Agree: the seeds on the claim's "
        "side. p: exact two-sided sign flips; Holm: p of the paired t test, corrected over primary contrasts of the "
        "claim. The verdict on a claim needs every primary contrast, and so no correction.",
    ]
    return "\n".join(lines) + "\n"


def _effect_cells(row) -> list[str]:
    factor = f" (x {math.exp(row.effect):.2f})" if row.scale == "log" else ""
    return [f"{row.effect:+.3g}{factor}", "" if math.isnan(row.low) else f"{row.low:+.3g} to {row.high:+.3g}"]


def say(tables: Tables | pd.DataFrame, ids: Sequence[str] = ()) -> str:
    """Short markdown: what result tables say about the claims that are about their experiments, as far as their arms
    can answer them; ids: only of these claims. No gate is looked at: that is for the page of all verdicts."""
    tables = by_experiment(tables)
    asked = [claim for claim in of_tables(tables) if not ids or claim.id in ids]
    claims = [claim for claim in asked if not lacking(tables, claim)]
    if not claims:
        return "No claim is judged: none has all of its arms in this table.\n"
    rest = [c.id for c in asked if c not in claims]
    unasked = f"\nNot judged, for lack of arms or metrics: {', '.join(rest)}.\n" if rest else ""
    return in_words(conclude(tables, claims), claims) + unasked


def opening(whole: pd.Series, seeds: int) -> str:
    """The first sentence on verdicts (by claim): what is decided, or why nothing is."""
    needed = stats.SEEDS_NEEDED
    if seeds == 1:
        return (
            f"**One seed decides nothing.** Each arm is one chain and may differ by chance; a verdict needs {needed}."
        )
    decided = whole[~whole.str.startswith("no verdict")]
    if decided.empty:
        why = f"{seeds} seeds are too few" if 0 < seeds < needed else "values are missing"
        return f"**Nothing is decided:** {why}; a verdict needs {needed} seeds."
    counts = ", ".join(f"{count} {name}" for name, count in decided.value_counts().sort_index().items())
    return f"**{len(decided)} of {len(whole)} claims have a verdict:** {counts}."
