"""A part of a list becomes a shard: every URL a row, in order, within bounds, whatever is served."""

import hashlib
import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import commit, images, tombstones
from pipeline.crawl import plan, work
from pipeline.crawl.fetch import Fetched
from pipeline.crawl.layout import MATCH, MISMATCH, NEAR_DUPLICATE, REASONS
from pipeline.crawl.making import PHASH_RADIUS, Maker
from pipeline.crawl.presets import Columns
from pipeline.crawl.resize import Imaging, ResizeSettings
from pipeline.crawl.settings import FetchSettings
from pipeline.crawl.url_lists import find
from pipeline.crawl.window import Window
from pipeline.crawl.work import CrawlWork, Effort
from pipeline.hashes import phash64
from pipeline.runs import Run
from pipeline.tombstones import Tombstones
from tests.support import crawling, shards
from tests.support.hostile_server import hostile_server, picture


@pytest.fixture(scope="module")
def server():
    with hostile_server() as running:
        yield running


def work_of(
    out: Path, url_list: str, columns: Columns | None = None, **effort: object
) -> CrawlWork:
    columns = columns or Columns(caption="text")
    run = Run(out=str(out), kind="shards", name="", config={"shard_size": 100})
    planned = plan.make(run, find(url_list), columns, 100)
    fetch = {"allow_private": ("127.0.0.1/32",), "per_host": 64, "retries": 0, "backoff_sec": 0.01}
    fetch |= effort.pop("fetch", {})
    made = CrawlWork(
        planned, run, columns, ResizeSettings(), Effort(fetch=FetchSettings(**fetch), **effort)
    )
    made.setup()
    return made


def performed(out: Path, url_list: str, *args: object, **effort: object) -> list[dict]:
    each = work_of(out, url_list, *args, **effort)
    for shard in each.planned():
        record = each.perform(shard, frozenset())
        assert each.done(shard) == record
        assert record.counts["samples"] == shard.samples
    return crawling.rows(out)


def test_every_end_has_its_reason(server, tmp_path):
    expected = {
        "/image/1.jpg": "",
        "/status/404/1.jpg": "not_found",
        "/status/410/1.jpg": "gone",
        "/html": "html_instead",
        "/html-as-jpeg": "html_instead",
        "/bomb.png": "too_many_pixels",
        "/tag/2.jpg?tag=noai": "opted_out",
        "/empty": "empty_body",
        "/truncated/1.jpg": "truncated_body",
        "/silent": "deadline",
        "/endless": "too_many_bytes",
        "/wrong-type/5.jpg": "",
    }
    urls = [server.url + path for path in expected]
    more = {"file:///etc/passwd": "bad_scheme", "http://127.0.0.2/1.jpg": "private_address"}
    more |= {"nonsense": "bad_url", "": "bad_url"}
    url_list = crawling.listed(tmp_path / "list.parquet", [*urls, *more, None])
    fetch = {"timeout_sec": 2, "max_bytes": 2_000_000}
    found = performed(tmp_path / "out", url_list, fetch=fetch)
    ends = [(row["url"], row["reason"] or "") for row in found]
    wanted = [*expected.values(), *more.values(), "bad_url"]
    assert ends == list(zip([*urls, *more, None], wanted, strict=True))
    assert {row["reason"] for row in found} - {None} <= set(REASONS)
    assert all((row["reason"] is None) == (row["status"] == "success") for row in found)
    assert all((row["error_message"] is None) == (row["status"] == "success") for row in found)


def test_rows_and_members_in_the_order_of_the_list(server, tmp_path):
    """The first answers last, and the later ones one before the other."""
    urls = [f"{server.url}/delay/{0.6 if i == 0 else 0.3 - i / 100}/{i}.jpg" for i in range(20)]
    found = performed(tmp_path / "out", crawling.listed(tmp_path / "list.parquet", urls))
    assert [row["url"] for row in found] == urls
    names = list(crawling.members(tmp_path / "out/shards/00000.tar"))
    assert names == [f"00000{i:02d}.{s}" for i in range(20) for s in ("jpg", "txt", "json")]


