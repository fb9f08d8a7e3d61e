"""Runs all chains of an experiment and writes its table, samples and provenance: what a notebook calls."""

from __future__ import annotations

import io
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from mmcollapse.claims import claims_digest
from mmcollapse.digests import digest_of
from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError, StoreFull
from mmcollapse.experiments import arms_of, listed, student_generations
from mmcollapse.loop import Model, Study, finetune, run_chain
from mmcollapse.measure import (
    Instruments,
    measure_member,
    measure_pool,
    measure_set,
    measure_student,
    measure_world,
    open_instruments,
)
from mmcollapse.metrics.truth import sampling_floor
from mmcollapse.models import load
from mmcollapse.models.oracle import Oracle
from mmcollapse.protocol import ROLES, Member, Protocol
from mmcollapse.settings import ROOT, Settings, as_dict
from mmcollapse.store import Store, load_pairs, save_pairs
from mmcollapse.table import check_complete, progress_path, to_table, write_table
from mmcollapse.worlds import open_world


class Progress:
    """Chain, generation, stage: a bar where a person watches, one plain line a stage in a log."""

    def __init__(self, chains: int, generations: int):
        from tqdm.auto import tqdm

        # TQDM_DISABLE is tqdm's own switch; the runner of notebooks sets it, for nobody watches their bars.
        self.live = not os.environ.get("TQDM_DISABLE") and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self.total, self.done, self.start = chains * (generations + 1), 0, time.monotonic()
        self.seconds: dict[str, float] = {}  # by stage
        self.reached: dict[str, int] = {}  # generations, by chain
        self._now, self._since = "", self.start
        self.bar = tqdm(total=self.total, unit="generation", disable=not self.live)

    def stage(self, chain: str, generation: int, stage: str):
        self.clock(stage)
        self.bar.set_postfix_str(f"{chain}, generation {generation}: {stage}")
        if not self.live:
            spent = time.monotonic() - self.start
            left = f", about {spent / self.done * (self.total - self.done):.0f} s to go" if self.done else ""
            print(
                f"[{self.done}/{self.total}] {chain}, generation {generation}: {stage} ({spent:.0f} s{left})",
                flush=True,
            )

    def clock(self, stage: str = ""):
        """Book the time that has passed on the stage that ends, and begin another."""
        if self._now:
            self.seconds[self._now] = self.seconds.get(self._now, 0.0) + time.monotonic() - self._since
        self._now, self._since = stage, time.monotonic()

    def generation(self, chain: str, generation: int, path: Path):
        """A generation is measured: count it, and note it in the file that `make status` reads."""
        self.clock()
        self.done += 1
        self.bar.update()
        self.reached[chain] = generation
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(self.reached, indent=1) + "\n").encode())


def open_study(settings: Settings, protocols: Sequence[Protocol] = ()) -> tuple[Study, Instruments]:
    """Everything that chains of `protocols` need, opened and checked before any work starts."""
    device = settings.resolved_device()
    world, folder = open_world(settings.world, settings.data), settings.models_folder
    if not folder.is_dir():
        raise MMCollapseError(
            f"no base models in {folder}: `make pretrain WORLD={settings.world}` makes them, or give their folder as "
            "the setting models"
        )
    if device == "cpu":
        import torch

        # Small models train half as fast again on one thread as on two (`make bench`), and results do not depend on how
        # many cores there are; several notebooks run at once instead.
        torch.set_num_threads(1)
    zoo = {role: tuple(listed(settings, f"{role}s")) for role in ROLES}
    wanted = {role: [zoo[role][0]] for role in ROLES}
    for protocol in protocols:
        for member in protocol.members(zoo):
            wanted[member.role].append(member.model)
    missing = [n for names in wanted.values() for n in dict.fromkeys(names) if not settings.model_folder(n).is_dir()]
    if missing:
        raise MMCollapseError(
            f"no model in {', '.join(str(settings.model_folder(n)) for n in missing)}: make pretrain "
            f"STAGES={','.join(missing)} makes those of the zoo (on a GPU); or name others in the settings generators "
            "and captioners"
        )
    models, oracle = {}, Oracle(folder / "oracle", device) if world.truth else None
    for role, names in wanted.items():
        for name in dict.fromkeys(names):
            try:
                adapter = load(settings.model_folder(name), device, settings.dtype)
            except MMCollapseError as error:
                raise MMCollapseError(f"setting {role}s={getattr(settings, f'{role}s')!r}: {error}") from error
            if adapter.kind != role:
                raise MMCollapseError(
                    f"setting {role}s={getattr(settings, f'{role}s')!r}: {name!r} is a {adapter.kind}, no {role}"
                )
            if adapter.image_size != world.image_size:
                raise MMCollapseError(
                    f"setting {role}s: pictures of {name!r} have {adapter.image_size} pixels a side, those of the "
                    f"world {world.name!r} {world.image_size}"
                )
            models[name] = Model(adapter, settings)
    for protocol in protocols:
        _different(protocol.members(zoo), models)
        _enough(protocol, settings, world)
    if told := [p.arm for p in protocols if oracle is None and p.captions in ("oracle", "noised")]:
        raise MMCollapseError(
            f"world={settings.world!r} has no known truth, so no oracle can write the captions of the arms "
            f"{', '.join(told)}: name the others, arms={','.join(p.arm for p in protocols if p.arm not in told)}"
        )
    copied = tuple({p.noise_like for p in protocols} - {""})
    study = Study(settings, Store(settings.runs_folder), world, models, zoo, device, oracle, copied=copied)
    return study, open_instruments(study, device)


