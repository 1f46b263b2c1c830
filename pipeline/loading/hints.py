"""Condition images of a ControlNet, computed from the image that a training sees: its edges, its segments."""

# B images, H W pixels of a side, N regions

from collections.abc import Callable

import numpy as np

from pipeline.loading.canny import canny
from pipeline.loading.regions import regions


def edges(image: np.ndarray) -> np.ndarray:
    """Outlines of uint8 (H, W, 3): uint8 (H, W), 255 on an edge and 0 elsewhere. See `canny`."""
    return canny(image).astype(np.uint8) * 255


def segments(image: np.ndarray) -> np.ndarray:
    """Regions of uint8 (H, W, 3), each in its mean colour: uint8 (H, W, 3). See `regions`."""
    labels = regions(image)
    flat = labels.ravel()
    sizes = np.bincount(flat)
    means = [np.bincount(flat, plane.ravel()) / sizes for plane in np.moveaxis(image, 2, 0)]
    return np.rint(np.stack(means, axis=1)).astype(np.uint8)[labels]


HINTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"edges": edges, "segments": segments}
"""By the names that a ControlNet's config has."""
