"""The samples of one shard with the columns that a selection reads, put together from its sidecars."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.images import IMAGE_REASONS
from pipeline.manifest import Shard
from pipeline.reading import READING_REASONS, BadShard
from pipeline.schemas import COLUMNS, OK
from pipeline.select.column_runs import Column
from pipeline.select.sidecar import Sidecar, column_of
from pipeline.tombstones import TAKEN_DOWN

LOST_REASONS = tuple(dict.fromkeys((*IMAGE_REASONS, *READING_REASONS)))
"""Why a sample has no image to train on: what any of its rows says of this comes before conditions."""

_OWN = ("uid", "status", "reason")  # read of every run; the key of the first


@dataclass(frozen=True)
class ShardRows:
    """What is known of a shard's samples, in the order of the shard."""

    uids: pa.Array
    keys: pa.Array
    lost: np.ndarray  # int16: index in LOST_REASONS, -1 where the sample has its image
    # Named as name_of(column), null where the row is not ok; by each run's title, whether it is.
    columns: pa.Table

    @property
    def count(self) -> int:
        return len(self.uids)


def name_of(column: Column) -> str:
    """What a column is called in the tables that conditions are run over."""
    return f"{column.run}.{column.name}"


class ShardSources:
    """The sidecars of one shard that a selection reads."""

    def __init__(self, out: str, shard: Shard, needed: Mapping[str, Sequence[str]]) -> None:
        """needed: title of a run -> columns read of it. BadShard where one is missing or stale."""
        first = next(iter(needed))
        self._needed = {
            title: sorted({*_OWN, *names, *(["key"] if title == first else [])})
            for title, names in needed.items()
        }
        self._sidecars = {}
        identities = []
        for title in self._needed:
            sidecar = Sidecar(storage.join(out, title, f"{shard.name}.parquet"))
            identity = sidecar.record.inputs["shard"]
            still = replace(shard, limit=identity["limit"]).is_still(identity)
            if not still or sidecar.record.shard != shard.name:
                raise BadShard(f"shard {shard.name} changed since {title} was made: make it again")
            self._sidecars[title] = sidecar
            identities.append(identity)
        limits = [shard.limit, *(identity["limit"] for identity in identities)]
        self.limit = min((n for n in limits if n is not None), default=None)
        self._identity = identities[0] | {"limit": self.limit}

    def inputs(self, taken_down: frozenset[str] = frozenset()) -> dict:
        """What the rows come from, for the record of what is made of them.

        taken_down: uids, of which those of this shard count.
        """
        digests = {
            title: sidecar.digest(self._needed[title]) for title, sidecar in self._sidecars.items()
        }
        buried = self._buried(taken_down) if taken_down else []
        return {"shard": self._identity} | digests | ({"taken_down": buried} if buried else {})

    def _buried(self, taken_down: frozenset[str]) -> list[str]:
        own = next(iter(self._sidecars.values())).read(["uid"]).column("uid")
        return sorted(own.filter(among(own, taken_down)).to_pylist())

    def rows(self, taken_down: frozenset[str] = frozenset()) -> ShardRows:
        """The samples; BadShard where sidecars are damaged or speak of different samples."""
        (title, first), *others = self._sidecars.items()
        table = self._table(first, self._needed[title])
        uids, keys = column_of(table, "uid"), column_of(table, "key")
        tables = {title: table} | {t: self._aligned(s, t, first, uids) for t, s in others}
        lost = np.full(len(uids), -1, np.int16)
        columns = {}
        for title, table in tables.items():
            lost = np.where(lost < 0, _lost(table), lost)
            fine = pc.equal(table.column("status"), OK)
            for name in table.column_names:
                known = _known(table.column(name))
                known = known if name in COLUMNS.names else _where(fine, known)
                columns[name_of(Column(title, name))] = known
            columns[title] = fine
        if taken_down:
            buried = among(uids, taken_down).to_numpy(zero_copy_only=False)
            lost = np.where(buried, np.int16(LOST_REASONS.index(TAKEN_DOWN)), lost)
        return ShardRows(uids, keys, lost, pa.table(columns))

    def _aligned(self, sidecar: Sidecar, title: str, first: Sidecar, uids: pa.Array) -> pa.Table:
        """What is needed of a sidecar, whose samples must be those of the first."""
        same = sidecar.stores_the_same(first, "uid")
        needed = [name for name in self._needed[title] if name != "uid" or not same]
        table = self._table(sidecar, needed)
        if same:
            return table.append_column("uid", uids)
        if not column_of(table, "uid").equals(uids):
            raise BadShard(f"{sidecar.url} is out of step with {first.url}: make both again")
        return table

    def _table(self, sidecar: Sidecar, columns: Sequence[str]) -> pa.Table:
        return sidecar.read(columns).slice(0, self.limit).combine_chunks()


def among(uids: pa.Array | pa.ChunkedArray, some: frozenset[str]) -> pa.Array | pa.ChunkedArray:
    """Which uids are some of these."""
    return pc.is_in(uids, value_set=_sorted(some))


@functools.lru_cache(maxsize=2)
def _sorted(uids: frozenset[str]) -> pa.Array:
    return pa.array(sorted(uids), pa.string())


def as_read(kind: pa.DataType) -> pa.DataType:
    """The type in which conditions see a column: DuckDB does not read every list of halves."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(as_read(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(as_read(kind.value_type))
    return pa.list_(as_read(kind.value_type)) if pa.types.is_list(kind) else kind


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without nan: SQL would take it for the largest number there is, and let it pass."""
    column = column.cast(as_read(column.type))
    if not pa.types.is_floating(column.type):
        return column
    bad = pc.is_nan(column)
    if not pc.any(bad).as_py():
        return column
    return pc.if_else(bad, pa.scalar(None, column.type), column)


def _where(fine: pa.ChunkedArray, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column, null where it is not fine."""
    if pc.all(pc.or_(fine, pc.is_null(column))).as_py():
        return column
    return pc.if_else(fine, column, pa.scalar(None, column.type))


def _lost(table: pa.Table) -> np.ndarray:
    failed = pc.not_equal(table.column("status"), OK)
    if not pc.any(failed).as_py():
        return np.full(len(table), -1, np.int16)
    found = pc.index_in(table.column("reason"), value_set=pa.array(LOST_REASONS, pa.string()))
    codes = pc.if_else(failed, found, pa.scalar(None, found.type))
    return pc.fill_null(codes, -1).to_numpy().astype(np.int16)
