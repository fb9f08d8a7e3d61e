"""Gates: what must hold before a verdict counts, run and shown first, and failing loudly. A claim names the gates that
it rests on (claims.toml); where one of these fails, its verdict is void.

Some gates run the loop or the instruments on what is known beforehand: their numbers are kept in the store, by the
source of what they test, so that a changed loop is tested anew. Others read result tables: a table can refute one, but
an interval that holds 0 does not.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mmcollapse import claims, stats
from mmcollapse.digests import digest_arrays, digest_of
from mmcollapse.protocol import Protocol
from mmcollapse.settings import Settings
from mmcollapse.table import is_member, read_table, write_table

COLUMNS = ["gate", "measure", "value", "low", "high", "allowed", "passed", "needs"]
SHOWN = "shown, not judged"
ERRORS = 4.0  # standard errors that a random number may be off: one in 16,000
KEPT = 0.05  # all-right that the autoencoder may cost
FLAT = 0.10  # change of what a positive control must leave alone: of a logarithm, or of a rate
RUINED = 0.2  # how far captions of other pictures must lie (P), and a fifth of CLIPScore's range
PAIRS, STEPS, RATE = 10, 80, 0.05  # of the toy: n, and a recipe that fits a Gaussian to n samples
DIMENSIONS = 768  # of the toy: so many chains at once

Row = dict  # COLUMNS, but for needs


def run_gates(settings: Settings, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Run every gate, write RESULTS/00_gates.parquet and .json, and return the table (COLUMNS): one row a measure. low,
    high: its 95% interval, where there is one; allowed: what it is held against; passed: False, True, or NA where it is
    only shown; needs: the claims that rest on the gate. say: called with a line a gate."""
    from mmcollapse.experiment import open_study, write_provenance

    study, tools = open_study(settings)
    began, rows = time.monotonic(), []
    tables = _tables(settings)
    for gate, run in _RUN.items():
        found = [{"gate": gate} | row for row in run(study, tools, tables)]
        rows += found
        failed = sum(row["passed"] is False for row in found)
        judged = sum(row["passed"] is not None for row in found)
        what = f"FAILED in {failed} of {judged}" if failed else f"passed, {judged}" if judged else SHOWN
        say(f"gate {gate}: {what} ({time.monotonic() - began:.0f} s)")
    frame = as_frame(rows)
    path = settings.results_folder / "00_gates.parquet"
    write_table(frame, path)
    write_provenance(path.with_suffix(".json"), study, tools, frame, time.monotonic() - began)
    return frame


def as_frame(rows: list[Row]) -> pd.DataFrame:
    """Rows as the table of gates."""
    resting = {gate: [c.id for c in claims.all_claims() if gate in c.gates] for gate in claims.GATES}
    short = {gate: ", ".join(dict.fromkeys(name.split()[0] for name in ids)) for gate, ids in resting.items()}
    frame = pd.DataFrame([{"needs": short[row["gate"]]} | row for row in rows], columns=COLUMNS)
    texts = dict.fromkeys(("gate", "measure", "allowed", "needs"), "str")
    return frame.astype(dict.fromkeys(("value", "low", "high"), "float64") | texts | {"passed": "boolean"})


def read_gates(results: Path) -> pd.DataFrame | None:
    """The gates that were run beside the tables in `results`; None if none were."""
    path = Path(results) / "00_gates.parquet"
    return pd.read_parquet(path).astype({"passed": "boolean"})[COLUMNS] if path.is_file() else None


def failed(gates: pd.DataFrame) -> list[str]:
    """The names of the gates that failed."""
    return list(dict.fromkeys(gates.gate[gates.passed.eq(False).fillna(False)]))


def _row(measure: str, value: float, allowed: str, passed: bool | None, low=math.nan, high=math.nan) -> Row:
    kept = None if passed is None else bool(passed)
    return {"measure": measure, "value": float(value), "low": low, "high": high, "allowed": allowed, "passed": kept}


def _between(measure: str, value: float, low: float, high: float, why: str = "") -> Row:
    """A row that passes if the value lies in a range."""
    allowed = f"{low:.4g} to {high:.4g}" + (f" ({why})" if why else "")
    return _row(measure, value, allowed, low <= value <= high)


