"""What a picture looks like in a few numbers: detail, contrast, sharpness, colour, flat parts.

All are taken from planes of a stated size, so that pictures of any resolution compare. All are
finite for every picture, one of a single pixel included.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np
from PIL import Image

BLOCK = 8  # pixels of the coarse plane, the side of the blocks of flat_share
FLAT_RANGE = 8  # grey levels between the darkest and the brightest pixel of a flat block
BORDER_RANGE = 16  # the same over a whole border: JPEG rings beside the picture's edge
COLOUR_SAMPLES = 64  # pixels of the shorter side that colourfulness looks at, at least


class Statistics(NamedTuple):
    """The statistics of one picture; `fine` and `coarse` are the planes of pipeline.luma."""

    entropy: float
    """Bits, 0..8: Shannon's entropy of the luma histogram (256 bins, coarse plane)."""
    contrast: float
    """0..0.5: standard deviation of luma / 255 (RMS contrast, Peli 1990; coarse plane)."""
    sharpness: float
    """Squared grey levels: variance of the 4-neighbour Laplacian of the fine plane, without its
    outermost pixels (Pech-Pacheco et al. 2000). Low is blurred: photographs in focus have
    hundreds to thousands, blurred ones less than a hundred."""
    colourfulness: float
    """Hasler and Suesstrunk 2003, M3, of RGB in 0..255: 0 is grey, 15 slightly colourful, 45
    averagely, 109 extremely. From every n-th pixel."""
    border_share: float
    """0..1: share of the area outside the smallest box that cuts off flat rows and columns at the
    edges, each edge's all within BORDER_RANGE: letterboxes, margins. A flat picture is all
    border."""
    flat_share: float
    """0..1: share of BLOCK x BLOCK blocks with luma within FLAT_RANGE (coarse plane; a rest at
    the right and lower edge is left out where there is a whole block): logos, charts,
    screenshots."""


def statistics_of(pixels: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> Statistics:
    """Of RGB uint8 (H, W, 3) and the planes that were made of it."""
    entropy, contrast = _spread(coarse)
    return Statistics(
        entropy=entropy,
        contrast=contrast,
        sharpness=_sharpness(fine),
        colourfulness=_colourfulness(pixels),
        border_share=_border_share(coarse),
        flat_share=_flat_share(coarse),
    )


def _spread(plane: np.ndarray) -> tuple[float, float]:
    """Entropy and contrast, both from the histogram."""
    share = np.array(Image.fromarray(plane).histogram()) / plane.size
    levels = np.arange(256)
    deviation = levels - (share * levels).sum()
    present = share[share > 0]
    entropy = -(present * np.log2(present)).sum()
    # A single level has an entropy of minus zero.
    return abs(float(entropy)), float(np.sqrt((share * deviation**2).sum())) / 255


def _sharpness(plane: np.ndarray) -> float:
    if min(plane.shape) < 3:
        return 0.0
    levels = plane.astype(np.int16)
    laplacian = levels[:-2, 1:-1] + levels[2:, 1:-1]
    laplacian += levels[1:-1, :-2]
    laplacian += levels[1:-1, 2:]
    levels <<= 2
    laplacian -= levels[1:-1, 1:-1]
    values = laplacian.ravel().astype(np.float64)
    mean = float(values.sum()) / values.size
    # Whole numbers below 2**53, so that no order of adding them up matters.
    return max(0.0, float(values @ values) / values.size - mean * mean)


def _colourfulness(pixels: np.ndarray) -> float:
    step = max(1, min(pixels.shape[:2]) // COLOUR_SAMPLES)
    few = pixels[::step, ::step]
    red, green, blue = (few[..., channel].astype(np.float64) for channel in range(3))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def _border_share(plane: np.ndarray) -> float:
    rows = _between(plane.min(1), plane.max(1))
    columns = _between(plane.min(0), plane.max(0))
    return 1 - rows * columns / plane.size


def _between(low: np.ndarray, high: np.ndarray) -> int:
    """Lines that are left between two flat borders, of the extremes of each line."""
    first = _flat_lines(low, high)
    return max(0, len(low) - first - _flat_lines(low[::-1], high[::-1]))


def _flat_lines(low: np.ndarray, high: np.ndarray) -> int:
    """How many lines from the first on stay within BORDER_RANGE together."""
    spread = np.maximum.accumulate(high) - np.minimum.accumulate(low)
    return int(np.searchsorted(spread, BORDER_RANGE, side="right"))


def _flat_share(plane: np.ndarray) -> float:
    height, width = plane.shape
    tall, wide = min(BLOCK, height), min(BLOCK, width)
    down, across = height // tall, width // wide
    bands = plane[: down * tall, : across * wide].reshape(down, tall, across * wide)
    low, high = (_in_blocks(bands, wide, extreme) for extreme in (np.minimum, np.maximum))
    return float((high - low <= FLAT_RANGE).mean())


def _in_blocks(bands: np.ndarray, wide: int, extreme: np.ufunc) -> np.ndarray:
    """Line by line, which is faster than one reduction over short axes."""
    lines = reduce(extreme, [bands[:, i] for i in range(bands.shape[1])])
    return reduce(extreme, [lines[:, i::wide] for i in range(wide)])
