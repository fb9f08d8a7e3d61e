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

from mmcollapse.digests import digest_arrays, digest_of
from mmcollapse.errors import MMCollapseError
from mmcollapse.kept import keep
from mmcollapse.loop import Pairs, Study, Weights, prompts
from mmcollapse.metrics import alignment as align
from mmcollapse.metrics import captions as text
from mmcollapse.metrics import images as image
from mmcollapse.metrics import truth
from mmcollapse.metrics.spaces import open_space
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.language import Language
from mmcollapse.models.oracle import Oracle
from mmcollapse.protocol import MODALITY, Member, Protocol
from mmcollapse.store import load_pairs, save_pairs
from mmcollapse.worlds.grammar import parse
from mmcollapse.worlds.scenes import NUISANCE

GROUPS = {
    "truth": 2,
    "features": 2,
    "pixels": 1,
    "alignment": 2,
    "words": text.VERSION,
    "caption features": 1,
    "perplexity": 1,
}
GROUPS |= {"real": 2, "samples": 1, "set": 2}
# The settings that a group's scores depend on beside the measured set: which real pictures it is compared with.
SIZES = {group: ("prompts", "noises") for group in ("truth", "features", "pixels")}
SHOWN = 8  # samples a set that are kept for figures
REPLICATES = 5  # how often real is measured against real: the band behind the curves

NO_TRUTH = "this world has no known truth"
NO_REDRAW = "this world cannot draw one prompt twice"
NO_SECOND = "this world has no second set of real pictures of the same prompts"
ONE_A_PROMPT = "a training set has one picture a prompt"
ONE_REFERENCE = "a second caption of the same picture is needed"
UNREADABLE = "undefined: too little could be read"
NO_LANGUAGE = "the base models have no language model (`make pretrain` makes it)"


