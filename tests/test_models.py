"""The base models behind their two interfaces: our adapters do what the libraries do, sample by sample.

What depends on the weights is either a relation between two computations or kept in fixtures/versions.json, which also
says that other versions of the libraries compute the same. After new base models, `python tests/test_models.py` writes
it anew.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats

from mmcollapse.errors import MMCollapseError
from mmcollapse.metrics.truth import pictures_right
from mmcollapse.models import folder_digest, load
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import P_DROP, ImageDecoding, denoising_loss, noise_draws
from mmcollapse.models.judge import Judge
from mmcollapse.models.oracle import CLASSES, Oracle, read, targets
from mmcollapse.randomness import gumbel, normal
from mmcollapse.train import Recipe, train
from mmcollapse.worlds.grammar import COLOUR_NAMES, SHAPE_NAMES, Scene, Thing

FIXTURE = Path(__file__).parent / "fixtures" / "versions.json"
COMMAND = "python tests/test_models.py"
SAMPLED = CaptionDecoding(temperature=1.0)


@pytest.fixture(scope="module")
def batch(world):
    return world.sample("test", range(16))


@pytest.fixture(scope="module")
def prompts(batch):
    return [five[0] for five in batch.captions]


def keys(n: int, name: str = "test") -> list[tuple]:
    return [(name, i) for i in range(n)]


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference of two pictures or stacks of them, in levels of 0-255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def digest(module: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


# -- the libraries alone --------------------------------------------------------------------------------------------


def test_the_pipeline_alone_makes_the_pictures_of_the_adapter(generator, models_folder, prompts):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models_folder / "generator", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for guidance in (1.0, 3.0):
        made = generator.make(prompts[:3], ImageDecoding(4, guidance), keys(3))
        theirs = pipe(
            prompts[:3],
            latents=normal(keys(3), (pipe.unet.config.in_channels, 8, 8)),
            num_inference_steps=4,
            guidance_scale=guidance,
            output_type="np",
        ).images
        assert made.shape == (3, 64, 64, 3) and made.dtype == np.uint8
        assert levels(made, (theirs * 255).round()) <= 1
        assert made.std() > 10 and levels(made[0], made[1]) > 50


def test_the_pipeline_opens_without_any_setting(models_folder, prompts):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models_folder / "generator")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(prompts[0], num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)


def test_the_captioner_alone_writes_the_captions_of_the_adapter(captioner, models_folder, batch):
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    model = Blip2ForConditionalGeneration.from_pretrained(models_folder / "captioner", dtype=torch.float32).eval()
    processor = Blip2Processor.from_pretrained(models_folder / "captioner")
    inputs = processor(images=[Image.fromarray(i) for i in batch.images], return_tensors="pt")
    assert torch.allclose(inputs.pixel_values, captioner.pixels(torch.from_numpy(batch.images)), atol=1e-5)
    for beams in (1, 3):
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=29, num_beams=beams, do_sample=False)
        theirs = [" ".join(t.split()) for t in processor.batch_decode(ids, skip_special_tokens=True)]
        assert captioner.make(batch.images, CaptionDecoding(beams=beams), keys(16)) == theirs
        assert len(set(theirs)) > 10 and all(theirs)


def test_the_loss_is_the_librarys_with_image_tokens_placed_by_the_processor(captioner, batch, prompts):
    images, texts = batch.images[:6], prompts[:6]
    inputs = captioner.processor(
        images=[Image.fromarray(i) for i in images], text=texts, padding=True, return_tensors="pt"
    )
    labels = inputs.input_ids.clone()
    special = [captioner.model.config.image_token_id, captioner.tokenizer.bos_token_id]
    labels[(inputs.attention_mask == 0) | torch.isin(labels, torch.tensor(special))] = -100
    assert len({int(n) for n in (labels != -100).sum(1)}) > 1  # captions of several lengths
    with torch.no_grad():
        theirs = captioner.model(**inputs, labels=labels).loss
        mine = captioner.loss(captioner.encode(images, texts))
        mean = sum(
            captioner.loss(captioner.encode(images[[i]], [texts[i]])) * int((labels[i] != -100).sum()) for i in range(6)
        ) / int((labels != -100).sum())
    assert float(mine) == pytest.approx(float(theirs), rel=1e-5)
    assert float(mine) == pytest.approx(float(mean), rel=1e-5)  # padding of others does not count


@pytest.mark.parametrize("folder", ["judge", "judge-2"])
def test_the_judge_alone_gives_the_embeddings_of_the_adapter(folder, models_folder, batch, prompts):
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(models_folder / folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(models_folder / folder)
    inputs = processor(
        text=prompts, images=[Image.fromarray(i) for i in batch.images], padding=True, return_tensors="pt"
    )
    judge = Judge(models_folder / folder)
    with torch.no_grad():
        out = model(**inputs)
    for mine, theirs in ((judge.images(batch.images), out.image_embeds), (judge.texts(prompts), out.text_embeds)):
        mine = mine / np.linalg.norm(mine, axis=1, keepdims=True)
        assert np.abs(mine - theirs.numpy()).max() < 1e-5
    assert np.allclose(judge.images(batch.images, batch=5), judge.images(batch.images), atol=1e-4)
    assert np.allclose(judge.texts(prompts, batch=3), judge.texts(prompts), atol=1e-4)


def test_the_judge_finds_its_own_captions(judge, world):
    some = world.sample("test", range(60))
    x, y = judge.images(some.images), judge.texts([five[0] for five in some.captions])
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    found = [some.scenes[i] == some.scenes[k] for i, k in enumerate((x @ y.T).argmax(1))]
    assert np.mean(found) > 0.8


def test_two_judges_and_the_digests_tell_models_apart(models_folder, batch):
    first, second = (Judge(models_folder / name) for name in ("judge", "judge-2"))
    assert first.digest != second.digest and not np.allclose(first.images(batch.images), second.images(batch.images))
    assert first.digest == folder_digest(models_folder / "judge")


def test_a_folder_digest_follows_links_and_ignores_the_card(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "weights").write_bytes(b"12")
        (tmp_path / f"vae-{name}").mkdir()
        (tmp_path / f"vae-{name}" / "weights").write_bytes(b"34")
        (tmp_path / name / "vae").symlink_to(f"../vae-{name}")
    (tmp_path / "a" / "README.md").write_text("card")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    (tmp_path / "vae-b" / "weights").write_bytes(b"35")
    assert folder_digest(tmp_path / "a") != folder_digest(tmp_path / "b")


def test_no_caption_of_the_world_is_cut(generator, captioner, world):
    longest = (
        "against a lavender background a picture of a little moon in turquoise to the right of a huge star in golden"
    )
    captions = [longest] + [five[0] for five in world.sample("test-uniform", range(100)).captions]
    for tokenizer, limit in (
        (generator.pipe.tokenizer, generator.pipe.tokenizer.model_max_length),
        (captioner.tokenizer, 28 + 2),
    ):
        for caption in captions:
            ids = tokenizer(caption).input_ids
            assert len(ids) <= limit
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


# -- every sample has its own noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_do_not_depend_on_batch_or_order(generator, prompts, guidance):
    decoding = ImageDecoding(3, guidance)
    whole = generator.make(prompts[:7], decoding, keys(7), batch=64)
    for size in (1, 5):
        assert levels(generator.make(prompts[:7], decoding, keys(7), batch=size), whole) <= 1
    order = [4, 0, 6]
    torch.manual_seed(5)
    again = generator.make([prompts[i] for i in order], decoding, [keys(7)[i] for i in order])
    assert levels(again, whole[order]) <= 1
    other = generator.make(prompts[:2], decoding, keys(2, "other"))
    assert levels(other[0], whole[0]) > 20 and levels(other[1], whole[1]) > 20


@pytest.mark.parametrize(
    "decoding",
    [
        SAMPLED,
        CaptionDecoding(),
        CaptionDecoding(beams=3),
        CaptionDecoding(
            temperature=1.4, top_k=5, top_p=0.9, beams=2, repetition_penalty=1.3, no_repeat=2, min_tokens=9
        ),
    ],
    ids=["sampled", "greedy", "beams", "everything"],
)
def test_captions_do_not_depend_on_batch_or_order(captioner, batch, decoding):
    whole = captioner.make(batch.images, decoding, keys(16))
    for size in (1, 5):
        assert captioner.make(batch.images, decoding, keys(16), batch=size) == whole
    order = [9, 2, 15, 0]
    torch.manual_seed(5)
    again = captioner.make(batch.images[order], decoding, [keys(16)[i] for i in order])
    assert again == [whole[i] for i in order]
    other = captioner.make(batch.images, decoding, keys(16, "other"))
    assert (other != whole) == (decoding.temperature > 0)


# -- sampling -------------------------------------------------------------------------------------------------------


def first_logits(captioner, images: np.ndarray) -> torch.Tensor:
    """(n, vocabulary) logits of the first word."""
    return next_logits(captioner, images, [[captioner.tokenizer.bos_token_id]] * len(images))


@torch.no_grad()
def next_logits(captioner, images: np.ndarray, written: list[list[int]]) -> torch.Tensor:
    """Logits of the next token from one plain pass of the library's model, without generate and without a cache."""
    image_token, queries = captioner.model.config.image_token_id, captioner.model.config.num_query_tokens
    ids = torch.tensor([[image_token] * queries + row for row in written])
    return captioner.model(
        pixel_values=captioner.pixels(torch.from_numpy(images)), input_ids=ids, attention_mask=torch.ones_like(ids)
    ).logits[:, -1]


