"""All pairs of 64-bit hashes within a Hamming radius: exact, by bands, whatever the hashes share.

The bands are those of Manku, Jain and Das Sarma ("Detecting Near-Duplicates for Web Crawling", WWW
2007, section 3): where 64 bits are cut into m blocks, two hashes that differ in at most r bits
agree in at least m - r blocks. So every choice of m - r blocks is a table, and the hashes that
agree in the bits of a table are its candidates. m = r + 1 is the plain pigeonhole; more blocks give
more tables with far fewer candidates each. A bucket that many hashes share is searched in the same
way by the bits that its table did not look at, until what is left can be compared one by one.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, pairwise
from math import comb

import numpy as np

BITS = 64
MAX_RADIUS = 16
"""Beyond, random images are alike and no band is selective."""

_ALL = tuple(range(BITS))
_DIRECTLY = 1 << 18  # this many comparisons cost less than a table
_LARGE_BUCKET = 1 << 24  # comparisons in one bucket from which it gets tables of its own
_AT_ONCE = 1 << 20  # candidates in memory
_SORT_COST = 12.0  # of one hash in one table, in comparisons of two hashes
_MOST_TABLES = 512

Pairs = tuple[np.ndarray, np.ndarray]


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differing bits of uint64 arrays that broadcast: uint8."""
    return np.bitwise_count(a ^ b)


