"""Numbers that depend on nothing but their key: not on order, worker, time or library state."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def key64(*key: int | str) -> int:
    """63 bits of a hash of the key: a seed for a generator of any library."""
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class Draws:
    """A stream of numbers under a key such as (seed, step, sample, purpose).

    Philox's raw words are used, whose values numpy guarantees, unlike those of its distributions.
    """

    def __init__(self, *key: int | str) -> None:
        self._words = np.random.Philox(key=key64(*key))

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return (int(self._words.random_raw()) >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return (int(self._words.random_raw()) >> 11) / (1 << 53)

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def choice(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to the weights."""
        point = self.uniform() * sum(weights)
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1  # rounding left a crumb

    def shuffled(self, values: Sequence[T]) -> list[T]:
        out = list(values)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def bytes(self, n: int) -> np.ndarray:
        """n uniform bytes: (n,) uint8."""
        return self._words.random_raw(-(-n // 8)).astype("<u8").view(np.uint8)[:n]


def permuted(position: int, size: int, *key: int | str) -> int:
    """Where `position` of 0 .. size - 1 goes in a permutation that the key chooses; O(1), no table.

    A Feistel network over the next power of four, walked until it lands inside (Black and Rogaway
    2002, "Ciphers with Arbitrary Finite Domains", section 4).
    """
    if not 0 <= position < size:
        raise ValueError(f"position {position} is outside 0 .. {size - 1}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    seed = key64(*key)
    while True:
        left, right = position >> half, position & mask
        for turn in range(4):
            left, right = right, left ^ (_mixed(seed ^ (turn << 56) ^ right) & mask)
        position = left << half | right
        if position < size:
            return position


def _mixed(x: int) -> int:
    """splitmix64's finaliser."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
