"""The explorer of notebooks/00_explore.ipynb: the kept pictures and captions of two arms side by side, generation by
generation, with the metrics at that point; and a time-lapse of one prompt to save.

It shows what lies in a folder of results and computes nothing anew. What is chosen lives in the widgets; what is shown
comes from the functions before them, which need no notebook."""

from __future__ import annotations

import base64
import html
import io
import math
import re
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures.house import (
    BETTER,
    CONTROLS,
    EMBEDDING,
    LOWER,
    Panel,
    curves,
    estimate,
    here,
    legend,
)
from mmcollapse.figures.styles import ARM_STYLE, REFERENCES, STYLE, in_order
from mmcollapse.figures.variance import image_panels, more_image_panels
from mmcollapse.figures.wording import wrong_words
from mmcollapse.table import read_table

SAMPLES = ".samples.parquet"
SIDE = 256  # pixels of a picture as it is shown
DATA = "data"  # the measurement of the pairs that were trained on
REAL = "#333333"
MODALITIES = {"image": "pictures of a prompt", "text": "captions of a picture"}

# ---- what there is


class Kept(NamedTuple):
    """A sample: a PNG file, its caption, and the prompt or reference that it answers to."""

    picture: bytes
    caption: str
    prompt: str


class Key(NamedTuple):
    """Where the samples of a prompt or picture lie: by generation under this key."""

    modality: str
    measurement: str
    seed: int
    arm: str
    model: str
    number: int


class View(NamedTuple):
    """What is looked at. sides: the keys at the left and at the right, or one if there is no other arm."""

    sides: tuple[Key, ...]
    generations: tuple[int, ...]  # those that either side kept

    @property
    def at(self) -> Key:
        """For what the sides share: modality, measurement, seed and number."""
        return self.sides[0]


@dataclass
class Opened:
    """An experiment, read once. kept: key -> generation -> sample; real: (modality, number, prompt) -> sample; rows:
    those of the table on test prompts, and on the pairs trained on, by (modality, measurement, arm, model)."""

    name: str
    kept: dict[Key, dict[int, Kept]]
    real: dict[tuple[str, int, str], Kept]
    rows: dict[tuple[str, str, str, str], pd.DataFrame] = field(repr=False)


def experiments(results: Path) -> list[str]:
    """Experiments whose table and samples lie in `results`. MMCollapseError: no such folder, no table, no samples."""
    if not results.is_dir():
        raise MMCollapseError(f"results={str(results)!r}: there is no such folder; run an experiment (make reproduce)")
    tables = sorted(path.stem for path in results.glob("*.parquet") if not path.name.endswith(SAMPLES))
    if not tables:
        raise MMCollapseError(f"results={str(results)!r}: there is no result table; run an experiment (make reproduce)")
    if found := [name for name in tables if (results / (name + SAMPLES)).is_file()]:
        return found
    raise MMCollapseError(
        f"results={str(results)!r}: no samples were kept (*{SAMPLES}) beside {', '.join(tables)}, and so there are no "
        "pictures and captions to show"
    )


def open_experiment(results: Path, name: str) -> Opened:
    """Read table and samples of an experiment. MMCollapseError: a file is damaged, or an arm has no style."""
    table, path = read_table(results / f"{name}.parquet"), results / (name + SAMPLES)
    kept, real = {}, {}
    try:
        for row in pq.read_table(path).to_pylist():
            sample = Kept(row["image"]["bytes"], row["caption"], row["prompt"])
            if row["arm"] == "world":
                real[row["modality"], row["index"], row["prompt"]] = sample
                continue
            key = Key(*(row[column] for column in ("modality", "measurement", "seed", "arm", "model", "index")))
            kept.setdefault(key, {})[row["generation"]] = sample
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise MMCollapseError(f"{path} cannot be read as samples: {error}") from error
    if not kept:
        raise MMCollapseError(f"{path} holds no samples of any arm")
    table = table[table.subset == np.where(table.model == "set", "chain", "test")]
    by = ["modality", "measurement", "arm", "model"]
    return Opened(name, kept, real, dict(list(table.groupby(by, sort=False))))


