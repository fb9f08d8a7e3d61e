"""The scenes world: what it says it draws is what lies in the pixels, at the frequencies it states.

Golden pictures and captions are kept in fixtures/scenes.png and fixtures/scenes.json. When the world was meant to
change, bump VERSION in worlds/scenes.py, then `python tests/test_scenes.py` writes them anew.
"""

import colorsys
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from mmcollapse.errors import MMCollapseError
from mmcollapse.worlds import open_world
from mmcollapse.worlds.grammar import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    RELATION_NAMES,
    SHAPE_NAMES,
    SHAPES,
    SIZE_NAMES,
    Scene,
    Thing,
    parse,
)
from mmcollapse.worlds.scenes import HUE, MARGIN, OFFSET, ROTATION, SPLITS, VERSION, WITHHELD, Scenes, visible

FIXTURES = Path(__file__).parent / "fixtures"
COMMAND = "python tests/test_scenes.py"
MANY = 20_000

# What a person would call these colours; the world's own values are not used, so a wrong table is noticed.
COLOURS = {
    "red": (220, 20, 20),
    "blue": (30, 80, 230),
    "green": (30, 160, 45),
    "yellow": (250, 230, 30),
    "orange": (250, 120, 10),
    "purple": (135, 45, 180),
    "white": (255, 255, 255),
    "pink": (255, 130, 190),
    "cyan": (50, 210, 230),
    "brown": (115, 65, 30),
}
BACKGROUNDS = {
    "gray": (125, 125, 125),
    "black": (10, 10, 10),
    "beige": (220, 200, 160),
    "mint": (170, 225, 190),
    "lavender": (190, 175, 225),
}


def nearest(colour, table: dict) -> str:
    return min(table, key=lambda name: np.linalg.norm(np.subtract(table[name], colour)))


def attributes(world: Scenes, split: str, n: int = MANY) -> list[Scene]:
    """Scenes without their pictures, which would take 30 s."""
    return world._attributes(split, np.arange(n))


@pytest.fixture(scope="module")
def drawn(world):
    """{split: (Batch, nuisance)} of 400 samples each."""
    return {split: (world.sample(split, range(400)), world.nuisance(split, range(400))) for split in SPLITS}


# -- a pure function of (seed, index) -------------------------------------------------------------------------------


def test_a_sample_depends_on_nothing_but_seed_split_and_index(world, drawn):
    whole, _ = drawn["chain"]
    some = [17, 3, 399, 3, 0]
    np.random.seed(1)
    part = world.sample("chain", some)
    assert np.array_equal(part.images, whole.images[some])
    assert part.captions == [whole.captions[i] for i in some]
    assert part.scenes == [whole.scenes[i] for i in some]
    assert part.keys == [whole.keys[i] for i in some]
    assert np.array_equal(world.nuisance("chain", some), drawn["chain"][1][some], equal_nan=True)
    assert Scenes().sample("chain", [399]).captions[0] == whole.captions[399]
    assert attributes(world, "chain", 400) == whole.scenes
    other = Scenes(seed=1).sample("chain", range(20))
    assert not set(other.keys) & set(whole.keys) and other.captions != whole.captions[:20]


