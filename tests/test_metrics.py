"""The metrics, against closed forms, published vectors and slow implementations of their definitions."""

import math

import numpy as np
import pytest
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics import images as image
from mmcollapse.metrics.alignment import alignment, clip_score
from mmcollapse.metrics.captions import distinct
from mmcollapse.metrics.images import embedding_variance, frechet, kid, split_variance
from mmcollapse.metrics.truth import (
    ATTRIBUTES,
    attributes_right,
    captions_right,
    cell_entropy,
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


def test_clip_score_of_known_angles(rng):
    angles = np.deg2rad([0, 60, 90, 180])  # 100, 50, 0, and what points away counts 0, not -100
    x, y = np.tile([2.0, 0.0], (4, 1)), np.stack([np.cos(angles), np.sin(angles)], 1)
    assert clip_score(x, y) == pytest.approx(150 / 4)
    x, y = rng.normal(size=(30, 6)) + 2, rng.normal(size=(30, 6)) + 2
    assert ((x * y).sum(1) > 0).all() and clip_score(x, y) == pytest.approx(100 * (1 - alignment(x, y)["P"]))
    order, scale = rng.permutation(30), rng.uniform(0.1, 9, (30, 1))
    assert clip_score(x[order] * scale, y[order]) == pytest.approx(clip_score(x, y)) == pytest.approx(clip_score(y, x))
    halves = np.mean([clip_score(x[:15], y[:15]), clip_score(x[15:], y[15:])])
    assert halves == pytest.approx(clip_score(x, y)) and clip_score(x[order], y) < clip_score(x, x)


def test_clip_score_is_torchmetrics(rng):
    """On given embeddings. torchmetrics cuts the mean at 0, and not each cosine: none is negative here."""
    from torchmetrics.functional.multimodal import clip_score as theirs

    x, y = (torch.from_numpy(rng.normal(size=(25, 6)) + 2) for _ in range(2))

    class Given:
        config = None
        to = get_image_features = get_text_features = None

    model = Given()
    model.to = lambda device: model
    model.get_image_features, model.get_text_features = lambda pixels: x, lambda ids, mask: y

    def processor(**_):
        return dict.fromkeys(("pixel_values", "input_ids", "attention_mask"), torch.zeros(1))

    score = theirs(torch.zeros(25, 3, 8, 8), ["a"] * 25, lambda: (model, processor))
    assert clip_score(x.numpy(), y.numpy()) == pytest.approx(float(score), rel=1e-9)


@pytest.mark.parametrize("metric", [alignment, clip_score])
def test_alignment_refuses_what_has_none(metric, rng):
    with pytest.raises(MMCollapseError, match="1 of 2 features are all zeros"):
        metric(np.eye(2), np.array([[1.0, 1.0], [0.0, 0.0]]))
    for shapes in ((0, 3), (0, 3)), ((1, 3), (1, 3)), ((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)):
        with pytest.raises(MMCollapseError, match="alignment"):
            metric(*(rng.normal(size=shape) for shape in shapes))
    for bad in (np.nan, np.inf, -np.inf):
        x, y = rng.normal(size=(2, 4, 3))
        y[2, 1] = bad
        for pair in ((x, y), (y, x)):
            with pytest.raises(MMCollapseError, match="NaN or infinite"):
                metric(*pair)


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


def test_frechet_in_one_dimension_is_that_of_two_normals(rng):
    x, y = rng.normal(3, 2, (50, 1)), rng.normal(1, 5, (80, 1))
    wanted = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet(x, y) == pytest.approx(wanted, rel=1e-9)


def test_frechet_turns_and_scales_with_the_space(rng):
    x, y = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(70, 4)) + 1
    turn, value = np.linalg.qr(rng.normal(size=(4, 4)))[0], frechet(x, y)
    assert frechet(x @ turn + 5, y @ turn + 5) == pytest.approx(value, rel=1e-9)
    assert frechet(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-9)


class Given(torch.nn.Module):
    """What torchmetrics takes for a network: its features are the "pictures" themselves."""

    def __init__(self, d):
        super().__init__()
        self.num_features = d

    def forward(self, features):
        return features


def by_torchmetrics(metric, real, fake):
    """Its value of two sets of features, shown in batches of unequal size."""
    for features, is_real in ((real, True), (fake, False)):
        for part in torch.from_numpy(features).split(170):
            metric.update(part, real=is_real)
    return metric.compute()


