"""CIDEr and CIDEr-D: agreement in n-grams, where those that many images share count little."""

from collections.abc import Sequence

import numpy as np

from captioner.metrics.ngrams import (
    MAX_N,
    Counted,
    Grams,
    Words,
    count,
    flattened,
    groups,
    keys_of,
    lookup,
)

SIGMA = 6.0
_BUFFER = 1 << 22  # codes that may wait to be merged, however few there are yet


class DocumentFrequencies:
    """In how many images of a corpus the references say an n-gram.

    Computed once, they score any captions of the same images: a captioner's, a student's, a constant.
    They take 12 bytes for every different n-gram, twice that while references are added.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._merged = [(_NO_CODES, _NO_COUNTS) for _ in range(MAX_N)]
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(MAX_N)]
        self._num_waiting = 0

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> "DocumentFrequencies":
        """Those of a corpus at hand: the references of each image."""
        made = cls()
        made.add(references)
        return made

    def add(self, references: Sequence[Sequence[Words]]) -> None:
        """Counts the references of more images; one without any counts as an image, too."""
        flat, images = flattened(references)
        self.num_images += len(references)
        for n, grams in enumerate(count(flat).grams):
            order, starts = groups(keys_of(images[grams.captions], grams.codes))
            self._waiting[n].append(grams.codes[order[starts]])
            self._num_waiting += len(starts)
        if self._num_waiting > max(_BUFFER, sum(len(codes) for codes, _ in self._merged)):
            self._merge()

    def weights(self, n: int, codes: np.ndarray) -> np.ndarray:
        """log(images / images that say it) of n-grams of n words: float64 of the codes' shape."""
        self._merge()
        kept, counts = self._merged[n - 1]
        places, found = lookup(codes, kept)
        often = np.where(found, counts[places] if len(counts) else 1, 1)
        return np.log(max(1, self.num_images)) - np.log(often)

    def _merge(self) -> None:
        """Sorts what waits into what is there."""
        if not self._num_waiting:
            return
        for n, (codes, counts) in enumerate(self._merged):
            new = np.concatenate([codes, *self._waiting[n]])
            times = np.ones(len(new), dtype=np.int32)
            times[: len(codes)] = counts
            order, starts = groups(new)
            times = np.add.reduceat(times[order], starts) if len(new) else times
            self._merged[n] = new[order[starts]], times
            self._waiting[n] = []
        self._num_waiting = 0


_NO_CODES = np.zeros(0, dtype=np.uint64)
_NO_COUNTS = np.zeros(0, dtype=np.int32)


def cider(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: DocumentFrequencies,
    *,
    plain: bool = False,
) -> np.ndarray:
    """CIDEr-D of each caption, (B,) float64 in 0 to 10; the corpus's is their mean.

    The mean cosine of tf-idf vectors of one to four words over references (Vedantam et al. 2014,
    1411.5726, equations 2 and 3), each weight clipped at the reference's and the cosine weakened by
    the difference of lengths, a Gaussian of SIGMA words (section 6), times ten. coco-caption calls
    this CIDEr. plain: without clipping and lengths, the CIDEr of the paper (which also stems words).
    In a corpus of one image every weight is log(1) = 0 and so is every score. A caption without
    references is nan.
    """
    flat, images = flattened(references)
    return score(count(candidates), count(flat), images, frequencies, plain=plain)


def score(
    candidates: Counted,
    references: Counted,
    images: np.ndarray,
    frequencies: DocumentFrequencies,
    *,
    plain: bool = False,
) -> np.ndarray:
    """The same of what is counted already. images: (R,) which candidate a reference belongs to."""
    num = len(candidates.lengths)
    cosines = np.zeros(len(images))
    for n, (said, shown) in enumerate(zip(candidates.grams, references.grams, strict=True), 1):
        said_weights, said_norms = _weigh(said, num, frequencies, n)
        shown_weights, shown_norms = _weigh(shown, len(images), frequencies, n)
        places, both = lookup(keys_of(images[shown.captions], shown.codes), said.keys)
        ours, theirs = said_weights[places[both]], shown_weights[both]
        products = (ours if plain else np.minimum(ours, theirs)) * theirs
        dots = np.bincount(shown.captions[both], weights=products, minlength=len(images))
        norms = said_norms[images] * shown_norms
        cosines += np.divide(dots, norms, out=np.zeros(len(images)), where=norms > 0)
    if not plain:
        # coco-caption takes the number of pairs of words for the length.
        difference = _num_pairs(candidates.lengths)[images] - _num_pairs(references.lengths)
        cosines *= np.exp(-(difference**2) / (2 * SIGMA**2))
    totals = np.bincount(images, weights=cosines, minlength=num)
    with np.errstate(invalid="ignore"):
        return 10 * totals / MAX_N / np.bincount(images, minlength=num)


def _num_pairs(lengths: np.ndarray) -> np.ndarray:
    return np.maximum(lengths - 1, 0)


def _weigh(
    grams: Grams, num: int, frequencies: DocumentFrequencies, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """tf-idf of each n-gram, (G,), and the norm of each caption's vector, (num,)."""
    weights = grams.counts * frequencies.weights(n, grams.codes)
    return weights, np.sqrt(np.bincount(grams.captions, weights=weights**2, minlength=num))
