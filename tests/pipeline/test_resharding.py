"""Resharding: equal shards, the same samples under the same uids, whatever was killed or shuffled."""

import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import commit, manifest, tombstones
from pipeline.errors import UserError
from pipeline.keep_list import KeepList
from pipeline.manifest import Shard
from pipeline.reading import BadShard, is_moved, read_samples
from pipeline.reshard_plan import MAX_SAMPLE_BYTES, PLACES_KIND, PlacesStage, make_plan
from pipeline.resharding import (
    KIND,
    MAX_SUFFIX,
    REASONS,
    ReshardWork,
    _parsed,
    _runs,
    inherit_tombstones,
)
from pipeline.runs import Run
from pipeline.samples import Sample, uid_of
from pipeline.schemas import KEEP, PLACES, RESHARDED, table_of
from pipeline.stage import SidecarWork
from tests.support.shards import jpeg, pair, pairs, places, write_members, write_tar


def places_run(to: str) -> Run:
    return Run(to, PLACES_KIND, "sources", {})


def work_of(
    sources: list[Shard], to: str, size=8, seed=None, keep: KeepList | None = None
) -> ReshardWork:
    run = places_run(to)
    found = SidecarWork(PlacesStage(), run)
    found.keep = keep
    for shard in sources:
        if found.done(shard) is None:
            found.perform(shard, frozenset())
    plan = make_plan(run, sources, size, seed)
    return ReshardWork(plan, sources, Run(to, KIND, "", {"size": size, "seed": seed}))


def write(work: ReshardWork) -> list[list[Sample]]:
    """The samples of each new shard."""
    found = []
    for shard in work.planned():
        record = work.perform(shard, frozenset())
        assert record.counts["samples"] == shard.samples
        table = commit.read_sidecar(work.run.file(f"{shard.name}.parquet"))
        assert table.schema == RESHARDED
        found.append(list(read_samples(Shard("elsewhere", shard.url, 0))))
    return found


@pytest.fixture
def sources(out) -> list[Shard]:
    """Three shards of 10, 3 and 12 samples, of which one has no image."""
    packed = [pairs(10), pairs(3, 20), [*pairs(11, 40), ("bare", {"txt": b"no image"})]]
    urls = [write_tar(f"{out}/shards/{i:05d}.tar", p) for i, p in enumerate(packed)]
    return manifest.register(out, urls)


def originals(sources: list[Shard]) -> dict[str, Sample]:
    return {s.uid: s for shard in sources for s in read_samples(shard) if not s.reason}


def test_all_shards_but_the_last_are_full_and_everything_is_there_in_order(sources, tmp_path):
    work = work_of(sources, str(tmp_path / "to"))
    found = write(work)
    assert [len(samples) for samples in found] == [8, 8, 8]
    before = originals(sources)
    moved = [sample for samples in found for sample in samples]
    assert [s.uid for s in moved] == list(before)
    for sample in moved:
        was = before[sample.uid]
        assert (sample.image, sample.text) == (was.image, was.text)
        assert was.meta.items() <= sample.meta.items()
        assert uid_of(sample.meta["source_shard"], sample.meta["source_key"]) == was.uid
    keys = [s.key for s in moved]
    assert keys == [f"{i // 8:05d}{i % 8:04d}" for i in range(24)]
    dropped = commit.read_sidecar(places_run(str(tmp_path / "to")).file("00002.parquet"))
    assert dropped.schema == PLACES
    assert [r["reason"] for r in dropped.to_pylist() if r["status"] != "ok"] == ["no_image"]


def test_a_seed_shuffles_all_samples_by_the_hash_of_seed_and_uid(sources, tmp_path):
    found = write(work_of(sources, str(tmp_path / "to"), seed=7))
    moved = [sample for samples in found for sample in samples]
    before = originals(sources)
    expected = sorted(before, key=lambda u: (hashlib.sha256(f"7/{u}".encode()).hexdigest()[:32], u))
    assert [s.uid for s in moved] == expected != list(before)
    assert all(s.image == before[s.uid].image for s in moved)
    assert len({s.meta["source_shard"] for s in found[0]}) > 1
    other = write(work_of(sources, str(tmp_path / "other"), seed=8))
    assert [s.uid for samples in other for s in samples] != expected


@pytest.mark.parametrize("seed", [None, 3])
def test_how_the_sources_are_packed_and_cut_changes_no_shuffle(sources, tmp_path, seed):
    orders = [
        [
            s.uid
            for part in write(work_of(sources, str(tmp_path / f"{size}"), size, seed))
            for s in part
        ]
        for size in (5, 24, 100)
    ]
    assert orders[0] == orders[1] == orders[2]


