"""Builds the base models, the judges and the oracle from a world: `make pretrain`.

Stages, in order: tokenizer, vae, oracle, judge, judge-2, language, the generators (see pretrain_generators) and the
captioners (see pretrain_captioners), of which generator-3, captioner-3 and so on are made only when asked for by name;
several stages may run at once, as processes of their own. Each writes a folder in the
`save_pretrained` layout of its library (half precision, safetensors) and a line to log.jsonl every 100 steps; a stage
whose folder exists is skipped, one that was cut off continues from its checkpoint. Components are stored once: the
pipeline folders point to them by relative symbolic links.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.locks import working_on
from mmcollapse.train import Recipe, train
from mmcollapse.worlds.grammar import CAPTION_UNIFORMS, confusions, write

LATENTS, FACTOR = 16, 8  # latent channels; 64 pixels become 8x8
NEGATIVES = 2  # wrong captions kept ready for a picture
WIDTH = 128  # of text encoder and judge


@dataclass(frozen=True)
class Scale:
    """pictures: how many of a split are used at most (all of them in a finite world); tokens: longest caption;
    vocabulary: tokens of the BPE at most; the recipes of the stages; mirror: also train on mirrored pictures, where
    the world is small and its captions do not say left and right; zoo_generators: the stages of generators beside the
    first that are made without being asked for, and their recipes."""

    pictures: int
    tokens: int
    vocabulary: int
    vae: Recipe
    oracle: Recipe
    judge: Recipe
    language: Recipe
    generator: Recipe
    captioner: Recipe
    mirror: bool = False
    zoo_generators: dict[str, Recipe] = field(default_factory=dict)


def _recipe(steps: int, batch: int, lr: float, warmup: int = 500) -> Recipe:
    return Recipe(steps, batch, lr, warmup, "cosine", dtype="bfloat16", betas=(0.9, 0.99))


SCALES = {
    "scenes": Scale(
        pictures=120_000,
        tokens=24,
        vocabulary=1000,
        vae=_recipe(5_000, 128, 1e-3),
        oracle=_recipe(9_000, 512, 1e-3),
        judge=_recipe(4_000, 768, 1e-3),
        language=_recipe(2_500, 128, 2e-3),
        generator=_recipe(16_000, 256, 1e-3),
        captioner=_recipe(15_000, 512, 1e-3),
        zoo_generators={
            "generator-2": _recipe(16_000, 256, 1e-3),
            "generator-v": _recipe(16_000, 256, 1e-3),
            "generator-sdxl": _recipe(16_000, 256, 1e-3),
            "generator-pixart": _recipe(24_000, 256, 1e-3),
            "generator-sd3": _recipe(24_000, 256, 1e-3),
        },
    ),
    # 1,000 photos cannot make a good model; they prove the path.
    "photos": Scale(
        pictures=100_000,
        tokens=32,
        vocabulary=2000,
        vae=_recipe(4_000, 64, 1e-3),
        oracle=_recipe(0, 0, 0),
        judge=_recipe(1_500, 128, 5e-4),
        language=_recipe(600, 64, 1e-3, warmup=50),
        generator=_recipe(4_000, 128, 5e-4),
        captioner=_recipe(1_500, 128, 5e-4),
        mirror=True,
    ),
}


def tiny(scale: Scale) -> Scale:
    """The same stages in seconds, for tests: a few steps on a few pictures."""

    def short(recipe: Recipe) -> Recipe:
        return replace(recipe, steps=min(recipe.steps, 6), batch=8, warmup=2, dtype="float32")

    return replace(each_recipe(scale, short), pictures=64)


def each_recipe(scale: Scale, change) -> Scale:
    """`scale` with all its recipes as `change`, a function of one, makes them."""
    recipes = {name: change(value) for name, value in vars(scale).items() if isinstance(value, Recipe)}
    zoo = {name: change(value) for name, value in scale.zoo_generators.items()}
    return replace(scale, **recipes, zoo_generators=zoo)


def pretrain(world, out: Path, scale: Scale, device: str, stages: list[str] | None = None, seed: int = 0):
    """Run the stages that are missing under `out`. seed: of initialisation, data order and noise; a stage whose name
    ends in -2, -3, ... is the same architecture from another initialisation and in another order."""
    from mmcollapse.models.pretrain_captioners import CAPTIONERS, ZOO
    from mmcollapse.models.pretrain_generators import GENERATORS

    done = {
        "tokenizer": _tokenizer,
        "vae": _vae,
        "oracle": _oracle,
        "judge": _judge,
        "judge-2": _judge,
        "language": _language,
        **GENERATORS,
        **CAPTIONERS,
    }
    usual = {"generator", *scale.zoo_generators, "captioner"}
    if getattr(world, "truth", False):
        usual |= {*ZOO}
    else:
        del done["oracle"]  # nothing is known that it could read
    usual = [name for name in done if name in usual or name not in GENERATORS | CAPTIONERS]
    for name in stages or usual:
        if name not in done:
            raise MMCollapseError(f"no stage {name!r} in this world; stages are {', '.join(done)}")
        if (out / name).is_dir():
            print(f"{name}: there already, {out / name}", flush=True)
            continue
        start = time.monotonic()
        number = re.search(r"-(\d+)$", name)
        torch.manual_seed(seed + (int(number[1]) - 1 if number else 0))
        folder = out / f".{name}.part"
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(world, out, folder, name, scale, device, seed)
        done[name](run)
        _wait()  # until nobody reads or writes there
        if not _rank():
            folder.rename(out / name)
            print(f"{name}: made in {time.monotonic() - start:.0f} s", flush=True)
        _wait()  # until the next stage finds it


def _rank() -> int:
    """Number of this process where several GPUs train one model (`torch.distributed`); only 0 writes files."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _wait():
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


