"""Aspect buckets: images of like shape share a batch, so that nothing is distorted and little is cut off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Size = tuple[int, int]
"""Width and height in pixels."""


def aspect_buckets(size: int, multiple: int = 64, longest: float = 2.0) -> list[Size]:
    """Sizes of at most `size` x `size` pixels whose sides are multiples, from upright to wide.

    Each is as large as it can be. longest: the ratio of the sides that is not exceeded. For 1024 and
    a ratio of 4 these are SDXL's (Podell et al. 2023, 2307.01952, appendix I), less the few there
    that are no wider and lower than another.
    """
    found = set()
    for side in range(multiple, math.floor(size * math.sqrt(longest)) + 1, multiple):
        other = size * size // side // multiple * multiple
        if other and max(side, other) <= longest * min(side, other):
            found |= {(side, other), (other, side)}
    return sorted(found, key=lambda pair: (pair[0] / pair[1], pair))


@dataclass(frozen=True)
class Filled:
    """What one bucket is to an epoch. repeats: samples that come again, to fill its last batch."""

    size: Size
    samples: int
    batches: int
    repeats: int


@dataclass(frozen=True)
class Schedule:
    """An epoch's batches. indices: samples by bucket, in the order of the epoch; begins: per batch."""

    indices: np.ndarray
    begins: np.ndarray


class Buckets:
    """Which bucket each sample belongs to: the one of the nearest ratio of sides.

    sizes: of the buckets. widths, heights: of all samples, in pixels.
    """

    def __init__(self, sizes: Sequence[Size], widths: np.ndarray, heights: np.ndarray) -> None:
        self.sizes = list(sizes)
        ratios = np.log([width / height for width, height in self.sizes])
        order = np.argsort(ratios, kind="stable")
        middles = (ratios[order][1:] + ratios[order][:-1]) / 2
        nearest = np.searchsorted(middles, np.log(widths / heights))
        self.of = order[nearest].astype(np.int16)
        """The bucket of each sample: int16 (N,)."""
        self._counts = np.bincount(self.of, minlength=len(self.sizes))
        self._members = np.argsort(self.of, kind="stable")

    def members(self, bucket: int) -> np.ndarray:
        """The samples of a bucket, in ascending order."""
        end = self._counts[: bucket + 1].sum()
        return self._members[end - self._counts[bucket] : end]

    def batches(self, batch_size: int) -> int:
        """Steps of an epoch."""
        return int(np.sum(-(-self._counts // batch_size)))

    def filled(self, batch_size: int) -> list[Filled]:
        """How the samples share out, bucket by bucket."""
        found = []
        for size, samples in zip(self.sizes, self._counts.tolist(), strict=True):
            batches = -(-samples // batch_size)
            found.append(Filled(size, samples, batches, batches * batch_size - samples))
        return found

    def schedule(self, order: np.ndarray, batch_size: int) -> Schedule:
        """Cuts an epoch into batches of one bucket each.

        order: all samples. A batch comes where its last sample does; those that are never full
        come at the end.
        """
        bucket = self.of[order]
        by_bucket = np.argsort(bucket, kind="stable")
        per_bucket = -(-self._counts // batch_size)
        ends = self._counts.cumsum()
        number = np.arange(per_bucket.sum()) - np.repeat(
            per_bucket.cumsum() - per_bucket, per_bucket
        )
        begins = np.repeat(ends - self._counts, per_bucket) + number * batch_size
        full = begins + batch_size <= np.repeat(ends, per_bucket)
        last = np.where(full, begins + batch_size - 1, 0)
        when = np.where(full, by_bucket[last], len(order) + np.arange(len(begins)))
        return Schedule(order[by_bucket], begins[np.argsort(when)])

    def batch(self, schedule: Schedule, number: int, batch_size: int) -> np.ndarray:
        """The samples of one batch; an incomplete one begins its bucket anew."""
        begin = int(schedule.begins[number])
        bucket = int(self.of[schedule.indices[begin]])
        first = int(self._counts[:bucket].sum())
        places = first + (begin - first + np.arange(batch_size)) % int(self._counts[bucket])
        return schedule.indices[places]
