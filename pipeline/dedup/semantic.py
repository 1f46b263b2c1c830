"""Images that mean the same: stars of similar embeddings within a cluster, after SemDeDup.

Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic deduplication"
(arXiv 2303.09540), look for pairs of a cosine above 1 - epsilon within clusters of k-means. Here a
group is a star (see `pipeline.dedup.stars`): each duplicate is that similar to the copy that stays.
A pair on two sides of a border between clusters is not found: the fewer clusters, the fewer such.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import commit
from pipeline.dedup.embeddings import UNIT, products, threshold
from pipeline.manifest import Shard
from pipeline.runs import Run

VECTORS, MEMBERS, OFFSETS = "vectors.npy", "members.npy", "offsets.npy"
"""Of a work folder: whole-number vectors (n, d) of all samples; indices of them, cluster by cluster
and best first; where each cluster begins."""

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("keeper", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
    ]
)
"""Members of groups of two or more."""

SAMPLES_PER_CLUSTER = 64
"""How many vectors per cluster the centroids are fitted to: more change little."""

_CLUSTER_SIZE = 4000
_AT_ONCE = 1 << 24  # similarities in memory


def suggested_clusters(count: int) -> int:
    """Of some thousands of vectors each; beyond 16 million, the square root of their number.

    Finding clusters and comparing within them then cost about the same.
    """
    return max(1, min(count // _CLUSTER_SIZE, round(count**0.5)))


def assign(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The cluster of each whole-number vector, int64 (n,): the most similar centroid, of equals the first."""
    rows = max(1, _AT_ONCE // len(centroids))
    parts = [
        products(vectors[start : start + rows], centroids).argmax(axis=1)
        for start in range(0, len(vectors), rows)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def stars(vectors: np.ndarray, similarity_above: float) -> tuple[np.ndarray, np.ndarray]:
    """The index of the vector that each of (n, d), best first, is a duplicate of, and their product.

    An index of its own where it stays. Products are in units of `embeddings.UNIT`.
    """
    least = threshold(similarity_above)
    keeper = np.arange(len(vectors))
    product = np.full(len(vectors), UNIT, np.float32)
    left = keeper.copy()
    values = vectors.astype(np.float32)
    while left.size:
        asked = left[: max(1, min(1024, _AT_ONCE // left.size))]
        near = products(values[: asked.size], values)
        alike = near > least
        taken = np.zeros(left.size, bool)
        for i in np.flatnonzero(alike.sum(axis=1) > 1):  # more than itself
            if not taken[i]:
                new = i + 1 + np.flatnonzero(alike[i, i + 1 :] & ~taken[i + 1 :])
                taken[new] = True
                keeper[left[new]] = left[i]
                product[left[new]] = near[i, new]
        rest = ~taken
        rest[: asked.size] = False
        left, values = left[rest], values[rest]
    return keeper, product


@dataclass
class ClusterWork:
    """Clusters as work items: each becomes one file with its groups, wherever it is worked on."""

    folder: str  # holds VECTORS, MEMBERS and OFFSETS
    run: Run
    similarity_above: float

    def planned(self) -> list[Shard]:
        """The clusters, by number."""
        offsets = np.load(Path(self.folder) / OFFSETS)
        return [
            Shard(name=f"{i:05d}", url=self._url(f"{i:05d}"), size=0, samples=int(count))
            for i, count in enumerate(np.diff(offsets))
        ]

    def setup(self) -> None:
        pass

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a cluster that is finished. The run's folder is of one input only."""
        record = commit.read_sidecar_record(shard.url)
        return record if record and record.config_hash == self.run.config_hash else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Finds the groups of one cluster and commits them."""
        offsets = np.load(Path(self.folder) / OFFSETS)
        number = int(shard.name)
        every = np.load(Path(self.folder) / MEMBERS, mmap_mode="r")
        members = np.array(every[offsets[number] : offsets[number + 1]])
        vectors = np.load(Path(self.folder) / VECTORS, mmap_mode="r")[members]
        keeper, product = stars(vectors, self.similarity_above)
        grouped = np.bincount(keeper, minlength=len(keeper))[keeper] > 1
        table = pa.table(
            [members[grouped], members[keeper[grouped]], product[grouped] / np.float32(UNIT)],
            schema=SCHEMA,
        )
        record = commit.Record(
            shard=shard.name,
            config_hash=self.run.config_hash,
            inputs={},
            environment={},
            counts={
                "samples": len(members),
                "rows": len(members),
                "status": {"ok": len(members)},
                "reason": {},
            },
        )
        commit.write_sidecar(shard.url, table, record)
        return record

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """No sample can kill a worker: they are numbers."""

    def failures(self, counts: dict) -> dict[str, int]:
        return {}

    def _url(self, name: str) -> str:
        return self.run.file(f"{name}.parquet")