@dataclass
class Instruments:
    """What measures, all of it frozen: feature spaces by name, in a world with known truth the oracle, and the language
    model if the base models have one; and what they see of the real test pictures."""

    study: Study
    spaces: dict[str, object]
    oracle: Oracle | None
    language: Language | None
    # Measured set -> its kept samples and their prompts, filled while measuring; the experiment writes them out.
    shown: dict[str, tuple] = field(default_factory=dict)
    _drawn: dict = field(default_factory=dict)  # what was sampled: drawing takes longer than looking a score up

    @cached_property
    def digests(self) -> dict[str, str]:
        """{instrument: digest of its weights}; "parser" and "words" are code, whose version is that of their group."""
        found = {name: space.digest for name, space in self.spaces.items()}
        found |= {"oracle": self.oracle.digest} if self.oracle else {}
        return found | ({"language": self.language.digest} if self.language else {})

    @cached_property
    def reading(self) -> dict[str, object]:
        """The spaces that can read captions too."""
        return {name: space for name, space in self.spaces.items() if hasattr(space, "texts")}

    def sample(self, subset: str, n: int):
        """`n` real pairs to measure on, or as many as a finite world has."""
        split = {"test": "test", "withheld": "test-withheld", "uniform": "test-uniform"}[subset]
        if (split, n) not in self._drawn:
            size = self.study.world.size(split)
            self._drawn[split, n] = self.study.world.sample(split, np.arange(n if size is None else min(n, size)))
        return self._drawn[split, n]

    def trained_on(self, seed: int, protocol: Protocol, generation: int):
        """Some of the prompts that a generation of a chain was trained on (see loop.prompts), as many as the setting
        probes where there are so many: the gap to the test prompts is memorisation."""
        key = seed, protocol.pairs, max(0, generation - 1) if protocol.fresh else 0
        if key not in self._drawn:
            indices, _ = prompts(self.study, *key)
            self._drawn[key] = self.study.world.sample("chain", indices[: self.study.settings.probes])
        return self._drawn[key]

    @cached_property
    def prompts(self):
        """The real test pairs whose captions are the prompts of what is measured."""
        return self.sample("test", self.study.settings.prompts)

    @cached_property
    def real_images(self) -> np.ndarray:
        """The real pictures that distances compare with: of the same prompts, so that a distance is not that of two
        sets of prompts; where a world cannot draw a prompt twice, its test pictures."""
        s, world = self.study.settings, self.study.world
        if world.truth:
            return flat(world.redraw(self.prompts.scenes, s.noises, "distance"))
        return self.sample("test", s.prompts * s.noises).images

    def real_features(self, space: str) -> np.ndarray:
        """Features (n, d) of `real_images`."""
        return self._of_real(
            space, {"instrument": self.digests[space]}, lambda: self.spaces[space].images(self.real_images)
        )

    @property
    def real_spectrum(self) -> np.ndarray:
        """Radial power spectrum of `real_images`."""
        return self._of_real("spectrum", {}, lambda: image.spectrum(self.real_images, self.study.device))

    def _of_real(self, what: str, by: dict, compute) -> np.ndarray:
        """An array that describes real pictures, kept in the store by content: all chains compare with the same, and to
        draw the pictures again takes seconds."""
        if ("real", what) not in self._drawn:
            inputs = {"metric": "real", "metric version": GROUPS["real"], "of": f"real pictures: {what}"}

            def make(folder):
                array = compute()
                np.save(folder / "array.npy", array)
                return {"digest": digest_arrays({"array": array})}

            item = self.study.store.make("scores", inputs | self.reference(SIZES["features"]) | by, make)
            self._drawn["real", what] = np.load(item.files() / "array.npy")
        return self._drawn["real", what]

    def reference(self, sizes: tuple[str, ...]) -> dict:
        """What scores are relative to: the real test set, its sizes, and the device that measures."""
        s = self.study.settings
        known = {"world": self.study.world.digest, "device": self.study.device}
        return known | {"sizes": {name: getattr(s, name) for name in sizes}}

    @property
    def real_nuisance(self) -> dict[str, tuple[float, int]]:
        """Within-prompt variance of each nuisance factor in real pictures of the prompts, read by the same oracle."""

        def compute():
            noises = self.study.settings.noises
            redrawn = flat(self.study.world.redraw(self.prompts.scenes, noises))
            repeated = [s for s in self.prompts.scenes for _ in range(noises)]
            found = truth.within_prompt_variance(self.oracle.read(redrawn), repeated, noises)
            return np.array([found[name] for name in NUISANCE])

        values = self._of_real("nuisance", {"instrument": self.digests["oracle"]}, compute)
        return {name: (float(value), int(n)) for name, (value, n) in zip(NUISANCE, values, strict=True)}


def flat(pictures: np.ndarray) -> np.ndarray:
    """(prompts, noises, size, size, 3) to (prompts x noises, size, size, 3)."""
    return pictures.reshape(-1, *pictures.shape[2:])


def open_instruments(study: Study, device: str) -> Instruments:
    """The instruments that the settings name. MMCollapseError: a space that is unknown or not at hand."""
    s = study.settings
    names = [name.strip() for name in s.spaces.split(",")]
    if len(set(names)) < len(names):
        raise MMCollapseError(f"setting spaces={s.spaces!r}: a space is named twice")
    spaces = {name: open_space(name, s.models_folder, s.instruments_folder, device) for name in names}
    language = s.models_folder / "language"
    return Instruments(
        study,
        spaces,
        study.oracle,
        Language(language, device) if language.is_dir() else None,
    )


Scores = dict[str, tuple[float, int] | str]  # metric -> (value, n), or why it could not be computed


Makers = list[tuple[str, Weights]]  # models by name; of several, every sample is made by the next in turn


def measure_member(study, tools, protocol: Protocol, member: Member, weights: Weights, seed: int, g: int) -> list[dict]:
    """Rows of one model of a chain (without experiment, arm, seed, generation)."""
    maker = [(member.model, weights)]
    if member.role == "generator":
        rows = measure_generator(study, tools, maker, seed, protocol, g)
    else:
        rows = measure_captioner(study, tools, maker, seed, protocol, g)
    return [r | {"modality": MODALITY[member.role], "model": member.label} for r in rows]


