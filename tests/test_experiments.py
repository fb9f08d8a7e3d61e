"""What each protocol means: who made which pair, who was trained on what, and for how long.

The models here are toys that leave their mark. A picture of 8x8 pixels holds the scene that it shows, and numbers that
stand for its maker, the maker's weights and the noise; a captioner says what it reads there, and errs at known rates.
So every pair tells where it comes from, and a chain takes a fraction of a second.
"""

import json
import os
import subprocess
import sys
import textwrap
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmcollapse import experiment, loop
from mmcollapse.digests import digest_of
from mmcollapse.errors import MMCollapseError, TrainingDiverged
from mmcollapse.experiments import PRIORITY, arms_of, gen0, real, recursive
from mmcollapse.loop import Model, Study, prompts, run_chain
from mmcollapse.metrics.truth import caption_errors
from mmcollapse.models.toy import Gaussian
from mmcollapse.protocol import ROLES, Member
from mmcollapse.randomness import seed_of
from mmcollapse.settings import load_settings
from mmcollapse.store import Store
from mmcollapse.table import read_table
from mmcollapse.worlds.grammar import CAPTION_UNIFORMS, Scene, Thing, parse, write
from mmcollapse.worlds.scenes import Scenes

NOBODY = np.zeros(6, np.uint8)  # where a made picture says who made it


def paint(scene: Scene, marks: np.ndarray) -> np.ndarray:
    """An 8x8 picture: the scene in the first row, (maker, weights, noise) marks of 6 bytes in the second."""
    picture = np.zeros((8, 8, 3), np.uint8)
    values = [value for thing in scene.things for value in thing]
    values += [255] * (6 - len(values)) + [255 if scene.relation is None else scene.relation, scene.background]
    picture[0].flat[:8], picture[1].flat[:6] = values, marks
    return picture


def see(picture: np.ndarray) -> Scene:
    v = picture[0].reshape(-1)[:8].tolist()
    things = (Thing(*v[:3]), Thing(*v[3:6]))[: 1 if v[3] == 255 else 2]
    return Scene(things, None if v[6] == 255 else v[6], v[7])


def marks(images) -> list[tuple[int, int, int]]:
    """(maker, weights, noise) of pictures; zeros of real ones."""
    return [tuple(np.frombuffer(x[1].tobytes()[:6], np.uint16).tolist()) for x in images]


def short(*words) -> int:
    """1 to 65535, of anything."""
    return zlib.crc32(repr(words).encode()) % 65535 + 1


class ToyWorld(Scenes):
    """The scenes, painted small."""

    image_size = 8

    @staticmethod
    def draw(scenes, nuisance):
        return np.stack([paint(scene, NOBODY) for scene in scenes])


class ToyOracle:
    digest = "toy-oracle"

    def read(self, images):
        return SimpleNamespace(scenes=[see(x) for x in images], abstains=np.zeros(len(images), bool))


class Toy:
    """What both kinds share: four weights, pulled towards the pairs. calls: what was made and encoded, in order."""

    image_size, network = 8, None

    def __init__(self, name: str):
        self.name, self.digest = name, f"toy-{name}"
        self.weights = torch.nn.Parameter(torch.linspace(0.1, 0.4, 4) + len(name) / 100)
        self.made, self.encoded = [], []

    def prepare(self, method, rank, targets, checkpointing):
        pass

    def trainable(self):
        return {"weights": self.weights}

    def state(self) -> int:
        return short(self.weights.detach().numpy().tobytes())

    def encode(self, images, captions):
        self.encoded.append((self.state(), images.copy(), list(captions)))
        rows = [np.random.default_rng(short(x.tobytes(), c)).random(4) for x, c in zip(images, captions, strict=True)]
        return {"x": torch.tensor(np.array(rows), dtype=torch.float32)}

    def draw(self, n, g):
        return {"noise": torch.rand(n, 4, generator=g) / 10}

    def size(self, batch):
        return len(batch["x"])

    def loss(self, batch):
        return ((self.weights - batch["x"] - batch["noise"]) ** 2).mean()


class Painter(Toy):
    kind = "generator"

    def make(self, captions, decoding, keys, batch=64):
        self.made.append((self.state(), list(captions), list(keys), decoding))
        out = []
        for caption, key in zip(captions, keys, strict=True):
            scene = parse(caption).scene
            mark = np.array([short(self.name), self.state(), short(key)], np.uint16)
            out.append(paint(scene, np.frombuffer(mark.tobytes(), np.uint8)))
        return np.stack(out)


class Scribe(Toy):
    kind, max_tokens = "captioner", 30
    ERRORS = {"colour0": 0.5, "shape0": 0.2, "background": 0.1}

    tokenizer = range(100)

    def words(self, captions):
        return [caption.split() for caption in captions]

    def make(self, images, decoding, keys, batch=64):
        self.made.append((self.state(), images.copy(), list(keys), decoding))
        out = []
        for picture, key in zip(images, keys, strict=True):
            random = np.random.default_rng(seed_of(self.name, self.state(), *key))
            scene, (first, *others) = see(picture), see(picture).things
            hit = {name: random.random() < rate for name, rate in self.ERRORS.items()}
            first = first._replace(
                colour=(first.colour + 1) % 10 if hit["colour0"] else first.colour,
                shape=(first.shape + 1) % 10 if hit["shape0"] else first.shape,
            )
            background = (scene.background + 1) % 5 if hit["background"] else scene.background
            told = Scene((first, *others), scene.relation, background)
            out.append(write(told, random.random(CAPTION_UNIFORMS)))
        return out


ZOO = {"generator": ("p1", "p22", "p333"), "captioner": ("s1", "s22", "s333")}


def open_toys(root, **changes) -> Study:
    settings = load_settings(
        "smoke", **{"pairs": 12, "batch": 4, "steps": 3, "lr_generator": 0.01, "lr_captioner": 0.01} | changes
    )
    models = {name: Model(Painter(name), settings) for name in ZOO["generator"]}
    models |= {name: Model(Scribe(name), settings) for name in ZOO["captioner"]}
    models |= {name: Model(Painter(name), settings) for name in ("p1-2", "p1-3")}  # of seeds-3: the first, twice again
    models |= {name: Model(Scribe(name), settings) for name in ("s1-2", "s1-3")}
    return Study(settings, Store(root), ToyWorld(), models, ZOO, "cpu", ToyOracle(), copied=("joint", "joint-closed"))