def _different(members: list[Member], models: dict[str, Model]):
    """Refuse models of one chain that only their names tell apart: they would never differ. Or only their folders: a
    table could not tell them apart."""
    for a, b in itertools.combinations(members, 2):
        if a.model != b.model and (models[a.model].base == models[b.model].base or a.label == b.label):
            same = "name" if a.label == b.label else "weights"
            raise MMCollapseError(f"setting {a.role}s: {a.model!r} and {b.model!r} have the same {same}")


def _enough(protocol: Protocol, settings: Settings, world):
    """Refuse an arm that asks a finite world for more pairs than it has: new ones every generation add up."""
    n, size = protocol.pairs or settings.pairs, world.size("chain")
    blocks = settings.generations + protocol.real_fresh if protocol.fresh or protocol.real_fresh else 1
    if size is not None and blocks * n > size:
        each = f" in each of {blocks} generations" if blocks > 1 else ""
        raise MMCollapseError(
            f"setting pairs={n}{each}, arm {protocol.arm!r}: the chain split of world {world.name!r} has only {size} "
            "pairs; lower pairs, or leave the arm out (arms=...)"
        )


def run_experiment(experiment: str, settings: Settings) -> pd.DataFrame:
    """Run (or resume) every chain of `experiment` and write RESULTS/<experiment>.parquet, .samples.parquet and .json.
    A chain that fails is named and the others go on; the error is raised at the end."""
    protocols = arms_of(experiment, settings)
    students = student_generations(settings)
    study, tools = open_study(settings, protocols)
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    progress = Progress(len(protocols) * settings.seeds, settings.generations)
    study.say = progress.stage
    began, rows, failures, pictures, shared = time.monotonic(), [], [], [], {}
    claims = claims_digest()

    progress.stage("world", 0, "measuring")
    rows += measure_world(study, tools)
    for protocol in protocols:
        for seed in seeds:

            def measure(weights, g, sets, protocol=protocol, seed=seed):
                chain = {"arm": protocol.arm, "seed": seed, "generation": g}
                found = measure_generation(study, tools, protocol, weights, g, sets, seed)
                if g in students:
                    found += run_students(study, tools, protocol, g, sets, seed)
                rows.extend(r | chain for r in found)
                if seed == settings.first_seed:
                    kept = {(r["hash"], r["measurement"], r["modality"], r["model"]) for r in found}
                    for name, measurement, modality, model in sorted(kept):
                        if name in tools.shown:
                            told = {"measurement": measurement, "modality": modality, "model": model}
                            pictures.append((name, chain | told))
                progress.generation(
                    f"{protocol.name} seed {seed}", g, progress_path(settings.results_folder, experiment)
                )

            try:
                shared |= {item.name: item for item in run_chain(study, protocol, seed, measure)}
            except StoreFull:
                raise
            except MMCollapseError as error:
                failures.append(f"{protocol.name} seed {seed}: {error}")
                print(f"FAILED: {failures[-1]}", file=sys.stderr, flush=True)

    study.retire(list(shared.values()))
    progress.clock()

    table = to_table([{"experiment": experiment, "claims": claims} | r for r in rows])
    folder = settings.results_folder
    write_table(table, folder / f"{experiment}.parquet")
    _write_samples(pictures, tools, folder / f"{experiment}.samples.parquet")
    write_provenance(
        folder / f"{experiment}.json",
        study,
        tools,
        table,
        time.monotonic() - began,
        protocols=[vars(p) for p in protocols],
        failures=failures,
        stages={stage: round(spent, 1) for stage, spent in progress.seconds.items()},
    )
    progress_path(settings.results_folder, experiment).unlink(missing_ok=True)
    if failures:
        raise MMCollapseError(
            f"{len(failures)} of {len(protocols) * settings.seeds} chains of {experiment} ended early; the rest is in "
            f"{folder}. The first: {failures[0]}"
        )
    check_complete(table, chains_of(protocols), list(seeds), settings.generations)
    return table


def chains_of(protocols: Sequence[Protocol]) -> list[tuple[str, str]]:
    """(modality, arm) of all that is measured."""
    return [(modality, p.arm) for p in protocols for modality in p.modalities]