def pairs_within(hashes: np.ndarray, radius: int) -> Iterator[Pairs]:
    """Every pair i < j of `hashes` (uint64, (n,)) within the radius, once, in arrays of indices.

    Neither the order of the pairs nor how they are cut into arrays means anything.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius must be from 0 to {MAX_RADIUS}, got {radius}")
    for i, j in _search(np.ascontiguousarray(hashes), None, _ALL, radius):
        yield np.minimum(i, j), np.maximum(i, j)


def matches_within(a: np.ndarray, b: np.ndarray, radius: int) -> Iterator[Pairs]:
    """Every i, j with a[i] and b[j] within the radius, once; as `pairs_within`."""
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius must be from 0 to {MAX_RADIUS}, got {radius}")
    yield from _search(np.ascontiguousarray(a), np.ascontiguousarray(b), _ALL, radius)


def _search(
    a: np.ndarray, b: np.ndarray | None, bits: tuple[int, ...], radius: int
) -> Iterator[Pairs]:
    """Pairs of a with b, or (None) with itself; they may differ in `bits` only."""
    if b is not None and not (a.size and b.size):
        return
    tables = _tables(a.size, a.size if b is None else b.size, bits, radius)
    if not tables:
        yield from _compare(a, b, radius)
        return
    for number in range(len(tables)):
        yield from _table(a, b, bits, radius, tables, number)


class _Tables:
    """The choices of blocks for some bits: which of them a pair is found in first."""

    def __init__(self, bits: tuple[int, ...], blocks: int, radius: int) -> None:
        cuts = [len(bits) * k // blocks for k in range(blocks + 1)]
        self.masks = [_mask(bits[start:end]) for start, end in pairwise(cuts)]
        self.chosen = list(combinations(range(blocks), blocks - radius))

    def __len__(self) -> int:
        return len(self.chosen)

    def mask(self, number: int) -> np.uint64:
        return np.bitwise_or.reduce([self.masks[k] for k in self.chosen[number]])

    def is_first(self, number: int, differing: np.ndarray) -> np.ndarray:
        """Of pairs found in a table, by their XOR: those that no table before it has."""
        blocks = self.chosen[number]
        first = np.ones(len(differing), bool)
        for k in range(blocks[-1]):
            if k not in blocks:
                first &= (differing & self.masks[k]) != 0
        return first


def _mask(bits: tuple[int, ...]) -> np.uint64:
    return np.uint64(sum(1 << bit for bit in bits))


@lru_cache(maxsize=256)
def _made(bits: tuple[int, ...], blocks: int, radius: int) -> _Tables:
    return _Tables(bits, blocks, radius)


def _tables(n: int, m: int, bits: tuple[int, ...], radius: int) -> _Tables | None:
    """The cheapest tables for n times m hashes; None where comparing them all is cheaper."""
    directly = n * m
    if directly <= _DIRECTLY:
        return None
    best, cheapest = 0, float(directly)
    for blocks in range(radius + 1, len(bits) + 1):
        count = comb(blocks, radius)
        if count > _MOST_TABLES:
            break
        share = 2.0 ** -(len(bits) * (blocks - radius) // blocks)
        cost = count * ((n + m) * _SORT_COST + directly * share)
        if cost < cheapest:
            best, cheapest = blocks, cost
    return _made(bits, best, radius) if best else None


def _compare(a: np.ndarray, b: np.ndarray | None, radius: int) -> Iterator[Pairs]:
    """Everything with everything."""
    other = a if b is None else b
    rows = max(1, _AT_ONCE // max(1, other.size))
    for start in range(0, a.size, rows):
        first = 0 if b is not None else start
        near = distances(a[start : start + rows, None], other[None, first:]) <= radius
        i, j = np.nonzero(near)
        i, j = i + start, j + first
        if b is None:
            i, j = i[i < j], j[i < j]
        if i.size:
            yield i, j


def _table(
    a: np.ndarray,
    b: np.ndarray | None,
    bits: tuple[int, ...],
    radius: int,
    tables: _Tables,
    number: int,
) -> Iterator[Pairs]:
    """The pairs that agree in the bits of one table, and in those of none before it."""
    mask = tables.mask(number)
    order_a, keys_a = _sorted(a, mask)
    order_b, keys_b = (order_a, keys_a) if b is None else _sorted(b, mask)
    values_a = a[order_a]
    values_b = values_a if b is None else b[order_b]
    starts = np.flatnonzero(np.concatenate([[True], keys_a[1:] != keys_a[:-1]]))
    ends = np.append(starts[1:], keys_a.size)
    left, right = starts, ends
    if b is not None:
        left = np.searchsorted(keys_b, keys_a[starts], "left")
        right = np.searchsorted(keys_b, keys_a[starts], "right")
    work = (ends - starts) * (right - left)
    large = work > _LARGE_BUCKET
    rest = tuple(bit for bit in bits if not int(mask) >> bit & 1)
    for k in np.flatnonzero(large):
        inner_a = values_a[starts[k] : ends[k]]
        inner_b = None if b is None else values_b[left[k] : right[k]]
        for i, j in _search(inner_a, inner_b, rest, radius):
            i, j = i + starts[k], j + left[k]
            first = tables.is_first(number, values_a[i] ^ values_b[j])
            yield order_a[i[first]], order_b[j[first]]
    small = ~large & (work > (1 if b is None else 0))
    sizes = (ends - starts)[small]
    i = _ranges(starts[small], sizes)
    low = i + 1 if b is None else np.repeat(left[small], sizes)
    for p, q in _candidates(i, low, np.repeat(right[small], sizes)):
        differing = values_a[p] ^ values_b[q]
        near = np.flatnonzero(np.bitwise_count(differing) <= radius)
        near = near[tables.is_first(number, differing[near])]
        if near.size:
            yield order_a[p[near]], order_b[q[near]]


def _sorted(hashes: np.ndarray, mask: np.uint64) -> Pairs:
    keys = hashes & mask
    order = np.argsort(keys)
    return order, keys[order]


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (sizes[0] of them), starts[1], ..."""
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)


def _candidates(i: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[Pairs]:
    """Each i with low[i], low[i] + 1, ... high[i] - 1, some at a time."""
    counts = np.maximum(high - low, 0)
    total = np.cumsum(counts)
    start = 0
    while start < i.size:
        done = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, done + _AT_ONCE, "right")))
        some = counts[start:end]
        yield np.repeat(i[start:end], some), _ranges(low[start:end], some)
        start = end
