"""Metrics against the known truth of a scene (world `scenes` only)."""

from __future__ import annotations

import numpy as np

from mmcollapse.models.oracle import Reading
from mmcollapse.worlds.grammar import Scene, Thing, parse, zipf
from mmcollapse.worlds.scenes import NUISANCE, visible

ATTRIBUTES = ("count", "shape", "colour", "size", "relation", "background")


def pictures_right(reading: Reading, scenes: list[Scene]) -> np.ndarray:
    """(n,) bool: the oracle read every attribute of `scenes` and did not abstain. Range of the mean 0-1, higher is
    better."""
    same = np.array([a == b for a, b in zip(reading.scenes, scenes, strict=True)])
    return same & ~reading.abstains


def captions_right(captions: list[str], scenes: list[Scene]) -> np.ndarray:
    """(n,) bool: the caption is a sentence of the grammar and states every attribute of its scene rightly."""
    return np.array([parse(c).scene == s for c, s in zip(captions, scenes, strict=True)])


def attributes_right(read: list[Scene | None], scenes: list[Scene]) -> dict[str, np.ndarray]:
    """For each attribute (n,) bool: read as it should be, in every thing. An unreadable sample (None) is wrong in all;
    another number of things is wrong in what belongs to things."""
    out = {name: np.zeros(len(scenes), bool) for name in ATTRIBUTES}
    for i, (got, want) in enumerate(zip(read, scenes, strict=True)):
        if got is None:
            continue
        out["background"][i] = got.background == want.background
        out["relation"][i] = got.relation == want.relation
        out["count"][i] = len(got.things) == len(want.things)
        if out["count"][i]:
            for k, name in enumerate(("shape", "colour", "size")):
                out[name][i] = all(a[k] == b[k] for a, b in zip(got.things, want.things, strict=True))
    return out


def _cells(scene: Scene) -> set[tuple[int, int]]:
    return {(t.shape, t.colour) for t in scene.things}


