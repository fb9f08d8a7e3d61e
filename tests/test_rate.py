"""The page for raters: balanced, blind, refused when it makes no sense; and used as people do, in a real browser."""

import base64
import io
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmcollapse import rate
from mmcollapse.__main__ import main
from mmcollapse.errors import MMCollapseError
from mmcollapse.human import read_key, read_ratings
from mmcollapse.pairs import FILE, save_pairs
from mmcollapse.worlds.scenes import Scenes

STUDY = Path(rate.__file__).parents[2] / "data" / "results" / "study"
PROMPTS = [f"prompt {name} alone" for name in ("one", "two", "three", "four", "five", "six", "seven", "eight")]


def coded(arm: int, prompt: int, more: int = 0) -> np.ndarray:
    """A picture that says whose it is: arm and prompt are pixels of it, the rest is smooth."""
    image = np.full((16, 16, 3), 20 * arm + more, np.uint8)
    image[0, 0], image[0, 1], image[4:12, 4:12] = arm, prompt, (40 + 20 * prompt, 90, 200 - 20 * prompt)
    return image


def whose(image: np.ndarray) -> tuple[int, int]:
    return int(image[0, 0, 0]), int(image[0, 1, 0])


def pictures(names, count: int = 8) -> rate.Pictures:
    keys = [(prompt, 0) for prompt in PROMPTS[:count]]
    arms = {arm: {key: coded(k, i) for i, key in enumerate(keys)} for k, arm in enumerate(names)}
    real = {key: coded(9, i) for i, key in enumerate(keys)}
    return rate.Pictures(arms, real, [coded(8, i) for i in range(4)], {"experiment": "01_variance"})


