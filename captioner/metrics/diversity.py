"""How varied captions are: vocabulary, n-grams, and how much they repeat each other and themselves."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from captioner.metrics.bleu import BleuCounts
from captioner.metrics.ngrams import MAX_N, Grams, Words, count

SAMPLE = 1000
"""Captions that self-BLEU and distinct-n are measured on: both depend on how many there are."""


class Sample:
    """A sample of captions by their uids: the smallest ones, which are hashes; order plays no part."""

    def __init__(self, size: int = SAMPLE) -> None:
        self._size = size
        self._kept: list[tuple[str, Words]] = []

    def add(self, uid: str, words: Words) -> None:
        """Offers a caption; memory holds twice the sample at most."""
        self._kept.append((uid, words))
        if len(self._kept) == 2 * self._size:
            self._cut()

    def captions(self) -> list[Words]:
        """The sample, or every caption where there are fewer."""
        self._cut()
        return [words for _, words in self._kept]

    def _cut(self) -> None:
        self._kept = sorted(self._kept)[: self._size]


class Texts:
    """Which captions several images share, by a 64-bit hash of each text."""

    def __init__(self) -> None:
        self._hashes = bytearray()

    def add(self, text: str) -> None:
        self._hashes += hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()

    def shared(self) -> float:
        """Captions that another image has, too, as a share of all; 0 where there are none."""
        hashes = np.frombuffer(bytes(self._hashes), dtype=np.uint64)
        counts = np.unique(hashes, return_counts=True)[1]
        return float(counts[counts > 1].sum() / max(1, len(hashes)))


def type_token_ratio(words: Counter[str], size: int | None = None) -> float:
    """Different words as a share of all; nan where there are none, or fewer than `size`.

    It falls as texts grow. size: what to expect of so many words drawn from these, so that corpora
    of different sizes compare (Hurlbert 1971, "The nonconcept of species diversity", equation 14).
    """
    total = words.total()
    if not total or total < (size or 0):
        return math.nan
    if size is None:
        return len(words) / total
    expected = 0.0
    for times, num in Counter(words.values()).items():  # num words that occur so many times each
        expected += num * (
            1 - math.exp(_log_choose(total - times, size) - _log_choose(total, size))
        )
    return expected / size


def _log_choose(n: int, k: int) -> float:
    """log of n over k; minus infinity where that is 0."""
    if k > n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def distinct(captions: Sequence[Words], n: int) -> float:
    """Different n-grams as a share of all (Li et al. 2016, 1510.03055, section 5); nan for none."""
    grams = count(captions).grams[n - 1]
    return len(np.unique(grams.codes)) / total if (total := grams.counts.sum()) else math.nan


def self_bleu(captions: Sequence[Words]) -> float:
    """Mean BLEU-4 of each caption with all others as references (Zhu et al. 2018, 1802.01886).

    Captions of fewer than four words have no 4-grams: for them it is BLEU-1 to BLEU-3. 1 where every
    caption has a twin; nan for fewer than two captions. Linear in the words: the most that any other
    caption has of an n-gram is the most of all, or, for the caption that has that, the second most.
    """
    if len(captions) < 2:
        return math.nan
    counted = count(captions)
    num, lengths = len(captions), counted.lengths
    correct = np.zeros((num, MAX_N), dtype=np.int64)
    for n, grams in enumerate(counted.grams):
        clipped = np.minimum(grams.counts, _most_elsewhere(grams))
        correct[:, n] = np.bincount(grams.captions, weights=clipped, minlength=num)
    guessed = np.maximum(lengths[:, None] - np.arange(MAX_N), 0)
    scores = BleuCounts(correct, guessed, lengths, _closest_other(lengths)).scores()
    return float(scores[np.arange(num), np.clip(lengths, 1, MAX_N) - 1].mean())


def _most_elsewhere(grams: Grams) -> np.ndarray:
    """For each n-gram of a caption, how often it stands in the other caption that has most of it."""
    order = np.lexsort((-grams.counts, grams.codes))
    codes, counts = grams.codes[order], grams.counts[order]
    is_first = np.r_[True, codes[1:] != codes[:-1]][: len(codes)]
    place = np.cumsum(is_first) - 1  # which n-gram it is
    is_second = np.r_[False, is_first[:-1]][: len(codes)] & ~is_first
    second = np.zeros(place[-1] + 1 if len(place) else 0, dtype=np.int64)
    second[place[is_second]] = counts[is_second]
    elsewhere = np.empty(len(codes), dtype=np.int64)
    elsewhere[order] = np.where(is_first, second[place], counts[is_first][place])
    return elsewhere


def _closest_other(lengths: np.ndarray) -> np.ndarray:
    """For each caption the length, among the others', that is closest to its own; the shorter of two."""
    order = np.argsort(lengths)
    ordered = lengths[order]
    below = np.r_[-np.inf, ordered[:-1]]
    above = np.r_[ordered[1:], np.inf]
    closest = np.empty(len(lengths))
    closest[order] = np.where(ordered - below <= above - ordered, below, above)
    return closest.astype(np.int64)
