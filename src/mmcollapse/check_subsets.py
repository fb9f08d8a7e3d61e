"""Metrics of many subsets of one pool of pictures and captions at once.

A permutation test asks for the metrics of thousands of subsets. Those of mmcollapse/metrics that are made of sums and
counts follow from products of the subsets' masks with tables computed once; the tests hold them equal to those
functions. A subset is a row of `masks` (b, N) bool over the N rows of the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from mmcollapse.metrics import images as image
from mmcollapse.metrics.captions import SELF_BLEU_MOST, _tokenizer, tokens

K = 5  # neighbours of precision, recall, density and coverage
NEAR = 64  # nearest of the pool, among which the K-th of a subset is nearly always
VENDI_MOST = 256  # dimensions (or pictures): the eigenvalues of a larger matrix take too long a thousand times
AT_ONCE = 128  # subsets


@dataclass(frozen=True)
class Metric:
    """dimension: of collapse; rises: whether collapse raises it (else it falls); label: in words, for figures; share:
    whether a change is told as a share of generation 0's value."""

    dimension: str
    rises: bool
    label: str
    share: bool = True


DIMENSIONS = ("variance", "tails", "alignment", "repetition", "fidelity", "distance")
METRICS = {
    "variance": Metric("variance", False, "variance of pictures"),
    "vendi": Metric("variance", False, "Vendi score of pictures"),
    "W": Metric("variance", False, "spread W of pairs"),
    "caption_variance": Metric("variance", False, "variance of captions"),
    "recall": Metric("tails", False, "recall of real"),
    "coverage": Metric("tails", False, "coverage of real"),
    "vocabulary": Metric("tails", False, "vocabulary"),
    "P": Metric("alignment", True, "pair distance P"),
    "clip_score": Metric("alignment", False, "CLIPScore"),
    "self_bleu": Metric("repetition", True, "self-BLEU"),
    "distinct_1": Metric("repetition", False, "distinct words"),
    "distinct_2": Metric("repetition", False, "distinct word pairs"),
    "distinct_captions": Metric("repetition", False, "distinct captions"),  # different ones, a share of n
    "precision": Metric("fidelity", False, "precision"),
    "density": Metric("fidelity", False, "density"),
    "kid": Metric("distance", True, "KID to real", False),
    "fid": Metric("distance", True, "FID to real", False),
}
OF_CAPTIONS = ("caption_variance", "vocabulary", "self_bleu", "distinct_1", "distinct_2", "distinct_captions")
OF_PAIRS = ("W", "P", "clip_score")  # these and caption_variance need a space that reads text
OF_REAL = ("recall", "coverage", "precision", "density", "kid", "fid")


@dataclass
class Rows:
    """What is known of n pictures: features (n, d) of them, and of their captions (None: no captions, or a space that
    reads no text), and the captions (or None)."""

    images: np.ndarray
    texts: np.ndarray | None = None
    captions: list[str] | None = None

    def take(self, which) -> Rows:
        texts = None if self.texts is None else self.texts[which]
        captions = None if self.captions is None else [self.captions[i] for i in np.arange(len(self.images))[which]]
        return Rows(self.images[which], texts, captions)


def pool(sets: Sequence[Rows]) -> Rows:
    """Sets of equal size as one, a row of each in turn: so the first captions of a subset are of all of them."""

    def turns(parts):
        return None if any(part is None for part in parts) else np.stack(parts, 1).reshape(-1, *parts[0].shape[1:])

    captions = turns([None if s.captions is None else np.array(s.captions, object) for s in sets])
    captions = None if captions is None else captions.tolist()
    return Rows(turns([s.images for s in sets]), turns([s.texts for s in sets]), captions)


