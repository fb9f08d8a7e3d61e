"""`make pretrain`, every stage for a few steps: layouts, links, resumption, cards."""

import json

import numpy as np
import pytest
import torch

from mmcollapse.models import load, pretrain, pretrain_captioners, pretrain_generators
from mmcollapse.models.captioner import CaptionDecoding
from mmcollapse.models.generator import ImageDecoding
from mmcollapse.models.score import told_apart, write_cards
from mmcollapse.worlds.grammar import confusions, parse

STAGES = (
    *("tokenizer", "vae", "oracle", "judge", "judge-2", "language"),
    *("generator", "generator-2", "generator-v", "generator-sdxl", "generator-pixart", "generator-sd3"),
    *("captioner", "captioner-2", "captioner-blip", "captioner-git", "captioner-vit-gpt2", "captioner-idefics"),
)


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
    for name in ("captioner", "judge", "judge-2", "language"):
        assert (made / name / "tokenizer.json").is_symlink()
    weights = [p for p in made.rglob("*.safetensors") if not p.is_symlink()]
    assert len(weights) == len(STAGES) - 1 + 4  # and text encoders: the shared one, SDXL's, PixArt's, SD3's


def test_every_word_of_the_world_is_one_token(made):
    from transformers import CLIPTokenizer

    from mmcollapse.worlds.grammar import vocabulary

    tokenizer = CLIPTokenizer.from_pretrained(made / "tokenizer")
    assert len(vocabulary()) > 70
    for word in vocabulary():
        (token,) = tokenizer(word).input_ids[1:-1]
        assert token != tokenizer.unk_token_id, word


def test_captions_become_the_ids_that_the_tokenizer_gives(made, world):
    scale = pretrain.SCALES["scenes"]
    run = pretrain.Run(world, made, made, "any", scale, "cpu", 0)
    captions = [c for five in world.sample("test", range(50)).captions for c in five]
    captions += ["", "A man's dog, running on the beach (2 times)!", "Ärger  mit\tTabs", "star " * 40]
    settings = {"padding": "max_length", "truncation": True, "max_length": scale.tokens}
    assert run.ids(captions).tolist() == run.tokenizer()(captions, **settings).input_ids


def test_wrong_captions_have_the_words_of_another_scene(made, world):
    scale = pretrain.tiny(pretrain.SCALES["scenes"])
    scenes = world.sample("judge", range(64)).scenes
    tokenizer = pretrain.Run(world, made, made, "any", scale, "cpu", 0).tokenizer()
    wrong = pretrain.Run(world, made, made, "any", scale, "cpu", 0).negatives(scenes)
    assert wrong.shape == (64, pretrain.NEGATIVES, scale.tokens)
    exchanged = 0
    for scene, rows in zip(scenes, wrong, strict=True):
        for caption in tokenizer.batch_decode(rows, skip_special_tokens=True):
            read = parse(caption).scene
            assert read in confusions(scene).values()
            exchanged += len(read.things) == 2 and read.things == scene.things[::-1]
    assert exchanged > 20


def test_the_autoencoder_sees_rare_shapes_and_colours_more_often_than_the_world_has_them(world):
    scenes = world._attributes("base", np.arange(4000))
    for k in (0, 1):
        before, after = (
            np.bincount([t[k] for s in some for t in s.things], minlength=10)
            for some in (scenes, [scenes[i] for i in pretrain._balanced(scenes)])
        )
        assert after.max() / after.min() < 0.5 * before.max() / before.min()


def test_heads_learn_to_tell_a_scene_only_where_its_truth_is_known(made, world):
    scale = pretrain.tiny(pretrain.SCALES["scenes"])
    run, data = pretrain.Run(world, made, made, "any", scale, "cpu", 0), {}
    heads = pretrain._heads(run, world.sample("base", range(64)).scenes, data, 8)
    features = torch.zeros(64, 8)
    batch, where = dict(data), torch.arange(64) < 5
    first = pretrain._telling(heads, features[:5], {k: v[:5] for k, v in batch.items()})
    assert torch.allclose(pretrain._telling(heads, features, batch, where), first) and first > 0
    none = {name: torch.full((64,), -1) for name in batch}  # nothing to tell is no loss, and no NaN
    assert pretrain._telling(heads, features, none) == 0
    nothing = {}
    assert pretrain._telling(pretrain._heads(run, None, nothing), features, nothing) == 0 and not nothing


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
    for name in ("_tokenizer", "_vae", "_judge", "_language", "_oracle"):
        monkeypatch.setattr(pretrain, name, lambda run: called.append(run.name))
    for stages in (pretrain_generators.GENERATORS, pretrain_captioners.CAPTIONERS):
        for name in stages:
            monkeypatch.setitem(stages, name, lambda run: called.append(run.name))
    pretrain.pretrain(world, tmp_path, pretrain.SCALES["photos"], "cpu")
    assert called == ["tokenizer", "vae", "judge", "judge-2", "language", "generator", "captioner"]


def test_cards_give_the_figures_and_a_snippet(made):
    write_cards(made, {"settings": "n = 3", "captioner": {"seen: all right": 0.25}}, "scenes")
    card = (made / "captioner" / "README.md").read_text()
    assert "| seen: all right | 0.25 |" in card and "Blip2ForConditionalGeneration" in card and "make pretrain" in card


def test_told_apart_knows_a_judge_that_reads_from_one_that_counts_words(world):
    batch = world.sample("test", range(60))

    class Reader:  # pictures and captions to the attributes in their order
        def images(self, images):
            return np.stack([self.vector(batch.scenes[self.where[i.tobytes()]]) for i in images])

        where = {image.tobytes(): i for i, image in enumerate(batch.images)}

        def texts(self, captions):
            return np.stack([self.vector(parse(c).scene) for c in captions])

        def vector(self, scene):
            v = np.zeros((2, 2, 2, 22))
            for slot, (shape, colour, size) in enumerate(scene.things):
                v[slot, scene.relation or 0, size, [shape, 10 + colour]] = 1
                v[slot, :, :, 20] += shape * 10 + colour
            return v.ravel()

    class Counter(Reader):  # the same, whatever belongs to what
        def vector(self, scene):
            v = np.zeros(20)
            for shape, colour, _ in scene.things:
                v[[shape, 10 + colour]] += 1
            return v

    reads, counts = told_apart(Reader(), batch), told_apart(Counter(), batch)
    assert set(reads) == {"places exchanged", "the other relation", "colours exchanged", "sizes exchanged"}
    assert all(rate == 1 for rate in reads.values())
    assert all(rate == 0 for rate in counts.values())  # equally near is not nearer


def test_a_corpus_is_drawn_once_and_is_the_world(tmp_path, world):
    images, captions, scenes, nuisance = pretrain.corpus(world, "base", 12, tmp_path)
    real = world.sample("base", np.arange(12))
    assert np.array_equal(images, real.images) and captions == real.captions and scenes == real.scenes
    assert np.allclose(nuisance, world.nuisance("base", np.arange(12)), equal_nan=True)


def test_a_person_s_notes_in_a_card_outlive_the_next_scoring(tmp_path):
    (tmp_path / "vae").mkdir()
    for _ in range(2):
        write_cards(tmp_path, {"settings": "n = 3"}, "scenes")
        card = (tmp_path / "vae" / "README.md").read_text()
        if "## Notes" not in card:
            (tmp_path / "vae" / "README.md").write_text(card + "\n## Notes\n\nmade on a rainy day\n")
    assert card.count("made on a rainy day") == 1 and card.count("n = 3") == 1
