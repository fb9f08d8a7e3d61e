"""What the work of a plan takes: hours by measured rates, memory and disk by what there is to hold and to keep.

Where nothing was measured, nothing is estimated: that is said instead, and the hours are those of the rest alone.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from mmcollapse.disk import free
from mmcollapse.fetch import gigabytes
from mmcollapse.rates import Rate, best_rate
from mmcollapse.settings import Settings
from mmcollapse.sources import needed, read_sources

FLOAT = 4  # bytes: weights are held, trained and stored in float32
BESIDE = 3 * FLOAT  # bytes of a trained parameter beside its own: gradient, two moments of AdamW
HALF = 2  # bytes of one in bfloat16: cast for the computing, or, beside LoRA, held so
PIXEL = 2  # bytes of a pixel of a photo as PNG, about: of scenes a tenth
GENERAL = 0.9  # of a GPU's memory: the rest is the driver's and the allocator's


class Work:
    """Counts what there is to compute and to keep, as a plan's stand-in for a store is asked for it.

    amounts: units by (model, kind of work), as in rates.WORK; steps: optimiser steps; peak: most bytes that lie in the
    store at once, where chains run one after the other."""

    def __init__(self):
        self.amounts: Counter[tuple[str, str]] = Counter()
        self.steps = self.peak = 0
        self.settings: Settings | None = None  # of the experiment that is counted
        self._base: dict[str, str] = {}  # base model of fine-tuned weights, by digest
        self._kept: dict[str, int] = {}  # bytes in the store, by name
        self._now = 0
        self._sizes: dict[tuple, int] = {}  # bytes of fine-tuned weights, by what they depend on

    def train(self, name: str, inputs: Mapping, new: bool):
        """Weights are asked for."""
        model = self._base[name] = self._of(inputs["parent"])
        if new:
            recipe = inputs["recipe"]
            self.steps += recipe["steps"]
            self.amounts[model, "train"] += recipe["steps"] * recipe["batch"]
            key = (model, self.settings.method, self.settings.rank)
            if key not in self._sizes:
                self._sizes[key] = FLOAT * (parameters(self.settings, model) or (0, 0))[1]
            self._keep(name, self._sizes[key])

    def make(self, inputs: Mapping, n: float):
        """`n` new samples, of a model or of several in turn."""
        makers = inputs["makers"] if isinstance(inputs["makers"], list) else [inputs["makers"]]
        for digest in makers:
            for kind, units in _units(inputs.get("decoding") or {}).items():
                self.amounts[self._of(digest), kind] += n * units / len(makers)

    def keep_pairs(self, name: str, n: int):
        """`n` new pairs are written."""
        self._keep(name, n * PIXEL * self.settings.image_size**2)

    def look(self, n: int):
        """`n` pictures are looked at, in every feature space."""
        for space in self.settings.spaces.split(","):
            self.amounts[space.strip(), "look"] += n

    def prune(self, name: str):
        self._now -= self._kept.pop(name, 0)

    def _keep(self, name: str, size: int):
        self._kept[name] = size
        self._now += size
        self.peak = max(self.peak, self._now)

    def _of(self, digest: str) -> str:
        return self._base.get(digest, digest)


def _units(decoding: Mapping) -> dict[str, int]:
    """Units of work of a sample; an oracle's captions have no decoding, and take none."""
    if "guidance" in decoding:
        return {"denoise": decoding["steps"] * (2 if decoding["guidance"] > 1 else 1), "decode": 1}
    return {"caption": decoding["beams"]} if "beams" in decoding else {}


def parameters(settings: Settings, model: str) -> tuple[int, int] | None:
    """(parameters, those that training moves) of a model: of sources.toml, or else of the files that are here, where
    all of a captioner counts as trained; None if it is neither known nor here."""
    known = read_sources()["models"].get(model.partition("@")[0], {})
    if "parameters" in known:
        lora = settings.method == "lora"
        return known["parameters"], settings.rank * known["lora"] if lora else known["trained"]
    folder = settings.model_folder(model)
    sizes = {path: _stored(path) for path in sorted(folder.rglob("*.safetensors"))} if folder.is_dir() else {}
    for link in (path for path in folder.iterdir() if path.is_symlink()) if sizes else ():  # which rglob does not enter
        sizes |= {path: _stored(path) for path in link.resolve().rglob("*.safetensors")}
    part = sum(n for path, n in sizes.items() if path.parent.name in ("unet", "transformer"))
    return (sum(sizes.values()), part or sum(sizes.values())) if sizes else None