def settle(kept: Mapping[Key, Mapping[int, Kept]], wanted: Mapping) -> tuple[dict[str, list], dict, View]:
    """Of every choice the options that lead somewhere given the choices before it; the chosen ones, which are those
    `wanted` where they are offered, else the first; and the view that they make. Names, in order: modality,
    measurement, seed, left, left model, right, right model, number, generation."""
    options, chosen, keys = {}, {}, list(kept)

    def choose(name: str, values: Iterable, first=()):
        options[name] = list(values)
        chosen[name] = next((v for v in (wanted.get(name), *first) if v in options[name]), options[name][0])
        return chosen[name]

    for name in ("modality", "measurement", "seed"):
        # pictures before captions, and what was trained on last
        there = sorted({getattr(key, name) for key in keys}, key=lambda value: (value == DATA, value))
        choose(name, there, ("guidance 1", "greedy"))
        keys = [key for key in keys if getattr(key, name) == chosen[name]]
    arms, sides = in_order({k.arm for k in keys}), []
    for side, first in (("left", CONTROLS), ("right", ("real", *CONTROLS))):
        # an arm is compared with another; if the other is taken for the left, the two change places
        choose(side, [a for a in arms if a != chosen.get("left")] or arms, first)
        own = [k for k in keys if k.arm == chosen[side]]
        model = choose(f"{side} model", sorted({k.model for k in own}, key=lambda m: (m == "pool", m)))
        sides.append([k for k in own if k.model == model])
    number = choose("number", sorted({k.number for own in sides for k in own}))
    shown = dict.fromkeys(own[0]._replace(number=number) for own in sides)
    generations = sorted({g for key in shown for g in kept.get(key, ())})
    choose("generation", generations)
    return options, chosen, View(tuple(shown), tuple(generations))


# ---- pictures and captions of a point


class Card(NamedTuple):
    """One of the things that stand side by side. picture: a PNG file; missing: why there is neither picture nor
    caption."""

    title: str
    color: str
    picture: bytes | None = None
    caption: str = ""
    missing: str = ""


def prompt_of(opened: Opened, view: View, generation: int) -> str:
    """The prompt of pictures, or the reference of captions, at a generation: some arms have new ones every time."""
    found = [opened.kept.get(key, {}) for key in view.sides]
    now = [samples[generation] for samples in found if generation in samples]
    return (now or [sample for samples in found for sample in samples.values()])[0].prompt


def cards(opened: Opened, view: View, generation: int) -> list[Card]:
    """What is shown at a generation: the real picture of the prompt, if it was kept, and what each side made of it."""
    prompt, at, out = prompt_of(opened, view, generation), view.at, []
    if known := opened.real.get((at.modality, at.number, prompt)):
        out.append(Card("real picture", REAL, known.picture))
    for key in view.sides:
        style = ARM_STYLE[key.arm]
        several = any(k.arm == key.arm and k.modality == key.modality and k.model != key.model for k in opened.kept)
        card = Card(style["label"] + f" ({key.model})" * (several and at.measurement != DATA), style["color"])
        sample = opened.kept.get(key, {}).get(generation)
        if sample is None:
            out.append(card._replace(missing=f"generation {generation} was not kept"))
            continue
        # Captions are of the real picture, but those that were trained on may be of generated ones.
        picture = sample.picture if at.modality == "image" or at.measurement == DATA else None
        caption = sample.caption if at.modality == "text" or sample.caption != prompt else ""
        out.append(card._replace(picture=picture, caption=caption))
    return out


