"""Models, instruments and photos as `make fetch` leaves them, through the study's own doors: small stand-ins of the
same classes under names of the hub."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcollapse import fetch, sources
from mmcollapse.__main__ import main
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiment import open_study, run_experiment
from mmcollapse.models.stand_ins import stand_in
from mmcollapse.runner import parameters, run
from mmcollapse.settings import load_settings
from mmcollapse.sources import Origin, needed
from mmcollapse.store import Store
from mmcollapse.worlds import open_world

GENERATOR, CAPTIONER = "tiny/generator", "tiny/captioner"
INSTRUMENTS = {"openai/clip-vit-base-patch32": "clip", "facebook/dinov2-base": "dino"}


def write_photos(folder: Path, n: int = 100):
    """Pictures in the form of COCO with Karpathy's splits, and in COCO's own."""
    rng = np.random.default_rng(0)
    (folder / "train2014").mkdir(parents=True)
    images = []
    for i in range(n):
        name = f"COCO_train2014_{i:012d}.jpg"
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(folder / "train2014" / name)
        split = "test" if i % 5 == 0 else "train"
        said = [{"raw": f"a picture of {i % 7} {what}"} for what in ("dots", "points", "specks", "grains", "spots")]
        images.append({"filepath": "train2014", "filename": name, "split": split, "sentences": said})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))


@pytest.fixture
def elsewhere(tmp_path, models_folder):
    """A folder with the layout of data/, as another machine may have it."""
    folder = tmp_path / "elsewhere"
    for name, place in {"generator": GENERATOR, "captioner": CAPTIONER}.items():
        shutil.copytree(models_folder / name, folder / "models/hub" / place.replace("/", "--"))
    shutil.copytree(models_folder / "judge", folder / "models/instruments/clip")
    write_photos(tmp_path / "photos")
    return folder


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DATA", tmp_path / "data")
    own = {name: str(tmp_path / name) for name in ("runs", "results", "figures")}
    own |= {"generators": GENERATOR, "captioners": CAPTIONER, "world": "photos", "data": str(tmp_path / "photos")}
    own |= {"instruments": str(tmp_path / "data/models/instruments")}  # where `make fetch` puts them
    return load_settings("smoke", "01_variance", spaces="clip", layout="karpathy", arms="recursive,real,gen0", **own)


@pytest.fixture
def fetched(settings, elsewhere):
    fetch.fetch(needed([settings]), Origin(folder=elsewhere))
    return settings


def refused(settings) -> str:
    with pytest.raises(MMCollapseError) as error:
        run_experiment("01_variance", settings)
    assert not settings.runs_folder.exists() and not settings.results_folder.exists()  # before any work
    return str(error.value)


def test_a_study_runs_on_what_was_fetched(fetched):
    """The notebook's own function: names of the hub, published splits, an instrument of its own, and no judge."""
    table = run_experiment("01_variance", replace(fetched, generations=1, roles="generator"))
    scores = table[(table.space == "clip") & (table.metric == "variance") & (table.model == "generator")]
    assert set(scores.arm) == {"recursive", "real", "gen0"} and scores.value.notna().all()
    told = json.loads((fetched.results_folder / "01_variance.json").read_text())["models"]
    assert set(told) >= {GENERATOR, CAPTIONER, "clip"}


@pytest.mark.parametrize("profile", ["single-gpu", "paper"])
def test_a_profile_of_photos_runs_on_stand_ins_of_its_models(profile, tmp_path, monkeypatch):
    """As its file has it but for sizes: LoRA, bfloat16, accumulated gradients, checkpointing, its names and data."""
    monkeypatch.setattr(sources, "DATA", tmp_path / "data")
    told = sources.read_sources()
    for model in told["models"].values():  # of the real files
        model.pop("sha256", None)
    monkeypatch.setattr(sources, "read_sources", lambda path=None: told)
    small = {"device": "cpu", "image_size": 64, "generations": 1, "seeds": 1, "pairs": 4, "steps": 2, "captions": 4}
    small |= {"data_steps": 2, "measure_steps": 2, "prompts": 2, "noises": 2, "probes": 2, "spaces": "clip,dino"}
    own = {name: str(tmp_path / name) for name in ("runs", "results", "figures")}
    own |= {"instruments": str(tmp_path / "data/models/instruments"), "arms": "recursive,real,gen0"}
    s = load_settings(profile, "01_variance", **small, **own)
    for name, place in {s.generators: "hub", s.captioners: "hub", **INSTRUMENTS}.items():
        folder = name.replace("/", "--") if place == "hub" else place
        stand_in(name, tmp_path / "elsewhere/models" / ("hub" if place == "hub" else "instruments") / folder)
    write_photos(sources.DATA / "photos" / s.data)
    models = [source for source in needed([s]) if "photos" not in source.place]
    fetch.fetch(models, Origin(folder=tmp_path / "elsewhere"))
    table = run_experiment("01_variance", s)
    for space in ("clip", "dino"):
        found = table[(table.space == space) & (table.metric == "variance") & (table.measurement == "guidance 1")]
        assert set(found.arm) >= {"recursive", "real", "gen0"} and found.value.notna().all()
    weights = [item for item in Store(s.runs_folder).items("weights")]
    assert {item.inputs["recipe"]["method"] for item in weights} == {"lora"}


