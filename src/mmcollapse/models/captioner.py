"""Captioners: image to text with a transformers model.

`Captioner` is what they share. A model of its own is a subclass that says which library class it is, where its vision
tower lies, what its decoder sees of a picture (`features`) and what it then expects of the next token (`logits`), and
what its `generate` wants to be given (`prompt`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.graphs import Recorded, castable, large, lowered, recording
from mmcollapse.memory import Fitting
from mmcollapse.models import add_lora, at_rest, folder_digest, opened, trainable
from mmcollapse.parallel import in_shares
from mmcollapse.randomness import gumbel, gumbel_rows

LONGEST = 62  # tokens of a caption, whatever a decoder has places for: COCO's longest has fewer
MANY_WORDS = 2**12  # of larger vocabularies each token's noise is drawn when it is needed, on the device


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

    def plain(self) -> bool:
        """Whether it is greedy search or ancestral sampling, of any length up to the longest."""
        return self == CaptionDecoding(temperature=self.temperature, max_tokens=self.max_tokens)


class _GumbelMax:
    """Turns greedy search into sampling: the argmax of logits plus Gumbel noise is a draw from their softmax (Gumbel
    1954). The noise is a sample's own, so the draw does not depend on the batch. With beams, every beam of a sample
    sees the sample's noise of that step, and the search runs on the perturbed scores.

    noise: called with 0, 1, ... for the noise (n, vocabulary) of each token."""

    def __init__(self, noise: Callable[[int], torch.Tensor], prompt_length: int):
        self.noise, self.prompt_length = noise, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = self.noise(input_ids.shape[1] - self.prompt_length).to(scores.device)
        return scores.float() + noise.repeat_interleave(scores.shape[0] // noise.shape[0], 0)


def _causal(tokens: int, device: torch.device, free: int = 0) -> torch.Tensor:
    """What attention adds, (1, 1, tokens, tokens), so that each token sees those before it; the first `free` see each
    other. Given whole, it spares the library from making its own, which copies from the host or looks at values: a CUDA
    graph can do neither."""
    place = torch.arange(tokens, device=device)
    return torch.where((place > place[:, None]) & (place >= free), torch.finfo(torch.float32).min, 0.0)[None, None]


class Captioner:
    """A captioning model of transformers. The vision tower is frozen and everything else is trained, as in BLIP-2's own
    recipe (Li et al. 2023).

    image_size: pixels a side of what the tower sees, to which pictures are resized as the image processor does;
    max_tokens: the longest caption, begin and end not counted."""

    kind = "captioner"
    architecture: str  # the model's class in transformers
    model_type: str  # what config.json calls it
    opens: str  # the class in transformers of its processor, or of its image processor alone
    tower: str  # the vision tower, a sub-module
    resizes = True  # pictures of another size are shown to the tower in its own
    lora_targets: list[str] | str  # sub-modules, by the end of their names, or a pattern of whole names

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: str = "float32"):
        import transformers

        self.digest = folder_digest(folder)
        architecture, opens = getattr(transformers, self.architecture), getattr(transformers, self.opens)
        # safetensors alone: other formats can run code when they are opened
        given = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        self.model = self.network = opened(folder, lambda: architecture.from_pretrained(folder, **given))
        self.model.to(device).eval()
        self.model.get_submodule(self.tower).requires_grad_(False)
        self.processor = opened(folder, lambda: opens.from_pretrained(folder, local_files_only=True))
        if hasattr(self.processor, "tokenizer"):
            self.tokenizer = self.processor.tokenizer
        else:
            # AutoTokenizer would in some versions (5.17) take the one that goes with the decoder
            name = json.loads((Path(folder) / "tokenizer_config.json").read_text())["tokenizer_class"]
            self.tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
        self.device, self.dtype = torch.device(device), dtype
        self.image_size = self.model.get_submodule(self.tower).config.image_size
        self.begin, self.end = self.ends()
        self.max_tokens = min(self.positions() - 2, LONGEST)  # a begin and an end token stand beside
        self.large, self.fitting = large(self.model), Fitting()
        self._next, self._seen = Recorded(self._next_token), Recorded(self._features)
        vision = getattr(self.processor, "image_processor", self.processor)
        self.mean = torch.tensor(vision.image_mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(vision.image_std, device=device).view(1, 3, 1, 1)

    def positions(self) -> int:
        """How many tokens the decoder can tell apart by their places."""
        raise NotImplementedError

    def ends(self) -> tuple[int, int]:
        """The tokens with which `generate` begins and ends a caption."""
        settings = self.model.generation_config
        begin = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
        end = settings.eos_token_id
        return begin, end[0] if isinstance(end, list) else end

    def vocabulary(self) -> int:
        """Of how many tokens `generate` chooses the next."""
        return self.model.get_input_embeddings().num_embeddings

    def words(self, captions: list[str]) -> list[list[int]]:
        """The tokens of each caption, without begin and end."""
        return self.tokenizer(captions, add_special_tokens=False).input_ids

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """What the vision tower, which chains never train, makes of pictures: (n, patches, d) from uint8 (n, size,
        size, 3)."""
        return self.model.get_submodule(self.tower)(self.pixels(images)).last_hidden_state

    def project(self, looked: torch.Tensor) -> torch.Tensor:
        """(n, places, d) for the decoder, of what the tower made of the pictures."""
        return looked

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The pictures as the decoder sees them: (n, places, d) from uint8 (n, size, size, 3)."""
        return self.project(self.look(images))

    def logits(self, seen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """What is expected after each token, (n, tokens, vocabulary), of `features` and ids (n, tokens). Padding stands
        on the right, where causal attention never looks, so no mask is needed."""
        raise NotImplementedError

    def prompt(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `generate` is given to write about `pixels` (n, 3, size, size)."""
        return {"pixel_values": pixels}

    def prompt_length(self) -> int:
        """Tokens that stand before the caption in what `generate` gives back: the begin token."""
        return 1

    def prepare(self, method: str, rank: int, targets: str = "", checkpointing: bool = False):
        """Choose what is trained, the vision tower never: all else ("full") or LoRA layers of `rank` ("lora") in the
        sub-modules whose names end in one of `targets`, comma-separated; "" is in the attentions. checkpointing: has
        no meaning here, for captions are short, and so are the activations of their tokens."""
        if method == "lora":
            if self.dtype == "bfloat16":
                at_rest(self.model)
            add_lora(
                self.model,
                [name.strip() for name in targets.split(",")] if targets else self.lora_targets,
                rank,
                self.tower,
            )

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Name -> parameter of what training moves."""
        return trainable(self.model)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """(n, side, side, 3) uint8 to the (n, 3, size, size) float32 that the image processor would give."""
        pictures = images.permute(0, 3, 1, 2).float()
        if pictures.shape[2] != self.image_size:
            size = (self.image_size, self.image_size)
            pictures = torch.nn.functional.interpolate(pictures, size, mode="bicubic", antialias=True)
            pictures = pictures.round().clamp(0, 255)
        return (pictures / 255 - self.mean) / self.std

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def _lowered(self):
        low = recording(self.device) and not self.large and self.dtype == "bfloat16"
        return lowered(castable(self.model) if low else [])

    @torch.no_grad()
    def encode(self, images: np.ndarray, captions: list[str]) -> dict[str, torch.Tensor]:
        """Training tensors of pairs: looked (n, patches, d), what the frozen tower makes of images (n, size, size, 3)
        uint8, once for all steps; ids (n, tokens): begin, caption, end, padding; labels (n, tokens): the same, -100
        where nothing is to be learned. As many tokens as the longest caption has; captions longer than this captioner
        can write are cut, and end there."""
        rows = [[self.begin, *row[: self.max_tokens], self.end] for row in self.words(captions)]
        tokens = max(len(row) for row in rows)
        if self.device.type != "cpu":  # few lengths: a graph is recorded for each
            tokens = min(-(-tokens // 8) * 8, self.max_tokens + 2)
        ids = torch.full((len(captions), tokens), self.tokenizer.pad_token_id)
        labels = torch.full((len(captions), tokens), -100)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, 1 : len(row)] = torch.tensor(row[1:])  # begin is given, not learned
        pictures = torch.from_numpy(np.ascontiguousarray(images))

        def looked(rows: int) -> torch.Tensor:
            with self._autocast():
                parts = [self.look(part.to(self.device)) for part in pictures.split(rows)]
            return torch.cat(parts)

        seen = self.fitting("pictures to look at", 256)(looked)
        return {"looked": seen, "ids": ids.to(self.device), "labels": labels.to(self.device)}

    @staticmethod
    def size(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What `loss` is a mean over: the tokens that are learned."""
        return (batch["labels"][:, 1:] != -100).sum()

    def draw(self, n: int, g: torch.Generator) -> dict[str, torch.Tensor]:
        """The random inputs of a training step of n pairs."""
        return {}  # teacher forcing needs no random input

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of the next token."""
        return self.words_loss(self.project(batch["looked"]), batch)

    def words_loss(self, seen: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss, given the pictures as the decoder sees them (`features`)."""
        logits = self.logits(seen, batch["ids"])[:, :-1].flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100)

    @in_shares
    @torch.no_grad()
    def make(self, images: np.ndarray, decoding: CaptionDecoding, keys: list[tuple], batch: int = 128) -> list[str]:
        """One caption a picture. images: (n, size, size, 3) uint8; keys: names of the samples' noise (see randomness),
        used when the temperature is above 0."""
        if decoding.max_tokens > self.max_tokens:
            raise MMCollapseError(f"max_tokens={decoding.max_tokens}: this captioner writes at most {self.max_tokens}")
        images, out = np.ascontiguousarray(images), []
        fitting = self.fitting("pictures to caption", batch)
        while (i := len(out)) < len(images):
            out += fitting(lambda n, i=i: self._made(images[i : i + n], decoding, keys[i : i + n]))
        return out

    def _made(self, images: np.ndarray, decoding: CaptionDecoding, keys: list[tuple]) -> list[str]:
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        part, noise = torch.from_numpy(images).to(self.device), None
        length, tokens = self.prompt_length(), decoding.max_tokens + 1
        if decoding.temperature > 0:
            noise = self._noise(keys, tokens)
        if recording(self.device) and not self.large and decoding.plain():
            whole = None if noise is None else torch.stack([noise(k) for k in range(tokens)], 1)
            return self._texts(self.write(part, decoding, whole))
        processors = LogitsProcessorList()
        if decoding.temperature > 0:
            processors.append(TemperatureLogitsWarper(float(decoding.temperature)))
            keep = 2 if decoding.beams > 1 else 1
            if decoding.top_k:
                processors.append(TopKLogitsWarper(decoding.top_k, min_tokens_to_keep=keep))
            if decoding.top_p < 1:
                processors.append(TopPLogitsWarper(decoding.top_p, min_tokens_to_keep=keep))
            processors.append(_GumbelMax(noise, length))
        with self._autocast():
            ids = self.model.generate(
                **self.prompt(self.pixels(part)),
                do_sample=False,
                num_beams=decoding.beams,
                max_new_tokens=tokens,
                min_new_tokens=decoding.min_tokens,
                repetition_penalty=decoding.repetition_penalty,
                no_repeat_ngram_size=decoding.no_repeat,
                logits_processor=processors,
            )
        return self._texts(ids[:, length : length + decoding.max_tokens])

    def _noise(self, keys: list[tuple], tokens: int) -> Callable[[int], torch.Tensor]:
        """A function of 0, 1, ... that gives the Gumbel noise (n, vocabulary) of each of so many tokens."""
        words = self.vocabulary()
        if words > MANY_WORDS:
            return gumbel_rows(keys, words, self.device)
        return partial(gumbel(keys, (tokens, words)).to(self.device).select, 1)

    def _texts(self, ids: torch.Tensor) -> list[str]:
        return [" ".join(t.split()) for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def write(self, images: torch.Tensor, decoding: CaptionDecoding, noise: torch.Tensor | None) -> torch.Tensor:
        """What `generate` writes under a plain decoding, (n, tokens) with padding after the end. At every token the
        whole caption so far is read anew: more arithmetic than with a cache of the past, but few kernels of one shape,
        which a graph can hold. images: (n, size, size, 3) uint8 on the device; noise: (n, max_tokens + 1, vocabulary)
        Gumbel noise, or None at temperature 0."""
        n, device = len(images), self.device
        ids = torch.full((n, decoding.max_tokens + 1), self.tokenizer.pad_token_id, device=device)
        ids[:, 0] = self.begin
        state = {"ids": ids, "ended": torch.zeros(n, dtype=torch.bool, device=device)}
        state |= {"at": torch.zeros(1, dtype=torch.long, device=device)}
        fixed = {"seen": self._seen({"images": images}).clone()}  # what comes next may overwrite it
        fixed |= {} if noise is None else {"noise": noise}
        for token in range(decoding.max_tokens):
            new = self._next(fixed | state, temperature=float(decoding.temperature), end=self.end)
            state = dict(zip(state, new, strict=True))
            if token % 8 == 7 and bool(state["ended"].all()):  # to ask is to wait for the GPU
                break
        return state["ids"][:, 1:]

    def _next_token(self, now: dict[str, torch.Tensor], temperature: float, end: int):
        """(ids, ended, at) with one token more."""
        with self._lowered(), self._autocast():
            scores = self.logits(now["seen"], now["ids"]).index_select(1, now["at"])[:, 0].float()
        if temperature > 0:
            scores = scores / temperature + now["noise"].index_select(1, now["at"])[:, 0]
        token = scores.argmax(-1).masked_fill(now["ended"], self.tokenizer.pad_token_id)
        at = now["at"] + 1
        return now["ids"].index_copy(1, at, token[:, None]), now["ended"] | (token == end), at

    def _features(self, now: dict[str, torch.Tensor]) -> torch.Tensor:
        with self._lowered(), self._autocast():
            return self.features(now["images"])


class Blip2(Captioner):
    """`Blip2ForConditionalGeneration` with an OPT decoder, which reads what the Q-Former's queries found (Li et al.
    2023) before the words."""

    architecture, opens, tower = "Blip2ForConditionalGeneration", "Blip2Processor", "vision_model"
    model_type = "blip-2"
    lora_targets = ["q_proj", "k_proj", "v_proj", "out_proj", "query", "key", "value"]

    def positions(self) -> int:
        return self.model.config.text_config.max_position_embeddings - self.model.config.num_query_tokens

    def ends(self) -> tuple[int, int]:
        text = self.model.config.text_config  # the published ones end a caption with a line feed
        return text.bos_token_id, text.eos_token_id

    def project(self, looked: torch.Tensor) -> torch.Tensor:
        queries = self.model.query_tokens.expand(len(looked), -1, -1)
        asked = self.model.qformer(query_embeds=queries, encoder_hidden_states=looked).last_hidden_state
        return self.model.language_projection(asked)

    def logits(self, seen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        words = self.model.get_input_embeddings()(ids)
        return self.model.language_model(inputs_embeds=torch.cat([seen, words], 1)).logits[:, seen.shape[1] :]

    def prompt_length(self) -> int:
        return self.model.config.num_query_tokens + 1


class Blip(Captioner):
    """`BlipForConditionalGeneration`: a BERT-like decoder, causal, with cross attention to the patches (Li et al.
    2022). The label smoothing of the library's own loss has no part in ours."""

    architecture, opens, tower = "BlipForConditionalGeneration", "BlipProcessor", "vision_model"
    model_type = "blip"
    lora_targets = ["query", "key", "value", "attention.output.dense", "crossattention.output.dense"]

    def positions(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def ends(self) -> tuple[int, int]:
        return self.model.config.text_config.bos_token_id, self.model.config.text_config.sep_token_id

    def logits(self, seen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        mask = _causal(ids.shape[1], ids.device)
        out = self.model.text_decoder(ids, attention_mask=mask, encoder_hidden_states=seen, use_cache=False)
        return out.logits

    def prompt(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        # of the begin token and one more, which its `generate` drops; without it, it warns
        return {"pixel_values": pixels, "attention_mask": torch.ones((len(pixels), 2), device=pixels.device).long()}


class Git(Captioner):
    """`GitForCausalLM`: one transformer reads the projected patches, which all see each other, and then the words
    (Wang et al. 2022)."""

    architecture, opens, tower = "GitForCausalLM", "GitProcessor", "git.image_encoder"
    model_type = "git"
    lora_targets = ["query", "key", "value", "attention.output.dense"]

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: str = "float32"):
        super().__init__(folder, device, dtype)
        self.model.git.embeddings.register_forward_pre_hook(self._count_words, with_kwargs=True)

    def _count_words(self, embeddings, args: tuple, given: dict):
        # Some versions of transformers (5.17) count the cached patches as words when they generate.
        past = given.get("past_key_values_length", 0)
        if past:
            first = past - self.model.git.encoder.layer[0].attention.self.image_patch_tokens
            place = torch.arange(given["input_ids"].shape[1], device=self.device) + first
            given = given | {"position_ids": place[None]}
        return args, given

    def positions(self) -> int:
        return self.model.config.max_position_embeddings

    def prompt(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels, "attention_mask": torch.ones((len(pixels), 1), device=pixels.device).long()}

    def project(self, looked: torch.Tensor) -> torch.Tensor:
        return self.model.git.visual_projection(looked)

    def logits(self, seen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        # GitModel's forward takes pictures only as pixels; this is what it does with them next.
        patches, hidden = seen.shape[1], torch.cat([seen, self.model.git.embeddings(ids)], 1)
        mask = _causal(hidden.shape[1], ids.device, patches)
        return self.model.output(self.model.git.encoder(hidden, mask).last_hidden_state[:, patches:])


class VitGpt2(Captioner):
    """`VisionEncoderDecoderModel` of a ViT and a GPT-2 with cross attention to the patches (as in Rothe et al. 2020, of
    text)."""

    architecture, opens, tower = "VisionEncoderDecoderModel", "ViTImageProcessor", "encoder"
    model_type = "vision-encoder-decoder"
    lora_targets = ["c_attn", "q_attn", "attn.c_proj", "crossattention.c_proj"]

    def positions(self) -> int:
        return self.model.config.decoder.max_position_embeddings

    def project(self, looked: torch.Tensor) -> torch.Tensor:
        return self.model.enc_to_dec_proj(looked) if hasattr(self.model, "enc_to_dec_proj") else looked

    def logits(self, seen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        words = self.model.get_input_embeddings()(ids)  # of ids GPT-2 would look whether they are padded, and wait
        return self.model.decoder(inputs_embeds=words, encoder_hidden_states=seen, use_cache=False).logits

    def prompt(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        begun = torch.ones((len(pixels), 1), device=pixels.device).long()  # without it GPT-2 warns
        return {"pixel_values": pixels, "decoder_attention_mask": begun}


class Idefics(Captioner):
    """`IdeficsForVisionText2Text`: a LLaMA-like decoder with gated cross attention to the patches between its layers
    (Flamingo, Alayrac et al. 2022). Its `generate` also wants `image_attention_mask` (n, 1, 1), ones: the one picture
    is seen by all words."""

    architecture, opens, tower = "IdeficsForVisionText2Text", "IdeficsImageProcessor", "model.vision_model"
    model_type = "idefics"
    lora_targets = r"model\.(layers|gated_cross_attn_layers)\..*\.[qkvo]_proj"  # the vision tower has some, too

    def positions(self) -> int:
        return self.model.config.max_position_embeddings

    def vocabulary(self) -> int:
        return super().vocabulary() + self.model.config.additional_vocab_size

    def logits(self, seen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        n, tokens = ids.shape
        return self.model(
            input_ids=ids,
            attention_mask=_causal(tokens, ids.device),
            position_ids=torch.arange(tokens, device=ids.device).expand(n, -1),
            image_encoder_embeddings=seen[:, None],
            image_attention_mask=torch.ones((n, tokens, 1), dtype=torch.long, device=ids.device),
            use_cache=False,
        ).logits

    def prompt(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = torch.ones((len(pixels), 1, 1), dtype=torch.long, device=pixels.device)
        return {"pixel_values": pixels[:, None], "image_attention_mask": seen}