def test_original_bytes_and_their_hash(server, tmp_path):
    urls = [f"{server.url}/image/{i}.jpg" for i in range(5)]
    found = performed(tmp_path / "out", crawling.listed(tmp_path / "list.parquet", urls))
    members = crawling.members(tmp_path / "out/shards/00000.tar")
    for number, row in enumerate(found):
        assert row["sha256"] == hashlib.sha256(picture(number)).hexdigest()
        assert members[row["key"] + ".jpg"] == images.training_jpeg(picture(number)).data
        assert row["width"], row["height"] == (80, 64)


def test_the_same_bytes_however_fast_and_however_many_threads(server, tmp_path):
    urls = [f"{server.url}/image/{i}.{('jpg', 'png')[i % 2]}" for i in range(60)]
    urls += [f"{server.url}/status/404/{i}.jpg" for i in range(5)]
    url_list = crawling.listed(tmp_path / "list.parquet", urls)
    made = []
    for number, (threads, concurrency) in enumerate(((1, 1), (3, 64))):
        out = tmp_path / str(number)
        performed(out, url_list, threads=threads, fetch={"concurrency": concurrency})
        made.append([(out / f"shards/00000.{s}").read_bytes() for s in ("tar", "parquet")])
    assert made[0] == made[1]


def test_no_caption_no_txt(server, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(f"{server.url}/image/1.jpg\n")
    performed(tmp_path / "out", str(path), Columns())
    assert list(crawling.members(tmp_path / "out/shards/00000.tar")) == [
        "0000000.jpg",
        "0000000.json",
    ]


def test_captions_that_are_null_or_odd(server, tmp_path):
    urls = [f"{server.url}/image/{i}.jpg" for i in range(3)]
    texts = pa.array([None, "", "a\n\u2028 b\x00"], pa.string())
    sims = pa.array([float("nan"), float("inf"), 0.5])
    pq.write_table(pa.table({"url": urls, "text": texts, "sim": sims}), tmp_path / "list.parquet")
    columns = Columns(caption="text", keep=("sim",))
    performed(tmp_path / "out", str(tmp_path / "list.parquet"), columns)
    members = crawling.members(tmp_path / "out/shards/00000.tar")
    assert [members[f"000000{i}.txt"] for i in range(3)] == [b"", b"", "a\n\u2028 b\x00".encode()]
    told = [json.loads(members[f"000000{i}.json"]) for i in range(3)]
    assert [t["caption"] for t in told] == texts.to_pylist()
    assert [t["sim"] for t in told] == [None, None, 0.5]


# --- hashes --------------------------------------------------------------------------------------


def test_a_mismatch_is_quarantined(server, tmp_path):
    urls = [f"{server.url}/image/{i}.jpg" for i in range(5)] + [f"{server.url}/status/404/1.jpg"]
    hashes = [hashlib.md5(picture(i)).hexdigest() for i in range(5)] + ["00"]
    hashes[1], hashes[2], hashes[3] = "0" * 32, hashes[2].upper(), None
    url_list = crawling.listed(tmp_path / "list.parquet", urls, digest=hashes)
    columns = Columns(caption="text", hash="digest", hash_type="md5")
    out = tmp_path / "out"
    found = performed(out, url_list, columns)
    assert [row["hash_check"] for row in found] == [MATCH, MISMATCH, MATCH, None, MATCH, None]
    bad = found[1]
    told = (bad["status"], bad["error_message"], bad["reason"])
    assert told == ("failed_to_download", "hash mismatch", "hash_mismatch")
    assert [row["md5"] for row in found[:5]] == [
        hashlib.md5(picture(i)).hexdigest() for i in range(5)
    ]
    assert bad["sha256"] == hashlib.sha256(picture(1)).hexdigest()
    kept = crawling.members(out / "quarantine/00000.tar")
    assert list(kept) == ["0000001.bin", "0000001.json"]
    assert kept["0000001.bin"] == picture(1)
    assert json.loads(kept["0000001.json"])["url"] == urls[1]
    assert "0000001.jpg" not in crawling.members(out / "shards/00000.tar")


def test_who_empties_the_quarantine_fetches_nothing_again(server, tmp_path):
    url_list = crawling.listed(
        tmp_path / "list.parquet", [f"{server.url}/image/1.jpg"], digest=["0" * 64]
    )
    each = work_of(tmp_path / "out", url_list, Columns(caption="text", hash="digest"))
    (shard,) = each.planned()
    each.perform(shard, frozenset())
    (tmp_path / "out/quarantine/00000.tar").unlink()
    assert each.done(shard)


def test_what_is_left_of_an_earlier_attempt_goes(server, tmp_path):
    url_list = crawling.listed(tmp_path / "list.parquet", [f"{server.url}/image/1.jpg"])
    stale = tmp_path / "out/quarantine/00000.tar"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an attempt that was killed")
    performed(tmp_path / "out", url_list)
    assert not stale.exists()


def maker(**columns: str) -> Maker:
    settings = Columns(**columns)
    return Maker(settings, Imaging(ResizeSettings()), Tombstones())


def fetched(data: bytes) -> Fetched:
    return Fetched(data, "", "", 200, 1, "image/jpeg")


def noisy(seed: int) -> bytes:
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return shards.encoded(Image.fromarray(small).resize((200, 160)), "JPEG", quality=95)


def test_three_outcomes_of_a_check():
    import io

    from PIL import Image

    make = maker(hash="digest", phash="image_phash")
    data = noisy(1)
    phash = f"{phash64(images.decode(data)):016x}"
    smaller = shards.encoded(Image.open(io.BytesIO(data)).resize((150, 120)), "JPEG", quality=60)
    right = hashlib.sha256(data).hexdigest()
    for given, promised, outcome in (
        (data, {"sha256": right, "image_phash": phash}, MATCH),
        (data, {"sha256": right, "image_phash": "0" * 16}, MATCH),
        (smaller, {"sha256": right, "image_phash": phash}, NEAR_DUPLICATE),
        (noisy(2), {"sha256": right, "image_phash": phash}, MISMATCH),
        (smaller, {"sha256": right, "image_phash": None}, MISMATCH),
        (smaller, {"sha256": right, "image_phash": "not hex"}, MISMATCH),
        (b"no image", {"sha256": right, "image_phash": phash}, MISMATCH),
        (smaller, {"sha256": None, "image_phash": phash}, NEAR_DUPLICATE),
        (data, {"sha256": None, "image_phash": None}, None),
        (data, {"sha256": "", "image_phash": ""}, None),
    ):
        made = make(fetched(given), promised)
        assert made.fields["hash_check"] == outcome
        assert made.quarantined == (outcome == MISMATCH)
        assert made.reason == ("hash_mismatch" if outcome == MISMATCH else "")


def test_the_radius_of_a_near_duplicate():
    make = maker(phash="image_phash")
    data = noisy(3)
    found = phash64(images.decode(data))
    for bits, outcome in ((PHASH_RADIUS, NEAR_DUPLICATE), (PHASH_RADIUS + 1, MISMATCH)):
        promised = f"{found ^ ((1 << bits) - 1):016x}"
        assert make(fetched(data), {"image_phash": promised}).fields["hash_check"] == outcome


def test_verifying_can_be_left_out():
    make = Maker(Columns(hash="digest"), Imaging(ResizeSettings()), Tombstones(), verify=False)
    made = make(fetched(noisy(1)), {"sha256": "0" * 64})
    assert made.reason == "" and made.fields["hash_check"] is None


@pytest.mark.parametrize(
    "boxes", ["[[NaN, 0, 1, 1]]", "[[1, 2", "[1]", [[0.1, 0.2, 0.3]], [["a", 0, 0, 0]], "7"]
)
def test_boxes_that_cannot_be_read_hide_no_face(boxes):
    assert maker(boxes="faces")(fetched(noisy(1)), {"faces": boxes}).reason == "bad_boxes"


def test_boxes_as_text():
    settings = Imaging(ResizeSettings(), blurs=True)
    pytest.importorskip("img2dataset")
    settings.setup()
    make = Maker(Columns(boxes="faces"), settings, Tombstones())
    as_text = make(fetched(noisy(1)), {"faces": "[[0.1, 0.1, 0.5, 0.5]]"})
    assert as_text == make(fetched(noisy(1)), {"faces": [[0.1, 0.1, 0.5, 0.5]]})
    assert as_text.data != make(fetched(noisy(1)), {"faces": "[]"}).data


# --- take-downs ----------------------------------------------------------------------------------


def test_what_is_buried_is_neither_fetched_nor_written(server, tmp_path):
    urls = [f"{server.url}/image/{i}.jpg" for i in range(700, 704)]
    out = tmp_path / "out"
    buried = {
        "uid": [None, None],
        "sha256": [hashlib.sha256(picture(701)).hexdigest(), None],
        "url_sha256": [None, hashlib.sha256(urls[2].encode()).hexdigest()],
    }
    out.mkdir()
    types = pa.schema([(name, pa.string()) for name in buried])
    pq.write_table(pa.table(buried, types), out / tombstones.FILE)
    found = performed(out, crawling.listed(tmp_path / "list.parquet", urls))
    assert [row["reason"] for row in found] == [None, "taken_down", "taken_down", None]
    assert {row["status"] for row in found[1:3]} == {"failed_to_download"}
    assert server.requests("/image/702.jpg") == 0
    assert server.requests("/image/703.jpg") == 1
    assert not (out / "quarantine").exists()
    for row in found[1:3]:  # nor is what the list said of them
        told = {name for name, value in row.items() if value is not None}
        assert told == {"key", "status", "error_message", "reason"}
    [part] = (out / "urls").glob("*.parquet")
    planned = pq.read_table(part).to_pylist()
    assert [row["url"] for row in planned] == [*urls[:2], tombstones.BURIED_URL, urls[3]]
    assert planned[2]["caption"] is None


# --- bounds --------------------------------------------------------------------------------------


def test_the_deadline_of_a_shard(server, tmp_path):
    urls = [f"{server.url}/image/{i}.jpg" for i in range(8)] + [f"{server.url}/silent"] * 2
    urls += [f"{server.url}/image/9.jpg"]
    url_list = crawling.listed(tmp_path / "list.parquet", urls)
    found = performed(tmp_path / "out", url_list, deadline_sec=1.0)
    assert [row["reason"] for row in found] == [None] * 8 + ["shard_deadline"] * 2 + [None]


def test_a_killed_sample_is_not_asked_for_again(server, tmp_path):
    urls = [f"{server.url}/image/{i}.jpg" for i in range(800, 804)]
    each = work_of(tmp_path / "out", crawling.listed(tmp_path / "list.parquet", urls))
    (shard,) = each.planned()
    each.probe(shard, frozenset({0}), range(0, 2))
    assert [server.requests(f"/image/{i}.jpg") for i in range(800, 804)] == [0, 1, 0, 0]
    record = each.perform(shard, frozenset({1}))
    assert record.counts["reason"] == {"killed_worker": 1}
    assert crawling.rows(tmp_path / "out")[1]["status"] == "failed_to_resize"
    assert server.requests("/image/801.jpg") == 1


def test_the_window_keeps_order_in_little_memory():
    window: Window[int] = Window(memory_bytes=1000)
    order = np.random.default_rng(0).permutation(500)
    taken = []
    for index in order:
        window.put(int(index), int(index) * 2, bytes([index % 256]) * (index % 97))
        assert window._held <= 1000 + 97
        taken += window.take()
    assert taken == [(i, i * 2, bytes([i % 256]) * (i % 97)) for i in range(500)]
    window.put(500, 0, b"again")
    assert list(window.take()) == [(500, 0, b"again")]
    window.close()


def test_one_slow_url_holds_up_no_memory(server, tmp_path, monkeypatch):
    """All others are made before it answers; they wait on disk, and come out whole."""
    monkeypatch.setattr(work, "_WINDOW_BYTES", 4096)
    urls = [f"{server.url}/delay/1.5/0.jpg"] + [f"{server.url}/image/{i}.jpg" for i in range(1, 60)]
    performed(tmp_path / "out", crawling.listed(tmp_path / "list.parquet", urls))
    members = crawling.members(tmp_path / "out/shards/00000.tar")
    for number in range(60):
        assert members[f"00000{number:02d}.jpg"] == images.training_jpeg(picture(number)).data


def test_a_failure_of_ours_is_none_of_the_urls(server, tmp_path, monkeypatch):
    """It raises, nothing is committed, and no thread stays behind."""
    urls = [f"{server.url}/image/{i}.jpg" for i in range(30)]
    each = work_of(tmp_path / "out", crawling.listed(tmp_path / "list.parquet", urls))
    (shard,) = each.planned()

    def broken(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Imaging, "__call__", broken)
    with pytest.raises(ZeroDivisionError):
        each.perform(shard, frozenset())
    assert not list((tmp_path / "out/shards").glob("*"))
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]
    monkeypatch.undo()
    assert each.perform(shard, frozenset()).counts["status"] == {"ok": 30}


