"""As many at once as memory holds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from mmcollapse.errors import MMCollapseError

Result = TypeVar("Result")


class Fitting:
    """How many things of each kind an adapter computes at once, remembered from call to call."""

    def __init__(self):
        self._known: dict[tuple, AtOnce] = {}

    def __call__(self, what: str, n: int) -> AtOnce:
        """n of them, or what this GPU was found to hold when n were asked for before."""
        return self._known.setdefault((what, n), AtOnce(n, what, "compute_batch"))


class AtOnce:
    """A number of things that are computed at once, which is halved when the GPU's memory does not hold them.

    n: how many to begin with; what: what they are, for people; setting: where a person says how many."""

    def __init__(self, n: int, what: str, setting: str):
        self.n, self.what, self.setting = n, what, setting

    def __call__(self, work: Callable[[int], Result]) -> Result:
        """work(n), again with half of n as long as it runs out of memory. It must leave nothing half done behind.
        MMCollapseError: there is no room for one."""
        while True:
            try:
                return work(self.n)
            except torch.OutOfMemoryError as error:
                short = str(error).partition(". ")[0]
            # outside of `except`, where the error no longer holds on to what was computed
            if self.n == 1:
                raise MMCollapseError(
                    f"the GPU's memory does not hold one of {self.what} ({short}): a GPU with more, a smaller model, "
                    "or with LoRA and checkpointing='yes' less to hold"
                )
            gc.collect()
            torch.cuda.empty_cache()
            self.n = -(-self.n // 2)
            print(
                f"out of memory: from here on {self.n} of {self.what} at once (setting {self.setting})",
                file=sys.stderr,
                flush=True,
            )
