"""The recursion: models make data, are trained on them, and make the next.

generation 0 are the base models
for g = 1 .. G, by the protocol that holds at g:
    pairs  = synthesize(pictures and captions by generation g-1, or generation 0, or nobody: real data)
    models = finetune(each model that is trained, pairs)
    measure(models)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmcollapse.digests import digest_arrays, digest_of
from mmcollapse.errors import MMCollapseError
from mmcollapse.memory import AtOnce
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.protocol import ROLES, Member, Protocol, drifting
from mmcollapse.randomness import generator, seed_of
from mmcollapse.settings import Settings
from mmcollapse.store import Item, Store, load_pairs, save_pairs
from mmcollapse.train import Recipe, train
from mmcollapse.worlds import Batch


@dataclass(frozen=True)
class Weights:
    """Weights of one model: the base model's (item None) or a fine-tuned generation's. digest: of their content."""

    digest: str
    item: Item | None = None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Training pairs. digest: of pictures and captions; open: () -> (images (n, size, size, 3) uint8, captions);
    real: the real pairs that they answer to, row by row; items: what of them lies in the store; passes: forward passes
    that making them took."""

    digest: str
    open: Callable[[], tuple[np.ndarray, list[str]]]
    real: Batch
    items: tuple[Item, ...] = ()
    passes: float = 0.0


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts. name: the texts, or what they are the captions of, which may have been given up since."""

    name: list
    open: Callable[[], list[str]]

    @classmethod
    def of(cls, texts: list[str]) -> Asked:
        """Prompts that are at hand."""
        return cls(texts, lambda: texts)

    @classmethod
    def captions(cls, pairs: Pairs, rows: np.ndarray) -> Asked:
        """The captions of some rows of `pairs` as prompts."""

        def some():
            texts = pairs.open()[1]
            return [texts[i] for i in rows]

        return cls(["captions of", pairs.digest, rows.tolist()], some)


class Model:
    """An adapter (see models) that can hold the weights of any generation."""

    def __init__(self, adapter, settings: Settings):
        self.adapter = adapter
        lora = getattr(settings, f"lora_{adapter.kind}")
        adapter.prepare(settings.method, settings.rank, lora, settings.checkpointing == "yes")
        self.parameters = adapter.trainable()
        self.initial = {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}
        method = settings.method + (f"{settings.rank}{lora and '/'}{lora}" if settings.method == "lora" else "")
        self.recorded: dict = {}  # training steps (see train.train)
        self.at_once = AtOnce(settings.train_batch or settings.batch, "the pairs of a step", "train_batch")
        self.base = Weights(f"{adapter.digest}/{method}")
        self.holds = self.base.digest

    def hold(self, weights: Weights):
        """Put `weights` into the adapter and return it. Always read from the file, so that an uninterrupted run goes on
        from the same numbers as a resumed one."""
        import torch
        from safetensors.torch import load_file

        if self.holds != weights.digest:
            state = self.initial if weights.item is None else load_file(weights.item.files() / "weights.safetensors")
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(state[name])
            self.holds = weights.digest
        return self.adapter


@dataclass
class Study:
    """What all chains of a run share. models: by name; zoo: their names by role, the first being the default; oracle: a
    reader of pictures, in a world of known truth; say: called with (chain, generation, stage) before each stage, for
    progress; copied: arms whose errors another one copies; errors: of the sets of those arms
    (truth.caption_errors), by (arm, seed, generation)."""

    settings: Settings
    store: Store
    world: object
    models: dict[str, Model]
    zoo: dict[str, tuple[str, ...]]
    device: str
    oracle: object = None
    say: Callable[[str, int, str], None] = lambda chain, generation, stage: None
    copied: tuple[str, ...] = ()
    errors: dict[tuple, dict[str, list[list[str]]]] = field(default_factory=dict)

    def recipe(self, role: str, times: int = 1, rate: float = 1.0) -> Recipe:
        """times: of the setting `steps`; rate: times the learning rate of the settings."""
        s = self.settings
        lr = rate * {"generator": s.lr_generator, "captioner": s.lr_captioner}[role]
        return Recipe(times * s.steps, s.batch, lr, s.warmup, method=s.method, rank=s.rank, dtype=s.dtype)

    def computing(self) -> dict:
        """What results depend on beside their inputs in name: devices never mix within a chain."""
        return {"device": self.device, "dtype": self.settings.dtype, "batch": self.settings.compute_batch}

    def retire(self, items: list[Item]):
        """Give up files that nothing needs any more, as the settings allow; their manifests stay."""
        for item in items:
            if self.settings.keep_weights == "last":
                self.store.prune(item)

    def image_decoding(self, changes: tuple = ()) -> ImageDecoding:
        """Of training data: as the settings have it, with `changes` ((name, value), ...) on top."""
        s = self.settings
        return ImageDecoding(**{"steps": s.data_steps, "guidance": s.data_guidance} | dict(changes))

    def caption_decoding(self, name: str, drift: tuple = (), generation: int = 0, changes: tuple = ()):
        """Of the captioner called `name`: ancestral sampling at temperature 1, with the settings named in `drift` as
        the public schedule has them, and `changes` on top."""
        captioner = self.models[name].adapter
        words, length = len(captioner.tokenizer), self.world.references_length()
        decoding = drifting(generation, drift, words, length, captioner.max_tokens)
        return CaptionDecoding(**vars(decoding) | dict(changes))


def run_chain(study: Study, protocol: Protocol, seed: int, measure: Callable) -> list[Item]:
    """One arm, one seed: generations 0..G, each measured by measure(weights, g, sets), where weights has the Weights of
    every member and sets the Pairs that the trained ones were trained on; it answers whether an alarm sounds that the
    protocol waits for. Finished work is found in the store and not done again. Returns what was made for generation 1,
    which other arms share; of the rest the last one's is kept."""
    members = protocol.members(study.zoo)
    weights = {m: study.models[m.model].base for m in members}
    history, made, sets, alarm = [], {}, {}, math.inf
    for g in range(study.settings.generations + 1):
        now = protocol.at(g, alarm)
        if g > 0 and now.trains:
            study.say(f"{protocol.name} seed {seed}", g, "making data")
            history.append(_synthesize(study, now, members, weights, seed, g, history))
            sets = _training_sets(study, now, history, seed, g)
            study.say(f"{protocol.name} seed {seed}", g, "fine-tuning")
            weights = weights | {
                m: finetune(study, m, _start(study, now, m, weights), sets[m], seed, g, _times(now, g), now.rate)
                for m in sets
            }
            if protocol.arm in study.copied:
                study.errors[protocol.arm, seed, g] = errors_of(study, next(iter(sets.values())))
            made[g] = [weights[m].item for m in sets] + [i for pairs in set(history[-1].values()) for i in pairs.items]
        study.say(f"{protocol.name} seed {seed}", g, "measuring")
        if measure(weights, g, sets):
            alarm = min(alarm, g)
        if g > 2 and g - 1 in made and protocol.keep == "replace":
            needed = {item.name for item in (*made[1], *made[g])}  # what generation 0 made may serve them all
            study.retire([item for item in made.pop(g - 1) if item.name not in needed])
    return [item for g in made if g < study.settings.generations for item in made[g]]


