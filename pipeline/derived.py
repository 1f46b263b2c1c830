"""Work from sidecar to sidecar: the rows of one caption run become a run of their own; no image is read."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from pipeline import commit, storage
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from pipeline.runs import Run
from pipeline.stage import SidecarWork


class RowStage(Protocol):
    """As `pipeline.stage.Stage`, but of rows, which it returns with what its run is to count."""

    schema: pa.Schema

    def setup(self) -> None: ...

    @property
    def environment(self) -> dict: ...

    def __call__(self, rows: Iterable[Mapping]) -> tuple[pa.Table, dict[str, dict[str, int]]]:
        """One row for every row, in order; and counts: column -> value -> rows."""


class DerivedWork(SidecarWork):
    """A stage over the sidecars of a caption run: each becomes one sidecar of another run.

    A sidecar is done while the one it came from has the same bytes and speaks of what the shard is
    now. It records the shard as its source does, so that a mix checks both alike.
    """

    def __init__(self, stage: RowStage, source: str, run: Run) -> None:
        super().__init__(stage, run)
        self.source = source

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
        """Computes and commits one shard; BadShard where its source is missing or out of date."""
        inputs = self._inputs(shard)
        rows = self._rows(shard, inputs["shard"]["limit"], lost)
        table, counts = self.stage(rows)
        record = commit.Record(
            shard=shard.name,
            config_hash=self.run.config_hash,
            inputs=inputs,
            environment=self.stage.environment,
            counts={"samples": len(rows), **commit.tally(table), **counts},
        )
        commit.write_sidecar(self._url(shard), table, record)
        return record

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some rows of a shard and keeps nothing: does the process survive?"""
        rows = self._rows(shard, shard.limit, lost)
        self.stage(row for index, row in enumerate(rows) if index in indices)

    def _source_url(self, shard: Shard) -> str:
        return storage.join(self.run.out, "captions", self.source, f"{shard.name}.parquet")

    def _inputs(self, shard: Shard) -> dict:
        """The identity of the sidecar that is read, and of the shard that it speaks of."""
        url = self._source_url(shard)
        record = commit.read_sidecar_record(url)
        if record is None:
            raise BadShard(f"shard {shard.name} has no captions of run {self.source}")
        identity = record.inputs["shard"]
        if not replace(shard, limit=identity["limit"]).is_still(identity):
            raise BadShard(f"shard {shard.name} changed since run {self.source}: caption it again")
        limits = [limit for limit in (shard.limit, identity["limit"]) if limit is not None]
        return {
            "shard": identity | {"limit": min(limits, default=None)},
            f"captions/{self.source}": commit.sha256_file(url),
        }

    def _rows(self, shard: Shard, limit: int | None, lost: frozenset[int]) -> list[dict]:
        url = self._source_url(shard)
        try:
            needed = [name for name in self.stage.schema.names if name != "image_embedding"]
            found = commit.sidecar_rows(url, needed)
            rows = list(itertools.islice(found, limit))
        except (OSError, pa.ArrowException) as e:
            raise BadShard(f"{url} is damaged: delete it and make it again") from e
        killed = {"status": "failed", "reason": "killed_worker"}
        return [row | killed if index in lost else row for index, row in enumerate(rows)]
