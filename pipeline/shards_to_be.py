"""Writers of raw shards from elsewhere: what is to be written, what is done, and how it is committed."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline import commit, storage, tombstones
from pipeline.manifest import Shard
from pipeline.runs import Run
from pipeline.writing import ShardWriter


class ShardsToBe:
    """The work items are the shards that are to be; a subclass says what they are made of.

    schema: of the rows. run: whose shards they are.
    """

    schema: pa.Schema
    run: Run

    def counts(self) -> Iterable[int]:
        """The samples of each shard, in order."""
        raise NotImplementedError

    def made_of(self) -> dict:
        """What a shard's record says of its inputs, beside its number of samples."""
        raise NotImplementedError

    def written(self, shard: Shard, lost: frozenset[int], writer: ShardWriter) -> Iterator[dict]:
        """Writes samples and gives a row for each, those that are `lost` (by number) included."""
        raise NotImplementedError

    def planned(self) -> list[Shard]:
        """The shards to write, all full but the last."""
        buried = storage.join(self.run.out, tombstones.FILE)
        return [
            Shard(
                name=f"{number:05d}",
                url=self.run.file(f"{number:05d}.tar"),
                size=0,
                samples=count,
                tombstones=buried,
            )
            for number, count in enumerate(self.counts())
        ]

    def setup(self) -> None:
        """Loads what is needed once per worker."""

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a shard that is whole, and made of what is planned."""
        record = commit.read_stats_record(self.run, shard.name)
        true = record and record.config_hash == self.run.config_hash
        return record if true and record.inputs == self._inputs(shard) else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Writes and commits one shard."""

        def record(table: pa.Table) -> commit.Record:
            return commit.Record(
                shard=shard.name,
                config_hash=self.run.config_hash,
                inputs=self._inputs(shard),
                environment={},
                counts={"samples": shard.samples, **commit.tally(table)},
            )

        def rows(writer: ShardWriter) -> Iterator[dict]:
            return self.written(shard, lost, writer)

        return commit.write_shard(self.run, shard.name, self.schema, rows, record)

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples."""
        return dict(counts["reason"])

    def _inputs(self, shard: Shard) -> dict:
        return self.made_of() | {"samples": shard.samples}