def _start(study: Study, protocol: Protocol, member: Member, weights: dict) -> Weights:
    return weights[member] if protocol.start == "previous" else study.models[member.model].base


def _times(protocol: Protocol, generation: int) -> int:
    """Steps of a generation, as a multiple of the setting: what accumulates is seen as often as it would be alone."""
    sets = generation + protocol.anchored if protocol.keep == "accumulate" else 1
    return protocol.compute * sets


def prompts(study: Study, seed: int, n: int = 0, block: int = 0) -> tuple[np.ndarray, Batch]:
    """(indices, real pairs) of a chain: the same in every generation and arm (regime *fixed*: block 0). The k-th seed
    has the k-th part of the chain split, or a random draw of its own where the world is finite. n: 0 is the setting."""
    n, size = n or study.settings.pairs, study.world.size("chain")
    if size is None:
        indices = np.arange(n) + seed * 1_000_000 + block * n
    elif (block + 1) * n <= size:
        order = np.random.default_rng(seed_of("prompts", seed)).permutation(size)
        indices = np.sort(order[block * n : (block + 1) * n])
    else:
        asked = f"pairs={n}" + (f" in each of {block + 1} generations" if block else "")
        raise MMCollapseError(f"setting {asked}: the chain split of world {study.world.name!r} has only {size} pairs")
    return indices, study.world.sample("chain", indices)