class Subsets:
    """The metrics of subsets of `rows`; real: features (m, d) that distances compare with, or None; wanted: names of
    METRICS; standardise: see images.kid. Called with masks it returns {metric: (b,) float64}."""

    def __init__(self, rows: Rows, real: np.ndarray | None, wanted: Sequence[str], standardise: bool = True):
        self.rows, self.real, self.wanted = rows, real, wanted
        self.parts: list[Callable[[np.ndarray], dict]] = []
        if "variance" in wanted:
            self.parts.append(_variance("variance", rows.images))
        if "caption_variance" in wanted:
            self.parts.append(_variance("caption_variance", rows.texts))
        if "P" in wanted:
            self.parts.append(_pairs(rows.images, rows.texts))
        if "coverage" in wanted:
            self.parts += [_support(real, rows.images), _recall(real, rows.images)]
        if "kid" in wanted:
            self.parts.append(_kid(real, rows.images, standardise))
        if "vocabulary" in wanted:
            self.parts += [_words(rows.captions), _self_bleu(rows.captions)]
        each = {"vendi": image.vendi, "fid": lambda features: image.frechet(real, features)}
        self.each = {name: function for name, function in each.items() if name in wanted}

    def __call__(self, masks: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, list] = {}
        for start in range(0, len(masks), AT_ONCE):
            some = masks[start : start + AT_ONCE]
            values = {name: value for part in self.parts for name, value in part(some).items()}
            for name, function in self.each.items():
                values[name] = np.array([function(self.rows.images[mask]) for mask in some])
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        return {name: np.concatenate(found[name]) for name in self.wanted}


def _variance(name: str, features: np.ndarray):
    x = features.astype(np.float64)
    x = x - x.mean(0)  # else the difference of two large sums is rounding
    square = np.square(x).sum(1)

    def of(masks):
        n, total = masks.sum(1), masks.astype(float) @ x
        return {name: (masks @ square - np.square(total).sum(1) / n) / (n - 1) / x.shape[1]}

    return of


def _pairs(images: np.ndarray, texts: np.ndarray):
    x, y = image.unit_length(images), image.unit_length(texts)
    cosine = (x * y).sum(1)

    def of(masks):
        n, m = masks.sum(1), masks.astype(float)
        spread = sum(n * n - np.square(m @ v).sum(1) for v in (x, y)) / (2 * n * (n - 1))
        return {"P": 1 - m @ cosine / n, "W": spread, "clip_score": m @ (100 * cosine).clip(min=0) / n}

    return of


def _support(real: np.ndarray, features: np.ndarray):
    reach = np.partition(_distances(real, real), K, axis=1)[:, K]  # the 0-th is the picture itself
    inside = _distances(real, features) < reach[:, None]
    some, count, balls = inside.any(0).astype(float), inside.sum(0).astype(float), inside.T.astype(np.float32)

    def of(masks):
        n, m = masks.sum(1), masks.astype(float)
        covered = (masks.astype(np.float32) @ balls > 0.5).mean(1)
        return {"precision": m @ some / n, "density": m @ count / n / K, "coverage": covered}

    return of


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return image.distances(*(torch.from_numpy(v.astype(np.float64, order="C")) for v in (a, b))).numpy()


def _recall(real: np.ndarray, features: np.ndarray):
    """Recall of images.support: the balls are around the subset's own pictures, so they change with it."""
    apart, own = _distances(real, features), _distances(features, features)
    np.fill_diagonal(own, np.inf)
    some = min(NEAR, len(own) - 1)
    near = np.argpartition(own, some - 1, axis=1)[:, :some]
    near = np.take_along_axis(near, np.take_along_axis(own, near, 1).argsort(1), 1)

    def one(mask):
        rows = np.flatnonzero(mask)
        there = mask[near[rows]].cumsum(1)
        reach = own[rows, near[rows, (there >= K).argmax(1)]]
        if (short := there[:, -1] < K).any():
            reach[short] = np.partition(own[np.ix_(rows[short], rows)], K - 1, axis=1)[:, K - 1]
        return (apart[:, rows] < reach).any(1).mean()

    return lambda masks: {"recall": np.array([one(mask) for mask in masks])}


def _kid(real: np.ndarray, features: np.ndarray, standardise: bool):
    """As images.kid of up to 1,000 pictures; of more, of all of them at once instead of subsets."""
    centre, scale = real.mean(0), real.std(0)
    scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, 1.0)
    x, r = ((v - centre) / scale if standardise else v for v in (features, real))
    kernel, cross, own = ((a @ b.T / x.shape[1] + 1.0) ** 3 for a, b in ((x, x), (x, r), (r, r)))
    kernel, towards, diagonal = kernel.astype(float), cross.mean(1, dtype=float), np.diag(kernel).astype(float)
    constant = (own.sum(dtype=float) - np.trace(own, dtype=float)) / (len(r) * (len(r) - 1))

    def of(masks):
        n, m = masks.sum(1), masks.astype(float)
        among = (((m @ kernel) * m).sum(1) - m @ diagonal) / (n * (n - 1))
        return {"kid": among + constant - 2 * (m @ towards) / n}

    return of


