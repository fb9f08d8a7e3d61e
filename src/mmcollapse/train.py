"""The one training loop: chains fine-tune with it, `make pretrain` builds the base models with it.

fp32 master weights and optimiser state, compute in fp32 or bf16 (autocast), AdamW, linear warm-up, gradient clipping.
On a GPU the whole step is recorded in CUDA graphs (see graphs): it is launch-bound there, and so it is several times
faster (`make bench`). The arithmetic is the same. A step of a large model may be computed in parts, whose gradients add
up to the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from mmcollapse.errors import MMCollapseError, TrainingDiverged
from mmcollapse.graphs import captured, castable, large, lowered, recording, warm
from mmcollapse.memory import AtOnce
from mmcollapse.parallel import processes, share
from mmcollapse.randomness import generator

SAVED = 1000  # steps between two checkpoints


@dataclass(frozen=True)
class Recipe:
    """steps: optimiser steps; batch: pairs a step; lr: peak learning rate of AdamW; warmup: steps of linear warm-up;
    decay: "constant" (chains: a generation must not depend on how many follow) or "cosine" (pretraining);
    method: "full" or "lora" (peft, `rank`); dtype: "float32" or "bfloat16" for the compute."""

    steps: int
    batch: int
    lr: float
    warmup: int = 10
    decay: str = "constant"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)  # 0.99: runs of tens of steps are too short for the usual 0.999
    clip: float = 1.0
    method: str = "full"
    rank: int = 8
    dtype: str = "float32"

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * warm * (0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay == "cosine" else 1.0)


def batches(n: int, batch: int, steps: int, key: tuple) -> Iterator[torch.Tensor]:
    """`steps` index tensors (batch,) that run through random permutations of range(n): every pair is seen equally
    often, to within one. The last pairs of one permutation and the first of the next may share a batch."""
    g, pool = generator("batches", *key), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(pool) < batch:
            pool = torch.cat([pool, torch.randperm(n, generator=g)])
        yield pool[:batch]
        pool = pool[batch:]


def train(
    loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    parameters: list[torch.nn.Parameter],
    data: dict[str, torch.Tensor],
    draw: Callable[[int, torch.Generator], dict[str, torch.Tensor]],
    recipe: Recipe,
    key: tuple,
    *,
    average: list[torch.Tensor] | None = None,
    average_decay: float = 0.999,
    gpu_noise: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    every: int = 20,
    checkpoint: Path | None = None,
    recorded: dict | None = None,
    network: torch.nn.Module | None = None,
    at_once: AtOnce | None = None,
    size: Callable[[dict[str, torch.Tensor]], torch.Tensor | int] | None = None,
) -> list[float]:
    """Train `parameters` in place and return the loss of every `every`-th step.

    loss: maps a batch (rows of `data` plus what `draw` gives) to a scalar.
    data: tensors with one first dimension, all on the device that is trained on.
    draw: (n, generator) -> the step's random inputs, such as noise and timesteps, on the generator's device.
    key: names the run; batches and random inputs are a function of it and of the step alone.
    average: tensors like `parameters` that follow them as an exponential moving average, begun anew after a quarter
        of the steps so that nothing of the start is left in it.
    gpu_noise: draw on the GPU (pretraining, where speed counts more than equality across devices).
    on_step: called every `every` steps with (steps done, loss).
    checkpoint: a file to continue from where it exists, written every SAVED steps and removed at the end (pretraining;
        a chain's generation is short enough to start again).
    recorded: steps recorded on a GPU by earlier calls with these very `loss` and `parameters`, to which this one's is
        added: recording takes as long as tens of steps, those of a small model. Of a large one nothing is added, for
        its memory is needed elsewhere, and recording takes as long as four steps.
    network: where the parameters are at work: of a small one weights are cast to bfloat16 once a recorded step.
    at_once: how many pairs of a batch are computed at once, all if not given; a batch has the parts it takes.
    size: of a batch, what its loss is a mean over, by which its parts are weighted; pairs if not given.
    Raises TrainingDiverged when a loss or weight is not finite.
    """
    device = next(iter(data.values())).device
    n = len(next(iter(data.values())))
    graphs = recording(device)
    at_once = at_once or AtOnce(recipe.batch, "the pairs of a step", "train_batch")
    stepper = None

    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() and processes() == 1 else 0
    if torch.distributed.is_initialized() and processes() == 1:
        key = (*key, rank)  # pretraining: every process has its own batches and noise
    if recipe.batch < processes():
        raise MMCollapseError(f"setting batch={recipe.batch}: {processes()} processes share it, so it must be as many")
    noise_key = generator("noise", *key)
    if gpu_noise and device.type == "cuda":
        noise_key = torch.Generator(device).manual_seed(noise_key.initial_seed())

    done, log = 0, []
    saved = torch.load(checkpoint, map_location=device) if checkpoint and checkpoint.is_file() else None
    if saved:
        if len(saved["noise"]) != (now := len(_of_all(None))):
            raise MMCollapseError(
                f"{checkpoint} is of {len(saved['noise'])} processes, now there are {now}: go on with as many, or "
                "remove it to begin anew"
            )
        done, log = saved["step"], saved["log"]
        noise_key.set_state(saved["noise"][rank].cpu())
    for i, index, draws in _fetched(batches(n, recipe.batch, recipe.steps, key), draw, noise_key, device, done, every):
        if stepper is None:
            shapes = tuple((k, t.shape[1:], t.dtype) for k, t in data.items())
            kind = (recipe.batch, recipe.betas, recipe.weight_decay, recipe.clip, recipe.dtype, shapes)
            kept = {} if recorded is None or large(network) else recorded
            stepper = kept.get((at_once.n, *kind)) if graphs else None
            if stepper is None:
                ways = (average, average_decay, at_once, size, graphs, network)
                stepper = _Step(loss, parameters, recipe, device, *ways)
                if graphs:
                    at_once(partial(stepper.record, {k: t.index_select(0, index) for k, t in data.items()} | draws))
                    kept[at_once.n, *kind] = stepper
            stepper.begin()
            if saved:
                stepper.restore(saved)
        output = stepper(data, index, draws, recipe.lr_at(i))
        if average is not None and i + 1 == recipe.steps // 4:
            torch._foreach_copy_(average, [p.detach() for p in parameters])
        if (i + 1) % every == 0 or i + 1 == recipe.steps:
            value = float(output)
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"the loss is {value} at step {i + 1} of {recipe.steps} (learning rate {recipe.lr:g}, "
                    f"{recipe.dtype}): lower the learning rate"
                )
            log.append(value)
            if on_step:
                on_step(i + 1, value)
        if checkpoint and (i + 1) % SAVED == 0 and i + 1 < recipe.steps:
            state = {"step": i + 1, "log": log, "noise": _of_all(noise_key.get_state()), "average": average}
            if not rank:  # the processes have the same weights
                torch.save(state | stepper.state(), checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise TrainingDiverged(f"a weight is not finite after {recipe.steps} steps (learning rate {recipe.lr:g})")
    if checkpoint and not rank:
        checkpoint.unlink(missing_ok=True)
    return log


def _of_all(value) -> list:
    """The `value` of each process of a pretraining, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _fetched(steps: Iterator[torch.Tensor], draw, noise_key, device, done: int, every: int) -> Iterator[tuple]:
    """(step, its rows, its random inputs) of the steps after `done`, on the device. Some steps travel at once: to copy
    to a GPU is to wait until it has done what it was given."""
    waiting: list[torch.Tensor] = []
    for i, index in enumerate(steps):
        if i < done:
            continue
        waiting.append(index)
        if (i + 1) % every and (i + 1) % SAVED:  # a state is saved only where nothing was drawn ahead
            continue
        yield from _sent(i + 1 - len(waiting), waiting, draw, noise_key, device)
        waiting = []
    yield from _sent(i + 1 - len(waiting), waiting, draw, noise_key, device)


def _sent(first: int, indices: list[torch.Tensor], draw, noise_key, device) -> Iterator[tuple]:
    if not indices:
        return
    drawn = [draw(len(index), noise_key) for index in indices]
    index = torch.stack(indices).to(device)
    sent = {name: torch.stack([d[name] for d in drawn]).to(device) for name in drawn[0]}
    for k in range(len(indices)):
        yield first + k, index[k], {name: t[k] for name, t in sent.items()}


class _Step:
    """One optimiser step: loss, gradients, their exchange between processes, clipping, AdamW. Called, it takes the rows
    `index` of the data; recorded, it does so by two CUDA graphs with the exchange of gradients between them."""

    def __init__(self, loss, parameters, recipe: Recipe, device, average, decay, at_once, size, graphs, network):
        self.loss, self.parameters, self.recipe, self.device = loss, parameters, recipe, device
        self.average, self.average_decay = average, decay
        self.at_once, self.size = at_once, size or _pairs
        self.graphs, self.inputs, self.output, self.gradients = (), {}, None, []
        self.large, low = large(network), graphs and recipe.dtype == "bfloat16"
        self.low = castable(network) if low and network is not None and not self.large else []
        self.cached = not graphs  # a graph would not see what autocast keeps
        self.rate = torch.tensor(recipe.lr, device=device)
        self.optimiser = torch.optim.AdamW(
            parameters,
            lr=self.rate if device.type == "cuda" else recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )

    def __call__(self, data, index, draws, lr: float) -> torch.Tensor:
        """The loss, which the next call of anything recorded may overwrite."""
        if self.device.type == "cuda":
            self.rate.fill_(lr)
        else:
            self.optimiser.param_groups[0]["lr"] = lr
        if not self.graphs:
            batch = {k: t.index_select(0, index) for k, t in data.items()} | draws
            return self.at_once(lambda n: self._attempt(batch, n))
        for name, value in data.items():
            torch.index_select(value, 0, index, out=self.inputs[name])
        for name, value in draws.items():
            self.inputs[name].copy_(value)
        self.graphs[0].replay()
        _share(self.gradients)
        self.graphs[1].replay()
        return self.output

    def _attempt(self, batch, n: int) -> torch.Tensor:
        try:
            return self._step(batch, n)
        except torch.OutOfMemoryError:
            self.optimiser.zero_grad()
            raise

    def _step(self, batch, n: int) -> torch.Tensor:
        value = self._backward(batch, n)
        # the loss, too, so that all see it break at the same step
        _share([value, *(p.grad for p in self.parameters if p.grad is not None)])
        self._update()
        return value

    def _backward(self, batch, n: int) -> torch.Tensor:
        """The loss of a batch, of which n pairs are computed at once; its gradients stand with the parameters. Of
        processes that train together each computes its share, as many times too large as their mean is too small."""
        low = self.low if n >= _pairs(batch) else []  # of parts the gradients add up in float32
        if processes() == 1 and n >= _pairs(batch):
            return self._gradients(batch, low)
        mine, all_ = share(_pairs(batch)), self.size(batch) / processes()
        rows = zip(*(t[mine].split(n) for t in batch.values()), strict=True)
        parts = [dict(zip(batch, part, strict=True)) for part in rows]
        return sum(self._gradients(part, low, self.size(part) / all_) for part in parts)

    def _gradients(self, batch, low: list, share: torch.Tensor | float | None = None) -> torch.Tensor:
        half = self.recipe.dtype == "bfloat16"
        # blocks that are compiled to make pictures are not worth compiling again for gradients
        with lowered(low), torch.compiler.set_stance("force_eager") if self.large else nullcontext():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=self.cached):
                value = self.loss(batch)
                value = value if share is None else value * share
            value.backward()
        return value.detach()

    def _update(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad()  # none is there to be added to: that would be a kernel for each
        if self.average is not None:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.average_decay)

    def begin(self):
        """Forget what earlier steps left in the optimiser."""
        for state in self.optimiser.state.values():
            for value in state.values():
                value.zero_()
        for p in self.parameters:
            p.grad = None

    def record(self, batch, n: int):
        """Record the step for batches like this one, of which n pairs are computed at once. The warm-up that recording
        needs leaves no trace: weights and averages are put back after it, and the optimiser begins anew. Nor does
        anything else where memory runs out."""
        self.inputs = {name: t.clone() for name, t in batch.items()}
        try:
            self._warm(n)
            # the memory of a large model's step goes back when it is no longer used, that of all others is shared
            pool = torch.cuda.graph_pool_handle() if self.large else None
            first, self.output = captured(lambda: self._backward(self.inputs, n), pool)
            self.gradients = [self.output, *(p.grad for p in self.parameters if p.grad is not None)]
            second, _ = captured(self._update, pool)
        except torch.OutOfMemoryError:
            self.inputs, self.output, self.gradients = {}, None, []
            self.optimiser.zero_grad()
            self.optimiser.state.clear()
            raise
        self.graphs = (first, second)

    def _warm(self, n: int):
        values = [*(p.detach() for p in self.parameters), *(self.average or [])]
        before = [value.clone() for value in values]

        def step():  # its gradients are not exchanged: another process may be short of memory, and begin again
            self._backward(self.inputs, n)
            self._update()

        try:
            warm(step, 3)
        finally:
            torch._foreach_copy_(values, before)

    def state(self) -> dict:
        optimiser = [{k: v.clone() for k, v in self.optimiser.state[p].items()} for p in self.parameters]
        return {"parameters": [p.detach().clone() for p in self.parameters], "optimiser": optimiser}

    @torch.no_grad()
    def restore(self, saved: dict):
        for p, value, state in zip(self.parameters, saved["parameters"], saved["optimiser"], strict=True):
            p.copy_(value)
            if p in self.optimiser.state:  # of a recorded step, whose tensors stay where they are
                for name, tensor in state.items():
                    self.optimiser.state[p][name].copy_(tensor)
            else:
                self.optimiser.state[p] = {name: tensor.clone() for name, tensor in state.items()}
        for a, value in zip(self.average or [], saved["average"] or [], strict=True):
            a.copy_(value)


def _pairs(batch: dict[str, torch.Tensor]) -> int:
    return len(next(iter(batch.values())))


def _share(gradients: list[torch.Tensor]):
    """Average gradients over the processes of `torch.distributed` (several GPUs)."""
    if not torch.distributed.is_initialized():
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    shares = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(shares, gradients, strict=True)])
