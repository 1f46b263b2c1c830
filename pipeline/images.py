"""From the bytes of any image to upright RGB pixels, to what captioners see, to a training JPEG.

The bytes come from strangers. They are capped in size, and in pixels by their header, before
anything is decoded; only the formats of FORMATS are tried, none of which runs a program; whatever
a decoder raises becomes BadImage with a reason from IMAGE_REASONS. All functions here may be
called from many threads.
"""

import ctypes
import io
import logging
import math
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
from PIL import Image

from pipeline import jpeg
from pipeline.limits import (
    FORMATS,
    IMAGE_REASONS,
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    BadImage,
    check_size,
    refusing,
    room,
)
from pipeline.pixels import UPRIGHT, is_grey, middle_square, orientation_of, to_array
from pipeline.resample import resample, resample_square, scratch

__all__ = [
    "IMAGE_REASONS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "PREPROCESSING",
    "BadImage",
    "ImageInfo",
    "TrainingJpeg",
    "decode",
    "part",
    "probe",
    "square_crop",
    "training_jpeg",
]

PREPROCESSING = (
    "rgb8 upright, alpha on white, icc ignored, jpeg decoded at the smallest n/8 DCT scale that"
    " keeps the shortest side, antialiased bicubic, shortest side to size, centre crop"
)

JPEG_QUALITY = 95
# Frame markers: baseline, extended and progressive, by Huffman and by arithmetic coding.
_DCT_CODED = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})

_PILLOW_BYTES = 13  # per pixel: RGBA, RGB in Pillow's four bytes, alpha, and the array

# A failure is told by its reason, and a dubious file that decodes is of no interest: Pillow's
# warnings and log lines would only fill the terminals of workers. Set once, for this process.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
Image.init()  # loads all plugins now, not in the first thread that meets a format


def _silence_libtiff() -> None:
    """Stop libtiff, as Pillow's wheels bring it, from printing; Pillow itself never does."""
    for path in Path(PIL.__file__).parent.parent.glob("[Pp]illow.libs/libtiff*"):
        with suppress(OSError, AttributeError):
            libtiff = ctypes.CDLL(str(path))  # already loaded, so this is the same copy
            libtiff.TIFFSetErrorHandler(None)
            libtiff.TIFFSetWarningHandler(None)


_silence_libtiff()

# Warnings of libjpeg that mean damage, and those that may come from a file that is only untidy.
_CORRUPT = re.compile(
    "premature end of data|bad huffman|bad arithmetic|inconsistent progr|instead of rst", re.I
)
_UNTIDY = re.compile(
    "extraneous bytes|bad icc|jfif revision|adobe color|invalid sos|premature end of jpeg", re.I
)
_BEFORE_EOI = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


Box = tuple[float, float, float, float]
"""Left, top, width and height of a part of an image, in its pixels."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image's header says; width and height are upright, after EXIF rotation."""

    format: str  # as Pillow names it
    width: int
    height: int
    orientation: int  # EXIF orientation, 1..8; not known for TIFF, where it says 1
    mode: str  # Pillow's mode before any conversion: RGB, L, P, CMYK, I;16, ...


@dataclass(frozen=True, slots=True)
class TrainingJpeg:
    """An upright RGB or grey JPEG, and whether it was encoded anew."""

    data: bytes
    width: int
    height: int
    reencoded: bool


@refusing
def probe(data: bytes) -> ImageInfo:
    """Read format, size, orientation and mode from the header alone; raises BadImage."""
    head = _jpeg_header(data)
    if head:
        orientation = head.orientation
        mode = {1: "L", 3: "RGB", 4: "CMYK"}.get(head.components, "?")
        kind, width, height = "JPEG", head.width, head.height
    else:
        image = _open(data)
        orientation, mode = orientation_of(image, data), image.mode
        kind, width, height = image.format or "?", image.width, image.height
    if orientation >= 5:
        width, height = height, width
    return ImageInfo(kind, width, height, orientation, mode)


