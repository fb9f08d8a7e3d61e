"""What an intervention saves: of late quality, against the same chain without a remedy, and for each use of a real
pair."""

from __future__ import annotations

import math

import pandas as pd

from mmcollapse import stats
from mmcollapse.alarms import QUALITY
from mmcollapse.table import is_member

NEVER = {"image": "recursive", "text": "recursive-drift"}  # the arm without a remedy
CONTROLS = {"image": ("real", "gen0"), "text": ("real", "gen0-drift")}
PER = 100  # uses of real pairs: one that is trained on in ten generations counts ten times
NAMES = {"image": "Generators", "text": "Captioners"}


def of_sets(table: pd.DataFrame, metric: str, modality: str, arm: str) -> pd.DataFrame:
    """real_pairs or switched of an arm: a row a generation, a column a seed."""
    rows = table[(table.metric == metric) & (table.model == "set") & (table.modality == modality)]
    return rows[rows.arm == arm].pivot(index="generation", columns="seed", values="value")


def since(table: pd.DataFrame, modality: str, arm: str) -> pd.Series:
    """The generation since which the remedy of an arm holds, by seed; NaN where it never came."""
    return of_sets(table, "switched", modality, arm).min()


def late_of(table: pd.DataFrame, modality: str, planned: int) -> dict[str, pd.Series]:
    """Share all right of late (0 to 1) of every arm of one model, by seed."""
    metric, measurement, space = QUALITY[modality]
    rows = table[(table.modality == modality) & (table.metric == metric) & (table.measurement == measurement)]
    rows = rows[(rows.space == space) & (rows.subset == "test") & (rows.seed >= 0) & rows.value.notna()]
    rows = rows[is_member(rows.model)]
    return {
        arm: stats.chain_scalars(own, "late", planned).value.dropna()
        for arm, own in rows.groupby("arm", sort=False)
        if own.model.nunique() == 1
    }


def summary(table: pd.DataFrame, planned: int) -> pd.DataFrame:
    """A row for each arm with a remedy, of one model, and for each control: modality, arm, seeds, never (in how many of
    these its remedy never came; NaN of a control), since (mean of the others), pairs (uses of real ones, in all
    generations together), late (share all right, see stats.chain_scalars; 0 to 1), saved (late less late of NEVER, with
    matched decoding less that of recursive, paired by seed; -1 to 1), low and high (its 95% t interval; NaN below 3
    seeds), each (saved for PER real pairs).

    planned: the last generation."""
    out = []
    for modality, never in NEVER.items():
        late = late_of(table, modality, planned)
        arms = [*CONTROLS[modality], *table.arm[(table.metric == "switched") & (table.modality == modality)].unique()]
        for arm in (a for a in arms if a in late and never in late):
            less = "recursive" if arm == "on-alarm-matched" else never
            saved = (late[arm] - late[less]).dropna()
            came, pairs = since(table, modality, arm), of_sets(table, "real_pairs", modality, arm).sum()
            low, high = stats.t_interval(saved.to_numpy()) if len(saved) > 2 else (math.nan, math.nan)
            told = {"modality": modality, "arm": arm, "seeds": len(saved)}
            told |= {"never": came.isna().sum() if len(came) else math.nan, "since": came.mean()}
            told |= {"pairs": pairs.mean(), "late": late[arm].mean(), "saved": saved.mean(), "low": low, "high": high}
            out.append(told | {"each": (PER * saved / pairs.where(pairs > 0)).mean()})
    return pd.DataFrame(out)


def say(table: pd.DataFrame, planned: int) -> str:
    """`summary` as short markdown, and what it comes to."""
    found = summary(table, planned)
    if found.empty or found.never.isna().all():
        return "No arm of this table has a remedy, or none its chain without.\n"
    lines = []
    if (seeds := int(found.seeds.max())) < stats.SEEDS_NEEDED:
        lines += [f"**{'One seed decides' if seeds == 1 else f'{seeds} seeds decide'} nothing;** so it was here:", ""]
    for modality, rows in found.groupby("modality", sort=False):
        arms = rows.set_index("arm")
        never = late_of(table, modality, planned)[NEVER[modality]].mean()
        lines.append(f"- {NAMES[modality]}, late all right {never:.2f} without a remedy: " + _controls(arms))
        for arm, row in arms[arms.never.notna()].iterrows():
            if row.never == row.seeds:
                why = table.missing[(table.arm == arm) & (table.modality == modality) & (table.metric == "switched")]
                lines.append(f"  - *{arm}*: the remedy never came ({why.iloc[-1]})")
                continue
            interval = f" [{row.low:+.2f}, {row.high:+.2f}]" if row.low == row.low else ""
            rest = f", in {row.never:.0f} of {row.seeds} seeds never" if row.never else ""
            each = f"; {row.each:+.3f} for {PER} of its {row.pairs:,.0f} uses of real pairs" if row.pairs else ""
            lines.append(f"  - *{arm}*, since generation {row.since:.3g}{rest}: {row.saved:+.2f}{interval}{each}")
        if told := _waiting(table, modality, planned):
            lines.append(f"  - {told}")
    return "\n".join(lines) + "\n"


def _waiting(table: pd.DataFrame, modality: str, planned: int) -> str:
    """What waiting for the alarm costs, in words: late of on-alarm less that of always, paired by seed; "" if it never
    sounded."""
    late = late_of(table, modality, planned)
    if not {"on-alarm", "always"} <= set(late) or since(table, modality, "on-alarm").isna().all():
        return ""
    lost = (late["on-alarm"] - late["always"]).dropna()
    low, high = stats.t_interval(lost.to_numpy()) if len(lost) > 2 else (math.nan, math.nan)
    interval = f" [{low:+.2f}, {high:+.2f}]" if low == low else ""
    pairs = [of_sets(table, "real_pairs", modality, arm).sum().mean() for arm in ("on-alarm", "always")]
    return f"to wait for the alarm instead of starting with the remedy: {lost.mean():+.2f}{interval}, with " + (
        f"{pairs[0]:,.0f} uses of real pairs instead of {pairs[1]:,.0f}"
    )


def _controls(arms: pd.DataFrame) -> str:
    told = arms[arms.never.isna()]
    return ", ".join(f"*{arm}* {row.saved:+.2f}" for arm, row in told.iterrows())
