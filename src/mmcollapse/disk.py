"""Small things done to files with care: written whole or not at all, brought to the disk, checked."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: Exception) -> bool:
    """Whether `error` says that a disk, a quota or a size limit is reached, in whatever way a library says that."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(os.strerror(code) in str(error) for code in FULL)  # libraries in Rust or C++ put it into words


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`: at any moment, and after a kill, there is the old content or the new."""
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_bytes(content)
        sync(draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk, so that a rename never outlives the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> dict:
    """{"sha256": 64 hex digits, "bytes": size} of a file."""
    with open(path, "rb") as handle:
        return {"sha256": hashlib.file_digest(handle, "sha256").hexdigest(), "bytes": path.stat().st_size}


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free(path: Path) -> int:
    """MiB free where `path` is, or would be."""
    there = next(place for place in [path, *path.absolute().parents] if place.exists())
    return shutil.disk_usage(there).free // 2**20
