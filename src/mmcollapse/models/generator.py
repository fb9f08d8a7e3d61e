"""Generators: text to image with a diffusers pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.models import add_lora, folder_digest, trainable
from mmcollapse.randomness import normal

# Share of training samples whose caption is dropped, so that the same U-Net also learns the unconditional score that
# classifier-free guidance needs (Ho and Salimans 2022; 0.1 as in Stable Diffusion).
P_DROP = 0.1


@dataclass(frozen=True)
class ImageDecoding:
    """What is spent on making a picture. steps: denoising steps (1-1000); guidance: classifier-free guidance scale,
    1 is the conditional model alone and costs one U-Net pass a step, anything above costs two."""

    steps: int
    guidance: float

    def __post_init__(self):
        if not 1 <= self.steps <= 1000:
            raise MMCollapseError(f"steps={self.steps} of an image decoding: allowed are 1 to 1000")
        if not 1 <= self.guidance <= 50:
            raise MMCollapseError(f"guidance={self.guidance} of an image decoding: allowed are 1 to 50")

    def passes(self) -> int:
        """U-Net passes a picture."""
        return self.steps * (2 if self.guidance > 1 else 1)


def denoising_loss(unet, scheduler, latents, text, draws, weights=None) -> torch.Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, eq. 14).

    latents (n, c, h, w); text (n, tokens, d): prompt embeddings; draws: from `noise_draws`; weights (n,) of the
    samples, 1 if not given.
    """
    noisy = scheduler.add_noise(latents, draws["noise"], draws["timesteps"])
    predicted = unet(noisy, draws["timesteps"], text, return_dict=False)[0]
    error = (predicted.float() - draws["noise"]) ** 2
    return error.mean() if weights is None else (error.flatten(1).mean(1) * weights).mean()


def noise_draws(n: int, g: torch.Generator, shape: tuple[int, ...], timesteps: int) -> dict[str, torch.Tensor]:
    """The random inputs of one training step: noise (n, *shape), timesteps (n,), drop (n,) uniform in [0, 1)."""
    on = {"generator": g, "device": g.device}
    return {
        "noise": torch.randn((n, *shape), **on),
        "timesteps": torch.randint(timesteps, (n,), **on),
        "drop": torch.rand(n, **on),
    }


class StableDiffusion:
    """`diffusers.StableDiffusionPipeline`: VAE, CLIP text encoder, U-Net with noise prediction. The U-Net is trained;
    VAE and text encoder are frozen."""

    kind = "generator"
    lora_targets = ["to_q", "to_k", "to_v", "to_out.0"]  # attention projections, as in diffusers' LoRA example

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: str = "float32"):
        from diffusers import DDPMScheduler, StableDiffusionPipeline

        self.digest = folder_digest(folder)
        self.pipe = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, local_files_only=True
        ).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.device, self.dtype = torch.device(device), dtype
        self.noising = DDPMScheduler.from_config(self.pipe.scheduler.config)
        self.noising.alphas_cumprod = self.noising.alphas_cumprod.to(device)
        self.pipe.vae.requires_grad_(False)
        self.pipe.text_encoder.requires_grad_(False)
        self.unet = self.pipe.unet
        if device != "cpu":
            self.unet.to(memory_format=torch.channels_last)
        self.null = self.embed([""])

    def prepare(self, method: str, rank: int):
        """Choose what is trained: all of the U-Net ("full") or LoRA layers in its attentions ("lora")."""
        if method == "lora":
            add_lora(self.unet, self.lora_targets, rank)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return trainable(self.unet)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    @torch.no_grad()
    def embed(self, captions: list[str]) -> torch.Tensor:
        """Prompt embeddings (n, tokens, d) float32. "" is the null condition, in training and in sampling."""
        unique = sorted(set(captions))
        out = []
        for start in range(0, len(unique), 256):
            ids = self.pipe.tokenizer(
                unique[start : start + 256],
                padding="max_length",
                truncation=True,
                max_length=self.pipe.tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids
            out.append(self.pipe.text_encoder(ids.to(self.device))[0].float())
        where = {caption: i for i, caption in enumerate(unique)}
        return torch.cat(out)[[where[c] for c in captions]]

    @torch.no_grad()
    def encode(self, images: np.ndarray, captions: list[str]) -> dict[str, torch.Tensor]:
        """Training tensors of pairs: latents (n, c, h, w), the VAE's posterior means, scaled; text (n, tokens, d).
        images: (n, size, size, 3) uint8."""
        latents = []
        for start in range(0, len(images), 256):
            pixels = torch.from_numpy(images[start : start + 256]).to(self.device)
            pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
            latents.append(self.pipe.vae.encode(pixels).latent_dist.mean * self.pipe.vae.config.scaling_factor)
        return {"latents": torch.cat(latents), "text": self.embed(captions)}

    def draw(self, n: int, g: torch.Generator) -> dict[str, torch.Tensor]:
        size, config = self.unet.config.sample_size, self.noising.config
        return noise_draws(n, g, (self.unet.config.in_channels, size, size), config.num_train_timesteps)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        text = torch.where((batch["drop"] < P_DROP)[:, None, None], self.null, batch["text"])
        return denoising_loss(self.unet, self.noising, batch["latents"], text, batch)

    @torch.no_grad()
    def make(self, captions: list[str], decoding: ImageDecoding, keys: list[tuple], batch: int = 64) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8, one a caption. keys: names of the samples' noise (see randomness);
        `batch` changes speed and memory, never a picture (to within 1e-4 before rounding)."""
        size = self.unet.config.sample_size
        out = []
        for start in range(0, len(captions), batch):
            text = self.embed(captions[start : start + batch])
            noise = normal(keys[start : start + batch], (self.unet.config.in_channels, size, size)).to(self.device)
            with self._autocast():
                latents = self.pipe(
                    prompt_embeds=text,
                    negative_prompt_embeds=self.null.expand_as(text),
                    latents=noise,
                    num_inference_steps=decoding.steps,
                    guidance_scale=decoding.guidance,
                    output_type="latent",
                ).images
            out.append(self.decode(latents.float()))
        return np.concatenate(out)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 of scaled latents (n, c, h, w)."""
        pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()
