"""`make pretrain`, every stage for a few steps: layouts, links, resumption, cards."""

import json

import numpy as np
import pytest
import torch

from mmcollapse.models import load, pretrain
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.score import write_cards

STAGES = ("tokenizer", "vae", "oracle", "judge", "judge-2", "generator", "captioner")


@pytest.fixture(scope="module")
def made(tmp_path_factory, world):
    out = tmp_path_factory.mktemp("models")
    pretrain.pretrain(world, out, pretrain.tiny(pretrain.SCALES["scenes"]), "cpu")
    return out


def test_every_stage_leaves_a_folder_and_a_log(made):
    assert all((made / name).is_dir() for name in (*STAGES, "text_encoder"))
    logged = {json.loads(line)["stage"] for line in (made / "log.jsonl").read_text().splitlines()}
    assert logged == set(STAGES) - {"tokenizer"}
    assert not list(made.glob(".*.part"))


def test_components_are_stored_once(made):
    for name in ("vae", "text_encoder", "tokenizer"):
        link = made / "generator" / name
        assert link.is_symlink() and link.readlink().as_posix() == f"../{name}"
    for name in ("captioner", "judge", "judge-2"):
        assert (made / name / "tokenizer.json").is_symlink()
    weights = [p for p in made.rglob("*.safetensors") if not p.is_symlink()]
    assert len(weights) == 7  # VAE, text encoder, U-Net, captioner, two judges, oracle


def test_every_word_of_the_world_is_one_token(made):
    from transformers import CLIPTokenizer

    from mmcollapse.worlds.grammar import vocabulary

    tokenizer = CLIPTokenizer.from_pretrained(made.parent / made.name / "tokenizer")
    caption = "we see a huge crimson star to the left of a tiny donut in turquoise before a lilac wall"
    assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True).split() == caption.split()
    assert len(vocabulary()) > 70


def test_the_adapters_open_what_was_made(made, world):
    batch, keys = world.sample("chain", range(3)), [("test", i) for i in range(3)]
    generator, captioner = load(made / "generator"), load(made / "captioner")
    pictures = generator.make([five[0] for five in batch.captions], ImageDecoding(2, 2.0), keys)
    assert pictures.shape == (3, 64, 64, 3)
    assert len(captioner.make(pictures, CaptionDecoding(max_tokens=5), keys)) == 3


def test_a_second_run_makes_nothing_and_a_missing_stage_is_made(made, world, capsys):
    scale = pretrain.tiny(pretrain.SCALES["scenes"])
    before = (made / "judge" / "model.safetensors").read_bytes()
    (made / "judge").rename(made / "kept")
    pretrain.pretrain(world, made, scale, "cpu")
    told = capsys.readouterr().out
    assert told.count("there already") == len(STAGES) - 1 and "judge: made in" in told
    assert (made / "judge" / "model.safetensors").read_bytes() == before  # the same seed makes the same judge


def test_the_second_judge_is_another(made):
    a, b = (load_file(made / name) for name in ("judge", "judge-2"))
    assert any(not torch.equal(a[k], b[k]) for k in a)


def load_file(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_world_without_truth_has_no_oracle(tmp_path, world, monkeypatch):
    monkeypatch.setattr(world, "truth", False)
    called = []
    for name in ("_tokenizer", "_vae", "_judge", "_generator", "_captioner", "_oracle"):
        monkeypatch.setattr(pretrain, name, lambda run: called.append(run.name))
    pretrain.pretrain(world, tmp_path, pretrain.SCALES["photos"], "cpu")
    assert called == [s for s in STAGES if s != "oracle"]


def test_cards_give_the_figures_and_a_snippet(made):
    write_cards(made, {"settings": "n = 3", "captioner": {"seen: all right": 0.25}}, "scenes")
    card = (made / "captioner" / "README.md").read_text()
    assert "| seen: all right | 0.25 |" in card and "Blip2ForConditionalGeneration" in card and "make pretrain" in card


def test_a_corpus_is_drawn_once_and_is_the_world(tmp_path, world):
    images, captions, scenes, nuisance = pretrain.corpus(world, "base", 12, tmp_path)
    real = world.sample("base", np.arange(12))
    assert np.array_equal(images, real.images) and captions == real.captions and scenes == real.scenes
    assert np.allclose(nuisance, world.nuisance("base", np.arange(12)), equal_nan=True)
