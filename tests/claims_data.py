"""Result tables of every experiment that claims are judged from, drawn from formulas."""

import numpy as np

from mmcollapse.table import to_table

ENDS = {  # by modality: metric, measurement, space, level, change a generation at pace 1, noise
    "image": [
        ("all_right", "guidance 1", "oracle", 0.8, -0.05, 0.004),
        ("nuisance_ratio", "guidance 1", "oracle", 0.9, -0.06, 0.004),
    ],
    "text": [
        ("all_right", "greedy", "parser", 0.9, -0.06, 0.004),
        ("caption_variance", "sampled", "judge", 1.8, 0.0, 0.004),
    ],
}
MODELS = {"image": ["generator", "generator-b", "generator-c"], "text": ["captioner", "captioner-b", "captioner-c"]}
PACES = {
    "02_decoding_budget": {
        "image": {"recursive": 1, "real": 0.1, "gen0": 0.4, "steps-2": 1.6, "steps-2-gen0": 0.5, "steps-50": 0.6}
        | {
            "steps-50-gen0": 0.3,
            "guidance-1": 1.5,
            "guidance-1-gen0": 0.5,
            "guidance-10": 1.2,
            "guidance-10-gen0": 0.4,
        },
        "text": {"recursive": 1, "real": 0.1, "gen0": 0.4, "beams-1": 1.5, "beams-1-gen0": 0.4, "beams-5": 0.5}
        | {"beams-5-gen0": 0.3, "temperature-1": 1, "temperature-1-gen0": 0.4},
    },
    "03_diversity": {
        m: {
            "alone": 1,
            "real": 0.1,
            "gen0": 0.4,
            "pool-3": 0.3,
            "clones-3": 1,
            "frozen-pool-3": 0.2,
            "alone-compute-3": 1,
        }
        for m in ("image", "text")
    },
    "04_relabeling": {
        m: {
            "joint": 1.5,
            "frozen-captioner": 0.3,
            "frozen-generator": 0.3,
            "original": 0.9,
            "oracle": 0.2,
            "noised": 0.5,
        }
        | {"real": 0.1, "gen0": 0.4}
        for m in ("image", "text")
    },
    "06_remedies": {
        m: {"recursive": 1, "real": 0.1, "gen0": 0.4, "accumulate": 0.1, "real-25%": 0.9} for m in ("image", "text")
    },
}


def models_of(experiment: str, arm: str, modality: str) -> list[str]:
    names = MODELS[modality]
    if experiment != "03_diversity":
        return names[:1]
    if arm.startswith("clones"):
        return [names[0], f"{names[0]} clone 2", f"{names[0]} clone 3"]
    return names[:1] if arm.startswith("alone-compute") else names


def table(experiment: str, seeds=range(5), generations=4, noise=1.0, students=True, claims=""):
    """A table of one experiment, whose chains lose by PACES."""
    rows = []

    def add(arm, seed, g, model, modality, end, value, measurement=None, subset="test"):
        row = {"experiment": experiment, "arm": arm, "seed": seed, "generation": g, "model": model, "claims": claims}
        row |= {"modality": modality, "measurement": measurement or end[1], "subset": subset, "metric": end[0]}
        rows.append(
            row | {"space": end[2], "value": value, "n": 500, "hash": f"{model[:3]}-{experiment}-{arm}-{seed}-{g}"}
        )

    for modality, arms in PACES[experiment].items():
        for (arm, pace), seed in ((a, s) for a in arms.items() for s in seeds):
            random = np.random.default_rng([seed, *arm.encode(), *modality.encode()])
            for model in models_of(experiment, arm, modality):
                for end in ENDS[modality]:
                    for g in range(generations + 1):
                        add(
                            arm,
                            seed,
                            g,
                            model,
                            modality,
                            end,
                            end[3] + end[4] * pace * g + noise * end[5] * random.normal(),
                        )
            for g in range(1, generations + 1) if students else ():
                quality = pace * g + 0.05 * random.normal()
                if modality == "image":
                    add(arm, seed, g, "set", modality, ("fid", "", "judge"), 2 + quality, "data", "chain")
                    add(arm, seed, g, "set", modality, ("kid", "", "judge"), 0.1 + quality, "data", "chain")
                else:
                    add(arm, seed, g, "set", modality, ("bleu4", "", "words"), 0.5 - 0.1 * quality, "data", "chain")
                end = ENDS[modality][0]
                add(arm, seed, g, "student 0", modality, end, end[3] - 0.03 * pace * g + 0.002 * random.normal())
    return to_table(rows)


def tables(**options):
    """All of them but 01_variance."""
    return {name: table(name, **options) for name in PACES}
