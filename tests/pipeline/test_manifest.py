"""Shards keep their names for ever, and their identity as long as their bytes."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import manifest, storage
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.schemas import SHARDS
from tests.support.web import served


def write(folder: Path, *names: str) -> list[str]:
    """Small files of distinct bytes."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode())
    return [str(folder / name) for name in names]


def names(shards: list[Shard]) -> dict[str, str]:
    return {shard.url: shard.name for shard in shards}


def test_names_are_the_file_names_where_these_are_numbers_and_free(tmp_path: Path, out: str):
    files = ("a/00007.tar", "b/00007.tar", "cat.tar", "123.tar", "000000012.tar", "c/00008.tar")
    urls = write(tmp_path, *files, "1234567890123.tar", "\u0663\u0663\u0663\u0663\u0663.tar")
    found = names(manifest.register(out, urls))
    assert [found[url] for url in urls] == [
        *("00007", "00008", "00009", "00010", "000000012", "00013", "00014", "00015")
    ]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_names_never_change_whatever_is_registered_later(
    tmp_path_factory: pytest.TempPathFactory, seed: int
):
    """Orders, subsets and supersets of shards, in any sequence of jobs."""
    folder = tmp_path_factory.mktemp("names")
    urls = write(folder, *(f"{i % 3}/{i:05d}.tar" for i in range(6)), "x.tar", "y/x.tar")
    draw = random.Random(seed)
    known: dict[str, str] = {}
    for _ in range(4):
        some = draw.sample(urls, draw.randint(1, len(urls)))
        shards = manifest.register(str(folder), some)
        assert [shard.url for shard in shards] == some
        assert all(known.get(url, name) == name for url, name in names(shards).items())
        known |= names(shards)
        assert names(manifest.load(str(folder))) == known
    assert len(set(known.values())) == len(known)


def test_the_table_has_its_schema_and_is_the_same_twice(tmp_path: Path, out: str):
    urls = write(tmp_path, "a.tar", "b.tar")
    manifest.register(out, urls)
    first = Path(out, "shards.parquet").read_bytes()
    manifest.register(out, urls[::-1])
    assert Path(out, "shards.parquet").read_bytes() == first
    assert pq.read_schema(Path(out, "shards.parquet")).equals(SHARDS)


def test_secrets_are_used_but_never_stored(tmp_path: Path, out: str):
    write(tmp_path / "web", "00003.tar")
    with served(tmp_path / "web", token="s3cr3t") as address:
        public = f"{address}/00003.tar"
        url = public.replace("//", "//user:hunter2@") + "?token=s3cr3t"
        [shard] = manifest.register(out, [url])
        assert (shard.name, shard.url, shard.size) == ("00003", url, len("bytes of 00003.tar"))
        assert shard.etag
        table = Path(out, "shards.parquet").read_bytes()
        assert b"hunter2" not in table
        assert b"s3cr3t" not in table
        assert [s.url for s in manifest.load(out)] == [public]

        renewed = url + "&expires=later"
        assert manifest.register(out, [renewed]) == [replace(shard, url=renewed)]
        with pytest.raises(UserError, match=f"2 shards are {public}"):
            manifest.register(out, [url, renewed])
        with pytest.raises(UserError, match=r"00004\.tar does not exist") as e:
            manifest.register(out, [url.replace("00003", "00004"), url])
        assert "hunter2" not in str(e.value)
        assert "s3cr3t" not in str(e.value)


def registered(out: str, url: str) -> tuple[Shard, dict]:
    """A shard as a job reads it, and the identity that the job's output then records."""
    [shard] = manifest.register(out, [url])
    sha256 = manifest._sha256(url)
    return shard, shard.identity | {"sha256": sha256}


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "killed before it learned"])
def test_a_touched_file_keeps_its_identity_and_a_changed_one_does_not(
    tmp_path: Path, out: str, learned: bool
):
    [url] = write(tmp_path, "00000.tar")
    shard, identity = registered(out, url)
    if learned:
        manifest.learn(out, {"00000": {"sha256": identity["sha256"], "samples": 3}})
    [again] = manifest.register(out, [url])
    assert again.is_still(identity)
    assert again.samples == (3 if learned else None)

    os.utime(url, ns=(1, 1))
    [touched] = manifest.register(out, [url])
    assert touched.is_still(identity)
    assert touched.sha256 == identity["sha256"]
    assert touched.samples == (3 if learned else None)

    data = Path(url).read_bytes()
    Path(url).write_bytes(data[::-1])  # of the same size
    os.utime(url, ns=(2, 2))
    [changed] = manifest.register(out, [url])
    assert not changed.is_still(identity)
    assert changed.samples is None
    assert changed.name == shard.name

    Path(url).write_bytes(data)
    [restored] = manifest.register(out, [url])
    assert restored.is_still(identity)


def test_a_stores_etag_decides_without_reading():
    shard = Shard("00000", "s3://b/x.tar", 7, etag="a")
    record = shard.identity | {"sha256": ""}
    assert shard.is_still(record)
    assert not Shard("00000", "s3://b/x.tar", 7, etag="b").is_still(record)
    assert not Shard("00000", "s3://b/x.tar", 8, etag="a").is_still(record)
    assert not Shard("00000", "s3://b/x.tar", 7, etag="a", limit=5).is_still(record)
    assert not Shard("00000", "s3://b/x.tar", 7).is_still(record)


def test_shards_inside_the_folder_move_with_it(tmp_path: Path, out: str):
    urls = write(Path(out), "shards/00000.tar", "shards/00001.tar")
    urls += write(tmp_path, "elsewhere/00002.tar")
    before = manifest.register(out, urls)
    stored = pq.read_table(Path(out, "shards.parquet"))["url"].to_pylist()
    assert stored == ["shards/00000.tar", "shards/00001.tar", urls[2]]

    moved = str(tmp_path / "moved")
    shutil.move(out, moved)
    after = manifest.load(moved)
    assert [s.url for s in after] == [
        f"{moved}/shards/00000.tar",
        f"{moved}/shards/00001.tar",
        urls[2],
    ]
    assert manifest.register(moved, [s.url for s in after]) == [
        replace(old, url=new.url) for old, new in zip(before, after, strict=True)
    ]


def test_a_folder_in_an_object_store(store: str, tmp_path: Path):
    storage.write_bytes(f"{store}/out/shards/00000.tar", b"inside")
    storage.write_bytes(f"{store}/raw/00001.tar", b"beside")
    out = f"{store}/out"
    urls = [f"{store}/raw/00001.tar", f"{out}/shards/00000.tar"]
    assert names(manifest.register(out, urls)) == {urls[0]: "00001", urls[1]: "00000"}
    assert names(manifest.load(out)) == {urls[0]: "00001", urls[1]: "00000"}
    with pytest.raises(UserError, match="does not exist"):
        manifest.register(out, [f"{store}/raw/none.tar"])
    assert len(manifest.load(out)) == 2
