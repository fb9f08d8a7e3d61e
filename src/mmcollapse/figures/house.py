"""What figures are made of: the source they are drawn from, panels of curves, legends, captions, saving."""

from __future__ import annotations

import io
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.dataset
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure  # without pyplot: a notebook's own backend stays as it is
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from mmcollapse import stats
from mmcollapse.disk import checksum, write_whole
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures.styles import (
    ARM_STYLE,
    DPI,
    FLOOR,
    FURTHER,
    LETTERS,
    LINE,
    REFERENCES,
    REPEATS,
    WIDTH,
    in_order,
)
from mmcollapse.table import is_member, read_table

# Of a metric that was measured in several spaces a panel shows the first of these that is there.
SPACES = ("oracle", "parser", "words", "pixels", "language", "judge", "clip", "inception", "dino", "judge-2", "")
EMBEDDING = "{space} embedding variance\n"
LOWER, BETTER = "(lower = less varied)", "(higher is better)"
CAPTION = "caption"

# ---- what is read


@dataclass
class Source:
    """What the figures of an experiment are drawn from. about: profile and world, as the provenance has them; planned:
    the last generation, of the table if it is not given."""

    experiment: str
    folder: Path
    table: pd.DataFrame
    about: str
    settings: dict = field(default_factory=dict)
    planned: int = 0

    def __post_init__(self):
        self.planned = self.planned or max(1, int(self.table.generation.max()))

    @property
    def table_path(self) -> Path:
        """The result table."""
        return self.folder / f"{self.experiment}.parquet"

    @property
    def samples_path(self) -> Path:
        """The kept samples, which may not be there."""
        return self.folder / f"{self.experiment}.samples.parquet"

    def files(self, samples: bool) -> list[Path]:
        """What a figure was drawn from: the table, or the samples."""
        return [self.samples_path if samples else self.table_path]

    def samples(self, modality: str, measurement: str, arms: Sequence[str]) -> pd.DataFrame:
        """Kept pictures (PNG files in `image`) and captions of the first seed that has any, of `arms` and the real ones
        (arm "world"); an empty frame if the run kept none."""
        if not self.samples_path.is_file():
            return pd.DataFrame()
        column = pyarrow.dataset.field
        wanted = (column("modality") == modality) & column("arm").isin(["world", *arms])
        wanted &= (column("measurement") == measurement) | (column("arm") == "world")
        try:
            frame = pyarrow.dataset.dataset(self.samples_path, format="parquet").to_table(filter=wanted).to_pandas()
        except (pyarrow.ArrowException, OSError) as error:
            raise MMCollapseError(f"{self.samples_path} cannot be read as samples: {error}") from error
        chains = frame[frame.arm != "world"]
        if chains.empty:
            return chains
        return frame[(frame.arm == "world") | (frame.seed == chains.seed.min())].rename(columns={"index": "number"})


def open_source(results: Path, experiment: str) -> Source:
    """The result table of an experiment. MMCollapseError: there is none, or it is none, or it is empty."""
    path = Path(results) / f"{experiment}.parquet"
    table = read_table(path)
    if table.empty:
        raise MMCollapseError(f"{path} has no rows: nothing to draw")
    # Sorted, so that the order of rows in the file cannot move a pixel.
    table = table.sort_values(["arm", "modality", "measurement", "subset", "metric", "seed", "generation", "model"])
    about, settings = provenance(path)
    return Source(experiment, Path(results), table, about, settings)


def provenance(path: Path) -> tuple[str, dict]:
    """Profile and world, for a caption, and all settings, of the table at `path`."""
    settings, beside = {}, path.with_suffix(".json")
    if beside.is_file():
        settings = json.loads(beside.read_text()).get("settings", {})
    about = ", ".join(f"{key} {settings[key]}" for key in ("profile", "world") if key in settings)
    return about or "profile not recorded", settings


# ---- curves


