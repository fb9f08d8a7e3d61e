"""The path of real models, on stand-ins: published classes, parts, settings and folder layouts, few weights."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import run_experiment
from mmcollapse.full_size import full_size
from mmcollapse.graphs import compile_blocks
from mmcollapse.memory import AtOnce, Fitting
from mmcollapse.models import load
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.stand_ins import NAMES, SPACES, stand_in
from mmcollapse.randomness import normal
from mmcollapse.rates import read_rates
from mmcollapse.settings import load_settings
from mmcollapse.table import read_table
from mmcollapse.train import Recipe, train
from test_readme import photos

CAPTIONERS = ("Salesforce/blip-image-captioning-base", "Salesforce/blip2-opt-2.7b")
CAPTIONERS += ("microsoft/git-base-coco", "HuggingFaceM4/idefics-9b")
GENERATORS = tuple(name for name in NAMES if name not in (*SPACES.values(), *CAPTIONERS))
PROMPTS = ["a dog on the street", "two people in front of the red bus", "a cat with a table"]


def keys(n: int, name: str = "test") -> list[tuple]:
    return [(name, i) for i in range(n)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """{name on the hub: folder}."""
    folder = tmp_path_factory.mktemp("hub")
    return {name: stand_in(name, folder / name) for name in NAMES}


@pytest.fixture(scope="module", params=GENERATORS)
def generator(zoo, request):
    return load(zoo[request.param])


@pytest.fixture(scope="module", params=CAPTIONERS)
def captioner(zoo, request):
    return load(zoo[request.param])


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


# ---- generators


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("generator", GENERATORS[:2], indirect=True)  # the others' calls want settings of their own
def test_the_pipeline_alone_makes_the_pictures_of_the_adapter(generator, guidance):
    """With the published schedulers, PNDM and Euler, prompts as texts, and none of our code."""
    noise = normal(keys(3), generator.shape)
    told = {"num_inference_steps": 4, "guidance_scale": guidance, "latents": noise, "output_type": "np"}
    theirs = generator.pipe(PROMPTS, **told).images
    made = generator.make(PROMPTS, ImageDecoding(4, guidance), keys(3))
    assert made.shape == (3, 64, 64, 3) and made.dtype == np.uint8
    assert np.abs(made.astype(float) - (theirs * 255).round()).max() <= 1
    assert np.abs(made[0].astype(float) - made[1]).max() > 20


def test_what_a_gpu_makes_is_what_the_pipeline_makes(generator, monkeypatch):
    monkeypatch.setattr(generator, "decode", lambda latents: latents.numpy())
    noise, decoding = normal(keys(3), generator.shape), ImageDecoding(5, 3.0)
    with torch.no_grad():
        ours = generator._denoise(generator.conditions(PROMPTS) | {"noise": noise}, **vars(decoding)).numpy()
    theirs = generator.make(PROMPTS, decoding, keys(3))
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_a_large_model_is_made_in_batches_of_one_size_and_cut(generator, monkeypatch):
    """What is compiled for a GPU is compiled for one shape: the last batch is filled up."""
    seen, denoise = [], generator._denoise
    whole = generator.make(PROMPTS, ImageDecoding(3, 1.0), keys(3))

    def spy(given, **decoding):
        seen.append(len(given["noise"]))
        return denoise(given, **decoding)

    monkeypatch.setattr(generator, "large", True)
    monkeypatch.setattr(generator, "_denoise", spy)
    monkeypatch.setattr("mmcollapse.models.generator.recording", lambda device: True)
    made = generator.make(PROMPTS, ImageDecoding(3, 1.0), keys(3), batch=2)
    assert seen == [2, 2] and np.abs(made.astype(int) - whole).max() <= 1


@pytest.mark.parametrize("name, most", [(GENERATORS[0], 8), (GENERATORS[1], 0)])
def test_the_vae_of_a_large_model_computes_in_the_precision_that_it_needs(zoo, monkeypatch, name, most):
    """In bfloat16, but for that of SDXL."""
    model = load(zoo[name], dtype="bfloat16")
    latents = 0.2 * normal(keys(2), model.shape)
    whole = model.decode(latents).astype(int)
    monkeypatch.setattr(model, "large", True)
    apart = np.abs(model.decode(latents) - whole)
    assert apart.max() <= most and bool(apart.any()) == bool(most)


@pytest.mark.parametrize("name", GENERATORS)
def test_checkpointing_gives_the_same_gradients(zoo, pictures, name):
    """Without the state of the random generator, for nothing draws from it: no layer drops anything."""

    def gradients(checkpointing: bool):
        model = load(zoo[name])
        model.prepare("lora", 2, checkpointing=checkpointing)
        data = model.encode(pictures[:3], PROMPTS)
        model.loss(data | model.draw(3, torch.Generator().manual_seed(0))).backward()
        return model, [p.grad for p in model.trainable().values()]

    (_, ours), (model, theirs) = gradients(False), gradients(True)
    assert any(getattr(m, "gradient_checkpointing", False) for m in model.denoiser.modules())
    assert not any(m.p and m.training for m in model.denoiser.modules() if isinstance(m, torch.nn.Dropout))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert any(float(g.abs().max()) > 0 for g in ours)


@pytest.mark.parametrize("name", GENERATORS)
def test_compiled_blocks_compute_the_same_and_are_not_compiled_for_training(zoo, pictures, monkeypatch, name):
    """As on a GPU, less the kernels: with LoRA and checkpointing, each block once for every shape."""
    from torch._dynamo.utils import counters

    def graphs() -> int:
        return counters["stats"]["unique_graphs"]

    def used(compiled: bool):
        model = load(zoo[name])
        for part in (model.denoiser, model.pipe.vae.decoder) if compiled else ():
            compile_blocks(part, backend="aot_eager")
            units = [n for n, m in part.named_modules() if m._compiled_call_impl is not None]
            assert units and not any(a.startswith(f"{b}.") for a in units for b in units)
        model.prepare("lora", 2, checkpointing=True)
        made, before = [model.make(PROMPTS, ImageDecoding(2, 2.0), keys(3))], graphs()
        weights, losses, _ = fitted(model, pictures, 2)
        assert graphs() == before, "compiled for training"
        with torch.no_grad():
            torch._foreach_add_(list(model.trainable().values()), 0.3)  # three steps hardly change a picture
        made.append(model.make(PROMPTS, ImageDecoding(2, 2.0), keys(3)))
        assert graphs() == before, "compiled again after training"
        return made, losses, weights

    monkeypatch.setattr("mmcollapse.graphs.LARGE", 0)
    torch._dynamo.reset()
    counters.clear()
    (ours, losses, weights), (theirs, same, compiled) = used(False), used(True)
    assert graphs() >= 4 and not counters["graph_break"]
    (first, last), (same_first, same_last) = (np.stack(made).astype(int) for made in (ours, theirs))
    assert max(np.abs(first - same_first).max(), np.abs(last - same_last).max()) <= 2 < np.abs(first - last).max()
    assert losses == same and all(torch.equal(a, b) for a, b in zip(weights, compiled, strict=True))
    before = graphs()
    used(True)
    assert graphs() == before, "another model of the kind is compiled anew"


# ---- captioners


@pytest.mark.parametrize("captioner", CAPTIONERS[:3], indirect=True)  # all of them have the library's own resizing
def test_pictures_are_resized_as_the_image_processor_does(captioner):
    smooth = np.linspace(0, 255, 96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8)[None].repeat(2, 0)
    smooth[1] = smooth[1][::-1]
    eye = captioner.processor.image_processor
    theirs = eye(images=list(smooth), return_tensors="pt").pixel_values
    assert torch.allclose(captioner.pixels(torch.from_numpy(smooth)), theirs, atol=0.02)


def test_a_caption_ends_as_the_published_models_end_it(zoo, pictures):
    """BLIP begins with [DEC] and ends with [SEP]; BLIP-2 begins with </s> and ends with a line feed."""
    blip, blip2 = (load(zoo[name]) for name in CAPTIONERS[:2])
    assert blip.tokenizer.convert_ids_to_tokens([blip.begin, blip.end]) == ["[DEC]", "[SEP]"]
    assert blip2.tokenizer.convert_ids_to_tokens([blip2.begin, blip2.end]) == ["</s>", "\u010a"]
    for model in (blip, blip2):
        data = model.encode(pictures[:2], PROMPTS[:2])
        for ids, labels, words in zip(data["ids"], data["labels"], model.words(PROMPTS[:2]), strict=True):
            assert ids[: len(words) + 2].tolist() == [model.begin, *words, model.end]
            assert labels[: len(words) + 2].tolist() == [-100, *words, model.end]
            assert (labels[len(words) + 2 :] == -100).all()
        assert model._texts(data["ids"][:, 1:]) == PROMPTS[:2]


def test_a_caption_is_learned_and_ended(zoo):
    plain = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)[:, None, None].repeat(64, 1).repeat(64, 2)
    for name in CAPTIONERS[:3]:  # the letters of the fourth have no spaces
        model = load(zoo[name])
        data, recipe = model.encode(plain, PROMPTS), Recipe(300, 3, 1e-2, 5)
        train(model.loss, list(model.trainable().values()), data, model.draw, recipe, (name,), size=model.size)
        said = model.make(plain, CaptionDecoding(max_tokens=40), keys(3))
        assert said == PROMPTS, name


@pytest.mark.parametrize(
    "decoding",
    [
        CaptionDecoding(beams=5, max_tokens=10),
        CaptionDecoding(beams=2, max_tokens=8, no_repeat=2, repetition_penalty=1.3),
        CaptionDecoding(temperature=1.0, max_tokens=10),
        CaptionDecoding(temperature=0.7, top_k=20, top_p=0.9, beams=3, max_tokens=8),
    ],
)
def test_captions_by_batches_are_those_one_by_one(captioner, pictures, decoding):
    together = captioner.make(pictures, decoding, keys(5))
    assert together == [captioner.make(pictures[i : i + 1], decoding, keys(5)[i : i + 1])[0] for i in range(5)]
    assert len(set(together)) > 1 or not decoding.temperature


def test_noise_of_a_large_vocabulary_is_drawn_when_it_is_needed(captioner, pictures, monkeypatch):
    """And in the recorded way as in the library's."""
    decoding = CaptionDecoding(temperature=1.0, max_tokens=12)
    few = captioner.make(pictures, decoding, keys(5))
    monkeypatch.setattr("mmcollapse.models.captioner.MANY_WORDS", 0)
    many = captioner.make(pictures, decoding, keys(5))
    assert many != few and len(set(many)) > 1
    assert captioner.make(pictures[::-1], decoding, keys(5)[::-1], 2) == many[::-1]
    with monkeypatch.context() as patch:
        patch.setattr("mmcollapse.models.captioner.recording", lambda device: True)
        assert captioner.make(pictures, decoding, keys(5)) == many
    again = captioner.make(pictures, replace(decoding, top_k=50, beams=2), keys(5))
    assert again == captioner.make(pictures, replace(decoding, top_k=50, beams=2), keys(5), 3)


