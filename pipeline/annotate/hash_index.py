"""Which of a fixed list of hashes is nearest, within a Hamming radius: exact, many queries, any width."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from pipeline.hashes import hamming

BAND_BITS = 16
_QUERIES_AT_ONCE = 256
_PAIRS_AT_ONCE = 1 << 20


class HashIndex:
    """Hashes (N, words) uint64, sorted by each of some bands of 16 bits once, for all queries.

    Multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index
    Hashing", CVPR 2012, section 2): of two hashes within a radius, at least one in `bands` bands
    differs in no more than `flips` bits, where bands * (flips + 1) > radius; so each band of a query
    is looked up with up to `flips` of its bits turned. Radius 0 is a look-up in one band.

    A million random hashes of 64 bits need 24 MB at radius 6, of 256 bits 96 MB at radius 31.
    Lists whose hashes crowd in few buckets are searched slowly, but exactly.
    """

    def __init__(self, hashes: np.ndarray, radius: int) -> None:
        self._hashes = np.ascontiguousarray(hashes, np.uint64)
        self._radius = radius
        count = self._hashes.shape[1] * 64 // BAND_BITS
        flips = radius // count
        self._masks = _masks(flips)
        self._tables = [
            _table(_bands(self._hashes)[:, band]) for band in range(radius // (flips + 1) + 1)
        ]

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index, distance) of the nearest hash of each query (Q, words): int64 (Q,) both.

        The lowest index among equally near ones; -1 and -1 where none is within the radius.
        """
        queries = np.ascontiguousarray(queries, np.uint64)
        none = np.iinfo(np.int64).max
        best = np.full(len(queries), none)  # distance and index as one number, for the minimum
        size = max(1, len(self._hashes))
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            some = queries[start : start + _QUERIES_AT_ONCE]
            for query, entry in self._candidates(some):
                distance = hamming(some[query], self._hashes[entry])
                near = distance <= self._radius
                key = distance[near] * size + entry[near]
                np.minimum.at(best, start + query[near], key)
        found = best < none
        return np.where(found, best % size, -1), np.where(found, best // size, -1)

    def _candidates(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(query, entry) pairs, some of them twice, some million at a time."""
        bands = _bands(queries)
        query = np.repeat(np.arange(len(queries)), len(self._masks))
        for band, (order, starts) in enumerate(self._tables):
            bucket = (bands[:, band, None] ^ self._masks).ravel().astype(np.intp)
            first, size = starts[bucket], starts[bucket + 1] - starts[bucket]
            total = size.cumsum()
            start = 0
            while start < len(size):
                done = total[start - 1] if start else 0
                end = max(start + 1, int(np.searchsorted(total, done + _PAIRS_AT_ONCE, "right")))
                sizes = size[start:end]
                offset = first[start:end] - (total[start:end] - sizes - done)
                place = np.arange(sizes.sum()) + np.repeat(offset, sizes)
                yield np.repeat(query[start:end], sizes), order[place].astype(np.int64)
                start = end


def _bands(hashes: np.ndarray) -> np.ndarray:
    """uint64 (N, words) as uint16 (N, 4 * words)."""
    return hashes.view(np.uint16)


def _table(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices sorted by their band, uint32 (N,), and where each value of 16 bits starts."""
    order = np.argsort(band, kind="stable").astype(np.uint32)
    counts = np.bincount(band, minlength=1 << BAND_BITS)
    return order, np.concatenate([[0], counts.cumsum()])


def _masks(flips: int) -> np.ndarray:
    """All values of 16 bits with at most so many bits set: uint16."""
    chosen = (bits for n in range(flips + 1) for bits in combinations(range(BAND_BITS), n))
    return np.array([sum(1 << bit for bit in bits) for bits in chosen], dtype=np.uint16)
