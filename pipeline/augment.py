"""What a captioner in training sees of an image: a crop that is another one each time."""

import math

import numpy as np
from PIL import Image

from pipeline.draws import Draws
from pipeline.images import decode

MOST_OBLONG = 4 / 3  # sides of a crop, before it is squeezed to a square
_ATTEMPTS = 10


def random_crop(data: bytes, size: int, draws: Draws, least: float = 0.9) -> np.ndarray:
    """A part of the image, at least the share `least` of what a 4:3 frame holds of it, as uint8
    (size, size, 3).

    Resized by antialiased bicubic filtering. Never mirrored: captions tell left from right. As in
    Inception's training (Szegedy et al. 2014, 1409.4842, section 6), with open_clip's default share.
    Raises BadImage.
    """
    pixels = decode(data, min_side=math.ceil(size / math.sqrt(least)))
    height, width = pixels.shape[:2]
    left, top, right, bottom = _box(width, height, draws, least)
    image = Image.fromarray(pixels)
    box = (left, top, right, bottom)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _box(width: int, height: int, draws: Draws, least: float) -> tuple[int, int, int, int]:
    """Where to cut. Images more oblong than a crop may be lose their ends first, where chance wants."""
    if max(width, height) > MOST_OBLONG * min(width, height):
        long, short = max(width, height), min(width, height)
        kept = max(1, math.floor(short * MOST_OBLONG))
        start = draws.below(long - kept + 1)
        across = width > height
        part = _box(kept if across else width, height if across else kept, draws, least)
        return tuple(edge + start * (i % 2 != across) for i, edge in enumerate(part))
    for _ in range(_ATTEMPTS):
        area = width * height * (least + (1 - least) * draws.uniform())
        ratio = MOST_OBLONG ** (2 * draws.uniform() - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draws.below(width - w + 1), draws.below(height - h + 1)
            return left, top, left + w, top + h
    w, h = min(width, round(height * MOST_OBLONG)), min(height, round(width * MOST_OBLONG))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + max(w, 1), top + max(h, 1)