def test_only_what_a_keep_list_keeps_is_moved(sources, tmp_path, out):
    for shard in sources:
        rows = [
            {"uid": s.uid, "key": s.key, "keep": i % 3 == 0, "reason": None}
            for i, s in enumerate(read_samples(shard))
        ]
        record = commit.Record(shard.name, "", {}, {}, {"samples": len(rows), "rows": len(rows)})
        commit.write_sidecar(f"{out}/keep/third/{shard.name}.parquet", table_of(rows, KEEP), record)
    keep = KeepList(out, "third")
    found = write(work_of(sources, str(tmp_path / "to"), size=4, keep=keep))
    kept = [s.uid for shard in sources for i, s in enumerate(read_samples(shard)) if i % 3 == 0]
    assert [s.uid for part in found for s in part] == kept
    assert [len(part) for part in found] == [4, 4, 1]


def test_training_shards_are_moved_as_they_are(tmp_path):
    uid = uid_of("00007", "a")
    told = json.dumps({"uid": uid, "caption_source": "long", "caption": "alt", "x": 0.10}).encode()
    members = {"jpg": jpeg(1), "txt": b"blended", "json": told, "long.npy": b"anything"}
    url = write_tar(tmp_path / "mix/00000.tar", [("000000000", members)])
    sources = manifest.register(str(tmp_path), [url])
    work = work_of(sources, str(tmp_path / "to"))
    [[sample]] = write(work)
    assert (sample.uid, sample.text) == (uid, "alt")
    with tarfile.open(work.planned()[0].url) as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar}
    assert found == {f"000000000.{suffix}": data for suffix, data in members.items()}


def test_moved_again_samples_keep_their_first_uid(sources, tmp_path):
    first = work_of(sources, str(tmp_path / "one"), size=7, seed=1)
    write(first)
    urls = [shard.url for shard in first.planned()]
    again = manifest.register(str(tmp_path / "one"), urls)
    found = write(work_of(again, str(tmp_path / "two"), size=100))
    before = originals(sources)
    assert {s.uid: s.image for s in found[0]} == {u: s.image for u, s in before.items()}


def test_nobody_claims_a_uid_by_writing_it_down():
    uid = uid_of("00001", "k")
    told = {"uid": uid, "source_shard": "00001", "source_key": "k"}
    assert is_moved(told)
    for wrong in (
        {"uid": uid},
        told | {"source_key": "j"},
        told | {"uid": uid[::-1]},
        told | {"source_shard": 1},
        {},
    ):
        assert not is_moved(wrong)


STRANGE = [
    ("none", {"jpg": jpeg(1), "txt": b"no json"}),
    ("invalid", {"jpg": jpeg(2), "json": b"{not json"}),
    ("list", {"jpg": jpeg(3), "json": b"[1, 2]"}),
    ("large", {"jpg": jpeg(4), "json": b'{"' + b"k" * ((1 << 20) - 9) + b'": 1}'}),
    ("surrogate", {"jpg": jpeg(5), "json": rb'{"url": "\ud800"}'}),
    ("misnamed", {"png": jpeg(6), "cls": b"7"}),
    ("long", {"jpg": jpeg(7), "x" * (MAX_SUFFIX + 1): b"y"}),
]


def test_strange_samples_lose_nothing(tmp_path):
    url = write_tar(tmp_path / "raw/00000.tar", STRANGE)
    sources = manifest.register(str(tmp_path), [url])
    work = work_of(sources, str(tmp_path / "to"), size=100)
    [samples] = write(work)
    before = originals(sources)
    rows = commit.read_sidecar(work.run.file("00000.parquet")).to_pylist()
    assert [r["reason"] for r in rows] == [None] * 6 + ["bad_member"]
    assert [s.uid for s in samples] == list(before)[:6]
    assert [s.image for s in samples] == [s.image for s in before.values()][:6]
    with tarfile.open(work.planned()[0].url) as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar}
    assert found["000000001.source.json"] == b"{not json"
    assert found["000000002.source.json"] == b"[1, 2]"
    assert found["000000003.source.json"] == STRANGE[3][1]["json"]
    assert found["000000005.cls"] == b"7"
    assert "000000000.source.json" not in found


def test_long_names_folders_and_stray_members_are_no_obstacle(tmp_path):
    deep = "d/" * 70 + "key"
    members = [
        ("README", b"about"),
        (f"{deep}.jpg", jpeg(1)),
        ("__note__", b"between two members of one sample"),
        (f"{deep}.txt", b"deep"),
        ("a.jpg", jpeg(2)),
    ]
    url = write_members(tmp_path / "raw/00000.tar", members, format=tarfile.PAX_FORMAT)
    sources = manifest.register(str(tmp_path), [url])
    [samples] = write(work_of(sources, str(tmp_path / "to")))
    assert [(s.image, s.text) for s in samples] == [(jpeg(1), "deep"), (jpeg(2), None)]