def _synthesize(study, protocol: Protocol, members: list[Member], weights, seed: int, g: int, history: list) -> dict:
    """The Pairs of generation g for each member that is trained: those of all members, or without exchange its own. For
    a role that the chain has no model of, the first of the zoo makes what a base model is to make."""
    trained = [m for m in members if m.role in protocol.trains]
    others = [Member(role, name) for role in ROLES if role not in protocol.roles for name in study.zoo[role][:1]]
    if protocol.exchange:
        return dict.fromkeys(trained, _pool(study, protocol, [*members, *others], weights, seed, g, history))
    return {m: _pool(study, protocol, [m, *others], weights, seed, g, history) for m in trained}


def _pool(study, protocol: Protocol, group: list[Member], weights: dict, seed: int, g: int, history: list) -> Pairs:
    """The pairs of generation g that `group` makes, an equal share each, and the real ones among them."""
    indices, real = prompts(study, seed, protocol.pairs, g - 1 if protocol.fresh else 0)
    said = [five[0] for five in real.captions]  # one caption a picture
    before = next(iter(history[-1].values())) if protocol.prompts == "captions" and history else None
    n = len(indices)
    made, kept = protocol.parts(n)
    makers = {role: [m for m in group if m.role == role] for role in ("generator", "captioner")}
    shares = max(1, *(len(ms) for role, ms in makers.items() if role in protocol.trains))
    parts = []
    for k, rows in enumerate(np.array_split(np.arange(made), shares) if made else []):
        by = {role: ms[k % len(ms)] for role, ms in makers.items() if ms}
        asked = Asked.of([said[i] for i in rows]) if before is None else Asked.captions(before, rows)
        parts.append(_make(study, protocol, by, weights, take(real, rows), indices[rows], asked, seed, g))
    if kept:
        if protocol.real_fresh:
            real = prompts(study, seed, n, g)[1]
        parts.append(real_pairs(take(real, np.arange(n - kept, n))))
    return join(parts)


def _make(study, protocol, by: dict, weights: dict, real: Batch, indices, said: Asked, seed, g) -> Pairs:
    """One share: pictures, then captions. by: who makes it, by role."""
    pairs = real_pairs(real)
    if protocol.pictures != "real":
        # pictures that no training changes are the same every generation, noise and all
        at = g - 1 if protocol.pictures == "previous" or protocol.prompts == "captions" else 0
        pairs = _pictures(study, protocol, by["generator"], weights, real, indices, said, seed, at)
    if protocol.captions in ("previous", "base"):
        at = g - 1 if "previous" in (protocol.captions, protocol.pictures) or protocol.prompts == "captions" else 0
        pairs = _captions(study, protocol, by["captioner"], weights, pairs, indices, seed, at)
    elif protocol.captions != "given":
        pairs = _told(study, protocol, pairs, indices, seed, g)
    return pairs


def _maker(study, member: Member, whose: str, weights: dict) -> Weights:
    return weights[member] if whose == "previous" else study.models[member.model].base


def _pictures(study, protocol, member, weights, real, indices, said: Asked, seed, at) -> Pairs:
    """Pictures of the prompts `said`, whose noise is that of generation `at`."""
    makers, model = _maker(study, member, protocol.pictures, weights), study.models[member.model]
    decoding = study.image_decoding(protocol.decoding)
    keys = [("data", seed, at, member.role, int(i)) for i in indices]
    inputs = {"makers": makers.digest, "prompts": digest_of([said.name, keys]), "decoding": vars(decoding)}
    inputs |= {"seed": [seed, at, member.role], "computing": study.computing()}

    def make(folder):
        texts = said.open()
        images = model.hold(makers).make(texts, decoding, keys, study.settings.compute_batch)
        return {"digest": save_pairs(folder, images, texts, {"key": real.keys}), "n": len(texts)}

    item = study.store.make("pairs", inputs, make)
    return Pairs(item.digest, lambda: load_pairs(item.files())[:2], real, (item,), decoding.passes() * len(keys))