@pytest.fixture
def study(tmp_path):
    return open_toys(tmp_path, generations=4)


@pytest.fixture
def trainings(monkeypatch):
    """The recipe of every training that was done, in order."""
    done, train = [], loop.train

    def spy(loss, parameters, data, draw, recipe, key, **options):
        done.append(SimpleNamespace(recipe=recipe, pairs=len(next(iter(data.values()))), key=key))
        return train(loss, parameters, data, draw, recipe, key, **options)

    monkeypatch.setattr(loop, "train", spy)
    return done


class Chain(dict):
    """generation: (weights by member, {member: (images, captions)} that they were trained on, Pairs by member)."""

    def weights(self, g, name):
        (held,) = [held for member, held in self[g][0].items() if member.model == name]
        return held

    def set(self, g):
        return next(iter(self[g][1].values()))


def run(study, protocol, seed=0) -> Chain:
    chain = Chain()

    def measure(weights, g, sets):
        chain[g] = weights, {m: pairs.open() for m, pairs in sets.items()}, sets

    run_chain(study, protocol, seed, measure)
    return chain


def run_unseen(study, protocol, seed=0) -> dict[int, list[str]]:
    """Run a chain and look at nothing, so that files that were given up are not made again. Digests by generation."""
    digests = {}
    run_chain(study, protocol, seed, lambda weights, g, sets: digests.update({g: [w.digest for w in weights.values()]}))
    return digests


def state(study, weights) -> int:
    """The mark that a model with these weights leaves."""
    name = next(n for n, m in study.models.items() if n in _names(study, weights))
    return study.models[name].hold(weights).state()


def _names(study, weights):
    digest = weights.digest
    while digest not in {m.base.digest for m in study.models.values()}:
        digest = next(i.inputs["parent"] for i in study.store.items("weights") if i.digest == digest)
    return [n for n, m in study.models.items() if m.base.digest == digest]


def makings(study) -> int:
    """How often any model made anything."""
    return sum(len(m.adapter.made) for m in study.models.values())


def real_of(study, seed=0, n=0, block=0):
    """(pictures, captions) of a chain's prompts."""
    batch = prompts(study, seed, n, block)[1]
    return batch.images, [five[0] for five in batch.captions]


def equal(pairs, others) -> bool:
    return np.array_equal(pairs[0], others[0]) and list(pairs[1]) == list(others[1])


def arms(experiment_name, **changes):
    """{(roles, arm): protocol}, of the toys' zoo."""
    zoo = {"generators": ",".join(ZOO["generator"]), "captioners": ",".join(ZOO["captioner"]), "populations": "1,3"}
    own = {"pairs": 12, "grid": "full", "grid_pairs": "8,20"}
    found = arms_of(experiment_name, load_settings("smoke", **own | zoo | changes))
    return {(p.roles, p.arm): p for p in found}


GENERATOR, CAPTIONER = ("generator",), ("captioner",)


# ---- who makes, and who is trained on it


def test_a_recursive_generator_is_trained_on_what_it_made_of_real_prompts(study):
    chain = run(study, recursive("generator"))
    _, asked = real_of(study)
    for g in (1, 2, 3, 4):
        images, captions = chain.set(g)
        maker = chain.weights(g - 1, "p1")
        assert captions == asked  # the prompts
        assert [m[:2] for m in marks(images)] == [(short("p1"), state(study, maker))] * 12
        assert [see(x) for x in images] == [parse(c).scene for c in captions]
        assert chain.weights(g, "p1").item.inputs["parent"] == maker.digest
    noises = [m[2] for g in (1, 2, 3, 4) for m in marks(chain.set(g)[0])]
    assert len(set(noises)) == 4 * 12  # every sample has noise of its own, in every generation


def test_a_recursive_captioner_is_trained_on_what_it_wrote_of_real_pictures(study):
    chain = run(study, recursive("captioner"))
    there, _ = real_of(study)
    for g in (1, 2, 3, 4):
        images, captions = chain.set(g)
        assert np.array_equal(images, there)
        spoken, shown, keys, _ = study.models["s1"].adapter.made[g - 1]
        assert spoken == state(study, chain.weights(g - 1, "s1")) and np.array_equal(shown, there)
        assert keys == [("data", 0, g - 1, "captioner", i) for i in range(12)]
    assert chain.set(1)[1] != chain.set(2)[1]


@pytest.mark.parametrize("role", ROLES)
def test_real_trains_on_the_real_pairs_and_makes_nothing(study, role):
    chain = run(study, real(role))
    assert all(equal(chain.set(g), real_of(study)) for g in (1, 2, 3, 4)) and makings(study) == 0
    digests = [chain.weights(g, ZOO[role][0]).digest for g in range(5)]
    assert len(set(digests)) == 5  # and it is trained, generation by generation


@pytest.mark.parametrize("role", ROLES)
def test_gen0_trains_on_what_the_base_made_once(study, role):
    chain = run(study, gen0(role))
    assert all(equal(chain.set(g), chain.set(1)) for g in (2, 3, 4)) and makings(study) == 1
    name = ZOO[role][0]
    if role == "generator":
        assert {m[:2] for m in marks(chain.set(4)[0])} == {(short(name), state(study, study.models[name].base))}
    assert len({chain.weights(g, name).digest for g in range(5)}) == 5


