"""What a scene says in words: attributes, the caption grammar, and the parser that reads captions back.

A caption is one sentence of the grammar

    caption    = [lead] object [relation object] place  |  place lead object [relation object]
    object     = "a" size colour shape  |  "a" size shape "in" colour
    place      = prep ("a" backdrop noun)

whose every terminal has one to three synonyms, drawn with Zipf probabilities (rank^-exponent), so that language has a
tail of its own to lose. Words are disjoint between attributes, so the parser needs no guessing and is exact on every
sentence of the grammar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Value -> synonyms, most frequent first. The order of the values is their Zipf rank in the world.
SHAPES = {
    "circle": ["circle", "disc", "dot"],
    "square": ["square", "box", "block"],
    "triangle": ["triangle", "wedge"],
    "star": ["star", "pentagram"],
    "heart": ["heart"],
    "cross": ["cross", "plus"],
    "diamond": ["diamond", "rhombus"],
    "ring": ["ring", "hoop", "donut"],
    "moon": ["moon", "crescent"],
    "arrow": ["arrow", "pointer"],
}
COLOURS = {
    "red": ["red", "crimson", "scarlet"],
    "blue": ["blue", "azure"],
    "green": ["green", "emerald"],
    "yellow": ["yellow", "golden"],
    "orange": ["orange", "tangerine"],
    "purple": ["purple", "violet"],
    "white": ["white", "snowy"],
    "pink": ["pink", "rosy"],
    "cyan": ["cyan", "turquoise"],
    "brown": ["brown", "chestnut"],
}
SIZES = {"small": ["small", "little", "tiny"], "large": ["large", "big", "huge"]}
BACKGROUNDS = {
    "gray": ["gray", "grey"],
    "black": ["black", "dark"],
    "beige": ["beige", "sandy"],
    "mint": ["mint", "minty"],
    "lavender": ["lavender", "lilac"],
}
# Canonical relations are two: the first object (left or top) is "left" of or "above" the second. A caption may mention
# the second object first and then says "right of" or "below", which is the rarer way.
RELATIONS = {
    "left": ["left of", "to the left of"],
    "above": ["above", "over"],
    "right": ["right of", "to the right of"],
    "below": ["below", "under"],
}
INVERSE = {"left": "right", "above": "below"}
LEADS = ["", "there is", "a picture of", "we see"]
PREPS = ["on", "against", "before"]
NOUNS = ["background", "backdrop", "wall"]

SHAPE_NAMES, COLOUR_NAMES, SIZE_NAMES, BACKGROUND_NAMES = map(list, (SHAPES, COLOURS, SIZES, BACKGROUNDS))
RELATION_NAMES = ["left", "above"]


class Thing(NamedTuple):
    """One object: indices into SHAPE_NAMES (0..9), COLOUR_NAMES (0..9) and SIZE_NAMES (0..1)."""

    shape: int
    colour: int
    size: int


class Scene(NamedTuple):
    """The attributes of a picture. `things`: one or two, left or top first. `relation`: index into RELATION_NAMES, or
    None for one thing. `background`: index into BACKGROUND_NAMES (0..4)."""

    things: tuple[Thing, ...]
    relation: int | None
    background: int


@dataclass(frozen=True)
class Parse:
    """What was read from a caption. `scene` is None when any part could not be read; `error` then says which part and
    which word ("" otherwise); `words` counts the words of the caption."""

    scene: Scene | None
    error: str
    words: int


def zipf(n: int, exponent: float) -> np.ndarray:
    """Probabilities (n,) proportional to rank^-exponent; uniform at exponent 0."""
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


_CDF: dict[tuple[int, float], np.ndarray] = {}


def _pick(options: list, u: float, exponent: float):
    key = (len(options), exponent)
    if key not in _CDF:
        _CDF[key] = np.cumsum(zipf(*key))[:-1]
    return options[int(np.searchsorted(_CDF[key], u, side="right"))]


CAPTION_UNIFORMS = 16  # how many uniforms one caption consumes at most


def write(scene: Scene, uniforms: np.ndarray, exponent: float = 1.0) -> str:
    """One caption of `scene`. `uniforms`: (CAPTION_UNIFORMS,) numbers in [0, 1) that make every choice, so that the
    caption is a pure function of them. `exponent`: Zipf exponent of the synonyms."""
    u = iter(uniforms.tolist())

    def pick(options):
        return _pick(options, next(u), exponent)

    def phrase(thing: Thing) -> str:
        size, colour = pick(SIZES[SIZE_NAMES[thing.size]]), pick(COLOURS[COLOUR_NAMES[thing.colour]])
        shape = pick(SHAPES[SHAPE_NAMES[thing.shape]])
        return pick([f"a {size} {colour} {shape}", f"a {size} {shape} in {colour}"])

    lead, place_first = pick(LEADS), pick([False, True])
    place = f"{pick(PREPS)} a {pick(BACKGROUNDS[BACKGROUND_NAMES[scene.background]])} {pick(NOUNS)}"
    if len(scene.things) == 1:
        what = phrase(scene.things[0])
    else:
        relation, (first, second) = RELATION_NAMES[scene.relation], scene.things
        if pick([False, True]):  # mention the right or lower thing first
            relation, first, second = INVERSE[relation], second, first
        what = f"{phrase(first)} {pick(RELATIONS[relation])} {phrase(second)}"
    # A place in front needs a lead, or the sentence would read as two unrelated phrases.
    return f"{place} {lead or 'there is'} {what}" if place_first else f"{lead} {what} {place}".strip()


def confusions(scene: Scene) -> dict[str, Scene]:
    """{what was changed: scene}: the scenes that are easily confused with `scene`. Of two things:
    places, colours or sizes exchanged, the other relation, where that makes a difference; of one: the other size."""
    if len(scene.things) == 1:
        thing = scene.things[0]
        return {"the other size": scene._replace(things=(thing._replace(size=1 - thing.size),))}
    a, b = scene.things
    others = {
        "places exchanged": scene._replace(things=(b, a)),
        "the other relation": scene._replace(relation=1 - scene.relation),
        "colours exchanged": scene._replace(things=(a._replace(colour=b.colour), b._replace(colour=a.colour))),
        "sizes exchanged": scene._replace(things=(a._replace(size=b.size), b._replace(size=a.size))),
    }
    return {what: other for what, other in others.items() if other != scene}


def _lookup(table: dict[str, list[str]]) -> dict[tuple[str, ...], int]:
    return {tuple(word.split()): i for i, words in enumerate(table.values()) for word in words}


_SHAPE, _COLOUR, _SIZE, _BACKGROUND, _RELATION = map(_lookup, (SHAPES, COLOURS, SIZES, BACKGROUNDS, RELATIONS))
_LEAD = {tuple(lead.split()): i for i, lead in enumerate(LEADS) if lead}
_PREP, _NOUN = {(w,): i for i, w in enumerate(PREPS)}, {(w,): i for i, w in enumerate(NOUNS)}


class _Unreadable(Exception):
    pass


class _Reader:
    def __init__(self, words: list[str]):
        self.words, self.at = words, 0

    def accept(self, table: dict[tuple[str, ...], int]) -> int | None:
        for length in (4, 3, 2, 1):  # longest match first: "to the left of" before "to"
            value = table.get(tuple(self.words[self.at : self.at + length]))
            if value is not None and self.at + length <= len(self.words):
                self.at += length
                return value
        return None

    def expect(self, table: dict[tuple[str, ...], int], what: str) -> int:
        value = self.accept(table)
        if value is None:
            found = f"'{self.words[self.at]}'" if self.at < len(self.words) else "the end"
            raise _Unreadable(f"expected {what} at word {self.at + 1}, found {found}")
        return value

    def thing(self, which: str) -> Thing:
        self.expect({("a",): 0}, f"'a' of the {which} object")
        size = self.expect(_SIZE, f"the size of the {which} object")
        colour = self.accept(_COLOUR)
        shape = self.expect(_SHAPE, f"the {'shape' if colour is not None else 'colour or shape'} of the {which} object")
        if colour is None:
            self.expect({("in",): 0}, f"'in' and the colour of the {which} object")
            colour = self.expect(_COLOUR, f"the colour of the {which} object")
        return Thing(shape, colour, size)

    def place(self) -> int:
        self.expect(_PREP, "the place (on, against, before)")
        self.expect({("a",): 0}, "'a' of the place")
        background = self.expect(_BACKGROUND, "the colour of the background")
        self.expect(_NOUN, "the noun of the place")
        return background

    def caption(self) -> Scene:
        place_first = bool(self.words) and (self.words[0],) in _PREP
        background = self.place() if place_first else None
        self.accept(_LEAD)
        things = [self.thing("first")]
        relation = self.accept(_RELATION)
        if relation is not None:
            things.append(self.thing("second"))
        if background is None:
            background = self.place()
        if self.at < len(self.words):
            raise _Unreadable(
                f"more words after the end of the sentence: '{self.words[self.at]}' at word {self.at + 1}"
            )
        if relation is not None and relation >= 2:  # right of, below: put the left or top thing first
            things.reverse()
        return Scene(tuple(things), None if relation is None else relation % 2, background)


def parse(caption: str) -> Parse:
    """Read a caption back to its attributes; exact on every caption that `write` can make. Case and extra white space
    do not matter. A caption that is no sentence of the grammar gives scene None and the first part that failed."""
    words = caption.lower().split()
    try:
        return Parse(_Reader(words).caption(), "", len(words))
    except _Unreadable as why:
        return Parse(None, str(why), len(words))


def vocabulary() -> list[str]:
    """Every word of the grammar, sorted."""
    tables = (SHAPES, COLOURS, SIZES, BACKGROUNDS, RELATIONS)
    phrases = [p for table in tables for words in table.values() for p in words] + LEADS + PREPS + NOUNS + ["a in"]
    return sorted({word for phrase in phrases for word in phrase.split()})