def enlarged(picture: bytes) -> Image.Image:
    """A PNG file as RGB, its pixels squares, as many times as large as fits into SIDE."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


# ---- metrics of a point


def panels(modality: str, measurement: str) -> list[Panel]:
    """The metrics of pictures or captions in the words of the figures (titles, units, directions)."""
    what = {"modality": modality, "measurement": measurement, "arms": ()}
    gap = "(lower = smaller gap)"
    if modality == "image":
        both = [*image_panels(measurement), *more_image_panels(measurement)]
        found = [replace(panel, floor=False, arms=()) for panel in both]
    else:
        found = [
            Panel("All right", f"share of captions\n{BETTER}", "all_right", **what, scale="rate"),
            Panel("BLEU-4", f"BLEU-4, all references\n{BETTER}", "bleu4", **what),
            Panel("CIDEr", f"0-10, all references\n{BETTER}", "cider", **what),
            Panel("ROUGE-L", f"0-1, all references\n{BETTER}", "rouge_l", **what),
            Panel("Alignment P", "distance to own picture\n(lower = better aligned)", "P", **what),
            Panel("Caption variance", EMBEDDING + LOWER, "caption_variance", **what, scale="log"),
            Panel("Vendi score", f"effective number\n{LOWER}", "caption_vendi", **what, scale="log"),
            Panel("Spread W", f"mean distance between samples\n{LOWER}", "W", **what),
            Panel("Vocabulary", f"distinct words\n{LOWER}", "vocabulary", **what, scale="log"),
            Panel("Distinct-2", f"share of word pairs\n{LOWER}", "distinct_2", **what, scale="rate"),
            Panel("Self-BLEU", "to 199 other captions\n(higher = more alike)", "self_bleu", **what),
            Panel("Length", "words a caption\n(nearer to reference is better)", "length", **what, scale="log"),
            Panel("Perplexity", "frozen language model\n(higher = less expected)", "perplexity", **what),
            Panel("Modality gap RMG", f"P / (W + P)\n{gap}", "RMG", **what),
            Panel("Modality gap L2M", f"distance of the means\n{gap}", "L2M", **what),
        ]
    return [replace(panel, models="set") for panel in found] if measurement == DATA else found


@dataclass
class Measured:
    """The table of what is looked at. rows: of the sides and the references; panels: the metrics that are there; of
    each and each arm a row a generation and a column a seed in values, and why there is none in missing."""

    rows: pd.DataFrame
    panels: list[Panel]
    values: dict[tuple[Panel, str], pd.DataFrame]
    missing: dict[tuple[Panel, str], str]


def measured(opened: Opened, view: View) -> Measured:
    """All metrics of the sides of a view, of all seeds and generations in the table."""
    at, parts = view.at, []
    for key in view.sides:
        # One model a side: `Panel` would take the mean of all members of a chain, and leave out a pool.
        if (rows := opened.rows.get((at.modality, at.measurement, key.arm, key.model))) is not None:
            parts.append(rows if key.model == "set" else rows.assign(model="shown"))
    parts += [r for (m, _, arm, _), r in opened.rows.items() if m == at.modality and arm in REFERENCES]
    rows = pd.concat(parts) if parts else next(iter(opened.rows.values()))[:0]
    out = Measured(rows, [], {}, {})
    for panel in panels(at.modality, at.measurement):
        panel = replace(panel, arms=tuple(dict.fromkeys(key.arm for key in view.sides)))
        panel = replace(panel, label=panel.label.replace("{space}", panel.space(rows)))
        own, _ = panel.of(rows)
        if own.empty:
            continue
        out.panels.append(panel)
        for arm in panel.arms:
            part = own[own.arm == arm]
            out.values[panel, arm] = part.pivot(index="generation", columns="seed", values="value")
            out.missing[panel, arm] = next((why for why in part.missing if why), "")
    return out


def metrics(found: Measured, seed: int, generation: int) -> pd.DataFrame:
    """Every metric at a generation, a row a metric and arm: panel, arm, value (of the seed), mean, low and high (over
    all seeds that have it, 95% t interval from 3 on), seeds (their number), start (the seed's generation 0), missing
    (why there is no value). NaN where there is none."""
    out = []
    for (panel, arm), values in found.values.items():
        now = values.loc[generation].dropna() if generation in values.index else pd.Series(dtype=float)
        if panel.scale == "log":
            now = now[now > 0]
        mean, low, high = estimate(now.to_numpy(), panel.scale)

        def of(g: int, values=values) -> float:
            return float(values.at[g, seed]) if g in values.index and seed in values.columns else math.nan

        why = "" if len(now) else found.missing[panel, arm] or "no such rows in the table"
        out.append((panel, arm, of(generation), mean, low, high, len(now), of(0), why))
    return pd.DataFrame(out, columns=["panel", "arm", "value", "mean", "low", "high", "seeds", "start", "missing"])


# ---- the curve of a metric


class Curve(NamedTuple):
    """A drawn metric, to be marked at a generation. pixels: uint8 (height, width, 3); x: of generation 0, and pixels a
    generation; top, bottom: of the axis, in pixels."""

    pixels: np.ndarray
    x: tuple[float, float]
    top: int
    bottom: int


def draw_curve(found: Measured, panel: Panel) -> Curve:
    """A metric by generation, both arms, as in the figures; twice as fine as it is shown."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own style is
        matplotlib.rcParams.update(STYLE | {"legend.fontsize": 6.5})
        figure = Figure(figsize=(4.0, 2.8), dpi=200)
        ax = figure.add_axes((0.18, 0.16, 0.80, 0.60))
        shown = curves(ax, found.rows, panel)
        legend(figure, shown, 2)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        foot, top = ax.get_ylim()
        (start, bottom), (one, top) = ax.transData.transform([(0, foot), (1, top)])
        height = len(pixels)  # counted from the top there, from the foot here
    return Curve(pixels, (start, one - start if shown else 0.0), round(height - top), round(height - bottom))


def mark(curve: Curve, generation: int) -> bytes:
    """The curve as a PNG file, with a line at a generation."""
    pixels, (start, step) = curve.pixels, curve.x
    if step:
        pixels, x = pixels.copy(), round(start + step * generation)
        line = pixels[curve.top : curve.bottom, max(x - 2, 0) : x + 2]
        line[:] = np.minimum(line, 110)  # darker, and what lies below is seen
    return png(Image.fromarray(pixels))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# ---- the time-lapse


def timelapse(opened: Opened, view: View, path: Path, overwrite: bool = False) -> Path:
    """Write an animated GIF of one prompt over the generations that were kept: real picture, left and right arm, with
    generation and captions; 0.7 s a generation, 2 s the last. Equal samples give equal bytes.

    MMCollapseError: `path` is there already, and `overwrite` is not set."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise MMCollapseError(f"{here(path)} is there already: remove it, or allow to write over it")
    # Colours that lie the farthest apart, refined to those that are there: none is off by more than a little.
    few = {"colors": 256, "method": Image.Quantize.MAXCOVERAGE, "kmeans": 1, "dither": Image.Dither.NONE}
    frames = [frame(opened, view, g).quantize(**few) for g in view.generations]
    buffer, times = io.BytesIO(), [700] * (len(frames) - 1) + [2000]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
    return path


def timelapse_name(opened: Opened, view: View) -> str:
    """A file name that says what is shown."""
    at, sides = view.at, "_".join(f"{key.arm} {key.model}" for key in view.sides)
    name = f"{opened.name}_timelapse_{at.measurement}_seed {at.seed}_{sides}_{at.modality} {at.number}"
    return re.sub(r"[^\w.]+", "-", name) + ".gif"


def frame(opened: Opened, view: View, generation: int) -> Image.Image:
    """A generation as one picture of a time-lapse; all of a view are of one size."""
    gap, line, at = 16, 18, view.at
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")  # come with matplotlib: the same on every machine
    small, large = (ImageFont.truetype(fonts / name, size) for name, size in FONTS)
    count = 1 + len(view.sides)  # one for the real picture even where it is not: prompts may change
    width, top = gap + count * (SIDE + gap), gap + 3 * line + 8
    below = 5 * line * (at.measurement == DATA)  # captions stand below their pictures, or in their place
    image = Image.new("RGB", (width, top + line + 8 + SIDE + below + gap), "white")
    draw = ImageDraw.Draw(image)
    draw.text((gap, gap - 4), f"generation {generation}", "black", large)
    about = f"{opened.name}, {decoding(at.measurement)}, seed {at.seed}"
    draw.text((width - gap, gap), about, "#555555", small, "ra")
    said = f"{ASKED[at.modality]}: {prompt_of(opened, view, generation)}"
    for k, text in enumerate(textwrap.wrap(said, width // 8)[:2]):
        draw.text((gap, gap + 8 + line * (k + 1)), text, "black", small)
    shown = cards(opened, view, generation)
    for k, card in enumerate(shown, count - len(shown)):
        x, y = gap + k * (SIDE + gap), top + line + 8
        draw.text((x, top + 2), card.title, card.color, small)
        if card.picture:
            image.paste(enlarged(card.picture), (x, y))
            y += SIDE + 6
        for text in textwrap.wrap(card.caption or card.missing, 32):
            draw.text((x, y), text, "black" if card.caption else "#777777", small)
            y += line
    return image


FONTS = (("DejaVuSans.ttf", 13), ("DejaVuSans-Bold.ttf", 16))
ASKED = {"image": "prompt", "text": "reference"}


def decoding(measurement: str) -> str:
    """A measurement in words."""
    return "pairs trained on" if measurement == DATA else measurement


# ---- what is shown, as HTML

CSS = """<style>
.mmc table { border-collapse: collapse; font-size: 13px; line-height: 1.35; }
.mmc td, .mmc th { padding: 2px 8px; text-align: right; font-weight: normal; vertical-align: top; }
.mmc td:first-child, .mmc th:first-child, .mmc.said :is(td, th) { text-align: left; }
.mmc th.arm { text-align: center; font-weight: bold; }
.mmc thead th { border-bottom: 1px solid currentColor; }
.mmc small, .mmc .less { opacity: 0.7; }
.mmc p { margin: 4px 0; line-height: 1.35; }
.mmc figure { display: inline-block; margin: 0 8px 0 0; width: 256px; vertical-align: top; }
.mmc figure img { image-rendering: pixelated; display: block; }
.mmc figcaption { font-weight: bold; }
.mmc.said tr.now { background: rgba(46, 134, 193, 0.18); }
.mmc u { text-decoration-color: #C0392B; text-decoration-thickness: 2px; }
</style>"""


def stage_html(opened: Opened, view: View, generation: int) -> str:
    """The pictures and captions of a generation, side by side."""
    prompt, at = prompt_of(opened, view, generation), view.at
    out = [f"<p><b>generation {generation}</b>, {ASKED[at.modality]}: {html.escape(prompt)}</p>"]
    for card in cards(opened, view, generation):
        out.append(f'<figure><figcaption style="color: {card.color}">{html.escape(card.title)}</figcaption>')
        if card.picture:
            image = enlarged(card.picture)
            of = "" if card.color == REAL else f", generation {generation}"
            told = html.escape(f"{card.title}{of}: {card.caption or prompt}", quote=True)
            source = data_url(png(image))
            out.append(f'<img src="{source}" width="{image.width}" height="{image.height}" alt="{told}">')
        out.append(f"<p>{marked(card.caption, prompt)}{html.escape(card.missing)}</p></figure>")
    return f'<div class="mmc stage">{CSS}{"".join(out)}</div>'


def captions_html(opened: Opened, view: View, generation: int) -> str:
    """The captions of all generations, a row each, where captions are looked at."""
    if view.at.modality != "text":
        return ""
    heads = "".join(f"<th>{html.escape(ARM_STYLE[key.arm]['label'])}</th>" for key in view.sides)
    out = [f"<table><thead><tr><th>generation</th>{heads}</tr></thead>"]
    for g in view.generations:
        found = [opened.kept.get(key, {}).get(g) for key in view.sides]
        cells = "".join(f"<td>{marked(s.caption, s.prompt) if s else 'not kept'}</td>" for s in found)
        out.append(f"<tr{CURRENT * (g == generation)}><td>{g}</td>{cells}</tr>")
    note = "Underlined: says something else than the reference. What is no sentence of the grammar is not judged."
    return f'<div class="mmc said">{"".join(out)}</table><p><small>{note}</small></p></div>'


CURRENT = ' class="now" aria-current="true"'


def marked(caption: str, prompt: str) -> str:
    """A caption as HTML, underlined what says something else than its prompt, where both can be read."""
    wrong = wrong_words(caption, prompt) or ()
    words = [html.escape(word) for word in caption.split()]
    return " ".join(f"<u>{word}</u>" if k in wrong else word for k, word in enumerate(words))


def metrics_html(found: Measured, view: View, generation: int) -> str:
    """The metrics of a generation, both arms side by side."""
    if not found.panels:
        return '<div class="mmc"><p>The table has no metrics of these models at this decoding.</p></div>'
    frame, arms = metrics(found, view.at.seed, generation), [key.arm for key in view.sides]
    most = {arm: int(frame.seeds[frame.arm == arm].max()) for arm in arms}
    heads = [
        f'<th colspan="3" class="arm" style="color: {ARM_STYLE[a]["color"]}">{html.escape(ARM_STYLE[a]["label"])}</th>'
        for a in arms
    ]
    below = [
        f"<th>seed {view.at.seed}</th><th>{SEEDS.get(most[arm], f'mean of {most[arm]} seeds [95% interval]')}</th>"
        "<th>at generation 0</th>"
        for arm in arms
    ]
    out = [f'<table class="metrics"><thead><tr><th></th>{"".join(heads)}</tr>']
    out.append(f"<tr><th>generation {generation}</th>{''.join(below)}</tr></thead>")
    for panel, rows in frame.groupby("panel", sort=False):
        unit, _, direction = panel.label.partition("\n")
        cells = []
        for row in rows.itertuples():
            if row.missing:
                cells.append(f'<td colspan="3" class="less">not measured: {html.escape(row.missing)}</td>')
                continue
            interval = f" [{short(row.low)}, {short(row.high)}]" if row.low == row.low else ""
            cells.append(f"<td>{short(row.value)}</td><td>{short(row.mean)}{interval}</td><td>{short(row.start)}</td>")
        told = f"<td>{panel.title} <small>{html.escape(unit)} {direction}</small></td>"
        out.append(f'<tr data-metric="{panel.metric}">{told}{"".join(cells)}</tr>')
    return f'<div class="mmc">{"".join(out)}</table></div>'


SEEDS = {0: "mean over seeds", 1: "one seed: no interval", 2: "mean of 2 seeds"}


def short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def curve_html(curve: Curve, title: str, generation: int) -> str:
    """The curve of a metric, marked at a generation."""
    height, width = (length // 2 for length in curve.pixels.shape[:2])  # it is drawn twice as fine
    told = f"{html.escape(title)} by generation, marked at generation {generation}"
    return f'<img src="{data_url(mark(curve, generation))}" width="{width}" height="{height}" alt="{told}">'


# ---- the widget


def one_at_a_time(handler: Callable) -> Callable:
    """A handler that waits for one that is under way, for JupyterLab may report two changes in two threads of the
    kernel; and that ignores what a handler itself sets, which is no choice of the user."""

    def handle(self, change):
        with self._lock:  # the same thread passes it
            if not self._busy:
                self._busy = True
                try:
                    handler(self, change)
                finally:
                    self._busy = False

    return handle


class Explorer(ipywidgets.VBox):
    """Choices, a slider over generations, pictures and captions, metrics, their curve, and a button for the time-lapse;
    `explore` makes one."""

    def __init__(self, results: Path, figures: Path, names: list[str], experiment: str):
        self.results, self.figures = results, figures
        self._lock, self._busy = threading.RLock(), False  # see one_at_a_time
        own = partial(ipywidgets.Dropdown, layout={"width": "auto"}, style={"description_width": "auto"})
        self.experiment = own(options=names, value=experiment, description="experiment")
        self.choices = {name: own(description=words) for name, words in CHOICES.items()}
        self.choices["generation"] = ipywidgets.SelectionSlider(options=[0], description="generation")
        self.choices["generation"].layout.width = "560px"
        self.play = ipywidgets.Play(interval=700)
        # In the browser, so that it plays on while the kernel is busy.
        self.link = ipywidgets.jslink((self.play, "value"), (self.choices["generation"], "index"))
        self.metric = own(description="curve")
        self.stage, self.captions, self.table, self.curve, self.said = (ipywidgets.HTML() for _ in range(5))
        self.save = ipywidgets.Button(description="save time-lapse", icon="film")
        self.overwrite = ipywidgets.Checkbox(description="write over one that is there", indent=False)
        self.overwrite.layout.width = "auto"
        super().__init__(self._rows())
        self._open()
        self.experiment.observe(self._on_experiment, "value")
        for name, widget in self.choices.items():
            widget.observe(self._on_generation if name == "generation" else self._on_choice, "value")
        self.metric.observe(self._on_metric, "value")
        self.save.on_click(self._on_save)

    def _rows(self) -> list[ipywidgets.Widget]:
        line, c = partial(ipywidgets.HBox, layout={"flex_flow": "row wrap", "grid_gap": "2px 12px"}), self.choices
        return [
            line([self.experiment, c["modality"], c["measurement"], c["seed"]]),
            line([c["left"], c["left model"], c["right"], c["right model"]]),
            c["number"],
            line([self.play, c["generation"]]),
            line([self.stage, ipywidgets.VBox([self.metric, self.curve])]),
            self.captions,
            self.table,
            line([self.save, self.overwrite, self.said]),
        ]

    def _open(self):
        self.opened = open_experiment(self.results, self.experiment.value)
        self._offer()

    def _offer(self):
        """Offer what leads somewhere, and show what is then chosen."""
        options, chosen, self.view = settle(self.opened.kept, {n: w.value for n, w in self.choices.items()})
        for name, widget in self.choices.items():
            labels = tuple((self._label(name, value), value) for value in options[name])
            with widget.hold_sync():
                if widget.options != labels:
                    widget.options = labels
                widget.value = chosen[name]
            if name.endswith("model"):
                widget.layout.display = None if len(labels) > 1 else "none"
        self.choices["number"].description = ASKED[self.view.at.modality]
        self.play.max = len(self.view.generations) - 1
        self.measured = measured(self.opened, self.view)
        titles = tuple(panel.title for panel in self.measured.panels)
        if self.metric.options != titles:
            before = self.metric.value
            self.metric.options = titles
            self.metric.value = before if before in titles else next(iter(titles), None)
        self._draw()
        self._show()

    def _label(self, name: str, value) -> str:
        if name == "modality":
            return MODALITIES[value]
        if name == "measurement":
            return decoding(value)
        if name in ("left", "right"):
            return ARM_STYLE[value]["label"]
        if name == "number":
            sides = tuple(key._replace(number=value) for key in self.view.sides)
            return f"{value}: {prompt_of(self.opened, self.view._replace(sides=sides), 0)}"
        return str(value)

    def _draw(self):
        panel = next((panel for panel in self.measured.panels if panel.title == self.metric.value), None)
        self.drawn = panel and draw_curve(self.measured, panel)

    def _show(self):
        generation = self.choices["generation"].value
        self.stage.value = stage_html(self.opened, self.view, generation)
        self.captions.value = captions_html(self.opened, self.view, generation)
        self.table.value = metrics_html(self.measured, self.view, generation)
        self.curve.value = curve_html(self.drawn, self.metric.value, generation) if self.drawn else ""

    @one_at_a_time
    def _on_experiment(self, change):
        self.said.value = ""
        try:
            self._open()
        except MMCollapseError as error:  # raised here, it would reach nobody
            self.said.value, self.experiment.value = html.escape(str(error)), change["old"]

    @one_at_a_time
    def _on_choice(self, _):
        self.said.value = ""
        self._offer()

    @one_at_a_time
    def _on_generation(self, _):
        self._show()

    @one_at_a_time
    def _on_metric(self, _):
        self._draw()
        self._show()

    @one_at_a_time
    def _on_save(self, _):
        path = self.figures / timelapse_name(self.opened, self.view)
        try:
            timelapse(self.opened, self.view, path, self.overwrite.value)
            self.said.value = f"saved {html.escape(here(path))}, {path.stat().st_size / 1024:,.0f} KiB"
        except (MMCollapseError, OSError) as error:
            self.said.value = html.escape(str(error))


# What is chosen, with its label, in the order in which each choice narrows the next; the generation comes last.
CHOICES = {
    "modality": "show",
    "measurement": "decoding",
    "seed": "seed",
    "left": "left",
    "left model": "model",
    "right": "right",
    "right model": "model",
    "number": "prompt",
}


def explore(results: Path, figures: Path, experiment: str | None = None) -> Explorer:
    """The explorer of the tables and samples in `results`; time-lapses go to `figures`. experiment: the one that is
    opened first, by default the first there is.

    MMCollapseError: no such folder, table, samples or experiment, or a file of the experiment is damaged."""
    results = Path(results)
    names = experiments(results)
    if experiment is not None and experiment not in names:
        raise MMCollapseError(f"experiment={experiment!r}: {results} has table and samples of {', '.join(names)}")
    return Explorer(results, Path(figures), names, experiment or names[0])
