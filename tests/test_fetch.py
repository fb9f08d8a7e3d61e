"""Fetching, from servers that this test runs: a hub as far as huggingface_hub asks it, and one with every fault."""

import errno
import hashlib
import http.server
import io
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from mmcollapse import download, fetch, sources
from mmcollapse.__main__ import main
from mmcollapse.download import unpack
from mmcollapse.errors import MMCollapseError
from mmcollapse.fetch import check, missing, plan, read_record
from mmcollapse.settings import load_settings
from mmcollapse.sources import Model, Origin, Plain, hub_folder, needed, open_origin, read_sources, sources_of

REPO, COMMIT = "someone/tiny", "a" * 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """files: {path: bytes} for plain URLs; repos: {name: {"files": {path: bytes}, "gated": bool, "refs": {revision:
    commit}}}. Faults: ranges=False knows no Range; breaks: bytes after which each answer ends, in turn; stuck:
    bytes after which an answer that is longer stops coming; says: {path:
    [status, ...]} are answered first; lies: {path: bytes that come instead};
    moved: {path: URL}. asked, tokens: of each request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.repos, self.says, self.lies = {}, {}, {}, {}
        self.ranges, self.breaks, self.stuck, self.asked = True, [], [], []
        self.moved, self.tokens = {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get("Range", "")))
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.says.get(path):
            return self.send(self.server.says[path].pop(0))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self.describe(*match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, commit, name = match.groups()
            if self.server.repos[repo].get("gated"):
                return self.send(403, headers={"X-Error-Code": "GatedRepo"})
            assert commit in self.server.repos[repo]["refs"].values(), "fetched by its commit, whatever the branch is"
            data = self.server.repos[repo]["files"][name]
            if name in self.server.moved:
                return self.send(302, headers={"Location": self.server.moved[name]})
            return self.give(self.server.lies.get(name, data), {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit})
        data = self.server.files.get(path)
        return self.send(404) if data is None else self.give(data, {})

    do_HEAD = do_GET

    def describe(self, repo, revision):
        known = self.server.repos.get(repo)
        if known is None:
            return self.send(404, headers={"X-Error-Code": "RepoNotFound"})
        commit = known["refs"].get(revision, revision if revision in known["refs"].values() else None)
        if commit is None:
            return self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": blob(data)}
            | ({"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 1}} if large(data) else {})
            for name, data in known["files"].items()
        ]
        told = {"id": repo, "sha": commit, "gated": "auto" if known.get("gated") else False, "siblings": siblings}
        return self.send(200, json.dumps(told).encode())

    def give(self, data, headers):
        start, status = 0, 200
        if (asked := self.headers.get("Range")) and self.server.ranges:
            start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
            start, end = int(start), int(end or len(data) - 1)
            if start >= len(data):
                return self.send(416)
            headers |= {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
            status = 206
        return self.send(status, data[start:], headers)

    def send(self, status, data=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if data and self.server.breaks and status in (200, 206) and not self.path.startswith("/api/"):
            data = data[: self.server.breaks.pop(0)]
            self.close_connection = True
        if self.server.stuck and len(data) > self.server.stuck[0]:
            self.wfile.write(data[: self.server.stuck.pop()])
            while not self.rfile.read1(1):  # until the other end is gone
                return
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def large(data: bytes) -> bool:
    return len(data) > 200  # what a hub keeps apart, by sha256


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(data: bytes) -> str:
    return sha256(data) if large(data) else blob(data)


@pytest.fixture
def server():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """data/ of this test, and no waiting."""
    monkeypatch.setattr(sources, "DATA", tmp_path / "data")
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def hub(server):
    """A repository with all that may lie in one."""
    server.repos[REPO] = {
        "refs": {"main": COMMIT},
        "files": {
            "config.json": b"{}",
            "model.safetensors": np.random.default_rng(0).bytes(300_000),
            "model.fp16.safetensors": b"half" * 100,
            "pytorch_model.bin": b"pickle" * 100,
            "modeling_tiny.py": b"print()",
            "tokenizer/merges.txt": b"a b",
            "README.md": b"card",
            "flax_model.msgpack": b"flax" * 100,
        },
    }
    return Origin({"huggingface.co": server.url})


@pytest.fixture
def nowhere():
    """A port where nothing listens."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- models of the hub


