"""What part of an image a training sees: scaled until it covers the size asked for, then cut; never distorted."""

from typing import Literal

import numpy as np
from PIL import Image

from pipeline import images
from pipeline.places import Place

Crop = Literal["centre", "random", "dalle"]
CROPS: tuple[Crop, ...] = ("centre", "random", "dalle")


def cropped(
    data: bytes, crop: Crop, width: int, height: int, place: Place, flip: bool = False
) -> np.ndarray:
    """An image's bytes as uint8 (height, width, 3); raises BadImage.

    centre and random: the smallest scaling that covers the size, and of that the middle or any
    part. dalle: see `dalle_crop`; width and height are equal there. flip: half of the images are
    mirrored, which swaps left and right without telling their captions. All of it is drawn from
    the place.
    """
    if crop == "dalle":
        pixels = dalle_crop(data, width, place)
    else:
        draws = place.draws("crop") if crop == "random" else None

        def cover(across: int, down: int) -> images.Box:
            scale = max(width / across, height / down)
            left, top = (
                draws.below(slack + 1) if draws else slack // 2
                for slack in (round(across * scale) - width, round(down * scale) - height)
            )
            box_width, box_height = min(width / scale, across), min(height / scale, down)
            # Whole pixels of the scaled image: one that has its size already is only cut.
            return (
                min(left / scale, across - box_width),
                min(top / scale, down - box_height),
                box_width,
                box_height,
            )

        pixels = images.part(data, cover, width, height)
    if flip and place.draws("flip").chance(0.5):
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    return pixels


def dalle_crop(data: bytes, size: int, place: Place) -> np.ndarray:
    """The crop that DALL-E 1's autoencoder was trained with, uint8 (size, size, 3).

    A square of the shorter side, at 3/8 to 5/8 of what the longer side has too much; resized by area
    to between size and 9/8 size; of that any part. Ramesh et al. 2021 (2102.12092), appendix A.2.
    Raises BadImage.
    """
    draws = place.draws("crop")
    resized = draws.between(size, size * 9 // 8)
    pixels = images.decode(data, min_side=resized)
    height, width = pixels.shape[:2]
    side = min(width, height)
    x, y = draws.below(resized - size + 1), draws.below(resized - size + 1)
    offset = 3 / 8 + draws.uniform() / 4
    scale = side / resized
    left = (width - side) * offset + x * scale
    top = (height - side) * offset + y * scale
    edge = size * scale
    # To resize by area and then cut is to resize the part by area: no pixel looks beyond its own.
    box = (left, top, min(left + edge, width), min(top + edge, height))
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX, box=box))