def _at_least(measure: str, value: float, low: float) -> Row:
    return _row(measure, value, f"at least {low:.4g}", value >= low)


def _tables(settings: Settings) -> dict[str, pd.DataFrame]:
    """The result tables that are there, by experiment."""
    from mmcollapse.experiments import EXPERIMENTS

    found = {n: settings.results_folder / f"{n}.parquet" for n, arms in EXPERIMENTS.items() if arms}
    return {name: read_table(path) for name, path in found.items() if path.is_file()}


def _stored(study, gate: str, inputs: dict, compute: Callable[[], dict]) -> dict:
    """The numbers that a gate found, kept in the store until anything in the package's source changes."""
    from mmcollapse.experiment import source_digest

    named = {"of": f"gate {gate}", "metric": "gate", "inputs": inputs, "source": source_digest()}

    def make(folder: Path) -> dict:
        found = compute()
        (folder / "gate.json").write_text(json.dumps(found, indent=1) + "\n")
        return {"digest": digest_of(found)}

    item = study.store.make("scores", named | {"device": study.device}, make)
    return json.loads((item.files() / "gate.json").read_text())


# ---- the loop, on Gaussians


def toy_chain(
    kind: str, pairs: int, generations: int, protocol: Protocol, rate: float = RATE
) -> dict[str, list[float]]:
    """The loop of all experiments on 768 Gaussians: mean variance, and mean squared error of the mean, by generation.
    kind: "gaussian" fits mean and variance; "known" the mean alone, for the variance is known; "dropping" fits both,
    and makes nothing beyond 1.5 standard deviations."""
    from mmcollapse.loop import Model, Study, run_chain
    from mmcollapse.models.toy import Gaussian
    from mmcollapse.settings import load_settings
    from mmcollapse.store import Store
    from mmcollapse.worlds.scenes import Scenes

    adapter = {"gaussian": Gaussian, "known": _known(), "dropping": _dropping()}[kind]()
    # all pairs in every step: with what accumulates, every number of sets divides the batch
    sets = math.lcm(*range(1, generations + 1)) if protocol.keep == "accumulate" else 1
    changes = {"pairs": pairs, "batch": pairs * sets, "steps": STEPS, "lr_generator": rate, "generations": generations}
    settings = load_settings("smoke", **changes)
    found: dict[str, list[float]] = {"variance": [], "error": []}
    with tempfile.TemporaryDirectory() as folder:
        models = {"generator": Model(adapter, settings)}
        study = Study(settings, Store(folder), Scenes(), models, {"generator": ("generator",), "captioner": ()}, "cpu")

        def measure(weights, g, sets):
            held = study.models["generator"].hold(next(iter(weights.values())))
            found["variance"].append(float((2 * held.log_std.detach()).exp().mean()))
            found["error"].append(float(held.mean.detach().square().mean()))

        run_chain(study, protocol, 0, measure)
    return found


def _known():
    from mmcollapse.models.toy import Gaussian

    class Known(Gaussian):
        digest = "toy-known-variance-1"

        def trainable(self):
            return {"mean": self.mean}

    return Known


CUT = 1.5  # standard deviations beyond which the toy that drops modes makes nothing


def _dropping():
    import torch

    from mmcollapse.models.toy import SIDE, Gaussian
    from mmcollapse.randomness import normal

    class Dropping(Gaussian):
        digest = "toy-dropping-1"

        @torch.no_grad()
        def make(self, captions, decoding, keys, batch=64):
            low = scipy_stats.norm.cdf(-CUT)
            share = scipy_stats.norm.cdf(normal(keys, (len(self.mean),)).double().numpy())
            z = scipy_stats.norm.ppf(low + share * (1 - 2 * low)).astype(np.float32)
            x = self.mean + self.log_std.exp() * torch.from_numpy(z)
            return x.numpy().view(np.uint8).reshape(len(captions), SIDE, SIDE, 3)

    return Dropping


def _recursive(**changes) -> Protocol:
    return Protocol("recursive", ("generator",), pictures="previous", **changes)


def _lengths(study) -> int:
    """Generations of the toy: enough to tell the laws apart."""
    return min(6, 2 * study.settings.generations)


