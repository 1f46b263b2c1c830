"""A deduplication's sidecars: a row for every sample, made from what was found over all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import commit, schemas
from pipeline.ahead import Ahead
from pipeline.dedup.settings import CONTAMINATED, KINDS
from pipeline.dedup.sources import Sources
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from pipeline.runs import Run
from pipeline.schemas import OK

COLUMNS = (
    # uid of the copy that its kind leaves of the group; null for a sample that is alone. It may be
    # a copy itself, of a later kind; the last of these that is not null names what stays in the end.
    pa.field("exact_group", pa.string()),
    pa.field("perceptual_group", pa.string()),
    pa.field("semantic_group", pa.string()),
    pa.field("duplicate_kind", pa.string()),  # why it goes; null where it stays
    # uid of what stays in the end, or the name of an evaluation set's item.
    pa.field("duplicate_of", pa.string()),
    # To the uid in the group of its own kind, or to the evaluation set's item.
    pa.field("duplicate_distance", pa.int16()),  # bits; of exact, perceptual, contaminated
    pa.field("duplicate_similarity", pa.float32()),  # cosine; of semantic, contaminated
)
SCHEMA = pa.schema([*[*schemas.COLUMNS][:2], *COLUMNS, *[*schemas.COLUMNS][2:]])


class Verdicts(Protocol):
    """What was found."""

    def of(self, shard: Shard) -> pa.Table:
        """`row` (its number in the shard) and the columns of this table, of samples in a group."""


@dataclass
class DedupWork:
    """Every shard's sidecar. They all rest on all shards, so one that changed redoes them all.

    find: the work over everything; it is called once, where any sidecar can and is to be made.
    """

    sources: Sources
    evaluation: str  # digest of the evaluation sets, "" for none
    run: Run
    find: Callable[[], Verdicts]
    verdicts: Verdicts | None = None

    def setup(self) -> None:
        if any(self.done(shard) is None for shard in self.sources.usable):
            self.verdicts = self.find()
        self._asking = Lock()  # one thread at a time asks for verdicts
        self._write = Ahead(
            self._written, self.sources.usable, wanted=lambda shard: self.done(shard) is None
        )

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a sidecar that is there and rests on what is there now."""
        if shard.name not in self.sources.inputs:
            return None
        record = commit.read_sidecar_record(self._url(shard))
        true = record and record.config_hash == self.run.config_hash
        return record if true and record.inputs == self._inputs(shard) else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Writes one sidecar; BadShard where there was nothing to compare it by."""
        if shard.name in self.sources.bad:
            raise BadShard(self.sources.bad[shard.name])
        return self._write(shard)

    def _written(self, shard: Shard) -> commit.Record:
        table = self._table(shard)
        record = commit.Record(
            shard=shard.name,
            config_hash=self.run.config_hash,
            inputs=self._inputs(shard),
            environment={},
            counts={"samples": len(table), **commit.tally(table), "verdict": _counts(table)},
        )
        commit.write_sidecar(self._url(shard), table, record)
        return record

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Nothing here decodes anything."""

    def failures(self, counts: dict) -> dict[str, int]:
        """None that are this step's own: what was no image before is none now."""
        return {}

    def _table(self, shard: Shard) -> pa.Table:
        rows = self.sources.verdict_rows(shard)
        with self._asking:
            found = self.verdicts.of(shard)
        place = np.full(len(rows), -1)
        place[found["row"].to_numpy()] = np.arange(len(found))
        indices = pa.array(place, mask=place < 0)
        columns = {name: rows[name] for name in schemas.COLUMNS.names}
        for field in COLUMNS:
            told = found[field.name].combine_chunks().cast(field.type)
            nothing = told.null_count == len(told)
            columns[field.name] = pa.nulls(len(rows), field.type) if nothing else told.take(indices)
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _inputs(self, shard: Shard) -> dict:
        everything = {"all": self.sources.digest, "evaluation": self.evaluation}
        return self.sources.inputs[shard.name] | everything

    def _url(self, shard: Shard) -> str:
        return self.run.file(f"{shard.name}.parquet")


def _counts(table: pa.Table) -> dict[str, int]:
    """What became of the samples that are ok: `kept`, or dropped as one kind of duplicate."""
    kinds = table["duplicate_kind"].filter(pc.equal(table["status"], OK)).value_counts()
    found = {pair["values"]: pair["counts"] for pair in kinds.to_pylist()}
    named = {kind: found[kind] for kind in (*KINDS, CONTAMINATED) if kind in found}
    return {"kept": found.get(None, 0)} | named
