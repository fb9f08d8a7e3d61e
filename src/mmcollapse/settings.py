"""Settings of a run: one flat dataclass, filled from a profile, then a notebook's parameters, then the command line.

A key that does not exist, a value of the wrong type or out of range is refused by name before anything runs, wherever
it comes from. No environment variable changes a result.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType

from mmcollapse.errors import MMCollapseError

PROFILES = Path(__file__).parent / "profiles"
ROOT = Path(__file__).parents[2]  # the checkout: base models and results lie in its data/


@dataclass(frozen=True)
class Settings:
    """Every setting, as the profiles give them. Lengths of lists are counts; sizes are pairs, prompts or steps."""

    # what runs
    profile: str = "nano"
    world: str = "scenes"  # "scenes" or "photos"
    data: str = ""  # folder of the photos world, or the name of data that `make fetch` brings, such as "coco-2014"
    image_size: int = 64  # pixels a side of the world's pictures; that of what the generators make
    layout: str = ""  # which captions to read where a folder of photos has several; "" is the first there is
    on_bad: str = "refuse"  # photos that cannot be used: "refuse" the folder, or "skip" and count them
    models: str = ""  # folder of the base models; "" is data/models/<world>
    # comma-separated: folders in `models`, models of the hub (OWNER/NAME, once fetched), or paths of your own; the
    # first is the default
    generators: str = "generator"
    captioners: str = "captioner"  # the same for captioners; only 03_diversity uses more than the first
    further: str = (
        ""  # base models on which the full grids of 01 and 06 are repeated, and for the pool of 08; "" is none
    )
    arms: str = ""  # comma-separated arms; "" is all of the experiment
    roles: str = ""  # "generator" or "captioner": only the arms of these; "" is both
    grid: str = "corners"  # how many arms: "full", or the "corners" that show the phenomenon
    seeds: int = 1  # chains an arm
    seeds_primary: int = 0  # of arms of a primary contrast of C1 to C7 and Q1; 0: as many as `seeds`
    seeds_exploratory: int = 0  # of arms that no verdict needs; 0: as many as `seeds`
    first_seed: int = 0  # seeds are first_seed, first_seed + 1, ...
    generations: int = 3
    # where things go
    runs: str = ""  # the store; "" is runs/ in the checkout
    results: str = ""  # "" is data/results/<profile>
    figures: str = ""  # "" is figures/<profile>
    keep_weights: str = "last"  # "last" generation only, or "all"
    keep_pictures: str = "none"  # measured pictures in the store: "none" (their scores stay) or "all"
    # one generation
    pairs: int = 96  # N: pairs trained on
    steps: int = 40  # optimiser steps
    batch: int = 16
    train_batch: int = 0  # pairs computed at once in a training step, their gradients added up; 0: all of `batch`
    checkpointing: str = "no"  # "yes": activations are computed again in the backward pass, to spare memory
    lr_generator: float = 1e-4
    lr_captioner: float = 1e-4
    warmup: int = 5  # steps
    method: str = "full"  # "full" or "lora"
    rank: int = 8  # of LoRA
    # LoRA: comma-separated ends of the names of the sub-modules that it is put on; "" is the model's own list
    lora_generator: str = ""
    lora_captioner: str = ""
    # data decoding: what makes training data
    data_steps: int = 8
    data_guidance: float = 1.0
    # measurement decoding: one for all arms and generations
    measure_steps: int = 8
    default_guidance: float = 3.0  # "as used"; guidance 1 is always measured beside it
    prompts: int = 16  # test prompts of the generator
    noises: int = 4  # pictures a prompt
    probes: int = 32  # withheld, uniform and training prompts, one picture each; test and training pictures captioned
    captions: int = 64  # test pictures captioned
    measure: str = (
        "brief"  # "full": generators also at the default guidance and on the probes, captioners on training ones
    )
    students: int = 1  # fresh base models trained on a generation's data: how robust is it? 0: none
    student_generations: str = "1,3,5,8,10"  # the generations whose data they are trained on
    student_seeds: int = 0  # only on the data of an arm's first so many seeds; 0: of all
    spaces: str = "judge,judge-2"  # feature spaces, comma-separated: judge, judge-2, inception, clip, dino
    instruments: str = ""  # folder of inception/, clip/ and dino/; "" is data/models/instruments
    # the values of what an experiment varies, comma-separated
    grid_steps: str = "2,4,10,20,50"  # denoising steps
    grid_guidance: str = "1,1.5,3,6,10"
    grid_beams: str = "1,2,5"
    grid_temperature: str = "0.5,1,1.5"
    grid_length: str = "6,12,24"  # most tokens of a caption
    grid_real: str = "10,25,50,75"  # per cent of real pairs
    grid_pairs: str = "125,500,2000"
    populations: str = "1,3"  # models that feed one pool
    # computing
    device: str = "cpu"  # "cpu", "cuda" or "auto"
    dtype: str = "float32"  # of the computing: "float32" or "bfloat16"; weights are float32
    compute_batch: int = 64  # samples made at once
    workers: int = 1  # chains at once, each in a process of its own (dask); 0: one a core, on a GPU a few
    scheduler: str = ""  # address of a dask scheduler whose workers run the chains; "" is this machine

    def __post_init__(self):
        kinds = {"str": str, "int": int, "float": float}
        for field in fields(self):
            value, want = getattr(self, field.name), kinds[field.type]
            if want is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not want:
                raise MMCollapseError(f"setting {field.name}={value!r}: must be {_KIND[field.type]}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise MMCollapseError(f"setting {name}={getattr(self, name)}: allowed are {low:g} to {high:g}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                named = ", ".join(filter(None, allowed))
                raise MMCollapseError(f"setting {name}={getattr(self, name)!r}: allowed are {named}")
        if self.train_batch and self.batch % self.train_batch:
            raise MMCollapseError(
                f"setting train_batch={self.train_batch}: must divide batch={self.batch} without a rest, or be 0"
            )
        for name in ("lora_generator", "lora_captioner"):
            items = [item.strip() for item in getattr(self, name).split(",")]
            if getattr(self, name) and ("" in items or len(set(items)) < len(items)):
                raise MMCollapseError(f"setting {name}={getattr(self, name)!r}: items must be there, and none twice")
        if self.world == "photos" and not self.data:
            raise MMCollapseError("setting data='': world='photos' needs the folder of your pictures (DATA=folder)")

    @property
    def data_folder(self) -> Path:
        """Of the photos: data/photos/<name> if `data` is a name that `make fetch` knows, else the folder itself."""
        from mmcollapse.sources import photos_folder  # here, for it imports this module

        return photos_folder(self.data) or Path(self.data)

    @property
    def models_folder(self) -> Path:
        """Where base models lie."""
        return Path(self.models) if self.models else ROOT / "data" / "models" / self.world

    def model_folder(self, name: str) -> Path:
        """Of a model of the zoo by its name, of one of the hub where `make fetch` puts it, or the folder itself if a
        path is given."""
        from mmcollapse.sources import hub_folder

        return hub_folder(name) or (Path(name) if "/" in name else self.models_folder / name)

    @property
    def instruments_folder(self) -> Path:
        """Where inception/, clip/ and dino/ lie."""
        return Path(self.instruments) if self.instruments else ROOT / "data" / "models" / "instruments"

    @property
    def runs_folder(self) -> Path:
        """The store."""
        return Path(self.runs) if self.runs else ROOT / "runs"

    @property
    def results_folder(self) -> Path:
        """Where tables, samples and executed notebooks go."""
        return Path(self.results) if self.results else ROOT / "data" / "results" / self.profile

    @property
    def figures_folder(self) -> Path:
        """Where figures go."""
        return Path(self.figures) if self.figures else ROOT / "figures" / self.profile

    def resolved_device(self) -> str:
        """ "cpu" or "cuda", never "auto"."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise MMCollapseError("setting device='cuda': torch sees no GPU; use device='cpu' or 'auto'")
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


