"""What there is to report: experiments with their figures, claims, gates, provenance; and what is missing."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from mmcollapse import claims, gates
from mmcollapse.disk import checksum
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS
from mmcollapse.figures import FIGURES
from mmcollapse.settings import ROOT, Settings
from mmcollapse.verdicts import read_results, verdicts

TEMPLATES = Path(__file__).with_name("templates")
UNTITLED = {"00_instruments": "Instruments: what can be believed?"}  # the others have a notebook, which says
KINDS = ("reproduced", "contradicted", "inconclusive", "void", "not run")  # of verdicts; any other is "no verdict"


@dataclass
class Figure:
    """A figure. caption, rows, sources (file: checksum), command: what the file beside it says; changed: sources that
    are no longer what it was drawn from."""

    name: str
    title: str
    alt: str
    size: tuple[int, int]
    files: list[Path]
    caption: str
    rows: list[str]
    sources: dict[str, str]
    command: str
    changed: list[str]


@dataclass
class Experiment:
    """What there is of an experiment. about: its table in words, "" without one; wrong: why it cannot be read; command:
    what makes it; lacking: its figures that were not drawn; record: its provenance; notebook: the executed one."""

    name: str
    title: str
    about: str
    wrong: str
    command: str
    figures: list[Figure]
    lacking: list[str]
    record: dict
    notebook: Path | None

    @property
    def shown(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.about or self.wrong or self.figures or self.notebook)


@dataclass
class Claim:
    """A claim, and what the tables say of it. figure: the one that shows it, if it was drawn; parts: its contrasts that
    have an effect."""

    id: str
    text: str
    verdict: str
    seeds: int
    figure: str
    parts: list[dict]

    @property
    def kind(self) -> str:
        """Of KINDS that with which the verdict begins, or "no verdict"."""
        return next((kind for kind in KINDS if self.verdict.startswith(kind)), "no verdict")


def read_record(path: Path) -> dict:
    """What a JSON file says; {} if there is none. MMCollapseError: it is damaged."""
    try:
        record = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise MMCollapseError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise MMCollapseError(f"{path} is damaged: it holds no record")
    return record


def find_experiment(name: str, settings: Settings) -> Experiment:
    """What there is of the experiment of that name. MMCollapseError: a file beside its table or figures is damaged."""
    results, source = settings.results_folder, ROOT / "notebooks" / f"{name}.ipynb"
    title = UNTITLED.get(name, name)
    if source.is_file():
        title = "".join(read_record(source)["cells"][0]["source"]).splitlines()[0].lstrip("# ")
    make = "make instruments" if name in UNTITLED else f"make reproduce ONLY={name}"
    drawn = {path.stem: path for path in sorted(settings.figures_folder.glob(f"{name}_*.png"))}
    names = [f"{name}_{figure}" for figure in FIGURES[name]]
    figures = [_figure(drawn[n], results) for n in dict.fromkeys([*names, *drawn]) if n in drawn]
    executed = results / f"{name}.ipynb"
    return Experiment(
        name,
        title,
        *_table(results / f"{name}.parquet", bool(EXPERIMENTS.get(name))),
        f"{make} PROFILE={settings.profile}",
        figures,
        [n for n in names if n not in drawn],
        read_record(results / f"{name}.json"),
        executed if executed.is_file() else None,
    )


def _table(path: Path, has_chains: bool) -> tuple[str, str]:
    """(a table in words, why it cannot be read)."""
    if not path.is_file():
        return "", ""
    try:
        frame = pd.read_parquet(path)
        text = f"{len(frame):,} rows"
        if has_chains:
            chains = frame[frame.seed >= 0]
            counts = {"arm": chains.arm.nunique(), "seed": chains.seed.nunique()}
            text += "".join(f", {count} {what}{'s' * (count != 1)}" for what, count in counts.items())
            text += f", generations 0 to {chains.generation.max()}"
    except Exception as error:  # whatever a damaged file makes of the reader
        return "", f"{path.name} cannot be read: {error}"
    return text, ""


def _figure(path: Path, results: Path) -> Figure:
    record, name = read_record(path.with_suffix(".json")), path.stem
    told = tomllib.loads((TEMPLATES / "figures.toml").read_text()).get(name, {})
    plain = name.replace("_", " ")
    with Image.open(path) as picture:
        size = picture.size
    files = [file for file in (path, path.with_suffix(".svg")) if file.is_file()]
    rows = ["; ".join(f"{key}: {_listed(value)}" for key, value in part.items()) for part in record.get("rows", [])]
    sources = {Path(source).name: digest for source, digest in record.get("sources", {}).items()}
    there = {source: checksum(results / source)["sha256"] for source in sources if (results / source).is_file()}
    changed = [source for source, digest in there.items() if digest != sources[source]]
    caption, command = record.get("caption", ""), record.get("command", "")
    title, alt = told.get("title", plain), told.get("alt", caption or f"Figure {plain}")
    return Figure(name, title, alt, size, files, caption, list(dict.fromkeys(rows)), sources, command, changed)


def _listed(value) -> str:
    return ", ".join("(none)" if v == "" else str(v) for v in (value if isinstance(value, list) else [value]))


def find_claims(settings: Settings, drawn: set[str]) -> tuple[list[Claim], str]:
    """Every claim, as 07_claims judged it, or else judged now; and the sentence on all of them. drawn: figures."""
    path, frame = settings.results_folder / "07_claims.parquet", pd.DataFrame()
    if path.is_file():
        frame = pd.read_parquet(path)
        frame = frame[frame.profile == settings.profile]
    if frame.empty:
        frame = verdicts(read_results(settings.results_folder)[0], gates.read_gates(settings.results_folder))
    whole = frame[frame.contrast == claims.EVERY].set_index("claim")
    run = whole[~whole.verdict.str.startswith("not run")]
    said = claims.opening(run.verdict, int(run.seeds.max())).replace("**", "") if len(run) else "Nothing was run yet."
    known, found = {claim.id: claim for claim in claims.all_claims()}, []
    for name, row in whole.iterrows():
        parts = frame[(frame.claim == name) & (frame.contrast != claims.EVERY) & frame.effect.notna()]
        text, figure = (known[name].text, known[name].figure) if name in known else ("", "")
        figure = figure if figure in drawn else ""
        found.append(Claim(name, text, row.verdict, int(row.seeds), figure, parts.to_dict("records")))
    return found, said


def find_gates(results: Path) -> list[dict]:
    """Every gate: its name, what must hold (text), its state, and its measures (rows)."""
    found, out = gates.read_gates(results), []
    for name, text in claims.GATES.items():
        rows = [] if found is None else found[found.gate == name].to_dict("records")
        states = {None if pd.isna(row["passed"]) else bool(row["passed"]) for row in rows}
        state = "FAILED" if False in states else "passed" if True in states else "shown" if rows else "not run"
        out.append({"name": name, "text": text, "state": state, "rows": rows})
    return out


def split_settings(records: dict[str, dict]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Settings that all records share, and of every other one the value in each record."""
    held = {name: record["settings"] for name, record in records.items() if record.get("settings")}
    values = {key: {name: str(s.get(key, "")) for name, s in held.items()} for s in held.values() for key in s}
    common = {key: next(iter(v.values())) for key, v in values.items() if len(set(v.values())) == 1}
    return common, {key: v for key, v in values.items() if key not in common}
