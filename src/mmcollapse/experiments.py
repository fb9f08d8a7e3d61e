"""The arms of every experiment. Each has its controls: *real*, trained on real pairs, and *gen0*, trained every
generation on what generation 0 made; so what recursion does is told from what fine-tuning does.

Arms that are equal in everything but their name are trained once: the store knows no names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

from mmcollapse.errors import MMCollapseError
from mmcollapse.protocol import DRIFT, ROLES, Protocol
from mmcollapse.settings import Settings
from mmcollapse.stats import SEEDS_NEEDED


def recursive(role: str, arm: str = "recursive", **changes) -> Protocol:
    """A model that is trained on what it made: pictures of real prompts, or captions of real pictures."""
    makes = {"pictures": "previous"} if role == "generator" else {"captions": "previous"}
    return Protocol(arm, (role,), **makes | changes)


def real(role: str, arm: str = "real", **changes) -> Protocol:
    """Trained on the real pairs of the same prompts."""
    return Protocol(arm, (role,), **{"controls": ()} | changes)


def gen0(role: str, arm: str = "gen0", **changes) -> Protocol:
    """Trained every generation on what generation 0 made."""
    makes = {"pictures": "base"} if role == "generator" else {"captions": "base"}
    return Protocol(arm, (role,), **makes | {"controls": ()} | changes)


def controls(role: str, **changes) -> list[Protocol]:
    """*real* and *gen0* of a role, with the same `changes`."""
    return [real(role, **changes), gen0(role, **changes)]


def repeated(role: str, name: str, **changes) -> list[Protocol]:
    """*recursive* once more with something changed, and controls with the same changed: arms "recursive-<name>", ..."""
    own = {"controls": (f"real-{name}", f"gen0-{name}")}
    arms = [recursive(role, f"recursive-{name}", **own | changes)]
    return [*arms, real(role, f"real-{name}", **changes), gen0(role, f"gen0-{name}", **changes)]


RATES = {"lr-half": 0.5, "lr-double": 2.0}  # times the learning rate: is what is found that of one rate?


def further(s: Settings, role: str) -> list[str]:
    """The names in the setting `further` that are of this role, by their beginning. MMCollapseError: one is of none."""
    names = listed(s, "further") if s.further else []
    for name in names:
        if not name.startswith(tuple(f"{role}-" for role in ROLES)):
            raise MMCollapseError(
                f"setting further={s.further!r}: the name of {name!r} tells no role; it must begin with "
                f"{' or '.join(f'{role}-' for role in ROLES)}"
            )
    return [name for name in names if name.startswith(f"{role}-")]


def variance(s: Settings) -> list[Protocol]:
    """Claims C1 to C3 and question Q1. The full grid repeats the arms of C1-C3 with new prompts every generation, from
    the base model every generation, at half and double learning rate, and on further base models."""
    measured = {"measured_drift": DRIFT}
    arms = [recursive("generator"), *controls("generator"), recursive("captioner", **measured)]
    arms += controls("captioner", **measured)
    arms += [
        recursive("captioner", "recursive-drift", drift=DRIFT, **measured),
        gen0("captioner", "gen0-drift", drift=DRIFT, **measured),
    ]
    for arm, drift in {"drift": DRIFT, "length": ("length",), "temperature": ("temperature",)}.items():
        arms.append(Protocol(f"frozen-{arm}", frozen=("captioner",), measured_drift=drift, controls=()))
    if s.grid == "full":
        for role in ROLES:
            for name, changes in {"fresh": {"fresh": True}, "restart": {"start": "base"}}.items():
                own = [f"real-{name}", f"gen0-{name}"] if name == "fresh" else [f"real-{name}"]
                arms.append(recursive(role, f"recursive-{name}", controls=tuple(own), **changes))
                arms.append(real(role, f"real-{name}", **changes))
                if name == "fresh":
                    arms.append(gen0(role, f"gen0-{name}", **changes))
            for name, rate in RATES.items():
                arms += repeated(role, name, rate=rate)
            for name in further(s, role):
                arms += repeated(role, name, population=(name,))
    return arms


def decoding_budget(s: Settings) -> list[Protocol]:
    """Claim C4: how the data are decoded, one knob at a time; what is measured is decoded alike in all arms. Every
    value of a knob has its own *gen0*, for guidance and beams change the data of generation 0 already."""
    arms = []
    for role, knobs in KNOBS.items():
        arms += [recursive(role), *controls(role)]
        for knob, (setting, others) in knobs.items():
            values = numbers(s, f"grid_{knob}", *RANGES[knob])
            for value in values if s.grid == "full" else corners(values):
                decoding = (*others, (setting, value))
                name = f"{knob}-{value:g}"
                arms.append(recursive(role, name, decoding=decoding, controls=("real", f"{name}-gen0")))
                arms.append(gen0(role, f"{name}-gen0", decoding=decoding))
    return arms


# knob: the setting of the decoding that it is, and what else is decoded otherwise than by default
KNOBS = {
    "generator": {"steps": ("steps", ()), "guidance": ("guidance", ())},
    "captioner": {
        "beams": ("beams", (("temperature", 0.0),)),  # beam search; one beam is greedy search
        "temperature": ("temperature", ()),
        "length": ("max_tokens", ()),
    },
}
# lowest and highest value, and what kind of number it is
RANGES = {
    "steps": (1, 1000, int),
    "guidance": (1, 50, float),
    "beams": (1, 100, int),
    "temperature": (0, 100, float),
    "length": (1, 1000, int),
}


def corners(values: list) -> list:
    """The lowest and the highest."""
    return sorted({min(values), max(values)})


def diversity(s: Settings) -> list[Protocol]:
    """Claim C6: models that feed one pool, against each of them alone.

    alone: every model of the zoo on its own, on as many pairs (a pool of isolated chains). pool-M: M different models,
    of each size as many populations as there are models, each model in M of them; those of LATER sizes come last.
    clones-M: one base model M times.
    frozen-pool-M: the pool is made by generation 0 (the pool's gen0). alone-compute-M: alone, with M times the steps.
    seeds-M: the same architecture, separately pretrained."""
    arms, sizes = [], population_sizes(s)
    for role in ROLES:
        zoo, most = tuple(listed(s, f"{role}s")), max(sizes)
        apart = {"population": zoo, "exchange": False}
        arms += [recursive(role, "alone", **apart), real(role, **apart), gen0(role, **apart)]
        for m in sizes:
            if m > 1:
                starts = range(len(zoo)) if m < len(zoo) else [0]
                for k in starts:
                    name = f"pool-{m}" + (f"{'abcdefghij'[k]}" if len(starts) > 1 else "")
                    members = tuple((zoo + zoo)[k : k + m])
                    arms.append(recursive(role, name, population=members, controls=("alone", "real", "gen0")))
        if most > 1:
            whole, with_alone = zoo[:most], {"controls": ("alone", "real", "gen0")}
            arms.append(gen0(role, f"frozen-pool-{most}", population=whole, **with_alone))
            arms.append(recursive(role, f"clones-{most}", population=zoo[:1] * most, **with_alone))
            who = zoo if s.grid == "full" else zoo[:1]
            only = {"population": who, "exchange": False}
            arms.append(recursive(role, f"alone-compute-{most}", compute=most, **only, **with_alone))
            if s.grid == "full":
                seeds = tuple(zoo[0] + (f"-{k + 1}" if k else "") for k in range(most))
                arms.append(recursive(role, f"seeds-{most}", population=seeds, **with_alone))
    return sorted(arms, key=lambda p: later(p, s))


# Sizes of populations between those that C6 is about: run last, for they only fill in its curve.
LATER = (2, 4)


def later(protocol: Protocol, s: Settings) -> bool:
    """Whether an arm is a population of different models of a LATER size, and not of the largest."""
    size = len(set(protocol.population)) if protocol.exchange else 0
    return size in LATER and size < max(population_sizes(s))


def population_sizes(s: Settings) -> list[int]:
    """The setting `populations`, checked against the zoo."""
    sizes = sorted(numbers(s, "populations", 1))
    for role in ROLES:
        if max(sizes) > (there := len(listed(s, f"{role}s"))):
            raise MMCollapseError(
                f"setting populations={s.populations!r}: a population of {max(sizes)} is larger than the zoo, the "
                f"{there} model{'s' * (there > 1)} of the setting {role}s={getattr(s, role + 's')!r}"
            )
    return sizes


def relabeling(s: Settings) -> list[Protocol]:
    """Claim C7: pictures from one model, captions from the other, both measured in every arm. Anchored: real prompts
    every generation; closed: the prompts are the captions of the generation before."""
    loop = {"trains": ROLES, "pictures": "previous", "captions": "previous"}
    keep_captioner = loop | {"trains": ("generator",), "frozen": ("captioner",), "captions": "base"}
    keep_generator = loop | {"trains": ("captioner",), "frozen": ("generator",), "pictures": "base"}
    arms = {
        "joint": loop,
        "frozen-captioner": keep_captioner,
        "frozen-generator": keep_generator,
        "original": loop | {"captions": "given"},
        "oracle": loop | {"captions": "oracle"},
        "noised": loop | {"captions": "noised", "noise_like": "joint", "controls": ("joint", "real", "gen0")},
        "real": {"trains": ROLES, "controls": ()},
        "gen0": loop | {"pictures": "base", "captions": "base", "controls": ()},
    }
    closed = ("joint", "frozen-captioner") if s.grid == "corners" else tuple(arms)[:6]
    for name in closed:
        if name != "original":  # whose prompts are its captions: closed, it is what it was
            arms[f"{name}-closed"] = arms[name] | {"prompts": "captions"}
            if name == "noised":
                arms["noised-closed"] |= {"noise_like": "joint-closed", "controls": ("joint-closed", "real", "gen0")}
    return [Protocol(name, **settings) for name, settings in arms.items()]


def remedies(s: Settings) -> list[Protocol]:
    """Question Q2. The recursive arm is *replace*. On the further base models two remedies are repeated, one of either
    kind and each at the compute of *replace*: old data kept, and a quarter of real data."""
    arms = []
    for role in ROLES:
        arms += [recursive(role), *controls(role), recursive(role, "accumulate", keep="accumulate", anchored=True)]
        shares = numbers(s, "grid_real", 1, 99)
        arms += [recursive(role, f"real-{v}%", real_share=v / 100) for v in shares]
        if s.grid == "full":
            arms.append(recursive(role, "subsample", keep="subsample", anchored=True))
            arms.append(recursive(role, "accumulate-synthetic", keep="accumulate"))
            for v in shares:
                arms.append(recursive(role, f"real-{v}%-fresh", real_share=v / 100, real_fresh=True))
                arms.append(recursive(role, f"real-{v}%-alone", real_share=v / 100, real_only=True))
            for n in numbers(s, "grid_pairs", 2):
                if n != s.pairs:
                    own = (f"N-{n}-real", f"N-{n}-gen0")
                    arms.append(recursive(role, f"N-{n}", pairs=n, controls=own))
                    arms += [real(role, own[0], pairs=n), gen0(role, own[1], pairs=n)]
            for name in further(s, role):
                own = repeated(role, name, population=(name,))
                arms += [*own, *(replace(own[0], arm=f"{arm}-{name}", **changes) for arm, changes in REPEATED.items())]
    return arms


REPEATED = {"subsample": {"keep": "subsample", "anchored": True}, "real-25%": {"real_share": 0.25}}


# The alarm that decides. Precision first falls in generations 1 to 3 of *recursive*, of 300 pictures as of 1,000 (3
# seeds each), and never on *real*; recall, of 300, hardly ever falls. Of 2,000 pictures, as the study has them, that
# turns: a healthy chain moves by more than two sets of real data differ, and then recall is the honest one. In text the
# variety of words goes first (Guo et al. 2024, arXiv 2311.09807): in generation 2 under drift, never on real data.
ALARM = {"generator": "precision falls", "captioner": "distinct pairs of words fall"}
REAL_SHARE = 0.25  # of the pairs, once the remedy holds
LATE = (0.2, 0.4, 0.6)  # shares of the generations after which it comes, whatever is seen


def intervention(s: Settings) -> list[Protocol]:
    """Does it pay to wait for an alarm? *recursive* never has a remedy, *always* has one from generation 1 on, *late-k*
    from generation k on, *on-alarm* from the generation after the alarm; the remedy is a quarter of real pairs, at
    equal numbers of pairs and steps. Captioners do all that under the drifting schedule (*recursive-drift*,
    *gen0-drift*), for without it they do not collapse; *on-alarm-matched* is without it: does the alarm leave a healthy
    chain alone?

    The full grid adds other remedies on alarm: *labels*, captions by the frozen captioner (of captioners their own
    generation 0); *budget*, the largest decoding budget of 02; *pool*, models that were pretrained and trained apart
    (*apart*) share their pairs, for who is in a chain, and measured, cannot change. And the same total of new real
    pairs early, evenly or late: *total-early*, *total-evenly*, *total-late*."""
    arms, g = [], s.generations
    some, half = {"real_share": REAL_SHARE}, max(1, g // 2)  # generations, first or last, that get the whole total
    new = some | {"real_fresh": True}
    much = new | {"real_share": REAL_SHARE * g / half}
    for role in ROLES:
        alarm, drift, own = (ALARM[role],), {}, {}
        arms += [recursive(role), *controls(role)]
        if role == "captioner":
            drift = {"drift": DRIFT}
            own = drift | {"controls": ("real", "gen0-drift")}
            arms += [recursive(role, "recursive-drift", **own), gen0(role, "gen0-drift", **drift)]
            arms.append(switched(role, "on-alarm-matched", alarm, some))
        whens = {"always": 1, "on-alarm": alarm}
        whens |= {f"late-{k}": k for k in sorted({1 + round(share * g) for share in LATE}) if 1 < k <= g}
        arms += [switched(role, arm, when, some, **own) for arm, when in whens.items()]
        if s.grid == "corners":
            continue
        budget = {
            "generator": (("steps", max(numbers(s, "grid_steps", 1))),),
            "captioner": (("temperature", 0.0), ("beams", max(numbers(s, "grid_beams", 1)))),
        }
        for what, remedy in {"labels": {"captions": "base"}, "budget": {"decoding": budget[role]}}.items():
            arms.append(switched(role, f"on-alarm-{what}", alarm, remedy, **own))
        arms.append(switched(role, "total-early", half + 1, {"real_share": 0.0}, **own | much))
        arms.append(switched(role, "total-evenly", 1, new, **own))
        arms.append(switched(role, "total-late", g - half + 1, much, **own))
        if more := further(s, role):
            apart = {"population": (listed(s, f"{role}s")[0], *more), "exchange": False}
            own |= apart | {"controls": ("real-apart", "gen0-apart")}
            arms += [recursive(role, "apart", **own), real(role, "real-apart", **apart)]
            arms.append(gen0(role, "gen0-apart", **apart | drift))
            arms.append(switched(role, "on-alarm-pool", alarm, {"exchange": True}, **own))
    return arms


def switched(role: str, arm: str, when: int | tuple[str, ...], remedy: dict, **changes) -> Protocol:
    """*recursive*, with the fields in `remedy` changed from a generation or from alarms on."""
    return recursive(role, arm, switch=when, remedy=tuple(remedy.items()), **changes)


def listed(s: Settings, name: str) -> list[str]:
    """The items of a comma-separated setting. MMCollapseError: one is empty or comes twice."""
    items = [item.strip() for item in getattr(s, name).split(",")]
    if "" in items or len(set(items)) < len(items):
        raise MMCollapseError(f"setting {name}={getattr(s, name)!r}: items must be there, and none twice")
    return items


def numbers(s: Settings, name: str, low: float, high: float = math.inf, kind: type = int) -> list:
    """The numbers of a comma-separated setting. MMCollapseError: one is none of the kind, not within low and high, or
    comes twice."""
    values, allowed = [], f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
    for item in listed(s, name):
        try:
            values.append(kind(item))
        except ValueError as error:
            what = "whole number" if kind is int else "number"
            raise MMCollapseError(f"setting {name}={getattr(s, name)!r}: {item!r} is no {what}") from error
        if not low <= values[-1] <= high:
            raise MMCollapseError(f"setting {name}={getattr(s, name)!r}: {item} is not allowed, {allowed} is")
    if len(set(values)) < len(values):
        raise MMCollapseError(f"setting {name}={getattr(s, name)!r}: items must be there, and none twice")
    return values


def student_generations(s: Settings) -> set[int]:
    """The generations whose data fresh base models are trained on."""
    return set(numbers(s, "student_generations", 1)) if s.students else set()


def has_students(s: Settings, seed: int, generation: int) -> bool:
    """Whether fresh base models are trained on the data of a generation of a chain: they are costly, and in claim C5
    arms are the units, so the first seeds will do."""
    within = not s.student_seeds or seed - s.first_seed < s.student_seeds
    return within and generation in student_generations(s)


# The notebooks, in the order in which they run. Those without arms read the tables of the others.
EXPERIMENTS: dict[str, Callable[[Settings], list[Protocol]] | None] = {
    "01_variance": variance,
    "02_decoding_budget": decoding_budget,
    "03_diversity": diversity,
    "04_relabeling": relabeling,
    "05_quality_robustness": None,
    "06_remedies": remedies,
    "07_claims": None,
    "08_intervention": intervention,
    "09_human": None,
}

# Of these no claim is judged: 05 leaves them out, for C5 says which experiments it is about.
EXPLORATORY = ("08_intervention",)

# The order where time is short: first collapse itself, and the controls that the others share; then who should label,
# and what helps; then the grids and populations of C4 and C6, which cost most for each claim; last what no claim is
# about.
PRIORITY = ("01_variance", "04_relabeling", "06_remedies", "02_decoding_budget", "03_diversity", *EXPLORATORY)


def arms_of(experiment: str, settings: Settings) -> list[Protocol]:
    """The protocols of an experiment, or those whose arm is named in the setting `arms` and whose role in `roles`.
    MMCollapseError: an arm that does not exist, or one without the controls that it cannot be read without."""
    make = EXPERIMENTS[experiment]
    if make is None:
        return []
    protocols = make(settings)
    student_generations(settings), further(settings, ROLES[0])  # refused now if one is wrong
    if settings.arms:
        # Any arm can be asked for by name, also one that this profile leaves out.
        protocols = list({(p.roles, p.arm): p for p in (*protocols, *make(replace(settings, grid="full")))}.values())
    if settings.roles:
        wanted = listed(settings, "roles")
        if unknown := [role for role in wanted if role not in ROLES]:
            raise MMCollapseError(f"setting roles={settings.roles!r}: {unknown[0]!r} is none of {', '.join(ROLES)}")
        protocols = [p for p in protocols if set(p.roles) & set(wanted)]
    if not settings.arms:
        return _possible(protocols, settings)
    chosen = listed(settings, "arms")
    known = {p.arm for p in protocols}
    for arm in chosen:
        if arm not in known:
            named = ", ".join(sorted(known))
            raise MMCollapseError(f"arms={settings.arms!r}: {experiment} has no arm {arm!r}; it has {named}")
    picked = [p for p in protocols if p.arm in chosen]
    for p in picked:
        if lacking := [c for c in p.controls if c not in chosen]:
            raise MMCollapseError(
                f"arms={settings.arms!r}: {p.arm} cannot be read without its control{'s' * (len(lacking) > 1)} "
                f"{', '.join(lacking)}; give arms={','.join([*chosen, *lacking])}"
            )
    return _possible(picked, settings)


def _possible(protocols: list[Protocol], s: Settings) -> list[Protocol]:
    """`protocols`; MMCollapseError if one has too few pairs."""
    for p in protocols:
        for held in (p, p.at(math.inf, 0)):  # before and after its remedy
            if held.trains:
                held.parts(held.pairs or s.pairs)
    return protocols


# ---- seeds


def seeds_of(experiment: str, protocol: Protocol, settings: Settings) -> range:
    """The seeds of an arm: `seeds_primary` many if a primary contrast of C1 to C7 or Q1 rests on it,
    `seeds_exploratory` if no contrast that has a verdict does, else `seeds`. A control has as many as any arm that it
    is read with, for contrasts are paired by seed."""
    first, s = settings.first_seed, settings
    if not (s.seeds_primary or s.seeds_exploratory):
        return range(first, first + s.seeds)
    # of the whole grid, so that a run of some arms has the seeds of a run of all
    counts = _seed_counts(experiment, replace(s, grid="full", arms="", roles=""))
    return range(first, first + counts[protocol.roles, protocol.arm])


@cache
def _seed_counts(experiment: str, s: Settings) -> dict[tuple, int]:
    """How many seeds each arm of an experiment has, by (roles, arm)."""
    primary, exploratory = s.seeds_primary or s.seeds, s.seeds_exploratory or s.seeds
    arms = {(p.roles, p.arm): p for p in EXPERIMENTS[experiment](s)}
    counts = dict.fromkeys(arms, exploratory)
    read_with = {(key, (p.roles, control)) for key, p in arms.items() for control in p.controls}
    controls = {control for _, control in read_with}
    for claim, modality, names, part in _contrasts_of(experiment, arms.values()):
        among = [key for key, p in arms.items() if p.arm in names and modality in p.modalities]
        most = primary if _of_the_paper(claim, part) else s.seeds
        counts |= {key: max(counts[key], most) for key in among}
        read_with |= {(key, control) for key in among for control in controls.intersection(among)}
    while raised := {control: counts[key] for key, control in read_with if counts[control] < counts[key]}:
        counts |= raised  # and again, for controls have controls
    return counts


def _of_the_paper(claim: str, part: str) -> bool:
    """Whether a contrast decides on a claim of the paper. Q2 asks about 15 remedies a role: five seeds decide, and ten
    would cost most of the study."""
    return part == "primary" and claim.startswith(("C", "Q1"))


# Where time is short a study is run in these turns, each in the order of PRIORITY.
TURNS = (
    "what verdicts on C1 to C7 and Q1 need: the arms that they compare, five seeds; and what alarms are judged on",
    "what else has a verdict (Q2, repeats), and controls, five seeds",
    "the other seeds of all these",
    "exploratory cells",
)


def turn_of(experiment: str, protocol: Protocol, seed: int, settings: Settings) -> int:
    """The turn (a number of TURNS) in which a chain is run."""
    turn = _turns(experiment, replace(settings, grid="full", arms="", roles=""))[protocol.roles, protocol.arm]
    return 2 if turn < 2 and seed - settings.first_seed >= SEEDS_NEEDED else turn


@cache
def _turns(experiment: str, s: Settings) -> dict[tuple, int]:
    """The turn of the first seeds of each arm of an experiment, by (roles, arm)."""
    from mmcollapse.alarms import COLLAPSING, JUDGED_IN, SLOW  # here, for it imports much

    arms = {(p.roles, p.arm): p for p in EXPERIMENTS[experiment](s)}
    turns = dict.fromkeys(arms, 3)
    for claim, modality, names, part in _contrasts_of(experiment, arms.values()):
        turn = 0 if _of_the_paper(claim, part) else 1
        compared = [key for key, p in arms.items() if p.arm in names and modality in p.modalities]
        turns |= {key: min(turns[key], turn) for key in compared}
    if experiment == JUDGED_IN:
        turns |= {key: 0 for key, p in arms.items() if p.arm in {*COLLAPSING.values(), *SLOW.values()}}
    controls = {(roles, arm) for (roles, _), p in arms.items() if turns[roles, p.arm] < 3 for arm in p.controls}
    return turns | {key: 1 for key in controls if turns[key] > 1}


def _contrasts_of(experiment: str, protocols) -> Iterator[tuple[str, str, set[str], str]]:
    """(claim, modality, arms, part) of every contrast of the claims about an experiment that has a verdict."""
    import pandas as pd

    from mmcollapse.claims import Contrast, all_claims, resolve  # here, for it imports much

    table = pd.DataFrame([(p.arm, m) for p in protocols for m in p.modalities], columns=["arm", "modality"])
    for claim in all_claims():
        if claim.experiments[0] == experiment:
            for part in claim.contrasts:
                if isinstance(part, Contrast) and part.part != "exploratory":
                    found, _ = resolve(part, table)
                    if found is not None:
                        yield claim.id, part.endpoint.modality, {t.arm for t in found.terms}, part.part