def _toy(study, kind: str, pairs: int, generations: int, rate: float = RATE, **changes) -> dict[str, list[float]]:
    def compute():
        return toy_chain(kind, pairs, generations, _recursive(**changes), rate)

    told = {"kind": kind, "pairs": pairs, "generations": generations, "rate": rate, "changes": changes}
    return _stored(study, "toy", told, compute)


def toy(study, tools, tables) -> list[Row]:
    """Variance after g generations (1 - 1/n)^g. With a known variance the mean is off by g/n (squared) under replace
    and, where synthetic data accumulate, by sum(1/k^2)/n, as the k-th set moves the mean by 1/k of its error (after
    Gerstgrasser et al. 2024). Tolerance: sampling error of 768 dimensions, and .01 for the optimiser."""
    g, n = _lengths(study), PAIRS
    replaced, known = _toy(study, "gaussian", n, g), _toy(study, "known", n, g)
    accumulated = _toy(study, "known", n, g, keep="accumulate", anchored=False)
    law, off = (1 - 1 / n) ** g, ERRORS * math.sqrt(2 * g / n / DIMENSIONS) + 0.01
    rows = [
        _between(f"variance after {g} generations, n {n}", replaced["variance"][g], law * (1 - off), law * (1 + off))
    ]
    off = ERRORS * math.sqrt(2 / DIMENSIONS) + 0.01
    steps = sum(1 / k**2 for k in range(1, g + 1))
    for name, found, law in (("replace", known, g / n), ("accumulate", accumulated, steps / n)):
        measure = f"squared error of the mean after {g} generations, {name}"
        rows.append(_between(measure, found["error"][g], law * (1 - off), law * (1 + off)))
    return rows


def dose(study, tools, tables) -> list[Row]:
    """More pairs, slower collapse: of the toy 20 against 5, and what 06 has."""
    g = _lengths(study)
    few, many = (_toy(study, "gaussian", n, g)["variance"][g] for n in (5, 20))
    law = (1 - 1 / 20) ** g - (1 - 1 / 5) ** g
    rows = [_at_least(f"toy: variance after {g} generations, n 20 less n 5", many - few, law / 2)]
    if (table := tables.get("06_remedies")) is not None:
        for modality, contrast in _late("N-{N.high}", "N-{N.low}").items():
            resolved, _ = claims.resolve(contrast, table)
            if resolved is not None:
                low, high = resolved.less[0].arm, resolved.more[0].arm
                rows += _not_refuted(table, resolved, f"{modality}: all right, late, {high} less {low} (logit)")
    return rows


def accumulate(study, tools, tables) -> list[Row]:
    """Synthetic data that accumulate keep more of the variance than data that replace, in the toy; and what 06 has."""
    g = _lengths(study)
    replaced = _toy(study, "gaussian", PAIRS, g)["variance"]
    kept = _toy(study, "gaussian", PAIRS, g, keep="accumulate", anchored=False)["variance"]
    # from the first generation, which they share, to the last: half of the loss at most
    ratio = (kept[1] - kept[g]) / (replaced[1] - replaced[g])
    rows = [
        _row(f"toy: loss of variance in generations 2-{g}, over that of replace", ratio, "at most 0.5", ratio <= 0.5)
    ]
    if (table := tables.get("06_remedies")) is not None:
        for modality, contrast in _late("accumulate", "recursive").items():
            rows += _not_refuted(table, contrast, f"{modality}: all right, late, accumulate less replace (logit)")
    return rows


def _late(more: str, less: str) -> dict[str, claims.Contrast]:
    """late all-right of two arms, by modality."""
    ends = {
        "image": claims.Endpoint("image", "all_right", "guidance 1", "oracle", "logit"),
        "text": claims.Endpoint("text", "all_right", "greedy", "parser", "logit"),
    }
    sides = (claims.Term(more),), (claims.Term(less),)
    return {modality: claims.Contrast("gate", end, *sides, smallest=0.05) for modality, end in ends.items()}


