"""Clusters of images against a target set: which parts of the embedding space the target lives in.

DataComp's image-based filter (Gadre et al. 2023, section 5.1): the pool's image embeddings are
clustered, and what stays are the samples whose cluster is the nearest one of some target image.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import kmeans, storage
from pipeline.annotate.clip import embedding_matrix
from pipeline.errors import UserError
from pipeline.reading import BadShard
from pipeline.schemas import OK
from pipeline.select import npy
from pipeline.select.column_runs import Column
from pipeline.select.sidecar import Sidecar

MAX_TARGETS = 20_000_000
SAMPLES_PER_CLUSTER = 64
MAX_SAMPLE = 500_000
"""Embeddings that clusters are learnt from, at most; at 512 numbers each they take 0.5 GB."""


@dataclass(frozen=True)
class TargetClusters:
    """Centroids, and which of them are the nearest of a target image."""

    centroids: np.ndarray = field(repr=False)  # float32 (K, D)
    wanted: np.ndarray = field(repr=False)  # bool (K,)

    def lets_in(self, embeddings: np.ndarray) -> np.ndarray:
        """bool (N,) of embeddings (N, D)."""
        labels, _ = kmeans.nearest(embeddings, self.centroids)
        return self.wanted[labels]


@dataclass(frozen=True)
class Target:
    """A target set: embeddings (N, D), and a hash of where they are from."""

    embeddings: np.ndarray = field(repr=False)
    identity: str


def load(spec: str, column: Column) -> Target:
    """The target's embeddings: of a data folder with the same run of columns, or an .npy (N, D).

    Raises UserError where there are none.
    """
    url = storage.absolute(spec)
    return _of_file(url) if url.endswith(".npy") else _of_folder(url, column)


def _of_file(url: str) -> Target:
    try:
        embeddings = npy.open_array(url)
    except (OSError, ValueError) as e:
        raise _unusable(url, " ".join(storage.scrub(str(e), url).split())) from e
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or not len(embeddings):
        raise _unusable(url, f"it holds {embeddings.dtype} {embeddings.shape}")
    _require_few(url, len(embeddings))
    embeddings = np.asarray(embeddings)
    finite = np.isfinite(embeddings).all(axis=1)  # images without one are rows of nan
    if not finite.any():
        raise _unusable(url, "none of its rows is finite")
    digest = hashlib.sha256(np.ascontiguousarray(embeddings)).hexdigest()
    return Target(embeddings[finite], digest)


def _of_folder(url: str, column: Column) -> Target:
    folder = storage.join(url, column.run)
    digest, found = hashlib.sha256(), []
    for file in storage.list_files(folder, ".parquet"):
        try:
            sidecar = Sidecar(file)
            names = [column.name, "status"]
            digest.update(sidecar.digest(names).encode())
            found.append(known_embeddings(sidecar.read(names), column.name)[0])
        except BadShard as e:
            raise UserError(f"TARGET={url}: {e}", "annotate the target again") from e
        _require_few(url, sum(map(len, found)))
    found = [embeddings for embeddings in found if len(embeddings)]
    if not found:
        raise UserError(
            f"TARGET={url} has no embeddings in {column.run}",
            "annotate the target with the same model, or give an .npy of embeddings",
        )
    return Target(np.concatenate(found), digest.hexdigest())


def known_embeddings(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(float16 (M, D), int64 (M,)): the embeddings that a table has, and in which rows."""
    column = table.column(name)
    present = pc.is_valid(column)
    if "status" in table.column_names:
        present = pc.and_(present, pc.equal(table.column("status"), OK))
    rows = np.flatnonzero(present.to_numpy())
    return embedding_matrix(column.take(pa.array(rows))), rows


def clusters_of(target: Target, sample: np.ndarray, clusters: int) -> TargetClusters:
    """Clusters learnt from a sample of the pool, (M, D), and which of them hold a target image."""
    width = target.embeddings.shape[1]
    if len(sample) and sample.shape[1] != width:
        raise UserError(
            f"TARGET: its embeddings have {width} numbers, those of the samples {sample.shape[1]}",
            "embed both with the same model",
        )
    if not len(sample):
        return TargetClusters(np.zeros((1, width), np.float32), np.zeros(1, bool))
    centroids = kmeans.fit(kmeans.normalised(sample), clusters)
    wanted = np.zeros(len(centroids), bool)
    wanted[kmeans.nearest(target.embeddings, centroids)[0]] = True
    return TargetClusters(centroids, wanted)


class Sample:
    """The embeddings of the samples with the smallest uids: uids are hashes, so it is a fair draw."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._uids: list[np.ndarray] = []
        self._embeddings: list[np.ndarray] = []
        self._held = 0

    def add(self, uids: Iterable[str], embeddings: np.ndarray) -> None:
        """Samples of one shard."""
        self._uids.append(np.asarray(uids, dtype="U32"))
        self._embeddings.append(embeddings)
        self._held += len(embeddings)
        if self._held > 2 * self._size:
            self._shrink()

    def embeddings(self) -> np.ndarray:
        """(M, D) in the order of their uids, so that the order of adding makes no difference."""
        self._shrink()
        return self._embeddings[0] if self._embeddings else np.zeros((0, 0), np.float16)

    def _shrink(self) -> None:
        kept = [(u, e) for u, e in zip(self._uids, self._embeddings, strict=True) if len(u)]
        if not kept:
            self._uids, self._embeddings = [], []
            return
        uids = np.concatenate([u for u, _ in kept])
        first = np.argsort(uids, kind="stable")[: self._size]
        self._uids = [uids[first]]
        self._embeddings = [np.concatenate([e for _, e in kept])[first]]
        self._held = len(first)


def sample_size(clusters: int) -> int:
    """How many embeddings so many clusters are learnt from."""
    return min(MAX_SAMPLE, max(SAMPLES_PER_CLUSTER * clusters, 10_000))


def _require_few(url: str, count: int) -> None:
    if count > MAX_TARGETS:
        raise UserError(f"TARGET={url} has {count} embeddings", f"give at most {MAX_TARGETS}")


def _unusable(url: str, why: str) -> UserError:
    return UserError(
        f"TARGET={storage.public(url)} holds no embeddings: {why}",
        "give a data folder, or an .npy of floats of shape (images, width)",
    )
