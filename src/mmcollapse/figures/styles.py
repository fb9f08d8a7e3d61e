"""House style: an arm has one colour, line and marker in every figure; line and marker tell it when printed grey.

Maroon is recursion, blue real data, orange generation-0 data, whatever the experiment. Arms that carry a number
("steps-10", "real-25%", "pool-3") have a colour on a ramp and a marker by the number, so that a value looks the same in
every grid.
"""

from __future__ import annotations

import hashlib
import math
import re

import seaborn as sns


def _arm(color: str, linestyle, marker: str, label: str, **more) -> dict:
    return {"color": color, "linestyle": linestyle, "marker": marker, "label": label} | more


def mixed(color: str, other: str, share: float) -> str:
    """`share` of the other colour in a colour, both as "#RRGGBB"."""
    pairs = ((int(color[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in pairs)


def hollow(color: str) -> dict:
    """Of a marker that is an outline."""
    return {"markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 0.9}


# Markers by value, none of them that of an arm without a number; told apart at 4 points.
MARKERS = ("v", "<", "p", "D", "X", ">", "P", "*")
# knob: colour at the lowest and at the highest value, these values, line, line of its gen0, label
KNOBS = {
    "steps": ("#E7A6C4", "#4A0A33", 1, 50, "-", (0, (1, 1.2)), "{v} steps"),
    "guidance": ("#9BD1A5", "#0B3D1A", 1, 10, (0, (9, 1)), (0, (3, 1, 1, 1)), "guidance {v}"),
    "beams": ("#A9B4E8", "#1B1F6B", 1, 5, "-", (0, (1, 1.2)), "{v} beams"),
    "temperature": ("#F2B27A", "#5E2200", 0.5, 1.5, (0, (9, 1)), (0, (3, 1, 1, 1)), "temperature {v}"),
    "length": ("#9AD0D6", "#0A3E46", 6, 24, (0, (7, 1, 2, 1)), (0, (2, 1.5)), "at most {v} tokens"),
}
SHARES = {  # how the real pairs come in: colours at 0% and at 100%, line, label
    "": ("#5B1E7A", "#5CC0F0", "-", "{v}% real"),
    "-fresh": ("#1E5B2A", "#8CE05C", (0, (5, 1)), "{v}% real, fresh"),
    "-alone": ("#6B3A00", "#F0C05C", (0, (1.5, 1)), "the {v}% real alone"),
}
SIZES = {  # of N pairs: colours at 50 and at 5,000, line, label
    "": ("#D98AA5", "#5A0F2A", (0, (12, 1)), "recursive, N = {v}"),
    "-real": ("#9CC9EA", "#0F3F66", (0, (5, 1.5)), "real data, N = {v}"),
    "-gen0": ("#F0C98A", "#7A4D00", (0, (5, 1.2, 1, 1.2)), "generation-0 data, N = {v}"),
}
POPULATIONS = {  # of M models that are no pool of different ones
    "frozen-pool": ("#444444", (0, (10, 1.5)), "*", "frozen pool of {v}"),
    "clones": ("#C75B9B", (0, (4, 2)), "X", "pool of {v} clones"),
    "alone-compute": ("#857800", (0, (3, 1, 1, 1, 1, 1)), "v", "alone, {v} times the steps"),
    "seeds": ("#8E7CC3", (0, (1.5, 1)), "<", "pool of {v} seeds"),
}


def _place(value: float, low: float, high: float, log: bool) -> float:
    """Where a value lies between the ends of a ramp, 0 to 1."""
    if log:
        value, low, high = math.log(max(value, 1e-9)), math.log(low), math.log(high)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _knob(knob: str, value: str, own: str | None) -> dict:
    first, last, low, high, line, line0, label = KNOBS[knob]
    place = _place(float(value), low, high, knob != "temperature")
    color, marker = mixed(first, last, place), MARKERS[round(7 * place)]
    label = label.format(v=value) if knob != "beams" or value != "1" else "1 beam (greedy)"
    if not own:
        return _arm(color, line, marker, label)
    color = mixed(color, "#909090", 0.5)
    return _arm(color, line0, marker, f"{label}, own generation 0", **hollow(color))


def _share(value: str, kind: str | None) -> dict:
    first, last, line, label = SHARES[kind or ""]
    place = _place(float(value), 0, 100, False)
    return _arm(mixed(first, last, place), line, MARKERS[round(7 * place)], label.format(v=value))


def _pairs(value: str, kind: str | None) -> dict:
    first, last, line, label = SIZES[kind or ""]
    place = _place(float(value), 50, 5000, True)
    marker = MARKERS[round(7 * place)]
    return _arm(mixed(first, last, place), line, marker, label.format(v=f"{int(value):,}"))


def _pool(value: str, letter: str) -> dict:
    """Pools of different models: colour and line by size; of several of one size the marker tells which."""
    size, k = int(value), "abcdefghij".find(letter) if letter else -1
    color = mixed("#8FD6A0", "#0B3F4F", _place(size + max(k, 0) / 8, 2, 5.5, False))
    line = {2: (0, (1, 1)), 3: (0, (3, 1)), 4: (0, (6, 1))}.get(size, "-")
    label = f"pool of {size}" + (f" ({letter})" if letter else "")
    return _arm(color, line, "D" if k < 0 else (*MARKERS, "h", "d")[k], label)


def _late(value: str) -> dict:
    """A remedy from a generation on: the later, the paler."""
    color = mixed("#1B7F6B", "#BFE3DA", _place(int(value), 1, 10, False))
    return _arm(color, (0, (5, 1)), MARKERS[(int(value) - 2) % 6], f"remedy from generation {value}")


def _population(kind: str, value: str) -> dict:
    color, line, marker, label = POPULATIONS[kind]
    return _arm(color, line, marker, label.format(v=value))


def _closed(arm: str) -> dict:
    style = ARM_STYLE[arm]
    color = mixed(style["color"], "#FFFFFF", 0.35)
    return _arm(color, (0, (2.5, 1.2)), style["marker"], f"{style['label']}, closed", **hollow(color))


def _as_one(arm: str) -> dict:
    """A population that is measured as if it were one model."""
    style = ARM_STYLE[arm]
    label = f"{style['label']}, as one"
    return _arm(style["color"], (0, (1, 1)), style["marker"], label, **hollow(style["color"]), linewidth=0.9)


# How an arm is repeated, in the words of a row.
REPEATS = {
    "fresh": "fresh prompts",
    "restart": "from the base every time",
    "lr-half": "half the learning rate",
    "lr-double": "double the learning rate",
}
_ZOO = ("2", "3", "4", "5", "v", "sdxl", "pixart", "sd3", "blip", "git", "vit-gpt2", "idefics")


def _repeat(arm: str, kind: str) -> dict:
    """An arm with another learning rate, or on another base model: paler, its marker filled with a grey of its own."""
    style, name = ARM_STYLE[arm], kind.partition("-")[2]
    kinds = (*REPEATS, *_ZOO)
    k = kinds.index(kind) if kind in kinds else kinds.index(name) if name in kinds else len(kinds)
    color, grey = mixed(style["color"], "#FFFFFF", 0.1 + 0.04 * k), f"{255 - 10 * k:02X}"
    label = f"{style['label']}, {REPEATS.get(kind, f'on {kind}')}"
    return _arm(
        color, style["linestyle"], style["marker"], label, **hollow(color) | {"markerfacecolor": f"#{grey * 3}"}
    )


# Arms that are repeated on a further base model.
FURTHER = re.compile(r"(recursive|real|gen0|subsample|real-\d+%)-((?:generator|captioner)-.+)")
# pattern of the name of an arm: what makes a style of its parts
FAMILIES = {
    re.compile(rf"({'|'.join(KNOBS)})-([\d.]+)(-gen0)?"): _knob,
    re.compile(r"real-(\d+)%(-fresh|-alone)?"): _share,
    re.compile(r"N-(\d+)(-real|-gen0)?"): _pairs,
    re.compile(r"pool-(\d+)([a-j]?)"): _pool,
    re.compile(rf"({'|'.join(POPULATIONS)})-(\d+)"): _population,
    re.compile(r"late-(\d+)"): _late,
    re.compile(r"(.+) as one"): _as_one,
    re.compile(r"(recursive|real|gen0)-(lr-half|lr-double)"): _repeat,
    FURTHER: _repeat,
    re.compile(r"(joint|frozen-captioner|frozen-generator|oracle|noised)-closed"): _closed,
}


def _of_name(arm: str) -> dict:
    """An arm that nobody has given a look: any, but always the same."""
    byte = hashlib.sha256(arm.encode()).digest()
    colour = "#" + "".join(f"{40 + b % 150:02X}" for b in byte[:3])
    line = (0, (3 + byte[3] % 6, 1, 1 + byte[4] % 3, 1))
    return _arm(colour, line, MARKERS[byte[5] % len(MARKERS)], arm)


class _Styles(dict):
    """By arm; of arms that carry a number, and of any other that is not here, made when asked for."""

    def __missing__(self, arm: str) -> dict:
        for pattern, style in FAMILIES.items():
            if found := pattern.fullmatch(arm):
                return style(*found.groups())
        return _of_name(arm)


ARM_STYLE = _Styles(
    {
        "recursive": _arm("#8C1D40", "-", "o", "recursive"),
        "alone": _arm("#8C1D40", "-", "o", "alone"),
        "joint": _arm("#8C1D40", "-", "o", "joint"),
        "real": _arm("#2E86C1", (0, (5, 1.5)), "s", "real data"),
        "gen0": _arm("#E59400", (0, (5, 1.2, 1, 1.2)), "^", "generation-0 data"),
        "recursive-drift": _arm("#C75B9B", (0, (8, 1)), "D", "recursive, drifting data"),
        "gen0-drift": _arm("#857800", (0, (3, 1, 1, 1, 1, 1)), "v", "generation-0, drifting data"),
        "frozen-drift": _arm("#111111", (0, (10, 1.5)), "*", "frozen, whole schedule"),
        "frozen-length": _arm("#1B7F6B", (0, (4, 2)), "p", "frozen, length only"),
        "frozen-temperature": _arm("#8E7CC3", (0, (1.5, 1)), "<", "frozen, temperature only"),
        "recursive-fresh": _arm("#D1495B", (0, (6, 1)), "h", "recursive, fresh prompts"),
        "real-fresh": _arm("#7FB8DA", (0, (2.5, 1)), "d", "real data, fresh prompts"),
        "gen0-fresh": _arm("#B5A06A", (0, (6, 1, 1, 1, 1, 1)), "X", "generation-0, fresh prompts"),
        "recursive-restart": _arm("#5B2333", (0, (3, 1)), "P", "recursive, from the base"),
        "real-restart": _arm("#1B4F72", (0, (1, 1)), ">", "real data, from the base"),
        "frozen-captioner": _arm("#1B7F6B", "-", "p", "captioner frozen"),
        "frozen-generator": _arm("#6A51A3", "-", "<", "generator frozen"),
        "original": _arm("#C75B9B", "-", "D", "original prompts"),
        "oracle": _arm("#222222", "-", "*", "oracle captions"),
        "noised": _arm("#857800", "-", "v", "oracle with joint's errors"),
        "accumulate": _arm("#1B7F6B", "-", "h", "accumulate"),
        "accumulate-synthetic": _arm("#C75B9B", (0, (8, 1)), "d", "accumulate, synthetic only"),
        "subsample": _arm("#857800", (0, (3, 1, 1, 1, 1, 1)), "8", "accumulate, subsample"),
        "always": _arm("#1B7F6B", "-", "D", "remedy always"),
        "on-alarm": _arm("#6A51A3", (0, (8, 1)), "*", "remedy on alarm"),
        "on-alarm-matched": _arm("#8E7CC3", (0, (1.5, 1)), "*", "on alarm, matched decoding"),
        "on-alarm-labels": _arm("#E377C2", (0, (4, 2)), "X", "on alarm: frozen labels"),
        "on-alarm-budget": _arm("#4E6B00", (0, (2, 1, 1, 1)), "H", "on alarm: decoding budget"),
        "on-alarm-pool": _arm("#12828C", (0, (10, 1.5)), "P", "on alarm: one pool"),
        "total-early": _arm("#D1495B", (0, (6, 1)), "<", "all real pairs early"),
        "total-evenly": _arm("#7A5195", (0, (3, 1)), "d", "all real pairs evenly"),
        "total-late": _arm("#5B2333", (0, (1, 1)), ">", "all real pairs late"),
        "apart": _arm("#B5707F", "-", "h", "several, apart"),
        "real-apart": _arm("#7FB8DA", (0, (2.5, 1)), "p", "several, real data"),
        "gen0-apart": _arm("#B5A06A", (0, (6, 1, 1, 1, 1, 1)), "8", "several, generation-0 data"),
        "world": _arm("#333333", (0, (1, 1.6)), "", "real against real, 95% of new sets"),
        "vae": _arm("#777777", (0, (3, 1.5, 1, 1.5)), "", "real through the autoencoder"),
    }
)
REFERENCES = ("world", "vae")


def in_order(arms) -> list[str]:
    """Arms in the order of a legend: as above, then those with a number, by kind and number, then the references."""
    names = list(ARM_STYLE)

    def key(arm: str):
        parts = re.split(r"([\d.]+)", arm)
        numbers = tuple((part, float(number)) for part, number in zip(parts[::2], parts[1::2], strict=False))
        place = names.index(arm) if arm in names else len(names) - len(REFERENCES) - 0.5
        kind = parts[-1] if arm not in names and len(parts[-1]) > 1 else ""  # a letter alone comes after the number
        return place, kind, numbers, arm

    return sorted(set(arms), key=key)


FLOOR = {"color": "#333333", "linestyle": (0, (6, 2, 1, 2, 1, 2)), "linewidth": 0.9}
STYLE = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same on every machine
    "font.size": 7.5,
    "text.parse_math": False,  # a caption may have a dollar in it
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "svg.hashsalt": "mmcollapse",  # the ids in an SVG are random without it
    "svg.fonttype": "path",
}
WIDTH, DPI = 10.0, 150  # inches, dots an inch
LETTERS, LINE = 178, 0.15  # a caption: letters that fit into WIDTH, height of a line in inches
