"""The caption metrics, against hand-made values, other implementations and real captions; COCO's files; `evaluate`."""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import mmcollapse.metrics
from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.captions import (
    bleu4,
    cider,
    distinct,
    first_words,
    lengths,
    rouge_l,
    self_bleu,
    tokens,
    vocabulary,
)
from mmcollapse.metrics.coco import from_coco

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "photos" / "captions_coco.json"
AGAINST = [bleu4, cider, rouge_l]


@pytest.fixture(scope="module")
def some(world):
    """(captions, references): the first of each five captions of a scene, and the other four."""
    five = world.sample("test", range(60)).captions
    return [c[0] for c in five], [list(c[1:]) for c in five]


# -- words ----------------------------------------------------------------------------------------------------------


def test_plain_words_are_split_at_white_space(some):
    assert all(tokens(c) == c.split() for c in some[0])


def test_punctuation_is_no_word():
    assert tokens("A man, (in red), says: \"It's 3.5 o'clock -- well-lit!\" ...") == (
        "a man in red says it's 3.5 o'clock well-lit".split()
    )
    assert tokens("black & white?") == ["black", "&", "white"]  # COCO keeps these
    assert tokens("") == tokens(" . ") == tokens("-- ''") == []


# -- BLEU, self-BLEU, distinct, counts ------------------------------------------------------------------------------


def test_bleu_of_sacrebleus_vector():
    """Matches 9, 7, 5, 3 of 10, 8, 6, 4: two sentences of five words, of which the last word is wrong."""
    value = bleu4(["a b c d e", "f g h i j"], [["a b c d e"], ["f g h i x"]])
    assert value == pytest.approx(0.8375922397, abs=1e-10)


def test_bleu_of_coco_captions_demo():
    """reflen 9855, testlen 9893, guess 9893 8893 7893 6893, correct 5732 2510 1043 423: BLEU-4 = .190829. A text with
    these counts: 1,000 sentences, in which runs of 4, 3, 2 and 1 words match, the same runs as in the reference."""
    guess, correct, reference_words = [9893, 8893, 7893, 6893], [5732, 2510, 1043, 423], 9855
    longer = [a - b for a, b in zip(correct, [*correct[1:], 0], strict=True)]  # runs of k words or more
    runs = [k + 1 for k in range(4) for _ in range(longer[k] - ([*longer, 0][k + 1]))]
    assert sum(runs) == correct[0] and guess[0] - guess[1] == 1000
    sentences = [runs[i::1000] for i in range(1000)]
    # unmatched words: one between two runs, the rest wherever; references have fewer of them
    spare = [guess[0] - correct[0], reference_words - correct[0]]
    fill = np.array([[len(s) - 1] * 2 for s in sentences])
    rest = [n - f for n, f in zip(spare, fill.sum(0), strict=True)]
    for side, n in enumerate(rest):
        fill[:, side] += [n // 1000 + (i < n % 1000) for i in range(1000)]
    captions, references = [], []
    for i, lengths_of_runs in enumerate(sentences):
        for side, out in enumerate((captions, references)):
            words = []
            for k, length in enumerate(lengths_of_runs):
                words += [f"w{i}x{k}x{j}" for j in range(length)] + [f"side{side}x{i}x{k}"] * (
                    k < len(lengths_of_runs) - 1
                )
            words += [f"tail{side}x{i}x{j}" for j in range(fill[i, side] - len(lengths_of_runs) + 1)]
            out.append(" ".join(words))
    assert sum(map(len, map(str.split, captions))) == guess[0]
    assert sum(map(len, map(str.split, references))) == reference_words
    assert bleu4(captions, [[r] for r in references]) == pytest.approx(0.190829, abs=5e-7)


def test_bleu_by_hand():
    five = ["a small red circle on a gray wall", "x", "y", "z", "w"]
    assert bleu4(["A small RED circle on a gray wall"], [five]) == pytest.approx(1)  # case does not count
    assert bleu4(["a small red circle"], [["a small red circle on a gray wall"]]) == pytest.approx(math.exp(1 - 8 / 4))
    assert bleu4(["a small red circle on a dark wall tonight"], [five]) == pytest.approx(
        (7 / 9 * 5 / 8 * 4 / 7 * 3 / 6) ** 0.25
    )
    assert bleu4(["one two three four"], [["five six seven eight"]]) == 0  # and no smoothing
    assert bleu4(["a b c d"], [["a b c e", "x b c d"]]) == 0
    closest = bleu4(["a b c d e f"], [["a b c d e f g", "a b c d e f g h i j k"]])
    assert closest == pytest.approx(math.exp(1 - 7 / 6))


def test_self_bleu_is_sacrebleus_sentence_bleu(world):
    from sacrebleu.metrics import BLEU

    some = [five[0] for five in world.sample("test", range(30)).captions]
    some += ["a dog", "A dog, a dog!", "", "a a a a a a", some[0], "entirely other words here", "word"]
    judge = BLEU(lowercase=True, effective_order=True)
    each = [judge.sentence_score(c, some[:i] + some[i + 1 :]).score / 100 for i, c in enumerate(some)]
    assert self_bleu(some) == pytest.approx(np.mean(each), abs=1e-12)
    assert self_bleu(some, most=20) == pytest.approx(
        np.mean(
            [
                judge.sentence_score(c, [o for k, o in enumerate(some[:20]) if k != i]).score / 100
                for i, c in enumerate(some[:20])
            ]
        ),
        abs=1e-12,
    )


def test_self_bleu_rises_as_captions_become_alike(world):
    varied = [five[0] for five in world.sample("test", range(60)).captions]
    values = [self_bleu(varied[: 60 - k] + [varied[0]] * k) for k in (0, 20, 40, 59)]
    assert values == sorted(values) and values[-1] > 0.9 > values[0]
    assert self_bleu(["the same few words here"] * 5) == pytest.approx(1)


def test_distinct_counts_ngrams():
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "A b"], 2) == 2 / 3
    assert math.isnan(distinct(["a", "b"], 2))


