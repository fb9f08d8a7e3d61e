"""`make fetch`: what a profile needs from elsewhere is brought here beforehand; then no run needs a network.

What was fetched stands in `data/models/fetched.json`: commits, sizes, checksums. Every later call compares with it,
byte by byte: what is missing or changed is fetched again, and a commit is kept even where `sources.toml` names a
branch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from mmcollapse import sources
from mmcollapse.disk import checksum, free, is_full, remove, write_whole
from mmcollapse.download import OTHERWISE, disk_full, download, unpack
from mmcollapse.errors import MMCollapseError
from mmcollapse.locks import working_on
from mmcollapse.sources import HUB, Model, Origin, Plain, Remote, Source

FEW = 100  # files of an archive: up to here each has its checksum in the record, beyond it they are counted
SPARE = 2**30  # bytes that a disk should have left
LONG = 10**9  # bytes whose checksums take so long that progress is shown


def record_file() -> Path:
    return sources.DATA / "models" / "fetched.json"


def read_record(path: Path | None = None) -> dict[str, dict]:
    """{key of a source: {"from", "revision", "commit", "files": {path: {"sha256", "bytes"}}, "folders": {path:
    {"files", "bytes"}}}}; nothing before the first fetch. MMCollapseError: the record is damaged."""
    path = path or record_file()
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise MMCollapseError(
            f"{path} is damaged ({error}): remove it and fetch again, which compares with the hub"
        ) from error


def missing(source: Source, record: dict[str, dict], whole: bool = True) -> list[str]:
    """What of a source is not here as it was fetched, a line each; [] if all is. whole: compare checksums too, and not
    sizes alone."""
    entry = record.get(source.key)
    if entry is None:
        path = ", and no folder here" if source.place.startswith("models/hub/") else ""  # a path, mistyped, is a name
        return [f"{source.name}: never fetched{path}"]
    if entry["revision"] != source.wanted:
        return [f"{source.name}: fetched at {entry['revision']}, wanted is {source.wanted}"]
    out, long = [], whole and sum(part["bytes"] for part in entry["files"].values()) > LONG
    for path, expected in tqdm(entry["files"].items(), f"checking {source.name}", disable=not long):
        if why := _differs(source.folder / path, expected["bytes"], expected["sha256"] if whole else ""):
            out.append(f"{source.name}: {path} {why}")
    for path, expected in entry["folders"].items():
        found = _counted(source, path)
        if found != expected:
            out.append(f"{source.name}: {path} has {found['files']} files of {found['bytes']} bytes, not {expected}")
    return out


def check(needs: Iterable[Source]) -> None:
    """That all of the sources are here, by names and sizes; instruments and data that somebody else has put in their
    place are not ours to judge. MMCollapseError says in one line what is not here, and how to get it."""
    record = read_record()
    lines = [line for source in needs if not _put_there(source, record) for line in missing(source, record, False)]
    if lines:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise MMCollapseError(f"{lines[0]}{more}: run `make fetch` with this profile, on a machine with a network")


def _put_there(source: Source, record: dict[str, dict]) -> bool:
    """Whether a source was never fetched, nor begun to be, and its folder holds something. The folders of the hub's
    models are only ever fetched into."""
    if source.key in record or source.place.startswith("models/hub/") or not source.folder.is_dir():
        return False
    names = [path.name for path in source.folder.iterdir()]
    if any(name.endswith(".part") for name in names):
        return False
    if isinstance(source, Model):
        return any(name.endswith(".safetensors") for name in names)
    return source.file.name not in names if source.unpack else source.file.name in names


def plan(needs: list[Source], origin: Origin) -> str:
    """What would be fetched, in words: from where, how much, to where, under which licence, and what is there. The hub
    is asked for sizes; where it does not answer, they are those of sources.toml."""
    record, lines, total, silent = read_record(), [], 0, ""
    for source in needs:
        size, documented, trouble = source.bytes, isinstance(source, Model), ""
        if not (lacking := missing(source, record, whole=False)):
            size, documented = sum(part["bytes"] for part in _parts(record[source.key])), False
        elif isinstance(source, Model) and not origin.folder and not silent:
            try:
                size, documented = sum(f.bytes for f in source.listing(origin, _commit(source, record))[1]), False
            except MMCollapseError as error:
                trouble = str(error)
                if " cannot be reached " in trouble:  # then nor for the next: ask once
                    silent = trouble
        total += size if lacking else 0
        state = ("damaged" if source.key in record else "to fetch") if lacking else "there"
        about = " (about, as documented)" if documented else ""
        gated = isinstance(source, Model) and source.gated
        accept = f"; gated: accept it at {HUB}/{source.repo} and set HF_TOKEN" if gated else ""
        lines += [
            f"{source.name}  {state}, {gigabytes(size) if size else 'size unknown'}{about}",
            f"    from {_from(source, origin)}",
            f"    to {os.path.relpath(source.folder)}",
            f"    licence: {source.licence}{accept}",
        ]
        lines += [f"    {trouble}"] if trouble else []
    room = free(sources.DATA) * 2**20
    return "\n".join([*lines, f"to fetch: {gigabytes(total)}; free where it goes: {gigabytes(room)}"])


def fetch(needs: list[Source], origin: Origin) -> None:
    """Bring all sources here that are not, and check them. MMCollapseError: something cannot be had; what has come
    stays, and the next call goes on from there."""
    with working_on("fetch", sources.DATA / "models" / ".locks"):
        for source in needs:
            record = read_record()
            if not missing(source, record):
                print(f"{source.name}: there")
                continue
            bring = _copy if origin.folder else _hub if isinstance(source, Model) else _plain
            entry = bring(source, origin, record)
            write_whole(record_file(), json.dumps(read_record() | {source.key: entry}, indent=1).encode())
            if lacking := missing(source, read_record(), whole=False):
                raise MMCollapseError(f"after fetching, {'; '.join(lacking[:3])}")
            print(f"{source.name}: fetched, {gigabytes(sum(part['bytes'] for part in _parts(entry)))}")


def _hub(source: Model, origin: Origin, record: dict) -> dict:
    commit, files = source.listing(origin, _commit(source, record))
    known = record.get(source.key, {})
    known = known["files"] if known.get("commit") == commit else {}  # small files have no sha256 but ours
    lacking = [f for f in files if _other(source.folder / f.path, f, known.get(f.path, {}).get("sha256", ""))]
    _room(source.folder, sum(f.bytes for f in lacking))
    for file in tqdm(lacking, source.name, disable=len(lacking) < 2):
        remove(source.folder / file.path)
        source.bring(file, commit, origin)
        if why := _other(source.folder / file.path, file):
            remove(source.folder / file.path)
            raise MMCollapseError(f"{source.repo}/{file.name} {why}, after fetching it from {origin.at(HUB)}: removed")
    found = {f.path: checksum(source.folder / f.path) for f in files}
    return {"from": origin.at(HUB), "revision": source.wanted, "commit": commit, "files": found, "folders": {}}


def _plain(source: Plain, origin: Origin, record: dict) -> dict:
    url, host = origin.at(source.url), urlsplit(source.url).netloc
    if _differs(source.file, source.bytes, source.sha256):
        _room(source.folder, source.bytes * (2 if source.unpack else 1))
        remove(source.file)
        download(url, source.file, source.bytes, source.sha256, OTHERWISE.format(f"{host}="))
    return _opened(source, source.file, url)


def _opened(source: Plain, archive: Path, url: str) -> dict:
    """Unpack an archive that was checked, and say what it gave."""
    entry: dict = {"from": url, "revision": source.wanted, "files": {}, "folders": {}}
    if not source.unpack:
        entry["files"][source.file.name] = {"sha256": source.sha256, "bytes": source.bytes}
        return entry
    entry |= _gave(source, unpack(archive, source.folder, list(source.unpack)))
    if archive == source.file:
        remove(archive)  # it is as large as what was in it
    return entry


def _gave(source: Plain, names: list[str]) -> dict:
    if len(names) <= FEW:
        return {"files": {name: checksum(source.folder / name) for name in names}}
    folders = {folder: _counted(source, folder) for folder in sorted({name.rpartition("/")[0] for name in names})}
    for folder, count in source.holds:
        if folders.get(folder, {}).get("files") != count:
            raise MMCollapseError(f"{source.name}: {folder} should hold {count} files, not {folders.get(folder)}")
    return {"folders": folders}


def _copy(source: Source, origin: Origin, record: dict) -> dict:
    """From a folder with the layout of data/: linked if it is on the same disk, else copied; checked in both cases."""
    there, theirs = origin.folder / source.place, read_record(origin.folder / "models" / "fetched.json")
    entry = theirs.get(source.key, {})
    if isinstance(source, Plain) and (archive := there / source.file.name).is_file():
        if why := _differs(archive, source.bytes, source.sha256):
            raise MMCollapseError(f"{archive} {why}")
        if source.unpack:
            return _opened(source, archive, str(archive))
    names = sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())
    if isinstance(source, Plain):
        names = [name for name in names if (source.takes(name) if source.unpack else name == source.file.name)]
    elif entry:
        names = [name for name in names if name in entry["files"]]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if isinstance(source, Model) and not any(name.endswith(".safetensors") for name in names) or not names:
        raise MMCollapseError(
            f"{source.name} is not in {there}: expected there is what `make fetch` puts in data/{source.place}"
        )
    _room(source.folder, sum((there / name).stat().st_size for name in names))
    for name in tqdm(names, source.name, disable=len(names) < FEW):
        _link(there / name, source.folder / name)
    if isinstance(source, Plain):
        return {"from": str(there), "revision": source.wanted, "files": {}, "folders": {}} | (
            _gave(source, names) if source.unpack else {"files": {source.file.name: checksum(source.file)}}
        )
    files = {name: checksum(source.folder / name) for name in names}
    documented = {name: {"sha256": sha256} for name, sha256 in source.sha256}
    for name, expected in (entry.get("files", {}) | documented).items():
        if files.get(name, {}).get("sha256") != expected["sha256"]:
            remove(source.folder / name)
            raise MMCollapseError(f"{there / name} is not there as it should be: expected sha256 {expected['sha256']}")
    return {
        "from": str(there),
        "revision": source.wanted,
        "commit": entry.get("commit", ""),
        "files": files,
        "folders": {},
    }


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    remove(part)
    try:
        try:
            os.link(path.resolve(), part)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(path, part)
        os.replace(part, target)
    except OSError as error:
        remove(part)
        if is_full(error):
            raise disk_full(target.parent) from error
        raise


def _commit(source: Model, record: dict) -> str:
    """The commit that was fetched before, if it was of the revision that is wanted now."""
    entry = record.get(source.key, {})
    return entry.get("commit", "") if entry.get("revision") == source.wanted else ""


def _other(path: Path, file: Remote, sha256: str = "") -> str:
    """Why `path` is not the hub's file, or "". sha256: of the record."""
    if why := _differs(path, file.bytes, file.sha256 or sha256):
        return why
    if not file.sha256 and file.blob:  # git's id of a file that it holds itself
        found = hashlib.sha1(b"blob %d\0" % file.bytes + path.read_bytes()).hexdigest()
        return "" if found == file.blob else f"has git's id {found}, not {file.blob}"
    return ""


