"""The order of an epoch: shards are cut into blocks, blocks are shuffled, and their samples spread out.

An object store gives a few megabytes in one go about as fast as one sample, so a block of
neighbours is fetched whole. The blocks of all shards are put in random order; then each sample is
held back by a random number of samples, up to a window, which tears blocks apart. At any time the
samples of about one window are in memory, and new blocks come in evenly.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pipeline.draws import key64

_HALF = np.uint64(32)
MAX_WINDOW = 1 << 24


def block_of(row: int, samples: int, block: int) -> tuple[int, int]:
    """First row, and the one behind the last, of the block that a row of a shard belongs to.

    A shard of `samples` has as few blocks as there can be of at most `block`, of nearly equal size.
    """
    blocks = -(-samples // block)
    number = ((row + 1) * blocks - 1) // samples
    return number * samples // blocks, (number + 1) * samples // blocks


class Order:
    """Where each of `size` samples comes in an epoch: a permutation, decided by (seed, epoch) alone.

    counts: samples of each shard. block, window: in samples. A set that fits in one window is
    shuffled sample by sample. What a position costs depends on the window, and once per epoch on
    the number of blocks; not on how far it is. Threads may share it.
    """

    def __init__(self, counts: Sequence[int], block: int, window: int) -> None:
        per_shard = np.asarray(counts, np.int64)
        self.size = int(per_shard.sum())
        self.window = window
        if self.size <= window:
            block = 1
        blocks = -(-per_shard // block)
        shard = np.repeat(np.arange(len(per_shard)), blocks)
        number = np.arange(len(shard)) - np.repeat(blocks.cumsum() - blocks, blocks)
        first = per_shard.cumsum() - per_shard
        self._starts = first[shard] + number * per_shard[shard] // blocks[shard]
        self._sizes = np.diff(self._starts, append=self.size)
        self._blocks = lru_cache(2)(self._shuffled)
        self._delayed = lru_cache(4)(self._delay)
        self._cell = lru_cache(4)(self._sorted)

    def indices(self, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
        """The samples at positions start .. stop - 1 of an epoch: int64 (stop - start,)."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"positions {start} .. {stop} are outside 0 .. {self.size}")
        cell = start // self.window
        if self._before(seed, epoch, cell + 1) <= start:
            cell += 1
        found, at = [], start
        while at < stop:
            begin, part = self._before(seed, epoch, cell), self._cell(seed, epoch, cell)
            found.append(part[at - begin : stop - begin])
            at, cell = begin + len(part), cell + 1
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _shuffled(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of an epoch in order, and the position of each one's first sample."""
        order = np.argsort(_words(len(self._starts), seed, epoch, "blocks"), kind="stable")
        sizes = self._sizes[order]
        return order, sizes.cumsum() - sizes

    def _delay(self, seed: int, epoch: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples of one window of the shuffled blocks, and when each comes.

        In units of 2^-32 samples since the window's begin: below one window, it comes in the cell
        of the same number, else in the next one.
        """
        first = chunk * self.window
        places = np.arange(first, max(first, min(first + self.window, self.size)))
        order, begins = self._blocks(seed, epoch)
        block = np.searchsorted(begins, places, "right") - 1
        samples = self._starts[order[block]] + places - begins[block]
        words = _words(self.window, seed, epoch, "delay", chunk)[: len(places)]
        own = (places - first).astype(np.uint64) << _HALF
        return samples, own + (words >> _HALF) * np.uint64(self.window)

    def _sorted(self, seed: int, epoch: int, cell: int) -> np.ndarray:
        """The samples that come in one window of time, in order."""
        end = np.uint64(self.window) << _HALF
        samples, times = self._delayed(seed, epoch, cell)
        now = times < end
        samples, times = samples[now], times[now]
        if cell:
            before, late = self._delayed(seed, epoch, cell - 1)
            samples = np.concatenate([before[late >= end], samples])
            times = np.concatenate([late[late >= end] - end, times])
        return samples[np.argsort(times, kind="stable")]

    def _before(self, seed: int, epoch: int, cell: int) -> int:
        """How many samples come in the cells before this one."""
        if cell == 0:
            return 0
        _, times = self._delayed(seed, epoch, cell - 1)
        early = int((times < np.uint64(self.window) << _HALF).sum())
        return min((cell - 1) * self.window, self.size) + early


def _words(count: int, *key: int | str) -> np.ndarray:
    """Uniform uint64 (count,); numpy guarantees Philox's raw words, unlike its permutations."""
    return np.random.Philox(key=key64(*key)).random_raw(count)
