"""Generators: text to image with a diffusers pipeline.

What all pipelines share is in `DiffusersGenerator`; a subclass says what its denoiser is told and how it is called.
`mmcollapse.models.load` knows the subclasses in this module by their `pipeline`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from mmcollapse.errors import MMCollapseError
from mmcollapse.graphs import Recorded, castable, compile_blocks, large, lowered, recording
from mmcollapse.memory import Fitting
from mmcollapse.models import add_lora, at_rest, folder_digest, opened, trainable
from mmcollapse.parallel import in_shares
from mmcollapse.randomness import normal

# Share of training samples whose caption is dropped, so that the same U-Net also learns the unconditional score that
# classifier-free guidance needs (Ho and Salimans 2022; 0.1 as in Stable Diffusion).
P_DROP = 0.1
DECODED = 2**20  # pixels that the VAE encodes or decodes at once: its layers at full size take much memory
READ = 16  # lists of prompts that are kept as the text encoders read them
READ_BYTES = 2**30  # and how much all of them may take


@dataclass(frozen=True)
class ImageDecoding:
    """What is spent on making a picture. steps: denoising steps (1-1000); guidance: classifier-free guidance scale,
    1 is the conditional model alone and costs one pass of the denoiser a step, anything above costs two."""

    steps: int
    guidance: float

    def __post_init__(self):
        if not 1 <= self.steps <= 1000:
            raise MMCollapseError(f"steps={self.steps} of an image decoding: allowed are 1 to 1000")
        if not 1 <= self.guidance <= 50:
            raise MMCollapseError(f"guidance={self.guidance} of an image decoding: allowed are 1 to 50")

    def passes(self) -> int:
        """Passes of the denoiser a picture."""
        return self.steps * (2 if self.guidance > 1 else 1)


def objective(scheduler) -> str:
    """What the denoiser of a scheduler predicts: "epsilon" (the noise), "v_prediction" (velocity; Salimans and Ho
    2022) or "flow" (noise minus picture, on straight paths; Liu et al. 2023)."""
    if "FlowMatch" in type(scheduler).__name__:
        return "flow"
    return scheduler.config.prediction_type


def noised(scheduler, latents, draws) -> tuple[torch.Tensor, torch.Tensor]:
    """(noisy latents, what is to be predicted from them), both (n, c, h, w). draws: from `noise_draws` or
    `flow_draws`."""
    noise, timesteps = draws["noise"], draws["timesteps"]
    kind = objective(scheduler)
    if kind == "flow":
        sigmas = (timesteps / scheduler.config.num_train_timesteps)[:, None, None, None]
        return torch.lerp(latents, noise, sigmas), noise - latents
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return noisy, noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)


def denoising_loss(denoiser, scheduler, latents, told, draws, weights=None) -> torch.Tensor:
    """Mean squared error of what the denoiser predicts: of the noise, Ho et al. 2020, eq. 14.

    denoiser: called with (noisy, timesteps, told, return_dict=False); latents (n, c, h, w); told: its conditions;
    draws: from `noise_draws` or `flow_draws`; weights (n,) of the samples, 1 if not given.
    """
    noisy, target = noised(scheduler, latents, draws)
    predicted = denoiser(noisy, draws["timesteps"], told, return_dict=False)[0]
    error = (predicted.float() - target) ** 2
    return error.mean() if weights is None else (error.flatten(1).mean(1) * weights).mean()


def noise_draws(n: int, g: torch.Generator, shape: tuple[int, ...], timesteps: int) -> dict[str, torch.Tensor]:
    """The random inputs of one training step: noise (n, *shape), timesteps (n,), drop (n,) uniform in [0, 1)."""
    on = {"generator": g, "device": g.device}
    return {
        "noise": torch.randn((n, *shape), **on),
        "timesteps": torch.randint(timesteps, (n,), **on),
        "drop": torch.rand(n, **on),
    }


def flow_draws(n: int, g: torch.Generator, shape: tuple[int, ...], timesteps: int) -> dict[str, torch.Tensor]:
    """As `noise_draws`, for flow matching: the shares of noise are logit-normal, so that the middle of the paths, where
    prediction is hardest, is trained most (Esser et al. 2024, section 3.1); timesteps are `timesteps` times them."""
    draws = noise_draws(n, g, shape, timesteps)
    middle = torch.randn(n, generator=g, device=g.device)
    return draws | {"timesteps": timesteps * middle.sigmoid()}


class DiffusersGenerator:
    """A diffusers pipeline with a VAE, text encoders and a denoiser. The denoiser is trained; all else is frozen."""

    kind = "generator"
    pipeline: str  # its class in diffusers, which model_index.json names
    part = "unet"  # the denoiser's name in it
    lora_targets = ["to_q", "to_k", "to_v", "to_out.0"]  # attention projections, as in diffusers' LoRA example
    named = {
        "text": "prompt_embeds"
    }  # conditions of the denoiser that the pipeline's call takes, and their names there
    opening: dict = {}  # settings of from_pretrained: what is not needed, and may not be there
    calling: dict = {}  # settings of the call
    vae_whole = False  # whether the VAE must stay in float32
    draws = staticmethod(noise_draws)

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: str = "float32"):
        import diffusers

        index = json.loads((Path(folder) / "model_index.json").read_text())
        parts = [
            name for name, part in index.items() if isinstance(part, list) and part[0] and name not in self.opening
        ]
        if lacking := [name for name in parts if not (Path(folder) / name).is_dir()]:
            raise MMCollapseError(f"the model in {folder} lacks {', '.join(lacking)}")
        self.digest = folder_digest(folder)
        pipeline = getattr(diffusers, self.pipeline)
        # safetensors alone: other formats can run code when they are opened
        given = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True} | self.opening
        self.pipe = opened(folder, lambda: pipeline.from_pretrained(folder, **given)).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.device, self.dtype = torch.device(device), dtype
        self.noising = noising(self.pipe.scheduler, device)
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        self.denoiser = self.network = getattr(self.pipe, self.part).requires_grad_(True)
        self.large = large(self.denoiser)
        if device != "cpu":
            self.denoiser.to(memory_format=torch.channels_last)
            if self.large:
                self.pipe.vae.to(memory_format=torch.channels_last)
        config = self.denoiser.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)  # of the latents of a picture
        self.image_size = config.sample_size * self.pipe.vae_scale_factor  # pixels
        self._told: OrderedDict[tuple, dict] = OrderedDict()
        self.fitting = Fitting()
        self._denoised = Recorded(self._denoise)
        self.nothing = self.no_caption()
        if self.large and recording(self.device):
            compile_blocks(self.denoiser)  # once a run: weights change in place
            compile_blocks(self.pipe.vae.decoder)

    @staticmethod
    def predict(denoiser, noisy, timesteps, told: dict[str, torch.Tensor], return_dict: bool = True):
        """The denoiser's output for noisy latents (n, c, h, w) at timesteps (n,), told the conditions."""
        raise NotImplementedError

    def read(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """The conditions of the denoiser, rows of one caption each, as the pipeline's call would make them."""
        raise NotImplementedError

    def no_caption(self) -> dict[str, torch.Tensor]:
        """The null condition, one row each: what the denoiser is told where a caption was dropped in training, and
        what guidance moves away from in sampling."""
        return self.conditions([""])

    def prepare(self, method: str, rank: int, targets: str = "", checkpointing: bool = False):
        """Choose what is trained: all of the denoiser ("full") or LoRA layers of `rank` ("lora") in the sub-modules
        whose names end in one of `targets`, comma-separated; "" is in its attentions. checkpointing: activations are
        computed again for the gradients, a third more work in a fraction of the memory."""
        if method == "lora":
            if self.dtype == "bfloat16":
                at_rest(self.denoiser)
            add_lora(
                self.denoiser, [name.strip() for name in targets.split(",")] if targets else self.lora_targets, rank
            )
        if checkpointing:
            # A CUDA graph cannot hold the state of a random generator, and here none is needed: nothing in a denoiser
            # or its LoRA layers is random while the pipeline's parts stay in the mode in which they were opened.
            self.denoiser.enable_gradient_checkpointing(
                partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            )

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Name -> parameter of what training moves."""
        return trainable(self.denoiser)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    @torch.no_grad()
    def conditions(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """What the denoiser is told, float32, one row a caption: text (n, tokens, d) and what else the pipeline has.
        The last lists are kept: the same prompts come back every generation, and the text encoders are frozen."""
        key = tuple(captions)
        if key not in self._told:
            self._told[key] = self._read_all(captions)
            while len(self._told) > 1 and (len(self._told) > READ or self._read_bytes() > READ_BYTES):
                self._told.popitem(last=False)
        return dict(self._told[key])

    def _read_bytes(self) -> int:
        return sum(t.nbytes for told in self._told.values() for t in told.values())

    def _read_all(self, captions: list[str]) -> dict[str, torch.Tensor]:
        unique = sorted(set(captions))
        parts = [self.read(unique[start : start + 256]) for start in range(0, len(unique), 256)]
        where = {caption: i for i, caption in enumerate(unique)}
        rows = [where[c] for c in captions]
        return {name: torch.cat([part[name] for part in parts])[rows] for name in parts[0]}

    @property
    def _shift(self) -> float:
        return self.pipe.vae.config.shift_factor or 0.0

    @torch.no_grad()
    def encode(self, images: np.ndarray, captions: list[str]) -> dict[str, torch.Tensor]:
        """Training tensors of pairs: latents (n, c, h, w), the VAE's posterior means, scaled; and `conditions`.
        images: (n, size, size, 3) uint8."""

        def encoded(rows: int) -> torch.Tensor:
            latents = []
            for start in range(0, len(images), rows):
                pixels = torch.from_numpy(images[start : start + rows]).to(self.device)
                pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
                means = self.pipe.vae.encode(pixels).latent_dist.mean
                latents.append((means - self._shift) * self.pipe.vae.config.scaling_factor)
            return torch.cat(latents)

        return {"latents": self.fitting("pictures to encode", self._decoded)(encoded)} | self.conditions(captions)

    @property
    def _decoded(self) -> int:
        """Pictures that the VAE encodes or decodes at once."""
        return max(1, min(256, DECODED // self.image_size**2))

    def draw(self, n: int, g: torch.Generator) -> dict[str, torch.Tensor]:
        """The random inputs of a training step of n pairs, see `noise_draws`."""
        return self.draws(n, g, self.shape, self.noising.config.num_train_timesteps)

    @staticmethod
    def size(batch: dict[str, torch.Tensor]) -> int:
        """What `loss` is a mean over: pictures."""
        return len(batch["latents"])

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error of what the denoiser predicts, captions dropped where `drop` says so."""
        dropped = batch["drop"] < P_DROP
        told = {
            name: torch.where(dropped.view(-1, *[1] * (null.ndim - 1)), null, batch[name])
            for name, null in self.nothing.items()
        }
        return denoising_loss(partial(self.predict, self.denoiser), self.noising, batch["latents"], told, batch)

    @in_shares
    @torch.no_grad()
    def make(self, captions: list[str], decoding: ImageDecoding, keys: list[tuple], batch: int = 64) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8, one a caption. keys: names of the samples' noise (see randomness);
        `batch` changes speed and memory, never a picture (to within 1e-4 before rounding)."""
        out: list[np.ndarray] = []
        fitting, made = self.fitting("pictures to make", min(batch, max(1, len(captions)))), 0
        while made < len(captions):
            out.append(fitting(lambda n, i=made: self._made(captions[i : i + n], decoding, keys[i : i + n], n)))
            made += len(out[-1])
        return np.concatenate(out)

    def _made(self, captions: list[str], decoding: ImageDecoding, keys: list[tuple], batch: int) -> np.ndarray:
        told = self.conditions(captions)
        noise = normal(keys, self.shape).to(self.device)
        if not recording(self.device) or decoding.steps == 1:
            return self._called(told, noise, decoding)
        given = told | {"noise": noise}
        if not self.large:
            return self.decode(self._denoised(given, **vars(decoding)))
        rows = torch.arange(batch, device=self.device).clamp(max=len(keys) - 1)  # what is compiled is of one size
        given = {name: t[rows] for name, t in given.items()}
        return self.decode(self._denoise(given, **vars(decoding)))[: len(keys)]

    def _called(self, told: dict[str, torch.Tensor], noise: torch.Tensor, decoding: ImageDecoding) -> np.ndarray:
        given = {}
        for name, theirs in self.named.items():
            given[theirs] = told[name]
            given[f"negative_{theirs}"] = self.nothing[name].expand_as(told[name])
        with self._autocast():
            latents = self.pipe(
                **given,
                latents=noise,
                num_inference_steps=decoding.steps,
                guidance_scale=decoding.guidance,
                output_type="latent",
                **self.calling,
            ).images
        return self.decode(latents.float())

    def _denoise(self, given: dict[str, torch.Tensor], steps: int, guidance: float) -> torch.Tensor:
        """Latents (n, c, h, w) as the pipeline's own loop makes them of noise (n, c, h, w) and conditions, but without
        its looks at values on the GPU, so that a graph can hold it."""
        scheduler, latents = self.pipe.scheduler, given["noise"]
        told = {name: given[name] for name in self.nothing}
        if guidance > 1:
            told = {name: torch.cat([self.nothing[name].expand_as(t), t]) for name, t in told.items()}
        scheduler.set_timesteps(steps)  # on the CPU
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        low = castable(self.denoiser) if recording(self.device) and not self.large and self.dtype == "bfloat16" else []
        with lowered(low), self._autocast():
            for t in scheduler.timesteps:
                noisy = torch.cat([latents, latents]) if guidance > 1 else latents
                if hasattr(scheduler, "scale_model_input"):
                    noisy = scheduler.scale_model_input(noisy, t)
                at = torch.full((len(noisy),), t.item(), device=noisy.device)
                predicted = self.predict(self.denoiser, noisy, at, told, return_dict=False)[0].float()
                if guidance > 1:
                    without, conditional = predicted.chunk(2)
                    predicted = without + guidance * (conditional - without)
                latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 of scaled latents (n, c, h, w)."""
        out, vae = [], self.pipe.vae
        low = self.large and self.dtype == "bfloat16" and not self.vae_whole  # that of a small model costs little
        for part in latents.split(self._decoded):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                pixels = vae.decode(part / vae.config.scaling_factor + self._shift).sample.float()
            pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            out.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(out)


def noising(scheduler, device: str):
    """The scheduler that noises in training, with its tables on the device: the forward process of the pipeline's."""
    from diffusers import DDPMScheduler

    kind = objective(scheduler)
    if kind == "flow":
        return scheduler  # of which only the number of timesteps is used
    if kind not in ("epsilon", "v_prediction"):
        raise MMCollapseError(f"a scheduler with prediction_type {kind!r}: known are 'epsilon' and 'v_prediction'")
    forward = DDPMScheduler.from_config(scheduler.config)
    forward.alphas_cumprod = forward.alphas_cumprod.to(device)
    return forward


class StableDiffusion(DiffusersGenerator):
    """`diffusers.StableDiffusionPipeline`: CLIP text encoder, U-Net with prediction of noise or velocity."""

    pipeline = "StableDiffusionPipeline"
    opening = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    @staticmethod
    def predict(denoiser, noisy, timesteps, told, return_dict=True):
        return denoiser(noisy, timesteps, told["text"], return_dict=return_dict)

    def read(self, captions):
        ids = self.pipe.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.pipe.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return {"text": self.pipe.text_encoder(ids.to(self.device))[0].float()}


class StableDiffusionXL(DiffusersGenerator):
    """`diffusers.StableDiffusionXLPipeline`: two CLIP text encoders, side by side, and a U-Net that is also told the
    pooled output of the second and the sizes of the picture (Podell et al. 2023)."""

    pipeline = "StableDiffusionXLPipeline"
    vae_whole = True  # it overflows float16 and is coarse in bfloat16; its config says so, too ("force_upcast")
    named = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}

    @staticmethod
    def predict(denoiser, noisy, timesteps, told, return_dict=True):
        added = {"text_embeds": told["pooled"], "time_ids": told["sizes"]}
        return denoiser(noisy, timesteps, told["text"], added_cond_kwargs=added, return_dict=return_dict)

    def read(self, captions):
        text, _, pooled, _ = self.pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled, "sizes": sizes(self.image_size, len(captions), self.device)}

    def no_caption(self):
        null = self.conditions([""])
        if self.pipe.config.force_zeros_for_empty_prompt:  # as the call does with a negative prompt that is not given
            null |= {name: torch.zeros_like(null[name]) for name in ("text", "pooled")}
        return null