@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (1.7, 3)])
def test_sampled_words_follow_the_models_distribution(captioner, batch, temperature, top_k):
    """Gumbel-max: over many keys, first words come as often as the softmax says."""
    n = 1000
    decoding = CaptionDecoding(temperature=temperature, top_k=top_k, max_tokens=1)
    captions = captioner.make(np.repeat(batch.images[:1], n, 0), decoding, keys(n), batch=500)
    logits = first_logits(captioner, batch.images[:1])[0] / temperature
    if top_k:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    expected: dict[str, float] = {}
    for token, p in enumerate(logits.softmax(0).tolist()):
        word = captioner.tokenizer.decode([token], skip_special_tokens=True).strip()
        expected[word] = expected.get(word, 0.0) + p * n
    observed = [(c.split() or [""])[0] for c in captions]
    common = [w for w, e in expected.items() if e >= 5]
    counts, wanted = [observed.count(w) for w in common], [expected[w] for w in common]
    counts, wanted = [*counts, n - sum(counts)], [*wanted, n - sum(wanted)]
    if top_k:
        assert counts.pop() == 0 and wanted.pop() == pytest.approx(0, abs=1e-3)
    assert len(counts) >= 3
    assert stats.chisquare(counts, np.array(wanted) * sum(counts) / sum(wanted), axis=0).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_sampling_adds_the_samples_own_noise_of_each_step(captioner, batch, temperature):
    """Against sampling written out: argmax of logits / temperature + Gumbel noise of (key, step, token)."""
    n, vocabulary = 5, captioner.model.config.text_config.vocab_size
    end = captioner.tokenizer.eos_token_id
    made = captioner.make(batch.images[:n], CaptionDecoding(temperature=temperature), keys(n))
    noise = gumbel(keys(n), (29, vocabulary))
    for i in range(n):
        written = [captioner.tokenizer.bos_token_id]
        for step in range(29):
            logits = next_logits(captioner, batch.images[[i]], [written])[0]
            written.append(int((logits / temperature + noise[i, step]).argmax()))
            if written[-1] == end:
                break
        text = captioner.tokenizer.decode(written, skip_special_tokens=True)
        assert made[i] == " ".join(text.split())


