"""The recursion: a model makes data, is trained on it, and makes the next.

generation 0 is the base model
for g = 1 .. G:
    pairs  = synthesize(makers of generation g-1, or generation 0, or nobody: real data)
    model  = finetune(previous model, pairs)
    measure(model)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmcollapse.digests import digest_arrays
from mmcollapse.errors import MMCollapseError
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.protocol import Protocol, drifting
from mmcollapse.randomness import seed_of
from mmcollapse.settings import Settings
from mmcollapse.store import Item, Store, load_pairs, save_pairs
from mmcollapse.train import Recipe, train
from mmcollapse.worlds import Batch


@dataclass(frozen=True)
class Weights:
    """Weights of one model: the base model's (item None) or a fine-tuned generation's. digest: of their content."""

    digest: str
    item: Item | None = None


@dataclass(frozen=True)
class Pairs:
    """Training pairs. digest: of pictures and captions; open: () -> (images (n, size, size, 3) uint8, captions)."""

    digest: str
    open: Callable[[], tuple[np.ndarray, list[str]]]
    item: Item | None = None  # None: real data


class Model:
    """An adapter (see models) that can hold the weights of any generation."""

    def __init__(self, adapter, settings: Settings):
        self.adapter = adapter
        adapter.prepare(settings.method, settings.rank)
        self.parameters = adapter.trainable()
        self.initial = {name: p.detach().clone() for name, p in self.parameters.items()}
        method = settings.method + (str(settings.rank) if settings.method == "lora" else "")
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
    """What all chains of a run share. say: called with (chain, generation, stage) before each stage, for progress."""

    settings: Settings
    store: Store
    world: object
    models: dict[str, Model]  # by role
    device: str
    say: Callable[[str, int, str], None] = lambda chain, generation, stage: None

    def recipe(self, role: str) -> Recipe:
        s = self.settings
        lr = {"generator": s.lr_generator, "captioner": s.lr_captioner}[role]
        return Recipe(s.steps, s.batch, lr, s.warmup, method=s.method, rank=s.rank, dtype=s.dtype)

    def computing(self) -> dict:
        """What results depend on beside their inputs in name: devices never mix within a chain."""
        return {"device": self.device, "dtype": self.settings.dtype, "batch": self.settings.compute_batch}

    def retire(self, items: list[Item]):
        """Give up files that nothing needs any more, as the settings allow; their manifests stay."""
        for item in items:
            if self.settings.keep_weights == "last":
                self.store.prune(item)

    def image_decoding(self) -> ImageDecoding:
        return ImageDecoding(self.settings.data_steps, self.settings.data_guidance)

    def caption_decoding(self, drift: tuple[str, ...], generation: int) -> CaptionDecoding:
        """Ancestral sampling at temperature 1, with the settings named in `drift` as the public schedule has them."""
        captioner = self.models["captioner"].adapter
        words = len(captioner.tokenizer)
        return drifting(generation, drift, words, self.world.references_length(), captioner.max_tokens)


def run_chain(study: Study, protocol: Protocol, seed: int, measure: Callable[[Weights, int], None]) -> list[Item]:
    """One arm, one seed: generations 0..G, each measured. Finished work is found in the store and not done again.
    Returns what was made for generation 1, which other arms share; of the rest only the last generation is kept."""
    base, real = study.models[protocol.role].base, prompts(study, seed)
    chain, weights, made = f"{protocol.role} {protocol.arm} seed {seed}", base, {}
    for g in range(study.settings.generations + 1):
        if g > 0 and protocol.data != "none":
            study.say(chain, g, "making data")
            pairs = synthesize(study, protocol, real, weights, seed, g)
            study.say(chain, g, "fine-tuning")
            weights = finetune(study, protocol, weights if protocol.start == "previous" else base, pairs, seed, g)
            made[g] = [weights.item] + ([pairs.item] if pairs.item else [])
        study.say(chain, g, "measuring")
        measure(weights, g)
        if g > 2 and g - 1 in made:
            study.retire(made.pop(g - 1))
    return made.get(1, []) if study.settings.generations > 1 else []


def prompts(study: Study, seed: int) -> tuple[np.ndarray, Batch]:
    """(indices, real pairs) of a chain: the same in every generation and arm (regime *fixed*). The k-th seed has the
    k-th block of the chain split, or a random draw of its own where the world is finite."""
    n, size = study.settings.pairs, study.world.size("chain")
    if size is None:
        indices = np.arange(n) + seed * 1_000_000
    elif n <= size:
        indices = np.sort(np.random.default_rng(seed_of("prompts", seed)).permutation(size)[:n])
    else:
        raise MMCollapseError(f"setting pairs={n}: the chain split of world {study.world.name!r} has only {size} pairs")
    return indices, study.world.sample("chain", indices)


def synthesize(study: Study, protocol: Protocol, prompts, weights: Weights, seed: int, generation: int) -> Pairs:
    """The training pairs of a generation: pictures of real prompts, captions of real pictures, or the real pairs."""
    indices, real = prompts
    captions = [five[0] for five in real.captions]  # one caption a picture
    if protocol.data == "real":
        return Pairs(_real_digest(real.images, captions), lambda: (real.images, captions))
    model = study.models[protocol.role]
    makers, by = (weights, generation - 1) if protocol.makers == "previous" else (model.base, 0)
    decoding = study.image_decoding() if protocol.role == "generator" else study.caption_decoding(protocol.drift, by)
    keys = [("data", seed, by, protocol.role, int(i)) for i in indices]
    inputs = {
        "makers": makers.digest,
        "from": _real_digest(real.images, captions),
        "decoding": vars(decoding),
        "seed": [seed, by, protocol.role],
        "computing": study.computing(),
    }

    def make(folder):
        adapter, batch = model.hold(makers), study.settings.compute_batch
        if protocol.role == "generator":
            images, texts = adapter.make(captions, decoding, keys, batch), captions
        else:
            images, texts = real.images, adapter.make(real.images, decoding, keys, batch)
        return {"digest": save_pairs(folder, images, texts, {"key": real.keys}), "n": len(texts)}

    item = study.store.make("pairs", inputs, make)
    return Pairs(item.digest, lambda: load_pairs(item.files())[:2], item)


def _real_digest(images: np.ndarray, captions: list[str]) -> str:
    return digest_arrays({"images": images, "captions": np.array(captions)})


def finetune(study: Study, protocol: Protocol, start: Weights, pairs: Pairs, seed: int, generation: int) -> Weights:
    """Train `start` on `pairs` with fresh optimiser state; the trainable weights go to the store in float32."""
    recipe, model = study.recipe(protocol.role), study.models[protocol.role]
    inputs = {
        "parent": start.digest,
        "pairs": pairs.digest,
        "recipe": vars(recipe),
        "seed": [seed, generation, protocol.role],
        "device": study.device,
    }

    def make(folder):
        from safetensors.torch import save_file

        images, captions = pairs.open()  # first: pruned pairs are made again with the same adapter
        adapter, began = model.hold(start), time.monotonic()
        model.holds = ""  # whatever happens in training, the adapter no longer holds `start`
        data = adapter.encode(images, captions)
        key = ("finetune", protocol.role, seed, generation)
        losses = train(adapter.loss, list(model.parameters.values()), data, adapter.draw, recipe, key)
        state = {name: p.detach().float().cpu().contiguous() for name, p in model.parameters.items()}
        save_file(state, folder / "weights.safetensors")
        digest = digest_arrays({name: t.numpy() for name, t in state.items()})
        pace = recipe.steps * recipe.batch / (time.monotonic() - began)
        return {"digest": digest, "losses": losses, "n": len(captions), "pictures a second": round(pace, 1)}

    item = study.store.make("weights", inputs, make)
    return Weights(item.digest, item)
