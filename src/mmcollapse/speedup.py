"""How much faster chains run than by the plain loop: eager, one chain at a time. Both in one run, with the batches of
the settings, by the very functions that chains call."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from mmcollapse import graphs
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.pool import Pool, kept
from mmcollapse.settings import Settings

# What is timed, and how many times the pictures a second of the plain loop are wanted on one H100.
WANTED = {
    "fine-tuning the generator": 8,
    "fine-tuning the captioner": 8,
    "making pictures": 5,
    "captioning pictures": 5,
}


def speedups(settings: Settings, pool: Pool, seconds: float = 10.0) -> dict[str, dict[str, float]]:
    """Print and return pictures a second of each kind of work: "plain", "recorded" (one worker alone, CUDA graphs where
    there is a GPU) and "at once" (the sum over all workers); "share": of the arithmetic peak, at once."""
    client, found = pool.client, {}
    addresses = list(client.scheduler_info(n_workers=-1)["workers"])

    def run(function, *args, on=addresses) -> list:
        futures = [client.submit(function, settings, *args, workers=[a], pure=False) for a in on]
        return client.gather(futures)

    (peak,) = run(peak_flops, on=addresses[:1])
    heads = f"{'plain':>10}{'recorded':>18}{f'{len(addresses)} at once':>18}{'wanted':>9}{'of peak':>9}"
    print(f"  {'pictures a second':<28}{heads}")
    for kind, wanted in WANTED.items():
        run(pace, kind, False, 0.0)  # all of them ready before any is timed
        (alone,) = run(pace, kind, False, seconds, on=addresses[:1])
        plain = alone  # on a CPU nothing is recorded
        if settings.resolved_device() == "cuda":
            run(pace, kind, True, 0.0, on=addresses[:1])
            (plain,) = run(pace, kind, True, seconds, on=addresses[:1])
        together = sum(run(pace, kind, False, seconds))
        (flops,) = run(flops_of, kind, on=addresses[:1])
        found[kind] = {"plain": plain, "recorded": alone, "at once": together, "share": together * flops / peak}
        print(
            f"  {kind:<28}{plain:>10,.1f}{alone:>10,.1f} x {alone / plain:<5.1f}{together:>10,.1f} x "
            f"{together / plain:<5.1f}{wanted:>7} x {found[kind]['share']:>8.2%}",
            flush=True,
        )
    print(f"  of peak: of the {peak / 1e12:,.1f} TFLOP/s of a large {settings.dtype} matrix product in the same run")
    return found


def pace(settings: Settings, kind: str, plain: bool, seconds: float) -> float:
    """Pictures a second of one worker that does nothing else for so long, after one warm-up; seconds 0: only that."""
    unit = _unit(settings, kind)
    with graphs.plain() if plain else nullcontext():
        n, done = unit(0), 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            done += unit(done + n)
        return done / (time.perf_counter() - began)


def flops_of(settings: Settings, kind: str) -> float:
    """Floating-point operations a picture, as the plain way counts them."""
    unit, n = _unit(settings, kind), []
    with graphs.plain():
        return flops(lambda: n.append(unit(1))) / n[0]


def flops(work) -> float:
    """Floating-point operations of work(), on this thread."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Count(TorchDispatchMode):  # torch's own counter also follows modules, and some here it cannot
        total = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if (counted := flop_registry.get(function._overloadpacket)) is not None:
                self.total += counted(*args, **(kwargs or {}), out_val=out)
            return out

    with Count() as count:
        work()
    return count.total


def peak_flops(settings: Settings) -> float:
    """Floating-point operations a second of a large matrix product on this worker."""
    import torch

    device = settings.resolved_device()
    n, kind = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, dtype=kind, device=device) for _ in range(2))
    times = []
    for _ in range(8):
        began = time.perf_counter()
        c = a @ b
        float(c[0, 0])  # waits for the GPU
        times.append(time.perf_counter() - began)
    return 2 * n**3 / sorted(times)[2]


def _unit(settings: Settings, kind: str):
    """A function of a number, which names its noise: does some work of this kind and says of how many pictures."""
    import torch

    from mmcollapse.experiment import open_study
    from mmcollapse.train import train

    study, _ = open_study(settings, (), kept)
    n = settings.compute_batch
    if ("speedup", n) not in kept:
        kept["speedup", n] = study.world.sample("chain", np.arange(n))
    real = kept["speedup", n]
    captions = [five[0] for five in real.captions]
    role = "captioner" if "caption" in kind else "generator"
    model = study.models[study.zoo[role][0]]

    def keys(k):
        return [("speedup", k, i) for i in range(n)]

    if kind.startswith("fine-tuning"):
        if ("speedup", kind) not in kept:
            rows = slice(0, settings.pairs)
            kept["speedup", kind] = model.adapter.encode(real.images[rows], captions[rows])
        data, recipe = kept["speedup", kind], study.recipe(role)
        recipe = replace(recipe, steps=min(recipe.steps, 50 if study.device == "cpu" else 200))

        def work(k: int) -> int:
            values, adapter = list(model.parameters.values()), model.adapter
            ways = {"recorded": model.recorded, "network": adapter.network}
            train(adapter.loss, values, data, adapter.draw, recipe, ("speedup", k), **ways)
            model.holds = ""
            return recipe.steps * recipe.batch

    elif kind == "making pictures":

        def work(k: int) -> int:
            decoding = ImageDecoding(settings.data_steps, settings.data_guidance)
            return len(model.hold(model.base).make(captions, decoding, keys(k), n))

    else:

        def work(k: int) -> int:
            decoding = CaptionDecoding(temperature=1.0, max_tokens=model.adapter.max_tokens)
            return len(model.hold(model.base).make(real.images, decoding, keys(k), n))

    def timed(k: int) -> int:
        done = work(k)
        if study.device == "cuda":
            torch.cuda.synchronize()
        return done

    return timed