def _not_refuted(table: pd.DataFrame, contrast: claims.Contrast, measure: str) -> list[Row]:
    """A row that fails if the interval of the contrast lies below 0; of one seed only shown; none without its arms."""
    if not {t.arm for t in contrast.terms} <= set(table.arm[table.modality == contrast.endpoint.modality]):
        return []
    found = claims.contrast_row(table, contrast)
    if math.isnan(found.get("effect", math.nan)):
        return [_row(f"{measure}: {found['verdict']}", math.nan, SHOWN, None)]
    ends = {"low": found["low"], "high": found["high"]}
    judged = None if math.isnan(found["high"]) else found["high"] > 0
    return [_row(measure, found["effect"], "interval not below 0" if judged is not None else SHOWN, judged, **ends)]


def sampling_floor(study, tools, tables) -> list[Row]:
    """Tail coverage of the recursive generator in its last generation over that of its first, beside (1 - 1/N)^g."""
    table = tables.get("01_variance")
    if table is None:
        return []
    tail = table[(table.arm == "recursive") & (table.metric == "tail_coverage") & (table.modality == "image")]
    tail = tail[(tail.subset == "test") & (tail.measurement == "guidance 1")]
    last = int(table.generation.max())
    curves = tail.pivot_table(index="seed", columns="generation", values="value")
    floor = table[(table.metric == "sampling_floor") & (table.arm == "recursive") & (table.generation == last)]
    if not {0, last} <= set(curves.columns) or floor.empty:
        return []
    share, known = curves[last] / curves[0], float(floor.value.iloc[0])
    low, high = stats.t_interval(share)
    told = f"{SHOWN}: drawing N alone leaves {known:.4g}"
    return [_row(f"tail coverage at generation {last} over generation 0", share.mean(), told, None, low, high)]


# ---- real models: nothing learned, nothing moves


def learning_rate_0(study, tools, tables) -> list[Row]:
    """At learning rate 0 the toy keeps its variance exactly, and generator and captioner their weights, bit by bit;
    what they make is the same as well."""
    spread = _toy(study, "gaussian", PAIRS, 2, rate=0.0)["variance"]
    rows = [_row("toy: variance after 2 generations", spread[-1], "exactly 1", spread == [1.0] * 3)]
    for role in ("generator", "captioner"):
        found = _stored(study, "learning rate 0", _inputs(study, role), lambda role=role: _idle(study, role))
        for what, moved in found.items():
            rows.append(_row(f"{role}: {what}", moved, "exactly 0", moved == 0))
    return rows


def _inputs(study, role: str) -> dict:
    first = study.models[study.zoo[role][0]]
    return {"base": first.base.digest, "world": study.world.digest, "role": role, "computing": study.computing()}


IDLE = {"pairs": 4, "batch": 2, "steps": 2, "generations": 1, "lr_generator": 0.0, "lr_captioner": 0.0}


def _idle(study, role: str) -> dict[str, int]:
    """How many weights a recursive chain at learning rate 0 moves, and how many samples come out otherwise."""
    from mmcollapse.loop import run_chain
    from mmcollapse.models.captioner import CaptionDecoding
    from mmcollapse.models.generator import ImageDecoding
    from mmcollapse.store import Store

    settings = replace(study.settings, **IDLE)
    real = study.world.sample("test", np.arange(4))
    keys = [("gate", role, i) for i in range(4)]
    states, made = [], []

    def measure(weights, g, sets):
        name = study.zoo[role][0]
        adapter = study.models[name].hold(next(iter(weights.values())))
        states.append({n: p.detach().float().cpu().numpy().copy() for n, p in study.models[name].parameters.items()})
        if role == "generator":
            made.append(adapter.make([five[0] for five in real.captions], ImageDecoding(2, 1.0), keys))
        else:
            made.append(adapter.make(real.images, CaptionDecoding(max_tokens=adapter.max_tokens), keys))

    makes = {"pictures": "previous"} if role == "generator" else {"captions": "previous"}
    with tempfile.TemporaryDirectory() as folder:
        run_chain(
            replace(study, settings=settings, store=Store(folder), say=_quiet),
            Protocol("idle", (role,), **makes),
            0,
            measure,
        )
    moved = sum(int((states[0][n] != states[-1][n]).sum()) for n in states[0])
    first, last = (digest_arrays({str(i): np.asarray(x) for i, x in enumerate(batch)}) for batch in (made[0], made[-1]))
    return {"weights that moved": moved, "measured hashes that differ": int(first != last)}


