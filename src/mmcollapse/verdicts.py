"""The page of verdicts: every claim, the gates it rests on, and what each profile's tables say of it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mmcollapse import claims, gates
from mmcollapse.causes import causes
from mmcollapse.claims import EVERY
from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import ROOT, Settings
from mmcollapse.stats import SEEDS_NEEDED
from mmcollapse.table import read_table

COLUMNS = ["profile", *claims.COLUMNS, "claims", "table_claims"]
# Settings that all experiments of one study share.
SHARED = ("world", "pairs", "steps", "batch", "lr_generator", "lr_captioner", "warmup", "method", "rank", "data_steps")
SHARED += ("data_guidance", "measure_steps", "prompts", "noises", "captions", "dtype")
SHIPPED = ("nano", "study")  # profiles that a page shows beside its own, where they have tables
PREVIEW = "preview, not preregistered"
REACH = (
    "Small models on scenes of known truth can show that an effect exists, which control it vanishes against, which "
    "part of a protocol causes it and which metric misses it. They cannot show how much of it, or how soon, SDXL and "
    "BLIP-2 have on photos: these bring a variety from their pretraining that recursion can lose unseen for long, and"
    " biases that scenes do not have. *Contradicted* says that a claim fails here, against its controls, and not that"
    " the paper's numbers are wrong. More in `LIMITS.md`."
)


def results_root(settings: Settings) -> dict[str, Path]:
    """{profile: folder of its tables}: the shipped ones that are there, and that of the settings."""
    found = {name: ROOT / "data" / "results" / name for name in SHIPPED}
    if settings.world != "scenes":
        found = {}
    own = {settings.profile: settings.results_folder}
    return {
        name: folder for name, folder in (found | own).items() if name in own or any(folder.glob("0[1-6]_*.parquet"))
    }


def read_results(folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """(result tables by experiment, what is wrong with those that cannot be read)."""
    tables, wrong = {}, {}
    for experiment in experiments():
        path = Path(folder) / f"{experiment}.parquet"
        if path.is_file():
            try:
                tables[experiment] = read_table(path)
            except MMCollapseError as error:
                wrong[experiment] = str(error)
    return tables, wrong


def differing(folder: Path) -> list[str]:
    """Lines, one a setting that the tables and gates of a folder do not share though it changes results: some of them
    may be of an older run."""
    made: dict[str, dict] = {}
    for name in [*experiments(), "00_gates"]:
        path = Path(folder) / f"{name}.json"
        if path.is_file():
            made[name] = json.loads(path.read_text())
    lines = []
    for key in SHARED:
        values: dict[str, list[str]] = {}
        for name, record in made.items():
            if key in (held := record.get("settings", {})):
                values.setdefault(str(held[key]), []).append(name[:2])
        if len(values) > 1:
            told = "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
            lines.append(f"{key} differs between tables: {told}")
    return lines


def experiments() -> list[str]:
    """The experiments that claims are judged from, in order."""
    return sorted({name for claim in claims.all_claims() for name in claim.experiments})


def verdicts(tables: Mapping[str, pd.DataFrame], found: pd.DataFrame | None) -> pd.DataFrame:
    """What the tables of one profile say of every claim: claims.COLUMNS and table_claims, the hashes of the claims file
    that the tables carry. A claim without its tables or arms has one row, "not run: why". found: the gates, or None."""
    frames, whole = [], tables
    ends = [end for claim in claims.all_claims() for part in claim.contrasts for end in _endpoints(part)]
    metrics = {end.metric for end in ends}  # of a large table little is asked
    tables = {name: table[table.metric.isin(metrics)] for name, table in whole.items()}
    for claim in claims.all_claims():
        absent = [name for name in claim.experiments if name not in tables]
        try:
            if claim not in claims.of_tables(tables, [claim]):
                why = f"not run: no table of {', '.join(absent)}"
            elif lacks := claims.lacking(tables, claim):
                why = f"not run: {lacks}"
            else:
                frame, why = claims.conclude(tables, [claim]), ""
        except MMCollapseError as error:
            why = f"no verdict: {error}"
        if why:
            row = {"claim": claim.id, "contrast": EVERY, "part": "primary", "verdict": why, "seeds": 0}
            row |= {"experiment": ", ".join(claim.experiments), "general": "not tested"}
            frame = pd.DataFrame([row], columns=claims.COLUMNS)
        hashes = {str(h) for name in claim.experiments if name in tables for h in whole[name].claims.unique()}
        frames.append(frame.astype(_TYPES).assign(table_claims=", ".join(sorted(hashes))))
    return claims.void(pd.concat(frames, ignore_index=True), found)


def _endpoints(part: claims.Contrast | claims.Correlation) -> list[claims.Endpoint]:
    return [part.endpoint, *([part.outcome] if isinstance(part, claims.Correlation) else [])]


_TYPES = dict.fromkeys(("S", "effect", "low", "high", "p", "p_t", "p_holm"), "float64")
_TYPES |= {"seeds": "int64", "agree": "Int64"}


@dataclass
class _Profile:
    """What there is of one profile. wrong: of tables that cannot be read, why; found: its gates, or None."""

    folder: Path
    tables: dict[str, pd.DataFrame]
    wrong: dict[str, str]
    found: pd.DataFrame | None
    verdicts: pd.DataFrame


def _read(roots: Mapping[str, Path]) -> dict[str, _Profile]:
    out = {}
    for profile, folder in roots.items():
        tables, wrong = read_results(folder)
        found = gates.read_gates(folder)
        out[profile] = _Profile(folder, tables, wrong, found, verdicts(tables, found))
    return out


def write_page(settings: Settings, roots: Mapping[str, Path] | None = None) -> pd.DataFrame:
    """Write RESULTS/07_claims.md and 07_claims.parquet (COLUMNS, a row a contrast and claim of every profile, each with
    the hash of today's claims file), and return the latter."""
    read = _read(roots or results_root(settings))
    frame = pd.concat([p.verdicts.assign(profile=name) for name, p in read.items()], ignore_index=True)
    frame = frame.assign(claims=claims.claims_digest())[COLUMNS]
    buffer, folder = io.BytesIO(), settings.results_folder
    frame.to_parquet(buffer, index=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "07_claims.parquet", buffer.getvalue())
    write_whole(folder / "07_claims.md", _page(read, settings).encode())
    return frame


def page(roots: Mapping[str, Path], settings: Settings) -> str:
    """The page as markdown. roots: folder of tables by profile; links are relative to the settings' results folder."""
    return _page(_read(roots), settings)


def _page(read: dict[str, _Profile], settings: Settings) -> str:
    lines = ["# Verdicts", "", *_preregistration(), ""]
    for name, p in read.items():
        lines += [f"## Gates, {name}", "", *_gates(p, name), "", *_tables(name, p.tables, p.wrong)]
        lines += [*(f"- **{line}**: some may be of an older run" for line in differing(p.folder)), ""]
    lines += ["## Claims", ""]
    for name, p in read.items():
        frame = p.verdicts
        whole = frame[(frame.contrast == EVERY) & ~frame.verdict.str.startswith("not run")].set_index("claim").verdict
        seeds = int(frame.seeds.max())
        rest = frame.claim.nunique() - len(whole)
        told = claims.opening(whole, seeds) if len(whole) else "nothing was run yet."
        lines += [f"- {name}: {told}" + (f" {rest} more were not run." if len(whole) and rest else "")]
    lines += ["", *_claims(read, settings)]
    lines += [
        "",
        "Effects are differences paired by seed (mean, 95% t interval), on the scale of the endpoint, and above 0 "
        f"where the claim predicts it; S is the smallest effect of interest. A verdict needs {SEEDS_NEEDED} seeds and "
        "every primary contrast; in brackets what is secondary or exploratory, which no verdict needs. Intervals are "
        "conditional on the base models. The rules: `src/mmcollapse/claims.toml`.",
    ]
    found = [f"- {name}, {line}" for name, p in read.items() for line in causes(p.tables)]
    if found:
        lines += ["", "## Where an answer differs from the paper's: the arms that isolate why", "", *found]
    lines += ["", "## How far this reaches", "", REACH]
    return "\n".join(lines) + "\n"


def _preregistration() -> list[str]:
    """What the claims file is, when it was frozen, and what has differed since."""
    record = claims.freezing()
    if record is None:
        return [f"Claims file {claims.claims_digest()}: **not frozen yet** ({PREVIEW}; `make freeze` freezes it)."]
    at = f" at commit {record['commit'][:12]}" if record["commit"] else ""
    lines = [f"Claims file {record['digest']}, frozen on {record['date']}{at}. Deviations since then:", ""]
    listed = [
        f"- {d['date']}: {d['what']} Because: {d['why']} (claims file {d['digest']})" for d in record["deviations"]
    ]
    return lines + (listed or ["- none"])


def _gates(p: _Profile, profile: str) -> list[str]:
    found = p.found
    if found is None:
        return [f"**The gates were not run**, so nothing is judged: `make reproduce PROFILE={profile} ONLY=07_claims`."]
    bad = gates.failed(found)
    lines = [
        f"**{len(bad)} GATE{'S' * (len(bad) > 1)} FAILED: {', '.join(bad)}.** {_consequence(bad, p.verdicts)}"
        if bad
        else "All gates that are judged passed."
    ]
    lines += ["", "| gate | measure | found | allowed | | claims that rest on it |", "|---|---|---|---|---|---|"]
    said: set[str] = set()
    for row in found.itertuples():
        ends = "" if pd.isna(row.low) else f" ({row.low:.3g} to {row.high:.3g})"
        state = "" if pd.isna(row.passed) else "passed" if row.passed else "**FAILED**"
        value = "" if pd.isna(row.value) else f"{row.value:.4g}{ends}"
        new = row.gate not in said
        said.add(row.gate)
        gate, needs = (row.gate, row.needs) if new else ("", "")
        lines.append(f"| {gate} | {row.measure} | {value} | {row.allowed} | {state} | {needs} |")
    absent = [name for name in claims.GATES if name not in set(found.gate)]
    return lines + ([f"\nWithout tables for it: {', '.join(absent)}."] if absent else [])


def _consequence(bad: list[str], judged: pd.DataFrame) -> str:
    hard = [name for name in bad if name != claims.DOUBT]
    told = [f"The verdicts that rest on {'them' if len(hard) > 1 else 'it'} are void."] if hard else []
    if claims.DOUBT in bad:
        doubted = judged.claim[judged.verdict.str.startswith("inconclusive: the instruments")].unique()
        told.append(
            "Where instruments disagree, the verdicts on what they disagree about are inconclusive: "
            f"{', '.join(doubted) or 'none'}."
        )
    return " ".join(told)


def _tables(profile: str, tables: Mapping[str, pd.DataFrame], wrong: Mapping[str, str]) -> list[str]:
    """What is missing, and which claims file the tables were made under."""
    lines, today = [], claims.claims_digest()
    for name in experiments():
        if name in wrong:
            lines.append(f"- {name}: {wrong[name]}")
        elif name not in tables:
            lines.append(f"- {name}: no table; `make reproduce PROFILE={profile} ONLY={name}` makes it")
        else:
            seeds = tables[name].seed[tables[name].seed >= 0].nunique()
            few = " **One seed decides nothing.**" if seeds == 1 else ""
            said = []
            for digest in sorted(set(tables[name].claims) - {today}):
                said.append(f"made under another claims file ({digest})" if digest else PREVIEW)
            lines.append(f"- {name}: {seeds} seed{'s' * (seeds != 1)}{''.join(f'; {text}' for text in said)}.{few}")
    return lines


def _claims(read: dict[str, _Profile], settings: Settings) -> list[str]:
    """One row a claim: what it says, and for each profile effects and verdict; and the figure."""
    profiles = [
        name for profile in read for name in (f"{profile}: effects", f"{profile}: seeds", f"{profile}: verdict")
    ]
    head = ["claim", "what it says", *profiles, "figure"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for claim in claims.all_claims():
        cells = [f"**{claim.id}**", claim.text]
        for p in read.values():
            rows = p.verdicts[p.verdicts.claim == claim.id]
            whole = rows[rows.contrast == EVERY].iloc[0]
            parts = [_effect(row) for row in rows[rows.contrast != EVERY].itertuples()]
            seeds = "" if whole.verdict.startswith("not run") else str(whole.seeds)
            verdict = _loud(whole.verdict) + claims.reach(whole.verdict, whole.general)
            cells += ["<br>".join(part for part in parts if part), seeds, verdict]
        links = [link for profile in read if (link := _link(claim.figure, profile, settings))]
        lines.append(f"| {' | '.join([*cells, ' '.join(links)])} |")
    return lines


def _effect(row) -> str:
    if pd.isna(row.effect):
        return "" if row.part != "primary" else f"{row.contrast}: {row.verdict}"
    ends = "" if pd.isna(row.low) else f" ({row.low:+.2g} to {row.high:+.2g})"
    text = f"{row.contrast}: {row.effect:+.2g}{ends}, S {row.S:.2g}"
    if isinstance(row.models, str) and row.models:
        text += f", {row.models}"
    return text if row.part == "primary" else f"[{row.part}: {text}]"


def _loud(verdict: str) -> str:
    return verdict if verdict.startswith(("not run", "no verdict")) else f"**{verdict}**"


def _link(figure: str, profile: str, settings: Settings) -> str:
    """A link to the figure of a profile, if it was drawn."""
    own = profile == settings.profile
    path = (settings.figures_folder if own else ROOT / "figures" / profile) / f"{figure}.png"
    return f"[{profile}]({os.path.relpath(path, settings.results_folder)})" if path.is_file() else ""
