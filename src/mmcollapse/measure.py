"""Measuring a generation: fixed test prompts and noise, the same for all arms, generations and seeds; samples to the
store, scores of them to the store, rows to the result table.

A group of metrics has a version: bumped when a score of it would change, it makes the old scores be computed anew and
leaves the other groups alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from math import nan

import numpy as np

from mmcollapse.digests import digest_of
from mmcollapse.loop import Study, Weights, prompts
from mmcollapse.metrics import alignment as align
from mmcollapse.metrics import captions as text
from mmcollapse.metrics import images as image
from mmcollapse.metrics import truth
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.judge import Judge
from mmcollapse.models.oracle import Oracle
from mmcollapse.protocol import Protocol
from mmcollapse.store import load_pairs, save_pairs
from mmcollapse.worlds.grammar import parse
from mmcollapse.worlds.scenes import NUISANCE

GROUPS = {"truth": 1, "distance": 1, "support": 1, "alignment": 1, "words": 2, "samples": 1}
SHOWN = 8  # samples a set that are kept for figures

NO_TRUTH = "missing: this world has no known truth"
NO_REDRAW = "missing: this world cannot draw one prompt twice"


@dataclass
class Instruments:
    """The frozen judge and, in a world with known truth, the oracle; and what they see of the real test pictures."""

    study: Study
    judge: Judge
    oracle: Oracle | None
    _drawn: dict = field(default_factory=dict)  # what was sampled: drawing takes longer than looking a score up

    @cached_property
    def digests(self) -> dict[str, str]:
        return {"judge": self.judge.digest} | ({"oracle": self.oracle.digest} if self.oracle else {})

    def sample(self, subset: str, n: int):
        """`n` real pairs to measure on, or as many as a finite world has."""
        split = {"test": "test", "withheld": "test-withheld", "uniform": "test-uniform"}[subset]
        if (split, n) not in self._drawn:
            size = self.study.world.size(split)
            self._drawn[split, n] = self.study.world.sample(split, np.arange(n if size is None else min(n, size)))
        return self._drawn[split, n]

    def trained_on(self, seed: int):
        """Some of a chain's own prompts: the gap to the test prompts is memorisation."""
        if seed not in self._drawn:
            indices, _ = prompts(self.study, seed)
            self._drawn[seed] = self.study.world.sample("chain", indices[: self.study.settings.probes])
        return self._drawn[seed]

    @cached_property
    def prompts(self):
        return self.sample("test", self.study.settings.prompts)

    @cached_property
    def real_features(self) -> np.ndarray:
        """Judge embeddings of the real pictures that KID compares with: of the same prompts, so that a distance is not
        that of two sets of prompts; where a world cannot draw a prompt twice, its test pictures."""
        s, world = self.study.settings, self.study.world
        if world.truth:
            return self.judge.images(_flat(world.redraw(self.prompts.scenes, s.noises, "distance")))
        return self.judge.images(self.sample("test", s.prompts * s.noises).images)

    @cached_property
    def real_nuisance(self) -> dict[str, tuple[float, int]]:
        """Within-prompt variance of each nuisance factor in real pictures of the prompts, read by the same oracle."""
        noises = self.study.settings.noises
        redrawn = _flat(self.study.world.redraw(self.prompts.scenes, noises))
        repeated = [s for s in self.prompts.scenes for _ in range(noises)]
        reading = self.oracle.read(redrawn)
        return truth.within_prompt_variance(reading, repeated, noises)


def _flat(pictures: np.ndarray) -> np.ndarray:
    """(prompts, noises, size, size, 3) to (prompts x noises, size, size, 3)."""
    return pictures.reshape(-1, *pictures.shape[2:])


Scores = dict[str, tuple[float, int]]  # metric -> (value, n)


def measure_generator(study: Study, tools: Instruments, weights: Weights, seed: int) -> list[dict]:
    """Rows of one generator (without experiment, arm, seed, generation)."""
    s = study.settings
    prompts = tools.prompts
    rows = []
    for guidance in dict.fromkeys((1.0, s.default_guidance)):
        rows += _score_pictures(study, tools, weights, prompts, s.noises, guidance, "test", full=True)
    subsets = ["withheld", "uniform"] if study.world.truth else []
    for subset in subsets:
        rows += _score_pictures(study, tools, weights, tools.sample(subset, s.probes), 1, 1.0, subset, full=False)
    if study.world.truth:
        rows += _score_pictures(study, tools, weights, tools.trained_on(seed), 1, 1.0, "train", full=False)
    return rows


