"""Shards that cannot be used as they are: refused by name and cause, never read short in silence."""

import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.manifest import Shard
from pipeline.reading import BadShard, count_samples, read_samples
from tests.support.shards import (
    cut,
    jpeg,
    pair,
    pairs,
    places,
    write_members,
    write_stats,
    write_tar,
)

COUNT = 4


def shard_of(url: str, **fields: object) -> Shard:
    return Shard("00000", url, storage.fingerprint(url).size, **fields)


def refused(url: str, **fields: object) -> str:
    with pytest.raises(BadShard) as e:
        count_samples(shard_of(url, **fields))
    assert str(e.value).startswith(f"{url}: ")
    assert "\n" not in str(e.value)
    return str(e.value).removeprefix(f"{url}: ")


@pytest.fixture
def whole(tmp_path: Path) -> str:
    return write_tar(tmp_path / "00000.tar", pairs(COUNT))


PROMISES = pytest.mark.parametrize("promise", ["none", "stats", "manifest"])


def fields_for(promise: str, url: str) -> dict:
    """Somebody may have said how many samples there are."""
    if promise == "stats":
        write_stats(url, COUNT)
    return {"samples": COUNT} if promise == "manifest" else {}


@PROMISES
def test_cut_at_every_kind_of_place(whole: str, promise: str):
    """Inside headers, payloads and padding, between members and samples: nowhere does it pass."""
    data = Path(whole).read_bytes()
    members = places(whole)
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    sizes = {1, 511, 512, end - 1, end, end + 1, end + 511}
    for member in members:
        sizes |= {member.offset, member.offset + 100, member.offset_data}
        sizes |= {member.offset_data + 1, member.offset_data + member.size - 1}
    fields = fields_for(promise, whole)
    for size in sorted(sizes - {0}):
        Path(whole).write_bytes(data[:size])
        assert refused(whole, **fields).startswith("torn: "), size
    Path(whole).write_bytes(b"")
    assert refused(whole, **fields).startswith("torn: ")
    Path(whole).write_bytes(data[: end + 512])  # a mark of one block, as some packers write
    assert count_samples(shard_of(whole, **fields)) == COUNT


@PROMISES
def test_samples_missing_from_a_tar_that_is_well_formed(tmp_path: Path, promise: str):
    url = write_tar(tmp_path / "00000.tar", pairs(COUNT - 1))
    fields = fields_for(promise, url)
    if promise == "none":
        assert count_samples(shard_of(url)) == COUNT - 1
    else:
        assert refused(url, **fields) == "holds 3 samples where its stats promise 4"
        assert count_samples(shard_of(url, limit=2, **fields)) == 2


def test_stats_that_promise_nothing_are_ignored(whole: str):
    beside = Path(whole.removesuffix(".tar") + "_stats.json")
    for text in ("", "{", "[]", "{}", '{"successes": null}', '{"successes": "x"}', '"\\ud800"'):
        beside.write_text(text)
        assert count_samples(shard_of(whole)) == COUNT


def test_data_behind_the_end_mark(whole: str, tmp_path: Path):
    """A hole of zeros in the middle, or two tars in one file: readers stop there without a word."""
    data = bytearray(Path(whole).read_bytes())
    Path(tmp_path / "two.tar").write_bytes(data + data)
    hole = places(whole)[3].offset
    data[hole : hole + 512] = bytes(512)
    Path(tmp_path / "hole.tar").write_bytes(data)
    for name in ("two.tar", "hole.tar"):
        assert "behind its end-of-archive mark" in refused(str(tmp_path / name))


def test_what_is_no_tar(tmp_path: Path):
    import gzip

    packed = Path(write_tar(tmp_path / "good.tar", pairs(1))).read_bytes()
    contents = {
        "jpeg": jpeg(),
        "html": b"<html>404</html>" * 99,
        "gzip": gzip.compress(packed),
        "short": b"x",
    }
    for name, data in contents.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        assert refused(str(path)).startswith("torn: ")


