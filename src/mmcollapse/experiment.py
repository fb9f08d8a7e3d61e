"""Runs all chains of an experiment and writes its table, samples and provenance: what a notebook calls."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from mmcollapse import fetch
from mmcollapse.alarms import Watch
from mmcollapse.claims import claims_digest
from mmcollapse.digests import digest_of
from mmcollapse.disk import write_whole
from mmcollapse.earlier import Earlier, earlier, semantics
from mmcollapse.errors import MMCollapseError, StoreFull
from mmcollapse.experiments import arms_of, has_students, listed, seeds_of
from mmcollapse.kept import keeping
from mmcollapse.kept import write as write_kept
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
from mmcollapse.parallel import SharedStore, processes
from mmcollapse.protocol import MODALITY, ROLES, Member, Protocol
from mmcollapse.settings import ROOT, Settings, as_dict
from mmcollapse.sources import needed
from mmcollapse.store import Item, Store, load_pairs, save_pairs
from mmcollapse.table import check_complete, is_member, merge, progress_path, read_table, rounded, to_table, write_table
from mmcollapse.worlds import open_world


class Progress:
    """Chain, generation, stage: a bar where a person watches, one plain line a stage in a log."""

    def __init__(self, chains: int, generations: int):
        from tqdm.auto import tqdm

        # TQDM_DISABLE is tqdm's own switch; the runner of notebooks sets it, for nobody watches their bars.
        self.live = not os.environ.get("TQDM_DISABLE") and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self.chains, self.total, self.done = chains, chains * (generations + 1), 0
        self.start = time.monotonic()
        self.reached: dict[str, int] = {}  # generations, by chain
        self.bar = tqdm(total=self.total, unit="generation", disable=not self.live)

    def stage(self, chain: str, generation: int, stage: str):
        """A stage of a generation begins: in the bar, or as a line with the time that is left."""
        self.bar.set_postfix_str(f"{chain}, generation {generation}: {stage}")
        if not self.live:
            spent = time.monotonic() - self.start
            left = f", about {spent / self.done * (self.total - self.done):.0f} s to go" if self.done else ""
            print(
                f"[{self.done}/{self.total}] {chain}, generation {generation}: {stage} ({spent:.0f} s{left})",
                flush=True,
            )

    def chain(self, name: str, seconds: float):
        """A chain that ran elsewhere is done."""
        each = self.total // max(1, self.chains)
        self.done += each
        self.bar.update(each)
        spent = time.monotonic() - self.start
        left = spent / self.done * (self.total - self.done)
        print(
            f"[{self.done // each}/{self.chains}] {name}: {seconds:.0f} s ({spent:.0f} s, about {left:.0f} s to go)",
            flush=True,
        )

    def note(self, line: str):
        """A line beside the bar."""
        self.bar.write(line) if self.live else print(line, flush=True)

    def generation(self, chain: str, generation: int, path: Path):
        """A generation is measured: count it, and note it in the file that `make status` reads."""
        self.done += 1
        self.bar.update()
        self.reached[chain] = generation
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(self.reached, indent=1) + "\n").encode())


class Clock:
    """Seconds by stage: called with the stage that begins, or with nothing where one ends and none begins."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._now, self._since = "", time.monotonic()

    def __call__(self, stage: str = ""):
        if self._now:
            self.seconds[self._now] = self.seconds.get(self._now, 0.0) + time.monotonic() - self._since
        self._now, self._since = stage, time.monotonic()