def measure_pool(study: Study, tools: Instruments, role: str, makers: Makers) -> list[dict]:
    """Rows of several models together, as if they were one (model "pool"): its variance shows how they differ."""
    s = study.settings
    if role == "generator":
        rows = _score_pictures(study, tools, makers, tools.prompts, s.noises, 1.0, "test", full=True)
    else:
        real = tools.sample("test", s.captions)
        rows = _score_captions(study, tools, makers, real, _matched(study, makers), "sampled", "test", full=True)
    return [r | {"modality": MODALITY[role], "model": "pool"} for r in rows]


def measure_student(study: Study, tools: Instruments, role: str, weights: Weights, number: int) -> list[dict]:
    """Rows of a fresh base model that was trained on a generation's data: what it gets right (model "student 0")."""
    s, maker = study.settings, [(study.zoo[role][0], weights)]
    if role == "generator":
        rows = _score_pictures(study, tools, maker, tools.prompts, s.noises, 1.0, "test", full=False)
    else:
        real, greedy = tools.sample("test", s.captions), CaptionDecoding(max_tokens=_matched(study, maker).max_tokens)
        rows = _score_captions(study, tools, maker, real, greedy, "greedy", "test", full=False)
    return [r | {"modality": MODALITY[role], "model": f"student {number}"} for r in rows]


def _matched(study: Study, makers: Makers) -> CaptionDecoding:
    """Ancestral sampling, as long as every one of the captioners can write."""
    decodings = [study.caption_decoding(name) for name, _ in makers]
    return min(decodings, key=lambda d: d.max_tokens)


def measure_generator(study, tools, maker: Makers, seed: int, protocol: Protocol, generation: int) -> list[dict]:
    """Rows of one generator; of the setting measure="full" also at the default guidance and on further prompts."""
    s = study.settings
    prompts, full = tools.prompts, s.measure == "full"
    rows = []
    for guidance in dict.fromkeys((1.0, s.default_guidance) if full else (1.0,)):
        rows += _score_pictures(study, tools, maker, prompts, s.noises, guidance, "test", full=True)
    if study.world.truth and full:
        for subset in ("withheld", "uniform"):
            rows += _score_pictures(study, tools, maker, tools.sample(subset, s.probes), 1, 1.0, subset, full=False)
        own = tools.trained_on(seed, protocol, generation)
        rows += _score_pictures(study, tools, maker, own, 1, 1.0, "train", full=False)
    return rows


def _score_pictures(study, tools, makers: Makers, real, noises, guidance, subset, full: bool) -> list[dict]:
    captions = [five[0] for five in real.captions for _ in range(noises)]
    scenes = [scene for scene in real.scenes for _ in range(noises)] if real.scenes else None
    decoding = ImageDecoding(study.settings.measure_steps, guidance)
    keys = [("measure", "generator", i) for i in range(len(captions))]
    inputs = {"makers": _digests(makers), "prompts": captions, "decoding": vars(decoding), "noise": "measure"}
    made: list[tuple[np.ndarray, list[str]]] = []

    def make(folder):
        def by(adapter, rows):
            asked, noise = [captions[i] for i in rows], [keys[i] for i in rows]
            return adapter.make(asked, decoding, noise, study.settings.compute_batch)

        images = np.stack(_in_turn(study, makers, len(captions), by))
        made.append((images, captions))
        return {"digest": save_pairs(folder, images, captions), "n": len(captions)}

    item = study.store.make("pairs", inputs | {"computing": study.computing()}, make)
    scored = _Scored(study, tools, item, made.pop() if made else None)
    rows = Rows(f"guidance {guidance:g}", subset, item.name)

    if scenes is None:
        for metric in ("all_right", "abstains", "two_right", "tail_coverage", "cell_entropy", "nuisance_ratio"):
            rows.add("oracle", {metric: NO_TRUTH})
    else:
        found = scored(
            "truth", "oracle", lambda: _picture_truth(study, tools, scored.images, scenes, noises, full), full
        )
        rows.add("oracle", found)
    if full:
        rows.add("pixels", scored("pixels", "", lambda: _picture_pixels(tools, scored.images)))
        for name in tools.spaces:
            found = scored("features", name, lambda n=name: _picture_features(tools, n, scored.seen(n), noises))
            rows.add(name, found)
        for name in tools.reading:
            rows.add(name, scored("alignment", name, lambda n=name: alignment_scores(scored.seen(n), scored.read(n))))
        scored.samples(np.arange(0, len(captions), noises)[:SHOWN], captions)
        keep(tools, scored, rows.common, noises)
    scored.done()
    return rows.rows


