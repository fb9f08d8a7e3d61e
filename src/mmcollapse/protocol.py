"""Protocols: who makes, who labels, who is trained, on what. Data, not code: the loop has no branch for an arm."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf

from mmcollapse.errors import MMCollapseError

ROLES = ("generator", "captioner")
MODALITY = {"generator": "image", "captioner": "text"}


@dataclass(frozen=True)
class Protocol:
    """One arm of an experiment.

    arm: its name in tables and figures.
    trains: the roles that are trained, "generator" and "captioner"; both on the same pairs.
    frozen: the roles that are measured and never trained.
    pictures: whose pictures are trained on: "real" ones of the prompts, or a generator's, of the "previous" generation
        or the "base".
    captions: what is said of them: "given" (the real caption, or the prompt that the picture was made from), by a
        captioner of the "previous" generation or the "base" (if the arm has none, the first of the zoo), by the
        "oracle" (what it sees, through the grammar), or "noised" (the same, damaged as often as the captioner of the
        arm `noise_like` errs at that generation).
    prompts: "real" ones every generation (anchored), or the "captions" of the generation before (closed loop).
    start: what fine-tuning starts from: the "previous" generation or the "base".
    fresh: new prompts and pictures every generation instead of the same.
    population: names of the models of the trained role, of which each makes an equal share of the pairs; a name that
        comes twice means clones. (): the first of the zoo.
    exchange: whether each model of a population is trained on the pairs of all; otherwise each makes all pairs for
        itself alone.
    decoding: (name, value) of what differs in the data decoding (see ImageDecoding and CaptionDecoding).
    drift: settings of the captioner's data decoding that drift with the generation (see `drifting`).
    measured_drift: the same for an additional measurement of captions, called "drifting".
    keep: "replace" trains on this generation's pairs; "accumulate" on those of all generations so far, with as many
        times the steps; "subsample" on as many of these as "replace" has, at equal steps.
    anchored: real pairs of the prompts are the first of what accumulates.
    real_share: share of the pairs that are real, 0 to 1; real_fresh: new ones every generation; real_only: the others
        are left out.
    pairs: number of pairs; 0 is the setting `pairs`. compute: times the steps. rate: times the learning rate.
    remedy: (name, value) of what is otherwise from the switch on; all fields but those in FIXED can be.
    switch: the generation from which on the remedy holds, or names of alarms (see alarms.ALARMS): then it is the
        generation after that in which the first of them sounds for a model of the chain.
    controls: arms of the same roles that this one cannot be read without.
    """

    arm: str
    trains: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    pictures: str = "real"
    captions: str = "given"
    prompts: str = "real"
    start: str = "previous"
    fresh: bool = False
    population: tuple[str, ...] = ()
    exchange: bool = True
    decoding: tuple[tuple[str, float], ...] = ()
    drift: tuple[str, ...] = ()
    measured_drift: tuple[str, ...] = ()
    keep: str = "replace"
    anchored: bool = False
    real_share: float = 0.0
    real_fresh: bool = False
    real_only: bool = False
    pairs: int = 0
    compute: int = 1
    rate: float = 1.0
    noise_like: str = ""
    remedy: tuple[tuple[str, object], ...] = ()
    switch: int | tuple[str, ...] = ()
    controls: tuple[str, ...] = ("real", "gen0")

    def __post_init__(self):
        for name, values in _ALLOWED.items():
            if getattr(self, name) not in values:
                self._refuse(name, f"allowed are {', '.join(values)}")
        for name in ("trains", "frozen"):
            for role in getattr(self, name):
                if role not in ROLES:
                    self._refuse(name, f"roles are {', '.join(ROLES)}")
        if both := set(self.trains) & set(self.frozen):
            self._refuse("frozen", f"the {both.pop()} is also to be trained; it can be one or the other")
        if not self.roles:
            self._refuse("trains", "nothing is trained and nothing is measured")
        for name in ("drift", "measured_drift"):
            if unknown := [n for n in getattr(self, name) if n not in DRIFT]:
                raise MMCollapseError(f"{name} of {unknown[0]!r} in arm {self.arm!r}: allowed are {', '.join(DRIFT)}")
        if not 0 <= self.real_share <= 1:
            self._refuse("real_share", "allowed are 0 to 1")
        if self.real_only and not self.real_share:
            self._refuse("real_only", "there is no real part (real_share is 0)")
        makers = {"generator": self.pictures, "captioner": self.captions}
        for role, whose in makers.items():
            if whose == "previous" and role not in self.trains:
                name = "pictures" if role == "generator" else "captions"
                self._refuse(name, f"the {role} is not trained, so it has no previous generation; say 'base'")
        if self.population and (len(self.trains) != 1 or self.frozen):
            self._refuse("population", "populations are of one role")
        if (self.captions == "noised") != bool(self.noise_like):
            self._refuse("noise_like", "captions='noised' needs the arm whose errors it copies, and nothing else does")
        if self.pairs < 0 or self.compute < 1:
            self._refuse("pairs" if self.pairs < 0 else "compute", "must be positive")
        if not 0 < self.rate < inf:
            self._refuse("rate", "must be positive")
        if self.remedy or self.switch != ():
            self._check_switch()

    def _check_switch(self):
        if not self.remedy or self.switch == ():
            self._refuse("switch", "a remedy needs a switch, and a switch a remedy")
        names = [f.name for f in fields(self) if f.name not in FIXED]
        if unknown := [name for name, _ in self.remedy if name not in names]:
            self._refuse("remedy", f"{unknown[0]!r} cannot change within a chain; {', '.join(names)} can")
        if isinstance(self.switch, tuple):
            from mmcollapse.alarms import ALARMS  # here, for few arms need pandas

            known = [alarm.name for alarm in ALARMS if alarm.modality in self.modalities]
            if not set(self.switch) <= set(known):
                self._refuse("switch", f"alarms of what is measured are {', '.join(known)}")
        elif self.switch < 1:
            self._refuse("switch", "allowed are generations from 1 on, or names of alarms")
        self.at(inf, 0)  # what holds then is a protocol too

    def _refuse(self, name: str, why: str):
        raise MMCollapseError(f"{name}={getattr(self, name)!r} of arm {self.arm!r}: {why}")

    @property
    def roles(self) -> tuple[str, ...]:
        """Everything that is measured."""
        return tuple(role for role in ROLES if role in (*self.trains, *self.frozen))

    @property
    def modalities(self) -> tuple[str, ...]:
        """ "image" of generators, "text" of captioners, in the order of `roles`."""
        return tuple(MODALITY[role] for role in self.roles)

    @property
    def name(self) -> str:
        """Of the chain, for people: roles and arm."""
        return f"{' and '.join(self.roles)} {self.arm}"

    def since(self, alarm: float = inf) -> float:
        """The generation from which on the remedy holds. alarm: that in which one of its alarms first sounded."""
        if not self.remedy:
            return inf
        return alarm + 1 if isinstance(self.switch, tuple) else self.switch

    def at(self, generation: float, alarm: float = inf) -> Protocol:
        """The protocol that holds at a generation. alarm: see `since`."""
        if generation < self.since(alarm) or not self.remedy:
            return self
        return replace(self, remedy=(), switch=(), **dict(self.remedy))

    def parts(self, pairs: int) -> tuple[int, int]:
        """How many of `pairs` pairs are synthetic and how many real. MMCollapseError: a part has none, or the synthetic
        one less than a pair for each model that makes it."""
        kept = round(self.real_share * pairs)
        if self.real_share and not kept:
            self._refuse("real_share", f"of {pairs} pairs that is none")
        if self.real_only or self.real_share == 1:
            return 0, kept
        if pairs - kept < (makers := len(self.population) if self.exchange and self.population else 1):
            raise MMCollapseError(
                f"setting pairs={pairs}: too few for arm {self.arm!r}, where {makers} model{'s' * (makers > 1)} make"
                f"{'s' * (makers == 1)} {pairs - kept} of them"
            )
        return pairs - kept, kept

    def members(self, zoo: dict[str, tuple[str, ...]]) -> list[Member]:
        """The models of the chain. zoo: names of models by role, the first being the default."""
        out = []
        for role in self.roles:
            names = self.population or zoo[role][:1]
            out += [Member(role, name, names[:k].count(name)) for k, name in enumerate(names)]
        return out


@dataclass(frozen=True)
class Member:
    """One model of a chain. copy: 0, or the number of a clone of the same base model."""

    role: str
    model: str
    copy: int = 0

    @property
    def label(self) -> str:
        """Its name in the column `model` of a table."""
        name = self.model.rstrip("/").rpartition("/")[2]  # of a folder of the user's its last part
        return f"{name} clone {self.copy + 1}" if self.copy else name


_ALLOWED = {
    "pictures": ("real", "previous", "base"),
    "captions": ("given", "previous", "base", "oracle", "noised"),
    "prompts": ("real", "captions"),
    "start": ("previous", "base"),
    "keep": ("replace", "accumulate", "subsample"),
}

# What a remedy cannot change: who is in the chain and measured, and what its history rests on.
FIXED = ("arm", "trains", "frozen", "population", "pairs", "keep", "anchored", "measured_drift", "noise_like")
FIXED += ("remedy", "switch", "controls")

# The settings that drift in the public code's captioning schedule.
DRIFT = ("temperature", "top_p", "top_k", "beams", "repetition_penalty", "no_repeat", "length")


def drifting(generation: int, what: tuple[str, ...], vocabulary: int, reference_length: float, max_tokens: int):
    """The public code's caption decoding at a generation, for the settings named in `what`; the others stay as in
    ancestral sampling at temperature 1 (what the matched arms use).

    Published: temperature 0.8 at generation 0, then min(0.8 + 0.15 g, 1.5); top-p 0.9 to 0.98, top-k 50 to 20 and beams
    5 to 1 over ten generations; repetition penalty 1.2 to 1.8; no repeated 2-grams and a minimal length of 30 from
    generation 1 on. Carried over by ratio: top-k as a share of the 323 words that its captions use at generation 0, the
    minimal length as 2.5 times the mean reference length (at most what the captioner can write)."""
    from mmcollapse.models.captioner import CaptionDecoding  # here, for status and trace need no torch

    g = min(generation, 10) / 10
    share = (50 + (20 - 50) * g) / 323
    values = {
        "temperature": min(0.8 + 0.15 * generation, 1.5),
        "top_p": 0.9 + 0.08 * g,
        "top_k": max(2, round(share * vocabulary)),
        "beams": round(5 - 4 * g),
        "repetition_penalty": 1.2 + 0.6 * g,
        "no_repeat": 2 if generation >= 1 else 0,
        "length": min(round(2.5 * reference_length), max_tokens - 1) if generation >= 1 else 0,
    }
    chosen = {("min_tokens" if k == "length" else k): v for k, v in values.items() if k in what}
    return CaptionDecoding(**{"temperature": 1.0, "max_tokens": max_tokens} | chosen)


def of_json(told: dict) -> Protocol:
    """A protocol as a provenance tells it, in JSON, which knows no tuples."""

    def tuples(value):
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return Protocol(**{name: tuples(value) for name, value in told.items()})
