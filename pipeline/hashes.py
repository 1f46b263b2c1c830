"""Perceptual hashes, alike for pictures that look alike, and the Hamming distance between them.

Both hashes see the same 64 x 64 cells: the exact mean of the luma over each cell, so that nothing
shifts when a picture is resized. All arithmetic from there on is of whole numbers (those in floats
stay below 2**53), so that a hash is the same on every machine.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.luma import coarse_luma, fine_luma

VERSION = 1  # of what the bits mean; another one is another hash

RELIABLE_QUALITY = 50
"""A picture of less `pdq_quality` (PDQ's own line) is too plain for its hashes to tell it apart."""

_CELLS = 64
_LEVEL = 256  # units of a cell's value in one grey level
_UNIT = 2**12  # of a cosine
# A coefficient counts as present only above the noise: JPEG of quality 50 leaves about a third of
# a grey level in each of the 32 x 32 cells, and as much in every coefficient of unit norm.
_NOISE = 16 * _UNIT**2 * 4 * _LEVEL  # one, in the units of _phash

_HEX = re.compile(r"(?:[0-9a-f]{16})+")


Overlaps = list[tuple[np.ndarray, np.ndarray]]


class Hashes(NamedTuple):
    """The perceptual hashes of one picture."""

    phash: int  # 64 bits
    pdq: bytes  # 32, the highest bit first, as PDQ's tools write them in hex
    pdq_quality: int  # 0..100, how much there is to tell it by


def phash64(pixels: np.ndarray) -> int:
    """The 64-bit DCT hash of RGB uint8 (H, W, 3) or grey uint8 (H, W).

    The 8 x 8 lowest frequencies of 32 x 32 cells; a bit says that a coefficient is above their
    median by more than noise. Row by row, the highest bit first: that of the mean, which is always
    set. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
    section 3.1, with the layout of the `imagehash` package, to whose hash it is close.
    """
    return hashes_of(coarse_luma(fine_luma(pixels))).phash


def pdq256(pixels: np.ndarray) -> tuple[bytes, int]:
    """The 256-bit hash in the manner of PDQ, 32 bytes, and its quality 0..100.

    Frequencies 1..16 of 64 x 64 cells, above their median or not; the quality adds up what is
    visible in the gradients between cells. Facebook, "The TMK+PDQF Video-Hashing Algorithm and
    the PDQ Image-Hashing Algorithm" (2019), with one change: cells are exact means where PDQ
    samples a picture smoothed by Jarosz filters, which shift by 1.5 pixels: halving a small picture
    then costs twenty bits, and here two. Of PDQ's own hash this one differs in about a dozen bits
    from 512 pixels on, where 31 is PDQ's radius for the same picture.
    """
    found = hashes_of(coarse_luma(fine_luma(pixels)))
    return found.pdq, found.pdq_quality


def hashes_of(luma: np.ndarray) -> Hashes:
    """All of them for a plane that luma.coarse_luma made: uint8 (h, w)."""
    cells = _cells(luma)
    return Hashes(_phash(cells), _pdq(cells), _quality(cells))


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits that differ: uint64 (..., words) twice, broadcast, to int64 (...)."""
    return np.bitwise_count(a ^ b).sum(-1, dtype=np.int64)


def from_hex(hashes: Iterable[str]) -> np.ndarray:
    """Hashes of one length in hex to uint64 (n, words), words of 16 digits, the highest first.

    ValueError for what is no such hash, naming it.
    """
    hashes = [hash.lower() for hash in hashes]
    for hash in hashes:
        if not _HEX.fullmatch(hash) or len(hash) != len(hashes[0]):
            raise ValueError(f"{hash!r} is not a hash of {len(hashes[0])} hex digits")
    words = np.frombuffer(bytes.fromhex("".join(hashes)), ">u8").astype(np.uint64)
    return words.reshape(len(hashes), -1 if hashes else 1)


def to_hex(words: np.ndarray) -> list[str]:
    """The inverse of from_hex."""
    return [row.astype(">u8").tobytes().hex() for row in words]


def _cells(luma: np.ndarray) -> np.ndarray:
    """Means of 64 x 64 equal parts in 1 / _LEVEL grey levels, less their mean: int64 (64, 64)."""
    height, width = luma.shape
    # Sums are at most 255 times the sides, so that they fit.
    narrow = height <= 2**16 // 256
    rows = _sums(luma.astype(np.uint16 if narrow else np.uint32), _overlaps(height))
    total = _sums(np.ascontiguousarray(rows.T, np.uint32), _overlaps(width)).T
    cells = np.rint(total * float(_LEVEL) / (height * width)).astype(np.int64)
    return cells - round(int(cells.sum()) / cells.size)


def _sums(rows: np.ndarray, overlaps: Overlaps) -> np.ndarray:
    """Weighted sums of rows: uint (n, m) to (64, m)."""
    total = np.zeros((_CELLS, rows.shape[1]), rows.dtype)
    for index, weight in overlaps:
        part = rows[index]
        part *= weight.astype(rows.dtype)
        total += part
    return total


@lru_cache(maxsize=256)
def _overlaps(length: int) -> Overlaps:
    """For the first, second, ... pixel that touches each of 64 cells: its index and overlap.

    Overlaps are (64, 1), in 1 / 64 pixels, and zero where a cell touches no more.
    """
    start = np.arange(_CELLS) * length  # of cells, in 1 / 64 pixels
    overlaps = []
    for nth in range(-(-length // _CELLS) + 1):
        pixel = start // _CELLS + nth
        left, right = np.maximum(pixel * _CELLS, start), np.minimum(pixel + 1, length) * _CELLS
        overlap = np.minimum(right, start + length) - left
        overlaps.append((pixel.clip(max=length - 1), overlap.clip(0)[:, None]))
    return overlaps


@lru_cache(maxsize=2)
def _cosines(first: int, last: int, length: int) -> np.ndarray:
    """Rows `first` to `last` of the DCT-II in 1 / _UNIT: float64 (last - first, length)."""
    angle = np.arange(first, last)[:, None] * (2 * np.arange(length) + 1) * np.pi / (2 * length)
    return np.rint(np.cos(angle) * _UNIT)


def _phash(cells: np.ndarray) -> int:
    half = cells.reshape(32, 2, 32, 2).sum((1, 3)).astype(np.float64)
    cosines = _cosines(0, 8, 32)
    coefficients = (cosines @ half @ cosines.T).ravel()
    median = np.partition(coefficients[1:], 31)[31]
    bits = coefficients > median + _NOISE
    bits[0] = True
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _pdq(cells: np.ndarray) -> bytes:
    cosines = _cosines(1, 17, _CELLS)
    coefficients = (cosines @ cells.astype(np.float64) @ cosines.T).ravel()
    median = np.partition(coefficients, 127)[127]
    # PDQ numbers bits from the lowest of the last byte.
    return np.packbits(coefficients[::-1] > median).tobytes()


def _quality(cells: np.ndarray) -> int:
    steps = 0
    for axis in (0, 1):
        steps += int((np.abs(np.diff(cells, axis=axis)) * 100 // (255 * _LEVEL)).sum())
    return min(100, steps // 90)