@pytest.mark.parametrize(
    ("arm", "pictures", "captions"),
    [
        ("joint", "previous", "previous"),
        ("frozen-captioner", "previous", "base"),
        ("frozen-generator", "base", "previous"),
        ("gen0", "base", "base"),
        ("original", "previous", "given"),
        ("oracle", "previous", "oracle"),
        ("real", "real", "given"),
    ],
)
def test_relabeling_makes_pictures_and_captions_as_it_says(study, arm, pictures, captions):
    protocol = arms("04_relabeling")[ROLES, arm]
    chain, (there, asked) = run(study, protocol), real_of(study)
    base = {role: study.models[ZOO[role][0]].base for role in ROLES}
    for g in (1, 2, 3):
        images, told = chain.set(g)
        previous = {role: chain.weights(g - 1, ZOO[role][0]) for role in ROLES}
        if pictures == "real":
            assert np.array_equal(images, there)
        else:
            maker = {"previous": previous, "base": base}[pictures]["generator"]
            assert {m[:2] for m in marks(images)} == {(short("p1"), state(study, maker))}
            assert [see(x) for x in images] == [parse(c).scene for c in asked]  # anchored: of the real prompts
        if captions == "given":
            assert told == asked
        elif captions == "oracle":
            assert [parse(c).scene for c in told] == [see(x) for x in images] and told != asked
        else:
            writer = {"previous": previous, "base": base}[captions]["captioner"]
            wrote = [made for made in study.models["s1"].adapter.made if np.array_equal(made[1], images)]
            assert state(study, writer) in [made[0] for made in wrote]
            rates = rates_of(images, told, study.oracle)
            assert rates["colour0"] > 0 and rates["size0"] == 0  # the scribe's errors, not the prompt's words
        # both that are trained are trained on these pairs, and on the same ones
        for role in ROLES:
            member = Member(role, ZOO[role][0])
            if role in protocol.trains:
                assert equal(chain[g][1][member], (images, told))
                assert chain.weights(g, member.model).item.inputs["pairs"] == chain[g][2][member].digest
            else:
                assert member not in chain[g][1] and chain.weights(g, member.model) == base[role]


def rates_of(images, captions, oracle):
    """Share of captions that are wrong, by attribute, and in any."""
    errors = caption_errors(images, captions, oracle)
    names = {"1": ["shape0", "colour0", "size0"], "2": [f"{n}{k}" for n in ("shape", "colour", "size") for k in (0, 1)]}
    found = {}
    for things, patterns in errors.items():
        for name in ["background", *names[things]]:
            found.setdefault(name, []).extend(name in p for p in patterns)
        found.setdefault("any", []).extend(bool(p) for p in patterns)
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_frozen_models_are_bit_identical_at_the_end(study):
    before = {name: m.hold(m.base).weights.detach().clone() for name, m in study.models.items()}
    for arm, role in (("frozen-captioner", "captioner"), ("frozen-generator", "generator")):
        chain = run(study, arms("04_relabeling")[ROLES, arm])
        name, other = ZOO[role][0], ZOO["generator" if role == "captioner" else "captioner"][0]
        assert torch.equal(study.models[name].hold(chain.weights(4, name)).weights, before[name])
        assert not torch.equal(study.models[other].hold(chain.weights(4, other)).weights, before[other])
    frozen = run(study, arms("01_variance")[CAPTIONER, "frozen-length"])
    assert frozen[4][1] == {} and frozen.weights(4, "s1") == study.models["s1"].base


def test_the_prompts_of_a_closed_loop_are_the_captions_of_the_generation_before(study):
    chain = run(study, arms("04_relabeling")[ROLES, "joint-closed"])
    asked = [made[1] for made in study.models["p1"].adapter.made]
    assert asked[0] == real_of(study)[1]
    for g in (2, 3, 4):
        assert asked[g - 1] == chain.set(g - 1)[1]
        assert [see(x) for x in chain.set(g)[0]] == [parse(c).scene for c in chain.set(g - 1)[1]]
    anchored = run(study, arms("04_relabeling")[ROLES, "joint"])
    assert equal(anchored.set(1), chain.set(1)) and not equal(anchored.set(2), chain.set(2))
    # a frozen generator in a closed loop paints other prompts every generation
    study.models["p1"].adapter.made.clear()
    frozen = run(study, arms("04_relabeling")[ROLES, "frozen-generator-closed"])
    assert [made[1] for made in study.models["p1"].adapter.made] == [frozen.set(g)[1] for g in (1, 2, 3)]
    assert {made[0] for made in study.models["p1"].adapter.made} == {state(study, study.models["p1"].base)}
    # what is measured against is the real prompt, also when meaning has drifted
    assert chain[4][2][Member("generator", "p1")].real.keys == prompts(study, 0)[1].keys


def test_noised_captions_are_wrong_as_often_as_the_joint_captioners(tmp_path):
    study = open_toys(tmp_path, pairs=600, generations=2, steps=1)
    chains = {arm: run(study, arms("04_relabeling", pairs=600)[ROLES, arm]) for arm in ("joint", "noised")}
    for g in (1, 2):
        joint, noised = (rates_of(*chains[arm].set(g), study.oracle) for arm in ("joint", "noised"))
        assert set(joint) == set(noised)
        for (
            name,
            rate,
        ) in joint.items():  # "any": as many captions are wrong in something, and as many in each attribute
            assert abs(noised[name] - rate) < 4 * np.sqrt(max(rate * (1 - rate), 1e-9) / 150), name
        assert joint["colour0"] == pytest.approx(0.5, abs=0.1) and noised["size1"] == 0
        # damaged on its own, from what is in its own pictures: not the joint captioner's captions
        assert chains["joint"].set(g)[1] != chains["noised"].set(g)[1]
    wrong = [
        (parse(c).scene.things[0].colour - see(x).things[0].colour) % 10
        for x, c in zip(*chains["noised"].set(1), strict=True)
    ]
    counts = np.bincount(wrong, minlength=10)[1:]
    assert counts.min() > 0.4 * counts.mean()  # any other value, all alike often


def test_noised_copies_each_seeds_own_errors(study):
    there = arms("04_relabeling")
    for seed in (0, 1):
        run(study, there[ROLES, "joint"], seed)
    assert set(study.errors) == {("joint", seed, g) for seed in (0, 1) for g in (1, 2, 3, 4)}
    run(study, there[ROLES, "noised"], 1)
    used = {i.inputs["errors"] for i in study.store.items("pairs") if "errors" in i.inputs} - {digest_of({})}
    assert used == {digest_of(study.errors["joint", 1, g]) for g in (1, 2, 3, 4)}


