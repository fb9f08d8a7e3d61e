"""Real models in their full size, with random weights: how fast this machine makes, trains and captions with them, and
in how much memory, beside two other ways in the same run. `make bench PROFILE=single-gpu` and `PROFILE=paper` call it.

The other ways are (a) that of the public code of the paper's first author: pictures and captions one by one in float16,
the U-Net trained whole, a pair a step, with the GPU's cache emptied after each; and (b) that of diffusers' example of
LoRA training: a plain loop in mixed precision, in which every step encodes its pictures and prompts again.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmcollapse.bench import machine
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import run_experiment
from mmcollapse.experiments import listed
from mmcollapse.graphs import plain
from mmcollapse.loop import Model
from mmcollapse.memory import AtOnce
from mmcollapse.metrics.spaces import open_space
from mmcollapse.models import load
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.stand_ins import SOME, SPACES, stand_in
from mmcollapse.protocol import ROLES
from mmcollapse.rates import Rate, add_rates
from mmcollapse.settings import Settings
from mmcollapse.speedup import flops, peak_flops
from mmcollapse.train import Recipe, train

STEPS, WORDS = 20, 20  # of denoising, and tokens of a caption, which random weights would never end
TRAINED = 40  # steps of a fine-tuning, at whose beginning one is recorded
WANTED = {  # times as fast, on one H100
    ("CompVis/stable-diffusion-v1-4", "making pictures", "(a)"): 9,
    ("stabilityai/stable-diffusion-xl-base-1.0", "making pictures", "(a)"): 2.5,
    ("generator", "fine-tuning", "(a)"): 10,
    ("generator", "fine-tuning", "(b)"): 1.4,
    ("captioner", "captioning", "(a)"): 15,
}


def full_size(settings: Settings, folder: Path, rates: Path, full: bool = True, seconds: float = 5.0):
    """Print rates of the first generator and captioner of the settings, in their full size if `full`, and add each to
    the table `rates` as soon as it is measured. Stand-ins are written to `folder` if they are not there. seconds: of
    each measurement, about. MMCollapseError: there is no stand-in for one of them."""
    device, place = settings.resolved_device(), {}
    names = {role: listed(settings, f"{role}s")[0].partition("@")[0] for role in ROLES}
    folder = folder / ("full" if full else "shrunk")
    (instruments := folder / "instruments").mkdir(parents=True, exist_ok=True)
    for name in (*names.values(), *SPACES.values()):
        place[name] = folder / name
        if not (place[name] / "done").is_file():
            print(f"writing a stand-in for {name}", flush=True)
            stand_in(name, place[name], full, device=device)
            (place[name] / "done").touch()
    print(f"{machine(device)}\nprofile {settings.profile}, {settings.dtype}, random weights", end=", ")
    print(f"{STEPS} steps, {WORDS} tokens\n")
    at = _Bench(settings, device, rates, seconds)
    at.captioner(names["captioner"], place[names["captioner"]])  # first, for nothing of it is compiled
    at.generator(names["generator"], place[names["generator"]])
    for short, name in SPACES.items():
        if not (instruments / short).exists():
            (instruments / short).symlink_to(place[name].absolute())
        at.space(short, instruments)
    at.generation(folder, place, names)


class _Bench:
    def __init__(self, settings: Settings, device: str, rates: Path, seconds: float):
        self.settings, self.device, self.rates, self.seconds = settings, device, rates, seconds
        self.peak = peak_flops(settings)
        self.at = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.source = f"make bench PROFILE={settings.profile}, {machine(device)}, {datetime.now(UTC):%Y-%m-%d}"
        self.times: dict[tuple[str, str], float] = {}

    def pace(self, what: str, way: str, work: Callable[[], int], flop: float = 0.0, model: str = "") -> float:
        """Print and return units a second of work(), which does some and says how many; the first call is apart."""
        self._rest()
        began = time.perf_counter()
        try:
            work()
            self._wait()
            first, done, begun = time.perf_counter() - began, 0, time.perf_counter()
            while time.perf_counter() - begun < self.seconds:
                done += work()
                self._wait()
        except Exception as error:  # one way that fails must not cost the others their numbers
            why = " ".join(str(error).split())[:200]
            print(f"  {what:<18}{way:<8} FAILED: {type(error).__name__}: {why}", flush=True)
            return 0.0
        pace = done / (time.perf_counter() - begun)
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0
        share = f", {pace * flop / self.peak:.0%} of the peak of {self.peak / 1e12:.0f} TFLOP/s" if flop else ""
        print(f"  {what:<18}{way:<8}{pace:9.3f} a second, first call {first:.1f} s, {memory:.1f} GB{share}", flush=True)
        self.times[what, way] = pace
        if way != "ours" and (ours := self.times.get((what, "ours"))):
            for key in ((model, what, way), (self.kind, what, way)):
                if key in WANTED:
                    print(
                        f"  {'':<18}{'':<8}ours is {ours / pace:.1f} times as fast (wanted: {WANTED[key]:g})",
                        flush=True,
                    )
        return pace

    def rate(self, model: str, work: str, pace: float, batch: int, how: str):
        if pace:
            rate = Rate(model, work, self.at, float(f"{1000 / pace:.3g}"), batch, how, self.source)
            add_rates([rate], self.rates)

    def _wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _rest(self):
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    # ---- generators

    def generator(self, name: str, place: Path):
        s, self.kind = self.settings, "generator"
        self._adapted_generator(name, place)
        prompts = _captions(s.batch)
        self.pace("making pictures", "(a)", self._one_by_one(place, prompts[0]), model=name)
        self._rest()  # before more is loaded
        with plain():  # not compiled
            adapter = load(place, self.device, s.dtype)
        pictures = _pictures(s.batch, s.image_size)
        # (a): the U-Net whole, in float32 with autocast, a pair a step
        self.pace("fine-tuning", "(a)", self._loop(adapter, pictures, prompts, 1, flush=True), model=name)
        self._as_lora_example(adapter)
        self.pace("fine-tuning", "(b)", self._loop(adapter, pictures, prompts, s.batch, flush=False), model=name)
        print()

    def _one_by_one(self, place: Path, prompt: str) -> Callable[[], int]:
        """(a): the pipeline's own call."""
        pipe, told = _pipeline(place, self.device), {"guidance_scale": self.settings.data_guidance}

        def one() -> int:
            pipe(prompt, num_inference_steps=STEPS, output_type="np", **told)
            return 1

        return one

    def _adapted_generator(self, name: str, place: Path):
        s = self.settings
        model = Model(load(place, self.device, s.dtype), s)
        adapter, n = model.adapter, s.compute_batch
        side, trained = adapter.image_size, sum(p.numel() for p in model.parameters.values())
        print(f"{name}: denoiser of {_count(adapter.denoiser):,} parameters, {trained:,} trained, {side} pixels")
        prompts = _captions(n)
        decoding, keys = ImageDecoding(STEPS, s.data_guidance), [("bench", i) for i in range(n)]
        noise, at = torch.randn(1, *adapter.shape, device=self.device), torch.ones(1, device=self.device)
        told = adapter.conditions(prompts[:1])
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), adapter._autocast():
            operations = flops(lambda: adapter.predict(adapter.denoiser, noise, at, told, return_dict=False))
        how, passes = f"{side} px, {s.dtype}", decoding.passes()
        adapter.pipe.scheduler.set_timesteps(STEPS)
        really = passes * len(adapter.pipe.scheduler.timesteps) / STEPS  # PNDM makes one step more
        make = partial(adapter.make, prompts, decoding, keys, n)
        made = self.pace("making pictures", "ours", lambda: len(make()), really * operations)
        latents = torch.randn(n, *adapter.shape, device=self.device)
        decoded = self.pace("decoding", "ours", lambda: len(adapter.decode(latents)))
        self.rate(name, "decode", decoded, n, f"{how}, compiled by blocks")
        if made and decoded:
            self.rate(name, "denoise", passes / (1 / made - 1 / decoded), n, f"{how}, batch {n}, compiled by blocks")
        self._fine_tuning(name, model, adapter.encode(_pictures(s.batch, side), _captions(s.batch)), how, operations)

    def _fine_tuning(self, name: str, model: Model, data: dict[str, torch.Tensor], how: str, operations: float = 0.0):
        """As many pairs at once as fit, and, if they are fewer, as many as the settings say."""
        s, adapter = self.settings, model.adapter
        recipe = Recipe(TRAINED, s.batch, 1e-6, 1, method=s.method, rank=s.rank, dtype=s.dtype)
        ways = {"recorded": model.recorded, "network": adapter.network, "size": adapter.size}

        def fit(at_once: AtOnce) -> int:
            values = list(model.parameters.values())
            train(adapter.loss, values, data, adapter.draw, recipe, ("bench",), at_once=at_once, **ways)
            return recipe.steps * recipe.batch

        whole = AtOnce(s.batch, "the pairs of a step", "train_batch")
        for at_once in (whole, model.at_once):
            if at_once is whole or at_once.n < whole.n:
                way = "ours" if at_once is whole else f"{at_once.n} at once"
                # a backward pass costs as much as a forward one, and as much again where weights have gradients
                times = (2 if s.method == "lora" else 3) + (s.checkpointing == "yes")
                pace = self.pace("fine-tuning", way, lambda a=at_once: fit(a), times * operations)
                told = f"{how}, {s.method}, batch {s.batch}, {at_once.n} at once, checkpointing {s.checkpointing}"
                self.rate(name, "train", pace, s.batch, f"{told}, recorded")

    def _as_lora_example(self, adapter):
        """(b), at the batch of the settings: what is frozen in half precision, as in diffusers' example."""
        s = self.settings
        low = torch.bfloat16 if s.dtype == "bfloat16" else torch.float32
        for name, part in adapter.pipe.components.items():
            # the VAE stays in float32, as that of SDXL does in its example
            if isinstance(part, torch.nn.Module) and not (name == "vae" and adapter.vae_whole):
                part.to(low)
        adapter.prepare("lora", s.rank, s.lora_generator, s.checkpointing == "yes")

    def _loop(self, adapter, pictures: np.ndarray, prompts: list[str], batch: int, flush: bool) -> Callable[[], int]:
        parameters = list(adapter.trainable().values())
        optimiser = torch.optim.AdamW(parameters, lr=1e-6)

        def step() -> int:
            adapter._told.clear()  # every step reads its prompts again
            with plain(), torch.autocast(self.device, torch.bfloat16, enabled=adapter.dtype == "bfloat16"):
                data = adapter.encode(pictures[:batch], prompts[:batch])
                draws = adapter.draw(batch, torch.Generator().manual_seed(0))
                value = adapter.loss(data | {k: t.to(self.device) for k, t in draws.items()})
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            value.item()  # for the bar of progress
            if flush and self.device == "cuda":
                torch.cuda.empty_cache()
            return batch

        return step

    # ---- captioners

    def captioner(self, name: str, place: Path):
        self.kind = "captioner"
        self._adapted_captioner(name, place)
        adapter, one = load(place, self.device), torch.from_numpy(_pictures(1, self.settings.image_size))
        half = adapter.model.to(torch.float16 if self.device == "cuda" else torch.float32)

        def one_by_one() -> int:
            pixels = adapter.pixels(one.to(self.device)).to(half.dtype)
            told = {"max_new_tokens": WORDS + 1, "min_new_tokens": WORDS, "do_sample": True}
            half.generate(**adapter.prompt(pixels), **told)
            return 1

        self.pace("captioning", "(a)", one_by_one)
        print()

    def _adapted_captioner(self, name: str, place: Path):
        s = self.settings
        model = Model(load(place, self.device, s.dtype), s)
        adapter, n = model.adapter, 4 * s.compute_batch
        trained = sum(p.numel() for p in model.parameters.values())
        print(f"{name}: {_count(adapter.model):,} parameters, {trained:,} trained, {adapter.image_size} pixels")
        pictures, keys = _pictures(n, s.image_size), [("bench", i) for i in range(n)]
        how = f"{s.image_size} px, {s.dtype}"
        for what, settings in (("captioning", {"temperature": 1.0}), ("with 5 beams", {"beams": 5})):
            decoding = CaptionDecoding(max_tokens=WORDS, min_tokens=WORDS, **settings)
            made = self.pace(what, "ours", lambda d=decoding: len(adapter.make(pictures, d, keys, n)))
            told = f"{how}, {WORDS} tokens, batch {n}, {decoding.beams} beam(s)"
            self.rate(name, "caption", made * decoding.beams, n, told)
        self._fine_tuning(name, model, adapter.encode(pictures[: s.batch], _captions(s.batch)), how)

    # ---- the rest

    def space(self, short: str, instruments: Path):
        space = open_space(short, instruments, instruments, self.device)
        pictures = _pictures(64, self.settings.image_size)
        how = f"{self.settings.image_size} px"
        self.rate(short, "look", self.pace(f"looking, {short}", "ours", lambda: len(space.images(pictures))), 64, how)

    def generation(self, folder: Path, place: dict[str, Path], names: dict[str, str]):
        """One whole generation of a short chain of each role, with its measurements, by what notebooks call."""
        s = self.settings
        print("\none generation of chains `real`, from the pictures of a folder to the result table")
        (data := folder / "photos").mkdir(exist_ok=True)
        lines = []
        for i, (picture, caption) in enumerate(zip(_pictures(60, 640), _captions(60), strict=True)):
            Image.fromarray(picture).save(data / f"{i}.jpg")
            lines.append(json.dumps({"file_name": f"{i}.jpg", "captions": [caption] * 5}))
        (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        few = {"data": str(data), "layout": "", "pairs": 8, "steps": 5, "generations": 1, "seeds": 1, "arms": "real"}
        few |= {"prompts": 4, "noises": 2, "probes": 4, "captions": 8, "seeds_primary": 0, "seeds_exploratory": 0}
        few |= {f"{role}s": str(place[name]) for role, name in names.items()} | {
            "measure_steps": 5,
            "spaces": "clip,dino",
        }
        few |= {n: str(folder / "chain" / n) for n in ("runs", "results", "figures")}
        few |= {"instruments": str(folder / "instruments"), "measure": "brief"}
        shutil.rmtree(folder / "chain", ignore_errors=True)  # or finished work would be found there
        self._rest()
        began = time.perf_counter()
        try:
            with torch.compiler.set_stance("force_eager"):  # so few pictures are not worth kernels of their own
                run_experiment("01_variance", replace(s, **few))
        except MMCollapseError as error:
            print(f"  FAILED: {error}")
            return
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0
        print(f"  {time.perf_counter() - began:.0f} s in all, {memory:.1f} GB", flush=True)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _pictures(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def _captions(n: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(SOME, 10)) for _ in range(n)]


def _pipeline(place: Path, device: str):
    from diffusers import DiffusionPipeline

    dtype = torch.float16 if device == "cuda" else torch.float32
    told = {"safety_checker": None, "feature_extractor": None} if "stable-diffusion-v1" in str(place) else {}
    pipe = DiffusionPipeline.from_pretrained(place, dtype=dtype, local_files_only=True, **told).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe
