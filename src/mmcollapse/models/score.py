"""Scores the base models on the test split and writes their model cards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from mmcollapse.metrics.captions import bleu4
from mmcollapse.metrics.images import frechet, kid
from mmcollapse.metrics.truth import captions_right, pictures_right
from mmcollapse.models import load
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.judge import Judge
from mmcollapse.models.language import Language
from mmcollapse.models.oracle import Oracle
from mmcollapse.worlds.grammar import CAPTION_UNIFORMS, confusions, write

DEFAULT = (10, 3.0)  # the generator's default budget: denoising steps, guidance
FEW = [(10, 1.0), (8, 1.0)]  # other budgets of every generator
MORE = [(10, 1.0), (10, 2.0), (8, 1.0), (20, 3.0), (50, 3.0)]  # and of the first
SUBSETS = {"seen": "test", "withheld": "test-withheld", "uniform": "test-uniform"}


def score(world, models: Path, device: str, n: int = 1000, dtype: str = "float32") -> dict:
    """{model: {measure: value}} of whatever lies in `models`, n pictures a subset; rates in 0-1."""
    oracle = Oracle(models / "oracle", device)
    sets = {name: world.sample(split, np.arange(n)) for name, split in SUBSETS.items()}
    out: dict[str, dict] = {"oracle": {"threshold": oracle.threshold}}

    def pictures(images, name: str, label: str, into: dict):
        reading, scenes = oracle.read(images), sets[name].scenes
        right, two = pictures_right(reading, scenes), np.array([len(s.things) == 2 for s in scenes])
        into[f"{label}all right"], into[f"{label}two things"] = right.mean(), right[two].mean()
        into[f"{label}abstains"] = reading.abstains.mean()

    for name, batch in sets.items():
        pictures(batch.images, name, f"{name}: ", out["oracle"])
    for which in named(models, "generator"):
        first, out[which] = which == "generator", {}
        g = load(models / which, device, dtype)
        for name, batch in sets.items():
            prompts = [five[0] for five in batch.captions]
            if first:
                latents = g.encode(batch.images, prompts)["latents"]
                again = np.concatenate([g.decode(part) for part in latents.split(256)])
                pictures(again, name, f"{name}: ", out.setdefault("vae", {}))
            others = (MORE if first else FEW) if name == "seen" else []
            for steps, guidance in [DEFAULT, *others]:
                made = g.make(prompts, ImageDecoding(steps, guidance), [("score", i) for i in range(n)], batch=512)
                default = (steps, guidance) == DEFAULT
                label = f"{name}: " if default else f"{name}, {steps} steps, guidance {guidance:g}: "
                pictures(made, name, label, out[which])
                if (models / "judge").is_dir() and default:
                    judge = Judge(models / "judge", device)
                    real = judge.images(world.sample(SUBSETS[name], np.arange(n, 2 * n)).images)
                    fake = judge.images(made)
                    if n >= 10 * real.shape[1]:
                        out[which][f"{name}: FID in judge features"] = frechet(real, fake)
                    out[which][f"{name}: KID in judge features"] = kid(real, fake)
    for which in named(models, "captioner"):
        out[which] = {}
        c = load(models / which, device, dtype)
        for name, batch in sets.items():
            written = c.make(batch.images, CaptionDecoding(), [("score", i) for i in range(n)], batch=500)
            right = captions_right(written, batch.scenes)
            two = np.array([len(s.things) == 2 for s in batch.scenes])
            out[which][f"{name}: all right"] = right.mean()
            out[which][f"{name}: two things"] = right[two].mean()
            out[which][f"{name}: BLEU-4"] = bleu4(written, batch.captions)
    if (models / "language").is_dir():
        language = Language(models / "language", device)
        out["language"] = {}
        for name, batch in sets.items():
            nats, tokens = language.surprise([c for five in batch.captions for c in five])
            out["language"][f"{name}: perplexity a token"] = np.exp(nats.sum() / tokens.sum())
    for which in ("judge", "judge-2"):
        if (models / which).is_dir():
            judge = Judge(models / which, device)
            out[which] = {}
            for name, batch in sets.items():
                x, y = judge.images(batch.images[:500]), judge.texts([five[0] for five in batch.captions[:500]])
                x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
                nearest = (x @ y.T).argmax(1)
                truth = [batch.scenes[i] == batch.scenes[k] for i, k in enumerate(nearest)]
                out[which][f"{name}: image to text, first of 500 right"] = np.mean(truth)
                for what, rate in told_apart(judge, batch).items():
                    out[which][f"{name}: told from {what}"] = rate
    return {model: {k: float(v) for k, v in values.items()} for model, values in out.items()}


def named(models: Path, role: str) -> list[str]:
    """The folders in `models` that hold a generator, or a captioner, the first of all first."""
    return sorted(p.name for p in models.glob(f"{role}*") if p.is_dir() and re.fullmatch(rf"{role}(-.+)?", p.name))


def told_apart(judge: Judge, batch) -> dict[str, float]:
    """{what a careless reader would confuse a scene of two things with: share of pictures nearer to their own caption},
    0.5 is chance."""
    random = np.random.default_rng(0)
    right: dict[str, list] = {}
    two = [i for i, s in enumerate(batch.scenes) if len(s.things) == 2]
    x, y = judge.images(batch.images[two]), judge.texts([batch.captions[i][0] for i in two])
    own = (x * y).sum(1) / np.linalg.norm(y, axis=1)
    rows, wrong, names = [], [], []
    for row, i in enumerate(two):
        for what, scene in confusions(batch.scenes[i]).items():
            rows.append(row)
            names.append(what)
            wrong.append(write(scene, random.random(CAPTION_UNIFORMS)))
    z = judge.texts(wrong)
    other = (x[rows] * z).sum(1) / np.linalg.norm(z, axis=1)
    for what, better in zip(names, own[rows] > other, strict=True):
        right.setdefault(what, []).append(better)
    return {what: float(np.mean(values)) for what, values in right.items()}


CARDS = {
    "vae": ("Autoencoder (diffusers AutoencoderKL), 64x64 pictures to 8x8x16 latents and back", ""),
    "generator": (
        "Generator: text to image, a Stable Diffusion pipeline (VAE, CLIP text encoder, U-Net with noise prediction)",
        """from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{folder}", safety_checker=None)
