"""From a picture as it is stored to upright 8-bit RGB: orientation, modes, the middle square."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom

_ORIENTATION = 0x0112
# From pixels as stored, (H, W, C), to upright ones, by EXIF orientation; a view.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def orientation_of(image: Image.Image, data: bytes) -> int:
    """EXIF (else XMP) orientation of an opened image, 1..8; 1 where absent or unreadable.

    data: the bytes it was opened from. Decodes no pixels. For TIFF it is 1, since Pillow turns
    those itself.
    """
    if image.format == "TIFF":
        return 1
    try:
        # Not the PNG plugin's own getexif, which decodes the pixels to see what follows them.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
        if image.format == "PNG" and "exif" not in image.info:
            exif = Image.Exif()
            exif.load(_late_exif(data))
            value = exif.get(_ORIENTATION, value)
    except Exception:
        # Metadata that cannot be read are no reason to lose a picture that can.
        return 1
    return value if value in UPRIGHT else 1


def _late_exif(png: bytes) -> bytes:
    """The EXIF chunk of a PNG, wherever it stands; empty where there is none."""
    at = png.rfind(b"eXIf")
    if at < 0 or png[at + 4 : at + 6] not in (b"II", b"MM"):
        return b""
    return png[at + 4 : at + 4 + int.from_bytes(png[at - 4 : at], "big")]


def is_grey(image: Image.Image) -> bool:
    """Whether the image has no colour to lose, by its mode."""
    return image.mode in ("1", "L", "LA", "La") or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_array(image: Image.Image, box: Box | None = None) -> np.ndarray:
    """Any mode to uint8 RGB (H, W, 3) as stored; with a box, of those pixels alone.

    Alpha is laid on white; CMYK, LAB and palettes are converted. Grey of 16 bits goes from
    0..65535 to 0..255, floats from 0..1 or from 0..255 where they stay within; what leaves these
    ranges is scaled from its smallest to its largest value. Nothing is clipped.
    """
    image.load()
    if hasattr(image, "_decoder"):
        image._decoder = None  # of WebP and AVIF: holds two more pictures for later frames
    convert = _scaling(image) if _is_deep(image) else _to_rgb
    left, top, right, bottom = box or (0, 0, *image.size)
    out = np.empty((bottom - top, right - left, 3), np.uint8)
    # Whole pictures in each of the modes on the way would take more than a gigabyte.
    for band in _bands((left, top, right, bottom)):
        out[band[1] - top : band[3] - top] = convert(image.crop(band))
    return out


def middle_square(image: Image.Image, size: int) -> np.ndarray:
    """The middle square as uint8 RGB (size, size, 3), as stored, antialiased bicubic."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # The filter reaches two output pixels beyond the square.
    margin = math.ceil(2 * max(1, side / size)) + 1
    x, y = max(0, math.floor(left) - margin), max(0, math.floor(top) - margin)
    right = min(image.width, math.ceil(left + side) + margin)
    bottom = min(image.height, math.ceil(top + side) + margin)
    rgb = Image.fromarray(to_array(image, (x, y, right, bottom)))
    square = (left - x, top - y, left - x + side, top - y + side)
    small = rgb.resize((size, size), Image.Resampling.BICUBIC, box=square, reducing_gap=3.0)
    return np.array(small)


def _bands(box: Box) -> Iterator[Box]:
    """The box in bands of rows, each of about a million pixels."""
    left, top, right, bottom = box
    height = max(1, 2**20 // (right - left))
    for start in range(top, bottom, height):
        yield left, start, right, min(start + height, bottom)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _scaling(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """What turns a band of a deep grey image into uint8 (H, W, 1)."""
    low, high = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        bands = list(_bands((0, 0, *image.size)))
        low = min(float(_finite(image.crop(band)).min()) for band in bands)
        high = max(float(_finite(image.crop(band)).max()) for band in bands)
        for white in (1, 255) if image.mode == "F" else (65535,):
            if low >= 0 and high <= white:
                low, high = 0, white
                break
    scale = 255 / (high - low) if high > low else 0
    return lambda band: np.rint((_finite(band) - low) * scale).astype(np.uint8)[..., None]


def _finite(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    return values.astype(np.float64)
