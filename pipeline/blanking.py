"""Rows blanked in a table: who a sample was stays, and that it was taken down; nothing that it held."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import commit
from pipeline.crawl import layout
from pipeline.mix import realised
from pipeline.samples import uid_of
from pipeline.schemas import MIX, OK, RESHARDED, TEACHING
from pipeline.tombstones import BURIED_URL, TAKEN_DOWN, Tombstones, url_hash

NO_UIDS = None
"""Instead of a shard's name: the table is of URLs that are still to be fetched, nobody's samples."""

_STAYS = frozenset(("key", "retry_of"))
_STAYS_OF_OURS = _STAYS | {"uid", "source_shard", "source_key", "source_uid"}
_SHA256S = ("sha256", "fetched_sha256", "sha256_out")
_IN_THE_TAR = ("success", OK)  # statuses of rows whose sample was written
_ROWS_PER_CHUNK = 1000  # as pipeline.schemas.table_of makes them
_MESSAGE = "taken down"


def is_buried(
    table: pa.Table, buried: Tombstones, shard: str | None = "", is_alone: bool = False
) -> np.ndarray:
    """Which rows are of buried samples, by whatever the table tells of them; bool (N,).

    shard, is_alone: see `uids`.
    """
    found = np.array([uid in buried.uids for uid in uids(table, shard, is_alone)], bool)
    if buried.urls:
        urls = _texts(table, "url")
        found |= np.array([bool(url) and url_hash(url) in buried.urls for url in urls], bool)
    for name in _SHA256S if buried.sha256s else ():
        hashes = _texts(table, name)
        found |= np.array([bool(v) and v.lower() in buried.sha256s for v in hashes], bool)
    return found


def marks(table: pa.Table, shard: str | None = "", is_alone: bool = False) -> Tombstones:
    """All that the rows tell of their samples; shard, is_alone: see `uids`."""
    told = {value.lower() for name in _SHA256S for value in _texts(table, name) if value}
    return Tombstones(
        frozenset(uid for uid in uids(table, shard, is_alone) if uid),
        frozenset(value for value in told if len(value) == 64),
        frozenset(url_hash(url) for url in _texts(table, "url") if url),
    )


def uids(table: pa.Table, shard: str | None = "", is_alone: bool = False) -> list[str | None]:
    """The uid of every row's sample; None where the row cannot tell it.

    shard: name of the raw shard that the table lies beside, "" for a table of another kind, of
    which the `uid` is ours, or NO_UIDS. is_alone: the raw shard has no tar any more.

    In a raw shard the tar decides, as `pipeline.reading` reads it: a `uid` of the list is another's,
    and a sample that was moved or drawn from other shards need not have the uid that its key here
    would make, which may be the uid of some other sample. So a key only tells of rows that have no
    sample in the tar.
    """
    names = table.schema.names
    if shard == "" or names in (RESHARDED.names, MIX.names):
        return _texts(table, "uid")
    if shard is NO_UIDS or "key" not in names or names == TEACHING.names:
        return [None] * table.num_rows
    keys = _texts(table, "key")
    if is_alone:
        return [uid_of(shard, key or "") for key in keys]
    if "status" not in names:
        return [None] * table.num_rows
    return [
        None if status in _IN_THE_TAR else uid_of(shard, key or "")
        for key, status in zip(keys, _texts(table, "status"), strict=True)
    ]


def blanked(table: pa.Table, rows: np.ndarray, shard: str | None = "") -> pa.Table:
    """The table with the chosen rows blanked; other rows as they are.

    Only what says which row it is stays. shard: as of `uids`; a foreign `uid` does not stay.
    """
    mask = pa.array(rows)
    is_ours = shard == "" or table.schema.names in (RESHARDED.names, MIX.names, TEACHING.names)
    stays = _STAYS_OF_OURS if is_ours else _STAYS
    columns = [
        column if field.name in stays else _blank(table, field, mask)
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    made = pa.Table.from_arrays(columns, schema=table.schema).combine_chunks()
    return pa.Table.from_batches(made.to_batches(_ROWS_PER_CHUNK), schema=table.schema)


def differing(table: pa.Table, made: pa.Table, rows: np.ndarray) -> int:
    """How many of the chosen rows are not in both tables the same."""
    mask = pa.array(rows)
    pairs = zip(table.filter(mask).to_pylist(), made.filter(mask).to_pylist(), strict=True)
    return sum(before != after for before, after in pairs)


def as_written(table: pa.Table) -> pa.Table:
    """A table that was read, with its types as we write them: parquet renames items of lists, and
    other people's text may be views or dictionaries, which compute kernels do not all know."""
    schema = pa.schema([field.with_type(_written(field.type)) for field in table.schema])
    return table.replace_schema_metadata(None).cast(schema)


def _written(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
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
    if name == "url" and "retry_of" in names and not _is_crawled(table):  # a part of a plan
        return BURIED_URL
    if field.nullable:
        return None
    if name == "caption_status":
        return "missing"
    if name.endswith("_status"):  # of a style that was not asked for
        absent = pc.equal(table.column(name), "absent")
        return pc.if_else(absent, "absent", "failed")
    return _least(field.type)


def _texts(table: pa.Table, name: str) -> list[str | None]:
    """A column of text, of whatever type that is; nothing where there is none of that name."""
    if name not in table.column_names:
        return [None] * table.num_rows
    column = table.column(name)
    return column.to_pylist() if _is_text(column.type) else [None] * table.num_rows


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _least(kind: pa.DataType) -> object:
    """What stands where nothing may not stand."""
    if _is_text(kind):
        return ""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return b""
    if pa.types.is_struct(kind):
        return {field.name: None if field.nullable else _least(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return [_least(kind.value_type)] * kind.list_size
    if pa.types.is_nested(kind):
        return []
    zeros = pa.py_buffer(bytes(-(-kind.bit_width // 8)))
    return pa.Array.from_buffers(kind, 1, [None, zeros])[0].as_py()