def test_a_model_is_fetched_as_a_plain_folder_once(server, hub, place, capsys):
    needs = sources_of(REPO)
    fetch.fetch(needs, hub)
    files = server.repos[REPO]["files"]
    wanted = ["config.json", "model.safetensors", "tokenizer/merges.txt"]  # no pickle, no code, no second copy
    assert contents(place / "models/hub/someone--tiny") == {name: files[name] for name in wanted}
    (entry,) = read_record().values()
    assert entry["commit"] == COMMIT and entry["files"]["config.json"] == {"sha256": sha256(b"{}"), "bytes": 2}
    server.asked.clear()
    fetch.fetch(needs, hub)
    check(needs)
    assert server.asked == [] and capsys.readouterr().out.splitlines()[-1] == f"{REPO}: there"


def test_a_branch_that_moved_on_does_not_move_what_was_fetched(server, hub, place):
    needs = sources_of(REPO)
    fetch.fetch(needs, hub)
    server.repos[REPO]["refs"] |= {"old": COMMIT, "main": "b" * 40}
    (place / "models/hub/someone--tiny/config.json").unlink()
    fetch.fetch(needs, hub)
    assert read_record()[needs[0].key]["commit"] == COMMIT
    fetch.fetch(sources_of(f"{REPO}@{'b' * 40}"), hub)  # unless it is asked for
    assert read_record()[needs[0].key]["commit"] == "b" * 40


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_was_changed_is_noticed_and_fetched_again(server, hub, place, name):
    needs = sources_of(REPO)
    fetch.fetch(needs, hub)
    path = place / "models/hub/someone--tiny" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert name in missing(needs[0], read_record())[0] and missing(needs[0], read_record(), whole=False) == []
    server.asked.clear()
    fetch.fetch(needs, hub)
    assert path.read_bytes() == whole
    assert {p.rpartition("/")[2] for c, p, _ in server.asked if "resolve" in p} == {name}  # and nothing else
    path.unlink()
    with pytest.raises(MMCollapseError, match=f"{name} is not there: run `make fetch`"):
        check(needs)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_hub_that_gives_other_bytes_than_it_says_is_refused(server, hub, place, name):
    data = server.repos[REPO]["files"][name]
    server.lies[name] = data[:-1] + b"!"
    with pytest.raises(MMCollapseError, match=rf"{name} .*(sha256|git's id) .*, not .*: removed"):
        fetch.fetch(sources_of(REPO), hub)
    assert not (place / "models/hub/someone--tiny" / name).exists() and read_record() == {}


KILLED = """
import os, sys, threading, time
from pathlib import Path
from mmcollapse import fetch, sources

sources.DATA = Path(sys.argv[1])

def die():
    while not any(path.stat().st_size >= 10_000_000 for path in sources.DATA.rglob("*.part")):
        time.sleep(0.001)
    os._exit(9)

threading.Thread(target=die, daemon=True).start()
fetch.fetch(sources.sources_of(sys.argv[2]), sources.open_origin([sys.argv[3]]))
"""


def test_what_was_killed_goes_on_where_it_stopped(server, hub, place):
    """Files that are whole are not asked for again, and of the others only the rest is."""
    server.repos[REPO]["files"]["model-2.safetensors"] = data = np.random.default_rng(1).bytes(25_000_000)
    server.stuck = [15_000_000]
    subprocess.run([sys.executable, "-c", KILLED, str(place), REPO, server.url], timeout=60, stderr=subprocess.DEVNULL)
    assert server.stuck == [] and read_record() == {} and not list(place.rglob("model-2.safetensors"))
    server.asked.clear()
    fetch.fetch(sources_of(REPO), hub)
    got = [(path.rpartition("/")[2], asked) for how, path, asked in server.asked if how == "GET" and "resolve" in path]
    assert "model-2.safetensors" in dict(got) and len(got) <= 3  # it is the second of four
    assert int(re.fullmatch(r"bytes=(\d+)-", dict(got)["model-2.safetensors"])[1]) >= 10_000_000
    assert (place / "models/hub/someone--tiny/model-2.safetensors").read_bytes() == data


def test_a_variant_is_stored_under_the_plain_name(server, hub, place):
    source = Model("x", "models/hub/x", "free", repo=REPO, allow=("*.json", "*.fp16.safetensors"), variant="fp16")
    fetch.fetch([source], hub)
    assert contents(place / "models/hub/x") == {"config.json": b"{}", "model.safetensors": b"half" * 100}
    server.asked.clear()
    fetch.fetch([source], hub)
    assert server.asked == []


