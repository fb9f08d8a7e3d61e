"""Settings: profiles, their changes, and what is refused by name."""

import math
import sys
from dataclasses import fields

import pytest

from mmcollapse import settings as settings_module
from mmcollapse.__main__ import main
from mmcollapse.costs import memory
from mmcollapse.errors import MMCollapseError
from mmcollapse.experiments import EXPERIMENTS, arms_of
from mmcollapse.settings import ROOT, Settings, as_dict, configure, load_settings, parse_changes, profiles
from mmcollapse.worlds.layouts import LAYOUTS


def test_every_profile_loads_and_says_who_it_is():
    assert {"smoke", "nano", "study", "single-gpu", "paper"} <= set(profiles())
    for name in profiles():
        assert load_settings(name).profile == name


def test_later_changes_win_and_none_means_from_the_profile():
    assert load_settings("smoke").pairs == 8
    assert load_settings("smoke", pairs=9, steps=None).pairs == 9
    assert load_settings("smoke", pairs=9, steps=None).steps == load_settings("smoke").steps
    assert load_settings("smoke", lr_generator=0).lr_generator == 0.0  # a whole number is a number
    assert type(load_settings("smoke", lr_generator=0).lr_generator) is float


def test_a_change_of_seeds_is_one_for_all_arms():
    study = load_settings("study", "01_variance")
    assert (study.seeds, study.seeds_primary, study.seeds_exploratory, study.student_seeds) == (5, 10, 3, 2)
    three = load_settings("study", "01_variance", seeds=3)
    assert (three.seeds, three.seeds_primary, three.seeds_exploratory) == (3, 0, 0)
    both = load_settings("study", seeds=3, seeds_primary=6)
    assert (both.seeds, both.seeds_primary, both.seeds_exploratory) == (3, 6, 0)
    assert load_settings("study", seeds=None).seeds_primary == 10


def test_what_a_profile_says_of_an_experiment_comes_before_what_it_says_of_all():
    assert load_settings("smoke").measure == "brief" and load_settings("smoke", "01_variance").measure == "full"
    assert load_settings("smoke", "01_variance", measure="brief").measure == "brief"  # and a change before both
    pools = load_settings("smoke", "03_diversity")
    assert (pools.generators, pools.populations) == ("generator,generator-sdxl", "1,2")
    assert load_settings("smoke", "04_relabeling").generators == "generator"
    for name in profiles():
        for experiment in EXPERIMENTS:  # every table can be read, and has arms
            assert arms_of(experiment, load_settings(name, experiment)) or EXPERIMENTS[experiment] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 1e-4}, "setting learning_rate=0.0001 is unknown; settings are arms, "),
        ({"seeds": "3"}, "setting seeds='3': must be a whole number"),
        ({"seeds": 3.0}, "setting seeds=3.0: must be a whole number"),
        ({"seeds": True}, "setting seeds=True: must be a whole number"),
        ({"lr_generator": "1e-4"}, "setting lr_generator='1e-4': must be a number"),
        ({"runs": 3}, "setting runs=3: must be a text"),
        ({"arms": ["real"]}, "setting arms=['real']: must be a text"),
        ({"seeds": 0}, "setting seeds=0: allowed are 1 to 1000"),
        ({"lr_generator": math.nan}, "setting lr_generator=nan: allowed are 0 to 1"),
        ({"world": "mars"}, "setting world='mars': allowed are scenes, photos"),
        ({"device": "gpu"}, "setting device='gpu': allowed are cpu, cuda, auto"),
        ({"grid": "half"}, "setting grid='half': allowed are corners, full"),
        ({"measure": "all"}, "setting measure='all': allowed are brief, full"),
        ({"seeds_primary": -1}, "setting seeds_primary=-1: allowed are 0 to 1000"),
        ({"seeds_exploratory": 1001}, "setting seeds_exploratory=1001: allowed are 0 to 1000"),
        ({"student_seeds": -1}, "setting student_seeds=-1: allowed are 0 to 1000"),
        ({"students": -1}, "setting students=-1: allowed are 0 to 1000"),
        ({"populations": 3}, "setting populations=3: must be a text"),
        ({"world": "photos"}, "needs the folder of your pictures (DATA=folder)"),
        ({"image_size": 4}, "setting image_size=4: allowed are 8 to 4096"),
        (
            {"layout": "karpathi"},
            "setting layout='karpathi': allowed are image-folder, coco, flickr8k, flickr30k, karpathy",
        ),
        ({"on_bad": "ignore"}, "setting on_bad='ignore': allowed are refuse, skip"),
        ({"checkpointing": True}, "setting checkpointing=True: must be a text"),
        ({"checkpointing": "maybe"}, "setting checkpointing='maybe': allowed are no, yes"),
        ({"batch": 4, "train_batch": 3}, "setting train_batch=3: must divide batch=4 without a rest, or be 0"),
        ({"batch": 4, "train_batch": 8}, "setting train_batch=8: must divide batch=4 without a rest, or be 0"),
        ({"lora_generator": "to_q,,to_v"}, "setting lora_generator='to_q,,to_v': items must be there, and none twice"),
        ({"lora_captioner": "query, query"}, "setting lora_captioner='query, query': items must be there"),
    ],
)
def test_what_is_wrong_is_refused_by_name(change, says):
    with pytest.raises(MMCollapseError) as error:
        load_settings("smoke", **change)
    assert says in str(error.value)


