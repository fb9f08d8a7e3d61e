"""The language model: a small frozen GPT-2 of the world's captions, used only to measure how expected a caption is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.models import folder_digest


class Language:
    """`transformers.GPT2LMHeadModel`, trained on captions of the judge's split, which no chain ever sees."""

    def __init__(self, folder: str | Path, device: str = "cpu"):
        from transformers import AutoTokenizer, GPT2LMHeadModel

        self.digest, self.device = folder_digest(folder), torch.device(device)
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def surprise(self, captions: list[str], batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """(nats, tokens), each (n,): the negative log likelihood of every caption with its end token, and the number of
        tokens that it sums over. An empty caption is the end token alone. Longer captions are cut at the model's
        context, 64 tokens as `make pretrain` makes it."""
        if not captions:
            raise MMCollapseError("a set of captions is empty")
        nats, counts = [], []
        most = self.model.config.n_positions
        for start in range(0, len(captions), batch):
            rows = self.tokenizer(captions[start : start + batch], truncation=True, max_length=most).input_ids
            ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
            ids, mask = ids.to(self.device), mask.to(self.device)
            logp = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(2)
            picked = logp.gather(2, ids[:, 1:, None])[:, :, 0] * mask[:, 1:]
            nats.append(-picked.double().sum(1).cpu().numpy())
            counts.append(mask[:, 1:].sum(1).cpu().numpy())
        return np.concatenate(nats), np.concatenate(counts)