def test_decoding_limits_are_kept(captioner, batch):
    def tokens(**settings):
        made = captioner.make(batch.images, CaptionDecoding(**settings), keys(16))
        return made, [len(captioner.tokenizer(c).input_ids) - 2 for c in made]

    free, plain = tokens()
    assert min(tokens(min_tokens=20)[1]) >= 20 > min(plain)
    repeated = tokens(min_tokens=24, no_repeat=2)[0]
    for caption in repeated:
        pairs = list(zip(caption.split(), caption.split()[1:], strict=False))
        assert len(set(pairs)) == len(pairs)
    assert tokens(repetition_penalty=3.0)[0] != free
    greedy = captioner.make(batch.images, CaptionDecoding(temperature=1.0, top_k=1), keys(16))
    assert greedy == free  # of one candidate there is one choice
    assert captioner.make(batch.images, CaptionDecoding(temperature=1.0, top_p=1e-6), keys(16)) == free


def test_a_caption_has_at_most_max_tokens(captioner, batch):
    made = captioner.make(batch.images, CaptionDecoding(max_tokens=3), keys(16))
    assert max(len(captioner.tokenizer(c).input_ids) - 2 for c in made) <= 3


def test_a_temperature_may_be_a_whole_number(captioner, batch):
    made = captioner.make(batch.images[:2], CaptionDecoding(temperature=1), keys(2))
    assert made == captioner.make(batch.images[:2], SAMPLED, keys(2))


