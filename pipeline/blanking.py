"""Rows blanked in a table: who a sample was stays, and that it was taken down; nothing that it held."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import commit
from pipeline.crawl import layout
from pipeline.mix import realised
from pipeline.samples import uid_of
from pipeline.schemas import MIX, OK
from pipeline.tombstones import TAKEN_DOWN, Tombstones, url_hash

_STAYS = frozenset(("uid", "key", "source_shard", "source_key", "source_uid", "retry_of"))
_ROWS_PER_CHUNK = 1000  # as pipeline.schemas.table_of makes them
_MESSAGE = "taken down"


def is_buried(table: pa.Table, buried: Tombstones, shard: str = "") -> np.ndarray:
    """Which rows are of buried samples, by whatever the table tells of them; bool (N,).

    shard: the name that makes a uid of a row's key, for tables whose `uid` is another's or absent.
    """
    found = np.zeros(table.num_rows, bool)
    names = set(table.column_names)
    if "uid" in names:
        found |= _is_in(table.column("uid"), buried.uids)
    if "key" in names and shard:
        uids = [uid_of(shard, key or "") for key in table.column("key").to_pylist()]
        found |= np.array([uid in buried.uids for uid in uids], bool)
    if "url" in names and buried.urls and pa.types.is_string(table.schema.field("url").type):
        urls = table.column("url").to_pylist()
        found |= np.array([bool(url) and url_hash(url) in buried.urls for url in urls], bool)
    if "sha256" in names and pa.types.is_string(table.schema.field("sha256").type):
        found |= _is_in(pc.utf8_lower(table.column("sha256")), buried.sha256s)
    return found


def marks(table: pa.Table, rows: np.ndarray, shard: str = "") -> Tombstones:
    """All that the chosen rows tell of their samples."""
    some = table.filter(pa.array(rows))
    told = {name: set() for name in ("uid", "sha256", "url")}
    for name, values in told.items():
        if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
            values |= {value for value in some.column(name).to_pylist() if value}
    if shard and "key" in table.column_names:
        told["uid"] |= {uid_of(shard, key or "") for key in some.column("key").to_pylist()}
    hashes = {value.lower() for value in told["sha256"] if len(value) == 64}
    urls = {url_hash(url) for url in told["url"]}
    return Tombstones(frozenset(told["uid"]), frozenset(hashes), frozenset(urls))


def blanked(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The table with the chosen rows blanked; other rows as they are."""
    mask = pa.array(rows)
    columns = [
        column if field.name in _STAYS else _blank(table, field, mask)
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    made = pa.Table.from_arrays(columns, schema=table.schema).combine_chunks()
    return pa.Table.from_batches(made.to_batches(_ROWS_PER_CHUNK), schema=table.schema)


def as_written(table: pa.Table) -> pa.Table:
    """A table that was read, with its types as they were written: parquet renames items of lists."""
    schema = pa.schema([field.with_type(_written(field.type)) for field in table.schema])
    return table.replace_schema_metadata(None).cast(schema)


def _written(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_written(kind.value_type), kind.list_size)
    return pa.list_(_written(kind.value_type)) if pa.types.is_list(kind) else kind


def recounted(counts: dict, table: pa.Table) -> dict:
    """A record's counts, true of the table as it is now."""
    if _is_crawled(table):
        return counts | layout.counts(table)
    told = commit.tally(table)
    if "keep" in table.column_names and "status" in counts:
        kept = Counter(table.column("keep").to_pylist())
        status = {OK: kept[True], "dropped": kept[False]}
        told["status"] = {name: count for name, count in status.items() if count}
    for name, before in counts.items():
        if isinstance(before, dict) and name in table.column_names and name not in told:
            values = Counter(v for v in table.column(name).to_pylist() if v)
            told[name] = dict(sorted(values.items()))
    return counts | told | (realised(table) if table.schema.names == MIX.names else {})


def stats_of(table: pa.Table) -> dict:
    """What a crawled shard's `_stats.json` counts in img2dataset's words; {} for other shards."""
    return layout.stats(table) if "error_message" in table.column_names else {}


def _is_crawled(table: pa.Table) -> bool:
    return {"error_message", "hash_check"} <= set(table.column_names)


def _blank(table: pa.Table, field: pa.Field, mask: pa.Array) -> pa.ChunkedArray:
    column = table.column(field.name)
    value = _instead(table, field)
    if isinstance(value, pa.ChunkedArray):
        return pc.if_else(mask, value, column)
    if value is None and pa.types.is_nested(field.type):
        return pa.chunked_array([_nulled(column.combine_chunks(), mask)], field.type)
    return pc.if_else(mask, pa.scalar(value, field.type), column)


def _nulled(column: pa.Array, mask: pa.Array) -> pa.Array:
    places = pa.array(np.arange(len(column)), pa.int64(), mask=np.asarray(mask))
    return column.take(places)


def _instead(table: pa.Table, field: pa.Field) -> object:
    """What stands in a blanked row: why, and else nothing, or the least that the type allows."""
    name, names = field.name, table.column_names
    if name == "status":
        if "error_message" in names:
            return layout.FAILED_TO_DOWNLOAD
        return "dropped" if table.schema.names == MIX.names else "failed"
    if name == "reason":
        return TAKEN_DOWN
    if name == "error_message":
        return _MESSAGE
    if field.nullable:
        return None
    if name == "caption_status":
        return "missing"
    if name.endswith("_status"):  # of a style that was not asked for
        absent = pc.equal(table.column(name), "absent")
        return pc.if_else(absent, "absent", "failed")
    return "" if pa.types.is_string(field.type) else pa.scalar(0).cast(field.type).as_py()


def _is_in(column: pa.ChunkedArray, values: Sequence[str] | frozenset[str]) -> np.ndarray:
    known = pa.array(sorted(values), pa.string())
    return pc.is_in(column, value_set=known).to_numpy(zero_copy_only=False).astype(bool)