def _quiet(chain: str, generation: int, stage: str):
    """No progress: a gate is one line."""


# ---- the autoencoder


def round_trip(study, tools, tables) -> list[Row]:
    """Real pictures through the autoencoder, as often as the chains of 01 have generations, with no training: what it
    costs by itself may be half of what recursion costs there: then most of that was training's doing. Of all-right it
    may be KEPT in any case."""
    if not study.world.truth:
        return [_row("real pictures through the autoencoder", math.nan, "needs a world of known truth", None)]
    table = tables.get("01_variance")
    prompts, noises, last = _prompts(study)
    last = last if table is None else int(table.generation.max())
    told = _inputs(study, "generator") | {"oracle": study.oracle.digest, "sizes": [len(prompts.images), noises, last]}
    found = _stored(study, "round trip", told, lambda: _through(study, prompts, noises, last))
    rows = []
    for metric, least, what in (("all_right", KEPT, "all right"), ("nuisance_ratio", FLAT, "log nuisance variance")):
        values = np.array([math.nan if v is None else v for v in found[metric]])
        values = np.log(values) if metric == "nuisance_ratio" else values
        rows += [_row(f"{what} after {g} of {last}", values[g - 1], SHOWN, None) for g in range(1, last)]
        cost, by_recursion = values[0] - values[-1], _cost(table, metric, last)
        most = max(least, by_recursion / 2)
        few = metric != "all_right" and (table is None or table.seed[table.seed >= 0].nunique() < stats.SEEDS_NEEDED)
        if few:  # of few seeds and prompts a variance is mostly chance
            allowed, passed = f"{SHOWN} below {stats.SEEDS_NEEDED} seeds: recursion costs {by_recursion:.3g}", None
        elif most > least:
            allowed, passed = f"at most {most:.3g} (half of what recursion costs)", cost <= most
        elif metric == "all_right":
            allowed, passed = f"at most {most:.3g}", cost <= most
        else:
            allowed, passed = f"{SHOWN}: recursion costs {by_recursion:.3g}, nothing to explain", None
        passed = None if math.isnan(cost) else passed
        rows.append(_row(f"{what}, loss from trip 1 to {last}", cost, allowed, passed))
    return rows


def _cost(table: pd.DataFrame | None, metric: str, generation: int) -> float:
    """real less recursive generators at a generation, means over seeds (of logarithms for a variance); 0 if unknown."""
    if table is None:
        return 0.0
    rows = table[(table.metric == metric) & (table.measurement == "guidance 1") & (table.subset == "test")]
    rows = rows[(rows.modality == "image") & (rows.generation == generation)]
    means = {}
    for arm in ("real", "recursive"):
        values = rows.value[(rows.arm == arm) & is_member(rows.model)]
        values = np.log(values[values > 0]) if metric == "nuisance_ratio" else values
        means[arm] = values.mean()
    return float(np.nan_to_num(means["real"] - means["recursive"]))


def _prompts(study):
    """(real test pairs, pictures a prompt, generations): at least 16 prompts, for a rate of few is no rate."""
    s = study.settings
    return study.world.sample("test", np.arange(max(16, s.prompts))), s.noises, s.generations


def _through(study, prompts, noises: int, last: int) -> dict[str, list]:
    from mmcollapse.measure import flat
    from mmcollapse.metrics import truth

    adapter = study.models[study.zoo["generator"][0]].adapter
    scenes = [s for s in prompts.scenes for _ in range(noises)]
    captions = [five[0] for five in prompts.captions for _ in range(noises)]
    images = flat(study.world.redraw(prompts.scenes, noises, "gate round trip"))
    real = truth.within_prompt_variance(study.oracle.read(images), scenes, noises)
    found: dict[str, list] = {"all_right": [], "nuisance_ratio": []}
    for _ in range(last):
        batches = adapter.encode(images, captions)["latents"].split(study.settings.compute_batch)
        images = np.concatenate([adapter.decode(batch) for batch in batches])
        reading = study.oracle.read(images)
        found["all_right"].append(float(truth.pictures_right(reading, scenes).mean()))
        found["nuisance_ratio"].append(_ratio(truth.within_prompt_variance(reading, scenes, noises), real))
    return found


