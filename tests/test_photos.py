"""The photos world, on small folders drawn here, and on the real photos where they lie beside the checkout."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmcollapse.errors import MMCollapseError
from mmcollapse.worlds import photos, pictures
from mmcollapse.worlds.photos import SHARES, Photos, planned_roles, roles

REAL = Path(__file__).parents[2] / "shared" / "data" / "photos"
COUNT = 48


def draw(index: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    picture = Image.new("RGB", size, (5 * index % 256, 40, 200))
    ImageDraw.Draw(picture).ellipse((index % 20, 5, index % 20 + 25, 30), fill=(250, 4 * index % 256, 10))
    return picture


def encoded(picture: Image.Image, form: str = "JPEG", **options) -> bytes:
    target = io.BytesIO()
    picture.save(target, form, **options)
    return target.getvalue()


@pytest.fixture(scope="module")
def content() -> dict[str, tuple[bytes, list[str]]]:
    """{name: (file bytes, captions)}: with commas, quotes and other alphabets in the captions."""
    return {
        f"{index:03}.jpg": (
            encoded(draw(index)),
            [f'disc {index}, version {k}, a "round" thing über {"x " * k}end' for k in range(5)],
        )
        for index in range(COUNT)
    }


def write_pictures(folder: Path, content: dict) -> None:
    folder.mkdir(parents=True)
    for name, (data, _) in content.items():
        (folder / name).write_bytes(data)


def as_rows(folder: Path, content: dict) -> Path:
    write_pictures(folder / "images", content)
    rows = [{"file_name": f"images/{name}", "captions": captions} for name, (_, captions) in content.items()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def coco_document(content: dict) -> str:
    images = [{"id": 7 + number, "file_name": name} for number, name in enumerate(content)]
    notes = [
        {"id": 10 * image["id"] + k, "image_id": image["id"], "caption": captions[k]}
        for k in range(5)  # all first captions, then all second ones: order within a picture is what counts
        for image, (_, captions) in zip(images, content.values(), strict=True)
    ]
    return json.dumps({"images": images, "annotations": notes})


def as_coco(folder: Path, content: dict, pictures: str = "val2014") -> Path:
    write_pictures(folder / pictures, content)
    (folder / "annotations").mkdir()
    (folder / "annotations" / "captions_val2014.json").write_text(coco_document(content))
    return folder


def as_flickr8k(folder: Path, content: dict) -> Path:
    write_pictures(folder / "Images", content)
    with open(folder / "captions.txt", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows([name, caption] for name, (_, captions) in content.items() for caption in captions)
    return folder


def everything(world: Photos) -> dict[str, tuple[str, list[str], bytes]]:
    """{key: (split, captions, pixels)}"""
    seen = {}
    for split in photos.SHARES:
        batch = world.sample(split, range(world.size(split)))
        for key, captions, image in zip(batch.keys, batch.captions, batch.images, strict=True):
            assert key not in seen, "splits overlap"
            seen[key] = (split, captions, image.tobytes())
    return seen


def test_same_content_in_three_layouts_and_another_folder_is_the_same_world(tmp_path, content):
    worlds = [
        Photos(as_rows(tmp_path / "rows", content)),
        Photos(as_coco(tmp_path / "coco", content)),
        Photos(as_flickr8k(tmp_path / "flickr", content)),
        Photos(shutil.move(as_rows(tmp_path / "a", content), tmp_path / "renamed")),
    ]
    assert [world.layout.split(":")[0] for world in worlds] == ["image-folder", "coco", "flickr8k", "image-folder"]
    assert len({world.digest for world in worlds}) == 1
    assert all(everything(world) == everything(worlds[0]) for world in worlds[1:])
    expected = sorted([" ".join(caption.split()) for caption in captions] for _, captions in content.values())
    assert sorted(captions for _, captions, _ in everything(worlds[0]).values()) == expected
    assert worlds[0].skipped == [] and worlds[0].name == "photos"


def test_digest_changes_with_a_caption_a_byte_the_seed_and_the_size(tmp_path, content):
    folder = as_rows(tmp_path / "rows", content)
    digests = [Photos(folder).digest, Photos(folder, seed=1).digest, Photos(folder, image_size=32).digest]
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("disc 3,", "disk 3,", 1))
    digests.append(Photos(folder).digest)
    (folder / "metadata.jsonl").write_text(text)
    with open(folder / "images" / "003.jpg", "ab") as file:
        file.write(b"\0")
    digests.append(Photos(folder).digest)
    assert len(set(digests)) == 5


def test_the_first_of_several_layouts_is_taken_and_named(tmp_path, content):
    folder = as_rows(tmp_path / "rows", content)
    (folder / "captions_coco.json").write_text(coco_document(content))
    (folder / "captions.txt").write_text("image,caption\n")
    assert (
        Photos(folder).layout == "image-folder: metadata.jsonl (there too, not used: captions_coco.json, captions.txt)"
    )
    (folder / "metadata.jsonl").unlink()
    assert Photos(folder).layout == "coco: captions_coco.json (there too, not used: captions.txt)"
    (folder / "captions_coco.json").write_text('{"other": "form"}')
    with pytest.raises(MMCollapseError, match="48 bad entries(.|\n)*picture without a caption"):
        Photos(folder)  # of captions.txt there is only the header
    flickr = as_flickr8k(tmp_path / "flickr", content)
    (flickr / "captions.json").write_text('{"other": "form"}')
    assert Photos(flickr).layout == "flickr8k: captions.txt"


def test_rows_of_one_picture_are_joined_and_all_caption_keys_are_read(tmp_path, content):
    folder = as_rows(tmp_path / "rows", content)
    rows = [
        {"file_name": f"images/{name}", key: caption}
        for name, (_, captions) in content.items()
        for key, caption in zip(["caption", "text", "caption", "text", "captions"], captions, strict=True)
    ]
    wanted = Photos(folder).digest
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert Photos(folder).digest == wanted
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)).replace("images/", ""))
    (folder / "metadata.jsonl").unlink()
    assert Photos(folder).digest == wanted


def test_splits_are_stable_and_few_pictures_move_when_one_is_added(tmp_path, content):
    folder = as_rows(tmp_path / "rows", content)
    world = Photos(folder)
    assert {split: world.size(split) for split in photos.SHARES} == {"base": 26, "judge": 7, "chain": 7, "test": 8}
    before, again = everything(world), everything(Photos(folder))
    assert before == again
    assert everything(Photos(folder, seed=1)) != before
    (folder / "images" / "new.jpg").write_bytes(encoded(draw(99)))
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "images/new.jpg", "caption": "new"}) + "\n")
    after = everything(Photos(folder))
    assert len(after) == COUNT + 1
    assert sum(after[key][0] != before[key][0] for key in before) <= 3


def test_sample_and_its_errors(tmp_path, content):
    world = Photos(as_rows(tmp_path / "rows", content), image_size=16)
    whole = world.sample("test", range(world.size("test")))
    some = world.sample("test", np.array([5, 0, 5]))
    assert some.images.shape == (3, 16, 16, 3) and some.images.dtype == np.uint8 and some.scenes is None
    assert np.array_equal(some.images, whole.images[[5, 0, 5]])
    assert some.keys == [whole.keys[i] for i in (5, 0, 5)] and some.captions == [whole.captions[i] for i in (5, 0, 5)]
    assert world.sample("base", []).images.shape == (0, 16, 16, 3)
    for index in (8, -1):
        with pytest.raises(MMCollapseError, match=rf'split "test".*8 pictures.*index {index}'):
            world.sample("test", [0, index])
    with pytest.raises(MMCollapseError, match='no split "train".*base, judge, chain, test'):
        world.size("train")


def test_uncached_pictures_are_the_same_and_a_changed_file_is_noticed(tmp_path, content, monkeypatch):
    folder = as_rows(tmp_path / "rows", content)
    cached = everything(Photos(folder))
    monkeypatch.setattr(photos, "CACHE_BYTES", 0)
    world = Photos(folder)
    assert everything(world) == cached
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(MMCollapseError, match="jpg .*changed since it was opened"):
        world.sample("base", [0])


def test_what_is_kept_in_memory_is_bounded_and_changes_nothing(tmp_path, content, monkeypatch):
    folder = as_rows(tmp_path / "rows", content)
    wanted = everything(Photos(folder, image_size=16))
    monkeypatch.setattr(photos, "CACHE_BYTES", 5 * 16 * 16 * 3)
    world = Photos(folder, image_size=16)
    opened = []
    one = pictures.open_picture
    monkeypatch.setattr(photos, "open_picture", lambda *a: opened.append(a) or one(*a))
    assert opened == [] and everything(world) == wanted and len(world._kept) <= 5 + os.cpu_count()
    world._kept = dict(list(world._kept.items())[:5])
    opened.clear()
    assert everything(world) == wanted and len(opened) == COUNT - 5


def test_a_large_folder_is_checked_once(tmp_path, content, monkeypatch):
    """And again where a file changed; the same file by name, size and date is found out when it is used."""
    folder = as_rows(tmp_path / "rows", content)
    wanted = everything(Photos(folder))
    monkeypatch.setattr(pictures, "MANY", COUNT)
    opened = []
    one = pictures.open_picture
    monkeypatch.setattr(pictures, "open_picture", lambda path, size: opened.append(path.name) or one(path, size))
    for expected in (COUNT, 0, 0):
        opened.clear()
        world = Photos(folder)
        assert len(opened) == expected and everything(world) == wanted
    changed, other = folder / "images" / "003.jpg", folder / "images" / "004.jpg"
    changed.write_bytes(WHOLE)
    opened.clear()
    assert Photos(folder).digest != world.digest and opened == ["003.jpg"]
    changed.write_bytes(content["003.jpg"][0])
    before = other.stat()
    other.write_bytes(other.read_bytes()[:-1] + b"!")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    world = Photos(folder)
    with pytest.raises(MMCollapseError, match="004.jpg .*changed since it was opened"):
        everything(world)
    other.write_bytes(content["004.jpg"][0])
    (folder / pictures.REMEMBERED).write_text("{")
    opened.clear()
    Photos(folder)
    assert len(opened) == COUNT
    add_file(folder, "x.jpg", content["000.jpg"][0])
    for _ in range(2):  # which of two equal pictures is kept does not depend on what was remembered
        with pytest.warns(UserWarning, match="x.jpg: is the same picture as images/000.jpg"):
            Photos(folder)
        os.utime(folder / "images" / "000.jpg")
    add_file(folder, "bad.jpg", WHOLE[:-40])
    for _ in range(2):  # what was wrong stays wrong
        with pytest.raises(MMCollapseError, match="bad.jpg: .*truncated"):
            Photos(folder)


def test_a_read_only_folder_is_checked_each_time(tmp_path, content, monkeypatch):
    folder = as_rows(tmp_path / "rows", content)
    monkeypatch.setattr(pictures, "MANY", COUNT)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert Photos(folder).digest == Photos(folder).digest and not (folder / pictures.REMEMBERED).exists()


@pytest.mark.parametrize("size", [512, 1024])
def test_large_pictures(tmp_path, content, size):
    world = Photos(as_rows(tmp_path / "rows", content), image_size=size)
    assert world.sample("test", [0]).images.shape == (1, size, size, 3)
    for wrong in (0, 5000, 64.0, "512"):
        with pytest.raises(MMCollapseError, match=f"image_size={wrong!r}: allowed are 1 to 4096"):
            Photos(tmp_path / "rows", image_size=wrong)


def test_references_length_counts_words_and_the_sixth_caption_is_announced(tmp_path, content):
    folder = as_rows(
        tmp_path / "rows", {name: (data, ["a red-brown dog runs .", "so"]) for name, (data, _) in content.items()}
    )
    assert Photos(folder).references_length() == (4 + 1) / 2
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "images/000.jpg", "captions": ["c", "d", "e", "f"]}) + "\n")
    with pytest.warns(UserWarning, match="1 captions beyond the fifth"):
        world = Photos(folder)
    kept = [captions for _, captions, _ in everything(world).values() if len(captions) > 2]
    assert kept == [["a red-brown dog runs .", "so", "c", "d", "e"]]


def add_row(folder: Path, **row) -> None:
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def add_file(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    add_row(folder, file_name=name, caption="something")


def add_line(folder: Path, line: bytes) -> None:
    with open(folder / "metadata.jsonl", "ab") as file:
        file.write(line + b"\n")


WHOLE = encoded(draw(200, (300, 200)))
BAD = {  # {what: (how it is made, file, part of the reason)}
    "truncated": (lambda f: add_file(f, "x.jpg", WHOLE[: len(WHOLE) // 2]), "x.jpg", "truncated"),
    "nearly whole": (lambda f: add_file(f, "x.jpg", WHOLE[:-40]), "x.jpg", "truncated"),
    "truncated progressive": (
        lambda f: add_file(f, "x.jpg", encoded(draw(200, (300, 200)), progressive=True)[:-300]),
        "x.jpg",
        "truncated",
    ),
    "truncated png": (lambda f: add_file(f, "x.png", encoded(draw(1), "PNG")[:-40]), "x.png", "cannot be read"),
    "only a header": (lambda f: add_file(f, "x.jpg", WHOLE[:30]), "x.jpg", "picture"),
    "no picture": (lambda f: add_file(f, "x.jpg", b"<html>not found</html>"), "x.jpg", "is no picture"),
    "text file": (lambda f: add_file(f, "x.txt", b"hello"), "x.txt", "is no picture"),
    "empty file": (lambda f: add_file(f, "x.jpg", b""), "x.jpg", "is an empty file"),
    "caption without picture": (
        lambda f: add_row(f, file_name="images/gone.jpg", caption="a"),
        "images/gone.jpg",
        "caption without its picture",
    ),
    "picture is a folder": (lambda f: add_row(f, file_name="images", caption="a"), "images", "no such file"),
    "picture without caption": (
        lambda f: (f / "images" / "x.PNG").write_bytes(encoded(draw(201), "PNG")),
        "images/x.PNG",
        "without a caption",
    ),
    "no captions": (
        lambda f: ((f / "x.jpg").write_bytes(WHOLE), add_row(f, file_name="x.jpg", captions=[])),
        "x.jpg",
        "without a caption",
    ),
    "empty caption": (
        lambda f: add_row(f, file_name="images/000.jpg", caption="  "),
        f"metadata.jsonl:{COUNT + 1}",
        "a caption of images/000.jpg is empty",
    ),
    "caption is a number": (
        lambda f: add_row(f, file_name="images/000.jpg", captions=[3]),
        f"metadata.jsonl:{COUNT + 1}",
        "is no text",
    ),
    "no json": (lambda f: add_line(f, b'{"file_name": "ima'), f"metadata.jsonl:{COUNT + 1}", "is no JSON"),
    "no text": (lambda f: add_line(f, b'{"file_name": "\xff\xfe"}'), f"metadata.jsonl:{COUNT + 1}", "is no JSON"),
    "a list": (lambda f: add_line(f, b"[1]"), f"metadata.jsonl:{COUNT + 1}", "is no JSON object"),
    "no name": (lambda f: add_row(f, caption="a"), f"metadata.jsonl:{COUNT + 1}", "names no picture file"),
    "above": (
        lambda f: add_row(f, file_name="../x.jpg", caption="a"),
        f"metadata.jsonl:{COUNT + 1}",
        "../x.jpg leaves",
    ),
    "above by a detour": (
        lambda f: add_row(f, file_name="images/../../x.jpg", caption="a"),
        f"metadata.jsonl:{COUNT + 1}",
        "leaves the folder",
    ),
    "absolute": (lambda f: add_row(f, file_name="/x.jpg", caption="a"), f"metadata.jsonl:{COUNT + 1}", "leaves"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_bad_is_refused_by_name_or_left_out_and_counted(tmp_path, content, what):
    folder = as_rows(tmp_path / "rows", content)
    good = everything(Photos(folder, image_size=8))
    make, file, reason = BAD[what]
    make(folder)
    with pytest.raises(MMCollapseError, match="^1 bad entries") as error:
        Photos(folder, image_size=8)
    assert f"\n  {file}: " in str(error.value) and reason in str(error.value)
    with pytest.warns(UserWarning, match="1 bad entries left out") as caught:
        world = Photos(folder, image_size=8, on_bad="skip")
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert len(world.skipped) == 1 and world.skipped[0][0] == file and reason in world.skipped[0][1]
    assert everything(world) == good


def test_a_picture_that_is_there_twice_is_left_out_once(tmp_path, content):
    """Published collections have some, and nothing in them can be mended."""
    folder = as_rows(tmp_path / "rows", content)
    good = everything(Photos(folder, image_size=8))
    add_file(folder, "x.jpg", (folder / "images" / "000.jpg").read_bytes())
    with pytest.warns(UserWarning, match="1 bad entries left out"):
        world = Photos(folder, image_size=8)
    assert world.skipped == [("x.jpg", "is the same picture as images/000.jpg")] and everything(world) == good


def test_an_empty_caption_costs_the_caption_and_not_the_picture(tmp_path, content):
    folder = as_rows(tmp_path / "rows", {name: (data, ["one", "", "two"]) for name, (data, _) in content.items()})
    with pytest.warns(UserWarning, match="48 bad entries"):
        world = Photos(folder, on_bad="skip")
    assert all(captions == ["one", "two"] for _, captions, _ in everything(world).values())


def test_the_first_ten_are_listed_and_all_are_counted(tmp_path, content):
    folder = as_rows(tmp_path / "rows", content)
    for number in range(12):
        add_row(folder, file_name=f"gone{number:02}.jpg", caption="a")
    with pytest.raises(MMCollapseError) as error:
        Photos(folder)
    lines = str(error.value).splitlines()
    assert (
        lines[0].startswith("12 bad entries") and lines[10].startswith("  gone09.jpg") and lines[11] == "  and 2 more"
    )


@pytest.mark.parametrize(
    "line, file, reason",
    [
        (b'000.jpg,"never closed', "captions.txt:242", "comma-separated"),
        (b"000.jpg", "captions.txt:242", "is empty"),
        (b"gone.jpg,a dog", "Images/gone.jpg", "caption without its picture"),
        (b"../x.jpg,a dog", "captions.txt:242", "leaves"),
        (b"000.jpg,caf\xe9", "captions.txt:242", "comma-separated"),
    ],
)
def test_bad_lines_of_flickr8k(tmp_path, content, line, file, reason):
    folder = as_flickr8k(tmp_path / "flickr", content)
    with open(folder / "captions.txt", "ab") as target:
        target.write(line + b"\n")
    with pytest.raises(MMCollapseError, match=f"^1 bad entries(.|\n)*{file}: .*{reason}"):
        Photos(folder)


def test_flickr8k_header_and_unquoted_commas(tmp_path, content):
    folder = as_flickr8k(tmp_path / "flickr", content)
    text = (folder / "captions.txt").read_bytes()
    (folder / "captions.txt").write_bytes(b"\xef\xbb\xbf" + text)
    Photos(folder)
    (folder / "captions.txt").write_bytes(text.partition(b"\n")[2])
    with pytest.raises(MMCollapseError, match='captions.txt:1: header is not "image,caption"'):
        Photos(folder)
    lines = "".join(f"{name},red, blue, green\n" for name in content)
    (folder / "captions.txt").write_text("image,caption\n" + lines)
    assert Photos(folder).sample("test", [0]).captions == [["red, blue, green"]]


def test_bad_coco_files_and_pictures_beside_them(tmp_path, content):
    folder = as_coco(tmp_path / "coco", content)
    file = folder / "annotations" / "captions_val2014.json"
    wanted, document = Photos(folder).digest, json.loads(file.read_text())
    document["annotations"].append({"image_id": 999, "caption": "a"})
    document["images"].append({"id": 998, "file_name": "gone.jpg"})
    file.write_text(json.dumps(document))
    with pytest.raises(MMCollapseError, match="^2 bad(.|\n)*no image has the id 999(.|\n)*gone.jpg: caption without"):
        Photos(folder)
    file.write_text(coco_document(content)[:-30])
    with pytest.raises(MMCollapseError, match="captions_val2014.json: is no JSON"):
        Photos(folder)
    file.write_text('{"images": [{"name": 1}]}')
    with pytest.raises(MMCollapseError, match="captions_val2014.json: is no JSON in the COCO captions form"):
        Photos(folder)
    shutil.rmtree(folder / "annotations")
    for path in (folder / "val2014").iterdir():
        path.rename(folder / path.name)
    (folder / "captions.json").write_text(coco_document(content))
    assert Photos(folder).digest == wanted


def as_tokens(folder: Path, content: dict, name: str = "results_20130124.token", pictures="flickr30k-images") -> Path:
    write_pictures(folder / pictures, content)
    lines = [f"{file}#{k}\t{c}\n" for file, (_, captions) in content.items() for k, c in enumerate(captions)]
    (folder / name).write_text("".join(lines))
    return folder


def karpathy(content: dict, filepath: str = "", splits=("train", "restval", "val", "test")) -> str:
    """A split file of the form of dataset_coco.json; the splits go round."""
    images = []
    for number, (name, (_, captions)) in enumerate(content.items()):
        sentences = [{"tokens": c.split(), "raw": c, "imgid": number, "sentid": k} for k, c in enumerate(captions)]
        images.append({"filename": name, "split": splits[number % len(splits)], "sentences": sentences})
        images[-1] |= {"filepath": filepath, "cocoid": number} if filepath else {}
    return json.dumps({"images": images, "dataset": "coco"})


def as_karpathy(folder: Path, content: dict) -> Path:
    write_pictures(folder / "val2014", content)
    (folder / "dataset_coco.json").write_text(karpathy(content, "val2014"))
    return folder


def test_flickr30k_and_coco_2017_are_the_same_world_again(tmp_path, content):
    """The digest is that of the other layouts: it is about content."""
    wanted = Photos(as_rows(tmp_path / "rows", content)).digest
    flickr = Photos(as_tokens(tmp_path / "flickr30k", content))
    assert flickr.digest == wanted and flickr.layout == "flickr30k: results_20130124.token"
    older = as_tokens(tmp_path / "flickr8k", content, "Flickr8k.token.txt", "Flicker8k_Dataset")
    assert Photos(older).digest == wanted
    coco = as_coco(tmp_path / "coco", content, "train2017")
    (coco / "annotations" / "captions_val2014.json").rename(coco / "annotations" / "captions_train2017.json")
    assert Photos(coco).digest == wanted
    with open(older / "Flickr8k.token.txt", "ab") as file:  # as in the file that is given out, and as in no file
        file.write(b"2258277193_586949ec62.jpg.1#0\tpeople\nno tab\n000.jpg\tno number\n000.jpg#1\t\xff\n")
    with pytest.raises(MMCollapseError, match="^4 bad entries") as error:
        Photos(older)
    for reason in ("jpg.1: caption without", ":242: is not of the form", ":243: is not of", ":244: is no text"):
        assert reason in str(error.value), reason


def test_published_splits_are_kept(tmp_path, content):
    world = Photos(as_karpathy(tmp_path / "coco", content))
    assert world.layout == "karpathy: dataset_coco.json"
    assert {role: world.size(role) for role in photos.SHARES} == {"base": 15, "judge": 4, "chain": 5, "test": 24}
    split = {
        captions[0]: image["split"]
        for image in json.loads(karpathy(content))["images"]
        for captions in [[" ".join(s["raw"].split()) for s in image["sentences"]]]
    }
    roles = {
        role: [split[c[0]] for c in world.sample(role, range(world.size(role))).captions] for role in photos.SHARES
    }
    assert {s for role in ("base", "judge", "chain") for s in roles[role]} == {"train", "restval"}
    assert roles["test"] == ["test"] * 12 + ["val"] * 12  # the first are those that others report on
    seeded = Photos(world.folder, seed=1)
    assert seeded.digest != world.digest
    assert {c[0] for c in seeded.sample("test", range(12)).captions} == {
        c[0] for c in world.sample("test", range(12)).captions
    }


def test_roles_are_planned_by_captions_alone(tmp_path, content):
    for folder in (as_rows(tmp_path / "rows", content), as_karpathy(tmp_path / "split", content)):
        world = Photos(folder)
        sizes = {role: world.size(role) for role in ("base", "judge", "chain", "test")}
        for path in folder.rglob("*.jpg"):
            path.write_bytes(b"")  # no picture is opened
        assert planned_roles(folder) == sizes
    with pytest.raises(MMCollapseError, match="has no coco captions; there are karpathy"):
        planned_roles(tmp_path / "split", "coco")


def test_the_roles_of_coco():
    """Karpathy and Fei-Fei (2015): 113,287 pictures in train and restval, 5,000 each in val and test."""
    own = roles(113_287, 10_000)
    assert own == {"base": 73_303, "judge": 19_992, "chain": 19_992, "test": 10_000} and sum(own.values()) == 123_287
    assert roles(123_287) == {"base": 67_807, "judge": 18_493, "chain": 18_493, "test": 18_494}
    assert roles(100) == SHARES  # percent


def test_a_split_enters_the_digest_and_pictures_outside_are_passed_over(tmp_path, content):
    folder = as_karpathy(tmp_path / "coco", content)
    wanted = Photos(folder).digest
    (folder / "val2014" / "unnamed.jpg").write_bytes(WHOLE)  # Karpathy's Flickr files leave some out
    assert Photos(folder).digest == wanted
    (folder / "dataset_coco.json").write_text(karpathy(content, "val2014", ("train", "test")))
    assert Photos(folder).digest != wanted
    flickr = tmp_path / "flickr"
    write_pictures(flickr / "Images", content)
    (flickr / "dataset_flickr8k.json").write_text(karpathy(content))
    assert Photos(flickr).digest == wanted


def test_a_folder_that_was_read_before_is_read_as_before(tmp_path, content):
    folder = as_coco(tmp_path / "coco", content)
    wanted = Photos(folder).digest
    (folder / "dataset_coco.json").write_text(karpathy(content, "val2014"))
    world = Photos(folder)
    assert world.digest == wanted and "there too, not used: dataset_coco.json" in world.layout
    assert Photos(folder, layout="karpathy").size("test") == 24
    with pytest.raises(MMCollapseError, match="has no flickr30k captions; there are coco, karpathy"):
        Photos(folder, layout="flickr30k")
    with pytest.raises(MMCollapseError, match="layout='vg': allowed are image-folder, coco"):
        Photos(folder, layout="vg")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"images": [{"filename": "000.jpg"}]}', "is no JSON in the form of Karpathy"),
        ("[", "is no JSON in the form of Karpathy"),
        (None, "000.jpg is of split 'dev'; known are train, restval, val, test"),
        ("train", "has pictures of train alone: no role may be empty"),
    ],
)
def test_bad_split_files(tmp_path, content, text, says):
    folder = as_karpathy(tmp_path / "coco", content)
    text = karpathy(content, "val2014", (text or "dev",)) if text in (None, "train") else text
    (folder / "dataset_coco.json").write_text(text)
    with pytest.raises(MMCollapseError, match=says):
        Photos(folder)


def test_pictures_behind_a_link_and_hidden_files(tmp_path, content):
    folder = as_rows(tmp_path / "rows", content)
    wanted = Photos(folder).digest
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    (folder / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "000.jpg")  # one that has its captions
    (folder / "images" / "._000.jpg").write_bytes(b"left by another system")
    assert Photos(folder).digest == wanted
    (folder / "images" / "x.jpg").write_bytes(WHOLE)
    with pytest.raises(MMCollapseError, match="^1 bad(.|\n)*images/x.jpg: picture without a caption"):
        Photos(folder)


def test_folders_that_cannot_be_used(tmp_path, content):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MMCollapseError, match="empty is empty; looked for metadata.jsonl"):
        Photos(tmp_path / "empty")
    with pytest.raises(MMCollapseError, match="wrong does not exist"):
        Photos(tmp_path / "wrong")
    write_pictures(tmp_path / "pictures", content)
    with pytest.raises(MMCollapseError, match="holds no captions"):
        Photos(tmp_path / "pictures")
    with pytest.raises(MMCollapseError, match="is a file"):
        Photos(tmp_path / "pictures" / "000.jpg")
    few = as_rows(tmp_path / "few", dict(list(content.items())[:39]))
    with pytest.raises(MMCollapseError, match="39 usable pictures .*at least 40 are needed, because"):
        Photos(few)
    add_row(few, file_name="gone.jpg", caption="a")
    with pytest.raises(MMCollapseError, match="39 usable .*1 bad entries left out: gone.jpg"):
        Photos(few, on_bad="skip")
    with pytest.raises(MMCollapseError, match="'ignore'"):
        Photos(few, on_bad="ignore")


def test_crop_is_central_and_averages_fine_detail():
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    assert np.all(pictures.prepare(wide, 16) == [0, 0, 255])
    assert np.all(pictures.prepare(wide.rotate(90, expand=True), 16) == [0, 0, 255])
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = pictures.prepare(Image.fromarray(stripes), 64)[:, 2:-2]
    assert small.min() >= 120 and small.max() <= 135


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16", "P transparent"])
def test_every_kind_of_picture_becomes_rgb(mode):
    grey = Image.linear_gradient("L").resize((64, 64))
    wanted = np.repeat(np.asarray(grey)[..., None], 3, axis=2).astype(int)
    if mode == "I;16":
        data = encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG")
    elif mode == "CMYK":
        data = encoded(grey.convert("RGB").convert("CMYK"), "JPEG", quality=95)
    elif mode == "P transparent":
        data = encoded(Image.new("P", (64, 64), 0), "PNG", transparency=0)
        wanted[:] = 255
    elif mode in ("RGBA", "LA"):
        picture = grey.convert(mode)
        picture.putalpha(Image.new("L", (64, 64), 0))
        data = encoded(picture, "PNG")
        wanted[:] = 255
    else:
        picture = grey.convert(mode)
        data = encoded(picture, "PNG")
        wanted = np.asarray(picture.convert("RGB")).astype(int)
    with Image.open(io.BytesIO(data)) as picture:
        out = pictures.prepare(picture, 64)
    assert out.shape == (64, 64, 3) and out.dtype == np.uint8
    assert np.abs(out - wanted).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (40, 40), "white")
    upright.paste("red", (0, 0, 20, 10))  # the upper left: no turn or mirroring leaves it in place
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Image.Transpose that the orientation asks to undo
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif))) as picture:
        assert np.array_equal(pictures.prepare(picture, 40), np.asarray(upright))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photos do not lie beside this checkout")
def test_the_real_photos_in_both_their_forms(tmp_path):
    world = Photos(REAL)
    assert {split: world.size(split) for split in photos.SHARES} == {
        "base": 550,
        "judge": 150,
        "chain": 150,
        "test": 150,
    }
    assert world.layout == "image-folder: metadata.jsonl (there too, not used: captions_coco.json)"
    batch = world.sample("base", range(550))
    assert batch.images.shape == (550, 64, 64, 3) and all(len(captions) == 5 for captions in batch.captions)
    assert 50 < batch.images.mean() < 200 and batch.images.std() > 40
    assert 8 < world.references_length() < 13
    assert world.digest.startswith("8996cfad369f")  # since the first run on them, and through every rewrite
    (tmp_path / "images").symlink_to(REAL / "images")
    shutil.copy(REAL / "captions_coco.json", tmp_path)
    assert Photos(tmp_path).digest == world.digest
