"""Text made elsewhere as a part of a page: executed notebooks, the data card, the limits."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mmcollapse.errors import MMCollapseError
from mmcollapse.report.found import Figure

# What is kept: elements that neither run nor load anything. Of the dropped ones all that is in them goes too.
KEPT = "a b blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i img li ol p pre span strong sub sup "
KEPT = set((KEPT + "table tbody td tfoot th thead tr ul").split())
ATTRIBUTES = {"class", "colspan", "rowspan", "start", "alt"}
EMPTY = {"br", "hr", "img"}
DROPPED = {"script", "style", "iframe", "object", "svg", "math", "template"}

# Texts of the repository, by their path from its root or from data/: where the site has them.
PAGES = {"LICENSE": "LICENSE", "data/LICENSE": "LICENSE", "data/README.md": "data.html", "LIMITS.md": "limits.html"}


class Links:
    """Where the links and pictures of a text lead in the site. home: page of a figure; notebooks: those with a page."""

    def __init__(self, figures: Mapping[str, Figure], home: Mapping[str, str], notebooks: Iterable[str]):
        self.figures, self.home, self.notebooks = figures, home, set(notebooks)
        self.known = {hashlib.sha256(f.files[0].read_bytes()).digest(): f for f in figures.values()}

    def link(self, target: str) -> str:
        """The target as it is in the site; "" if it is not there."""
        if urlsplit(target).scheme in ("http", "https"):
            return target
        path = PurePosixPath(unquote(urlsplit(target).path))
        if path.suffix == ".ipynb" and path.stem in self.notebooks:
            return f"notebook-{path.stem}.html"
        return PAGES.get(str(path)) or self.home.get(path.stem, "")

    def picture(self, source: str) -> dict[str, str]:
        """Attributes of an embedded picture; one that is a figure is taken from there, with its description; {} if it
        would have to be loaded from elsewhere."""
        head, _, data = source.partition(",")
        if not head.startswith("data:image/"):
            return {}
        content = base64.b64decode(data) if head.endswith(";base64") else data.encode()
        if figure := self.known.get(hashlib.sha256(content).digest()):
            return {"src": f"figures/{figure.name}.png", "alt": figure.alt}
        return {"src": source, "alt": "A picture that the notebook shows, without a description"}


class _Part(HTMLParser):
    """HTML as a part of a page: nothing in it runs, loads from elsewhere or leads nowhere; headings are one level
    lower, and tables lie in a box of their own."""

    def __init__(self, links: Links):
        super().__init__(convert_charrefs=True)
        self.links, self.out, self.dropping, self.in_head = links, [], 0, False

    def handle_starttag(self, tag, attrs):
        self.dropping += tag in DROPPED
        if self.dropping or tag not in KEPT:
            return
        given = {name: value or "" for name, value in attrs}
        kept = {name: value for name, value in given.items() if name in ATTRIBUTES}
        if tag == "a" and (target := self.links.link(given.get("href", ""))):
            kept["href"] = target
        if tag == "img":
            picture = self.links.picture(given.get("src", ""))
            if not picture:
                return
            kept |= picture
        self.in_head = tag == "thead" or (self.in_head and tag != "tbody")
        if tag == "th":
            kept["scope"] = "col" if self.in_head else "row"
        text = "".join(f' {name}="{html.escape(value)}"' for name, value in kept.items())
        box = '<div class="scroll" role="region" aria-label="Table" tabindex="0">' if tag == "table" else ""
        self.out.append(f"{box}<{_lower(tag)}{text}>")

    def handle_endtag(self, tag):
        if tag in DROPPED:
            self.dropping = max(0, self.dropping - 1)
        elif not self.dropping and tag in KEPT - EMPTY:
            self.out.append(f"</{_lower(tag)}>" + ("</div>" if tag == "table" else ""))

    def handle_data(self, data):
        if not self.dropping:
            self.out.append(html.escape(data, quote=False))


def _lower(tag: str) -> str:
    """A heading one level lower; any other tag as it is."""
    return f"h{min(6, int(tag[1]) + 1)}" if tag in ("h1", "h2", "h3", "h4", "h5", "h6") else tag


def clean(text: str, links: Links) -> str:
    """HTML of anybody as a part of a page: nothing in it runs, loads from elsewhere or leads nowhere."""
    part = _Part(links)
    part.feed(text)
    part.close()
    return "".join(part.out)


def notebook(path: Path, links: Links) -> str:
    """An executed notebook as HTML. MMCollapseError: it is none."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    exporter.log.disabled = True  # it warns of pictures without a description, which get theirs here
    try:
        text, _ = exporter.from_filename(str(path))
    except Exception as error:  # whatever a damaged file makes of the reader
        raise MMCollapseError(f"{path} is no notebook: {error}") from error
    return clean(text, links)


def card(path: Path, links: Links) -> str:
    """A text in markdown as HTML, without its title, which is that of the page."""
    # its sections stand right below the title
    return passage(path.read_text().partition("\n")[2].replace("\n## ", "\n# "), links)


def passage(text: str, links: Links) -> str:
    """Markdown as HTML."""
    from nbconvert.filters import markdown2html

    return clean(markdown2html(text).replace("&#182;", "").replace("¶", ""), links)