def page_of(path: Path) -> dict:
    """What the page holds beside its own text."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())[1])


def pixels(page: dict, name: str) -> np.ndarray:
    url = page["pictures"][name]
    assert url.startswith("data:image/png;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert image.mode == "RGB" and not image.info
    return np.asarray(image)


# ---- the design


@pytest.mark.parametrize(("arms", "tasks"), [(2, 0), (2, 5), (3, 24), (3, 7), (4, 24), (5, 33), (7, 0)])
def test_the_design_is_balanced(arms, tasks):
    names = [f"arm {k}" for k in range(arms)]
    made = rate.design(pictures(names), tasks, np.random.default_rng(arms))
    pairs = arms * (arms - 1) // 2
    for question in rate.QUESTIONS:
        own = [task for task in made if task.question == question and "check" not in task.told]
        checks = [task for task in made if task.question == question and "check" in task.told]
        assert len(own) == (tasks or min(24, 8 * pairs)) and abs(len(checks) - len(own) / 9) <= 0.5 + (len(own) < 5)
        left = Counter((task.told["left"], task.told["right"]) for task in own)
        counts = [left[a, b] + left[b, a] for a, b in itertools.combinations(names, 2)]
        assert max(counts) - min(counts) <= 1 and sum(counts) == len(own)
        assert all(abs(left[a, b] - left[b, a]) <= 1 for a, b in itertools.combinations(names, 2))
        used = Counter(prompt for task in own for prompt in task.told["prompts"])
        assert max(used[i] for i in range(8)) - min(used[i] for i in range(8)) <= (1 if question != "variety" else 3)
        once = {(frozenset((t.told["left"], t.told["right"])), tuple(t.told["prompts"])) for t in own}
        assert len(once) == len(own)
        sides = Counter(task.told["check"] for task in checks)
        assert abs(sides["left"] - sides["right"]) <= 1


def test_both_sides_are_of_the_same_prompts_and_of_the_arms_that_the_key_says():
    names = ["a", "b", "c"]
    for task in rate.design(pictures(names), 24, np.random.default_rng(0)):
        assert len(task.left) == len(task.right) == (4 if task.question == "variety" else 1)
        if "check" in task.told:
            continue
        for side in ("left", "right"):
            seen = [whose(image) for image in getattr(task, side)]
            assert seen == [(names.index(task.told[side]), prompt) for prompt in task.told["prompts"]]
        assert task.caption == (PROMPTS[task.told["prompts"][0]] if task.question == "fidelity" else "")


def test_the_answer_of_a_check_is_known():
    for task in rate.design(pictures(["a", "b"]), 8, np.random.default_rng(0)):
        if "check" not in task.told:
            continue
        good, bad = (task.left, task.right) if task.told["check"] == "left" else (task.right, task.left)
        if task.question == "fidelity":
            assert whose(good[0]) == (9, PROMPTS.index(task.caption)) != whose(bad[0])
        elif task.question == "realism":  # the same pixels, elsewhere
            assert np.array_equal(*(np.sort(side[0].reshape(-1, 3), axis=0) for side in (good, bad)))
            assert not np.array_equal(good[0], bad[0]) and whose(good[0])[0] == 9
        else:
            assert len({whose(image) for image in good}) == 4 and len({whose(image) for image in bad}) == 1


def test_the_wrong_caption_of_a_check_is_the_least_like():
    shown = pictures(["a", "b"], 4)
    texts = ["a red disk on grey", "a red disk on white", "a red ring on grey", "two blue stars below"]
    real = {(text, 0): coded(9, i) for i, text in enumerate(texts)}
    made = rate.design(rate.Pictures(shown.arms, real, [], {}), 4, np.random.default_rng(3))
    (check,) = [t for t in made if t.question == "fidelity" and "check" in t.told]
    wrong = next(whose(side[0])[1] for side in (check.left, check.right) if texts[whose(side[0])[1]] != check.caption)
    assert wrong == 3 or check.caption == texts[3]


def test_tasks_that_cannot_be_are_refused():
    for tasks in (2, 25, -1):
        with pytest.raises(MMCollapseError, match=f"tasks={tasks}: 3 pairs of 3 arms with 8 prompts allow 3 to 24"):
            rate.design(pictures("abc"), tasks, np.random.default_rng(0))


# ---- the page


def test_the_page_does_not_depend_on_the_names_of_the_arms(tmp_path):
    """So nothing in it can tell them: not a name, not an order, not the length of anything."""
    one = rate.write_page(pictures(["recursive", "gen0", "worse"]), tmp_path / "1", secret="s")
    other = rate.write_page(pictures(["aa", "zz", "mm"]), tmp_path / "2", secret="s")
    texts = [made.page.read_text() for made in (one, other)]
    ids = [page_of(made.page)["page"] for made in (one, other)]
    assert ids[0] != ids[1] and texts[0].replace(ids[0], ids[1]) == texts[1]
    key = json.loads(one.key.read_text())
    for told in ("recursive", "gen0", "worse", "check", "secret", "01_variance"):
        assert told not in json.dumps(page_of(one.page)) and (told == "check" or told not in texts[0]), told
    assert {"recursive", "gen0", "worse"} == set(key["arms"]) and key["secret"] == "s"


def test_tasks_and_pictures_lie_in_an_order_that_tells_nothing(tmp_path):
    made = rate.write_page(pictures(["a", "b", "c"]), tmp_path, secret="s")
    page, key = page_of(made.page), json.loads(made.key.read_text())
    ids = [task["id"] for task in page["tasks"]]
    assert ids == sorted(ids) and list(page["pictures"]) == sorted(page["pictures"]) and set(ids) == set(key["tasks"])
    assert {len(name) for name in [*ids, *page["pictures"]]} == {12}
    for task in page["tasks"]:  # the page and the key say the same of every task
        told = key["tasks"][task["id"]]
        assert set(task) == {"id", "question", "caption", "left", "right"} and task["question"] == told["question"]
        if "check" not in told:
            for side in ("left", "right"):
                seen = [whose(pixels(page, name)) for name in task[side]]
                assert seen == [("abc".index(told[side]), i) for i in told["prompts"]]
    assert made.tasks == len(ids) == 81 and page["minutes"] == made.minutes == 10


def test_the_same_secret_gives_the_same_bytes_and_none_a_new_one(tmp_path):
    written = [rate.write_page(pictures("ab"), tmp_path / str(k), secret=s) for k, s in enumerate(("s", "s", "", ""))]
    for name in ("page", "key"):
        first, same, new, newer = (getattr(made, name).read_bytes() for made in written)
        assert first == same and len({first, new, newer}) == 3


def test_the_page_asks_for_nothing_and_runs_nothing_else(tmp_path):
    made = rate.write_page(pictures("ab"), tmp_path)
    text = made.page.read_text()
    own = text.replace('<link rel="icon" href="data:,">', "")
    assert not re.search(r"https?:|//[a-z]|<link|fetch\(|XMLHttp|sendBeacon|cookie|@[A-Z]+@", own)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy


def test_a_key_is_never_written_over(tmp_path):
    made = rate.write_page(pictures("ab"), tmp_path)
    before = made.key.read_bytes(), made.page.read_bytes()
    with pytest.raises(MMCollapseError, match="cannot be read without it"):
        rate.write_page(pictures("ab"), tmp_path)
    assert before == (made.key.read_bytes(), made.page.read_bytes())


# ---- where pictures come from


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Samples as a run keeps them: three arms, one of them a population, two seeds, two decodings, and real ones."""
    folder, rows = tmp_path_factory.mktemp("results"), []
    for k, (arm, models) in enumerate({"recursive": ["g"], "real": ["g"], "pool-2": ["g", "h", "pool", "set"]}.items()):
        for seed, g, model, i in itertools.product((4, 5), range(3 - (arm == "real")), models, range(8)):
            for measurement in ["data"] if model == "set" else ["guidance 1", "guidance 3"]:
                usual = seed == 4 and model in ("g", "pool") and measurement == "guidance 1" and (model, k) != ("g", 2)
                more = g if usual else 100
                rows.append((coded(k, i, more), arm, model, "image", seed, g, measurement, i, PROMPTS[i]))
    for i in range(8):
        rows.append((coded(9, i), "world", "", "image", -1, 0, "", i, PROMPTS[i]))
        rows.append((coded(7, i), "recursive", "captioner", "text", 4, 2, "greedy", i, PROMPTS[i]))
    names = ("arm", "model", "modality", "seed", "generation", "measurement", "index", "prompt")
    columns = {name: [row[k + 1] for row in rows] for k, name in enumerate(names)}
    save_pairs(folder, [row[0] for row in rows], [row[-1] for row in rows], columns)
    (folder / FILE).rename(folder / "03_diversity.samples.parquet")
    return folder