# ---- fine-tuning at scale


def prepared(folder, dtype="float32", method="full", **given):
    model = load(folder, "cpu", dtype)
    model.prepare(method, 2, **given)
    return model


def fitted(model, pictures, n: int, dtype="float32", steps=3):
    """The weights after some steps of 4 pairs, n at once, and what was said."""
    data = model.encode(
        pictures[[0, 1, 2, 3, 4, 0]], [*PROMPTS, "a dog", "the man on the street in front of a bus", "bus"]
    )
    at_once = AtOnce(n, "the pairs of a step", "train_batch")
    parameters = list(model.trainable().values())
    losses = train(
        *(model.loss, parameters, data, model.draw, Recipe(steps, 4, 1e-3, 1, dtype=dtype), ("fit",)),
        network=model.network,
        at_once=at_once,
        size=model.size,
        every=1,
    )
    return [p.detach().clone() for p in parameters], losses, at_once


@pytest.mark.parametrize("name", GENERATORS + CAPTIONERS)
def test_a_step_in_parts_is_the_step(zoo, pictures, name):
    """Also where captions differ in length, so that a part's mean is not over as many tokens as another's."""
    whole, losses, _ = fitted(prepared(zoo[name]), pictures, 4)
    for n in (3, 1):
        parts, same, _ = fitted(prepared(zoo[name]), pictures, n)
        assert np.allclose(losses, same, rtol=1e-5) and near(whole, parts)