def test_a_part_that_changed_makes_the_shard_anew(server, tmp_path):
    url_list = crawling.listed(tmp_path / "list.parquet", [f"{server.url}/image/1.jpg"])
    each = work_of(tmp_path / "out", url_list)
    (shard,) = each.planned()
    each.perform(shard, frozenset())
    assert each.done(shard)
    each._parts["00000"] = plan.Part("00000", 1, "another hash")
    assert each.done(shard) is None


def test_the_record_is_that_of_every_shard(server, tmp_path):
    urls = [f"{server.url}/image/1.jpg", f"{server.url}/status/404/1.jpg"]
    performed(tmp_path / "out", crawling.listed(tmp_path / "list.parquet", urls))
    stats = crawling.stats(tmp_path / "out", "00000")
    tar = tmp_path / "out/shards/00000.tar"
    assert stats["files"]["00000.tar"]["size"] == tar.stat().st_size
    assert stats["files"]["00000.tar"]["sha256"] == commit.sha256_file(str(tar))
    counts = {"samples": 2, "rows": 2, "status": {"ok": 1, "failed": 1}, "reason": {"not_found": 1}}
    assert stats["record"]["counts"] == counts
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (2, 1, 1)
    with tarfile.open(tar) as opened:
        assert len(opened.getmembers()) == 3