_KIND = {"str": "a text", "int": "a whole number", "float": "a number"}
_RANGES = {
    "seeds": (1, 1000),
    "seeds_primary": (0, 1000),
    "seeds_exploratory": (0, 1000),
    "first_seed": (0, 10**6),
    "generations": (1, 100),
    "image_size": (8, 4096),
    "pairs": (2, 10**6),
    "steps": (1, 10**6),
    "batch": (1, 10**5),
    "train_batch": (0, 10**5),
    "lr_generator": (0, 1),
    "lr_captioner": (0, 1),
    "warmup": (0, 10**6),
    "rank": (1, 1024),
    "data_steps": (1, 1000),
    "data_guidance": (1, 50),
    "measure_steps": (1, 1000),
    "default_guidance": (1, 50),
    "prompts": (2, 10**5),
    "noises": (2, 1000),
    "probes": (2, 10**5),
    "students": (0, 1000),
    "student_seeds": (0, 1000),
    "captions": (2, 10**5),
    "compute_batch": (1, 10**5),
    "workers": (0, 10**4),
}
_CHOICES = {
    "world": ("scenes", "photos"),
    "layout": ("", "image-folder", "coco", "flickr8k", "flickr30k", "karpathy"),  # those of worlds/layouts.py
    "on_bad": ("refuse", "skip"),
    "grid": ("corners", "full"),
    "measure": ("brief", "full"),
    "keep_weights": ("last", "all"),
    "keep_pictures": ("none", "all"),
    "checkpointing": ("no", "yes"),
    "method": ("full", "lora"),
    "device": ("cpu", "cuda", "auto"),
    "dtype": ("float32", "bfloat16"),
}