def near(some, others) -> bool:
    """All but a few in a thousand the same: of a gradient near zero Adam takes the sign, which rounding decides."""
    off = torch.cat([(a - b).abs().flatten() for a, b in zip(some, others, strict=True)])
    return float((off > 2e-5).float().mean()) < 0.005


@pytest.mark.parametrize("name", GENERATORS + CAPTIONERS)
def test_out_of_memory_halves_the_batch_and_goes_on(zoo, pictures, name, capsys):
    """A GPU that holds one pair, in the middle of the backward pass of the second step and ever after."""
    whole, losses, _ = fitted(prepared(zoo[name]), pictures, 4)
    model, calls = prepared(zoo[name]), []
    loss = model.loss

    def small(batch):
        calls.append(len(batch["labels" if "labels" in batch else "latents"]))
        value = loss(batch)
        if len(calls) > 1 and calls[-1] > 1:
            value.backward(retain_graph=True)  # some gradients are there already
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return value

    model.loss = small
    parts, same, at_once = fitted(model, pictures, 4)
    assert at_once.n == 1 and np.allclose(losses, same, rtol=1e-5) and near(whole, parts)
    said = capsys.readouterr().err
    assert "from here on 2 of the pairs of a step at once (setting train_batch)" in said and "from here on 1" in said