def test_members_of_a_key_that_are_not_adjacent(tmp_path: Path):
    url = write_members(
        tmp_path / "x.tar",
        [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("b.txt", b"4")],
    )
    assert refused(url) == "members of key 'a' are not adjacent; repack it by key"


@pytest.mark.parametrize("second", ["a.jpg", "a.JPG"])
def test_members_that_are_there_twice(tmp_path: Path, second: str):
    url = write_members(tmp_path / "x.tar", [("a.jpg", b"1"), (second, b"2")])
    assert refused(url).startswith("key 'a' has 'jpg' twice")
    many = [(f"a.x{i}", b"") for i in range(65)]
    assert "too many members" in refused(write_members(tmp_path / "y.tar", many))


def test_keys_that_are_there_twice(tmp_path: Path):
    url = write_tar(tmp_path / "x.tar", [pair("a"), pair("b"), pair("a")])
    assert "members of key 'a' are not adjacent" in refused(url)


def test_control_characters_of_keys_do_not_reach_the_terminal(tmp_path: Path):
    keys = ("\x1b[31m\n", "b", "\x1b[31m\n")
    refused(write_tar(tmp_path / "x.tar", [pair(key) for key in keys]))


def test_a_shard_that_is_gone(tmp_path: Path):
    with pytest.raises(BadShard, match=r"x\.tar: does not exist any more"):
        count_samples(Shard("00000", str(tmp_path / "x.tar"), 1))


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A small tar in each format, with long names where the format has them."""
    folder = tmp_path_factory.mktemp("formats")
    found = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        long = "" if format == tarfile.USTAR_FORMAT else "x" * 120
        members = {"jpg": b"\x01" * 700, "txt": b"text", "json": b"{}"}
        samples = [(f"{long}{i}\u00e9", members) for i in range(3)]
        found.append(Path(write_tar(folder / f"{format}.tar", samples, format=format)).read_bytes())
    return found


SIZES = (
    b"77777777777\0",
    b"\x80" + b"\0" * 10 + b"\xff",
    b"\xff" * 12,
    b"-0000000001\0",
    b"\0" * 12,
)


@settings(max_examples=150, deadline=2000)
@given(seed=st.integers(0, 2**32))
def test_damaged_headers_never_raise_anything_else(
    formats: list[bytes], tmp_path_factory: pytest.TempPathFactory, seed: int
):
    """Wrong sizes, types and bytes anywhere, most of them with a checksum that fits."""
    draw = random.Random(seed)
    data = bytearray(draw.choice(formats))
    for _ in range(draw.choice([1, 1, 2, 4])):
        block = draw.randrange(len(data) // 512) * 512
        kind = draw.randrange(4)
        if kind == 0:
            data[block + draw.randrange(512)] = draw.randrange(256)
        elif kind == 1:
            data[block + 124 : block + 136] = draw.choice(SIZES)
        elif kind == 2:
            data[block + 156] = draw.choice(b"xgLKS52\0")
        else:
            data[block : block + 100] = draw.randbytes(100)
        header = bytearray(data[block : block + 512])
        header[148:156] = b" " * 8
        data[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(data)
    try:
        for sample in read_samples(shard_of(str(path))):
            assert bool(sample.image) != bool(sample.reason)
    except BadShard:
        pass


def test_a_torn_shard_gives_its_whole_samples_before_it_is_refused(whole: str, tmp_path: Path):
    """The reader streams, so whoever uses it must let the error undo what was done so far."""
    torn = cut(whole, places(whole)[4].offset_data + 1, to=tmp_path / "torn.tar")
    seen = []
    with pytest.raises(BadShard):
        for sample in read_samples(shard_of(torn)):
            seen.append(sample.key)
    assert seen == [key for key, _ in pairs(1)]


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_an_extension_header_of_absurd_size_is_refused_unread(kind, tmp_path):
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 1 << 30
    path = tmp_path / "00000.tar"
    with path.open("wb") as f:
        f.write(header.tobuf(tarfile.USTAR_FORMAT))
        f.truncate(1 << 30)  # a sparse file: a gigabyte that takes no room
    with pytest.raises(BadShard, match="torn"):
        list(read_samples(Shard("00000", str(path), path.stat().st_size)))