prompt = "a large red star left of a small blue ring on a black background"
pipe(prompt, num_inference_steps=10, guidance_scale=3).images[0]""",
    ),
    "generator-v": (
        "Generator: text to image, a Stable Diffusion pipeline whose U-Net predicts velocity",
        """from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{folder}", safety_checker=None)
prompt = "a large red star left of a small blue ring on a black background"
pipe(prompt, num_inference_steps=10, guidance_scale=3).images[0]""",
    ),
    "generator-sdxl": (
        "Generator: text to image, a Stable Diffusion XL pipeline (two text encoders, U-Net told the pooled text)",
        """from diffusers import StableDiffusionXLPipeline

pipe = StableDiffusionXLPipeline.from_pretrained("{folder}")
prompt = "a large red star left of a small blue ring on a black background"
pipe(prompt, num_inference_steps=10, guidance_scale=3).images[0]""",
    ),
    "generator-pixart": (
        "Generator: text to image, a PixArt-alpha pipeline (T5 text encoder, transformer with cross-attention)",
        """from diffusers import PixArtAlphaPipeline

pipe = PixArtAlphaPipeline.from_pretrained("{folder}")
prompt = "a large red star left of a small blue ring on a black background"
sizes = dict(use_resolution_binning=False, max_sequence_length=pipe.tokenizer.model_max_length)
pipe(prompt, num_inference_steps=10, guidance_scale=3, clean_caption=False, **sizes).images[0]""",
    ),
    "generator-sd3": (
        "Generator: text to image, a Stable Diffusion 3 pipeline (two-stream transformer, flow matching)",
        """from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("{folder}", text_encoder_3=None, tokenizer_3=None)
prompt = "a large red star left of a small blue ring on a black background"
# 0: no zeros in the place of the T5 tokens that it has not
pipe(prompt, num_inference_steps=10, guidance_scale=3, max_sequence_length=0).images[0]""",
    ),
    "captioner": (
        "Captioner: image to text, BLIP-2 (vision tower, Q-Former with 16 queries, OPT decoder)",
        """from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

model = Blip2ForConditionalGeneration.from_pretrained("{folder}", dtype="float32")
processor = Blip2Processor.from_pretrained("{folder}")
ids = model.generate(**processor(images=Image.open("picture.png"), return_tensors="pt"), max_new_tokens=28)
processor.batch_decode(ids, skip_special_tokens=True)""",
    ),
    "captioner-blip": (
        "Captioner: image to text, BLIP (vision tower, decoder with cross-attention)",
        """from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

model = BlipForConditionalGeneration.from_pretrained("{folder}", dtype="float32")
processor = BlipProcessor.from_pretrained("{folder}")
ids = model.generate(**processor(images=Image.open("picture.png"), return_tensors="pt"), max_new_tokens=28)
processor.batch_decode(ids, skip_special_tokens=True)""",
    ),
    "captioner-git": (
        "Captioner: image to text, GIT (one transformer over patches and words)",
        """from PIL import Image
from transformers import GitForCausalLM, GitProcessor

model = GitForCausalLM.from_pretrained("{folder}", dtype="float32")
processor = GitProcessor.from_pretrained("{folder}")
pixels = processor(images=Image.open("picture.png"), return_tensors="pt").pixel_values
processor.batch_decode(model.generate(pixel_values=pixels, max_new_tokens=28), skip_special_tokens=True)""",
    ),
    "captioner-vit-gpt2": (
        "Captioner: image to text, a ViT and a GPT-2 with cross-attention",
        """from PIL import Image
from transformers import CLIPTokenizer, VisionEncoderDecoderModel, ViTImageProcessor

