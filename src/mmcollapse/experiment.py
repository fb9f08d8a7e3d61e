"""Runs all chains of an experiment and writes its table, samples and provenance: what a notebook calls."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from mmcollapse.digests import digest_of
from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError, StoreFull
from mmcollapse.loop import Model, Study, run_chain
from mmcollapse.measure import SHELF, Instruments, measure_captioner, measure_generator, measure_world, open_instruments
from mmcollapse.metrics.truth import sampling_floor
from mmcollapse.models import load
from mmcollapse.protocol import arms_of
from mmcollapse.settings import ROOT, Settings, as_dict
from mmcollapse.store import Store, load_pairs, save_pairs
from mmcollapse.table import check_complete, to_table, write_table
from mmcollapse.worlds import open_world


class Progress:
    """Chain, generation, stage: a bar where a person watches, one plain line a stage in a log."""

    def __init__(self, chains: int, generations: int):
        from tqdm.auto import tqdm

        # TQDM_DISABLE is tqdm's own switch; the runner of notebooks sets it, for nobody watches their bars.
        self.live = not os.environ.get("TQDM_DISABLE") and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self.total, self.done, self.start = chains * (generations + 1), 0, time.monotonic()
        self.seconds: dict[str, float] = {}  # by stage
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

    def generation(self):
        self.clock()
        self.done += 1
        self.bar.update()


def open_study(settings: Settings) -> tuple[Study, Instruments]:
    """Everything a run needs, opened and checked before any work starts."""
    device = settings.resolved_device()
    world, models = open_world(settings.world, settings.data), settings.models_folder
    if not models.is_dir():
        raise MMCollapseError(
            f"no base models in {models}: `make pretrain WORLD={settings.world}` makes them, or give their folder as "
            "the setting models"
        )
    roles = {role: Model(load(models / role, device, settings.dtype), settings) for role in ("generator", "captioner")}
    study = Study(settings, Store(settings.runs_folder), world, roles, device)
    return study, open_instruments(study, device)


def run_experiment(experiment: str, settings: Settings) -> pd.DataFrame:
    """Run (or resume) every chain of `experiment` and write RESULTS/<experiment>.parquet, .samples.parquet and .json.
    A chain that fails is named and the others go on; the error is raised at the end."""
    protocols = arms_of(experiment, settings.arms)
    study, tools = open_study(settings)
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    progress = Progress(len(protocols) * settings.seeds, settings.generations)
    study.say = progress.stage
    began, rows, failures, pictures, shared = time.monotonic(), [], [], [], {}

    progress.stage("world", 0, "measuring")
    rows += measure_world(study, tools)
    for protocol in protocols:
        for seed in seeds:

            def measure(weights, g, protocol=protocol, seed=seed):
                if protocol.role == "generator":
                    found = measure_generator(study, tools, weights, seed)
                    floor = {"metric": "sampling_floor", "space": "", "value": sampling_floor(settings.pairs, g)}
                    common = {
                        "measurement": "guidance 1",
                        "subset": "test",
                        "n": settings.pairs,
                        "hash": weights.digest[:20],
                    }
                    found.append(common | floor)
                else:
                    found = measure_captioner(study, tools, weights, seed, protocol, g)
                chain = {"arm": protocol.arm, "seed": seed, "generation": g, "modality": protocol.modality}
                rows.extend(r | chain for r in found)
                if seed == settings.first_seed:
                    for r in found:
                        if r["hash"] in SHELF:
                            pictures.append((r["hash"], chain | {"measurement": r["measurement"]}))
                progress.generation()

            try:
                shared |= {item.name: item for item in run_chain(study, protocol, seed, measure)}
            except StoreFull:
                raise
            except MMCollapseError as error:
                failures.append(f"{protocol.role} {protocol.arm} seed {seed}: {error}")
                print(f"FAILED: {failures[-1]}", file=sys.stderr, flush=True)

    study.retire(list(shared.values()))
    progress.clock()

    table = to_table([{"experiment": experiment} | r for r in rows])
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
    if failures:
        raise MMCollapseError(
            f"{len(failures)} of {len(protocols) * settings.seeds} chains of {experiment} ended early; the rest is in "
            f"{folder}. The first: {failures[0]}"
        )
    check_complete(table, [(p.modality, p.arm) for p in protocols], list(seeds), settings.generations)
    return table


def _write_samples(pictures: list[tuple[str, dict]], tools: Instruments, path: Path):
    """The kept samples of the first seed, and the real pictures and captions they answer to, as one Parquet file."""
    import tempfile

    images, captions, columns = (
        [],
        [],
        {k: [] for k in ("arm", "modality", "seed", "generation", "measurement", "index", "prompt")},
    )

    def put(batch_images, batch_captions, indices, prompts, chain):
        images.extend(batch_images)
        captions.extend(batch_captions)
        for i, prompt in zip(indices, prompts, strict=True):
            for name, value in (chain | {"index": int(i), "prompt": prompt}).items():
                columns[name].append(value)

    s = tools.study.settings
    shown, real = tools.prompts, tools.sample("test", s.captions)
    world = {"arm": "world", "seed": -1, "generation": 0}
    n, m = min(8, len(shown.images)), min(8, len(real.images))
    first = [five[0] for five in shown.captions[:n]]
    put(shown.images[:n], first, range(n), first, world | {"modality": "image", "measurement": ""})
    first = [five[0] for five in real.captions[:m]]
    put(real.images[:m], first, range(m), first, world | {"modality": "text", "measurement": ""})
    for name, chain in dict(((n, tuple(sorted(c.items()))), (n, c)) for n, c in pictures).values():
        x, c, cols = load_pairs(SHELF[name].files())
        if chain["modality"] == "image":  # index: number of the prompt
            put(x, c, range(len(x)), c, chain)
        else:
            put(x, c, cols["index"], [real.captions[i][0] for i in cols["index"]], chain)
    with tempfile.TemporaryDirectory() as folder:
        save_pairs(Path(folder), np.stack(images), captions, columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (Path(folder) / "pairs.parquet").read_bytes())


def _source() -> str:
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
        "models": {role: m.base.digest for role, m in study.models.items()} | tools.digests,
        "world": study.world.digest,
        "device": device,
        "machine": platform.machine(),
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "source": _source(),  # says which code it was where no git is at hand, or something was changed
        "changed since commit": bool(git("status", "--porcelain", "--untracked-files=no")),
        "seconds": round(seconds, 1),
    }
    write_whole(path, (json.dumps(record | more, indent=1, default=list) + "\n").encode())
