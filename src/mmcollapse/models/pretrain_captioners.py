"""Stages of `make pretrain` that build captioners.

A stage says what its model is and with which processor it is saved; `_train` does the rest, and is the same for all.
Sizes: about a million parameters (BLIP-2, the first, 1.45 million), patches of 8 pixels, captions of up to 62 tokens
(the drifting schedule asks for 33 and more). All share the tokenizer. captioner-2 to -5 are BLIP-2 again, each from an
initialisation and with a data order of its own.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.models.captioner import Blip, Blip2, Captioner, Git, Idefics, VitGpt2
from mmcollapse.models.pretrain import Run, _heads, _image_settings, _put, _telling, half
from mmcollapse.worlds.grammar import BACKGROUNDS, COLOURS

P_RECOLOUR = 0.3  # share of a captioner's training pictures whose colours are changed and not to be named
POSITIONS = 64  # tokens of a caption, begin and end


def _words(tokenizer) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _eyes(run: Run, **others) -> dict:
    """The vision tower that all but BLIP-2 have."""
    size = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    return size | {"image_size": run.world.image_size, "patch_size": 8} | others


def _blip2(run: Run):
    """BLIP-2: vision tower, Q-Former and an OPT decoder."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    tokenizer = run.tokenizer()
    words = _words(tokenizer)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=112,
            intermediate_size=448,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=run.world.image_size,
            patch_size=8,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=224,
            encoder_hidden_size=112,
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            vocab_size=len(tokenizer),
            max_position_embeddings=16,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=112,
            ffn_dim=448,
            num_hidden_layers=3,
            num_attention_heads=4,
            word_embed_proj_dim=112,
            max_position_embeddings=16 + POSITIONS,
            dropout=0.0,
            **words,
        ).to_dict(),
        num_query_tokens=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config).to(run.device)
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    model.generation_config.update(**words)
    model.language_model.generation_config.update(**words)
    eye = BlipImageProcessor(**_image_settings(run.world.image_size))
    _train(run, Blip2, model, eye, Blip2Processor(eye, tokenizer, num_query_tokens=16))


def _blip(run: Run):
    """BLIP: a BERT-like decoder with cross attention."""
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    tokenizer = run.tokenizer()
    words = _words(tokenizer)
    config = BlipConfig(
        vision_config=BlipVisionConfig(**_eyes(run, initializer_range=0.02)).to_dict(),
        text_config=BlipTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            encoder_hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            sep_token_id=tokenizer.eos_token_id,  # where BLIP's own `generate` stops
            **words,
        ).to_dict(),
    )
    model = BlipForConditionalGeneration(config).to(run.device)
    model.generation_config.update(**words)
    eye = BlipImageProcessor(**_image_settings(run.world.image_size))
    _train(run, Blip, model, eye, BlipProcessor(eye, tokenizer))


def _git(run: Run):
    """GIT: one transformer that reads the patches and then the words."""
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor, GitVisionConfig

    tokenizer = run.tokenizer()
    words = _words(tokenizer)
    config = GitConfig(
        vision_config=GitVisionConfig(**_eyes(run)).to_dict(),
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=POSITIONS,
        **words,
    )
    model = GitForCausalLM(config).to(run.device)
    model.generation_config.update(**words)
    eye = CLIPImageProcessor(**_image_settings(run.world.image_size), do_center_crop=False)
    _train(run, Git, model, eye, GitProcessor(eye, tokenizer))


def _vit_gpt2(run: Run):
    """ViT and GPT-2 with cross attention, an encoder and a decoder that know nothing of each other."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    tokenizer = run.tokenizer()
    words = _words(tokenizer)
    starts = {"decoder_start_token_id": tokenizer.bos_token_id}
    decoder = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=96,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **words,
    )
    encoder = ViTConfig(**_eyes(run))
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **words, **starts)
    model = VisionEncoderDecoderModel(config=config).to(run.device)
    model.generation_config.update(**words, **starts)
    eye = ViTImageProcessor(**_image_settings(run.world.image_size))
    _train(run, VitGpt2, model, eye)


def _idefics(run: Run):
    """Idefics: a LLaMA-like decoder that looks at the patches between its layers, through gates. They start open: shut,
    as they come, they would guard a language model that is not there yet."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text, IdeficsImageProcessor
    from transformers.models.idefics.configuration_idefics import IdeficsVisionConfig

    tokenizer = run.tokenizer()
    words = _words(tokenizer)
    eyes = _eyes(run)
    config = IdeficsConfig(
        vision_config=IdeficsVisionConfig(embed_dim=eyes.pop("hidden_size"), **eyes).to_dict(),
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        alpha_initializer="ones",
        freeze_text_layers=False,
        freeze_vision_layers=False,
        **words,
    )
    model = IdeficsForVisionText2Text(config).to(run.device)
    model.generation_config.update(**words)
    eye = IdeficsImageProcessor(**_image_settings(run.world.image_size))
    _train(run, Idefics, model, eye)  # its own processor wants tokens around a picture that the tokenizer has not


