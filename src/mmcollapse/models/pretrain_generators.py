"""Builds the generators: stages of `make pretrain` (see pretrain.py).

All of them denoise latents of the same autoencoder and are trained on the same pictures, captions and draws of noise;
they differ in architecture, in what they predict, and in who reads the caption. `generator` trains the text encoder
that the other Stable Diffusion pipelines borrow, frozen; those of a kind of their own train readers along with them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial

import torch

from mmcollapse.models.generator import (
    P_DROP,
    DiffusersGenerator,
    PixArt,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
    denoising_loss,
    noising,
    objective,
    sizes,
)
from mmcollapse.models.pretrain import (
    FACTOR,
    LATENTS,
    WIDTH,
    Run,
    _clip_text_config,
    _encode,
    _heads,
    _put,
    _telling,
    half,
)

MOST_WEIGHT = 20.0
UNET = {
    "in_channels": LATENTS,
    "out_channels": LATENTS,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "block_out_channels": (64, 96),  # 8x8 and 4x4
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "attention_head_dim": 4,  # the number of heads, whatever its name says
}
SECOND = 96  # width of SDXL's second text encoder
SHARED = {"vae": "../vae", "tokenizer": "../tokenizer"}
READER = {"text_encoder": "../text_encoder"}


@dataclass
class Stage:
    """What is trained, and with what. read: caption ids (n, tokens) -> (conditions of the denoiser, features (n, width)
    of a text encoder that is trained along, or None); trained: those text encoders, by their names in the pipeline;
    zeros: conditions of which no caption is zeros, not what is read from an empty one; links: parts of the pipeline's
    folder that are links; width: of the features."""

    adapter: type[DiffusersGenerator]
    denoiser: torch.nn.Module
    scheduler: object
    read: object
    trained: dict[str, torch.nn.Module] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    width: int = WIDTH


def fit(run: Run, stage: Stage):
    """Train the denoiser, and text encoders with it, on the VAE's latents. The squared error of the noise is weighted
    by 1 / alpha_bar, at most MOST_WEIGHT: that is the error of velocity (Salimans and Ho 2022). Unweighted, high noise,
    where what stands where is decided, counts for next to nothing.

    Where the truth is known, a text encoder also learns to tell the attributes of the scene, the left or top thing
    first. Who is meant to stand where is said by one word in the middle of a sentence, and a denoising loss alone finds
    that out last, if at all."""
    images, ids, scenes, _ = run.data("base")
    vae = autoencoder(run)
    data = {"latents": _encode(vae, images) * vae.config.scaling_factor, "ids": ids}
    del images
    forward, nothing = noising(stage.scheduler, run.device), run.ids([""]).to(run.device)
    weighted = objective(stage.scheduler) == "epsilon"
    denoise = partial(stage.adapter.predict, stage.denoiser)

    def loss(batch):
        one = batch["ids"].gather(1, batch["which"][:, None, None].expand(-1, 1, batch["ids"].shape[2]))[:, 0]
        dropped = batch["drop"] < P_DROP
        told, features = stage.read(torch.where(dropped[:, None], nothing, one))
        for name in stage.zeros:
            told[name] = torch.where(dropped.view(-1, *[1] * (told[name].ndim - 1)), 0.0, told[name])
        weights = (1 / forward.alphas_cumprod[batch["timesteps"]]).clamp(max=MOST_WEIGHT) if weighted else None
        total = denoising_loss(denoise, forward, batch["latents"], told, batch, weights)
        return total if features is None else total + _telling(heads, features, batch, ~dropped)

    def draw(n, g):
        which = {"which": torch.randint(5, (n,), generator=g, device=g.device)}
        return stage.adapter.draws(n, g, tuple(data["latents"].shape[1:]), 1000) | which

    heads = _heads(run, scenes if stage.trained else None, data, stage.width)
    modules = [stage.denoiser, *stage.trained.values(), heads]
    parameters = [p for module in modules for p in module.parameters()]
    average = [p.detach().clone() for p in parameters]
    recipe = run.scale.zoo_generators.get(run.name, run.scale.generator)
    run.train(loss, parameters, data, draw, recipe, average)
    _put(parameters, average)


def save(run: Run, stage: Stage, index: dict, **settings):
    """The folder of the pipeline: what is its own in half precision, what is shared by links. index: the components
    that the pipeline's class expects, name -> library and class, or None."""
    half(stage.denoiser, run.folder / stage.adapter.part)
    for name, module in stage.trained.items():
        half(module, run.folder / name)
    stage.scheduler.save_pretrained(run.folder / "scheduler")
    parts = {name: [None, None] if value is None else value.split(".") for name, value in index.items()}
    content = {"_class_name": stage.adapter.pipeline} | parts | settings
    (run.folder / "model_index.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for name, target in stage.links.items():
        run.link(name, target)


def autoencoder(run: Run):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(run.shared("vae"), dtype=torch.float32, local_files_only=True)
    return vae.to(run.device, memory_format=torch.channels_last)


def reader(run: Run):
    """The shared CLIP text encoder, frozen."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(run.shared("text_encoder"), dtype=torch.float32, local_files_only=True)
    return encoder.to(run.device).eval().requires_grad_(False)


def unet_for(run: Run, **settings):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(sample_size=run.world.image_size // FACTOR, **UNET | settings)
    return unet.to(run.device, memory_format=torch.channels_last)


def ddim(prediction: str = "epsilon"):
    # linear betas reach nearly pure noise, so that the colour of the background does not leak through to the last step
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction,
    )


STABLE_DIFFUSION = {
    "vae": "diffusers.AutoencoderKL",
    "text_encoder": "transformers.CLIPTextModel",
    "tokenizer": "transformers.CLIPTokenizer",
    "unet": "diffusers.UNet2DConditionModel",
    "scheduler": "diffusers.DDIMScheduler",
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
}


def _stable_diffusion(run: Run):
    """Text encoder and U-Net with noise prediction, trained together; the text encoder is then everyone's."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(_clip_text_config(run, run.tokenizer(), layers=4)).to(run.device)

    def read(ids):
        text = encoder(input_ids=ids)[0]
        return {"text": text}, text[:, -1]

    unet = unet_for(run, cross_attention_dim=WIDTH)
    stage = Stage(StableDiffusion, unet, ddim(), read, {"text_encoder": encoder}, links=SHARED | READER)
    fit(run, stage)
    half(stage.trained.pop("text_encoder"), run.out / "text_encoder")
    save(run, stage, STABLE_DIFFUSION, requires_safety_checker=False)


def _unet_alone(run: Run, prediction: str = "epsilon"):
    """Another U-Net of the same architecture, reading through the shared text encoder."""
    encoder = reader(run)

    def read(ids):
        with torch.no_grad():
            return {"text": encoder(input_ids=ids)[0]}, None

    unet = unet_for(run, cross_attention_dim=WIDTH)
    stage = Stage(StableDiffusion, unet, ddim(prediction), read, links=SHARED | READER)
    fit(run, stage)
    save(run, stage, STABLE_DIFFUSION, requires_safety_checker=False)


def _stable_diffusion_xl(run: Run):
    """A narrower U-Net that reads through two encoders: the shared one, and one of its own that is trained along and
    also gives the pooled text. As SDXL does, both give their last layer but one, and no caption is zeros."""
    from transformers import CLIPTextModelWithProjection

    first = reader(run)
    config = _clip_text_config(run, run.tokenizer(), layers=3, width=SECOND)
    second = CLIPTextModelWithProjection(config).to(run.device)

    def read(ids):
        with torch.no_grad():
            words = first(input_ids=ids, output_hidden_states=True).hidden_states[-2]
        own = second(input_ids=ids, output_hidden_states=True)
        text = torch.cat([words, own.hidden_states[-2]], -1)
        told = {"text": text, "pooled": own.text_embeds, "sizes": constant.expand(len(ids), -1)}
        return told, own.hidden_states[-2][:, -1]

    constant = sizes(run.world.image_size, 1, run.device)
    unet = unet_for(
        run,
        block_out_channels=(48, 72),
        norm_num_groups=12,
        cross_attention_dim=WIDTH + SECOND,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + SECOND,
    )
    stage = Stage(
        *(StableDiffusionXL, unet, ddim(), read, {"text_encoder_2": second}),
        zeros=("text", "pooled"),
        links=SHARED | READER | {"tokenizer_2": "../tokenizer"},
        width=SECOND,
    )
    fit(run, stage)
    index = {name: value for name, value in STABLE_DIFFUSION.items() if name != "safety_checker"} | {
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "tokenizer_2": "transformers.CLIPTokenizer",
    }
    save(run, stage, index, force_zeros_for_empty_prompt=True)


def _pixart(run: Run):
    """A transformer on single latents as tokens, with cross-attention to a small T5 that is trained along. Its first
    position, which attends to all the others, tells the scene."""
    from diffusers import PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = run.tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",  # of version 1.1
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    encoder = T5EncoderModel(config).to(run.device)
    transformer = PixArtTransformer2DModel(
        sample_size=run.world.image_size // FACTOR,
        patch_size=1,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        cross_attention_dim=128,
        caption_channels=WIDTH,
    ).to(run.device)
    begin_at_nothing(transformer, transformer.adaln_single.linear)

    def read(ids):
        # padding is the end token too: all but the first end, as the tokenizer's mask has it
        ends = (ids == tokenizer.eos_token_id).long().cumsum(-1)
        mask = ((ends == 0) | ((ends == 1) & (ids == tokenizer.eos_token_id))).long()
        # given whole, for the library's own begins by looking at values, which a CUDA graph cannot
        bias = torch.where(mask.bool(), 0.0, -1e4)[:, None, None].expand(-1, 1, ids.shape[1], -1)
        text = encoder(input_ids=ids, attention_mask=bias)[0]
        return {"text": text, "mask": mask}, text[:, 0]

    stage = Stage(PixArt, transformer, ddim(), read, {"text_encoder": encoder}, links=SHARED)
    fit(run, stage)
    index = {name: STABLE_DIFFUSION[name] for name in ("vae", "tokenizer", "scheduler")} | {
        "text_encoder": "transformers.T5EncoderModel",
        "transformer": "diffusers.PixArtTransformer2DModel",
    }
    save(run, stage, index)


def _stable_diffusion_3(run: Run):
    """Flow matching with a transformer of two streams. The places of SDXL's two text encoders are filled by one, and
    that of T5 is empty."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    encoder = CLIPTextModelWithProjection(_clip_text_config(run, run.tokenizer(), layers=4)).to(run.device)
    size = run.world.image_size // FACTOR
    transformer = SD3Transformer2DModel(
        sample_size=size,
        patch_size=1,
        in_channels=LATENTS,
        out_channels=LATENTS,
        num_layers=5,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=size,
        qk_norm="rms_norm",  # as in 3.5: attention stays finite in half precision
    ).to(run.device)
    blocks = transformer.transformer_blocks
    begin_at_nothing(transformer, *(norm.linear for b in blocks for norm in (b.norm1, b.norm1_context)))

    def read(ids):
        out = encoder(input_ids=ids, output_hidden_states=True)
        text, pooled = out.hidden_states[-2], out.text_embeds
        return {"text": torch.cat([text, text], -1), "pooled": torch.cat([pooled, pooled], -1)}, text[:, -1]

    weights = "diffusion_pytorch_model.safetensors"
    stage = Stage(
        *(StableDiffusion3, transformer, FlowMatchEulerDiscreteScheduler(), read, {"text_encoder": encoder}),
        links={
            "text_encoder_2": "text_encoder",
            "tokenizer": "../tokenizer",
            "tokenizer_2": "../tokenizer",
            f"vae/{weights}": f"../../vae/{weights}",
        },
    )
    fit(run, stage)
    index = {name: STABLE_DIFFUSION[name] for name in ("vae", "tokenizer", "feature_extractor", "image_encoder")} | {
        "text_encoder": "transformers.CLIPTextModelWithProjection",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "text_encoder_3": None,
        "tokenizer_2": "transformers.CLIPTokenizer",
        "tokenizer_3": None,
        "transformer": "diffusers.SD3Transformer2DModel",
        "scheduler": "diffusers.FlowMatchEulerDiscreteScheduler",
    }
    # the pipeline adds the VAE's shift_factor, which others leave out: the same weights with a config that says 0
    config = json.loads((run.shared("vae") / "config.json").read_text()) | {"shift_factor": 0.0}
    (run.folder / "vae").mkdir(exist_ok=True)
    (run.folder / "vae" / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save(run, stage, index)


@torch.no_grad()
def begin_at_nothing(transformer, *modulations):
    """Start as adaLN-Zero does (Peebles and Xie 2023): blocks add nothing and the output is zero."""
    for layer in (*modulations, transformer.proj_out):
        layer.weight.zero_()
        layer.bias.zero_()


GENERATORS = {
    "generator": _stable_diffusion,
    **{f"generator-{n}": _unet_alone for n in (2, 3, 4, 5)},  # the seed is told by the name
    "generator-v": partial(_unet_alone, prediction="v_prediction"),
    "generator-sdxl": _stable_diffusion_xl,
    "generator-pixart": _pixart,
    "generator-sd3": _stable_diffusion_3,
}
