"""The metrics, against closed forms, published vectors and slow implementations of their definitions."""

import math

import numpy as np
import pytest
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics import images as image
from mmcollapse.metrics.alignment import alignment
from mmcollapse.metrics.images import embedding_variance, frechet, kid, split_variance
from mmcollapse.metrics.truth import (
    ATTRIBUTES,
    attributes_right,
    captions_right,
    pictures_right,
    sampling_floor,
    tail_cells,
    tail_coverage,
    within_prompt_variance,
)
from mmcollapse.models.oracle import Reading
from mmcollapse.worlds.grammar import COLOUR_NAMES, SHAPE_NAMES, Scene, Thing


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -- alignment ------------------------------------------------------------------------------------------------------


def slow_alignment(x, y) -> dict[str, float]:
    """The definition, pair by pair."""

    def d(a, b):
        return 1 - sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(
            sum(p * p for p in a) * sum(q * q for q in b)
        )

    n = len(x)
    pair = sum(d(x[i], y[i]) for i in range(n)) / n
    spread = sum(d(x[i], x[j]) + d(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (2 * n * (n - 1))
    unit = [[[v / math.sqrt(sum(q * q for q in row)) for v in row] for row in z] for z in (x, y)]
    means = [[sum(row[k] for row in z) / n for k in range(len(x[0]))] for z in unit]
    gap = math.sqrt(sum((a - b) ** 2 for a, b in zip(*means, strict=True)))
    return {"P": pair, "W": spread, "RMG": pair / (spread + pair), "L2M": gap}


def test_alignment_is_its_definition(rng):
    x, y = rng.normal(size=(17, 5)) + 1, rng.normal(size=(17, 5)) * 3
    assert alignment(x, y) == pytest.approx(slow_alignment(x.tolist(), y.tolist()), rel=1e-12)


def test_alignment_of_known_arrangements():
    axes = np.eye(4)
    assert alignment(axes, axes) == pytest.approx({"P": 0, "W": 1, "RMG": 0, "L2M": 0}, abs=1e-12)
    opposite = alignment(axes, -axes)  # L2M: each mean has length 1/2
    assert opposite == pytest.approx({"P": 2, "W": 1, "RMG": 2 / 3, "L2M": 1}, abs=1e-12)


def test_alignment_does_not_change_with_order_or_length_of_the_vectors(rng):
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 6))
    order, scale = rng.permutation(40), rng.uniform(0.1, 9, (40, 1))
    same = pytest.approx(alignment(x, y), rel=1e-9)
    assert alignment(x[order], y[order]) == same
    assert alignment(x * scale, y) == same
    assert alignment(x[order], y)["P"] != pytest.approx(alignment(x, y)["P"], rel=1e-3)  # pairs count
    assert alignment(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(alignment(x, y), rel=1e-5)


def test_the_gap_rises_when_spread_falls_at_equal_pair_distance():
    def around(angle):  # pictures at +-angle, their captions half a radian away, out of the plane
        x = np.array([[np.cos(angle), np.sin(angle), 0], [np.cos(angle), -np.sin(angle), 0]])
        return alignment(x, np.cos(0.5) * x + np.sin(0.5) * np.array([0, 0, 1]))

    wide, narrow = around(1.0), around(0.3)
    assert wide["P"] == pytest.approx(narrow["P"]) and wide["W"] > narrow["W"] and wide["RMG"] < narrow["RMG"]


@pytest.mark.parametrize("shapes", [((0, 3), (0, 3)), ((1, 3), (1, 3)), ((4, 3), (5, 3)), ((4, 3), (4, 2))])
def test_alignment_refuses_what_has_none(shapes, rng):
    with pytest.raises(MMCollapseError, match="alignment"):
        alignment(*(rng.normal(size=shape) for shape in shapes))


# -- pictures -------------------------------------------------------------------------------------------------------


def test_frechet_of_gaussians_is_the_closed_form(rng):
    means = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, -1.0])
    mix = np.array([[1.0, 0.4, 0.0], [0.0, 1.0, -0.3], [0.0, 0.0, 1.0]])
    first, second = mix @ np.diag([1.0, 2.0, 0.5]) @ mix.T, np.diag([2.0, 1.0, 1.0])
    x, y = (rng.multivariate_normal(m, c, 20_000) for m, c in zip(means, (first, second), strict=True))
    root = np.sqrt(np.linalg.eigvals(first @ second).real).sum()  # trace of (S1 S2)^(1/2)
    wanted = np.square(means[0] - means[1]).sum() + np.trace(first + second) - 2 * root
    assert frechet(x, y) == pytest.approx(wanted, rel=0.03)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet(x, x + [3.0, 0, 0]) == pytest.approx(9, rel=1e-6)
    assert frechet(x, y) == pytest.approx(frechet(y, x)) == pytest.approx(frechet(x[::-1], rng.permutation(y)))


