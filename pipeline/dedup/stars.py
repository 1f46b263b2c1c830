"""Groups of near-duplicates as stars: every duplicate is near the copy that stays, not only linked to it.

Connected components chain: a is near b, b near c, and unlike images end in one group. So groups are
made greedily. The best item stays and takes all that are near it; of what is left the best one
stays; and so on. What is taken takes nothing itself, and an item near several that stay belongs to
the best of them. That is a function of the order alone, whatever order the pairs come in.
"""

from collections.abc import Iterable

import numpy as np

from pipeline.dedup import hamming

MAX_PAIRS = 20_000_000
"""Pairs held at once, 16 bytes each; where more are near, the best items are settled first."""

_SHRINK = 4


class _TooManyPairs(Exception):
    pass


def of_hashes(hashes: np.ndarray, radius: int, max_pairs: int = MAX_PAIRS) -> np.ndarray:
    """The hash that each of distinct hashes (uint64, (n,)), best first, is a duplicate of.

    int64 (n,), an index of its own where it stays. Memory is bounded by n and max_pairs, also where almost all are near each other: then the best
    items are settled first, and what these take is out of the way.
    """
    keeper = np.arange(hashes.size)
    left = keeper  # not settled, best first
    size = hashes.size
    while left.size:
        asked = left[:size]
        try:
            pairs = _collected(hamming.pairs_within(hashes[asked], radius), max_pairs)
        except _TooManyPairs:
            size = max(1, min(size, left.size) // _SHRINK)
            continue
        found = _greedy(asked.size, *pairs)
        keeper[asked] = asked[found]
        staying = asked[found == np.arange(asked.size)]
        left = left[size:]
        best = _best(hashes[left], hashes[staying], radius) if left.size else np.empty(0, int)
        taken = best < staying.size
        keeper[left[taken]] = staying[best[taken]]
        left = left[~taken]
        size *= _SHRINK
    return keeper


def _collected(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], limit: int
) -> tuple[np.ndarray, np.ndarray]:
    found, total = [], 0
    for i, j in pairs:
        total += i.size
        if total > limit:
            raise _TooManyPairs
        found.append((i.astype(np.int64, copy=False), j.astype(np.int64, copy=False)))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, second = (np.concatenate(side) for side in zip(*found, strict=True))
    return first, second


def _greedy(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Who takes whom, given all pairs first < second."""
    keeper = np.arange(count)
    order = np.argsort(first, kind="stable")
    second = second[order]
    items, starts = np.unique(first[order], return_index=True)
    for item, near in zip(items.tolist(), np.split(second, starts[1:]), strict=False):
        if keeper[item] == item:
            keeper[near[keeper[near] == near]] = item
    return keeper


def _best(hashes: np.ndarray, staying: np.ndarray, radius: int) -> np.ndarray:
    """The index of the best (first) of those that stay near each hash; their number for none."""
    best = np.full(hashes.size, staying.size)
    for i, k in hamming.matches_within(hashes, staying, radius):
        np.minimum.at(best, i, k)
    return best
