"""Keep-lists as they are written: a sidecar per shard that says of every sample whether it stays, and why not."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline import commit
from pipeline.ahead import Ahead
from pipeline.manifest import Shard
from pipeline.runs import Run
from pipeline.schemas import KEEP, OK

KEPT = -1
DROPPED = "dropped"


def keep_table(
    uids: pa.Array, keys: pa.Array, codes: np.ndarray, reasons: Sequence[str]
) -> pa.Table:
    """A row for every sample. codes: index of its reason in `reasons`, KEPT where it stays."""
    kept = codes == KEPT
    told = pa.DictionaryArray.from_arrays(
        pa.array(np.where(kept, 0, codes), pa.int16(), mask=kept), pa.array(reasons, pa.string())
    )
    columns = [uids, keys, pa.array(kept), told.cast(pa.string())]
    return pa.Table.from_arrays(columns, schema=KEEP)


def counts_of(codes: np.ndarray, reasons: Sequence[str]) -> dict:
    """What a record counts of them: samples, rows, kept and dropped, and every reason."""
    times: dict[str, int] = {}
    for code, count in zip(*np.unique(codes[codes != KEPT], return_counts=True), strict=True):
        times[reasons[code]] = times.get(reasons[code], 0) + int(count)
    dropped = sum(times.values())
    status = {OK: len(codes) - dropped, DROPPED: dropped}
    return {
        "samples": len(codes),
        "rows": len(codes),
        "status": {name: count for name, count in status.items() if count},
        "reason": times,
    }


class KeepWork:
    """What works that write keep-lists share: `pipeline.stage.SidecarWork` without a stage."""

    def __init__(self, run: Run, following: Sequence[Shard] = ()) -> None:
        """following: in the order in which they will be asked for, where all are asked for here."""
        self.run = run
        self.following = tuple(following)

    def setup(self) -> None:
        """Prepares a worker."""
        self._ahead = Ahead(self.made, self.following, lambda shard: self.done(shard) is None)

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Commits the list of one shard; BadShard as `made`."""
        return self.made(shard, lost) if lost else self._ahead(shard)

    def made(self, shard: Shard, lost: frozenset[int] = frozenset()) -> commit.Record:
        """Makes and commits the list of one shard, in any thread; BadShard where it cannot be."""
        raise NotImplementedError

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a list that is there and still true."""
        record = commit.read_sidecar_record(self.url(shard))
        if record is None or record.config_hash != self.run.config_hash:
            return None
        return record if self.is_still(shard, record) else None

    def is_still(self, shard: Shard, record: commit.Record) -> bool:
        """Whether a list was made from what is there now."""
        raise NotImplementedError

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Nothing here decodes what could kill a process."""

    def failures(self, counts: Mapping) -> dict[str, int]:
        """None: what is dropped is dropped on purpose."""
        return {}

    def url(self, shard: Shard) -> str:
        """Where a shard's list is."""
        return self.run.file(f"{shard.name}.parquet")

    def write(
        self,
        shard: Shard,
        uids: pa.Array,
        keys: pa.Array,
        codes: np.ndarray,
        reasons: Sequence[str],
        inputs: dict,
    ) -> commit.Record:
        """Commits one shard's list."""
        record = commit.Record(
            shard=shard.name,
            config_hash=self.run.config_hash,
            inputs=inputs,
            environment={},
            counts=counts_of(codes, reasons),
        )
        commit.write_sidecar(self.url(shard), keep_table(uids, keys, codes, reasons), record)
        return record
