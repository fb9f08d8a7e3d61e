"""Every generator of the zoo does what its diffusers pipeline does, in training and in sampling. The folders are made
here by their stages of pretraining, a few steps each."""

import json

import diffusers
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmcollapse.errors import MMCollapseError
from mmcollapse.models import generator, load, pretrain, pretrain_generators, score
from mmcollapse.models.generator import P_DROP, ImageDecoding, denoising_loss, flow_draws, noise_draws, noised, noising
from mmcollapse.models.score import card, named, write_cards
from mmcollapse.randomness import normal
from mmcollapse.train import Recipe, train

STAGES = pretrain_generators.GENERATORS
# name of the folder: class of its pipeline, what opening it needs, what its call needs
ZOO = {
    "generator": ("StableDiffusionPipeline", {}, {}),
    "generator-2": ("StableDiffusionPipeline", {}, {}),
    "generator-v": ("StableDiffusionPipeline", {}, {}),
    "generator-sdxl": ("StableDiffusionXLPipeline", {}, {}),
    "generator-pixart": (
        *("PixArtAlphaPipeline", {}),
        {"use_resolution_binning": False, "max_sequence_length": 24, "clean_caption": False},
    ),
    "generator-sd3": (
        *("StableDiffusion3Pipeline", {"text_encoder_3": None, "tokenizer_3": None}),
        {"max_sequence_length": 0},
    ),
}
PROMPTS = ["a large red star left of a small blue ring on a black background", "a small red circle", "a green star"]
# no output depends on them: queries of the words in the last block, where only the picture goes on
IDLE = {"generator-sd3": ("transformer_blocks.4.attn.add_q_proj", "transformer_blocks.4.attn.norm_added_q")}


def keys(n: int) -> list[tuple]:
    return [("test", i) for i in range(n)]


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, world):
    out = tmp_path_factory.mktemp("zoo")
    pretrain.pretrain(world, out, pretrain.tiny(pretrain.SCALES["scenes"]), "cpu", ["tokenizer", "vae", *ZOO])
    return out


@pytest.fixture(scope="module", params=ZOO)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(folder, name):
    """Opened once; tests that train open another."""
    return load(folder / name)


@pytest.fixture(scope="module")
def pipe(folder, name):
    kind, opening, _ = ZOO[name]
    pipe = getattr(diffusers, kind).from_pretrained(folder / name, **opening)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def data(model, world):
    some = world.sample("chain", range(6))
    return model.encode(some.images, [five[0] for five in some.captions])


def seen_by(denoiser, run) -> list[dict[str, torch.Tensor]]:
    """The conditions of every pass of the denoiser during run(), by the names of its parameters."""
    import inspect

    seen, signature = [], inspect.signature(type(denoiser).forward)

    def hook(module, args, options):
        given = dict(signature.bind(module, *args, **options).arguments)
        given |= given.get("added_cond_kwargs") or {}
        names = {"encoder_hidden_states", "pooled_projections", "text_embeds", "time_ids", "encoder_attention_mask"}
        seen.append({k: v.detach().clone() for k, v in given.items() if k in names and v is not None})

    handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return seen


# -- the pipeline ---------------------------------------------------------------------------------------------------


