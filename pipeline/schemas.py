"""The columns of every table we write: one place, explicit types, the same in every shard."""

import itertools
from collections.abc import Iterable

import pyarrow as pa

STYLES = ("short", "long")
"""Caption styles: short names the main subject, long describes everything visible."""

OK = "ok"

TEXT_STATUSES = (OK, "missing", "empty", "too_long", "invalid_utf8")
"""State of a sample's original text; only `ok` can be blended."""

CAPTION_STATUSES = (
    OK,  # may be blended
    "empty",  # no words
    "repetitive",  # caught in a loop
    "truncated",  # stopped by the length limit, not by itself
    "off_image",  # no closer to its image than to other images
    "failed",  # the captioner gave no answer, or there was no image to caption
    "absent",  # this style was not asked for
)
"""State of a synthetic caption."""


def _caption_fields(style: str) -> list[pa.Field]:
    return [
        pa.field(f"{style}_status", pa.string(), nullable=False),
        pa.field(f"{style}_tokens", pa.int32()),
        pa.field(f"{style}_logprob", pa.float32()),  # mean over tokens
        pa.field(f"{style}_finish", pa.string()),  # stop | length
        pa.field(f"{style}_similarity", pa.float32()),  # cosine, mean over chunks
        pa.field(f"{style}_similarity_min", pa.float32()),
    ]


_IDENTITY = [
    pa.field("uid", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
]
_VERDICT = [pa.field("status", pa.string(), nullable=False), pa.field("reason", pa.string())]
_TEXTS = [pa.field(name, pa.string()) for name in ("caption", "caption_short", "caption_long")]

SHARDS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),  # relative where it lies in the folder
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("sha256", pa.string()),  # null until the shard was read whole
        pa.field("samples", pa.int64()),  # null until the shard was read whole
    ]
)

COLUMNS = pa.schema([*_IDENTITY, *_VERDICT])
"""What every stage's table has beside its own columns."""

CAPTIONS = pa.schema(
    [
        *_IDENTITY,
        *_TEXTS,
        pa.field("caption_status", pa.string(), nullable=False),
        *[field for style in STYLES for field in _caption_fields(style)],
        *_VERDICT,
    ]
)

KEEP = pa.schema(
    [*_IDENTITY, pa.field("keep", pa.bool_(), nullable=False), pa.field("reason", pa.string())]
)

MIX = pa.schema(
    [
        *_IDENTITY,  # key: in the training shard; null-free also for dropped rows
        pa.field("source_shard", pa.string(), nullable=False),
        pa.field("source_key", pa.string(), nullable=False),
        pa.field("text", pa.string()),  # the blended caption, epoch 0
        pa.field("caption_source", pa.string()),  # whence it comes
        pa.field("caption_drawn", pa.string()),  # what the blend drew; differs after a fallback
        *_TEXTS,
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("reencoded", pa.bool_()),
        pa.field("sha256", pa.string()),
        pa.field("sha256_out", pa.string()),
        *[
            pa.field(f"{member}_{what}", pa.int64())
            for member in ("jpg", "txt", "json")
            for what in ("offset", "size")
        ],
        *_VERDICT,
    ]
)

SCENES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # a uid comes with the name of the shard
        pa.field("caption", pa.string()),  # the alt text; null where the page gives none
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.string()),  # of the image's bytes
        pa.field("level", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | test
        pa.field("background", pa.string(), nullable=False),
        pa.field("things", pa.string(), nullable=False),  # JSON; scenes.shards.scene_of reads it
        pa.field("alt_text", pa.string(), nullable=False),  # its kind; see scenes.alt_text
        pa.field("damage", pa.string(), nullable=False),  # done on purpose; "" for none
        *_VERDICT,
    ]
)

_ROWS_PER_BATCH = 1000


def table_of(rows: Iterable[dict], schema: pa.Schema) -> pa.Table:
    """Rows as one table; the Python objects of only a few of them are alive at a time.

    Few, large batches: Arrow holds some 50 KB per column of a batch, however short that is.
    """
    rows = iter(rows)
    batches = []
    while some := list(itertools.islice(rows, _ROWS_PER_BATCH)):
        batches.append(pa.RecordBatch.from_pylist(some, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)