@refusing
def decode(data: bytes, min_side: int = 0) -> np.ndarray:
    """Decode to upright RGB: uint8 (H, W, 3), contiguous; raises BadImage.

    Transparency is laid on white; palettes, CMYK and LAB are converted; 16 bits and floats are
    scaled to 8 bits (see pixels.to_array); of an animation it is the first frame; ICC profiles are
    not applied. With `min_side` > 0 a JPEG may come out at n/8 of its size, as long as its shorter
    side does not fall below min_side.
    """
    head = _jpeg_header(data)
    pixels = _jpeg_pixels(data, head, "RGB", min_side) if head else None
    if head and pixels is not None:
        return np.ascontiguousarray(UPRIGHT[head.orientation](pixels))
    return _by_pillow(data, to_array)


def square_crop(data: bytes, size: int) -> np.ndarray:
    """What captioners see, uint8 (size, size, 3): see PREPROCESSING; raises BadImage.

    The shortest side is resized to `size` pixels and the middle of the other side is kept, in one
    step: only the middle square is resampled, with its true neighbours at the edges. The picture
    is the one that Pillow's `resize(..., BICUBIC, box=square)` gives, up to two grey levels in the
    mean: a JPEG above `size` is reduced by the decoder first, as far as the size allows.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return _square_crop(data, size)


@refusing
def _square_crop(data: bytes, size: int) -> np.ndarray:
    head = _jpeg_header(data)
    pixels = _jpeg_pixels(data, head, "RGBX", size, reuse=True) if head else None
    if head and pixels is not None:
        side = min(head.width, head.height)
        # The scale from the exact factor, not from the sizes: those were rounded up.
        scale = _dct_scale(head, pixels.shape)
        left, top = (head.width - side) / 2 * scale, (head.height - side) / 2 * scale
        square = resample_square(pixels, left, top, side * scale, size)
        return np.ascontiguousarray(UPRIGHT[head.orientation](square))
    return _by_pillow(data, lambda image: middle_square(image, size))


@refusing
def part(data: bytes, choose: Callable[[int, int], Box], width: int, height: int) -> np.ndarray:
    """A part of the upright image, resized to uint8 (height, width, 3), contiguous; raises BadImage.

    choose: image width and height -> left, top, width and height of the part, in pixels, which may
    be fractions. Antialiased bicubic, after a reduction by the decoder as far as the size allows,
    as `square_crop`; a part of the size that is asked for, at whole pixels, keeps its own.
    """
    head = _jpeg_header(data)
    if head is None or head.orientation != 1:
        pixels = decode(data)
        return _part(pixels, choose(pixels.shape[1], pixels.shape[0]), width, height)
    box = choose(head.width, head.height)
    if _is_cut(box, width, height):
        colorspace, least = "RGB", 0
    else:
        # The least share of the image at which the part is not smaller than what is asked for.
        share = max(width / box[2], height / box[3])
        colorspace, least = "RGBX", math.ceil(share * min(head.width, head.height))
    pixels = _jpeg_pixels(data, head, colorspace, least, reuse=True)
    if pixels is None or colorspace == "RGB":
        pixels = _by_pillow(data, to_array) if pixels is None else pixels
        return _part(pixels, box, width, height)
    # The scale from the exact factor, not from the sizes: those were rounded up.
    scale = _dct_scale(head, pixels.shape)
    return resample(pixels, tuple(edge * scale for edge in box), width, height)


def _part(pixels: np.ndarray, box: Box, width: int, height: int) -> np.ndarray:
    """The same of decoded pixels (H, W, 3)."""
    if _is_cut(box, width, height):
        left, top = int(box[0]), int(box[1])
        return pixels[top : top + height, left : left + width].copy()
    wide = np.empty((*pixels.shape[:2], 4), np.uint8)
    wide[..., :3] = pixels
    return resample(wide, box, width, height)


def _is_cut(box: Box, width: int, height: int) -> bool:
    return box[2:] == (width, height) and box[0] == int(box[0]) and box[1] == int(box[1])


@refusing
def training_jpeg(
    data: bytes, max_side: int = 0, check: bool = True, quality: int = JPEG_QUALITY
) -> TrainingJpeg:
    """Make the bytes that a training shard holds: an upright RGB or grey JPEG; raises BadImage.

    An 8-bit JPEG with one or three components that needs no rotation keeps its bytes, less what
    jpeg.strip drops. Anything else is encoded at `quality` (0 to 100) without chroma subsampling, with its
    ICC profile where that is one for RGB or grey as the pixels are. Only where `max_side` > 0 and
    the longer side is above it, the image is resized. `check` proves that original bytes decode;
    leave it out only where decode() or square_crop() has already accepted them.
    """
    head = _jpeg_header(data)
    if head and head.orientation == 1 and _is_plain(head) and not _above(head, max_side):
        if check and _jpeg_pixels(data, head, _colorspace(head), 1, reuse=True) is None:
            _by_pillow(data, to_array)
        return TrainingJpeg(jpeg.strip(data), head.width, head.height, reencoded=False)
    size = head or _open(data)
    with room(size.width * size.height * _PILLOW_BYTES):
        pixels, icc = _training_pixels(data, head)
        image = Image.fromarray(pixels)
        del pixels
        if max_side and max(image.size) > max_side:
            scale = max_side / max(image.size)
            sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(sides, Image.Resampling.BICUBIC, reducing_gap=3.0)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=0, icc_profile=icc)
        return TrainingJpeg(file.getvalue(), *image.size, reencoded=True)


# --- JPEG, by simplejpeg -------------------------------------------------------------------------


def _jpeg_header(data: bytes) -> jpeg.Header | None:
    """The checked header of a JPEG, None for other files."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    head = jpeg.header(data)
    check_size(head.width, head.height)
    if head.progressive and jpeg.count_scans(data) > jpeg.MAX_SCANS:
        raise BadImage("undecodable", f"more than {jpeg.MAX_SCANS} scans")
    return head


