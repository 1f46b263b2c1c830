"""From a scene to pixels, in integers: the same bytes on every machine."""

from functools import cache

import numpy as np

from pipeline.draws import Draws
from pipeline.scenes import backgrounds
from pipeline.scenes.world import LEVELS, Level, Scene, Thing

PALETTE = {
    "red": (214, 32, 36),
    "orange": (246, 136, 22),
    "yellow": (248, 224, 52),
    "green": (30, 158, 48),
    "cyan": (50, 206, 214),
    "blue": (34, 74, 222),
    "purple": (126, 44, 176),
    "pink": (248, 132, 196),
}
OUTLINE = (24, 22, 28)
DARK = 3 / 8  # of a texture's second tone, relative to the colour itself
PHASES = 4  # a texture starts at one of these shifts
_FINE = 8  # samples per pixel and axis

# y points down; a shape fills [-1, 1] in both axes.


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Even-odd rule: which points lie inside."""
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


def _star() -> list[tuple[float, float]]:
    angles = [np.pi * (i / 5 - 0.5) for i in range(10)]
    return [
        (np.cos(a) * r, np.sin(a) * r + 0.05) for a, r in zip(angles, [1.05, 0.52] * 5, strict=True)
    ]


_INSIDE = {
    "circle": lambda x, y: x * x + y * y <= 0.94,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.86,
    "triangle": lambda x, y: _polygon(x, y, [(0, -0.98), (1, 0.84), (-1, 0.84)]),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
    "star": lambda x, y: _polygon(x, y, _star()),
    "cross": lambda x, y: (
        (np.minimum(abs(x), abs(y)) <= 0.38) & (np.maximum(abs(x), abs(y)) <= 0.96)
    ),
    "ring": lambda x, y: (x * x + y * y <= 0.96) & (x * x + y * y >= 0.1),
    "heart": lambda x, y: _heart(1.18 * x, 0.1 - 1.12 * y),
}


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * x + y * y - 1) ** 3 <= x * x * y * y * y


def render(level: Level | str, scene: Scene, seed: int, index: int) -> np.ndarray:
    """The image of a scene: (pixels, pixels, 3) uint8. (seed, index) choose jitter, light and noise."""
    level = LEVELS[level] if isinstance(level, str) else level
    draws = Draws(seed, index, level.name, "render")
    canvas = backgrounds.cut(level, scene.background, draws).astype(np.int32)
    for thing in scene.things:  # reading order: what is lower or further right stands in front
        _draw(level, thing, canvas, draws)
    light = draws.between(226, 268)
    noise = draws.bytes(canvas.size).reshape(canvas.shape).astype(np.int32) % 9 - 4
    return np.clip((canvas * light >> 8) + noise, 0, 255).astype(np.uint8)


def centre(level: Level, thing: Thing) -> tuple[int, int]:
    """The (row, column) in pixels of the middle of a thing's cell."""
    middle = level.pixels // 2
    row, column = thing.cell
    return middle + (row - 1) * level.spacing, middle + (column - 1) * level.spacing


def _draw(level: Level, thing: Thing, canvas: np.ndarray, draws: Draws) -> None:
    weights = sprite(level, thing.shape, thing.size, thing.texture, draws.below(PHASES))
    extent = len(weights)
    corner = []
    for middle in centre(level, thing):
        start = middle - extent // 2 + draws.between(-level.jitter, level.jitter)
        corner.append(min(max(start, 0), level.pixels - extent))
    colour = np.array([c + draws.between(-9, 9) for c in PALETTE[thing.colour]])
    tones = np.stack([colour, (colour * DARK).astype(int), OUTLINE])
    row, column = corner
    place = canvas[row : row + extent, column : column + extent]
    place[:] = (place * weights[..., :1] + weights[..., 1:] @ tones) >> 6


@cache
def sprite(level: Level, shape: str, size: str, texture: str, phase: int) -> np.ndarray:
    """What each pixel of a thing shows, in 64ths: (extent, extent, 4) int32.

    The four parts are the background, the colour, its dark tone and the outline.
    """
    extent = level.extent(size)
    inside, core = _masks(level, shape, size)
    bright = _bright(texture, extent, level.grain, phase)
    parts = (~inside, core & bright, core & ~bright, inside & ~core)
    shares = [p.reshape(extent, _FINE, extent, _FINE).sum(axis=(1, 3)) for p in parts]
    return np.stack(shares, axis=-1).astype(np.int32)


@cache
def _masks(level: Level, shape: str, size: str) -> tuple[np.ndarray, np.ndarray]:
    """The fine samples inside a shape, and those inside its outline."""
    fine = level.extent(size) * _FINE
    axis = (2 * np.arange(fine) + 1) / fine - 1
    inside = _INSIDE[shape](*np.meshgrid(axis, axis))
    reach = level.outline
    core = np.pad(inside, reach)
    for _ in range(reach):
        core[1:-1, 1:-1] &= core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    return inside, core[reach:-reach, reach:-reach]


def _bright(texture: str, extent: int, grain: int, phase: int) -> np.ndarray:
    """Which fine samples have the colour itself rather than its dark tone."""
    period = grain * _FINE
    fine = np.arange(extent * _FINE)
    x, y = np.meshgrid(fine + (phase % 2) * period // 2, fine + (phase // 2) * period // 2)
    if texture == "striped":
        return (x + y) % (period + period // 4) < period * 5 // 8
    if texture == "checkered":
        return (x // (period * 5 // 8) + y // (period * 5 // 8)) % 2 == 0
    if texture == "dotted":
        dx, dy = x % period - period / 2, y % period - period / 2
        return dx * dx + dy * dy > (0.3 * period) ** 2
    return np.ones((extent * _FINE, extent * _FINE), dtype=bool)
