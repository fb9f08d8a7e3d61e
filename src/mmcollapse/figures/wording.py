"""Which words of a caption say something else than its prompt."""

from __future__ import annotations

from mmcollapse.worlds.grammar import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, parse

ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
# word -> what it is about; words are disjoint between attributes
ABOUT = {word: name for name, table in ATTRIBUTES.items() for words in table.values() for word in words}
ABOUT |= {word: "background" for words in BACKGROUNDS.values() for word in words}
PHRASES = sorted((p.split() for phrases in RELATIONS.values() for p in phrases), key=len, reverse=True)


def wrong_words(caption: str, prompt: str) -> set[int] | None:
    """The numbers of the words of a caption (by spaces, from 0) that name an attribute which the prompt has otherwise,
    or a thing that is not in it. None if either is no sentence of the grammar."""
    said, asked = parse(caption).scene, parse(prompt).scene
    if said is None or asked is None:
        return None
    words = caption.lower().split()
    about = [ABOUT.get(word, "") for word in words]
    relation = ""
    for phrase in PHRASES:  # longest first; a sentence has at most one
        starts = [k for k in range(len(words)) if words[k : k + len(phrase)] == phrase]
        if starts and not relation:
            relation = " ".join(phrase)
            about[starts[0] : starts[0] + len(phrase)] = ["relation"] * len(phrase)
    # The parser puts the left or top thing first, whichever is mentioned first.
    reversed_ = relation in (*RELATIONS["right"], *RELATIONS["below"])
    twins, same_place = _twins(said, asked)
    wrong, thing = set(), 0
    for k, what in enumerate(about):
        if what == "relation":
            # all words of the phrase, the last of which ends the first thing
            thing = 1
            if said.relation != asked.relation or not same_place:
                wrong.add(k)
        elif what == "background":
            if said.background != asked.background:
                wrong.add(k)
        elif what:
            own = len(said.things) - 1 - thing if reversed_ else thing
            twin = twins[own]
            if twin is None or getattr(said.things[own], what) != getattr(asked.things[twin], what):
                wrong.add(k)
    return wrong


def _twins(said: Scene, asked: Scene) -> tuple[list[int | None], bool]:
    """For each thing that is said the number of the one that was asked for: those that share most; and whether they
    are in the same order."""

    def shared(i: int, j: int) -> int:
        return sum(a == b for a, b in zip(said.things[i], asked.things[j], strict=True))

    if len(said.things) == len(asked.things) == 2:
        straight, crossed = shared(0, 0) + shared(1, 1), shared(0, 1) + shared(1, 0)
        return ([0, 1], True) if straight >= crossed else ([1, 0], False)
    if len(said.things) == 1:
        return [max(range(len(asked.things)), key=lambda j: (shared(0, j), -j))], True
    best = max((0, 1), key=lambda i: (shared(i, 0), -i))
    return [0 if i == best else None for i in (0, 1)], True