@dataclass(frozen=True)
class Panel:
    """One panel of curves over generations."""

    title: str
    label: str  # of the y axis: unit and direction
    metric: str
    modality: str
    measurement: str
    arms: tuple[str, ...]
    scale: str = "plain"  # "log": axis, mean and interval on the log scale; "rate": interval cut at 0 and 1
    floor: bool = False  # the sampling floor beside it
    models: str = "members"  # those of a chain, averaged; "set": the pairs that were trained on

    @property
    def subset(self) -> str:
        return "chain" if self.models == "set" else "test"

    def space(self, table: pd.DataFrame) -> str:
        """The space it shows: of those that its metric was measured in, the first of SPACES."""
        rows = table[table.metric == self.metric]
        there = set(rows.space[rows.modality == self.modality].unique())
        return next((s for s in SPACES if s in there), "")

    def rows(self, table: pd.DataFrame) -> dict:
        """The filter of the rows of the table that it shows."""
        metrics = [self.metric, "sampling_floor"] if self.floor else [self.metric]
        shown = {"metric": metrics, "modality": self.modality, "measurement": self.measurement, "subset": self.subset}
        spaces = [self.space(table), ""] if self.floor else [self.space(table)]  # the floor is of no space
        there = pd.Series(table.model[table.modality == self.modality].unique(), dtype=str)
        models = sorted(there[is_member(there)])
        shown |= {"model": ["set"] if self.models == "set" else ["", *models]}
        return shown | {"space": spaces, "arm": [*self.arms, *REFERENCES]}

    def of(self, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Its rows in the table: of its arms, and of the references."""
        rows = table[table.metric == self.metric]  # first, for it leaves little to look through
        space = self.space(rows)
        rows = rows[(rows.modality == self.modality) & (rows.subset == self.subset) & (rows.space == space)]
        known = rows[rows.arm.isin(REFERENCES) & rows.value.notna()]
        same = known[known.measurement == self.measurement]
        # Captions that people wrote come from no decoding, so they hold for every measurement.
        reference = known.drop_duplicates(["arm", "seed", "value"]) if same.empty else same
        own = rows[(rows.measurement == self.measurement) & rows.arm.isin(self.arms)]
        if self.models == "set":
            return own[own.model == "set"], reference
        return self.averaged(own[is_member(own.model)]), reference

    def averaged(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Several models of a chain as one row a generation: their mean, NaN if that of one is not known."""
        keys = ["arm", "seed", "generation"]
        if not rows.duplicated(keys).any():
            return rows
        logs = rows.assign(value=np.log(rows.value.where(rows.value > 0)) if self.scale == "log" else rows.value)
        parts = logs.groupby(keys, sort=False)
        out = rows.drop_duplicates(keys).set_index(keys)
        mean = parts.value.agg(lambda v: v.mean(skipna=False))
        out["value"] = np.exp(mean) if self.scale == "log" else mean
        out["n"], out["missing"] = parts.n.min(), parts.missing.max()
        return out.reset_index()


def curves(ax, table: pd.DataFrame, panel: Panel) -> list[str]:
    """Draw a panel; returns what it shows, for the legend."""
    ax.set_title(panel.title)
    rows, real = panel.of(table)
    values = rows[rows.value.notna()]
    if panel.scale == "log":
        # A variance of exactly 0 has no place on a logarithmic axis.
        values, real = values[values.value > 0], real[real.value > 0]
    if values.empty:
        told = rows.missing[rows.missing != ""]
        why = told.iloc[0] if len(told) else "no such rows in the table"
        say(ax, "not measured:\n" + textwrap.fill(why, 30))
        return []
    shown = [arm for arm in panel.arms if (values.arm == arm).any()]
    for arm in shown:
        chains(ax, values[values.arm == arm], panel.scale, arm)
    for arm in REFERENCES:
        if (known := real.value[real.arm == arm].to_numpy()).size:
            reference(ax, known, panel.scale, arm)
            shown.append(arm)
    if panel.floor and floor(ax, table, panel, values):
        shown.append("floor")
    ax.set_xlabel("generation (n = " + "-".join(f"{n:,}" for n in sorted({values.n.min(), values.n.max()})) + ")")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=2))
    ax.margins(x=0.04, y=0.08)
    y_axis(ax, panel, rows.space.iloc[0])
    sns.despine(ax=ax)
    return shown