def test_the_pipeline_alone_makes_the_pictures_of_the_adapter(model, pipe, name, folder):
    kind, _, calling = ZOO[name]
    assert json.loads((folder / name / "model_index.json").read_text())["_class_name"] == kind == model.pipeline
    assert model.image_size == 64 and model.shape == (16, 8, 8)
    for guidance in (1.0, 3.0):
        settings = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "np"} | calling
        theirs = pipe(PROMPTS, latents=normal(keys(3), model.shape), **settings).images
        made = model.make(PROMPTS, ImageDecoding(3, guidance), keys(3))
        assert made.shape == theirs.shape == (3, 64, 64, 3) and made.dtype == np.uint8
        assert levels(made, (theirs * 255).round()) <= 1 and levels(made[0], made[1]) > 20
    assert model.make(PROMPTS[:1], ImageDecoding(1, 3.0), keys(1)).shape == (1, 64, 64, 3)  # one step is enough


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 7])
def test_what_a_gpu_makes_is_what_the_pipeline_makes(model, steps, guidance, monkeypatch):
    """The two ways to sample: our loop, which a graph can hold, and the pipeline's. Compared as latents."""
    monkeypatch.setattr(model, "decode", lambda latents: latents.numpy())
    decoding, noise = ImageDecoding(steps, guidance), normal(keys(3), model.shape)

    def ours(prompts):
        with torch.no_grad():
            return model._denoise(model.conditions(prompts) | {"noise": noise}, **vars(decoding)).numpy()

    theirs = model.make(PROMPTS, decoding, keys(3))
    same, other = np.abs(ours(PROMPTS) - theirs).max(), np.abs(ours(PROMPTS[::-1]) - theirs)[[0, 2]].max()
    assert same < 1e-5 < 3e-4 < other < np.abs(theirs).max()


def test_the_card_says_how_to_open_it(folder, name, tmp_path):
    """Its snippet runs, from any folder, and makes a picture."""
    what, snippet = card(name)
    *lines, last = snippet.format(folder=folder / name).splitlines()
    here = {}
    exec("\n".join([*lines, f"picture = {last}"]), here)
    assert here["picture"].size == (64, 64) and what.startswith("Generator")


def test_the_null_condition_of_sampling_is_that_of_training(model, pipe, data, name):
    """What the denoiser is told without a caption: by the pipeline called plainly, by `make`, and by `loss`."""
    calling = ZOO[name][2]
    settings = {"guidance_scale": 3, "num_inference_steps": 2, "output_type": "latent"}
    denoiser = getattr(pipe, model.part)
    plain = seen_by(denoiser, lambda: pipe(PROMPTS, **settings, **calling))
    made = seen_by(model.denoiser, lambda: model.make(PROMPTS, ImageDecoding(2, 3.0), keys(3)))
    batch = data | model.draw(6, torch.Generator().manual_seed(0))
    batch["drop"] = torch.tensor([0.0, P_DROP - 1e-6, P_DROP, 0.5, 0.99, 0.0])
    with torch.no_grad():
        (trained,) = seen_by(model.denoiser, lambda: model.loss(batch))
    dropped = batch["drop"] < P_DROP
    assert len(plain) == len(made) == 2
    for theirs, ours in zip(plain, made, strict=True):
        assert set(theirs) == set(ours) == set(trained)
        for what, rows in theirs.items():
            assert len(rows) == len(ours[what]) == 6 and torch.allclose(rows.float(), ours[what].float(), atol=1e-5)
            null = rows[0].float()
            assert torch.allclose(rows[:3].float(), null.expand_as(rows[:3]), atol=1e-5)
            # the rows of dropped captions, and no others but those of conditions that are always the same
            same = [torch.allclose(row.float(), null, atol=1e-5) for row in trained[what]]
            assert same == ([True] * 6 if what == "time_ids" else dropped.tolist()), what
    if name == "generator-sdxl":
        assert trained["time_ids"][0].tolist() == [64, 64, 0, 0, 64, 64]
        assert not trained["encoder_hidden_states"][0].any() and not trained["text_embeds"][0].any()
    if name == "generator-sd3":
        assert trained["encoder_hidden_states"].shape[1] == 24  # and no zeros in the place of a T5's


@pytest.mark.parametrize("guidance, passes", [(1.0, 1), (1.5, 2)])
def test_guidance_costs_what_it_says(model, guidance, passes):
    decoding = ImageDecoding(3, guidance)
    seen = seen_by(model.denoiser, lambda: model.make(PROMPTS, decoding, keys(3)))
    assert len(seen) == 3
    assert sum(len(told["encoder_hidden_states"]) for told in seen) == 3 * 3 * passes == 3 * decoding.passes()


