"""Notice code that decides what a stored thing *is* when it changes while its version does not.

The store names things by their inputs and by a version for each kind (KINDS in mmcollapse/store.py). If code changes so
that the same inputs make something else, and the version stays, old things are taken for new ones. So the code that
matters is listed here and its digests are kept in fixtures/semantics.json. When this test fails:

    the meaning changed      bump the kind in KINDS (of scores: the group in measure.GROUPS), then as below
    it did not (a rewrite)   `python tests/test_semantics.py`

Comments, docstrings and layout do not count.
"""

import ast
import hashlib
import json
from pathlib import Path

import pytest

from mmcollapse.store import KINDS

SRC = Path(__file__).parents[1] / "src"
FIXTURE = Path(__file__).parent / "fixtures" / "semantics.json"

NAMES = [  # they make the names of all kinds
    "mmcollapse.store.item_name",
    "mmcollapse.digests.canonical_json",
    "mmcollapse.digests.digest_of",
]


def families(module: str, base: str) -> list[str]:
    """The adapters in a module of models/."""
    classes = ast.parse((SRC / "mmcollapse" / "models" / f"{module}.py").read_text()).body
    return [c.name for c in classes if isinstance(c, ast.ClassDef) and base in [getattr(b, "id", "") for b in c.bases]]


GENERATORS = ("noising", *families("generator", "DiffusersGenerator"))
# Dotted names of functions, classes, methods or constants of a module. They are read, not imported.
SOURCES = {
    "pairs": [
        *NAMES,
        "mmcollapse.digests.digest_arrays",
        "mmcollapse.pairs.save_pairs",
        "mmcollapse.pairs.load_pairs",
        "mmcollapse.randomness",
        "mmcollapse.loop.prompts",
        *(f"mmcollapse.loop.{n}" for n in ("_pool", "_make", "_pictures", "_captions", "_told", "take", "join")),
        "mmcollapse.metrics.truth.caption_errors",
        "mmcollapse.metrics.truth.damage",
        "mmcollapse.worlds.grammar.write",
        "mmcollapse.protocol.drifting",
        *(
            f"mmcollapse.models.generator.DiffusersGenerator.{n}"
            for n in ("make", "_made", "_called", "_denoise", "decode", "conditions", "_read_all")
        ),
        *(f"mmcollapse.models.generator.{n}" for n in GENERATORS),
        "mmcollapse.models.captioner._GumbelMax",
        *(f"mmcollapse.models.captioner.Captioner.{n}" for n in ("_made", "_noise", "write", "_next_token")),
        *(f"mmcollapse.models.captioner.Captioner.{n}" for n in ("make", "ends", "words", "pixels", "look")),
        *(f"mmcollapse.models.captioner.{n}" for n in families("captioner", "Captioner")),
        "mmcollapse.models.captioner.MANY_WORDS",
    ],
    "weights": [
        *NAMES,
        "mmcollapse.randomness",
        "mmcollapse.train.Recipe",
        "mmcollapse.train.batches",
        "mmcollapse.train.train",
        "mmcollapse.train._Step",
        *(f"mmcollapse.loop.{n}" for n in ("finetune", "_training_sets", "_subsample", "choose", "real_pairs")),
        *(f"mmcollapse.models.generator.{n}" for n in ("P_DROP", "denoising_loss", "noise_draws", "flow_draws")),
        "mmcollapse.models.generator.DiffusersGenerator",
        *(f"mmcollapse.models.generator.{n}" for n in GENERATORS),
        "mmcollapse.models.captioner.Captioner",
        *(f"mmcollapse.models.captioner.{n}" for n in families("captioner", "Captioner")),
        *(f"mmcollapse.models.{n}" for n in ("add_lora", "at_rest", "trainable")),
    ],
    "scores": [
        *NAMES,
        *(f"mmcollapse.metrics.{n}" for n in ("images", "captions", "alignment", "truth")),
        *(f"mmcollapse.measure.{n}" for n in ("_picture_truth", "_picture_features", "_picture_pixels")),
        *(f"mmcollapse.measure.{n}" for n in ("_caption_truth", "word_scores", "_perplexity", "_caption_features")),
        *(f"mmcollapse.measure.{n}" for n in ("alignment_scores", "_measure_world", "Instruments", "_Scored")),
        *(f"mmcollapse.measure.{n}" for n in ("measure_set", "_set_pictures")),
        "mmcollapse.worlds.grammar.parse",
        "mmcollapse.models.oracle.read",
        "mmcollapse.models.judge.Judge",
        "mmcollapse.models.language.Language",
        "mmcollapse.metrics.spaces",
    ],
}


