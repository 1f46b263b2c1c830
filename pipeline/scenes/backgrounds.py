"""Textured backgrounds: muted where things are bright, and each with a pattern of its own."""

from functools import cache

import numpy as np

from pipeline.draws import Draws
from pipeline.scenes.world import Level

SURFACE = 4  # a background is cut from a surface this many times as wide as the image
BASE = {
    "grass": (92, 112, 66),
    "sand": (206, 188, 150),
    "water": (104, 132, 152),
    "bricks": (146, 92, 78),
    "wood": (132, 104, 76),
    "snow": (224, 228, 232),
}


def cut(level: Level, name: str, draws: Draws) -> np.ndarray:
    """A random place of a background under random light: (pixels, pixels, 3) int16."""
    surface = _surface(level, name)
    size = level.pixels
    y, x = (draws.below(surface.shape[0] - size + 1) for _ in range(2))
    return surface[y : y + size, x : x + size] + np.int16(draws.between(-9, 9))


@cache
def _surface(level: Level, name: str) -> np.ndarray:
    """The whole surface: (SURFACE * pixels, SURFACE * pixels, 3) int16."""
    size = SURFACE * level.pixels
    noise = Draws("surface", name, level.name).bytes(size * size).reshape(size, size)
    noise = noise.astype(np.float64) / 127.5 - 1
    y, x = np.mgrid[:size, :size].astype(np.float64)
    relief = _RELIEFS[name](x, y, noise, level.grain)
    return np.rint(relief[..., None] + np.array(BASE[name])).astype(np.int16)


def _grass(x: np.ndarray, y: np.ndarray, noise: np.ndarray, grain: int) -> np.ndarray:
    return 30 * _smooth(noise, rows=grain, columns=1)


def _sand(x: np.ndarray, y: np.ndarray, noise: np.ndarray, grain: int) -> np.ndarray:
    return 9 * noise - 26 * (noise > 0.96)


def _water(x: np.ndarray, y: np.ndarray, noise: np.ndarray, grain: int) -> np.ndarray:
    bent = y + 0.4 * grain * np.sin(x * (2 * np.pi / (3 * grain)))
    return 15 * np.sin(bent * (2 * np.pi / (1.4 * grain))) + 3 * noise


def _bricks(x: np.ndarray, y: np.ndarray, noise: np.ndarray, grain: int) -> np.ndarray:
    row = y // grain
    along = x + grain * (row % 2)
    mortar = (y % grain < 1) | (along % (2 * grain) < 1)
    tone = noise[row.astype(int), (along // (2 * grain)).astype(int)]
    return np.where(mortar, 40.0, 12 * tone) + 4 * noise


def _wood(x: np.ndarray, y: np.ndarray, noise: np.ndarray, grain: int) -> np.ndarray:
    seam = x % (2.4 * grain) < 1
    tone = noise[0, (x // (2.4 * grain)).astype(int)]
    return np.where(seam, -34.0, 10 * tone) + 14 * _smooth(noise, rows=4 * grain, columns=1)


def _snow(x: np.ndarray, y: np.ndarray, noise: np.ndarray, grain: int) -> np.ndarray:
    return 14 * _smooth(noise, rows=2 * grain, columns=2 * grain)


_RELIEFS = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "bricks": _bricks,
    "wood": _wood,
    "snow": _snow,
}


def _smooth(noise: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Box-averaged noise, brought back to a spread of about one half."""
    for axis, width in ((0, rows), (1, columns)):
        noise = sum(np.roll(noise, shift, axis) for shift in range(width)) / width**0.5
    return noise