def test_a_gated_model_says_where_to_accept_the_licence(server, hub):
    server.repos[REPO]["gated"] = True
    with pytest.raises(MMCollapseError, match=f"{REPO} is gated: accept its licence at https://.*{REPO}, .*HF_TOKEN"):
        fetch.fetch(sources_of(REPO), hub)


def test_pickles_alone_are_refused(server, hub):
    del server.repos[REPO]["files"]["model.safetensors"]
    with pytest.raises(MMCollapseError, match=f"no safetensors at revision main.*{REPO}@refs/pr/NUMBER"):
        fetch.fetch(sources_of(REPO), hub)
    server.repos[REPO]["refs"]["refs/pr/7"] = "c" * 40
    server.repos[REPO]["files"]["model.safetensors"] = b"converted"
    fetch.fetch(sources_of(f"{REPO}@refs/pr/7"), hub)
    assert read_record()[f"models/hub/{REPO.replace('/', '--')}"]["commit"] == "c" * 40


def test_another_file_than_documented_is_refused(server, hub):
    (source,) = sources_of(REPO)
    documented = fetch.sources.replace(source, sha256=(("model.safetensors", "0" * 64),))
    with pytest.raises(MMCollapseError, match="another someone/tiny/model.safetensors than sources.toml expects"):
        fetch.fetch([documented], hub)


@pytest.mark.parametrize(("name", "says"), [("no/such", "has no no/such"), (f"{REPO}@v9", "has no revision v9")])
def test_a_model_or_revision_that_is_not_there_is_named(hub, name, says):
    with pytest.raises(MMCollapseError, match=says):
        fetch.fetch(sources_of(name), hub)


def test_without_a_hub_one_line_says_what_to_do(nowhere, place, capsys):
    assert main(["fetch", "--what", "clip", "--mirror", nowhere]) == 1
    out, said = capsys.readouterr()
    assert said.count("\n") == 1 and nowhere[7:] in said and "MIRROR=https" in said and "FROM=folder" in said
    assert main(["fetch", "--what", "clip,inception,CompVis/stable-diffusion-v1-4", "--dry", "--mirror", nowhere]) == 0
    out = capsys.readouterr().out
    assert "4.3 GB (about, as documented)" in out and "to fetch: 5.0 GB" in out and out.count("cannot be reached") == 1
    assert not (place / "models/instruments").exists()


def test_offline_mode_of_the_hub_is_named(hub, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MMCollapseError, match="cannot be reached .HF_HUB_OFFLINE is set"):
        fetch.fetch(sources_of(REPO), hub)


def test_the_plan_says_what_from_where_how_much_and_what_is_there(server, hub, place):
    server.repos[REPO]["gated"] = True
    needs = [*sources_of(REPO), *sources_of("coco-2017")]
    told = plan(needs, hub)
    assert f"{REPO}  to fetch, 300 kB\n    from {server.url}/{REPO} at main\n    to " in told
    assert "licence: unknown: see https://huggingface.co/someone/tiny" in told
    assert "coco-2017: train2017.zip  to fetch, 19.3 GB\n    from http://images.cocodataset.org/zips/train2017" in told
    assert not list(place.rglob("*"))
    server.repos[REPO]["gated"] = False
    fetch.fetch(needs[:1], hub)
    server.asked.clear()
    assert f"{REPO}  there, 300 kB" in plan(needs, hub) and server.asked == []
    (needs[0].folder / "config.json").unlink()
    assert f"{REPO}  damaged" in plan(needs, hub)
    gated = sources_of("stabilityai/stable-diffusion-3-medium-diffusers")
    assert "gated: accept it at https://huggingface.co/stabilityai" in plan(gated, hub)