def profiles() -> list[str]:
    """Names of the profiles there are."""
    return sorted(p.stem for p in PROFILES.glob("*.toml"))


def load_settings(profile: str, experiment: str = "", **changes) -> Settings:
    """Settings of a profile with changes on top; a change of None means "from the profile". What a profile says of one
    experiment (a table of its name) comes before what it says of all. A change of `seeds` is one for all arms."""
    from mmcollapse.experiments import EXPERIMENTS  # here, for it imports this module

    path = PROFILES / f"{profile}.toml"
    if not path.is_file():
        raise MMCollapseError(f"profile={profile!r}: allowed are {', '.join(profiles())}")
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise MMCollapseError(f"profile {path} is damaged: {error}") from error
    known = {f.name for f in fields(Settings)}
    tables = {name: values.pop(name) for name, value in list(values.items()) if isinstance(value, dict)}
    if unknown := [name for name in tables if name not in EXPERIMENTS]:
        raise MMCollapseError(f"profile {path} has a table [{unknown[0]}]; experiments are {', '.join(EXPERIMENTS)}")
    changes = {k: v for k, v in changes.items() if v is not None}
    for name, value in (pair for part in (values, *tables.values(), changes) for pair in part.items()):
        if name not in known:
            named = ", ".join(sorted(known))
            raise MMCollapseError(f"setting {name}={value!r} is unknown; settings are {named}")
    values |= tables.get(experiment, {})
    if "seeds" in changes:  # asked for by hand: of every arm, whatever rests on it
        values |= {"seeds_primary": 0, "seeds_exploratory": 0}
    values |= changes
    return Settings(**values | {"profile": profile})


PLAIN = (str, int, float, bool, list, dict, tuple, NoneType)  # what papermill can put in; not what the cells have made
# What IPython and papermill put into a notebook's namespace.
_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open", "papermill_description"}


def configure(namespace: dict, experiment: str) -> Settings:
    """Settings from a notebook: call as `configure(globals(), "01_variance")` in the cell after the parameters. Any
    plain value whose name is no setting is refused, for papermill itself only warns and goes on with the default."""
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in _IPYTHON and isinstance(value, PLAIN)
    }
    profile = values.pop("profile", "nano")
    if "experiment" in values:  # it is no parameter of the notebook
        raise MMCollapseError(f"setting experiment={values['experiment']!r} is unknown: this notebook is {experiment}")
    return load_settings(profile, experiment, **values)


def parse_changes(pairs: list[str]) -> dict:
    """["seeds=3", "lr_generator=1e-5"] from the command line as typed values."""
    kinds = {f.name: f.type for f in fields(Settings)}
    out = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in kinds:
            why = f"there is no setting {name!r}" if equals else "expected name=value"
            raise MMCollapseError(f"setting {pair!r}: {why}; names are {', '.join(sorted(kinds))}")
        try:
            out[name] = {"str": str, "int": int, "float": float}[kinds[name]](text)
        except ValueError as error:
            raise MMCollapseError(f"setting {name}={text!r}: must be {_KIND[kinds[name]]}") from error
    return out


def as_dict(settings: Settings) -> dict:
    """The settings as plain values, for the record."""
    return dataclasses.asdict(settings)