def _captions(study, protocol, member, weights, pairs: Pairs, indices, seed, at) -> Pairs:
    """Captions of the pictures of `pairs`, whose noise is that of generation `at`."""
    makers, model = _maker(study, member, protocol.captions, weights), study.models[member.model]
    decoding = study.caption_decoding(member.model, protocol.drift, at, protocol.decoding)
    keys = [("data", seed, at, member.role, int(i)) for i in indices]
    inputs = {"makers": makers.digest, "of": pairs.digest, "keys": digest_of(keys), "decoding": vars(decoding)}
    inputs |= {"seed": [seed, at, member.role], "computing": study.computing()}

    def make(folder):
        images, _ = pairs.open()
        texts = model.hold(makers).make(images, decoding, keys, study.settings.compute_batch)
        # one pass a token and beam, the end token's included, and one of the picture
        spent = sum(1 + decoding.beams * (len(ids) + 1) for ids in model.adapter.words(texts))
        digest = save_pairs(folder, images, texts, {"key": pairs.real.keys})
        return {"digest": digest, "n": len(texts), "passes": spent}

    item = study.store.make("pairs", inputs, make)
    passes = pairs.passes + item.facts["passes"]
    return Pairs(item.digest, lambda: load_pairs(item.files())[:2], pairs.real, (*pairs.items, item), passes)


def _told(study, protocol, pairs: Pairs, indices, seed: int, g: int) -> Pairs:
    """Captions of what the oracle sees in the pictures, through the grammar of the world; for "noised" damaged like the
    training captions of the arm `noise_like` at this generation."""
    from mmcollapse.metrics.truth import damage
    from mmcollapse.worlds.grammar import CAPTION_UNIFORMS, write

    errors = {}
    if protocol.captions == "noised" and (errors := study.errors.get((protocol.noise_like, seed, g))) is None:
        raise MMCollapseError(f"arm {protocol.noise_like!r}, whose errors are copied, has no generation {g}")
    keys = digest_of([int(i) for i in indices])
    inputs = {"of": pairs.digest, "makers": study.oracle.digest, "errors": digest_of(errors), "keys": keys}
    inputs |= {"seed": [seed, g, "oracle"], "computing": study.computing()}

    def make(folder):
        images, _ = pairs.open()
        texts = []
        for i, scene in zip(indices, study.oracle.read(images).scenes, strict=True):
            random = np.random.default_rng(seed_of("oracle", seed, g, int(i)))
            texts.append(write(damage(scene, errors, random), random.random(CAPTION_UNIFORMS)))
        return {"digest": save_pairs(folder, images, texts, {"key": pairs.real.keys}), "n": len(texts)}

    item = study.store.make("pairs", inputs, make)
    return Pairs(item.digest, lambda: load_pairs(item.files())[:2], pairs.real, (*pairs.items, item), pairs.passes)


def errors_of(study: Study, pairs: Pairs) -> dict[str, list[list[str]]]:
    """What the captions of `pairs` say wrongly (see truth.caption_errors); kept in the store, for the pairs themselves
    are soon given up."""
    from mmcollapse.metrics.truth import caption_errors

    inputs = {"of": pairs.digest, "metric": "caption errors", "metric version": 2, "instrument": study.oracle.digest}

    def make(folder):
        errors = caption_errors(*pairs.open(), study.oracle)
        (folder / "errors.json").write_text(json.dumps(errors, indent=1) + "\n")
        return {"digest": digest_of(errors)}

    return json.loads((study.store.make("scores", inputs, make).files() / "errors.json").read_text())


def _training_sets(study, protocol: Protocol, history: list[dict], seed: int, g: int) -> dict[Member, Pairs]:
    """What each member is trained on at generation g: the pairs of this generation, or of all so far."""
    if protocol.keep == "replace":
        return history[-1]
    real = [real_pairs(prompts(study, seed, protocol.pairs)[1])] if protocol.anchored else []
    sets = {m: join([*real, *(made[m] for made in history)]) for m in history[-1]}
    if protocol.keep == "accumulate":
        return sets
    return {m: _subsample(pairs, len(history[-1][m].real.keys), (seed, g)) for m, pairs in sets.items()}


