"""What work takes, as it was measured: `data/rates.json`. `make plan` reads it; who measures adds to it.

A rate says what was measured on which device, and where the figure comes from. What nobody has measured has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mmcollapse.disk import write_whole
from mmcollapse.errors import MMCollapseError
from mmcollapse.settings import ROOT

RATES = ROOT / "data" / "rates.json"
WORK = {  # kind of work: its unit, of which there are so many
    "denoise": "a picture and pass of the denoiser (with guidance two passes a step)",
    "decode": "a picture, from latents to pixels",
    "caption": "a caption and beam",
    "train": "a pair and optimiser step, forward and backward",
    "look": "a picture and feature space",
}


@dataclass(frozen=True)
class Rate:
    """model: its name in settings, or that of a feature space; work: of WORK; device: as torch names it, or "cpu"; ms:
    milliseconds a unit; batch: units at once, 0: several, how many is not known; how: size of pictures, dtype,
    compiled or not; source: the command, machine and date."""

    model: str
    work: str
    device: str
    ms: float
    batch: int
    how: str
    source: str

    def __post_init__(self):
        if self.work not in WORK:
            raise MMCollapseError(f"a rate of work={self.work!r}: allowed are {', '.join(WORK)}")
        if not (math.isfinite(self.ms) and self.ms > 0):
            raise MMCollapseError(f"a rate of ms={self.ms}: allowed is any above 0")
        if self.batch < 0 or not all((self.model, self.device, self.how, self.source)):
            raise MMCollapseError(f"a rate says its model, device, how and source, and a batch of 0 or more: {self}")


def read_rates(path: Path = RATES) -> list[Rate]:
    """All rates. MMCollapseError: the file is not there or damaged."""
    try:
        return [Rate(**told) for told in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise MMCollapseError(f"{path} is damaged: {error}") from error


def add_rates(rates: Iterable[Rate], path: Path = RATES) -> None:
    """Write rates into the table; one of the same model, work, device, batch and `how` takes the place of the old."""
    known = {_key(rate): rate for rate in (read_rates(path) if path.is_file() else [])}
    known |= {_key(rate): rate for rate in rates}
    lines = ",\n".join(json.dumps(asdict(known[key])) for key in sorted(known))
    write_whole(path, f"[\n{lines}\n]\n".encode())  # a line each, so that changes can be read


def best_rate(rates: Iterable[Rate], model: str, work: str, device: str, batch: int) -> Rate | None:
    """The fastest of `work` with at most `batch` units at once; if all were measured with more, that with the fewest;
    None if none was measured."""
    found = [r for r in rates if (r.model, r.work, r.device) == (model, work, device)]
    fitting = [r for r in found if r.batch <= batch and (r.batch or batch > 1)]
    return min(fitting, key=lambda r: r.ms) if fitting else min(found, key=lambda r: r.batch or math.inf, default=None)


def _key(rate: Rate) -> tuple:
    return rate.model, rate.work, rate.device, rate.batch, rate.how
