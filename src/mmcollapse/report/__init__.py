"""The static site of a run: verdicts, gates, figures, executed notebooks, provenance, limits and the reference of the
package, opened from a folder without a server or a network."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmcollapse import claims, stats
from mmcollapse.causes import causes
from mmcollapse.disk import remove
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures import FIGURES
from mmcollapse.report.api import as_html, names, reference
from mmcollapse.report.found import (
    TEMPLATES,
    Experiment,
    find_claims,
    find_experiment,
    find_gates,
    read_record,
    split_settings,
)
from mmcollapse.report.fragments import Links, card, notebook, passage
from mmcollapse.settings import ROOT, Settings
from mmcollapse.verdicts import REACH, differing, read_results

CARD, LICENCE = ROOT / "data" / "README.md", ROOT / "data" / "LICENSE"
LIMITS = ROOT / "LIMITS.md"
MARK = '<meta name="generator" content="mmcollapse report">'  # says that a folder is a site, which may be replaced
OVERVIEW = ("07_claims_overview", "07_claims_verdicts")  # the first page shows the first of these that is there


def report(settings: Settings, out: Path) -> list[Path]:
    """Write the site of what lies in the settings' folders of results and figures to the folder `out`, whole or not at
    all, and return its pages, the first page first. MMCollapseError: there is nothing to show, a file is damaged, or
    `out` holds something else."""
    out = Path(out).absolute()
    if not _is_free(out):
        raise MMCollapseError(f"{out} holds something else than a site of make report: name another folder (SITE=...)")
    experiments = [find_experiment(name, settings) for name in FIGURES]
    if not any(e.shown for e in experiments):
        folders = f"{settings.results_folder} and {settings.figures_folder}"
        raise MMCollapseError(f"nothing to report in {folders}: make tables and figures first (make reproduce)")
    draft = out.with_name(f".{out.name}.part")
    remove(draft)
    try:
        pages = _write(draft, settings, experiments)
        remove(out)
        os.replace(draft, out)
    except BaseException:
        remove(draft)
        raise
    return [out / page for page in pages]


def _is_free(out: Path) -> bool:
    """Whether nothing of anybody's is lost where `out` is replaced: it is not there, empty, or a site."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    first = out / "index.html"
    return first.is_file() and MARK in first.read_text(errors="replace")


def _write(folder: Path, settings: Settings, experiments: list[Experiment]) -> list[str]:
    """Write every file; returns the names of the pages."""
    results, figures = settings.results_folder, {f.name: f for e in experiments for f in e.figures}
    records = {e.name: e.record for e in experiments} | {"00_gates": read_record(results / "00_gates.json")}
    records = {name: record for name, record in records.items() if record}
    for name in ("figures", "records"):
        (folder / name).mkdir(parents=True)
    for name, record in records.items():
        (folder / "records" / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for path in [TEMPLATES / "style.css", TEMPLATES / "api.js", LICENCE]:
        shutil.copyfile(path, folder / path.name)
    for path in [path for figure in figures.values() for path in figure.files]:
        shutil.copyfile(path, folder / "figures" / path.name)

    shown = [e for e in experiments if e.shown]
    home = {f.name: f"{e.name}.html#{f.name}" for e in shown for f in e.figures}
    links = Links(figures, home, {e.name for e in shown if e.notebook})
    known = {"mark": MARK, "settings": settings, "experiments": experiments, "shown": shown, "home": home}
    known["nav"] = [(f"{e.name}.html", e.title.partition(":")[0]) for e in shown]
    known["records"] = records
    known["world"] = next((w for r in records.values() if (w := r.get("settings", {}).get("world"))), settings.world)
    loader = FileSystemLoader(TEMPLATES)
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pages = []

    def write(page: str, template: str, **more):
        (folder / page).write_text(templates.get_template(template).render(known, page=page, **more))
        pages.append(page)

    judged, said = find_claims(settings, set(figures))
    overview = next((figures[name] for name in OVERVIEW if name in figures), None)
    frozen = {"digest": claims.claims_digest(), "frozen": claims.freezing(), "needed": stats.SEEDS_NEEDED}
    why = [f"- {line}" for line in causes(read_results(results)[0])]
    why = {"why": passage("\n".join([*why, "", REACH]), links) if why else ""}
    found = {"claims": judged, "said": said, "overview": overview, "gates": find_gates(results)}
    write("index.html", "index.html", **found, **frozen, **why)
    for e in shown:
        write(f"{e.name}.html", "experiment.html", experiment=e)
        if e.notebook:
            write(f"notebook-{e.name}.html", "notebook.html", experiment=e, body=notebook(e.notebook, links))
    common, own = split_settings(records)
    write("provenance.html", "provenance.html", common=common, own=own, warnings=differing(results))
    write("data.html", "text.html", title="Data card: weights and result tables", body=card(CARD, links))
    write("limits.html", "text.html", title="Limits and intended use", body=card(LIMITS, links))
    modules = reference()
    public = names(modules)
    write("api.html", "api.html", modules=modules, told=lambda entry: as_html(entry, public))
    return pages