def _ratio(made: dict, real: dict) -> float | None:
    """Geometric mean over factors of the ratio of variances, as in the result tables; None where one is undefined."""
    logs = [math.log(made[k][0] / real[k][0]) if made[k][0] > 0 and real[k][0] > 0 else math.nan for k in made]
    mean = float(np.exp(np.mean(logs)))
    return None if math.isnan(mean) else mean


# ---- instruments


def shuffled_captions(study, tools, tables) -> list[Row]:
    """Real pictures with captions of other pictures: in every space that reads both, P rises and CLIPScore falls."""
    n = max(32, min(500, study.settings.captions))
    n = min(n, study.world.size("test") or n)
    if not tools.reading:
        return [_row("captions of other pictures", math.nan, "needs a space that reads captions", None)]
    told = {"world": study.world.digest, "n": n, "spaces": {k: tools.digests[k] for k in tools.reading}}
    found = _stored(study, "shuffled captions", told, lambda: _shuffled(study, tools, n))
    rows = []
    for space, scores in found.items():
        rise, fall = scores["P"][1] - scores["P"][0], scores["clip_score"][0] - scores["clip_score"][1]
        rows.append(_at_least(f"{space}: P of other captions, less P of own", rise, RUINED))
        rows.append(_at_least(f"{space}: CLIPScore of own captions, less that of others", fall, 100 * RUINED))
    return rows


