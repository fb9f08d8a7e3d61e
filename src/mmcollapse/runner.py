"""Runs the notebooks without a browser: one process each, parameters from the command line, progress as it happens.

The executed notebook is kept beside its table. A notebook that fails does not stop the others.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mmcollapse.claims import say
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS, arms_of, listed, seeds_of
from mmcollapse.fetch import check
from mmcollapse.pool import cores
from mmcollapse.protocol import ROLES
from mmcollapse.settings import ROOT, Settings, load_settings
from mmcollapse.sources import hub_folder, needed, photos_folder
from mmcollapse.stats import SEEDS_NEEDED
from mmcollapse.table import read_table

NOTEBOOKS = ROOT / "notebooks"
READS_STUDENTS = "05_quality_robustness"
EXPLORER = "00_explore"  # for people: it makes nothing, so `run` leaves it out
FOLDERS = ("data", "models", "instruments", "runs", "results", "figures")  # settings that name a folder
# No bars, for nobody watches them; and threads that wait do not spin: that halves the time when others use the cores.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "TQDM_DISABLE": "1"}
APART = 3.0  # seconds between two starts: kernels that look for free ports at the same moment may find the same
STAGES = ("making data", "fine-tuning", "measuring", "drawing")


def chosen(only: str | None) -> list[str]:
    """Names of the experiments to run, all or the one called `only`; MMCollapseError if there is no such notebook."""
    names = [name for name in EXPERIMENTS if (NOTEBOOKS / f"{name}.ipynb").is_file()]
    if only and only not in names:
        raise MMCollapseError(f"only={only!r}: the notebooks are {', '.join(names)}")
    return [only] if only else names


def parameters(profile: str, changes: dict, names: list[str]) -> tuple[dict[str, Settings], dict]:
    """The settings by notebook, refused by name if anything is wrong with them, and what a notebook needs to be told to
    get them. Folders become absolute: a kernel may run elsewhere than where the command was given."""
    settings = {name: load_settings(profile, name, **changes) for name in names}
    first = settings[names[0]]
    named = {name: getattr(first, name) for name in FOLDERS}
    if photos_folder(first.data):  # a name and no folder
        named.pop("data")
    told = {"profile": profile} | changes | {n: str(Path(v).absolute()) for n, v in named.items() if v}
    for name in told.keys() & {"generators", "captioners"}:
        models = [str(Path(m).absolute()) if _is_path(m) else m for m in map(str.strip, told[name].split(","))]
        told[name] = ",".join(models)
    return settings, told


def _is_path(model: str) -> bool:
    """Whether the name of a model is a folder's, and not the zoo's or the hub's."""
    return "/" in model and not hub_folder(model)


@dataclass
class Outcome:
    """What came of one notebook. seconds: by stage (STAGES, and "all")."""

    name: str
    problem: str  # "" if it went well
    log: Path
    files: list[Path]
    seconds: dict[str, float]


def run(profile: str, changes: dict, only: str | None = None, jobs: int = 0) -> int:
    """Run the notebooks, `jobs` at once (0: see `at_once`), and say what was made; 0, or 1 if any failed, or 130 if
    interrupted."""
    from mmcollapse.experiment import check_folders  # here, for it imports much

    names = chosen(only)
    settings, told = parameters(profile, changes, names)
    if READS_STUDENTS in names and not only and not any(s.students for n, s in settings.items() if EXPERIMENTS[n]):
        print(f"{READS_STUDENTS} is left out: it asks what students have learned, and there are none (students=0)")
        names = [name for name in names if name != READS_STUDENTS]
        settings = {name: settings[name] for name in names}
    if len(names) > 1 and settings[names[0]].arms:
        raise MMCollapseError(
            f"arms={settings[names[0]].arms!r}: of which experiment? Name it, such as ONLY={names[0]}"
        )
    if jobs < 0:
        raise MMCollapseError(f"jobs={jobs}: allowed are 1 or more, or 0 for as many as the cores bear")
    arms = {name: arms_of(name, settings[name]) for name in names}
    refuse_shipped(settings)
    check(needed(settings.values()))
    for name in names:
        check_folders(settings[name], arms[name])
    try:
        outcomes = run_all(settings, told, jobs or at_once(settings[names[0]]))
    except KeyboardInterrupt:
        print(f"\nmmcollapse: interrupted. {resume(settings[names[0]])}", file=sys.stderr)
        return 130
    report(outcomes, settings[names[0]])
    return 1 if any(o.problem for o in outcomes) else 0


def refuse_shipped(settings: dict[str, Settings]):
    """MMCollapseError: a table that git keeps would be written over. settings: by experiment."""
    for name, s in settings.items():
        if (table := s.results_folder / f"{name}.parquet").is_file() and _tracked(table):
            raise MMCollapseError(
                f"{_short(table)} is shipped, and no run writes over it: give another folder (RESULTS=...)"
            )


