"""BLEU-1 to BLEU-4 of a corpus and of each caption, as coco-caption computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captioner.metrics.ngrams import (
    MAX_N,
    Counted,
    Words,
    count,
    flattened,
    groups,
    keys_of,
    lookup,
)

# coco-caption's guards against division by zero; they are visible in captions without a match.
_TINY, _SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU is made of, one row per caption."""

    correct: np.ndarray  # (B, 4) int64: n-grams that a reference has at least as often
    guessed: np.ndarray  # (B, 4) int64: n-grams
    length: np.ndarray  # (B,) int64: words
    closest: np.ndarray  # (B,) int64: words of the reference of the closest length

    def total(self) -> "BleuCounts":
        """The counts of the corpus, as one row."""
        parts = (self.correct, self.guessed, self.length, self.closest)
        return BleuCounts(*(part.sum(axis=0, keepdims=True) for part in parts))

    def __add__(self, other: "BleuCounts") -> "BleuCounts":
        """Row by row: two corpora as one."""
        return BleuCounts(
            self.correct + other.correct,
            self.guessed + other.guessed,
            self.length + other.length,
            self.closest + other.closest,
        )

    def at(self, rows: np.ndarray) -> "BleuCounts":
        """Some of the rows, by index or mask."""
        parts = (self.correct, self.guessed, self.length, self.closest)
        return BleuCounts(*(part[rows] for part in parts))

    def scores(self) -> np.ndarray:
        """BLEU-1 to BLEU-4 of each row: (B, 4) float64 in 0 to 1."""
        precision = (self.correct + _TINY) / (self.guessed + _SMALL)
        scores = np.exp(np.cumsum(np.log(precision), axis=1) / np.arange(1, MAX_N + 1))
        ratio = (self.length + _TINY) / (self.closest + _SMALL)
        penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
        return scores * penalty[:, None]


def corpus_bleu(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002, section 2.3).

    n-grams are clipped at the most of any reference; the brevity penalty takes, for each caption,
    the reference of the closest length, the shorter of two. Every candidate needs a reference.
    """
    return tuple(bleu_counts(candidates, references).total().scores()[0])


def bleu_counts(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> BleuCounts:
    """The counts of each caption: `scores()` are its own BLEU, those of `total()` the corpus's."""
    if not candidates or not all(references):
        raise ValueError("BLEU needs captions, and a reference of each")
    flat, images = flattened(references)
    return match(count(candidates), count(flat), images)


def match(candidates: Counted, references: Counted, images: np.ndarray) -> BleuCounts:
    """The same of what is counted already. images: (R,) which candidate a reference belongs to.

    In the row of a candidate without references nothing is correct, and `closest` is 0.
    """
    lengths = candidates.lengths
    correct = np.zeros((len(lengths), MAX_N), dtype=np.int64)
    for n, (said, shown) in enumerate(zip(candidates.grams, references.grams, strict=True)):
        keys = keys_of(images[shown.captions], shown.codes)
        order, starts = groups(keys)
        most = np.maximum.reduceat(shown.counts[order], starts) if len(order) else shown.counts
        places, found = lookup(said.keys, keys[order[starts]])
        clipped = np.minimum(said.counts[found], most[places[found]])
        correct[:, n] = np.bincount(said.captions[found], weights=clipped, minlength=len(lengths))
    closest = np.zeros_like(lengths)
    away = np.abs(references.lengths - lengths[images])
    by_closeness = np.lexsort((-references.lengths, -away, images))
    closest[images[by_closeness]] = references.lengths[by_closeness]  # the last of each stays
    return BleuCounts(
        correct=correct,
        guessed=np.maximum(lengths[:, None] - np.arange(MAX_N), 0),
        length=lengths,
        closest=closest,
    )