def find(dotted: str) -> ast.AST:
    """The syntax tree of what `dotted` names."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):  # a module too can be named
        stem = SRC.joinpath(*parts[:cut])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                node = ast.parse(path.read_text())
                for name in parts[cut:]:
                    node = next((child for child in getattr(node, "body", []) if name in names_of(child)), None)
                    assert node is not None, f"{dotted}: there is no {name!r} in {path}. Was it renamed? Mend SOURCES"
                return node
    raise AssertionError(f"{dotted}: no such module under {SRC}")


def names_of(node: ast.AST) -> list[str]:
    """What a statement defines."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [getattr(node, "name", "")] + [target.id for target in targets if isinstance(target, ast.Name)]


def plain(node: object) -> object:
    """A tree without docstrings, positions and empty fields (which ast.dump prints as the version of Python has it)."""
    if isinstance(node, ast.AST):
        fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            fields["body"] = node.body[1:]
        return [type(node).__name__, {name: plain(value) for name, value in fields.items()}]
    return [plain(child) for child in node] if isinstance(node, list) else repr(node)


def digest(node: ast.AST) -> str:
    return hashlib.sha256(json.dumps(plain(node), sort_keys=True).encode()).hexdigest()


def now() -> dict:
    return {
        kind: {"version": KINDS[kind], "sources": {name: digest(find(name)) for name in names}}
        for kind, names in SOURCES.items()
    }


def changed(before: dict, after: dict) -> list[str]:
    """Dotted names that were added, removed or changed in one kind."""
    names = sorted({*before["sources"], *after["sources"]})
    return [name for name in names if before["sources"].get(name) != after["sources"].get(name)]


def test_every_kind_is_listed():
    assert set(SOURCES) == set(KINDS)


@pytest.mark.parametrize("kind", SOURCES)
def test_what_a_kind_means_did_not_change_without_a_new_version(kind):
    before, after = json.loads(FIXTURE.read_text())[kind], now()[kind]
    names = ", ".join(changed(before, after))
    assert not names or before["version"] != after["version"], (
        f"{names} changed, and the version of {kind!r} is still {after['version']}. If the same inputs now make "
        f"something else, bump KINDS[{kind!r}] in store.py. Then, or if they do not: python tests/test_semantics.py"
    )
    assert before == after, f"the version of {kind!r} was bumped: record it with: python tests/test_semantics.py"


def test_comments_docstrings_and_layout_do_not_count_but_code_does():
    def of(source):
        return digest(ast.parse(source).body[0])

    code = "def f(x):\n    return g(x, 0.1)\n"
    assert of(code) == of('def f(x):\n    """Says."""\n    # why\n    return g(\n        x, 0.1)\n')
    assert of(code) != of("def f(x):\n    return g(x, 0.2)\n")
    assert of(code) != of("def f(x):\n    return g(x, '0.1')\n")


if __name__ == "__main__":
    old = json.loads(FIXTURE.read_text()) if FIXTURE.exists() else {}
    for kind, entry in now().items():
        previous = old.get(kind, {"version": None, "sources": {}})
        same = "unchanged" if previous["version"] == entry["version"] else f"was {previous['version']}"
        print(
            f"{kind}: version {entry['version']} ({same}); changed: {', '.join(changed(previous, entry)) or 'nothing'}"
        )
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text(json.dumps(now(), indent=1, sort_keys=True) + "\n")
