"""The caption grammar: what it writes is read back exactly, and what it cannot have written is refused by its part."""

import itertools

import numpy as np
import pytest

from mmcollapse.worlds import grammar
from mmcollapse.worlds.grammar import (
    BACKGROUNDS,
    CAPTION_UNIFORMS,
    COLOURS,
    LEADS,
    NOUNS,
    PREPS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    confusions,
    parse,
    vocabulary,
    write,
    zipf,
)

# Pieces of a caption, in order: (the word that an error about this piece must hold, the phrase).
ONE = {"first": ("small", "red", "circle"), "second": ("large", "azure", "rhombus")}


def pieces_of_thing(which: str, size: str, colour: str, shape: str, behind: bool) -> list[tuple[str, str]]:
    article, last = [(f"'a' of the {which}", "a"), (f"size of the {which}", size)], []
    if behind:
        last = [(f"colour or shape of the {which}", shape), (f"'in' and the colour of the {which}", "in")]
        return article + last + [(f"the colour of the {which}", colour)]
    return article + [(f"colour or shape of the {which}", colour), (f"the shape of the {which}", shape)]


def build(
    first=ONE["first"],
    second=None,
    relation="left of",
    background="gray",
    lead="",
    prep="on",
    noun="wall",
    behind=False,
    front=False,
) -> list[tuple[str, str]]:
    """The pieces of one sentence, put together by the rule in the module's docstring and not by `write`."""
    what = pieces_of_thing("first", *first, behind)
    if second:
        what += [("relation", relation)] + pieces_of_thing("second", *second, behind)
    place = [("the place", prep), ("'a' of the place", "a"), ("colour of the background", background), ("noun", noun)]
    lead = [("lead", lead)] if lead else []
    return place + lead + what if front else lead + what + place


def text(pieces: list[tuple[str, str]]) -> str:
    return " ".join(phrase for _, phrase in pieces)


def index(table: dict, word: str) -> int:
    return next(i for i, words in enumerate(table.values()) if word in words)


def thing(size: str, colour: str, shape: str) -> Thing:
    return Thing(index(SHAPES, shape), index(COLOURS, colour), index(SIZES, size))


def test_zipf_is_rank_to_the_minus_exponent():
    assert zipf(4, 1.0) == pytest.approx(np.array([12, 6, 4, 3]) / 25)
    assert zipf(3, 2.0) == pytest.approx(np.array([36, 9, 4]) / 49)
    assert zipf(5, 0.0) == pytest.approx(np.full(5, 0.2))
    assert zipf(1, 3.0).tolist() == [1.0]


def test_five_thousand_captions_are_read_back_exactly(world):
    batch_scenes = world._attributes("test-uniform", np.arange(1000))
    captions = world._captions("test-uniform", np.arange(1000), batch_scenes)
    seen = set()
    for scene, five in zip(batch_scenes, captions, strict=True):
        for caption in five:
            got = parse(caption)
            assert (got.scene, got.error, got.words) == (scene, "", len(caption.split()))
            seen |= set(caption.split())
    assert seen == set(vocabulary())  # every word of the grammar came, and no other


@pytest.mark.parametrize("behind, front", list(itertools.product([False, True], repeat=2)))
def test_every_terminal_is_read(behind, front):
    def read(**parts) -> Scene:
        got = parse(text(build(behind=behind, front=front, **parts)))
        assert got.scene is not None, got.error
        return got.scene

    for size, colour, shape in itertools.product(*(sum(t.values(), []) for t in (SIZES, COLOURS, SHAPES))):
        assert read(first=(size, colour, shape)) == Scene((thing(size, colour, shape),), None, 0)
    for lead, prep, noun, background in itertools.product(LEADS, PREPS, NOUNS, sum(BACKGROUNDS.values(), [])):
        scene = read(lead=lead, prep=prep, noun=noun, background=background)
        assert scene == Scene((thing(*ONE["first"]),), None, index(BACKGROUNDS, background))
    left, right = thing(*ONE["first"]), thing(*ONE["second"])
    for name, phrases in RELATIONS.items():
        things = (left, right) if name in ("left", "above") else (right, left)
        for phrase in phrases:
            scene = read(second=ONE["second"], relation=phrase)
            assert scene == Scene(things, 0 if name in ("left", "right") else 1, 0)


def test_case_and_white_space_do_not_matter():
    plain = parse("a small red circle on a gray wall")
    assert plain.scene is not None
    assert parse("  A small  RED\tcircle on a Gray wall\n") == plain


CAPTIONS = [
    build(lead=lead, second=second, relation=relation, behind=behind, front=front)
    for lead in ("", "there is", "a picture of")
    for second, relation in ((None, ""), (ONE["second"], "below"), (ONE["second"], "to the left of"))
    for behind in (False, True)
    for front in (False, True)
]


def with_word(pieces: list[tuple[str, str]], at: int, k: int, word: str) -> list[str]:
    """The words of a caption whose `k`-th word of piece `at` is another."""
    words = [phrase.split() for _, phrase in pieces]
    words[at][k] = word
    return sum(words, [])