def test_another_process_makes_the_same_samples(drawn):
    code = (
        "import hashlib, sys; from mmcollapse.worlds import open_world\n"
        "b = open_world('scenes').sample('base', [7, 5, 6])\n"
        "assert 'torch' not in sys.modules\n"
        "print(hashlib.sha256(b.images.tobytes() + repr((b.captions, b.scenes, b.keys)).encode()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    batch, _ = drawn["base"]
    assert len(hashes) == 1
    three = Scenes().sample("base", [7, 5, 6])
    assert np.array_equal(three.images, batch.images[[7, 5, 6]])
    mine = three.images.tobytes() + repr((three.captions, three.scenes, three.keys)).encode()
    assert hashes == {hashlib.sha256(mine).hexdigest() + "\n"}


def test_splits_share_no_key_and_no_picture(drawn):
    keys = [key for batch, _ in drawn.values() for key in batch.keys]
    pictures = [image.tobytes() for batch, _ in drawn.values() for image in batch.images]
    assert len(set(keys)) == len(keys) == len(SPLITS) * 400
    assert len(set(pictures)) == len(pictures)
    # and no random number: not the attributes of index i, nor where they are drawn, nor how they are told
    one = {name: [len(scene.things) for scene in batch.scenes] for name, (batch, _) in drawn.items()}
    turned = {name: nuisance[:, 0, 3] for name, (_, nuisance) in drawn.items()}
    begins = {name: [five[0].split()[0] for five in batch.captions] for name, (batch, _) in drawn.items()}
    for a, b in itertools.combinations(SPLITS, 2):
        assert np.mean(np.equal(one[a], one[b])) < 0.65
        assert abs(np.corrcoef(turned[a], turned[b])[0, 1]) < 0.2
        assert np.mean(np.array(begins[a]) == begins[b]) < 0.65


def test_a_batch_has_the_shape_it_states(world, drawn):
    batch, nuisance = drawn["test"]
    assert batch.images.shape == (400, 64, 64, 3) and batch.images.dtype == np.uint8
    assert {len(five) for five in batch.captions} == {5}
    assert nuisance.shape == (400, 2, 5)
    assert [len(s.things) for s in batch.scenes] == (2 - np.isnan(nuisance[:, 1]).all(1)).tolist()
    assert not np.isnan(nuisance[:, 0]).any()
    assert all(parse(c).scene == s for five, s in zip(batch.captions, batch.scenes, strict=True) for c in five)
    assert world.size("base") is None and open_world("scenes").digest == world.digest
    mean = np.mean([len(c.split()) for b, _ in drawn.values() for five in b.captions for c in five])
    assert world.references_length() == pytest.approx(mean, rel=0.03)


def test_bad_arguments_are_refused_by_name(world):
    for exponent in (-0.1, 4.5, float("nan")):
        with pytest.raises(MMCollapseError, match="exponent"):
            Scenes(exponent)
    for call in (world.size, lambda split: world.sample(split, [0])):
        with pytest.raises(MMCollapseError, match="'training'.*base"):
            call("training")
    with pytest.raises(MMCollapseError, match="'paintings'"):
        open_world("paintings")


# -- frequencies ----------------------------------------------------------------------------------------------------


def pair_probability(exponent: float, kind: str = "all") -> np.ndarray:
    """(100,) probability of the shape-colour pairs, written out from the definition."""
    ranks = np.arange(1, 11) ** -float(exponent)
    joint = np.outer(ranks, ranks)
    joint = joint * {"all": True, "seen": ~WITHHELD, "withheld": WITHHELD}[kind]
    return (joint / joint.sum()).ravel()


def second_of(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Probability of the second pair when it is drawn from `other` without the first."""
    return sum(p * np.where(np.arange(100) == a, 0, other) / (1 - other[a]) for a, p in enumerate(first))


def cells(things) -> np.ndarray:
    return np.bincount([t.shape * 10 + t.colour for t in things], minlength=100)


def assert_frequencies(counts: np.ndarray, probability: np.ndarray):
    counts, probability = np.asarray(counts), np.asarray(probability)
    assert counts[probability == 0].sum() == 0
    order = np.argsort(probability)
    order = order[probability[order] > 0]
    bins, seen, expected = [], 0, 0.0
    for i in order:  # rare cells together, so that every bin expects 5 or more
        seen, expected = seen + counts[i], expected + probability[i] * counts.sum()
        if expected >= 5:
            bins.append((seen, expected))
            seen, expected = 0, 0.0
    observed, wanted = np.array(bins, float).T
    observed[-1], wanted[-1] = observed[-1] + seen, wanted[-1] + expected
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize(
    "exponent, split, kind",
    [(1, "base", "seen"), (1, "test", "seen"), (1, "test-uniform", "flat"), (0, "chain", "seen"), (2, "base", "seen")],
)
def test_attributes_come_as_often_as_stated(exponent, split, kind):
    scenes = attributes(Scenes(exponent), split)
    if kind == "flat":
        exponent, kind = 0, "all"
    pair = pair_probability(exponent, kind)
    one, two = ([s for s in scenes if len(s.things) == n] for n in (1, 2))
    assert_frequencies([len(one), len(two)], [0.5, 0.5])
    assert_frequencies(cells(s.things[0] for s in one), pair)
    mixed = (
        pair + second_of(pair, pair)
    ) / 2  # which of the two is left or top does not depend on which was drawn first
    for slot in (0, 1):
        assert_frequencies(cells(s.things[slot] for s in two), mixed)
        assert_frequencies(
            np.bincount([s.things[slot].size for s in two]), np.array([2**exponent, 1]) / (2**exponent + 1)
        )
    ranks = np.arange(1, 6) ** -float(exponent)
    assert_frequencies(np.bincount([s.background for s in scenes], minlength=5), ranks / ranks.sum())
    assert_frequencies(np.bincount([s.relation for s in two]), np.array([2**exponent, 1]) / (2**exponent + 1))
    assert all(s.relation is None for s in one) and all(s.things[0][:2] != s.things[1][:2] for s in two)


def test_the_judge_sees_zipf_and_uniform_samples_in_turn(world):
    scenes = attributes(world, "judge")
    for start, exponent in ((0, 1), (1, 0)):
        part = [s.things[0] for s in scenes[start::2] if len(s.things) == 1]
        assert_frequencies(cells(part), pair_probability(exponent))


def test_attributes_are_independent_of_each_other(world):
    scenes = attributes(world, "base")
    two = [s for s in scenes if len(s.things) == 2]
    pairs = {
        "size and background": [(s.things[0].size, s.background) for s in scenes],
        "number and background": [(len(s.things), s.background) for s in scenes],
        "size and size": [(s.things[0].size, s.things[1].size) for s in two],
        "relation and size": [(s.relation, s.things[0].size) for s in two],
        "colour and size": [(s.things[0].colour, s.things[0].size) for s in scenes],
    }
    for name, values in pairs.items():
        a, b = np.array(values).T
        table = np.array([[np.sum((a == i) & (b == k)) for k in np.unique(b)] for i in np.unique(a)])
        assert stats.chi2_contingency(table).pvalue > 1e-3, name


def test_synonyms_are_zipf_distributed(world):
    words = [
        w
        for five in world._captions("base", np.arange(2000), attributes(world, "base", 2000))
        for c in five
        for w in c.split()
    ]
    counts = [words.count(w) for w in SHAPES["circle"]]
    assert_frequencies(counts, np.array([6, 3, 2]) / 11)


def test_withheld_pairs_are_ten_of_a_hundred_and_only_where_they_should_be(world):
    assert WITHHELD.sum() == 10 and (WITHHELD.sum(0) == 1).all() and (WITHHELD.sum(1) == 1).all()
    mass = pair_probability(1)[WITHHELD.ravel()].sum()
    print(f"withheld: {WITHHELD.sum()} of {WITHHELD.size} shape-colour pairs, {mass:.4f} of the probability")
    assert 0.02 < mass < 0.2

    def withheld(split) -> np.ndarray:
        return np.array([sum(WITHHELD[t.shape, t.colour] for t in s.things) for s in attributes(world, split)])

    for split in ("base", "chain", "test"):
        assert withheld(split).max() == 0
    assert withheld("test-withheld").min() >= 1
    for split in ("judge", "test-uniform"):
        seen = {(t.shape, t.colour) for s in attributes(world, split) for t in s.things}
        assert len(seen) == 100
    one = [s.things[0] for s in attributes(world, "test-withheld") if len(s.things) == 1]
    assert_frequencies(cells(one), pair_probability(1, "withheld"))


# -- nuisance -------------------------------------------------------------------------------------------------------


def mean_square(low: float, high: float, f) -> float:
    """Mean of f(r)^2 over r uniform in [low, high], for a linear f."""
    a, b = f(low), f(high)
    return (a * a + a * b + b * b) / 3


def test_nuisance_variance_is_that_of_its_uniform_distribution(world):
    scenes, factors = attributes(world, "test-uniform"), world.nuisance("test-uniform", np.arange(MANY))
    radii = {"small": (6.5, 8.5), "large": (12.0, 14.0)}
    for size, name in enumerate(SIZE_NAMES):
        one = np.array([len(s.things) == 1 and s.things[0].size == size for s in scenes])
        x, y, r, rotation, hue = factors[one, 0].T
        low, high = radii[name]
        place = mean_square(low, high, lambda r: 64 - 2 * (r + MARGIN)) / 12
        wanted = {"x": place, "y": place, "radius": 4 / 12, "rotation": ROTATION**2 / 3, "hue": HUE**2 / 3}
        for (factor, variance), got in zip(wanted.items(), (x, y, r, rotation, hue), strict=True):
            assert got.var() == pytest.approx(variance, rel=0.05), (name, factor)
        assert x.mean() == pytest.approx(32, abs=0.5) and y.mean() == pytest.approx(32, abs=0.5)
        assert rotation.mean() == pytest.approx(0, abs=0.01) and hue.mean() == pytest.approx(0, abs=1e-3)
        both = np.corrcoef([x, y, r, rotation, hue]) - np.eye(5)
        assert np.abs(both).max() < 0.06

        # two things: along the relation each has its own half, across they share a line within OFFSET
        for relation, (along, across) in enumerate(((0, 1), (1, 0))):
            two = np.array(
                [len(s.things) == 2 and s.relation == relation and {t.size for t in s.things} == {size} for s in scenes]
            )
            rows = factors[two]
            for slot in (0, 1):
                variance = mean_square(low, high, lambda r: 32 - 2 * r - MARGIN - 0.5) / 12
                assert rows[:, slot, along].var() == pytest.approx(variance, rel=0.12), (name, relation, slot)
                assert rows[:, slot, along].mean() == pytest.approx(16.5 if slot == 0 else 47.5, abs=0.3)
            apart = rows[:, 1, across] - rows[:, 0, across]
            assert np.abs(apart).max() <= 2 * OFFSET and apart.var() == pytest.approx(2 * OFFSET**2 / 3, rel=0.12)


def test_redrawn_pictures_keep_the_attributes_and_change_the_rest(world):
    scenes = attributes(world, "test", 12)
    again = world.redraw(scenes, 3)
    assert again.shape == (12, 3, 64, 64, 3)
    assert np.array_equal(again, world.redraw(scenes, 3))
    assert not np.array_equal(again, world.redraw(scenes, 3, stream="other"))
    original = world.sample("test", range(12)).images
    for scene, pictures, first in zip(scenes, again, original, strict=True):
        assert len({p.tobytes() for p in [*pictures, first]}) == 4
        assert {nearest(p[0, 0], BACKGROUNDS) for p in pictures} == {BACKGROUND_NAMES[scene.background]}


# -- pixels ---------------------------------------------------------------------------------------------------------


def alone(scene: Scene, slot: int, nuisance: np.ndarray) -> np.ndarray:
    """The picture of one of the things."""
    return Scenes.draw([Scene((scene.things[slot],), None, scene.background)], nuisance[[slot, slot]][None])[0]


def touched(picture: np.ndarray) -> np.ndarray:
    """(64, 64) bool: pixels that are not the background."""
    return (picture != picture[0, 0]).any(-1)


def coverage(picture: np.ndarray) -> np.ndarray:
    """(64, 64) in 0-1: how much of each pixel the one thing of a picture covers."""
    away = picture.astype(float) - picture[0, 0]
    full = away.reshape(-1, 3)[np.linalg.norm(away, axis=-1).argmax()]
    return np.clip(away @ full / (full @ full), 0, 1)


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_is_cut_off_and_things_do_not_overlap(drawn, split):
    batch, nuisance = drawn[split]
    for image, scene, factors in zip(batch.images, batch.scenes, nuisance, strict=True):
        parts = [alone(scene, slot, factors) for slot in range(len(scene.things))]
        masks = [touched(p) for p in parts]
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border == image[0, 0]).all()
        assert all(mask.sum() > 30 for mask in masks)
        if len(parts) == 2:
            assert not (masks[0] & masks[1]).any()
            together = np.where(masks[1][..., None], parts[1], parts[0])
        else:
            together = parts[0]
        assert np.array_equal(together, image)  # the picture is its things, each whole, and nothing else
        for mask in masks:
            pieces = np.bincount(ndimage.label(mask, np.ones((3, 3)))[0].ravel())[1:]
            assert np.sum(pieces > 2) == 1  # the faint tip of a moon may skip a pixel


@pytest.mark.parametrize("split", ["test", "test-uniform", "test-withheld"])
def test_pictures_are_drawn_as_their_captions_say(drawn, split):
    """Read from pixels alone: the halves of the picture, their plain colour, extent and centre of mass."""
    batch, _ = drawn[split]
    for image, captions in zip(batch.images, batch.captions, strict=True):
        said = parse(captions[0]).scene
        assert nearest(image[0, 0], BACKGROUNDS) == BACKGROUND_NAMES[said.background]
        mask = touched(image)
        if len(said.things) == 1:
            regions = [mask]
        else:
            half = np.arange(64) < 32
            first = half[None, :] if RELATION_NAMES[said.relation] == "left" else half[:, None]
            regions = [mask & first, mask & ~first]
        for region, thing in zip(regions, said.things, strict=True):
            away = np.linalg.norm(image.astype(float) - image[0, 0], axis=-1) * region
            core = image[away > 0.9 * away.max()]
            assert nearest(np.median(core, axis=0), COLOURS) == COLOUR_NAMES[thing.colour], captions[0]
            outline = np.argwhere(away > 0.5 * away.max())
            diameter = pdist(outline[ConvexHull(outline).vertices]).max() + 1
            assert ("large" if diameter > 19.5 else "small") == SIZE_NAMES[thing.size], captions[0]
        if len(said.things) == 2:
            centres = [np.array(ndimage.center_of_mass(region)) for region in regions]
            apart = centres[1] - centres[0]
            axis = 1 if RELATION_NAMES[said.relation] == "left" else 0
            assert apart[axis] > 8 and apart[axis] > abs(apart[1 - axis])


def test_the_nuisance_stated_is_the_nuisance_drawn(world, drawn):
    batch, nuisance = drawn["test-uniform"]
    checked = dict.fromkeys(("x", "y", "radius", "rotation", "hue"), 0)
    for scene, factors in zip(batch.scenes, nuisance, strict=True):
        for slot, thing in enumerate(scene.things):
            name = SHAPE_NAMES[thing.shape]
            picture, (x, y, radius, rotation, hue) = alone(scene, slot, factors), factors[slot]
            cover = coverage(picture)
            cy, cx = np.array(ndimage.center_of_mass(cover)) + 0.5
            if name in ("circle", "square", "cross", "ring", "diamond"):
                assert (cx, cy) == pytest.approx((x, y), abs=0.12)
                checked["x"], checked["y"] = checked["x"] + 1, checked["y"] + 1
            if name == "circle":
                assert cover.sum() == pytest.approx(np.pi * (0.9 * radius) ** 2, rel=0.03)
                checked["radius"] += 1
            if name in ("arrow", "diamond") and thing.size == 1:  # their long axis shows the rotation
                dy, dx = np.indices(cover.shape) - np.array([cy, cx])[:, None, None] + 0.5
                moments = [(cover * m).sum() for m in (dx * dx, dy * dy, dx * dy)]
                if name == "diamond":
                    angle = 0.5 * np.arctan2(2 * moments[2], moments[1] - moments[0])
                    assert -angle == pytest.approx(rotation, abs=0.03)
                    checked["rotation"] += 1
            if COLOUR_NAMES[thing.colour] in ("red", "blue", "yellow", "purple"):
                core = picture[np.linalg.norm(picture.astype(float) - picture[0, 0], axis=-1).argmax() // 64 :][0]
                core = core[np.linalg.norm(core.astype(float) - picture[0, 0], axis=-1).argmax()]
                nominal = {"red": 0, "blue": 224, "yellow": 54, "purple": 280}[COLOUR_NAMES[thing.colour]] / 360
                shift = (colorsys.rgb_to_hsv(*core / 255)[0] - nominal + 0.5) % 1 - 0.5
                assert shift == pytest.approx(hue, abs=0.003)
                checked["hue"] += 1
    assert min(checked.values()) >= 8, checked


def figure(name: str) -> np.ndarray:
    """(64, 64) coverage of a large shape, upright, in the middle."""
    factors = np.array([[[32.0, 32.0, 14.0, 0.0, 0.0]] * 2])
    scene = Scene((Thing(SHAPE_NAMES.index(name), 0, 1),), None, 1)
    return coverage(Scenes.draw([scene], factors)[0])


def test_shapes_have_what_a_person_tells_them_by():
    shapes = {name: figure(name) for name in SHAPE_NAMES}
    solid, holes, mirrored, upside = {}, {}, {}, {}
    for name, cover in shapes.items():
        inside = cover > 0.5
        points = np.argwhere(inside)
        solid[name] = inside.sum() / ConvexHull(points).volume
        holes[name] = ndimage.label(~inside)[1] - 1
        mirrored[name] = np.abs(cover - cover[:, ::-1]).max() < 0.1
        upside[name] = np.abs(cover - cover[::-1]).max() < 0.1
    assert {name for name, n in holes.items() if n == 1} == {"ring"} and max(holes.values()) == 1
    assert {name for name, s in solid.items() if s < 0.9} == {"star", "cross", "ring", "moon", "arrow"}
    assert {name for name, same in mirrored.items() if not same} == {"moon"}
    assert {name for name, same in upside.items() if not same} == {"triangle", "star", "heart", "arrow"}

    def widths(name):
        return [n for n in (shapes[name] > 0.5).sum(1) if n]

    assert np.argmax(widths("triangle")) > 0.8 * len(widths("triangle"))  # stands on its base
    assert np.argmax(widths("heart")) < 0.5 * len(widths("heart")) and widths("heart")[-1] <= 2  # the tip is below
    assert max(widths("arrow")[: len(widths("arrow")) // 2 + 1]) > 2 * widths("arrow")[-1]  # points up
    lobes = np.flatnonzero(np.diff((shapes["heart"][np.argmax(shapes["heart"].max(1) > 0.5) + 1] > 0.5).astype(int)))
    assert len(lobes) == 4  # two lobes above
    turn = np.linspace(0, 2 * np.pi, 200)
    rim = ndimage.map_coordinates(shapes["star"], [31.5 - 9.5 * np.cos(turn), 31.5 + 9.5 * np.sin(turn)], order=1) > 0.5
    assert (rim[1:] != rim[:-1]).sum() == 10  # five points
    area = {name: cover.sum() / 14.0**2 for name, cover in shapes.items()}
    assert area["circle"] == pytest.approx(np.pi * 0.81, rel=0.02)
    assert area["square"] == pytest.approx(1.4**2, rel=0.02)
    assert area["triangle"] == pytest.approx(3 * 3**0.5 / 4, rel=0.03)
    assert area["ring"] == pytest.approx(np.pi * (0.95**2 - 0.52**2), rel=0.02)


def test_visible_says_which_factors_leave_a_trace(world):
    factors = np.array([[[32.0, 32.0, 13.0, 0.0, 0.0]] * 2])
    for shape in range(10):
        for colour in range(10):
            scene = Scene((Thing(shape, colour, 1),), None, 1)
            before = Scenes.draw([scene], factors)[0].astype(int)
            for column, (factor, change) in enumerate(
                {"x": 2.0, "y": 2.0, "radius": 1.0, "rotation": ROTATION, "hue": HUE}.items()
            ):
                moved = factors.copy()
                moved[0, 0, column] += change
                seen = np.abs(Scenes.draw([scene], moved)[0] - before).max() > 5
                assert seen == visible(scene, factor, 0), (SHAPE_NAMES[shape], COLOUR_NAMES[colour], factor)


# -- golden samples -------------------------------------------------------------------------------------------------

ROWS, COLUMNS = 5, 10


def golden() -> tuple[np.ndarray, dict]:
    """A sheet (320, 640, 3) of 50 pictures, and what else is kept of them."""
    batches = [
        Scenes().sample(split, range(10)) for split in ("base", "judge", "chain", "test-withheld", "test-uniform")
    ]
    sheet = np.concatenate([np.concatenate(list(b.images), 1) for b in batches])
    return sheet, {"version": VERSION, "captions": [five for b in batches for five in b.captions]}


def test_golden_samples_are_unchanged():
    kept, sheet = (
        json.loads((FIXTURES / "scenes.json").read_text()),
        np.array(Image.open(FIXTURES / "scenes.png")).astype(int),
    )
    pictures, now = golden()
    assert kept["version"] == VERSION, (
        f"VERSION of the scenes world was bumped: record the new samples with `{COMMAND}`"
    )
    why = f"of the scenes world changed at the same VERSION: if that was meant, bump it, then run `{COMMAND}`"
    assert now["captions"] == kept["captions"], f"captions {why}"
    assert sheet.shape == pictures.shape and np.abs(sheet - pictures).max() <= 1, f"pictures {why}"


if __name__ == "__main__":
    picture_sheet, facts = golden()
    Image.fromarray(picture_sheet).save(FIXTURES / "scenes.png", optimize=True)
    (FIXTURES / "scenes.json").write_text(json.dumps(facts, indent=1) + "\n")
