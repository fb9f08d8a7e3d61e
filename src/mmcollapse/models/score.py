"""Scores the base models on the test split and writes their model cards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mmcollapse.metrics.truth import captions_right, pictures_right
from mmcollapse.models import load
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.judge import Judge
from mmcollapse.models.oracle import Oracle

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
            settings = [(10, 3.0)] if name != "seen" else [(10, 3.0), (10, 1.0), (10, 2.0), (8, 1.0), (20, 3.0), (50, 3.0)]
            for steps, guidance in settings:
                made = g.make(prompts, ImageDecoding(steps, guidance), [("score", i) for i in range(n)], batch=512)
                label = f"{name}: " if (steps, guidance) == (10, 3.0) else f"{name}, {steps} steps, guidance {guidance:g}: "
                pictures(made, name, label, out["generator"])
                if (models / "judge").is_dir() and (steps, guidance) == (10, 3.0):
                    judge = Judge(models / "judge", device)
                    real, fake = judge.images(world.sample(SUBSETS[name], np.arange(n, 2 * n)).images), judge.images(made)
                    from mmcollapse.metrics.images import frechet, kid

                    if n >= 10 * real.shape[1]:
                        out["generator"][f"{name}: FID in judge features"] = frechet(real, fake)
                    out["generator"][f"{name}: KID in judge features"] = kid(real, fake)
    if (models / "captioner").is_dir():
        from mmcollapse.metrics.captions import bleu4

        out["captioner"] = {}
        c = load(models / "captioner", device, dtype)
        for name, batch in sets.items():
            written = c.make(batch.images, CaptionDecoding(), [("score", i) for i in range(n)], batch=500)
            right = captions_right(written, batch.scenes)
            two = np.array([len(s.things) == 2 for s in batch.scenes])
            out["captioner"][f"{name}: all right"] = right.mean()
            out["captioner"][f"{name}: two things"] = right[two].mean()
            out["captioner"][f"{name}: BLEU-4"] = bleu4(written, batch.captions)
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
    return {model: {k: float(v) for k, v in values.items()} for model, values in out.items()}


def write_scores(world, models: Path, device: str, n: int = 1000, dtype: str = "float32") -> dict:
    """Score, and keep the result as scores.json beside the models."""
    scores = score(world, models, device, n, dtype)
    (models / "scores.json").write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n")
    return scores
