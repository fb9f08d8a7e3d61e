"""Is it collapsing? Few false alarms on real data, damage found where it is, and every bad file refused by name."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmcollapse import check_statistics
from mmcollapse.__main__ import main
from mmcollapse.check import _dimension, _numbers, _summary, check
from mmcollapse.check_sets import decoded, read_set
from mmcollapse.check_statistics import compare, max_t
from mmcollapse.check_subsets import DIMENSIONS, METRICS, OF_REAL, Rows, Subsets, pool
from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics import alignment, captions, images
from mmcollapse.pairs import FILE, save_pairs
from test_spaces import instruments  # noqa: F401

LEFT_OUT = dict.fromkeys(METRICS, "not measured here")
MEASURED = [metric for metric in METRICS if metric != "fid"]


@pytest.fixture(scope="module")
def seen(world, judge):
    """2,400 real pairs: what the judge sees of them, and their scenes."""
    batch = world.sample("test", np.arange(2400))
    written = [five[0] for five in batch.captions]
    return Rows(judge.images(batch.images), judge.texts(written), written), batch.scenes


@pytest.fixture
def scenes(seen, monkeypatch):
    """Compared by fewer deals, which is faster and no less exact."""
    monkeypatch.setattr(check_statistics, "DRAWS", 199)
    return seen


def drawn(rows: Rows, n: int, sets: int, seed: int = 0) -> list[Rows]:
    """Disjoint sets of n."""
    order = np.random.default_rng(seed).permutation(len(rows.images))
    return [rows.take(order[k * n : (k + 1) * n]) for k in range(sets)]


def judged(sets: list[Rows], real: Rows | None, wanted=MEASURED) -> dict:
    wanted = wanted if real is not None else [m for m in wanted if m not in OF_REAL]
    found = compare(sets, real, wanted)
    return _summary(found, LEFT_OUT, len(sets[0].images), 0.05, list(range(len(sets)))) | {"metrics": found}


def collapsing(found: dict) -> set[str]:
    return {name for name, about in found["dimensions"].items() if about["state"] == "collapsing"}


# ---- many subsets at once


def test_metrics_of_subsets_are_those_of_the_metrics(scenes):
    """Each of METRICS, on subsets with odd captions in them."""
    rows, _ = scenes
    odd = {1: "", 4: "so", 9: "red red red a red", 12: "A man's dog, a 'cat' - a dog.", 15: "so", 20: "a b c d e f g"}
    written = [odd.get(i, caption) for i, caption in enumerate(rows.captions[:1400])]
    some, real = Rows(rows.images[:1400], rows.texts[:1400], written), rows.images[1400:2100]
    masks = np.random.default_rng(1).random((3, 1400)) < 0.5
    masks = np.stack([np.isin(np.arange(1400), np.flatnonzero(mask)[:650]) for mask in masks])
    masks[2] = np.arange(1400) < 650  # the odd captions are among the first
    found = Subsets(some, real, list(METRICS))(masks)
    for k, mask in enumerate(masks):
        x, y, c = some.images[mask], some.texts[mask], [w for w, m in zip(written, mask, strict=True) if m]
        exact = images.support(real, x) | alignment.alignment(x, y) | {"clip_score": alignment.clip_score(x, y)}
        exact |= {"variance": images.embedding_variance(x), "caption_variance": images.embedding_variance(y)}
        exact |= {"vendi": images.vendi(x), "fid": images.frechet(real, x), "vocabulary": captions.vocabulary(c)}
        exact |= {"distinct_1": captions.distinct(c, 1), "distinct_2": captions.distinct(c, 2)}
        exact |= {"self_bleu": captions.self_bleu(c), "distinct_captions": len(set(c)) / len(c)}
        for metric in set(METRICS) - {"kid"}:
            assert found[metric][k] == pytest.approx(exact[metric], rel=1e-9), metric
    same = np.arange(1400) < 700
    for raw in (True, False):
        kid = Subsets(some, real, ["kid"], standardise=not raw)(same[None])["kid"][0]
        assert kid == pytest.approx(images.kid(real, some.images[same], standardise=not raw), abs=1e-4 if raw else 1e-6)


def test_sets_are_pooled_in_turn(scenes):
    first, second = drawn(scenes[0], 5, 2)
    both = pool([first, second])
    assert both.captions[::2] == first.captions and both.captions[1::2] == second.captions
    assert (both.images[1::2] == second.images).all() and (both.texts[::2] == first.texts).all()


# ---- false alarms


def test_max_t_by_hand():
    """Of 19 deals the two metrics' largest, by their spread, are 1 to 19 in some unit."""
    by_chance = np.zeros((19, 2))
    by_chance[np.arange(19), np.arange(19) % 2] = np.arange(1, 20)
    p, limit, spread = max_t(np.array([100.0, 0.0]), by_chance, 0.05)
    assert p[0] == 1 / 20 and p[1] == 1
    largest = (by_chance / spread).max(1)
    assert limit == pytest.approx(np.sort(largest)[-1])  # 1 / 20 is allowed: beyond all of them
    p, limit, _ = max_t(np.array([100.0, 0.0]), by_chance, 0.10)
    assert limit == pytest.approx(np.sort(largest)[-2])
    p, _, _ = max_t(limit * spread * (1 + 1e-6), by_chance, 0.10)
    assert (p <= 0.10).all()
    p, _, _ = max_t(limit * spread * (1 - 1e-6), by_chance, 0.10)
    assert (p > 0.10).all()
    never = np.zeros((19, 1))
    assert max_t(np.zeros(1), never, 0.05)[0] == 1