def test_bleu_grows_with_references_and_ignores_order():
    captions = ["a b c d e f", "g h i j k l"]
    one = [["a b c d x f"], ["g h i y k l"]]
    two = [["a b c d x f", "a b x d e f"], ["g h i y k l", "g z i j k l"]]
    assert 0 < bleu4(captions + captions, [["a b c d e x"], ["g h i j k x"]] + one) < 1
    assert bleu4(captions, two) >= bleu4(captions, one)
    assert bleu4(captions[::-1], two[::-1]) == pytest.approx(bleu4(captions, two))


def test_words_are_counted_at_white_space():
    captions = ["a red  circle", "A blue\tcircle on a wall", ""]
    assert lengths(captions).tolist() == [3, 6, 0]
    assert vocabulary(captions) == len({"a", "red", "circle", "blue", "on", "wall"})
    assert first_words(captions, 2) == ["a red", "A blue", ""]


@pytest.mark.parametrize("real", [False, True], ids=["scenes", "photos"])
def test_bleu_is_pycocoevalcaps_on_equal_tokens(real, some):
    """Both take the closest reference length, and the shorter of two; pycocoevalcap adds 1e-9 to its counts."""
    from pycocoevalcap.bleu.bleu import Bleu

    captions, references = some if not real else leave_out(1, 200)
    captions = [" ".join(tokens(c)) for c in captions]
    references = [[" ".join(tokens(r)) for r in each] for each in references]
    assert any(
        abs(len(a.split()) - n) == abs(len(b.split()) - n) != 0 and len(a.split()) != len(b.split())
        for c, each in zip(captions, references, strict=True)
        for n in [len(c.split())]
        for a in each
        for b in each
    )  # so that the rule for two equally close lengths matters
    theirs, _ = Bleu(4).compute_score(dict(enumerate(references)), {i: [c] for i, c in enumerate(captions)}, verbose=0)
    assert bleu4(captions, references) == pytest.approx(theirs[3], abs=1e-8)


def test_a_caption_with_a_full_stop_set_apart_gives_no_warning(caplog):
    assert bleu4(["a b c d ."] * 100, [["a b c d ."]] * 100) == pytest.approx(1)
    assert not caplog.records


# -- CIDEr and ROUGE-L ----------------------------------------------------------------------------------------------


