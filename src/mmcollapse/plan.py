"""What a run of a profile comes to, counted before it is run: `make plan`.

The very loop and the very measuring run over a store that makes nothing. Each thing that they ask for is counted once,
under the name that it will have, so what arms and experiments share is counted as it will be shared. The count is a
little high where two things turn out equal only when they are made: captions that no limit of tokens cuts; and where
an arm waits for an alarm, which is taken to sound at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from mmcollapse import costs
from mmcollapse.costs import Work
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import _enough, measure_generation, run_students, switch_rows
from mmcollapse.experiments import (
    LATER,
    PRIORITY,
    TURNS,
    arms_of,
    has_students,
    later,
    listed,
    seeds_of,
    turn_of,
)
from mmcollapse.fetch import check, gigabytes
from mmcollapse.loop import Study, Weights, run_chain
from mmcollapse.measure import Instruments, measure_world
from mmcollapse.protocol import ROLES, Protocol
from mmcollapse.rates import Rate, read_rates
from mmcollapse.settings import Settings
from mmcollapse.sources import needed, read_sources
from mmcollapse.store import Item, item_name
from mmcollapse.worlds import Batch, open_world

# What is counted. Students: fresh base models trained on a generation's data. Trained on: pairs a step times steps, of
# generators and of captioners, students included. Rows: about, for a few depend on what is found.
COLUMNS = ("arms", "chains", "model-generations", "students", "pictures made", "captions made", "pictures trained on")
COLUMNS += ("captions trained on", "pictures measured", "captions measured", "rows")
MADE = {"generator": "pictures made", "captioner": "captions made"}
TRAINED = {"generator": "pictures trained on", "captioner": "captions trained on"}
# rows of the result table for each group of scores (see measure.py); of truth for pictures, captions and probes
ROWS = {"features": 10, "pixels": 1, "alignment": 5, "words": 8, "perplexity": 1, "caption features": 3, "samples": 0}
SOUNDS = 1  # the generation in which alarms are taken to sound: the earliest, which leaves most to be made
TRUTH = {"pictures": 17, "captions": 10, "probes": 2}


class Counting:
    """Stands in for a Store: makes nothing, and counts in `counts` what was not asked for before, in `work` what that
    takes. parts: amounts of work by part of the plan (see count); told: arms that cannot run, and why, a line each;
    worlds: see _planned."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.names: dict[str, set[str]] = {"weights": set(), "pairs": set(), "scores": set()}
        # training pairs since this was emptied: by which role, if new, and what they were asked for by
        self.asked: list[tuple[str, bool, str, Mapping]] = []
        self.work, self.parts, self.told, self.worlds = Work(), {}, [], {}

    def make(self, kind: str, inputs: Mapping, maker) -> Item:
        name = item_name(kind, inputs)
        new = name not in self.names[kind]
        self.names[kind].add(name)
        if kind == "scores":
            self.counts["rows"] += _rows(inputs)  # also of what is shared, for each arm has its rows
        elif kind == "weights":
            self.work.train(name, inputs, new)
        if kind == "weights" and new:
            _, _, role, *own = inputs["seed"]
            student = any(word.startswith("student") for word in own)
            self.counts["students" if student else "model-generations"] += 1
            self.counts[TRAINED[role]] += inputs["recipe"]["steps"] * inputs["recipe"]["batch"]
        elif kind == "pairs" and inputs.get("noise") != "measure":
            self.asked.append((inputs["seed"][2], new, name, inputs))
        elif kind == "pairs" and new:
            what = "prompts" if "prompts" in inputs else "pictures"  # that pictures, or captions, were made of
            n = len(inputs[what])
            self.counts["pictures measured" if what == "prompts" else "captions measured"] += n
            self.work.make(inputs, n)
            self.work.look(n)
            if self.work.settings.keep_pictures == "all":
                self.work.keep_pairs(name, n)
        told = {"name": name, "kind": kind, "inputs": inputs, "digest": name, "facts": {"passes": 0}, "pruned": True}
        return Item(self, told)

    def prune(self, item: Item):
        """There is nothing to delete but what the work would have left."""
        self.work.prune(item.name)

    def _ready(self, item: Item) -> _Files:
        return _Files(item.name)

    def book(self, sizes: list[int]):
        """Count the training pairs that were asked for: `sizes` are those of the shares, in order."""
        each, rest = divmod(len(self.asked), len(sizes))
        if rest:
            raise MMCollapseError(f"{len(self.asked)} things were made for {len(sizes)} shares of the pairs")
        for k, (role, new, name, inputs) in enumerate(self.asked):
            if new:
                self.work.make(inputs, sizes[k // each])
                self.work.look(sizes[k // each])
                self.work.keep_pairs(name, sizes[k // each])
            if new and role in MADE:  # and not by the oracle
                self.counts[MADE[role]] += sizes[k // each]
        self.asked.clear()


@dataclass
class _Files:
    """The folder of what was not made. Its files say nothing, but whose they are, as far as names depend on that."""

    name: str

    def __truediv__(self, file: str) -> _Files:
        self.text = {"rows.json": "[]", "scores.json": "{}", "errors.json": json.dumps({"of": self.name})}[file]
        return self

    def read_text(self) -> str:
        return self.text


def _rows(inputs: Mapping) -> int:
    """About how many rows of the table scores make."""
    group = inputs["metric"]
    if group == "truth":
        return TRUTH[("pictures" if "instrument" in inputs else "captions") if inputs["full"] else "probes"]
    if "instruments" not in inputs:
        return ROWS.get(group, 0)
    spaces = len(set(inputs["instruments"]) - {"oracle", "language"})
    picture = TRUTH["pictures"] + ROWS["pixels"] + spaces * (ROWS["features"] + ROWS["alignment"])
    caption = TRUTH["captions"] + ROWS["words"] + ROWS["perplexity"]
    caption += spaces * (ROWS["caption features"] + ROWS["alignment"])
    if group == "set":  # and what they cost; pictures of different prompts have no nuisance ratios
        return ("generator" in inputs["roles"]) * (picture - 5) + ("captioner" in inputs["roles"]) * (caption + 1)
    # real data and the autoencoder's, for two measurements each
    return 2 * (inputs["replicates"] + 1) * picture + 2 * inputs["replicates"] * caption


class _World:
    """A world without its pictures: the number of a sample stands for it."""

    def __init__(self, world):
        self.world, self.kept = world, {}

    def __getattr__(self, name: str):
        return getattr(self.world, name)

    def references_length(self) -> float:
        return 10.0  # only names depend on it

    def sample(self, split: str, indices) -> Batch:
        indices = np.asarray(indices, dtype=np.int64)
        if (key := (split, indices.tobytes())) not in self.kept:
            texts = [f"{split}/{i}" for i in indices]
            scenes = [None] * len(texts) if self.world.truth else None
            self.kept[key] = Batch(indices, [[text] for text in texts], scenes, texts)
        return self.kept[key]


def _planned(settings: Settings, store: Counting) -> tuple[object, str]:
    """(the world as far as a plan needs it, what is assumed of it), found out once."""
    key = (settings.world, settings.data, settings.layout, settings.image_size)
    if key not in store.worlds:
        store.worlds[key] = _found(settings)
    return store.worlds[key]


def _found(settings: Settings) -> tuple[object, str]:
    """Of photos none is opened: captions say how many there are, and of data that were not fetched yet sources.toml
    does."""
    if settings.world != "photos":
        return open_world(settings.world, image_size=settings.image_size), ""
    from mmcollapse.worlds.photos import planned_roles, roles

    folder, known, assumed = settings.data_folder, read_sources()["data"].get(settings.data), ""
    if known and not folder.is_dir():
        sizes = roles(*known["pairs"])
        assumed = f"{settings.data} is not here; assumed are the sizes of its splits as published: " + ", ".join(
            f"{role} {n:,}" for role, n in sizes.items()
        )
    else:
        sizes = planned_roles(folder, settings.layout)
    return SimpleNamespace(name="photos", truth=False, digest="photos", size=lambda split: sizes[split]), assumed


def _able(protocols: list[Protocol], settings: Settings, store: Counting) -> list[Protocol]:
    """The protocols that can run in the world of the settings; of the others the store is told."""
    world, out = _planned(settings, store)[0], []
    for protocol in protocols:
        try:
            if not world.truth and protocol.captions in ("oracle", "noised"):
                raise MMCollapseError(
                    f"arm {protocol.arm!r}: world {world.name!r} has no truth that an oracle could tell"
                )
            _enough(protocol, settings, world)
            out.append(protocol)
        except MMCollapseError as error:
            store.told.append(str(error))
    return out


def _open(settings: Settings, protocols: list[Protocol], store: Counting) -> tuple[Study, Instruments]:
    """Stand-ins for all that chains of `protocols` need; they answer what the loop and the measuring ask."""
    world = _World(_planned(settings, store)[0])
    zoo = {role: tuple(listed(settings, f"{role}s")) for role in ROLES}
    names = {zoo[role][0] for role in ROLES} | {m.model for p in protocols for m in p.members(zoo)}
    models = {}
    for name in names:
        # how many words and tokens a captioner knows: only names depend on that
        adapter = SimpleNamespace(digest=name, tokenizer=range(290), max_tokens=28)
        models[name] = SimpleNamespace(base=Weights(name), adapter=adapter)
    oracle = SimpleNamespace(digest="oracle") if world.truth else None
    copied = tuple({p.noise_like for p in protocols} - {""})
    study = Study(settings, store, world, models, zoo, settings.device, oracle, copied=copied)
    spaces = {name: SimpleNamespace(digest=name) for name in listed(settings, "spaces")}
    for name in set(spaces) - {"inception", "dino"}:  # these do not read captions
        spaces[name].texts = None
    return study, Instruments(study, spaces, oracle, SimpleNamespace(digest="language"))


def _run(name: str, settings: Settings, protocols: list[Protocol], store: Counting, world: bool):
    """All chains of `protocols`, as run_experiment runs them. world: whether real data are measured first."""
    store.work.settings, shared = settings, []
    study, tools = _open(settings, protocols, store)
    if world:
        measure_world(study, tools)
    for protocol in protocols:
        store.counts["arms"] += 1
        for seed in seeds_of(name, protocol, settings):
            store.counts["chains"] += 1

            def stage(chain, g, stage, protocol=protocol):
                if stage == "fine-tuning":
                    store.book(_shares(protocol.at(g, SOUNDS), settings))

            def measure(weights, g, sets, protocol=protocol, seed=seed):
                rows = measure_generation(study, tools, protocol.at(g, SOUNDS), weights, g, sets, seed)
                rows += switch_rows(study, protocol, sets, g, SOUNDS)
                store.counts["rows"] += len(rows)
                if has_students(settings, seed, g):
                    run_students(study, tools, protocol, g, sets, seed)
                return g >= SOUNDS

            study.say = stage
            shared += run_chain(study, protocol, seed, measure)
            tools.shown.clear()
    study.retire(shared)


def _shares(protocol: Protocol, settings: Settings) -> list[int]:
    """How many pairs each share of a generation's data has that one model makes (see loop._pool)."""
    made, makers = protocol.parts(protocol.pairs or settings.pairs)[0], max(1, len(protocol.population))
    return [len(rows) for rows in np.array_split(range(made), makers)] if protocol.exchange else [made] * makers


def count(settings: Mapping[str, Settings], store: Counting | None = None) -> dict[str, Counter[str]]:
    """What each experiment adds to those before it, in the order of PRIORITY: numbers by COLUMNS. Populations of LATER
    sizes are a part of their own, after their experiment. settings: by experiment."""
    store, parts = store or Counting(), {}
    for name in (name for name in PRIORITY if name in settings):
        protocols = _able(arms_of(name, settings[name]), settings[name], store)
        last = [p for p in protocols if name == "03_diversity" and later(p, settings[name])]
        pools = f"{name}, pools of {' and '.join(str(size) for size in LATER)}"
        for part, some in {name: [p for p in protocols if p not in last], pools: last}.items():
            if some:
                store.counts = parts[part] = Counter(dict.fromkeys(COLUMNS, 0))
                before = store.work.amounts.copy()
                _run(name, settings[name], some, store, world=part == name)
                store.parts[part] = store.work.amounts - before
    return parts


def plan(settings: Mapping[str, Settings]) -> str:
    """The counts as a table for the terminal, and what they take. settings: by experiment."""
    store = Counting()
    parts, first = count(settings, store), next(iter(settings.values()))
    rates = read_rates()
    device = costs.device_of(first, rates, {model for model, _ in store.work.amounts})
    parts["all"], store.parts["all"] = sum(parts.values(), Counter()), store.work.amounts
    words = [["", *name.replace("-", "- ").split(" ", 1)][-2:] for name in (*COLUMNS, "hours")]
    lines = [_line("", row) for row in zip(*words, strict=True)]
    for part, counts in parts.items():
        spent = costs.hours(store.parts[part], rates, device, first.compute_batch)[1]
        lines.append(_line(part, [*(f"{counts[name]:,}" for name in COLUMNS), costs.rough(spent)]))
    needs = _needs(settings, store, rates, device)
    return "\n".join([*lines, "", *NOTES, "", *_in_turns(settings), "", *needs])


def _in_turns(settings: Mapping[str, Settings]) -> list[str]:
    """Which chains `make study` runs first."""
    chains, generations = Counter(), Counter()
    for name, s in settings.items():
        zoo = {role: tuple(listed(s, f"{role}s")) for role in ROLES}
        for p in arms_of(name, s):
            trained = sum(m.role in p.trains for m in p.members(zoo))
            for seed in seeds_of(name, p, s):
                turn = turn_of(name, p, seed, s)
                chains[turn] += 1
                generations[turn] += trained * s.generations
    head = "`make study` runs, in turns (what chains share is counted in each)"
    lines = [f"{head:<88}{'chains':>8}{'model-generations':>20}"]
    told = enumerate(TURNS, 1)
    return lines + [f"{f'{k}. {what}':<88}{chains[k - 1]:>8,}{generations[k - 1]:>20,}" for k, what in told]


def _needs(settings: Mapping[str, Settings], store: Counting, rates: list[Rate], device: str) -> list[str]:
    """What the counted work takes, and what of it is not to be had here."""
    work, first = store.work, next(iter(settings.values()))
    lines, spent, unknown = costs.hours(work.amounts, rates, device, first.compute_batch)
    core = "core" if device == "cpu" else device
    least = f"{'at least' if unknown else 'about'} {costs.rough(spent)} hours"
    beside = f"; {unknown} of {len(lines) - 1} kinds of work were never measured there" if unknown else ""
    lines += ["", f"{work.steps:,} optimiser steps; {least} on one {core}{beside} (data/rates.json)"]
    most, nobody, absent = 0, [], set()
    for name, s in settings.items():
        zoo = {role: tuple(listed(s, f"{role}s")) for role in ROLES}
        used = {zoo[role][0] for role in ROLES} | {m.model for p in arms_of(name, s) for m in p.members(zoo)}
        asked, unsized = costs.memory(s, sorted(used))
        most, nobody = max(most, asked), [*nobody, *unsized]
        absent |= {str(s.model_folder(m)) for m in used if "/" not in m and not s.model_folder(m).is_dir()}
    unsized = f", without {', '.join(sorted(set(nobody)))}, whose size is not known" if nobody else ""
    lines.append(f"memory of models and training: {gigabytes(most)}{unsized}; activations, not measured, come on top")
    lines.append(f"store at its fullest, one experiment after the other: {gigabytes(work.peak)}")
    lines += dict.fromkeys(filter(None, (_planned(s, store)[1] for s in settings.values())))
    if absent:
        lines.append(f"not ready: no {', '.join(sorted(absent))}: `make pretrain STAGES=...` makes those of the zoo")
    try:
        check(needed(settings.values()))
    except MMCollapseError as error:
        lines.append(f"not ready: {error}")
    told = [*store.told, *costs.warnings(first, most, work.peak)]
    return lines + [f"WARNING: {line}" for line in dict.fromkeys(told)]


NOTES = (
    "In the order of priority: what an experiment shares with those above it is counted there. Made: of the pairs that",
    "are trained on. Trained on: steps x batch. Measured: made of test prompts and test pictures. Students: fresh base",
    "models, trained to see what a generation's data are worth. Rows of the tables are estimated, and so are hours, of",
    "what below has a rate; all else is exact.",
)


def _line(first: str, others: Iterable[str]) -> str:
    return f"{first:<32}" + "".join(f"{cell:>12}" for cell in others)
