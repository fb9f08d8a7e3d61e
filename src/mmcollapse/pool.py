"""Many chains at once, by dask.distributed: a process for each worker, several on one GPU, or any cluster that has a
scheduler. What a chain needs and leaves lies in the store, so a worker that dies loses nothing: its chain goes on
elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec

from mmcollapse.errors import MMCollapseError, StoreFull

SHARE = 8  # chains that one GPU takes at once
kept: dict = {}  # of a worker's process: models and instruments that are open


class NoRoom(MMCollapseError):
    """The memory of a worker's GPU ran out. args: the address of the worker, and what the GPU's library said."""

    def __str__(self):
        return f"a GPU's memory does not hold one chain ({self.args[1]}): a GPU with more, or a smaller compute_batch"


def work(chain, errors: dict):
    """Run a chain in a worker. errors: those of the arm that it copies, see loop.Study. Raises NoRoom."""
    import warnings

    import torch
    from distributed import get_worker

    from mmcollapse.experiment import open_study, run_one

    warnings.filterwarnings("ignore")
    _own_gpu()
    try:
        study, tools = open_study(chain.settings, [chain.protocol], kept)
        study.errors, study.copied = errors, (chain.protocol.arm,) if chain.copied else ()
        done = run_one(study, tools, chain)
    except torch.OutOfMemoryError as error:  # that no smaller batch has helped, or that came where there are none
        raise NoRoom(get_worker().address, str(error).partition(". ")[0]) from None
    done.items = tuple(replace(item, maker=None) for item in done.items)  # makers cannot travel
    done.shown = [(replace(item, maker=None), prompts, told) for item, prompts, told in done.shown]
    return done


def _own_gpu():
    """The GPUs of this machine in turn, by the numbers of a local cluster's workers."""
    import torch
    from distributed import get_worker

    name = get_worker().name
    if torch.cuda.is_available() and isinstance(name, int):
        torch.cuda.set_device(name % torch.cuda.device_count())


def cores() -> int:
    """Cores that this process may use, where the system can say; else all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def at_once(gpu: bool) -> int:
    """How many chains run side by side: one a core; on a GPU as many as share it without waiting for each other, and no
    more than there are cores."""
    import torch

    return min(cores(), SHARE * torch.cuda.device_count()) if gpu else cores()


class Pool:
    """Runs chains on the workers of a dask client. until: when (time.monotonic) everything must be done; chains that
    would take longer are left for another run. Every chain begins and ends in one run, on one device."""

    def __init__(self, client, until: float | None = None):
        self.client, self.until = client, until
        self.paces: deque[float] = deque(maxlen=50)  # seconds a unit of cost, of the last chains: the first are slower

    def run(self, chains: list) -> Iterator:
        """experiment.Done of each experiment.Chain, as they come, begun in their order."""
        from distributed import as_completed

        self.client.wait_for_workers(1)
        slots = len(self.client.scheduler_info(n_workers=-1)["workers"])
        waiting, running, errors = list(chains), {}, {}
        results = as_completed()
        while waiting or running:
            for chain in list(waiting):
                if len(running) >= slots:
                    break
                if not self._fits(chain):
                    waiting.remove(chain)
                    continue
                key = (chain.protocol.noise_like, chain.seed)
                if key[0] and key not in errors:  # what it copies is not there yet, or is left for another run as well
                    if all((c.protocol.arm, c.seed) != key for c in (*waiting, *running.values())):
                        waiting.remove(chain)
                    continue
                theirs = errors.get(key, {})
                future = self.client.submit(work, chain, theirs, pure=False)
                waiting.remove(chain)
                running[future] = chain
                results.add(future)
            if not running:
                break
            future = next(results)
            chain = running.pop(future)
            if future.status == "error":
                error = future.exception()
                if isinstance(error, NoRoom) and slots > 1:  # the others go on, one fewer, with the memory it had
                    slots -= 1
                    self.client.retire_workers([error.args[0]])
                    waiting.insert(0, chain)
                    print(
                        f"out of memory ({error.args[1]}): {slots} chains at once from here on",
                        file=sys.stderr,
                        flush=True,
                    )
                    continue
                if isinstance(error, StoreFull) or not isinstance(error, MMCollapseError):
                    self.client.cancel(list(running))
                    raise error
            done = future.result()
            self.paces.append(done.seconds / cost(chain))
            if chain.copied and not done.failure:
                errors[chain.protocol.arm, chain.seed] = done.errors
            yield done

    def _fits(self, chain) -> bool:
        slowest = max(self.paces, default=0.0)
        return self.until is None or time.monotonic() + 1.1 * slowest * cost(chain) < self.until


def cost(chain) -> float:
    """How long a chain takes, in units of one model's generations."""
    from mmcollapse.experiments import listed
    from mmcollapse.protocol import ROLES

    p, settings = chain.protocol, chain.settings
    members = len(p.members({role: tuple(listed(settings, f"{role}s")) for role in ROLES}))
    times = p.compute * ((settings.generations + 1) / 2 + p.anchored if p.keep == "accumulate" else 1)
    return settings.generations * members * (1 + times) / 2


@contextmanager
def open_pool(workers: int, gpu: bool, minutes: float = 0.0, scheduler: str = ""):
    """A Pool of `workers` processes on this machine, or of whatever has joined the scheduler at that address. minutes:
    0 is no limit. Several processes on one GPU compute at the same time only under NVIDIA's MPS, which is started if it
    is there and ended with the pool."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MMCollapseError(f"workers={workers}: needs dask (pip install 'mmcollapse[cluster]'): {error}") from error
    until = time.monotonic() + 60 * minutes if minutes else None
    with ExitStack() as stack:
        if scheduler:
            try:
                client = stack.enter_context(Client(scheduler, timeout=10))
            except OSError as error:
                raise MMCollapseError(f"scheduler={scheduler!r}: no dask scheduler answers there ({error})") from error
        else:
            if gpu:
                stack.enter_context(mps())
            place = stack.enter_context(tempfile.TemporaryDirectory())
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                local_directory=place,
                preload=["mmcollapse.experiment"],  # takes as long to import as some generations to run
                dashboard_address=":0" if find_spec("bokeh") else None,  # which is what draws it
                memory_limit=0,
                silence_logs="ERROR",
                env={"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "passive"},
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        if link := client.dashboard_link if find_spec("bokeh") else "":
            print(f"the workers at work: {link}", flush=True)
        yield Pool(client, until)


@contextmanager
def mps():
    """NVIDIA's multi-process service for processes that are started within, if this machine has it and none runs."""
    control = shutil.which("nvidia-cuda-mps-control")
    if not control or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as place:
        own = {"CUDA_MPS_PIPE_DIRECTORY": f"{place}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{place}/log"}
        for folder in own.values():
            os.mkdir(folder)
        os.environ.update(own)
        began = subprocess.run([control, "-d"], capture_output=True).returncode == 0
        if not began:
            for name in own:
                del os.environ[name]
        try:
            yield
        finally:
            if began:
                subprocess.run([control], input="quit\n", text=True, capture_output=True)
                for name in own:
                    del os.environ[name]