# -- guidance and the null condition --------------------------------------------------------------------------------


def seen_by_unet(generator, run) -> list[torch.Tensor]:
    """The prompt embeddings of every U-Net pass during run()."""
    seen = []

    def hook(module, args, options):
        seen.append((args[2] if len(args) > 2 else options["encoder_hidden_states"]).detach().clone())

    handle = generator.denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("guidance, passes", [(1.0, 1), (1.5, 2), (3.0, 2)])
def test_guidance_costs_what_it_says(generator, prompts, guidance, passes):
    decoding = ImageDecoding(5, guidance)
    seen = seen_by_unet(generator, lambda: generator.make(prompts[:3], decoding, keys(3)))
    assert len(seen) == 5  # one call a denoising step
    assert sum(len(text) for text in seen) == 3 * 5 * passes == 3 * decoding.passes()


def test_the_null_condition_is_the_empty_prompt_in_training_and_in_sampling(generator, prompts):
    null, text = generator.conditions([""])["text"], generator.conditions(prompts[:6])["text"]
    assert torch.equal(generator.nothing["text"], null) and not torch.allclose(null, text[:1], atol=0.1)
    ids = generator.pipe.tokenizer("", padding="max_length", max_length=text.shape[1], return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(null, generator.pipe.text_encoder(ids)[0], atol=1e-6)

    sampling = seen_by_unet(generator, lambda: generator.make(prompts[:6], ImageDecoding(2, 3.0), keys(6)))
    for seen in sampling:
        assert torch.equal(seen[:6], null.expand_as(text)) and torch.equal(seen[6:], text)
    unguided = seen_by_unet(generator, lambda: generator.make(prompts[:6], ImageDecoding(1, 1.0), keys(6)))
    assert torch.equal(unguided[0], text)

    g = torch.Generator().manual_seed(0)
    training = generator.draw(6, g) | {
        "latents": torch.zeros(6, generator.denoiser.config.in_channels, 8, 8),
        "text": text,
    }
    training["drop"] = torch.tensor([0.0, P_DROP - 1e-6, P_DROP, 0.5, 0.99, 0.0])
    with torch.no_grad():
        seen = seen_by_unet(generator, lambda: generator.loss(training))[0]
    for row, drop in enumerate(training["drop"]):
        assert torch.equal(seen[row], null[0] if drop < P_DROP else text[row])


def test_guidance_moves_away_from_the_null_prediction(generator, prompts):
    """One step of DDIM written out: x0 from null + scale (text - null)."""
    text, scale = generator.conditions(prompts[:2])["text"], 3.0
    noise = normal(keys(2), (generator.denoiser.config.in_channels, 8, 8))
    scheduler = generator.pipe.scheduler
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        null, wanted = (
            generator.denoiser(noise, t, c).sample for c in (generator.nothing["text"].expand_as(text), text)
        )
    epsilon = null + scale * (wanted - null)
    betas = torch.linspace(scheduler.config.beta_start, scheduler.config.beta_end, 1000, dtype=torch.float64)
    alpha = (1 - betas).cumprod(0)
    start = (noise - (1 - alpha[t]).sqrt() * epsilon) / alpha[t].sqrt()
    final = alpha[0] if not scheduler.config.set_alpha_to_one else torch.tensor(1.0)
    latents = final.sqrt() * start + (1 - final).sqrt() * epsilon
    made = generator.make(prompts[:2], ImageDecoding(1, scale), keys(2))
    assert levels(made, generator.decode(latents.float())) <= 1


# -- training tensors and losses ------------------------------------------------------------------------------------


def test_pictures_survive_the_autoencoder(generator, oracle, world):
    some = world.sample("test", range(60))
    encoded = generator.encode(some.images, [five[0] for five in some.captions])
    latents = encoded["latents"]
    assert latents.shape == (60, generator.denoiser.config.in_channels, 8, 8)
    assert 0.5 < float(latents.std()) < 2  # scaled to about one, as the noise that is added is
    again = generator.decode(latents)
    assert np.abs(again.astype(int) - some.images).mean() < 4
    assert pictures_right(oracle.read(again), some.scenes).mean() > 0.9
    assert torch.equal(encoded["text"], generator.conditions([five[0] for five in some.captions])["text"])


def test_denoising_loss_is_the_closed_form():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    draws = noise_draws(4, torch.Generator().manual_seed(0), (2, 3, 3), 1000)
    latents, text, seen = torch.randn(4, 2, 3, 3), torch.zeros(4, 1, 1), {}

    def unet(noisy, timesteps, condition, return_dict):
        seen.update(noisy=noisy, timesteps=timesteps, text=condition)
        return (draws["noise"] + 0.5,)

    assert float(denoising_loss(unet, scheduler, latents, text, draws)) == pytest.approx(0.25)
    alpha = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)[draws["timesteps"]].view(4, 1, 1, 1)
    assert torch.allclose(seen["noisy"], alpha.sqrt() * latents + (1 - alpha).sqrt() * draws["noise"], atol=1e-5)
    assert torch.equal(seen["timesteps"], draws["timesteps"]) and seen["text"] is text