def slow_cider(captions: list[str], references: list[list[str]]) -> float:
    """CIDEr-D, formula by formula, for captions of plain words."""

    def grams(caption, k):
        words = caption.split()
        return Counter(tuple(words[i : i + k]) for i in range(len(words) - k + 1))

    total = 0.0
    for k in range(1, 5):
        images = Counter(gram for each in references for gram in set().union(*(grams(r, k) for r in each)))

        def weighted(caption, k=k, images=images):
            return {g: n * math.log(len(references) / max(1, images[g])) for g, n in grams(caption, k).items()}

        for caption, each in zip(captions, references, strict=True):
            g = weighted(caption)
            for reference in each:
                h = weighted(reference)
                norms = math.sqrt(sum(v * v for v in g.values()) * sum(v * v for v in h.values()))
                dot = sum(min(v, h[gram]) * h[gram] for gram, v in g.items() if gram in h)
                apart = len(caption.split()) - len(reference.split())
                total += math.exp(-(apart**2) / 72) * (dot / norms if norms else 0) / len(each)
    return 10 * total / 4 / len(captions)


def test_cider_is_its_formula(some):
    captions, references = some
    assert cider(captions, references) == pytest.approx(slow_cider(captions, references), rel=1e-9)
    other = captions[1:] + captions[:1]
    assert cider(other, references) == pytest.approx(slow_cider(other, references), rel=1e-9) != 0
    uneven = [each[: 1 + i % 4] for i, each in enumerate(references)]
    assert cider(captions, uneven) == pytest.approx(slow_cider(captions, uneven), rel=1e-9)


def test_cider_by_hand():
    """Two images, so that a k-gram of one weighs log 2, which cancels, and one of both weighs nothing."""
    references = [["a b c d"], ["e f g h"]]
    assert cider(["a b c d", "e f g h"], references) == pytest.approx(10)
    assert cider(["a b c d", "q"], references) == pytest.approx(5)
    half = [math.sqrt(4 / 5), math.sqrt(3 / 4), math.sqrt(2 / 3), math.sqrt(1 / 2)]  # one word too many
    assert cider(["a b c d z", "q"], references) == pytest.approx(10 * math.exp(-1 / 72) * sum(half) / 4 / 2)
    # four times "a", which counts once; the norms are 4 and 2
    assert cider(["a a a a", "q"], references) == pytest.approx(10 * 1 / (4 * 2) / 4 / 2)
    assert cider(["x", "x"], [["x a"], ["x b"]]) == 0


def test_rouge_l_by_hand():
    """Longest common subsequence a c d of 3, of 4 and of 5 words: P = 3/4, R = 3/5."""
    beta = 1.2**2
    f = (1 + beta) * 3 / 4 * 3 / 5 / (3 / 5 + beta * 3 / 4)
    assert rouge_l(["a b c d"], [["a x c y d"]]) == pytest.approx(f)
    assert rouge_l(["a b c d", "q"], [["a x c y d"], ["w"]]) == pytest.approx(f / 2)
    # the best precision (3/4) is of one reference and the best recall (2/2) of another
    assert rouge_l(["a b c d"], [["a x c y d", "a b"]]) == pytest.approx((1 + beta) * 3 / 4 / (1 + beta * 3 / 4))
    assert rouge_l(["A, b!"], [["a b ."]]) == pytest.approx(1)
    assert rouge_l(["a b"], [["b a"]]) == pytest.approx(1 / 2)  # order counts
    assert rouge_l(["a b"], [["c d"]]) == 0


@pytest.mark.parametrize("metric", AGAINST)
def test_metrics_against_references_do_not_depend_on_order(metric, some):
    captions, references = some
    order = np.random.default_rng(0).permutation(len(captions))
    shuffled = [captions[i] for i in order], [references[i][::-1] for i in order]
    assert metric(*shuffled) == pytest.approx(metric(captions, references), rel=1e-9)
    assert metric(captions[1:] + captions[:1], references) < 0.8 * metric(captions, references)  # pairs count


@pytest.mark.parametrize("metric, best", [(bleu4, 1), (cider, 10), (rouge_l, 1)])
def test_a_caption_that_equals_its_reference_is_the_best(metric, best, some):
    captions, references = some
    assert metric(captions, [[c] for c in captions]) == pytest.approx(best)
    mixed = metric(captions, [[c, *each] for c, each in zip(captions, references, strict=True)])
    assert metric(captions, references) < mixed <= best + 1e-12
    if metric is not cider:  # the mean over references
        assert mixed == pytest.approx(best)


