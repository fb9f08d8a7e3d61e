"""Protocols: who makes, who labels, who is trained, on what. Data, not code: the loop has no branch for an arm."""

from __future__ import annotations

from dataclasses import dataclass

from mmcollapse.errors import MMCollapseError


@dataclass(frozen=True)
class Protocol:
    """One arm of an experiment.

    arm: its name in tables and figures.
    role: the model that is studied, "generator" (trained on pictures made from real prompts) or "captioner" (trained on
        captions of real pictures).
    data: where training pairs come from: "synthetic" (the role's model makes the missing half), "real", or "none" (the
        model is frozen).
    makers: which model makes synthetic data: "previous" generation (recursive) or "base" (generation 0).
    start: what fine-tuning starts from: the "previous" generation or the "base".
    drift: settings of the captioner's data decoding that drift with the generation (see `drifting`).
    measured_drift: the same for an additional measurement of captions, called "drifting".
    """

    arm: str
    role: str
    data: str = "synthetic"
    makers: str = "previous"
    start: str = "previous"
    drift: tuple[str, ...] = ()
    measured_drift: tuple[str, ...] = ()

    def __post_init__(self):
        allowed = {
            "role": ("generator", "captioner"),
            "data": ("synthetic", "real", "none"),
            "makers": ("previous", "base"),
            "start": ("previous", "base"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                given = getattr(self, name)
                raise MMCollapseError(f"{name}={given!r} of arm {self.arm!r}: allowed are {', '.join(values)}")
        for name in (*self.drift, *self.measured_drift):
            if name not in DRIFT:
                raise MMCollapseError(f"drift of {name!r} in arm {self.arm!r}: allowed are {', '.join(DRIFT)}")

    @property
    def modality(self) -> str:
        return "image" if self.role == "generator" else "text"


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


# Experiment 1, variance (claims C1-C3 and question Q1). Every arm but the frozen ones has its controls real and gen0.
VARIANCE = (
    Protocol("recursive", "generator"),
    Protocol("real", "generator", data="real"),
    Protocol("gen0", "generator", makers="base"),
    Protocol("recursive", "captioner", measured_drift=DRIFT),
    Protocol("real", "captioner", data="real", measured_drift=DRIFT),
    Protocol("gen0", "captioner", makers="base", measured_drift=DRIFT),
    Protocol("recursive-drift", "captioner", drift=DRIFT, measured_drift=DRIFT),
    Protocol("gen0-drift", "captioner", makers="base", drift=DRIFT, measured_drift=DRIFT),
    Protocol("frozen-drift", "captioner", data="none", measured_drift=DRIFT),
    Protocol("frozen-length", "captioner", data="none", measured_drift=("length",)),
    Protocol("frozen-temperature", "captioner", data="none", measured_drift=("temperature",)),
)

EXPERIMENTS = {"01_variance": VARIANCE}


def arms_of(experiment: str, arms: str = "") -> list[Protocol]:
    """The protocols of an experiment, or those whose arm is named in the comma-separated `arms`."""
    protocols = EXPERIMENTS[experiment]
    if not arms:
        return list(protocols)
    wanted = [a.strip() for a in arms.split(",")]
    known = {p.arm for p in protocols}
    for arm in wanted:
        if arm not in known:
            raise MMCollapseError(f"arms={arms!r}: {experiment} has no arm {arm!r}; it has {', '.join(sorted(known))}")
    return [p for p in protocols if p.arm in wanted]