def measure_generation(study, tools, protocol: Protocol, weights: dict, g: int, sets: dict, seed: int) -> list[dict]:
    """Rows of one generation of a chain: each model, several of one role together, and what they were trained on."""
    s, rows = study.settings, []
    for member, held in weights.items():
        rows += measure_member(study, tools, protocol, member, held, seed, g)
        if member.role == "generator":
            floor = {"metric": "sampling_floor", "space": "", "value": sampling_floor(protocol.pairs or s.pairs, g)}
            common = {"measurement": "guidance 1", "subset": "test", "modality": "image", "model": member.label}
            rows.append(common | floor | {"n": protocol.pairs or s.pairs, "hash": held.digest[:20]})
    for role in protocol.roles:
        several = [(m.model, held) for m, held in weights.items() if m.role == role]
        if len(several) > 1:
            rows += measure_pool(study, tools, role, several)
    if sets:
        rows += measure_set(study, tools, protocol, next(iter(sets.values())))
    return rows


def run_students(study, tools, protocol: Protocol, g: int, sets: dict, seed: int) -> list[dict]:
    """Train fresh base models on what a generation was trained on, all by one recipe, and measure them (claim C5)."""
    rows, pairs = [], next(iter(sets.values()), None)
    for role in protocol.trains if pairs else ():
        member = Member(role, study.zoo[role][0])
        for k in range(study.settings.students):
            study.say(f"{protocol.name} seed {seed}", g, f"student {k}")
            weights = finetune(study, member, study.models[member.model].base, pairs, seed, g, student=k)
            rows += measure_student(study, tools, role, weights, k)
            study.retire([weights.item])
    return rows


def _write_samples(pictures: list[tuple[str, dict]], tools: Instruments, path: Path):
    """The kept samples of the first seed, and the real pictures and captions they answer to, as one Parquet file."""
    import tempfile

    names = ("arm", "model", "modality", "seed", "generation", "measurement", "index", "prompt")
    images, captions, columns = [], [], {k: [] for k in names}

    def put(batch_images, batch_captions, indices, prompts, chain):
        images.extend(batch_images)
        captions.extend(batch_captions)
        for i, prompt in zip(indices, prompts, strict=True):
            for name, value in (chain | {"index": int(i), "prompt": prompt}).items():
                columns[name].append(value)

    s = tools.study.settings
    shown, real = tools.prompts, tools.sample("test", s.captions)
    world = {"arm": "world", "model": "", "seed": -1, "generation": 0}
    n, m = min(8, len(shown.images)), min(8, len(real.images))
    first = [five[0] for five in shown.captions[:n]]
    put(shown.images[:n], first, range(n), first, world | {"modality": "image", "measurement": ""})
    first = [five[0] for five in real.captions[:m]]
    put(real.images[:m], first, range(m), first, world | {"modality": "text", "measurement": ""})
    for name, chain in pictures:
        item, asked = tools.shown[name]
        x, c, cols = load_pairs(item.files())
        # of a generator's pictures the number of the prompt counts, of captions that of the picture
        put(x, c, range(len(x)) if chain["modality"] == "image" else cols["index"], asked, chain)
    with tempfile.TemporaryDirectory() as folder:
        save_pairs(Path(folder), np.stack(images), captions, columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (Path(folder) / "pairs.parquet").read_bytes())


def source_digest() -> str:
    """Digest of the package's files."""
    here = Path(__file__).parent
    files = sorted(p for p in here.rglob("*") if p.suffix in (".py", ".toml"))
    return digest_of([[p.relative_to(here).as_posix(), p.read_text()] for p in files])


def write_provenance(path: Path, study: Study, tools: Instruments, table: pd.DataFrame, seconds: float, **more):
    """What made the table of that name: settings, code, versions, device, instruments, wall time, and `more`. Not part
    of the table, for it differs between two runs of equal result."""

    def git(*args):
        try:
            return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    device = study.device
    if device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    packages = (
        "mmcollapse",
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "numpy",
        "pandas",
        "pyarrow",
        "clean-fid",
        "scipy",
        "sacrebleu",
        "pycocoevalcap",
    )
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    record = {
        "experiment": path.stem,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        # a folder in the checkout by its name there, which holds on every machine
        "settings": {
            k: v.removeprefix(f"{ROOT}/") if type(v) is str else v for k, v in as_dict(study.settings).items()
        },
        "rows": len(table),
        "table": digest_of(table.astype(object).where(table.notna(), None).values.tolist()),
        "models": {name: m.base.digest for name, m in study.models.items()} | tools.digests,
        "world": study.world.digest,
        "device": device,
        "machine": platform.machine(),
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "source": source_digest(),  # says which code it was where no git is at hand, or something was changed
        "changed since commit": bool(git("status", "--porcelain", "--untracked-files=no")),
        "seconds": round(seconds, 1),
    }
    write_whole(path, (json.dumps(record | more, indent=1, default=list) + "\n").encode())