def test_the_quarantine_says_the_same_in_the_same_order(server, tmp_path):
    url_list = crawling.listed(
        tmp_path / "list.parquet", [f"{server.url}/image/1.jpg"], digest=["0" * 128]
    )
    columns = Columns(caption="text", hash="digest", hash_type="sha512")
    performed(tmp_path / "out", url_list, columns)
    told = json.loads(crawling.members(tmp_path / "out/quarantine/00000.tar")["0000000.json"])
    assert list(told) == ["url", "reason", "sha256", "md5", "sha512"]


def test_no_space_for_what_waits(monkeypatch):
    """The message names the folder of temporary files, which is the one that is full."""
    import tempfile

    from pipeline.errors import UserError

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: PTH123, SIM115
    window: Window[int] = Window(memory_bytes=10)
    with pytest.raises(UserError, match=tempfile.gettempdir()) as e:
        window.put(1, 1, b"x" * 100)
    assert "No space left" in e.value.message
    window.close()


def test_closed_work_leaves_no_thread(server, tmp_path):
    url_list = crawling.listed(tmp_path / "list.parquet", [f"{server.url}/image/1.jpg"])
    before = set(threading.enumerate())
    each = work_of(tmp_path / "out", url_list)
    (shard,) = each.planned()
    for _ in range(2):  # it can be used again
        each.perform(shard, frozenset())
        assert set(threading.enumerate()) - before
        each.close()
        each.close()
        assert set(threading.enumerate()) <= before