def _score_pictures(study, tools, weights, real, noises, guidance, subset, full: bool) -> list[dict]:
    captions = [five[0] for five in real.captions for _ in range(noises)]
    scenes = [scene for scene in real.scenes for _ in range(noises)] if real.scenes else None
    decoding = ImageDecoding(study.settings.measure_steps, guidance)
    keys = [("measure", "generator", i) for i in range(len(captions))]
    inputs = {"makers": weights.digest, "prompts": captions, "decoding": vars(decoding), "noise": "measure"}

    def make(folder):
        adapter = study.models["generator"].hold(weights)
        images = adapter.make(captions, decoding, keys, study.settings.compute_batch)
        return {"digest": save_pairs(folder, images, captions), "n": len(captions)}

    item = study.store.make("pairs", inputs | {"computing": study.computing()}, make)
    scored = _Scored(study, tools, item)
    rows = _Rows(f"guidance {guidance:g}", subset, item.name)

    if scenes is None:
        for metric in ("all_right", "abstains", "two_right", "tail_coverage", "nuisance_ratio"):
            rows.missing(metric, NO_TRUTH)
    else:
        rows.add(
            "oracle", scored("truth", lambda x, c: _picture_truth(study, tools, x, scenes, noises, full), full=full)
        )
    if full:
        rows.add("judge", scored("distance", lambda x, c: _picture_distances(tools, x, noises)))
        rows.add("judge", scored("support", lambda x, c: _picture_support(tools, x)))
        rows.add("judge", scored("alignment", lambda x, c: _alignment(tools, x, c)))
        scored.samples(np.arange(0, len(captions), noises)[:SHOWN])
    scored.done()
    return rows.rows


def _picture_truth(study, tools, images, scenes, noises, full) -> Scores:
    reading, n = tools.oracle.read(images), len(scenes)
    right, two = truth.pictures_right(reading, scenes), np.array([len(s.things) == 2 for s in scenes])
    out: Scores = {"all_right": (right.mean(), n), "abstains": (reading.abstains.mean(), n)}
    if not full:
        return out
    if two.any():
        out["two_right"] = (right[two].mean(), int(two.sum()))
    read = [None if out_ else s for s, out_ in zip(reading.scenes, reading.abstains, strict=True)]
    for name, ok in truth.attributes_right(read, scenes).items():
        out[f"right_{name}"] = (ok.mean(), n)
    share, asked = truth.tail_coverage(read, scenes, study.world.exponent)
    out["tail_coverage"] = (share, asked)
    made, real = truth.within_prompt_variance(reading, scenes, noises), tools.real_nuisance
    logs = []
    for name in NUISANCE:
        ratio = made[name][0] / real[name][0] if real[name][0] > 0 else nan
        out[f"nuisance_ratio_{name}"] = (ratio, made[name][1])
        logs.append(np.log(ratio) if ratio > 0 else nan)
    out["nuisance_ratio"] = (float(np.exp(np.mean(logs))), min(made[name][1] for name in NUISANCE))
    return out