@pytest.mark.parametrize("d", [3, 40])
def test_frechet_is_torchmetrics(d, rng):
    from torchmetrics.image.fid import FrechetInceptionDistance

    mix = rng.normal(size=(d, d))
    real, fake = rng.normal(size=(500, d)) @ mix + 2, 0.7 * rng.normal(size=(450, d)) @ mix
    theirs = by_torchmetrics(FrechetInceptionDistance(feature=Given(d)).set_dtype(torch.float64), real, fake)
    assert frechet(real, fake) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*will save all extracted features in buffer")
def test_kid_is_torchmetrics(rng):
    """With more pictures than a subset holds, up to the drawing of subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    def theirs(real, fake, **options):
        return map(float, by_torchmetrics(KernelInceptionDistance(feature=Given(6), **options), real, fake))

    def standardised(features):
        return (features - real.mean(0)) / real.std(0)

    real, fake = 3 * rng.normal(size=(400, 6)) + 1, 2 * rng.normal(size=(400, 6)) + 2
    mean, _ = theirs(standardised(real), standardised(fake), subsets=1, subset_size=400)
    assert kid(real, fake) == pytest.approx(mean, rel=1e-6)
    raw, _ = theirs(real, fake, subsets=1, subset_size=400)
    assert kid(real, fake, standardise=False) == pytest.approx(raw, rel=1e-6) and raw > 2 * mean
    real, fake = rng.normal(size=(1500, 6)), 2 * rng.normal(size=(1200, 6)) + 1
    torch.manual_seed(0)
    mean, spread = theirs(real, fake, subsets=50, subset_size=1000)
    assert kid(real, fake, standardise=False) == pytest.approx(mean, abs=4 * spread * math.sqrt(2 / 50))
    assert spread < 0.1 * mean


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


def test_kid_of_a_feature_that_never_changes(rng):
    x, y = rng.normal(size=(2, 50, 3))
    x, y = (x - x.mean(0)) / x.std(0), (y - x.mean(0)) / x.std(0)
    still, moved = (  # in the real set: its standard deviation is 0, or what rounding makes of it
        [np.hstack([v, np.full((50, 1), c)]) for v, c in zip((x, y), at, strict=True)] for at in ((0.1, 0.6), (0, 0.5))
    )
    assert kid(*still) == pytest.approx(kid(*moved, standardise=False), rel=1e-6)


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


@pytest.mark.parametrize("sizes", [(1500, 1200), (300, 400), (1300, 1300)])
def test_kid_is_clean_fids(sizes, rng):
    """Of the same subsets, which clean-fid draws from NumPy's global state."""
    from cleanfid.fid import kernel_distance

    real, fake = (s * rng.normal(size=(n, 8)) + s for n, s in zip(sizes, (1.0, 1.3), strict=True))
    np.random.seed(0)
    theirs = kernel_distance(real, fake, num_subsets=7)
    assert kid(real, fake, subsets=7, standardise=False) == pytest.approx(theirs, rel=1e-9)
    single = kid(real.astype(np.float32), fake.astype(np.float32), subsets=7, standardise=False)
    assert single == pytest.approx(theirs, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_metrics_on_a_gpu_are_those_on_a_cpu(rng):
    real, fake = rng.normal(size=(2, 1200, 16)).astype(np.float32)
    fake, pictures = 1.1 * fake + 0.1, rng.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    assert kid(real, fake, device="cuda") == pytest.approx(kid(real, fake), rel=1e-4)
    assert image.support(real, fake, device="cuda") == pytest.approx(image.support(real, fake), abs=1e-3)
    assert image.spectrum(pictures, "cuda") == pytest.approx(image.spectrum(pictures), rel=1e-9)


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
        return torch.cdist(a.float(), b.float()).square()

    with pytest.MonkeyPatch.context() as patch:  # float32 on all cores: the test is about the counting
        patch.setattr(image, "distances", distances)
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


def test_support_of_a_set_with_itself_and_of_equals(rng):
    x, y = rng.normal(size=(2, 1500, 2))
    assert image.support(x, x) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    found = image.support(x, y)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.015) and found["density"] == pytest.approx(1, abs=0.03)
    assert min(found["precision"], found["recall"]) > 0.98
    assert image.support(7 * x + 3, 7 * y + 3) == found


