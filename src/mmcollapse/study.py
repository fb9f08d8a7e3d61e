"""A whole study without notebooks: the chains of all experiments in one queue, those first that verdicts need most,
many at once, as many as there is time for. What earlier runs have finished is taken over from their tables."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from mmcollapse.alarms import sounded, thresholds
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import Done, Progress, Run
from mmcollapse.experiments import turn_of
from mmcollapse.pool import Pool
from mmcollapse.settings import Settings

WRITTEN = 20.0  # seconds after which tables are written again: what is cut off has lost no more


def run_study(settings: dict[str, Settings], pool: Pool, before: Path | None = None) -> list[str]:
    """Run the chains of the experiments in `settings` and write their tables (see experiment.Run and run_chains).
    before: a folder of tables whose chains are taken over. Returns what failed, a line each."""
    kept, problems = {}, []
    runs = {name: Run(name, s, before, kept, partly=True) for name, s in settings.items()}
    for run in runs.values():
        done = len(run.chains) - len(run.todo) + len(run.again) - run.apart
        print(f"{run.experiment}: {len(run.chains)} chains, {done} of them done by earlier runs", flush=True)
    run_chains(runs, pool)
    for run in runs.values():
        try:
            run.finish()
        except MMCollapseError as error:
            problems.append(str(error))
            print(f"mmcollapse: {error}", file=sys.stderr)
    return problems


def run_chains(runs: dict[str, Run], pool: Pool):
    """Run what is left of `runs`, by turns (see experiments.turn_of) and within a turn in that order, many chains at
    once, with a line for each as it ends."""
    todo = [(run.again.get(chain, chain), chain) for run in runs.values() for chain in run.todo]
    todo.sort(key=lambda pair: turn_of(pair[0].experiment, pair[0].protocol, pair[0].seed, pair[0].settings))
    todo = [chain for _, chain in todo]
    progress = Progress(len(todo), max(r.settings.generations for r in runs.values()))
    changed, ended = set(), threading.Event()
    with ThreadPoolExecutor(1) as aside:  # while the workers are at the chains
        worlds = [aside.submit(run.measure_world) for run in runs.values()]
        writer = aside.submit(_write_on, runs, changed, ended)
        try:
            for done in pool.run(todo):
                runs[done.chain.experiment].add(done)
                changed.add(done.chain.experiment)
                progress.chain(f"{done.chain.experiment} {done.chain.name}", done.seconds)
                if told := alarms(runs[done.chain.experiment], done):
                    progress.note(f"    alarms: {', '.join(told)}")
                if writer.done():
                    writer.result()  # raises what ended it: the disk may be full
        except BaseException:
            for world in worlds:  # those that have not begun
                world.cancel()
            raise
        finally:  # whatever ends it, what was done is kept
            ended.set()
        for world in worlds:
            world.result()
        writer.result()


def _write_on(runs: dict[str, Run], changed: set[str], ended: threading.Event):
    """Write the tables of `changed` every WRITTEN seconds, whether or not another chain ends, and once more at the
    end."""
    while True:
        last = ended.wait(WRITTEN)
        while changed:
            runs[changed.pop()].write()
        if last:
            return


def alarms(run: Run, done: Done) -> list[str]:
    """Which alarms sounded in a chain, and since when; none as long as real data were not measured."""
    if not run.reference or not done.rows:
        return []
    planned = run.settings.generations
    found = sounded(pd.DataFrame(done.rows), planned, thresholds(pd.DataFrame(run.reference), planned))
    several = found.model.nunique() > 1
    found = found[found.generation.notna()]
    return [f"{r.alarm}{f' ({r.model})' if several else ''} since {r.generation:.0f}" for r in found.itertuples()]
