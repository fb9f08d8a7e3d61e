"""The scenes world: 64x64 pictures of one or two objects whose truth is known.

Shape, colour, size, relation and background are Zipf-distributed (tails to lose); position, scale, rotation and hue are
continuous nuisance factors of known distribution (variance to lose). Every sample is a pure function of
(seed, split, index): its random numbers come from a counter-based hash, not from a stream, so any subset in any order
gives the same pictures.

Geometry, in pixels. Small objects have radius 6.5-8.5, large ones 12-14. One object lies anywhere; two objects lie side
by side (relation "left") or one over the other ("above"), each in its own half, their other coordinate within 3 pixels
of a common line, so that the relation is never in doubt. Everything keeps MARGIN pixels from the border.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from mmcollapse.errors import MMCollapseError
from mmcollapse.worlds import Batch
from mmcollapse.worlds.grammar import (
    CAPTION_UNIFORMS,
    COLOUR_NAMES,
    SHAPE_NAMES,
    Scene,
    Thing,
    write,
    zipf,
)

VERSION = 1  # bumped when any sample of the world changes
SIZE = 64
MARGIN = 1.5
RADII = np.array([[6.5, 8.5], [12.0, 14.0]])  # small, large: uniform between
OFFSET = 3.0  # two objects: distance from their common line, at most
ROTATION = np.deg2rad(15.0)  # uniform in +-
HUE = 6.0 / 360.0  # uniform in +-
NUISANCE = ("x", "y", "radius", "rotation", "hue")
REFERENCES = 5
P_TWO = 0.5

# hue in degrees, saturation, value; white has no hue, so its hue jitter is invisible (see `visible`).
_HSV = {
    "red": (0, 0.90, 0.87),
    "blue": (224, 0.85, 0.90),
    "green": (125, 0.80, 0.62),
    "yellow": (54, 0.85, 0.97),
    "orange": (27, 0.95, 0.98),
    "purple": (280, 0.72, 0.70),
    "white": (0, 0.00, 0.99),
    "pink": (330, 0.48, 1.00),
    "cyan": (186, 0.75, 0.90),
    "brown": (25, 0.72, 0.46),
}
_BACKGROUND_RGB = np.array(
    [[120, 120, 124], [18, 18, 20], [216, 198, 160], [172, 220, 192], [190, 178, 224]], dtype=np.float32
)

# One colour of each shape, 10 of the 100 pairs, is withheld from the splits that models are trained on.
WITHHELD = np.array([[(s + 3 * c) % 10 == 7 for c in range(10)] for s in range(10)])

SPLITS = ("base", "judge", "chain", "test", "test-withheld", "test-uniform")


def _polygon(name: str) -> np.ndarray:
    """Vertices (m, 2) of a shape inside the unit circle, y down."""

    def around(n, radius, start=-90.0):
        angle = np.deg2rad(start + np.arange(n) * 360.0 / n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)

    if name == "square":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.70
    if name == "triangle":
        return around(3, 1.0)
    if name == "star":
        points = around(10, 1.0)
        points[1::2] *= 0.42
        return points
    if name == "heart":
        t = np.linspace(0, 2 * np.pi, 49)[:-1]
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y - 2.5], 1) / 17.3
    if name == "cross":
        a, b = 0.30, 0.94
        return np.array(
            [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a]]
        )
    if name == "diamond":
        return np.array([[0, -1], [0.58, 0], [0, 1], [-0.58, 0]])
    if name == "arrow":
        return np.array(
            [[0, -1], [0.80, -0.10], [0.30, -0.10], [0.30, 0.95], [-0.30, 0.95], [-0.30, -0.10], [-0.80, -0.10]]
        )
    raise KeyError(name)


def _polygon_distance(points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Signed distance (k,) of points (k, 2) to a polygon, negative inside (even-odd rule)."""
    a, b = vertices, np.roll(vertices, -1, axis=0)
    edge = b - a
    rel = points[:, None] - a
    t = np.clip((rel * edge).sum(-1) / (edge**2).sum(-1), 0, 1)
    distance = np.linalg.norm(rel - t[..., None] * edge, axis=-1).min(1)
    crosses = (a[:, 1] > points[:, None, 1]) != (b[:, 1] > points[:, None, 1])
    safe = np.where(edge[:, 1] == 0, 1, edge[:, 1])
    crosses &= points[:, None, 0] < edge[:, 0] * (points[:, None, 1] - a[:, 1]) / safe + a[:, 0]
    return np.where(crosses.sum(1) % 2 == 1, -distance, distance)