def test_vendi_of_two_samples_is_the_entropy_of_their_angle():
    for cosine in (0.0, 0.3, -0.6, 0.9):
        p = np.array([1 + cosine, 1 - cosine]) / 2
        pair = np.array([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
        assert image.vendi(pair) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


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


def test_what_made_samples_repeated_change_and_what_they_do_not(rng):
    """Each made picture twice: of all that measures pictures only recall notices; of captions, distinct n-grams."""
    n, d = 300, 4
    real, made = rng.normal(size=(2, n, d))
    twice = np.repeat(made, 2, axis=0)
    once, again = image.support(real, made), image.support(real, twice)
    assert image.vendi(twice) == pytest.approx(image.vendi(made), rel=1e-9)
    assert again["recall"] < once["recall"]  # balls reach to a fifth neighbour, which is now nearer
    assert {**again, "recall": 0} == pytest.approx({**once, "recall": 0})  # blind: precision, density, coverage
    fewer = 2 * (n - 1) / (2 * n - 1)  # of degrees of freedom: the only change of variance and Frechet distance
    assert embedding_variance(twice) == pytest.approx(fewer * embedding_variance(made))
    assert frechet(made, twice) == pytest.approx(embedding_variance(made) * d * (1 - math.sqrt(fewer)) ** 2, rel=1e-6)
    same = np.repeat(made[:1], n, axis=0)  # one picture only
    assert image.vendi(same) == pytest.approx(1) and embedding_variance(same) == pytest.approx(0, abs=1e-12)
    assert image.support(real, same)["recall"] == 0 and image.support(real, same)["coverage"] < 0.1
    captions = ["a red circle", "a blue star on a wall", "two rings"]
    assert distinct(captions * 2, 1) == distinct(captions, 1) / 2


ORDERLESS = {
    "frechet": lambda x, y: frechet(x, y),
    "kid": lambda x, y: kid(x, y),
    "support": lambda x, y: list(image.support(x, y).values()),
    "vendi": lambda x, y: image.vendi(y),
    "variance": lambda x, y: embedding_variance(y),
    "clip_score": lambda x, y: clip_score(x[:200], y[:200]),
    "alignment": lambda x, y: list(alignment(x[:200], y[:200]).values()),
}


@pytest.mark.parametrize("name", ORDERLESS)
def test_order_type_and_layout_of_features_do_not_count(name, rng):
    x, y, metric = rng.normal(size=(300, 5)) + 1, 2 * rng.normal(size=(300, 5)), ORDERLESS[name]
    value, order = metric(x, y), np.concatenate([rng.permutation(200), 200 + rng.permutation(100)])
    kept = x.copy(), y.copy()
    other = order if name in ("clip_score", "alignment") else rng.permutation(300)  # those two are of pairs
    assert metric(x[order], y[other]) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert metric(np.asfortranarray(x), y[:, ::-1][:, ::-1]) == pytest.approx(value, rel=1e-9, abs=1e-12)
    near = pytest.approx(value, rel=1e-4, abs=1e-5)
    assert metric(x.astype(np.float32), y.astype(np.float32)) == near
    parts = [np.concatenate([part.astype(np.float32) for part in np.array_split(v, 7)]) for v in (x, y)]
    assert metric(*parts) == near
    assert np.array_equal(x, kept[0]) and np.array_equal(y, kept[1])  # left as they were


def test_order_counts_for_kid_by_less_than_its_own_error_where_subsets_are_drawn(rng):
    x, y = rng.normal(size=(2, 1500, 5))
    values = [kid(rng.permutation(x), rng.permutation(y) + 0.3, subsets=10) for _ in range(8)]
    assert np.std(values) < 0.05 * np.mean(values)


# -- spectrum -------------------------------------------------------------------------------------------------------


def noise(n, size=64, seed=0):
    """White noise about grey, (n, size, size, 3) uint8."""
    return np.random.default_rng(seed).normal(128, 25, (n, size, size, 3)).round().clip(0, 255).astype(np.uint8)


def test_the_spectrum_is_its_definition():
    """Sums over pixels and frequencies of small pictures, one by one; more pictures than are transformed at once."""
    x, size = noise(300, 8), 8
    wanted = np.zeros(4)
    for picture in x[:2].tolist():
        grey = [[sum(pixel) / 3 / 255 for pixel in row] for row in picture]
        mean, rings = sum(map(sum, grey)) / 64, {r: [] for r in range(1, 5)}
        hann = [0.5 - 0.5 * math.cos(2 * math.pi * i / 7) for i in range(8)]
        for u in range(-4, 4):
            for v in range(-4, 4):
                turns = [[2j * math.pi * (u * i + v * j) / size for j in range(8)] for i in range(8)]
                wave = sum(
                    (grey[i][j] - mean) * hann[i] * hann[j] * np.exp(turns[i][j]) for i in range(8) for j in range(8)
                )
                rings.setdefault(round(math.hypot(u, v)), []).append(abs(wave) ** 2)
        wanted += [math.log10(sum(rings[r]) / len(rings[r]) + 1e-10) / 2 for r in range(1, 5)]
    assert image.spectrum(x[:2]) == pytest.approx(wanted, rel=1e-9)
    assert image.spectrum(x) == pytest.approx((image.spectrum(x[:100]) + 2 * image.spectrum(x[100:])) / 3, rel=1e-9)


def test_the_spectrum_of_white_noise_is_flat_and_that_of_blurred_noise_falls():
    white, size = noise(60), 64
    found = image.spectrum(white)
    # grey is the mean of three channels; rounding adds 1/12 to the variance of each
    power = (25**2 + 1 / 12) / 3 / 255**2 * np.square(np.hanning(size)).sum() ** 2
    assert found.shape == (32,) and found[5:] == pytest.approx(np.full(27, np.log10(power)), abs=0.05)
    # the filter (1, 2, 1) / 4 along both sides lets cos^4(pi f) of the power through at f cycles a pixel
    x = white.astype(float)
    for axis in (1, 2):
        x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    f = np.fft.fftfreq(size)
    passed = np.outer(np.cos(np.pi * f) ** 4, np.cos(np.pi * f) ** 4)
    rings = np.hypot(f[:, None] * size, f * size).round()
    wanted = [np.log10(passed[rings == r].mean()) for r in range(1, 33)]
    fall = image.spectrum(x.round().astype(np.uint8)) - found
    assert fall[:24] == pytest.approx(np.array(wanted)[:24], abs=0.08)  # further out rounding to uint8 adds its own
    assert fall[28] < -1.5 and (np.diff(fall[3:28]) < 0).all()
    more = image.spectrum(noise(60, seed=1)), image.spectrum((noise(60, seed=2) / 2 + 64).astype(np.uint8))
    assert image.spectrum_distance(found, more[0]) < 0.05
    assert image.spectrum_distance(found, more[1]) == pytest.approx(2 * np.log10(2), abs=0.05)  # half the contrast


@pytest.mark.parametrize("cycles", [2, 5, 13, 31])
def test_a_sinusoid_peaks_at_its_ring_and_nowhere_else(cycles):
    size = 64
    wave = 100 * np.cos(2 * np.pi * cycles * np.arange(size) / size)
    across = np.broadcast_to(wave, (1, size, size))
    for grey in (across, across.transpose(0, 2, 1)):
        found = image.spectrum(np.repeat((128 + grey).round().astype(np.uint8)[..., None], 3, 3))
        far = np.abs(np.arange(1, 33) - cycles) > 2
        assert np.argmax(found) == cycles - 1 and found[far].max() < found[cycles - 1] - 2.5
    both = np.hypot(3, 4) * 4  # 12 cycles down and 16 across: 20 in all
    grid = 2 * np.pi * np.arange(size) / size
    grey = 128 + 100 * np.cos(12 * grid[:, None] + 16 * grid)
    assert np.argmax(image.spectrum(np.repeat(grey.round().astype(np.uint8)[None, ..., None], 3, 3))) == both - 1


def test_the_spectrum_is_a_mean_over_pictures_and_blind_to_order_brightness_and_hue():
    x, rng = noise(24), np.random.default_rng(3)
    found = pytest.approx(image.spectrum(x), rel=1e-9)
    assert np.mean([image.spectrum(part) for part in np.split(x, 4)], axis=0) == found
    assert image.spectrum(x[rng.permutation(24)]) == found and image.spectrum(x[..., ::-1]) == found
    assert image.spectrum(x.transpose(0, 2, 1, 3)) == found and image.spectrum(x[:, ::-1]) == found
    inner = x.clip(30, 225)
    assert image.spectrum(inner + np.uint8(20)) == pytest.approx(image.spectrum(inner), rel=1e-9)
    assert image.spectrum(np.full((2, 16, 24, 3), 77, np.uint8)) == pytest.approx(np.full(8, -10.0))  # nothing there
    assert len(image.spectrum(x[:, :33, :])) == 16


def test_the_distance_of_spectra_by_hand():
    a, b = np.array([-1.0, 2.0]), np.array([2.0, -2.0])
    assert image.spectrum_distance(a, b) == image.spectrum_distance(b, a) == pytest.approx(math.sqrt(25 / 2))
    assert image.spectrum_distance(a, a) == 0 and image.spectrum_distance(a, a + 0.5) == pytest.approx(0.5)


# -- bad input ------------------------------------------------------------------------------------------------------

TWO_SETS = {"frechet": frechet, "kid": kid, "support": image.support}
ONE_SET = {"vendi": image.vendi, "variance": embedding_variance, "split": lambda x: split_variance(x, 2)}


@pytest.mark.parametrize("name", [*TWO_SETS, *ONE_SET])
def test_features_that_are_none_are_refused(name, rng):
    good = rng.normal(size=(40, 3))

    def refused(bad, message):
        calls = [(good, bad), (bad, good)] if name in TWO_SETS else [(bad,)]
        for call in calls:
            with pytest.raises(MMCollapseError, match=message):
                (TWO_SETS | ONE_SET)[name](*call)

    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[[3, 8], 1] = value
        refused(bad, "NaN or infinite values, in 2 rows")
    shape = r"need arrays of numbers \(n, d\)"
    for bad in (good[0], good[None], np.zeros((40, 0)), good.tolist(), good.astype(str), good.astype(object), None):
        refused(bad, shape)
    if name in TWO_SETS:
        refused(good[:, :2], r"\(40, [23]\) and \(40, [23]\): " + shape)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((2, 8, 8, 3), np.float32), "float32: need uint8, values 0-255"),
        (np.full((2, 8, 8, 3), 300, np.int16), "int16: need uint8"),
        (np.zeros((2, 8, 8, 3), bool), "bool: need uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\): need an array"),
        (np.zeros((2, 8, 8), np.uint8), r"\(2, 8, 8\): need an array"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"\(2, 3, 8, 8\): need an array"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\(0, 8, 8, 3\): need an array"),
        ([np.zeros((8, 8, 3), np.uint8)], "list"),
        (None, "NoneType"),
    ],
)
def test_pictures_that_are_none_are_refused(bad, message):
    for call in (image.check_images, image.spectrum):
        with pytest.raises(MMCollapseError, match=message):
            call(bad)


