"""A result table, and pictures and captions, as the variance experiment makes them, but drawn from formulas: what
statistics, claims and figures are tested on. Collapse in it is known, and needs no model."""

import json
from pathlib import Path

import numpy as np

from mmcollapse.digests import digest_of
from mmcollapse.pairs import FILE, save_pairs
from mmcollapse.table import COLUMNS, to_table, write_table
from mmcollapse.worlds.grammar import write
from mmcollapse.worlds.scenes import Scenes

EXPERIMENT = "01_variance"
GENERATORS = ("recursive", "real", "gen0")
CAPTIONERS = (*GENERATORS, "recursive-drift", "gen0-drift", "frozen-drift", "frozen-length", "frozen-temperature")
PACE = {"recursive": 1.0, "real": 0.08, "gen0": 0.35, "recursive-drift": 1.25, "gen0-drift": 0.5}  # loss a generation

# metric: (value at generation 0, change a generation of the recursive arm, spread between seeds, kind of change, space)
IMAGES = {
    "all_right": (0.84, -0.55, 0.10, "logit", "oracle"),
    "abstains": (0.03, 0.45, 0.15, "logit", "oracle"),
    "tail_coverage": (0.82, -0.40, 0.12, "logit", "oracle"),
    "nuisance_ratio": (0.90, -0.20, 0.05, "log", "oracle"),
    "variance": (2.05, -0.05, 0.02, "log", "judge"),
    "variance_within": (0.35, -0.12, 0.04, "log", "judge"),
    "variance_between": (1.60, -0.03, 0.02, "log", "judge"),
    "kid": (0.12, 0.35, 0.08, "log", "judge"),
    "fid": (3.0, 0.35, 0.08, "log", "judge"),
    "recall": (0.80, -0.30, 0.08, "logit", "judge"),
    "coverage": (0.85, -0.35, 0.08, "logit", "judge"),
    "cell_entropy": (5.2, -0.03, 0.01, "log", "oracle"),
    "density": (0.9, -0.10, 0.03, "log", "judge"),
    "vendi": (21.0, -0.04, 0.01, "log", "judge"),
    "spectrum": (0.1, 0.10, 0.03, "log", "pixels"),
    "P": (0.30, 0.035, 0.006, "identity", "judge"),
    "W": (0.72, -0.015, 0.004, "identity", "judge"),
    "RMG": (0.29, 0.012, 0.003, "identity", "judge"),
    "L2M": (0.11, 0.008, 0.002, "identity", "judge"),
}
TEXTS = {
    "all_right": (0.93, -0.50, 0.10, "logit", "parser"),
    "unreadable": (0.01, 0.40, 0.20, "logit", "parser"),
    "tail_coverage": (0.90, -0.35, 0.10, "logit", "parser"),
    "bleu4": (0.46, -0.012, 0.006, "identity", "words"),
    "cider": (2.2, -0.03, 0.01, "log", "words"),
    "rouge_l": (0.66, -0.01, 0.005, "identity", "words"),
    "distinct_2": (0.35, -0.10, 0.02, "logit", "words"),
    "self_bleu": (0.4, 0.10, 0.02, "logit", "words"),
    "perplexity": (3.1, 0.02, 0.01, "log", "language"),
    "length": (11.2, -0.02, 0.006, "log", "words"),
    "vocabulary": (58.0, -0.05, 0.01, "log", "words"),
    "caption_variance": (1.82, -0.03, 0.01, "log", "judge"),
    "caption_vendi": (24.0, -0.03, 0.01, "log", "judge"),
    "caption_variance_equal_length": (1.68, -0.03, 0.01, "log", "judge"),
    "P": (0.28, 0.012, 0.003, "identity", "judge"),
    "W": (0.72, -0.010, 0.003, "identity", "judge"),
    "RMG": (0.28, 0.010, 0.002, "identity", "judge"),
    "L2M": (0.10, 0.006, 0.002, "identity", "judge"),
}
WORLD = {
    "all_right": 1.0,
    "abstains": 0.004,
    "unreadable": 0.0,
    "tail_coverage": 1.0,
    "nuisance_ratio": 1.0,
    "kid": 0.0,
}


def _move(start: float, by: float, kind: str) -> float:
    if kind == "log":
        return start * np.exp(by)
    if kind == "logit":
        return 1 / (1 + np.exp(-(np.log(start / (1 - start)) + by)))
    return start + by