def test_kid_is_near_zero_for_equals_and_grows_with_noise(rng):
    x, y = rng.normal(size=(2, 400, 8))
    values = [kid(x, y + s * rng.normal(size=y.shape), subsets=1) for s in (0.0, 0.5, 1.0, 2.0)]
    assert abs(values[0]) < 0.05 and values == sorted(values) and values[-1] > 10 * abs(values[0])
    shifts = [kid(x, y + s, subsets=1) for s in (0.0, 0.25, 0.5, 1.0)]
    assert shifts == sorted(shifts)


def test_kid_is_the_unbiased_squared_mmd_of_the_cubic_kernel(rng):
    x, y = rng.normal(size=(30, 4)) * 2 + 1, rng.normal(size=(30, 4))
    a, b = (x - x.mean(0)) / x.std(0), (y - x.mean(0)) / x.std(0)

    def kernel(p, q):
        return (p @ q.T / 4 + 1) ** 3

    inside = sum((k.sum() - np.trace(k)) / (30 * 29) for k in (kernel(a, a), kernel(b, b)))
    assert kid(x, y, subsets=2) == pytest.approx(inside - 2 * kernel(a, b).mean(), rel=1e-6)
    assert kid(x * 7 + 3, y * 7 + 3, subsets=2) == pytest.approx(kid(x, y, subsets=2), rel=1e-4)  # no scale of its own


def test_kid_is_deterministic_and_leaves_the_global_generator_alone(rng):
    x, y = rng.normal(size=(2, 1100, 4))  # more than a subset holds, so subsets are drawn
    order = rng.permutation(1100)
    np.random.seed(7)
    first, drawn = kid(x, y, subsets=5), np.random.rand()
    np.random.seed(7)
    assert drawn == np.random.rand()
    np.random.seed(8)
    assert kid(x, y, subsets=5) == first
    small = kid(x[:300], y[:300])
    assert kid(x[:300][order[order < 300]], y[:300]) == pytest.approx(small, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("d", [3, 40])
def test_frechet_is_clean_fids(d, rng):
    from cleanfid.fid import frechet_distance

    mix = rng.normal(size=(d, d))
    real, fake = rng.normal(size=(500, d)) @ mix, 0.7 * rng.normal(size=(450, d)) @ mix + 0.3
    theirs = frechet_distance(real.mean(0), np.cov(real.T), fake.mean(0), np.cov(fake.T))
    assert image.frechet(real, fake) == pytest.approx(float(theirs), rel=1e-6)
    assert image.frechet(real, real) == pytest.approx(0, abs=1e-8)
    still = [np.hstack([v, np.full((len(v), 1), 2.0)]) for v in (real, fake)]  # a feature that never changes
    assert image.frechet(*still) == pytest.approx(float(theirs), rel=1e-6)


def test_support_by_hand():
    real, fake = np.array([[0.0], [1], [3], [7]]), np.array([[0.5], [1.5], [20], [21]])
    # k = 1: real reaches 1, 1, 2, 4 (balls [-1, 1], [0, 2], [1, 5], [3, 11]); made reaches 1, 1, 1, 1
    found = image.support(real, fake, k=1)
    assert found["precision"] == 2 / 4 and found["recall"] == 2 / 4  # 3 and 7 are in no made ball
    assert found["density"] == (2 + 2) / 4  # .5 lies in two balls, 1.5 in two
    assert found["coverage"] == 3 / 4


def test_support_of_prdcs_vector():
    """prdc's README: two samples of N(0, I), 10,000 x 1,000, k = 5."""
    g = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(10_000, 1_000, generator=g) for _ in range(2))

    def distances(a, b):
        return torch.cdist(a, b).square().numpy()

    with pytest.MonkeyPatch.context() as patch:  # float32 on all cores: the test is about the counting
        patch.setattr(image, "_distances", lambda a, b: distances(torch.from_numpy(a), torch.from_numpy(b)))
        found = image.support(real.numpy(), fake.numpy(), k=5)
    assert [found["precision"], found["recall"]] == pytest.approx([0.4772, 0.4705], abs=0.02)
    assert found["density"] == pytest.approx(1.0555, abs=0.04)  # a few samples in the middle lie in most balls
    assert found["coverage"] == pytest.approx(0.9735, abs=0.01)


