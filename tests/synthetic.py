"""A result table, and pictures and captions, as the variance experiment makes them, but drawn from formulas: what
statistics, claims and figures are tested on. Collapse in it is known, and needs no model."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmcollapse.digests import digest_of
from mmcollapse.experiments import arms_of
from mmcollapse.pairs import FILE, save_pairs
from mmcollapse.protocol import ROLES
from mmcollapse.settings import load_settings
from mmcollapse.table import COLUMNS, to_table, write_table
from mmcollapse.worlds.grammar import write
from mmcollapse.worlds.scenes import Scenes

EXPERIMENT = "01_variance"
GENERATORS = ("recursive", "real", "gen0")
CAPTIONERS = (*GENERATORS, "recursive-drift", "gen0-drift", "frozen-drift", "frozen-length", "frozen-temperature")
PACE = {"recursive": 1.0, "real": 0.08, "gen0": 0.35, "recursive-drift": 1.25, "gen0-drift": 0.5}  # loss a generation
# Repeats of recursive, real and gen0 by role: "fresh" is the arms recursive-fresh, real-fresh, ...; factor on the loss.
REPEATS = {
    "generator": {
        "fresh": 0.9,
        "restart": 0.5,
        "lr-half": 0.6,
        "lr-double": 1.5,
        "generator-2": 0.8,
        "generator-pixart": 1.2,
    },
    "captioner": {
        "fresh": 0.9,
        "restart": 0.5,
        "lr-half": 0.6,
        "lr-double": 1.5,
        "captioner-2": 0.7,
        "captioner-blip": 0.8,
    },
}

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


def table(
    seeds=(0, 1, 2),
    generations=4,
    arms=None,
    guidance="guidance 3",
    truth=True,
    n=2000,
    pairs=500,
    noise=1.0,
    repeats=False,
):
    """A tidy result table of every arm (or of `arms`) and metric. truth=False: as in world photos, where the metrics
    against the truth are NaN with a reason. noise: factor on the spread between seeds. repeats: with REPEATS."""
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
        if arm not in PACE:
            plain, _, kind = arm.partition("-")
            return trained(plain, metric, g) * next(some[kind] for some in REPEATS.values() if kind in some)
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
        for role, kind in [(role, kind) for role, kinds in REPEATS.items() for kind in kinds] if repeats else ():
            for arm in GENERATORS[: 2 if kind == "restart" else 3]:
                for measurement in ("guidance 1", guidance) if role == "generator" else ("sampled", "greedy"):
                    modality, metrics = ("image", IMAGES) if role == "generator" else ("text", TEXTS)
                    chain(f"{arm}-{kind}", seed, modality, measurement, metrics, trained)
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
    columns = [name for name in COLUMNS if name not in ("model", "claims")]
    frame = to_table([dict(zip(columns, row, strict=True)) for row in rows])
    frame["model"] = frame.modality.map({"image": "generator", "text": "captioner"}).where(frame.seed >= 0, "")
    for role in ROLES:  # a repeat on another base model is of that model
        other = frame.arm.str.extract(rf"^(?:recursive|real|gen0)-({role}-.+)$")[0]
        frame["model"] = other.where(other.notna(), frame.model)
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


# ---- the other experiments

# arm, as a pattern: loss a generation, in units of the plain recursive arm
PACES = {
    r"recursive|alone|joint": 1.0,
    r"real|gen0": 0.0,
    r"(steps|guidance|beams|temperature|length)-.*-gen0": 0.3,
    r"steps-(.*)": lambda v: 1.6 - 0.3 * np.log(v),
    r"guidance-(.*)": lambda v: 0.7 + 0.5 * (np.log(v) - 0.9) ** 2,
    r"(?:beams|length)-(.*)": lambda v: 1.1 - 0.15 * np.log(v),
    r"temperature-(.*)": lambda v: 0.6 + 0.4 * v,
    r"(?:pool|seeds)-(\d+).*": lambda m: 1.0 - 0.12 * m,
    r"(frozen-pool|clones|alone-compute)-.*": 0.85,
    r"frozen-.*|oracle.*": 0.5,
    r"original|noised.*": 0.7,
    r"joint-closed": 1.4,
    r"real-(\d+)%.*": lambda v: 1.0 - 0.009 * v,
    r"accumulate.*|subsample": 0.3,
    r"N-.*-(real|gen0)": 0.1,
    r"always|total-.*": 0.4,
    r"on-alarm.*": 0.5,
    r"late-(\d+)": lambda k: 0.3 + 0.07 * k,
    r"apart|recursive-drift": 1.0,
    r"gen0-drift": 0.3,
    r"(real|gen0)-apart": 0.1,
    r"N-(\d+)": lambda n: 1.5 - 0.12 * np.log(n),
}
SETS = {
    "image": ("all_right", "tail_coverage", "kid", "fid", "variance", "vendi", "density", "recall", "P", "spectrum"),
    "text": ("all_right", "tail_coverage", "bleu4", "cider", "caption_variance", "vocabulary", "P", "perplexity"),
}
MEASURED = {
    ("image", "guidance 1"): ("all_right", "nuisance_ratio", "variance", "tail_coverage"),
    ("text", "greedy"): ("all_right", "bleu4"),
    ("text", "sampled"): ("caption_variance", "tail_coverage"),
}


def _pace(arm: str) -> float:
    arm = re.sub(
        r"^(recursive|gen0|subsample|real.*)-(generator|captioner)-.+", r"\1", arm
    )  # a repeat on another base model
    for pattern, pace in PACES.items():
        if found := re.fullmatch(pattern, arm):
            return pace(float(found.group(1))) if callable(pace) else pace
    return 0.6  # an arm that nobody has given one


def protocols(experiment: str, grid: str = "full", profile: str = "study"):
    """The arms of an experiment, as a profile has them."""
    return arms_of(experiment, replace(load_settings(profile, experiment), grid=grid))


def study(experiment: str, seeds=(0, 1, 2, 3, 4), generations=3, grid="full", profile="study", lacks=()):
    """A result table of an experiment other than 01, of its own arms, models, training sets and students, with the
    metrics that its figures show. lacks: arms and metrics left out."""
    settings = load_settings(profile, experiment)
    zoo = {role: tuple(getattr(settings, f"{role}s").split(",")) for role in ROLES}
    rows = []

    def add(arm, seed, g, modality, model, measurement, metric, space, value, n=500):
        subset = "chain" if model == "set" else "test"
        name = f"{'set' if model == 'set' else 'pairs'}-{digest_of([arm, seed, g, modality, model])[:20]}"
        chain = (experiment, arm, seed, g, model, modality, measurement, subset, metric, space)
        rows.append((*chain, float(value), "", n, name, ""))

    def values(arm, seed, modality, model, measurement, metric, pace, kinds):
        start, change, spread, kind, space = kinds[metric]
        rng = np.random.default_rng([seed, *f"{arm} {modality} {model} {measurement} {metric}".encode()])
        for g in range(generations + 1):
            if model != "set" or g:
                by = 0.5 * change * pace * g + (0.4 * spread * rng.standard_normal() if g else 0.0)
                add(arm, seed, g, modality, model, measurement, metric, space, _move(start, by, kind))

    for p in protocols(experiment, grid, profile):
        for seed in seeds if p.arm not in lacks else ():
            several = {role: [m for m in p.members(zoo) if m.role == role] for role in ROLES}
            for role, modality in zip(ROLES, ("image", "text"), strict=True):
                kinds = IMAGES if modality == "image" else TEXTS
                models = [(m.label, 0.1 * k) for k, m in enumerate(several[role])]
                models += [("pool", -0.3)] if len(models) > 1 else []
                pace = _pace(p.arm) if role in p.trains else 0.0
                for (of, measurement), metrics in MEASURED.items():
                    for metric in metrics if of == modality else ():
                        for model, more in models:
                            if metric not in lacks and (model != "pool" or measurement != "greedy"):
                                values(p.arm, seed, modality, model, measurement, metric, pace + more, kinds)
                if role not in p.trains:
                    continue
                for metric in (m for m in SETS[modality] if m not in lacks):
                    values(p.arm, seed, modality, "set", "data", metric, pace, kinds)
                for g in range(1, generations + 1):
                    decoding = {"steps": 10, "guidance": 3, "beams": 1, "max_tokens": 12} | dict(p.decoding)
                    passes = decoding["steps"] * (1 + (decoding["guidance"] > 1))
                    if modality == "text":
                        passes = decoding["beams"] * decoding["max_tokens"]
                    passes = 0 if "real" in p.arm else passes
                    add(p.arm, seed, g, modality, "set", "data", "passes", "cost", passes)
                    measurement = "guidance 1" if modality == "image" else "greedy"
                    right = 0.8 - 0.1 * pace * g + 0.01 * np.random.default_rng([seed, g, *p.arm.encode()]).normal()
                    space = "oracle" if modality == "image" else "parser"
                    add(p.arm, seed, g, modality, "student 0", measurement, "all_right", space, right)
    for (modality, measurement), metrics in MEASURED.items():
        for metric in metrics:
            space = (IMAGES if modality == "image" else TEXTS)[metric][-1]
            for k in range(3):
                value = WORLD.get(metric, (IMAGES if modality == "image" else TEXTS)[metric][0] * 1.05) * (1 - 0.01 * k)
                add("world", -1 - k, 0, modality, "", measurement, metric, space, value)
    return to_table([dict(zip(COLUMNS, row, strict=True)) for row in rows])


def study_samples(folder: Path, experiment: str, generations=3, count=4, grid="full", profile="study") -> Path:
    """Write the samples of an experiment: pictures at guidance 1 and training pairs of every arm with a generator."""
    real, zoo = Scenes().sample("test", np.arange(count)), load_settings(profile, experiment).generators.split(",")
    truth, images, captions, columns = [five[0] for five in real.captions], [], [], []
    for p in protocols(experiment, grid, profile):
        if "generator" not in p.trains:
            continue
        models = [m.label for m in p.members({"generator": tuple(zoo), "captioner": ("captioner",)})]
        for g, model, i in itertools.product(range(generations + 1), dict.fromkeys([*models, "set"]), range(count)):
            if model.startswith("captioner") or (model == "set" and g == 0):
                continue
            lost, rng = min(1.0, _pace(p.arm) * g / 4), np.random.default_rng([i, g, *model.encode()])
            said = write(Scenes().sample("chain", [i + g]).scenes[0] if lost > 0.3 else real.scenes[i], rng.random(16))
            images.append(_worse(real.images[i], lost, rng))
            captions.append(said if model == "set" else truth[i])
            columns.append((p.arm, model, "image", 0, g, "data" if model == "set" else "guidance 1", i, truth[i]))
    for i in range(count):
        images.append(real.images[i])
        captions.append(truth[i])
        columns.append(("world", "", "image", -1, 0, "", i, truth[i]))
    names = ("arm", "model", "modality", "seed", "generation", "measurement", "index", "prompt")
    save_pairs(folder, images, captions, {k: [row[j] for row in columns] for j, k in enumerate(names)})
    return (Path(folder) / FILE).rename(Path(folder) / f"{experiment}.samples.parquet")


def study_results(folder: Path, experiment: str, with_samples: bool = True, **options) -> Path:
    """The table, the samples and the provenance of an experiment, as a run leaves them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frame = study(experiment, **options)
    write_table(frame, folder / f"{experiment}.parquet")
    (folder / f"{experiment}.json").write_text(json.dumps({"settings": {"profile": "synthetic", "world": "scenes"}}))
    if with_samples:
        more = {k: v for k, v in options.items() if k in ("grid", "profile")}
        study_samples(folder, experiment, int(frame.generation.max()), **more)
    return folder