def _presence(lists: Sequence[Sequence], least: int = 1) -> sparse.csr_matrix:
    """(n, f) 1 where list i has feature j, of the features that `least` lists have."""
    counts = Counter(feature for some in lists for feature in set(some))
    number = {f: j for j, f in enumerate(sorted(f for f, count in counts.items() if count >= least))}
    at = [(i, number[f]) for i, some in enumerate(lists) for f in set(some) if f in number]
    rows, columns = zip(*at, strict=True) if at else ((), ())
    return sparse.csr_matrix((np.ones(len(at), np.float32), (rows, columns)), (len(lists), max(1, len(number))))


def _grams(words: Sequence[str], k: int) -> list[tuple]:
    return [tuple(words[i : i + k]) for i in range(len(words) - k + 1)]


def _words(captions: Sequence[str]):
    words = [tokens(c) for c in captions]
    grams = {k: [_grams(w, k) for w in words] for k in (1, 2)}
    whole = _presence([[c] for c in captions]).T.tocsr()
    there = {k: _presence(lists).T.tocsr() for k, lists in grams.items()}
    totals = {k: np.array([len(some) for some in lists], float) for k, lists in grams.items()}

    def of(masks):
        kinds = {k: ((there[k] @ masks.T.astype(np.float32)) > 0.5).sum(0) for k in there}
        # without any word: nothing that is distinct
        found = {f"distinct_{k}": kinds[k] / np.maximum(masks @ totals[k], 1) for k in kinds}
        different = ((whole @ masks.T.astype(np.float32)) > 0.5).sum(0) / masks.sum(1)
        return found | {"vocabulary": kinds[1].astype(float), "distinct_captions": different}

    return of


def _self_bleu(captions: Sequence[str]):
    """As captions.self_bleu. An n-gram that is c times in a caption is c features, "at least once", ..., "at least c
    times": then the matches of a caption are its features that another caption has too."""
    words = [_tokenizer()(c.lower().rstrip()).split() for c in captions]
    lengths = np.array([len(w) for w in words])
    features = []
    for k in range(1, 5):
        counted = [Counter(_grams(w, k)) for w in words]
        lists = [[(gram, c) for gram, count in some.items() for c in range(count)] for some in counted]
        features.append(_presence(lists, least=2))
    kinds = np.unique(lengths)

    def of(masks):
        used = masks & (masks.cumsum(1) <= SELF_BLEU_MOST)
        rows = np.flatnonzero(used.any(0))
        used, own = used[:, rows], lengths[rows]
        closest = _closest(used, own, kinds)
        with np.errstate(divide="ignore", invalid="ignore"):
            penalty = np.where(own < closest, np.exp(1 - closest / own), 1.0)
        logs, halved, orders, matched = np.zeros(used.shape), np.ones(used.shape), np.minimum(own, 4), False
        for k, table in enumerate(features, 1):
            part = table[rows]
            shared = (part.T @ used.T.astype(np.float32)) > 1.5
            correct, total = (part @ shared.astype(np.float32)).T, own - k + 1
            matched = matched | (correct > 0)
            halved = np.where((correct == 0) & (total > 0), 2 * halved, halved)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(correct > 0, correct, 1 / halved) / total
                logs += np.where(total > 0, np.log(share), 0.0)
        scores = np.where(matched, penalty * np.exp(logs / np.maximum(orders, 1)), 0.0)
        return {"self_bleu": (scores * used).sum(1) / used.sum(1)}

    return of


def _closest(used: np.ndarray, own: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """(b, n) of each caption the length of another one of the subset that is closest to its own, the shorter of two."""
    counts = np.stack([used[:, own == length].sum(1) for length in kinds], 1)
    out = np.zeros(used.shape)
    for length in np.unique(own):
        left = counts - (kinds == length)  # others than itself
        order = np.lexsort((kinds, np.abs(kinds - length)))
        nearest = kinds[order][(left[:, order] > 0).argmax(1)]
        out[:, own == length] = nearest[:, None]
    return out