model = VisionEncoderDecoderModel.from_pretrained("{folder}", dtype="float32")
eye = ViTImageProcessor.from_pretrained("{folder}")
tokenizer = CLIPTokenizer.from_pretrained("{folder}")
pixels = eye(Image.open("picture.png"), return_tensors="pt").pixel_values
tokenizer.batch_decode(model.generate(pixel_values=pixels, max_new_tokens=28), skip_special_tokens=True)""",
    ),
    "captioner-idefics": (
        "Captioner: image to text, Idefics (vision tower, LLaMA-like decoder with gated cross-attention)",
        """import torch
from PIL import Image
from transformers import CLIPTokenizer, IdeficsForVisionText2Text, IdeficsImageProcessor

model = IdeficsForVisionText2Text.from_pretrained("{folder}", dtype="float32")
eye, tokenizer = IdeficsImageProcessor.from_pretrained("{folder}"), CLIPTokenizer.from_pretrained("{folder}")
pixels = torch.as_tensor(eye(Image.open("picture.png"), return_tensors="pt")).view(1, 1, 3, 64, 64)
begin, one = torch.tensor([[tokenizer.bos_token_id]]), torch.ones(1, 1, dtype=torch.long)
words = dict(input_ids=begin, attention_mask=one, image_attention_mask=one[:, :, None])
tokenizer.batch_decode(model.generate(pixel_values=pixels, **words, max_new_tokens=28), skip_special_tokens=True)""",
    ),
    "judge": (
        "Judge: a small CLIP, trained on its own split, frozen, used only to measure",
        """from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{folder}")
processor = CLIPProcessor.from_pretrained("{folder}")""",
    ),
    "judge-2": ("Judge, second seed: an instrument check on the first", ""),
    "language": (
        "Language model: GPT-2 of the world's captions, frozen, whose perplexity says how expected a caption is",
        """from mmcollapse.models.language import Language

Language("{folder}").surprise(["a large red star left of a small blue ring on a black background"])""",
    ),
    "oracle": (
        "Oracle: reads the attributes of a scene from pixels; abstains when unsure",
        """import numpy as np
from mmcollapse.models.oracle import Oracle

Oracle("{folder}").read(np.zeros((1, 64, 64, 3), np.uint8))""",
    ),
}


SEEDS = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}


def card(name: str) -> tuple[str, str] | None:
    """(title, snippet) of a model's folder, or None where it is no model's."""
    stem, _, number = name.rpartition("-")
    if name not in CARDS and stem in CARDS and number.isdigit():
        what, snippet = CARDS[stem]
        return f"{what}, {SEEDS.get(int(number), f'{number}th')} seed", snippet
    return CARDS.get(name)


NOTES = "## Notes"


def _reading(measure: str) -> tuple:
    """The order of a card: the default budget first, and of a subset what counts most."""
    where, _, what = measure.rpartition(": ")
    subset, _, budget = where.partition(", ")
    first = ("all right", "two things", "abstains", "BLEU-4")
    return bool(budget), [*SUBSETS, subset].index(subset), budget, (*first, what).index(what), what


def write_cards(models: Path, scores: dict, world: str):
    """A README.md in each model's folder: what it is, the command that made it, its scores, how to open it. What a
    person wrote below NOTES in an older card stays."""
    from safetensors import safe_open

    for folder in sorted(path for path in models.iterdir() if path.is_dir() and card(path.name)):
        name, (what, snippet) = folder.name, card(folder.name)
        parameters = 0
        for path in folder.rglob("*.safetensors"):
            if path.is_symlink():  # counted where it lies
                continue
            with safe_open(path, "np") as file:
                parameters += sum(int(np.prod(file.get_slice(k).get_shape())) for k in file.keys())
        size = f"{parameters / 1e6:.2f} M parameters, stored in half precision"
        lines = [f"# {what}", "", f"{size}, trained on the world `{world}`."]
        lines += [f"Made by `make pretrain WORLD={world}`; scored by the same command ({scores['settings']})."]
        rows = scores.get(name, {})
        if rows:
            lines += ["", "| measured on the test split | |", "|---|---|"]
            lines += [f"| {k} | {rows[k]:.4g} |" for k in sorted(rows, key=_reading)]
        if snippet:
            lines += ["", "```python", snippet.format(folder=f"data/models/{world}/{name}"), "```"]
        file = folder / "README.md"
        if file.is_file() and NOTES in (old := file.read_text()):
            lines += ["", NOTES + old.split(NOTES, 1)[1].rstrip()]
        file.write_text("\n".join(lines) + "\n")


def write_scores(world, models: Path, device: str, n: int = 1000, dtype: str = "float32") -> dict:
    """Score, keep the result as scores.json beside the models, and write their cards. What was scored before and lies
    there no more stays in it. Without known truth there are cards only."""
    scores: dict = {
        "settings": f"n = {n} a subset, {dtype}; rates in 0-1; generator at 10 steps, guidance 3 if not said"
    }
    if world.truth:
        scores |= score(world, models, device, n, dtype)
    else:
        scores["settings"] = "not scored: the truth of this world is not known"
    path = models / "scores.json"
    scores = (json.loads(path.read_text()) if path.is_file() else {}) | scores
    path.write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n")
    write_cards(models, scores, world.name)
    return scores
