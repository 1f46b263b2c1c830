"""A selection over shards: each shard's sidecars become its part of a keep-list."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline import commit
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from pipeline.runs import Run
from pipeline.select.keeping import KEPT, KeepWork
from pipeline.select.rows import LOST_REASONS, ShardRows, ShardSources, name_of
from pipeline.select.rules import Evaluator, Rules
from pipeline.select.target import TargetClusters, known_embeddings
from pipeline.select.top import Cut


@dataclass(frozen=True)
class Pool:
    """What is known of all samples together, where a sample's fate depends on others.

    identity: a hash of everything that it was computed from, "" where nothing of it is needed.
    Without `target` or `cut`, nobody is judged by them.
    """

    identity: str = ""
    target: TargetClusters | None = field(default=None, repr=False)
    cut: Cut | None = None

    @property
    def threshold(self) -> float | None:
        """The lowest score of the top, where there is one."""
        return self.cut.threshold if self.cut else None


class SelectWork(KeepWork):
    """Applies rules to the samples of a shard. A list is done while its columns and pool are the same."""

    def __init__(
        self,
        rules: Rules,
        run: Run,
        pool: Pool | None = None,
        taken_down: frozenset[str] = frozenset(),
        following: Sequence[Shard] = (),
    ) -> None:
        super().__init__(run, following)
        self.rules = rules
        self.pool = pool or Pool()
        self.taken_down = taken_down

    def setup(self) -> None:
        super().setup()
        self._own = threading.local()  # a judge of its own for each thread

    def inputs(self, shard: Shard) -> dict:
        """The shard, the columns that are read of it, and the pool."""
        return self._inputs(ShardSources(self.run.out, shard, self.rules.needed))

    def is_still(self, shard: Shard, record: commit.Record) -> bool:
        try:
            return record.inputs == self.inputs(shard)
        except (OSError, BadShard):
            return False

    def made(self, shard: Shard, lost: frozenset[int] = frozenset()) -> commit.Record:
        """Judges and commits one shard; BadShard where a sidecar is missing or out of date."""
        sources = ShardSources(self.run.out, shard, self.rules.needed)
        rows = sources.rows(self.taken_down)
        if not hasattr(self._own, "judge"):
            self._own.judge = Judge(self.rules, self.pool)
        codes, _ = self._own.judge(rows)
        codes[[index for index in lost if index < len(codes)]] = LOST_REASONS.index("killed_worker")
        inputs = self._inputs(sources)
        return self.write(shard, rows.uids, rows.keys, codes, self.rules.reasons, inputs)

    def _inputs(self, sources: ShardSources) -> dict:
        pool = {"pool": self.pool.identity} if self.pool.identity else {}
        return sources.inputs(self.taken_down) | pool


class Judge:
    """The rules and the pool, ready to judge one shard after another. Not for two threads at once."""

    def __init__(self, rules: Rules, pool: Pool) -> None:
        self._rules = rules
        self._pool = pool
        self._evaluate = Evaluator(rules)

    def __call__(self, rows: ShardRows) -> tuple[np.ndarray, np.ndarray]:
        """(codes, scores) as Evaluator gives them, after the target and the top, too."""
        codes, scores = self._evaluate(rows)
        if self._pool.target is not None:
            found, embeddings = embeddings_of(self._rules, rows, codes == KEPT)
            missing = self._rules.cluster_code
            judged = np.where(codes == KEPT, np.int16(missing + 1), codes)
            fine = self._pool.target.lets_in(embeddings) if len(found) else np.zeros(0, bool)
            judged[found] = np.where(fine, np.int16(KEPT), np.int16(missing))
            codes = judged
        if self._pool.cut is not None:
            below = self._rules.top_code
            still = np.flatnonzero(codes == KEPT)
            uids = rows.uids.take(pa.array(still)).to_numpy(zero_copy_only=False).astype("U32")
            inside = self._pool.cut.lets_in(scores[still], uids)
            unknown = np.isnan(scores[still])
            codes[still] = np.where(inside, KEPT, np.where(unknown, below + 1, below))
        return codes, scores


def embeddings_of(
    rules: Rules, rows: ShardRows, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, embeddings): of a shard's chosen samples, those that have one, int64 (M,) and (M, D)."""
    column = rows.columns.column(name_of(rules.embedding))
    among = np.flatnonzero(chosen)
    table = pa.table({"embedding": column.take(pa.array(among))})
    embeddings, found = known_embeddings(table, "embedding")
    return among[found], embeddings