def test_places_are_those_of_the_tar(sources):
    for shard in sources:
        headers = places(shard.url)
        for sample in read_samples(shard):
            own = [h for h in headers if h.name.split(".")[0] == sample.key]
            last = own[-1]
            end = last.offset_data + -(-last.size // 512) * 512
            assert sample.span == (own[0].offset, end)


def test_reads_are_merged_where_samples_lie_side_by_side(monkeypatch):
    monkeypatch.setattr("pipeline.resharding._BLOCK_BYTES", 100)
    part = [
        {"shard": shard, "start": start, "size": size}
        for shard, start, size in [
            *[("a", 0, 50), ("a", 50, 50), ("a", 100, 10)],
            *[("a", 120, 10), ("b", 130, 500), ("b", 630, 1)],
        ]
    ]
    assert [len(run) for run in _runs(part)] == [2, 1, 1, 1, 1]
    assert [place for run in _runs(part) for place in run] == part


def test_what_is_done_stays_and_what_is_torn_is_made_again(sources, tmp_path):
    work = work_of(sources, str(tmp_path / "to"), seed=2)
    write(work)
    before = {p.name: p.read_bytes() for p in Path(work.run.folder).glob("*[!n]")}
    again = work_of(sources, str(tmp_path / "to"), seed=2)
    assert all(again.done(shard) for shard in again.planned())
    Path(work.run.file("00001.tar")).write_bytes(b"")
    assert [again.done(s) is None for s in again.planned()] == [False, True, False]
    write(again)
    assert {p.name: p.read_bytes() for p in Path(work.run.folder).glob("*[!n]")} == before


def test_changed_sources_are_not_mixed_with_what_was_made(sources, tmp_path, out):
    work = work_of(sources, str(tmp_path / "to"))
    write_tar(sources[1].url, pairs(3, 60))
    with pytest.raises(BadShard, match="is not where it was"):
        write_tar(sources[0].url, [pair(f"x{i}", i) for i in range(10)])
        work.perform(work.planned()[0], frozenset())
    now = manifest.register(out, [s.url for s in sources])
    with pytest.raises(UserError, match="shards or the keep-list changed since"):
        work_of(now, str(tmp_path / "to"))


def test_what_is_taken_down_between_plan_and_copy_stays_out(sources, tmp_path, out):
    work = work_of(sources, str(tmp_path / "to"))
    buried = list(originals(sources))[:2]
    tombstones.add(out, tombstones.Tombstones(uids=frozenset(buried)), "asked")
    found = write(work)
    assert [s.uid for part in found for s in part] == list(originals(sources))
    rows = commit.read_sidecar(work.run.file("00000.parquet")).to_pylist()
    assert Counter(r["reason"] for r in rows) == {None: 6, "taken_down": 2}


def test_what_is_buried_is_not_moved_and_stays_buried(sources, tmp_path, out):
    uids = list(originals(sources))
    to = str(tmp_path / "to")
    tombstones.add(out, tombstones.Tombstones(uids=frozenset(uids[:2])), "asked")
    tombstones.add(out, tombstones.Tombstones(sha256s=frozenset(("ab" * 32,))), "law")
    tombstones.add(to, tombstones.Tombstones(uids=frozenset(uids[2:3])), "before")
    inherit_tombstones(out, to)
    inherit_tombstones(out, to)
    inherit_tombstones(str(tmp_path / "nothing"), to)
    assert tombstones.load(out) <= tombstones.load(to)
    rows = pq.read_table(f"{to}/{tombstones.FILE}").to_pylist()
    assert Counter(row["reason"] for row in rows) == {"asked": 2, "law": 1, "before": 1}
    work = work_of(sources, to)
    moved = [s for part in write(work) for s in part]
    assert [s.uid for s in moved] == uids[3:]
    places = commit.read_sidecar(places_run(to).file("00000.parquet")).to_pylist()
    assert [r["reason"] for r in places[:3]] == ["taken_down", "taken_down", None]
    rows = commit.read_sidecar(work.run.file("00000.parquet")).to_pylist()
    assert [r["reason"] for r in rows[:2]] == ["taken_down", None]


def test_a_sample_that_killed_its_worker_only_has_a_row(sources, tmp_path):
    work = work_of(sources, str(tmp_path / "to"))
    shard = work.planned()[0]
    work.probe(shard, frozenset({2}), range(8))
    record = work.perform(shard, frozenset({2}))
    assert record.counts["reason"] == {"killed_worker": 1}
    assert set(record.counts["reason"]) <= set(REASONS)
    assert len(list(read_samples(Shard("x", shard.url, 0)))) == 7


def test_absurdly_large_samples_do_not_go_on():
    sample = Sample(0, "u", "k", b"x", span=(512, 513 + MAX_SAMPLE_BYTES))
    [row] = PlacesStage()(iter([sample])).to_pylist()
    assert (row["status"], row["reason"]) == ("dropped", "too_many_bytes")


def test_a_place_of_another_sample_is_noticed():
    assert _parsed(b"", "k") == {}
    assert _parsed(b"\xff" * 1024, "k") == {}


def test_stores_without_a_file_system(store, tmp_path):
    url = f"{store}/raw/00000.tar"
    from pipeline import storage

    storage.write_bytes(url, Path(write_tar(tmp_path / "a.tar", pairs(9))).read_bytes())
    sources = manifest.register(f"{store}/data", [url])
    found = write(work_of(sources, f"{store}/to", size=4, seed=1))
    assert sorted(s.uid for part in found for s in part) == sorted(originals(sources))
