"""Images of one size side by side, as one image to look at."""

import math

import numpy as np

GAP = 2  # pixels between two images


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """uint8 (N, H, W, 3) -> uint8 (height, width, 3), row by row on white.

    Without a number of columns the grid is as square as N allows. ValueError for another shape, and
    for no image.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"a grid needs uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    num, height, width, _ = images.shape
    columns = min(num, columns or math.ceil(math.sqrt(num)))
    rows = -(-num // columns)
    found = np.full(
        (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8
    )
    for number, image in enumerate(images):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        found[top : top + height, left : left + width] = image
    return found
