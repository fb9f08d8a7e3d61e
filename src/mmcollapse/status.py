"""What is done and what is missing, from settings, result tables and the manifests of the store."""

from __future__ import annotations

import json
from pathlib import Path

from mmcollapse.experiments import arms_of, seeds_of
from mmcollapse.figures import FIGURES
from mmcollapse.settings import Settings, as_dict
from mmcollapse.store import KINDS, Store
from mmcollapse.table import progress_path, read_table

ALL_ENDINGS = (".parquet", ".samples.parquet", ".json", ".ipynb")
# they read the others' tables
ENDINGS = {"05_quality_robustness": (".parquet", ".ipynb"), "07_claims": (".parquet", ".md", ".ipynb")}
ENDINGS |= {"09_human": (".parquet", ".ipynb")}


def status(settings: dict[str, Settings]) -> str:
    """The state of experiments as text: arms x seeds x generations in the table, how far chains are that are not in it
    yet, and the files. settings: by experiment."""
    lines = []
    for name, s in settings.items():
        if not lines:
            store = Store(s.runs_folder)
            items = store.items() if Path(store.root).is_dir() else []
            counts = ", ".join(f"{sum(i.kind == kind for i in items):,} {kind}" for kind in KINDS)
            lines += [f"profile {s.profile}; store {store.root}: {counts}"]
        protocols = arms_of(name, s)
        seeds = {p: seeds_of(name, p, s) for p in protocols}
        many = sorted({*map(len, seeds.values())})
        counts = " to ".join(map(str, dict.fromkeys(many[:1] + many[-1:])))
        plan = f"{counts} seed{'s' * (counts != '1')}, generations 0-{s.generations}"
        lines += ["", name + (f": {plan}" if protocols else ""), *_files(name, s), *_other_settings(name, s)]
        path, progress = s.results_folder / f"{name}.parquet", progress_path(s.results_folder, name)
        table = read_table(path) if path.is_file() and protocols else None
        reached = json.loads(progress.read_text()) if progress.is_file() and items else {}
        all_done = _made(name, s)[0].is_file()
        for p in protocols:
            have = set()
            if table is not None:
                rows = table[(table.arm == p.arm) & (table.modality == p.modalities[0])]
                have = set(zip(rows.seed, rows.generation, strict=True))
            total = (s.generations + 1) * len(seeds[p])
            lacks = [(k, g) for k in seeds[p] for g in range(s.generations + 1) if (k, g) not in have]
            line = f"  {p.name:<44} in the table {total - len(lacks):>3} of {total}"
            if lacks:
                all_done = False
                done = sum(min(reached.get(f"{p.name} seed {k}", -1), s.generations) + 1 for k in seeds[p])
                line += f", measured in the store {done:>3}; missing: seed {lacks[0][0]} generation {lacks[0][1]}"
                line += " and later" * (len(lacks) > 1)
            lines.append(line)
        lines.append("  complete" if all_done else "  to make what is missing: make reproduce, with the same variables")
    return "\n".join(lines)


def _made(name: str, settings: Settings) -> list[Path]:
    return [settings.results_folder / f"{name}{ending}" for ending in ENDINGS.get(name, ALL_ENDINGS)]


def _files(name: str, settings: Settings) -> list[str]:
    lines = [f"  {'there  ' if path.is_file() else 'missing'} {path}" for path in _made(name, settings)]
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
    aside |= {"world", "keep_weights", "keep_pictures", "train_batch", "checkpointing", "workers", "scheduler"}
    other = [f"{k} {then[k]} (now {now[k]})" for k in now if k not in aside and k in then and then[k] != now[k]]
    return [f"  the table was made with other settings: {', '.join(other)}"] if other else []