def test_support_tells_lost_modes_from_lost_quality(rng):
    centres = 30 * rng.normal(size=(10, 8))
    real, again, less = (centres[rng.integers(m, size=600)] + rng.normal(size=(600, 8)) for m in (10, 10, 5))
    same, modes, noisy = (image.support(real, v) for v in (again, less, again + 8 * rng.normal(size=(600, 8))))
    assert min(same.values()) > 0.8
    assert modes["precision"] > 0.8 and modes["recall"] < 0.65 and modes["coverage"] < 0.65
    assert noisy["precision"] < 0.3 and noisy["density"] < 0.3
    assert image.support(real[::-1], again[rng.permutation(600)]) == pytest.approx(same)


def test_vendi_of_its_readmes_vectors():
    kernel = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])
    assert image.vendi(np.linalg.cholesky(kernel)) == pytest.approx(2.1573, abs=1e-4)
    assert image.vendi(3 * np.eye(7)) == pytest.approx(7)
    assert image.vendi(np.ones((5, 2))) == pytest.approx(1)


def test_vendi_counts_what_differs(rng):
    few = np.repeat(np.linalg.qr(rng.normal(size=(20, 20)))[0], 6, axis=0)  # 20 kinds, each six times
    assert image.vendi(few) == pytest.approx(20) and image.vendi(few[rng.permutation(120)]) == pytest.approx(20)
    assert image.vendi(few[:60]) == pytest.approx(10)
    wide = rng.normal(size=(8, 50))  # fewer samples than dimensions
    assert image.vendi(wide) == pytest.approx(image.vendi(np.hstack([wide, np.zeros((8, 100))])))


def test_embedding_variance_is_the_mean_unbiased_variance(rng):
    assert embedding_variance(np.array([[0.0, 1.0], [2.0, 1.0]])) == pytest.approx(1.0)  # 2 and 0
    x = rng.normal(size=(50, 7)).astype(np.float32)
    slow = np.mean([np.sum((c - c.mean()) ** 2) / 49 for c in x.T.astype(float)])
    assert embedding_variance(x) == pytest.approx(slow)
    assert embedding_variance(rng.permutation(x) + 5) == pytest.approx(slow, rel=1e-5)
    assert embedding_variance(3 * x) == pytest.approx(9 * slow, rel=1e-5)


def test_split_variance_finds_the_components_of_a_random_effects_model(rng):
    noises, prompts = 4, 5000
    means, noise = rng.normal(0, 1.5, (prompts, 1, 3)), rng.normal(0, 0.7, (prompts, noises, 3))
    within, between = split_variance((means + noise).reshape(-1, 3), noises)
    assert within == pytest.approx(0.49, rel=0.03) and between == pytest.approx(2.25, rel=0.04)
    # with no difference between prompts, noise alone must not look like one
    within, between = split_variance(noise.reshape(-1, 3), noises)
    assert within == pytest.approx(0.49, rel=0.03) and between < 0.01
    assert split_variance(np.repeat([[0.0], [2.0]], 2, 0), 2) == (0.0, 2.0)
    # floored: these prompts are closer together than their noise allows
    assert split_variance(np.array([[0.0], [2.0], [2.0], [0.0]]), 2) == (2.0, 0.0)