def test_noised_without_the_chain_that_it_copies_says_so(study):
    with pytest.raises(MMCollapseError, match="arm 'joint', whose errors are copied, has no generation 1"):
        run(study, arms("04_relabeling")[ROLES, "noised"])


# ---- budgets


def budgets(study, trainings, protocol):
    """{(steps, batch, learning rate, pairs) of the models of a generation}, of every generation."""
    trainings.clear()
    run_unseen(study, protocol, seed=5)
    spent = [{(t.recipe.steps, t.recipe.batch, t.recipe.lr, t.pairs) for t in trainings if t.key[3] == g} for g in G]
    assert all(len(found) == 1 for found in spent), protocol.name  # all models of a chain alike
    return [found.pop() for found in spent]


G = (1, 2, 3)


@pytest.mark.parametrize("name", PRIORITY)
def test_budgets_are_equal_in_all_arms_but_those_that_are_about_budgets(tmp_path, trainings, name):
    for k, protocol in enumerate(arms(name).values()):
        if protocol.trains and protocol.captions != "noised":
            spent = budgets(open_toys(tmp_path / str(k), generations=3), trainings, protocol)
            n, lr = protocol.pairs or 12, 0.01 * protocol.rate
            assert (protocol.rate != 1) == ("-lr-" in protocol.arm)
            if protocol.keep == "accumulate":
                sets = [g + protocol.anchored for g in G]
                assert spent == [(3 * times, 4, lr, n * times) for times in sets], protocol.name
            elif protocol.real_only:  # its real part alone, at equal steps
                assert spent == [(3, 4, lr, round(n * protocol.real_share))] * 3, protocol.name
            else:
                assert spent == [(3 * protocol.compute, 4, lr, n)] * 3, protocol.name
            assert (protocol.compute > 1) == protocol.arm.startswith("alone-compute")


def test_every_role_has_its_own_learning_rate(tmp_path, trainings):
    study = open_toys(tmp_path, lr_captioner=0.02, generations=1)
    run(study, arms("04_relabeling")[ROLES, "joint"])
    assert [(t.key[1], t.recipe.lr) for t in trainings] == [("generator", 0.01), ("captioner", 0.02)]


# ---- populations


@pytest.mark.parametrize("role", ROLES)
def test_a_pool_makes_equal_contiguous_shares_and_every_model_is_trained_on_all(study, role):
    chain = run(study, arms("03_diversity")[(role,), "pool-3"])
    there, asked = real_of(study)
    for g in (1, 2):
        sets = chain[g][1]
        assert [m.model for m in sets] == list(ZOO[role]) and all(len(images) == 12 for images, _ in sets.values())
        assert all(equal(pairs, chain.set(g)) for pairs in sets.values())
        for k, name in enumerate(ZOO[role]):
            maker, what, keys, _ = study.models[name].adapter.made[g - 1]
            rows = range(4 * k, 4 * k + 4)
            assert maker == state(study, chain.weights(g - 1, name))
            assert [key[-1] for key in keys] == list(rows)  # prompts 0-3, 4-7, 8-11: all of them once
            assert what == asked[rows[0] : rows[-1] + 1] if role == "generator" else np.array_equal(what, there[rows])
            if role == "generator":
                assert {m[:2] for m in marks(chain.set(g)[0][rows])} == {(short(name), maker)}


def test_a_pool_of_models_that_do_not_divide_the_pairs_covers_all_prompts(tmp_path):
    study = open_toys(tmp_path, pairs=11, generations=1)
    chain = run(study, recursive("generator", population=ZOO["generator"]))
    assert [len(study.models[name].adapter.made[0][1]) for name in ZOO["generator"]] == [4, 4, 3]
    assert chain.set(1)[1] == real_of(study)[1]


def test_alone_each_model_makes_all_pairs_for_itself(study):
    chain = run(study, arms("03_diversity")[GENERATOR, "alone"])
    for g in (1, 2):
        for member, (images, captions) in chain[g][1].items():
            maker = state(study, chain.weights(g - 1, member.model))
            assert [m[:2] for m in marks(images)] == [(short(member.model), maker)] * 12
            assert captions == real_of(study)[1]


def test_a_frozen_pool_is_made_by_generation_0_again_and_again(study):
    chain = run(study, arms("03_diversity")[GENERATOR, "frozen-pool-3"])
    base = [(short(name), state(study, study.models[name].base)) for name in ZOO["generator"] for _ in range(4)]
    assert all([m[:2] for m in marks(chain.set(g)[0])] == base for g in (1, 2, 3, 4))
    assert makings(study) == 3
    assert equal(chain.set(1), run(study, arms("03_diversity")[GENERATOR, "pool-3"]).set(1))


@pytest.mark.parametrize("role", ROLES)
def test_clones_start_equal_and_part(study, role):
    chain = run(study, arms("03_diversity")[(role,), "clones-3"])
    assert len({w.digest for w in chain[0][0].values()}) == 1
    for g in (1, 2, 3, 4):
        assert len({w.digest for w in chain[g][0].values()}) == 3
        assert all(equal(pairs, chain.set(g)) for pairs in chain[g][1].values())
        makers = [made[0] for made in study.models[ZOO[role][0]].adapter.made]
    assert makers[:3] == makers[:1] * 3 and len(set(makers[3:6])) == 3  # first all the same, then each its own
    noise = [key for made in study.models[ZOO[role][0]].adapter.made for key in map(tuple, made[2])]
    assert len(set(noise)) == len(noise)


def test_seeds_and_members_are_never_copies(study):
    protocol = arms("03_diversity")[GENERATOR, "pool-3"]
    chains = [run(study, protocol, seed) for seed in (0, 1)]
    digests = [w.digest for chain in chains for g in (1, 2) for w in chain[g][0].values()]
    assert len(set(digests)) == len(digests)
    noise = [m[2] for chain in chains for g in (1, 2) for m in marks(chain.set(g)[0])]
    assert len(set(noise)) == len(noise)
    assert not set(prompts(study, 0)[1].keys) & set(prompts(study, 1)[1].keys)