def open_study(settings: Settings, protocols: Sequence[Protocol] = (), kept: dict | None = None):
    """(Study, Instruments): everything that chains of `protocols` need, opened and checked before any work starts.
    kept: what earlier calls of this process opened, which is not opened again."""
    device, opened = settings.resolved_device(), {} if kept is None else kept

    def once(key: tuple, make):
        if key not in opened:
            opened[key] = make()
        return opened[key]

    fetch.check(needed([settings]))
    check_folders(settings, protocols)
    folder = settings.models_folder
    zoo = {role: tuple(listed(settings, f"{role}s")) for role in ROLES}
    if device == "cpu":
        import torch

        # Small models train half as fast again on one thread as on two (`make bench`), and results do not depend on how
        # many cores there are; several notebooks run at once instead.
        torch.set_num_threads(1)
    wanted = models_of(settings, protocols)
    photos = settings.data_folder if settings.data else None
    pictures = (settings.world, photos, settings.image_size, settings.layout, settings.on_bad)
    world = once(("world", *pictures), lambda: open_world(*pictures))
    models, oracle = {}, once(("oracle", folder), lambda: Oracle(folder / "oracle", device)) if world.truth else None
    trained = (device, settings.dtype, settings.method, settings.rank)
    trained += (settings.lora_generator, settings.lora_captioner, settings.checkpointing)
    for role, names in wanted.items():
        for name in names:
            place = settings.model_folder(name)
            try:
                model = once(("model", place, *trained), partial(_open_model, place, device, settings))
            except MMCollapseError as error:
                raise MMCollapseError(f"setting {role}s={getattr(settings, f'{role}s')!r}: {error}") from error
            adapter = model.adapter
            if adapter.kind != role:
                raise MMCollapseError(
                    f"setting {role}s={getattr(settings, f'{role}s')!r}: {name!r} is a {adapter.kind}, no {role}"
                )
            # a captioner may say that it resizes what it is shown; a generator makes what it makes
            if adapter.image_size != world.image_size and not getattr(adapter, "resizes", False):
                can = f": image_size={adapter.image_size}" if settings.world == "photos" else ""
                raise MMCollapseError(
                    f"setting {role}s: pictures of {name!r} have {adapter.image_size} pixels a side, those of the "
                    f"world {world.name!r} {world.image_size}{can}"
                )
            models[name] = model
    for protocol in protocols:
        _different(protocol.members(zoo), models)
        _enough(protocol, settings, world)
    if told := [p.arm for p in protocols if oracle is None and p.captions in ("oracle", "noised")]:
        raise MMCollapseError(
            f"world={settings.world!r} has no known truth, so no oracle can write the captions of the arms "
            f"{', '.join(told)}: name the others, arms={','.join(p.arm for p in protocols if p.arm not in told)}"
        )
    copied = tuple({p.noise_like for p in protocols} - {""})
    store = (SharedStore if processes() > 1 else Store)(settings.runs_folder)
    study = Study(settings, store, world, models, zoo, device, oracle, copied=copied)
    sizes = (settings.prompts, settings.noises, settings.captions, settings.probes, settings.pairs)
    key = ("instruments", folder, settings.spaces, settings.runs_folder, *sizes)
    tools = once(key, lambda: open_instruments(study, device))
    tools.study = study
    return study, tools


