"""How fast this machine is: pictures a second for making, training and captioning; the metrics, beside clean-fid and in
all. Under 3 minutes on 2 cores."""

from __future__ import annotations

import platform
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from mmcollapse import measure
from mmcollapse.experiment import open_study
from mmcollapse.metrics.images import frechet
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.pool import at_once, cores, open_pool
from mmcollapse.rates import RATES
from mmcollapse.settings import Settings
from mmcollapse.speedup import speedups
from mmcollapse.store import Store
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
    on = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return (
        f"{names[0] if names else cpu} ({platform.machine()}), {cores()} cores, device {on}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}"
    )


def bench(settings: Settings) -> None:
    """Print how fast the work of a chain and its metrics are, with the base models of the settings; of published ones
    in their full size with random weights, and what is measured goes into data/rates.json."""
    if settings.world == "photos" and "/" in settings.generators:
        from mmcollapse.full_size import full_size

        full_size(settings, settings.runs_folder / "stand-ins", RATES)
        return
    gpu = settings.resolved_device() == "cuda"
    with open_pool(at_once(gpu), gpu) as pool:
        print(f"{machine(settings.resolved_device())}\nworld {settings.world}, profile {settings.profile}\n")
        speedups(settings, pool, 10.0 if gpu else 1.0)
    print()
    study, tools = open_study(settings)
    print(f"  one model at a time, {settings.dtype}, compute batch {settings.compute_batch}")
    paces(study)
    print()
    frechet_beside_cleanfid()
    print()
    metrics(study, tools)


def paces(study: measure.Study) -> dict[str, float]:
    """Print and return pictures a second of each kind of work with the base models, at the compute batch and dtype of
    the settings; each is warmed up first."""
    settings, gpu = study.settings, study.device == "cuda"
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

        steps, one = 200 if gpu else 12, torch.get_num_threads()
        for threads in dict.fromkeys((one, one if gpu else cores())):
            torch.set_num_threads(threads)
            what = f"training the {role}, batch {settings.batch}" + ("" if gpu else f", threads {threads}")
            pace(what, steps * settings.batch, lambda w=work, s=steps: w(s), lambda w=work: w(1))
        torch.set_num_threads(one)
    return paces


def frechet_beside_cleanfid(n: int = 4096, d: int = 2048) -> tuple[float, float, float]:
    """Print and return seconds of our Frechet distance, seconds of clean-fid's, and their relative difference. Both go
    from the same features, correlated Gaussians, to the distance; one call each, for clean-fid's takes long."""
    from cleanfid.fid import fid_from_feats

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    real, fake = rng.normal(size=(n, d)) @ mix, 0.8 * rng.normal(size=(n, d)) @ mix + 0.1
    few = rng.normal(size=(2, 64, 8))
    frechet(*few, least=1), fid_from_feats(*few)  # loads what they import
    began = time.perf_counter()
    ours = frechet(real, fake, least=1)
    between = time.perf_counter()
    theirs = float(fid_from_feats(real, fake))
    seconds = between - began, time.perf_counter() - between
    off = abs(ours / theirs - 1)
    print(
        f"  Frechet distance, {d:,} dimensions, n = {n:,}: ours {seconds[0]:.2f} s, clean-fid {seconds[1]:.2f} s, "
        f"{seconds[1] / seconds[0]:.1f} times faster (wanted: 5), equal to {off:.0e} (wanted: 1e-6)",
        flush=True,
    )
    return *seconds, off


def metrics(
    study: measure.Study, tools: measure.Instruments, prompts=200, noises=10, captions=2000
) -> dict[str, float]:
    """Print and return seconds, by group, of all that one generation's pictures (at one guidance) and captions (at one
    decoding) are measured by, real ones in their stead. What belongs to the references was computed before, as in any
    run from its second generation on."""
    with tempfile.TemporaryDirectory() as runs, ExitStack() as patches:
        settings = replace(study.settings, prompts=prompts, noises=noises, captions=captions)
        study = replace(study, settings=settings, store=Store(Path(runs)))
        tools = replace(tools, study=study, _drawn={})
        real, asked = tools.sample("test", captions), tools.prompts
        for name in tools.spaces:
            tools.real_features(name)
        _ = tools.real_spectrum
        if study.world.truth:
            _ = tools.real_nuisance
            made = measure.flat(study.world.redraw(asked.scenes, noises, "bench"))
            said = [five[0] for five in asked.captions for _ in range(noises)]
        else:
            made, said = asked.images, [five[0] for five in asked.captions]

        seconds: dict[str, float] = {}

        def clock(group: str, owner, name: str):
            work = getattr(owner, name)

            def clocked(*args, **kwargs):
                began = time.perf_counter()
                try:
                    return work(*args, **kwargs)
                finally:
                    seconds[group] = seconds.get(group, 0.0) + time.perf_counter() - began

            patches.enter_context(patch.object(owner, name, clocked))

        for name, space in tools.spaces.items():
            for kind in ("images", "texts") if name in tools.reading else ("images",):
                clock(f"features of {name}", space, kind)
        groups = {"oracle": "_picture_truth", "pixels": "_picture_pixels", "words": "word_scores"}
        for group, name in (groups | {"parser": "_caption_truth", "language model": "_perplexity"}).items():
            clock(group, measure, name)

        began = time.perf_counter()
        measure.pictures_found(study, tools, made, said)
        between = time.perf_counter()
        seen = {name: space.images(real.images) for name, space in tools.reading.items()}
        written = [five[0] for five in real.captions]
        measure.captions_found(study, tools, seen, written, [five[1:] for five in real.captions], real.scenes)
        ended = time.perf_counter()
    seconds["numbers from features"] = ended - began - sum(seconds.values())
    print(
        f"  metrics of {len(made):,} pictures and {len(written):,} captions: {ended - began:.1f} s in all, pictures "
        f"{between - began:.1f} s, captions {ended - between:.1f} s (wanted: 20 s, on 2 cores)"
    )
    for group, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
        print(f"    {group:<50} {spent:10.2f} s", flush=True)
    return seconds
