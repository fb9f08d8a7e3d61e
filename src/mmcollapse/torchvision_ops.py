"""Lets torchvision be imported when its compiled part does not fit the torch beside it.

The torchvision wheel of the package index is built for CUDA. Beside a CPU-only torch its compiled part cannot load, and
then importing torchvision fails, and with it transformers, diffusers, peft and clean-fid: torchvision describes the
shapes of two of its operators, which without the compiled part do not exist. Nothing in this project calls them, so
declaring them is enough. Where the compiled part loads, as on a GPU machine, nothing is declared.

`register` is an entry point of the group `torch.backends` (pyproject.toml): torch calls it at the end of its own
import, hence before torchvision in whatever order a program imports its libraries.
"""

import importlib.util
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_libraries: list[torch.library.Library] = []  # an operator is forgotten again when the library that declared it is


def register() -> None:
    """Declare torchvision's operators if torchvision is installed and cannot declare them itself.

    Raises nothing: an error here would make `import torch` fail.
    """
    spec = importlib.util.find_spec("torchvision")  # does not import it
    if spec is None or not spec.submodule_search_locations or _loads(Path(spec.submodule_search_locations[0])):
        return
    missing = [schema for name, schema in SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        _libraries.append(library)


def _loads(folder: Path) -> bool:
    """Whether the compiled part in torchvision's `folder` loads into this torch, tried as torchvision itself does."""
    compiled = next(folder.glob("_C*.so"), None)
    if compiled is None:
        return False
    try:
        torch.ops.load_library(str(compiled))
    except OSError:
        return False
    return True
