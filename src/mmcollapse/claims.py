"""The claims of the variance experiment as data, and what a result table says about them.

Everything is set down here before a study runs: endpoints, contrasts, and the smallest effect of interest S. Effects
are oriented so that the claim predicts more than 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mmcollapse import stats
from mmcollapse.errors import MMCollapseError
from mmcollapse.table import KEY


@dataclass(frozen=True)
class Endpoint:
    """What is compared, and on which scale (see stats.on_scale)."""

    modality: str
    metric: str
    measurement: str
    space: str
    scale: str
    subset: str = "test"


@dataclass(frozen=True)
class Contrast:
    """more - less, each an (arm, summary of a chain: "late", "auc" or "start"). smallest: S, in the unit of the scale,
    for rates as a difference of rates. rule: see stats.verdict."""

    name: str
    endpoint: Endpoint
    more: tuple[str, str]
    less: tuple[str, str]
    smallest: float
    rule: str = "above"


@dataclass(frozen=True)
class Claim:
    """A claim, which needs every one of its contrasts."""

    id: str
    text: str
    contrasts: tuple[Contrast, ...]


REC, REAL, GEN0 = ("recursive", "late"), ("real", "late"), ("gen0", "late")
FROZEN = ("frozen-drift", "late")

NUISANCE = Endpoint("image", "nuisance_ratio", "guidance 1", "oracle", "log")
CAPTIONS = Endpoint("text", "caption_variance", "sampled", "judge", "log")
DRIFTING = Endpoint("text", "caption_variance", "drifting", "judge", "log")
# Alignment and quality are taken of the same samples.
TEXT_P = Endpoint("text", "P", "greedy", "judge", "identity")
BLEU = Endpoint("text", "bleu4", "greedy", "words", "identity")
TEXT_RIGHT = Endpoint("text", "all_right", "greedy", "parser", "logit")
IMAGE_P = Endpoint("image", "P", "guidance 1", "judge", "identity")
IMAGE_RIGHT = Endpoint("image", "all_right", "guidance 1", "oracle", "logit")

CLAIMS = (
    Claim(
        "C1",
        "recursive fine-tuning of the text-to-image model collapses image variance",
        (
            Contrast("gen0 - recursive", NUISANCE, GEN0, REC, 0.10),
            Contrast("real - recursive", NUISANCE, REAL, REC, 0.10),
            Contrast("generation 0 - late, recursive", NUISANCE, ("recursive", "start"), REC, 0.10),
        ),
    ),
    Claim(
        "C2a",
        "caption variance does not collapse in recursive captioning",
        (
            Contrast("recursive - gen0", CAPTIONS, REC, GEN0, 0.10, "not below"),
            Contrast("recursive - real", CAPTIONS, REC, REAL, 0.10, "not below"),
        ),
    ),
    Claim(
        "C2b",
        "caption variance grows in recursive captioning",
        (
            Contrast("recursive - gen0", CAPTIONS, REC, GEN0, 0.10),
            Contrast("recursive - real", CAPTIONS, REC, REAL, 0.10),
        ),
    ),
    Claim(
        "C3",
        "captioner: vision-language alignment improves while quality falls",
        (
            Contrast("alignment up: P, gen0 - recursive", TEXT_P, GEN0, REC, 0.01),
            Contrast("quality down: BLEU-4, gen0 - recursive", BLEU, GEN0, REC, 0.02),
            Contrast("quality down: all right, gen0 - recursive", TEXT_RIGHT, GEN0, REC, 0.03),
        ),
    ),
    Claim(
        "C3-generator",
        "generator: vision-language alignment improves while quality falls",
        (
            Contrast("alignment up: P, gen0 - recursive", IMAGE_P, GEN0, REC, 0.01),
            Contrast("quality down: all right, gen0 - recursive", IMAGE_RIGHT, GEN0, REC, 0.03),
        ),
    ),
    Claim(
        "Q1",
        "the growth of caption variance is explained by decoding that drifts with the generation",
        (
            # A frozen captioner is the same in every seed: its interval is a point, conditional on the base model.
            Contrast("late - generation 0, frozen, drifting", DRIFTING, FROZEN, ("frozen-drift", "start"), 0.10),
            Contrast("recursive - gen0, matched decoding", CAPTIONS, REC, GEN0, 0.10, "within"),
        ),
    ),
)

EVERY = "every part"  # the contrast of the row that holds the verdict on the whole claim
UNDEFINED = "undefined there: too little could be read"
COLUMNS = ["claim", "contrast", "endpoint", "scale", "late", "S", "rule", "effect", "low", "high"]
COLUMNS += ["seeds", "agree", "p", "p_t", "p_holm", "verdict"]

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


def conclude(table: pd.DataFrame, claims: Sequence[Claim] = CLAIMS, generations: int | None = None) -> pd.DataFrame:
    """What the result table of one experiment says about `claims`: a tidy frame with COLUMNS, one row a contrast and
    after them one row a claim (contrast "every part").

    generations: how many were planned; default: the last generation in the table. effect, low, high and S are on the
    contrast's scale. Seeds that one side lacks altogether are left out (`seeds` says how many pairs remain); a chain
    that has begun but lacks a value stops the verdict, which then says what is missing. MMCollapseError: duplicate
    rows, arms that are missing altogether, a metric with no row at all.

    p: exact sign flips; p_t: paired t test (see stats.t_p); both two-sided, of no difference whatever the rule. p_holm:
    p_t after Holm over the contrasts of the claim, for reading a single contrast. The verdict on a claim uses none of
    them: it needs every contrast, and a conjunction of tests errs no more often than each (intersection-union).
    """
    _check(table, claims)
    planned = int(table.generation.max()) if generations is None else generations
    out = []
    for claim in claims:
        rows = []
        for c in claim.contrasts:
            e = c.endpoint
            row = {"claim": claim.id, "contrast": c.name, "endpoint": f"{e.metric}, {e.measurement}", "scale": e.scale}
            row |= {"late": _span(planned), "rule": c.rule}
            rows.append(row | _contrast(table, c, planned))
        for row, p in zip(rows, stats.holm([row["p_t"] for row in rows]), strict=True):
            row["p_holm"] = p
        whole = {"claim": claim.id, "contrast": EVERY, "late": rows[0]["late"], "seeds": min(r["seeds"] for r in rows)}
        out += [*rows, whole | {"verdict": stats.conjunction([r["verdict"] for r in rows])}]
    frame = pd.DataFrame(out, columns=COLUMNS)
    return frame.astype({"seeds": "int64", "agree": "Int64"})


def answerable(table: pd.DataFrame) -> list[Claim]:
    """The claims whose arms and endpoints are all in the table: a run of some arms, or in other feature spaces, answers
    some claims."""
    names = ["arm", "modality", "metric", "measurement", "space"]
    there = set(table[table.subset == "test"][names].itertuples(index=False, name=None))
    ends = {c.id: [(k.endpoint, arm) for k in c.contrasts for arm, _ in (k.more, k.less)] for c in CLAIMS}
    wanted = {c: {(arm, e.modality, e.metric, e.measurement, e.space) for e, arm in some} for c, some in ends.items()}
    return [c for c in CLAIMS if wanted[c.id] <= there]


def _check(table: pd.DataFrame, claims: Sequence[Claim]):
    if twice := int(table.duplicated(KEY).sum()):
        first = table[table.duplicated(KEY)].iloc[0]
        named = ", ".join(f"{k} {first[k]}" for k in KEY)
        raise MMCollapseError(f"{twice} duplicate row(s) in the result table, the first: {named}")
    there = set(zip(table.arm, table.modality, strict=True))
    wanted = {
        (arm, c.endpoint.modality): claim.id
        for claim in reversed(claims)
        for c in claim.contrasts
        for arm, _ in (c.more, c.less)
    }
    missing = sorted(set(wanted) - there)
    if missing:
        named = ", ".join(f"{arm} ({modality}, for {wanted[arm, modality]})" for arm, modality in missing)
        raise MMCollapseError(f"the result table lacks arm(s): {named}")


def _rows(table: pd.DataFrame, arm: str, e: Endpoint) -> pd.DataFrame:
    """The rows of an endpoint in an arm; a value that could not be computed says why in `missing`."""
    rows = table[
        (table.arm == arm)
        & (table.modality == e.modality)
        & (table.metric == e.metric)
        & (table.measurement == e.measurement)
        & (table.subset == e.subset)
        & (table.space == e.space)
    ]
    if rows.empty:
        raise MMCollapseError(
            f"the result table has no {e.metric} ({e.modality}, {e.measurement}, {e.subset}, {e.space}) of arm {arm}"
        )
    return rows


def _contrast(table: pd.DataFrame, c: Contrast, planned: int) -> dict:
    sides, gaps, reasons = [], [], []
    for arm, summary in (c.more, c.less):
        rows = _rows(table, arm, c.endpoint)
        sides.append(stats.chain_scalars(rows, summary, planned))
        reasons += [why or UNDEFINED for why in rows.missing[rows.value.isna()]]
        for seed, missing in sides[-1].missing.items():
            if missing:
                gaps.append(f"{arm} seed {seed} generation {', '.join(map(str, missing))}")
    if gaps:
        why = f" ({reasons[0]})" if reasons else ""
        verdict = f"no verdict: {c.endpoint.metric} is missing in {len(gaps)} chain(s), the first {gaps[0]}{why}"
        return {"S": math.nan, "seeds": 0, "p_t": math.nan, "verdict": verdict}
    try:
        differences = stats.paired_differences(*sides, c.endpoint.scale)
    except MMCollapseError as error:  # a collapsed chain may leave a variance of 0, which has no logarithm
        return {"S": math.nan, "seeds": 0, "p_t": math.nan, "verdict": f"no verdict: {error}"}
    both = pd.concat([side.loc[differences.index] for side in sides])
    if not comparable(c.endpoint.metric, both["n"]):
        sizes = " and ".join(str(n) for n in sorted(both["n"].unique()))
        verdict = f"no verdict: {c.endpoint.metric} was measured at unequal n ({sizes})"
        return {"S": math.nan, "seeds": 0, "p_t": math.nan, "verdict": verdict}
    smallest = stats.smallest_effect(c.smallest, c.endpoint.scale, both["value"].mean(), both["n"].min())
    effect = stats.effect_of(differences, smallest, c.rule)
    p_t = stats.t_p(differences)
    return {"S": smallest, **vars(effect), "p_t": p_t, "verdict": stats.verdict(effect, smallest, c.rule)}


def secondary(table: pd.DataFrame, generations: int | None = None) -> pd.DataFrame:
    """Every other metric: a tidy frame with SECONDARY, one row for each metric, measurement and space of the subset
    "test" that the arms recursive and gen0 have in a modality and that is no endpoint of CLAIMS, sorted by q.

    effect: recursive - gen0, mean over seeds of the paired difference of *late*, on the scale of SCALE_OF; low, high:
    95% t interval; p_t: paired t test; q: Benjamini-Hochberg over all rows. No smallest effect was set down for these,
    so they have no verdict. NaN, and not counted in q, where a value has no place on its scale (log of 0). Left out:
    metrics that are missing in any late generation of these arms, were measured at unequal n (see comparable), or have
    fewer than 2 pairs of seeds; with one seed the frame is empty. generations and errors as in conclude, but for the
    arms."""
    _check(table, ())
    planned = int(table.generation.max()) if generations is None else generations
    late = _span(planned)
    primary = {
        (e.modality, e.measurement, e.metric, e.space) for c in CLAIMS for e in (k.endpoint for k in c.contrasts)
    }
    tested = table[(table.subset == "test") & table.arm.isin(["recursive", "gen0"]) & ~table.metric.isin(ARITHMETIC)]
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


def _span(planned: int) -> str:
    late = stats.late_generations(planned)
    return (
        f"generation{'s' * (len(late) > 1)} {'-'.join(str(g) for g in dict.fromkeys((late[0], late[-1])))} of {planned}"
    )


# ---- in words


def in_words(conclusions: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> str:
    """Short markdown: what the conclusions (of `conclude`) say, computed from their numbers."""
    whole = conclusions[conclusions.contrast == EVERY].set_index("claim").verdict
    parts = conclusions[conclusions.contrast != EVERY]
    texts = {claim.id: claim.text for claim in claims}
    lines = [_opening(whole, int(parts.seeds.max())), ""]
    lines += [f"- **{claim}** ({texts[claim]}): **{verdict}**" for claim, verdict in whole.items()]
    head = ["claim", "contrast", "endpoint", "effect", "95% interval", "S", "agree", "p", "Holm", "verdict"]
    lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in parts.itertuples():
        if math.isnan(row.effect):
            numbers = [""] * 6
        else:
            holm = "" if math.isnan(row.p_holm) else f"{row.p_holm:.2g}"
            numbers = [*_effect_cells(row), f"{row.S:.2g}", f"{row.agree} of {row.seeds}", f"{row.p:.2g}", holm]
        kind = {"above": "", "not below": " (no loss)", "within": " (no change)"}[row.rule]
        cells = [row.claim, row.contrast + kind, f"{row.endpoint}, {row.scale}", *numbers, row.verdict.split(":")[0]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Late is the mean of {parts.late.iloc[0]}. An effect is a difference paired by seed, on the scale named, and "
        "above 0 where the claim predicts it; in brackets the same as a factor. S: the smallest effect of interest. "
        "Agree: the seeds on the claim's side. p: exact two-sided sign flips; Holm: p of the paired t test, corrected "
        "over the contrasts of the claim. The verdict on a claim needs every contrast, and so no correction.",
    ]
    return "\n".join(lines) + "\n"


def secondary_in_words(frame: pd.DataFrame) -> str:
    """Short markdown: the rows of `secondary` with q < .05, out of how many."""
    if frame.empty:
        return "No secondary metric was tested: it takes two seeds of the arms recursive and gen0.\n"
    tested, found = int(frame.p_t.notna().sum()), frame[frame.q < 0.05]
    lines = [
        f"Of {tested} secondary metrics, {len(found)} differ between the arms recursive and gen0 at q < .05 (paired t "
        f"test by seed, mean of {frame.late.iloc[0]}, Benjamini-Hochberg over all {tested})."
    ]
    if rest := len(frame) - tested:
        lines[0] += f" {rest} more could not be tested: no value on their scale, or no spread between seeds."
    if len(found):
        head = ["metric", "of", "recursive - gen0", "95% interval", "seeds", "q"]
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in found.itertuples():
        of = f"{row.modality}, {row.measurement}, {row.space}"
        cells = [f"{row.metric}, {row.scale}", of, *_effect_cells(row), str(row.seeds), f"{row.q:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _effect_cells(row) -> list[str]:
    factor = f" (x {math.exp(row.effect):.2f})" if row.scale == "log" else ""
    return [f"{row.effect:+.3g}{factor}", "" if math.isnan(row.low) else f"{row.low:+.3g} to {row.high:+.3g}"]


def say(table: pd.DataFrame) -> str:
    """Short markdown: what a result table says about the claims that its arms can answer."""
    claims = answerable(table)
    if not claims:
        return "No claim is judged: none has all of its arms in this table.\n"
    rest = [c.id for c in CLAIMS if c not in claims]
    unasked = f"\nNot judged, for lack of arms or metrics: {', '.join(rest)}.\n" if rest else ""
    return in_words(conclude(table, claims), claims) + unasked


def _opening(whole: pd.Series, seeds: int) -> str:
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
