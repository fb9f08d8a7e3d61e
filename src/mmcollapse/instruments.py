"""Can the instruments be believed? Real pictures and captions, damaged by a known amount, and real against real at
several sizes, measured exactly as a generation is: `make instruments` writes RESULTS/00_instruments.parquet.

Rows have the columns of any result table: arm is the damage ("real" for none), measurement its strength ("0" to "1")
or the sample size ("n 500"), seed the repeat. What is exactly known of the damaged set stands beside, in space "truth".
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd

from mmcollapse import measure
from mmcollapse.disk import checksum
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import open_study, write_provenance
from mmcollapse.metrics import images as image
from mmcollapse.metrics import truth
from mmcollapse.pairs import FILE
from mmcollapse.settings import Settings
from mmcollapse.store import load_pairs
from mmcollapse.table import to_table, write_table
from mmcollapse.worlds.grammar import zipf
from mmcollapse.worlds.scenes import NUISANCE

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIZES = (50, 100, 200, 500, 1000, 2000)  # up to four times the setting captions
REPEATS = {"damage": 2, "size": 8}


# ---- damage to pictures: (pictures (n, size, size, 3) uint8, strength 0-1, random) -> pictures


def _noise(images, strength, random):
    """Gaussian noise of up to 60 of 255."""
    return (images + random.normal(0, 60 * strength, images.shape)).clip(0, 255).astype(np.uint8)


def _blur(images, strength, random):
    """A Gaussian of up to 3 pixels."""
    from scipy.ndimage import gaussian_filter

    wide = 3 * strength
    return gaussian_filter(images.astype(np.float32), (0, wide, wide, 0)).round().astype(np.uint8)


def _grey(images, strength, random):
    """Colours fade, to none."""
    grey = images.mean(3, keepdims=True)
    return (images + strength * (grey - images)).round().astype(np.uint8)


def _saturated(images, strength, random):
    """Every channel up to three times as far from the picture's mean, as guidance that is too high makes it."""
    mean = images.mean((1, 2), keepdims=True)
    return (mean + (1 + 2 * strength) * (images - mean)).clip(0, 255).round().astype(np.uint8)


