"""Metrics of sets of captions.

Words are those of `tokens`; only BLEU-4 and self-BLEU keep punctuation, as sacrebleu does. `captions` is a list of
strings, `references` a list with one list of strings for each caption. What is none of these, an empty set, and a
caption without reference are errors. An empty caption (no word in it) is what a broken captioner writes, so it has a
value: it matches nothing and has no words. So has an empty reference, which matches nothing.

Each takes at most 2 seconds for 2,000 captions with five references each, on one core (CIDEr the most).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np

from mmcollapse.errors import MMCollapseError


def check(captions: Sequence[str], references: Sequence[Sequence[str]] | None = None) -> None:
    """Refuses what is no set of captions, and, where references are given, no set of captions with references."""
    _strings(captions, "a set of captions", "caption {}")
    if references is None:
        return
    if len(captions) != len(references):
        raise MMCollapseError(f"{len(captions)} captions and {len(references)} lists of references: one each is needed")
    for i, some in enumerate(references):
        _strings(some, f"the list of references of caption {i}", "reference {} of " + f"caption {i}")


def _strings(values, name: str, element: str) -> None:
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise MMCollapseError(f"{name} is {values!r}: a list of strings is needed")
    if len(values) == 0:
        raise MMCollapseError(f"{name} is empty: at least one is needed")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise MMCollapseError(f"{element.format(i)} is {value!r}: a string is needed")


@cache
def _tokenizer():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def tokens(caption: str) -> list[str]:
    """The words of a caption: lower case, sacrebleu's 13a tokenization (that of BLEU), without the tokens that are
    nothing but the punctuation which COCO's evaluation drops: quotes, brackets and . , : ; ? ! - (others, as &, stay).

    COCO splits with Stanford's PTBTokenizer, which needs Java. 13a differs where a word holds an apostrophe ("man's" is
    one word, there two) or punctuation that is not ASCII: in 2 of 5,000 captions of Flickr8k, whose text comes with
    its punctuation apart, so that CIDEr and ROUGE-L are COCO's to 1e-4. Plain words come out as by `split()`."""
    return list(_tokens(caption))


@lru_cache(2**16)  # every metric asks for them, and references come again with every set
def _tokens(caption: str) -> tuple[str, ...]:
    return tuple(word for word in _tokenizer()(caption.lower()).split() if word.strip("'`\"(){}.,:;?!-"))


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002) by sacrebleu, 0-1, higher is better:

        min(1, exp(1 - r / c)) * (p1 p2 p3 p4)^(1/4)

    p_k: share of the captions' k-grams found in a reference of theirs, counted at most as often as in one of them;
    c, r: words of all captions and of their references closest in length (the shorter of two equally close).
    Lower case, sacrebleu's 13a tokenization with punctuation, no smoothing, so 0 where no 4-gram matches, as in small
    sets. Every caption needs the same number of references, for BLEU grows with it (cut them: `[r[:5] for r in ...]`).
    Equals COCO's own BLEU-4 on equal tokens; COCO drops punctuation. Nearly unbiased in n but for a handful
    (human captions: 0.197 at n = 2, 0.253 at 10, 0.260 at 1,000)."""
    check(captions, references)
    counts = {len(r) for r in references}
    if len(counts) != 1:
        raise MMCollapseError(f"BLEU-4 with {sorted(counts)} references a caption: one number is needed")
    return _bleu(tuple(zip(*references, strict=True))).corpus_score(list(captions), None).score / 100


@lru_cache(4)  # to count the n-grams of references takes longer than those of the captions, generation by generation
def _bleu(columns: tuple[tuple[str, ...], ...]):
    from sacrebleu.metrics import BLEU

    # force: no warning that captions end in " ."
    return BLEU(lowercase=True, smooth_method="none", force=True, references=[list(column) for column in columns])


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (Vedantam et al. 2015) by pycocoevalcap, on `tokens`. 0-10, higher is better: 10 times the mean over
    captions, their references and k = 1..4 of

        exp(-(l - l')^2 / 72) * min(g, g') . g' / (|g| |g'|)

    l, l': lengths; g, g': k-grams of caption and reference, counted and times log(N / images in whose references it
    is), N: number of captions. These document frequencies come from the references given, so the value belongs to
    the set as a whole: compare on the same references only. At least 2 captions are needed (with 1, all weights are
    log 1 = 0); of human captions it falls from 1.04 at N = 10 to 0.93 at 100 and 0.87 at 1,000. A k-gram that is in
    every image weighs nothing, and a caption of fewer than 4 words cannot reach 10. Any number of references: the mean
    over them, so it does not grow with their number."""
    from pycocoevalcap.cider.cider import Cider

    check(captions, references)
    if len(captions) < 2:
        raise MMCollapseError(f"CIDEr of {len(captions)} caption: needs at least 2, for its document frequencies")
    spoken, known = _coco(captions, references)
    if not any(map(any, known.values())):  # the library fails where no reference has a word
        return 0.0
    return float(Cider().compute_score(known, spoken)[0])


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L (Lin 2004) as COCO has it, by pycocoevalcap, on `tokens`. 0-1, higher is better: mean over captions of

        F = (1 + b^2) P R / (R + b^2 P),  b = 1.2,  P = max_j LCS(c, r_j) / |c|,  R = max_j LCS(c, r_j) / |r_j|

    LCS: length of the longest common subsequence of words. The best P and the best R may be of different references.
    A mean over captions: no bias in n. Grows with the number of references."""
    from pycocoevalcap.rouge.rouge import Rouge

    check(captions, references)
    spoken, known = _coco(captions, references)
    scores = Rouge().compute_score(known, spoken)[1]
    # the library sees one common word, "", in an empty caption and an empty reference
    return float(np.mean([score if spoken[i][0] else 0.0 for i, score in enumerate(scores)]))


def _coco(captions, references) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Captions and references as pycocoevalcap wants them: lists by image of words joined by one space."""
    known = {i: [" ".join(tokens(r)) for r in some] for i, some in enumerate(references)}
    return {i: [" ".join(tokens(c))] for i, c in enumerate(captions)}, known