def test_real_against_real_raises_few_alarms(scenes):
    """Three generations of real pictures, 40 times: at 5% more than 6 alarms of any kind come in 1 of 300 runs."""
    alarms = verdicts = 0
    for repeat in range(40):
        *sets, real = drawn(scenes[0], 60, 4, repeat)
        found = judged(sets, real)
        cells = [cell["p"] for about in found["metrics"].values() for cell in about["generations"]]
        cells += [about["trend"]["p"] for about in found["metrics"].values()]
        alarms += min(cells) <= 0.05
        verdicts += found["collapsing"]
        assert found["collapsing"] <= (min(cells) <= 0.05)
    assert verdicts <= alarms <= 6


# ---- damage of known kinds


def shrunk(rows: Rows) -> Rows:
    """Features 15% nearer to their mean."""
    return Rows(rows.images.mean(0) + 0.85 * (rows.images - rows.images.mean(0)), rows.texts, rows.captions)


def shuffled(rows: Rows) -> Rows:
    """Captions of other pictures."""
    other = np.random.default_rng(0).permutation(len(rows.images))
    return Rows(rows.images, rows.texts[other], [rows.captions[i] for i in other])


def repeated(rows: Rows) -> Rows:
    """A third of the captions is the first one."""
    which = np.where(np.arange(len(rows.images)) % 3 == 0, 0, np.arange(len(rows.images)))
    return Rows(rows.images, rows.texts[which], [rows.captions[i] for i in which])


def noisy(rows: Rows) -> Rows:
    """Features far from any picture's."""
    far = np.random.default_rng(0).normal(0, 3, rows.images.shape)
    return Rows((rows.images + far).astype(np.float32), rows.texts, rows.captions)


@pytest.mark.parametrize(
    ("damage", "found_in", "not_in"),
    [
        (shrunk, {"variance"}, {"repetition", "fidelity"}),
        (shuffled, {"alignment"}, {"variance", "tails", "repetition", "fidelity", "distance"}),
        (repeated, {"repetition", "variance", "alignment"}, {"fidelity", "distance"}),
        (noisy, {"fidelity", "distance", "alignment"}, {"repetition"}),
    ],
)
def test_damage_is_found_where_it_is(scenes, damage, found_in, not_in):
    first, second, third, real = drawn(scenes[0], 250, 4)
    found = judged([first, second, damage(third)], real)
    assert found_in <= collapsing(found) and not collapsing(found) & not_in
    assert {found["dimensions"][name]["since"] for name in found_in} == {2}
    assert found["verdict"].startswith("collapsing in") and "since generation 2" in found["verdict"]
    # the other way round nothing is lost
    assert not found_in & collapsing(judged([damage(third), first], real)) or damage is noisy