def test_pictures_do_not_depend_on_batch_or_order(model):
    decoding = ImageDecoding(2, 3.0)
    whole = model.make(PROMPTS, decoding, keys(3))
    for size in (1, 2):
        assert levels(model.make(PROMPTS, decoding, keys(3), batch=size), whole) <= 1
    torch.manual_seed(5)
    assert levels(model.make(PROMPTS[::-1], decoding, keys(3)[::-1]), whole[::-1]) <= 1


# -- training -------------------------------------------------------------------------------------------------------


def test_gradients_reach_all_that_is_trained_and_nothing_else(folder, name, data):
    model = load(folder / name)
    model.loss(data | model.draw(6, torch.Generator().manual_seed(0))).backward()
    reached = {n for n, p in model.denoiser.named_parameters() if p.grad is not None and p.grad.any()}
    idle = {n for n in model.trainable() if n.startswith(IDLE.get(name, ("nothing",)))}
    assert set(model.trainable()) - reached == idle
    for part, module in model.pipe.components.items():
        if isinstance(module, torch.nn.Module) and part != model.part:
            assert not any(p.requires_grad or p.grad is not None for p in module.parameters()), part


def test_training_moves_the_denoiser_alone_and_can_be_held_and_put_back(folder, name, data):
    model, other = load(folder / name), load(folder / name)
    frozen = {
        (part, n): v.clone()
        for part, module in model.pipe.components.items()
        if isinstance(module, torch.nn.Module) and part != model.part
        for n, v in module.state_dict().items()
    }
    before = {n: p.detach().clone() for n, p in model.trainable().items()}
    decoding = ImageDecoding(2, 2.0)
    base = model.make(PROMPTS, decoding, keys(3))
    recipe = Recipe(steps=3, batch=4, lr=1e-2, warmup=1)
    train(model.loss, list(model.trainable().values()), data, model.draw, recipe, ("fit",))
    assert frozen and all(torch.equal(getattr(model.pipe, part).state_dict()[n], v) for (part, n), v in frozen.items())
    assert all(not torch.equal(p, before[n]) for n, p in model.trainable().items())
    after = model.make(PROMPTS, decoding, keys(3))
    assert levels(after, base) > 0
    state = {n: p.detach().clone() for n, p in model.trainable().items()}
    for weights, pictures in ((state, after), (before, base)):
        with torch.no_grad():
            for n, p in other.trainable().items():
                p.copy_(weights[n])
        assert np.array_equal(other.make(PROMPTS, decoding, keys(3)), pictures)


