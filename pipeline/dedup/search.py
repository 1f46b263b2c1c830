"""The search over all samples: first what is contaminated goes, then each kind of duplicates in turn."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import commit, kmeans
from pipeline.dedup import semantic, stars
from pipeline.dedup.contamination import Contamination, Match
from pipeline.dedup.embeddings import MAX_WIDTH, SCALE, whole
from pipeline.dedup.scratch import Scratch
from pipeline.dedup.semantic import ClusterWork
from pipeline.dedup.settings import EXACT, KINDS, PERCEPTUAL, SEMANTIC, Settings
from pipeline.dedup.sources import ShardRows, Sources
from pipeline.errors import UserError
from pipeline.hashes import hamming
from pipeline.manifest import Shard
from pipeline.prefetch import prefetch
from pipeline.runs import Run

CLUSTERS = "clusters"
_UIDS = "uids.npy"  # uint64 (rows, 2) of all samples: their digits
SEED = 0  # of the clusters
_READERS = 2


class Search:
    """One pass from sidecars to verdicts. A function of the settings and of what goes in alone.

    folder: local, for tables, vectors and clusters; whatever lies there of an earlier search that
    was killed is used where it rests on the same input, and is deleted by `close`.
    evaluation: digest of the evaluation sets. say: is told what was found, in lines.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sources,
        folder: str,
        *,
        evaluation: str,
        memory_gb: float,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings = settings
        self.sources = sources
        self.folder = Path(folder)
        self.evaluation = evaluation
        self._say = say
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_behind in self.folder.glob("tables-*"):
            shutil.rmtree(left_behind)
        self._tables = Scratch(folder, memory_gb)
        self._first: dict[str, int] = {}  # shard -> number of its first row
        self._count = 0
        self._uid = np.empty((0, 2), np.uint64)  # in a file
        self._vectors: np.ndarray | None = None  # int16 (rows, d) in a file
        self._embedded: list[np.ndarray] = []  # rows that have one

    def close(self, *, done: bool) -> None:
        """Deletes what was only for the search; until it is done, finished clusters stay."""
        self._tables.close()
        self._uid, self._vectors = np.empty((0, 2), np.uint64), None
        if done:
            shutil.rmtree(self.folder, ignore_errors=True)

    def of(self, shard: Shard) -> pa.Table:
        """The verdicts of one shard: see `work.Verdicts`."""
        first = self._first[shard.name]
        found = self._tables.verdicts(first, self.sources.rows[shard.name])
        keepers = {name: self._uids(found[name]) for name in (*KINDS, "keeper")}
        of = pc.coalesce(keepers["keeper"], found["item"].combine_chunks())
        return pa.table(
            {
                "row": pc.subtract(found["row"], first),
                **{f"{kind}_group": keepers[kind] for kind in KINDS},
                "duplicate_kind": found["kind"],
                "duplicate_of": of,
                "duplicate_distance": found["distance"],
                "duplicate_similarity": found["similarity"],
            }
        )

    def _uids(self, rows: pa.ChunkedArray) -> pa.Array:
        """The uids of rows as strings, null where there is none."""
        if rows.null_count == len(rows):
            return pa.nulls(len(rows), pa.string())
        given = rows.is_valid().to_numpy()
        words = np.zeros((len(rows), 2), ">u8")
        words[given] = self._uid[rows.drop_null().to_numpy()]
        digits = pa.py_buffer(words.tobytes().hex().encode())
        ends = pa.py_buffer(np.arange(0, 32 * len(rows) + 1, 32, dtype=np.int32))
        valid = pa.array(given).buffers()[1]
        return pa.Array.from_buffers(pa.string(), len(rows), [valid, ends, digits])

    def load(self, contamination: Contamination | None = None) -> None:
        """Reads the sidecars, and sets apart what is in an evaluation set."""
        semantic_too = SEMANTIC in self.settings.kinds
        usable = self.sources.usable
        total = sum(self.sources.rows[shard.name] for shard in usable)
        self._uid = np.lib.format.open_memmap(
            self.folder / _UIDS, "w+", np.uint64, (max(total, 1), 2)
        )

        def read(shard: Shard) -> ShardRows:
            return self.sources.read(shard, embeddings=semantic_too)

        ahead = prefetch(usable, read, threads=_READERS, depth=_READERS, size=lambda shard: 0)
        for shard, rows in zip(usable, ahead, strict=True):
            self._first[shard.name] = self._count
            self._uid[self._count + np.flatnonzero(rows.ok)] = rows.uid
            self._tables.add(self._count, rows)
            vectors = self._keep_vectors(rows, total) if semantic_too else None
            if contamination is not None:
                self._set_apart(rows, vectors, contamination)
            self._count += len(rows.image)

    def find(self, cluster: Callable[[ClusterWork], None]) -> None:
        """Finds every kind of duplicates. cluster: performs work on clusters, wherever it likes."""
        kinds = self.settings.kinds
        if EXACT in kinds:
            self._tables.find_exact(self.settings.order(EXACT))
        if PERCEPTUAL in kinds:
            self._find_perceptual()
        if SEMANTIC in kinds and self._vectors is not None:
            self._find_semantic(cluster)
        self._tables.conclude()

    def _set_apart(
        self, rows: ShardRows, vectors: np.ndarray | None, contamination: Contamination
    ) -> None:
        """Notes the samples of one shard that match; bytes count before looks before meaning."""
        ok = np.flatnonzero(rows.ok)
        matches = []
        if EXACT in self.settings.kinds:
            sha256 = rows.image["sha256"].filter(pa.array(rows.ok))
            matches.append((ok, contamination.of_bytes(sha256), "distance"))
        if PERCEPTUAL in self.settings.kinds:
            comparable = np.flatnonzero(rows.comparable)
            found = contamination.of_looks(rows.phash[comparable])
            matches.append((comparable, found, "distance"))
        if vectors is not None:
            found = contamination.of_meaning(vectors[ok], self.settings.similarity_above)
            matches.append((ok, found, "similarity"))
        seen = np.zeros(len(rows.ok), bool)
        for places, match, what in matches:
            self._insert_matches(places, match, what, seen, contamination.names)

    def _insert_matches(
        self, places: np.ndarray, match: Match, what: str, seen: np.ndarray, names: list[str]
    ) -> None:
        place = places[match.place]
        new = ~seen[place]
        seen[place] = True
        self._tables.insert(
            "contaminated",
            row=place[new] + self._count,
            item=pa.array([names[i] for i in match.item[new]], pa.string()),
            **{what: match.value[new]},
        )

    def _find_perceptual(self) -> None:
        rows, phash = self._tables.hashes(self.settings.order(PERCEPTUAL))
        distinct, first, inverse = np.unique(phash, return_index=True, return_inverse=True)
        best_first = np.argsort(first)
        keeper = np.empty(len(distinct), np.int64)
        keeper[best_first] = best_first[stars.of_hashes(distinct[best_first], self.settings.radius)]
        keeper = first[keeper][inverse]  # as a place in `rows`
        grouped = np.bincount(keeper, minlength=len(rows))[keeper] > 1
        self._tables.insert(
            "perceptual",
            row=rows[grouped],
            keeper=rows[keeper[grouped]],
            distance=hamming(phash[grouped, None], phash[keeper[grouped], None]),
        )

    def _keep_vectors(self, rows: ShardRows, total: int) -> np.ndarray | None:
        """Appends one shard's embeddings to the file of all, and returns them as whole numbers."""
        embedding = rows.embedding
        if embedding is None or not embedding.size:
            return None
        width = embedding.shape[1]
        if self._vectors is None:
            if width > MAX_WIDTH:
                raise UserError(
                    f"{self.sources.clip} has embeddings of {width} numbers",
                    f"at most {MAX_WIDTH} can be compared",
                )
            self._vectors = np.lib.format.open_memmap(
                self.folder / semantic.VECTORS, "w+", np.int16, (total, width)
            )
        if width != self._vectors.shape[1]:
            raise UserError(
                f"{self.sources.clip} has embeddings of {self._vectors.shape[1]} and of {width} "
                "numbers",
                "make it again with one model",
            )
        vectors = whole(embedding)
        self._vectors[self._count : self._count + len(vectors)] = vectors
        has_one = rows.ok & vectors.any(axis=1)
        self._embedded.append(self._count + np.flatnonzero(has_one))
        return vectors

    def _find_semantic(self, cluster: Callable[[ClusterWork], None]) -> None:
        embedded = np.zeros(self._count, bool)
        embedded[np.concatenate(self._embedded)] = True
        left = self._tables.left(self.settings.order(SEMANTIC))
        left = left[embedded[left]]
        if len(left) < 2:
            return
        labels, count = self._clusters(left, embedded)
        self._vectors.flush()
        by_cluster = np.argsort(labels, kind="stable")  # within one still best first
        np.save(self.folder / semantic.MEMBERS, left[by_cluster])
        sizes = np.bincount(labels, minlength=count)
        np.save(self.folder / semantic.OFFSETS, np.concatenate([[0], np.cumsum(sizes)]))
        work = ClusterWork(str(self.folder), self._cluster_run(), self.settings.similarity_above)
        cluster(work)
        for item in work.planned():
            found = commit.read_sidecar(item.url)
            columns = {name: found[name].combine_chunks() for name in found.column_names}
            self._tables.insert("semantic", **columns)

    def _clusters(self, left: np.ndarray, embedded: np.ndarray) -> tuple[np.ndarray, int]:
        """The cluster of each of these rows, and how many there are."""
        asked = self.settings.clusters or semantic.suggested_clusters(len(left))
        count = min(asked, len(left))
        if count == 1:
            return np.zeros(len(left), np.int64), 1
        wanted = semantic.SAMPLES_PER_CLUSTER * count
        drawn = self._tables.drawn(embedded, wanted)
        points = self._vectors[drawn].astype(np.float32) / np.float32(SCALE)
        centroids = whole(kmeans.fit(kmeans.normalised(points), count, seed=SEED))
        labels = [
            semantic.assign(self._vectors[left[start : start + 65536]], centroids)
            for start in range(0, len(left), 65536)
        ]
        self._say(f"  meaning   {len(left)} embeddings in {count} clusters")
        return np.concatenate(labels), count

    def _cluster_run(self) -> Run:
        """Its name says what the clusters rest on, so that those of another search are not taken."""
        config = self.settings.config | {
            "sources": self.sources.digest,
            "evaluation": self.evaluation,
        }
        run = Run(out=str(self.folder), kind=CLUSTERS, name="unnamed", config=config)
        return replace(run, name=run.config_hash[:16])