def test_split_variance_ignores_the_order_of_prompts_and_of_their_pictures(rng):
    groups = rng.normal(size=(6, 3, 5)) + rng.normal(size=(6, 1, 5))
    assert split_variance(groups[::-1, ::-1].reshape(18, 5), 3) == pytest.approx(
        split_variance(groups.reshape(18, 5), 3)
    )
    assert split_variance(groups.transpose(1, 0, 2).reshape(18, 5), 3) != pytest.approx(
        split_variance(groups.reshape(18, 5), 3)
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: frechet(x[:29], x), "needs at least 30"),
        (lambda x: frechet(x, x[:0]), "Frechet distance of 0"),
        (lambda x: kid(x[:1], x), "KID of 1 real"),
        (lambda x: kid(x, x[:0]), "and 0 made"),
        (lambda x: embedding_variance(x[:1]), "variance of 1"),
        (lambda x: embedding_variance(x[:0]), "variance of 0"),
        (lambda x: split_variance(x, 1), "of 1 a prompt"),
        (lambda x: split_variance(x[:7], 2), "7 pictures of 2"),
        (lambda x: split_variance(x[:2], 2), "2 pictures of 2"),
        (lambda x: split_variance(x[:0], 2), "0 pictures of 2"),
    ],
)
def test_too_few_pictures_are_refused(call, message, rng):
    with pytest.raises(MMCollapseError, match=message):
        call(rng.normal(size=(40, 3)))


# -- truth ----------------------------------------------------------------------------------------------------------

RED_CIRCLE, BLUE_STAR, WHITE_RING = Thing(0, 0, 0), Thing(3, 1, 1), Thing(SHAPE_NAMES.index("ring"), 6, 0)
PAIR, SINGLE = Scene((RED_CIRCLE, BLUE_STAR), 0, 2), Scene((RED_CIRCLE,), None, 2)


def reading(scenes, abstains=None, nuisance=None) -> Reading:
    n = len(scenes)
    abstains = np.zeros(n, bool) if abstains is None else np.array(abstains)
    return Reading(
        scenes, np.where(abstains, 0.1, 0.9), abstains, np.zeros((n, 2, 5)) if nuisance is None else nuisance
    )


def test_attributes_right_changes_with_each_attribute_alone():
    changed = {
        "shape": Scene((RED_CIRCLE, BLUE_STAR._replace(shape=4)), 0, 2),
        "colour": Scene((RED_CIRCLE._replace(colour=5), BLUE_STAR), 0, 2),
        "size": Scene((RED_CIRCLE, BLUE_STAR._replace(size=0)), 0, 2),
        "relation": Scene((RED_CIRCLE, BLUE_STAR), 1, 2),
        "background": Scene((RED_CIRCLE, BLUE_STAR), 0, 3),
    }
    assert set(changed) | {"count"} == set(ATTRIBUTES)
    got = attributes_right([PAIR, *changed.values()], [PAIR] * 6)
    for k, name in enumerate(changed):
        assert got[name].tolist() == [i != k + 1 for i in range(6)]
    assert got["count"].all()


def test_attributes_right_of_swapped_missing_and_unreadable_things():
    swapped = Scene((BLUE_STAR, RED_CIRCLE), 0, 2)  # binding: everything is there, in the wrong places
    got = attributes_right([swapped, SINGLE, None], [PAIR] * 3)
    assert {name: values.tolist() for name, values in got.items()} == {
        "count": [True, False, False],
        "shape": [False] * 3,
        "colour": [False] * 3,
        "size": [False] * 3,
        "relation": [True, False, False],
        "background": [True, True, False],
    }
    assert all(len(values) == 0 for values in attributes_right([], []).values())