_GRID, _SPAN = 193, 1.6  # distance tables over [-_SPAN, _SPAN]^2; beyond it the distance only has to be large


@cache
def _distance_tables() -> np.ndarray:
    """(10, _GRID, _GRID) float32: signed distance to each shape at unit radius, looked up bilinearly when drawing."""
    axis = np.linspace(-_SPAN, _SPAN, _GRID)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    radius = np.linalg.norm(points, axis=1)
    tables = []
    for name in SHAPE_NAMES:
        if name == "circle":
            d = radius - 0.90
        elif name == "ring":
            d = np.maximum(radius - 0.95, 0.52 - radius)
        elif name == "moon":
            d = np.maximum(radius - 0.97, 0.80 - np.linalg.norm(points - [0.48, 0.0], axis=1))
        else:
            d = _polygon_distance(points, _polygon(name))
        tables.append(d.reshape(_GRID, _GRID))
    return np.stack(tables).astype(np.float32)


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """HSV (each (n,), hue in turns) to RGB (n, 3) in 0-255."""
    k = (np.array([5.0, 3.0, 1.0]) + hue[:, None] * 6) % 6
    return 255 * value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64 arrays (Steele, Lea and Flood 2014): a bijection with full avalanche."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniforms(seed: int, stream: str, indices: np.ndarray, columns: int) -> np.ndarray:
    """(n, columns) float64 in [0, 1), a pure function of (seed, stream, index, column)."""
    key = int.from_bytes(hashlib.sha256(f"{VERSION}/{seed}/{stream}".encode()).digest()[:8], "little")
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        row = _mix(np.uint64(key) + np.asarray(indices, dtype=np.uint64) * golden)
        cell = _mix(row[:, None] + (np.arange(columns, dtype=np.uint64) + np.uint64(1)) * golden)
    return (cell >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw(cdf: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.minimum((u[:, None] >= cdf).sum(1), cdf.shape[-1] - 1)


def visible(scene: Scene, factor: str, slot: int) -> bool:
    """Whether a nuisance factor of thing `slot` can be seen at all: a circle or ring has no rotation, white no hue."""
    thing = scene.things[slot]
    if factor == "rotation":
        return SHAPE_NAMES[thing.shape] not in ("circle", "ring")
    return factor != "hue" or COLOUR_NAMES[thing.colour] != "white"


class Scenes:
    """The world (see the module's docstring).

    exponent: Zipf exponent of shapes, colours, sizes, backgrounds, relations and synonyms; 0 is uniform.
    seed: another seed is another world of the same distribution.
    """

    name = "scenes"
    image_size = SIZE
    truth = True  # attributes of every picture are known

    def __init__(self, exponent: float = 1.0, seed: int = 0):
        if not 0 <= exponent <= 4:
            raise MMCollapseError(f"exponent={exponent} of the scenes world: allowed is 0 (uniform) to 4")
        self.exponent, self.seed = float(exponent), int(seed)
        self.digest = f"scenes-{VERSION}-{self.exponent!r}-{self.seed}"
        self._length: float | None = None

    def size(self, split: str) -> int | None:
        """Number of samples of a split: None, for the world is endless."""
        self._check(split)
        return None

    @staticmethod
    def _check(split: str):
        if split not in SPLITS:
            raise MMCollapseError(f"split={split!r} of the scenes world: allowed are {', '.join(SPLITS)}")

    # -- attributes -------------------------------------------------------------------------------------------------
    def _attributes(self, split: str, indices: np.ndarray) -> list[Scene]:
        u = uniforms(self.seed, f"{split}/attributes", indices, 10)
        uniform = split == "test-uniform"
        zipfian, flat = self._tables(self.exponent), self._tables(0.0)
        if split == "judge":  # instruments must read every attribute, tails included: every second sample is uniform
            odd = np.asarray(indices) % 2 == 1
            values = np.where(odd[:, None], self._choose(flat, u, "all"), self._choose(zipfian, u, "all"))
        else:
            kind = {"test-withheld": "withheld", "test-uniform": "all"}.get(split, "seen")
            values = self._choose(flat if uniform else zipfian, u, kind)
        two = u[:, 8] < P_TWO
        scenes = []
        for v, pair in zip(values.tolist(), two.tolist(), strict=True):
            things = (Thing(v[0], v[1], v[2]), Thing(v[3], v[4], v[5]))
            scenes.append(Scene(things, v[6], v[7]) if pair else Scene(things[:1], None, v[7]))
        return scenes

    @staticmethod
    @cache
    def _tables(exponent: float) -> dict[str, np.ndarray]:
        """Cumulative probabilities. "first": of the 100 shape-colour pairs; "second": the same given the first pair
        (rows), which is excluded so that two objects always differ; by kind of split."""
        joint = np.outer(zipf(10, exponent), zipf(10, exponent)).ravel()
        allowed = {"seen": ~WITHHELD.ravel(), "withheld": WITHHELD.ravel(), "all": np.ones(100, bool)}
        tables = {}
        for kind, mask in allowed.items():
            first = joint * mask
            second_mask = np.ones(100, bool) if kind == "withheld" else mask  # one withheld pair in a picture is enough
            second = np.repeat((joint * second_mask)[None], 100, 0)
            np.fill_diagonal(second, 0)
            tables[f"first/{kind}"] = np.cumsum(first / first.sum())
            tables[f"second/{kind}"] = np.cumsum(second / second.sum(1, keepdims=True), 1)
        for name, n in (("size", 2), ("relation", 2), ("background", 5)):
            tables[name] = np.cumsum(zipf(n, exponent))
        return tables

    @staticmethod
    def _choose(tables: dict[str, np.ndarray], u: np.ndarray, kind: str) -> np.ndarray:
        """(n, 8) int: shape, colour, size of both things, relation, background."""
        first = _draw(tables[f"first/{kind}"], u[:, 0])
        second = _draw(tables[f"second/{kind}"][first], u[:, 1])
        swap = u[:, 9] < 0.5  # which of the two is left or top must not depend on which was drawn first
        first, second = np.where(swap & (u[:, 8] < P_TWO), second, first), np.where(swap, first, second)
        size = [_draw(tables["size"], u[:, k]) for k in (2, 3)]
        relation, background = _draw(tables["relation"], u[:, 4]), _draw(tables["background"], u[:, 5])
        return np.stack([first // 10, first % 10, size[0], second // 10, second % 10, size[1], relation, background], 1)

    # -- nuisance and pictures --------------------------------------------------------------------------------------
    @staticmethod
    def _nuisance(scenes: list[Scene], u: np.ndarray) -> np.ndarray:
        """(n, 2, 5) float64: x, y, radius in pixels, rotation in radians, hue shift in turns; u: (n, 11) uniforms."""
        out = np.full((len(scenes), 2, 5), np.nan)
        for i, scene in enumerate(scenes):
            radius = [RADII[t.size, 0] + u[i, k] * np.ptp(RADII[t.size]) for k, t in enumerate(scene.things)]
            along = 32 if len(scene.things) == 2 else 64
            reach = max(radius) + MARGIN + (OFFSET if len(scene.things) == 2 else 0)
            line = reach + u[i, 2] * (SIZE - 2 * reach)  # the coordinate the things share, up to OFFSET
            for k, r in enumerate(radius):
                low, high = along * k + r + (MARGIN if k == 0 else 0.5), along * (k + 1) - r - 0.5
                if k == 1 or len(scene.things) == 1:
                    high = SIZE - r - MARGIN
                main = low + u[i, 3 + k] * (high - low)
                cross = line + (2 * u[i, 5 + k] - 1) * OFFSET if len(scene.things) == 2 else line
                x, y = (cross, main) if scene.relation == 1 else (main, cross)
                out[i, k] = x, y, r, (2 * u[i, 7 + k] - 1) * ROTATION, (2 * u[i, 9 + k] - 1) * HUE
        return out

    @staticmethod
    def draw(scenes: list[Scene], nuisance: np.ndarray) -> np.ndarray:
        """Pictures (n, 64, 64, 3) uint8 of scenes with the nuisance factors (n, 2, 5) given; edges are antialiased over
        one pixel by the signed distance to the outline."""
        tables = _distance_tables()
        out = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
        centre = (np.arange(SIZE, dtype=np.float32) + 0.5)[None]
        for start in range(0, len(scenes), 128):  # bounded memory, and the tables stay in cache
            part = scenes[start : start + 128]
            canvas = np.repeat(_BACKGROUND_RGB[[s.background for s in part]][:, None, None], SIZE, 1).repeat(SIZE, 2)
            for slot in (0, 1):
                rows = [i for i, s in enumerate(part) if len(s.things) > slot]
                if not rows:
                    continue
                things = [part[i].things[slot] for i in rows]
                x, y, r, angle, shift = nuisance[start : start + 128][rows, slot].T[..., None].astype(np.float32)
                dx, dy = (centre - x) / r, (centre - y) / r  # (m, 64) each
                cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
                px = dx[:, None, :] * cos + dy[:, :, None] * sin
                py = dy[:, :, None] * cos - dx[:, None, :] * sin
                gx, gy = (np.clip((p + _SPAN) * ((_GRID - 1) / (2 * _SPAN)), 0, _GRID - 1.001) for p in (px, py))
                ix, iy = gx.astype(np.int32), gy.astype(np.int32)
                fx, fy = gx - ix, gy - iy
                flat = tables.reshape(-1)
                at = (np.array([t.shape for t in things], np.int32)[:, None, None] * _GRID + iy) * _GRID + ix
                top = flat[at] * (1 - fx) + flat[at + 1] * fx
                bottom = flat[at + _GRID] * (1 - fx) + flat[at + _GRID + 1] * fx
                distance = (top * (1 - fy) + bottom * fy) * r[..., None]
                cover = np.clip(0.5 - distance, 0, 1)[..., None]
                hsv = np.array([_HSV[COLOUR_NAMES[t.colour]] for t in things])
                colour = _rgb(hsv[:, 0] / 360 + shift[:, 0], hsv[:, 1], hsv[:, 2]).astype(np.float32)
                canvas[rows] = canvas[rows] * (1 - cover) + colour[:, None, None] * cover
            out[start : start + 128] = np.rint(canvas).astype(np.uint8)
        return out

    def sample(self, split: str, indices) -> Batch:
        """Pictures with REFERENCES captions each. `indices`: non-negative integers, any order, any subset."""
        self._check(split)
        indices = np.asarray(indices, dtype=np.int64)
        scenes = self._attributes(split, indices)
        nuisance = self._nuisance(scenes, uniforms(self.seed, f"{split}/nuisance", indices, 11))
        return Batch(
            images=self.draw(scenes, nuisance),
            captions=self._captions(split, indices, scenes),
            scenes=scenes,
            keys=[f"{self.digest}/{split}/{i}" for i in indices],
        )

    def _captions(self, split: str, indices: np.ndarray, scenes: list[Scene]) -> list[list[str]]:
        u = uniforms(self.seed, f"{split}/captions", indices, REFERENCES * CAPTION_UNIFORMS)
        u = u.reshape(len(indices), REFERENCES, CAPTION_UNIFORMS)
        return [[write(s, row, self.exponent) for row in rows] for s, rows in zip(scenes, u, strict=True)]

    def redraw(self, scenes: list[Scene], times: int, stream: str = "redraw") -> np.ndarray:
        """Real pictures (n, times, 64, 64, 3) of the same attributes with fresh nuisance: what within-prompt variance
        is compared with."""
        repeated = [s for s in scenes for _ in range(times)]
        nuisance = self._nuisance(repeated, uniforms(self.seed, stream, np.arange(len(repeated)), 11))
        return self.draw(repeated, nuisance).reshape(len(scenes), times, SIZE, SIZE, 3)

    def nuisance(self, split: str, indices) -> np.ndarray:
        """The true nuisance factors (n, 2, 5) of `sample(split, indices)`: x, y, radius (pixels), rotation (radians),
        hue shift (turns); NaN for an absent second thing."""
        indices = np.asarray(indices, dtype=np.int64)
        return self._nuisance(self._attributes(split, indices), uniforms(self.seed, f"{split}/nuisance", indices, 11))

    def references_length(self) -> float:
        """Mean length in words of a reference caption, from 2,000 of them."""
        if self._length is None:  # every measurement asks for it
            captions = self._captions("base", np.arange(400), self._attributes("base", np.arange(400)))
            self._length = float(np.mean([len(c.split()) for five in captions for c in five]))
        return self._length