def test_too_small_a_disk_is_named_before_anything_comes(server, hub, monkeypatch):
    monkeypatch.setattr(fetch, "free", lambda folder: 3)
    with pytest.raises(MMCollapseError, match="has 3 MB free, and 300 kB are to come: make room"):
        fetch.fetch(sources_of(REPO), hub)
    assert not [path for _, path, _ in server.asked if "resolve" in path]


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(server, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = Server()
    threading.Thread(target=elsewhere.serve_forever, args=(0.01,), daemon=True).start()
    elsewhere.files["/bytes"] = server.repos[REPO]["files"]["model.safetensors"]
    server.moved["model.safetensors"] = f"{elsewhere.url}/bytes"
    fetch.fetch(sources_of(REPO), hub)
    elsewhere.shutdown()
    assert set(server.tokens) == {"Bearer hf_secret"} and elsewhere.tokens == [None]


# ---- files of plain URLs

DATA = np.random.default_rng(2).bytes(5_000_000)


def get(server, target, data=DATA, **changes):
    server.files["/a/b.zip"] = data
    expected = {"size": len(DATA), "sha256": sha256(DATA), "told": "or else"} | changes
    download.download(f"{server.url}/a/b.zip", target, **expected)
    return [asked for _, _, asked in server.asked]


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / "b.zip.part").write_bytes(DATA[:1_000_000])
    assert get(server, tmp_path / "b.zip") == ["bytes=1000000-"]
    assert (tmp_path / "b.zip").read_bytes() == DATA and not (tmp_path / "b.zip.part").exists()


def test_lost_connections_are_taken_up_again(server, tmp_path):
    server.breaks = [1_000_000] * 4
    assert get(server, tmp_path / "b.zip") == [""] + [f"bytes={k}000000-" for k in (1, 2, 3, 4)]
    assert (tmp_path / "b.zip").read_bytes() == DATA


def test_a_server_without_range_begins_anew(server, tmp_path):
    server.ranges, server.breaks = False, [3_000_000]
    (tmp_path / "b.zip.part").write_bytes(b"x" * 1_000_000)
    assert get(server, tmp_path / "b.zip") == ["bytes=1000000-", "bytes=3000000-"]
    assert (tmp_path / "b.zip").read_bytes() == DATA


@pytest.mark.parametrize("size", [len(DATA) + 1, 10_000_000])
def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path, size):
    (tmp_path / "b.zip.part").write_bytes(b"x" * size)
    assert get(server, tmp_path / "b.zip") == [""]


def test_busy_servers_are_asked_again_and_dead_ones_given_up(server, tmp_path):
    server.says["/a/b.zip"] = [503, 429, 500]
    get(server, tmp_path / "b.zip")
    server.says["/a/b.zip"] = [503] * 9
    server.asked.clear()
    with pytest.raises(MMCollapseError, match="127.0.0.1.* cannot be reached .answered 503.: connect, or or else"):
        get(server, tmp_path / "c.zip")
    assert len(server.asked) == download.TRIES


def test_a_server_that_only_hangs_up_is_given_up(server, tmp_path):
    server.breaks = [0] * 99
    with pytest.raises(MMCollapseError, match="connection closed after 0 of 5,000,000 bytes"):
        get(server, tmp_path / "b.zip")
    assert len(server.asked) == download.TRIES


def test_each_byte_counts_as_progress(server, tmp_path):
    server.breaks = [10] * 20  # more than TRIES
    get(server, tmp_path / "b.zip")


@pytest.mark.parametrize(("status", "says"), [(401, "wants a login"), (403, "refuses access"), (404, "no such file")])
def test_an_answer_that_is_final_is_not_asked_for_again(server, tmp_path, status, says):
    server.says["/a/b.zip"] = [status] * 9
    with pytest.raises(MMCollapseError, match=rf"{says} \({status}\): http.*b.zip; or else"):
        get(server, tmp_path / "b.zip")
    assert len(server.asked) == 1


def test_another_file_than_expected_is_refused(server, tmp_path):
    with pytest.raises(MMCollapseError, match="has 5,000,000 bytes, not 5,000,001"):
        get(server, tmp_path / "b.zip", size=len(DATA) + 1)
    assert (tmp_path / "b.zip.part").stat().st_size == 0  # before anything came
    with pytest.raises(MMCollapseError, match="gave b.zip with sha256 .*, not .*: removed"):
        get(server, tmp_path / "b.zip", data=DATA[:-1] + b"!")
    assert not list(tmp_path.glob("b.zip*"))


def test_an_unreachable_server_is_named(nowhere, tmp_path):
    with pytest.raises(MMCollapseError, match=f"{nowhere[7:]} cannot be reached .*refused.*else") as error:
        download.download(f"{nowhere}/b.zip", tmp_path / "b.zip", 1, "0" * 64, "or else")
    assert "\n" not in str(error.value)


