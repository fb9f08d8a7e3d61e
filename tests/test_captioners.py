"""The captioners of the zoo: five classes of transformers behind one interface, here with weights of a few steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from mmcollapse.errors import MMCollapseError
from mmcollapse.graphs import Recorded
from mmcollapse.models import load, pretrain
from mmcollapse.models.captioner import CaptionDecoding, Captioner
from mmcollapse.models.pretrain_captioners import POSITIONS
from mmcollapse.randomness import gumbel
from mmcollapse.train import Recipe, train
from test_graphs import record_here

ARCHITECTURES = {
    "captioner": "Blip2ForConditionalGeneration",
    "captioner-blip": "BlipForConditionalGeneration",
    "captioner-git": "GitForCausalLM",
    "captioner-vit-gpt2": "VisionEncoderDecoderModel",
    "captioner-idefics": "IdeficsForVisionText2Text",
}
DECODINGS = {
    "greedy": CaptionDecoding(),
    "sampled": CaptionDecoding(temperature=1.0),
    "5 beams": CaptionDecoding(beams=5),
    "everything": CaptionDecoding(
        temperature=1.4, top_k=9, top_p=0.9, beams=2, repetition_penalty=1.3, no_repeat=2, min_tokens=9
    ),
}
PAIRS, SEEN = 4, 8  # trained on; looked at


def keys(n: int, name: str = "test") -> list[tuple]:
    return [(name, i) for i in range(n)]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory, world) -> Path:
    out = tmp_path_factory.mktemp("zoo")
    stages = ["tokenizer", *ARCHITECTURES, "captioner-2"]
    pretrain.pretrain(world, out, pretrain.tiny(pretrain.SCALES["scenes"]), "cpu", stages)
    return out


@pytest.fixture(scope="session")
def pairs(world):
    """(images, captions) of SEEN scenes, captions of several lengths."""
    batch = world.sample("chain", range(SEEN))
    captions = [five[0] for five in batch.captions]
    assert len({len(c.split()) for c in captions[:PAIRS]}) > 1
    return batch.images, captions


@pytest.fixture(scope="session", params=ARCHITECTURES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def untrained(zoo, name):
    return load(zoo / name)


@pytest.fixture(scope="session")
def fitted(zoo, name, pairs):
    """(captioner over-fitted to PAIRS pairs, its weights before, loss before, loss after)."""
    captioner = load(zoo / name)
    before = {n: p.detach().clone() for n, p in captioner.model.named_parameters()}
    data = captioner.encode(pairs[0][:PAIRS], pairs[1][:PAIRS])
    first = float(captioner.loss(data).detach())
    recipe = Recipe(steps=60, batch=PAIRS, lr=3e-3, warmup=5)
    train(captioner.loss, list(captioner.trainable().values()), data, captioner.draw, recipe, ("fit",))
    return captioner, before, first, float(captioner.loss(data).detach())


def written(captioner, images, **settings) -> list[int]:
    """Lengths of captions in tokens."""
    made = captioner.make(images, CaptionDecoding(**settings), keys(len(images)))
    return [len(captioner.tokenizer.tokenize(c)) for c in made]


@torch.no_grad()
def next_logits(captioner, image: np.ndarray, ids: list[int]) -> torch.Tensor:
    """(tokens, vocabulary), of the library's own forward pass on one picture and a caption without padding."""
    pixels, ids = captioner.pixels(torch.from_numpy(image[None])), torch.tensor([ids])
    kind = type(captioner.model).__name__
    if kind == "Blip2ForConditionalGeneration":
        queries = torch.full((1, captioner.model.config.num_query_tokens), captioner.model.config.image_token_id)
        ids = torch.cat([queries, ids], 1)
        out = captioner.model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids))
        return out.logits[0, queries.shape[1] :]
    if kind == "VisionEncoderDecoderModel":
        return captioner.model(pixel_values=pixels, decoder_input_ids=ids).logits[0]
    if kind == "IdeficsForVisionText2Text":
        seen = torch.ones((*ids.shape, 1), dtype=torch.long)
        return captioner.model(pixel_values=pixels[:, None], input_ids=ids, image_attention_mask=seen).logits[0]
    logits = captioner.model(pixel_values=pixels, input_ids=ids).logits[0]
    return logits[-ids.shape[1] :]  # GIT also gives some for the patches


# -- the library's own classes --------------------------------------------------------------------------------------


