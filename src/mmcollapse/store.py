"""The store: folders named by a hash of what they were made from.

Equal inputs give an equal name, so equal work is done once, whoever asks for it. A folder is built as a hidden sibling
(`.<name>.part`), synced, and renamed into place: a name that exists is complete. Its `manifest.json` says what it was
made from, when, with which versions, and the checksum of every file. Beside the folders of each kind, `locks/` lets
several processes use one store, and `damaged/` keeps what failed its checksum.
"""

import functools
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from mmcollapse import disk, locks
from mmcollapse.digests import canonical_json, digest_arrays, digest_of
from mmcollapse.errors import Damaged, MMCollapseError, ParentChanged, StoreFull
from mmcollapse.pairs import load_pairs, save_pairs

__all__ = ["KINDS", "Item", "Store", "digest_arrays", "digest_of", "item_name", "load_pairs", "save_pairs"]

# The version of what each kind of thing means. Bump it when the same inputs begin to make something else: old folders
# keep their names and are simply not asked for any more. tests/test_semantics.py notices a change without a bump.
KINDS = {"weights": 4, "pairs": 3, "scores": 1}

MANIFEST = "manifest.json"
PACKAGES = ("mmcollapse", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pyarrow", "pillow")

Maker = Callable[[Path], Mapping]


def item_name(kind: str, inputs: Mapping) -> str:
    """The name of what `inputs` make: its kind and 20 hex digits."""
    if kind not in KINDS:
        raise MMCollapseError(f"unknown kind {kind!r}: the store knows {', '.join(KINDS)}")
    return f"{kind}-{digest_of([kind, KINDS[kind], inputs])[:20]}"


@dataclass
class Item:
    """A finished thing in the store, as its manifest describes it. Its files may have been pruned: ask files()."""

    store: "Store"
    manifest: dict
    maker: Maker | None = None  # None: found by name, so it can be read but not made again

    name = property(lambda self: self.manifest["name"])
    kind = property(lambda self: self.manifest["kind"])
    inputs = property(lambda self: self.manifest["inputs"])
    digest = property(lambda self: self.manifest["digest"])
    facts = property(lambda self: self.manifest["facts"])
    folder = property(lambda self: self.store.folder(self.name))  # whether or not the files are there

    def files(self) -> Path:
        """The folder, every file present and checked (once a process); other processes will not prune it meanwhile.

        Pruned or damaged files are made again: ParentChanged if they come out with another digest. An item that was
        found by name cannot be: then Damaged, or MMCollapseError if pruned.
        """
        return self.store._ready(self)


class Store:
    """A folder of content-addressed things, which several processes may use at the same time."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._locks = self.root / "locks"
        self._checked: dict[str, str] = {}  # name -> digest of what this process has verified
        self._swept = False

    def folder(self, name: str) -> Path:
        """Where the thing of that name lies, or would."""
        return self.root / name.split("-")[0] / name

    def make(self, kind: str, inputs: Mapping, maker: Maker) -> Item:
        """What `maker` makes of `inputs` (JSON-able, everything that decides the content and nothing else): once.

        `maker(folder)` writes files into an empty folder and returns facts to record. The fact "digest" is required: a
        string that is equal for equal content. Raises StoreFull; whatever else `maker` raises passes through.
        """
        name = item_name(kind, inputs)
        try:
            manifest = self._read(name)
        except Damaged:
            manifest = None  # looked at again below, under the lock
        if manifest is None:
            with self._at_work(name):
                manifest = self._sound(name, maker, with_files=False) or self._build(name, kind, inputs, maker)
        return Item(self, manifest, maker)

    def prune(self, item: Item, keep: Iterable[str] = ()) -> bool:
        """Delete the files of `item`, but not its manifest and `keep`. False if another process uses them: none is."""
        with self._at_work(item.name):
            self._checked.pop(item.name, None)
            try:
                if locks.used_by_others(item.name, self._locks):
                    return False
                if (manifest := self._read(item.name)) is None:
                    return True
                # The manifest first: a kill in between leaves files that nobody trusts, and the next prune removes.
                item.manifest = {**manifest, "pruned": True}
                _write_manifest(item.folder, item.manifest)
                for path in item.folder.iterdir():
                    if path.name not in {MANIFEST, *keep}:
                        disk.remove(path)
                return True
            finally:
                locks.stop_using(item.name, self._locks)

    def items(self, kind: str | None = None) -> list[Item]:
        """Everything finished, pruned or not, by name. A damaged manifest is named in a warning and left out."""
        found = []
        for folder in sorted(folder for k in KINDS if kind in (None, k) for folder in self.root.glob(f"{k}/{k}-*")):
            try:
                if manifest := self._read(folder.name):
                    found.append(Item(self, manifest))
            except Damaged as damage:
                warnings.warn(str(damage), stacklevel=2)
        return found

    def find(self, prefix: str) -> Item:
        """The one item whose name, or whose hash, begins with `prefix`; MMCollapseError if there is none or several."""
        found = [i for i in self.items() if i.name.startswith(prefix) or i.name.split("-")[1].startswith(prefix)]
        if len(found) != 1:
            names = ", ".join(item.name for item in found[:5]) or "none"
            raise MMCollapseError(f"{prefix!r} should begin one name in {self.root}; it begins: {names}")
        return found[0]

    def _ready(self, item: Item) -> Path:
        """See Item.files."""
        if self._checked.get(item.name) != item.digest:
            with self._at_work(item.name):
                self._restore(item)
        return item.folder

    def _restore(self, item: Item) -> None:
        """Check the files of `item`, whose lock is held, and make again what is missing or damaged."""
        locks.start_using(item.name, self._locks)
        manifest = self._sound(item.name, item.maker, with_files=True)
        if manifest is None or (manifest.get("pruned") and manifest["digest"] == item.digest):
            if item.maker is None:
                raise MMCollapseError(f"the files of {item.name} were pruned; a rerun can make them again")
            manifest = self._build(item.name, item.kind, item.inputs, item.maker)
        if manifest["digest"] != item.digest:
            raise ParentChanged(
                f"{item.name} was made again and came out different (digest {manifest['digest'][:12]}, before "
                f"{item.digest[:12]}): what was made from it is invalid. Run again, and that is made anew"
            )
        self._checked[item.name] = item.digest

    def _read(self, name: str) -> dict | None:
        """The manifest, which carries its own checksum; None if there is no such folder."""
        try:
            manifest = json.loads((self.folder(name) / MANIFEST).read_bytes())
            if manifest.pop("checksum") == digest_of(manifest) and manifest["name"] == name:
                return manifest
        except FileNotFoundError:
            if not self.folder(name).exists():
                return None
        except (ValueError, KeyError, TypeError, AttributeError, MMCollapseError):
            pass  # not JSON, or not a manifest
        raise Damaged(f"{name} is damaged: {MANIFEST} is missing or fails its checksum")

    def _sound(self, name: str, maker: Maker | None, with_files: bool) -> dict | None:
        """The manifest if all is well; what is damaged and can be made again is set aside, as if it had not been."""
        try:
            manifest = self._read(name)
            if with_files and manifest is not None and not manifest.get("pruned"):
                _verify(self.folder(name), manifest)
            return manifest
        except Damaged as damage:
            if maker is None:
                raise
            aside = self.root / "damaged" / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
            aside.parent.mkdir(exist_ok=True)
            os.rename(self.folder(name), aside)
            warnings.warn(f"{damage}. It was set aside as {aside} and is made again", stacklevel=4)
            return None

    def _build(self, name: str, kind: str, inputs: Mapping, maker: Maker) -> dict:
        """Make `name`, whose lock is held, and put it in place; or leave no trace."""
        folder = self.folder(name)
        part = folder.with_name(f".{name}.part")
        inputs = json.loads(canonical_json(inputs))  # what is recorded is what was named, even if the maker changes it
        begun = time.monotonic()
        self._sweep()
        disk.remove(part)
        part.mkdir(parents=True)
        try:
            facts = json.loads(canonical_json(dict(maker(part) or {})))
            digest = facts.pop("digest", None)
            if not isinstance(digest, str) or (part / MANIFEST).exists():
                raise MMCollapseError(f"the maker of {name} must return a digest, and leave {MANIFEST} to the store")
            manifest = {"kind": kind, "name": name, "version": KINDS[kind], "inputs": inputs, "digest": digest}
            manifest |= {"facts": facts, "packages": _packages()}
            paths = sorted(part.rglob("*"))
            files = [path for path in paths if path.is_file()]
            manifest["files"] = {path.relative_to(part).as_posix(): disk.checksum(path) for path in files}
            manifest["seconds"] = round(time.monotonic() - begun, 3)
            manifest["made_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            for path in paths:
                disk.sync(path)
            _write_manifest(part, manifest)
            if folder.exists():  # it was pruned, and remains so until the new manifest replaces the old one, last
                for path in sorted(part.iterdir(), key=lambda path: path.name == MANIFEST):
                    if path.is_dir():
                        disk.remove(folder / path.name)
                    os.replace(path, folder / path.name)
                disk.sync(folder)
                disk.remove(part)
            else:
                os.rename(part, folder)
            disk.sync(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return manifest

    def _sweep(self) -> None:
        """Once a process: remove what killed processes left half made, that is, every part that nobody works on."""
        parts = [] if self._swept else list(self.root.glob("*/.*.part"))
        self._swept = True
        for part in parts:
            with locks.working_on(part.name[1 : -len(".part")], self._locks, wait=False) as nobody:
                if nobody:
                    disk.remove(part)

    @contextmanager
    def _at_work(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`, and name a full disk."""
        with self._room_for(name), locks.working_on(name, self._locks):
            yield

    @contextmanager
    def _room_for(self, name: str) -> Iterator[None]:
        """Turn whatever a library calls a full disk into StoreFull."""
        try:
            yield
        except Exception as error:
            if isinstance(error, MMCollapseError) or not disk.is_full(error):
                raise
            raise StoreFull(
                f"disk full while writing {name} under {self.root} ({error}). What was unfinished is removed, and "
                f"{disk.free(self.root)} MiB are free now: free more and rerun; nothing finished is lost"
            ) from error


def _write_manifest(folder: Path, manifest: dict) -> None:
    text = json.dumps({**manifest, "checksum": digest_of(manifest)}, indent=1, sort_keys=True) + "\n"
    disk.write_whole(folder / MANIFEST, text.encode())


def _verify(folder: Path, manifest: dict) -> None:
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise Damaged(f"{manifest['name']} is damaged: {name} is missing")
        if disk.checksum(folder / name) != expected:
            raise Damaged(f"{manifest['name']} is damaged: {name} fails its checksum")


@functools.cache
def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