def lengths(captions: Sequence[str]) -> np.ndarray:
    """(n,) number of words (`tokens`) of each caption."""
    check(captions)
    return np.array([len(tokens(c)) for c in captions])


def vocabulary(captions: Sequence[str]) -> int:
    """Number of distinct words (`tokens`). Falls when words are lost. Grows with n: compare at equal n only."""
    check(captions)
    return len({word for c in captions for word in tokens(c)})


def distinct(captions: Sequence[str], n: int) -> float:
    """Distinct n-grams of words (`tokens`) as a share of all n-grams (Li et al. 2016). 0-1, falls when phrases repeat;
    falls with the number of captions too: compare at equal numbers only. NaN where no caption has n words."""
    check(captions)
    if n < 1:
        raise MMCollapseError(f"distinct n-grams of n = {n} words: needs n of at least 1")
    grams = [tuple(w[i : i + n]) for w in map(tokens, captions) for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


SELF_BLEU_MOST = 200  # captions


def self_bleu(captions: Sequence[str], most: int = SELF_BLEU_MOST) -> float:
    """Self-BLEU-4 (Zhu et al. 2018): mean sentence BLEU of each of the first `most` captions against the others of
    them. 0-1, rises when captions become alike; rises with their number. Tokens, smoothing ("exp") and effective order
    are those of sacrebleu's sentence BLEU, and so is the value: only the n-grams are counted once for all, instead of
    once for every pair of captions. An empty caption counts 0. Needs at least 2 captions."""
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    check(captions)
    captions = captions[:most]
    if len(captions) < 2:
        raise MMCollapseError(f"self-BLEU of {len(captions)} captions: needs at least 2")
    counted = [extract_all_word_ngrams(_tokenizer()(c.lower().rstrip()), 1, 4) for c in captions]
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


def first_words(captions: Sequence[str], words: int) -> list[str]:
    """The captions cut to their first `words` words, so that variance can be compared at equal length. Split at white
    space, for the rest of the text must stay as it is."""
    return [" ".join(c.split()[:words]) for c in captions]


def _bleu4_of_fewest(captions, references) -> float:
    fewest = min(len(r) for r in references)  # BLEU needs one number of references
    return bleu4(captions, [r[:fewest] for r in references])


# What is measured of a set of captions, of which each has references: name in the tables -> its value. VERSION goes up
# by one when a score changes or comes in: then they are computed anew, and nothing else is.
VERSION = 3
SCORES: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "bleu4": _bleu4_of_fewest,
    "cider": cider,
    "rouge_l": rouge_l,
    "length": lambda captions, _: float(lengths(captions).mean()),
    "vocabulary": lambda captions, _: float(vocabulary(captions)),
    "distinct_1": lambda captions, _: distinct(captions, 1),
    "distinct_2": lambda captions, _: distinct(captions, 2),
    "self_bleu": lambda captions, _: self_bleu(captions),
}