def chains(ax, rows: pd.DataFrame, scale: str, arm: str | dict):
    """One thin line a seed over `generation`; from 2 seeds on their mean, from 3 on its 95% t interval. arm: its name,
    or a style."""
    style = {k: v for k, v in (ARM_STYLE[arm] if isinstance(arm, str) else arm).items() if k != "label"}
    size = 5.5 if style["marker"] == "*" else 3.6  # a star is thin
    thick = {"linewidth": 1.6, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.4, "zorder": 3}
    thick |= style
    wide = rows.pivot(index="generation", columns="seed", values="value").sort_index()
    if wide.shape[1] == 1:
        ax.plot(wide.index, wide.iloc[:, 0], **thick)
        return
    for seed in wide:
        ax.plot(wide.index, wide[seed], **style | {"marker": "", "linewidth": 0.5, "alpha": 0.45, "zorder": 2})
    mean, low, high = np.array([estimate(values, scale) for values in wide.to_numpy()]).T
    if wide.shape[1] >= 3:
        ax.fill_between(wide.index, low, high, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    ax.plot(wide.index, mean, **thick)


def estimate(values: np.ndarray, scale: str) -> tuple[float, float, float]:
    """Mean over seeds and, from 3 on, its 95% t interval (else NaN): on the log scale, or of a rate cut at 0 and 1."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    values = np.log(values) if scale == "log" else values
    interval = stats.t_interval(values) if len(values) >= 3 else (math.nan, math.nan)
    ends = np.array((values.mean(), *(np.clip(interval, 0, 1) if scale == "rate" else interval)))
    return tuple(np.exp(ends) if scale == "log" else ends)


def reference(ax, values: np.ndarray, scale: str, arm: str):
    """The mean of a reference and, of two measurements or more, the band that holds 95% of further ones: mean and
    t x standard deviation x sqrt(1 + 1/k)."""
    style = ARM_STYLE[arm]
    values = np.log(values) if scale == "log" else values
    centre, k = values.mean(), len(values)
    low, high = stats.t_interval(values)  # of the mean: t x sd / sqrt(k)
    half = 0.5 * (high - low) * math.sqrt(k + 1) if k > 1 else 0.0
    ends = np.array([centre, centre - half, centre + half])
    ends = np.exp(ends) if scale == "log" else ends.clip(0, 1) if scale == "rate" else ends
    ax.axhline(ends[0], color=style["color"], linestyle=style["linestyle"], linewidth=1.1, zorder=2)
    if half:
        ax.axhspan(ends[1], ends[2], color=style["color"], alpha=0.13, linewidth=0, zorder=0)


def floor(ax, table: pd.DataFrame, panel: Panel, values: pd.DataFrame) -> bool:
    """What drawing N pairs anew each generation would lose with no learning error: relative to generation 0."""
    rows = table[(table.metric == "sampling_floor") & (table.modality == panel.modality) & table.arm.isin(panel.arms)]
    curve = rows.groupby("generation").value.mean()
    if curve.empty:
        return False
    start = values[values.generation == values.generation.min()].value.mean()
    ax.plot(curve.index, start * curve, **FLOOR, zorder=4)
    return True


def y_axis(ax, panel: Panel, space: str):
    if panel.scale == "log":
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high / low > 8:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:  # numbers at even steps: powers of ten would leave the axis without a label
            for bins in (4, 5, 6, 7):
                ticks = MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
                ticks = [t for t in ticks if low <= t <= high]
                if len(ticks) >= 4:
                    break
            ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_minor_locator(NullLocator())
    small = (
        max(map(abs, ax.get_ylim())) < 0.05
    )  # the label counts in thousandths, so that those of the ticks stay short
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / (1e-3 if small else 1):.4g}"))
    unit, _, direction = panel.label.replace("{space}", space).partition("\n")
    ax.set_ylabel(f"{unit}{', 10⁻³' if small else ''}\n{direction}")


def say(ax, text: str):
    """An axis that has nothing to show says why."""
    ax.set(xticks=[], yticks=[], facecolor="#F2F2F2")
    sns.despine(ax=ax, left=True, bottom=True)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#444444")


def handle(style: dict) -> Line2D:
    """Of a legend."""
    return Line2D([], [], **{"linewidth": 1.6, "markersize": 4} | style)


def legend(figure: Figure, shown: Iterable[str], most: int = 5, more: Sequence[Line2D] = ()):
    """`most` entries a row above the panels: arms, and `more`."""
    shown = set(shown)
    handles = [handle(ARM_STYLE[arm]) for arm in in_order(shown - {"floor"})]
    if "floor" in shown:
        handles.append(Line2D([], [], **FLOOR, label="sampling floor (1 - 1/N)ᵍ"))
    handles += more
    if not handles:
        return
    columns = min(most, len(handles))
    handles = [h for first in range(columns) for h in handles[first::columns]]  # so that it reads row by row
    layout = {"ncols": columns, "frameon": False, "handlelength": 3.2, "columnspacing": 1.4}
    figure.legend(handles=handles, loc="upper center", borderaxespad=0.3, **layout)


def facts(source: Source, panels: Sequence[Panel], lines: bool = True) -> str:
    """Seeds, generations and profile of what the panels show; lines: and what their lines are."""
    rows = pd.concat([panel.of(source.table)[0] for panel in panels])
    rows = rows[rows.value.notna()]
    if rows.empty:
        return f"Nothing was measured; {source.about}."
    seeds, several = sorted(rows.seed.unique()), rows.groupby("arm").seed.nunique()
    counts = span(several) + (" an arm" if several.nunique() > 1 else "")
    named = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        text = f"One seed ({seeds[0]}), which decides nothing"
    elif not lines:
        text = f"{counts} seeds ({named}){'' if len(seeds) > 2 else ', too few for intervals'}"
    else:
        thick = "thick, with band: mean and 95% t interval" if len(seeds) > 2 else "thick: their mean"
        text = f"{counts} seeds ({named}): thin, one line each; {thick}"
    text = text.replace(" an arm seeds", " seeds an arm")
    return f"{text}. Generations 0 to {rows.generation.max()}; n = {span(rows.n)} samples a point; {source.about}."


def span(values: Iterable[float]) -> str:
    """The lowest and the highest of whole numbers, as a caption says them."""
    ends = min(values), max(values)
    return " to ".join(f"{int(v):,}" for v in dict.fromkeys(ends))


def grid(source: Source, panels: Sequence[Panel], columns: int, about: str, most: int = 5) -> Figure:
    """Panels in `columns`, row by row, with a legend (`most` entries a row) above and a caption below."""
    note = textwrap.wrap(f"{about} {facts(source, panels)}", LETTERS)
    entries = len({arm for panel in panels for arm in panel.arms}) + any(panel.floor for panel in panels)
    figure, axes = sheet(len(panels), columns, note, math.ceil((entries + len(REFERENCES)) / most))
    shown = []
    for ax, panel in zip(axes, panels, strict=True):
        shown += curves(ax, source.table, panel)
    legend(figure, shown, most)
    return figure


def sheet(count: int, columns: int, note: list[str], above: int = 2, cell: float = 2.1, left: float = 0.78, below=0.42):
    """A figure with the axes of `count` panels in `columns`, row by row, room for `above` rows of a legend, and the
    caption. cell: height of a panel, its title and labels; left, below: room for the labels of its axes; in inches."""
    top = round(0.12 + 0.15 * above, 2)
    rows, title = math.ceil(count / columns), 0.25
    wide = (WIDTH - 0.1) / columns
    height = top + rows * cell + LINE * len(note) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    axes = []
    for k in range(count):
        row, column = divmod(k, columns)
        x, y = column * wide + left, height - top - (row + 1) * cell + below
        size = (wide - left - 0.05) / WIDTH, (cell - title - below) / height
        axes.append(figure.add_axes((x / WIDTH, y / height, *size)))
    caption(figure, note)
    return figure, axes


def caption(figure: Figure, lines: list[str]):
    """The caption at the foot of a figure."""
    height = figure.get_figheight()
    for k, text in enumerate(lines):
        place = 0.012, (0.08 + (len(lines) - k - 0.75) * LINE) / height
        figure.text(*place, text, va="baseline", label=CAPTION)  # by its label `save` finds it again


@dataclass
class Drawn:
    """A figure, and the filters of the rows that it shows: of the table, or of the samples. counts: n, seeds and
    generations, where these rows do not tell them; files: what it was drawn from beside those of its source."""

    figure: Figure
    rows: list[dict]
    samples: bool = False
    counts: dict | None = None
    files: Sequence[Path] = ()


# ---- one number a chain


def scalars(source: Source, panel: Panel, summary: str) -> dict[str, pd.Series]:
    """Of each arm of a panel that has any: late or AUC ("late", "auc") by seed, where it is known."""
    rows, _ = panel.of(source.table)
    out = {}
    for arm in panel.arms:
        part = rows[rows.arm == arm]
        if part.empty:
            continue
        if (found := stats.chain_scalars(part, summary, source.planned).value.dropna()).size:
            out[arm] = found
    return out


def said(source: Source, summary: str) -> str:
    """What a summary is, for a caption."""
    generations = stats.summary_generations(summary, source.planned)
    ends = (
        f"generation {generations[0]}" if len(generations) == 1 else f"generations {generations[0]}-{generations[-1]}"
    )
    return f"{'AUC' if summary == 'auc' else 'late'}: mean of {ends}"


def over(ax, points: dict[float, pd.Series], scale: str, style: str | dict):
    """A line over numbers, as `chains` over generations. points: number -> values by seed."""
    rows = [{"generation": x, "seed": s, "value": v} for x, values in points.items() for s, v in values.items()]
    frame = pd.DataFrame(rows, columns=["generation", "seed", "value"])
    if scale == "log":
        frame = frame[frame.value > 0]
    if len(frame):
        chains(ax, frame, scale, style)


def level(ax, values: pd.Series, scale: str, arm: str, across: bool = True):
    """A line across the panel at the mean over seeds of a control, and its 95% t interval; or one from foot to top."""
    style = ARM_STYLE[arm]
    mean, low, high = estimate(values.to_numpy(), scale)
    line, band = (ax.axhline, ax.axhspan) if across else (ax.axvline, ax.axvspan)
    line(mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.1, zorder=2)
    if not math.isnan(low):
        band(low, high, color=style["color"], alpha=0.13, linewidth=0, zorder=0)


def every_arm(source: Source, groups: Sequence[Sequence[Panel]], about: str, summary: str = "auc") -> Drawn:
    """The supplement that leaves no arm out: a row an arm, one number a chain (see `scalars`), mean and 95% t interval;
    vertical lines: the controls. groups: panels side by side that share their arms."""
    panels = [panel for group in groups for panel in group]
    told = f"{first_upper(said(source, summary))}. Vertical lines: controls, with their intervals."
    note = textwrap.wrap(f"{about} {told} {facts(source, panels, False)}", LETTERS)
    most, columns = max(len(panel.arms) for panel in panels), len(groups[0])
    figure, axes = sheet(len(panels), len(panels), note, 1, cell=0.85 + 0.15 * max(most, 3), below=0.55)
    share, names = (WIDTH - 0.1) / len(groups), 1.62  # inches of a group, and of the names at its left
    wide, shown = (share - names) / columns, set()
    for k, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        found, box = scalars(source, panel, summary), ax.get_position()
        group, column = divmod(k, columns)
        left, rows = group * share + names + column * wide, len(panel.arms)
        tall = box.height * max(rows, 3) / max(most, 3)
        ax.set_position((left / WIDTH, box.y1 - tall, (wide - 0.14) / WIDTH, tall))
        ax.set_title(panel.title)
        if not found:
            blank(ax, source, panel)
            continue
        for row, arm in enumerate(panel.arms):
            ax.axhline(row, color="#EEEEEE", linewidth=0.5, zorder=-1)
            if arm in found:
                whisker(ax, row, found[arm], panel.scale, ARM_STYLE[arm])
        for arm in (a for a in CONTROLS if a in found):
            level(ax, found[arm], panel.scale, arm, across=False)
            shown.add(arm)
        labels = [ARM_STYLE[arm]["label"] if column == 0 else "" for arm in panel.arms]
        ax.set_yticks(range(rows), labels, fontsize=6.3)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(rows - 0.4, -0.6)
        x_axis(ax, panel, panel.space(source.table), 4)
        sns.despine(ax=ax, left=True)
    legend(figure, shown)
    return Drawn(figure, [panel.rows(source.table) for panel in panels])


def plain_arms(source: Source, modality: str) -> tuple[str, ...]:
    """All arms of a modality in the table, in order, without references and repeats on further base models."""
    t = source.table
    arms = set(t.arm[(t.modality == modality) & (t.seed >= 0)])
    return tuple(arm for arm in in_order(arms) if not FURTHER.fullmatch(arm))


def blank(ax, source: Source, panel: Panel):
    """A panel that has nothing to show says what its rows say."""
    told = [m for m in panel.of(source.table)[0].missing if m]
    say(ax, "not measured:\n" + textwrap.fill(told[0] if told else "no such rows in the table", 26))


def repeats(
    source: Source, panels: dict[Panel, float], arms: Sequence[str], kinds: Sequence[str], about: str, less="recursive"
) -> Drawn:
    """Late differences of arms and `less`, paired by seed, a row a repeat: the arms themselves (kind ""), and those
    whose names end with "-<kind>". panels: with the smallest effect of interest of each."""
    panels = {replace(p, arms=tuple(named(a, k) for k in kinds for a in (less, *arms))): s for p, s in panels.items()}
    told = f"{first_upper(said(source, 'late'))}. Mean over seeds and 95% t interval; dashed: the smallest effect of "
    note = textwrap.wrap(f"{about} {told}interest. {facts(source, list(panels), False)}", LETTERS)
    rows = {panel: _differences(source, panel, arms, kinds, less) for panel in panels}
    most = max(len({kind for kind, _ in found}) for found in rows.values())
    figure, axes = sheet(len(panels), 2, note, 1, cell=0.95 + 0.21 * max(most, 2), left=1.75, below=0.55)
    for (panel, smallest), ax in zip(panels.items(), axes, strict=True):
        ax.set_title(panel.title)
        found = rows[panel]
        there = [kind for kind in kinds if any(kind == k for k, _ in found)]
        if not there:
            blank(ax, source, panel)
            continue
        for (kind, arm), values in found.items():
            step = 0.62 / max(len(arms), 2)
            whisker(ax, there.index(kind) + step * (arms.index(arm) - (len(arms) - 1) / 2), values, "", ARM_STYLE[arm])
        ax.axvline(0, color="#333333", linewidth=0.8, zorder=0)
        ax.axvline(smallest, color="#333333", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        names = {"": "as in the other figures"} | REPEATS
        ax.set_yticks(range(len(there)), [names.get(kind, f"on {kind}") for kind in there])
        ax.set_ylim(len(there) - 0.5, -0.5)
        for row in range(1, len(there)):
            ax.axhline(row - 0.5, color="#DDDDDD", linewidth=0.5, zorder=-1)
        unit = "log ratio" if panel.scale == "log" else "difference of shares"
        ax.set_xlabel(f"{unit}, arm - {ARM_STYLE[less]['label']}\n(higher = {ARM_STYLE[less]['label']} is worse)")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
        sns.despine(ax=ax)
    shown = in_order({arm for found in rows.values() for _, arm in found})
    more = [handle(ARM_STYLE[a] | {"linestyle": "", "label": f"{ARM_STYLE[a]['label']} - {less}"}) for a in shown]
    legend(figure, (), 5, more)
    return Drawn(figure, [panel.rows(source.table) for panel in panels])


def named(arm: str, kind: str) -> str:
    return f"{arm}-{kind}" if kind else arm


def repeated(source: Source, role: str) -> list[str]:
    """The kinds of repeats that a table has of a role, the arms themselves ("") first."""
    arms = {arm.removeprefix("recursive-") for arm in source.table.arm.unique() if arm.startswith("recursive-")}
    return ["", *(k for k in REPEATS if k in arms), *sorted(k for k in arms if k.startswith(f"{role}-"))]


def _differences(source: Source, panel: Panel, arms: Sequence[str], kinds: Sequence[str], less: str) -> dict:
    """(kind, arm) -> late differences by seed, of logarithms where the panel is logarithmic."""
    found = scalars(source, panel, "late")
    if panel.scale == "log":
        found = {arm: np.log(values[values > 0]) for arm, values in found.items()}
    out = {}
    for kind in kinds:
        for arm in (a for a in arms if named(a, kind) in found and named(less, kind) in found):
            values = (found[named(arm, kind)] - found[named(less, kind)]).dropna()
            if len(values):
                out[kind, arm] = values
    return out


def first_upper(text: str) -> str:
    """A sentence."""
    return text[:1].upper() + text[1:]


CONTROLS = ("recursive", "alone", "joint", "real", "gen0")  # which of them an experiment has


def whisker(ax, y: float, values: pd.Series, scale: str, style: dict):
    """A row of a forest: mean over seeds and its 95% t interval, in a style; of two seeds the seeds themselves."""
    mean, low, high = estimate(values.to_numpy(), scale)
    if not math.isnan(low):
        ax.plot([low, high], [y, y], color=style["color"], linewidth=1.1, zorder=3)
    elif len(values) > 1:
        ax.plot(values, [y] * len(values), ".", markersize=2.5, color=style["color"], zorder=3)
    own = {"markersize": 7 if style["marker"] == "*" else 4.6, "markeredgecolor": "white", "markeredgewidth": 0.4}
    ax.plot([mean], [y], **own | {k: v for k, v in style.items() if k not in ("label", "linewidth", "linestyle")})
    ax.lines[-1].set(linestyle="", zorder=4)


def x_axis(ax, panel: Panel, space: str, bins: int = 5):
    """As y_axis, of the other axis."""
    if panel.scale == "log":
        ax.set_xscale("log")
    low, high = ax.get_xlim()
    ticks = [t for t in MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))
    ax.set_xlabel(panel.label.replace("{space}", space))


def within(ax, scale: str):
    """The y axis of a rate not far beyond 0 and 1; of differences that are all 0 not down to what is rounding."""
    low, high = ax.get_ylim()
    if scale == "rate":
        ax.set_ylim(max(low, -0.04), min(high, 1.04))
    elif high - low < 1e-6:
        ax.set_ylim(-0.05, 0.05)


def ticks_at(ax, values: Iterable[float], log: bool):
    """An x axis with ticks at these values alone."""
    values = sorted(set(values))
    if log:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.4g}"))
    ax.margins(x=0.08, y=0.1)


# ---- walls of pictures, and captions


def spread(values: Iterable[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread, with the first and the last."""
    values = sorted(int(v) for v in values)
    if len(values) <= most:
        return values
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def pixels(picture: dict) -> np.ndarray:
    """A picture (size, size, 3) uint8 from the bytes of its file."""
    return np.asarray(Image.open(io.BytesIO(picture["bytes"])).convert("RGB"))


def nothing(what: str) -> Drawn:
    """A figure that says that there is nothing of this kind to show."""
    figure = Figure(figsize=(WIDTH, 1.5))
    say(figure.subplots(), f"nothing to show: this run kept no {what}")
    return Drawn(figure, [], samples=True)


Block = tuple[str, list[tuple[str, object]]]  # a title, and of each column its label and the key of its pictures


def wall(
    blocks: Sequence[Block], pictures: dict, prompts: dict[int, str], note: str, left: float = 2.05, below: str = ""
) -> Figure:
    """Walls of pictures side by side: rows are prompts (number -> text), columns those of `blocks`; pictures:
    (key, number) -> pixels. A picture that is not there stays white. left: room for the text of a row, in inches;
    below: what the labels of the columns are."""
    lines = textwrap.wrap(note, LETTERS)
    numbers = list(prompts)
    size = max(max(p.shape[:2]) for p in pictures.values())
    cell = size + max(1, size // 20)

    # All in inches, from the top left corner.
    head, foot, gap = 0.42, 0.38 + 0.14 * bool(below), 0.12
    counts = [len(columns) for _, columns in blocks]
    inch = min(0.8, (WIDTH - left - 0.1 - gap * (len(blocks) - 1)) / (sum(counts) * cell / size))
    tall = ((len(numbers) - 1) * cell + size) / size * inch
    height = head + tall + foot + LINE * len(lines) + 0.15
    figure = Figure(figsize=(WIDTH, height))
    start = left
    for k, (title, columns) in enumerate(blocks):
        whole = np.full(((len(numbers) - 1) * cell + size, (len(columns) - 1) * cell + size, 3), 255, np.uint8)
        for i, number in enumerate(numbers):
            for j, (_, key) in enumerate(columns):
                if (picture := pictures.get((key, number))) is not None:
                    whole[i * cell :, j * cell :][: picture.shape[0], : picture.shape[1]] = picture
        wide = ((len(columns) - 1) * cell + size) / size * inch
        ax = figure.add_axes((start / WIDTH, 1 - (head + tall) / height, wide / WIDTH, tall / height))
        ax.imshow(whole, aspect="auto")
        ax.set_title(textwrap.fill(title, max(8, int(wide * 13))), linespacing=1.0)
        ax.set_xlabel(below)
        ax.set_xticks(np.arange(len(columns)) * cell + size / 2, [label for label, _ in columns], fontsize=6.5)
        letters = int(17 * left)
        texts = [textwrap.fill(textwrap.shorten(prompts[i], 120, placeholder=" ..."), letters) for i in numbers]
        ax.set_yticks(np.arange(len(numbers)) * cell + size / 2, texts if k == 0 else [""] * len(numbers), fontsize=6.5)
        ax.tick_params(length=0)
        sns.despine(ax=ax, left=True, bottom=True)
        start += wide + gap
    caption(figure, lines)
    return figure


def last_pictures(frame: pd.DataFrame, key_of: Callable, most: int = 6) -> tuple[dict, dict[int, str], int, int]:
    """For a wall, of the first `most` prompts: pictures ((key, number) -> pixels), prompts (number -> text), the last
    generation, the seed. frame: see Source.samples; key_of(row, last): a picture's key, or None to leave it out."""
    made = frame[frame.arm != "world"]
    last, seed = int(made.generation.max()), int(made.seed.iloc[0])
    numbers = sorted(int(i) for i in made.number.unique())[:most]
    prompts = made.drop_duplicates("number").set_index("number").prompt
    pictures = {}
    for row in frame[frame.number.isin(numbers)].itertuples():
        if (key := key_of(row, last)) is not None:
            pictures.setdefault((key, row.number), pixels(row.image))
    return pictures, {i: prompts[i] for i in numbers}, last, seed


def arms_wall(source: Source, blocks: dict[str, dict[str, str]], note: str) -> Drawn:
    """A wall of pictures of the last generation at guidance 1, a column an arm. blocks: by title, the labels of arms;
    those that are not there are left out; note: with {last} and {n}."""
    arms = [arm for block in blocks.values() for arm in block if arm not in ("world", "start")]
    frame = source.samples("image", "guidance 1", arms)
    if frame.empty:
        return nothing("pictures")
    pictures, prompts, last, seed = last_pictures(frame, by_arm)
    there = {key for key, _ in pictures}
    columns = {title: [(label, arm) for arm, label in block.items() if arm in there] for title, block in blocks.items()}
    told = f"{note.format(last=last, n=len(prompts))}, seed {seed}; {source.about}."
    figure = wall([(title, some) for title, some in columns.items() if some], pictures, prompts, told)
    shown = {"modality": "image", "measurement": "guidance 1", "arm": ["world", *in_order(set(frame.arm) - {"world"})]}
    return Drawn(figure, [shown | {"seed": [-1, seed], "generation": [0, last], "index": list(prompts)}], samples=True)


def generations_wall(frame: pd.DataFrame, rows: dict[str, tuple], note: str, most: int = 2) -> Drawn:
    """A wall by generation: rows are chains (label -> arm and perhaps model), a block is one of `most` prompts, its
    columns the real picture and generations. frame: see Source.samples; note: with {n}, {seed}, {generations}."""
    made = frame[frame.arm != "world"]
    numbers, seed = sorted(int(i) for i in made.number.unique())[:most], int(made.seed.iloc[0])
    generations = spread(made.generation.unique(), 6)
    prompts, keys = (
        made.drop_duplicates("number").set_index("number").prompt,
        {key: k for k, key in enumerate(rows.values())},
    )
    pictures = {}
    for row in frame[frame.number.isin(numbers)].itertuples():
        if row.arm == "world":
            pictures |= {((row.number, "real"), k): pixels(row.image) for k in range(len(rows))}
        elif row.generation in generations:
            for key in ((row.arm,), (row.arm, getattr(row, "model", ""))):
                if key in keys:
                    pictures[(row.number, row.generation), keys[key]] = pixels(row.image)
    columns = ["real"] * any(name == "real" for (_, name), _ in pictures) + generations
    blocks = [
        (textwrap.shorten(prompts[i], 120, placeholder=" ..."), [(str(c), (i, c)) for c in columns]) for i in numbers
    ]
    told = note.format(n=len(numbers), seed=seed, generations=", ".join(map(str, generations)))
    figure = wall(blocks, pictures, dict(enumerate(rows)), told, 1.45, "generation")
    arms = ["world", *dict.fromkeys(key[0] for key in rows.values())]
    shown = {"modality": "image", "measurement": "guidance 1", "arm": arms, "seed": [-1, seed]}
    return Drawn(figure, [shown | {"generation": generations, "index": numbers}], samples=True)


def by_arm(row, last: int) -> str | None:
    """The key of a picture in a wall with a column an arm: "world", "start" (generation 0) or the arm, at the end."""
    if row.generation not in (0, last):
        return None
    return row.arm if row.arm == "world" or row.generation == last else "start"


def right_and_varied(pictures: Sequence[str], captions: Sequence[str]) -> list[Panel]:
    """How many are right and how they vary, of the arms `pictures` and the arms `captions`."""
    image = {"modality": "image", "measurement": "guidance 1", "arms": tuple(pictures)}
    text = {"modality": "text", "arms": tuple(captions)}
    greedy, sampled = text | {"measurement": "greedy"}, text | {"measurement": "sampled"}
    nuisance = f"nuisance variance, to real\n{LOWER}"
    return [
        Panel("Pictures all right", f"share of pictures\n{BETTER}", "all_right", **image, scale="rate"),
        Panel("Variance of pictures", nuisance, "nuisance_ratio", **image, scale="log"),
        Panel("Captions all right", f"share of captions\n{BETTER}", "all_right", **greedy, scale="rate"),
        Panel("Variance of captions", EMBEDDING + LOWER, "caption_variance", **sampled, scale="log"),
    ]


# ---- saving


def save(drawn: Drawn, source: Source, figures: Path, name: str) -> list[Path]:
    png, svg, about = (figures / f"{name}.{ending}" for ending in ("png", "svg", "json"))
    write_whole(png, png_of(drawn.figure))
    for ax in drawn.figure.axes:
        for image in ax.images:
            image.set_interpolation("none")  # in an SVG: the pixels as they are
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_whole(svg, buffer.getvalue())
    folders = f"--results {here(source.folder)} --figures {here(figures)}"
    paths = [path for path in (*source.files(drawn.samples), *drawn.files) if path.is_file()]
    record = {
        "figure": name,
        "sources": {here(path): checksum(path)["sha256"] for path in paths},
        "caption": " ".join(text.get_text() for text in drawn.figure.texts if text.get_label() == CAPTION),
        **(drawn.counts or counts(drawn, source)),
        "rows": drawn.rows,
        "command": f"python -m mmcollapse figures {folders} --only {name}",
    }
    write_whole(about, (json.dumps(record, indent=1) + "\n").encode())
    return [png, svg, about]


def counts(drawn: Drawn, source: Source) -> dict:
    """n (lowest and highest number of samples behind a value; of a wall: pictures or captions a generation), seeds and
    generations of the rows that a figure shows."""
    if drawn.samples:
        named = {"n": "index", "seeds": "seed", "generations": "generation"}
        found = {k: sorted({v for rows in drawn.rows for v in rows.get(c, ()) if v >= 0}) for k, c in named.items()}
        return found | {"n": [len(found["n"])]}
    parts = [source.table[selected(source.table, rows)] for rows in drawn.rows]
    rows = pd.concat(parts or [source.table[:0]])
    rows = rows[rows.value.notna()]
    return {
        "n": [int(rows.n.min()), int(rows.n.max())] if len(rows) else [],
        "seeds": sorted(int(v) for v in rows.seed.unique() if v >= 0),
        "generations": sorted(int(v) for v in rows.generation.unique()),
    }


def selected(table: pd.DataFrame, rows: dict) -> pd.Series:
    """Whether each row of a table is one of those that a filter names."""
    out = pd.Series(True, index=table.index)
    for column, values in rows.items():
        out &= table[column].isin(values if isinstance(values, list) else [values])
    return out


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG with a palette of 256 colours, which makes the file a third as large: the colours that lie
    the farthest apart, so that no arm loses its own, refined to those that are there. Pictures lose nothing that an eye
    sees: each has few colours."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole = np.asarray(canvas.buffer_rgba())[..., :3]
    few = Image.fromarray(np.ascontiguousarray(whole[::4, ::4]))  # of all pixels it takes seconds
    few = few.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    palette = np.array(few.getpalette(), np.uint8).reshape(-1, 3)
    palette[palette.sum(1, dtype=int).argmax()] = 255  # the paper is white
    image = Image.fromarray(nearest(whole, palette), "P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", dpi=(DPI, DPI))
    return buffer.getvalue()


def nearest(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Of each pixel the number of the colour nearest to it; Pillow takes one that is only near."""
    code = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    there, numbers = np.zeros(1 << 24, bool), np.zeros(1 << 24, np.uint8)
    there[code] = True
    known, colors = np.flatnonzero(there), palette.astype(np.float32)
    for part in np.array_split(known, len(known) // 8192 + 1):
        own = np.stack([part >> 16, part >> 8 & 255, part & 255], axis=1).astype(np.float32)
        numbers[part] = (np.square(colors).sum(1) - 2 * own @ colors.T).argmin(1)
    return numbers[code]


def here(path: Path) -> str:
    """The path as one would type it here: relative if it lies below the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
