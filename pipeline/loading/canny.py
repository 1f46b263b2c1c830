"""Canny's edge detector: the outlines of an image, one pixel wide, by thresholds that suit the image."""

# H W pixels of a side

import numpy as np
from PIL import Image, ImageFilter

from pipeline.loading.islands import islands

SIGMA = 1.0
LEAST = 32.0
"""Gradients below it are never an edge of their own: a step of 8 levels has it."""
_EIGHTH = np.tan(np.pi / 8)  # a direction nearer to an axis than to a diagonal
_NEIGHBOURS = ((0, 1), (1, -1), (1, 0), (1, 1))  # the other four have been compared from there


def canny(
    image: np.ndarray,
    *,
    sigma: float = SIGMA,
    low: float | None = None,
    high: float | None = None,
) -> np.ndarray:
    """Canny (1986), "A Computational Approach to Edge Detection": bool (H, W).

    image: uint8 (H, W, 3), of which each pixel's steepest channel counts, or grey (H, W). sigma: of
    the Gaussian before, in pixels; 0 is without. high: the gradient, as Sobel's kernels give it, from
    which on an edge begins; by default Otsu's threshold (1979) of all gradients, at least LEAST. low:
    down to which it goes on, by default half of high.
    """
    is_image = image.ndim >= 2 and image.shape[2:] in ((), (3,))
    if image.dtype != np.uint8 or not is_image or not image.size:
        raise ValueError(f"uint8 (H, W, 3) or (H, W) is needed, got {image.dtype} {image.shape}")
    if sigma:
        blur = ImageFilter.GaussianBlur(sigma)
        image = np.asarray(Image.fromarray(image).filter(blur))
    dx, dy = _steepest(*_sobel(image))
    squared = dx * dx + dy * dy
    if high is None:
        high = max(LEAST, otsu(np.sqrt(squared)))
    low = high / 2 if low is None else low
    thin = _ridges(squared, dx, dy) & (squared > low * low)
    return _reached(thin, thin & (squared > high * high))


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """The threshold between two classes that are furthest apart (Otsu 1979, equation 18); 0 where all
    values are one.
    """
    counts, bounds = np.histogram(values, bins)
    if values.min() == values.max():
        return 0.0
    middles = (bounds[:-1] + bounds[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(bounds[1 + np.nanargmax(apart)])


def _sobel(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By column and by row, int32; beyond the border the image is as at it."""
    padding = ((1, 1), (1, 1), (0, 0))[: image.ndim]
    wide = np.pad(image.astype(np.int32), padding, mode="edge")
    rows = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    columns = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    return rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]


def _steepest(dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the channel with the largest gradient: (H, W)."""
    if dx.ndim == 2:
        return dx, dy
    which = (dx * dx + dy * dy).argmax(axis=2)[..., None]
    return tuple(np.take_along_axis(found, which, axis=2)[..., 0] for found in (dx, dy))


def _ridges(squared: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Where a gradient is the largest along its own direction, of the eight that pixels have."""
    height, width = squared.shape
    wide = np.pad(squared, 1)

    def at(down: int, right: int) -> np.ndarray:
        return wide[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    across, along = np.abs(dx), np.abs(dy)
    is_flat, is_steep = along < _EIGHTH * across, across < _EIGHTH * along
    falls = (dx < 0) != (dy < 0)  # y grows downwards
    # Of two equal ones side by side, the one further to the right and down is kept.
    level = (squared > at(0, -1)) & (squared >= at(0, 1))
    upright = (squared > at(-1, 0)) & (squared >= at(1, 0))
    falling = (squared > at(-1, 1)) & (squared > at(1, -1))
    rising = (squared > at(-1, -1)) & (squared > at(1, 1))
    oblique = np.where(falls, falling, rising)
    return np.where(is_flat, level, np.where(is_steep, upright, oblique))


def _reached(thin: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Those of `thin` that a path over its pixels, corners included, joins to a strong one."""
    pixels = np.flatnonzero(thin)
    number = np.full(thin.shape, -1)
    number.flat[pixels] = np.arange(len(pixels))
    wide = np.pad(number, 1, constant_values=-1)
    height, width = thin.shape
    pairs = []
    for down, right in _NEIGHBOURS:
        other = wide[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        both = (number >= 0) & (other >= 0)
        pairs.append(np.stack([number[both], other[both]]))
    labels = islands(len(pixels), np.concatenate(pairs, axis=1))
    has_strong = np.zeros(len(pixels), bool)
    has_strong[labels[strong.flat[pixels]]] = True
    found = np.zeros(thin.shape, bool)
    found.flat[pixels] = has_strong[labels]
    return found