def test_pictures_right_needs_everything_and_no_abstention():
    got = pictures_right(reading([PAIR, PAIR, SINGLE], [False, True, False]), [PAIR] * 3)
    assert got.tolist() == [True, False, False]


def test_captions_right_needs_a_sentence_that_states_everything():
    good = "a small red circle left of a large blue star on a beige wall"
    captions = [
        good,
        good.replace("small", "large"),
        good.replace("star", "starfish"),
        "",
        "on a sandy wall there is " + good[:-16],
    ]
    assert captions_right(captions, [PAIR] * 5).tolist() == [True, False, False, False, True]


def test_the_tail_is_the_rarest_half():
    ranks = 1 / np.arange(1, 11)
    joint = np.outer(ranks, ranks) / ranks.sum() ** 2
    tail = tail_cells(1.0)
    inside = np.array([[(s, c) in tail for c in range(10)] for s in range(10)])
    assert joint[inside].max() <= joint[~inside].min()  # rarest
    assert joint[inside].sum() <= 0.5 < joint[inside].sum() + joint[~inside].min() + 1e-12  # and as many as fit in
    assert sum(joint[cell] for cell in tail_cells(1.0, mass=0.1)) <= 0.1
    assert abs(len(tail_cells(0.0)) - 50) <= 1


def test_tail_coverage_counts_the_cells_asked_for():
    rare = [Scene((Thing(9, c, 0),), None, 0) for c in range(6, 10)]
    common = Scene((RED_CIRCLE,), None, 0)
    assert all((9, c) in tail_cells(1.0) for c in range(6, 10)) and (0, 0) not in tail_cells(1.0)
    asked = [*rare, common, common]
    assert tail_coverage(asked, asked, 1.0) == (1.0, 4)
    assert tail_coverage([*rare[:1], None, None, *rare[:1], None, None], asked, 1.0) == (0.25, 4)
    # a tail cell counts wherever it is shown, one that nobody asked for does not
    assert tail_coverage(asked[::-1], asked, 1.0) == (1.0, 4)
    assert tail_coverage([Scene((Thing(8, 8, 0),), None, 0)] * 6, asked, 1.0) == (0.0, 4)
    assert tail_coverage([None] * 6, asked, 1.0) == (0.0, 4)
    second = [Scene((RED_CIRCLE, rare[0].things[0]), 0, 0)]
    assert tail_coverage(rare[:1], second, 1.0) == (1.0, 1)
    value, asked_for = tail_coverage([common], [common], 1.0)
    assert math.isnan(value) and asked_for == 0


def test_the_sampling_floor_is_neutral_drift(rng):
    assert sampling_floor(4, 0) == 1 and sampling_floor(4, 2) == pytest.approx(9 / 16)
    population = np.tile(np.arange(20), (4000, 1))  # 4,000 populations of 20 that all differ at first
    for _ in range(10):
        population = np.take_along_axis(population, rng.integers(0, 20, population.shape), 1)
    differ = np.mean([1 - (np.bincount(row, minlength=20) ** 2).sum() / 400 for row in population])
    assert differ / (1 - 1 / 20) == pytest.approx(sampling_floor(20, 10), rel=0.03)


def test_within_prompt_variance_is_that_of_its_uniform_factors(rng):
    noises = 4
    prompts = [SINGLE, PAIR, Scene((WHITE_RING,), None, 0)] * 400
    scenes = [s for s in prompts for _ in range(noises)]
    half = np.array([10.0, 8.0, 1.0, 0.25, 0.02])
    centres = np.repeat(rng.normal(size=(len(prompts), 1, 2, 5)) * 100, noises, 1)  # differ by prompt: must not count
    nuisance = (centres + rng.uniform(-1, 1, centres.shape) * half).reshape(-1, 2, 5)
    nuisance[[len(s.things) == 1 for s in scenes], 1] = np.nan
    got = within_prompt_variance(reading(scenes, nuisance=nuisance), scenes, noises)
    used = {"x": 1200, "y": 1200, "radius": 1200, "rotation": 400, "hue": 800}  # circles and rings, white
    for (name, n), h in zip(used.items(), half, strict=True):
        assert got[name][1] == n
        assert got[name][0] == pytest.approx(h**2 / 3, rel=0.08), name


