"""A stage: what turns the samples of one shard into one table, with a row for every sample."""

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from pipeline import commit
from pipeline.keep_list import NOT_KEPT, KeepList
from pipeline.manifest import Shard
from pipeline.reading import BadShard, ReadReport, read_samples
from pipeline.runs import Run
from pipeline.samples import Sample
from pipeline.schemas import OK, STYLES

_FINE = (OK, "absent")


class Stage(Protocol):
    """Knows nothing of paths, retries or Ray; must be picklable before `setup`."""

    schema: pa.Schema  # holds at least pipeline.schemas.COLUMNS

    def setup(self) -> None:
        """Loads what is needed once per worker."""

    @property
    def environment(self) -> dict:
        """Device, precision and the like, known after `setup`."""

    def __call__(self, samples: Iterator[Sample]) -> pa.Table:
        """One row for every sample, in order, failures included."""


def inputs_of(shard: Shard, report: ReadReport) -> dict:
    """What a sidecar's record says of the shard that was read to its end."""
    return {"shard": shard.identity | {"sha256": report.sha256}}


class SidecarWork:
    """A stage over shards: each shard becomes one sidecar of the run.

    keep: where given, the stage sees only the images that this keep-list keeps.
    """

    def __init__(self, stage: Stage, run: Run, keep: str = "") -> None:
        self.stage = stage
        self.run = run
        self.keep = KeepList(run.out, keep) if keep else None

    def setup(self) -> None:
        self.stage.setup()

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a sidecar that is there and still true."""
        record = commit.read_sidecar_record(self._url(shard))
        true = record and record.config_hash == self.run.config_hash
        if not true or not shard.is_still(record.inputs["shard"]):
            return None
        try:
            return record if self._kept(shard).items() <= record.inputs.items() else None
        except BadShard:
            return None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Computes and commits one shard."""
        report, kept = ReadReport(), self._kept(shard)
        samples = read_samples(shard, report, lost)
        table = self.stage(self.keep.applied(shard, samples) if self.keep else samples)
        return self.commit_table(shard, table, inputs_of(shard, report) | kept, report.samples)

    def _kept(self, shard: Shard) -> dict:
        """The identity of the keep-list; BadShard where that does not know the shard."""
        return self.keep.identity(shard) if self.keep else {}

    def commit_table(
        self, shard: Shard, table: pa.Table, inputs: dict, samples: int, counts: dict | None = None
    ) -> commit.Record:
        """Commits a sidecar. samples: how many were read; counts: what else its run is to count."""
        if table.schema != self.stage.schema:
            raise TypeError(f"{type(self.stage).__name__}: {table.schema} is not its schema")
        record = commit.Record(
            shard=shard.name,
            config_hash=self.run.config_hash,
            inputs=inputs,
            environment=self.stage.environment,
            counts={"samples": samples, **commit.tally(table), **(counts or {})},
        )
        commit.write_sidecar(self._url(shard), table, record)
        return record

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some samples of a shard and keeps nothing: does the process survive?"""
        self.stage(s for s in read_samples(shard, lost=lost) if s.index in indices)

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples: rows without a result, and captions that are not ok, per style."""
        found = {r: n for r, n in counts["reason"].items() if r != NOT_KEPT}
        for column, statuses in counts.items():
            style = column.removesuffix("_status")
            if style in STYLES:
                bad = {f"{style} caption {s}": n for s, n in statuses.items() if s not in _FINE}
                found |= bad
        return found

    def _url(self, shard: Shard) -> str:
        return self.run.file(f"{shard.name}.parquet")