def check_folders(settings: Settings, protocols: Sequence[Protocol]):
    """Refuse settings whose folders or models are not there, or cannot be written to."""
    folder = settings.models_folder
    own = [name for role in ROLES for name in listed(settings, f"{role}s") if "/" not in name]
    own += [name for name in listed(settings, "spaces") if name.startswith("judge")]
    if own and not folder.is_dir():
        raise MMCollapseError(
            f"no base models in {folder}: `make pretrain WORLD={settings.world}` makes them, or give their folder as "
            "the setting models"
        )
    wanted = models_of(settings, protocols)
    if missing := [n for names in wanted.values() for n in names if not settings.model_folder(n).is_dir()]:
        raise MMCollapseError(
            f"no model in {', '.join(str(settings.model_folder(n)) for n in missing)}: make pretrain "
            f"STAGES={','.join(missing)} makes those of the zoo (on a GPU); or name others in the settings generators "
            "and captioners"
        )
    if settings.world == "photos" and settings.data and not settings.data_folder.is_dir():
        raise MMCollapseError(f"setting data={settings.data!r}: there is no folder {settings.data_folder}")
    for name in ("runs", "results", "figures"):
        place = getattr(settings, f"{name}_folder")
        there = next(p for p in (place, *place.absolute().parents) if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise MMCollapseError(f"setting {name}={str(place)!r}: {there} is no folder that can be written to")


def models_of(settings: Settings, protocols: Sequence[Protocol]) -> dict[str, list[str]]:
    """Names of the models that chains of `protocols` need, by role; the first of the zoo in any case."""
    zoo = {role: tuple(listed(settings, f"{role}s")) for role in ROLES}
    found = {role: dict.fromkeys(zoo[role][:1]) for role in ROLES}
    for protocol in protocols:
        for member in protocol.members(zoo):
            found[member.role][member.model] = None
    return {role: list(names) for role, names in found.items()}


def _open_model(place: Path, device: str, settings: Settings) -> Model:
    return Model(load(place, device, settings.dtype), settings)


def _different(members: list[Member], models: dict[str, Model]):
    """Refuse models of one chain that only their names tell apart: they would never differ. Or only their folders: a
    table could not tell them apart. Or by a name that a table has for other things."""
    for a in members:
        if not is_member(pd.Series([a.label]))[0]:
            raise MMCollapseError(
                f"setting {a.role}s: a model called {a.label!r}, as tables call a set, a pool or a student: give its "
                "folder another name"
            )
    for a, b in itertools.combinations(members, 2):
        if a.model != b.model and (models[a.model].base == models[b.model].base or a.label == b.label):
            same = "name" if a.label == b.label else "weights"
            raise MMCollapseError(f"setting {a.role}s: {a.model!r} and {b.model!r} have the same {same}")


def _enough(protocol: Protocol, settings: Settings, world):
    """Refuse an arm that asks a finite world for more pairs than it has: new ones every generation add up."""
    n, size = protocol.pairs or settings.pairs, world.size("chain")
    both = (protocol, protocol.at(math.inf, 0))  # before and after its remedy
    blocks = max(settings.generations + p.real_fresh if p.fresh or p.real_fresh else 1 for p in both)
    if size is not None and blocks * n > size:
        each = f" in each of {blocks} generations" if blocks > 1 else ""
        raise MMCollapseError(
            f"setting pairs={n}{each}, arm {protocol.arm!r}: the chain split of world {world.name!r} has only {size} "
            "pairs; lower pairs, or leave the arm out (arms=...)"
        )


@dataclass(frozen=True)
class Chain:
    """One arm of an experiment and one seed. copied: another arm copies its errors, so they are to be kept."""

    experiment: str
    protocol: Protocol
    seed: int
    settings: Settings
    copied: bool = False

    @property
    def name(self) -> str:
        """For people: roles, arm and seed."""
        return f"{self.protocol.name} seed {self.seed}"


@dataclass
class Done:
    """What a chain leaves: rows of the table; shown, the samples to keep (item, prompts, what they are); kept, of what
    rows can be computed again (see kept.py); items that other chains may share; errors of its captions, where another
    arm copies them; failure: what ended it, or ""; seconds, in all and by stage."""

    chain: Chain
    rows: list[dict] = field(default_factory=list)
    shown: list[tuple[Item, list[str], dict]] = field(default_factory=list)
    kept: list = field(default_factory=list)
    items: tuple[Item, ...] = ()
    errors: dict[tuple, dict] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


def run_one(study: Study, tools: Instruments, chain: Chain, measured=lambda chain, generation, rows: None) -> Done:
    """Run (or look up) a chain; measured(chain, generation, rows) is called after each generation. StoreFull passes
    through; any other MMCollapseError ends this chain alone and is told in what is returned."""
    protocol, seed, done, began = chain.protocol, chain.seed, Done(chain), time.monotonic()
    say, clock, alarm, watch = study.say, Clock(), math.inf, None

    def timed(name, generation, stage):
        clock(stage)
        say(name, generation, stage)

    def measure(weights, g, sets):
        nonlocal alarm
        of = {"arm": protocol.arm, "seed": seed, "generation": g}
        s = study.settings
        with keeping(chain.experiment, protocol.arm, (seed, g) == (s.first_seed, s.generations)) as sets_kept:
            found = measure_generation(study, tools, protocol.at(g, alarm), weights, g, sets, seed)
        found += switch_rows(study, protocol, sets, g, alarm, watch.silent if watch else ())
        done.kept += sets_kept
        if has_students(chain.settings, seed, g):
            found += run_students(study, tools, protocol, g, sets, seed)
        found = [r | of for r in found]
        done.rows += found
        if seed == chain.settings.first_seed:
            kept = {(r["hash"], r["measurement"], r["modality"], r["model"]) for r in found}
            for name, measurement, modality, model in sorted(kept):
                if name in tools.shown:
                    item, asked = tools.shown[name]
                    told = {"measurement": measurement, "modality": modality, "model": model}
                    done.shown.append((item, asked, of | told))
        if watch and any(name in protocol.switch for name, _ in watch.new(chain.name, g, found)):
            alarm = min(alarm, g)
        clock()
        measured(chain, g, found)
        return alarm <= g

    study.say = timed
    try:
        if protocol.switch and isinstance(protocol.switch, tuple):  # what is real against real must be known before
            clock("measuring")
            watch = Watch(measure_world(study, tools), chain.settings.generations)
        done.items = tuple(run_chain(study, protocol, seed, measure))
    except StoreFull:
        raise
    except MMCollapseError as error:
        done.failure = f"{chain.name}: {error}"
    finally:
        study.say = say
        clock()
    done.stages = clock.seconds
    done.errors = {key: errors for key, errors in study.errors.items() if key[:2] == (protocol.arm, seed)}
    done.seconds = time.monotonic() - began
    return done


def switch_in_words(done: Done) -> str:
    """A line for the log: since when the remedy of a chain holds; "" for an arm without one."""
    rows = [r for r in done.rows if r["metric"] == "switched"]
    if not rows:
        return ""
    since = min((int(r["value"]) for r in rows if r["value"] == r["value"]), default=0)
    what = ", ".join(f"{name}={value!r}" for name, value in done.chain.protocol.remedy)
    when = f"since generation {since}" if since else f"never: {rows[-1]['missing']}"
    return f"SWITCH {done.chain.name}, {when} ({what})"


class Run:
    """An experiment under way: what there is to do, and what comes of it.

    chains: all of the experiment's; todo: those that neither this run nor, in the folder `before`, an earlier one has
    finished. kept: see open_study. partly: arms whose models are not at hand are left for another run, and named;
    else that is an error."""

    def __init__(
        self,
        experiment: str,
        settings: Settings,
        before: Path | None = None,
        kept: dict | None = None,
        partly: bool = False,
    ):
        self.experiment, self.settings, self.began = experiment, settings, time.monotonic()
        self.before = before
        self.protocols, self.claims = arms_of(experiment, settings), claims_digest()
        able = [p for p in self.protocols if not (partly and self._absent(p))]
        self.study, self.tools = open_study(settings, able, kept)
        copied = {p.noise_like for p in self.protocols}
        self.chains = [
            Chain(experiment, p, k, settings, p.arm in copied)
            for p in self.protocols
            for k in seeds_of(experiment, p, settings)
        ]
        digests = self.tools.digests
        self.known = earlier(before, experiment, settings, self.study, digests, self.chains) if before else Earlier()
        print("".join(f"{line}\n" for line in self.known.refused), end="", flush=True)
        new = [c for c in self.chains if not self._known(c)]
        todo = [c for c in new if c.protocol in able]
        self.apart = len(new) - len(todo)  # of models that are not at hand
        # What copies the errors of an arm needs that arm in its own run: {chain that is run once more: what copies it}
        self.again = {
            source: copying
            for copying in todo
            for source in self.chains
            if self._known(source)
            and (source.protocol.roles, source.protocol.arm, source.seed)
            == (copying.protocol.roles, copying.protocol.noise_like, copying.seed)
        }
        self.todo = [*self.again, *todo]
        self.dones: list[Done] = []
        self.world, self.stages = None, {"measuring": 0.0}  # seconds, summed over chains

    def _known(self, chain: Chain) -> bool:
        return (chain.protocol.roles, chain.protocol.arm, chain.seed) in self.known.chains

    def _absent(self, protocol: Protocol) -> list[str]:
        """The models of an arm that are not at hand; if there are any, a line says so."""
        names = [name for found in models_of(self.settings, [protocol]).values() for name in found]
        absent = [name for name in names if not self.settings.model_folder(name).is_dir()]
        if absent:
            print(
                f"{self.experiment}: {protocol.name} is left for another run: {', '.join(absent)} not at hand (make "
                f"pretrain STAGES={','.join(absent)})",
                flush=True,
            )
        return absent

    def measure_world(self):
        """Measure real data, unless an earlier run has done so, and tell which alarms cannot sound."""
        if not self.known.has_world and self.world is None:
            began = time.monotonic()
            self.world = measure_world(self.study, self.tools)
            self.stages["measuring"] += time.monotonic() - began
        if told := Watch(self.reference, self.settings.generations).silence():
            print(f"{self.experiment}: {told}", flush=True)

    def add(self, done: Done):
        """Take in what a chain leaves, unless that is known."""
        if self._known(done.chain):
            done.rows, done.shown, done.kept = [], [], []
        self.dones.append(done)
        if told := switch_in_words(done):
            print(told, flush=True)
        for stage, spent in done.stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + spent
        if done.failure:
            print(f"FAILED: {done.failure}", file=sys.stderr, flush=True)

    @property
    def reference(self) -> list[dict]:
        """Rows of real data, once they are measured."""
        known = self.known.table
        return self.world or known[known.arm == "world"].to_dict("records")

    @property
    def failures(self) -> list[str]:
        """What ended chains early, a line each."""
        return [done.failure for done in self.dones if done.failure]

    def write(self) -> pd.DataFrame:
        """Write RESULTS/<experiment>.parquet, .samples.parquet and .json of what there is so far."""
        rows = [*(self.world or []), *(row for done in self.dones for row in done.rows)]
        table = to_table([{"experiment": self.experiment, "claims": self.claims} | r for r in rows])
        table = merge([self.known.table, rounded(table)])
        folder = self.settings.results_folder
        write_table(table, folder / f"{self.experiment}.parquet")
        shown = [shown for done in self.dones for shown in done.shown]
        _write_samples(shown, self.known.samples, self.tools, folder / f"{self.experiment}.samples.parquet")
        sets_kept = [part for done in self.dones for part in done.kept]
        write_provenance(
            folder / f"{self.experiment}.json",
            self.study,
            self.tools,
            table,
            time.monotonic() - self.began,
            protocols=[vars(p) for p in self.protocols],
            failures=self.failures,
            stages={stage: round(spent, 1) for stage, spent in self.stages.items()},
            chains={done.chain.name: round(done.seconds, 1) for done in self.dones},
            runs=self.known.runs,  # that made what was taken over
            kept=write_kept(folder, self.experiment, sets_kept, self.before, set(table.hash)),
        )
        return table

    def finish(self) -> pd.DataFrame:
        """Write it all, give up what no other chain needs any more, and check that nothing is missing. MMCollapseError:
        a chain ended early."""
        self.study.retire(list({item.name: item for done in self.dones for item in done.items}.values()))
        table, folder = self.write(), self.settings.results_folder
        progress_path(folder, self.experiment).unlink(missing_ok=True)
        if self.failures:
            raise MMCollapseError(
                f"{len(self.failures)} of {len(self.chains)} chains of {self.experiment} ended early; the rest is in "
                f"{folder}. The first: {self.failures[0]}"
            )
        if left := len(self.todo) - len(self.dones) + self.apart:
            print(f"{self.experiment}: {left} of {len(self.chains)} chains are left for another run", flush=True)
            return table
        check_run(self.experiment, self.settings, table)
        return table


def run_experiment(experiment: str, settings: Settings) -> pd.DataFrame:
    """Run (or resume) every chain of `experiment`, one by one or as many at once as the settings say, and write
    RESULTS/<experiment>.parquet, .samples.parquet and .json. A chain that fails is named and the others go on; the
    error is raised at the end."""
    run = Run(experiment, settings)
    if settings.workers != 1 or settings.scheduler:
        from mmcollapse.pool import at_once, open_pool
        from mmcollapse.study import run_chains  # here, for it imports this module

        gpu = settings.resolved_device() == "cuda"
        with open_pool(settings.workers or at_once(gpu), gpu, scheduler=settings.scheduler) as pool:
            run_chains({experiment: run}, pool)
        return run.finish()
    progress = Progress(len(run.todo), settings.generations)
    run.study.say = progress.stage
    progress.stage("world", 0, "measuring")
    run.measure_world()
    path, watch = progress_path(settings.results_folder, experiment), Watch(run.reference, settings.generations)

    def measured(chain: Chain, generation: int, rows: list[dict]):
        progress.generation(chain.name, generation, path)
        for line in watch(chain.name, generation, rows):
            progress.note(line)

    for chain in run.todo:
        run.add(run_one(run.study, run.tools, chain, measured))
    return run.finish()


def check_run(experiment: str, settings: Settings, table: pd.DataFrame | None = None):
    """Refuse a result table (if not given, that in RESULTS) that lacks an arm, seed, generation or metric."""
    table = read_table(settings.results_folder / f"{experiment}.parquet") if table is None else table
    for p in arms_of(experiment, settings):
        arms = [(modality, p.arm) for modality in p.modalities]
        check_complete(table, arms, list(seeds_of(experiment, p, settings)), settings.generations)


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


def switch_rows(study, protocol: Protocol, sets: dict, g: int, alarm: float, silent: Sequence[str] = ()) -> list[dict]:
    """Rows of what a generation of an arm with a remedy was trained on: real_pairs, how many of these were real, and
    switched, the generation since which the remedy holds. alarm: see Protocol.at; silent: alarms that cannot sound."""
    if not (protocol.remedy and sets):
        return []
    pairs, since = next(iter(sets.values())), protocol.since(alarm)
    why = "the remedy comes later"
    if isinstance(protocol.switch, tuple):
        why = "its alarms cannot sound" if set(protocol.switch) <= set(silent) else "its alarms have not sounded"
    found = {
        "real_pairs": {"value": float(protocol.at(g, alarm).parts(protocol.pairs or study.settings.pairs)[1])},
        "switched": {"value": float(since)} if g >= since else {"value": math.nan, "missing": why},
    }
    common = {"model": "set", "measurement": "data", "subset": "chain", "space": "cost"}
    common |= {"n": len(pairs.real.keys), "hash": f"set-{pairs.digest[:20]}"}
    return [
        common | {"modality": MODALITY[role], "metric": metric} | value
        for role in protocol.trains
        for metric, value in found.items()
    ]


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


def _write_samples(shown: list[tuple[Item, list[str], dict]], known: list[tuple], tools: Instruments, path: Path):
    """The kept samples of the first seed, and the real pictures and captions they answer to, as one Parquet file.
    known: (pictures, captions, columns) of earlier runs."""
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
    asked, real = tools.prompts, tools.sample("test", s.captions)
    world = {"arm": "world", "model": "", "seed": -1, "generation": 0}
    n, m = min(8, len(asked.images)), min(8, len(real.images))
    first = [five[0] for five in asked.captions[:n]]
    put(asked.images[:n], first, range(n), first, world | {"modality": "image", "measurement": ""})
    first = [five[0] for five in real.captions[:m]]
    put(real.images[:m], first, range(m), first, world | {"modality": "text", "measurement": ""})
    for item, prompts, chain in shown:
        x, c, cols = load_pairs(item.files())
        # of a generator's pictures the number of the prompt counts, of captions that of the picture
        put(x, c, range(len(x)) if chain["modality"] == "image" else cols["index"], prompts, chain)
    for x, c, cols in known:
        images.extend(x)
        captions.extend(c)
        for name in names:
            columns[name].extend(cols[name])
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
        "semantics": semantics(),
        "source": source_digest(),  # says which code it was where no git is at hand, or something was changed
        "changed since commit": bool(git("status", "--porcelain", "--untracked-files=no")),
        "seconds": round(seconds, 1),
    }
    write_whole(path, (json.dumps(record | more, indent=1, default=list) + "\n").encode())
