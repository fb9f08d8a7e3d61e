"""The judge: a small frozen CLIP, trained on a split that no chain ever sees, used only to measure. Any other CLIP
opens as one too."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.images import check_images, in_threads, processed
from mmcollapse.models import folder_digest


class Judge:
    """`transformers.CLIPModel`; embeds pictures and captions in one space.

    Embeddings are (n, d) float32, not normalised; features of pictures for distances between sets are the same
    embeddings."""

    def __init__(self, folder: str | Path, device: str = "cpu"):
        from transformers import CLIPModel, CLIPProcessor

        self.digest, self.device = folder_digest(folder), torch.device(device)
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device).eval()
        self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.tokenizer, vision = self.processor.tokenizer, self.processor.image_processor
        self.mean = torch.tensor(vision.image_mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(vision.image_std, device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def images(self, images: np.ndarray, batch: int = 128) -> np.ndarray:
        """Embeddings (n, d) of pictures (n, size, size, 3) uint8; of another size than the model's they are resized and
        cropped by its own processor."""
        check_images(images)
        size, out = self.model.config.vision_config.image_size, []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            if part.shape[1:3] == (size, size):
                pixels = torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
                pixels = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
            else:
                pixels = in_threads(partial(processed, self.processor.image_processor), part)
                pixels = torch.from_numpy(pixels).to(self.device)
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            out.append(self.model.visual_projection(pooled).cpu().numpy())
        return np.concatenate(out)

    @torch.no_grad()
    def texts(self, captions: list[str], batch: int = 512) -> np.ndarray:
        """Embeddings (n, d) of captions; longer ones are cut at the model's context (22 words for the judge of scenes,
        75 tokens for CLIP)."""
        if not captions:
            raise MMCollapseError("a set of captions is empty")
        out = []
        captions, rows = np.unique(captions, return_inverse=True)
        captions = captions.tolist()
        for start in range(0, len(captions), batch):
            ids = self.tokenizer(
                captions[start : start + batch],
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).input_ids
            pooled = self.model.text_model(input_ids=ids.to(self.device)).pooler_output
            out.append(self.model.text_projection(pooled).cpu().numpy())
        return np.concatenate(out)[rows]
