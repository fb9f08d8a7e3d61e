"""Alarms: is this chain collapsing? The failure signatures of Hu, Rostami and Thomason (2025), section 5 of their paper
in words (quality that degrades, variance that falls, lost diversity, outputs that repeat), as tests on every generation
of a chain as soon as it is measured.

An alarm sounds when a metric has moved from generation 0, in the direction of collapse, by more than two sets of real
data of the same size differ. With s the standard deviation over k sets of real data (rows of the arm "world"), the
difference of two such sets is t-distributed with k - 1 degrees of freedom times s sqrt(2): so in a chain that only
sampling moves, an alarm sounds with probability RATE at most, over all its generations together (Bonferroni). Whatever
else moves a healthy chain, such as fine-tuning on real data, is not in that rate; `honesty` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mmcollapse import stats
from mmcollapse.table import is_member

VERSION = 1  # raise it when an alarm sounds at other times: chains that wait for one are then others
RATE = 0.05  # of false alarms, each alarm and chain
# The arms on which alarms are judged. Captioners collapse under the drifting schedule alone. SLOW: trained on generated
# data that are made once, and not again; healthy for long.
JUDGED_IN = "01_variance"  # the experiment that has these arms
COLLAPSING = {"image": "recursive", "text": "recursive-drift"}
HEALTHY, SLOW = "real", {"image": "gen0", "text": "gen0-drift"}
# What half of is lost at the half-life of a chain, by modality.
QUALITY = {"image": ("all_right", "guidance 1", "oracle"), "text": ("all_right", "greedy", "parser")}
COLUMNS = ["alarm", "modality", "arm", "model", "seed", "threshold", "generation"]


@dataclass(frozen=True)
class Alarm:
    """worse: 1 if the metric rises as a model collapses, -1 if it falls; scale: see stats.on_scale."""

    name: str
    modality: str
    metric: str
    measurement: str
    space: str
    worse: int
    scale: str = "identity"

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Its rows on test prompts or pictures, of every model of every chain and of real data."""
        same = {name: getattr(self, name) for name in ("modality", "metric", "measurement", "space")}
        out = table[table.subset == "test"]
        for name, value in same.items():
            out = out[out[name] == value]
        return out


def _image(name: str, metric: str, worse: int, scale: str = "identity") -> Alarm:
    return Alarm(name, "image", metric, "guidance 1", "judge", worse, scale)


def _text(name: str, metric: str, measurement: str, space: str, worse: int, scale: str = "identity") -> Alarm:
    return Alarm(name, "text", metric, measurement, space, worse, scale)


ALARMS = (
    _image("FID rises", "fid", 1),
    _image("KID rises", "kid", 1),
    _image("precision falls", "precision", -1),
    _image("distance to the prompt P rises", "P", 1),
    _image("variance falls", "variance", -1, "log"),
    _image("variance within prompts falls", "variance_within", -1, "log"),
    _image("recall falls", "recall", -1),
    _image("Vendi score falls", "vendi", -1, "log"),
    _text("BLEU-4 falls", "bleu4", "greedy", "words", -1),
    _text("CIDEr falls", "cider", "greedy", "words", -1),
    _text("distance to the picture P rises", "P", "greedy", "judge", 1),
    _text("variance of captions falls", "caption_variance", "sampled", "judge", -1, "log"),
    _text("Vendi score of captions falls", "caption_vendi", "sampled", "judge", -1, "log"),
    _text("distinct pairs of words fall", "distinct_2", "sampled", "words", -1),
    _text("self-BLEU rises", "self_bleu", "sampled", "words", 1),
)


def thresholds(world: pd.DataFrame, planned: int) -> dict[str, float]:
    """By the name of an alarm, how far a metric may move on its scale, in a chain of `planned` generations. world: rows
    of the arm "world". NaN where fewer than two sets of real data were measured, or all gave the same value."""
    if world.empty:
        return dict.fromkeys((alarm.name for alarm in ALARMS), math.nan)
    out = {}
    for alarm in ALARMS:
        rows = alarm.rows(world)
        rows = rows[(rows.arm == "world") & rows.value.notna()]
        values = stats.on_scale(rows.value, rows.n, alarm.scale)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        t = scipy_stats.t.ppf(1 - RATE / planned, len(values) - 1) if spread > 0 else math.nan
        out[alarm.name] = float(t * spread * math.sqrt(2))
    return out


def sounded(table: pd.DataFrame, planned: int, limits: dict[str, float] | None = None) -> pd.DataFrame:
    """COLUMNS, a row for each alarm and each model of a chain: the generation in which it first sounds, NaN if it does
    in none that there is. limits: those of `thresholds`, if the table has no rows of real data. Left out: alarms
    without a threshold, and chains that were not measured."""
    limits = thresholds(table, planned) if limits is None else limits
    found = []
    for alarm in ALARMS:
        rows = alarm.rows(table)
        rows = rows[(rows.seed >= 0) & rows.value.notna() & is_member(rows.model)]
        if math.isnan(limits[alarm.name]) or rows.empty:
            continue
        keys = ["arm", "model", "seed"]
        values = rows.assign(value=stats.on_scale(rows.value, rows.n, alarm.scale))
        curves = values.pivot_table(index=keys, columns="generation", values="value", sort=True)
        if 0 not in curves:
            continue
        worse = alarm.worse * curves.drop(columns=0).sub(curves[0], axis=0) > limits[alarm.name]
        first = worse.idxmax(axis=1).where(worse.any(axis=1)) if worse.shape[1] else pd.Series(np.nan, worse.index)
        told = first.astype(float).rename("generation").reset_index()
        found.append(told.assign(alarm=alarm.name, modality=alarm.modality, threshold=limits[alarm.name]))
    return pd.concat(found, ignore_index=True)[COLUMNS] if found else pd.DataFrame(columns=COLUMNS)