def _stored(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with safe_open(path, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())


def memory(settings: Settings, models: Iterable[str]) -> tuple[int, list[str]]:
    """(bytes, models of unknown size): what the models that one run opens, and their training, hold at once. Not in it
    are activations, which nobody has measured."""
    total, largest, unknown, low = 0, 0, [], settings.dtype == "bfloat16"
    for model in models:
        if (found := parameters(settings, model)) is None:
            unknown.append(model)
            continue
        held, trained = found
        total += FLOAT * held + BESIDE * trained
        if settings.method == "lora":  # beside which the part that full fine-tuning would move is at rest
            part = parameters(replace(settings, method="full"), model)[1]
            total += FLOAT * trained - (FLOAT - HALF) * part * low
        else:
            largest = max(largest, trained)
    instruments = (s.bytes for s in needed([settings]) if s.place.startswith("models/instruments/"))
    return total + HALF * largest * low + sum(instruments), unknown


def hours(
    amounts: Mapping[tuple[str, str], int], rates: Sequence[Rate], device: str, batch: int
) -> tuple[list[str], float, int]:
    """(lines, hours, how many kinds of work were never measured) of what is to be computed on a device. amounts: those
    of a Work."""
    head = f"{'to compute':<52}{'units':>16}{'ms a unit':>12}{'hours':>10}  measured"
    lines, total, unknown = [head], 0.0, 0
    for (model, kind), n in sorted(amounts.items()):
        rate, units = best_rate(rates, model, kind, device, batch), f"{n:,.0f}"
        if rate is None:
            unknown += 1
            lines.append(f"{f'{model}: {kind}':<52}{units:>16}{'':>22}  not measured")
        else:
            spent = n * rate.ms / 3.6e6
            total += spent
            lines.append(f"{f'{model}: {kind}':<52}{units:>16}{rate.ms:>12.3g}{spent:>10.2f}  {rate.how}")
    return lines, total, unknown


def rough(hours: float) -> str:
    """Hours for people, with two digits at least."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def device_of(settings: Settings, rates: Sequence[Rate], models: Iterable[str]) -> str:
    """The device whose rates a plan takes: "cpu", or the GPU that is here, or, where there is none or none of these
    models was measured on it, the one on which most were. models: by name in rates."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if settings.device == "cpu" or (settings.device == "auto" and not name):
        return "cpu"
    known = set(models)
    counts = Counter(r.device for r in rates if r.model in known and r.device != "cpu")
    here = [device for device in counts if name.startswith(device)]
    return max(here, key=len) if here else max(counts, key=counts.get) if counts else name or "GPU"


def gpu_memory() -> int:
    """Bytes of this machine's GPU; 0 if torch sees none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def warnings(settings: Settings, asked: int, peak: int) -> list[str]:
    """What will not fit here. asked: bytes of GPU memory; peak: bytes of disk."""
    out, room = [], free(settings.runs_folder) * 2**20
    if peak > room:
        out.append(f"the store would take {gigabytes(peak)}, and {settings.runs_folder} has {gigabytes(room)} free")
    if settings.device != "cpu" and (there := gpu_memory()) and asked > GENERAL * there:
        out.append(f"the models and their training hold {gigabytes(asked)}, and the GPU has {gigabytes(there)}")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = max(settings.prompts * settings.noises, settings.captions, settings.pairs)
    asked = 3 * 3 * most * settings.image_size**2  # the real ones, those made, and a copy on its way
    if asked > ram:
        out.append(f"pictures of one measurement take {gigabytes(asked)} of memory, and there are {gigabytes(ram)}")
    return out
