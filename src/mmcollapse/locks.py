"""Two kinds of lock for processes that share a folder. The system frees both when a process ends, however it ends."""

import fcntl
import functools
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def working_on(name: str, locks: Path, wait: bool = True) -> Iterator[bool]:
    """Be the only one at work on `name`. With wait=False, False at once if another is at work."""
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / name, "w") as handle:
        mine = _take(handle, patience=2.0 if wait else 0.0)
        if wait and not mine:
            log.warning("waiting for another process, which is at work on %s", name)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield mine or wait
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not do if a worker was forked meanwhile


def _take(handle, patience: float) -> bool:
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() - begun >= patience:
                return False
            time.sleep(0.05)


def start_using(name: str, locks: Path) -> None:
    """This process uses `name`, until it says otherwise or ends."""
    _record(name, locks, fcntl.LOCK_SH)


def stop_using(name: str, locks: Path) -> None:
    """Give up the hold of this process on a folder."""
    _record(name, locks, fcntl.LOCK_UN)


def used_by_others(name: str, locks: Path) -> bool:
    """Whether another process uses `name`. If not, none can begin to until this one calls stop_using."""
    try:
        _record(name, locks, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    return False


def _record(name: str, locks: Path, how: int) -> None:
    # A record lock on one byte of one file: unlike flock it belongs to the process, and a thousand cost one open file.
    byte = int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)
    fcntl.lockf(_open_once((locks / "in-use").resolve()), how, 1, byte)


@functools.cache
def _open_once(path: Path) -> int:
    # Never closed: closing any descriptor of a file drops all record locks that the process holds on it.
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
