"""The reference of the package: its public modules, functions and classes with signatures and docstrings, read from the
source without importing it."""

from __future__ import annotations

import ast
import html
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parents[1]
_ITEM = re.compile(r"(\S.{0,30}?)(?:: +|  +)(\S.*)")  # "name: what it is", or a row of a table


@dataclass
class Entry:
    """A module, class, function, method or property. name: dotted, also its anchor; signature: as it is written in the
    source, "" of a module; docstring: "" if it has none; members: what is public in it."""

    name: str
    signature: str
    docstring: str
    members: list[Entry] = field(default_factory=list)


def reference(source: Path = SOURCE) -> list[Entry]:
    """Every public module below the folder of a package, by name. Public is what has no name that begins with an
    underscore; of a class its own methods and properties, and of one with a base only those that say more than it."""
    paths = [p for p in sorted(source.rglob("*.py")) if (p.parent / "__init__.py").is_file()]
    found = [_module(path, source) for path in paths if path.name == "__init__.py" or not path.name.startswith("_")]
    return sorted((m for m in found if m.docstring or m.members), key=lambda m: m.name)


def _module(path: Path, source: Path) -> Entry:
    parts = path.relative_to(source.parent).with_suffix("").parts
    name, tree = ".".join(part for part in parts if part != "__init__"), ast.parse(path.read_text())
    return Entry(name, "", ast.get_docstring(tree) or "", _public(tree, name))


def _public(tree: ast.Module | ast.ClassDef, within: str) -> list[Entry]:
    """The public functions and classes of a module or class."""
    out, inherits = [], isinstance(tree, ast.ClassDef) and bool(tree.bases)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name, told = f"{within}.{node.name}", ast.get_docstring(node) or ""
            if inherits and not told:
                continue
            members = _public(node, name) if isinstance(node, ast.ClassDef) else []
            out.append(Entry(name, _signature(node, isinstance(tree, ast.ClassDef)), told, members))
    return out


def _signature(node: ast.FunctionDef | ast.ClassDef, in_class: bool) -> str:
    """As it is called: without self, of a dataclass its fields, of another class what an __init__ of its own takes."""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if inits:
            taken = f"({_arguments(inits[0], bound=True)})"
        elif any(d.startswith("dataclass") for d in decorators):
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
            taken = f"({', '.join(map(_field, fields))})"
        else:
            taken = "" if node.bases else "()"
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}{taken}" + (f", a {bases}" if bases else "")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if {"property", "cached_property"} & set(decorators):
        return node.name + returns
    bound = in_class and "staticmethod" not in decorators
    return f"{node.name}({_arguments(node, bound)}){returns}"


def _arguments(node: ast.FunctionDef, bound: bool) -> str:
    """The arguments of a function as they are written; bound: without the first, self."""
    args = node.args
    if bound:
        first = args.posonlyargs or args.args
        del first[0]
    return ast.unparse(args)


def _field(node: ast.AnnAssign) -> str:
    """A field of a dataclass as an argument of its __init__."""
    default = node.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
        made = {k.arg: k.value for k in default.keywords}
        factory = made.get("default_factory")
        default = made.get("default") or (factory and ast.Call(factory, [], []))
    return f"{node.target.id}: {ast.unparse(node.annotation)}" + (f"={ast.unparse(default)}" if default else "")


def names(entries: list[Entry]) -> set[str]:
    """The names of entries and of all in them."""
    return {entry.name for entry in entries} | {name for entry in entries for name in names(entry.members)}


def as_html(entry: Entry, known: set[str]) -> str:
    """The docstring of an entry as HTML: paragraphs, lists of names with what they are, and, where it is indented, text
    as it stands. What it puts in backticks leads there if it is one of the `known` names."""
    out, pre = [], []
    for block in [*entry.docstring.split("\n\n"), ""]:
        lines = [line for line in block.splitlines() if line.strip()]
        indented = [line.startswith(" ") for line in lines]
        loose = any(indented) and not any(_ITEM.match(line) for line in lines)
        if lines and (all(indented) or loose):
            pre.append("\n".join(lines))
            continue
        if pre:
            out.append(f"<pre>{html.escape(textwrap.dedent(chr(10).join(pre)), quote=False)}</pre>")
            pre = []
        if any(indented):
            out += _items(lines, entry, known)
        elif lines:
            out.append(f"<p>{_text(' '.join(lines), entry, known)}</p>")
    return "\n".join(out)


def _items(lines: list[str], entry: Entry, known: set[str]) -> list[str]:
    """Lines of which some hang below the name that they are about, between lines of plain text."""
    parts: list[list[str]] = []  # [name, text], the name "" of plain text
    for line in lines:
        item = _ITEM.fullmatch(line)
        if item:
            parts.append(list(item.groups()))
        elif parts and (line.startswith(" ") or not parts[-1][0]):
            parts[-1][1] += " " + line.strip()
        else:
            parts.append(["", line])
    out, within = [], False
    for name, text in parts:
        if bool(name) != within:
            out.append("<dl>" if name else "</dl>")
            within = bool(name)
        said = _text(text, entry, known)
        out.append(f"<dt>{_text(name, entry, known)}</dt><dd>{said}</dd>" if name else f"<p>{said}</p>")
    return [*out, *(["</dl>"] if within else [])]


def _text(text: str, entry: Entry, known: set[str]) -> str:
    """A line of text: what stands in backticks as code, the rest as it is."""

    def code(found: re.Match) -> str:
        said, package = found[1], entry.name.partition(".")[0]
        scopes = [entry.name.rsplit(".", k)[0] for k in range(entry.name.count("."))] + [entry.name, package]
        target = next((n for scope in scopes if (n := f"{scope}.{said}") in known), said if said in known else "")
        shown = f"<code>{said}</code>"
        return f'<a href="#{target}">{shown}</a>' if target and target != entry.name else shown

    return re.sub(r"`([^`]+)`", code, html.escape(text, quote=False))
