"""Importing sets: every row is a sample or a row with a reason, and image bytes stay what they are."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import commit, importing, tombstones
from pipeline.errors import UserError
from pipeline.image_text_set import ImageTextSet, open_set
from pipeline.images import IMAGE_REASONS
from pipeline.importing import ImportWork, Recipe
from pipeline.manifest import Shard
from pipeline.reading import MAX_TEXT_BYTES, read_samples
from pipeline.runs import Run
from pipeline.samples import uid_of
from pipeline.schemas import IMPORTED
from pipeline.set_source import ROW_REASONS, SetName, Sources, identity_of
from tests.support import sets
from tests.support.shards import cut, encoded, jpeg, pair, picture, png, write_tar


def work_of(out, path, size=10, limit=0, split="train", **columns) -> ImportWork:
    opened = open_set(SetName(str(path), split=split))
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
    assert [s.meta["dataset_key"] for s in samples] == [key for key, _ in packed]
    assert {s.meta["license"] for s in samples} == {"CC0"}
    assert not {"exif", "dataset_caption"} & set(samples[0].meta)


def gzipped(size: int) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(bytes(size))
    return file.getvalue()


def test_tars_are_read_as_shards_are(out, tmp_path):
    """Formats may change on the way, text may be broken, and nothing else is unpacked."""
    packed = [(f"{i}", {"jpg": jpeg(i), "txt": b"first"}) for i in range(6)]
    packed += [("6", {"png": png(6), "txt": b"later"}), ("7", {"jpg": jpeg(7), "txt": b"caf\xe9"})]
    packed += [("8", {"txt": b"no image", "bin.gz": gzipped(64 << 20), "pth": b"\x80\x02}."})]
    write_tar(tmp_path / "a.tar", packed)
    tracemalloc.start()
    rows, samples = write(work_of(out, tmp_path / "a.tar"))
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert [s.image for s in samples] == [m.get("jpg") or m["png"] for _, m in packed[:8]]
    assert [s.text for s in samples] == [*["first"] * 6, "later", None]
    assert (rows[7]["caption"], rows[7]["caption_status"]) == ("caf\ufffd", "invalid_utf8")
    assert samples[7].meta["dataset_caption"] == "caf\ufffd"
    assert (rows[8]["reason"], rows[8]["caption"]) == ("no_image", "no image")


@pytest.mark.parametrize("path", ["", "/*.tar", "/{00000..00002}.tar", "/{00000,00001,00002}.tar"])
def test_several_tars_are_read_in_order_and_all_of_them(out, tmp_path, path):
    for i in range(3):
        write_tar(tmp_path / f"set/{i:05d}.tar", [pair(f"{i}-{j}", 4 * i + j) for j in range(4)])
        (tmp_path / f"set/{i:05d}.json").write_text("{}")
    work = work_of(out, f"{tmp_path}/set{path}", size=5, limit=11)
    assert work.sources.counts == (4, 4, 3)
    _, samples = write(work)
    assert [s.image for s in samples] == [jpeg(i) for i in range(11)]


def test_captions_of_tars_may_be_fields_of_their_json(out, tmp_path):
    told = [{"alt": "an alt", "caption": "x"}, {"alt": ["one", "two"]}, {"alt": 5}]
    packed = [
        (f"{i}", {"jpg": jpeg(i), "txt": b"own", "json": json.dumps(meta).encode()})
        for i, meta in enumerate(told)
    ]
    path = write_tar(tmp_path / "a.tar", packed)
    _, samples = write(work_of(out, path, caption="alt"))
    assert [s.text for s in samples] == ["an alt", "one", None]
    assert samples[0].meta.items() >= {"txt": "own", "dataset_caption": "x"}.items()
    assert samples[1].meta["captions"] == ["one", "two"]
    opened = open_set(SetName(path))
    with pytest.raises(UserError, match="CAPTION_COL=other: no text of that name") as raised:
        opened.columns(caption="other")
    assert "txt, alt, caption" in raised.value.hint
    with pytest.raises(UserError, match="IMAGE_COL=png"):
        opened.columns(image="png")


def test_torn_and_missing_tars_are_told_before_anything_is_written(tmp_path):
    path = write_tar(tmp_path / "a.tar", [pair("a", 1)])
    cut(path, 2000)
    with pytest.raises(UserError, match=r"cannot be read: BadShard.*torn"):
        open_set(SetName(path)).sources()
    for name in (tmp_path / "none.tar", tmp_path / "{a,none}.tar"):
        with pytest.raises(UserError, match="DATASET="):
            open_set(SetName(str(name)))
    with pytest.raises(UserError, match="SPLIT=test"):
        open_set(SetName(path, split="test"))


@pytest.mark.parametrize("packed", ["parquet", "tar"])
def test_a_row_cannot_pass_as_a_sample_of_ours(out, tmp_path, packed):
    victim = uid_of("00000", "000000003")
    forged = {
        **{"uid": victim, "caption_source": "long", "source_shard": "00000"},
        **{"source_key": "000000003", "source_uid": victim, "key": "k", "width": 1},
        **{"dataset_uid": "ef" * 16, "sha256": "zz"},
    }
    if packed == "parquet":
        columns = {name: [value] for name, value in forged.items()}
        path = sets.parquet(tmp_path / "a.parquet", [jpeg(1)], text=["t"], **columns)
    else:
        forged |= {"caption": "t"}
        members = {"jpg": jpeg(1), "txt": b"t", "json": json.dumps(forged).encode()}
        path = write_tar(tmp_path / "a.tar", [("k", members)])
    _, [sample] = write(work_of(out, path))
    assert sample.uid == uid_of("00000", sample.key) != victim
    assert (sample.text, sample.meta["width"], sample.meta["key"]) == ("t", 64, "000000000")
    assert sample.meta["sha256"] == hashlib.sha256(jpeg(1)).hexdigest()
    assert {k: v for k, v in sample.meta.items() if k.startswith("dataset_")} == {
        **{"dataset_dataset_uid": victim, "dataset_uid": "ef" * 16, "dataset_key": "k"},
        **{"dataset_caption_source": "long", "dataset_source_shard": "00000"},
        **{"dataset_source_key": "000000003", "dataset_source_uid": victim},
        **{"dataset_width": 1, "dataset_sha256": "zz"},
    }


def test_the_hashes_of_what_was_fetched_stay(out, tmp_path):
    fetched = {"sha256": "AB" * 32, "md5": "cd" * 16, "uid": "0123456789abcdef" * 2}
    path = write_tar(tmp_path / "a.tar", [pair("a", 1, **fetched)])
    [row], [sample] = write(work_of(out, path))
    assert (sample.meta["sha256"], sample.meta["md5"]) == (fetched["sha256"], fetched["md5"])
    assert row["sha256"] == hashlib.sha256(jpeg(1)).hexdigest()
    assert sample.meta["dataset_uid"] == fetched["uid"]  # DataComp's own


def test_only_the_chosen_column_is_the_caption(out, tmp_path):
    path = sets.parquet(
        tmp_path / "a.parquet",
        [jpeg(i) for i in range(3)],
        words=["yes", "", None],
        caption=["other 1", "other 2", "yes"],
    )
    rows, samples = write(work_of(out, path, caption="words"))
    assert [s.text for s in samples] == ["yes", None, None]
    assert [r["caption_status"] for r in rows] == ["ok", "empty", "missing"]
    assert [s.meta["dataset_caption"] for s in samples] == ["other 1", "other 2", "yes"]
    assert not any("caption" in s.meta for s in samples[1:])


def test_caption_columns_are_resolved_by_their_types(out, tmp_path):
    table = pa.table({
        "image": pa.array([{"bytes": jpeg(0), "path": None}], sets.IMAGE),
        "n": [1.0],
        "s": [{"raw": ["a", "b"], "deep": {"er": "c"}}],
        "ls": [[{"raw": "d"}, {"raw": "e"}]],
        "big": pa.array([["f"]], pa.large_list(pa.large_string())),
        "dotted.name": ["g"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    opened = open_set(SetName(str(tmp_path / "a.parquet")))
    [row] = opened.rows(0)
    known = {"s.raw": ("a", "b"), "s.deep.er": ("c",), "ls.raw": ("d", "e"), "big": ("f",)}
    for name, texts in (known | {"dotted.name": ("g",), "ls.raw,big": ("d", "e", "f")}).items():
        assert opened.read(row, opened.columns(caption=name)).texts == texts
    for name in ("s.nope", "ls.nope", "n.a", "nothing", "s.raw.more"):
        with pytest.raises(UserError, match=f"CAPTION_COL={name} is no column"):
            opened.columns(caption=name)
    for name in ("n", "s", "ls", "image", "s.deep"):
        with pytest.raises(UserError, match=f"CAPTION_COL={name} holds no texts"):
            opened.columns(caption=name)


def test_files_that_rows_name_are_those_of_the_set(out, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg(99))
    (folder / "in.jpg").write_bytes(jpeg(1))
    (folder / "link.jpg").symlink_to(folder / "in.jpg")
    (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with zipfile.ZipFile(folder / "more.zip", "w") as packed:
        packed.writestr("inner.jpg", jpeg(2))
    paths = ["in.jpg", str(folder / "in.jpg"), "link.jpg", "out.jpg", "pipe.jpg", "none.jpg"]
    paths += ["zip://inner.jpg::more.zip", f"zip://x::{tmp_path}/more.zip", "a\x00.jpg"]
    path = sets.parquet(
        folder / "train.parquet",
        [{"bytes": None, "path": name} for name in paths],
        row_group=len(paths),
        caption=paths,
    )
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "in.jpg").write_bytes(jpeg(5))
    monkeypatch.chdir(other)
    opened = ImageTextSet(SetName(str(path.parent)))
    found = [opened.read(row, opened.columns()) for row in opened.rows(0)]
    assert [row.image for row in found if not row.reason] == [*[jpeg(1)] * 3, jpeg(2)]
    assert [row.reason for row in found if row.reason] == [
        *("elsewhere", "unreadable", "unreadable", "elsewhere", "unreadable")
    ]


def test_a_folder_of_zipped_images(out, tmp_path):
    folder = sets.folder(tmp_path / "set", 3)
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped/train.zip", "w") as packed:
        for file in sorted(folder.iterdir()):
            packed.write(file, file.name)
    _, samples = write(work_of(out, tmp_path / "zipped"))
    assert [(s.image, s.text) for s in samples] == [(jpeg(i), f"picture {i}") for i in range(3)]


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar"])
def test_a_set_that_was_only_touched_is_the_same(out, tmp_path, kind):
    if kind == "folder":
        path = sets.folder(tmp_path / "set", 3)
        changed = path / "metadata.jsonl"
    elif kind == "parquet":
        path = changed = sets.parquet(tmp_path / "a.parquet", [jpeg(0)], caption=["c"])
    else:
        path = write_tar(tmp_path / "a.tar", [pair(f"{i}", i) for i in range(40)])
        changed = Path(path)
    before = open_set(SetName(str(path))).identity
    os.utime(changed, ns=(1, 1))
    assert open_set(SetName(str(path))).identity == before
    data = changed.read_bytes()
    changed.write_bytes(data[:1000].swapcase() + data[1000:] if kind == "tar" else data + b" ")
    assert identity_of([str(changed)]) != before
    if kind != "parquet":
        assert open_set(SetName(str(path))).identity != before


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
