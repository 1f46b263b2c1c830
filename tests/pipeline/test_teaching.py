"""Teaching shards: the drawn samples, byte by byte, under new names; torn ones are made again."""

import hashlib
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import commit, manifest
from pipeline.manifest import Shard
from pipeline.reading import BadShard, read_samples
from pipeline.runs import Run
from pipeline.samples import uid_of
from pipeline.schemas import TEACHING
from pipeline.stratify import HELD_OUT, TRAIN, Drawn, draw
from pipeline.teaching import KIND, TeachingWork
from tests.support.shards import encoded, jpeg, pair, picture, png, write_tar

STRANGE = [
    ("webp", {"webp": encoded(picture(1), "WEBP"), "txt": b"a webp"}),
    ("misnamed", {"jpg": png(2), "txt": b"a png that is called jpg"}),
    ("silent", {"jpg": jpeg(3)}),
    ("latin1", {"jpg": jpeg(4), "txt": "caf\u00e9".encode("latin1")}),
    ("surrogate", {"jpg": jpeg(5), "txt": b"x", "json": rb'{"url": "\ud800", "NaN": NaN}'}),
    (
        "large",
        {"jpg": jpeg(6), "txt": b"much", "json": b'{"' + b"k" * ((1 << 20) - 9) + b'": 1}'},
    ),
    ("scene", {"jpg": jpeg(7), "txt": b"s", "json": b'{"split": "test", "sha256": "f", "a": 1}'}),
]


@pytest.fixture
def sources(tmp_path: Path) -> list[Shard]:
    urls = [
        write_tar(tmp_path / "raw/00000.tar", [pair(f"{i:04d}", i) for i in range(12)]),
        write_tar(tmp_path / "raw/00001.tar", [pair(f"{i:04d}", i) for i in range(20, 32)]),
        write_tar(tmp_path / "raw/00002.tar", STRANGE),
    ]
    return manifest.register(str(tmp_path / "raw"), urls)


def work_of(out: str, sources: list[Shard], n: int = 20, size: int = 8) -> TeachingWork:
    drawn = draw(sources, n, held_out=5).drawn
    return TeachingWork(drawn, sources, Run(out, KIND, "", {"n": n}), shard_size=size)


def write(work: TeachingWork) -> list[commit.Record]:
    work.setup()
    return [work.perform(shard, frozenset()) for shard in work.planned()]


def members(url: str) -> dict[str, bytes]:
    with tarfile.open(url) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def table(work: TeachingWork, shard: Shard) -> list[dict]:
    found = commit.read_sidecar(work.run.file(f"{shard.name}.parquet"))
    assert found.schema == TEACHING
    return found.to_pylist()


def contents(work: TeachingWork) -> dict[str, str]:
    files = [p for p in Path(work.run.folder).iterdir() if p.suffix in (".tar", ".parquet")]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_drawn_sample_is_there_with_its_bytes(out, sources):
    work = work_of(out, sources)
    records = write(work)
    assert [r.counts["samples"] for r in records] == [8, 8, 4, 5]
    assert {r.counts["status"]["ok"] for r in records} == {8, 4, 5}
    originals = {s.uid: s for shard in sources for s in read_samples(shard)}
    seen = set()
    for shard, split in zip(work.planned(), [TRAIN, TRAIN, TRAIN, HELD_OUT], strict=True):
        rows = {row["key"]: row for row in table(work, shard)}
        for sample in read_samples(shard):
            row, was = rows[sample.key], originals[sample.meta["source_uid"]]
            assert sample.image == was.image
            assert row["sha256"] == hashlib.sha256(was.image).hexdigest()
            assert sample.meta["split"] == row["split"] == split
            assert (sample.meta["source_shard"], sample.meta["source_key"]) == (
                row["source_shard"],
                was.key,
            )
            assert was.uid == uid_of(row["source_shard"], was.key)
            assert sample.text == (was.text if was.text_status == "ok" else None)
            if was.meta_status == "ok" and row["source_shard"] != "00002":
                assert sample.meta["url"] == was.meta["url"]
            seen.add(was.uid)
    assert len(seen) == 25
    assert work.urls(HELD_OUT) == [work.planned()[3].url]
    assert len(work.urls(TRAIN)) == 3


def test_strange_samples_stay_what_they_are(out, sources):
    everything = [Drawn("00002", i, TRAIN, "s") for i in range(len(STRANGE))]
    work = TeachingWork(everything, sources, Run(out, KIND, "", {}))
    write(work)
    [shard] = work.planned()
    found = members(shard.url)
    suffixes = {name.rsplit(".", 1)[1] for name in found if name.startswith("000000001.")}
    assert suffixes == {"png", "txt", "json"}  # what it is, not what it was called
    assert found["000000000.webp"] == STRANGE[0][1]["webp"]
    assert "000000002.txt" not in found
    assert "000000003.txt" not in found
    samples = {s.meta["source_key"]: s for s in read_samples(shard)}
    assert len(samples) == len(STRANGE)
    assert samples["silent"].text_status == samples["latin1"].text_status == "missing"
    assert samples["surrogate"].meta["url"] == "?"
    assert samples["large"].text == "much"
    assert "k" * 100 not in found["000000005.json"].decode()
    assert samples["scene"].meta["split"] == TRAIN  # ours, not the source's
    assert (samples["scene"].meta["a"], samples["scene"].meta["sha256"]) == (1, "f")
    assert all(json.loads(data) for name, data in found.items() if name.endswith("json"))


def test_a_rerun_writes_the_same_bytes_and_does_only_what_is_torn(out, tmp_path, sources):
    work = work_of(out, sources)
    records = write(work)
    before = contents(work)
    again = work_of(out, sources)
    assert [again.done(shard) for shard in again.planned()] == records
    elsewhere = work_of(str(tmp_path / "other"), sources)
    write(elsewhere)
    assert contents(elsewhere) == before
    os.truncate(work.run.file("00001.tar"), 100)
    Path(work.run.file("00002_stats.json")).unlink()
    assert [again.done(s) is None for s in again.planned()] == [False, True, True, False]
    write(again)
    assert contents(again) == before


def test_another_sample_or_a_changed_source_is_done_again(out, tmp_path, sources):
    work = work_of(out, sources)
    write(work)
    other = TeachingWork(draw(sources, 20, 5, seed=1).drawn, sources, work.run, shard_size=8)
    assert all(other.done(shard) is None for shard in other.planned())
    part = [d.shard for d in work._parts[0]]
    write_tar(sources[1].url, [pair(f"{i:04d}", i) for i in range(40, 52)])
    now = manifest.register(str(tmp_path / "raw"), [s.url for s in sources])
    changed = TeachingWork([d for p in work._parts for d in p], now, work.run, shard_size=8)
    assert "00001" in part
    assert changed.done(changed.planned()[0]) is None
    renamed = replace(work.run, config={"n": 21})
    assert TeachingWork([], sources, renamed).done(work.planned()[0]) is None


def test_a_sample_that_kills_is_a_row_and_a_source_that_is_gone_is_named(out, sources):
    work = work_of(out, sources)
    shard = work.planned()[0]
    work.probe(shard, frozenset({1}), range(3))
    assert not Path(work.run.folder).exists()
    record = work.perform(shard, frozenset({1}))
    assert record.counts["reason"] == {"killed_worker": 1}
    assert work.failures(record.counts) == {"killed_worker": 1}
    assert len(list(read_samples(replace(shard, samples=7)))) == 7
    Path(sources[0].url).unlink()
    with pytest.raises(BadShard, match=r"00000\.tar: does not exist"):
        work.perform(shard, frozenset())
    assert work.done(shard) is None
