"""What is done and what is missing, from settings, result tables and the manifests of the store."""

from __future__ import annotations

import json
from pathlib import Path

from mmcollapse.figures import FIGURES
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.protocol import Protocol, arms_of
from mmcollapse.settings import Settings, as_dict
from mmcollapse.store import KINDS, Store
from mmcollapse.table import read_table


def status(settings: Settings, experiments: list[str]) -> str:
    """The state of `experiments` as text: arms x seeds x generations in the table and in the store, and the files."""
    store = Store(settings.runs_folder)
    made = Made(store, settings)
    counts = ", ".join(f"{sum(i.kind == kind for i in made.items):,} {kind}" for kind in KINDS)
    seeds = list(range(settings.first_seed, settings.first_seed + settings.seeds))
    plan = f"{settings.seeds} seed{'s' * (settings.seeds > 1)}, generations 0-{settings.generations}"
    lines = [f"profile {settings.profile}: {plan}; store {store.root}: {counts}"]
    for name in experiments:
        lines += ["", name, *_files(name, settings), *_other_settings(name, settings)]
        path = settings.results_folder / f"{name}.parquet"
        table = read_table(path) if path.is_file() else None
        total, all_done = (settings.generations + 1) * len(seeds), True
        for p in arms_of(name, settings.arms):
            have = set()
            if table is not None:
                rows = table[(table.arm == p.arm) & (table.modality == p.modality)]
                have = set(zip(rows.seed, rows.generation, strict=True))
            lacks = [(s, g) for s in seeds for g in range(settings.generations + 1) if (s, g) not in have]
            line = f"  {p.role + ' ' + p.arm:<30} in the table {total - len(lacks):>3} of {total}"
            if p.data != "none":
                trained = sum(made.generations(p, seed) for seed in seeds)
                line += f", trained in the store {trained:>3} of {settings.generations * len(seeds)}"
            if lacks:
                all_done = False
                line += f"; missing: seed {lacks[0][0]} generation {lacks[0][1]}" + " and later" * (len(lacks) > 1)
            lines.append(line)
        lines.append("  complete" if all_done else "  to make what is missing: make reproduce, with the same variables")
    return "\n".join(lines)


def _files(name: str, settings: Settings) -> list[str]:
    files = [
        settings.results_folder / f"{name}{ending}" for ending in (".parquet", ".samples.parquet", ".json", ".ipynb")
    ]
    lines = [f"  {'there  ' if path.is_file() else 'missing'} {path}" for path in files]
    drawn = [settings.figures_folder / f"{name}_{figure}.png" for figure in FIGURES.get(name, {})]
    return [*lines, f"  {sum(p.is_file() for p in drawn)} of {len(drawn)} figures in {settings.figures_folder}"]


def _other_settings(name: str, settings: Settings) -> list[str]:
    """A line if the table was made with other settings than are asked for now."""
    path, now = settings.results_folder / f"{name}.json", as_dict(settings)
    if not path.is_file():
        return []
    then = json.loads(path.read_text())["settings"]
    # Where things lie, and how much is kept, changes no number.
    aside = {
        "data",
        "models",
        "instruments",
        "arms",
        "seeds",
        "first_seed",
        "generations",
        "runs",
        "results",
        "figures",
        "device",
    }
    aside |= {"world", "keep_weights", "keep_pictures"}
    other = [f"{k} {then[k]} (now {now[k]})" for k in now if k not in aside and k in then and then[k] != now[k]]
    return [f"  the table was made with other settings: {', '.join(other)}"] if other else []


class Made:
    """What a store has of chains with these settings. Names in it know no arm: arms are told by their data."""

    def __init__(self, store: Store, settings: Settings):
        self.settings = settings
        self.items = store.items() if Path(store.root).is_dir() else []
        self.pairs = {item.digest: item for item in self.items if item.kind == "pairs" and "seed" in item.inputs}
        self.weights: dict[tuple, list] = {}
        for item in self.items:
            if item.kind == "weights":
                self.weights.setdefault(tuple(item.inputs["seed"]), []).append(item)

    def generations(self, protocol: Protocol, seed: int) -> int:
        """Up to which generation a chain is trained."""
        parents = None
        for g in range(1, self.settings.generations + 1):
            found = [w for w in self.weights.get((seed, g, protocol.role), []) if self._fits(w, protocol, seed, g)]
            if parents is not None and protocol.start == "previous":
                found = [w for w in found if w.inputs["parent"] in parents]
            if not found:
                return g - 1
            parents = {w.digest for w in found}
        return self.settings.generations

    def _fits(self, weights, protocol: Protocol, seed: int, generation: int) -> bool:
        s, recipe = self.settings, weights.inputs["recipe"]
        wanted = {"steps": s.steps, "batch": s.batch, "warmup": s.warmup, "method": s.method, "dtype": s.dtype}
        wanted |= {"lr": s.lr_generator if protocol.role == "generator" else s.lr_captioner}
        if any(recipe[k] != v for k, v in wanted.items()) or weights.facts["n"] != s.pairs:
            return False
        pairs = self.pairs.get(weights.inputs["pairs"])
        if protocol.data == "real" or pairs is None:
            return protocol.data == "real" and pairs is None
        by = generation - 1 if protocol.makers == "previous" else 0
        decoding = pairs.inputs["decoding"]
        if protocol.role == "generator":
            as_asked = decoding == {"steps": s.data_steps, "guidance": s.data_guidance}
        else:
            matched = decoding == vars(CaptionDecoding(temperature=1.0, max_tokens=decoding["max_tokens"]))
            as_asked = matched != bool(protocol.drift)
        return as_asked and pairs.inputs["seed"] == [seed, by, protocol.role]