def test_seeds_that_share_prompts_of_a_finite_world_have_noise_of_their_own(study, monkeypatch):
    monkeypatch.setattr(study.world, "size", lambda split: 14)
    assert len(set(prompts(study, 0)[1].keys) & set(prompts(study, 1)[1].keys)) >= 10
    pairs = [run(study, recursive("generator"), seed).set(1) for seed in (0, 1)]
    assert not {m[2] for m in marks(pairs[0][0])} & {m[2] for m in marks(pairs[1][0])}
    with pytest.raises(MMCollapseError, match="setting pairs=12 in each of 2 generations: .* has only 14 pairs"):
        run(study, recursive("captioner", fresh=True))


# ---- data that stay, and real ones


@pytest.mark.parametrize("anchored", [True, False])
def test_what_accumulates(study, anchored):
    chain = run(study, recursive("generator", "accumulate", keep="accumulate", anchored=anchored))
    new = [list(zip(made[1], made[2], strict=True)) for made in study.models["p1"].adapter.made]
    assert len(new) == 4
    for g in (1, 2, 3, 4):
        images, captions = chain.set(g)
        first = 12 if anchored else 0
        assert len(images) == 12 * g + first
        assert not anchored or equal((images[:12], captions[:12]), real_of(study))
        makers = [m[1] for m in marks(images[first:])]
        want = [state(study, chain.weights(k, "p1")) for k in range(g) for _ in range(12)]
        assert makers == want  # all generations so far, the latest last
        assert g == 1 or equal((images[: first + 12 * (g - 1)], captions[: first + 12 * (g - 1)]), chain.set(g - 1))


def test_a_subsample_is_as_many_of_them_as_replace_has(study):
    chain = run(study, recursive("generator", "subsample", keep="subsample", anchored=True))
    of = set()
    for g in (1, 2, 3, 4):
        images, captions = chain.set(g)
        assert len(images) == len(captions) == 12
        there = {0, *(state(study, chain.weights(k, "p1")) for k in range(g))}
        assert {m[1] for m in marks(images)} <= there
        of |= {m[1] for m in marks(images)}
        rows = [(m, c) for m, c in zip(marks(images), captions, strict=True)]
        assert len(set(rows)) == 12  # drawn without putting back
    assert 0 in of and len(of) >= 4  # real ones, and old ones


@pytest.mark.parametrize(("share", "kept"), [(0.25, 3), (0.5, 6), (0.75, 9), (0.1, 1), (1.0, 12)])
def test_real_shares_are_exact(study, share, kept):
    chain = run(study, recursive("generator", real_share=share))
    there, asked = real_of(study)
    for g in (1, 2, 3):
        images, captions = chain.set(g)
        made = [m[0] != 0 for m in marks(images)]
        assert made == [True] * (12 - kept) + [False] * kept  # the real ones are the last, the same every generation
        assert captions == asked and np.array_equal(images[12 - kept :], there[12 - kept :])
    assert all(len(call[1]) == 12 - kept for call in study.models["p1"].adapter.made)  # and no more is made


def test_fresh_real_pairs_are_new_every_generation(study):
    chain = run(study, recursive("captioner", real_share=0.5, real_fresh=True))
    keys = [chain[g][2][Member("captioner", "s1")].real.keys for g in (1, 2, 3, 4)]
    assert all(k[:6] == prompts(study, 0)[1].keys[:6] for k in keys)  # what is captioned stays
    fresh = [key for k in keys for key in k[6:]]
    assert len(set(fresh)) == 24 and not set(fresh) & set(prompts(study, 0)[1].keys)
    for g in (1, 2):
        images, captions = real_of(study, block=g)
        assert equal((chain.set(g)[0][6:], chain.set(g)[1][6:]), (images[6:], captions[6:]))


def test_the_real_part_alone_makes_nothing(study):
    for role in ROLES:
        alone = run(study, recursive(role, real_share=0.25, real_only=True))
        there, asked = real_of(study)
        assert all(equal(alone.set(g), (there[9:], asked[9:])) for g in (1, 2, 3, 4))
    assert makings(study) == 0


def test_fresh_prompts_are_new_and_disjoint_in_all_arms_alike(study):
    there = arms("01_variance")
    for role in ROLES:
        chains = {a: run(study, there[(role,), f"{a}-fresh"]) for a in ("recursive", "real", "gen0")}
        keys = {a: [next(iter(c[g][2].values())).real.keys for g in (1, 2, 3, 4)] for a, c in chains.items()}
        assert keys["recursive"] == keys["real"] == keys["gen0"]
        assert len({key for k in keys["real"] for key in k}) == 48
        assert not {key for k in keys["real"] for key in k} & set(prompts(study, 1)[1].keys)
        assert keys["real"][0] == prompts(study, 0)[1].keys
        makers = [made[0] for made in study.models[ZOO[role][0]].adapter.made]
        assert len(makers) == 7  # three generations of gen0 are painted by the base anew: generation 1 is shared
        assert makers[4:] == makers[:1] * 3


def test_restarted_arms_start_from_the_base_every_generation(study):
    chain = run(study, arms("01_variance")[GENERATOR, "recursive-restart"])
    base = study.models["p1"].base.digest
    assert [chain.weights(g, "p1").item.inputs["parent"] for g in (1, 2, 3, 4)] == [base] * 4
    assert {m[1] for m in marks(chain.set(2)[0])} == {state(study, chain.weights(1, "p1"))}  # but make with the last


def test_more_or_fewer_pairs_hold_the_same_first_prompts(study):
    few, many = (run(study, recursive("generator", pairs=n)) for n in (5, 20))
    assert [len(c.set(2)[1]) for c in (few, many)] == [5, 20]
    assert few.set(1)[1] == many.set(1)[1][:5] == real_of(study)[1][:5]


