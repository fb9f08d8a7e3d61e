"""What a profile needs from elsewhere, and where that is: `sources.toml`, the hub, its mirrors.

A source goes to one place below `data/`:

    models/hub/OWNER--NAME/       a model of the hub, as a plain save_pretrained folder
    models/instruments/NAME/      what metrics/spaces.py opens: inception, clip, dino
    photos/NAME/                  data
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from mmcollapse.download import OTHERWISE, Refused, download, reason
from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import ROOT, Settings

SOURCES = Path(__file__).with_name("sources.toml")
DATA = ROOT / "data"
HUB = "https://huggingface.co"
ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")  # so "./own" and "../own" are paths
PATIENCE = 10.0  # seconds for the hub to say what a repository holds


@dataclass(frozen=True)
class Origin:
    """Where files are taken from. mirrors: {host: URL to use instead}; folder: one with the layout of data/, which is
    then the only origin."""

    mirrors: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def at(self, url: str) -> str:
        """`url`, or where the mirror of its host has it."""
        parts = urlsplit(url)
        mirror = self.mirrors.get(parts.netloc)
        return f"{mirror.rstrip('/')}{parts.path}" if mirror else url


def open_origin(mirrors: Iterable[str] = (), folder: str = "") -> Origin:
    """An Origin from the command line. mirrors: "https://host" for the hub, "images.cocodataset.org=https://host/coco"
    for another host. MMCollapseError: no URL, no such folder."""
    found = {}
    for text in mirrors:
        host, equals, url = text.rpartition("=") if not text.startswith("http") else ("", "", text)
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise MMCollapseError(f"mirror={text!r}: expected https://... for the hub, or HOST=https://...")
        found[host or urlsplit(HUB).netloc] = url
    if folder and not Path(folder).is_dir():
        raise MMCollapseError(f"from={folder!r}: there is no such folder")
    return Origin(found, Path(folder) if folder else None)


class Remote(NamedTuple):
    """A file of a repository. path: where it goes in the folder; name: in the repository; sha256 or, of small files,
    git's blob id: what its content is checked by."""

    path: str
    name: str
    bytes: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class Source:
    """name: for people; place: below data/; target: another folder that the user wants it in, or ""; bytes: as
    documented, 0 if they are not."""

    name: str
    place: str
    licence: str
    bytes: int = 0
    target: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.target) if self.target else DATA / self.place