def test_pictures_without_a_spectrum_and_spectra_that_do_not_match_are_refused():
    for shape in ((1, 1, 1, 3), (1, 2, 9, 3), (1, 9, 3, 3)):
        with pytest.raises(MMCollapseError, match="4 pixels a side"):
            image.spectrum(np.zeros(shape, np.uint8))
    flat, nan = np.zeros(8), np.array([0.0] * 7 + [np.nan])
    for pair in ((flat, flat[:4]), (flat, flat[:1]), (flat[:0], flat[:0]), (flat[None], flat[None]), (flat, nan)):
        with pytest.raises(MMCollapseError, match="spectra"):
            image.spectrum_distance(*pair)


def test_a_sample_without_direction_has_no_vendi_score():
    with pytest.raises(MMCollapseError, match="1 of 3 features are all zeros"):
        image.vendi(np.array([[1.0, 0], [0, 0], [0, 1]]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: frechet(x[:29], x), "needs at least 30"),
        (lambda x: frechet(x[:1, :1], x[:1, :1], least=1), "needs at least 2"),
        (lambda x: image.support(x[:5], x), "5 real and 40 made pictures: needs 6"),
        (lambda x: image.support(x, x[:1]), "1 made pictures: needs 6"),
        (lambda x: image.support(x, x[:0]), "0 made pictures: needs 6"),
        (lambda x: image.support(x, x, k=0), "k = 0"),
        (lambda x: image.vendi(x[:1]), "Vendi score of 1"),
        (lambda x: image.vendi(x[:0]), "Vendi score of 0"),
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


def test_cell_entropy_is_that_of_the_things_that_were_read(world):
    one, two = Scene((RED_CIRCLE,), None, 0), Scene((RED_CIRCLE, Thing(1, 1, 0)), 0, 0)
    assert cell_entropy([one] * 5) == (0.0, 5)
    assert cell_entropy([two, None, two]) == (1.0, 4)
    assert cell_entropy([Scene((Thing(s, c, 0),), None, 0) for s in range(10) for c in range(10)])[0] == pytest.approx(
        math.log2(100)
    )
    value, things = cell_entropy([None, None])
    assert math.isnan(value) and things == 0
    scenes = world.sample("test", np.arange(800)).scenes
    whole, fewer = cell_entropy(scenes)[0], cell_entropy([s for s in scenes if s.things[0].shape < 5])[0]
    assert whole > fewer + 0.3 and cell_entropy(scenes[::-1])[0] == pytest.approx(whole)


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


def damaged(batch, kind, level, n):
    """`n` of the pictures (n, 64, 64, 3) uint8 of a batch, with `level` (0-1) of a damage."""
    if kind == "fewer modes":  # only those with the most frequent shapes
        shapes = np.array([scene.things[0].shape for scene in batch.scenes])
        return batch.images[shapes < max(1, round(len(SHAPE_NAMES) * (1 - level)))][:n]
    x = batch.images[:n].astype(np.float32)
    if kind == "noise":
        x = x + 80 * level * np.random.default_rng(1).normal(size=x.shape)
    elif kind == "blur":
        for _ in range(round(12 * level)):
            for axis in (1, 2):
                x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    elif kind == "duplicates":  # the later pictures are copies of the first
        x = x[np.arange(n) % max(1, round(n * (1 - level)))]
    return x.round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes_seen(world, judge):
    """Real features and spectrum, a batch to damage, and the KID of real against real."""
    n = 640  # ten a dimension, what the Frechet distance wants
    real, other = (world.sample("judge", range(a, a + n)).images for a in (0, 1000))
    features = judge.images(real)
    return (
        features,
        image.spectrum(real),
        world.sample("judge", range(5000, 7500)),
        image.kid(features, judge.images(other)),
    )


LEVELS = {
    "noise": (0, 0.25, 0.5, 1),
    "blur": (0, 0.25, 0.5, 1),
    "duplicates": (0, 0.75, 0.95, 0.99),
    "fewer modes": (0, 0.3, 0.5, 0.8),
}


@pytest.mark.parametrize("kind", LEVELS)
def test_damage_moves_metrics_of_pictures_the_right_way(kind, scenes_seen, judge, oracle):
    (real, spectrum, batch, level_kid), found = scenes_seen, []
    for level in LEVELS[kind]:
        pictures = damaged(batch, kind, level, len(real))
        features = judge.images(pictures)
        assert len(pictures) == len(real)
        found.append(
            image.support(real, features)
            | {"fid": frechet(real, features), "kid": kid(real, features)}
            | {"vendi": image.vendi(features), "variance": embedding_variance(features)}
            | {"spectrum": image.spectrum_distance(spectrum, image.spectrum(pictures))}
        )
        if kind in ("noise", "blur"):
            found[-1]["right"] = pictures_right(oracle.read(pictures), batch.scenes[: len(real)]).mean()

    def rises(name):
        values = [f[name] for f in found]
        return values == sorted(values) and values[-1] > values[0]

    def falls(name):
        values = [-f[name] for f in found]
        return values == sorted(values) and values[-1] > values[0]

    assert all(map(rises, ("fid", "kid"))), found
    assert all(map(falls, ("recall", "coverage", "vendi", "variance"))), found
    assert abs(found[0]["kid"] - level_kid) < 0.2 * found[-1]["kid"]
    assert found[-1]["fid"] > 5 * found[0]["fid"] and found[-1]["recall"] < 0.75 * found[0]["recall"]
    # precision and density are blind: copies are as good as the first, and what the judge makes of damaged pictures
    # lies amid its real ones
    assert found[-1]["precision"] > 0.95 and found[-1]["density"] > 0.7, found
    if kind in ("noise", "blur"):
        assert rises("spectrum") and falls("right") and found[-1]["spectrum"] > 1, found
    else:
        assert found[-1]["spectrum"] < 1, found  # no damage to any one picture
