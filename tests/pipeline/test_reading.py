"""Samples of good shards, plain and odd: as webdataset reads them, and each with its verdict."""

import json
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import webdataset as wds

from pipeline import reading, storage
from pipeline.manifest import Shard
from pipeline.reading import ReadReport, read_samples
from pipeline.samples import Sample, uid_of
from tests.support.shards import Packed, jpeg, pair, pairs, png, write_members, write_tar
from tests.support.web import served


def shard_of(url: str, **fields: object) -> Shard:
    return Shard("00000", url, storage.fingerprint(url).size, **fields)


def read(url: str, **fields: object) -> list[Sample]:
    return list(read_samples(shard_of(url, **fields)))


def read_one(tmp_path: Path, members: dict[str, bytes]) -> Sample:
    [sample] = read(write_tar(tmp_path / "one.tar", [("000", members)]))
    return sample


def by_webdataset(url: str) -> list[dict]:
    return list(wds.WebDataset(url, shardshuffle=False, empty_check=False))


@pytest.mark.parametrize("name", ["cc12m-train-0000", "nemo_curator_00000"])
def test_real_shards_are_read_as_webdataset_reads_them(real: Path, name: str):
    url = str(real / "wds" / f"{name}.tar")
    report = ReadReport()
    ours, theirs = list(read_samples(shard_of(url), report)), by_webdataset(url)
    assert len(theirs) == report.samples > 0
    assert [s.key for s in ours] == [t["__key__"] for t in theirs]
    assert [s.image for s in ours] == [t["jpg"] for t in theirs]
    assert [s.text for s in ours] == [t["txt"].decode().strip() for t in theirs]
    assert [s.meta for s in ours] == [json.loads(t["json"]) for t in theirs]
    assert {(s.reason, s.text_status, s.meta_status) for s in ours} == {("", "ok", "ok")}
    assert report.sha256 == sha256sum(url)


def sha256sum(url: str) -> str:
    return subprocess.run(["sha256sum", url], capture_output=True, text=True).stdout.split()[0]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format(tmp_path: Path, format: int):
    """Long and foreign names make GNU and PAX put headers of their own before a member's."""
    long = "" if format == tarfile.USTAR_FORMAT else "long/" * 40
    keys = [f"{long}a/000", "a/\u00fc\u4e2d", f"b.c/{long}x"]
    url = write_tar(tmp_path / "x.tar", [pair(k, i) for i, k in enumerate(keys)], format=format)
    assert [s.key for s in read(url)] == keys == [t["__key__"] for t in by_webdataset(url)]
    assert [s.uid for s in read(url)] == [uid_of("00000", key) for key in keys]


