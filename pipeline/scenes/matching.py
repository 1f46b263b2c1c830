"""The sprites that may be what stands in a cell: all of them in all places, by least squares."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.scenes.ground import Ground, opponent
from pipeline.scenes.render import DARK, OUTLINE, PHASES, centre, sprite
from pipeline.scenes.world import SHAPES, Level, Thing

# T sprites of a size, N places in a cell, P pixels of a sprite, 3 channels (see ground)

SLACK = 1  # pixels beyond the renderer's jitter, and as much of a frame around an image
INK = 0.965 * opponent(np.array(OUTLINE))  # the outline in mean light
_SIGMA = 8.0  # of a thing's pixels
_CHANNELS = np.array([1.0, 0.6, 0.6], dtype=np.float32)  # JPEG keeps little of fine chroma


@dataclass(frozen=True)
class View:
    """What is known of an image when a cell is read; H and W count a frame of SLACK pixels."""

    level: Level
    image: np.ndarray  # (H, W, 3) opponent colours
    ground: Ground
    visible: np.ndarray  # (H, W) bool: neither frame nor covered by things further in front


@dataclass(frozen=True)
class Candidate:
    """A sprite in a place, and what it gains over bare background there."""

    gain: float
    shape: str
    size: str
    texture: str
    phase: int
    corner: tuple[int, int]


@dataclass(frozen=True)
class _Bank:
    """All sprites of a size: sums over pixels that least squares needs, as matrices.

    f is the share of a pixel that is not background, o that of the outline, u the thing's colour in
    it; all terms are weighted by f.
    """

    keys: list[tuple[str, str, int]]  # shape, texture, phase
    cover: np.ndarray  # (T, P): f
    pulls: np.ndarray  # (3 T, P): f times f, o, u
    norms: np.ndarray  # (6 T, P): f times ff, oo, uu, fo, fu, ou


def candidates(view: View, position: str, num: int) -> list[Candidate]:
    """The best `num` for a cell, best first; fewer where fewer gain anything."""
    planes = _planes(view)
    found = [c for size in view.level.sizes for c in _of_size(view, planes, position, size, num)]
    return sorted(found, key=lambda c: -c.gain)[:num]


def _planes(view: View) -> np.ndarray:
    """Of each pixel what sprites are weighed against: (5, H W).

    The gain of explaining it, its three channels less the background's, and one; zeros where it is
    not visible.
    """
    away = (view.image - view.ground.mean) * _CHANNELS
    unlike = np.pad(view.ground.unlike, SLACK)
    planes = np.stack([*away.transpose(2, 0, 1), unlike, view.visible]).astype(np.float32)
    if _step(view.level) == 2:
        planes = _halved(planes)
    gain = planes[3] * _SIGMA**2 - (planes[:3] ** 2).sum(axis=0)
    planes = np.stack([gain, *planes[:3], np.ones_like(gain)]) * (planes[4] == 1)
    return planes.reshape(5, -1)


def _of_size(view: View, planes: np.ndarray, position: str, size: str, num: int) -> list[Candidate]:
    """The best sprites of a size.

    The gain is what a sprite's pixels cost as background less what they cost as the thing in the
    colour that suits best. Pixels that it leaves bare do not count: others may stand there.
    """
    ground, bank = view.ground, _bank(view.level, size)
    corners, pixels = places(view.level, position, size)
    patches = planes[:, pixels]  # (5, N, P)
    count, spots = len(bank.keys), len(corners)
    flat = patches.transpose(2, 0, 1).reshape(-1, 5 * spots)
    total = bank.cover @ flat[:, :spots]  # (T, N)
    pulls = (bank.pulls @ flat[:, spots : 4 * spots]).reshape(3, count, 3, spots)
    by_f, by_o, by_u = pulls.transpose(0, 2, 1, 3)  # each (3, T, N)
    ff, oo, uu, fo, fu, ou = (bank.norms @ flat[:, 4 * spots :]).reshape(6, count, spots)
    back, ink = (ground.mean * _CHANNELS)[:, None, None], (INK * _CHANNELS)[:, None, None]
    wanted = by_u + fu * back - ou * ink  # over uu: the colour that suits best
    error = 2 * (by_f * back - by_o * ink).sum(axis=0) - (wanted**2).sum(axis=0) / (uu + 1e-3)
    error += ff * (back**2).sum() + oo * (ink**2).sum() - 2 * fo * (back * ink).sum()
    gains = (total - error).ravel()
    best = np.argpartition(-gains, min(num, gains.size - 1))[:num]
    return [
        Candidate(float(gains[i]), shape, size, kind, phase, corners[i % spots])
        for i in best
        if gains[i] > 0
        for shape, kind, phase in [bank.keys[i // spots]]
    ]


@cache
def _bank(level: Level, size: str) -> _Bank:
    keys = [
        (shape, texture, phase)
        for shape in SHAPES
        for texture in level.textures
        for phase in range(1 if texture == "plain" else PHASES)
    ]
    weights = np.stack([sprite(level, s, size, t, p) for s, t, p in keys]) / 64
    count, extent, step = len(keys), weights.shape[1], _step(level)
    weights = weights.reshape(count, extent // step, step, extent // step, step, 4)
    weights = weights.mean(axis=(2, 4)).reshape(count, -1, 4).astype(np.float32)
    f, o, u = 1 - weights[..., 0], weights[..., 3], weights[..., 1] + DARK * weights[..., 2]
    pulls = np.concatenate([f * f, f * o, f * u])
    norms = np.concatenate([f * f * f, f * o * o, f * u * u, f * f * o, f * f * u, f * o * u])
    return _Bank(keys, f, pulls, norms)


@cache
def places(level: Level, position: str, size: str) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Where a sprite's corner may be, and the flat pixels that it then covers: N corners, (N, P)."""
    extent, width = level.extent(size), level.pixels + 2 * SLACK
    middle = centre(level, Thing("", "", "", size, position))
    rows, columns = (_starts(level, m - extent // 2, extent) for m in middle)
    corners = [(row, column) for row in rows for column in columns]
    inner = np.arange(0, extent, _step(level))
    inner = (inner[:, None] * width + inner).ravel()
    return corners, np.array([row * width + column for row, column in corners])[:, None] + inner


def _starts(level: Level, start: int, extent: int) -> list[int]:
    """Where a renderer lets a thing start, give or take the slack, in the frame's coordinates."""
    jittered = range(start - level.jitter, start + level.jitter + 1)
    allowed = [min(max(s, 0), level.pixels - extent) for s in jittered]
    return list(range(min(allowed), max(allowed) + 2 * SLACK + 1))


def _step(level: Level) -> int:
    """Large sprites are compared at half resolution."""
    return 2 if level.pixels >= 128 else 1


def _halved(planes: np.ndarray) -> np.ndarray:
    """Means over 2 x 2 pixels from each pixel on: (C, H, W) of the same shape."""
    padded = np.pad(planes, ((0, 0), (0, 1), (0, 1)), mode="edge")
    rows = padded[:, :-1] + padded[:, 1:]
    return (rows[:, :, :-1] + rows[:, :, 1:]) / np.float32(4)