def at_once(settings: Settings) -> int:
    """How many notebooks run side by side: on a CPU one a core, for each computes on one; on a GPU one."""
    return cores() if settings.resolved_device() == "cpu" else 1


def run_all(settings: dict[str, Settings], told: dict, jobs: int) -> list[Outcome]:
    """Run notebooks, at most `jobs` at once, each in a process of its own; their lines reach the terminal as they come.
    Those without chains of their own read the tables of the others, and wait for all that stand before them."""
    # Those with chains first, side by side the longest first: then little waits for little.
    several, reads = min(jobs, len(settings)) > 1, {name: not EXPERIMENTS.get(name, True) for name in settings}
    waiting = sorted(settings, key=lambda n: (reads[n], -_work(n, settings[n]) if several else 0))
    running, outcomes = [], []
    lines: queue.Queue[tuple[str, str]] = queue.Queue()
    begun = -math.inf
    try:
        while waiting or running:
            free = len(running) < jobs and time.monotonic() - begun > APART
            if waiting and free and (not reads[waiting[0]] or not running):
                name, begun = waiting.pop(0), time.monotonic()
                at, all_ = len(settings) - len(waiting), len(settings)
                profile = settings[name].profile
                print(f"[{at}/{all_}] {name}, profile {profile}: libraries and models are loading", flush=True)
                running.append(Job(name, settings[name], told, lines))
            try:
                name, line = lines.get(timeout=0.1)
                print(f"{name[:2]} | {line}" if several else line, end="", flush=True)
                continue  # all lines of a notebook before its end
            except queue.Empty:
                pass
            for job in [job for job in running if job.ended()]:
                running.remove(job)
                outcomes.append(job.outcome())
                if several:
                    print(f"{job.name}: {'FAILED' if outcomes[-1].problem else 'done'}", flush=True)
    finally:
        for job in running:
            job.child.terminate()  # all of them first, for each may take some seconds to end
        for job in running:
            job.end()
    return sorted(outcomes, key=lambda o: list(settings).index(o.name))


def resume(settings: Settings, only: str = "") -> str:
    """How to go on."""
    one = f", or with ONLY={only} for that one alone" if only else ""
    store = _short(settings.runs_folder)
    return f"To resume, give the same command again{one}: what is finished in {store} is not done again."


def _work(name: str, settings: Settings) -> int:
    """Model-generations that an experiment trains, at most."""
    zoo = {role: tuple(listed(settings, f"{role}s")) for role in ROLES}
    arms = [(p, len(seeds_of(name, p, settings))) for p in arms_of(name, settings)]
    return settings.generations * sum(n * sum(m.role in p.trains for m in p.members(zoo)) for p, n in arms)