def test_decoding_reaches_the_models(study):
    there = arms("02_decoding_budget")
    base = load_settings("smoke")
    for roles, arm, decoding in [
        (GENERATOR, "steps-1", {"steps": 1, "guidance": base.data_guidance}),
        (GENERATOR, "guidance-2", {"steps": base.data_steps, "guidance": 2.0}),
        (GENERATOR, "recursive", {"steps": base.data_steps, "guidance": base.data_guidance}),
        (CAPTIONER, "beams-2", {"beams": 2, "temperature": 0.0, "max_tokens": 30}),
        (CAPTIONER, "length-6", {"beams": 1, "temperature": 1.0, "max_tokens": 6}),
        (CAPTIONER, "recursive", {"beams": 1, "temperature": 1.0, "max_tokens": 30, "top_k": 0, "top_p": 1.0}),
    ]:
        calls = study.models[ZOO[roles[0]][0]].adapter.made
        calls.clear()
        run(study, there[roles, arm], seed=len(arm))
        used = [vars(call[3]) for call in calls]
        assert used and all(u | decoding == u for u in used), arm


def test_passes_count_what_a_pair_costs(study):
    chain = run(study, recursive("generator", decoding=(("steps", 7), ("guidance", 3.0)), real_share=0.5))
    assert next(iter(chain[1][2].values())).passes == 6 * 7 * 2  # guidance takes two a step; real pairs cost nothing
    beams = run(study, recursive("captioner", decoding=(("beams", 2), ("temperature", 0.0))))
    words = sum(len(c.split()) for c in beams.set(1)[1])
    assert next(iter(beams[1][2].values())).passes == 12 + 2 * (words + 12)


# ---- work that is shared


def test_arms_share_what_is_equal(study, trainings):
    run_unseen(study, recursive("generator"))
    assert (makings(study), len(trainings)) == (4, 4)
    run_unseen(study, gen0("generator"))  # generation 1 is that of the recursive arm
    assert (makings(study), len(trainings)) == (4, 4 + 3)
    one = ZOO["generator"][:1]
    run_unseen(study, gen0("generator", "frozen-pool-1", population=one))
    run_unseen(study, recursive("generator", "pool-1", population=one))
    usual = (("guidance", study.settings.data_guidance),)
    run_unseen(study, recursive("generator", "guidance-1", decoding=usual))
    for protocol in (recursive("generator"), gen0("generator")):  # a rerun does nothing
        run_unseen(study, protocol)
    assert (makings(study), len(trainings)) == (4, 4 + 3)
    run_unseen(study, recursive("generator"), seed=1)  # another seed shares nothing
    assert (makings(study), len(trainings)) == (8, 7 + 4)


def test_experiments_share_what_is_equal(study, trainings):
    for role in ROLES:
        one = run_unseen(study, arms("01_variance")[(role,), "recursive"])
        first, *others = (study.models[name].adapter for name in ZOO[role])
        assert (len(first.made), len(trainings)) == (4, 4)
        alone = run_unseen(study, arms("03_diversity")[(role,), "alone"])
        assert (len(first.made), len(trainings)) == (4, 4 + 8)  # the two others
        assert [digests[0] for digests in alone.values()] == [digest for (digest,) in one.values()]
        assert [len(m.made) for m in others] == [4, 4]
        run_unseen(study, arms("06_remedies")[(role,), "recursive"])
        assert (len(first.made), len(trainings)) == (4, 4 + 8)
        trainings.clear()


def test_the_generator_of_original_is_the_recursive_one(study):
    recursive_one = run_unseen(study, arms("01_variance")[GENERATOR, "recursive"])
    original = run_unseen(study, arms("04_relabeling")[ROLES, "original"])
    assert [digests[0] for digests in original.values()] == [digest for (digest,) in recursive_one.values()]
    names = [i.name for i in study.store.items("weights") if i.inputs["seed"][2] == "generator"]
    assert len(names) == 4


@pytest.mark.parametrize("name", ["03_diversity", "04_relabeling", "06_remedies"])
def test_a_rerun_does_nothing_at_all(tmp_path, trainings, name):
    """Though the files of the generations in between are gone."""
    there = [p for p in arms(name).values() if p.roles != GENERATOR]
    for first in (True, False):
        study = open_toys(tmp_path, generations=4)
        for protocol in there:
            run_unseen(study, protocol)
        assert [bool(trainings), bool(makings(study))] == [first, first]
        trainings.clear()


def test_nothing_is_made_twice_while_files_are_given_up(tmp_path, trainings):
    """The pairs and weights in between are retired as a chain goes on: no later generation or arm needs them again."""
    there = arms("04_relabeling")
    for k, order in enumerate((["joint", "noised", "gen0"], ["joint-closed", "noised-closed"], ["frozen-generator"])):
        study = open_toys(tmp_path / str(k), generations=6)
        trainings.clear()
        for arm in order:
            run_unseen(study, there[ROLES, arm])
        assert makings(study) == len([i for i in study.store.items("pairs") if i.inputs["makers"] != "toy-oracle"])
        assert len(trainings) == len(study.store.items("weights"))
        pruned = [i for i in study.store.items("weights") if i.manifest.get("pruned")]
        assert {i.inputs["seed"][1] for i in pruned} == {2, 3, 4, 5}  # generation 1 others may share; the last is kept


def test_the_toy_gaussian_in_a_pool_of_clones_keeps_the_closed_form(tmp_path):
    """Three clones that share one pool of N lose what one that makes N loses: (1 - 1/N) a generation."""
    settings = load_settings("smoke", pairs=12, batch=12, steps=150, lr_generator=0.05, generations=3)
    zoo = {"generator": ("gaussian",), "captioner": ("none",)}
    study = Study(settings, Store(tmp_path), Scenes(), {"gaussian": Model(Gaussian(), settings)}, zoo, "cpu")
    found = []

    def measure(weights, g, sets):
        spread = [study.models["gaussian"].hold(w).log_std.detach() for w in weights.values()]
        found.append([float((2 * s).exp().mean()) for s in spread])

    run_chain(study, recursive("generator", population=("gaussian",) * 3), 0, measure)
    want = (1 - 1 / 12) ** np.arange(4)
    assert np.abs(np.mean(found, axis=1) / want - 1).max() < 0.04, found


