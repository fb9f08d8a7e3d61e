"""The one training loop: chains fine-tune with it, `make pretrain` builds the base models with it.

fp32 master weights and optimiser state, compute in fp32 or bf16 (autocast), AdamW, linear warm-up, gradient clipping.
On a GPU the whole step is captured in one CUDA graph: nano models are launch-bound there, and the graph makes them
several times faster (`make bench`). The arithmetic is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mmcollapse.errors import TrainingDiverged
from mmcollapse.randomness import generator


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
    checkpoint: a file to continue from where it exists, written every 1,000 steps and removed at the end (pretraining;
        a chain's generation is short enough to start again).
    Raises TrainingDiverged when a loss or weight is not finite.
    """
    device = next(iter(data.values())).device
    n = len(next(iter(data.values())))
    on_gpu = device.type == "cuda"
    rate = torch.tensor(recipe.lr, device=device)
    optimiser = torch.optim.AdamW(
        parameters,
        lr=rate if on_gpu else recipe.lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
        capturable=on_gpu,
    )

    def backward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16", cache_enabled=not on_gpu):
            value = loss(batch)
        value.backward()
        return value.detach()

    def update():
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip, foreach=True)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
        if average is not None:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - average_decay)

    def step(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        value = backward(batch)
        _share_gradients(parameters)
        update()
        return value

    if torch.distributed.is_initialized():
        key = (*key, torch.distributed.get_rank())  # every process has its own batches and noise
    noise_key = generator("noise", *key)
    if gpu_noise and on_gpu:
        noise_key = torch.Generator(device).manual_seed(noise_key.initial_seed())

    def fetch(index: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = {name: t.index_select(0, index.to(device)) for name, t in data.items()}
        return rows | {name: t.to(device, non_blocking=True) for name, t in draw(len(index), noise_key).items()}

    replay, inputs, output, done = None, None, None, 0
    log: list[float] = []
    saved = torch.load(checkpoint, map_location=device) if checkpoint and checkpoint.is_file() else None
    if saved:
        done, log = saved["step"], saved["log"]
        noise_key.set_state(saved["noise"].cpu())
    for i, index in enumerate(batches(n, recipe.batch, recipe.steps, key)):
        if i < done:
            continue
        batch = fetch(index)
        if on_gpu:
            rate.fill_(recipe.lr_at(i))
            if replay is None:
                inputs = {name: t.clone() for name, t in batch.items()}
                replay, output = _capture(step, backward, update, inputs, parameters, optimiser, average)
                if saved:
                    _restore(saved, parameters, optimiser, average)
            for name, t in batch.items():
                inputs[name].copy_(t)
            replay()
        else:
            if saved and i == done:
                step(batch)  # makes the optimiser's state, which is then overwritten
                _restore(saved, parameters, optimiser, average)
            optimiser.param_groups[0]["lr"] = recipe.lr_at(i)
            output = step(batch)
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
        if checkpoint and (i + 1) % 1000 == 0 and i + 1 < recipe.steps:
            state = [{k: v.clone() for k, v in optimiser.state[p].items()} for p in parameters]
            torch.save(
                {
                    "step": i + 1,
                    "log": log,
                    "noise": noise_key.get_state(),
                    "parameters": [p.detach().clone() for p in parameters],
                    "average": average,
                    "optimiser": state,
                },
                checkpoint.with_suffix(".part"),
            )
            checkpoint.with_suffix(".part").replace(checkpoint)
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise TrainingDiverged(f"a weight is not finite after {recipe.steps} steps (learning rate {recipe.lr:g})")
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return log


@torch.no_grad()
def _restore(saved: dict, parameters, optimiser, average):
    for p, value, state in zip(parameters, saved["parameters"], saved["optimiser"], strict=True):
        p.copy_(value)
        for name, tensor in state.items():
            optimiser.state[p][name].copy_(tensor)
    for a, value in zip(average or [], saved["average"] or [], strict=True):
        a.copy_(value)


def _share_gradients(parameters):
    """Average the gradients over the processes of `torch.distributed` (pretraining on several GPUs)."""
    if not torch.distributed.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    shares = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(shares, gradients, strict=True)])


def _capture(step, backward, update, inputs, parameters, optimiser, average):
    """Record one optimiser step over the static tensors `inputs` as two CUDA graphs, with the exchange of gradients
    between them; returns (replay, loss tensor). The warm-up that capturing needs must leave no trace, so weights,
    averages and optimiser state are put back after it."""
    before = [p.detach().clone() for p in parameters]
    averages = [a.clone() for a in average] if average is not None else []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(first, capture_error_mode="thread_local"):  # NCCL's watchdog thread may call CUDA meanwhile
        output = backward(inputs)
    with torch.cuda.graph(second, pool=first.pool(), capture_error_mode="thread_local"):
        update()

    def replay():
        first.replay()
        _share_gradients(parameters)
        second.replay()

    with torch.no_grad():
        for p, b in zip(parameters, before, strict=True):
            p.copy_(b)
            if p.grad is not None:
                p.grad.zero_()
            for value in optimiser.state[p].values():
                value.zero_()
        for a, b in zip(average or [], averages, strict=True):
            a.copy_(b)
    return replay, output