def test_a_profile_that_is_not_there_or_not_right_is_refused(tmp_path, monkeypatch):
    with pytest.raises(MMCollapseError, match="profile='smok': allowed are nano, paper, single-gpu, smoke, study"):
        load_settings("smok")
    monkeypatch.setattr(settings_module, "PROFILES", tmp_path)
    (tmp_path / "mine.toml").write_text("seedz = 3\n")
    with pytest.raises(MMCollapseError, match="setting seedz=3 is unknown"):
        load_settings("mine")
    (tmp_path / "mine.toml").write_text('["01_varance"]\nseeds = 3\n')
    with pytest.raises(MMCollapseError, match=r"has a table \[01_varance\]; experiments are 01_variance, 02_"):
        load_settings("mine")
    (tmp_path / "mine.toml").write_text('["06_remedies"]\nseedz = 3\n')
    for experiment in ("", "01_variance", "06_remedies"):  # whichever is asked for
        with pytest.raises(MMCollapseError, match="setting seedz=3 is unknown"):
            load_settings("mine", experiment)
    (tmp_path / "mine.toml").write_text("seeds = \n")
    with pytest.raises(MMCollapseError, match="mine.toml is damaged"):
        load_settings("mine")


def test_a_notebook_gives_its_names_and_nothing_else():
    def cell():
        """A function that the notebook imported."""

    notebook = {"__name__": "__main__", "_": 1, "In": [], "sys": sys, "configure": configure, "cell": cell}
    assert configure(notebook, "01_variance") == load_settings("nano", "01_variance")
    assert configure(notebook | {"profile": "smoke", "seeds": None, "pairs": 9}, "01_variance").pairs == 9
    with pytest.raises(MMCollapseError, match="setting seed=3 is unknown"):  # papermill would only warn
        configure(notebook | {"profile": "smoke", "seed": 3}, "01_variance")
    with pytest.raises(MMCollapseError, match="setting experiment='06_remedies' is unknown: this notebook is 01_var"):
        configure(notebook | {"experiment": "06_remedies"}, "01_variance")
    with pytest.raises(MMCollapseError, match="setting pairs='9': must be a whole number"):
        configure(notebook | {"pairs": "9"}, "01_variance")


