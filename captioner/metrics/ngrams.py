"""Captions as n-grams: runs of one to four words as 64-bit codes, counted caption by caption."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.draws import key64

MAX_N = 4
Words = Sequence[str]

# A code is a polynomial in the words' own codes. Two of forty million n-grams share one with a
# probability of 1 in 20,000, and then a document frequency is off by one.
_BASE = np.uint64(key64("n-gram") | 1)
_PLACE = np.uint64(key64("caption") | 1)


@dataclass(frozen=True)
class Grams:
    """The different n-grams of one length in each of some captions, and how often each stands there.

    All of shape (G,), sorted by `keys`, which name a pair of caption and n-gram.
    """

    keys: np.ndarray  # uint64
    captions: np.ndarray  # int64, index of the caption
    codes: np.ndarray  # uint64, the same for the same words in every process
    counts: np.ndarray  # int64


@dataclass(frozen=True)
class Counted:
    """Captions as counted n-grams of every length."""

    lengths: np.ndarray  # (B,) int64, in words
    grams: tuple[Grams, ...]  # of 1, 2, ... MAX_N words


def count(captions: Sequence[Words]) -> Counted:
    """Counts the n-grams of each caption."""
    lengths = np.array([len(words) for words in captions], dtype=np.int64)
    words = np.array([_code(w) for words in captions for w in words], dtype=np.uint64)
    owners = np.repeat(np.arange(len(captions)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from here on
    codes, found = words, []
    for n in range(1, MAX_N + 1):
        if n > 1:
            codes = codes[: len(words) - n + 1] * _BASE + words[n - 1 :]
        whole = left[: len(codes)] >= n
        found.append(_unique(owners[: len(codes)][whole], codes[whole]))
    return Counted(lengths, tuple(found))


def flattened(references: Sequence[Sequence[Words]]) -> tuple[list[Words], np.ndarray]:
    """The references of all images in one list, and which image each belongs to: (R,) int64."""
    flat = [words for group in references for words in group]
    return flat, np.repeat(np.arange(len(references)), [len(group) for group in references])


def keys_of(captions: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """One number for each pair of a caption (or image) and an n-gram."""
    return (captions.astype(np.uint64) * _PLACE) ^ codes


def lookup(keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key stands in a sorted array, and whether it does; both of the keys' shape."""
    if not len(among):
        return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return places, among[places] == keys


def groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order that sorts keys, where in it each different key begins), as ufunc.reduceat wants it."""
    order = np.argsort(keys)
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(keys) else order
    return order, starts


def _unique(owners: np.ndarray, codes: np.ndarray) -> Grams:
    keys = keys_of(owners, codes)
    order, starts = groups(keys)
    first = order[starts]
    return Grams(keys[first], owners[first], codes[first], np.diff(np.r_[starts, len(order)]))


@lru_cache(maxsize=1 << 18)
def _code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