def test_a_folder_opens_by_its_own_class_and_writes_what_the_adapter_writes(zoo, name, untrained, pairs):
    folder = zoo / name
    assert json.loads((folder / "config.json").read_text())["architectures"] == [ARCHITECTURES[name]]
    model = getattr(transformers, ARCHITECTURES[name]).from_pretrained(folder, dtype=torch.float32).eval()
    assert type(model) is type(untrained.model)
    eye = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = eye(list(pairs[0]), return_tensors="pt")
    pixels = pixels if isinstance(pixels, torch.Tensor) else pixels["pixel_values"]
    assert torch.allclose(pixels, untrained.pixels(torch.from_numpy(pairs[0])), atol=1e-5)
    given = {"pixel_values": pixels}
    if name == "captioner-idefics":
        given = {"pixel_values": pixels[:, None], "image_attention_mask": torch.ones((SEEN, 1, 1), dtype=torch.long)}
    ids = model.generate(**given, max_new_tokens=28)
    theirs = [" ".join(t.split()) for t in untrained.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert untrained.make(pairs[0], CaptionDecoding(), keys(SEEN)) == theirs
    assert any(theirs)


def test_the_tokenizer_is_the_shared_one(zoo, name, untrained):
    link = zoo / name / "tokenizer.json"
    assert link.is_symlink() and link.readlink().as_posix() == "../tokenizer/tokenizer.json"
    text = "a small red circle"
    shared = transformers.CLIPTokenizer.from_pretrained(zoo / "tokenizer")
    ids = untrained.tokenizer(text).input_ids
    assert ids == shared(text).input_ids and untrained.tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_a_captioner_is_small_and_sees_64_pixels(untrained, name):
    size = sum(p.numel() for p in untrained.model.parameters())
    assert size <= (1_460_000 if name == "captioner" else 1_200_000)  # the first is older than the rule
    assert untrained.image_size == 64 and untrained.max_tokens == POSITIONS - 2


def test_the_second_captioner_is_another_of_the_same_architecture(zoo):
    first, second = (load(zoo / n) for n in ("captioner", "captioner-2"))
    assert (zoo / "captioner" / "config.json").read_text() == (zoo / "captioner-2" / "config.json").read_text()
    a, b = first.model.state_dict(), second.model.state_dict()
    alike = [torch.corrcoef(torch.stack([a[n].ravel(), b[n].ravel()]))[0, 1] for n in a if a[n].ndim > 1]
    assert np.median(np.abs(alike)) < 0.1  # from one initialisation it would be nearly 1 after a few steps


def test_an_unknown_type_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "kosmos-2"}')
    with pytest.raises(MMCollapseError, match="'kosmos-2'.*'blip-2', 'blip', 'git'"):
        load(tmp_path)
    assert len(Captioner.__subclasses__()) == len(ARCHITECTURES)


def test_an_unknown_stage_is_refused_by_name(tmp_path, world):
    with pytest.raises(MMCollapseError, match="'captioner-9'.*captioner-blip"):
        pretrain.pretrain(world, tmp_path, pretrain.tiny(pretrain.SCALES["scenes"]), "cpu", ["captioner-9"])


# -- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_captions_do_not_depend_on_batch_or_order(fitted, pairs, decoding):
    captioner, images = fitted[0], pairs[0]
    whole = captioner.make(images, decoding, keys(SEEN))
    for size in (1, 5):
        assert captioner.make(images, decoding, keys(SEEN), batch=size) == whole
    order = [6, 2, 0]
    torch.manual_seed(5)
    assert captioner.make(images[order], decoding, [keys(SEEN)[i] for i in order]) == [whole[i] for i in order]
    assert whole == [" ".join(c.split()) for c in whole] and not any("<|" in c for c in whole)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("max_tokens", [5, 28])
def test_what_a_gpu_writes_is_what_generate_writes(fitted, pairs, temperature, max_tokens):
    """The two ways to write: the whole caption read anew at every token, and the library's with its cache."""
    captioner, images = fitted[0], pairs[0]
    decoding = CaptionDecoding(temperature=temperature, max_tokens=max_tokens)
    assert decoding.plain() and not CaptionDecoding(beams=2).plain() and not CaptionDecoding(min_tokens=3).plain()
    words = captioner.model.get_input_embeddings().num_embeddings
    noise = gumbel(keys(SEEN), (max_tokens + 1, words)) if temperature else None
    ids = captioner.write(torch.from_numpy(images), decoding, noise)
    assert ids.shape == (SEEN, max_tokens)
    assert captioner._texts(ids) == captioner.make(images, decoding, keys(SEEN))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_recorded_outlives_what_works_in_its_memory(fitted, pairs, monkeypatch, temperature):
    """Pictures of several numbers, the features of some recorded after the words that are written of them."""
    captioner, decoding = fitted[0], CaptionDecoding(temperature=temperature)
    whole = captioner.make(pairs[0], decoding, keys(SEEN))
    record_here(monkeypatch)
    for place in ("_next", "_seen"):
        monkeypatch.setattr(captioner, place, Recorded(getattr(captioner, place).function))
    for batch in (SEEN, 3, SEEN):
        captioner._seen.recordings.clear()
        wrote = []
        for start in range(0, SEEN, batch):
            rows = slice(start, start + batch)
            noise = gumbel(keys(SEEN)[rows], (29, captioner.vocabulary())) if temperature else None
            wrote += captioner._texts(captioner.write(torch.from_numpy(pairs[0][rows]), decoding, noise))
        assert wrote == whole