def test_noise_draws_cover_what_they_should():
    draws = noise_draws(4000, torch.Generator().manual_seed(0), (2, 2), 1000)
    assert draws["noise"].shape == (4000, 2, 2) and abs(float(draws["noise"].std()) - 1) < 0.02
    assert int(draws["timesteps"].min()) <= 2 and 997 <= int(draws["timesteps"].max()) <= 999
    assert float((draws["drop"] < P_DROP).float().mean()) == pytest.approx(P_DROP, abs=0.015)
    again = noise_draws(4000, torch.Generator().manual_seed(0), (2, 2), 1000)
    assert all(torch.equal(draws[k], again[k]) for k in draws)


def test_captions_are_encoded_with_their_begin_and_end(captioner, batch):
    tokenizer = captioner.tokenizer
    encoded = captioner.encode(batch.images[:2], ["a red circle", "a small blue star on a wall " + "wall " * 90])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    words, width = tokenizer("a red circle", add_special_tokens=False).input_ids, captioner.max_tokens + 2
    assert encoded["ids"][0, : len(words) + 2].tolist() == [begin, *words, end]
    assert encoded["labels"][0].tolist() == [-100, *words, end] + [-100] * (width - len(words) - 2)
    assert encoded["labels"].shape == (2, width) and (encoded["labels"][1, 1:] != -100).all()  # cut at the end
    with torch.no_grad():  # what the frozen tower sees, as the loss would see it anew
        looked = captioner.look(torch.from_numpy(batch.images[:2]))
    assert torch.allclose(encoded["looked"], looked, atol=1e-5)


# -- fine-tuning ----------------------------------------------------------------------------------------------------


def fit(model, images, captions, steps: int, lr: float) -> tuple[float, float]:
    """Mean loss over fixed draws before and after training on a few pairs."""
    data = model.encode(images, captions)
    draws = model.draw(len(images), torch.Generator().manual_seed(1))

    def loss() -> float:
        with torch.no_grad():
            return float(model.loss(data | draws))

    before = loss()
    recipe = Recipe(steps=steps, batch=len(images), lr=lr, warmup=2)
    train(model.loss, list(model.trainable().values()), data, model.draw, recipe, ("fit",))
    return before, loss()


def trained(folder: Path, world, method: str, steps: int, lr: float):
    """(model, loss before, loss after, weights before): fine-tuned on 8 pairs whose pictures are negatives."""
    model = load(folder)
    torch.manual_seed(0)  # LoRA's first weights come from torch's global generator
    model.prepare(method, 4)
    everything = model.denoiser if model.kind == "generator" else model.model
    start = {name: p.detach().clone() for name, p in everything.named_parameters()}
    some = world.sample("chain", range(8))
    before, after = fit(model, 255 - some.images, [five[0] for five in some.captions][::-1], steps, lr)
    return model, everything, start, before, after