def test_a_folder_packed_by_tar(tmp_path: Path):
    """`tar cf x.tar .` writes folders and names that begin with ./, in the order of the disk."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for key, members in pairs(3):
        for suffix, data in members.items():
            (folder / f"{key}.{suffix}").write_bytes(data)
    (folder / "._000000000.jpg").write_bytes(b"what macOS leaves")
    (folder / "link.jpg").symlink_to("/etc/passwd")
    url = str(tmp_path / "x.tar")
    subprocess.run(["tar", "cf", url, "--sort=name", "-C", str(folder), "."], check=True)
    report = ReadReport()
    samples = list(read_samples(shard_of(url), report))
    assert [(s.key, s.image) for s in samples] == [(k, m["jpg"]) for k, m in pairs(3)]
    assert report.ignored == 2


def test_members_that_are_no_samples(tmp_path: Path):
    folder, link = tarfile.TarInfo("a.d"), tarfile.TarInfo("000.png")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
    members = [
        folder,
        ("__index__", b"1"),
        ("__meta.json__", b"{}"),
        ("README", b"no suffix"),
        ("__MACOSX/._000.jpg", b"no picture"),
        ("000.jpg", jpeg()),
        link,
        ("000.txt", b"text"),
        ("__MACOSX/._001.jpg", b"no picture"),
        ("__001.jpg", jpeg(1)),
    ]
    url = write_members(tmp_path / "x.tar", members)
    report = ReadReport()
    samples = list(read_samples(shard_of(url), report))
    assert [(s.key, s.text) for s in samples] == [("000", "text"), ("__001", None)]
    assert report.ignored == 6


def test_pickles_are_never_loaded_and_keys_are_never_paths(tmp_path: Path):
    bomb = f"cposix\nsystem\n(S'touch {tmp_path}/hacked'\ntR.".encode()
    suffixes = ("pkl", "pyd", "pickle", "pth", "npy")
    keys = ["../../escaped", "/absolute", "a/../b", "c\n\x1b[31md"]
    samples = [(key, {"jpg": jpeg(), **dict.fromkeys(suffixes, bomb)}) for key in keys]
    url = write_tar(tmp_path / "a" / "b" / "x.tar", samples)
    assert [s.key for s in read(url)] == keys
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["a", "b", "x.tar"]
    assert not Path("/absolute.jpg").exists()


def test_names_that_are_not_utf_8(tmp_path: Path):
    url = write_members(tmp_path / "x.tar", [("caf\u00e9.jpg", jpeg())], encoding="latin-1")
    [sample] = read(url)
    assert sample.key == r"caf\udce9"
    assert sample.uid == uid_of("00000", sample.key)


@pytest.mark.parametrize(
    ("members", "text", "status"),
    [
        ({"txt": b"  a dog\n"}, "a dog", "ok"),
        ({"txt": "\u00fc \U0001f600".encode()}, "\u00fc \U0001f600", "ok"),
        ({"txt": b"a\x00b"}, "ab", "ok"),
        ({}, None, "missing"),
        ({"json": b'{"caption": "from json"}'}, "from json", "ok"),
        ({"json": b'{"caption": 7}'}, None, "missing"),
        ({"json": b'{"caption": "a \\ud800"}'}, "a \ufffd\ufffd\ufffd", "invalid_utf8"),
        ({"txt": b"from txt", "json": b'{"caption": "from json"}'}, "from txt", "ok"),
        ({"txt": b"", "json": b'{"caption": "from json"}'}, "", "empty"),
        ({"txt": b" \n\t"}, "", "empty"),
        ({"txt": b"caf\xe9"}, "caf\ufffd", "invalid_utf8"),
        ({"txt": b"x" * (1 << 16)}, "x" * (1 << 16), "ok"),
        ({"txt": b"x" * ((1 << 16) + 1)}, None, "too_long"),
    ],
)
def test_original_texts(tmp_path: Path, members: dict[str, bytes], text: str, status: str):
    sample = read_one(tmp_path, {"jpg": jpeg()} | members)
    assert (sample.text, sample.text_status) == (text, status)
    assert sample.reason == ""


NULLS = dict.fromkeys("abc")


@pytest.mark.parametrize(
    ("data", "meta", "status"),
    [
        (b'{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}, "ok"),
        ('{"a": "\u00fc"}'.encode("utf-16"), {"a": "\u00fc"}, "ok"),
        (b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": -0.5}', {**NULLS, "d": -0.5}, "ok"),
        (b"[1, 2]", {}, "invalid"),
        (b"null", {}, "invalid"),
        (b"", {}, "invalid"),
        (b'{"a": 1', {}, "invalid"),
        (b'{"a": "\xff"}', {}, "invalid"),
        (b'{"a": ' + b"9" * 5000 + b"}", {}, "invalid"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", None, "ok"),
        (b'{"a": ' + b"[" * 980 + b"]" * 980 + b"}", {}, "invalid"),
        (b'{"a": ' + b"[" * 200000 + b"]" * 200000 + b"}", {}, "invalid"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', {}, "invalid"),
        (None, {}, "missing"),
    ],
)
def test_metadata(tmp_path: Path, data: bytes | None, meta: dict | None, status: str):
    sample = read_one(tmp_path, {"jpg": jpeg()} | ({"json": data} if data is not None else {}))
    assert sample.meta_status == status
    assert meta is None or sample.meta == meta


def test_which_member_is_the_image(tmp_path: Path):
    cases: list[tuple[dict[str, bytes], bytes, str]] = [
        ({"png": png(), "jpg": jpeg()}, jpeg(), ""),
        ({"JPEG": jpeg()}, jpeg(), ""),
        ({"seg.png": png(1), "webp": jpeg()}, jpeg(), ""),
        ({"b.png": png(1), "a.png": png(2)}, png(2), ""),
        ({"jpg": b"", "png": png()}, b"", "empty"),
        ({"txt": b"no image"}, b"", "no_image"),
        ({"mp4": b"film"}, b"", "no_image"),
    ]
    for members, image, reason in cases:
        sample = read_one(tmp_path, members)
        assert (sample.image, sample.reason) == (image, reason), list(members)


def test_oversized_images_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    samples = [("0", {"jpg": bytes(1001), "txt": b"big"}), ("1", {"jpg": bytes(1000)})]
    big, fits = read(write_tar(tmp_path / "x.tar", samples))
    assert (big.image, big.reason, big.text) == (b"", "too_many_bytes", "big")
    assert (len(fits.image), fits.reason) == (1000, "")


def test_a_limit_and_lost_samples(tmp_path: Path):
    url = write_tar(tmp_path / "x.tar", pairs(5))
    whole = ReadReport()
    assert len(list(read_samples(shard_of(url), whole))) == 5
    for limit, count in ((1, 1), (4, 4), (5, 5), (9, 5)):
        report = ReadReport()
        some = list(read_samples(shard_of(url, limit=limit), report))
        assert [s.key for s in some] == [k for k, _ in pairs(count)]
        assert (report.samples, report.sha256) == (count, whole.sha256)
        assert reading.count_samples(shard_of(url), stop=limit) == count
    samples = list(read_samples(shard_of(url), lost=frozenset({1, 3})))
    assert [s.reason for s in samples] == ["", "killed_worker", "", "killed_worker", ""]
    assert [bool(s.image) for s in samples] == [True, False, True, False, True]
    assert [s.index for s in samples] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("empty", [bytes(1024), bytes(10240)])
def test_an_empty_tar_is_a_shard_without_samples(tmp_path: Path, empty: bytes):
    path = tmp_path / "x.tar"
    path.write_bytes(empty)
    report = ReadReport()
    assert list(read_samples(shard_of(str(path)), report)) == []
    assert report.sha256 == sha256sum(str(path))


def test_stores_and_the_web(tmp_path: Path, store: str):
    """A web server that refuses to say whether there are stats beside a shard is no obstacle."""
    path = write_tar(tmp_path / "00000.tar", pairs(3))
    wanted = read(path)
    storage.write_bytes(f"{store}/00000.tar", Path(path).read_bytes())
    assert read(f"{store}/00000.tar") == wanted
    with served(tmp_path) as address:
        report = ReadReport()
        shard = shard_of(f"{address}/00000.tar", etag="e")
        assert list(read_samples(shard, report)) == wanted
        assert report.sha256 == ""  # the ETag identifies the content


def test_memory_does_not_grow_with_the_shard(tmp_path: Path):
    """A sample more costs its key, to notice members that are not adjacent; nothing else."""

    def peak(count: int) -> int:
        many: list[Packed] = [
            (f"{i:09d}", {"jpg": b"x" * 3000, "txt": b"t", "json": b"{}"}) for i in range(count)
        ]
        url = write_tar(tmp_path / f"{count}.tar", many)
        del many
        tracemalloc.start()
        assert reading.count_samples(shard_of(url)) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(2500) - peak(500) < 2000 * 250