@pytest.mark.parametrize("metric", AGAINST)
def test_wrong_words_lower_the_metrics_against_references(metric, some):
    captions, references = some
    draw = random.Random(0)
    places = [(i, j) for i, c in enumerate(captions) for j in range(len(c.split()))]
    draw.shuffle(places)
    values = []
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        words = [c.split() for c in captions]
        for i, j in places[: round(share * len(places))]:
            words[i][j] = f"wrong{i}x{j}"
        values.append(metric([" ".join(w) for w in words], references))
    assert values == sorted(values, reverse=True) and values[0] > 1.05 * values[1] and values[-1] == 0


# -- what is odd, and what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", AGAINST)
def test_one_reference_is_enough(metric, some):
    captions, references = some
    assert 0 < metric(captions, [each[:1] for each in references]) < 10


@pytest.mark.parametrize("metric", AGAINST)
@pytest.mark.parametrize("empty", ["", "  ", "."])
def test_an_empty_caption_matches_nothing(metric, empty, some):
    captions, references = some[0][:4], some[1][:4]
    full = metric(captions, references)
    assert 0 < metric([empty, *captions[1:]], references) < full
    assert metric([empty] * 4, references) == 0
    assert metric([empty] * 4, [[empty]] * 4) == 0  # and not even an empty reference
    assert metric(captions, [[empty]] * 4) == 0
    assert 0 < metric(captions, [[empty, *each[1:]] for each in references]) <= full + 1e-12
    if metric is rouge_l:
        assert rouge_l(["a b", empty], [["a b"], ["a b"]]) == pytest.approx(1 / 2)


def test_an_empty_caption_has_no_words():
    assert lengths(["", ".", "a"]).tolist() == [0, 0, 1]
    assert vocabulary(["", "."]) == 0
    assert math.isnan(distinct(["", "."], 1))
    assert self_bleu(["", ""]) == 0


@pytest.mark.parametrize("metric", AGAINST)
@pytest.mark.parametrize(
    "captions, references, message",
    [
        ([], [], "a set of captions is empty"),
        (None, None, "a set of captions is None: a list of strings"),
        (["a b", "c"], [["a b"]], "2 captions and 1 lists of references"),
        (["a b", "c"], [["a b"], []], "list of references of caption 1 is empty"),
        (["a b", "c"], [["a b"], "c"], "list of references of caption 1 is 'c': a list of strings is needed"),
        (["a b", "c"], [["a b"], [None]], "reference 0 of caption 1 is None: a string is needed"),
        (["a b", 7], [["a b"], ["c"]], "caption 1 is 7: a string is needed"),
        ("a b", [["a b"]] * 3, "a set of captions is 'a b': a list of strings is needed"),
    ],
)
def test_bad_captions_and_references_are_refused(metric, captions, references, message):
    with pytest.raises(MMCollapseError, match=message):
        metric(captions, references)


@pytest.mark.parametrize("metric", [lengths, vocabulary, self_bleu, lambda c: distinct(c, 2)])
@pytest.mark.parametrize(
    "captions, message", [([], "empty"), ("a b", "list of strings"), (["a", None], "caption 1 is")]
)
def test_bad_captions_are_refused(metric, captions, message):
    with pytest.raises(MMCollapseError, match=message):
        metric(captions)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bleu4(["a", "b"], [["a"], ["a", "b"]]), r"\[1, 2\] references"),
        (lambda: cider(["a b c d"], [["a b c d"]]), "CIDEr of 1 caption: needs at least 2"),
        (lambda: self_bleu(["a"]), "self-BLEU of 1 captions: needs at least 2"),
        (lambda: self_bleu(["a", "b"], most=1), "self-BLEU of 1 captions: needs at least 2"),
        (lambda: distinct(["a"], 0), "n = 0 words: needs n of at least 1"),
    ],
)
def test_what_a_metric_cannot_do_is_refused(call, message):
    with pytest.raises(MMCollapseError, match=message):
        call()


# -- COCO's files, and real captions --------------------------------------------------------------------------------


def leave_out(place: int, n: int | None = None) -> tuple[list[str], list[list[str]]]:
    """(one human's caption of each real photo, the other four)."""
    if not REAL.is_file():
        pytest.skip(f"no real captions at {REAL}")
    five = from_coco(REAL)[1][:n]
    return [each[place] for each in five], [each[:place] + each[place + 1 :] for each in five]