def test_samples_of_the_last_generation_of_the_first_seed(results):
    path = results / "03_diversity.samples.parquet"
    for arms, generation, last in ((["recursive", "pool-2"], None, 2), (["pool-2", "real", "world"], None, 1)):
        found = rate.from_samples(path, arms, generation)
        assert list(found.arms) == arms and found.source["generation"] == last and found.source["seed"] == 4
        for arm, own in found.arms.items():
            for (prompt, number), image in own.items():
                k = ["recursive", "real", "pool-2"].index(arm) if arm != "world" else 9
                more = last if arm != "world" else 0
                assert np.array_equal(image, coded(k, PROMPTS.index(prompt), more)) and number == PROMPTS.index(prompt)
        known = {"recursive": "g", "real": "g", "pool-2": "pool", "world": ""}
        assert found.source["models"] == {arm: known[arm] for arm in arms}
        assert [whose(image)[0] for image in found.real.values()] == [9] * 8 and found.examples == []
    assert rate.from_samples(path, ["recursive", "real"], 0).source["generation"] == 0
    assert list(rate.from_samples(path).arms) == ["recursive", "real", "world"]  # of the usual ones those there


def test_mistakes_are_refused_by_name(results, tmp_path):
    for arms, generation, said in [
        ("recursive", None, "needs two or more"),
        ("recursive,gone", None, "arm 'gone' has no pictures .* there are recursive, real, pool-2, world"),
        ("recursive,real", 2, r"generation=2: all of recursive, real have \[0, 1\]"),
        ("recursive,recursive", None, "named twice"),
        ("recursive,a=b", None, "not both"),
        (f"a={tmp_path},b={tmp_path}", 3, "generation=3: pictures from folders have none"),
        (f"a={tmp_path / 'no'},b={tmp_path}", None, "does not exist"),
    ]:
        with pytest.raises(MMCollapseError, match=said):
            rate.rate(results, "03_diversity", arms, generation)
    assert not (results / "ratings").exists()
    with pytest.raises(MMCollapseError, match="no samples at .*01_variance"):
        rate.rate(results, "01_variance")
    (tmp_path / "01_variance.samples.parquet").write_bytes(b"none")
    with pytest.raises(MMCollapseError, match="cannot be read as samples"):
        rate.rate(tmp_path, "01_variance")
    samples = pd.read_parquet(results / "03_diversity.samples.parquet").drop(columns="model")
    samples.to_parquet(tmp_path / "01_variance.samples.parquet")
    with pytest.raises(MMCollapseError, match="it has no column 'model'"):
        rate.rate(tmp_path, "01_variance")