def _differs(path: Path, size: int, sha256: str) -> str:
    if not path.is_file():
        return "is not there"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes, not {size:,}"
    if sha256 and (found := checksum(path)["sha256"]) != sha256:
        return f"has sha256 {found}, not {sha256}"
    return ""


def _counted(source: Source, folder: str) -> dict[str, int]:
    """{"files", "bytes"} of what the source has put into a folder."""
    place, sizes = source.folder / folder, []
    for entry in os.scandir(place) if place.is_dir() else ():
        if source.takes(f"{folder}/{entry.name}" if folder else entry.name):
            sizes.append(entry.stat().st_size)
    return {"files": len(sizes), "bytes": sum(sizes)}


def _parts(entry: dict) -> list[dict]:
    return [*entry["files"].values(), *entry["folders"].values()]


def _room(folder: Path, size: int) -> None:
    if (room := free(folder) * 2**20) < size + SPARE:
        raise MMCollapseError(
            f"the disk of {folder} has {gigabytes(room)} free, and {gigabytes(size)} are to come: make room, or make "
            f"{sources.DATA} a link to another disk"
        )


def _from(source: Source, origin: Origin) -> str:
    if origin.folder:
        return str(origin.folder / source.place)
    if isinstance(source, Model):
        return f"{origin.at(HUB)}/{source.repo} at {source.revision}"
    return origin.at(source.url)


def gigabytes(size: int) -> str:
    """ "13.5 GB", "3 MB": decimal, as hubs and disks count."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
