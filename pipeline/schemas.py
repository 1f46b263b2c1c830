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
        pa.field(f"{style}_reason", pa.string()),  # why it failed, where the captioner says
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

TOMBSTONES = pa.schema(
    [
        pa.field("uid", pa.string()),  # one of these three in every row
        pa.field("sha256", pa.string()),  # of an image's bytes
        pa.field("url_sha256", pa.string()),  # of a URL as its list gave it
        pa.field("reason", pa.string()),  # as it was given
    ]
)
"""What was taken down, and must not come back."""

COLUMNS = pa.schema([*_IDENTITY, *_VERDICT])
"""What every stage's table has beside its own columns."""

CAPTIONS = pa.schema(
    [
        *_IDENTITY,
        *_TEXTS,
        pa.field("caption_status", pa.string(), nullable=False),
        *[field for style in STYLES for field in _caption_fields(style)],
        # By the captioner's contrastive towers, of unit length; null where nobody asked.
        pa.field("image_embedding", pa.list_(pa.float32())),
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

TEACHING = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # a uid comes with the name of the shard
        pa.field("source_uid", pa.string(), nullable=False),
        pa.field("source_shard", pa.string(), nullable=False),
        pa.field("source_key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | held_out
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("caption", pa.string()),  # the original text; null where it is not ok
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.string()),  # of the image's bytes
        *_VERDICT,
    ]
)
"""A sample of other shards, for a teacher to caption."""

IMPORTED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # a uid comes with the name of the shard
        pa.field("caption", pa.string()),
        pa.field("captions", pa.list_(pa.string())),  # all of them, where a row has more than one
        pa.field("caption_status", pa.string(), nullable=False),  # of TEXT_STATUSES
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.string()),  # of the image's bytes
        pa.field("row", pa.int64(), nullable=False),  # in the set, from 0
        *_VERDICT,
    ]
)
"""A row of somebody's data set, as a sample of a raw shard."""

PLACES = pa.schema(
    [
        *_IDENTITY,
        pa.field("start", pa.int64(), nullable=False),  # of the first member's header in its file
        pa.field("size", pa.int64(), nullable=False),  # of all its members, headers and padding
        *_VERDICT,
    ]
)
"""Where the samples of a shard lie, and which of them go on into other shards."""

RESHARDED = pa.schema(
    [
        *_IDENTITY,  # the uid is as it was; the key is new
        pa.field("source_shard", pa.string(), nullable=False),
        pa.field("source_key", pa.string(), nullable=False),
        *_VERDICT,
    ]
)
"""A sample that was moved into another shard."""

TAUGHT = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        *[
            pa.field(name, pa.string())
            for style in STYLES
            for name in (f"caption_{style}", f"{style}_status")  # ok, or captioner.taught.REASONS
        ],
    ]
)
"""What a captioner learns from a teacher: only what is ok; null for a style that is not taught."""

UPSAMPLED = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field(
            "text", pa.string(), nullable=False
        ),  # the prompt itself where nothing better came
        pa.field("words", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | original
        pa.field("reason", pa.string()),  # why it is the original
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)

PAIRS = pa.schema(
    [
        *_IDENTITY,
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # of the image's bytes in the shard's file
        pa.field("size", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),  # of these bytes
        pa.field("captions", pa.list_(pa.string()), nullable=False),  # one is drawn at each use
        pa.field("split", pa.string(), nullable=False),  # train | held_out
        *_VERDICT,
    ]
)
"""What a captioner is trained on: a row for every sample; only those that are ok are used."""

EVALUATIONS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),  # of captions
        pa.field("style", pa.string(), nullable=False),  # short | long | original | reference
        pa.field("metric", pa.string(), nullable=False),
        pa.field("item", pa.string()),  # of a histogram: what was counted
        pa.field("value", pa.float64(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # captions that it rests on
    ]
)
"""How good the captions of a run are, a row per style and metric."""

GENERATOR_EVALUATIONS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),  # the kind: dalle, latent, ...
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""What a generator's evaluation found, a row per figure."""

GENERATED = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("captions", pa.string()),  # the kind that was the prompt, where several were
        pa.field("category", pa.string()),
        pa.field("similarity", pa.float64()),
        pa.field("similarity_of_truth", pa.float64()),
        pa.field("judged", pa.float64()),  # share of yes among the answers that could be read
        pa.field("questions", pa.list_(pa.string())),
        pa.field("answers", pa.list_(pa.string())),  # yes | no | unreadable | failed
    ]
)
"""A row per picture of a generator's evaluation; an evaluation has some of these, and others."""

EVALUATED_CAPTIONS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        *_IDENTITY,
        pa.field("style", pa.string(), nullable=False),
        pa.field("words", pa.int32(), nullable=False),  # without punctuation
        pa.field("repetition", pa.float32(), nullable=False),
        pa.field("bleu_4", pa.float32()),  # these three: null without references
        pa.field("rouge_l", pa.float32()),
        pa.field("cider", pa.float32()),
        pa.field("clip_score", pa.float32()),
        pa.field("clip_score_worst", pa.float32()),  # of its chunks
        pa.field("ref_clip_score", pa.float32()),
        pa.field("mentions", pa.int32()),  # of the objects listed for its image
        pa.field("false_mentions", pa.int32()),
        pa.field("claims", pa.int32()),  # of a rendered scene
        pa.field("false_claims", pa.int32()),
        pa.field("main_is_right", pa.bool_()),
    ]
)
"""The same of each caption."""

EXPERIMENT = pa.schema(
    [
        pa.field("noise", pa.float64(), nullable=False),  # multiple of the counted rates
        pa.field("blend", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # of prompt
        pa.field("seeds", pa.int64(), nullable=False),
        pa.field("images", pa.int64(), nullable=False),  # of all seeds
        pa.field("attributes", pa.float64(), nullable=False),  # mean over seeds, percent right
        pa.field("spread", pa.float64()),  # their standard deviation; null of one seed
        pa.field("least", pa.float64(), nullable=False),
        pa.field("most", pa.float64(), nullable=False),
        pa.field("all_right", pa.float64(), nullable=False),  # percent of images
        pa.field("of_told", pa.float64(), nullable=False),  # percent right of what was drawn
    ]
)
"""How well prompts are followed, by what generators were trained on; a row per noise, blend and kind of
prompt."""

EXPERIMENT_SAMPLES = pa.schema(
    [
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("blend", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("scene", pa.int64(), nullable=False),
        pa.field("asked", pa.string(), nullable=False),
        pa.field("told", pa.string(), nullable=False),
        pa.field("stated", pa.int64(), nullable=False),  # attributes that `asked` states
        pa.field("right", pa.int64(), nullable=False),  # of these, what the image shows
        pa.field("wrong", pa.string(), nullable=False),  # their names
        pa.field("is_scene", pa.bool_(), nullable=False),
        pa.field("told_stated", pa.int64(), nullable=False),  # the same of `told`
        pa.field("told_right", pa.int64(), nullable=False),
    ]
)
"""The same of each image."""

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