def test_the_longest_captions_of_the_drifting_schedule_are_learned_whole(captioner, world):
    from mmcollapse.protocol import DRIFT, drifting

    decoding = drifting(1, DRIFT, len(captioner.tokenizer), world.references_length(), captioner.max_tokens)
    assert 33 <= decoding.min_tokens < captioner.max_tokens - 20
    image = world.sample("test", [0]).images
    for words in (13, decoding.min_tokens, captioner.max_tokens):
        labels = captioner.encode(image, ["a " * words])["labels"][0]
        learned = labels[labels != -100]
        assert len(learned) == words + 1 and learned[-1] == captioner.tokenizer.eos_token_id
    cut = captioner.encode(image, ["a " * (captioner.max_tokens + 9)])["ids"]
    assert cut.shape[1] == captioner.max_tokens + 2


# left: the share of the loss that may be left; noise of pictures never seen (negatives) is mostly predicted already
@pytest.mark.parametrize("kind, steps, lr, left", [("generator", 25, 1e-3, 0.95), ("captioner", 25, 3e-3, 0.7)])
def test_full_fine_tuning_overfits_and_leaves_the_frozen_parts_alone(
    kind, steps, lr, left, world, models_folder, request
):
    reference = request.getfixturevalue(kind)
    frozen = ["pipe.vae", "pipe.text_encoder"] if kind == "generator" else ["model.vision_model"]
    model, everything, start, before, after = trained(models_folder / kind, world, "full", steps, lr)
    assert after < left * before, (before, after)
    for path in frozen:
        was, now = reference, model
        for part in path.split("."):
            was, now = getattr(was, part), getattr(now, part)
        assert digest(now) == digest(was), path
        assert not any(p.requires_grad for p in now.parameters())
    moved = {name for name, p in everything.named_parameters() if not torch.equal(p, start[name])}
    named = set(model.trainable())
    assert moved <= named and len(moved) > 0.9 * len(named)  # some biases have no gradient
    if kind == "captioner":
        assert {name.split(".")[0] for name in named} >= {
            "query_tokens",
            "qformer",
            "language_projection",
            "language_model",
        }
        assert not any(name.startswith("vision_model") for name in named)
    else:
        assert named == {name for name, _ in everything.named_parameters()}


@pytest.mark.parametrize("kind, steps, lr", [("generator", 12, 1e-2), ("captioner", 20, 2e-2)])
def test_lora_trains_its_own_parameters_and_can_be_saved(
    kind, steps, lr, world, models_folder, request, tmp_path, batch, prompts
):
    def output(model):
        if kind == "generator":
            return model.make(prompts[:2], ImageDecoding(2, 1.0), keys(2))
        return first_logits(model, batch.images[:2]).numpy()

    model, everything, start, before, after = trained(models_folder / kind, world, "lora", steps, lr)
    named = model.trainable()
    assert named and all("lora_" in name for name in named)
    assert sum(p.numel() for p in named.values()) < 0.25 * sum(p.numel() for p in everything.parameters())
    assert not any("vision_model" in name for name in named)
    moved = {name for name, p in everything.named_parameters() if not torch.equal(p, start[name])}
    assert moved == set(named)
    assert after < before, (before, after)

    save_file({name: p.detach().contiguous() for name, p in named.items()}, tmp_path / "lora.safetensors")
    other, base = load(models_folder / kind), output(request.getfixturevalue(kind))
    other.prepare("lora", 4)
    assert np.allclose(output(other).astype(float), base, atol=1e-4)  # before training LoRA changes nothing
    with torch.no_grad():
        for name, value in load_file(tmp_path / "lora.safetensors").items():
            other.trainable()[name].copy_(value)
    assert np.array_equal(output(other), output(model))
    assert not np.allclose(output(model).astype(float), base, atol=1e-2)


