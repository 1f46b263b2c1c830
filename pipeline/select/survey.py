"""A selection's view over all shards at once: where the top ends, which clusters are wanted, the funnel."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.manifest import Shard
from pipeline.prefetch import prefetch
from pipeline.reading import BadShard
from pipeline.runs import canonical
from pipeline.select.keeping import KEPT, counts_of
from pipeline.select.rows import ShardRows, ShardSources
from pipeline.select.rules import Rules
from pipeline.select.target import Sample, Target, clusters_of, sample_size
from pipeline.select.top import Ranking
from pipeline.select.work import Judge, Pool, embeddings_of

_THREADS = 2
_AHEAD = 4  # shards


class Survey:
    """Goes over all shards of a selection. Shards that cannot be used are left out here, and fail
    where their own part of the keep-list is made."""

    def __init__(
        self,
        out: str,
        shards: Sequence[Shard],
        rules: Rules,
        taken_down: frozenset[str] = frozenset(),
        target: Target | None = None,
        clusters: int = 0,
    ) -> None:
        self._out, self._shards, self._rules = out, shards, rules
        self._taken_down, self._target, self._clusters = taken_down, target, clusters

    def identity(self) -> str:
        """A hash of everything that the pool depends on; "" where it depends on nothing."""
        if not self._rules.needs_pool:
            return ""
        digest = hashlib.sha256()
        for shard in sorted(self._shards, key=lambda shard: shard.name):
            digest.update(canonical([shard.name, self._inputs(shard)]).encode())
        digest.update((self._target.identity if self._target else "").encode())
        return digest.hexdigest()

    def pool(self) -> Pool:
        """What must be known of all samples before any can be judged."""
        pool = Pool(self.identity())
        if self._target is not None:
            sample = Sample(sample_size(self._clusters))
            for rows, codes, _ in self._judged(pool):
                found, embeddings = embeddings_of(self._rules, rows, codes == KEPT)
                sample.add(rows.uids.take(found).to_pylist(), embeddings)
            clusters = clusters_of(self._target, sample.embeddings(), self._clusters)
            pool = replace(pool, target=clusters)
        if self._rules.top is not None:
            with Ranking() as ranking:
                for rows, codes, scores in self._judged(pool):
                    still = np.flatnonzero(codes == KEPT)
                    ranking.add(scores[still], rows.uids.take(still))
                pool = replace(pool, cut=ranking.cut(self._rules.top))
        return pool

    def counts(self, pool: Pool) -> dict[str, Counter[str]]:
        """Of all samples: "status" and "reason" -> how often, as the records of a keep-list count."""
        totals: dict[str, Counter[str]] = {"status": Counter(), "reason": Counter()}
        for _, codes, _ in self._judged(pool):
            counted = counts_of(codes, self._rules.reasons)
            for name, total in totals.items():
                total.update(counted[name])
        return totals

    def _inputs(self, shard: Shard) -> dict:
        try:
            sources = ShardSources(self._out, shard, self._rules.needed)
            return sources.inputs(self._taken_down)
        except (OSError, BadShard):
            return {}

    def _judged(self, pool: Pool) -> Iterator[tuple[ShardRows, np.ndarray, np.ndarray]]:
        """(rows, codes, scores) of every shard that can be used, in order."""
        own = threading.local()

        def judged(shard: Shard) -> tuple[ShardRows, np.ndarray, np.ndarray] | None:
            if not hasattr(own, "judge"):
                own.judge = Judge(self._rules, pool)
            try:
                rows = ShardSources(self._out, shard, self._rules.needed).rows(self._taken_down)
            except (OSError, BadShard):
                return None
            return rows, *own.judge(rows)

        found = prefetch(self._shards, judged, threads=_THREADS, depth=_AHEAD, size=lambda s: 0)
        yield from (one for one in found if one is not None)