def test_samples_differ_by_their_keys_alone(untrained, pairs):
    again, sampled = np.repeat(pairs[0][:1], 6, 0), DECODINGS["sampled"]
    first = untrained.make(again, sampled, keys(6))
    assert len(set(first)) == 6 and untrained.make(again, sampled, keys(6)) == first
    assert untrained.make(again, sampled, keys(6, "other")) != first
    assert len(set(untrained.make(again, CaptionDecoding(), keys(6)))) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_words_are_the_best_of_the_librarys_own_logits(fitted, pairs, temperature):
    """Against writing spelled out, without generate and without a cache: argmax of the logits, plus the sample's own
    Gumbel noise where it is sampled."""
    captioner, tokenizer = fitted[0], fitted[0].tokenizer
    made = captioner.make(pairs[0][:3], CaptionDecoding(temperature), keys(3))
    noise = gumbel(keys(3), (29, captioner.model.get_input_embeddings().num_embeddings))
    for i in range(3):
        ids = [tokenizer.bos_token_id]
        while len(ids) < 29 and (len(ids) == 1 or ids[-1] != tokenizer.eos_token_id):
            logits = next_logits(captioner, pairs[0][i], ids)[-1]
            ids.append(int((logits + (noise[i, len(ids) - 1] if temperature else 0)).argmax()))
        assert made[i] == " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())


def test_lengths_are_kept(fitted, pairs):
    captioner, images = fitted[0], pairs[0][:3]
    assert max(written(captioner, images, max_tokens=3)) == 3
    free = written(captioner, images)
    assert max(free) < 20 <= min(written(captioner, images, min_tokens=20))
    most = captioner.max_tokens
    assert most >= 36 and written(captioner, images, min_tokens=most, max_tokens=most) == [most] * 3
    with pytest.raises(MMCollapseError, match=f"writes at most {most}"):
        captioner.make(images, CaptionDecoding(max_tokens=most + 1), keys(3))


# -- training -------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_librarys_own_logits(fitted, pairs):
    """By hand, from single captions without padding: the mean over all tokens but the first, the end counted. On pairs
    that were not trained on, by weights that do look at the picture."""
    captioner, images, captions = fitted[0], pairs[0][PAIRS:], pairs[1][PAIRS:]
    total, count = 0.0, 0
    for image, caption in zip(images, captions, strict=True):
        ids = captioner.tokenizer(caption).input_ids
        logp = next_logits(captioner, image, ids).double().log_softmax(1)
        total -= float(sum(logp[i, ids[i + 1]] for i in range(len(ids) - 1)))
        count += len(ids) - 1
    data = captioner.encode(images, captions)
    assert len({int(n) for n in (data["labels"] != -100).sum(1)}) > 1
    with torch.no_grad():
        assert float(captioner.loss(data)) == pytest.approx(total / count, rel=1e-5)
        padded = {k: torch.nn.functional.pad(data[k], (0, 7), value=v) for k, v in (("ids", 1), ("labels", -100))}
        assert float(captioner.loss(data | padded)) == pytest.approx(total / count, rel=1e-5)


def test_a_few_pairs_are_learned_by_heart(fitted, pairs):
    captioner, _, first, last = fitted
    assert first > 4 and last < 0.1
    assert captioner.make(pairs[0][:PAIRS], CaptionDecoding(), keys(PAIRS)) == pairs[1][:PAIRS]


def test_the_vision_tower_is_frozen_and_all_else_moves(fitted, pairs):
    captioner, before, _, _ = fitted
    named = captioner.trainable()
    assert {n for n in before if not n.startswith(captioner.tower + ".")} == set(named)
    captioner.loss(captioner.encode(*pairs)).backward()
    for n, p in captioner.model.named_parameters():
        if n in named:
            assert p.grad is not None and p.grad.abs().max() > 0, n
            assert not torch.equal(p, before[n]), n
        else:
            assert p.grad is None and torch.equal(p, before[n]), n


def test_the_loss_is_nearly_the_same_in_bfloat16(untrained, pairs):
    data = untrained.encode(*pairs)
    with torch.no_grad():
        exact = float(untrained.loss(data))
        with torch.autocast("cpu", torch.bfloat16):
            value = untrained.loss(data)
    assert value.dtype == torch.float32 and float(value) == pytest.approx(exact, rel=0.02)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_lora_trains_layers_of_its_own(zoo, name, pairs):
    captioner = load(zoo / name)
    data = captioner.encode(*pairs)
    base = float(captioner.loss(data).detach())
    captioner.prepare("lora", 4)
    named = captioner.trainable()
    assert float(captioner.loss(data).detach()) == pytest.approx(base, rel=1e-6)  # it starts as nothing
    assert named and all("lora_" in n and not n.startswith(captioner.tower) for n in named)
    assert sum(p.numel() for p in named.values()) < 0.1 * sum(p.numel() for p in captioner.model.parameters())
    start = {n: p.detach().clone() for n, p in captioner.model.named_parameters()}
    train(captioner.loss, list(named.values()), data, captioner.draw, Recipe(8, SEEN, 1e-2, 2), ("lora",))
    moved = {n for n, p in captioner.model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == set(named) and float(captioner.loss(data).detach()) < base