def _picture_distances(tools, images, noises) -> Scores:
    features, n = tools.judge.images(images), len(images)
    within, between = image.split_variance(features, noises)
    return {
        "variance": (image.embedding_variance(features), n),
        "variance_within": (within, n),
        "variance_between": (between, n // noises),
        "kid": (image.kid(tools.real_features, features), n),
    }


def _picture_support(tools, images) -> Scores:
    features, n = tools.judge.images(images), len(images)
    found = {"vendi": image.vendi(features)}
    if min(n, len(tools.real_features)) > 5:
        found |= image.support(tools.real_features, features)
    return {name: (value, n) for name, value in found.items()}


def _alignment(tools, images, captions) -> Scores:
    values = align.alignment(tools.judge.images(images), tools.judge.texts(captions))
    return {name: (value, len(captions)) for name, value in values.items()}


def measure_captioner(
    study: Study, tools: Instruments, weights: Weights, seed: int, protocol: Protocol, generation: int
) -> list[dict]:
    """Rows of one captioner (without experiment, arm, seed, generation)."""
    s = study.settings
    real = tools.sample("test", s.captions)
    matched = study.caption_decoding((), generation)
    greedy = CaptionDecoding(max_tokens=matched.max_tokens)
    rows = []
    if protocol.data != "none":
        rows += _score_captions(study, tools, weights, real, matched, "sampled", "test", full=True)
        rows += _score_captions(study, tools, weights, real, greedy, "greedy", "test", full=True)
        rows += _score_captions(study, tools, weights, tools.trained_on(seed), greedy, "greedy", "train", full=False)
    if protocol.measured_drift:
        drifted = study.caption_decoding(protocol.measured_drift, generation)
        rows += _score_captions(study, tools, weights, real, drifted, "drifting", "test", full=True)
    return rows


def _score_captions(study, tools, weights, real, decoding, measurement, subset, full: bool) -> list[dict]:
    keys = [("measure", "captioner", i) for i in range(len(real.images))]
    inputs = {"makers": weights.digest, "pictures": real.keys, "decoding": vars(decoding), "noise": "measure"}

    def make(folder):
        adapter = study.models["captioner"].hold(weights)
        written = adapter.make(real.images, decoding, keys, study.settings.compute_batch)
        return {"digest": save_pairs(folder, real.images, written), "n": len(written)}

    item = study.store.make("pairs", inputs | {"computing": study.computing()}, make)
    scored, rows = _Scored(study, tools, item), _Rows(measurement, subset, item.name)
    if real.scenes is None:
        for metric in ("all_right", "unreadable", "tail_coverage"):
            rows.missing(metric, NO_TRUTH)
    else:
        rows.add("parser", scored("truth", lambda x, c: _caption_truth(study, c, real.scenes, full), full=full))
    if full:
        rows.add("words", scored("words", lambda x, c: _words(c, real.captions)))
        rows.add("judge", scored("distance", lambda x, c: _caption_variance(study, tools, c)))
        rows.add("judge", scored("alignment", lambda x, c: _alignment(tools, x, c)))
        scored.samples(np.arange(min(SHOWN, len(real.images))))
    scored.done()
    return rows.rows


def _caption_truth(study, captions, scenes, full) -> Scores:
    n, read = len(captions), [parse(c).scene for c in captions]
    out: Scores = {
        "all_right": (truth.captions_right(captions, scenes).mean(), n),
        "unreadable": (np.mean([r is None for r in read]), n),
    }
    if full:
        out |= {f"right_{k}": (ok.mean(), n) for k, ok in truth.attributes_right(read, scenes).items()}
        out["tail_coverage"] = truth.tail_coverage(read, scenes, study.world.exponent)
    return out


def _words(captions, references) -> Scores:
    n = len(captions)
    fewest = min(len(r) for r in references)  # BLEU needs one number of references
    pairs = text.distinct(captions, 2)
    return {
        "bleu4": (text.bleu4(captions, [r[:fewest] for r in references]), n),
        "length": (text.lengths(captions).mean(), n),
        "vocabulary": (float(text.vocabulary(captions)), n),
        "distinct_1": (text.distinct(captions, 1), n),
        "distinct_2": (pairs, 0 if np.isnan(pairs) else n),
        "self_bleu": (text.self_bleu(captions), min(n, 200)),
    }


def _caption_variance(study, tools, captions) -> Scores:
    n, words = len(captions), max(1, round(study.world.references_length() / 2))
    cut = text.first_words(captions, words)  # at half the reference length, which nearly every caption has
    return {
        "caption_variance": (image.embedding_variance(tools.judge.texts(captions)), n),
        "caption_variance_equal_length": (image.embedding_variance(tools.judge.texts(cut)), n),
    }


def measure_world(study: Study, tools: Instruments) -> list[dict]:
    """The reference: real pictures and human (or grammar) captions, measured by the same instruments."""
    s, world = study.settings, study.world
    rows: list[dict] = []
    for guidance in dict.fromkeys((1.0, s.default_guidance)):
        part = _Rows(f"guidance {guidance:g}", "test", f"world {world.digest}")
        captions = [five[0] for five in tools.prompts.captions for _ in range(s.noises)]
        if world.truth:
            images = _flat(world.redraw(tools.prompts.scenes, s.noises, "reference"))
            scenes = [scene for scene in tools.prompts.scenes for _ in range(s.noises)]
            part.add("oracle", _picture_truth(study, tools, images, scenes, s.noises, True))
            part.add("judge", _picture_distances(tools, images, s.noises))
            part.add("judge", _picture_support(tools, images))
            part.add("judge", _alignment(tools, images, captions))
        else:
            for metric in ("variance_within", "variance_between", "nuisance_ratio"):
                part.missing(metric, NO_REDRAW)
            features = tools.judge.images(tools.prompts.images)
            part.add("judge", {"variance": (image.embedding_variance(features), len(features))})
            part.add("judge", _alignment(tools, tools.prompts.images, [five[0] for five in tools.prompts.captions]))
        rows += [r | {"modality": "image"} for r in part.rows]
    real = tools.sample("test", s.captions)
    captions = [five[0] for five in real.captions]
    for measurement in ("sampled", "greedy"):
        part = _Rows(measurement, "test", f"world {world.digest}")
        if world.truth:
            part.add("parser", _caption_truth(study, captions, real.scenes, True))
        # one reference against the other four: BLEU is lower with four than with five references
        others = [five[1:] for five in real.captions]
        if all(others):
            part.add("words", _words(captions, others))
        part.add("judge", _caption_variance(study, tools, captions))
        part.add("judge", _alignment(tools, real.images, captions))
        rows += [r | {"modality": "text"} for r in part.rows]
    return rows


class _Rows:
    def __init__(self, measurement: str, subset: str, hash_: str):
        self.common, self.rows = {"measurement": measurement, "subset": subset, "hash": hash_}, []

    def add(self, space: str, scores: Scores):
        for metric, (value, n) in scores.items():
            self.rows.append(self.common | {"metric": metric, "space": space, "value": float(value), "n": int(n)})

    def missing(self, metric: str, reason: str):
        self.rows.append(self.common | {"metric": metric, "space": reason, "value": nan, "n": 0})


class _Scored:
    """Scores of one measured set, each group computed once and kept in the store."""

    def __init__(self, study: Study, tools: Instruments, item):
        self.study, self.tools, self.item = study, tools, item
        s = study.settings
        # what scores are relative to: the real test set and its size
        self.reference = {"world": study.world.digest, "sizes": [s.prompts, s.noises, s.probes, s.captions]}
        self._pairs = None

    def _open(self):
        if self._pairs is None:
            self._pairs = load_pairs(self.item.files())[:2]
        return self._pairs

    def _inputs(self, group: str) -> dict:
        of = {"of": self.item.digest, "metric": group, "metric version": GROUPS[group]}
        return of | {"instruments": self.tools.digests, "reference": self.reference}

    def __call__(self, group: str, compute, **more) -> Scores:
        def make(folder):
            scores = {k: [None if np.isnan(v) else float(v), int(n)] for k, (v, n) in compute(*self._open()).items()}
            (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
            return {"digest": digest_of(scores)}

        item = self.study.store.make("scores", self._inputs(group) | more, make)
        scores = json.loads((item.files() / "scores.json").read_text())
        return {k: (nan if v is None else v, n) for k, (v, n) in scores.items()}

    def samples(self, which: np.ndarray):
        """Keep a few samples for figures."""

        def make(folder):
            images, captions = self._open()
            columns = {"index": [int(i) for i in which]}
            return {"digest": save_pairs(folder, images[which], [captions[i] for i in which], columns)}

        self.shown = self.study.store.make("scores", self._inputs("samples") | {"shown": which.tolist()}, make)
        SHELF[self.item.name] = self.shown

    def done(self):
        """The scores stay; the samples themselves are pruned unless the settings keep them."""
        if self.study.settings.keep_pictures == "none" and not self.item.manifest.get("pruned"):
            self.study.store.prune(self.item)


# Name of a measured set -> its kept samples, filled while measuring; the experiment writes them beside its table.
SHELF: dict[str, object] = {}