@dataclass
class Run:
    """What a stage needs to know, and the helpers that all of them use."""

    world: object
    out: Path
    folder: Path
    name: str
    scale: Scale
    device: str
    seed: int

    def data(self, split: str) -> tuple[torch.Tensor, torch.Tensor, list, np.ndarray | None]:
        """(images (n, 64, 64, 3) uint8 on the device, caption ids (n, 5, tokens) on the device, scenes, nuisance)."""
        images, captions, scenes, nuisance = corpus(self.world, split, self.scale.pictures, self.out / ".cache")
        path = self.out / ".cache" / f"{split}-{len(images)}" / "ids.npy"
        if not path.is_file():
            _save(path, self.ids([c for five in captions for c in five]).numpy())
        ids = torch.from_numpy(np.load(path)).view(len(captions), -1, self.scale.tokens)
        images = torch.from_numpy(images).to(self.device)
        if self.scale.mirror:
            images, ids = torch.cat([images, images.flip(2)]), torch.cat([ids, ids])
        return images, ids.to(self.device), scenes, nuisance

    def negatives(self, scenes: list) -> torch.Tensor:
        """Caption ids (n, NEGATIVES, tokens) of scenes that are easily confused with `scenes`, those of the judge's
        split. Of two things most have them exchanged (about two in three), which is the hardest to see."""
        path = self.out / ".cache" / f"judge-{len(scenes)}" / f"negatives-{self.seed}.npy"
        if not path.is_file():
            random = np.random.default_rng(self.seed)
            captions = []
            for scene in scenes:
                others = list(confusions(scene).values())
                for k in random.integers(len(others), size=NEGATIVES) * (random.random(NEGATIVES) < 0.5):
                    captions.append(write(others[k], random.random(CAPTION_UNIFORMS)))
            _save(path, self.ids(captions).numpy())
        return torch.from_numpy(np.load(path)).view(len(scenes), NEGATIVES, -1).to(self.device)

    def tokenizer(self):
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.out / "tokenizer", local_files_only=True)

    def ids(self, captions: list[str]) -> torch.Tensor:
        """Token ids (n, tokens), padded and cut as the tokenizer would. No token of CLIP's crosses white space, so each
        word is tokenized once: 600,000 captions take seconds instead of a minute."""
        tokenizer = self.tokenizer()
        words = {word for caption in captions for word in caption.split()}
        table = {word: tokenizer(word, add_special_tokens=False).input_ids for word in words}
        out = np.full((len(captions), self.scale.tokens), tokenizer.pad_token_id)
        for row, caption in zip(out, captions, strict=True):
            found = [i for word in caption.split() for i in table[word]][: self.scale.tokens - 2]
            row[: len(found) + 2] = [tokenizer.bos_token_id, *found, tokenizer.eos_token_id]
        return torch.from_numpy(out)

    def train(self, loss, parameters, data, draw, recipe: Recipe, average=None):
        start = time.monotonic()

        def log(step: int, value: float):
            if _rank():
                return
            line = {"stage": self.name, "step": step, "loss": value, "seconds": round(time.monotonic() - start, 1)}
            with open(self.out / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
            if step % 1000 == 0 or step == recipe.steps:
                left = line["seconds"] / step * (recipe.steps - step)
                print(f"{self.name}: step {step}/{recipe.steps} loss {value:.4f}, {left:.0f} s to go", flush=True)

        train(
            *(loss, parameters, data, draw, recipe, ("pretrain", self.name, self.seed)),
            average=average,
            gpu_noise=True,
            on_step=log,
            every=100,
            checkpoint=self.folder / "checkpoint.pt",
        )

    def shared(self, name: str) -> Path:
        """The folder of a component that another stage made."""
        if not (self.out / name).is_dir():
            raise MMCollapseError(f"the stage {self.name} needs {self.out / name}: make the stages before it first")
        return self.out / name

    def link(self, name: str, target: str):
        if _rank():
            return
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).symlink_to(target)

    def link_tokenizer(self):
        """Replace the tokenizer files that a processor saved by links to the shared ones."""
        for path in (self.out / "tokenizer").iterdir():
            self.link(path.name, f"../tokenizer/{path.name}")