def _subsample(pairs: Pairs, n: int, key: tuple) -> Pairs:
    import torch

    order = torch.randperm(len(pairs.real.keys), generator=generator("subsample", *key))
    return choose(pairs, order[:n].sort().values.numpy())


# ---- pairs


def take(batch: Batch, rows: np.ndarray) -> Batch:
    """The rows of a batch of real pairs."""
    scenes = [batch.scenes[i] for i in rows] if batch.scenes else None
    return Batch(batch.images[rows], [batch.captions[i] for i in rows], scenes, [batch.keys[i] for i in rows])


def real_pairs(real: Batch) -> Pairs:
    """Real pictures with the first of their captions."""
    captions = [five[0] for five in real.captions]
    digest = digest_arrays({"images": real.images, "captions": np.array(captions)})
    return Pairs(digest, lambda: (real.images, captions), real)


def join(parts: list[Pairs]) -> Pairs:
    """All of them, in order."""
    if len(parts) == 1:
        return parts[0]
    reals = [p.real for p in parts]
    scenes = [s for r in reals for s in r.scenes] if reals[0].scenes else None
    real = Batch(
        np.concatenate([r.images for r in reals]),
        [c for r in reals for c in r.captions],
        scenes,
        [k for r in reals for k in r.keys],
    )

    def both():
        opened = [p.open() for p in parts]
        return np.concatenate([images for images, _ in opened]), [c for _, captions in opened for c in captions]

    items = tuple(item for p in parts for item in p.items)
    return Pairs(digest_of([p.digest for p in parts]), both, real, items, sum(p.passes for p in parts))


def choose(pairs: Pairs, rows: np.ndarray) -> Pairs:
    """Some rows of `pairs`."""

    def some():
        images, captions = pairs.open()
        return images[rows], [captions[i] for i in rows]

    digest = digest_of([pairs.digest, rows.tolist()])
    return Pairs(digest, some, take(pairs.real, rows), pairs.items, pairs.passes)


def finetune(
    study: Study,
    member: Member,
    start: Weights,
    pairs: Pairs,
    seed: int,
    generation: int,
    times: int = 1,
    rate: float = 1.0,
    student: int = -1,
) -> Weights:
    """Train `start` on `pairs` with fresh optimiser state, `times` the steps and `rate` times the learning rate of the
    settings; the trainable weights go to the store in float32. student: number of a fresh base model that is trained
    only to see how robust they are."""
    recipe, model = study.recipe(member.role, times, rate), study.models[member.model]
    # clones and students have batches and noise of their own
    own = ([f"clone {member.copy}"] if member.copy else []) + ([f"student {student}"] if student >= 0 else [])
    inputs = {
        "parent": start.digest,
        "pairs": pairs.digest,
        "recipe": vars(recipe),
        "seed": [seed, generation, member.role, *own],
        "device": study.device,
    }

    def make(folder):
        from safetensors.torch import save_file

        images, captions = pairs.open()  # first: pruned pairs are made again with the same adapter
        adapter, began = model.hold(start), time.monotonic()
        model.holds = ""  # whatever happens in training, the adapter no longer holds `start`
        data = adapter.encode(images, captions)
        key = ("finetune", member.role, seed, generation, *own)
        values = list(model.parameters.values())
        ways = {"recorded": model.recorded, "network": adapter.network, "at_once": model.at_once, "size": adapter.size}
        losses = train(adapter.loss, values, data, adapter.draw, recipe, key, **ways)
        state = {name: p.detach().float().cpu().contiguous() for name, p in model.parameters.items()}
        save_file(state, folder / "weights.safetensors")
        digest = digest_arrays({name: t.numpy() for name, t in state.items()})
        pace = recipe.steps * recipe.batch / (time.monotonic() - began)
        return {"digest": digest, "losses": losses, "n": len(captions), "pictures a second": round(pace, 1)}

    item = study.store.make("weights", inputs, make)
    return Weights(item.digest, item)