def test_lost_tails_are_found(scenes):
    """Only the commonest five shapes and colours are left."""
    rows, truth = scenes
    common = [i for i, s in enumerate(truth) if all(t.shape < 5 and t.colour < 5 for t in s.things)]
    rest = np.setdiff1d(np.arange(len(truth)), common[:250])
    first, second, real = drawn(rows.take(rest), 250, 3)
    found = judged([first, second, rows.take(np.array(common[:250]))], real)
    assert {"tails", "distance"} <= collapsing(found) and not collapsing(found) & {"alignment", "fidelity"}
    assert {"recall", "vocabulary"} <= set(found["dimensions"]["tails"]["by"])


def test_more_is_seen_in_more_pictures(scenes):
    """The smallest visible change falls about as 1 / sqrt(n), and is what is found in 4 of 5 cases."""
    visible = {}
    for n in (60, 240):
        found = judged(drawn(scenes[0], n, 2), None)["metrics"]["variance"]
        visible[n] = found["generations"][0]["visible"] / found["values"][0]
    assert 1.5 < visible[60] / visible[240] < 2.7
    hits = 0
    for repeat in range(10):
        first, second = drawn(scenes[0], 240, 2, 100 + repeat)
        scale = np.sqrt(1 - visible[240])
        second.images = second.images.mean(0) + scale * (second.images - second.images.mean(0))
        hits += judged([first, second], None, ["variance"])["metrics"]["variance"]["generations"][0]["outside"]
    assert 5 <= hits


def test_since_is_the_first_of_an_unbroken_row(scenes):
    g = drawn(scenes[0], 150, 5)
    lasting = judged([g[0], g[1], shuffled(g[2]), shuffled(g[3])], None)
    assert lasting["dimensions"]["alignment"] | {"p": 0} == {
        "state": "collapsing", "since": 2, "by": ["P", "clip_score"], "p": 0, "why": ""
    }  # fmt: skip
    passing = judged([g[0], shuffled(g[1]), g[2], g[3], g[4]], None)["dimensions"]["alignment"]
    assert passing["state"] == "passing" and passing["since"] is None
    broken = judged([g[0], shuffled(g[1]), g[2], shuffled(g[3])], None)["dimensions"]["alignment"]
    assert broken["since"] == 3


def test_a_slow_loss_shows_in_the_trend(scenes):
    """A tenth of the captions more is of another picture every generation; the slope is that of a straight line."""
    own = drawn(scenes[0], 100, 6)
    sets = []
    for generation, rows in enumerate(own):
        wrong = np.arange(100) < 4 * generation
        which = np.where(wrong, np.roll(np.arange(100), 1), np.arange(100))
        sets.append(Rows(rows.images, rows.texts[which], [rows.captions[i] for i in which]))
    about = judged(sets, None)["metrics"]["P"]
    assert about["trend"]["slope"] == pytest.approx(np.polyfit(range(6), about["values"], 1)[0])
    assert about["trend"]["p"] <= 0.05
    cells = [{"p": 0.2, "outside": False}] * 5
    slow = _dimension({"P": about | {"generations": cells}}, 0.05)
    assert slow["state"] == "collapsing" and slow["since"] is None and slow["by"] == ["P"]


def test_a_further_generation_leaves_the_others_as_they_were(scenes):
    """But for the correction: 1 of 1 comparison, 1 of 4 (three generations and the trend)."""
    *sets, real = drawn(scenes[0], 80, 5)
    alone, among = compare(sets[:2], real, MEASURED), compare(sets, real, MEASURED)
    for metric in MEASURED:
        one, other = alone[metric]["generations"][0], among[metric]["generations"][0]
        assert alone[metric]["values"] == among[metric]["values"][:2] and one["change"] == other["change"]
        assert other["p"] == pytest.approx(min(1, 4 * one["p"])) and one["band"] <= other["band"]
        assert alone[metric]["real"] == among[metric]["real"]