def _mixed(images, strength, random):
    """That share of the pictures is the mean of two."""
    hit = random.random(len(images)) < strength
    other = images[random.permutation(len(images))]
    return np.where(hit[:, None, None, None], (images.astype(np.uint16) + other) // 2, images).astype(np.uint8)


PIXELS = {"noise": _noise, "blur": _blur, "grey": _grey, "saturated": _saturated, "mixed": _mixed}


# ---- all of it


def instruments(settings: Settings) -> pd.DataFrame:
    """Measure, write the table and return it. A world with known truth only (it needs exact truth to compare with)."""
    study, tools = open_study(settings)
    if not study.world.truth:
        raise MMCollapseError(f"setting world={settings.world!r}: the instruments are tested on a world of known truth")
    began, rows = time.monotonic(), []

    def say(what: str):
        print(f"[{time.monotonic() - began:.0f} s] {what}", flush=True)

    def add(arm: str, strength: str, repeat: int, modality: str, found: dict[str, measure.Scores], of: str = ""):
        part = measure.Rows(strength, "test", of or f"world {study.world.digest}")
        for space, scores in found.items():
            part.add(space, scores)
        whose = {"experiment": "00_instruments", "arm": arm, "seed": repeat, "generation": 0, "modality": modality}
        rows.extend(r | whose for r in part.rows)

    for repeat in range(REPEATS["damage"]):
        for arm, strength, modality, found in _damaged(study, tools, repeat, say):
            add(arm, f"{strength:g}", repeat, modality, found)
    for repeat in range(REPEATS["size"]):
        say(f"real against real, {repeat + 1} of {REPEATS['size']}")
        for n, modality, found in _by_size(study, tools, repeat):
            add("real", f"n {n}", repeat, modality, found)
    if (seen := settings.results_folder / "00_eyes").is_dir():
        say("pictures that were checked by eye")
        for generation, found in _by_eye(tools, seen):
            add("by eye", f"generation {generation}", 0, "image", found, f"eyes {checksum(seen / FILE)['sha256'][:20]}")
    table, path = to_table(rows), settings.results_folder / "00_instruments.parquet"
    write_table(table, path)
    write_provenance(path.with_suffix(".json"), study, tools, table, time.monotonic() - began)
    return table


def _damaged(study, tools, repeat: int, say):
    """(damage, strength, modality, scores by space) of real pictures and captions of the test prompts."""
    world, noises = study.world, study.settings.noises
    scenes = [s for s in tools.prompts.scenes for _ in range(noises)]
    prompts = [five[0] for five in tools.prompts.captions for _ in range(noises)]
    stream = f"damage {repeat}"
    real = measure.flat(world.redraw(tools.prompts.scenes, noises, stream))
    random = np.random.default_rng(repeat)
    adapter = study.models[study.zoo["generator"][0]].adapter

    def pictures(images, shown=None, **true):
        """Scores, and beside them what is exactly known: shown, the scenes that the pictures show."""
        found = measure.pictures_found(study, tools, images, prompts)
        exact: measure.Scores = {k: (v, len(scenes)) for k, v in true.items()}
        if shown:
            right = np.mean([a == b for a, b in zip(shown, scenes, strict=True)])
            exact["all_right"] = (right, len(scenes))
            exact["tail_coverage"] = truth.tail_coverage(shown, scenes, world.exponent)
        return found | ({"truth": exact} if exact else {})

    for name, damage in PIXELS.items():
        say(f"damage {name}, {repeat + 1} of {REPEATS['damage']}")
        for s in STRENGTHS:
            yield name, s, "image", pictures(damage(real, s, random))
    say("autoencoder, wrong scenes, lost modes, less variety")
    through = real
    for s in STRENGTHS:  # 0 to 4 times through the autoencoder
        yield "autoencoder", s, "image", pictures(through)
        batches = adapter.encode(through, prompts)["latents"].split(study.settings.compute_batch)
        through = np.concatenate([adapter.decode(batch) for batch in batches])
    rank = np.argsort(-np.outer(zipf(10, world.exponent), zipf(10, world.exponent)).ravel(), kind="stable")
    place = {(int(c) // 10, int(c) % 10): k for k, c in enumerate(rank)}  # 0: the commonest shape and colour
    for s in STRENGTHS:
        # that share of the pictures shows another prompt's scene
        other = np.where(random.random(len(real)) < s, random.permutation(len(real)), np.arange(len(real)))
        yield "wrong scene", s, "image", pictures(real[other], shown=[scenes[i] for i in other])
        # the rarest pairs of shape and colour are drawn as the commonest that is left of them: s = 1 leaves 5 of 100
        left = max(5, round(100 * (1 - s)))
        shown = [_only(scene, place, left) for scene in scenes]
        nuisance = world._nuisance(shown, _uniforms(world, stream, len(shown)))
        yield "lost modes", s, "image", pictures(world.draw(shown, nuisance), shown=shown)
        # nuisance factors shrink towards their mean over the pictures of a prompt, to a tenth at s = 1
        factor = 1 - 0.9 * s
        nuisance = world._nuisance(scenes, _uniforms(world, stream, len(scenes)))
        grouped = nuisance.reshape(-1, noises, 2, len(NUISANCE))
        mean = grouped.mean(1, keepdims=True)
        narrow = (mean + factor * (grouped - mean)).reshape(nuisance.shape)
        yield "less variety", s, "image", pictures(world.draw(scenes, narrow), scenes, nuisance_ratio=factor**2)

    say("captions")
    batch = tools.sample("test", study.settings.captions)
    own = [five[0] for five in batch.captions]
    n = len(own)
    seen = {name: space.images(batch.images) for name, space in tools.reading.items()}

    def written(captions, right):
        others = [five[1:] for five in batch.captions]
        found = measure.captions_found(study, tools, seen, captions, others, batch.scenes)
        return found | {"truth": {"all_right": (right, n)}}

    for s in STRENGTHS:
        hit = random.random(n) < s
        other = np.where(hit, random.permutation(n), np.arange(n))
        right = np.mean([batch.scenes[i] == batch.scenes[k] for i, k in enumerate(other)])
        yield "wrong caption", s, "text", written([own[i] for i in other], right)
        # one caption for all, the fate of a captioner that has collapsed
        first = np.where(hit, 0, np.arange(n))
        right = np.mean([batch.scenes[i] == batch.scenes[k] for i, k in enumerate(first)])
        yield "one caption", s, "text", written([own[i] for i in first], right)
        jumbled = [" ".join(random.permutation(c.split())) if h else c for c, h in zip(own, hit, strict=True)]
        right = truth.captions_right(jumbled, batch.scenes).mean()
        yield "jumbled words", s, "text", written(jumbled, right)


def _uniforms(world, stream: str, n: int) -> np.ndarray:
    """The draws behind `redraw` of that stream."""
    from mmcollapse.worlds.scenes import uniforms

    return uniforms(world.seed, stream, np.arange(n), 11)


def _only(scene, place: dict, left: int):
    """The scene with every pair of shape and colour beyond the `left` commonest replaced by one of these."""
    cells = sorted(place, key=place.get)
    things = tuple(
        thing
        if place[thing.shape, thing.colour] < left
        else thing._replace(
            **dict(zip(("shape", "colour"), cells[place[thing.shape, thing.colour] % left], strict=True))
        )
        for thing in scene.things
    )
    return scene._replace(things=things)


def _by_size(study, tools, repeat: int):
    """(n, modality, scores by space) of n real pictures and captions against n others."""
    world, most = study.world, 4 * study.settings.captions
    sizes = [n for n in SIZES if n <= most] or [most]
    most = max(sizes)
    first = 1_000_000 + repeat * 2 * most  # test pictures that nothing else is measured on
    a, b = (world.sample("test", np.arange(start, start + most)) for start in (first, first + most))
    features = {name: (space.images(a.images), space.images(b.images)) for name, space in tools.spaces.items()}
    spectra = [(image.spectrum(a.images[:n]), image.spectrum(b.images[:n])) for n in sizes]
    texts = {name: space.texts([five[0] for five in b.captions]) for name, space in tools.reading.items()}
    for n, (one, other) in zip(sizes, spectra, strict=True):
        found: dict[str, measure.Scores] = {"pixels": {"spectrum": (image.spectrum_distance(one, other), n)}}
        for name, (real, new) in features.items():
            real, new = real[:n], new[:n]
            scores = {"fid": image.frechet(real, new, least=0), "kid": image.kid(real, new)}
            scores |= {"vendi": image.vendi(new), "variance": image.embedding_variance(new)}
            scores |= image.support(real, new)
            found[name] = {k: (v, n) for k, v in scores.items()}
            if name in texts:
                found[name] |= measure.alignment_scores(new, texts[name][:n])
        yield n, "image", found
        captions, others = [five[0] for five in b.captions[:n]], [five[1:] for five in b.captions[:n]]
        cells = truth.tail_coverage(b.scenes[:n], b.scenes, world.exponent)
        found = {"words": measure.word_scores(captions, others), "parser": {"tail_coverage": (cells[0], n)}}
        for name in texts:
            scores = {"caption_variance": image.embedding_variance(texts[name][:n])}
            scores["caption_vendi"] = image.vendi(texts[name][:n])
            found[name] = {k: (v, n) for k, v in scores.items()}
        yield n, "text", found


def _by_eye(tools, path: Path):
    """(generation, scores by space) of model-made pictures that somebody looked at: what oracle and judges say of the
    same pictures. agreement: share of pictures of which oracle and eye say the same; kappa: Cohen's, above chance;
    auc: that a picture found right by eye lies nearer to its caption than one found wrong."""
    from mmcollapse.worlds.grammar import parse

    images, captions, columns = load_pairs(path)
    eye, generations = np.array(columns["right"], bool), np.array(columns["generation"])
    scenes = [parse(c).scene for c in captions]
    reading = tools.oracle.read(images)
    oracle, abstains = truth.pictures_right(reading, scenes), reading.abstains
    near = {}
    for name, space in tools.reading.items():
        x, y = space.images(images), space.texts(captions)
        near[name] = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    for g in [*sorted(set(generations.tolist())), "all"]:
        at = np.ones(len(eye), bool) if g == "all" else generations == g
        n, e, o = int(at.sum()), eye[at], oracle[at]
        same, chance = (e == o).mean(), e.mean() * o.mean() + (1 - e.mean()) * (1 - o.mean())
        found = {"truth": {"all_right": (e.mean(), n)}}
        found["oracle"] = {"all_right": (o.mean(), n), "abstains": (abstains[at].mean(), n), "agreement": (same, n)}
        found["oracle"]["kappa"] = ((same - chance) / (1 - chance), n)
        for name, cosine in near.items():
            wrong, right = cosine[at][~e], cosine[at][e]
            above = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
            found[name] = {"auc": (float(above), n)}
        yield g, found