def tail_cells(exponent: float, mass: float = 0.5) -> set[tuple[int, int]]:
    """The tail: the rarest shape-colour pairs, which together hold `mass` of the probability."""
    joint = np.outer(zipf(10, exponent), zipf(10, exponent)).ravel()
    order = np.argsort(joint, kind="stable")
    rare = order[np.cumsum(joint[order]) <= mass]
    return {(int(i) // 10, int(i) % 10) for i in rare}


def tail_coverage(read: list[Scene | None], scenes: list[Scene], exponent: float) -> tuple[float, int]:
    """Share of the tail cells asked for by `scenes` that still appear in what was read, and how many were asked for.
    Range 0-1, higher is better; (nan, 0) when no tail cell was asked for. Grows with n: compare at equal n only."""
    tail = tail_cells(exponent)
    asked = set().union(*(_cells(s) for s in scenes)) & tail
    shown = set().union(*(_cells(s) for s in read if s is not None)) if any(s is not None for s in read) else set()
    return (len(asked & shown) / len(asked) if asked else float("nan")), len(asked)


def cell_entropy(read: list[Scene | None]) -> tuple[float, int]:
    """Entropy in bits of the shape-colour pairs of all things that were read, and how many things: (nan, 0) for none.
    0 (one pair alone) to log2(100) = 6.64 (all alike often); 5.75 in the law of the scenes, 5.49 of 1,000 of them.
    Falls when pairs are lost or crowded out, before the last of a pair is gone, which is all that tail coverage sees.
    Biased downwards, by about (pairs - 1) / (2 n ln 2) bits: compare at equal n."""
    cells = [(t.shape, t.colour) for scene in read if scene is not None for t in scene.things]
    if not cells:
        return float("nan"), 0
    share = np.unique(np.array(cells), axis=0, return_counts=True)[1] / len(cells)
    return float(-(share * np.log2(share)).sum()) + 0.0, len(cells)


def sampling_floor(pairs: int, generation: int) -> float:
    """(1 - 1/N)^g: the diversity (probability that two draws differ, relative to the start) that is left when a
    population of N is redrawn from itself g times, with no learning error at all (neutral drift; Wright 1931, Crow and
    Kimura 1970). What is lost beyond it was lost by the model."""
    return (1 - 1 / pairs) ** generation


def within_prompt_variance(reading: Reading, scenes: list[Scene], noises: int) -> dict[str, tuple[float, int]]:
    """{factor: (variance, prompts used)}: unbiased variance of each nuisance factor over the pictures of one prompt,
    averaged over prompts and things. Pictures come prompt by prompt, `noises` of each.

    Units: pixels^2, radians^2, turns^2. A picture counts when the oracle does not abstain and reads the right number of
    things with the right sizes and relation (else another thing would be measured); a prompt counts with two such
    pictures or more. Factors that cannot be seen (rotation of a circle, hue of white) are left out."""
    values = reading.nuisance.reshape(-1, noises, 2, len(NUISANCE))
    usable = np.array(
        [
            not out and got.relation == want.relation and [t.size for t in got.things] == [t.size for t in want.things]
            for got, want, out in zip(reading.scenes, scenes, reading.abstains, strict=True)
        ]
    ).reshape(-1, noises)
    sums = {name: [] for name in NUISANCE}
    for p, scene in enumerate(scenes[::noises]):
        rows = values[p][usable[p]]
        if len(rows) < 2:
            continue
        for k, name in enumerate(NUISANCE):
            seen = [slot for slot in range(len(scene.things)) if visible(scene, name, slot)]
            if seen:
                sums[name].append(np.mean([rows[:, slot, k].var(ddof=1) for slot in seen]))
    return {name: (float(np.mean(v)) if v else float("nan"), len(v)) for name, v in sums.items()}


def _attributes(scene: Scene) -> dict[str, int | None]:
    out = {"background": scene.background, "relation": scene.relation}
    for slot, thing in enumerate(scene.things):
        out |= {f"{name}{slot}": value for name, value in thing._asdict().items()}
    return out


def caption_errors(images: np.ndarray, captions: list[str], oracle) -> dict[str, list[list[str]]]:
    """For each caption of a picture (n, size, size, 3) uint8 the attributes of which it says another value than the
    oracle sees; by the number of things seen, "1" or "2". A caption that cannot be read, or speaks of another number of
    things, is wrong in all."""
    wrong: dict[str, list[list[str]]] = {}
    for seen, caption in zip(oracle.read(images).scenes, captions, strict=True):
        said = parse(caption).scene
        told = _attributes(said) if said is not None and len(said.things) == len(seen.things) else {}
        there = {name: value for name, value in _attributes(seen).items() if value is not None}
        wrong.setdefault(str(len(seen.things)), []).append([n for n, v in there.items() if told.get(n) != v])
    return wrong


VALUES = {"shape": 10, "colour": 10, "size": 2, "relation": 2, "background": 5}


def damage(scene: Scene, errors: dict[str, list[list[str]]], random: np.random.Generator) -> Scene:
    """`scene` with the attributes of one of the `errors` (of caption_errors, drawn at random among those of as many
    things) replaced by other values, all of them equally likely: so as many captions are wrong, in as many attributes
    at once, as those that were copied; but not the same ones."""
    patterns = errors.get(str(len(scene.things)), [[]])
    pattern = patterns[int(random.random() * len(patterns))]

    def other(name: str, value: int | None) -> int | None:
        n, shift = VALUES[name.rstrip("01")], random.random()  # drawn for all, so that draws stay in step
        return (value + 1 + int(shift * (n - 1))) % n if name in pattern else value

    things = tuple(
        Thing(*(other(f"{name}{slot}", value) for name, value in thing._asdict().items()))
        for slot, thing in enumerate(scene.things)
    )
    return Scene(things, other("relation", scene.relation), other("background", scene.background))