@pytest.mark.parametrize("pieces", CAPTIONS, ids=text)
def test_a_wrong_word_is_refused_with_its_part_and_place(pieces):
    assert parse(text(pieces)).scene is not None
    for at, (part, phrase) in enumerate(pieces):
        for k in range(len(phrase.split())):
            words = with_word(pieces, at, k, "zebra")
            got = parse(" ".join(words))
            assert got.scene is None and got.words == len(words)
            # what may be absent (lead, relation, a place in front) is reported as what must stand there in its absence
            named, start = part, sum(len(p.split()) for _, p in pieces[:at])
            if part == "lead":
                named, start = ("size of the first", start + 1) if words[start] == "a" else ("'a' of the first", start)
            elif part == "relation":
                named = "more words after the end" if pieces[0][0] == "the place" else "the place"
            elif part == "the place" and at == 0:
                named = "'a' of the first"
            assert named in got.error, (words, got.error)
            assert f"'{words[start]}'" in got.error and f"at word {start + 1}" in got.error, (words, got.error)


@pytest.mark.parametrize("pieces", CAPTIONS, ids=text)
def test_a_word_of_another_part_is_refused(pieces):
    words = {"small", "red", "circle", "gray", "wall", "on", "in", "a", "left", "of", "there"}
    same = [set(sum(table.values(), [])) for table in (SIZES, COLOURS, SHAPES, BACKGROUNDS)] + [set(NOUNS), set(PREPS)]
    for at, (_, phrase) in enumerate(pieces):
        for k, old in enumerate(phrase.split()):
            for new in words - {old}:
                if not any({old, new} <= kin for kin in same):
                    sentence = " ".join(with_word(pieces, at, k, new))
                    got = parse(sentence)
                    assert got.scene is None and got.error, sentence


@pytest.mark.parametrize("pieces", CAPTIONS, ids=text)
def test_a_truncated_caption_is_refused_or_is_the_shorter_sentence_it_is(pieces):
    whole, words = parse(text(pieces)).scene, text(pieces).split()
    front = pieces[0][0] == "the place"
    for n in range(len(words)):
        got = parse(" ".join(words[:n]))
        if got.scene is None:
            assert "expected" in got.error or "more words" in got.error
            assert not got.error.startswith("expected") or "the end" in got.error or got.words == n
            continue
        # "on a gray wall a small red circle" + "below a large ..." : a sentence of its own, about one thing
        assert front and len(whole.things) == 2 and len(got.scene.things) == 1
        assert got.scene.things[0] == thing(*ONE["first"])
    ends = [parse(" ".join(words[:n])).error for n in range(len(words))]
    assert "found the end" in ends[-1] and "found the end" in ends[0]


def test_more_words_after_the_sentence_are_refused():
    for pieces in CAPTIONS:
        got = parse(text(pieces) + " zebra")
        assert got.scene is None
        assert "'zebra'" in got.error and str(len(text(pieces).split()) + 1) in got.error


def test_confusions_use_the_same_words_for_another_scene():
    a, b = Thing(0, 1, 0), Thing(2, 3, 1)
    found = confusions(Scene((a, b), 1, 4))
    assert found == {
        "places exchanged": Scene((b, a), 1, 4),
        "the other relation": Scene((a, b), 0, 4),
        "colours exchanged": Scene((Thing(0, 3, 0), Thing(2, 1, 1)), 1, 4),
        "sizes exchanged": Scene((Thing(0, 1, 1), Thing(2, 3, 0)), 1, 4),
    }
    alike = Thing(2, 1, 0)  # of the colour and size of a: nothing to exchange there
    assert set(confusions(Scene((a, alike), 0, 0))) == {"places exchanged", "the other relation"}
    assert confusions(Scene((a,), None, 2)) == {"the other size": Scene((Thing(0, 1, 1),), None, 2)}


def test_words_are_disjoint_between_attributes():
    tables = {name: getattr(grammar, name) for name in ("SHAPES", "COLOURS", "SIZES", "BACKGROUNDS")}
    words = {name: [w for synonyms in table.values() for w in synonyms] for name, table in tables.items()}
    words["other"] = sorted(
        {w for p in [*sum(RELATIONS.values(), []), *LEADS, *PREPS, *NOUNS, "a in"] for w in p.split()}
    )
    everything = sum(words.values(), [])
    assert len(set(everything)) == len(everything)
    assert sorted(everything) == vocabulary()


def test_a_caption_is_a_pure_function_of_its_uniforms():
    scene = Scene((Thing(2, 3, 1), Thing(0, 0, 0)), 1, 4)
    rng = np.random.default_rng(0)
    drawn = [rng.random(CAPTION_UNIFORMS) for _ in range(300)]
    captions = [write(scene, u) for u in drawn]
    assert captions == [write(scene, u) for u in drawn] and len(set(captions)) > 250
    for u in (np.zeros(CAPTION_UNIFORMS), np.full(CAPTION_UNIFORMS, 1 - 2.0**-53)):
        assert parse(write(scene, u)).scene == scene
    assert write(scene, np.zeros(CAPTION_UNIFORMS)).startswith("a large yellow triangle above a small red circle on a")
    rare = write(scene, np.full(CAPTION_UNIFORMS, 0.999))
    assert "tiny dot in scarlet under a huge wedge in golden" in rare and "before a lilac wall" in rare


def test_the_exponent_sets_how_rare_synonyms_are():
    rng = np.random.default_rng(1)
    scene = Scene((Thing(0, 0, 0),), None, 0)
    drawn = rng.random((3000, CAPTION_UNIFORMS))
    for exponent in (0.0, 1.0, 2.0):
        share = np.mean(["small" in write(scene, u, exponent).split() for u in drawn])
        assert share == pytest.approx(zipf(3, exponent)[0], abs=0.03)