# ---- students


@pytest.fixture
def students(monkeypatch):
    """(role, number, weights) of every student that was measured."""
    seen = []
    monkeypatch.setattr(
        experiment, "measure_student", lambda study, tools, role, weights, k: seen.append((role, k, weights)) or []
    )
    return seen


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("06_remedies", (GENERATOR, "accumulate")),
        ("06_remedies", (CAPTIONER, "real-25%")),
        ("03_diversity", (GENERATOR, "pool-3")),
        ("04_relabeling", (ROLES, "joint")),
        ("04_relabeling", (ROLES, "frozen-captioner")),
    ],
)
def test_students_start_from_the_base_and_train_on_exactly_the_set(tmp_path, trainings, students, name, key):
    study = open_toys(tmp_path, generations=3, students=2)
    protocol = arms(name)[key]
    chain = run(study, protocol)
    trainings.clear()
    experiment.run_students(study, None, protocol, 3, chain[3][2], 0)
    assert [(role, k) for role, k, _ in students] == [(role, k) for role in protocol.trains for k in (0, 1)]
    for (role, _, held), spent in zip(students, trainings, strict=True):
        model, inputs = study.models[ZOO[role][0]], held.item.inputs
        assert inputs["parent"] == model.base.digest and inputs["pairs"] == next(iter(chain[3][2].values())).digest
        began, images, captions = model.adapter.encoded[-2]
        assert began == model.hold(model.base).state() and equal((images, captions), chain.set(3))
        assert (spent.recipe.steps, spent.recipe.batch) == (3, 4)  # one recipe, however large the set
        assert held.item.manifest["pruned"]  # measured, they are not needed any more
    assert len({held.digest for *_, held in students}) == len(students)  # nor are they copies
    trainings.clear()
    experiment.run_students(study, None, protocol, 3, chain[3][2], 0)
    assert not trainings
    experiment.run_students(study, None, protocol, 3, {}, 0)  # of a frozen arm there is no set


# ---- whole experiments


@pytest.fixture
def whole(tmp_path, monkeypatch, students):
    """whole(name, **changes): run an experiment on toys; measuring gives one row a model."""

    monkeypatch.setenv("TQDM_DISABLE", "1")

    def go(name, **changes):
        zoo = {"generators": ",".join(ZOO["generator"]), "captioners": ",".join(ZOO["captioner"]), "populations": "1,3"}
        own = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results"), "pairs": 12, "steps": 2}
        settings = load_settings("smoke", name, **zoo | own | changes)
        study = open_toys(tmp_path / "runs", **{k: getattr(settings, k) for k in ("generations", "students", "steps")})
        go.study, go.tools = study, SimpleNamespace(shown={}, digests={})
        common = {"measurement": "greedy", "subset": "test", "metric": "all_right", "space": "", "n": 1, "hash": "x"}

        def rows(study, tools, protocol, weights, g, sets, seed):
            modality = {"generator": "image", "captioner": "text"}
            value = {m: float(short(w.digest)) for m, w in weights.items()}
            return [common | {"model": m.label, "modality": modality[m.role], "value": value[m]} for m in weights]

        monkeypatch.setattr(experiment, "open_study", lambda settings, protocols, kept: (study, go.tools))
        monkeypatch.setattr(experiment, "measure_world", lambda study, tools: [])
        monkeypatch.setattr(experiment, "measure_generation", rows)
        monkeypatch.setattr(experiment, "_write_samples", lambda *_: None)
        return experiment.run_experiment(name, settings)

    go.results = tmp_path / "results"
    return go


@pytest.mark.parametrize("name", PRIORITY)
def test_an_experiment_runs_all_its_chains_once(whole, trainings, name, capsys):
    table = whole(name, seeds=2)
    settings = load_settings("smoke", name, generators="p1,p22,p333", captioners="s1,s22,s333", populations="1,3")
    there = {(p.arm, m.label) for p in arms_of(name, settings) for m in p.members(ZOO)}
    there |= {(p.arm, "set") for p in arms_of(name, settings) if p.remedy}  # since when it holds
    assert set(zip(table.arm, table.model, strict=True)) == there and set(table.seed) == {0, 1}
    assert set(table.claims) == {experiment.claims_digest()}
    assert not (whole.results / f"{name}.progress.json").exists()
    made = json.loads((whole.results / f"{name}.json").read_text())
    assert [p["arm"] for p in made["protocols"]] == [p.arm for p in arms_of(name, settings)] and made["failures"] == []
    assert trainings
    trainings.clear()
    assert whole(name, seeds=2).equals(table)  # byte for byte the same, and nothing is done again
    assert not trainings and makings(whole.study) == 0
    kept = {i.inputs["seed"][1] for i in whole.study.store.items("weights") if not i.manifest.get("pruned")}
    assert kept == {2}  # the last generation's


def test_students_are_trained_at_their_generations(whole, students):
    whole("06_remedies", generations=3, students=2, student_generations="1,3", arms="real,gen0")
    seen = {tuple(held.item.inputs["seed"]) for *_, held in students}
    assert seen == {(0, g, role, f"student {k}") for g in (1, 3) for role in ROLES for k in (0, 1)}
    students.clear()
    whole("06_remedies", generations=3, students=0, arms="real,gen0")
    assert not students


def test_a_chain_that_fails_is_named_and_the_others_go_on(whole, monkeypatch, capsys):
    sound = loop.train

    def train(loss, parameters, data, draw, recipe, key, **options):
        if key[1:4] == ("captioner", 0, 2) and len(done) == 0:
            done.append(key)
            raise TrainingDiverged("the loss is nan at step 1")
        return sound(loss, parameters, data, draw, recipe, key, **options)

    done = []
    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(MMCollapseError, match="2 of 10 chains of 04_relabeling ended early.*joint seed 0: the loss is"):
        whole("04_relabeling")  # the joint captioner of generation 2 is the first to come
    said = capsys.readouterr().err
    assert "FAILED: generator and captioner joint seed 0: the loss is nan" in said
    assert (
        "FAILED: generator and captioner noised seed 0: arm 'joint', whose errors are copied, has no generation" in said
    )
    table = read_table(whole.results / "04_relabeling.parquet")
    assert set(table[table.generation == 2].arm) == set(table.arm) - {"joint", "noised"}
    assert len(json.loads((whole.results / "04_relabeling.json").read_text())["failures"]) == 2
    assert len(whole("04_relabeling")) == 10 * 3 * 2  # and the rerun makes what was missing


