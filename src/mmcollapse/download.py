"""One file from a plain URL: goes on where it stopped, is checked, and is unpacked with care."""

from __future__ import annotations

import http.client
import os
import re
import stat
import time
import urllib.error
import urllib.request
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from mmcollapse.disk import checksum, is_full, sync
from mmcollapse.errors import MMCollapseError

TRIES = 5  # in a row that bring nothing
WAIT = 1.0  # seconds before the second try; doubled for each further one
TIMEOUT = 30  # seconds without an answer
CHUNK = 2**20
SHOWN = 10**7  # bytes from which on a download has a bar
OTHERWISE = "give a mirror (MIRROR={}https://...) or a folder with the files (FROM=folder)"
FINAL = {  # answers that another try would not change
    401: "wants a login",
    403: "refuses access",
    404: "has no such file",
    410: "has the file no more",
}


class Refused(MMCollapseError):
    """The server will not give a file; `code`: its answer."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code


def download(url: str, target: Path, size: int, sha256: str, told: str, token: str = "") -> None:
    """Bring `url` to `target`: `size` bytes with that sha256, or with any if it is "".

    What has come lies in `target`.part, and another call goes on from there if the server can (Range, RFC 9110 section
    14). Lost connections and busy servers are tried again, with growing pauses, TRIES times in a row without a byte.
    told: what else to do if the server cannot be used; token: to log in with. Raises MMCollapseError: refused,
    unreachable, another file than expected, disk full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    part.touch()
    host, failed = urlsplit(url).netloc, 0
    told_size = {"total": size, "unit": "B", "unit_scale": True, "disable": size < SHOWN}
    with tqdm(desc=target.name, initial=_size(part), **told_size) as bar:
        while _size(part) != size:
            before = _size(part)
            try:
                _rest(url, part, size, bar, token)
            except (OSError, http.client.HTTPException) as error:
                if is_full(error):
                    raise disk_full(target.parent) from error
                if (code := getattr(error, "code", None)) in FINAL:
                    raise Refused(f"{host} {FINAL[code]} ({code}): {url}; {told}", code) from error
                failed = 0 if _size(part) > before else failed + 1
                if failed == TRIES:
                    raise MMCollapseError(f"{host} cannot be reached ({reason(error)}): connect, or {told}") from error
                time.sleep(WAIT * 2 ** max(0, failed - 1))
    if sha256 and (found := checksum(part)["sha256"]) != sha256:
        part.unlink()  # nothing in it can be trusted
        raise MMCollapseError(
            f"{url} gave {target.name} with sha256 {found}, not {sha256}: removed; if it comes again, {told}"
        )
    sync(part)
    os.replace(part, target)


def _rest(url: str, part: Path, size: int, bar, token: str) -> None:
    """Append what is missing to `part`, or begin anew where the server sends all."""
    if (have := _size(part)) > size:
        part.write_bytes(b"")
        have = 0
    headers = {"User-Agent": "mmcollapse"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    if token:  # not for the host of the bytes, to which the hub redirects
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there does not go with what the server has
            part.write_bytes(b"")
        raise
    with answer:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        resumed = answer.status == 206 and told is not None and int(told[1]) == have
        if answer.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise ConnectionError(f"answered with another part than asked for: {answer.headers.get('Content-Range')}")
        total = int(told[2]) if resumed else int(answer.headers.get("Content-Length") or size)
        if total != size:
            raise MMCollapseError(f"{url} has {total:,} bytes, not {size:,}: it is another file than expected")
        bar.n = have if resumed else 0
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if _size(part) < size:
        raise ConnectionError(f"connection closed after {_size(part):,} of {size:,} bytes")


def unpack(archive: Path, folder: Path, patterns: list[str]) -> list[str]:
    """Take the files whose names fit one of the patterns (of fnmatch) from a ZIP archive into `folder`; their names.

    Files that are there with the right size are kept, so that an interrupted call can be made again. A name that leads
    out of `folder`, or a link, is refused before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            fit = [m for m in file.infolist() if any(fnmatchcase(m.filename, p) for p in patterns) and not m.is_dir()]
            for member in fit:
                path = PurePosixPath(member.filename)
                link = stat.S_ISLNK(member.external_attr >> 16)
                if link or path.is_absolute() or ".." in path.parts or "\\" in member.filename:
                    raise MMCollapseError(f"{archive} holds {member.filename}, which leads out of its folder: refused")
            if not fit:
                raise MMCollapseError(f"{archive} holds nothing that fits {', '.join(patterns)}")
            for member in tqdm(fit, f"unpacking {archive.name}", disable=len(fit) < 100):
                target = folder / member.filename
                if target.is_file() and target.stat().st_size == member.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.part")
                with file.open(member) as source, open(part, "wb") as out:
                    copyfileobj(source, out, CHUNK)
                os.replace(part, target)
    except zipfile.BadZipFile as error:
        raise MMCollapseError(f"{archive} is damaged ({error}): remove it and fetch again") from error
    except OSError as error:
        if is_full(error):
            raise disk_full(folder) from error
        raise
    return [member.filename for member in fit]


def disk_full(folder: Path) -> MMCollapseError:
    return MMCollapseError(
        f"the disk of {folder} is full: make room; what has come stays, and the same command goes on"
    )


def reason(error: BaseException) -> str:
    """The first cause of a failed connection, or the server's answer, in one line."""
    if code := getattr(error, "code", None):
        return f"answered {code}"
    while (cause := getattr(error, "reason", None) or error.__cause__ or error.__context__) is not None:
        if not isinstance(cause, BaseException):
            return str(cause)
        error = cause
    return (str(error) or type(error).__name__).splitlines()[0]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
