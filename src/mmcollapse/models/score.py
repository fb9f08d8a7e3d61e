"""Scores the base models on the test split and writes their model cards."""

from __future__ import annotations

import json
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
    if (models / "generator").is_dir():
        out["vae"], out["generator"] = {}, {}
        g = load(models / "generator", device, dtype)
        for name, batch in sets.items():
            prompts = [five[0] for five in batch.captions]
            latents = g.encode(batch.images, prompts)["latents"]
            again = np.concatenate([g.decode(part) for part in latents.split(256)])
            pictures(again, name, f"{name}: ", out["vae"])
            others = [(10, 1.0), (10, 2.0), (8, 1.0), (20, 3.0), (50, 3.0)] if name == "seen" else []
            for steps, guidance in [DEFAULT, *others]:
                made = g.make(prompts, ImageDecoding(steps, guidance), [("score", i) for i in range(n)], batch=512)
                default = (steps, guidance) == DEFAULT
                label = f"{name}: " if default else f"{name}, {steps} steps, guidance {guidance:g}: "
                pictures(made, name, label, out["generator"])
                if (models / "judge").is_dir() and default:
                    judge = Judge(models / "judge", device)
                    real = judge.images(world.sample(SUBSETS[name], np.arange(n, 2 * n)).images)
                    fake = judge.images(made)
                    if n >= 10 * real.shape[1]:
                        out["generator"][f"{name}: FID in judge features"] = frechet(real, fake)
                    out["generator"][f"{name}: KID in judge features"] = kid(real, fake)
    if (models / "captioner").is_dir():
        out["captioner"] = {}
        c = load(models / "captioner", device, dtype)
        for name, batch in sets.items():
            written = c.make(batch.images, CaptionDecoding(), [("score", i) for i in range(n)], batch=500)
            right = captions_right(written, batch.scenes)
            two = np.array([len(s.things) == 2 for s in batch.scenes])
            out["captioner"][f"{name}: all right"] = right.mean()
            out["captioner"][f"{name}: two things"] = right[two].mean()
            out["captioner"][f"{name}: BLEU-4"] = bleu4(written, batch.captions)
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
    "captioner": (
        "Captioner: image to text, BLIP-2 (vision tower, Q-Former with 16 queries, OPT decoder)",
        """from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

model = Blip2ForConditionalGeneration.from_pretrained("{folder}", dtype="float32")
processor = Blip2Processor.from_pretrained("{folder}")
ids = model.generate(**processor(images=Image.open("picture.png"), return_tensors="pt"), max_new_tokens=28)
processor.batch_decode(ids, skip_special_tokens=True)""",
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


NOTES = "## Notes"


def write_cards(models: Path, scores: dict, world: str):
    """A README.md in each model's folder: what it is, the command that made it, its scores, how to open it. What a
    person wrote below NOTES in an older card stays."""
    from safetensors import safe_open

    for name, (what, snippet) in CARDS.items():
        folder = models / name
        if not folder.is_dir():
            continue
        parameters = 0
        for path in folder.rglob("*.safetensors"):
            with safe_open(path, "np") as file:
                parameters += sum(int(np.prod(file.get_slice(k).get_shape())) for k in file.keys())
        size = f"{parameters / 1e6:.2f} M parameters, stored in half precision"
        lines = [f"# {what}", "", f"{size}, trained on the world `{world}`."]
        lines += [f"Made by `make pretrain WORLD={world}`; scored by the same command ({scores['settings']})."]
        rows = scores.get(name, {})
        if rows:
            lines += ["", "| measured on the test split | |", "|---|---|"]
            lines += [f"| {k} | {v:.4g} |" for k, v in rows.items()]
        if snippet:
            lines += ["", "```python", snippet.format(folder=f"data/models/{world}/{name}"), "```"]
        card = folder / "README.md"
        if card.is_file() and NOTES in (old := card.read_text()):
            lines += ["", NOTES + old.split(NOTES, 1)[1].rstrip()]
        card.write_text("\n".join(lines) + "\n")


def write_scores(world, models: Path, device: str, n: int = 1000, dtype: str = "float32") -> dict:
    """Score, keep the result as scores.json beside the models, and write their cards. Without known truth there are
    cards only."""
    scores: dict = {
        "settings": f"n = {n} a subset, {dtype}; rates in 0-1; generator at 10 steps, guidance 3 if not said"
    }
    if world.truth:
        scores |= score(world, models, device, n, dtype)
    else:
        scores["settings"] = "not scored: the truth of this world is not known"
    (models / "scores.json").write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n")
    write_cards(models, scores, world.name)
    return scores