def test_real_pictures_lie_in_their_own_band(scenes):
    first, second, *more = drawn(scenes[0], 150, 4)
    real = Rows(*(np.concatenate(parts) for parts in zip(*((r.images, r.texts) for r in more), strict=True)))
    real.captions = more[0].captions + more[1].captions
    found = compare([first, second], real, MEASURED)
    inside = [about["real"]["low"] <= about["values"][0] <= about["real"]["high"] for about in found.values()]
    assert np.mean(inside) > 0.7
    few = compare([first, second], more[0], MEASURED)
    assert few["kid"]["real"] is None and few["variance"]["real"]["low"] is None
    assert few["variance"]["real"]["level"] == pytest.approx(images.embedding_variance(more[0].images))


# ---- files


def put(folder: Path, batch, captions=True, names="{:04d}", **columns) -> Path:
    """A folder of PNG files, with metadata.jsonl."""
    folder.mkdir()
    lines = []
    for k, picture in enumerate(batch.images):
        Image.fromarray(picture).save(folder / f"{names.format(k)}.png")
        lines.append(json.dumps({"file_name": f"{names.format(k)}.png", "text": batch.captions[k][0]}))
    if captions:
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def sets(world, tmp_path_factory):
    """Folders gen0, gen1 (alike), bad (captions of other pictures) and real, of 60 and 130 pictures."""
    folder = tmp_path_factory.mktemp("sets")
    for k, name in enumerate(("gen0", "gen1", "bad", "real")):
        batch = world.sample("test", np.arange(10_000 + 1000 * k, 10_000 + 1000 * k + (130 if name == "real" else 60)))
        if name == "bad":
            batch.captions = batch.captions[7:] + batch.captions[:7]
        put(folder / name, batch)
    return folder


def test_layouts_and_files_give_the_same_set(sets, world, tmp_path):
    """A folder, a Parquet file with further columns, an item of the store, and the same files by other names."""
    known = read_set(sets / "gen0")
    assert len(known.entries) == 60 and known.captioned
    shutil.copytree(sets / "gen0", tmp_path / "renamed")
    rows = [json.loads(line) for line in (tmp_path / "renamed/metadata.jsonl").read_text().splitlines()]
    for k, row in enumerate(rows):
        (tmp_path / "renamed" / row["file_name"]).rename(tmp_path / "renamed" / f"z{(k * 7) % 60}.png")
        row["file_name"] = f"z{(k * 7) % 60}.png"
    (tmp_path / "renamed/metadata.jsonl").write_text("\n".join(map(json.dumps, reversed(rows))))
    pictures = np.concatenate(list(decoded(known, 64)))
    (tmp_path / "item").mkdir()
    written, columns = [e.caption for e in known.entries], {"generation": [1, 2] * 30, "arm": ["a b"] * 60}
    save_pairs(tmp_path / "item", pictures[::-1], written[::-1], columns)
    same = read_set(tmp_path / "renamed")
    assert same.keys == known.keys and [e.caption for e in same.entries] == written
    some = read_set(f"{tmp_path}/item/{FILE}:generation=1 arm=a b")
    assert len(some.entries) == 30 and {e.caption for e in some.entries} == set(written[::-1][::2])
    with pytest.raises(MMCollapseError, match=r"several of the column generation \(1, 2\)"):
        read_set(tmp_path / "item")
    alone = read_set(put(tmp_path / "alone", world.sample("test", np.arange(5)), captions=False))
    assert len(alone.entries) == 5 and not alone.captioned


