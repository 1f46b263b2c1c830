"""The brightness of a picture, at two sizes that make pictures of any resolution comparable."""

import math

import numpy as np
from PIL import Image

FINE_SIDE = 512  # pixels of the shorter side, at most
FINE_PIXELS = 2**20  # of the whole plane, at most: a strip is reduced further

_BAND_PIXELS = 2**20  # are converted at a time: a large picture should not be held twice


def fine_luma(pixels: np.ndarray) -> np.ndarray:
    """Luma of RGB uint8 (H, W, 3) or of grey uint8 (H, W): uint8 (h, w), never enlarged.

    Rec. 601 weights (0.299, 0.587, 0.114), rounded; reduced to FINE_SIDE and FINE_PIXELS, the
    aspect kept. What is small enough stays as it is.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(f"uint8 (H, W, 3) or (H, W) is needed, got {pixels.dtype} {pixels.shape}")
    plane = pixels if pixels.ndim == 2 else _luma(pixels)
    height, width = plane.shape
    scale = min(FINE_SIDE / min(height, width), math.sqrt(FINE_PIXELS / (height * width)))
    if scale >= 1:
        return plane
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Hamming's window is as sharp as a box, and does not shift lines where the factor is odd.
    image = Image.fromarray(plane)
    return np.asarray(image.resize(size, Image.Resampling.HAMMING, reducing_gap=2.0))


def coarse_luma(fine: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels of a plane whose shorter side is above FINE_SIDE / 2; else the plane."""
    if min(fine.shape) <= FINE_SIDE // 2:
        return fine
    return np.asarray(Image.fromarray(fine).reduce(2))


def _luma(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    step = max(1, _BAND_PIXELS // width)
    if step >= height:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    plane = np.empty((height, width), np.uint8)
    for top in range(0, height, step):
        plane[top : top + step] = Image.fromarray(pixels[top : top + step]).convert("L")
    return plane