def test_the_cell_of_the_settings_can_be_run_again():
    """In a notebook that was run to its end there are also its results."""
    import pandas as pd

    there = {"profile": "smoke", "settings": load_settings("smoke"), "table": pd.DataFrame(), "drawn": pd.Series()}
    assert configure(there, "06_remedies") == load_settings("smoke", "06_remedies")


def test_changes_of_the_command_line_are_typed():
    given = parse_changes(["seeds=3", "lr_generator=1e-5", "arms=real,gen0", "models=a=b"])
    assert given == {"seeds": 3, "lr_generator": 1e-5, "arms": "real,gen0", "models": "a=b"}
    for wrong in ["seeds", "seedz=3", "seeds=3.5", "seeds=", "lr_generator=fast"]:
        with pytest.raises(MMCollapseError, match=wrong.split("=")[0]):
            parse_changes([wrong])


def test_folders_that_are_not_given_follow_the_profile():
    settings = load_settings("smoke")
    assert settings.results_folder == ROOT / "data" / "results" / "smoke"
    assert settings.figures_folder == ROOT / "figures" / "smoke"
    assert settings.models_folder == ROOT / "data" / "models" / "scenes"
    assert str(load_settings("smoke", results="a").results_folder) == "a"
    assert settings.model_folder("generator") == settings.models_folder / "generator"
    assert str(settings.model_folder("/my/own")) == "/my/own" and str(settings.model_folder("./own")) == "own"
    assert str(settings.model_folder("../own")) == "../own"  # no owner of the hub is called ".."


def test_a_name_of_the_hub_is_where_it_was_fetched_to_unless_it_is_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, hub = load_settings("smoke"), ROOT / "data" / "models" / "hub"
    for name in ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4@refs/pr/1"):
        assert settings.model_folder(name) == hub / "CompVis--stable-diffusion-v1-4"
    (tmp_path / "CompVis/stable-diffusion-v1-4").mkdir(parents=True)
    assert str(settings.model_folder("CompVis/stable-diffusion-v1-4")) == "CompVis/stable-diffusion-v1-4"


def test_data_are_a_folder_or_what_was_fetched_under_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = load_settings("smoke", world="photos", data="coco-2014")
    assert fetched.data_folder == ROOT / "data" / "photos" / "coco-2014"
    (tmp_path / "coco-2014").mkdir()
    assert str(fetched.data_folder) == "coco-2014"
    assert str(load_settings("smoke", world="photos", data="mine").data_folder) == "mine"


def test_the_layouts_are_those_that_can_be_read():
    assert settings_module._CHOICES["layout"] == ("", *LAYOUTS)


@pytest.mark.parametrize(("profile", "gigabytes"), [("single-gpu", 16), ("paper", 80)])
def test_profiles_of_photos_fit_their_gpus(profile, gigabytes):
    """With half of it left for activations, even where all models of a population are there at once."""
    for experiment, arms in EXPERIMENTS.items():
        s = load_settings(profile, experiment)
        assert (s.world, s.data, s.dtype, s.device) == ("photos", "coco-2014", "bfloat16", "cuda")
        held, unknown = memory(s, [*s.generators.split(","), *s.captioners.split(",")])
        assert 0 < held < 0.5 * gigabytes * 1e9 and not unknown
        if arms:  # nobody knows the truth of photos
            assert not [p.arm for p in arms_of(experiment, s) if p.captions in ("oracle", "noised")]


def test_the_record_holds_every_setting():
    assert set(as_dict(load_settings("smoke"))) == {f.name for f in fields(Settings)}


@pytest.mark.parametrize("command", ["run", "figures", "status", "sweep", "bench", "validate"])
def test_a_mistake_on_the_command_line_is_one_line(command, capsys, tmp_path):
    folders = ["--runs", str(tmp_path), "--results", str(tmp_path), "--figures", str(tmp_path)]
    assert main([command, *folders, "--set", "seeds=three"]) == 1
    said = capsys.readouterr()
    assert said.err == "mmcollapse: setting seeds='three': must be a whole number\n" and not said.out