CAPTIONERS = {
    "captioner": _blip2,
    "captioner-2": _blip2,
    "captioner-3": _blip2,
    "captioner-4": _blip2,
    "captioner-5": _blip2,
    "captioner-blip": _blip,
    "captioner-git": _git,
    "captioner-vit-gpt2": _vit_gpt2,
    "captioner-idefics": _idefics,
}
ZOO = ("captioner", "captioner-2", "captioner-blip", "captioner-git", "captioner-vit-gpt2", "captioner-idefics")
STEPS = {"captioner": 15_000} | {f"captioner-{k}": 10_000 for k in range(2, 6)}  # at most; others 8,000


def _train(run: Run, kind: type[Captioner], model: torch.nn.Module, eye, processor=None):
    """Train all of `model` from nothing on one random reference of each picture, and save it with its `processor`, or
    its image processor alone. kind: the adapter, whose loss this is.

    In a scene, what shape a thing has must not be read off its colour, or a pair that was never seen is named as one
    that was. So some pictures come with their colours changed, by a permutation of the channels, half of them as a
    negative; the colours that the decoder reads are then any colours, and those it should say are not counted. And what
    the decoder sees must also tell the attributes by itself, before any word is said."""
    tokenizer = run.tokenizer()
    images, ids, scenes, _ = run.data("base")
    ends = (ids == tokenizer.eos_token_id).int().cumsum(-1)  # padding is the end token too: all but the first end
    labels = torch.where((ends > 1) | (ids == tokenizer.bos_token_id), -100, ids)

    # the adapter's own loss, on a model that is not on disk yet
    adapter = kind.__new__(kind)
    adapter.model, adapter.mean, adapter.std = model, eye.image_mean[0], eye.image_std[0]
    adapter.image_size = model.get_submodule(kind.tower).config.image_size

    def words_of(*tables):
        ids = tokenizer.convert_tokens_to_ids([f"{w}</w>" for table in tables for ws in table.values() for w in ws])
        if scenes is not None and tokenizer.unk_token_id in ids:  # which is the end token, too
            raise MMCollapseError("the tokenizer splits the name of a colour: train it on more captions")
        return torch.tensor(ids, device=run.device)

    colours, any_colour = words_of(COLOURS), torch.zeros(len(tokenizer), dtype=torch.bool, device=run.device)
    any_colour[words_of(COLOURS, BACKGROUNDS)] = True
    channels = torch.tensor(list(permutations(range(3))), device=run.device)

    def loss(batch):
        which = batch["which"][:, None, None].expand(-1, 1, ids.shape[2])
        chosen = {name: batch[name].gather(1, which)[:, 0] for name in ("ids", "labels")}
        pixels, truth = batch["images"], {name: batch[name] for name in heads}
        if scenes is not None:
            change = batch["change"] < P_RECOLOUR
            order = channels[(batch["order"] * len(channels)).long()][:, None, None].expand_as(pixels)
            other = pixels.gather(3, order)
            other = torch.where((batch["negative"] < 0.5)[:, None, None, None], 255 - other, other)
            pixels = torch.where(change[:, None, None, None], other, pixels)
            hidden = any_colour[chosen["ids"]] & change[:, None]
            anything = colours[(batch["words"] * len(colours)).long()]
            chosen["ids"] = torch.where(hidden, anything, chosen["ids"])
            chosen["labels"] = torch.where(hidden, -100, chosen["labels"])
            for name in ("colour0", "colour1", "background"):
                truth[name] = torch.where(change, -1, truth[name])
        seen = adapter.features(pixels)
        return adapter.words_loss(seen, chosen) + _telling(heads, seen.flatten(1), truth)

    def draw(n, g):
        on = {"generator": g, "device": g.device}
        random = {k: torch.rand(n, **on) for k in ("change", "order", "negative")}
        return random | {"which": torch.randint(5, (n,), **on), "words": torch.rand((n, ids.shape[2]), **on)}

    model.train()
    data = {"images": images, "ids": ids, "labels": labels}
    with torch.no_grad():
        width = adapter.features(images[:1]).numel()
    heads = _heads(run, scenes, data, width)
    parameters = [p for p in model.parameters() if p.requires_grad] + list(heads.parameters())
    average = [p.detach().clone() for p in parameters]
    plan = run.scale.captioner
    run.train(loss, parameters, data, draw, replace(plan, steps=min(plan.steps, STEPS.get(run.name, 8_000))), average)
    _put(parameters, average)
    half(model.eval(), run.folder)
    for part in (processor,) if processor else (eye, tokenizer):
        part.save_pretrained(run.folder)
    run.link_tokenizer()
