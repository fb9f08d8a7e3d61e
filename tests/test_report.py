"""The static site: links and figures are there, nothing runs or comes from elsewhere, and a real browser shows it."""

import ast
import base64
import importlib
import inspect
import json
import shutil
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

import synthetic
from mmcollapse import gates, verdicts
from mmcollapse.__main__ import main
from mmcollapse.claims import GATES, all_claims
from mmcollapse.disk import checksum
from mmcollapse.errors import MMCollapseError
from mmcollapse.figures import FIGURES
from mmcollapse.report import api, found, report
from mmcollapse.settings import load_settings
from mmcollapse.table import write_table

WITH_TABLE = ("01_variance", "02_decoding_budget", "04_relabeling")
BAD = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


# ---- a study, and its site


def executed(figure: Path) -> dict:
    """A notebook as papermill leaves it, with outputs of all kinds."""
    page = f"# Verdicts\n\n| claim | figure |\n|---|---|\n| C1<br>C2 | [nano](../../figures/nano/{figure.name}) |\n"
    page += "\n[gone](../elsewhere.md) [paper](https://arxiv.org/abs/2505.08803)\n\n" + BAD
    frame = "<style scoped>th {}</style><table class='dataframe'><thead><tr><th></th><th>arm</th></tr></thead><tbody>"
    frame += f"<tr><th>0</th><td>{'a long arm ' * 40}</td></tr></tbody></table>{BAD}"
    shown = [
        {"text/markdown": page},
        {"text/html": frame},
        {"image/png": base64.b64encode(figure.read_bytes()).decode()},
        {"application/javascript": "document.title = 'run'"},
    ]
    outputs = [{"output_type": "display_data", "metadata": {}, "data": data} for data in shown]
    outputs += [{"output_type": "stream", "name": "stdout", "text": BAD + "\n" + "x" * 400 + "\n"}]
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": f"# 1. Variance: what?\n\n{BAD}"}]
    cells += [{"cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1, "source": "1", "outputs": outputs}]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}


def other(results: Path, name: str, **options):
    """A table of another experiment, with the arms of the first."""
    write_table(synthetic.table(**options).assign(experiment=name), results / f"{name}.parquet")
    (results / f"{name}.json").write_text(json.dumps({"settings": {"profile": "study", "world": "scenes"}}))


def picture(table: Path, stem: Path):
    """A picture in place of a figure, with what `figures` writes beside it."""
    stem.parent.mkdir(exist_ok=True)
    Image.new("RGB", (1500, 40 + sum(stem.name.encode()) % 900), "white").save(stem.with_suffix(".png"))
    stem.with_suffix(".svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    sources = {f"data/results/study/{table.name}": checksum(table)["sha256"]}
    rows = [{"metric": "kid", "arm": ["recursive", BAD]}, {"space": ""}]
    command = f"python {'-m ' * 60}{stem.name}"
    about = {"figure": stem.name, "sources": sources, "caption": f"A. {BAD}", "rows": rows, "command": command}
    stem.with_suffix(".json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Tables of three experiments, one notebook, gates of which one failed, and hostile texts in all that is read."""
    folder = tmp_path_factory.mktemp("study")
    results, figures = folder / "results", folder / "figures"
    s = load_settings("study", results=str(results), figures=str(figures))
    synthetic.results(results, seeds=range(5))
    for name in WITH_TABLE[1:]:
        other(results, name)
    record = json.loads((results / "01_variance.json").read_text())
    record |= {"device": BAD, "commit": "0" * 40, "seconds": 12.5, "stages": {"measuring": 2.0}, "versions": {"a": "1"}}
    (results / "01_variance.json").write_text(json.dumps(record))
    row = {"measure": BAD, "value": 1.0, "low": 0.5, "high": 1.5, "allowed": "below 2", "passed": True}
    rows = [row | {"gate": name, "passed": name != "dose"} for name in GATES if name != "power"]
    write_table(gates.as_frame(rows), results / "00_gates.parquet")
    verdicts.write_page(s, {"study": results})
    for name in (*WITH_TABLE, "07_claims"):
        for figure in FIGURES[name]:
            picture(results / f"{name}.parquet", figures / f"{name}_{figure}")
    (results / "01_variance.ipynb").write_text(json.dumps(executed(figures / "01_variance_power.png")))
    return s


@pytest.fixture(scope="module")
def site(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "study"
    pages = report(settings, out)
    assert pages[0] == out / "index.html" and {p.name for p in pages} == {p.name for p in out.glob("*.html")}
    return out


class Page(HTMLParser):
    """What a page is made of: (tag, attributes) of every element, and its text by element."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.inside, self.text = [], [], {}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside:
            self.text[self.inside[-1]] = self.text.get(self.inside[-1], "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check(folder: Path):
    """Every page: links that lead somewhere, nothing from elsewhere, nothing that runs, and what a reader needs."""
    pages = {path.name: Page(path) for path in folder.glob("*.html")}
    ids = {name: [a["id"] for _, a in page.elements if "id" in a] for name, page in pages.items()}
    for name, page in pages.items():
        assert len(ids[name]) == len(set(ids[name])), name
        assert page.all("html")[0]["lang"] == "en" and page.text["title"].strip(), name
        assert any(meta.get("name") == "viewport" for meta in page.all("meta")), name
        assert len(page.all("h1")) == len(page.all("main")) == len(page.all("nav")) == 1, name
        assert all(th.get("scope") in ("row", "col") for th in page.all("th")), name
        for tag, attributes in page.elements:
            if tag == "script":  # the one there is: the filter of the API, a file of the site
                assert (name, attributes) == ("api.html", {"src": "api.js"}), (name, attributes)
            assert tag not in ("iframe", "object", "base", "style"), (name, attributes)
            assert not any(key.startswith("on") or key == "style" for key in attributes), (name, attributes)
            if tag == "img":
                assert attributes["alt"].strip(), (name, attributes)
            for key in ("href", "src"):
                if key not in attributes:
                    continue
                target = urlsplit(attributes[key])
                if target.scheme:
                    links_out = tag == "a" and target.scheme == "https"
                    assert links_out or attributes[key].startswith("data:image/"), (name, attributes)
                    continue
                assert not target.path.startswith("/") and ".." not in target.path, (name, attributes)
                path = folder / unquote(target.path) if target.path else folder / name
                assert path.is_file(), f"{name} leads to {attributes[key]}, which is not there"
                if target.fragment and path.suffix == ".html":
                    assert unquote(target.fragment) in ids[path.name], f"{name}: no {attributes[key]}"
    return pages


def shown(pages) -> set[str]:
    return {Path(img["src"]).stem for page in pages.values() for img in page.all("img") if "figures/" in img["src"]}


# ---- the files


def test_every_link_leads_somewhere_and_every_figure_is_shown(site, settings):
    pages = check(site)
    drawn = {path.stem for path in settings.figures_folder.glob("*.png")}
    assert len(drawn) > 15 and shown(pages) == drawn
    assert set(pages) == {"index.html", "provenance.html", "data.html", "limits.html", "api.html"} | {
        f"{name}.html" for name in (*WITH_TABLE, "07_claims", "notebook-01_variance")
    }


def test_the_first_page_says_what_was_found_and_what_is_missing(site):
    text = (site / "index.html").read_text()
    said = " ".join(Page(site / "index.html").text.values())
    for claim in all_claims():
        assert claim.id in text
    assert "gate dose failed" in said and "power" in said and "not run" in said
    for name in ("05_quality_robustness", "06_remedies"):
        assert f"make reproduce ONLY={name} PROFILE=study" in said
    assert "01_variance.html#01_variance_generators" in text and "of 48" not in said.split("claims have")[0]


def test_what_tables_say_is_text_and_nothing_runs(site):
    for name in ("index", "01_variance", "provenance", "notebook-01_variance"):
        assert "<script" not in (site / f"{name}.html").read_text()
    for name in ("index", "01_variance", "provenance"):
        assert "&lt;script&gt;document.title" in (site / f"{name}.html").read_text(), name


def test_a_notebook_shows_its_figures_tables_and_text(site):
    page = Page(site / "notebook-01_variance.html")
    assert {"figures/01_variance_power.png"} == {img["src"] for img in page.all("img")}
    links = {a["href"] for a in page.all("a") if "href" in a}
    assert "01_variance.html#01_variance_power" in links and "https://arxiv.org/abs/2505.08803" in links
    assert page.text["h2"] == "1. Variance: what?Verdicts" and "Notebook" in page.text["h1"]
    assert len(page.all("table")) == 2 and sum(div.get("class") == "scroll" for div in page.all("div")) == 2


def test_every_figure_has_a_title_and_a_description():
    told = tomllib.loads((found.TEMPLATES / "figures.toml").read_text())
    names = {f"{name}_{figure}" for name, members in FIGURES.items() for figure in members}
    assert names <= set(told), f"say in figures.toml what they are: {sorted(names - set(told))}"
    assert all(entry["title"] and len(entry["alt"]) > 20 for entry in told.values())


def test_a_figure_of_another_table_is_marked(settings, site, tmp_path):
    assert "has changed since this was drawn" not in (site / "04_relabeling.html").read_text()
    copy = tmp_path / "results"
    shutil.copytree(settings.results_folder, copy)
    other(copy, "04_relabeling", seeds=(0, 1))
    report(replace(settings, results=str(copy)), tmp_path / "site")
    assert (
        "04_relabeling.parquet has changed since this was drawn" in (tmp_path / "site/04_relabeling.html").read_text()
    )


def test_without_notebooks_gates_and_verdicts_there_is_a_site_that_says_so(tmp_path):
    results = synthetic.results(tmp_path / "results", with_samples=False)
    s = load_settings("study", results=str(results), figures=str(tmp_path / "none"))
    report(s, tmp_path / "site")
    pages = check(tmp_path / "site")
    said = " ".join(pages["index.html"].text.values())
    assert "No gate was run" in said and f"0 of {len(FIGURES['01_variance'])} figures" in said
    assert "Not drawn" in (tmp_path / "site" / "01_variance.html").read_text()


# ---- limits, and the reference of the package


def test_the_limits_are_those_of_the_repository(site):
    page, text = Page(site / "limits.html"), found.ROOT.joinpath("LIMITS.md").read_text()
    assert text.splitlines()[0] == f"# {page.text['h1']}"
    sections = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert len(sections) > 4 and page.text["h2"] == "".join(sections)
    links = [a["href"] for a in page.all("a") if "href" in a]
    assert links.count("data.html") == 2 and "01_variance.html#01_variance_power" in links  # head, text
    assert [a["href"] for a in Page(site / "index.html").all("a")].count("limits.html") == 2


MODULES = ("stats", "protocol", "report.found", "metrics.images", "models.generator", "loop", "table")


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_has_what_a_module_has(name):
    """As Python itself sees it, which imports the module."""
    module = importlib.import_module(f"mmcollapse.{name}")
    told = {e.name: e for e in {m.name: m for m in api.reference()}[module.__name__].members}
    own = {
        f"{module.__name__}.{n}": thing
        for n, thing in vars(module).items()
        if inspect.isfunction(thing) or inspect.isclass(thing)
        if thing.__module__ == module.__name__ and not n.startswith("_")
    }
    assert list(told) == sorted(own, key=lambda n: inspect.getsourcelines(own[n])[1]) and len(told) > 1
    for n, thing in own.items():
        assert told[n].docstring == (inspect.getdoc(thing) if thing.__doc__ else ""), n
        signature = told[n].signature.removeprefix("class ").partition(" -> ")[0].partition(", a ")[0]
        if "(" in signature:  # else it is made as its base is
            a = ast.parse(f"def {signature}: 0").body[0].args
            taken = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
            assert [x.arg for x in taken if x] == list(inspect.signature(thing).parameters), n
        else:
            assert "__init__" not in vars(thing) and thing.__base__ is not object
        for member in told[n].members:
            assert member.name.removeprefix(f"{n}.") in vars(thing), member.name


def package(folder: Path, **modules: str) -> list[api.Entry]:
    """The reference of a package of the test's own."""
    folder.mkdir()
    for name, text in ({"__init__": ""} | modules).items():
        (folder / f"{name}.py").write_text(text)
    return api.reference(folder)


def test_docstrings_are_shown_as_they_are_meant(tmp_path):
    text = '''
def first(a, *, b: int = 1) -> str:
    """Says, of `second` and `elsewhere`, what <script> is & what `a <b` means.

        x  =  1
          y

        z

    a: an
        apple
    b: a `first`
    And this.
    """

def second():
    pass

def _hidden():
    """No."""
'''
    (module,) = package(tmp_path / "mine", one=text)
    assert [(e.name, e.signature) for e in module.members] == [
        ("mine.one.first", "first(a, *, b: int=1) -> str"),
        ("mine.one.second", "second()"),
    ]
    shown = api.as_html(module.members[0], api.names([module]))
    assert shown.splitlines() == [
        '<p>Says, of <a href="#mine.one.second"><code>second</code></a> and <code>elsewhere</code>, what '
        "&lt;script&gt; is &amp; what <code>a &lt;b</code> means.</p>",
        *("<pre>x  =  1", "  y", "z</pre>", "<dl>", "<dt>a</dt><dd>an apple</dd>"),
        *("<dt>b</dt><dd>a <code>first</code></dd>", "</dl>", "<p>And this.</p>"),
    ]


def test_what_a_class_takes_and_has(tmp_path):
    text = '''
@dataclass(frozen=True)
class Point:
    x: float
    names: list = field(default_factory=list)
    _found: int = 0
    near: int = field(default=3)

    @property
    def length(self) -> float:
        """In pixels."""

    def shift(self, by, /): ...

    @staticmethod
    def of(text): ...

class Model(Module):
    def __init__(self, folder, *rest, device="cpu", **more): ...

    def forward(self, x): ...

    def read(self, x):
        """More than the base says."""
'''
    (module,) = package(tmp_path / "mine", one=text)
    point, model = module.members
    assert point.signature == "class Point(x: float, names: list=list(), near: int=3)"
    assert [m.signature for m in point.members] == ["length -> float", "shift(by, /)", "of(text)"]
    assert model.signature == "class Model(folder, *rest, device='cpu', **more), a Module"
    assert [m.name for m in model.members] == ["mine.one.Model.read"]


# ---- what is refused, and what stays


def test_nothing_to_report_is_refused_by_name(tmp_path, capsys):
    options = ["--results", str(tmp_path / "r"), "--figures", str(tmp_path / "f"), "--site", str(tmp_path / "s")]
    assert main(["report", "--profile", "nano", *options]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path / "r") in said and "make reproduce" in said
    assert not (tmp_path / "s").exists()


def test_a_folder_that_is_no_site_is_left_alone(settings, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(MMCollapseError, match="holds something else"):
        report(settings, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_site_is_replaced_whole_or_stays_as_it_was(settings, site, tmp_path):
    out = tmp_path / "site"
    shutil.copytree(site, out)
    (out / "old.html").write_text("of an older run")
    copy = tmp_path / "results"
    shutil.copytree(settings.results_folder, copy)
    (copy / "01_variance.ipynb").write_text("{")
    with pytest.raises(MMCollapseError, match=r"01_variance\.ipynb is no notebook"):
        report(replace(settings, results=str(copy)), out)
    assert (out / "old.html").is_file() and sorted(p.name for p in tmp_path.iterdir()) == ["results", "site"]
    (copy / "01_variance.json").write_text("[")
    with pytest.raises(MMCollapseError, match=r"01_variance\.json is damaged"):
        report(replace(settings, results=str(copy)), out)
    report(settings, out)
    assert not (out / "old.html").exists()
    same = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert same == {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_a_damaged_table_is_named_on_its_page(settings, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(settings.results_folder, copy)
    (copy / "04_relabeling.parquet").write_bytes(b"no table")
    (copy / "07_claims.parquet").unlink()
    report(replace(settings, results=str(copy)), tmp_path / "site")
    assert "04_relabeling.parquet cannot be read" in (tmp_path / "site" / "04_relabeling.html").read_text()


def test_the_site_of_a_finished_run(smoke, tmp_path, capsys):
    """With the notebooks as they are really executed."""
    assert smoke.code == 0
    assert main(["report", *smoke.options, "--site", str(tmp_path / "site")]) == 0
    assert str(tmp_path / "site" / "index.html") in capsys.readouterr().out
    pages = check(tmp_path / "site")
    assert shown(pages) == {path.stem for path in (smoke.folder / "figures").glob("*.png")}
    assert {f"notebook-{path.stem}.html" for path in (smoke.folder / "results").glob("*.ipynb")} <= set(pages)
    for page in pages.values():  # the figures in notebooks are those of the site, with their descriptions
        assert not any(img["src"].startswith("data:") for img in page.all("img"))


# ---- a real browser


LOADED = """Promise.all([...document.images].map(async (i) => {
  i.loading = "eager";
  await i.decode().catch(() => {});
  return i.naturalWidth && i.getBoundingClientRect().width <= innerWidth ? "" : i.src;
})).then((all) => all.filter(Boolean))"""


@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_every_page(browser, site, width):
    for page in sorted(site.glob("*.html")):
        browser.open(page, width)
        title = browser.value("document.title")
        assert browser.value("innerWidth") == width
        assert browser.value(LOADED) == [], page.name
        assert browser.value("document.images.length") == len(Page(page).all("img"))
        browser.value("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        assert browser.value("document.scrollingElement.scrollWidth") <= width, f"{page.name} scrolls sideways"
        assert browser.value("getComputedStyle(document.body).maxWidth + document.styleSheets.length") == "none1"
        assert browser.wrong() == [], page.name
        assert browser.value("document.title") == title != "run"


SHOWN = """[...document.querySelectorAll(".module > .entry")].filter((e) => e.checkVisibility()).map((e) => e.id)"""


@pytest.mark.parametrize("width", [1280, 360])
def test_the_reference_can_be_searched(browser, site, width):
    browser.open(site / "api.html", width)
    every = browser.value(SHOWN)
    assert len(every) > 300 and browser.value("document.querySelector('output').textContent") == ""
    browser.value("document.getElementById('query').focus()")
    for key in "vendi eigenvalues":
        browser.press(key)
    assert browser.value(SHOWN) == ["mmcollapse.metrics.images.vendi"]
    assert browser.value("document.querySelector('output').textContent") == f"1 of {len(every)}"
    visible = (
        "[...document.querySelectorAll('.modules a')].filter((a) => a.checkVisibility()).map((a) => a.textContent)"
    )
    assert browser.value(visible) == ["metrics.images"]
    browser.value("location.hash = 'mmcollapse.stats'")  # a link to what is hidden shows all again, and goes there
    browser.until("document.getElementById('query').value === ''")
    assert browser.value(SHOWN) == every
    place = "document.getElementById('mmcollapse.stats').getBoundingClientRect().top"
    bar = "document.querySelector('.filter').getBoundingClientRect().bottom"
    assert browser.value(bar) <= browser.value(place) < 200  # below the box, not under it
    browser.value("document.getElementById('query').focus()")
    for key in "zzz":
        browser.press(key)
    assert browser.value(SHOWN) == [] and browser.wrong() == []


def test_a_browser_would_tell(browser, tmp_path):
    """The checks above find what they look for."""
    page = tmp_path / "page.html"
    page.write_text(f"<p style='width: 2000px'>a</p><img src='gone.png'><script>console.error('a')</script>{BAD}")
    browser.open(page, 360)
    assert len(browser.value(LOADED)) == 2 and len(browser.wrong()) >= 3
    assert browser.value("document.scrollingElement.scrollWidth") > 360 and browser.value("document.title") == "run"