def test_of_a_picture_that_is_there_often_some_are_drawn(tmp_path):
    """Half of a set is one picture: so is about half of what is drawn from it."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 255, (200, 8, 8, 3)).astype(np.uint8)
    pictures[:100] = pictures[0]
    save_pairs(tmp_path, pictures, ["a"] * 200)
    few = read_set(tmp_path).first(80)
    assert 25 < few.keys.count(max(few.keys, key=few.keys.count)) < 55


def test_pictures_of_several_sizes_are_cut_and_resized(tmp_path):
    left = np.zeros((64, 128, 3), np.uint8)
    left[:, :32], left[:, 96:] = 255, 255  # cut off
    Image.fromarray(left).save(tmp_path / "a.png")
    assert not np.concatenate(list(decoded(read_set(tmp_path), 16))).any()


def broken(sets: Path, tmp_path: Path, name: str) -> list[str]:
    """Arguments with one mistake in them."""
    good, bad = str(sets / "gen0"), tmp_path / "mistake"
    if name == "one generation":
        return [good]
    if name == "space":
        return [good, str(sets / "gen1"), "--space", "clip", "--instruments", str(tmp_path)]
    if name == "alpha":
        return [good, str(sets / "gen1"), "--alpha", "2"]
    if name == "setting":
        return [good, str(sets / "gen1"), "--set", "seeds=3"]
    if name == "real is generation 0":
        return [good, str(sets / "gen1"), "--real", good]
    if name == "same pictures":
        shutil.copytree(sets / "gen0", bad)
        (bad / "metadata.jsonl").unlink()
        shutil.copytree(bad, tmp_path / "again")
        return [str(bad), str(tmp_path / "again")]
    if name == "no such":
        return [good, str(bad)]
    if name == "no image column":
        pq.write_table(pa.table({"picture": [b"a"]}), tmp_path / "a.parquet")
        return [good, str(tmp_path / "a.parquet")]
    if name == "no parquet":
        (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
        return [good, str(tmp_path / "a.parquet")]
    shutil.copytree(sets / "gen1", bad)
    if name == "empty":
        for path in bad.iterdir():
            path.unlink()
    elif name == "few":
        for path in sorted(bad.glob("*.png"))[:20]:
            path.unlink()
        (bad / "metadata.jsonl").unlink()
    elif name == "damaged":
        whole = (bad / "0007.png").read_bytes()
        (bad / "0007.png").write_bytes(whole[: len(whole) // 2])
    elif name == "no picture":
        (bad / "0007.png").write_text("no picture")
    elif name == "uncaptioned":
        Image.new("RGB", (64, 64)).save(bad / "more.png")
    elif name == "gone":
        (bad / "0007.png").unlink()
    elif name == "large":
        for path in bad.glob("*.png"):
            Image.open(path).resize((96, 96)).save(path)
        return [str(bad), str(bad)]
    return [good, str(bad)]


MISTAKES = {
    "one generation": "2 to 25 can be compared",
    "space": "clip/model.safetensors, which is not there",
    "alpha": "alpha=2.0: allowed are",
    "setting": "--set: a check reads the sets",
    "real is generation 0": "of 60 real pictures in .*gen0 all but 0 are in a generation too",
    "same pictures": "the same pictures without captions",
    "no such": "mistake does not exist",
    "no image column": "no column image; its columns are picture",
    "no parquet": "a.parquet cannot be read as a Parquet file",
    "empty": "mistake holds no pictures",
    "few": "mistake has 40 pictures: 50 are the fewest",
    "damaged": "0007.png is a damaged picture",
    "no picture": "0007.png is a damaged picture: no picture that Pillow knows",
    "uncaptioned": "1 of 61 pictures of .*mistake have no caption, the first .*more.png",
    "gone": "1 bad entries in .*mistake.*\n.*0007.png: caption without its picture",
    "large": "pictures of 96 x 96: the judge of scenes knows 64 x 64; name the space",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused_by_name(sets, tmp_path, capsys, name):
    out = tmp_path / "out"
    assert main(["check", *broken(sets, tmp_path, name), "--out", str(out)]) == 1
    said = capsys.readouterr().err.split("mmcollapse: ")[-1]
    assert re.search(MISTAKES[name], said), said
    assert "BytesIO" not in said and not out.exists()


def test_a_file_in_place_of_the_report_is_refused_first(sets, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(["check", str(sets / "gen0"), str(sets / "gone"), "--out", str(tmp_path / "out")]) == 1
    assert "is a file; a folder is needed" in capsys.readouterr().err


# ---- all of it


class Page(HTMLParser):
    """(tag, attributes) of every element, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def reports(sets, tmp_path_factory):
    """By the command line: alike, and with captions of other pictures in the end."""
    folder = tmp_path_factory.mktemp("reports")
    gen0, gen1, bad, real = (str(sets / name) for name in ("gen0", "gen1", "bad", "real"))
    codes = [
        main(["check", gen0, gen1, "--real", real, "--out", str(folder / "alike")]),
        main(["check", gen0, gen1, bad, "--real", real, "--out", str(folder / "bad")]),
    ]
    return folder, codes


