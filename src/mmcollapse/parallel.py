"""One chain on several GPUs of a machine, by accelerate: every process runs the same chain, makes its share of the
pictures and captions, and trains on its share of every batch. `make study GPUS=2` starts them.

What is made and trained depends on keys alone, never on which process it is for, so the results are those of one GPU,
to rounding. All processes ask the store for the same things in the same order; the first alone writes.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import Settings
from mmcollapse.store import Item, Store, item_name

LAUNCHED = "MMCOLLAPSE_LAUNCHED"  # set in the processes that `launch` starts
_state = None  # accelerate's PartialState, where there are several


def processes() -> int:
    """How many run this chain together; 1 if this one is alone."""
    return _state.num_processes if _state else 1


def rank() -> int:
    """The number of this process: 0, 1, ..."""
    return _state.process_index if _state else 0


def launch(gpus: int, device: str, command: list[str]) -> int:
    """Run `python -m mmcollapse` with the words of `command` in so many processes, on a CPU too; its exit status.
    MMCollapseError: there are not so many GPUs."""
    if device == "cuda":
        import torch

        if gpus > (there := torch.cuda.device_count()):
            raise MMCollapseError(f"gpus={gpus}: this machine has {there}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    return subprocess.run([*launcher, "-m", "mmcollapse", *command], env=os.environ | {LAUNCHED: "1"}).returncode


def together(settings: dict[str, Settings]) -> int:
    """Run the experiments in `settings`, in that order and chain by chain, as one of several processes; 0, or 1 if a
    chain failed. All but the first process write their tables to a folder of no use, and say nothing."""
    with one_of_several(settings) as own:
        return _run_all(own)


def _run_all(settings: dict[str, Settings]) -> int:
    from mmcollapse.experiment import run_experiment  # here, for it imports this module

    failed = 0
    for name, own in settings.items():
        try:
            run_experiment(name, own)
        except MMCollapseError as error:
            failed = 1
            print(f"mmcollapse: {error}", file=sys.stderr)
    return failed


@contextmanager
def one_of_several(settings: dict[str, Settings]):
    """Within it this process is one of those that `launch` started. Gives the settings that it is to run with."""
    global _state
    from accelerate import PartialState

    _state = PartialState(cpu=next(iter(settings.values())).resolved_device() == "cpu")
    try:
        if rank() == 0:
            yield settings
            return
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
            before, sys.stdout = sys.stdout, nowhere
            try:
                yield {name: replace(s, results=folder) for name, s in settings.items()}
            finally:
                sys.stdout = before
    finally:
        _state.destroy_process_group()
        _state = None


def in_shares(make: Callable) -> Callable:
    """Of an adapter's `make`: each process makes an equal share of the samples, and all get all of them."""

    @functools.wraps(make)
    def made(self, given, decoding, keys, batch: int = 64):
        if processes() == 1 or len(keys) < processes():
            return make(self, given, decoding, keys, batch)
        from accelerate.utils import gather_object

        rows = share(len(keys))
        try:
            own = make(self, given[rows], decoding, keys[rows], batch)
        except MMCollapseError as error:  # such as too little memory on this GPU: the others wait for its share
            own = error
        parts = gather_object([own])
        if errors := [part for part in parts if isinstance(part, MMCollapseError)]:
            raise errors[0]
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [text for part in parts for text in part]

    return made


def share(n: int) -> slice:
    """The part of n things that is this process's."""
    first, end = (n * k // processes() for k in (rank(), rank() + 1))
    return slice(first, end)


class SharedStore(Store):
    """A store that several processes ask for the same things in the same order. What is not there all of them make
    together, and the first puts it there."""

    def make(self, kind: str, inputs: Mapping, maker) -> Item:
        """As `Store.make`, by all processes together."""
        name = item_name(kind, inputs)

        def there() -> bool:
            return self._sound(name, maker, with_files=False) is not None

        with self._first_at_work(name):
            if not self._first(there, name):
                self._made(lambda: self._build(name, kind, inputs, maker), maker, name)
        return Item(self, self._read(name), maker)

    def prune(self, item: Item, keep=()) -> bool:
        """As `Store.prune`, once all processes have come here."""
        _state.wait_for_everyone()  # one of them may still be reading
        return self._first(lambda: super(SharedStore, self).prune(item, keep), item.name)

    def _ready(self, item: Item) -> Path:
        def whole() -> bool:
            unread = self._checked.get(item.name) != item.digest
            manifest = self._sound(item.name, item.maker, with_files=unread)
            return manifest is not None and not manifest.get("pruned")

        with self._first_at_work(item.name):
            if not self._first(whole, item.name):
                self._made(lambda: self._restore(item), item.maker, item.name)
            elif self._first(lambda: self._checked.get(item.name) != item.digest, item.name):
                self._first(lambda: self._restore(item), item.name)
        return item.folder

    def _first_at_work(self, name: str):
        """The first process holds the lock from its question to the end of what all make: another study on this store
        may be at the same thing, and if it finished in between, the others would make it without the first."""
        return self._at_work(name) if rank() == 0 else nullcontext()

    def _made(self, by_first: Callable, maker, name: str):
        """Make something together. An error of one process is one of all, or they would be out of step."""
        from accelerate.utils import gather_object

        own = None
        if rank():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    maker(Path(folder))
                except MMCollapseError as error:
                    own = error
        self._first(by_first, name)
        if errors := [error for error in gather_object([own]) if error is not None]:
            raise errors[0]

    def _first(self, ask: Callable, name: str) -> bool:
        """Whether what the first process asks comes out true, for all of them; or the error that it raises."""
        from accelerate.utils import broadcast_object_list

        told = [False, None]
        if rank() == 0:
            try:
                with self._room_for(name):
                    told[0] = bool(ask())
            except MMCollapseError as error:
                told[1] = error
        broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]