def test_lora_starts_the_same_whatever_was_drawn_before(models_folder):
    starts = []
    for seed in (1, 2):
        model = load(models_folder / "captioner")
        torch.manual_seed(seed)
        model.prepare("lora", 2)
        starts.append(next(p.detach().clone() for name, p in model.trainable().items() if "lora_A" in name))
    assert torch.equal(*starts)


# -- the oracle -----------------------------------------------------------------------------------------------------


def test_the_oracle_reads_real_pictures(oracle, world):
    some = world.sample("test", range(500))
    reading = oracle.read(some.images)
    assert pictures_right(reading, some.scenes).mean() >= 0.99
    assert np.array_equal(reading.abstains, reading.confidence < oracle.threshold)
    truth = world.nuisance("test", range(500))
    assert np.array_equal(np.isnan(reading.nuisance), np.isnan(truth))
    error = np.abs(reading.nuisance - truth)
    assert np.nanmedian(error[..., :2]) < 0.5 and np.nanmedian(error[..., 2]) < 0.3  # pixels
    order = np.random.default_rng(0).permutation(500)[:40]
    again = oracle.read(some.images[order])
    assert again.scenes == [reading.scenes[i] for i in order]
    assert np.allclose(again.nuisance, reading.nuisance[order], atol=1e-2, equal_nan=True)


def test_the_oracle_abstains_on_what_is_no_scene(oracle, world):
    images = world.sample("test", range(200)).images.astype(float)
    rng = np.random.default_rng(0)
    blend = (images[:100] + images[100:]) / 2
    noise = rng.uniform(0, 255, images[:100].shape)
    for name, pictures in {"blends of two": blend, "noise": noise}.items():
        abstains = oracle.read(pictures.round().astype(np.uint8)).abstains.mean()
        assert abstains > 0.9, (name, abstains)


def test_confidence_is_the_probability_of_all_that_is_read():
    """Of known logits: everything certain but some heads, two things in the second picture only."""
    logits = {name: torch.zeros(2, n) for name, n in CLASSES.items()}
    for values in logits.values():
        values[:, 1] = 40.0
    logits["count"][0, 0] = 80.0
    logits["colour0"][:, 1] = math.log(9 * 9)  # 0.9 against nine others
    logits["relation"][:, 1] = math.log(4)  # 0.8, of the picture with two things alone
    reading = read(lambda pixels: (logits, torch.zeros(2, 2, 5)), np.zeros((2, 64, 64, 3), np.uint8), 0.8, "cpu")
    assert reading.confidence == pytest.approx([0.9, 0.9 * 0.8], rel=1e-5)
    assert reading.abstains.tolist() == [False, True]
    assert reading.scenes == [Scene((Thing(1, 1, 1),), None, 1), Scene((Thing(1, 1, 1),) * 2, 1, 1)]
    assert np.isnan(reading.nuisance[0, 1]).all() and reading.nuisance[1, 1, :2].tolist() == [32, 32]


def test_the_threshold_decides_who_abstains(oracle, models_folder, world):
    images = world.sample("test", range(20)).images
    other = Oracle(models_folder / "oracle")
    other.threshold = 1.1
    assert other.read(images).abstains.all() and not oracle.read(images).abstains.all()


def test_the_oracles_targets_say_what_a_scene_is(world):
    star = Thing(SHAPE_NAMES.index("star"), COLOUR_NAMES.index("pink"), 1)
    scenes = [Scene((Thing(1, 2, 0), star), 1, 4), Scene((star,), None, 0)]
    nuisance = np.full((2, 2, 5), 32.0)
    nuisance[1, 1] = np.nan
    rows = targets(scenes, nuisance)
    assert rows["count"].tolist() == [1, 0] and rows["relation"].tolist() == [1, -1]
    assert rows["background"].tolist() == [4, 0]
    assert [rows[f"{name}0"].tolist() for name in ("shape", "colour", "size")] == [[1, 3], [2, 7], [0, 1]]
    assert [rows[f"{name}1"].tolist() for name in ("shape", "colour", "size")] == [[3, -1], [7, -1], [1, -1]]
    assert np.isnan(rows["nuisance"][1, 1]).all() and (rows["nuisance"][0, :, :2] == 0).all()


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("beams", 0),
        ("repetition_penalty", 0.9),
        ("no_repeat", -1),
        ("min_tokens", -1),
        ("min_tokens", 29),
    ],
)
def test_bad_caption_decodings_are_refused_by_name(name, value):
    with pytest.raises(MMCollapseError, match=f"^{name}={value} of a caption decoding: allowed"):
        CaptionDecoding(**{name: value})