def test_exit_status_and_json_say_what_was_found(reports, capsys):
    folder, codes = reports
    assert codes == [0, 3]
    alike, bad = (json.loads((folder / name / "check.json").read_text()) for name in ("alike", "bad"))
    assert (
        not alike["collapsing"] and "no sign of collapse that 60 pictures a generation could show" in alike["verdict"]
    )
    assert bad["collapsing"] and bad["verdict"] == "collapsing in alignment since generation 2"
    assert bad["dimensions"]["alignment"]["by"] == ["P", "clip_score"] and set(bad["dimensions"]) == set(DIMENSIONS)
    assert bad["left_out"] == {"fid": "60 pictures are too few for 64 dimensions: 640 needed"}
    assert set(bad["metrics"]) == set(MEASURED) and bad["n"] == 60 and bad["real"]["pictures"] == 130
    known = check.__globals__["Check"].__doc__  # every key is documented
    assert all(key in known for key in [*bad, *bad["metrics"]["P"], *bad["metrics"]["P"]["generations"][0]])


def test_equal_files_give_equal_bytes(reports, sets, tmp_path, monkeypatch):
    """Also where files have other names and stand in another order."""
    folder, _ = reports
    for name in ("gen0", "gen1", "real"):
        shutil.copytree(sets / name, tmp_path / name)
    rows = (tmp_path / "gen1/metadata.jsonl").read_text().replace("00", "x").splitlines()
    (tmp_path / "gen1/metadata.jsonl").write_text("\n".join(reversed(rows)))
    for path in (tmp_path / "gen1").glob("*.png"):
        path.rename(path.with_name(path.name.replace("00", "x")))
    monkeypatch.chdir(tmp_path)
    assert main(["check", "gen0", "gen1", "--real", "real"]) == 0
    for name in ("metrics.png", "pictures.png"):
        assert (tmp_path / "check" / name).read_bytes() == (folder / "alike" / name).read_bytes()
    mine, other = ((f / "check.json").read_text() for f in (tmp_path / "check", folder / "alike"))
    assert mine == other.replace(str(sets) + "/", "")


def test_the_page_holds_all_it_shows(reports):
    folder, _ = reports
    text = (folder / "bad" / "report.html").read_text()
    page = Page(text)
    assert "Collapsing in alignment since generation 2." in page.text and "What this cannot know" in page.text
    assert "60 pictures are too few for 64 dimensions" in page.text
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 2 and all(p["src"].startswith("data:image/png;base64,") and p["alt"] for p in pictures)
    assert not any(key in a for _, a in page.elements for key in ("onclick", "onerror"))
    sizes = [Image.open(folder / "bad" / f"{name}.png").size for name in ("metrics", "pictures")]
    assert all(width == 1500 for width, _ in sizes)


@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_the_page(browser, reports, width):
    page = reports[0] / "bad" / "report.html"
    browser.open(page, width)
    assert browser.value("document.scrollingElement.scrollWidth") <= width
    assert browser.value("[...document.images].every((i) => i.naturalWidth > 500)") and browser.wrong() == []


def test_a_notebook_shows_the_page(sets, reports):
    found = check([sets / name for name in ("gen0", "gen1", "bad")], sets / "real")
    (frame,) = Page(found._repr_html_()).elements
    assert frame[0] == "iframe" and frame[1]["srcdoc"] == found.save(sets.parent / "shown").read_text()


def test_what_was_not_given_is_left_out_and_said(sets, tmp_path, world):
    """Pictures alone, a hostile name, no real ones."""
    alone = put(tmp_path / "<script>alert(1)<", world.sample("test", np.arange(60)), captions=False)
    found = check([alone, sets / "gen0"])
    assert set(found.found["metrics"]) == {"variance", "vendi"}
    for name in ("alignment", "repetition"):
        assert found.found["dimensions"][name]["why"] == f"no captions in {alone}"
    assert any("no real pictures" in line for line in found.found["cannot"])
    words, unknown = repr(found).split("What this cannot know:")
    assert len(words.splitlines()) <= 12 and "no sign" in words and unknown.count("\n- ") == len(found.found["cannot"])
    assert any("mixtures of several, spread too" in line for line in found.found["cannot"])
    assert "<script" not in found.save(tmp_path / "out").read_text()