def test_within_prompt_variance_by_hand_and_what_it_leaves_out():
    def at(*xs):
        nuisance = np.zeros((len(xs), 2, 5))
        nuisance[:, 0, 0], nuisance[:, 1, 0] = xs, [10 * x for x in xs]
        return nuisance

    both = within_prompt_variance(reading([PAIR] * 2, nuisance=at(1, 3)), [PAIR] * 2, 2)
    assert both["x"] == (pytest.approx((2 + 200) / 2), 1)  # the mean over its things
    assert both["rotation"] == (0.0, 1)  # the star's, not the circle's

    # abstained, another number of things, another relation, another size: not counted
    above, grown = PAIR._replace(relation=1), Scene((RED_CIRCLE._replace(size=1), BLUE_STAR), 0, 2)
    read = reading([PAIR, PAIR, PAIR, SINGLE, above, grown], [i == 2 for i in range(6)], at(1, 3, 90, 90, 90, 90))
    got = within_prompt_variance(read, [PAIR] * 6, 6)
    assert got["x"] == (pytest.approx(101), 1)
    # wrong in colour or shape only: counted, for the place is still read
    other = Scene((RED_CIRCLE._replace(colour=8), BLUE_STAR), 0, 2)
    assert within_prompt_variance(reading([PAIR, other], nuisance=at(1, 3)), [PAIR] * 2, 2)["x"][1] == 1
    # fewer than two usable pictures: the prompt is left out, and with no prompt there is no number
    none = within_prompt_variance(reading([PAIR] * 2, [True, False], at(1, 3)), [PAIR] * 2, 2)
    assert all(math.isnan(value) and used == 0 for value, used in none.values())
    white = Scene((Thing(3, COLOUR_NAMES.index("white"), 0),), None, 0)
    assert within_prompt_variance(reading([white] * 2, nuisance=at(1, 3)), [white] * 2, 2)["hue"][1] == 0


# -- on scenes: damage must move a metric the right way -----------------------------------------------------------


def damaged(images, kind, level):
    """Pictures (n, 64, 64, 3) uint8 with `level` (0-1) of a damage."""
    x = images.astype(np.float32)
    if kind == "noise":
        x = x + 80 * level * np.random.default_rng(1).normal(size=x.shape)
    elif kind == "blur":
        for _ in range(round(12 * level)):
            for axis in (1, 2):
                x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    elif kind == "fewer kinds":  # the later pictures are replaced by copies of the first
        keep = max(1, round(len(x) * (1 - level)))
        x = x[np.arange(len(x)) % keep]
    return x.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["noise", "blur", "fewer kinds"])
def test_damage_moves_metrics_of_pictures_the_right_way(kind, world, judge, oracle):
    real, other = (judge.images(world.sample("judge", range(a, a + 300)).images) for a in (0, 1000))
    batch = world.sample("judge", range(2000, 2300))
    found = []
    for level in (0.0, 0.25, 0.5, 1.0):
        pictures = damaged(batch.images, kind, level * 0.99)
        features = judge.images(pictures)
        found.append(
            image.support(real, features)
            | {"kid": image.kid(real, features), "vendi": image.vendi(features)}
            | {"right": pictures_right(oracle.read(pictures), batch.scenes).mean()}
        )

    def rises(name):
        values = [f[name] for f in found]
        return values == sorted(values) and values[-1] > values[0]

    def falls(name):
        values = [f[name] for f in found]
        return values == sorted(values, reverse=True) and values[-1] < values[0]

    assert rises("kid") and falls("coverage"), found
    assert abs(found[0]["kid"] - image.kid(real, other)) < 0.2 * found[-1]["kid"]
    if kind == "fewer kinds":
        assert falls("vendi") and found[-1]["precision"] > 0.5 and found[-1]["recall"] < 0.2, found
    else:
        # not precision: what the judge makes of damaged pictures lies amid its real ones, at any noise
        assert falls("recall") and falls("right"), found