def test_one_human_against_the_others_on_real_photos():
    found = {metric.__name__: [metric(*leave_out(k)) for k in range(5)] for metric in AGAINST}
    within = {"bleu4": (0.15, 0.30), "cider": (0.6, 1.0), "rouge_l": (0.40, 0.60)}
    for name, values in found.items():
        low, high = within[name]
        assert low < min(values) and max(values) < high, found
        assert np.std(values, ddof=1) < 0.12 * np.mean(values), found
    # what pycocoevalcap gives with COCO's PTBTokenizer, which needs Java
    assert found["cider"] == pytest.approx([0.765876, 0.866803, 0.851974, 0.815643, 0.763580], abs=1e-4)
    assert found["rouge_l"] == pytest.approx([0.493592, 0.528037, 0.527033, 0.499576, 0.460777], abs=1e-4)
    captions, others = leave_out(0)
    for metric in AGAINST:  # captions of another photo
        assert metric(captions, others[1:] + others[:1]) < 0.6 * found[metric.__name__][0]


def test_real_captions_in_cocos_form():
    captions, references = from_coco(REAL) if REAL.is_file() else pytest.skip(f"no real captions at {REAL}")
    assert captions is None and len(references) == 1000 and {len(each) for each in references} == {5}
    rows = [json.loads(line) for line in (REAL.parent / "metadata.jsonl").read_text().splitlines()]
    assert references == [row["captions"] for row in rows]


IMAGES = [{"id": 9, "file_name": "x.jpg"}, {"id": 4}, {"id": 7}]
NOTES = [(4, "four"), (9, "nine"), (4, "vier"), (7, "seven")]


def write(folder: Path, notes=NOTES, images=IMAGES, results=None):
    document = {"images": images, "annotations": [{"image_id": i, "caption": c, "id": 1} for i, c in notes]}
    (folder / "captions.json").write_text(json.dumps(document))
    (folder / "mine.json").write_text(json.dumps([{"image_id": i, "caption": c} for i, c in results or []]))
    return folder / "captions.json", *([folder / "mine.json"] if results is not None else [])


def test_cocos_files_come_in_the_order_of_the_images(tmp_path):
    references = [["nine"], ["four", "vier"], ["seven"]]
    assert from_coco(*write(tmp_path)) == (None, references)
    results = [(4, "my four"), (7, "my seven"), (9, "my nine")]
    assert from_coco(*write(tmp_path, results=results)) == (["my nine", "my four", "my seven"], references)
    captions, references = from_coco(*map(str, write(tmp_path, results=results[:2])))  # of some images only
    assert captions == ["my four", "my seven"] and rouge_l(captions, references) > 0
    # nobody asked for the image without reference
    assert from_coco(*write(tmp_path, NOTES[:3], results=results[:1])) == (["my four"], [["four", "vier"]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"notes": NOTES[:3]}, "captions.json has no reference for image 7"),
        ({"notes": NOTES[:3], "results": [(7, "x")]}, "captions.json has no reference for image 7"),
        ({"notes": [*NOTES, (5, "x")]}, "captions.json has a caption for image 5, which is not among"),
        ({"notes": [*NOTES, ([5], "x")]}, r"captions.json has a caption for image \[5\], which is not among"),
        ({"notes": [*NOTES, (4, None)]}, "captions.json: the caption of image 4 is None"),
        ({"images": [*IMAGES, {"id": 4}]}, "captions.json has two images of the id 4"),
        ({"images": [{"name": 4}]}, "captions.json is not of COCO's form .*'id'"),
        ({"images": [4]}, "captions.json is not of COCO's form"),
        ({"images": [], "notes": []}, "captions.json has no caption of any image"),
        ({"results": [(9, "x"), (5, "x")]}, "mine.json has a caption for image 5, which is not among"),
        ({"results": [("9", "x")]}, "mine.json has a caption for image '9', which is not among"),
        ({"results": [(9, "x"), (4, "y"), (9, "z")]}, "mine.json has two results for image 9"),
        ({"results": [(9, 3.5)]}, "mine.json: the caption of image 9 is 3.5: a string is needed"),
        ({"results": []}, "mine.json has no caption of any image"),
    ],
)
def test_errors_in_cocos_files_name_file_and_image(tmp_path, change, message):
    with pytest.raises(MMCollapseError, match=message):
        from_coco(*write(tmp_path, **change))