def test_what_does_not_fit_at_all_is_said(zoo, pictures):
    def full(n):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(MMCollapseError, match=r"does not hold one of pictures to make \(CUDA out of memory\)"):
        AtOnce(4, "pictures to make", "compute_batch")(full)


def test_making_halves_its_batch_too(generator, captioner, pictures, monkeypatch, capsys):
    def of_two(made):
        def few(*args):
            if len(args[0]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return made(*args)

        return few

    five = (PROMPTS + PROMPTS)[:5]
    for model, given, decoding in (
        (generator, five, ImageDecoding(2, 3.0)),
        (captioner, pictures, CaptionDecoding(max_tokens=6)),
    ):
        whole = model.make(given, decoding, keys(5), 5)
        monkeypatch.setattr(model, "_made", of_two(model._made))
        again = model.make(given, decoding, keys(5), 5)
        same = whole == again if model is captioner else np.abs(whole.astype(int) - again).max() <= 1
        assert same and "setting compute_batch" in capsys.readouterr().err
        model.fitting = Fitting()


@pytest.mark.parametrize("name", GENERATORS + CAPTIONERS)
def test_frozen_weights_rest_in_bfloat16_and_lora_in_float32(zoo, pictures, name):
    """The same numbers as by casting at each use."""
    model, other = prepared(zoo[name], "bfloat16", "lora"), load(zoo[name], "cpu", "bfloat16")
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}
    frozen = [p for p in model.network.parameters() if not p.requires_grad]
    low = sum(p.numel() for p in frozen if p.dtype == torch.bfloat16)
    assert low > 0.4 * sum(p.numel() for p in frozen)
    if model.kind == "generator":
        decoding = ImageDecoding(2, 3.0)
        ours, theirs = model.make(PROMPTS, decoding, keys(3)), other.make(PROMPTS, decoding, keys(3))
        assert np.array_equal(ours, theirs)  # LoRA begins at nothing
    else:
        data = other.encode(pictures[:3], PROMPTS)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(model.loss(data), other.loss(data))
    _, losses, _ = fitted(model, pictures, 2, "bfloat16", steps=2)
    assert all(math.isfinite(x) for x in losses)


def test_lora_goes_where_the_settings_say(zoo):
    named = prepared(zoo[GENERATORS[0]], method="lora", targets="to_q,ff.net.2").trainable()
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in named} == {"to_q", "2"}
    named = prepared(zoo[CAPTIONERS[1]], method="lora", targets="fc1,fc2").trainable()
    assert named and all("language_model" in n for n in named)  # the frozen tower has such names, too
    with pytest.raises(MMCollapseError, match="nowhere"):
        prepared(zoo[CAPTIONERS[0]], method="lora", targets="nowhere")


# ---- what is wrong with a folder


