"""CUDA graphs: a function's kernels are recorded once and then launched all at once.

Small models are launch-bound on a large GPU: it waits for Python, which issues its kernels one by one. Replayed from a
graph the same kernels run several times faster (`make bench`), and compute the same. So do the training steps of large
models, whose batches are small; to make pictures these have their blocks compiled instead. Elsewhere a function is just
called. Kernels that only cast weights to bfloat16, again at every use, are a third of all in a small model's training
step: there `lowered` casts all weights at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from weakref import WeakSet

import torch

KEPT = 12  # recordings a function keeps: each holds its inputs and outputs
LARGE = 10**8  # parameters from which on a model's kernels are so large that making pictures is worth compiling
# The parts of diffusers' denoisers and VAEs that take nearly all of the time. Their like come again and again, and are
# compiled once for each shape, in a fraction of the time that the whole takes. Only the outermost are compiled: a
# transformer with its norm and projections, but its blocks where they stand alone.
BLOCKS = ("Transformer2DModel", "BasicTransformerBlock", "JointTransformerBlock")
BLOCKS += ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_state = {"plain": False}
_sharing: WeakSet = WeakSet()  # graphs that work in one pool of memory, which lives as long as one of them


@contextmanager
def plain():
    """Within it nothing is recorded or replayed: the plain way to compute, which the other is compared with."""
    before, _state["plain"] = _state["plain"], True
    try:
        yield
    finally:
        _state["plain"] = before


def recording(device: torch.device) -> bool:
    """Whether what runs on `device` is to be recorded."""
    return device.type == "cuda" and not _state["plain"]


def large(network: torch.nn.Module | None) -> bool:
    """Whether `network` is one of the large."""
    return network is not None and sum(p.numel() for p in network.parameters()) >= LARGE


def compile_blocks(network: torch.nn.Module, backend: str = "inductor"):
    """Let torch.compile make kernels for every block of `network`, for each shape that it meets."""
    torch._dynamo.config.recompile_limit = 256  # shapes times sizes of batch
    torch._dynamo.config.accumulated_recompile_limit = 1024
    for module in network.children():
        if type(module).__name__ in BLOCKS:
            module.compile(dynamic=False, backend=backend)
        else:
            compile_blocks(module, backend)


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


def warm(function: Callable[[], object], times: int = 1):
    """Call what is to be recorded beforehand, on another stream: libraries set themselves up at the first call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(times):
                function()
    finally:
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()


def captured(function: Callable, pool=None) -> tuple:
    """(a graph of the kernels that function() launches, what it returned), which work in the memory of `pool`, that of
    all other recordings if not given."""
    graph, other = torch.cuda.CUDAGraph(), None if pool else next(iter(_sharing), None)
    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=other.pool() if other else pool, capture_error_mode="thread_local"):
            output = function()  # thread_local: NCCL's watchdog may call CUDA meanwhile
    except RuntimeError as error:  # to end a capture that broke may fail, too, and hide why it broke
        torch.cuda.set_stream(before)
        if isinstance(error.__context__, torch.OutOfMemoryError):
            raise error.__context__ from None
        raise
    if not pool:
        # Where this graph has its outputs, those recorded earlier may have their scratch: what is in the pool lasts
        # until anything else is replayed. All that must last longer is allocated outside of captures: inputs, weights,
        # what a warm-up makes (an optimiser's state). A step's gradients are read by its second graph, right after.
        _sharing.add(graph)
    return graph, output


class Recorded:
    """`function`, recorded once for every set of shapes and of other arguments that it is called with.

    function(inputs, **constants) -> tensor or tuple of tensors, where inputs are tensors by name; it must read nothing
    on the host. What comes back is overwritten by the next call of anything that this process recorded, training steps
    included, for all work in the same memory: copy it, or be done with it. The weights that it uses may change in place
    between calls."""

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
        warm(lambda: self.function(fixed, **constants))
        graph, output = captured(lambda: self.function(fixed, **constants))
        return graph, fixed, output