def corpus(world, split: str, n: int, cache: Path):
    """(images (n, 64, 64, 3) uint8, captions, scenes or None, nuisance or None) of a split, drawn by all cores and kept
    on disk for the other stages, which may be other processes."""
    n = min(n, world.size(split) or n)
    path = cache / f"{split}-{n}"
    with working_on(f"{split}-{n}.lock", cache):
        if not (path / "done").is_file():
            _fill(path, world, split, n)
    captions, scenes, nuisance = pickle.loads((path / "rest.pickle").read_bytes())
    return np.load(path / "images.npy"), captions, scenes, nuisance


def _fill(path: Path, world, split: str, n: int):
    path.mkdir(parents=True, exist_ok=True)
    chunks = np.array_split(np.arange(n), max(1, n // 2000))
    workers = min(os.cpu_count() or 1, 24, len(chunks))
    if workers > 1 and n > 10_000:
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(_draw, [world] * len(chunks), [split] * len(chunks), chunks))
    else:
        parts = [_draw(world, split, chunk) for chunk in chunks]
    np.save(path / "images.npy", np.concatenate([p[0] for p in parts]))
    rest = [sum((p[k] for p in parts), []) if parts[0][k] is not None else None for k in (1, 2)]
    nuisance = np.concatenate([p[3] for p in parts]) if parts[0][3] is not None else None
    (path / "rest.pickle").write_bytes(pickle.dumps((*rest, nuisance)))
    (path / "done").touch()


def _save(path: Path, rows: np.ndarray):
    """Save whole or not at all, for every rank of a distributed run makes it, and reads it as soon as it is there."""
    draft = path.with_name(f"{os.getpid()}-{path.name}")
    np.save(draft, rows)
    os.replace(draft, path)


def _draw(world, split: str, indices: np.ndarray):
    batch = world.sample(split, indices)
    captions = [(five * 5)[:5] for five in batch.captions]  # fewer than five references are repeated
    nuisance = world.nuisance(split, indices) if batch.scenes is not None else None
    return batch.images, captions, batch.scenes, nuisance


def half(module: torch.nn.Module, folder: Path):
    """Save `module` (a library model) in half precision."""
    import copy

    if _rank():
        return
    copy.deepcopy(module).to("cpu", torch.float16).save_pretrained(folder, safe_serialization=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if "dtype" in config:  # half precision is how it is stored, not how it is meant to compute
        path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def _tokenizer(run: Run):
    """A CLIP tokenizer (byte-pair encoding) trained on the world's captions until every common word is one token. It
    also serves captioner and judge; <image> is the place holder of BLIP-2's queries."""
    from tokenizers import AddedToken, Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    _, captions, _, _ = corpus(run.world, "base", min(run.scale.pictures, 20_000), run.out / ".cache")
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    fresh = CLIPTokenizer()
    bpe.normalizer, bpe.pre_tokenizer = fresh.backend_tokenizer.normalizer, fresh.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=run.scale.vocabulary, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator((c for five in captions for c in five), trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],
        model_max_length=run.scale.tokens,
    )
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    tokenizer.save_pretrained(run.folder)


def _vae(run: Run):
    """KL autoencoder, 64x64x3 to 8x8x16: L1 and squared error of the pixels, a light KL term, and the L1 of horizontal
    and vertical differences, which keeps the edges of small shapes. Pictures of rare shapes and colours are shown more
    often: the autoencoder is the glass that every model looks through, and must not blur the tail by itself."""
    from diffusers import AutoencoderKL

    images, _, scenes, _ = corpus(run.world, "base", run.scale.pictures, run.out / ".cache")
    images = torch.from_numpy(images if scenes is None else images[_balanced(scenes)]).to(run.device)
    widths = (32, 48, 64, 64)
    vae = AutoencoderKL(
        *(3, 3),
        latent_channels=LATENTS,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=run.world.image_size,
    ).to(run.device, memory_format=torch.channels_last)

    def loss(batch):
        x = batch["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
        moments = vae.quant_conv(vae.encoder(x)).float()
        mean, logvar = moments.chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        y = vae.decoder(vae.post_quant_conv(mean + torch.exp(0.5 * logvar) * batch["noise"])).float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        return (y - x).abs().mean() + ((y - x) ** 2).mean() + 0.5 * edges + 2e-4 * kl

    def draw(n, g):
        size = run.world.image_size // FACTOR
        return {"noise": torch.randn((n, LATENTS, size, size), generator=g, device=g.device)}

    parameters = list(vae.parameters())
    average = [p.detach().clone() for p in parameters]
    run.train(loss, parameters, {"images": images}, draw, run.scale.vae, average)
    _put(parameters, average)
    latents = _encode(vae, images[:4096])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    half(vae, run.folder)


def _balanced(scenes: list) -> np.ndarray:
    """Indices (n,) of `scenes`, drawn by the rarer pair in each: the commonest shape or colour comes 5 times as
    often as the rarest, instead of 11 and 14 times."""
    shapes, colours = (np.bincount([t[k] for s in scenes for t in s.things], minlength=10) for k in (0, 1))
    rarity = [max(1 / np.sqrt(shapes[t.shape] * colours[t.colour]) for t in s.things) for s in scenes]
    return np.random.default_rng(0).choice(len(scenes), len(scenes), p=np.array(rarity) / np.sum(rarity))


@torch.no_grad()
def _put(parameters, values):
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


@torch.no_grad()
def _encode(vae, images: torch.Tensor) -> torch.Tensor:
    """Posterior means (n, c, h, w) of pictures (n, size, size, 3) uint8, not scaled."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        parts = [vae.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean for x in images.split(1024)]
    return torch.cat(parts).float()


def _heads(run: Run, scenes: list | None, data: dict, width: int = WIDTH) -> torch.nn.ModuleDict:
    """Linear heads that tell the attributes of a scene from `width` features; their targets are added to `data`. No
    heads where the truth is not known."""
    from mmcollapse.models.oracle import CLASSES, attributes

    if scenes is None:
        return torch.nn.ModuleDict()
    data |= {name: torch.from_numpy(v).to(run.device) for name, v in attributes(scenes).items()}
    return torch.nn.ModuleDict({name: torch.nn.Linear(width, n) for name, n in CLASSES.items()}).to(run.device)


def _telling(heads: torch.nn.ModuleDict, features: torch.Tensor, batch: dict, where: torch.Tensor | None = None):
    """Mean cross-entropy of what `heads` tell from `features` (n, width), of the samples in `where` (n,)."""
    total = features.new_zeros(())
    for name, head in heads.items():
        target = batch[name] if where is None else torch.where(where, batch[name], -1)
        told = torch.nn.functional.cross_entropy(head(features).float(), target, ignore_index=-1, reduction="sum")
        total = total + told / (target >= 0).sum().clamp(min=1) / len(heads)  # a small batch may have no second thing
    return total


def _clip_text_config(run: Run, tokenizer, layers: int, width: int = WIDTH):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=run.scale.tokens,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _image_settings(size: int) -> dict:
    half_ = [0.5, 0.5, 0.5]
    return {"image_mean": half_, "image_std": half_, "size": {"height": size, "width": size}}


def _judge(run: Run):
    """CLIP, contrastive (Radford et al. 2021), on the judge's own split, which holds every attribute pair. Against the
    captions of the other pictures of a batch a bag of words would do; so every picture also stands against a caption of
    a scene easily confused with it (hard negatives, as in NegCLIP, Yuksekgonul et al. 2023), and both towers also learn
    to tell the scene, where its truth is known."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPVisionConfig

    tokenizer = run.tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=run.world.image_size,
        patch_size=8,
        projection_dim=64,
    )
    text = _clip_text_config(run, tokenizer, layers=3)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    model = CLIPModel(config).to(run.device)
    images, ids, scenes, _ = run.data("judge")
    data = {"images": images, "ids": ids}
    see, read = _heads(run, scenes, data), _heads(run, scenes, data)
    if scenes is not None:
        data["wrong"] = run.negatives(scenes)

    def texts(ids, which):
        one = ids.gather(1, which[:, None, None].expand(-1, 1, ids.shape[2]))[:, 0]
        return model.text_model(input_ids=one).pooler_output

    def unit(features):
        return torch.nn.functional.normalize(features.float(), dim=1)

    def loss(batch):
        pixels = batch["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
        pooled, words = model.vision_model(pixel_values=pixels).pooler_output, texts(batch["ids"], batch["which"])
        seen, scale = unit(model.visual_projection(pooled)), model.logit_scale.exp().clamp(max=100)
        logits = scale * seen @ unit(model.text_projection(words)).T
        rows = logits
        if "wrong" in batch:
            wrong = unit(model.text_projection(texts(batch["wrong"], batch["which"] % NEGATIVES)))
            rows = torch.cat([logits, scale * (seen * wrong).sum(1, keepdim=True)], 1)
        target = torch.arange(len(logits), device=logits.device)
        contrast = 0.5 * sum(torch.nn.functional.cross_entropy(v, target) for v in (rows, logits.T))
        return contrast + _telling(see, pooled, batch) + _telling(read, words, batch)

    def draw(n, g):
        return {"which": torch.randint(5, (n,), generator=g, device=g.device)}

    parameters = [*model.parameters(), *see.parameters(), *read.parameters()]
    average = [p.detach().clone() for p in parameters]
    run.train(loss, parameters, data, draw, run.scale.judge, average)
    _put(parameters, average)
    half(model, run.folder)
    eye = CLIPImageProcessor(**_image_settings(run.world.image_size), do_center_crop=False)
    CLIPProcessor(eye, tokenizer).save_pretrained(run.folder)
    run.link_tokenizer()


def _language(run: Run):
    """Next-token cross-entropy on captions of the judge's split, a random one of a picture's at each step: the frozen
    language model whose perplexity says how expected a caption is."""
    from transformers import GPT2Config, GPT2LMHeadModel

    _, captions, _, _ = corpus(run.world, "judge", run.scale.pictures, run.out / ".cache")
    tokenizer = run.tokenizer()
    rows = run.ids([c for five in captions for c in five]).view(len(captions), -1, run.scale.tokens).to(run.device)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=96,
        n_layer=3,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).to(run.device)
    end = tokenizer.eos_token_id

    def loss(batch):
        one = batch["ids"].gather(1, batch["which"][:, None, None].expand(-1, 1, rows.shape[2]))[:, 0]
        # A caption may stand anywhere in the context, so that long ones are no surprise by their places alone.
        places = batch["shift"][:, None] + torch.arange(one.shape[1], device=one.device)
        logits = model(input_ids=one, position_ids=places).logits[:, :-1]
        target = one[:, 1:].clone()
        after = (one[:, :-1] == end).cumsum(1) > 0  # padding repeats the end token, which is learned once
        return torch.nn.functional.cross_entropy(logits[~after].float(), target[~after])

    def draw(n, g):
        on = {"generator": g, "device": g.device}
        shift = torch.randint(64 - rows.shape[2] + 1, (n,), **on) * (torch.rand(n, **on) < 0.5)
        return {"which": torch.randint(rows.shape[1], (n,), **on), "shift": shift}

    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    run.train(loss, parameters, {"ids": rows}, draw, run.scale.language, average)
    _put(parameters, average)
    half(model.eval(), run.folder)
    run.link_tokenizer()


# Share of an oracle batch that is no scene (two pictures mixed): there it learns to be sure of nothing.
P_MIXED = 0.125


def _oracle(run: Run):
    """Cross-entropy of every attribute and squared error of the nuisance factors, on pictures with mild noise, blur and
    contrast changes, so that small flaws of a model's picture do not hide what it shows; then the threshold of
    abstention: one half, or as much more as leaves 99% of 2,000 fresh mixtures of two pictures below it."""
    from safetensors.torch import save_file

    from mmcollapse.models.oracle import CLASSES, OracleNet, read, targets

    images, _, scenes, nuisance = run.data("judge")
    net = OracleNet().to(run.device, memory_format=torch.channels_last)
    rows = {k: torch.from_numpy(v).to(run.device) for k, v in targets(scenes, nuisance).items()}

    def loss(batch):
        x = batch["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
        n = len(x)
        mixed = int(n * P_MIXED)
        blur = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.lerp(x, blur, 0.8 * batch["blur"][:, None, None, None])
        x = x * (0.85 + 0.3 * batch["contrast"])[:, None, None, None]
        x = x + 0.08 * batch["strength"][:, None, None, None] * batch["noise"]
        x = torch.cat([0.5 * (x[:mixed] + x.flip(0)[:mixed]), x[mixed:]])
        logits, factors = net(x)
        total = 0.0
        for name in CLASSES:
            logp = logits[name].log_softmax(1)
            target = batch[name][mixed:]
            picked = logp[mixed:].gather(1, target.clamp(min=0)[:, None])[:, 0]
            known = target >= 0
            total = total - (picked * known).sum() / known.sum().clamp(min=1)
            total = total - 0.2 * logp[:mixed].mean()  # towards the uniform distribution
        want = batch["nuisance"][mixed:]
        there = ~want.isnan()
        error = torch.where(there, factors[mixed:] - want.nan_to_num(), 0.0) ** 2
        return total + error.sum() / there.sum().clamp(min=1)

    def draw(n, g):
        on = {"generator": g, "device": g.device}
        shape = (n, 3, run.world.image_size, run.world.image_size)
        return {k: torch.rand(n, **on) for k in ("blur", "contrast", "strength")} | {"noise": torch.randn(shape, **on)}

    parameters = list(net.parameters())
    average = [p.detach().clone() for p in parameters]
    run.train(loss, parameters, rows | {"images": images}, draw, run.scale.oracle, average)
    _put(parameters, average)
    net.half().float()  # what will be loaded
    fresh = run.world.sample("judge", np.arange(10_000_000, 10_004_000)).images
    mixed = ((fresh[:2000].astype(np.uint16) + fresh[2000:]) // 2).astype(np.uint8)
    unsure = read(net.eval(), mixed, 0.0, run.device).confidence
    config = {"widths": [48, 96, 128], "hidden": 256, "threshold": round(max(0.5, float(np.quantile(unsure, 0.99))), 6)}
    (run.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in net.state_dict().items()}
    save_file(state, run.folder / "model.safetensors")
