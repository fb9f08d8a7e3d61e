"""Chains that earlier runs have finished, taken over from their tables: a study is run in pieces, wherever there is
time on a GPU, and a store is too large to travel."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from mmcollapse.alarms import VERSION as ALARMS_VERSION
from mmcollapse.claims import frozen_digests
from mmcollapse.experiments import EXPERIMENTS
from mmcollapse.loop import Study
from mmcollapse.measure import GROUPS
from mmcollapse.pairs import FILE, load_pairs
from mmcollapse.protocol import ROLES, Protocol, of_json
from mmcollapse.settings import Settings, as_dict
from mmcollapse.store import KINDS
from mmcollapse.table import COLUMNS, is_student, read_table

# Settings that change what a chain gives, whatever the experiment.
DECIDING = ("world", "generations", "pairs", "steps", "batch", "lr_generator", "lr_captioner", "warmup", "method")
DECIDING += ("rank", "data_steps", "data_guidance", "measure_steps", "default_guidance", "prompts", "noises", "probes")
DECIDING += ("captions", "spaces", "students", "student_generations", "student_seeds", "first_seed", "dtype")
DECIDING += ("image_size", "lora_generator", "lora_captioner")
EMPTY = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})


def semantics() -> dict[str, int]:
    """The versions of what things in the store and groups of metrics mean."""
    return KINDS | {f"metric {name}": version for name, version in GROUPS.items()} | {"alarms": ALARMS_VERSION}


@dataclass
class Earlier:
    """table: rows of the chains that are taken over, and of the world; chains: (roles, arm, seed) of these; samples:
    their kept ones, (pictures, captions, columns); runs: the provenance of the runs that made them; refused: why a
    table could not be used, a line each."""

    table: pd.DataFrame = field(default_factory=EMPTY.copy)
    chains: set[tuple] = field(default_factory=set)
    runs: list[dict] = field(default_factory=list)
    samples: list[tuple] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def has_world(self) -> bool:
        """Whether real data were measured in them."""
        return bool(self.table.arm.isin(["world", "vae"]).any())


def earlier(
    folder: Path, experiment: str, settings: Settings, study: Study, instruments: dict[str, str], chains: list
) -> Earlier:
    """What the tables in `folder` have of `chains` (experiment.Chain): those that are complete there, also of another
    experiment if it has the same arm by another name. Tables of other settings, models, claims or versions of what the
    code means are left alone, and said. instruments: their digests by name."""
    out, parts, taken, where = Earlier(), [], {}, {}
    names = [experiment, *(name for name, arms in EXPERIMENTS.items() if arms and name != experiment)]
    for name in names:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            continue
        record, table = json.loads(path.with_suffix(".json").read_text()), read_table(path)
        if why := _differs(record, table, settings, study, instruments):
            out.refused.append(f"{path}: not taken over, it has another {why}")
            continue
        theirs = [of_json(p) for p in record["protocols"]]
        zoo = {role: tuple(map(str.strip, record["settings"][f"{role}s"].split(","))) for role in ROLES}
        narrower = record["settings"]["measure"] == "full" != settings.measure
        if record["settings"]["measure"] != settings.measure and not narrower:
            out.refused.append(
                f"{path}: not taken over, it was measured with measure={record['settings']['measure']!r}"
            )
            continue
        if name == experiment:
            parts.append(table[table.arm.isin(["world", "vae"])])
            out.runs = [*record.get("runs", []), {k: v for k, v in record.items() if k not in ("protocols", "runs")}]
        for chain in chains:
            key = (chain.protocol.roles, chain.protocol.arm, chain.seed)
            like = [p for p in theirs if _same(p, chain.protocol)]
            members = chain.protocol.members(study.zoo)
            like = [
                p for p in like if p.members(zoo) == members and {m.model for m in members} <= set(record["models"])
            ]
            like = [p for p in like if name != experiment or p.arm == chain.protocol.arm]
            for p in like[:1] if key not in taken else []:
                rows = table[(table.arm == p.arm) & (table.seed == chain.seed) & table.modality.isin(p.modalities)]
                if _complete(rows, p, settings.generations):
                    if narrower:
                        rows = rows[rows.subset.isin(["test", "chain"])]
                        as_used = f"guidance {settings.default_guidance:g}"
                        rows = rows[(rows.measurement != as_used) | (as_used == "guidance 1")]
                    if not chain.protocol.measured_drift:
                        rows = rows[rows.measurement != "drifting"]
                    taken[key] = rows.assign(experiment=experiment, arm=chain.protocol.arm)
                    where[key] = (path.with_suffix(".samples.parquet"), p, set(rows.measurement))
    for key, (path, p, measurements) in where.items():
        if key in taken and key[2] == settings.first_seed and path.is_file():
            out.samples.append(_samples(path, p, key[1], measurements))
    parts += taken.values()
    out.chains = set(taken)
    out.table = pd.concat([EMPTY, *parts], ignore_index=True).astype(COLUMNS) if parts else out.table
    return out


def _samples(path: Path, protocol: Protocol, arm: str, measurements: set[str]) -> tuple:
    """The samples of a chain under its name here."""
    images, captions, columns = _opened(path, path.stat().st_mtime_ns)
    told = zip(columns["arm"], columns["modality"], columns["measurement"], strict=True)
    rows = [
        i for i, (a, m, d) in enumerate(told) if a == protocol.arm and m in protocol.modalities and d in measurements
    ]
    columns = {name: [values[i] for i in rows] for name, values in columns.items()}
    return images[rows], [captions[i] for i in rows], columns | {"arm": [arm] * len(rows)}


@lru_cache(2)
def _opened(path: Path, changed: int):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / FILE)
        return load_pairs(Path(folder))


def _differs(record: dict, table: pd.DataFrame, settings: Settings, study: Study, instruments: dict[str, str]) -> str:
    """The first thing in which a table was made otherwise than it would be now, or ""."""
    now, then = (
        as_dict(settings),
        as_dict(Settings()) | record["settings"],
    )  # settings that are newer had their defaults
    for name in DECIDING:
        if then[name] != now[name]:
            return f"{name} ({then[name]}, now {now[name]})"
    if record["world"] != study.world.digest:
        return f"world ({record['world'][:20]}, now {study.world.digest[:20]})"
    for name, model in study.models.items():  # of a chain that it has not run, a table knows no model
        if record["models"].get(name, model.base.digest) != model.base.digest:
            return f"model {name!r}"
    for name, digest in instruments.items():
        if record["models"].get(name) != digest:
            return f"instrument {name!r}"
    if set(table.claims) - frozen_digests():
        return "claims file"
    same = {"alarms": 1} | record.get("semantics", {}) == semantics()
    return "" if same else "version of the code's meaning"


def _same(one: Protocol, other: Protocol) -> bool:
    """Whether two arms are one chain, whatever they are called and compared with."""
    apart = {"arm": "", "controls": ()}
    if one.measured_drift and not other.measured_drift:
        apart["measured_drift"] = ()
    return replace(one, **apart) == replace(other, **apart)


def _complete(rows: pd.DataFrame, protocol: Protocol, generations: int) -> bool:
    models = rows[(rows.model != "set") & ~is_student(rows.model)]
    return all(set(models.generation[models.modality == m]) == set(range(generations + 1)) for m in protocol.modalities)
