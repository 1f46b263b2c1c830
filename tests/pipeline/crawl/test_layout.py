"""A crawled shard reads exactly like one that img2dataset wrote of the same list, and is right."""

import hashlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.crawl.plan import key_of
from pipeline.manifest import Shard
from pipeline.reading import read_samples
from tests.support import crawling, shards
from tests.support import img2dataset_peer as peer
from tests.support.hostile_server import hostile_server

pytest.importorskip("img2dataset")

SHARD_SIZE = 10
RESIZE = {"image_size": 48, "resize_mode": "keep_ratio", "resize_only_if_bigger": False}
OURS = ["md5", "reason", "http_status", "attempts", "hash_check", "retry_of"]


@pytest.fixture(scope="module")
def server():
    with hostile_server() as running:
        yield running


@pytest.fixture(scope="module")
def crawled(server, tmp_path_factory):
    """Folder of ours, folder of img2dataset's, of one list with hashes."""
    folder = tmp_path_factory.mktemp("both")
    urls = [f"{server.url}/image/{i}.{('jpg', 'png', 'webp')[i % 3]}" for i in range(20)]
    urls[5:5] = [f"{server.url}/status/404/1.jpg", f"{server.url}/tag/3.jpg?tag=noai"]
    hashes = [fetched_hash(url) for url in urls]
    hashes[13] = "0" * 64
    more = {
        "sim": [i / 7 for i in range(22)],
        "n": [None if i == 4 else i for i in range(22)],
        "boxes": [[[0.5, 0.25]]] * 22,
        "digest": hashes,
    }
    url_list = crawling.listed(folder / "list.parquet", urls, **more)
    theirs, ours = folder / "theirs", folder / "ours"
    names = {"caption_col": "text", "keep": ["sim", "n", "boxes"]}
    names |= {"verify_hash": ("digest", "sha256"), "shard_size": SHARD_SIZE}
    peer.crawl(url_list, theirs, resize=RESIZE, **names)
    flags = ["--keep-cols", "sim,n,boxes", "--hash-col", "digest", "--shard-size", SHARD_SIZE]
    flags += ["--resize", "keep_ratio", "--size", 48]
    assert crawling.crawl(ours, url_list, *flags) == 0
    return ours, theirs


def fetched_hash(url: str) -> str:
    import urllib.request

    try:
        with urllib.request.urlopen(url) as answer:
            return hashlib.sha256(answer.read()).hexdigest()
    except OSError:
        return ""


@pytest.mark.parametrize("shard", ["00000", "00001", "00002"])
def test_the_same_files_with_the_same_members(crawled, shard):
    ours, theirs = crawled
    mine = crawling.members(ours / "shards" / f"{shard}.tar")
    other = crawling.members(theirs / f"{shard}.tar")
    assert set(mine) == set(other)
    assert list(mine) == sorted(mine, key=lambda name: name.split(".")[0])
    for name, data in other.items():
        if name.endswith(".txt"):
            assert mine[name] == data
        elif name.endswith(".json"):
            same_json(json.loads(mine[name]), json.loads(data))
            assert b'\n    "url": ' in mine[name]


def same_json(mine: dict, other: dict) -> None:
    assert list(mine)[: len(other)] == list(other)
    assert list(mine)[len(other) :] == OURS
    for key, value in other.items():
        if key != "exif":  # theirs tells all of it
            assert mine[key] == value and type(mine[key]) is type(value), key
    assert json.loads(mine["exif"]) == {}


@pytest.mark.parametrize("shard", ["00000", "00001", "00002"])
def test_the_same_table(crawled, shard):
    ours, theirs = crawled
    mine = pq.read_table(ours / "shards" / f"{shard}.parquet")
    other = pq.read_table(theirs / f"{shard}.parquet")
    assert mine.schema.names == [*other.schema.names, *OURS]
    assert [mine.schema.field(n).type for n in other.schema.names] == other.schema.types
    by_key = {row["key"]: row for row in other.to_pylist()}
    assert [row["key"] for row in mine.to_pylist()] == sorted(by_key)
    for row in mine.to_pylist():
        theirs_ = by_key[row["key"]]
        same = ["sim", "n", "boxes", "caption", "url", "key", "status", "width", "height"]
        assert {n: row[n] for n in same} == {n: theirs_[n] for n in same}
        if row["status"] == "success":
            assert row["sha256"] == theirs_["sha256"]
            assert row["original_width"] == theirs_["original_width"]


def test_the_same_stats(crawled):
    ours, theirs = crawled
    for shard in ("00000", "00001", "00002"):
        mine = crawling.stats(ours, shard)
        other = json.loads((theirs / f"{shard}_stats.json").read_text())
        assert set(other) <= set(mine)
        counts = ("count", "successes", "failed_to_download", "failed_to_resize")
        assert {c: mine[c] for c in counts} == {c: other[c] for c in counts}
        assert mine["status_dict"].get("success") == other["status_dict"].get("success")
        assert mine["status_dict"].get("hash mismatch") == other["status_dict"].get("hash mismatch")
    assert crawling.stats(ours, "00001")["status_dict"]["hash mismatch"] == 1


def test_the_same_pictures(crawled):
    """Resized from the same pixels by the same resizer: JPEG decoders may differ a little."""
    ours, theirs = crawled
    mine = crawling.members(ours / "shards/00000.tar")
    other = crawling.members(theirs / "00000.tar")
    for name in (name for name in mine if name.endswith(".jpg")):
        a, b = (np.asarray(Image.open(io.BytesIO(m[name])), np.int16) for m in (mine, other))
        assert a.shape == b.shape
        assert np.abs(a - b).mean() < 1.5


def test_every_reader_reads_it(crawled):
    ours, _ = crawled
    tar = str(ours / "shards/00000.tar")
    samples = list(webdataset.WebDataset(tar, shardshuffle=False, empty_check=False))
    found = [[name for name in sample if not name.startswith("__")] for sample in samples]
    assert found == [["jpg", "txt", "json"]] * len(samples) != []
    read = list(read_samples(Shard(name="00000", url=tar, size=0)))
    assert [s.key for s in read] == [s["__key__"] for s in samples]
    assert all(s.text_status == "ok" and s.meta_status == "ok" and not s.reason for s in read)


def test_the_tar_has_no_clock_and_no_owner(crawled):
    ours, _ = crawled
    for header in shards.places(ours / "shards/00000.tar"):
        assert (header.mtime, header.uid, header.gid, header.uname) == (0, 0, 0, "")


@pytest.mark.parametrize(
    ("shard", "index", "size", "key"),
    [
        ("00003", 7, 10_000, "000030007"),
        ("00003", 7, 1000, "00003007"),
        ("00000003", 7, 10_000, "000000030007"),
        ("00003", 7, 1001, "000030007"),
        ("00003", 0, 1, "00003"),
    ],
)
def test_keys_are_counted_as_img2dataset_does(shard, index, size, key):
    assert key_of(shard, index, size) == key
    compute_key = peer.module("downloader").compute_key
    digits = int(np.ceil(np.log10(size)))
    assert compute_key(index, int(shard), digits, len(shard)) == key
