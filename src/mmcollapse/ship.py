"""What of a study travels with the repository: tables, provenance and kept sets whole, of the samples those that a
figure shows; and the page of verdicts and the figures, made again from what is shipped."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mmcollapse.errors import MMCollapseError
from mmcollapse.figures import FIGURES, draw
from mmcollapse.figures.house import selected
from mmcollapse.kept import path_of
from mmcollapse.runner import FOLDERS
from mmcollapse.settings import load_settings
from mmcollapse.verdicts import write_page

VERDICTS = "07_claims"
DRAWN = (".png", ".json")  # SVGs are larger, and drawn again in a minute


def ship(results: Path, target: Path, figures: Path, profile: str = "study") -> list[Path]:
    """Copy the results in `results` to `target`, both of one `profile`, write the page of verdicts where gates were
    run, and draw the figures into `figures`; return the files written. MMCollapseError: there is nothing to ship, or a
    figure of the shipped samples shows another picture than that of all samples."""
    results, target, figures = Path(results), Path(target), Path(figures)
    if results.resolve() == target.resolve():
        raise MMCollapseError(f"results={str(results)!r}: is the folder of what is shipped; give that of the run")
    # verdicts are those of all that is shipped, now and before
    names = [name for name in FIGURES if name != VERDICTS and (results / f"{name}.parquet").is_file()]
    if not names:
        raise MMCollapseError(f"no result table in {results}: nothing to ship")
    target.mkdir(parents=True, exist_ok=True)
    before = [name for name in FIGURES if (target / f"{name}.parquet").is_file() and name not in names]
    written = []
    with tempfile.TemporaryDirectory() as folder:
        whole = {path.name: path for path in draw(results, Path(folder))}
        tables = [results / f"{name}{end}" for name in (*names, "00_gates") for end in (".parquet", ".json")]
        for path in tables:
            if path.is_file():
                written.append(Path(shutil.copy(path, target)))
                if path.suffix == ".json":
                    told = _placeless(json.loads(path.read_text()))
                    written[-1].write_text(json.dumps(told, indent=1) + "\n")
        for name in names:
            if (kept := path_of(results, name)).is_file():
                path_of(target, name).parent.mkdir(exist_ok=True)
                written.append(Path(shutil.copy(kept, path_of(target, name))))
            if (samples := results / f"{name}.samples.parquet").is_file():
                shown = [json.loads(path.read_text()) for path in whole.values() if path.suffix == ".json"]
                filters = [rows for told in shown if told["figure"].startswith(name) for rows in told["rows"]]
                _thin(samples, target / samples.name, filters)
                written.append(target / samples.name)
        settings = load_settings(profile, VERDICTS, results=str(target), figures=str(figures))
        if gated := (target / "00_gates.parquet").is_file():
            write_page(settings, {profile: target})
            written += [target / f"{VERDICTS}{end}" for end in (".md", ".parquet")]
        for path in draw(target, figures):
            if path.suffix not in DRAWN:
                continue
            # verdicts, and beside what was shipped before figures of that, and of several tables, are others
            own = path.suffix == ".png" and path.name in whole and not path.name.startswith(VERDICTS)
            own = own and (not before or path.name.startswith(tuple(names)))
            if own and path.read_bytes() != whole[path.name].read_bytes():
                raise MMCollapseError(f"{path} is not the figure that {results} gives: it needs samples that were left")
            written.append(path)
    if gated:
        write_page(settings, {profile: target})  # again, for it links to figures, of which some show its verdicts
    return written


def _placeless(told):
    """Provenance without the folders of the machine that ran it, which say nothing elsewhere."""
    if isinstance(told, list):
        return [_placeless(part) for part in told]
    if not isinstance(told, dict):
        return told
    own = {
        name for name, value in told.items() if name in FOLDERS and isinstance(value, str) and Path(value).is_absolute()
    }
    return {name: "" if name in own else _placeless(value) for name, value in told.items()}


def _thin(samples: Path, target: Path, filters: list[dict]):
    """Write the samples that one of the filters names, and the real ones."""
    table = pq.read_table(samples)
    frame = table.drop_columns(["image", "caption"]).to_pandas()
    keep = frame.arm == "world"
    for rows in filters:
        if set(rows) <= set(frame.columns):  # else it is of the table
            keep |= selected(frame, rows)
    pq.write_table(table.take(np.flatnonzero(keep)), target, compression="zstd")