def test_lora_trains_its_own_parameters_in_every_attention(folder, name, data):
    model = load(folder / name)
    base = model.make(PROMPTS, ImageDecoding(2, 2.0), keys(3))
    model.prepare("lora", 2)
    named = model.trainable()
    assert named and all("lora_" in n for n in named)
    inside = {n.split(".lora_")[0] for n in named}
    attentions = [n for n, m in model.denoiser.named_modules() if type(m).__name__ == "Attention"]
    targets = 4 * len(attentions) + (4 * len(attentions) - 1 if name == "generator-sd3" else 0)
    assert len(inside) == targets  # SD3's last block gives no words back
    assert np.array_equal(model.make(PROMPTS, ImageDecoding(2, 2.0), keys(3)), base)
    before = {n: p.detach().clone() for n, p in model.denoiser.named_parameters()}
    train(model.loss, list(named.values()), data, model.draw, Recipe(steps=2, batch=4, lr=1e-2, warmup=1), ("fit",))
    moved = {n for n, p in model.denoiser.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= set(named)


def test_a_perfect_predictor_has_no_loss_and_a_wrong_one_its_squared_error(model, data, monkeypatch):
    batch = data | model.draw(6, torch.Generator().manual_seed(1))
    x, noise, t = batch["latents"], batch["noise"], batch["timesteps"]
    if model.pipeline == "StableDiffusion3Pipeline":
        sigma = (t / 1000).view(-1, 1, 1, 1)
        noisy, target = (1 - sigma) * x + sigma * noise, noise - x
    else:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha = (1 - betas).cumprod(0)[t].float().view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
        velocity = model.pipe.scheduler.config.prediction_type == "v_prediction"
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * x if velocity else noise
    for error in (0.0, 0.5):

        def predict(denoiser, given, timesteps, told, return_dict, error=error):
            assert torch.allclose(given, noisy, atol=1e-5) and torch.equal(timesteps, t)
            return (target + error,)

        monkeypatch.setattr(model, "predict", predict)
        assert float(model.loss(batch)) == pytest.approx(error**2, abs=1e-6)


class NothingRead(TorchDispatchMode):
    """Fails where the host reads a value of a tensor or makes one, which a CUDA graph could not record."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::equal"), name
        return function(*args, **kwargs or {})


def test_the_loss_works_in_half_precision_and_reads_nothing_on_the_host(model, data):
    batch = data | model.draw(6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = float(model.loss(batch))
        with torch.autocast("cpu", torch.bfloat16), NothingRead():
            half = model.loss(batch)
    assert float(half) == pytest.approx(plain, rel=0.05)


def test_the_losses_of_pretraining_read_nothing_on_the_host(name, folder, world, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def look(loss, parameters, data, draw, *rest, **options):
        batch = {n: v[:8] for n, v in data.items()} | draw(8, torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16), NothingRead():
            value = loss(batch)
        value.backward()
        assert torch.isfinite(value) and all(p.grad is not None for p in parameters)
        raise Seen

    monkeypatch.setattr(pretrain, "train", look)
    run = pretrain.Run(world, folder, tmp_path, name, pretrain.tiny(pretrain.SCALES["scenes"]), "cpu", 0)
    with pytest.raises(Seen):
        STAGES[name](run)


def test_the_t5_of_pixart_is_trained_as_the_pipeline_calls_it(folder, world, tmp_path, monkeypatch):
    """With the mask and the text of the adapter."""
    found = {}
    monkeypatch.setattr(pretrain_generators, "fit", lambda run, stage: found.update(stage=stage) or 1 / 0)
    scale = pretrain.tiny(pretrain.SCALES["scenes"])
    run = pretrain.Run(world, folder, tmp_path, "generator-pixart", scale, "cpu", 0)
    with pytest.raises(ZeroDivisionError):
        STAGES["generator-pixart"](run)
    model = load(folder / "generator-pixart")
    found["stage"].trained["text_encoder"].load_state_dict(model.pipe.text_encoder.state_dict())
    ids = run.ids(["", *PROMPTS])
    with torch.no_grad():
        told, first = found["stage"].read(ids)
    wanted = model.conditions(["", *PROMPTS])
    there = wanted["mask"].bool()
    assert torch.equal(told["mask"], wanted["mask"]) and not there.all()
    assert torch.allclose(told["text"][there], wanted["text"][there], atol=1e-5)
    assert torch.equal(first, told["text"][:, 0])


def test_flow_draws_are_logit_normal():
    draws = flow_draws(4000, torch.Generator().manual_seed(0), (2, 2), 1000)
    z = torch.logit(draws["timesteps"].double() / 1000)
    assert abs(float(z.mean())) < 0.05 and abs(float(z.std()) - 1) < 0.05
    same = noise_draws(4000, torch.Generator().manual_seed(0), (2, 2), 1000)
    assert torch.equal(draws["noise"], same["noise"]) and torch.equal(draws["drop"], same["drop"])


def test_loss_weights_are_of_samples():
    scheduler = noising(diffusers.DDIMScheduler(), "cpu")
    draws = noise_draws(4, torch.Generator().manual_seed(0), (2, 3, 3), 1000)
    latents, weights = torch.zeros(4, 2, 3, 3), torch.tensor([0.0, 1.0, 2.0, 5.0])
    noisy, target = noised(scheduler, latents, draws)
    loss = denoising_loss(lambda *_, return_dict: (target + 1,), scheduler, latents, {}, draws, weights)
    assert float(loss) == pytest.approx(2.0)


# -- what lies in the folders ---------------------------------------------------------------------------------------


def test_components_are_stored_once_and_small(folder):
    for name in ZOO:
        links = {p.name: p.readlink().as_posix() for p in (folder / name).iterdir() if p.is_symlink()}
        assert links["tokenizer"] == "../tokenizer"
        if name != "generator-sd3":
            assert links["vae"] == "../vae"
        assert ("text_encoder" in links) == (name not in ("generator-pixart", "generator-sd3"))
    most = {"generator-sdxl": 3.8, "generator-pixart": 3.8, "generator-sd3": 6.0}
    for name, limit in most.items():
        part = folder / name / load(folder / name).part / "diffusion_pytorch_model.safetensors"
        assert part.stat().st_size < limit * 1e6
    assert (folder / "generator-pixart" / "text_encoder" / "model.safetensors").stat().st_size < 1.2e6


def test_another_seed_is_another_model(folder):
    first, second = (load(folder / name) for name in ("generator", "generator-2"))
    a, b = (dict(model.denoiser.config, _name_or_path="") for model in (first, second))
    assert first.digest != second.digest and a == b
    weights = zip(first.trainable().values(), second.trainable().values(), strict=True)
    assert any(not torch.allclose(a, b, atol=0.1) for a, b in weights)


def test_the_name_of_a_stage_tells_its_seed(tmp_path, world, monkeypatch):
    seeds = {}
    for name in ("generator", "generator-2", "generator-5", "generator-v"):
        monkeypatch.setitem(STAGES, name, lambda run: seeds.update({run.name: torch.initial_seed()}))
    scale = pretrain.tiny(pretrain.SCALES["scenes"])
    pretrain.pretrain(world, tmp_path, scale, "cpu", ["generator", "generator-2", "generator-5", "generator-v"], seed=7)
    assert seeds == {"generator": 7, "generator-2": 8, "generator-5": 11, "generator-v": 7}


def test_a_stage_says_what_it_needs(tmp_path, world):
    scale = pretrain.tiny(pretrain.SCALES["scenes"])
    with pytest.raises(MMCollapseError, match="generator-v needs .*text_encoder"):
        pretrain.pretrain(world, tmp_path, scale, "cpu", ["generator-v"])
    assert set(pretrain.SCALES["scenes"].zoo_generators) == set(ZOO) - {"generator"} <= set(STAGES)
    assert not pretrain.SCALES["photos"].zoo_generators  # one is enough where none can be good


def test_bad_folders_are_refused_by_name(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(MMCollapseError, match="'KandinskyPipeline'; generators known are 'StableDiffusionPipeline', "):
        load(tmp_path)
    known = [adapter.pipeline for adapter in generator.DiffusersGenerator.__subclasses__()]
    assert len(set(known)) == len(known) and all(hasattr(diffusers, name) for name in known)
    with pytest.raises(MMCollapseError, match="prediction_type 'sample'"):
        noising(diffusers.DDIMScheduler(prediction_type="sample"), "cpu")


def test_every_generator_is_scored_and_has_a_card(folder, tmp_path):
    (folder / "generator-3.part").mkdir(exist_ok=True)
    assert [n for n in named(folder, "generator") if n in ZOO] == sorted(ZOO)
    write_cards(folder, {"settings": "n = 3", "generator-sd3": {"seen: all right": 0.25}}, "scenes")
    text = (folder / "generator-sd3" / "README.md").read_text()
    assert "| seen: all right | 0.25 |" in text and "max_sequence_length=0" in text and "StableDiffusion3Pip" in text
    assert "3.7" in text.split(" M parameters")[0]  # its text encoder counts, its borrowed VAE does not
    assert "second seed" in (folder / "generator-2" / "README.md").read_text()
    assert card("generator-9") and card("judge-2") and not card("text_encoder")


def test_scores_of_models_that_lie_elsewhere_are_kept(tmp_path, world, monkeypatch):
    (tmp_path / "scores.json").write_text('{"generator": {"old": 1}, "generator-v": {"old": 1}, "settings": "old"}')
    monkeypatch.setattr(score, "score", lambda *_: {"generator": {"new": 2}})
    score.write_scores(world, tmp_path, "cpu", n=3)
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert kept["generator"] == {"new": 2} and kept["generator-v"] == {"old": 1} and "n = 3" in kept["settings"]
