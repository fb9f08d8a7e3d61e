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


def first_words(captions: list[str], words: int) -> list[str]:
    """The captions cut to their first `words` words, so that variance can be compared at equal length."""
    return [" ".join(c.split()[:words]) for c in captions]