def test_the_progress_of_a_run_under_way(whole, monkeypatch):
    sound, seen = loop.train, []

    def train(*args, **options):
        path = whole.results / "01_variance.progress.json"
        seen.append(json.loads(path.read_text()) if path.is_file() else {})
        return sound(*args, **options)

    monkeypatch.setattr(loop, "train", train)
    whole("01_variance", arms="recursive,real,gen0", roles="generator", students=0)
    assert seen[:2] == [{"generator recursive seed 0": 0}, {"generator recursive seed 0": 1}]
    assert seen[2] == {"generator recursive seed 0": 2, "generator real seed 0": 0}


# ---- what is wrong is refused before anything runs


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """refused(name, **changes): the message; nothing may have been made."""

    def go(name, **changes):
        monkeypatch.setattr(experiment, "run_chain", None)
        folders = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")}
        with pytest.raises(MMCollapseError) as error:
            experiment.run_experiment(name, load_settings("smoke", name, **folders | changes))
        assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()
        return str(error.value)

    return go


def test_models_that_are_not_there_or_not_what_they_should_be(refused, models_folder, tmp_path):
    said = refused("01_variance", generators="generator-17")
    assert f"no model in {models_folder / 'generator-17'}: " in said and "settings generators and captioners" in said
    said = refused("01_variance", captioners=str(tmp_path))  # there, but no model
    assert f"setting captioners='{tmp_path}': no model in {tmp_path}: expected model_index.json" in said
    said = refused("03_diversity", generators="generator,captioner", captioners="captioner", populations="1")
    assert "setting generators='generator,captioner': 'captioner' is a captioner, no generator" in said
    said = refused("01_variance", captioners="generator")
    assert "setting captioners='generator': 'generator' is a generator, no captioner" in said
    assert "no base models in " in refused("01_variance", models=str(tmp_path / "no"))
    copy = tmp_path / "copies" / "other"
    copy.parent.mkdir()
    copy.symlink_to(models_folder / "captioner")
    zoo = {"generators": "generator", "populations": "1"}
    said = refused("03_diversity", captioners=f"captioner,{copy}", **zoo)
    assert f"setting captioners: 'captioner' and '{copy}' have the same weights" in said
    for name in ("pool", "student 1"):
        copy = copy.rename(tmp_path / name)
        said = refused("01_variance", captioners=str(copy))
        assert f"setting captioners: a model called {name!r}, as tables call a set, a pool or a student" in said


def test_a_world_without_truth_has_no_oracle_arms(refused, tmp_path, monkeypatch, models_folder):
    class Photos(Scenes):
        truth, image_size = False, 64

    monkeypatch.setattr(experiment, "open_world", lambda *pictures: Photos())
    said = refused("04_relabeling", world="photos", data=str(tmp_path), models=str(models_folder))
    assert "world='photos' has no known truth, so no oracle can write the captions of the arms oracle, noised: " in said
    others = said.split("arms=")[1]
    assert {"joint", "real", "gen0"} <= set(others.split(",")) and "noised" not in others
    settings = load_settings("smoke", world="photos", data=str(tmp_path), models=str(models_folder), arms=others)
    assert experiment.open_study(settings, arms_of("04_relabeling", settings))


def test_mistakes_in_lists_are_refused(refused):
    assert "student_generations='a': 'a' is no whole number" in refused("01_variance", student_generations="a")
    assert "populations='9'" in refused("03_diversity", populations="9")
    assert "setting pairs=2: too few" in refused(
        "03_diversity", pairs=2, generators="a,b,c", captioners="a,b,c", populations="3"
    )


# ---- kills, and company


CHAINS = textwrap.dedent("""
    import sys
    sys.path.insert(0, sys.argv[2])
    import time
    import test_experiments as toys
    from mmcollapse import loop
    train = loop.train
    loop.train = lambda *a, **k: (time.sleep(float(sys.argv[3])), train(*a, **k))[1]
    study = toys.open_toys(sys.argv[1], generations=3)
    there = toys.arms("04_relabeling")
    print("begun", flush=True)
    chains = [toys.run(study, there[toys.ROLES, arm]) for arm in ("joint", "noised")]
    digests = [w.digest for chain in chains for w in chain[3][0].values()]
    print(digests, len(study.models["p1"].adapter.made), flush=True)
""")


def start(root, pause=0.0):
    command = [sys.executable, "-c", CHAINS, str(root), os.path.dirname(__file__), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def last(study) -> list[str]:
    there = arms("04_relabeling")
    chains = [run(study, there[ROLES, arm]) for arm in ("joint", "noised")]
    return [w.digest for chain in chains for w in chain[3][0].values()]


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(tmp_path):
    want = last(open_toys(tmp_path / "whole", generations=3))
    process = start(tmp_path / "cut", 0.2)
    assert process.stdout.readline() == "begun\n"
    while len(list((tmp_path / "cut").glob("weights/weights-*"))) < 3:  # in the middle of generation 2 of *joint*
        assert process.poll() is None, "the chain ended before it could be killed"
    process.kill()
    process.wait()
    study = open_toys(tmp_path / "cut", generations=3)
    assert last(study) == want
    assert len([m for m in study.models["p1"].adapter.encoded]) < 6  # generation 1 was there


def test_two_processes_on_one_store_make_everything_once(tmp_path):
    want = last(open_toys(tmp_path / "whole", generations=3))
    both = [start(tmp_path / "shared", 0.02) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in both]
    assert all(line.startswith(str(want)) for line in said)
    assert sum(int(line.split()[-1]) for line in said) == 3 + 2  # of *joint* and of *noised*, which share generation 1