@dataclass(frozen=True)
class Model(Source):
    """A repository of the hub; the fields are explained in sources.toml."""

    repo: str = ""
    revision: str = "main"
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    variant: str = ""
    gated: bool = False
    parameters: int = 0
    trained: int = 0
    lora: int = 0
    sha256: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """Its name in the record of what was fetched."""
        return self.place

    @property
    def wanted(self) -> str:
        """What the record is compared with: when this changes, it is fetched anew."""
        return self.revision

    def listing(self, origin: Origin, commit: str = "") -> tuple[str, list[Remote]]:
        """(commit, files to fetch), as the hub says now, or of a commit. MMCollapseError: it cannot be asked, expects
        a login, has no safetensors, or other files than documented."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import filter_repo_objects

        endpoint, sums = origin.at(HUB), dict(self.sha256)
        try:
            revision = commit or self.revision
            info = HfApi(endpoint=endpoint).model_info(
                self.repo, revision=revision, files_metadata=True, timeout=PATIENCE
            )
        except Exception as error:  # of the hub's own kinds or of its HTTP library, which changes with its versions
            raise self.in_words(error, endpoint) from error
        files = filter_repo_objects(
            info.siblings, allow_patterns=list(self.allow), ignore_patterns=list(self.ignore), key=lambda s: s.rfilename
        )
        out = []
        for file in files:
            name, sha256 = file.rfilename, file.lfs.sha256 if file.lfs else ""
            if sums.get(name, sha256) != sha256:
                raise MMCollapseError(f"{endpoint} has another {self.repo}/{name} than sources.toml expects: {sha256}")
            path = name.replace(f".{self.variant}.", ".") if self.variant else name
            out.append(Remote(path, name, file.size or 0, sha256, file.blob_id or ""))
        if not any(file.path.endswith(".safetensors") for file in out):
            raise MMCollapseError(
                f"{self.repo} has no safetensors at revision {revision}, and pickles are not fetched, for to open one "
                f"is to run it: look for a conversion among the pull requests of {HUB}/{self.repo} and name its "
                f"revision, {self.repo}@refs/pr/NUMBER"
            )
        return info.sha, out

    def bring(self, file: Remote, commit: str, origin: Origin) -> None:
        """Download one file. Not by huggingface_hub, which begins a file anew in each process
        (since its pull request 4228)."""
        from huggingface_hub import get_token, hf_hub_url

        endpoint = origin.at(HUB)
        url = hf_hub_url(self.repo, file.name, revision=commit, endpoint=endpoint)
        try:
            download(url, self.folder / file.path, file.bytes, file.sha256, OTHERWISE.format(""), get_token() or "")
        except Refused as error:
            raise self.no_access(endpoint, error.code) from error

    def no_access(self, endpoint: str, code: int | None) -> MMCollapseError:
        if self.gated or code == 403:  # to who may not read at all the hub says 401 or 404
            return MMCollapseError(
                f"{self.repo} is gated: accept its licence at {HUB}/{self.repo}, and set HF_TOKEN to a token of the "
                "account that did"
            )
        return MMCollapseError(
            f"{endpoint} has no {self.repo}, or not for everyone ({code}): check the name, and HF_TOKEN"
        )

    def in_words(self, error: Exception, endpoint: str) -> MMCollapseError:
        """What went wrong between us and the hub, in one line that says what to do."""
        from huggingface_hub import errors

        code = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.RevisionNotFoundError):
            return MMCollapseError(f"{self.repo} has no revision {self.revision} at {endpoint}")
        if code in (401, 403, 404):
            return self.no_access(endpoint, code)
        why = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else reason(error)
        return MMCollapseError(
            f"{urlsplit(endpoint).netloc} cannot be reached ({why}): connect, or {OTHERWISE.format('')}"
        )


@dataclass(frozen=True)
class Plain(Source):
    """A file of a plain URL, sha256 known. unpack: patterns of what is taken from an archive, () if the file itself is
    wanted; holds: ((folder, number of files in it), ...) afterwards."""

    url: str = ""
    sha256: str = ""
    unpack: tuple[str, ...] = ()
    holds: tuple[tuple[str, int], ...] = ()

    @property
    def file(self) -> Path:
        return self.folder / self.url.rpartition("/")[2]

    @property
    def key(self) -> str:
        return f"{self.place}/{self.file.name}"

    @property
    def wanted(self) -> str:
        return self.sha256

    def takes(self, path: str) -> bool:
        """Whether `path`, below the folder, is of this archive."""
        return any(fnmatchcase(path, pattern) for pattern in self.unpack)


def read_sources(path: Path | None = None) -> dict:
    """sources.toml as it is. MMCollapseError: it is damaged."""
    path = path or SOURCES
    try:
        told = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise MMCollapseError(f"{path} is damaged: {error}") from error
    if missing := {"patterns", "models", "instruments", "data"} - set(told):
        raise MMCollapseError(f"{path} is damaged: it has no [{missing.pop()}]")
    return told


def sources_of(name: str, told: dict | None = None) -> list[Source]:
    """The sources of a name: OWNER/NAME or OWNER/NAME@REVISION of the hub, an instrument, or data. A model that
    sources.toml does not know is fetched by its general patterns. MMCollapseError: the name is unknown."""
    told = told or read_sources()
    for kind, folder in (("instruments", "models/instruments"), ("data", "photos")):
        if name in told[kind]:
            entry, place = told[kind][name], f"{folder}/{name}"
            if "model" in entry:
                return [replace(s, place=place, name=f"{name}: {s.name}") for s in sources_of(entry["model"], told)]
            common = {"place": place, "licence": entry["licence"]}
            return [_frozen(Plain, common | {"name": f"{name}: {_last(f['url'])}"} | f) for f in entry["files"]]
    match = ON_HUB.fullmatch(name)
    if not match:
        known = ", ".join([*told["instruments"], *told["data"]])
        raise MMCollapseError(f"what={name!r}: allowed are models of the hub (OWNER/NAME[@REVISION]), {known}")
    repo, revision = match.groups()
    entry = told["patterns"] | told["models"].get(repo, {"licence": f"unknown: see {HUB}/{repo}"})
    entry |= {"revision": revision} if revision else {}
    return [_frozen(Model, entry | {"name": repo, "repo": repo, "place": f"models/hub/{repo.replace('/', '--')}"})]


def hub_folder(name: str) -> Path | None:
    """Where a model lies after `make fetch`, if `name` is one of the hub (OWNER/NAME[@REVISION]) and not of a folder
    here; else None."""
    match = ON_HUB.fullmatch(name)
    return DATA / "models" / "hub" / match[1].replace("/", "--") if match and not Path(name).is_dir() else None


def photos_folder(name: str) -> Path | None:
    """Where data lie after `make fetch`, if `name` is of those in sources.toml and not of a folder here; else None."""
    return DATA / "photos" / name if name in read_sources()["data"] and not Path(name).is_dir() else None


def needed(settings: Iterable[Settings]) -> list[Source]:
    """What runs with these settings need from elsewhere: models of the hub, instruments, and data if the setting
    `data` is a name that sources.toml knows, or the folder data/photos/NAME of one."""
    told, out = read_sources(), {}
    for s in settings:
        for name in _names(s.generators, s.captioners, s.further):
            if hub_folder(name):
                out |= {source.key: source for source in sources_of(name, told)}
        for name in _names(s.spaces):
            if name in told["instruments"]:
                target = str(s.instruments_folder / name) if s.instruments else ""
                out |= {source.key: replace(source, target=target) for source in sources_of(name, told)}
        for name in told["data"] if s.world == "photos" else ():
            if s.data_folder.resolve() == (DATA / "photos" / name).resolve():
                out |= {source.key: source for source in sources_of(name, told)}
    return list(out.values())


def _names(*texts: str) -> list[str]:
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _last(url: str) -> str:
    return url.rpartition("/")[2]


def _frozen(kind: type, entry: dict):
    plain = {list: tuple, dict: lambda value: tuple(value.items())}
    try:
        return kind(**{name: plain.get(type(value), lambda v: v)(value) for name, value in entry.items()})
    except TypeError as error:
        raise MMCollapseError(f"{SOURCES} is damaged, at {entry['name']}: {error}") from error
