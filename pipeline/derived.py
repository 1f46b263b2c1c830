"""Work from sidecar to sidecar: rows of other runs become a run of their own; no image is read."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from pipeline import commit, storage
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from pipeline.runs import Run
from pipeline.stage import SidecarWork

_VERBS = {"captions": "caption", "columns": "annotate"}


@dataclass(frozen=True)
class Source:
    """A run whose sidecars are read, and the columns that are needed of it."""

    kind: str  # captions | columns
    run: str
    columns: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.run}"


class RowStage(Protocol):
    """As `pipeline.stage.Stage`, but of rows, which it returns with what its run is to count."""

    schema: pa.Schema

    def setup(self) -> None: ...

    @property
    def environment(self) -> dict: ...

    def __call__(self, *sources: Iterable[Mapping]) -> tuple[pa.Table, dict[str, dict[str, int]]]:
        """One row for every row of the sources, in order; and counts: column -> value -> rows."""


class DerivedWork(SidecarWork):
    """A stage over the sidecars of other runs: those of one shard become one sidecar of its own.

    A sidecar is done while those it came from have the same bytes and speak of what the shard is
    now. It records the shard as its first source does, so that a mix checks both alike.
    """

    def __init__(self, stage: RowStage, sources: Sequence[Source], run: Run) -> None:
        super().__init__(stage, run)
        self.sources = tuple(sources)

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a sidecar that is there and still true."""
        record = commit.read_sidecar_record(self._url(shard))
        if record is None or record.config_hash != self.run.config_hash:
            return None
        try:
            return record if record.inputs == self._inputs(shard) else None
        except (OSError, BadShard):
            return None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Computes and commits one shard; BadShard where a source is missing or out of date."""
        inputs = self._inputs(shard)
        limit = inputs["shard"]["limit"]
        samples = self._count(shard, limit)
        table, counts = self.stage(*self._rows(shard, limit, lost))
        return self.commit_table(shard, table, inputs, samples, counts)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some rows of a shard and keeps nothing: does the process survive?"""
        rows = self._rows(shard, shard.limit, lost)
        self.stage(*(itertools.islice(r, indices.start, indices.stop) for r in rows))

    def _source_url(self, source: Source, shard: Shard) -> str:
        return storage.join(self.run.out, source.kind, source.run, f"{shard.name}.parquet")

    def _record(self, source: Source, shard: Shard) -> commit.Record:
        record = commit.read_sidecar_record(self._source_url(source, shard))
        if record is None:
            raise BadShard(f"shard {shard.name} has no {source.kind} of run {source.run}")
        identity = record.inputs["shard"]
        if not replace(shard, limit=identity["limit"]).is_still(identity):
            raise BadShard(
                f"shard {shard.name} changed since run {source.run}: {_VERBS[source.kind]} it again"
            )
        return record

    def _inputs(self, shard: Shard) -> dict:
        """The identity of the sidecars that are read, and of the shard that they speak of."""
        inputs: dict = {}
        for source in self.sources:
            identity = self._record(source, shard).inputs["shard"]
            limits = [limit for limit in (shard.limit, identity["limit"]) if limit is not None]
            inputs.setdefault("shard", identity | {"limit": min(limits, default=None)})
            inputs[source.title] = commit.sha256_file(self._source_url(source, shard))
        return inputs

    def _count(self, shard: Shard, limit: int | None) -> int:
        """How many rows are read of every source; BadShard where they differ."""
        found = {s.title: self._record(s, shard).counts["rows"] for s in self.sources}
        counts = {count if limit is None else min(count, limit) for count in found.values()}
        if len(counts) > 1:
            told = ", ".join(f"{title} {count}" for title, count in found.items())
            raise BadShard(f"shard {shard.name}: its sidecars differ in their rows: {told}")
        return counts.pop()

    def _rows(self, shard: Shard, limit: int | None, lost: frozenset[int]) -> list[Iterator[dict]]:
        """The rows of each source, in the order of the shard's samples."""
        return [self._rows_of(source, shard, limit, lost) for source in self.sources]

    def _rows_of(
        self, source: Source, shard: Shard, limit: int | None, lost: frozenset[int]
    ) -> Iterator[dict]:
        url = self._source_url(source, shard)
        killed = {"status": "failed", "reason": "killed_worker"}
        try:
            rows = commit.sidecar_rows(url, list(source.columns))
            for index, row in enumerate(itertools.islice(rows, limit)):
                yield row | killed if index in lost else row
        except (OSError, pa.ArrowException) as e:
            raise BadShard(f"{url} is damaged: delete it and make it again") from e
