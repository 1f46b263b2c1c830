"""Importing sets: every row is a sample or a row with a reason, and image bytes stay what they are."""

import hashlib
import io
import json
import os
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import commit, importing, tombstones
from pipeline.errors import UserError
from pipeline.image_text_set import ROW_REASONS, ImageTextSet, SetName, Sources
from pipeline.images import IMAGE_REASONS
from pipeline.importing import ImportWork, Recipe
from pipeline.manifest import Shard
from pipeline.reading import MAX_TEXT_BYTES, read_samples
from pipeline.runs import Run
from pipeline.samples import uid_of
from pipeline.schemas import IMPORTED
from tests.support import sets
from tests.support.shards import encoded, jpeg, pair, picture, png, write_tar


def work_of(out, path, size=10, limit=0, split="train", **columns) -> ImportWork:
    opened = ImageTextSet(SetName(str(path), split=split))
    recipe = Recipe(opened.name, opened.columns(**columns), size, limit)
    run = Run(str(out), importing.KIND, "", importing.config_of(recipe, opened.identity))
    return ImportWork(recipe, importing.make_plan(run, opened, limit), run)


def write(work: ImportWork) -> tuple[list[dict], list]:
    """All rows, and all samples."""
    work.setup()
    rows, samples = [], []
    for shard in work.planned():
        record = work.perform(shard, frozenset())
        assert record.counts["samples"] == shard.samples
        table = commit.read_sidecar(work.run.file(f"{shard.name}.parquet"))
        assert table.schema.names == IMPORTED.names
        rows += table.to_pylist()
        if Path(shard.url).exists():
            samples += read_samples(Shard(shard.name, shard.url, 0))
    return rows, samples


def test_a_folder_of_images_with_metadata(out, tmp_path):
    names = [f"author {i}" for i in range(25)]
    path = sets.folder(tmp_path / "set", 25, author=names, year=list(range(25)))
    rows, samples = write(work_of(out, path))
    assert [r["row"] for r in rows] == list(range(25))
    assert [s.key for s in samples] == [f"{i // 10:05d}{i % 10:04d}" for i in range(25)]
    for i, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        assert sample.image == jpeg(i)
        assert (sample.text, sample.meta["author"], sample.meta["year"]) == (
            f"picture {i}",
            f"author {i}",
            i,
        )
        assert sample.uid == uid_of(f"{i // 10:05d}", row["key"])
        assert row["sha256"] == sample.meta["sha256"] == hashlib.sha256(sample.image).hexdigest()
        assert (row["width"], row["height"]) == (64, 48)


def test_every_format_keeps_its_bytes_under_its_own_suffix(out, tmp_path):
    images = [
        *(png(1), encoded(picture(2), "WEBP"), encoded(picture(3), "TIFF"), jpeg(4)),
        *(encoded(picture(5), "GIF"), encoded(picture(6).convert("CMYK"), "JPEG")),
    ]
    path = sets.parquet(tmp_path / "a.parquet", images, caption=[f"c{i}" for i in range(6)])
    work = work_of(out, path)
    _, samples = write(work)
    assert [s.image for s in samples] == images
    with tarfile.open(work.planned()[0].url) as tar:
        names = tar.getnames()
    suffixes = [n.rsplit(".", 1)[1] for n in names if not n.endswith(("txt", "json"))]
    assert suffixes == ["png", "webp", "tif", "jpg", "gif", "jpg"]


