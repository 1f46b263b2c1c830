"""Images as the web damages them, on purpose: cut off, no image at all, or of an odd format."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.draws import Draws

QUALITY = 95
DAMAGES = ("truncated", "not_an_image", "no_image", "png", "cmyk")
"""The first three make a sample fail with a reason of that name; the others must not."""

_ERROR_PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>\n"


def draw_damage(seed: int, index: int, share: float) -> str:
    """What is done to an image: one of DAMAGES for this share of all, "" for the others."""
    draws = Draws(seed, index, "damage")
    return draws.choice(DAMAGES) if draws.chance(share) else ""


def encode(image: np.ndarray, damage: str) -> tuple[str, bytes]:
    """The suffix and bytes of an image file; ("", b"") where there is none."""
    if damage == "no_image":
        return "", b""
    if damage == "not_an_image":
        return "jpg", _ERROR_PAGE
    if damage == "png":
        return "png", _by_pillow(Image.fromarray(image), "PNG")
    if damage == "cmyk":
        return "jpg", _by_pillow(Image.fromarray(image).convert("CMYK"), "JPEG", quality=QUALITY)
    data = simplejpeg.encode_jpeg(image, QUALITY, colorspace="RGB", colorsubsampling="444")
    return "jpg", data[: len(data) // 2] if damage == "truncated" else data


def _by_pillow(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
