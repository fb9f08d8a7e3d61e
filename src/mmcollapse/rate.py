"""The page on which people judge pictures: which pairs they see, and the file that holds them (`make rate`).

Three questions, each a block of its own, "no difference" allowed: which picture fits the caption better (fidelity),
which looks more like a real one (realism), which set of four is more varied (variety). Both sides of a pair answer the
same prompts, in a run's samples with the same noise. A tenth of the tasks are attention checks, whose answer is known.

The page is blind: what it holds, and in which order, does not depend on the names of the arms. Which side is which arm
is in the key, a file beside it that no rater should have. Both are drawn from a secret that only the key has, and the
page's id is the digest of the key: a key that was changed afterwards is refused.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mmcollapse.digests import digest_of
from mmcollapse.disk import checksum, write_whole
from mmcollapse.errors import MMCollapseError

TEMPLATE = Path(__file__).with_name("rate.html")
FOLDER, PAGE, KEY = "ratings", "rate.html", "key.json"  # RESULTS/ratings/rate.html, ...; raters' files come beside them
QUESTIONS = {"fidelity": 7, "realism": 5, "variety": 8}  # seconds that a task is taken to last, for the page to say
TASKS = 24  # a question, without checks
SET = 4  # pictures of a set whose variety is judged
USUAL = ("recursive", "real", "gen0", "world")  # the arms, where none are named
MEASUREMENT = "guidance 1"  # of the pictures of a run
COLUMNS = ("image", "prompt", "index", "arm", "model", "seed", "generation")  # of samples, that are needed here
LARGEST = 256  # side of pictures from folders, in pixels: a phone shows two side by side


@dataclass(frozen=True)
class Pictures:
    """What can be compared. arms: arm -> pictures, uint8 (height, width, 3), by what is the same on both sides of a
    pair: (prompt, number among the pictures of that prompt); all arms have the same. real: pictures whose caption is
    known to fit, for attention checks; examples: real pictures of other prompts, to show what real ones are like, or
    none; source: where it comes from, for the key."""

    arms: dict[str, dict[tuple[str, int], np.ndarray]]
    real: dict[tuple[str, int], np.ndarray]
    examples: list[np.ndarray]
    source: dict


@dataclass(frozen=True)
class Task:
    """One task as the page shows it. left, right: one picture, or SET of them; told: what the key says of it."""

    question: str
    left: list[np.ndarray]
    right: list[np.ndarray]
    caption: str
    told: dict


@dataclass(frozen=True)
class Made:
    """What write_page wrote. tasks: their number, with the checks; minutes: that they are taken to last."""

    page: Path
    key: Path
    arms: list[str]
    tasks: int
    minutes: int


# ---- pictures


def from_samples(path: Path, arms: Sequence[str] = (), generation: int | None = None) -> Pictures:
    """Pictures of a run's samples (RESULTS/<experiment>.samples.parquet) at MEASUREMENT, of the first seed.

    arms: their names, "world" for the real pictures; none: those of USUAL that are there. generation: None for the last
    that all of them have. Of a population its pictures as one are taken, else those of its first model.
    MMCollapseError: no such file, arm or generation."""
    from mmcollapse.figures.house import provenance  # here, for it brings all that draws

    if not Path(path).is_file():
        raise MMCollapseError(f"no samples at {path}: run the experiment first (make reproduce), or name its folder")
    try:
        frame = pd.read_parquet(path, filters=[("modality", "==", "image")])
        frame = frame[(frame.arm == "world") | (frame.measurement == MEASUREMENT)]
    except Exception as error:
        raise MMCollapseError(f"{path} cannot be read as samples: {error}") from error
    if lacking := [name for name in COLUMNS if name not in frame]:
        raise MMCollapseError(f"{path} cannot be read as samples: it has no column {lacking[0]!r}")
    there = [*dict.fromkeys(frame.arm)]
    names = [*arms] or [arm for arm in USUAL if arm in there]
    if unknown := [arm for arm in names if arm not in there]:
        raise MMCollapseError(f"arm {unknown[0]!r} has no pictures in {path}: there are {', '.join(there) or 'none'}")
    chains = frame[frame.arm.isin(names) & (frame.arm != "world")]
    chains = chains[chains.seed == chains.seed.min()]
    if len(chains):
        common = set.intersection(*(set(rows.generation) for _, rows in chains.groupby("arm")))
        last = max(common, default=-1) if generation is None else generation
        if last not in common:
            raise MMCollapseError(f"generation={generation}: all of {', '.join(names)} have {sorted(common)}")
        chains = chains[chains.generation == last]
    found, models = {}, {}
    for arm in names:
        rows = chains[chains.arm == arm] if arm != "world" else frame[frame.arm == "world"]
        models[arm] = "pool" if "pool" in set(rows.model) else rows.model.iloc[0]
        found[arm] = _by_prompt(rows[rows.model == models[arm]])
    source = {"experiment": path.name.partition(".")[0], "samples": checksum(path)["sha256"], "models": models}
    source |= {"measurement": MEASUREMENT}
    source |= {name: int(chains[name].iloc[0]) for name in ("generation", "seed") if len(chains)}
    real = _by_prompt(frame[frame.arm == "world"])
    world = provenance(Path(path).with_name(f"{source['experiment']}.parquet"))[1].get("world", "")
    return Pictures(_shared(found), real or found[names[0]], _examples(world), source)


def _by_prompt(rows: pd.DataFrame) -> dict[tuple[str, int], np.ndarray]:
    return {
        (row.prompt, int(row.number)): np.asarray(Image.open(io.BytesIO(row.image["bytes"])).convert("RGB"))
        for row in rows.rename(columns={"index": "number"}).itertuples()
    }


def _examples(world: str, count: int = 6) -> list[np.ndarray]:
    """Everybody knows what a photo looks like; of the scenes people have to be shown some, of no test prompt."""
    if world != "scenes":
        return []
    from mmcollapse.worlds.scenes import Scenes

    return [*Scenes().sample("base", range(count)).images]


def from_folders(folders: dict[str, Path]) -> Pictures:
    """Pictures of any origin: folders with captions in one of worlds/layouts.py, by the name of their arm. Compared are
    pictures with the same first caption; those of one caption are numbered by the order of their files. All are brought
    to one size (the smallest side of any, at most LARGEST), for a size would tell whose they are. MMCollapseError: a
    folder or picture that cannot be read."""
    from mmcollapse.worlds.layouts import Found
    from mmcollapse.worlds.pictures import open_picture

    files = {}
    for arm, folder in folders.items():
        listed = Found(Path(folder))
        if listed.problems:
            file, why = listed.problems[0]
            raise MMCollapseError(f"{file} in {folder}: {why}")
        files[arm] = [
            (Path(folder) / file, captions[0]) for file, captions in sorted(listed.captions.items()) if captions
        ]
    side = min([LARGEST, *(_side(path) for arm in files.values() for path, _ in arm)])
    found: dict[str, dict] = {arm: {} for arm in files}
    for arm, listed in files.items():
        for path, caption in listed:
            opened = open_picture(path, side)
            if opened.reason:
                raise MMCollapseError(f"{path} {opened.reason}")
            found[arm][caption, sum(known == caption for known, _ in found[arm])] = opened.pixels
    source = {"folders": {arm: str(folder) for arm, folder in folders.items()}}
    return Pictures(_shared(found), found[next(iter(found))], [], source)


def _side(path: Path) -> int:
    """The smaller side of a picture; where it cannot be opened LARGEST, and open_picture says why."""
    try:
        with Image.open(path) as picture:
            return min(picture.size)
    except OSError:
        return LARGEST


def _shared(found: dict[str, dict]) -> dict[str, dict]:
    """Of each arm the pictures of what all have. MMCollapseError: too few arms, or too few of them."""
    if len(found) < 2:
        raise MMCollapseError(f"arms={','.join(found)!r}: a comparison needs two or more (ARMS=recursive,real)")
    common = sorted(set.intersection(*map(set, found.values())))
    if len(common) < SET:
        raise MMCollapseError(
            f"arms {', '.join(found)} have {len(common)} pictures of the same prompts; a set has {SET}"
        )
    return {arm: {key: pictures[key] for key in common} for arm, pictures in found.items()}


# ---- which pairs


def design(pictures: Pictures, tasks: int, rng: np.random.Generator) -> list[Task]:
    """The tasks of a page, `tasks` a question and the checks, in no order.

    Within a question every pair of arms comes equally often to within one, every arm of a pair is as often left as
    right to within one, and every prompt is used equally often to within one; no pair of pictures comes twice.
    tasks=0: TASKS, or as many as there are. MMCollapseError: more than there are, or fewer than pairs of arms."""
    pairs, keys = [*itertools.combinations(pictures.arms, 2)], [*next(iter(pictures.arms.values()))]
    most = len(pairs) * len(keys)
    if tasks and not len(pairs) <= tasks <= most:
        raise MMCollapseError(
            f"tasks={tasks}: {len(pairs)} pairs of {len(pictures.arms)} arms with {len(keys)} prompts allow "
            f"{len(pairs)} to {most} a question"
        )
    wanted = tasks or min(max(TASKS, len(pairs)), most)
    out = []
    for question in QUESTIONS:
        count = wanted if question != "variety" else min(wanted, len(pairs) * math.comb(len(keys), SET))
        order = [pairs[i] for i in rng.permutation(len(pairs))]
        each = [count // len(pairs) + (i < count % len(pairs)) for i in range(len(pairs))]
        sets = _fours(keys, each, rng) if question == "variety" else _ones(keys, each, rng)
        for i, (pair, chosen) in enumerate(zip(order, sets, strict=True)):
            for k, prompts in enumerate(chosen):
                left, right = pair if (i + k) % 2 else pair[::-1]
                told = {"left": left, "right": right, "prompts": [keys.index(key) for key in prompts]}
                sides = [[pictures.arms[arm][key] for key in prompts] for arm in (left, right)]
                caption = prompts[0][0] if question == "fidelity" else ""
                out.append(Task(question, *sides, caption, told))
        out += _checks(question, pictures.real, max(1, round(count / 9)), rng)
    return out


def _ones(keys: list, each: list[int], rng: np.random.Generator) -> list[list[tuple]]:
    """For each pair of arms as many prompts as `each` says, running on through one order of all."""
    order, ends = rng.permutation(len(keys)), np.cumsum([0, *each])
    return [[(keys[order[i % len(keys)]],) for i in range(a, b)] for a, b in itertools.pairwise(ends)]


def _fours(keys: list, each: list[int], rng: np.random.Generator) -> list[list[tuple]]:
    """For each pair of arms as many sets of SET prompts, no set twice: all prompts in turn, in an order drawn anew when
    they are through."""
    out, waiting = [], []
    for count in each:
        chosen: list[tuple] = []
        while len(chosen) < count:
            while len(waiting) < SET:
                waiting += [i for i in rng.permutation(len(keys)) if i not in waiting]
            four, waiting = tuple(keys[i] for i in sorted(waiting[:SET])), waiting[SET:]
            if four not in chosen:
                chosen.append(four)
        out.append(chosen)
    return out


def _checks(question: str, real: dict, count: int, rng: np.random.Generator) -> list[Task]:
    """Tasks whose answer is known: a picture with its own caption against that of the caption with the fewest words in
    common; a picture against its own pixels in disorder; four pictures against one of them four times."""
    keys, out = [*real], []
    for k, i in enumerate(rng.choice(len(keys), count, replace=count > len(keys))):
        key, others = keys[i], [key for key in keys if key[0] != keys[i][0]]
        if len(others) < SET - 1:
            raise MMCollapseError(f"{len(others) + 1} captions are too few for attention checks: {SET} are needed")
        words = set(key[0].lower().split())
        good, bad, caption = [real[key]], [], ""
        if question == "fidelity":
            other = min(others, key=lambda o: len(words & set(o[0].lower().split())))
            bad, caption = [real[other]], key[0]
        elif question == "realism":
            bad = [rng.permutation(real[key].reshape(-1, 3)).reshape(real[key].shape)]
        else:
            good += [real[others[j]] for j in rng.choice(len(others), SET - 1, replace=False)]
            bad = [real[key]] * SET
        answer = "left" if k % 2 else "right"
        sides = (good, bad) if answer == "left" else (bad, good)
        out.append(Task(question, *sides, caption, {"check": answer}))
    return out


# ---- the page and its key


@dataclass
class _Names:
    """Names that say nothing: drawn, of equal pictures the same."""

    rng: np.random.Generator
    pictures: dict[bytes, str] = field(default_factory=dict)

    def draw(self) -> str:
        return self.rng.bytes(6).hex()

    def of(self, image: np.ndarray) -> str:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")  # from pixels: nothing of the file that they came from
        return self.pictures.setdefault(buffer.getvalue(), self.draw())


def write_page(pictures: Pictures, folder: Path, tasks: int = 0, secret: str = "") -> Made:
    """Write the page and its key to `folder`; the same secret (drawn if not given) gives the same bytes. tasks: a
    question, without checks; 0: TASKS or as many as there are. MMCollapseError: there is a key already, without which
    the ratings of its page cannot be read; or design refuses."""
    folder, secret = Path(folder), secret or secrets.token_hex(16)
    if (folder / KEY).exists():
        raise MMCollapseError(
            f"{folder / KEY} is there already, and ratings of its page cannot be read without it: move {folder} away"
        )
    rng = np.random.default_rng([*hashlib.sha256(secret.encode()).digest()])
    made, names = design(pictures, tasks, rng), _Names(rng)
    shown, told = {}, {}
    for task in made:
        name, sides = names.draw(), {"left": task.left, "right": task.right}
        shown[name] = {"id": name, "question": task.question, "caption": task.caption}
        shown[name] |= {side: [names.of(image) for image in images] for side, images in sides.items()}
        told[name] = {"question": task.question} | task.told
    seconds = sum(QUESTIONS[task.question] for task in made)
    minutes = math.ceil(1 + seconds / 60)  # one to read what is asked
    key = {"secret": secret, "arms": [*pictures.arms], "source": pictures.source, "tasks": told}
    page = {"page": digest_of(key)[:16], "minutes": minutes, "side": len(next(iter(pictures.real.values())))}
    page["examples"] = [names.of(image) for image in pictures.examples]
    page["tasks"] = [shown[name] for name in sorted(shown)]  # drawn names, so an order that tells nothing
    urls = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for png, name in names.pictures.items()}
    page["pictures"] = dict(sorted(urls.items()))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / KEY, (json.dumps({"page": page["page"]} | key, indent=1) + "\n").encode())
    write_whole(folder / PAGE, _html(page).encode())
    return Made(folder / PAGE, folder / KEY, [*pictures.arms], len(made), minutes)


def _html(page: dict) -> str:
    """The template with the data, and the digest of its script: the browser runs no other, whatever a caption says."""
    text = TEMPLATE.read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(page).replace("<", "\\u003c")
    return text.replace("@SCRIPT@", digest).replace("@DATA@", data)


def rate(results: Path, experiment: str, arms: str = "", generation: int | None = None, tasks: int = 0) -> Made:
    """Write the page of some arms to RESULTS/ratings.

    arms: comma-separated names of arms in the samples of `experiment`, or name=folder of pictures with captions.
    MMCollapseError: names and folders together, an arm twice, and what the functions above refuse."""
    named = [arm.strip() for arm in arms.split(",") if arm.strip()]
    folders = dict(arm.split("=", 1) for arm in named if "=" in arm)
    if folders and len(folders) < len(named):
        raise MMCollapseError(f"arms={arms!r}: either names of arms or name=folder, each once, not both")
    if len(set(named)) < len(named):
        raise MMCollapseError(f"arms={arms!r}: an arm is named twice")
    if folders and generation is not None:
        raise MMCollapseError(f"generation={generation}: pictures from folders have none")
    if folders:
        pictures = from_folders({name: Path(folder) for name, folder in folders.items()})
    else:
        pictures = from_samples(Path(results) / f"{experiment}.samples.parquet", named, generation)
    return write_page(pictures, Path(results) / FOLDER, tasks)