def _digests(makers: Makers):
    return makers[0][1].digest if len(makers) == 1 else [weights.digest for _, weights in makers]


def _in_turn(study, makers: Makers, n: int, by) -> list:
    """`n` samples, the i-th by the model number i modulo their count; by(adapter, indices) makes some."""
    out = [None] * n
    for k, (name, weights) in enumerate(makers):
        rows = range(k, n, len(makers))
        for i, sample in zip(rows, by(study.models[name].hold(weights), rows) if rows else [], strict=True):
            out[i] = sample
    return out


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
    out["cell_entropy"] = (truth.cell_entropy(read)[0], n)
    made, real = truth.within_prompt_variance(reading, scenes, noises), tools.real_nuisance
    logs = []
    for name in NUISANCE:
        ratio = made[name][0] / real[name][0] if real[name][0] > 0 else nan
        out[f"nuisance_ratio_{name}"] = (ratio, made[name][1])
        logs.append(np.log(ratio) if ratio > 0 else nan)
    out["nuisance_ratio"] = (float(np.exp(np.mean(logs))), min(made[name][1] for name in NUISANCE))
    return out


def _picture_features(tools, space, features, noises: int) -> Scores:
    """noises: pictures a prompt; 0 where they are not grouped by prompt."""
    real, n, k = tools.real_features(space), len(features), 5
    out: Scores = {"variance": (image.embedding_variance(features), n), "vendi": (image.vendi(features), n)}
    if noises:
        within, between = image.split_variance(features, noises)
        out |= {"variance_within": (within, n), "variance_between": (between, n // noises)}
    else:
        out |= {"variance_within": NO_REDRAW, "variance_between": NO_REDRAW}
    # raw Inception features: then it is the KID that others report
    out["kid"] = (image.kid(real, features, standardise=space != "inception", device=tools.study.device), n)
    few, d = min(n, len(real)), features.shape[1]
    if few >= 10 * d:
        out["fid"] = (image.frechet(real, features), few)
    else:
        out["fid"] = f"{few} pictures are too few for {d} dimensions: {10 * d} are needed"
    if few > k:
        out |= {name: (value, few) for name, value in image.support(real, features, k, tools.study.device).items()}
    else:
        out |= dict.fromkeys(("precision", "recall", "density", "coverage"), f"{few} pictures: {k + 1} are needed")
    return out


def _picture_pixels(tools, images) -> Scores:
    made = image.spectrum(images, tools.study.device)
    return {"spectrum": (image.spectrum_distance(tools.real_spectrum, made), len(images))}


def alignment_scores(seen: np.ndarray, read: np.ndarray) -> Scores:
    """P, W, RMG, L2M and CLIPScore of pictures and their captions, from features (n, d) of either."""
    values = align.alignment(seen, read) | {"clip_score": align.clip_score(seen, read)}
    return {name: (value, len(seen)) for name, value in values.items()}


def measure_captioner(study, tools, maker: Makers, seed: int, protocol: Protocol, generation: int) -> list[dict]:
    """Rows of one captioner; of the setting measure="full" also on pictures that it was trained on."""
    s = study.settings
    real = tools.sample("test", s.captions)
    matched = _matched(study, maker)
    greedy = CaptionDecoding(max_tokens=matched.max_tokens)
    rows = []
    if protocol.trains or not protocol.measured_drift:
        rows += _score_captions(study, tools, maker, real, matched, "sampled", "test", full=True)
        rows += _score_captions(study, tools, maker, real, greedy, "greedy", "test", full=True)
        if s.measure == "full":
            own = tools.trained_on(seed, protocol, generation)
            rows += _score_captions(study, tools, maker, own, greedy, "greedy", "train", full=False)
    if protocol.measured_drift:
        drifted = study.caption_decoding(maker[0][0], protocol.measured_drift, generation)
        rows += _score_captions(study, tools, maker, real, drifted, "drifting", "test", full=True)
    return rows


def _score_captions(study, tools, makers: Makers, real, decoding, measurement, subset, full: bool) -> list[dict]:
    keys = [("measure", "captioner", i) for i in range(len(real.images))]
    inputs = {"makers": _digests(makers), "pictures": real.keys, "decoding": vars(decoding), "noise": "measure"}
    made: list[tuple[np.ndarray, list[str]]] = []

    def make(folder):
        def by(adapter, rows):
            noise = [keys[i] for i in rows]
            return adapter.make(real.images[list(rows)], decoding, noise, study.settings.compute_batch)

        written = _in_turn(study, makers, len(real.images), by)
        made.append((real.images, written))
        return {"digest": save_pairs(folder, real.images, written), "n": len(written)}

    item = study.store.make("pairs", inputs | {"computing": study.computing()}, make)
    scored, rows = _Scored(study, tools, item, made.pop() if made else None), Rows(measurement, subset, item.name)
    if real.scenes is None:
        for metric in ("all_right", "unreadable", "tail_coverage", "cell_entropy"):
            rows.add("parser", {metric: NO_TRUTH})
    else:
        found = scored("truth", "", lambda: _caption_truth(study, scored.captions, real.scenes, full), full)
        rows.add("parser", found)
    if full:
        rows.add("words", scored("words", "", lambda: word_scores(scored.captions, real.captions)))
        if tools.language:
            rows.add("language", scored("perplexity", "language", lambda: _perplexity(tools, scored.captions)))
        else:
            rows.add("language", {"perplexity": NO_LANGUAGE})
        for name in tools.reading:
            found = scored(
                "caption features",
                name,
                lambda n=name: _caption_features(study, tools, n, scored.captions, scored.read(n)),
            )
            rows.add(name, found)
            rows.add(name, scored("alignment", name, lambda n=name: alignment_scores(scored.seen(n), scored.read(n))))
        scored.samples(np.arange(min(SHOWN, len(real.images))), [five[0] for five in real.captions])
        keep(tools, scored, rows.common)
    scored.done()
    return rows.rows


def measure_set(study: Study, tools: Instruments, protocol: Protocol, pairs: Pairs) -> list[dict]:
    """Rows of the pairs that a generation is trained on (model "set", measurement "data"): the quality of the pictures,
    where a generator is trained on them, and of the captions, where a captioner is; and what they cost, in forward
    passes a pair. References of a caption are the other four of the real picture that it answers to."""
    name = f"set-{pairs.digest[:20]}"
    used = ("set", "truth", "alignment")
    used += ("features", "pixels") if "generator" in protocol.trains else ()
    used += ("words", "caption features", "perplexity") if "captioner" in protocol.trains else ()
    versions = {group: GROUPS[group] for group in used}
    inputs = tools.reference(("prompts", "noises")) | {"metric": "set", "metric version": versions, "of": pairs.digest}
    inputs |= {"instruments": tools.digests, "answers to": pairs.real.keys, "roles": protocol.trains}

    def make(folder):
        images, captions = pairs.open()
        found = {}
        if "generator" in protocol.trains:
            found["image"] = _set_pictures(study, tools, images, captions, pairs.real.scenes)
        if "captioner" in protocol.trains:
            seen = {space: tools.spaces[space].images(images) for space in tools.reading}
            others = [five[1:] for five in pairs.real.captions]
            found["text"] = captions_found(study, tools, seen, captions, others, pairs.real.scenes)
        rows = []
        for modality, scores in found.items():
            part = Rows("data", "chain", name)
            for space, values in scores.items():
                part.add(space, values)
            part.add("cost", {"passes": (pairs.passes / len(captions), len(captions))})
            rows += [r | {"modality": modality, "model": "set"} for r in part.rows]
        rows = [r | {"value": None if np.isnan(r["value"]) else r["value"]} for r in rows]
        (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
        few = list(range(min(SHOWN, len(captions))))
        save_pairs(folder, images[few], [captions[i] for i in few], {"index": few})
        return {"digest": digest_of(rows), "made of": [item.name for item in pairs.items]}

    item = study.store.make("scores", inputs, make)
    tools.shown[name] = (item, [five[0] for five in pairs.real.captions[:SHOWN]])
    rows = json.loads((item.files() / "rows.json").read_text())
    return [r | {"value": nan if r["value"] is None else r["value"]} for r in rows]


def _set_pictures(study, tools, images, captions, scenes) -> dict[str, Scores]:
    """All that is measured of training pictures, one a prompt, by instrument."""
    found: dict[str, Scores] = {"pixels": _picture_pixels(tools, images)}
    if scenes:
        scores = _picture_truth(study, tools, images, scenes, 1, True)
        found["oracle"] = {k: v for k, v in scores.items() if not k.startswith("nuisance")}
    for name, space in tools.spaces.items():
        features = space.images(images)
        found[name] = _picture_features(tools, name, features, 0) | dict.fromkeys(
            ("variance_within", "variance_between"), ONE_A_PROMPT
        )
        if name in tools.reading:
            found[name] |= alignment_scores(features, space.texts(captions))
    return found


def _caption_truth(study, captions, scenes, full) -> Scores:
    n, read = len(captions), [parse(c).scene for c in captions]
    out: Scores = {
        "all_right": (truth.captions_right(captions, scenes).mean(), n),
        "unreadable": (np.mean([r is None for r in read]), n),
    }
    if full:
        out |= {f"right_{k}": (ok.mean(), n) for k, ok in truth.attributes_right(read, scenes).items()}
        out["tail_coverage"] = truth.tail_coverage(read, scenes, study.world.exponent)
        out["cell_entropy"] = (truth.cell_entropy(read)[0], n)
    return out


def word_scores(captions, references) -> Scores:
    """What captions.SCORES has, and of how many captions."""
    found = {name: score(captions, references) for name, score in text.SCORES.items()}
    most = {"self_bleu": text.SELF_BLEU_MOST}
    return {k: (v, 0 if np.isnan(v) else min(len(captions), most.get(k, len(captions)))) for k, v in found.items()}


def _perplexity(tools, captions) -> Scores:
    nats, tokens = tools.language.surprise(captions)
    return {"perplexity": (float(np.exp(nats.sum() / tokens.sum())), len(captions))}


def _caption_features(study, tools, space, captions, whole) -> Scores:
    n, words = len(captions), max(1, round(study.world.references_length() / 2))
    cut = text.first_words(captions, words)  # at half the reference length, which nearly every caption has
    start = tools.spaces[space].texts(cut)
    return {
        "caption_variance": (image.embedding_variance(whole), n),
        "caption_variance_equal_length": (image.embedding_variance(start), n),
        "caption_vendi": (image.vendi(whole), n),
    }


def measure_world(study: Study, tools: Instruments) -> list[dict]:
    """The references, measured by the same instruments: arm "world", real against real, REPLICATES times (seeds -1, -2,
    ...: real pictures of the same prompts drawn anew; captions that people, or the grammar, wrote of the same pictures,
    each time one of the references against the others); arm "vae", the first of these sets of pictures sent through the
    generator's autoencoder, which no arm trains: what a generator can reach at best."""
    inputs = tools.reference(("prompts", "noises", "captions")) | {
        "metric": "real",
        "metric version": GROUPS,
        "of": "world and autoencoder",
    }
    inputs |= {"instruments": tools.digests, "autoencoder": _first_generator(study).digest}
    inputs |= {"computing": study.computing(), "guidance": study.settings.default_guidance, "replicates": REPLICATES}

    def make(folder):
        rows = _measure_world(study, tools)
        (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
        return {"digest": digest_of(rows)}

    item = study.store.make("scores", inputs, make)
    rows = json.loads((item.files() / "rows.json").read_text())
    return [r | {"value": nan if r["value"] is None else r["value"]} for r in rows]


def _measure_world(study, tools) -> list[dict]:
    s, world, real = study.settings, study.world, tools.sample("test", study.settings.captions)
    rows: list[dict] = []

    def add(arm, replicate, modality, measurements, found: dict[str, Scores]):
        for measurement in measurements:
            part = Rows(measurement, "test", f"world {world.digest}")
            for space, scores in found.items():
                part.add(space, scores)
            whose = {"arm": arm, "seed": -1 - replicate, "generation": 0, "modality": modality}
            rows.extend(r | whose | {"value": None if np.isnan(r["value"]) else r["value"]} for r in part.rows)

    guidances = [f"guidance {g:g}" for g in dict.fromkeys((1.0, s.default_guidance))]
    prompts = [five[0] for five in tools.prompts.captions for _ in range(s.noises)]
    if world.truth:
        first = None
        for k in range(REPLICATES):
            images = flat(world.redraw(tools.prompts.scenes, s.noises, "reference" if k == 0 else f"reference {k}"))
            first = images if first is None else first
            add("world", k, "image", guidances, pictures_found(study, tools, images, prompts))
    else:
        first, prompts = tools.prompts.images, [five[0] for five in tools.prompts.captions]
        add("world", 0, "image", guidances, _alone(pictures_found(study, tools, first, prompts)))
    adapter = _first_generator(study)
    batches = adapter.encode(first, prompts)["latents"].split(s.compute_batch)
    through = np.concatenate([adapter.decode(batch) for batch in batches])
    found = pictures_found(study, tools, through, prompts)
    add("vae", 0, "image", guidances, found if world.truth else _alone(found))

    seen = {name: space.images(real.images) for name, space in tools.reading.items()}
    for k in range(min(REPLICATES, min(len(five) for five in real.captions))):
        # one reference against the other four: BLEU is lower with four than with five references
        others = [five[:k] + five[k + 1 :] for five in real.captions]
        found = captions_found(study, tools, seen, [five[k] for five in real.captions], others, real.scenes)
        add("world", k, "text", ("sampled", "greedy"), found)
    return rows


def _first_generator(study: Study):
    return study.models[study.zoo["generator"][0]].adapter


def _alone(found: dict[str, Scores]) -> dict[str, Scores]:
    """Without the distances: in a finite world the reference holds these very pictures."""
    distances = ("kid", "fid", "precision", "recall", "density", "coverage", "spectrum")
    return {
        space: {k: NO_SECOND if k in distances else v for k, v in scores.items()} for space, scores in found.items()
    }


def captions_found(study, tools, seen: dict[str, np.ndarray], captions, references, scenes) -> dict[str, Scores]:
    """All that is measured of captions, by instrument. seen: features of their pictures, by space; references may be
    empty lists, scenes None."""
    found: dict[str, Scores] = {"parser": _caption_truth(study, captions, scenes, True)} if scenes else {}
    found["words"] = word_scores(captions, references) if all(references) else dict.fromkeys(text.SCORES, ONE_REFERENCE)
    found |= {"language": _perplexity(tools, captions)} if tools.language else {}
    for name, space in tools.reading.items():
        read = space.texts(captions)
        found[name] = _caption_features(study, tools, name, captions, read) | alignment_scores(seen[name], read)
    return found


def pictures_found(study, tools, images, prompts) -> dict[str, Scores]:
    """All that is measured of pictures of the test prompts, by instrument."""
    truth_known, noises = study.world.truth, study.settings.noises
    found: dict[str, Scores] = {"pixels": _picture_pixels(tools, images)}
    if truth_known:
        scenes = [scene for scene in tools.prompts.scenes for _ in range(noises)]
        found["oracle"] = _picture_truth(study, tools, images, scenes, noises, True)
    for name, space in tools.spaces.items():
        features = space.images(images)
        found[name] = _picture_features(tools, name, features, noises if truth_known else 0)
        if name in tools.reading:
            found[name] |= alignment_scores(features, space.texts(prompts))
    return found


class Rows:
    """Rows of a result table about one measured set, without arm, seed, generation and model."""

    def __init__(self, measurement: str, subset: str, hash_: str):
        self.common, self.rows = {"measurement": measurement, "subset": subset, "hash": hash_}, []

    def add(self, space: str, scores: Scores):
        for metric, found in scores.items():
            why, (value, n) = (found, (nan, 0)) if isinstance(found, str) else ("", found)
            if not why and np.isnan(value):
                why, n = UNREADABLE, 0
            row = {"metric": metric, "space": space, "value": float(value), "missing": why, "n": int(n)}
            self.rows.append(self.common | row)


class _Scored:
    """Scores of one measured set, each group computed once and kept in the store; its features, each computed once for
    all groups that need them. made: the set's pictures and captions, if they are still at hand."""

    def __init__(self, study: Study, tools: Instruments, item, made: tuple[np.ndarray, list[str]] | None = None):
        self.study, self.tools, self.item, self.made = study, tools, item, made
        self._features: dict[tuple[str, str], np.ndarray] = {}

    @cached_property
    def _pairs(self):
        return self.made or load_pairs(self.item.files())[:2]

    images = property(lambda self: self._pairs[0])
    captions = property(lambda self: self._pairs[1])

    def seen(self, space: str) -> np.ndarray:
        """Features (n, d) of the pictures."""
        if (space, "images") not in self._features:
            self._features[space, "images"] = self.tools.spaces[space].images(self.images)
        return self._features[space, "images"]

    def read(self, space: str) -> np.ndarray:
        """Features (n, d) of the captions."""
        if (space, "texts") not in self._features:
            self._features[space, "texts"] = self.tools.spaces[space].texts(self.captions)
        return self._features[space, "texts"]

    def _inputs(self, group: str) -> dict:
        of = {"of": self.item.digest, "metric": group, "metric version": GROUPS[group]}
        return of | {"reference": self.tools.reference(SIZES.get(group, ()))}

    def __call__(self, group: str, instrument: str, compute, full: bool = True) -> Scores:
        def make(folder):
            scores = compute()
            plain = {k: v if isinstance(v, str) else _plain(*v) for k, v in scores.items()}
            (folder / "scores.json").write_text(json.dumps(plain, indent=1) + "\n")
            return {"digest": digest_of(plain)}

        by = {"instrument": self.tools.digests[instrument]} if instrument else {}
        item = self.study.store.make("scores", self._inputs(group) | by | {"full": full}, make)
        scores = json.loads((item.files() / "scores.json").read_text())
        return {k: v if isinstance(v, str) else (nan if v[0] is None else v[0], v[1]) for k, v in scores.items()}

    def samples(self, which: np.ndarray, prompts: list[str]):
        """Keep a few samples, and what they answer to, for figures."""

        def make(folder):
            columns = {"index": [int(i) for i in which]}
            return {"digest": save_pairs(folder, self.images[which], [self.captions[i] for i in which], columns)}

        item = self.study.store.make("scores", self._inputs("samples") | {"shown": which.tolist()}, make)
        self.tools.shown[self.item.name] = (item, [prompts[i] for i in which])

    def done(self):
        """The scores stay; the samples themselves are pruned unless the settings keep them."""
        remade = "_pairs" in vars(self)  # had been pruned, and something asked for them once more
        vars(self).pop("_pairs", None)  # what makes the samples once more, should they be damaged, holds on to this
        self.made = None
        if self.study.settings.keep_pictures == "none" and (remade or not self.item.manifest.get("pruned")):
            self.study.store.prune(self.item)


def _plain(value: float, n: int) -> list:
    return [None if np.isnan(value) else float(value), int(n)]
