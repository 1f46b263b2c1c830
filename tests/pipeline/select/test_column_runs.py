"""Names in conditions: found in whichever run has them, refused where two have, explained where none has."""

import pyarrow as pa
import pytest

from pipeline import manifest, storage
from pipeline.annotate.stages import STAGES
from pipeline.errors import UserError
from pipeline.select.column_runs import Column, Names, known
from tests.support.selecting import annotated, shards_of

INT, FLOAT, TEXT = pa.int32(), pa.float32(), pa.string()


@pytest.fixture
def names(out) -> Names:
    """image, two clip runs, and captions."""
    shards = shards_of(out, 1)
    annotated(out, shards, "image@1", [[{}]], {"width": INT, "height": INT})
    for model in ("ViT-B-32", "ViT-L-14"):
        annotated(out, shards, f"clip@{model}", [[{}]], {"similarity": FLOAT})
    annotated(out, shards, "first", [[{}]], {"caption_long": TEXT, "width": INT}, kind="captions")
    return Names(known(out), out)


@pytest.mark.parametrize(
    ("name", "run", "column"),
    [
        (("width",), "columns/image@1", "width"),  # columns come before captions
        (("WIDTH",), "columns/image@1", "width"),
        (("image@1", "width"), "columns/image@1", "width"),
        (("image", "width"), "columns/image@1", "width"),
        (("captions/first", "width"), "captions/first", "width"),
        (("first", "width"), "captions/first", "width"),
        (("caption_long",), "captions/first", "caption_long"),
        (("clip@ViT-L-14", "similarity"), "columns/clip@ViT-L-14", "similarity"),
        (("image_status",), "columns/image@1", "status"),
        (("image_reason",), "columns/image@1", "reason"),
        (("image", "reason"), "columns/image@1", "reason"),
        (("clip@ViT-L-14", "status"), "columns/clip@ViT-L-14", "status"),
    ],
)
def test_a_name_means_one_column(names, name, run, column):
    assert names.column(name, "WHERE") == Column(run, column)


def test_uid_is_the_same_everywhere(names):
    assert names.column(("uid",), "WHERE").name == "uid"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (("similarity",), "2 runs have a column similarity", '"clip@ViT-B-32".similarity'),
        (("clip", "similarity"), "2 runs", '"clip@ViT-L-14".similarity'),
        (("clip_status",), "2 runs", "clip@ViT-B-32"),
        (("widht",), "no column widht", "width"),
        (("similarty",), "no column similarty", "similarity"),
        (("nsfw",), "no column nsfw", "STAGES=safety"),
        (("duplicate_kind",), "no column duplicate_kind", "make dedup"),
        (("languag",), "no column languag", "language (of stage text)"),
        (("status",), "every run has a status", "image_status"),
        (("nobody", "width"), 'no run "nobody"', '"image@1"'),
        (("image", "similarity"), "image.similarity", ""),
        (("a", "b", "c"), "too many dots", ""),
    ],
)
def test_what_it_cannot_mean_is_said_in_one_line(names, name, message, hint):
    with pytest.raises(UserError) as e:
        names.column(name, "WHERE")
    assert message in e.value.message and hint in e.value.hint
    assert "\n" not in str(e.value)


def test_runs_decides_between_runs_of_a_stage(names, out):
    chosen = known(out, "clip@ViT-L-14")
    found = Names(chosen, out).column(("similarity",), "WHERE")
    assert found == Column("columns/clip@ViT-L-14", "similarity")
    assert {run.title for run in chosen} >= {"columns/image@1", "captions/first"}
    with pytest.raises(UserError, match="no columns of clip@other"):
        known(out, "clip@other")


def test_runs_of_the_first_few_are_only_meant_where_they_are_named(names, out):
    [shard] = shards_of(out, 1)
    for run in ("image@1-limit5", "image@1-limit10"):
        annotated(out, [shard], run, [[{}]], {"width": INT, "height": INT})
    annotated(out, [shard], "first-limit5", [[{}]], {"caption_long": TEXT}, kind="captions")
    annotated(out, [shard], "text@1-limit5", [[{}]], {"words": INT})
    names = Names(known(out), out)
    assert names.column(("width",), "WHERE").run == "columns/image@1"
    assert names.column(("caption_long",), "WHERE").run == "captions/first"
    assert names.column(("words",), "WHERE").run == "columns/text@1-limit5"  # there is no other
    names = Names(known(out, "image@1-limit5,captions/first-limit5"), out)
    assert names.column(("width",), "WHERE").run == "columns/image@1-limit5"


def test_no_columns_yet(out):
    shards_of(out, 1)
    with pytest.raises(UserError, match="make annotate"):
        Names(known(out), out).any()


def test_no_column_is_in_two_stages():
    names = [name for columns in STAGES.values() for name in columns]
    assert len(set(names)) == len(names) > 40
    assert len(STAGES) == 8


def test_object_stores(store):
    shard = store + "/raw/00000.tar"
    storage.write_bytes(shard, b"x")
    out = store + "/out"
    annotated(out, manifest.register(out, [shard]), "image@1", [[{"width": 3}]], {"width": INT})
    assert [run.title for run in known(out)] == ["columns/image@1"]