def half_lives(table: pd.DataFrame, modality: str, planned: int) -> pd.Series:
    """Generations until half of the quality is lost, by seed of the arm that collapses (stats.half_life)."""
    metric, measurement, space = QUALITY[modality]
    rows = table[(table.arm == COLLAPSING[modality]) & (table.modality == modality) & (table.metric == metric)]
    rows = rows[(rows.measurement == measurement) & (rows.space == space) & (rows.subset == "test")]
    return stats.half_life(rows[is_member(rows.model)], planned)


def honesty(table: pd.DataFrame, planned: int) -> pd.DataFrame:
    """How good each alarm is, a row each, the earliest first, behind them those whose rate is not the stated one:

    generation  median over collapsing chains of that in which it first sounds; inf if in most it never does
    lead        median over chains of the generations from then to the half-life of quality, below 0 if it comes late; a
                chain that keeps more than half to the end counts as `planned`, so its lead is at least that
    missed      share of collapsing chains on which it never sounds
    false       share of healthy chains on which it sounds; low, high: its 95% Clopper-Pearson interval
    slow        share of the chains of the arm SLOW on which it sounds; NaN if there are none
    honest      whether that interval holds RATE or lies below it: then nothing speaks against the stated rate. Of fewer
                than SEEDS_NEEDED healthy chains it would hold nearly anything, so then it is False
    collapsing, healthy  how many chains
    """
    found, out = sounded(table, planned), []
    for alarm in ALARMS:
        rows = found[found.alarm == alarm.name]
        arms = (COLLAPSING[alarm.modality], HEALTHY, SLOW[alarm.modality])
        bad, good, slow = (rows[rows.arm == arm].set_index("seed").generation for arm in arms)
        if bad.empty or good.empty:
            continue
        lives = half_lives(table, alarm.modality, planned).reindex(bad.index).clip(upper=planned)
        wrong = int(good.notna().sum())
        ends = scipy_stats.binomtest(wrong, len(good), RATE).proportion_ci(0.95, "exact")
        told = {"alarm": alarm.name, "modality": alarm.modality, "threshold": rows.threshold.iloc[0]}
        told |= {"generation": stats.median_half_life(bad.fillna(math.inf)), "lead": _median(lives - bad)}
        told |= {"missed": bad.isna().mean(), "false": wrong / len(good), "low": ends.low, "high": ends.high}
        honest = len(good) >= stats.SEEDS_NEEDED and bool(ends.low <= RATE)
        told |= {"slow": slow.notna().mean() if len(slow) else math.nan, "honest": honest}
        out.append(told | {"collapsing": len(bad), "healthy": len(good)})
    frame = pd.DataFrame(out)
    if frame.empty:
        return frame
    order = frame.assign(late=frame.generation + 1000 * (frame.low > RATE))
    return frame.loc[order.sort_values(["modality", "late", "missed", "false"], kind="stable").index].reset_index(
        drop=True
    )


def _median(leads: pd.Series) -> float:
    """NaN where in half of the chains or more the alarm never sounds."""
    return float(leads.median()) if leads.notna().mean() > 0.5 else math.nan


def earliest(judged: pd.DataFrame) -> str:
    """In words, the earliest honest alarm of each modality, of the table of `honesty`."""
    told = []
    for modality, what in {"image": "of pictures", "text": "of captions"}.items():
        rows = judged[judged.modality == modality]
        if len(rows) and rows.healthy.max() < stats.SEEDS_NEEDED:
            told.append(f"{what} not to be said, of {rows.healthy.max()} healthy chains ({stats.SEEDS_NEEDED} needed)")
        elif len(rows):
            best = rows[rows.honest & np.isfinite(rows.generation)]
            told.append(f"{what} {best.alarm.iloc[0]!r}" if len(best) else f"{what} none")
    return ", ".join(told)


class Watch:
    """Says of every generation of a chain which alarms begin to sound. world: rows of real data; planned: generations
    of a chain."""

    def __init__(self, world: Iterable[dict], planned: int):
        self.planned = planned
        self.limits = thresholds(pd.DataFrame(list(world)), planned)
        self.rows: dict[str, list[dict]] = {}
        self.sounding: dict[str, set[tuple]] = {}

    @property
    def silent(self) -> list[str]:
        """Alarms that cannot sound (see `thresholds`)."""
        return [name for name, limit in self.limits.items() if math.isnan(limit)]

    def silence(self) -> str:
        """A line about the alarms that cannot sound, "" if all can."""
        if not (silent := self.silent):
            return ""
        why = "fewer than two sets of real data were measured, or they do not differ"
        return f"ALARMS that cannot sound, for {why}: {', '.join(silent)}"

    def new(self, chain: str, generation: int, rows: Iterable[dict]) -> list[tuple[str, str]]:
        """(alarm, model) of those that sound for the first time in this generation. rows: of this generation."""
        wanted = {(a.modality, a.metric, a.measurement, a.space) for a in ALARMS}
        seen = self.rows.setdefault(chain, [])
        seen += [r for r in rows if (r["modality"], r["metric"], r["measurement"], r["space"]) in wanted]
        if not seen:
            return []
        found, before = [], self.sounding.setdefault(chain, set())
        for row in sounded(pd.DataFrame(seen), self.planned, self.limits).itertuples():
            if row.generation == generation and (row.alarm, row.model) not in before:
                before.add((row.alarm, row.model))
                found.append((row.alarm, row.model))
        return found

    def __call__(self, chain: str, generation: int, rows: Iterable[dict]) -> list[str]:
        """A line for each of those."""
        told = self.new(chain, generation, rows)
        return [f"ALARM {chain}, generation {generation}: {alarm} ({model})" for alarm, model in told]