def test_what_is_no_image_is_a_row_with_its_reason(out, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(99))
    whole = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")
    rows = {
        "no_image": [None, {"bytes": None, "path": None}],
        "empty": [b""],
        "not_an_image": [b"<html>sorry</html>"],
        "truncated": [whole[: len(whole) // 2]],
        "elsewhere": [
            {"bytes": None, "path": str(secret)},
            {"bytes": None, "path": "../secret.jpg"},
            {"bytes": None, "path": "http://127.0.0.1:1/a.jpg"},
            {"bytes": None, "path": f"file://{secret}"},
            {"bytes": None, "path": f"simplecache::{secret}"},
        ],
        "too_many_pixels": [_huge_png()],
    }
    given = [(reason, row) for reason, found in rows.items() for row in found]
    captions = [f"caption {i}" for i in range(len(given) + 1)]
    images = [row for _, row in given] + [jpeg(1)]
    path = sets.parquet(tmp_path / "set/train.parquet", images, caption=captions)
    for place in (path, path.parent):
        made, samples = write(work_of(tmp_path / f"out-{place.name}", place))
        assert [r["reason"] for r in made[:-1]] == [reason for reason, _ in given]
        assert [r["caption"] for r in made] == captions
        assert [s.image for s in samples] == [jpeg(1)]
    assert {r for r, _ in given} <= {*ROW_REASONS, *IMAGE_REASONS}


def _huge_png() -> bytes:
    """A header that promises 10^10 pixels."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_of_several_captions_the_first_is_the_text_and_all_are_kept(out, tmp_path):
    lists = [["one", "two"], ["", "second"], [], ["x" * (MAX_TEXT_BYTES + 1), "b"], ["only"]]
    path = sets.parquet(tmp_path / "a.parquet", [jpeg(i) for i in range(5)], captions=lists)
    rows, samples = write(work_of(out, path))
    assert [s.text for s in samples] == ["one", "second", None, None, "only"]
    assert samples[0].meta["captions"] == rows[0]["captions"] == ["one", "two"]
    assert [r["caption_status"] for r in rows] == ["ok", "ok", "missing", "too_long", "ok"]
    assert "captions" not in samples[4].meta


def test_columns_are_found_or_asked_for(tmp_path):
    images = [jpeg(i) for i in range(2)]
    columns = {"title": ["t", "u"], "words": ["w", "x"], "n": [1, 2]}
    path = sets.parquet(tmp_path / "a.parquet", images, **columns)
    opened = ImageTextSet(SetName(str(path)))
    assert opened.columns().caption == ("title",)
    assert opened.columns(caption="words, title").caption == ("words", "title")
    with pytest.raises(UserError, match="CAPTION_COL=nothing is no column"):
        opened.columns(caption="nothing")
    with pytest.raises(UserError, match="IMAGE_COL=title holds no images"):
        opened.columns(image="title")
    other = sets.parquet(tmp_path / "b.parquet", images, this=["a", "b"], that=["c", "d"])
    with pytest.raises(UserError, match="none of its texts is called a caption") as raised:
        ImageTextSet(SetName(str(other))).columns()
    assert "this (str)" in raised.value.hint


def test_plain_bytes_and_class_numbers(out, tmp_path):
    told = {"huggingface": json.dumps({"info": {"features": {
        "jpg": {"dtype": "binary", "_type": "Value"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }}})}  # fmt: skip
    table = pa.table({"jpg": [jpeg(0), jpeg(1)], "label": [1, 0]}).replace_schema_metadata(told)
    pq.write_table(table, tmp_path / "a.parquet")
    rows, samples = write(work_of(out, tmp_path / "a.parquet"))
    assert [s.meta["label"] for s in samples] == ["dog", "cat"]
    assert [r["caption_status"] for r in rows] == ["missing", "missing"]


def test_webdatasets_keep_what_their_json_told(out, tmp_path):
    packed = [pair(f"{i:09d}", i, license="CC0", exif='{"GPS": 1}') for i in range(12)]
    write_tar(tmp_path / "set/00000.tar", packed[:5])
    write_tar(tmp_path / "set/00001.tar", packed[5:])
    _, samples = write(work_of(out, tmp_path / "set"))
    assert [s.image for s in samples] == [members["jpg"] for _, members in packed]
    assert [s.text for s in samples] == [members["txt"].decode() for _, members in packed]
    assert [s.meta["source_key"] for s in samples] == [key for key, _ in packed]
    assert {s.meta["license"] for s in samples} == {"CC0"}
    assert not {"exif", "__url__"} & set(samples[0].meta)


def test_values_that_json_cannot_hold_stay_out(out, tmp_path):
    images = [jpeg(0), jpeg(1)]
    values = {"score": [float("nan"), 0.5], "caption": ["a", "b"], "huge": ["h" * (1 << 20), ""]}
    path = sets.parquet(tmp_path / "a.parquet", images, **values)
    _, samples = write(work_of(out, path))
    assert samples[0].meta_status == "ok"
    assert set(samples[0].meta) == {"key", "caption", "width", "height", "sha256"}
    assert samples[1].meta["score"] == 0.5


def test_the_rows_do_not_depend_on_the_size_of_shards(tmp_path):
    path = sets.parquet(
        tmp_path / "set/train.parquet", [jpeg(i) for i in range(40)], caption=["c"] * 40
    )
    found = []
    for size in (40, 7, 11):
        rows, samples = write(work_of(tmp_path / f"out{size}", path.parent, size))
        found.append([(r["row"], r["sha256"], r["reason"]) for r in rows])
        assert [s.image for s in samples] == [jpeg(i) for i in range(40)]
    assert found[0] == found[1] == found[2]


def test_pieces_are_exactly_the_rows_asked_for():
    sources = Sources((3, 0, 5, 1), "")
    order = [(s, r) for s, n in enumerate(sources.counts) for r in range(n)]
    for start in range(10):
        for stop in range(start, 10):
            found = sources.pieces(start, stop)
            told = [(s, r) for s, first, n in found for r in range(first, first + n)]
            assert told == order[start:stop]


def test_row_groups_are_counted_from_footers_as_by_reading(tmp_path):
    path = sets.parquet(
        tmp_path / "a.parquet", [jpeg(0)] * 17, row_group=5, caption=[str(i) for i in range(17)]
    )
    opened = ImageTextSet(SetName(str(path)))
    assert opened.sources().counts == (5, 5, 5, 2)
    assert [sum(1 for _ in opened.rows(i)) for i in range(4)] == [5, 5, 5, 2]
    assert [r["caption"] for r in opened.rows(2, 1, 3)] == ["11", "12", "13"]


def test_a_changed_set_is_refused(out, tmp_path):
    path = sets.folder(tmp_path / "set", 5)
    work = work_of(out, path)
    write(work)
    assert all(work.done(shard) for shard in work.planned())
    (path / "000.jpg").write_bytes(jpeg(50))
    os.utime(path / "000.jpg", ns=(1, 1))
    with pytest.raises(UserError, match="changed since"):
        work.setup()
    with pytest.raises(UserError, match="changed since"):
        work_of(out, path)


def test_what_was_taken_down_does_not_come_back(out, tmp_path):
    path = sets.parquet(
        tmp_path / "a.parquet",
        [jpeg(i) for i in range(4)],
        caption=list("abcd"),
        url=[f"https://example.org/{i}" for i in range(4)],
    )
    buried = tombstones.Tombstones(
        sha256s=frozenset((hashlib.sha256(jpeg(1)).hexdigest(),)),
        urls=frozenset((tombstones.url_hash("https://example.org/3"),)),
    )
    tombstones.add(out, buried, "asked")
    work = work_of(out, path)
    rows, samples = write(work)
    assert [r["reason"] for r in rows] == [None, "taken_down", None, "taken_down"]
    assert [r["caption"] for r in rows] == ["a", None, "c", None]
    assert [s.image for s in samples] == [jpeg(0), jpeg(2)]


def test_a_row_that_killed_its_worker_only_has_a_row(out, tmp_path):
    work = work_of(out, sets.folder(tmp_path / "set", 4))
    work.setup()
    [shard] = work.planned()
    work.probe(shard, frozenset({1}), range(4))
    record = work.perform(shard, frozenset({1}))
    assert record.counts["reason"] == {"killed_worker": 1}
    assert [s.image for s in read_samples(Shard("00000", shard.url, 0))] == [
        jpeg(0),
        jpeg(2),
        jpeg(3),
    ]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "none", "cannot be read"),
        (lambda p: sets.folder(p / "set", 2), "SPLIT=other"),
        (lambda p: _csv(p), "of format csv"),
        (lambda p: _pickle(p), "DATASET="),
    ],
)
def test_what_is_no_set_is_told_in_a_line(tmp_path, make, says):
    split = "other" if "SPLIT" in says else "train"
    with pytest.raises(UserError, match=says) as raised:
        ImageTextSet(SetName(str(make(tmp_path)), split=split))
    assert "\n" not in raised.value.message


def _csv(path):
    (path / "set").mkdir()
    (path / "set/train.csv").write_text("url,caption\nhttps://example.org/a.jpg,a\n")
    return path / "set"


def _pickle(path):
    """A set whose file would run a program, if anybody unpickled it."""
    (path / "set").mkdir()
    payload = b"cos\nsystem\n(S'touch %s'\ntR." % str(path / "ran").encode()
    (path / "set/train.pkl").write_bytes(payload)
    return path / "set"


def test_code_of_a_set_is_not_run(tmp_path):
    folder = sets.folder(tmp_path / "set", 2)
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "other").mkdir()
    for path in (folder, _pickle(tmp_path / "other")):
        with pytest.raises(UserError):
            ImageTextSet(SetName(str(path)))
    assert not list(tmp_path.rglob("ran"))