def _jpeg_pixels(
    data: bytes, head: jpeg.Header, colorspace: str, min_side: int, reuse: bool = False
) -> np.ndarray | None:
    """Decode as stored, not yet upright, to uint8 (H, W, C) in 'RGB', 'RGBX' or 'GRAY'.

    With min_side > 0 at the smallest n/8 scale that keeps both sides at min_side or above. None
    where only Pillow can do it: CMYK, lossless, 12 bits, rare chroma layouts, untidy headers.
    With `reuse` the pixels are valid until this thread decodes again.
    """
    # simplejpeg must not see a lossless JPEG: asked for a scale, which those lack, it writes the
    # full picture into the memory of the small one.
    if head.sof not in _DCT_CODED or head.precision != 8:
        return None
    shorter = min(head.width, head.height)
    if min_side >= shorter:
        min_side = 0
    scale = math.ceil(8 * min_side / shorter) / 8 if min_side > 0 else 1.0
    # A progressive picture keeps all its coefficients until the last scan.
    per_pixel = 4 * scale * scale + 2 * head.components * head.progressive
    with room(head.width * head.height * per_pixel):
        if head.components not in (1, 3):
            _decode_strictly(data, head, "CMYK", 1)  # Pillow would pass damaged pixels
            return None
        buffer = None
        if reuse:
            buffer = scratch("decoded", (head.height * head.width * len(colorspace),), np.uint8)
        return _decode_strictly(data, head, colorspace, min_side, buffer)


def _decode_strictly(
    data: bytes,
    head: jpeg.Header,
    colorspace: str,
    min_side: int,
    buffer: np.ndarray | None = None,
) -> np.ndarray | None:
    """simplejpeg, for which a warning of libjpeg is an error; None where that proves harmless."""
    try:
        return simplejpeg.decode_jpeg(
            data, colorspace, min_height=min_side, min_width=min_side, buffer=buffer
        )
    except ValueError as error:
        message = str(error)
    if _CORRUPT.search(message):
        raise BadImage(_cut_or_corrupt(data), message)
    if _UNTIDY.search(message):
        _prove_despite(data, head, message)
    # Else it is a rare chroma layout, or a fatal error on which Pillow will agree.
    return None