class Job:
    """One notebook in a process of its own. Its lines go to `lines` with its name, and to RESULTS/<name>.log."""

    def __init__(self, name: str, settings: Settings, told: dict, lines: queue.Queue):
        self.name, self.settings, self.last, self.unwritten = name, settings, "", ""
        folder = settings.results_folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.executed = folder / f"{name}.log", folder / f"{name}.ipynb"
        order = {"notebook": str(NOTEBOOKS / f"{name}.ipynb"), "output": str(self.executed), "parameters": told}
        self.began, self.now = time.monotonic(), time.time()
        self._note("", "w")
        # In a session of its own, so that Ctrl-C comes to the runner alone and the end is orderly.
        self.child = subprocess.Popen(
            [sys.executable, "-m", "mmcollapse.runner", json.dumps(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=ENVIRONMENT,
        )
        self.reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self.reader.start()

    def _read(self, lines: queue.Queue):
        for line in self.child.stdout:  # to its end whatever happens, or the notebook would wait for ever
            lines.put((self.name, line))
            self.last = line.strip() or self.last
            self._note(line, "a")

    def _note(self, text: str, mode: str):
        try:
            with open(self.log, mode) as record:
                record.write(text)
        except OSError as error:  # such as a full disk
            self.unwritten = f"its log could not be written ({error})"

    def ended(self) -> bool:
        """Whether the process has ended and all its lines have come."""
        return not self.reader.is_alive() and self.child.poll() is not None

    def outcome(self) -> Outcome:
        """What came of it; waits for its end."""
        code, folder = self.child.wait(), self.settings.results_folder
        problem = (self.last or f"the process ended with {code} and said nothing") if code else self.unwritten
        places = (folder, self.settings.figures_folder)
        made = {p for place in places for p in place.glob(f"{self.name}*") if p.stat().st_mtime >= self.now}
        made |= {self.log} & set(folder.iterdir())  # a silent notebook's keeps its first stamp, a tick before `now`
        seconds = _seconds(folder / f"{self.name}.json", self.executed, self.now, self.began)
        return Outcome(self.name, problem, self.log, sorted(made), seconds)

    def end(self):
        """End the process; its kernel sees that within a second and ends as well."""
        self.child.terminate()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def _seconds(provenance: Path, executed: Path, now: float, began: float) -> dict[str, float]:
    """Seconds by stage: of the run from its provenance, of drawing from the cells tagged `draw`."""
    found = dict.fromkeys(STAGES, 0.0)
    if provenance.is_file() and provenance.stat().st_mtime >= now:
        found |= json.loads(provenance.read_text()).get("stages", {})
    if executed.is_file() and executed.stat().st_mtime >= now:
        for cell in json.loads(executed.read_text())["cells"]:
            if "draw" in cell["metadata"].get("tags", []):
                found["drawing"] += cell["metadata"].get("papermill", {}).get("duration") or 0
    return found | {"all": time.monotonic() - began}


def report(outcomes: list[Outcome], settings: Settings):
    """Print a line for each file, the seconds of each stage, and what failed."""
    print("\nmade")
    for path in (p for o in outcomes for p in o.files):
        print(f"  {_short(path):<60} {path.stat().st_size / 1024:8,.0f} KiB")
    for o in outcomes:
        if not o.problem and EXPERIMENTS.get(o.name):
            print("\n" + _verdicts(o.name, settings.results_folder / f"{o.name}.parquet"))
    print("\n" + f"{'seconds':>24}" + "".join(f"{h:>14}" for h in (*STAGES, "other", "all")))
    for o in outcomes:
        values = [o.seconds[s] for s in STAGES]
        values += [o.seconds["all"] - sum(values), o.seconds["all"]]
        print(f"{o.name:>24}" + "".join(f"{v:14.1f}" for v in values))
    print(
        "  other: students, waiting for another notebook's work, starting a kernel, imports, opening models, statistics"
    )
    if settings.seeds < SEEDS_NEEDED:
        few = "one seed decides" if settings.seeds == 1 else f"{settings.seeds} seeds decide"
        print(f'\nNote: {few} nothing. A verdict needs {SEEDS_NEEDED} (SET="seeds={SEEDS_NEEDED}", or PROFILE=study).')
    if failed := [o for o in outcomes if o.problem]:
        print(f"\n{len(failed)} of {len(outcomes)} notebooks FAILED", file=sys.stderr)
        for o in failed:
            print(f"  {o.name}: {o.problem}\n    log: {_short(o.log)}", file=sys.stderr)
        print(resume(settings, failed[0].name), file=sys.stderr)


def _verdicts(name: str, table: Path) -> str:
    """A line for each claim, from the table of an experiment."""
    lines = say({name: read_table(table)}).splitlines()
    return "\n".join(line.replace("**", "") for line in lines if line.startswith("- "))


def _tracked(path: Path) -> bool:
    """Whether git keeps `path`."""
    try:
        return (
            subprocess.run(["git", "ls-files", "--error-unmatch", path], cwd=ROOT, capture_output=True).returncode == 0
        )
    except OSError:  # no git here
        return False


def _short(path: str | Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def prepare(name: str, told: dict, copy: Path) -> Path:
    """A copy of a notebook with its parameters in it, not executed."""
    import papermill

    copy.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", copy, told, prepare_only=True, progress_bar=False)
    return copy


def validate(changes: dict, only: str | None = None) -> int:
    """Run copies of the notebooks at `smoke` through nbval, which checks that no cell raises; pytest's exit status."""
    names = chosen(only)
    settings, told = parameters("smoke", changes, names)
    folder, figures = settings[names[0]].results_folder, settings[names[0]].figures_folder
    copies = [prepare(n, told, folder / "validate" / f"{n}.ipynb") for n in names]
    if not only:  # it shows what the others made
        shown = {"profile": "smoke", "results": str(folder.absolute()), "figures": str(figures.absolute())}
        copies.append(prepare(EXPLORER, shown, folder / "validate" / f"{EXPLORER}.ipynb"))
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(copies[0].parent),
    ]
    return subprocess.run([*pytest, "-c", os.devnull, *map(str, copies)], env=ENVIRONMENT).returncode


def _execute(notebook: str, output: str, parameters: dict) -> int:
    """What the notebook's own process does. The last line that it prints says what went wrong."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    live = {"stdout_file": sys.stdout, "stderr_file": sys.stdout, "progress_bar": False}
    try:
        papermill.execute_notebook(notebook, output, parameters, extra_arguments=["--log-level=ERROR"], **live)
    except PapermillExecutionError as error:
        own = error.ename in {c.__name__ for c in (MMCollapseError, *MMCollapseError.__subclasses__())}
        print("" if own else "\n".join(error.traceback))
        print(f"{error.ename}: {' '.join(error.evalue.split())}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_execute(**json.loads(sys.argv[1])))
