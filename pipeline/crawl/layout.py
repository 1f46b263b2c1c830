"""How a crawled shard looks: the columns, the `.json` and the `_stats.json` of img2dataset, and ours behind."""

import json
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from pipeline.crawl import reasons
from pipeline.crawl.resize import RESIZE_REASONS
from pipeline.crawl.url_lists import finite
from pipeline.schemas import OK

SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE = "success", "failed_to_download", "failed_to_resize"

LIST_REASONS = ("taken_down", "hash_mismatch")
REASONS = (*sorted(reasons.REASONS), *LIST_REASONS, *RESIZE_REASONS)
"""Every reason of a row without an image."""

MATCH, NEAR_DUPLICATE, MISMATCH = "match", "near_duplicate", "mismatch"
"""What a check of the bytes against the list's hash may find."""

ALWAYS = ("sha256", "md5")
"""Hashes of the bytes as fetched: what identifies them, and what block-lists are made of."""

_RESULT = [
    pa.field("key", pa.string()),
    pa.field("status", pa.string()),
    pa.field("error_message", pa.string()),
    *[
        pa.field(name, pa.int32())
        for name in ("width", "height", "original_width", "original_height")
    ],
    pa.field("exif", pa.string()),
]
_OURS = [
    pa.field("reason", pa.string()),
    pa.field("http_status", pa.int32()),
    pa.field("attempts", pa.int32()),
    pa.field("hash_check", pa.string()),
    pa.field("retry_of", pa.string()),  # shard/key of the row that this one fetches again
]


def shard_schema(part: pa.Schema, hash_type: str) -> pa.Schema:
    """The columns of a shard's parquet: those of its part, img2dataset's, the hash, and ours.

    hash_type: of the column that is verified, which stands where the list's did; "" for none. The
    hashes of ALWAYS are there in any case.
    """
    fields = [field for field in part if field.name != "retry_of"] + _RESULT
    names = {hash_type, *(field.name for field in fields)}
    fields += [pa.field(name, pa.string()) for name in ALWAYS if name not in names]
    return pa.schema(fields + _OURS)


def empty_row(listed: Mapping[str, object], schema: pa.Schema, hash_type: str) -> dict:
    """A row before its URL was fetched, in the order that the `.json` has."""
    hashes = [name for name in dict.fromkeys((hash_type, *ALWAYS)) if name]
    ours = [field.name for field in _OURS]
    row = {name: value for name, value in listed.items() if name not in (*hashes, *ours)}
    row |= dict.fromkeys(field.name for field in _RESULT)
    row |= dict.fromkeys([*hashes, *ours])
    row["retry_of"] = listed["retry_of"]
    assert set(row) == set(schema.names), set(row) ^ set(schema.names)
    return row


def sample_json(row: Mapping[str, object]) -> bytes:
    """The `.json` of a sample; numbers that JSON lacks are null."""
    return json.dumps(finite(dict(row)), indent=4, allow_nan=False).encode()


def status_of(reason: str) -> str:
    """img2dataset's name for how it ended."""
    if not reason:
        return SUCCESS
    return FAILED_TO_RESIZE if reason in RESIZE_REASONS else FAILED_TO_DOWNLOAD


def counts(table: pa.Table) -> dict:
    """What a record tells of its rows: `ok` or why not, and what hashes told."""
    statuses = Counter(table.column("status").to_pylist())
    why = Counter(v for v in table.column("reason").to_pylist() if v)
    checks = Counter(v for v in table.column("hash_check").to_pylist() if v)
    found = {
        "samples": table.num_rows,
        "rows": table.num_rows,
        "status": {OK: statuses[SUCCESS]} if statuses[SUCCESS] else {},
        "reason": dict(sorted(why.items())),
    }
    if failed := table.num_rows - statuses[SUCCESS]:
        found["status"]["failed"] = failed
    return found | ({"hash_check": dict(sorted(checks.items()))} if checks else {})


def stats(table: pa.Table) -> dict:
    """What img2dataset's `_stats.json` counts."""
    statuses = Counter(table.column("status").to_pylist())
    messages = Counter(v for v in table.column("error_message").to_pylist() if v is not None)
    ranked = sorted(messages.items(), key=lambda item: (-item[1], item[0]))
    succeeded = {SUCCESS: statuses[SUCCESS]} if statuses[SUCCESS] else {}
    return {
        FAILED_TO_DOWNLOAD: statuses[FAILED_TO_DOWNLOAD],
        FAILED_TO_RESIZE: statuses[FAILED_TO_RESIZE],
        "status_dict": succeeded | dict(ranked),
    }