@pytest.mark.parametrize("space", ["clip", "inception", "dino"])
def test_spaces_of_published_networks_are_asked_too(sets, instruments, space):  # noqa: F811
    """Stand-ins of their classes and layouts; only CLIP reads captions."""
    found = check([sets / "gen0", sets / "gen1"], sets / "real", space, instruments=instruments).found
    assert found["space"] == space and {"kid", "precision", "variance"} <= set(found["metrics"])
    assert ("P" in found["metrics"]) == (space == "clip") and found["warning"] == ""
    assert space == "clip" or found["dimensions"]["alignment"]["why"] == f"{space} reads no text; clip and the judge do"
    assert any(f"the features of {space}, made for photos" in line for line in found["cannot"])


def test_prompts_that_come_again_are_no_captions_to_compare(sets, tmp_path):
    """Generators answer to the same prompts every generation: that their words do not change says nothing."""
    shutil.copytree(sets / "gen1", tmp_path / "gen1")
    captions = [json.loads(line)["text"] for line in (sets / "gen0/metadata.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (tmp_path / "gen1/metadata.jsonl").read_text().splitlines()]
    text = "\n".join(json.dumps(row | {"text": c}) for row, c in zip(rows, captions, strict=True))
    (tmp_path / "gen1/metadata.jsonl").write_text(text)
    found = check([sets / "gen0", tmp_path / "gen1"]).found
    assert found["dimensions"]["repetition"]["why"] == "all generations have the same captions"
    assert {"vocabulary", "self_bleu"} <= set(found["left_out"]) and {"P", "variance"} <= set(found["metrics"])


@pytest.mark.parametrize(
    "names, numbers",
    [
        (["a.parquet:generation=0", "a.parquet:arm=real generation=5", "b.parquet:generation=10"], [0, 5, 10]),
        (["a:generation=5", "a:generation=5"], [0, 1]),  # they do not rise
        (["gen3", "a:generation=5"], [0, 1]),
    ],
)
def test_generations_are_called_as_their_filters_say(names, numbers):
    assert _numbers(names) == numbers


def test_captions_of_the_same_pictures_are_compared(sets, tmp_path):
    shutil.copytree(sets / "gen0", tmp_path / "again")
    rows = [json.loads(line) for line in (tmp_path / "again/metadata.jsonl").read_text().splitlines()]
    text = "\n".join(json.dumps(row | {"text": rows[0]["text"]}) for row in rows)
    (tmp_path / "again/metadata.jsonl").write_text(text)
    found = check([sets / "gen0", tmp_path / "again"], real=sets / "gen0").found
    assert {"variance", "kid"} & set(found["metrics"]) == set()
    assert found["dimensions"]["repetition"]["since"] == 1 and found["dimensions"]["distance"]["state"] == "left out"


def test_pictures_of_another_domain_are_noticed(sets, tmp_path):
    """The judge would not notice: in its features anything is a scene."""
    random = np.random.default_rng(0)
    for name, caption in {"a": "a cloud", "b": "a tree"}.items():
        (tmp_path / name).mkdir()
        rough = random.integers(0, 255, (60, 8, 8, 3)).astype(np.uint8)
        pictures = [np.asarray(Image.fromarray(x).resize((64, 64), Image.Resampling.BICUBIC)) for x in rough]
        save_pairs(tmp_path / name, np.stack(pictures), [caption] * 60)
    strange = check([tmp_path / "a", tmp_path / "b"]).found
    assert "pictures of scenes only" in strange["warning"]
    assert any("1 different captions for 60 pictures" in line for line in strange["cannot"])
    assert check([sets / "gen0", sets / "gen1"]).found["warning"] == ""
    told = repr(check([tmp_path / "a", tmp_path / "b"]))
    assert told.startswith("The judge knows pictures of scenes only"), "the warning comes first"
    if not strange["collapsing"]:
        assert main(["check", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 4
