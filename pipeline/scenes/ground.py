"""Which background an image has, and how unlike that background each of its pixels is."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.draws import Draws
from pipeline.scenes.backgrounds import BASE, cut
from pipeline.scenes.world import BACKGROUNDS, Level

# H W pixels, G backgrounds; 3 channels: luma, blueness, redness (YCbCr without its offset)

_LUMA = np.array([0.299, 0.587, 0.114])
_OPPONENT = np.stack(
    [_LUMA, 0.564 * (np.eye(3)[2] - _LUMA), 0.713 * (np.eye(3)[0] - _LUMA)], axis=1
).astype(np.float32)
GAINS = (0.86, 1.07)  # the renderer's light, 226 / 256 to 268 / 256, and some slack
UNLIKE = 16.0  # a pixel's unlikeness is capped here: 4 standard deviations
_SHIFT = 9.0  # the renderer's second light, on backgrounds alone
_CHROMA_SIGMA = 4.0
_REACH = 12.0  # in chroma: what is further from a background is something else
_CUTS = 48  # places of a surface that its texture is measured at


@dataclass(frozen=True)
class Ground:
    """A background as it looks in one image."""

    name: str
    mean: np.ndarray  # (3,)
    spread: float  # standard deviation of its luma
    share: float  # of the image that looks like it
    unlike: np.ndarray  # (H, W) in 0 .. UNLIKE: squared deviations from it, in variances


def opponent(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) red, green, blue -> (..., 3) luma, blueness, redness: backgrounds vary in luma alone."""
    return rgb.astype(np.float32) @ _OPPONENT


def softened(image: np.ndarray, side: float = 1 / 3) -> np.ndarray:
    """(..., H, W, C) -> each pixel gives `side` of itself to each neighbour, down and then along."""
    for axis in (-3, -2):
        moved = np.moveaxis(image, axis, 0)
        padded = np.concatenate([moved[:1], moved, moved[-1:]])
        moved = (padded[:-2] + padded[2:]) * np.float32(side) + moved * np.float32(1 - 2 * side)
        image = np.moveaxis(moved, 0, axis)
    return image


def smoothed(image: np.ndarray) -> np.ndarray:
    """What is left of chroma in a JPEG file or a soft image, roughly: (..., H, W, C) -> the same."""
    return softened(softened(image))


def read_ground(level: Level, image: np.ndarray) -> Ground:
    """The background that most pixels look like. image: (H, W, 3) opponent colours."""
    base = opponent(np.array([BASE[name] for name in BACKGROUNDS]))  # (G, 3)
    relief = np.array([2 ** (texture(level, name)[0] / 2) for name in BACKGROUNDS])
    low = GAINS[0] * (base[:, 0] - _SHIFT) - 3 * relief
    high = GAINS[1] * (base[:, 0] + _SHIFT) + 3 * relief
    luma, chroma = image[..., :1], softened(image[..., 1:])
    power = (base[:, 1:] ** 2).sum(axis=1)
    gain = np.clip(chroma @ base[:, 1:].T / power, *GAINS)  # (H, W, G)
    away = ((chroma[:, :, None] - gain[..., None] * base[:, 1:]) ** 2).sum(axis=-1)
    likely = np.exp(away / (-2 * _CHROMA_SIGMA**2)) * ((luma > low) & (luma < high))
    best = int(likely.sum(axis=(0, 1)).argmax())
    near = (away[..., best] < _REACH**2) & (likely[..., best] > 0)
    if not near.any():
        return Ground(BACKGROUNDS[best], base[best], 0.0, 0.0, np.full(near.shape, UNLIKE))
    mean = image[near].mean(axis=0)
    spread = float(image[near][:, 0].std())
    off = image - mean
    unlike = (off[..., 0] / (spread + 2)) ** 2
    unlike += (softened(off[..., 1:]) ** 2).sum(axis=-1) / _CHROMA_SIGMA**2
    return Ground(BACKGROUNDS[best], mean, spread, float(near.mean()), np.minimum(unlike, UNLIKE))


def roughness(luma: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """log2 of the variance and of the mean squared steps down and along, where `bare`: (3,).

    luma: (H, W); bare: (H, W) bool, somewhere true in neighbouring pixels.
    """
    down = np.diff(luma, axis=0)[bare[1:] & bare[:-1]]
    along = np.diff(luma, axis=1)[bare[:, 1:] & bare[:, :-1]]
    squares = [luma[bare].var(), *((step**2).mean() if len(step) else 0 for step in (down, along))]
    return np.log2(np.maximum(squares, 1e-3))


@cache
def texture(level: Level, name: str) -> np.ndarray:
    """The usual roughness of a background, without light and noise: (3,)."""
    everywhere = np.ones((level.pixels, level.pixels), dtype=bool)
    cuts = (cut(level, name, Draws("roughness", place)) for place in range(_CUTS))
    return np.mean([roughness(opponent(c)[..., 0], everywhere) for c in cuts], axis=0)
