"""CUDA graphs: a function's kernels are recorded once and then launched all at once.

Small models are launch-bound on a large GPU: it waits for Python, which issues its kernels one by one. Replayed from a
graph the same kernels run several times faster (`make bench`), and compute the same. Elsewhere a function is just
called. Kernels that only cast weights to bfloat16, again at every use, are a third of all in a training step: there
`lowered` casts all weights at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager

import torch

KEPT = 12  # recordings a function keeps: each holds the memory that its kernels work in
LARGE = 10**8  # parameters from which on a model keeps a GPU busy by itself: there compiling pays, not recording
# The parts of diffusers' denoisers that take nearly all of the time. Their like come again and again, and are compiled
# once for each shape, in a fraction of the time that the whole takes.
BLOCKS = ("BasicTransformerBlock", "JointTransformerBlock", "ResnetBlock2D")
_state = {"plain": False}


@contextmanager
def plain():
    """Within it nothing is recorded or replayed: the plain way to compute, which the other is compared with."""
    before, _state["plain"] = _state["plain"], True
    try:
        yield
    finally:
        _state["plain"] = before


def recording(device: torch.device, network: torch.nn.Module | None = None) -> bool:
    """Whether what runs on `device` is to be recorded; of a large `network` nothing is."""
    return device.type == "cuda" and not _state["plain"] and not large(network)


def large(network: torch.nn.Module | None) -> bool:
    """Whether a GPU is busy with `network` alone."""
    return network is not None and sum(p.numel() for p in network.parameters()) >= LARGE


def compile_blocks(denoiser: torch.nn.Module, backend: str = "inductor"):
    """Let torch.compile make kernels for every block of `denoiser`, for each shape that it meets."""
    torch._dynamo.config.recompile_limit = 256  # shapes times sizes of batch, with and without gradients
    torch._dynamo.config.accumulated_recompile_limit = 1024
    for module in denoiser.modules():
        if type(module).__name__ in BLOCKS:
            module.compile(dynamic=False, backend=backend)


def castable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that autocast casts wherever they are used: those of linear and convolutional layers, unless
    another kind of layer has them, too (words are looked up in the weights that also predict them)."""
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    found, others = {}, set()
    for layer in module.modules():
        for p in layer.parameters(recurse=False):
            if isinstance(layer, kinds):
                found[id(p)] = p
            else:
                others.add(id(p))
    return [p for name, p in found.items() if name not in others]


@contextmanager
def lowered(parameters: list[torch.nn.Parameter]):
    """Within it `parameters` are bfloat16: what autocast makes of them at each use, made once. Gradients that come up
    within are cast to the dtype of the parameters at the end, as those of a cast are."""
    whole = [p.data for p in parameters]
    low = [torch.empty_like(data, dtype=torch.bfloat16) for data in whole]
    if low:
        torch._foreach_copy_(low, whole)
    for p, data in zip(parameters, low, strict=True):
        p.data = data
    try:
        yield
    finally:
        gradients = [p.grad for p in parameters]
        for p, data in zip(parameters, whole, strict=True):
            p.grad, p.data = None, data
        there = [(p, g, torch.empty_like(p)) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        if there:
            torch._foreach_copy_([to for _, _, to in there], [g for _, g, _ in there])
        for p, _, to in there:
            p.grad = to


class Recorded:
    """`function`, recorded once for every set of shapes and of other arguments that it is called with.

    function(inputs, **constants) -> tensor or tuple of tensors, where inputs are tensors by name; it must read nothing
    on the host. What comes back is overwritten by the next call: copy it, or be done with it. The weights that it uses
    may change in place between calls."""

    def __init__(self, function: Callable):
        self.function = function
        self.recordings: OrderedDict[tuple, tuple] = OrderedDict()

    @torch.no_grad()
    def __call__(self, inputs: dict[str, torch.Tensor], **constants):
        if not recording(next(iter(inputs.values())).device):
            return self.function(inputs, **constants)
        key = (*((k, t.shape, t.dtype) for k, t in inputs.items()), *sorted(constants.items()))
        if key not in self.recordings:
            while len(self.recordings) >= KEPT:
                self.recordings.popitem(last=False)
            self.recordings[key] = self._record(inputs, constants)
        self.recordings.move_to_end(key)
        graph, fixed, output = self.recordings[key]
        for name, value in inputs.items():
            fixed[name].copy_(value)
        graph.replay()
        return output

    def _record(self, inputs, constants):
        fixed = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.function(fixed, **constants)  # libraries set themselves up at the first call
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self.function(fixed, **constants)
        return graph, fixed, output
