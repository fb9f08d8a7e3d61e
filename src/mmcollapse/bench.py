"""How fast this machine is: pictures a second for making, training and captioning. Under a minute on 2 cores."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from mmcollapse.experiment import open_study
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.settings import Settings
from mmcollapse.train import Recipe, train


def machine(device: str) -> str:
    """What the figures hold for."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    on = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return (
        f"{names[0] if names else cpu} ({platform.machine()}), {cores} cores, device {on}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}"
    )


def bench(settings: Settings) -> dict[str, float]:
    """Print and return pictures a second of each kind of work with the base models, at the compute batch and dtype of
    the settings; each is warmed up first."""
    study, _ = open_study(settings)
    gpu = study.device == "cuda"
    print(
        f"{machine(study.device)}\nworld {settings.world}, {settings.dtype}, compute batch {settings.compute_batch}\n"
    )
    paces: dict[str, float] = {}

    def pace(what: str, n: int, work, warm):
        warm()
        began = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        paces[what] = n / (time.perf_counter() - began)
        print(f"  {what:<52} {paces[what]:10,.1f} pictures a second", flush=True)

    n = settings.compute_batch * 4 if gpu else 32
    size = study.world.size("chain")
    indices = np.arange(n) if size is None else np.arange(n) % size
    real = study.world.sample("chain", indices)
    captions, keys = [five[0] for five in real.captions], [("bench", i) for i in range(n)]
    if study.world.truth:
        pace("drawing scenes, with captions", 500, lambda: study.world.sample("chain", np.arange(500)), lambda: None)
    generator, captioner = (study.models[role].adapter for role in ("generator", "captioner"))
    warm = slice(0, n if gpu else 2)
    for guidance in (3.0, 1.0):
        decoding, short = ImageDecoding(10, guidance), ImageDecoding(1, guidance)
        pace(
            f"making pictures, 10 steps, guidance {guidance:g}",
            n,
            lambda d=decoding: generator.make(captions, d, keys, settings.compute_batch),
            lambda d=short: generator.make(captions[warm], d, keys[warm], settings.compute_batch),
        )
    for name, decoding in {
        "captioning, greedy": CaptionDecoding(max_tokens=captioner.max_tokens),
        "captioning, sampled": CaptionDecoding(temperature=1.0, max_tokens=captioner.max_tokens),
        "captioning, 5 beams": CaptionDecoding(beams=5, max_tokens=captioner.max_tokens),
    }.items():
        pace(
            name,
            n,
            lambda d=decoding: captioner.make(real.images, d, keys, settings.compute_batch),
            lambda d=decoding: captioner.make(real.images[warm], d, keys[warm], settings.compute_batch),
        )
    for role in ("generator", "captioner"):
        adapter, parameters = study.models[role].adapter, list(study.models[role].parameters.values())
        data = adapter.encode(real.images, captions)

        def work(steps: int, adapter=adapter, parameters=parameters, data=data):
            recipe = Recipe(
                steps, settings.batch, 1e-6, method=settings.method, rank=settings.rank, dtype=settings.dtype
            )
            train(adapter.loss, parameters, data, adapter.draw, recipe, ("bench",))

        steps = 200 if gpu else 12
        what = f"training the {role}, batch {settings.batch}"
        pace(what, steps * settings.batch, lambda w=work, s=steps: w(s), lambda w=work: w(1))
    return paces