def table(seeds=(0, 1, 2), generations=4, arms=None, guidance="guidance 3", truth=True, n=2000, pairs=500, noise=1.0):
    """A tidy result table of every arm (or of `arms`) and metric. truth=False: as in world photos, where the metrics
    against the truth are NaN with a reason. noise: factor on the spread between seeds."""
    rows = []

    def add(arm, seed, g, modality, measurement, metric, space, value):
        why = "world photos has no known truth" if not truth and space in ("oracle", "parser") else ""
        value = np.nan if why else float(value)
        name = f"pairs-{digest_of([arm, seed, g, modality])[:20]}"
        rows.append((EXPERIMENT, arm, seed, g, modality, measurement, "test", metric, space, value, why, n, name))

    def chain(arm, seed, modality, measurement, metrics, shift):
        rng = np.random.default_rng([seed, *arm.encode(), *measurement.encode()])
        for metric, (start, change, spread, kind, space) in metrics.items():
            for g in range(generations + 1):
                by = change * shift(arm, metric, g) + (noise * spread * rng.standard_normal() if g else 0.0)
                add(arm, seed, g, modality, measurement, metric, space, _move(start, by, kind))

    def trained(arm, metric, g):
        # recursive and gen0 share generation 1; gen0 then levels off
        return PACE[arm] * g if "recursive" in arm else PACE[arm] * (1 - 0.6**g) * 3

    def drifting(arm, metric, g):
        grows = {"caption_variance": -12, "caption_variance_equal_length": -6, "length": -15}
        if "frozen" in arm:
            part = {"frozen-drift": 1.0, "frozen-length": 0.6, "frozen-temperature": 0.3}[arm]
            return part * grows.get(metric, 1) * (1 - 0.7**g)
        return trained(arm, metric, g) + grows.get(metric, 1) * (1 - 0.7**g)

    for seed in seeds:
        for arm in GENERATORS:
            for measurement in ("guidance 1", guidance):
                chain(arm, seed, "image", measurement, IMAGES, trained)
            for g in range(generations + 1):
                add(arm, seed, g, "image", "guidance 1", "sampling_floor", "", (1 - 1 / pairs) ** g)
        for arm in CAPTIONERS:
            for measurement in ("sampled", "greedy", "drifting"):
                if "frozen" in arm and measurement != "drifting":
                    continue
                seed_or_none = 0 if "frozen" in arm else seed  # a frozen captioner is the same in every seed
                before = len(rows)
                chain(arm, seed_or_none, "text", measurement, TEXTS, drifting if measurement == "drifting" else trained)
                rows[before:] = [(*r[:2], seed, *r[3:]) for r in rows[before:]]
    for modality, metrics, measurements in (
        ("image", IMAGES, ("guidance 1", guidance)),
        ("text", TEXTS, ("sampled", "greedy")),
    ):
        for measurement in measurements:
            for metric, (start, _, spread, _, space) in metrics.items():
                real = WORLD.get(metric, start * 1.05)
                for k in range(3):  # real against real, three times
                    add("world", -1 - k, 0, modality, measurement, metric, space, real * (1 - 0.1 * k * spread))
                if modality == "image":
                    add("vae", -1, 0, modality, measurement, metric, space, real * 0.99)
    frame = to_table([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    return frame if arms is None else frame[frame.arm.isin(arms)].reset_index(drop=True)


def _worse(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """A picture that fades towards its mean colour and grows noisy, by 0 (as it is) to 1."""
    mixed = image * (1 - 0.7 * amount) + image.mean((0, 1)) * 0.7 * amount + rng.normal(0, 18 * amount, image.shape)
    return mixed.clip(0, 255).astype(np.uint8)


def samples(folder: Path, seeds=(0,), generations=4, count=4, arms=GENERATORS, world=True) -> Path:
    """Write EXPERIMENT.samples.parquet: for each arm pictures of the same prompts and captions of the same pictures."""
    real = Scenes().sample("test", np.arange(count))
    truth = [five[0] for five in real.captions]
    images, captions, columns = [], [], []

    def add(image, caption, arm, modality, seed, g, measurement, index):
        images.append(image)
        captions.append(caption)
        columns.append((arm, modality, seed, g, measurement, index, truth[index]))

    for seed in seeds:
        for arm in arms:
            for g in range(generations + 1):
                lost = min(1.0, PACE[arm] * g / max(generations, 4))
                for i in range(count):
                    rng = np.random.default_rng([seed, i, g])
                    scene = real.scenes[i]._replace(background=0 if lost > 0.4 else real.scenes[i].background)
                    for k, measurement in enumerate(("guidance 1", "guidance 3")):
                        worse = _worse(real.images[i], lost / (k + 1), rng)
                        add(worse, truth[i], arm, "image", seed, g, measurement, i)
                    for measurement in ("sampled", "greedy"):
                        caption = write(scene, rng.random(16), 1 + lost)
                        add(real.images[i], caption, arm, "text", seed, g, measurement, i)
    if world:
        for i in range(count):
            add(real.images[i], truth[i], "world", "image", -1, 0, "", i)
            add(real.images[i], truth[i], "world", "text", -1, 0, "", i)
    names = ("arm", "modality", "seed", "generation", "measurement", "index", "prompt")
    save_pairs(folder, images, captions, {k: [row[j] for row in columns] for j, k in enumerate(names)})
    return (Path(folder) / FILE).rename(Path(folder) / f"{EXPERIMENT}.samples.parquet")


def results(folder: Path, with_samples: bool = True, **options) -> Path:
    """A folder of results, as a run leaves it: the table, the samples and the provenance that figures may read."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frame = table(**options)
    write_table(frame, folder / f"{EXPERIMENT}.parquet")
    (folder / f"{EXPERIMENT}.json").write_text(json.dumps({"settings": {"profile": "synthetic", "world": "scenes"}}))
    if with_samples:
        samples(folder, generations=int(frame.generation.max()))
    return folder