def test_before_anything_was_fetched_one_line_says_what_to_do(settings, elsewhere, capsys):
    assert refused(settings) == (
        "tiny/generator: never fetched, and no folder here (and 2 more): run `make fetch` with this profile, on a "
        "machine with a network"
    )
    own = {n: getattr(settings, n) for n in ("world", "data", "generators", "captioners", "spaces", "arms", "results")}
    with pytest.raises(MMCollapseError, match="tiny/generator: never fetched"):
        run("smoke", own | {"runs": settings.runs}, "01_variance")
    assert not settings.results_folder.exists()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("component", "tiny/generator: unet/config.json is not there (and 1 more): run `make fetch` with this profile"),
        ("half", "tiny/captioner: model.safetensors has 1,000 bytes, not "),
        ("revision", "tiny/captioner: fetched at main, wanted is v2"),
        ("part", "clip: openai/clip-vit-base-patch32: never fetched"),
    ],
)
def test_what_is_not_as_it_was_fetched_is_refused_by_name(fetched, what, says):
    hub = sources.DATA / "models/hub"
    if what == "component":
        shutil.rmtree(hub / "tiny--generator/unet")
    elif what == "half":
        weights = hub / "tiny--captioner/model.safetensors"
        data = weights.read_bytes()[:1000]
        weights.unlink()  # it may be a link to the other folder's
        weights.write_bytes(data)
    elif what == "revision":
        fetched = replace(fetched, captioners=f"{CAPTIONER}@v2")
    else:  # a download that was cut off
        record = json.loads(fetch.record_file().read_text())
        record.pop("models/instruments/clip")
        fetch.record_file().write_text(json.dumps(record))
        (sources.DATA / "models/instruments/clip/model.safetensors.part").touch()
    assert refused(fetched).startswith(says)


def test_instruments_that_somebody_put_there_are_left_to_their_opener(settings, elsewhere):
    own = replace(settings, instruments=str(elsewhere / "models/instruments"))
    fetch.check(source for source in needed([own]) if "clip" in source.name)
    (elsewhere / "models/instruments/clip/model.safetensors").unlink()
    with pytest.raises(MMCollapseError, match="clip: openai/clip-vit-base-patch32: never fetched"):
        fetch.check(source for source in needed([own]) if "clip" in source.name)


def test_a_folder_of_ones_own_with_a_part_missing_or_damaged_is_refused(settings, elsewhere, tmp_path):
    own = elsewhere / "models/hub"
    mine = replace(
        settings,
        generators=str(own / "tiny--generator"),
        captioners=str(own / "tiny--captioner"),
        instruments=str(elsewhere / "models/instruments"),
    )
    weights = own / "tiny--generator/unet/diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    said = refused(mine)
    assert said.startswith(f"setting generators='{mine.generators}': ") and "diffusion_pytorch_model" in said
    shutil.rmtree(weights.parent)
    said = refused(mine)
    assert said.startswith(f"setting generators='{mine.generators}': ") and "unet" in said


def test_a_size_that_a_model_does_not_have_is_refused(fetched):
    said = refused(replace(fetched, image_size=32))
    assert said == (
        "setting generators: pictures of 'tiny/generator' have 64 pixels a side, those of the world 'photos' 32: "
        "image_size=64"
    )
    with pytest.raises(MMCollapseError, match="image_size=512: pictures of the world 'scenes' have 64 pixels"):
        open_study(load_settings("smoke", image_size=512))


def test_a_world_with_fewer_pairs_than_asked_is_refused(fetched):
    chains = open_world("photos", fetched.data_folder, layout="karpathy").size("chain")
    said = refused(replace(fetched, pairs=chains + 1))
    assert f"setting pairs={chains + 1}, arm 'recursive': the chain split of world 'photos' has only {chains} " in said


def test_the_settings_of_the_world_reach_it(settings, elsewhere, tmp_path):
    with pytest.raises(MMCollapseError, match="has no flickr8k captions; there are karpathy"):
        open_world("photos", tmp_path / "photos", layout="flickr8k")
    assert open_world("photos", tmp_path / "photos", 48).sample("test", [0]).images.shape == (1, 48, 48, 3)
    (tmp_path / "photos/train2014/COCO_train2014_000000000001.jpg").write_bytes(b"no picture")
    with pytest.raises(MMCollapseError, match="1 bad entries"):
        open_world("photos", tmp_path / "photos")
    with pytest.warns(UserWarning, match="1 bad entries left out"):
        assert len(open_world("photos", tmp_path / "photos", on_bad="skip").skipped) == 1


def test_what_the_runner_tells_a_notebook_keeps_names_and_makes_folders_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/model").mkdir(parents=True)
    changes = {"generators": "own/model, tiny/generator, generator", "captioners": "./captioner", "runs": "r"}
    told = parameters("single-gpu", changes, ["01_variance"])[1]
    assert told["generators"] == f"{tmp_path}/own/model,tiny/generator,generator"
    assert told["captioners"] == f"{tmp_path}/captioner" and told["runs"] == f"{tmp_path}/r"
    assert "data" not in told  # a name, which the profile gives
    assert parameters("smoke", {"world": "photos", "data": "mine"}, ["01_variance"])[1]["data"] == f"{tmp_path}/mine"


def test_the_large_profiles_say_what_they_need_and_what_they_come_to(tmp_path, monkeypatch, capsys):
    """Without a network, a GPU, photos or models."""
    monkeypatch.setattr(sources, "DATA", tmp_path)
    nowhere = ["--mirror", "http://127.0.0.1:9", "--dry"]
    for profile, model in {"single-gpu": "CompVis/stable-diffusion-v1-4", "paper": "Salesforce/blip2-opt-2.7b"}.items():
        assert main(["fetch", "--profile", profile, *nowhere]) == 0
        said = capsys.readouterr().out
        assert f"{model}  to fetch, " in said and "coco-2014: train2014.zip" in said and "dino: " in said
        assert main(["plan", "--profile", profile, "--only", "06_remedies", "--set", "generations=1"]) == 0
        assert f"{model}: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
