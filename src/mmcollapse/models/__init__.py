"""Models behind two small interfaces, generator (text to image) and captioner (image to text).

Both offer: `make` (pictures from captions / captions from pictures), `encode` (real or synthetic pairs to training
tensors, once a set), `draw`, `loss` and `size` (what `train.train` needs), `network` (the module that is trained),
`trainable` (name -> parameter), `prepare` (full fine-tuning or LoRA), and `digest` (of the weights that were loaded).
Stable Diffusion and BLIP-2 differ only in here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError

from mmcollapse.errors import MMCollapseError
from mmcollapse.graphs import castable
from mmcollapse.randomness import seed_of

Opened = TypeVar("Opened")


def load(folder: str | Path, device: str = "cpu", dtype: str = "float32"):
    """The generator or captioner in a `save_pretrained` folder, told apart by what lies in it.

    dtype: of the computing ("float32" or "bfloat16"); weights are always held in float32.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        from mmcollapse.models.generator import DiffusersGenerator  # here, for it imports this module

        kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
        known = {adapter.pipeline: adapter for adapter in DiffusersGenerator.__subclasses__()}
        if kind not in known:
            raise MMCollapseError(
                f"{folder}: a pipeline of class {kind!r}; generators known are {', '.join(map(repr, known))}"
            )
        return known[kind](folder, device, dtype)
    if (folder / "config.json").is_file():
        from mmcollapse.models.captioner import Captioner

        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        known = {adapter.model_type: adapter for adapter in Captioner.__subclasses__()}
        if kind not in known:
            raise MMCollapseError(
                f"{folder}: a model of type {kind!r}; captioners known are {', '.join(map(repr, known))}"
            )
        return known[kind](folder, device, dtype)
    raise MMCollapseError(
        f"no model in {folder}: expected model_index.json (a diffusers pipeline) or config.json (a transformers model)"
    )


def folder_digest(folder: str | Path) -> str:
    """Content digest of a model folder: sha256 over its files' names and bytes, symbolic links followed."""
    folder, total = Path(folder), hashlib.sha256()
    if not folder.is_dir():
        raise MMCollapseError(f"no model in {folder}: there is no such folder")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    # shared components are linked folders, which rglob does not enter
    for link in sorted(p for p in folder.iterdir() if p.is_symlink() and p.is_dir()):
        files += sorted(p for p in link.resolve().rglob("*") if p.is_file() and p.name != "README.md")
    for path in files:
        total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while part := file.read(2**24):
                total.update(part)
    return total.hexdigest()


def opened(folder: str | Path, open_it: Callable[[], Opened]) -> Opened:
    """What `open_it` opens of a model's folder. MMCollapseError: something in it is missing, damaged or unknown."""
    try:
        return open_it()
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise MMCollapseError(f"the model in {folder} cannot be opened: {why}") from error


def at_rest(module: torch.nn.Module):
    """Hold in bfloat16 what autocast would cast to it at every use, and leave the rest in float32: the same numbers in
    half the memory, for weights that are not trained."""
    for p in castable(module):
        p.data = p.data.bfloat16()


def add_lora(module: torch.nn.Module, targets: list[str] | str, rank: int, without: str = ""):
    """Freeze `module` and inject LoRA layers (peft) of `rank` into its sub-modules named in `targets`: ends of names,
    or one pattern of whole names; not into those of the sub-module `without`. Their first weights are float32 and the
    same in every process, so that a resumed chain starts where it started. MMCollapseError: no sub-module has such a
    name."""
    from peft import LoraConfig, inject_adapter_in_model

    module.requires_grad_(False)
    never = rf"{re.escape(without)}\..*" if without else None
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, exclude_modules=never, init_lora_weights=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("lora", rank))
        try:
            inject_adapter_in_model(config, module)
        except ValueError as error:
            raise MMCollapseError(f"LoRA on {targets!r}: {' '.join(str(error).split())}") from error
    for p in trainable(module).values():
        p.data = p.data.float()


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter of everything that training may move."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
