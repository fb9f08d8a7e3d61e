"""Captioners: image to text with a transformers model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.models import add_lora, folder_digest, trainable
from mmcollapse.randomness import gumbel


@dataclass(frozen=True)
class CaptionDecoding:
    """What is spent on writing a caption. temperature: 0 is greedy (or beam) search, above 0 samples; top_k: 0 is off;
    top_p: 1 is off; beams: 1 is off; repetition_penalty: 1 is off; no_repeat: size of n-grams that may not come twice,
    0 is off; min_tokens, max_tokens: length in tokens, the end token not counted."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    repetition_penalty: float = 1.0
    no_repeat: int = 0
    min_tokens: int = 0
    max_tokens: int = 28

    def __post_init__(self):
        allowed = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, to 1 (off)"),
            "beams": (self.beams >= 1, "1 or more"),
            "repetition_penalty": (self.repetition_penalty >= 1, "1 (off) or more"),
            "no_repeat": (self.no_repeat >= 0, "0 (off) or more"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, "0 to max_tokens"),
        }
        for name, (good, what) in allowed.items():
            if not good:
                raise MMCollapseError(f"{name}={getattr(self, name)} of a caption decoding: allowed is {what}")


class _GumbelMax:
    """Turns greedy search into sampling: the argmax of logits plus Gumbel noise is a draw from their softmax (Gumbel
    1954). The noise is a sample's own, (n, max_tokens + 1, vocabulary), so the draw does not depend on the batch. With
    beams, every beam of a sample sees the sample's noise of that step, and the search runs on the perturbed scores."""

    def __init__(self, noise: torch.Tensor, prompt_length: int):
        self.noise, self.prompt_length = noise, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = self.noise[:, input_ids.shape[1] - self.prompt_length]
        return scores.float() + noise.repeat_interleave(scores.shape[0] // noise.shape[0], 0)


class Blip2:
    """`transformers.Blip2ForConditionalGeneration` with an OPT decoder. Q-Former, projection and decoder are trained;
    the vision tower is frozen, as in BLIP-2's own recipe (Li et al. 2023)."""

    kind = "captioner"
    lora_targets = ["q_proj", "k_proj", "v_proj", "out_proj", "query", "key", "value"]

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: str = "float32"):
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        self.digest = folder_digest(folder)
        self.model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.model.to(device).eval()
        self.model.vision_model.requires_grad_(False)
        self.processor = Blip2Processor.from_pretrained(folder, local_files_only=True)
        self.tokenizer = self.processor.tokenizer
        self.device, self.dtype = torch.device(device), dtype
        positions = self.model.config.text_config.max_position_embeddings
        self.max_tokens = positions - self.model.config.num_query_tokens - 2  # a begin and an end token stand beside
        vision = self.processor.image_processor
        self.mean = torch.tensor(vision.image_mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(vision.image_std, device=device).view(1, 3, 1, 1)

    def prepare(self, method: str, rank: int):
        """Choose what is trained: Q-Former, projection and decoder ("full") or LoRA layers in their attentions."""
        if method == "lora":
            add_lora(self.model, self.lora_targets, rank)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return trainable(self.model)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """(n, size, size, 3) uint8 to the (n, 3, size, size) float32 that the image processor would give."""
        return (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def encode(self, images: np.ndarray, captions: list[str]) -> dict[str, torch.Tensor]:
        """Training tensors of pairs: images (n, size, size, 3) uint8; ids (n, tokens): begin, caption, end, padding;
        labels (n, tokens): the same, -100 where nothing is to be learned. As many tokens as the longest caption has;
        captions longer than this captioner can write are cut at the end."""
        rows = self.tokenizer(captions, truncation=True, max_length=self.max_tokens + 2).input_ids
        tokens = max(len(row) for row in rows)
        ids = torch.full((len(captions), tokens), self.tokenizer.pad_token_id)
        labels = torch.full((len(captions), tokens), -100)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, 1 : len(row)] = torch.tensor(row[1:])  # begin is given, not learned
        images = torch.from_numpy(np.ascontiguousarray(images))
        return {k: v.to(self.device) for k, v in {"images": images, "ids": ids, "labels": labels}.items()}

    def draw(self, n: int, g: torch.Generator) -> dict[str, torch.Tensor]:
        return {}  # teacher forcing needs no random input

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The pictures as the decoder sees them: (n, queries, d) from uint8 (n, size, size, 3)."""
        seen = self.model.vision_model(self.pixels(images)).last_hidden_state
        queries = self.model.query_tokens.expand(len(images), -1, -1)
        asked = self.model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        return self.model.language_projection(asked)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of the next token. Padding stands on the right, where causal attention never looks, so no
        mask is needed."""
        return self.words_loss(self.features(batch["images"]), batch)

    def words_loss(self, prefix: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss, given the pictures as the decoder sees them (`features`)."""
        words = self.model.get_input_embeddings()(batch["ids"])
        logits = self.model.language_model(inputs_embeds=torch.cat([prefix, words], 1)).logits
        logits = logits[:, prefix.shape[1] : -1].flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100)

    @torch.no_grad()
    def make(self, images: np.ndarray, decoding: CaptionDecoding, keys: list[tuple], batch: int = 128) -> list[str]:
        """One caption a picture. images: (n, size, size, 3) uint8; keys: names of the samples' noise (see randomness),
        used when the temperature is above 0."""
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        if decoding.max_tokens > self.max_tokens:
            raise MMCollapseError(f"max_tokens={decoding.max_tokens}: this captioner writes at most {self.max_tokens}")
        prefix_length = self.model.config.num_query_tokens + 1
        out: list[str] = []
        for start in range(0, len(images), batch):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(self.device)
            processors = LogitsProcessorList()
            if decoding.temperature > 0:
                processors.append(TemperatureLogitsWarper(float(decoding.temperature)))
                keep = 2 if decoding.beams > 1 else 1
                if decoding.top_k:
                    processors.append(TopKLogitsWarper(decoding.top_k, min_tokens_to_keep=keep))
                if decoding.top_p < 1:
                    processors.append(TopPLogitsWarper(decoding.top_p, min_tokens_to_keep=keep))
                shape = (decoding.max_tokens + 1, self.model.config.text_config.vocab_size)
                noise = gumbel(keys[start : start + batch], shape).to(self.device)
                processors.append(_GumbelMax(noise, prefix_length))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                ids = self.model.generate(
                    pixel_values=self.pixels(part),
                    do_sample=False,
                    num_beams=decoding.beams,
                    max_new_tokens=decoding.max_tokens + 1,
                    min_new_tokens=decoding.min_tokens,
                    repetition_penalty=decoding.repetition_penalty,
                    no_repeat_ngram_size=decoding.no_repeat,
                    logits_processor=processors,
                )
            ids = ids[:, prefix_length : prefix_length + decoding.max_tokens]
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            out += [" ".join(t.split()) for t in texts]
        return out