def _shuffled(study, tools, n: int) -> dict[str, dict]:
    from mmcollapse.measure import alignment_scores

    batch = study.world.sample("test", np.arange(n))
    own = [five[0] for five in batch.captions]
    others = own[n // 2 :] + own[: n // 2]
    found = {}
    for name, space in tools.reading.items():
        seen = space.images(batch.images)
        pair = [alignment_scores(seen, space.texts(captions)) for captions in (own, others)]
        found[name] = {metric: [float(scores[metric][0]) for scores in pair] for metric in ("P", "clip_score")}
    return found


STUDIES, SEEDS = 200, stats.SEEDS_NEEDED


def real_against_real(study, tools, tables) -> list[Row]:
    """Between independent sets of real data there is no difference: of 200 studies of 5 seeds the 95% interval should
    hold 0 in about 95%. Allowed: what 99.9% of fair studies would show (binomial)."""
    size = {"n": min(64, max(12, study.settings.captions))}
    told = {"world": study.world.digest, "studies": STUDIES, "seeds": SEEDS} | size
    if not study.world.truth or not tools.reading:
        return [_row("real against real", math.nan, "needs a world without end, and a space that reads", None)]
    space = next(iter(tools.reading))
    found = _stored(
        study,
        "real against real",
        told | {"space": tools.digests[space]},
        lambda: _splits(study, tools, space, **size),
    )
    low, high = scipy_stats.binom.ppf([0.0005, 0.9995], STUDIES, 0.95) / STUDIES
    rows = []
    for metric, held in found.items():
        ends = scipy_stats.binomtest(int(held), STUDIES).proportion_ci()
        row = _between(f"{metric}: share of intervals that hold 0", held / STUDIES, low, high)
        rows.append(row | {"low": float(ends.low), "high": float(ends.high)})
    return rows


def _splits(study, tools, space: str, n: int) -> dict[str, int]:
    """In how many of STUDIES the interval holds 0: a study has SEEDS pairs of disjoint sets of n, all of one pool."""
    from mmcollapse.metrics import images as image
    from mmcollapse.metrics.alignment import alignment

    pool = study.world.sample("test", np.arange(2_000_000, 2_000_000 + 4 * SEEDS * n))  # which nothing else uses
    seen = tools.spaces[space].images(pool.images)
    read = tools.spaces[space].texts([five[0] for five in pool.captions])
    measures = {
        "embedding variance (log)": lambda at: math.log(image.embedding_variance(seen[at])),
        "caption variance (log)": lambda at: math.log(image.embedding_variance(read[at])),
        "P": lambda at: alignment(seen[at], read[at])["P"],
    }
    held, random = dict.fromkeys(measures, 0), np.random.default_rng(0)
    for _ in range(STUDIES):
        sets = random.permutation(len(seen))[: 2 * SEEDS * n].reshape(SEEDS, 2, n)
        for name, measure in measures.items():
            low, high = stats.t_interval([measure(a) - measure(b) for a, b in sets])
            held[name] += bool(low <= 0 <= high)
    return held


LEFT = 10  # pairs of shape and colour, of 100, that the injected loss of modes leaves


def positive_control(study, tools, tables) -> list[Row]:
    """Modes that were dropped on purpose. Pictures: every pair of shape and colour but the ten commonest is drawn as
    one of these; tail coverage, cell entropy and all-right must see it, and what was not touched must not move. Toy:
    makes nothing beyond 1.5 standard deviations; its variance falls by the known factor, and the mean is not off."""
    n = PAIRS
    cut = _toy(study, "dropping", n, 1)
    factor = 1 - 2 * CUT * scipy_stats.norm.pdf(CUT) / (2 * scipy_stats.norm.cdf(CUT) - 1)
    off = ERRORS * math.sqrt(2 / (n * DIMENSIONS)) + 0.01
    law = (1 - 1 / n) * factor
    rows = [_between("toy: variance after dropping the tails", cut["variance"][1], law * (1 - off), law * (1 + off))]
    law, off = factor / n, ERRORS * math.sqrt(2 / DIMENSIONS) + 0.01
    rows.append(_between("toy: squared error of the mean", cut["error"][1], law * (1 - off), law * (1 + off)))
    if not study.world.truth:
        return [*rows, _row("pictures", math.nan, "needs a world of known truth", None)]
    prompts, noises, _ = _prompts(study)
    told = {"world": study.world.digest, "oracle": study.oracle.digest, "sizes": [len(prompts.images), noises, LEFT]}
    found = _stored(study, "positive control", told, lambda: _dropped(study, prompts, noises))
    whole, less, exact = found["whole"], found["dropped"], found["exact"]
    for metric, least in (("tail_coverage", 0.5), ("cell_entropy", 0.5), ("all_right", 0.2)):
        rows.append(_at_least(f"pictures: {metric}, real less dropped", whole[metric] - less[metric], least))
    rows.append(
        _between("pictures: all_right of dropped", less["all_right"], exact - FLAT, exact + FLAT, "what is drawn")
    )
    for metric in ("right_background", "right_relation", "right_count", "abstains"):
        rows.append(_between(f"pictures: {metric}, dropped less real", less[metric] - whole[metric], -FLAT, FLAT))
    return rows


def _dropped(study, prompts, noises: int) -> dict:
    """What the oracle reads of real pictures of the prompts, and of the same with most shape-colour pairs lost."""
    from mmcollapse.instruments import _only, _uniforms
    from mmcollapse.metrics import truth
    from mmcollapse.worlds.grammar import zipf

    world = study.world
    scenes = [s for s in prompts.scenes for _ in range(noises)]
    rank = np.argsort(-np.outer(zipf(10, world.exponent), zipf(10, world.exponent)).ravel(), kind="stable")
    place = {(int(c) // 10, int(c) % 10): k for k, c in enumerate(rank)}
    shown = [_only(scene, place, LEFT) for scene in scenes]
    found = {"exact": float(np.mean([a == b for a, b in zip(shown, scenes, strict=True)]))}
    for name, drawn in (("whole", scenes), ("dropped", shown)):
        images = world.draw(drawn, world._nuisance(drawn, _uniforms(world, "gate positive control", len(drawn))))
        reading = study.oracle.read(images)
        read = [None if out else s for s, out in zip(reading.scenes, reading.abstains, strict=True)]
        scores = {f"right_{k}": float(v.mean()) for k, v in truth.attributes_right(read, scenes).items()}
        scores |= {"tail_coverage": truth.tail_coverage(read, scenes, world.exponent)[0]}
        scores |= {"cell_entropy": truth.cell_entropy(read)[0], "abstains": float(reading.abstains.mean())}
        found[name] = scores | {"all_right": float(truth.pictures_right(reading, scenes).mean())}
    return found


SEEN = 0.8  # chance of a verdict at which an effect counts as visible


def power(study, tools, tables) -> list[Row]:
    """For each primary contrast that says something changes: the smallest effect, in units of S, that 5 and 10 seeds
    show as *reproduced* four times in five, at the spread between seeds of the table (without one: a spread of S)."""
    found = []
    for claim in claims.answerable(tables):
        if claim.id.startswith("Q2"):  # its remedies are many; their spread is that of the other claims' arms
            continue
        rows = claims.conclude(tables, [claim])
        rows = rows[(rows.part == "primary") & (rows.rule == "above") & (rows.seeds > 1) & rows.p_t.notna()]
        for row in rows.itertuples():
            sd = 0.5 * (row.high - row.low) / scipy_stats.t.ppf(0.975, row.seeds - 1) * math.sqrt(row.seeds)
            found.append((f"{row.claim}, {row.contrast}", sd / row.S))
    rows = []
    for name, spread in found or [("a spread between seeds of S", 1.0)]:
        for seeds in (5, 10):
            measure = f"{name}: visible effect in units of S, {seeds} seeds"
            rows.append(_row(measure, _visible(spread, seeds), f"{SHOWN}; spread {spread:.2g} S", None))
    return rows


def _visible(spread: float, seeds: int) -> float:
    low, high = 0.0, 10.0 * max(1.0, spread)
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if stats.power(middle, spread, 1.0, seeds, draws=4000) >= SEEN else (middle, high)
    return high


# ---- do the instruments agree?


def instruments(study, tools, tables) -> list[Row]:
    """Judge, second judge and power spectrum on contrasts of C1 and C2: a sign counts where the interval excludes 0,
    and then all that count must be the same. Of pictures: variance within prompts, and how far the spectrum is from
    real; of captions: variance. One seed has no interval, so it is only shown."""
    table = tables.get("01_variance")
    if table is None:
        return []
    rows = []
    by = [("judge", "variance_within", "judge", 1), ("judge-2", "variance_within", "judge-2", 1)]
    by.append(("spectrum", "spectrum", "pixels", -1))  # a distance: what lost variance is farther away
    pictures = [(*which, "image", "guidance 1") for which in by]
    captions = [(space, "caption_variance", space, 1, "text", "sampled") for space in ("judge", "judge-2")]
    for control in ("gen0", "real"):
        for name, group in (("pictures", pictures), ("captions", captions)):
            rows += _agreement(table, group, f"{name}: {control} - recursive", control)
    return rows


def _agreement(table: pd.DataFrame, group: list[tuple], measure: str, control: str) -> list[Row]:
    found = {}
    for label, metric, space, sign, modality, measurement in group:
        scale = "log" if metric != "spectrum" else "identity"
        end = claims.Endpoint(modality, metric, measurement, space, scale)
        sides = (claims.Term(control),), (claims.Term("recursive"),)
        there = table[(table.metric == metric) & (table.space == space) & (table.measurement == measurement)]
        if not {control, "recursive"} <= set(there.arm[there.modality == modality]):
            continue
        row = claims.contrast_row(table, claims.Contrast(measure, end, *sides, smallest=1.0))
        if not math.isnan(row.get("effect", math.nan)):
            ends = sorted((sign * row["low"], sign * row["high"])) if not math.isnan(row["low"]) else (math.nan,) * 2
            found[label] = (sign * row["effect"], *ends)
    if len(found) < 2:
        return []
    signs = {label: (low > 0) - (high < 0) for label, (_, low, high) in found.items()}
    agree = len({s for s in signs.values() if s}) <= 1
    known = not any(math.isnan(low) for _, low, _ in found.values())
    allowed = "no clear signs that differ" if known else SHOWN
    return [
        _row(f"{measure}, {label}", value, allowed, agree if known else None, low, high)
        for label, (value, low, high) in found.items()
    ]


_RUN: dict[str, Callable[..., list[Row]]] = {
    "toy": toy,
    "sampling floor": sampling_floor,
    "dose": dose,
    "accumulate": accumulate,
    "learning rate 0": learning_rate_0,
    "round trip": round_trip,
    "shuffled captions": shuffled_captions,
    "real against real": real_against_real,
    "positive control": positive_control,
    "power": power,
    "instruments": instruments,
}
