"""Is somebody's synthetic data collapsing? Sets of pictures, one a generation, of any origin: in what, since when, and
how sure. How sets are read: check_sets.py; what is measured: check_subsets.py; what counts as a change:
check_statistics.py.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from mmcollapse.check_sets import LARGEST, Set, decoded, read_set, sides
from mmcollapse.check_statistics import DRAWS, compare
from mmcollapse.check_subsets import (
    DIMENSIONS,
    METRICS,
    OF_CAPTIONS,
    OF_PAIRS,
    OF_REAL,
    VENDI_MOST,
    Rows,
)
from mmcollapse.digests import digest_of
from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import ROOT

FEWEST = 50  # pictures a set: of fewer nothing is stated
MOST = 2000  # pictures a set: tables of all pairs of pictures are kept in memory
MOST_GENERATIONS = 25
SHOWN = 8  # pictures a set, for the page
READ, UNREADABLE = 200, 0.5  # pictures shown to the oracle; share of them it may not be able to read


@dataclass
class Check:
    """What a check found. found: what check.json holds,

        verdict, collapsing     in words; whether collapse was found
        warning                 that the space was not made for such pictures, or ""
        alpha, n, space, side   false alarms allowed; pictures a set; feature space; pixels a side as measured
        generations, real       {number, name, pictures, digest} of each set as given (real: None without); number:
                                what a filter generation=... calls it, else its place
        dimensions              by name {state: "collapsing", "passing" (some generation was outside its band, the last
                                is not), "no sign" or "left out"; since: first generation from which on all later ones
                                are outside, or None; by: metrics that say so; p; why: it was left out}
        metrics                 by name {dimension, rises; values: one a generation; real: {level, low, high}, of real
                                pictures, 95% of sets of this size; trend: {slope, p} a generation, or None;
                                generations: for 1, 2, ... {change, share (of generation 0's value, or None), band,
                                visible (the change found in 4 of 5 cases), p, outside}}
        start                   metrics in which generation 0 itself is beyond the real's 95%, on the side of collapse
        left_out                {metric: why}
        cannot                  what the check cannot know, in words

    p are adjusted for all metrics and generations. shown: (name, pictures (k, side, side, 3) uint8) of every set."""

    found: dict
    shown: list[tuple[str, np.ndarray]]

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
        return self.found["verdict"]

    @property
    def collapsing(self) -> bool:
        """Whether collapse was found."""
        return self.found["collapsing"]

    def __repr__(self) -> str:
        from mmcollapse.check_report import in_words

        return in_words(self.found)

    def _repr_html_(self) -> str:
        """The page, in a frame of its own: what a notebook shows."""
        from mmcollapse.check_report import figures, page

        frame = "border: 0; width: 100%; height: 60em"
        return f'<iframe style="{frame}" srcdoc="{html.escape(page(self.found, figures(self)))}"></iframe>'

    def save(self, out: str | Path) -> Path:
        """Write report.html, check.json and figures to the folder `out`; returns the page."""
        from mmcollapse.check_report import save

        return save(self, Path(out))


def check(
    generations: Sequence[str | Path],
    real: str | Path | None = None,
    space: str | None = None,
    alpha: float = 0.05,
    models: str | Path | None = None,
    instruments: str | Path | None = None,
) -> Check:
    """Check the sets at `generations`, generation 0 first, against each other and the `real` ones.

    Each is a folder or a Parquet file (see check_sets.py). space: a feature space of metrics/spaces.py; by default the
    judge of scenes, for pictures of 64 pixels. alpha: chance of a false alarm, of the whole check. models, instruments:
    folders of judges and of inception/, clip/, dino/. Equal files give equal results, whatever they are called.
    MMCollapseError: sets that cannot be read or are too small, a space that is not at hand."""
    if not 0.001 <= alpha <= 0.5:
        raise MMCollapseError(f"alpha={alpha}: allowed are 0.001 to 0.5")
    generations = [generations] if isinstance(generations, str | Path) else list(generations)
    if not 2 <= len(generations) <= MOST_GENERATIONS:
        raise MMCollapseError(
            f"generations={[str(path) for path in generations]}: 2 to {MOST_GENERATIONS} can be compared, generation 0 "
            "first"
        )
    if len(generations) / alpha > DRAWS + 1:  # the lowest p could not be told from chance
        least = len(generations) / (DRAWS + 1)
        raise MMCollapseError(
            f"alpha={alpha:g} of {len(generations)} generations: {least:.3g} is the least that can be"
        )
    models = Path(models) if models else ROOT / "data" / "models" / "scenes"
    instruments = Path(instruments) if instruments else ROOT / "data" / "models" / "instruments"

    cannot: list[str] = []
    whole, reals = [read_set(path) for path in generations], read_set(real) if real is not None else None
    reals = _apart(whole, reals, cannot)
    for one in [*whole, *([reals] if reals else [])]:
        if len(one.entries) < FEWEST:
            raise MMCollapseError(
                f"{one.name} has {len(one.entries)} pictures: {FEWEST} are the fewest that show anything"
            )
    n = min(MOST, *(len(one.entries) for one in whole))
    sets = [one.first(n) for one in whole]
    drawn = [*sets, *([reals.first(2 * n)] if reals else [])]
    side = _side(drawn, cannot)
    opened, name = _open(space, side, models, instruments)
    reads = hasattr(opened, "texts")
    left_out = _left_out(whole, sets, reals, name, reads, cannot)
    with tqdm(total=sum(len(one.entries) for one in drawn), desc="looking at pictures") as bar:
        rows, shown = zip(*(_features(opened, one, side, reads, bar) for one in drawn), strict=True)
    dimensions = rows[0].images.shape[1]
    if min(n, dimensions) > VENDI_MOST:
        left_out["vendi"] = f"{n} pictures in {dimensions} dimensions take too long: up to {VENDI_MOST} of either"
    few = min(n, len(rows[-1].images))
    if reals and few < 10 * dimensions:
        left_out.setdefault("fid", f"{few} pictures are too few for {dimensions} dimensions: {10 * dimensions} needed")
    wanted = [metric for metric in METRICS if metric not in left_out]
    if not wanted:
        raise MMCollapseError(f"{whole[0].name} and the others are the same pictures without captions: nothing differs")
    warning = ""
    if name.startswith("judge"):
        warning = _foreign(models, reals or whole[0], cannot)
    else:
        cannot.append(
            f"Whether the features of {name}, made for photos, fit these pictures: nothing measured here tells."
        )
    cannot.append("Whether another run would do the same: these are sets of one chain.")
    if "variance" not in left_out:
        cannot.append(
            "Whether pictures that spread are varied: broken ones, and mixtures of several, spread too, so that in "
            "variance a collapse can show late or not at all. Look at fidelity and alignment beside it."
        )

    found = compare(
        rows[: len(sets)], rows[-1] if reals else None, wanted, alpha, standardise=name != "inception", progress=True
    )
    numbers = _numbers([one.name for one in whole])
    told = [
        {"number": number, "name": one.name, "pictures": len(one.entries), "digest": digest_of(one.keys)[:20]}
        for number, one in zip(numbers, whole, strict=True)
    ]
    about = {"alpha": alpha, "n": n, "space": name, "side": side, "generations": told, "real": None}
    if reals:
        about["real"] = {"name": reals.name, "pictures": len(reals.entries), "digest": digest_of(reals.keys)[:20]}
    if not reals:
        cannot.append("Whether generation 0 had lost anything already: no real pictures were given.")
    elif len(reals.entries) < 2 * n:
        cannot.append(
            f"What real against real would show at this size: it takes two sets of {n} real pictures, and there are "
            f"{len(reals.entries)}."
        )
    summary = _summary(found, left_out, n, alpha, numbers) | {"warning": warning, "start": _start(found)}
    found = summary | about | {"metrics": found, "left_out": left_out, "cannot": cannot}
    labels = [f"generation {number}" for number in numbers] + ["real"] * bool(reals)
    return Check(_plain(found), list(zip(labels, shown, strict=True)))


# ---- what is measured, and what is not


def _apart(whole: list[Set], reals: Set | None, cannot: list[str]) -> Set | None:
    """The real pictures that are in no generation: a picture is no measure of itself."""
    if reals is None:
        return None
    known = {key for one in whole for key in one.keys}
    kept = [k for k, key in enumerate(reals.keys) if key not in known]
    if len(kept) == len(reals.keys) or _same(whole):
        return reals
    if len(kept) < FEWEST:
        raise MMCollapseError(
            f"of {len(reals.keys)} real pictures in {reals.name} all but {len(kept)} are in a generation too, and no "
            f"measure of themselves: give {FEWEST} others, or none"
        )
    cannot.append(
        f"{len(reals.keys) - len(kept)} real pictures are in a generation too; they are left out of the real."
    )
    return Set(reals.name, [reals.entries[k] for k in kept], [reals.keys[k] for k in kept])


def _same(sets: Sequence[Set]) -> bool:
    """Whether all sets are of the same pictures: captions of them are compared."""
    return all(sorted(one.keys) == sorted(sets[0].keys) for one in sets)


def _same_captions(sets: Sequence[Set]) -> bool:
    """Whether all sets have the same captions: those are prompts, and of the pictures that answer to them."""
    return len({tuple(sorted(str(entry.caption) for entry in one.entries)) for one in sets}) == 1


def _side(sets: list[Set], cannot: list[str]) -> int:
    """Pixels a side that all pictures are brought to: the smallest there is."""
    found = sides(sets)
    side = min(LARGEST, min(min(size) for size in found))
    if found != {(side, side)}:
        cannot.append(
            f"What was lost by bringing all pictures to one size: of {len(found)} size{'s' * (len(found) > 1)}, they "
            f"were cut to the central square and resized (bicubic) to {side} x {side}, the smallest."
        )
    return side


def _open(space: str | None, side: int, models: Path, instruments: Path):
    """The feature space and its name."""
    import torch

    from mmcollapse.metrics.spaces import open_space

    if space is None and side != 64:
        raise MMCollapseError(
            f"pictures of {side} x {side}: the judge of scenes knows 64 x 64; name the space (--space inception, clip "
            "or dino, with --instruments FOLDER)"
        )
    name = space or "judge"
    return open_space(name, models, instruments, "cuda" if torch.cuda.is_available() else "cpu"), name


def _numbers(names: list[str]) -> list[int]:
    """What generations are called: as their filters say (FILE.parquet:generation=5), if those rise, else 0, 1, ..."""
    said = [re.search(r":(?:.* )?generation=(\d+)", name) for name in names]
    numbers = [int(found.group(1)) for found in said if found]
    rise = len(numbers) == len(names) and all(a < b for a, b in itertools.pairwise(numbers))
    return numbers if rise else list(range(len(names)))


def _left_out(whole: list[Set], sets: list[Set], reals: Set | None, space: str, reads: bool, cannot: list[str]) -> dict:
    """Metric -> why it is not measured. whole: the generations; sets: as many pictures of each."""
    out: dict[str, str] = {}
    n, different = len(sets[0].entries), len({entry.caption for entry in sets[0].entries})
    if without := [one.name for one in sets if not one.captioned]:
        out |= dict.fromkeys((*OF_CAPTIONS, *OF_PAIRS), f"no captions in {without[0]}")
    elif not _same(whole) and _same_captions(whole):
        out |= dict.fromkeys(OF_CAPTIONS, "all generations have the same captions")
    if not without and not reads:
        out |= dict.fromkeys((*OF_PAIRS, "caption_variance"), f"{space} reads no text; clip and the judge do")
    if reals is None:
        out |= dict.fromkeys(OF_REAL, "no real pictures to compare with")
    if _same(sets):
        out |= dict.fromkeys(("variance", "vendi", *OF_REAL), "all generations are of the same pictures")
    elif not without and not _same_captions(whole) and different < 0.8 * n:
        cannot.append(
            f"Generation 0 has {different} different captions for {n} pictures. Pictures of one prompt are no "
            "independent ones: unless all generations answer to the same prompts, changes are less sure than is said."
        )
    return out


def _features(space, one: Set, side: int, reads: bool, bar: tqdm) -> tuple[Rows, np.ndarray]:
    """The set in the space, and its first pictures."""
    parts, shown = [], []
    for batch in decoded(one, side):
        parts.append(space.images(batch))
        bar.update(len(batch))
        shown += list(batch[: max(0, SHOWN - len(shown))])
    captions = [entry.caption for entry in one.entries] if one.captioned else None
    texts = space.texts(captions) if captions and reads else None
    return Rows(np.concatenate(parts), texts, captions), np.stack(shown)


def _foreign(models: Path, one: Set, cannot: list[str]) -> str:
    """A warning if the pictures are none of scenes, which the judge in `models` was trained on, else "".

    The oracle says so. The judge's own features do not: in them 98% of photos lie among scenes (precision of 200 photos
    of Flickr8k among 1,000 scenes), for it sees a scene in anything. Of the same photos the oracle cannot read 99%; of
    pictures of the shipped generators it reads 95% or more."""
    from mmcollapse.models.oracle import Oracle

    folder = models / "oracle"
    if not folder.is_dir():
        cannot.append(f"Whether the judge in {models} knows such pictures: there is no oracle of its world beside it.")
        return ""
    pictures = np.concatenate(list(decoded(one.first(READ), 64)))
    unreadable = Oracle(folder).read(pictures).abstains.mean()
    if unreadable <= UNREADABLE:
        return ""
    return (
        "The judge knows pictures of scenes only, and these are others, or damaged: as a scene the oracle cannot read "
        f"{unreadable:.0%} of those in {one.name}. What the judge says of them has little weight; use another space."
    )


# ---- the verdict


def _summary(metrics: dict, left_out: dict[str, str], n: int, alpha: float, numbers: list[int]) -> dict:
    """verdict, collapsing and dimensions of a Check. numbers: what the generations are called."""
    dimensions = {}
    for name in DIMENSIONS:
        own = {metric: found for metric, found in metrics.items() if found["dimension"] == name}
        if own:
            dimensions[name] = _dimension(own, alpha)
            if dimensions[name]["since"]:
                dimensions[name]["since"] = numbers[dimensions[name]["since"]]
        else:
            why = next(left_out[metric] for metric, about in METRICS.items() if about.dimension == name)
            dimensions[name] = {"state": "left out", "since": None, "by": [], "p": None, "why": why}
    collapsing = any(d["state"] == "collapsing" for d in dimensions.values())
    verdict = _collapse(dimensions) if collapsing else _no_sign(metrics, n)
    return {"verdict": verdict, "collapsing": collapsing, "dimensions": dimensions}


def _start(metrics: dict) -> list[str]:
    """The metrics in which generation 0 is already beyond what real pictures show, on the side of collapse."""
    known = {m: (f["values"][0], f["real"]) for m, f in metrics.items() if f["real"] and f["real"]["low"] is not None}
    return [m for m, (v, real) in known.items() if (v > real["high"] if METRICS[m].rises else v < real["low"])]


def _dimension(own: dict[str, dict], alpha: float) -> dict:
    last = {metric: found["generations"][-1] for metric, found in own.items()}
    trends = {m: f["trend"]["p"] for m, f in own.items() if f["trend"]}
    p = min(min(cell["p"] for cell in last.values()), *trends.values(), 1.0)
    by = [metric for metric, cell in last.items() if cell["outside"]]
    if by:
        return {"state": "collapsing", "since": min(_since(own[m]) for m in by), "by": by, "p": p, "why": ""}
    if by := [metric for metric, trend in trends.items() if trend <= alpha]:
        return {"state": "collapsing", "since": None, "by": by, "p": p, "why": ""}
    by = [metric for metric, found in own.items() if any(cell["outside"] for cell in found["generations"])]
    return {"state": "passing" if by else "no sign", "since": None, "by": by, "p": p, "why": ""}


def _since(found: dict) -> int:
    """The first generation from which on all are outside; the last one is."""
    outside = [cell["outside"] for cell in found["generations"]]
    return next(g for g in range(1, len(outside) + 1) if all(outside[g - 1 :]))


def _collapse(dimensions: dict) -> str:
    since: dict = {}
    for name, found in dimensions.items():
        if found["state"] == "collapsing":
            since.setdefault(found["since"], []).append(name)
    parts = []
    for generation in sorted(since, key=lambda g: (g is None, g)):
        when = f"since generation {generation}" if generation else "over the generations, none of which stands out"
        names = ["distance from real" if name == "distance" else name for name in since[generation]]
        parts.append(f"{_listed(names)} {when}")
    return "collapsing in " + "; in ".join(parts)


def _no_sign(metrics: dict, n: int) -> str:
    seen: dict[str, str] = {}  # by dimension
    for metric, found in metrics.items():
        cell, start = found["generations"][-1], found["values"][0]
        if METRICS[metric].share and start:
            seen.setdefault(found["dimension"], f"{100 * cell['visible'] / abs(start):.2g}% in {metric}")
    sight = f"a change of {_listed([*seen.values()])}, or more" if seen else "nothing that has a share"
    return (
        f"no sign of collapse that {n} pictures a generation could show (it would have seen, in 4 of 5 cases, {sight})"
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _plain(value):
    """As JSON takes it: six digits, None for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
