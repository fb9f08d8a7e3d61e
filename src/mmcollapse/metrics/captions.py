"""Metrics of sets of captions."""

from __future__ import annotations

import numpy as np

from mmcollapse.errors import MMCollapseError


def _check(captions: list[str]):
    if not captions:
        raise MMCollapseError("a set of captions is empty")


def bleu4(captions: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002) in 0-1, higher is better, by sacrebleu: lower case, sacrebleu's 13a
    tokenization, no smoothing, the closest reference length. Every caption needs the same number of references; grows
    with their number."""
    from sacrebleu.metrics import BLEU

    _check(captions)
    if len(captions) != len(references):
        raise MMCollapseError(f"BLEU-4 of {len(captions)} captions and {len(references)} sets of references")
    counts = {len(r) for r in references}
    if len(counts) != 1:
        raise MMCollapseError(f"BLEU-4 with {sorted(counts)} references a caption: one number is needed")
    columns = [list(column) for column in zip(*references, strict=True)]
    return BLEU(lowercase=True, smooth_method="none").corpus_score(captions, columns).score / 100


def lengths(captions: list[str]) -> np.ndarray:
    """(n,) number of words, split at white space."""
    _check(captions)
    return np.array([len(c.split()) for c in captions])


def vocabulary(captions: list[str]) -> int:
    """Number of distinct words, lower case, split at white space. Grows with n: compare at equal n only."""
    _check(captions)
    return len({word for c in captions for word in c.lower().split()})


def distinct(captions: list[str], n: int) -> float:
    """Distinct n-grams as a share of all n-grams (Li et al. 2016), lower case, split at white space. 0-1, falls when
    phrases repeat; falls with the number of captions too: compare at equal numbers only. NaN where no caption has n
    words."""
    _check(captions)
    grams = [tuple(w[i : i + n]) for w in (c.lower().split() for c in captions) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu(captions: list[str], most: int = 200) -> float:
    """Self-BLEU-4 (Zhu et al. 2018): mean sentence BLEU of each of the first `most` captions against the others of
    them. 0-1, rises when captions become alike; rises with their number. Tokens, smoothing ("exp") and effective order
    are those of sacrebleu's sentence BLEU, and so is the value: only the n-grams are counted once for all, instead of
    once for every pair of captions."""
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    captions = captions[:most]
    if len(captions) < 2:
        raise MMCollapseError(f"self-BLEU of {len(captions)} captions: needs at least 2")
    split = Tokenizer13a()
    counted = [extract_all_word_ngrams(split(c.lower().rstrip()), 1, 4) for c in captions]
    lengths_ = np.array([length for _, length in counted])
    highest: dict[tuple, list[int]] = {}  # of every n-gram, the two highest counts in a caption
    for grams, _ in counted:
        for gram, count in grams.items():
            best = highest.setdefault(gram, [0, 0])
            best[:] = sorted((*best, count))[1:]
    scores = []
    for i, (grams, length) in enumerate(counted):
        correct, total = [0] * 4, [max(0, length - k) for k in range(4)]
        for gram, count in grams.items():
            second, first = highest[gram]
            elsewhere = second if count == first else first
            correct[len(gram) - 1] += min(count, elsewhere)
        others = np.delete(lengths_, i)
        off = np.abs(others - length)
        closest = int(others[off == off.min()].min())
        score = BLEU.compute_bleu(correct, total, length, closest, smooth_method="exp", effective_order=True)
        scores.append(score.score / 100)
    return float(np.mean(scores))


def first_words(captions: list[str], words: int) -> list[str]:
    """The captions cut to their first `words` words, so that variance can be compared at equal length."""
    return [" ".join(c.split()[:words]) for c in captions]