def sizes(pixels: int, n: int, device) -> torch.Tensor:
    """(n, 6) of SDXL's conditions on size: height and width of the original, the place where it was cropped, height and
    width that are meant. All of our pictures are whole and of one size."""
    return torch.tensor([pixels, pixels, 0, 0, pixels, pixels], dtype=torch.float32, device=device).repeat(n, 1)


class PixArt(DiffusersGenerator):
    """`diffusers.PixArtAlphaPipeline`: T5 text encoder, a transformer with cross-attention (Chen et al. 2023)."""

    pipeline, part = "PixArtAlphaPipeline", "transformer"
    named = {"text": "prompt_embeds", "mask": "prompt_attention_mask"}
    # the bins are those of 256 pixels and more; the default of the other is "" even where its embeddings are given
    calling = {"use_resolution_binning": False, "negative_prompt": None}

    @staticmethod
    def predict(denoiser, noisy, timesteps, told, return_dict=True):
        mask = told["mask"]
        out = denoiser(noisy, told["text"], timesteps, encoder_attention_mask=mask, return_dict=return_dict)
        if denoiser.config.out_channels == noisy.shape[1]:
            return out
        return (out[0][:, : noisy.shape[1]],)  # the published ones also predict a variance, which no sampler uses

    def read(self, captions):
        text, mask, _, _ = self.pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.tokens
        )
        return {"text": text, "mask": mask}

    @property
    def tokens(self) -> int:
        """Of a prompt: with 120 the published ones were trained, whatever their T5 can read."""
        return min(120, self.pipe.tokenizer.model_max_length)


class StableDiffusion3(DiffusersGenerator):
    """`diffusers.StableDiffusion3Pipeline`: two CLIP text encoders and no T5, a transformer in which pictures and words
    attend to each other, flow matching (Esser et al. 2024). Of the 256 zero tokens that the call puts in the place of a
    T5's there are none here: in a call of your own say max_sequence_length=0."""

    pipeline, part = "StableDiffusion3Pipeline", "transformer"
    opening = {"text_encoder_3": None, "tokenizer_3": None}  # the pipeline opens without them only if told so
    lora_targets = [*DiffusersGenerator.lora_targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    named = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    draws = staticmethod(flow_draws)

    @staticmethod
    def predict(denoiser, noisy, timesteps, told, return_dict=True):
        return denoiser(noisy, told["text"], told["pooled"], timesteps, return_dict=return_dict)

    def read(self, captions):
        text, _, pooled, _ = self.pipe.encode_prompt(
            *(captions, None, None), do_classifier_free_guidance=False, max_sequence_length=0
        )
        return {"text": text, "pooled": pooled}