def _cut_or_corrupt(data: bytes) -> str:
    return "undecodable" if jpeg.ends(data) else "truncated"


def _prove_despite(data: bytes, head: jpeg.Header, message: str) -> None:
    """Raise BadImage unless the pixel data decode without a warning once the rest is tidied up.

    A wrong ICC chunk, JFIF version or Adobe transform, garbage between segments, a missing EOI and
    zero padding say nothing about the pixels. Bytes left over after the last scan do: a damaged
    scan ends early. They are harmless only where they are all alike, which is padding.
    """
    bare = jpeg.bare(data)
    colorspace = {1: "GRAY", 3: "RGB"}.get(head.components, "CMYK")
    try:
        simplejpeg.decode_jpeg(bare, colorspace, min_height=1, min_width=1)
    except ValueError as error:
        found = _BEFORE_EOI.search(str(error))
        left_over = int(found[1]) if found else 0
        if left_over > 1 and len(set(bare[-2 - left_over : -2])) == 1:
            return
        raise BadImage(_cut_or_corrupt(data), f"{message}; {error}") from error


def _dct_scale(head: jpeg.Header, shape: tuple[int, ...]) -> float:
    """The n/8 at which a JPEG was decoded to this shape; sides are rounded up."""
    for n in range(8, 0, -1):
        if (-(-head.height * n // 8), -(-head.width * n // 8)) == shape[:2]:
            return n / 8
    raise AssertionError(f"{head.height} x {head.width} at no n/8 gives {shape}")


# --- everything else, by Pillow ------------------------------------------------------------------


def _open(data: bytes) -> Image.Image:
    """Open by the header; no pixels are decoded but those of an icon."""
    if data[:4] == b"\x00\x00\x01\x00":
        # Pillow decodes an icon at once, and what is in it may be larger than its directory says.
        for found in re.finditer(rb"\x89PNG\r\n\x1a\n....IHDR(....)(....)", data, re.DOTALL):
            check_size(int.from_bytes(found[1], "big"), int.from_bytes(found[2], "big"))
        with room(math.inf):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    else:
        if data[:2] == b"\xff\xd8" and not jpeg.ends(data):
            data += b"\xff\xd9"  # Pillow insists on it, even where all pixels are there
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(image.width, image.height)
    return image


def _by_pillow(data: bytes, make: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `make` makes of the opened image, turned upright."""
    image = _open(data)
    upright = UPRIGHT[orientation_of(image, data)]
    with room(image.width * image.height * _PILLOW_BYTES):
        made = np.ascontiguousarray(upright(make(image)))
        del image  # here, so that who comes next finds its memory free
    return made


def _training_pixels(data: bytes, head: jpeg.Header | None) -> tuple[np.ndarray, bytes | None]:
    """Upright pixels, (H, W, 3) or grey (H, W), and the ICC profile where it still fits."""
    pixels = _jpeg_pixels(data, head, _colorspace(head), 0) if head else None
    if head and pixels is not None:
        grey, icc = head.components == 1, jpeg.icc_profile(data)
        pixels = UPRIGHT[head.orientation](pixels)
    else:
        source = _open(data)
        grey, icc = is_grey(source), source.info.get("icc_profile")
        pixels = _by_pillow(data, to_array)
    # A profile names the colour space of the pixels it is meant for in bytes 16 to 19.
    fits = isinstance(icc, bytes) and icc[16:20] == (b"GRAY" if grey else b"RGB ")
    return np.ascontiguousarray(pixels[..., 0] if grey else pixels), icc if fits else None


def _colorspace(head: jpeg.Header) -> str:
    return "GRAY" if head.components == 1 else "RGB"


def _is_plain(head: jpeg.Header) -> bool:
    """8 bits, RGB or grey, and a coding process that every reader knows."""
    return head.components in (1, 3) and head.precision == 8 and head.sof in (0xC0, 0xC1, 0xC2)


def _above(head: jpeg.Header, max_side: int) -> bool:
    return 0 < max_side < max(head.width, head.height)
