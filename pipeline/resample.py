"""Antialiased bicubic resampling of a part of a picture, about twice as fast as Pillow on one core.

A picture is resampled by rows twice, with a transposition between: output rows are weighted sums
of whole input rows, which numpy adds up in 16-bit integers at the speed of the vector units.
"""

import math
import threading
from functools import lru_cache

import numpy as np

# Weights in 1/128, for pixels shifted to -128..127: sums stay within 16 bits, as the absolute
# weights of the filter add up to less than 1.4. The error is a fraction of a grey level.
_BITS = 7
_ONE = 1 << _BITS
_HIGHEST_BITS = np.uint32(0x80808080)

# Intermediate arrays are kept from picture to picture: to have the system clear fresh pages for
# them costs nearly as much as the arithmetic. Larger ones are rare, and are given back.
_KEPT_BYTES = 8 * 2**20
_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An uninitialised array of this thread, valid until it asks for the same name again."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if num_bytes > _KEPT_BYTES:
        return np.empty(shape, dtype)
    buffer = _kept.__dict__.get(name)
    if buffer is None or len(buffer) < num_bytes:
        buffer = _kept.__dict__[name] = np.empty(num_bytes, np.uint8)
    return buffer[:num_bytes].view(dtype).reshape(shape)


def resample_square(
    pixels: np.ndarray, left: float, top: float, side: float, size: int
) -> np.ndarray:
    """Resample the square of `side` pixels at (left, top) to uint8 (size, size, 3): see `resample`."""
    return resample(pixels, (left, top, side, side), size, size)


def resample(
    pixels: np.ndarray, box: tuple[float, float, float, float], width: int, height: int
) -> np.ndarray:
    """Resample a part of a picture to uint8 (height, width, 3).

    pixels: uint8 (H, W, 4), contiguous, the fourth channel unused. box: left, top, width and height
    of the part, which may be fractions and must lie inside. Pixels around the part count as
    neighbours of its edges, what lies outside the picture does not: as Pillow's resize with a box.
    """
    left, top, across, down = box
    # Cutting the surroundings to the filter's reach also makes most pictures share their weights.
    x, right = _reached(left, across, width)
    y, bottom = _reached(top, down, height)
    pixels = pixels[y:bottom, x:right]
    num_rows, num_columns = pixels.shape[:2]
    # Transposed four bytes at a time, and 0..255 to -128..127 by turning the highest bit of each.
    # An odd row length, since one that is a power of two is slow to transpose back.
    length = num_rows | 1
    columns = scratch("columns", (num_columns, length), np.uint32)
    np.bitwise_xor(pixels.view(np.uint32)[..., 0].T, _HIGHEST_BITS, out=columns[:, :num_rows])
    columns = columns.view(np.int8).reshape(num_columns, length * 4)
    narrow = _rows(columns, _taps(num_columns, left - x, across, width))
    narrow = narrow.reshape(width, length, 4)
    # Transpose and drop the fourth channel at once; one strided copy per channel is the fast way.
    rgb = scratch("rgb", (num_rows, width, 3), np.int8)
    for channel in range(3):
        rgb[..., channel] = narrow[:, :num_rows, channel].T
    taps = _taps(num_rows, top - y, down, height)
    made = _rows(rgb.reshape(num_rows, width * 3), taps).view(np.uint8)
    made ^= 0x80
    return made.reshape(height, width, 3)


def _reached(start: float, span: float, size: int) -> tuple[int, int]:
    """The first input, and the one behind the last, that `size` outputs over a span depend on."""
    reach = math.ceil(2 * max(1.0, span / size)) + 1
    return max(0, math.floor(start) - reach), math.ceil(start + span) + reach


@lru_cache(maxsize=512)
def _taps(length: int, start: float, span: float, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bicubic weights (a = -0.5) for `size` outputs over `span` of `length` inputs from `start`.

    One entry per tap: input indices (size,) and int16 weights (size, 1) that add up to 128 over
    the taps. Reducing widens the filter by the factor, so that nothing aliases.
    """
    stretch = max(1.0, span / size)
    centre = start + (np.arange(size) + 0.5) * (span / size)
    first = np.floor(centre - 2 * stretch + 0.5).astype(np.intp)
    index = first[:, None] + np.arange(math.ceil(4 * stretch) + 1)
    t = np.abs((index + 0.5 - centre[:, None]) / stretch)
    weight = np.where(t < 1, (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2)
    weight[(t >= 2) | (index < 0) | (index >= length)] = 0
    weight *= _ONE / weight.sum(1, keepdims=True)
    # Rounding the running sum, so that the weights of an output add up to exactly _ONE.
    whole = np.diff(np.rint(weight.cumsum(1)), prepend=0).astype(np.int16)
    index = index.clip(0, length - 1)
    used = [tap for tap in range(index.shape[1]) if whole[:, tap].any()]
    return [(index[:, tap].copy(), whole[:, tap, None].copy()) for tap in used]


def _rows(rows: np.ndarray, taps: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Weighted sums of rows: int8 (n, m) to int8 (size, m)."""
    wide = scratch("wide", rows.shape, np.int16)
    wide[...] = rows
    (index, weight), *others = taps
    shape = (len(index), rows.shape[1])
    total, part = scratch("total", shape, np.int16), scratch("part", shape, np.int16)
    wide.take(index, 0, out=total, mode="clip")
    total *= weight
    for index, weight in others:
        wide.take(index, 0, out=part, mode="clip")
        part *= weight
        total += part
    total += _ONE // 2
    total >>= _BITS
    return total.clip(-128, 127, out=total).astype(np.int8)