@pytest.mark.parametrize("broken", ["captions.json", "mine.json"])
@pytest.mark.parametrize(
    "content, message",
    [(b'{"images": [', "is damaged, it is no JSON"), (b"\xff\xfe\xfa", "is damaged"), (b"3", "is not of"),
     (b'{"images": 3}', "is not of"), (b'["a"]', "is not of"), (None, "cannot be read: No such file")],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, broken, content, message):
    paths = write(tmp_path, results=[(4, "x")])
    (tmp_path / broken).unlink() if content is None else (tmp_path / broken).write_bytes(content)
    with pytest.raises(MMCollapseError, match=f"{broken} {message}"):
        from_coco(*paths)


# -- evaluate -------------------------------------------------------------------------------------------------------

OFFLINE = """
import socket
def refuse(*_, **__):
    raise OSError("a test without network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

import doctest, json, sys, types
import evaluate
from mmcollapse.metrics import hub

captions, references = json.load(sys.stdin)

def said(metric, **given):
    try:
        metric.compute(**given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

metrics = {name: evaluate.load(f"src/mmcollapse/metrics/hub/{name}") for name in hub.NAMES}
alone = {}
for name, metric in metrics.items():
    given = {"references": references} if name in ("bleu4", "cider", "rouge_l") else {}
    alone[name] = metric.compute(predictions=captions, **given)
together = evaluate.combine([hub.path(name) for name in hub.NAMES])
batches = metrics["cider"]
for i in range(0, len(captions), 25):
    batches.add_batch(predictions=captions[i : i + 25], references=references[i : i + 25])
print(json.dumps({
    "alone": alone,
    "together": together.compute(predictions=captions, references=references),
    "batches": batches.compute(),
    "mismatch": [said(together, predictions=captions, references=references[1:]),
                 said(metrics["rouge_l"], predictions=captions, references=references[1:])],
    "none": said(metrics["cider"], predictions=captions),
    "flat": said(metrics["cider"], predictions=captions, references=captions),
    "number": said(metrics["distinct"], predictions=["a", 3]),
    "empty": said(metrics["vocabulary"], predictions=[]),
    "after": metrics["rouge_l"].compute(predictions=captions, references=references),
    "example": list(doctest.testmod(hub)),
    "paths": {name: hub.path(name) for name in hub.NAMES},
    "unknown": said(types.SimpleNamespace(compute=hub.path), name="meteor"),
}))
"""


@pytest.fixture(scope="module")
def offline(some, tmp_path_factory) -> dict:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    command = [sys.executable, "-c", OFFLINE]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, input=json.dumps(some), text=True, capture_output=True, timeout=300
    )
    assert run.returncode == 0, run.stderr + run.stdout
    return json.loads(run.stdout.splitlines()[-1])


def test_modules_of_evaluate_give_our_values_without_network(offline, some):
    captions, references = some
    wanted = {
        "bleu4": {"bleu4": bleu4(captions, references)},
        "cider": {"cider": cider(captions, references)},
        "rouge_l": {"rouge_l": rouge_l(captions, references)},
        "self_bleu": {"self_bleu": self_bleu(captions)},
        "distinct": {"distinct_1": distinct(captions, 1), "distinct_2": distinct(captions, 2)},
        "vocabulary": {"vocabulary": vocabulary(captions)},
    }
    assert offline["alone"] == wanted
    assert offline["together"] == {name: value for each in wanted.values() for name, value in each.items()}
    assert offline["batches"] == wanted["cider"]


def test_modules_of_evaluate_say_what_is_wrong_and_go_on(offline, some):
    assert set(offline["mismatch"]) == {"MMCollapseError: 60 captions and 59 lists of references: one each is needed"}
    assert "60 captions and 0 lists of references" in offline["none"]
    assert "the list of references of caption 0 is" in offline["flat"]
    assert "caption 1 is 3: a string is needed" in offline["number"]
    assert "a set of captions is empty" in offline["empty"]
    assert offline["after"] == {"rouge_l": rouge_l(*some)}


def test_the_example_of_evaluate_is_right(offline):
    assert offline["example"] == [0, 5]  # failed, tried


def test_every_module_of_evaluate_is_named(offline):
    folder = Path(mmcollapse.metrics.__file__).parent / "hub"
    assert offline["paths"] == {p.stem: str(p.parent) for p in folder.glob("*/*.py")}
    assert all(Path(path).name == name for name, path in offline["paths"].items())
    assert offline["unknown"].startswith('MMCollapseError: no caption metric "meteor"; there are bleu4, cider')