def photos(folder: Path, size: int, captions: list[str], ending="png") -> Path:
    folder.mkdir()
    rows = []
    for i, caption in enumerate(captions):
        image = Image.new("RGB", (size, size + 8), (20 * i, 90, 120))
        image.save(folder / f"{i}.{ending}", comment=str(folder))
        rows.append(json.dumps({"file_name": f"{i}.{ending}", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_folders_of_pictures(tmp_path):
    captions = [*PROMPTS[:5], PROMPTS[0], '</script><script>document.title = "run"</script>']
    a = photos(tmp_path / "a", 40, captions)
    b = photos(tmp_path / "b", 64, [*captions[::-1], "only here"], "jpg")
    found = rate.from_folders({"mine": a, "theirs": b})
    shared = {(caption, 0) for caption in captions} | {(PROMPTS[0], 1)}
    assert all(set(own) == shared for own in found.arms.values())
    assert {image.shape for own in found.arms.values() for image in own.values()} == {(40, 40, 3)}  # no size tells
    made = rate.rate(tmp_path, "01_variance", f"mine={a},theirs={b}", tasks=7)
    text = made.page.read_text()
    assert page_of(made.page)["side"] == 40 and text.count("<script") == 2 and str(tmp_path) not in text
    Image.new("RGB", (8, 8)).save(a / "more.png")  # without a caption: passed over
    assert set(rate.from_folders({"mine": a, "theirs": b}).arms["mine"]) == shared
    (b / "2.jpg").write_bytes(b"broken")
    with pytest.raises(MMCollapseError, match="2.jpg is no picture"):
        rate.from_folders({"mine": a, "theirs": b})
    with pytest.raises(MMCollapseError, match="have 1 pictures of the same prompts; a set has 4"):
        rate.from_folders({"mine": a, "other": photos(tmp_path / "c", 64, PROMPTS[4:])})


def test_the_command_and_the_samples_that_are_shipped(tmp_path, capsys):
    for name in ("01_variance.samples.parquet", "01_variance.json"):
        (tmp_path / name).symlink_to(STUDY / name)
    assert main(["rate", "--profile", "study", "--results", str(tmp_path), "--arms", "recursive,world"]) == 0
    said = capsys.readouterr().out
    told = re.search(r": (\d+) tasks on recursive, world, about \d+ minutes", said)
    assert int(told[1]) >= 12 and "raters must not have it" in said
    page, key = page_of(tmp_path / "ratings" / "rate.html"), read_key(tmp_path / "ratings" / "key.json")
    assert key.source["generation"] == 10 and key.arms == ["recursive", "world"] and len(page["examples"]) == 6
    real = Scenes().sample("base", range(6)).images
    assert [pixels(page, name).tolist() for name in page["examples"]] == real.tolist()
    assert main(["rate", "--profile", "study", "--results", str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err


# ---- a real browser

SCREEN = "[...document.querySelectorAll('main > section')].find((s) => !s.hidden).id"
NOW = "steps[state.at] && steps[state.at].task ? steps[state.at].task.id : ''"
# Controls that a screen reader could not name, or a finger not hit; visible ones only.
WRONG = """[...document.querySelectorAll('button, input, summary, textarea, progress')]
  .filter((e) => e.checkVisibility())
  .filter((e) => {
    const box = e.getBoundingClientRect(), label = e.labels && e.labels[0];
    const name = e.getAttribute('aria-label') || e.textContent.trim() || (label && label.textContent);
    return !name || (e.tagName !== 'PROGRESS' && (box.height < 44 || box.width < 44));
  }).map((e) => e.outerHTML)"""


@pytest.fixture
def page(browser, tmp_path):
    """A small page, and the folder that its downloads go to."""
    made = rate.write_page(pictures(["recursive", "gen0"]), tmp_path / "page", tasks=4)
    browser.downloads(tmp_path)
    yield made
    browser.value("localStorage.clear()")
    assert browser.wrong() == []


def begin(browser, made, rater, width=1280):
    browser.open(made.page, width)
    browser.value(f"document.querySelector('#rater').value = {json.dumps(rater)}")
    browser.tap("#agree") if width < 600 else browser.value("document.querySelector('#agree').click()")


def settle(browser):
    """The page takes no answer in the first moment of a task."""
    browser.value("new Promise((done) => setTimeout(done, 170))")


def saved(browser, folder: Path, rater: str) -> Path:
    for _ in range(100):
        if found := list(folder.glob(f"rating-*-{rater}.json")):
            return found[0]
        browser.value("new Promise((done) => setTimeout(done, 50))")
    raise AssertionError(f"no file of {rater} in {list(folder.iterdir())}")


def test_by_keyboard_from_consent_to_the_file(browser, page, tmp_path):
    browser.open(page.page, 1280)
    assert browser.value("document.body.innerText.includes('What is recorded')")
    assert str(page.minutes) in browser.value("document.querySelector('#start p').innerText")
    begin(browser, page, "Ann O'Nym")
    given, mirrored = {}, browser.value("mirrored")
    keys = itertools.cycle(["1", "ArrowLeft", "2", "ArrowDown", "3", "ArrowRight"])
    means = {"1": "left", "ArrowLeft": "left", "2": "same", "ArrowDown": "same", "3": "right", "ArrowRight": "right"}
    for _ in range(3 * page.tasks):
        if browser.value(SCREEN) == "end":
            break
        if browser.value(SCREEN) == "intro":
            browser.press("Enter")
            continue
        settle(browser)
        task, key = browser.value(NOW), next(keys)
        browser.press(key)
        assert browser.value(NOW) != task, key
        given[task] = means[key]
        if len(given) == 5:  # one back, another answer
            browser.press("Backspace")
            assert browser.value(NOW) == task
            pressed = "document.querySelector('#task [aria-pressed=true]').dataset.answer"
            assert browser.value(pressed) == means[key]
            settle(browser)
            browser.press("3")
            given[task] = "right"
    assert browser.value(SCREEN) == "end" and not browser.value("document.body.innerText.includes('Not complete')")
    browser.value("document.querySelector('#save').click()")
    path = saved(browser, tmp_path, "Ann_O_Nym")
    key = read_key(page.key)
    ratings = read_ratings([path], key)
    assert dict(zip(ratings.task, ratings.shown, strict=True)) == given and len(given) == page.tasks
    assert ratings.complete.all() and set(ratings.rater) == {"Ann O'Nym"} and (ratings.seconds > 0.1).all()
    assert ratings.seconds.sum() < 60
    turned = {"left": "right", "same": "same", "right": "left"}
    assert list(ratings.answer) == [turned[shown] if mirrored else shown for shown in ratings.shown]
    record = json.loads(path.read_text())
    assert set(record) == {*"format page rater mirrored started saved complete answers".split()} and record["complete"]
    assert record["answers"] == json.loads(browser.value("document.querySelector('#copy').value"))["answers"]


def test_by_touch_on_a_phone(browser, page, tmp_path):
    """Every screen fits 360 pixels, every control has a name and 44 pixels, pictures stay sharp."""
    begin(browser, page, "thumb", 360)
    seen, given = set(), []
    for _ in range(3 * page.tasks):
        screen = browser.value(SCREEN)
        assert browser.value("document.scrollingElement.scrollWidth") <= 360 and browser.value(WRONG) == [], screen
        if screen == "end":
            break
        if screen == "intro":
            browser.tap("#go")
            continue
        sizes = browser.value("[...document.querySelectorAll('#task img')].map((i) => i.getBoundingClientRect().width)")
        assert set(sizes) <= {64, 80, 128, 144, 160} and all(size % 16 == 0 for size in sizes)
        assert browser.value("getComputedStyle(document.querySelector('#task img')).imageRendering") == "pixelated"
        assert browser.value("document.querySelector('.same').getBoundingClientRect().bottom <= innerHeight")
        seen.add(len(sizes))
        names = browser.value("[...document.querySelectorAll('#task button')].map((b) => b.getAttribute('aria-label'))")
        what = "set" if len(sizes) == 8 else "picture"
        assert names == [f"Left {what}", f"Right {what}", "No difference"]
        settle(browser)
        task = browser.value(NOW)
        side = ("left", "right", "same")[len(given) % 3]
        browser.tap(f"#task [data-answer={side}]")
        assert browser.value(NOW) != task
        given.append((task, side))
    assert seen == {2, 8} and browser.value(SCREEN) == "end"
    browser.tap("#save")
    ratings = read_ratings([saved(browser, tmp_path, "thumb")], read_key(page.key))
    assert sorted(zip(ratings.task, ratings.shown, strict=True)) == sorted(given) and ratings.complete.all()


def answer(browser, count):
    while count:
        if browser.value(SCREEN) == "intro":
            browser.press("Enter")
            continue
        settle(browser)
        browser.press("1")
        count -= 1


def test_closed_and_opened_again_it_goes_on(browser, page, tmp_path):
    begin(browser, page, "late")
    answer(browser, 6)
    order, at, mirrored = (browser.value(text) for text in ("steps.map((s) => s.task && s.task.id)", NOW, "mirrored"))
    browser.open("about:blank", 1280)
    browser.open(page.page, 1280)
    assert "Go on as late: 6 of" in browser.value("document.querySelector('#known').innerText")
    browser.value("document.querySelector('#known button').click()")
    assert browser.value("steps.map((s) => s.task && s.task.id)") == order
    assert (browser.value(NOW), browser.value("mirrored")) == (at, mirrored)
    answer(browser, page.tasks - 6)
    browser.value("document.querySelector('#save').click()")
    assert read_ratings([saved(browser, tmp_path, "late")], read_key(page.key)).complete.all()


def test_half_way_is_marked_and_deleting_deletes(browser, page, tmp_path):
    begin(browser, page, "half")
    answer(browser, 5)
    browser.value("document.querySelector('#stop').click()")
    assert f"Not complete: 5 of {page.tasks}" in browser.value("document.body.innerText")
    browser.value("document.querySelector('#more').click()")  # on with it, after all
    answer(browser, 1)
    browser.value("document.querySelector('#stop').click()")
    browser.value("document.querySelector('#delete').click()")  # not saved: asks again
    assert browser.value(SCREEN) == "end" and "without saving" in browser.value("document.body.innerText")
    browser.value("document.querySelector('#save').click()")
    path = saved(browser, tmp_path, "half")
    assert json.loads(path.read_text())["complete"] is False
    ratings = read_ratings([path], read_key(page.key))
    assert len(ratings) == 6 and not ratings.complete.any()
    assert browser.value("localStorage.length") == 1
    browser.value("document.querySelector('#delete').click()")
    assert browser.value(SCREEN) == "gone" and browser.value("localStorage.length") == 0
    browser.open(page.page, 1280)
    assert browser.value("document.querySelectorAll('#known button').length") == 0


def test_orders_differ_between_raters_and_sides_turn(browser, page):
    """Every rater's design is that of the page, or all of it mirrored; blocks stay together."""
    orders, turned = set(), []
    for k in range(12):
        begin(browser, page, f"rater {k}")
        order = browser.value("steps.map((s) => s.task ? s.task.id : s.question)")
        questions = browser.value("steps.map((s) => s.question)")
        assert [q for q, _ in itertools.groupby(questions)] == list(dict.fromkeys(questions))
        assert len(order) == page.tasks + 3
        orders.add(tuple(order))
        turned.append(browser.value("mirrored"))
        browser.press("Enter")
        shown = browser.value("[...document.querySelectorAll('#task img')].map((i) => i.src)")
        task = browser.value("steps[state.at].task")
        sides = [*task["right"], *task["left"]] if turned[-1] else [*task["left"], *task["right"]]
        assert shown == [page_of(page.page)["pictures"][name] for name in sides]
    assert len(orders) == 12 and {True, False} == set(turned)


def test_a_caption_runs_nothing_and_two_taps_are_one(browser, tmp_path):
    bad = "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>"
    shown = pictures(["a", "b"], 4)
    arms = {arm: {(f"{bad} {p}", n): image for (p, n), image in own.items()} for arm, own in shown.arms.items()}
    real = {(f"{bad} {p}", n): image for (p, n), image in shown.real.items()}
    made = rate.write_page(rate.Pictures(arms, real, [], {}), tmp_path / "page", tasks=4)
    begin(browser, made, bad)
    while browser.value("steps[state.at].question + !!steps[state.at].task") != "fidelitytrue":
        browser.value("move(1)")
    assert bad in browser.value("document.querySelector('#caption').textContent")
    settle(browser)
    browser.press("1")
    before = browser.value("state.at")
    browser.press("1")
    assert browser.value("state.at") == before
    late = "const late = document.createElement('script'); late.textContent = \"document.title = 'run'\";"
    browser.value(late + "document.body.append(late)")
    assert browser.value("document.title") == "Which picture?"
    browser.open(made.page, 1280)  # a name that would be markup
    assert bad in browser.value("document.querySelector('#known').textContent")
    assert browser.value("document.images.length") == 0
    browser.value("localStorage.clear()")