def test_a_full_disk_keeps_what_has_come(server, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(MMCollapseError, match="is full: make room"):
            get(server, tmp_path / "b.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "b.zip.part").stat().st_size == 2_000_000
    assert get(server, tmp_path / "b.zip")[-1] == "bytes=2000000-"


# ---- archives


def zipped(members: dict[str, bytes], link: str = "") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if name == link else 0o644 << 16
            file.writestr(info, data)
    return target.getvalue()


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/x.jpg", "a\\..\\x.jpg", "link.jpg"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped({"a/good.jpg": b"good", name: b"bad"}, link="link.jpg"))
    with pytest.raises(MMCollapseError, match="leads out of its folder: refused"):
        unpack(tmp_path / "a.zip", tmp_path / "to", ["*"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "data"]


def test_only_what_is_wanted_is_unpacked_and_damage_is_named(tmp_path):
    whole = zipped({"a/1.jpg": b"one" * 99, "a/2.jpg": b"two", "b/1.jpg": b"no", "a/x.exe": b"no"})
    (tmp_path / "a.zip").write_bytes(whole)
    (tmp_path / "to/a").mkdir(parents=True)
    (tmp_path / "to/a/1.jpg").write_bytes(b"half")  # of an interrupted call
    assert unpack(tmp_path / "a.zip", tmp_path / "to", ["a/*.jpg"]) == ["a/1.jpg", "a/2.jpg"]
    assert contents(tmp_path / "to") == {"a/1.jpg": b"one" * 99, "a/2.jpg": b"two"}
    with pytest.raises(MMCollapseError, match="holds nothing that fits c/"):
        unpack(tmp_path / "a.zip", tmp_path / "to", ["c/*"])
    for damaged in (whole[:-30], whole.replace(b"oneone", b"onetwo")):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(MMCollapseError, match="a.zip is damaged"):
            unpack(tmp_path / "a.zip", tmp_path / "new", ["a/*"])


def coco(server, count: int = 120) -> list[Plain]:
    """Two archives as COCO's, with `count` pictures, and where they are."""
    pictures = {f"val2014/{i:03}.jpg": picture(i) for i in range(count)}
    images = [
        {"filepath": "val2014", "filename": f"{i:03}.jpg", "split": ["train", "val", "test"][i % 3]}
        | {"sentences": [{"raw": f"caption {k} of {i}"} for k in range(5)]}
        for i in range(count)
    ]
    notes = {"dataset_coco.json": json.dumps({"images": images}).encode(), "dataset_flickr8k.json": b"{}"}
    out = []
    for name, members, unpacked, holds in (
        ("val2014.zip", pictures, ("val2014/*.jpg",), (("val2014", count),)),
        ("captions.zip", notes, ("dataset_coco.json",), ()),
    ):
        server.files[f"/{name}"] = data = zipped(members)
        url = f"http://images.example/{name}"
        out.append(Plain(name, "photos/coco", "", len(data), "", url, sha256(data), unpacked, holds))
    return out


def picture(i: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (40, 30), (i, 255 - i, 2 * i % 256)).save(target, "JPEG")
    return target.getvalue()


def test_archives_are_fetched_unpacked_once_and_counted(server, place):
    needs, origin = coco(server), Origin({"images.example": server.url})
    fetch.fetch(needs, origin)
    assert sorted(p.name for p in (place / "photos/coco").iterdir()) == ["dataset_coco.json", "val2014"]
    record = read_record()["photos/coco/val2014.zip"]
    assert record["folders"] == {"val2014": {"files": 120, "bytes": sum(len(picture(i)) for i in range(120))}}
    server.asked.clear()
    fetch.fetch(needs, origin)
    assert server.asked == []
    (place / "photos/coco/val2014/007.jpg").unlink()
    (place / "photos/coco/val2014/mine.txt").write_text("passed over")
    with pytest.raises(MMCollapseError, match="val2014 has 119 files"):
        check(needs)
    fetch.fetch(needs, origin)
    assert [path for _, path, _ in server.asked] == ["/val2014.zip"]
    check(needs)
    wrong = sources.replace(needs[0], holds=(("val2014", 121),), sha256=needs[0].sha256, place="photos/other")
    with pytest.raises(MMCollapseError, match="val2014 should hold 121 files, not .*120"):
        fetch.fetch([wrong], origin)


# ---- from a folder


@pytest.fixture
def other(server, hub, tmp_path, monkeypatch):
    """data/ of another checkout, where everything was fetched: (its folder, what was fetched)."""
    needs = [*sources_of(REPO), *coco(server)]
    with monkeypatch.context() as there:
        there.setattr(sources, "DATA", tmp_path / "other")
        fetch.fetch(needs, Origin(hub.mirrors | {"images.example": server.url}))
    server.asked.clear()
    return tmp_path / "other", needs


def test_a_folder_serves_without_a_network(server, place, other):
    folder, needs = other
    fetch.fetch(needs, open_origin(folder=str(folder)))
    assert server.asked == []
    mine, theirs = contents(place), contents(folder)
    assert {n: d for n, d in mine.items() if n[-4:] != "json" or "hub" in n} == {
        n: d for n, d in theirs.items() if n[-4:] != "json" or "hub" in n
    }
    same = "models/hub/someone--tiny/model.safetensors"
    assert (place / same).samefile(folder / same)  # linked: 20 GB take no time and no room
    record = read_record()
    assert record["models/hub/someone--tiny"]["commit"] == COMMIT and len(record) == 3
    check(needs)


def test_a_folder_serves_by_copies_and_archives_too(server, place, other, monkeypatch):
    folder, needs = other
    shutil.rmtree(folder / "photos/coco")
    (folder / "photos/coco").mkdir()
    for need in needs[1:]:
        (folder / "photos/coco" / need.name).write_bytes(server.files[f"/{need.name}"])
    (folder / "models/fetched.json").unlink()  # a folder that someone put together by hand

    def no_link(*_):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", no_link)
    fetch.fetch(needs, Origin(folder=folder))
    check(needs)
    assert len(list((place / "photos/coco/val2014").iterdir())) == 120
    assert (folder / "photos/coco/val2014.zip").is_file() and not (place / "photos/coco/val2014.zip").exists()
    assert read_record()["models/hub/someone--tiny"]["commit"] == ""


@pytest.mark.parametrize("change", ["damaged", "missing", "empty"])
def test_a_folder_with_other_files_is_refused(place, other, change):
    folder, needs = other
    path = folder / "models/hub/someone--tiny/model.safetensors"
    if change == "damaged":
        path.write_bytes(b"other")
    elif change == "missing":
        (path.parent / "config.json").unlink()
    else:
        shutil.rmtree(path.parent)
    with pytest.raises(MMCollapseError, match="someone--tiny"):
        fetch.fetch(needs, Origin(folder=folder))
    assert "models/hub/someone--tiny" not in read_record()


# ---- what is needed, and sources.toml


def test_what_a_profile_needs(tmp_path, place, monkeypatch):
    both = "CompVis/stable-diffusion-v1-4,generator-2,data/models/scenes/generator"
    changes = {"generators": both, "captioners": "Salesforce/blip-image-captioning-base@refs/pr/50"}
    changes |= {"spaces": "judge,inception,clip", "world": "photos", "data": str(place / "photos/coco-2014")}
    found = needed([load_settings("nano", **changes)] * 2)
    assert [source.name for source in found] == [
        "CompVis/stable-diffusion-v1-4",
        "Salesforce/blip-image-captioning-base",
        "inception: inception-2015-12-05.pt",
        "clip: openai/clip-vit-base-patch32",
        "coco-2014: train2014.zip",
        "coco-2014: val2014.zip",
        "coco-2014: caption_datasets.zip",
    ]
    assert found[1].revision == "refs/pr/50" and found[0].folder == hub_folder("CompVis/stable-diffusion-v1-4")
    assert found[3].folder == place / "models/instruments/clip"
    mine = needed([load_settings("nano", spaces="clip", instruments=str(tmp_path / "mine"))])
    assert mine[0].folder == tmp_path / "mine/clip"
    assert needed([load_settings("nano")]) == [] and hub_folder("generator") is None
    monkeypatch.chdir(tmp_path)
    assert hub_folder("own/model") and hub_folder("data/models/scenes/generator") is None
    (tmp_path / "own/model").mkdir(parents=True)
    assert hub_folder("own/model") is None  # it is here


def test_the_command(server, hub, place, capsys):
    told = ["--mirror", server.url, "--set", f"captioners={REPO}"]
    assert main(["fetch", "--dry", *told]) == 0 and "to fetch: 300 kB" in capsys.readouterr().out
    assert not list(place.iterdir())
    assert main(["fetch", *told]) == 0 and f"{REPO}: fetched, 300 kB" in capsys.readouterr().out
    assert main(["fetch"]) == 0 and "nano needs nothing" in capsys.readouterr().out
    for wrong, says in (
        (["--mirror", "host"], "mirror='host': expected https://"),
        (["--mirror", "a=ftp://b"], "mirror='a=ftp://b'"),
        (["--from", "nowhere"], "from='nowhere': there is no such folder"),
        (["--what", "resnet"], "what='resnet': allowed are models of the hub"),
    ):
        assert main(["fetch", *wrong]) == 1
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1


def test_mirrors_of_other_hosts():
    origin = open_origin(["https://hub.example/base/", "images.cocodataset.org=http://here/coco"])
    assert origin.at("https://huggingface.co") == "https://hub.example/base"
    assert origin.at("http://images.cocodataset.org/zips/a.zip") == "http://here/coco/zips/a.zip"
    assert origin.at("https://other.org/a") == "https://other.org/a"


def test_a_damaged_record_and_damaged_sources_are_named(tmp_path, place):
    (place / "models").mkdir()
    (place / "models/fetched.json").write_text("{")
    with pytest.raises(MMCollapseError, match="fetched.json is damaged"):
        read_record()
    (tmp_path / "sources.toml").write_text("[models]\n[patterns]\n[data]")
    with pytest.raises(MMCollapseError, match=r"sources.toml is damaged: it has no \[instruments\]"):
        read_sources(tmp_path / "sources.toml")


def test_every_source_is_pinned_licensed_and_safe():
    told = read_sources()
    for name in told["models"] | told["instruments"] | told["data"]:
        for source in sources_of(name):
            assert source.licence and source.bytes > 0
            if isinstance(source, Plain):
                assert re.fullmatch(r"[0-9a-f]{64}", source.sha256) and source.url.startswith("http")
            else:
                assert re.fullmatch(r"[0-9a-f]{40}|main|refs/pr/\d+", source.revision)
    for name in told["models"]:
        assert ON_PAGE[name] if name in ON_PAGE else True


# What lies in these repositories, as far as documented: {name: (wanted, not wanted)}.
ON_PAGE = {
    "CompVis/stable-diffusion-v1-4": (
        "model_index.json unet/config.json unet/diffusion_pytorch_model.safetensors vae/config.json "
        "vae/diffusion_pytorch_model.safetensors text_encoder/config.json text_encoder/model.safetensors "
        "tokenizer/merges.txt tokenizer/vocab.json scheduler/scheduler_config.json",
        "README.md sd-v1-4.ckpt unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.safetensors "
        "unet/diffusion_pytorch_model.non_ema.safetensors safety_checker/model.safetensors text_encoder/"
        "pytorch_model.fp16.bin vae/diffusion_flax_model.msgpack feature_extractor/preprocessor_config.json",
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": (
        "model_index.json unet/config.json unet/diffusion_pytorch_model.fp16.safetensors vae/config.json "
        "vae/diffusion_pytorch_model.fp16.safetensors text_encoder/config.json text_encoder/model.fp16.safetensors "
        "text_encoder_2/config.json text_encoder_2/model.fp16.safetensors tokenizer/merges.txt tokenizer_2/vocab.json "
        "scheduler/scheduler_config.json",
        "sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors sd_xl_offset_example-lora_1.0.safetensors "
        "unet/diffusion_pytorch_model.safetensors vae_1_0/diffusion_pytorch_model.fp16.safetensors vae_1_0/config.json "
        "vae_decoder/config.json vae_decoder/model.onnx text_encoder_2/flax_model.msgpack unet/openvino_model.xml "
        "text_encoder/model.safetensors",
    ),
    "Salesforce/blip2-opt-2.7b": (
        "config.json model-00001-of-00002.safetensors model.safetensors.index.json vocab.json merges.txt "
        "tokenizer.json preprocessor_config.json",
        "pytorch_model-00001-of-00002.bin README.md .gitattributes",
    ),
    "stabilityai/stable-diffusion-3-medium-diffusers": (
        "model_index.json transformer/diffusion_pytorch_model.safetensors tokenizer_3/spiece.model "
        "text_encoder_3/model-00001-of-00002.safetensors text_encoder_3/model.safetensors.index.json",
        "sd3_medium.safetensors text_encoder_3/model.fp16-00001-of-00002.safetensors LICENSE.md "
        "text_encoder/model.fp16.safetensors text_encoder_3/model.safetensors.index.fp16.json",
    ),
}


@pytest.mark.parametrize("name", ON_PAGE)
def test_the_patterns_take_what_a_model_needs_and_nothing_else(name, monkeypatch):
    import huggingface_hub

    wanted, other = (text.split() for text in ON_PAGE[name])
    sums = dict(sources_of(name)[0].sha256)
    info = SimpleNamespace(
        sha=COMMIT,
        siblings=[
            SimpleNamespace(rfilename=n, size=1, blob_id="", lfs=SimpleNamespace(sha256=sums.get(n, "")))
            for n in wanted + other
        ],
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    _, files = sources_of(name)[0].listing(Origin())
    assert sorted(file.name for file in files) == sorted(wanted)
    assert not any(".fp16." in file.path for file in files)


# ---- afterwards, without a network

OFFLINE = """
import socket, sys
from pathlib import Path

def refuse(*a, **k):
    raise AssertionError("a network call")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import numpy as np
from mmcollapse import fetch, sources
from mmcollapse.metrics.spaces import open_space
from mmcollapse.models import load
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.settings import load_settings
from mmcollapse.worlds.photos import Photos

sources.DATA = data = Path(sys.argv[1])
folder = {name: sources.hub_folder(f"tiny/{name}") for name in ("generator", "captioner")}
generator, captioner = (load(folder[name]) for name in folder)
world = Photos(data / "photos" / "coco")
batch = world.sample("test", [0, 1])
pictures = np.stack(generator.make(["a red disc"] * 2, ImageDecoding(1, 1.0), [("a", i) for i in range(2)], 2))
written = captioner.make(pictures, CaptionDecoding(max_tokens=4), [("a", i) for i in range(2)], 2)
for name in ("clip", "dino", "inception"):
    assert len(open_space(name, data, data / "models" / "instruments").images(batch.images)) == 2
print("made", len(pictures), len(written))
"""


def test_after_fetching_nothing_asks_a_network(server, place, tmp_path, models_folder):
    """Real classes on tiny weights, in a process whose sockets are broken."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    from test_spaces import FILES, Base

    dino = tmp_path / "dino"
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=56, patch_size=14, **shape)).save_pretrained(dino)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}).save_pretrained(dino)
    torch.jit.script(Base()).save(tmp_path / FILES["inception"])
    pt = (tmp_path / FILES["inception"]).read_bytes()
    server.files[f"/{FILES['inception']}"] = pt
    needs = [*coco(server)]
    needs += [
        Plain("i", "models/instruments/inception", "", len(pt), "", f"{server.url}/{FILES['inception']}", sha256(pt))
    ]
    folders = {"tiny/generator": models_folder / "generator", "tiny/captioner": models_folder / "captioner"}
    for repo, folder in (folders | {"tiny/clip": models_folder / "judge", "tiny/dino": dino}).items():
        files = {name: data for name, data in contents_linked(folder).items() if name != "README.md"}
        server.repos[repo] = {"refs": {"main": COMMIT}, "files": files}
        (source,) = sources_of(repo)
        instrument = repo.split("/")[1] if repo not in folders else ""
        needs.append(sources.replace(source, place=f"models/instruments/{instrument}") if instrument else source)
    fetch.fetch(needs, Origin({"huggingface.co": server.url, "images.example": server.url}))
    server.asked.clear()
    check(needs)
    told = {"http_proxy": "", "https_proxy": "", "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(place)], capture_output=True, text=True, env=os.environ | told, timeout=200
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split()[-3:] == ["made", "2", "2"] and server.asked == []


def contents_linked(folder: Path) -> dict[str, bytes]:
    """As `contents`, with linked folders."""
    found = {}
    for place, _, names in os.walk(folder, followlinks=True):
        found |= {os.path.relpath(os.path.join(place, n), folder): Path(place, n).read_bytes() for n in names}
    return found
