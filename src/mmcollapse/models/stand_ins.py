"""Stand-ins for published models: the same classes, parts, settings and folder layout, with random weights. In full
size they cost what the real ones cost, and so `make bench` measures profiles of real models without their weights;
shrunk to some thousand parameters, tests run every protocol through them. What they make is noise."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Callable
from pathlib import Path

import torch

from mmcollapse.errors import MMCollapseError

NOISING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
RANGE = {True: 0.02, False: 0.5}  # of the first weights of eyes: the library's own, 1e-10, makes all pictures one
SOME = "a photo of man dog cat two people on the street in front of red bus with table".split()


def stand_in(name: str, folder: str | Path, full: bool = False, seed: int = 0, device: str = "cpu") -> Path:
    """Write a stand-in for the model called `name` on the hub (one of NAMES) into a folder, and return it. full: of the
    published size, in half precision on disk (SDXL 7 GB, BLIP-2 7.5 GB); else shrunk, 64 pixels a side. device: where
    the weights are drawn."""
    if name not in BUILDERS:
        raise MMCollapseError(f"stand-in for {name!r}: known are {', '.join(BUILDERS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]), torch.device(device):
        torch.manual_seed(seed)
        BUILDERS[name](folder, full)
    return folder


def _save(module: torch.nn.Module, folder: Path, full: bool):
    (module.half() if full else module).save_pretrained(folder, safe_serialization=True)


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level tokenizer as CLIP (words end in </w>), GPT-2 and OPT (spaces and line feeds
    are letters of their own) have it, which knows some words whole."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "\u0120", "\u010a"]
    merges = []
    for word, ends in itertools.product(SOME, (False, True)):
        parts = [*word[:-1], word[-1] + "</w>"] if ends else ["\u0120", *word]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    return {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}, merges


def _clip_tokenizer(folder: Path, pad: str = "<|endoftext|>"):
    from transformers import CLIPTokenizer

    vocabulary, merges = _byte_pairs()
    for token in ("<|startoftext|>", "<|endoftext|>", pad):
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _text_encoder(full: bool, tokenizer, width: int, layers: int, heads: int, act: str, projected: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width, layers, heads = (width, layers, heads) if full else (16, 2, 2)
    config = CLIPTextConfig(
        vocab_size=49_408 if full else len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _vae(full: bool, scaling: float, pixels: int):
    from diffusers import AutoencoderKL

    # four levels in both, so that a latent stands for 8 x 8 pixels
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if full else (8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2 if full else 1,
        latent_channels=4,
        norm_num_groups=32 if full else 4,
        sample_size=pixels if full else 64,
        scaling_factor=scaling,
    )


def _stable_diffusion(folder: Path, full: bool):
    from diffusers import PNDMScheduler, UNet2DConditionModel

    tokenizer = _clip_tokenizer(folder / "tokenizer")
    encoder = _text_encoder(full, tokenizer, 768, 12, 12, "quick_gelu", False)
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    unet = UNet2DConditionModel(
        sample_size=64 if full else 8,
        block_out_channels=(320, 640, 1280, 1280) if full else (16, 16),
        down_block_types=down if full else down[-2:],
        up_block_types=up if full else up[:2],
        layers_per_block=2 if full else 1,
        norm_num_groups=32 if full else 4,
        attention_head_dim=8 if full else 4,
        cross_attention_dim=encoder.config.hidden_size,
    )
    _save(unet, folder / "unet", full)
    _save(_vae(full, 0.18215, 512), folder / "vae", full)
    _save(encoder, folder / "text_encoder", full)
    PNDMScheduler(**NOISING, skip_prk_steps=True, set_alpha_to_one=False).save_pretrained(folder / "scheduler")
    # the published folder also lists a safety checker, which is not fetched
    parts = {"safety_checker": "stable_diffusion.StableDiffusionSafetyChecker", "scheduler": "diffusers.PNDMScheduler"}
    parts |= {"feature_extractor": "transformers.CLIPImageProcessor", "tokenizer": "transformers.CLIPTokenizer"}
    parts |= {"text_encoder": "transformers.CLIPTextModel", "unet": "diffusers.UNet2DConditionModel"}
    _index(folder, "StableDiffusionPipeline", parts | {"vae": "diffusers.AutoencoderKL"})


def _stable_diffusion_xl(folder: Path, full: bool):
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    first = _text_encoder(full, _clip_tokenizer(folder / "tokenizer"), 768, 12, 12, "quick_gelu", False)
    second = _text_encoder(full, _clip_tokenizer(folder / "tokenizer_2", "!"), 1280, 32, 20, "gelu", True)
    width, size = first.config.hidden_size + second.config.hidden_size, 256 if full else 8
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=128 if full else 8,
        block_out_channels=(320, 640, 1280) if full else (16, 16),
        down_block_types=(*down, down[1]) if full else down,
        up_block_types=(up[0], *up) if full else up,
        layers_per_block=2 if full else 1,
        norm_num_groups=32 if full else 4,
        attention_head_dim=[5, 10, 20] if full else [2, 4],
        transformer_layers_per_block=[1, 2, 10] if full else [1, 2],
        use_linear_projection=True,
        cross_attention_dim=width,
        addition_embed_type="text_time",
        addition_time_embed_dim=size,
        projection_class_embeddings_input_dim=second.config.projection_dim + 6 * size,
    )
    _save(unet, folder / "unet", full)
    _save(_vae(full, 0.13025, 1024), folder / "vae", full)
    _save(first, folder / "text_encoder", full)
    _save(second, folder / "text_encoder_2", full)
    EulerDiscreteScheduler(**NOISING, timestep_spacing="leading").save_pretrained(folder / "scheduler")
    parts = {"scheduler": "diffusers.EulerDiscreteScheduler", "text_encoder": "transformers.CLIPTextModel"}
    parts |= {"text_encoder_2": "transformers.CLIPTextModelWithProjection", "tokenizer": "transformers.CLIPTokenizer"}
    parts |= {"tokenizer_2": "transformers.CLIPTokenizer", "unet": "diffusers.UNet2DConditionModel"}
    told = {"force_zeros_for_empty_prompt": True}
    _index(folder, "StableDiffusionXLPipeline", parts | {"vae": "diffusers.AutoencoderKL"}, **told)


def _index(folder: Path, pipeline: str, parts: dict[str, str], **told):
    index = {"_class_name": pipeline, "_diffusers_version": "0.2.2"} | told
    index |= {name: part.split(".") for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _blip(folder: Path, full: bool):
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    letters = string.ascii_lowercase + string.digits + string.punctuation
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *SOME, "[DEC]"])
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(known)}, model_max_length=512)
    width, layers, heads, side = (768, 12, 12, 384) if full else (16, 2, 2, 32)
    both = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    both |= {"num_attention_heads": heads, "projection_dim": width}
    text = both | {"vocab_size": 30_524 if full else len(known), "encoder_hidden_size": width}
    text |= {"bos_token_id": len(known) - 1, "eos_token_id": 2, "pad_token_id": 0}
    text |= {"sep_token_id": tokenizer.sep_token_id, "max_position_embeddings": 512 if full else 64}
    vision = both | {"image_size": side, "patch_size": 16, "initializer_range": RANGE[full]}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=width))
    _save(model, folder, full)
    BlipProcessor(BlipImageProcessor(size={"height": side, "width": side}), tokenizer).save_pretrained(folder)


def _blip2(folder: Path, full: bool):
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        GPT2Tokenizer,
    )

    vocabulary, merges = _byte_pairs()
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2} | {token: i + 3 for token, i in vocabulary.items()}
    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges, **names)
    line_feed, image = vocabulary["\u010a"], len(tokenizer)  # a caption ends with a line feed, as the published ones
    vision = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16}
    vision |= {"image_size": 224, "patch_size": 14, "initializer_range": RANGE[True]}
    qformer = {"encoder_hidden_size": 1408}
    text = {"vocab_size": 50_304, "hidden_size": 2560, "word_embed_proj_dim": 2560, "num_hidden_layers": 32}
    text |= {"num_attention_heads": 32, "ffn_dim": 10_240}
    if not full:
        few = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision, qformer = (few | {"intermediate_size": 32}, few | {"intermediate_size": 32, "encoder_hidden_size": 16})
        vision |= {"image_size": 32, "patch_size": 16, "initializer_range": RANGE[False]}
        qformer |= {"vocab_size": image + 1}
        text = few | {"vocab_size": image + 1, "word_embed_proj_dim": 16, "ffn_dim": 32, "max_position_embeddings": 80}
    text |= {"model_type": "opt", "bos_token_id": 2, "pad_token_id": 1, "eos_token_id": line_feed}
    queries = 32 if full else 4
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=queries,
        image_token_index=image,
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.02)
    _save(model, folder, full)
    side = config.vision_config.image_size
    eye = BlipImageProcessor(size={"height": side, "width": side})
    Blip2Processor(eye, tokenizer, num_query_tokens=queries).save_pretrained(folder)


def _clip(folder: Path, full: bool):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer, side = _clip_tokenizer(folder), 224 if full else 32
    text = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {"patch_size": 32}
    if not full:
        few = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        text, vision = text | few | {"vocab_size": len(tokenizer)}, few | {"image_size": side, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=512 if full else 16)
    _save(CLIPModel(config), folder, full)
    eye = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    CLIPProcessor(eye, tokenizer).save_pretrained(folder)


def _dino(folder: Path, full: bool):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    shape = {"image_size": 518} if full else {"image_size": 28, "hidden_size": 16, "num_attention_heads": 2}
    _save(Dinov2Model(Dinov2Config(patch_size=14, **shape)), folder, full)
    whole, cut = (256, 224) if full else (32, 28)
    eye = BitImageProcessor(size={"shortest_edge": whole}, crop_size={"height": cut, "width": cut})
    eye.save_pretrained(folder)


# ---- further families


def _pixart(folder: Path, full: bool):
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *string.ascii_lowercase, *(f"\u2581{word}" for word in SOME)]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in dict.fromkeys(pieces)], model_max_length=512)
    tokenizer.save_pretrained(folder / "tokenizer")
    text = {"d_model": 4096, "d_kv": 64, "d_ff": 10_240, "num_layers": 24, "num_heads": 64, "vocab_size": 32_128}
    if not full:
        text = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": len(tokenizer)}
    transformer = PixArtTransformer2DModel(
        sample_size=64 if full else 8,
        patch_size=2,
        out_channels=8,  # the second four a variance
        num_layers=28 if full else 2,
        num_attention_heads=16 if full else 2,
        attention_head_dim=72 if full else 8,
        cross_attention_dim=1152 if full else 16,
        caption_channels=text["d_model"],
    )
    _save(transformer, folder / "transformer", full)
    _save(T5EncoderModel(T5Config(**text, feed_forward_proj="gated-gelu")), folder / "text_encoder", full)
    _save(_vae(full, 0.18215, 512), folder / "vae", full)
    told = {name: value for name, value in NOISING.items() if name != "steps_offset"}
    DPMSolverMultistepScheduler(**told | {"beta_schedule": "linear"}).save_pretrained(folder / "scheduler")
    parts = {"scheduler": "diffusers.DPMSolverMultistepScheduler", "text_encoder": "transformers.T5EncoderModel"}
    parts |= {"tokenizer": "transformers.T5Tokenizer", "transformer": "diffusers.PixArtTransformer2DModel"}
    _index(folder, "PixArtAlphaPipeline", parts | {"vae": "diffusers.AutoencoderKL"})


def _stable_diffusion_3(folder: Path, full: bool):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    first = _text_encoder(full, _clip_tokenizer(folder / "tokenizer"), 768, 12, 12, "quick_gelu", True)
    second = _text_encoder(full, _clip_tokenizer(folder / "tokenizer_2", "!"), 1280, 32, 20, "gelu", True)
    pooled = first.config.projection_dim + second.config.projection_dim
    transformer = SD3Transformer2DModel(
        sample_size=128 if full else 8,
        patch_size=2,
        in_channels=16 if full else 4,
        out_channels=16 if full else 4,
        num_layers=24 if full else 2,
        num_attention_heads=24 if full else 2,
        attention_head_dim=64 if full else 8,
        joint_attention_dim=4096 if full else 32,  # that of a T5, to which the others are filled up
        caption_projection_dim=1536 if full else 16,
        pooled_projection_dim=pooled,
        pos_embed_max_size=192 if full else 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if full else (8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2 if full else 1,
        latent_channels=16 if full else 4,
        norm_num_groups=32 if full else 4,
        sample_size=1024 if full else 64,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    _save(transformer, folder / "transformer", full)
    _save(vae, folder / "vae", full)
    _save(first, folder / "text_encoder", full)
    _save(second, folder / "text_encoder_2", full)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    parts = {"scheduler": "diffusers.FlowMatchEulerDiscreteScheduler", "tokenizer": "transformers.CLIPTokenizer"}
    parts |= {"tokenizer_2": "transformers.CLIPTokenizer", "transformer": "diffusers.SD3Transformer2DModel"}
    parts |= {name: "transformers.CLIPTextModelWithProjection" for name in ("text_encoder", "text_encoder_2")}
    # the published folder also has a T5, which is not opened
    parts |= {"text_encoder_3": "transformers.T5EncoderModel", "tokenizer_3": "transformers.T5TokenizerFast"}
    _index(folder, "StableDiffusion3Pipeline", parts | {"vae": "diffusers.AutoencoderKL"})


def _git(folder: Path, full: bool):
    from transformers import BertTokenizer, CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    letters = string.ascii_lowercase + string.digits + string.punctuation
    known = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *SOME])
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(known)}, model_max_length=512)
    side, few = 224, {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, vision = {"vocab_size": 30_522}, {"image_size": side, "patch_size": 16}
    if not full:
        side, text = 32, few | {"vocab_size": len(known), "max_position_embeddings": 80}
        vision = few | {"image_size": side, "patch_size": 16, "initializer_range": RANGE[False]}
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    _save(GitForCausalLM(GitConfig(vision_config=vision, **text, **ends)), folder, full)
    eye = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    GitProcessor(eye, tokenizer).save_pretrained(folder)


def _idefics(folder: Path, full: bool):
    from transformers import IdeficsConfig, IdeficsForVisionText2Text, IdeficsImageProcessor, LlamaTokenizer

    pieces = dict.fromkeys(["<unk>", "<s>", "</s>", "\u2581", *string.ascii_lowercase, *string.digits])
    tokenizer = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], pad_token="<unk>")
    vision = {"embed_dim": 1280, "image_size": 224, "patch_size": 14, "num_hidden_layers": 32}
    vision |= {"num_attention_heads": 16, "intermediate_size": 5120}
    text, sampler = {"vocab_size": 32_000}, {}
    if not full:
        few = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        vision = few | {"embed_dim": 16, "image_size": 28, "patch_size": 14, "initializer_range": RANGE[False]}
        text = few | {"vocab_size": len(pieces), "hidden_size": 16, "max_position_embeddings": 80}
        text |= {
            "cross_layer_interval": 1,
            "alpha_initializer": "ones",
        }  # or the gates let nothing of a picture through
        sampler = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8}
    config = IdeficsConfig(
        vision_config=vision,
        perceiver_config={"use_resampler": True} | sampler,
        use_resampler=True,
        additional_vocab_size=2,  # <image> and a token around it
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **{"cross_layer_interval": 4} | text,
    )
    _save(IdeficsForVisionText2Text(config), folder, full)
    IdeficsImageProcessor(image_size=vision["image_size"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


BUILDERS: dict[str, Callable[[Path, bool], None]] = {
    "CompVis/stable-diffusion-v1-4": _stable_diffusion,
    "stabilityai/stable-diffusion-xl-base-1.0": _stable_diffusion_xl,
    "Salesforce/blip-image-captioning-base": _blip,
    "Salesforce/blip2-opt-2.7b": _blip2,
    "openai/clip-vit-base-patch32": _clip,
    "facebook/dinov2-base": _dino,
    "PixArt-alpha/PixArt-XL-2-512x512": _pixart,
    "stabilityai/stable-diffusion-3-medium-diffusers": _stable_diffusion_3,
    "microsoft/git-base-coco": _git,
    "HuggingFaceM4/idefics-9b": _idefics,
}
NAMES = tuple(BUILDERS)
SPACES = {"clip": "openai/clip-vit-base-patch32", "dino": "facebook/dinov2-base"}  # by the names of feature spaces