@pytest.mark.parametrize(
    "name, value", [("steps", 0), ("steps", 1001), ("guidance", 0.5), ("guidance", 51.0), ("guidance", math.nan)]
)
def test_bad_image_decodings_are_refused_by_name(name, value):
    with pytest.raises(MMCollapseError, match=f"^{name}={value} of an image decoding: allowed"):
        ImageDecoding(**{"steps": 10, "guidance": 3.0} | {name: value})


def test_a_missing_or_unknown_model_is_refused_by_name(tmp_path):
    with pytest.raises(MMCollapseError, match="nowhere.*model_index.json"):
        load(tmp_path / "nowhere")
    with pytest.raises(MMCollapseError, match=str(tmp_path)):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(MMCollapseError, match="'bert'"):
        load(tmp_path)


@pytest.mark.parametrize("kind", [Judge, Oracle])
def test_a_missing_instrument_is_refused_by_name(kind, tmp_path):
    with pytest.raises(MMCollapseError, match="nowhere"):
        kind(tmp_path / "nowhere")


# -- other versions of the libraries --------------------------------------------------------------------------------


def numbers(world, generator, captioner, judge, oracle) -> dict:
    """A handful of results that other versions of torch and transformers must give too, and the weights they are of."""
    some = world.sample("test", range(8))
    prompts = [five[0] for five in some.captions]
    encoded = generator.encode(some.images, prompts)
    made = generator.make(prompts[:4], ImageDecoding(5, 3.0), keys(4, "versions"))
    draws = generator.draw(8, torch.Generator().manual_seed(3))
    with torch.no_grad():
        losses = [float(generator.loss(encoded | draws)), float(captioner.loss(captioner.encode(some.images, prompts)))]
    return {
        "weights": {
            "generator": generator.digest,
            "captioner": captioner.digest,
            "judge": judge.digest,
            "oracle": oracle.digest,
        },
        "captions": {
            "greedy": captioner.make(some.images, CaptionDecoding(), keys(8)),
            "sampled": captioner.make(some.images, SAMPLED, keys(8, "versions")),
        },
        "values": {
            "noise, mean square": float(normal(keys(4), (16, 8, 8)).square().mean()),
            "latents, mean and spread": [float(encoded["latents"].mean()), float(encoded["latents"].std())],
            "prompts, mean square": float(encoded["text"].square().mean()),
            "pictures made, mean of each": made.mean((1, 2, 3)).tolist(),
            "losses": losses,
            "judge, first pictures": judge.images(some.images[:2])[:, :4].ravel().tolist(),
            "judge, first captions": judge.texts(prompts[:2])[:, :4].ravel().tolist(),
            "oracle, first places": oracle.read(some.images).nuisance[:, 0, :2].ravel().tolist(),
        },
    }


def test_other_versions_of_the_libraries_compute_the_same(world, generator, captioner, judge, oracle):
    kept, now = json.loads(FIXTURE.read_text()), numbers(world, generator, captioner, judge, oracle)
    assert now["weights"] == kept["weights"], f"other weights than {FIXTURE.name} was made with: run `{COMMAND}`"
    why = f"computed otherwise than when {FIXTURE.name} was made; if it was meant: `{COMMAND}`"
    assert now["captions"] == kept["captions"], why
    assert set(now["values"]) == set(kept["values"]), why
    for name, value in kept["values"].items():
        assert np.array(now["values"][name]) == pytest.approx(np.array(value), rel=1e-3, abs=1e-3), f"{name}: {why}"


def write_fixture():
    from mmcollapse.worlds.scenes import Scenes

    folder = Path(__file__).parents[1] / "data" / "models" / "scenes"
    models = load(folder / "generator"), load(folder / "captioner"), Judge(folder / "judge"), Oracle(folder / "oracle")
    FIXTURE.write_text(json.dumps(numbers(Scenes(), *models), indent=1) + "\n")


if __name__ == "__main__":
    write_fixture()
