"""Which samples are in an evaluation set: by their bytes, by their looks, by what they mean."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.annotate.hash_index import HashIndex
from pipeline.dedup.embeddings import MAX_WIDTH, UNIT, products, threshold, whole
from pipeline.dedup.evaluation import Item

_AT_ONCE = 1 << 24  # similarities in memory


@dataclass(frozen=True)
class Match:
    """What a set of samples was matched to, arrays of length m: the sample's place, and the item's."""

    place: np.ndarray  # int64
    item: np.ndarray  # int64
    value: np.ndarray  # distance in bits, or similarity


class Contamination:
    """The items of all evaluation sets, by name. Of several that match, the nearest counts, of
    equally near ones the first by name."""

    def __init__(self, items: Iterable[Item], radius: int) -> None:
        kept = sorted(items, key=lambda item: item.name)
        self.names = [item.name for item in kept]
        self._sha256 = _first((item.sha256, i) for i, item in enumerate(kept) if item.sha256)
        with_hash = [(item.phash, i) for i, item in enumerate(kept) if item.phash is not None]
        self._hashed = np.array([i for _, i in with_hash], np.int64)
        words = np.array([[phash] for phash, _ in with_hash], np.uint64).reshape(-1, 1)
        self._index = HashIndex(words, radius) if with_hash else None
        embedded = [i for i, item in enumerate(kept) if item.embedding is not None]
        by_width: dict[int, list[int]] = {}
        for i in embedded:
            by_width.setdefault(len(kept[i].embedding), []).append(i)
        self._embedded = len(embedded)
        self._vectors = {  # width -> items, and their vectors as whole numbers
            width: (
                np.array(own),
                whole(np.stack([kept[i].embedding for i in own])).astype(np.float32),
            )
            for width, own in by_width.items()
            if width <= MAX_WIDTH  # no sample has more
        }

    @property
    def sizes(self) -> dict[str, int]:
        """How many items can be compared in which way."""
        return {
            "bytes": len(self._sha256),
            "looks": len(self._hashed),
            "meaning": self._embedded,
        }

    def of_bytes(self, sha256: pa.ChunkedArray) -> Match:
        """Samples of the same bytes."""
        found = [
            (place, self._sha256[digest])
            for place, digest in enumerate(sha256.to_pylist())
            if digest in self._sha256
        ]
        place, item = np.array(found, np.int64).reshape(-1, 2).T
        return Match(place, item, np.zeros(len(place), np.int64))

    def of_looks(self, phash: np.ndarray) -> Match:
        """Samples of a hash within the radius: uint64 (n,)."""
        if self._index is None:
            empty = np.empty(0, np.int64)
            return Match(empty, empty, empty)
        distinct, inverse = np.unique(phash, return_inverse=True)
        nearest, distance = (part[inverse] for part in self._index.nearest(distinct[:, None]))
        place = np.flatnonzero(nearest >= 0)
        return Match(place, self._hashed[nearest[place]], distance[place])

    def of_meaning(self, vectors: np.ndarray, similarity_above: float) -> Match:
        """Samples of a whole-number vector (n, d) above this cosine with an item's."""
        width = vectors.shape[1]
        items, against = self._vectors.get(width, (np.empty(0, np.int64), vectors[:0]))
        if not len(items) or not len(vectors):
            empty = np.empty(0, np.int64)
            return Match(empty, empty, empty.astype(np.float32))
        best = np.empty(len(vectors), np.int64)
        value = np.empty(len(vectors), np.float32)
        rows = max(1, _AT_ONCE // len(items))
        for start in range(0, len(vectors), rows):
            near = products(vectors[start : start + rows], against)
            best[start : start + rows] = near.argmax(axis=1)
            value[start : start + rows] = near.max(axis=1)
        place = np.flatnonzero(value > threshold(similarity_above))
        return Match(place, items[best[place]], value[place] / np.float32(UNIT))


def _first(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return found