@pytest.mark.parametrize(
    ("name", "break_it", "said"),
    [
        (GENERATORS[0], lambda f: shutil.rmtree(f / "vae"), "vae"),
        (GENERATORS[0], lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "unet"),
        (GENERATORS[1], lambda f: cut(f / "unet/diffusion_pytorch_model.safetensors"), "cannot be opened"),
        (GENERATORS[1], lambda f: scheduler(f, "NoSuchScheduler"), "NoSuchScheduler"),
        (GENERATORS[0], lambda f: scheduler(f, "PNDMScheduler", prediction_type="sample"), "prediction_type 'sample'"),
        (CAPTIONERS[0], lambda f: cut(f / "model.safetensors"), "cannot be opened"),
        (CAPTIONERS[1], lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "safetensors"),
        (CAPTIONERS[1], lambda f: [p.unlink() for p in f.glob("*processor*.json")], "cannot be opened"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_name(zoo, tmp_path, name, break_it, said):
    folder = tmp_path / "model"
    shutil.copytree(zoo[name], folder)
    break_it(folder)
    with pytest.raises(MMCollapseError, match=said):
        load(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def scheduler(folder, name, **changes):
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"][1] = name
    (folder / "model_index.json").write_text(json.dumps(index))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- chains


@pytest.fixture(scope="module")
def settings(zoo, tmp_path_factory):
    """Of a run on photos with stand-ins, LoRA in bfloat16, in parts."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "instruments").mkdir()
    for short, name in SPACES.items():
        (folder / "instruments" / short).symlink_to(zoo[name])
    told = {"world": "photos", "data": photos(folder / "data"), "instruments": str(folder / "instruments")}
    told |= {"generators": ",".join(str(zoo[n]) for n in GENERATORS[:2]), "spaces": "clip,dino", "grid_pairs": "4,8"}
    told |= {
        "captioners": ",".join(str(zoo[n]) for n in CAPTIONERS[:2]),
        "method": "lora",
        "rank": 2,
        "dtype": "bfloat16",
    }
    told |= {"train_batch": 2, "checkpointing": "yes", "students": 0, "lr_generator": 1e-3, "lr_captioner": 1e-3}
    return lambda experiment, where, **changes: load_settings(
        "smoke", experiment, **told | {n: str(where / n) for n in ("runs", "results", "figures")} | changes
    )


@pytest.mark.parametrize("experiment", ["01_variance", "02_decoding_budget", "03_diversity", "06_remedies"])
def test_every_protocol_runs_through_both_adapters(settings, tmp_path, experiment):
    run_experiment(experiment, settings(experiment, tmp_path))
    table = read_table(tmp_path / "results" / f"{experiment}.parquet")
    assert not json.loads((tmp_path / "results" / f"{experiment}.json").read_text())["failures"]
    assert set(table.space[table.value.notna()]) >= {"clip", "dino"} and table.generation.max() == 2
    assert {"real", "gen0"} < set(table.arm)


class Killed(BaseException):
    pass


def test_a_killed_chain_resumes_where_it_stopped(settings, tmp_path, monkeypatch):
    """LoRA included: the same weights and numbers as without the interruption."""
    some, steps, trained = {"arms": "recursive,real,gen0", "roles": "generator"}, [], train

    def counted(*args, **ways):
        steps.append(1)
        if len(steps) == 2:
            raise Killed
        return trained(*args, **ways)

    broken = settings("01_variance", tmp_path / "broken", **some)
    monkeypatch.setattr("mmcollapse.loop.train", counted)
    with pytest.raises(Killed):
        run_experiment("01_variance", broken)
    run_experiment("01_variance", broken)
    resumed = len(steps) - 1
    run_experiment("01_variance", settings("01_variance", tmp_path / "whole", **some))
    assert len(steps) - 1 - resumed == resumed == 5  # two generations of three arms, the first of two of them shared
    tables = [read_table(tmp_path / n / "results" / "01_variance.parquet") for n in ("broken", "whole")]
    order = ["arm", "seed", "generation", "measurement", "subset", "metric", "space", "model"]
    ours, theirs = (t.sort_values(order, ignore_index=True) for t in tables)
    assert (ours.hash == theirs.hash).all() and ours.value.equals(theirs.value)


@pytest.mark.parametrize("profile", ["single-gpu", "paper"])
def test_profiles_are_measured_from_making_to_a_whole_generation(profile, tmp_path, capfd, monkeypatch):
    """The very script that measures full size, on small ones; every rate that a plan asks for is in the table."""
    monkeypatch.setattr("mmcollapse.full_size.TRAINED", 5)
    own = load_settings(profile, device="cpu", image_size=64, compute_batch=2)
    full_size(own, tmp_path, tmp_path / "rates.json", full=False, seconds=0.01)
    said = capfd.readouterr().out
    assert "FAILED" not in said, said
    assert said.count("times as fast (wanted: ") == 4 and re.search(r"^  \d+ s in all", said, re.M), said
    found = {(rate.model, rate.work) for rate in read_rates(tmp_path / "rates.json")}
    generators, captioners = own.generators.split(",")[0], own.captioners.split(",")[0]
    assert found == {(generators, work) for work in ("denoise", "decode", "train")} | {
        *((captioners, work) for work in ("caption", "train")),
        *((space, "look") for space in SPACES),
    }


def test_a_lora_of_another_kind_is_another_model(settings, tmp_path):
    """In the store: by rank, by targets, and none at all."""
    names = set()
    for changes in ({}, {"rank": 3}, {"lora_generator": "to_q"}, {"method": "full"}):
        some = settings("01_variance", tmp_path, arms="real", roles="generator", generations=1, **changes)
        run_experiment("01_variance", replace(some, results=str(tmp_path / f"results{len(names)}")))
        names |= {p.name for p in (tmp_path / "runs").rglob("*") if (p / "weights.safetensors").is_file()}
    assert len(names) == 4
