"""Take-downs: nothing of a sample is left anywhere, what is left is true, and nothing brings it back."""

import datetime
import decimal
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from jobs.__main__ import main
from pipeline import (
    blanking,
    commit,
    manifest,
    runs,
    storage,
    takedown,
    takedown_search,
    tombstones,
)
from pipeline.errors import UserError
from pipeline.keep_list import KeepList
from pipeline.manifest import Shard
from pipeline.reading import STUB, read_samples
from pipeline.runs import Run
from pipeline.samples import uid_of
from pipeline.stratify import draw
from pipeline.teaching import TeachingWork
from pipeline.tombstones import TAKEN_DOWN, Tombstones, url_hash
from tests.support import buried
from tests.support.buried import OTHER, OWN, alt, folder, holding, key_of, url_of
from tests.support.outputs import CLOCKS, digest, leftovers
from tests.support.shards import jpeg, pair, pairs, places, write_tar
from tests.support.stages import caption

KEY = key_of(2)
UID = uid_of(OWN, KEY)
THEIRS = "000000052"
THEIR_UID = uid_of(OTHER, THEIRS)


def bury(made, asked: Tombstones, reason: str = "ticket 1"):
    report, found = takedown.find(str(made.out), asked)
    takedown.take_down(str(made.out), report, found, reason)
    return report


def uids(*some: str) -> Tombstones:
    return Tombstones(uids=frozenset(some))


def rows(path: Path) -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(path).to_pylist()}


def is_blank(row: dict) -> bool:
    said = {"uid", "key", "source_shard", "source_key", "status", "reason", "keep", "error_message"}
    others = {k: v for k, v in row.items() if k not in said and not k.endswith("_status")}
    return row["reason"] == TAKEN_DOWN and not any(others.values())


@pytest.fixture
def made(tmp_path):
    return folder(tmp_path)


def needles(key: str, index: int) -> list[bytes]:
    return [alt(key).encode(), url_of(key).encode(), jpeg(index), f"answer about {key}".encode()]


def test_nothing_of_it_is_left(made):
    assert len(holding(made.out, needles(KEY, 2))) >= 8  # or the test would show nothing
    report = bury(made, uids(UID))
    assert holding(made.out, needles(KEY, 2)) == []
    assert not report.missing
    assert not report.unread
    assert not leftovers(made.out)
    assert not (made.out / "samples.png").exists()
    for other in (1, 3):
        assert len(holding(made.out, needles(key_of(other), other))) >= 6


def test_rows_stay_and_say_why(made):
    before = {p: len(pq.read_table(p)) for p in sorted(made.out.glob("*/**/*.parquet"))}
    bury(made, uids(UID))
    assert {p: len(pq.read_table(p)) for p in before} == before
    for path in ("captions/colour", "columns/text@lid.176", "keep/all", "mix/m", "shards"):
        row = rows(made.out / path / f"{OWN}.parquet")[KEY]
        assert is_blank(row), path
        assert row.get("status") in (None, "failed", "dropped", "failed_to_download")
        assert row.get("keep") in (None, False)


def test_other_samples_keep_every_bit(made):
    tables = sorted(p for p in made.out.glob("*/**/*.parquet") if "takedown" not in p.parts)
    names = ("jpg_offset", "txt_offset", "json_offset")
    told = lambda p: [  # noqa: E731
        {k: v for k, v in row.items() if k not in names}
        for row in pq.read_table(p).to_pylist()
        if row.get("key") != KEY and row.get("url") != url_of(KEY)
    ]
    before = {p: told(p) for p in tables}
    samples = {s.key: s for s in read_samples(made.shards[0])}
    bury(made, uids(UID))
    for path, rows_before in before.items():
        now = told(path)
        if "urls" in path.parts:
            now = [row for row in now if row["url"] != tombstones.BURIED_URL]
        assert now == rows_before, path
    for sample in read_samples(Shard(OWN, str(made.out / f"shards/{OWN}.tar"), 0)):
        if sample.key != KEY:
            old = samples[sample.key]
            assert (sample.image, sample.text, sample.meta) == (old.image, old.text, old.meta)


def test_the_mix_tells_where_its_members_are(made):
    bury(made, uids(UID, uid_of(OWN, key_of(0))))
    table = rows(made.out / f"mix/m/{OWN}.parquet")
    members = {m.name: m for m in places(made.out / f"mix/m/{OWN}.tar")}
    kept = [row for row in table.values() if row["status"] == "ok"]
    assert {f"{row['key']}.jpg" for row in kept} <= members.keys()
    assert len(members) == 3 * len(kept)
    for row in kept:
        for kind in ("jpg", "txt", "json"):
            member = members[f"{row['key']}.{kind}"]
            assert (row[f"{kind}_offset"], row[f"{kind}_size"]) == (member.offset_data, member.size)
    assert json.loads((made.out / "mix/m/sizes.json").read_text())[f"{OWN}.tar"] == len(kept)
    assert "dropped: taken_down | 2" in (made.out / "mix/m/README.md").read_text()


def test_every_record_is_still_true(made):
    assert made.undone() == []
    bury(made, uids(UID, THEIR_UID))
    assert made.undone() == []
    for path in sorted(made.out.glob("*/*/*.parquet")):
        if path.parts[-3] in ("captions", "columns", "keep"):
            record = commit.read_sidecar_record(str(path))
            told = commit.tally(commit.read_sidecar(str(path)))
            assert {k: record.counts[k] for k in told} == told, path
            assert record.counts["reason"][TAKEN_DOWN] == 1
    for stem in (f"shards/{OWN}", f"mix/m/{OWN}", f"mix/m/{OTHER}"):
        stats = json.loads((made.out / f"{stem}_stats.json").read_text())
        for name, file in stats["files"].items():
            path = (made.out / stem).parent / name
            assert file == {"size": path.stat().st_size, "sha256": commit.sha256_file(str(path))}
        assert stats["record"]["counts"]["reason"][TAKEN_DOWN] == 1
        assert stats["status_dict"][TAKEN_DOWN if "mix" in stem else "taken down"] == 1
        assert stats["successes"] == stats["record"]["counts"]["status"]["ok"]
        assert stats["count"] == len(pq.read_table(made.out / f"{stem}.parquet"))
    shard = next(s for s in manifest.load(str(made.out)) if s.name == OWN)
    assert shard.sha256 == commit.sha256_file(shard.url)
    assert manifest.register(str(made.out), [shard.url], save=False) == [shard]
    keep = commit.read_sidecar_record(str(made.out / f"keep/all/{OWN}.parquet"))
    source = made.out / f"columns/text@lid.176/{OWN}.parquet"
    assert keep.inputs["columns/text@lid.176"] == commit.sha256_file(str(source))


def test_the_crawl_has_nothing_to_do_and_nothing_to_fetch(made):
    bury(made, uids(UID))
    plan = json.loads((made.out / "urls/plan.json").read_text())
    part = made.out / f"urls/{OWN}.parquet"
    stats = json.loads((made.out / f"shards/{OWN}_stats.json").read_text())
    assert stats["record"]["inputs"] == {"part": plan["parts"][0]["sha256"]}
    assert plan["parts"][0]["sha256"] == commit.sha256_file(str(part))
    urls = pq.read_table(part).column("url").to_pylist()
    assert urls[2] == tombstones.BURIED_URL
    assert url_hash(urls[2]) in tombstones.load(str(made.out)).urls
    assert len(urls) == plan["parts"][0]["rows"]


def test_made_anew_it_is_the_same_bytes(made):
    """What a take-down leaves is what the steps themselves would make of what is left."""
    bury(made, uids(UID, THEIR_UID))
    kinds = ("captions", "columns", "mix")
    left = {k: v for k, v in digest(made.out).items() if k.startswith(kinds)}
    buried.again(made, made.now())
    assert {k: v for k, v in digest(made.out).items() if k.startswith(kinds)} == left


def test_a_second_time_nothing_happens(made):
    bury(made, uids(UID))
    files = lambda: {  # noqa: E731
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in made.out.rglob("*")
        if p.is_file() and p.name not in (".lock", "catalog.duckdb")
    }
    before = files()
    report = bury(made, uids(UID), reason="another ticket")
    assert not report.removed
    assert not report.missing
    assert files() == before


def test_shards_elsewhere_are_read_without_it(made):
    tar = made.shards[1].url
    before = Path(tar).read_bytes()
    report = bury(made, uids(THEIR_UID))
    assert Path(tar).read_bytes() == before
    assert report.elsewhere == {tar: 1}
    found = {s.key: s for s in read_samples(made.now()[1])}
    sample = found[THEIRS]
    assert (sample.reason, sample.image, sample.text, sample.meta) == (TAKEN_DOWN, b"", None, {})
    assert sample.uid == THEIR_UID
    assert not any(s.reason for key, s in found.items() if key != THEIRS)
    assert holding(made.out, [b"alt text of " + THEIRS.encode()]) == []


def test_a_fresh_run_does_not_hold_it(made):
    bury(made, uids(UID, THEIR_UID))
    caption(str(made.out), [s.url for s in made.shards], run="fresh")
    for shard, key in ((OWN, KEY), (OTHER, THEIRS)):
        table = rows(made.out / f"captions/fresh/{shard}.parquet")
        assert is_blank(table[key])
        assert len(table) == 6


@pytest.mark.parametrize("kind", ["bytes", "fetched", "url"])
def test_the_same_image_does_not_come_back_elsewhere(made, kind, tmp_path):
    bury(made, uids(UID))
    data, url, told = jpeg(777), "https://other.example/x.jpg", None
    if kind == "bytes":
        data = jpeg(2)
    elif kind == "fetched":
        told = hashlib.sha256(b"as fetched" + jpeg(2)).hexdigest()
    else:
        url = url_of(KEY)
    key, members = pair("000000900", 1, url=url, **({"sha256": told} if told else {}))
    tar = write_tar(
        tmp_path / "new/00009.tar", [(key, members | {"jpg": data}), pair("000000901", 9)]
    )
    caption(str(made.out), [tar], run="imported")
    table = rows(made.out / "captions/imported/00009.parquet")
    assert is_blank(table[key])
    assert table["000000901"]["status"] == "ok"


def test_all_copies_that_are_there_go_together(made, tmp_path):
    copy, members = pair("000000800", 1)
    tar = write_tar(tmp_path / "new/00008.tar", [(copy, members | {"jpg": jpeg(2)})])
    caption(str(made.out), [tar])
    report = bury(made, uids(UID))
    assert report.elsewhere == {tar: 1}
    assert is_blank(rows(made.out / "captions/colour/00008.parquet")[copy])


@pytest.mark.parametrize("by", ["url", "sha256", "stored"])
def test_by_url_and_by_hash(made, by):
    fetched = hashlib.sha256(b"as fetched" + jpeg(2)).hexdigest()
    asked = {
        "url": Tombstones(urls=frozenset([url_hash(url_of(KEY))])),
        "sha256": Tombstones(sha256s=frozenset([fetched])),
        "stored": Tombstones(sha256s=frozenset([hashlib.sha256(jpeg(2)).hexdigest()])),
    }[by]
    report = bury(made, asked)
    assert not report.missing
    assert UID in tombstones.load(str(made.out)).uids
    assert holding(made.out, needles(KEY, 2)) == []
    assert made.undone() == []


def test_what_was_never_fetched_or_is_in_quarantine(made):
    """Row 6 lies in quarantine, row 7 failed: both are only known by their URL."""
    asked = frozenset(url_hash(url_of(key_of(i))) for i in (6, 7))
    report = bury(made, Tombstones(urls=asked))
    assert not report.missing
    found = holding(made.out, [url_of(key_of(6)).encode(), url_of(key_of(7)).encode(), jpeg(106)])
    assert found == []
    assert not (made.out / f"quarantine/{OWN}.tar").exists()
    stats = json.loads((made.out / f"shards/{OWN}_stats.json").read_text())
    assert stats["record"]["counts"]["reason"] == {TAKEN_DOWN: 2}
    assert stats["successes"] == 6
    assert made.undone() == []


def test_a_shard_and_a_mix_that_lose_everything(made):
    bury(made, uids(*(uid_of(OWN, key_of(i)) for i in range(6))))
    assert not (made.out / f"mix/m/{OWN}.tar").exists()
    assert f"{OWN}.tar" not in json.loads((made.out / "mix/m/sizes.json").read_text())
    assert [s.reason for s in read_samples(made.now()[0])] == [TAKEN_DOWN] * 6
    assert made.undone() == []
    assert json.loads((made.out / f"shards/{OWN}_stats.json").read_text())["successes"] == 0


def test_other_readers_skip_what_stands_in_its_place(made):
    bury(made, uids(UID))
    tar = str(made.out / f"shards/{OWN}.tar")
    assert any(m.name == STUB + KEY for m in places(tar))
    read = list(webdataset.WebDataset([tar], shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in read] == [key_of(i) for i in range(6) if i != 2]
    assert all({"jpg", "txt", "json"} <= s.keys() for s in read)


def test_a_torn_shard_of_others_is_named(made):
    tar = Path(made.shards[1].url)
    tar.write_bytes(tar.read_bytes()[:2000])
    report, _ = takedown.find(str(made.out), uids(UID))
    assert list(report.unread) == [str(tar)]


def test_what_is_nowhere_is_missing(made):
    report, _ = takedown.find(str(made.out), uids(UID, "f" * 32))
    assert report.missing == uids("f" * 32)
    assert not tombstones.load(str(made.out))


def test_tombstones_keep_hashes_only(made):
    bury(made, uids(UID))
    table = pq.read_table(made.out / tombstones.FILE)
    assert set(table.column("reason").to_pylist()) == {"ticket 1"}
    assert url_of(KEY) not in str(table.to_pylist())
    kept = tombstones.load(str(made.out))
    assert kept.uids == {UID}
    assert kept.urls == {url_hash(url_of(KEY)), url_hash(tombstones.BURIED_URL)}
    assert hashlib.sha256(jpeg(2)).hexdigest() in kept.sha256s


def test_tombstones_are_the_same_bytes_whatever_the_order(tmp_path):
    some = [uids("b" * 32), uids("a" * 32), Tombstones(urls=frozenset([url_hash("x")]))]
    for name, order in (("one", some), ("two", some[::-1])):
        (tmp_path / name).mkdir()
        for asked in order:
            tombstones.add(str(tmp_path / name), asked, "")
    first, second = ((tmp_path / n / tombstones.FILE).read_bytes() for n in ("one", "two"))
    assert first == second


def test_a_stub_of_a_stranger_claims_no_uid(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [])
    from tests.support.shards import write_members

    write_members(tar, [(STUB + "k", b"../../etc" * 100), ("x.jpg", jpeg(1))])
    found = list(read_samples(Shard("00000", tar, 0)))
    assert [(s.key, s.uid, s.reason) for s in found] == [
        ("k", uid_of("00000", "k"), TAKEN_DOWN),
        ("x", uid_of("00000", "x"), ""),
    ]


def test_a_keep_list_found_anew_is_the_same_keep_list(made):
    url = str(made.out / f"keep/all/{OWN}.parquet")
    before = KeepList(str(made.out), "all").identity(made.shards[0])
    record = commit.read_sidecar_record(url)
    table = commit.read_sidecar(url)
    commit.write_sidecar(url, table, commit.Record.from_dict(vars(record) | {"inputs": {"new": 1}}))
    assert KeepList(str(made.out), "all").identity(made.shards[0]) == before
    rows_ = table.to_pylist()
    rows_[0]["keep"] = False
    commit.write_sidecar(url, pa.Table.from_pylist(rows_, schema=table.schema), record)
    assert KeepList(str(made.out), "all").identity(made.shards[0]) != before


# what belongs together


def bare(root: Path, sha256s: list[str], urls: list[str]) -> Path:
    """OUT with one raw shard whose tar tells nothing but images and texts; its table tells the rest."""
    keys = [f"{i:09d}" for i in range(len(sha256s))]
    write_tar(
        root / "shards/00000.tar",
        [(key, {"jpg": jpeg(i), "txt": b"<text %d>" % i}) for i, key in enumerate(keys)],
    )
    listed = zip(keys, sha256s, urls, strict=True)
    told = [
        {"key": key, "url": url, "caption": f"<text {i}>", "status": "success"}
        | {"error_message": None, "sha256": sha256}
        for i, (key, sha256, url) in enumerate(listed)
    ]
    schema = pa.schema([(name, pa.string()) for name in told[0]])
    pq.write_table(pa.Table.from_pylist(told, schema=schema), root / "shards/00000.parquet")
    stats = {"count": len(keys), "successes": len(keys), "status_dict": {"success": len(keys)}}
    (root / "shards/00000_stats.json").write_text(json.dumps(stats))
    return root


def take(out: Path, asked: Tombstones):
    report, found = takedown.find(str(out), asked)
    takedown.take_down(str(out), report, found, "")
    return report


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_what_belongs_together_by_way_of_a_table_goes_together(tmp_path, first):
    """0 and 1 have the same bytes, 1 and 2 the same URL, 2 and 3 the same bytes; 4 is alone."""
    sha256s = [c * 64 for c in "aabbc"]
    urls = [f"https://example.org/{name}.jpg" for name in ("0", "12", "12", "3", "4")]
    out = bare(tmp_path / "out", sha256s, urls)
    key = f"{first:09d}"
    report = take(out, uids(uid_of("00000", key)))
    assert not report.missing
    left = list(read_samples(Shard("00000", str(out / "shards/00000.tar"), 0)))
    assert [s.reason for s in left] == [TAKEN_DOWN] * 4 + [""]
    table = pq.read_table(out / "shards/00000.parquet").to_pylist()
    assert [row["url"] for row in table] == [None] * 4 + [urls[4]]
    assert holding(out, [b"<text %d>" % i for i in range(4)] + [jpeg(i) for i in range(4)]) == []
    assert len(holding(out, [b"<text 4>"])) == 2
    assert json.loads((out / "shards/00000_stats.json").read_text())["successes"] == 1
    assert len(tombstones.load(str(out)).uids) == 4


def test_tars_are_read_again_only_where_they_tell_something_new(made, monkeypatch):
    read = []
    original = takedown_search._in_shard
    monkeypatch.setattr(
        takedown_search, "_in_shard", lambda s, *asked: read.append(s.url) or original(s, *asked)
    )
    _, found = takedown.find(str(made.out), uids(UID))
    tars = len(read) // 2
    assert len(read) == 2 * tars  # what was stored has another hash than what was fetched
    read.clear()
    takedown.find(str(made.out), found.marks)
    assert len(read) == tars


def resharded(out: Path) -> tuple[Path, list[Shard]]:
    """A shuffled folder: the uid that a key would make there is that of some other sample."""
    urls = [
        write_tar(out / f"shards/{i:05d}.tar", pairs(6, start)) for i, start in enumerate((0, 20))
    ]
    shards = manifest.register(str(out), urls)
    to = out.parent / "to"
    flags = ["--out", str(out), "--to", str(to), "--executor", "inline", "--shard-size", "8"]
    assert main(["reshard", *flags, "--seed", "7"]) == 0
    return to, shards


def test_in_a_resharded_folder_only_it_goes(tmp_path):
    to, _ = resharded(tmp_path / "out")
    tables = sorted((to / "shards").glob("*.parquet"))
    before = [row for path in tables for row in pq.read_table(path).to_pylist()]
    made_of_keys = {uid_of("00000", r["key"]): r for r in before}  # and whose they seem to be
    row = next(r for r in before if made_of_keys.get(r["uid"], r) != r)
    report = take(to, uids(row["uid"]))
    assert not report.missing
    after = [row for path in tables for row in pq.read_table(path).to_pylist()]
    changed = [b for a, b in zip(before, after, strict=True) if a != b]
    assert changed == [row | {"status": "failed", "reason": TAKEN_DOWN}]
    found = [s for shard in manifest.load(str(to)) for s in read_samples(shard)]
    assert [s.uid for s in found if s.reason] == [row["uid"]]
    assert [s.uid for s in found] == [r["uid"] for r in before]
    assert tombstones.load(str(to)).uids == {row["uid"]}
    sizes = json.loads((to / "shards/sizes.json").read_text())
    assert sizes == {"00000.tar": 7, "00001.tar": 4}
    for name, count in sizes.items():
        stats = json.loads((to / f"shards/{name[:-4]}_stats.json").read_text())
        assert stats["successes"] == stats["record"]["counts"]["status"]["ok"] == count


def test_of_what_a_key_would_make_in_a_resharded_folder_nothing_goes(tmp_path):
    to, _ = resharded(tmp_path / "out")
    before = {p: p.read_bytes() for p in sorted((to / "shards").iterdir()) if p.is_file()}
    strange = uid_of("00001", "000010003")  # a key of the folder, and no uid of it
    report, found = takedown.find(str(to), uids(strange))
    assert report.missing == uids(strange)
    takedown.take_down(str(to), report, found, "")
    assert {p: p.read_bytes() for p in before} == before


def test_in_a_folder_to_teach_from_only_it_goes(tmp_path):
    urls = [write_tar(tmp_path / "raw/00000.tar", pairs(12))]
    sources = manifest.register(str(tmp_path / "raw"), urls)
    out = tmp_path / "out"
    run = Run(str(out), "shards", "", {"n": 8})
    runs.begin(run, ["00000"])
    work = TeachingWork(draw(sources, 8, held_out=2).drawn, sources, run, shard_size=20)
    for shard in work.planned():
        work.perform(shard, frozenset())
    manifest.register(str(out), [shard.url for shard in work.planned()])
    tables = sorted((out / "shards").glob("*.parquet"))
    before = [r for path in tables for r in pq.read_table(path).to_pylist()]
    # one whose uid, made of its key here, is also that of another one's source
    whose = {r["source_uid"]: r["key"] for r in before}
    samples = [s for shard in manifest.load(str(out)) for s in read_samples(shard)]
    chosen = next(s for s in samples if whose.get(s.uid, s.key) != s.key)
    take(out, uids(chosen.uid))
    after = [r for path in tables for r in pq.read_table(path).to_pylist()]
    changed = [b for a, b in zip(before, after, strict=True) if a != b]
    assert [r["key"] for r in changed] == [chosen.key]
    assert is_blank(changed[0] | {"split": "", "source_uid": ""})
    left = [s for shard in manifest.load(str(out)) for s in read_samples(shard)]
    assert [s.key for s in left if s.reason] == [chosen.key]


# what else tells of it


def test_old_numbers_and_unfinished_work_go(made):
    funnel, uids_ = (made.out / "keep/all" / name for name in ("funnel.json", "uids.npy"))
    funnel.write_text('{"samples": 12, "kept": 10, "pool": ""}')
    uids_.write_bytes(b"uids")
    work = made.out / "columns/dedup@default/.work"
    (work / "tables-1").mkdir(parents=True)
    (work / "vectors.npy").write_bytes(b"embeddings of all")
    report = bury(made, uids(UID))
    assert not funnel.exists()
    assert not uids_.exists()
    assert not work.exists()
    assert report.removed["columns/dedup@default/.work", "unfinished work, to be made again"] == 1
    work.mkdir()  # of another one, killed later
    assert bury(made, uids(UID)).removed.total() == 1
    assert not work.exists()


def test_work_that_goes_on_is_left_alone(made):
    work = made.out / "columns/dedup@default/.work"
    work.mkdir(parents=True)
    with storage.exclusive(str(work.parent)), pytest.raises(UserError, match="another job"):
        bury(made, uids(UID))
    assert work.exists()


def strange_table() -> pa.Table:
    """Columns of every type that somebody's list may have, with and without nulls allowed."""
    values = {
        "md5": ("m", pa.string()),
        "fetched_md5": ("m", pa.large_string()),
        "view": ("v", pa.string_view()),
        "raw": (b"r", pa.binary_view()),
        "tag": ("t", pa.dictionary(pa.int32(), pa.string())),
        "score": (0.5, pa.float16()),
        "when": (datetime.datetime(2020, 1, 1), pa.timestamp("us")),
        "price": (decimal.Decimal("1.50"), pa.decimal128(10, 2)),
        "day": (datetime.date(2020, 1, 1), pa.date32()),
        "at": (datetime.time(1), pa.time32("s")),
        "flag": (True, pa.bool_()),
        "data": (b"d", pa.binary()),
        "boxes": ([[0.5]], pa.list_(pa.list_(pa.float32()))),
        "vector": ([1.0, 2.0], pa.list_(pa.float32(), 2)),
        "place": ({"x": 1, "y": "z"}, pa.struct([("x", pa.int8()), ("y", pa.string())])),
    }
    fields = [pa.field("key", pa.string()), pa.field("uid", pa.string())]
    row = {"uid": "theirs"}
    for name, (value, kind) in values.items():
        for nullable in (True, False):
            fields.append(pa.field(f"{name}_{nullable}", kind, nullable=nullable))
            row[f"{name}_{nullable}"] = value
    arrays = [[f"k{i}" if f.name == "key" else row[f.name] for i in range(3)] for f in fields]
    columns = [pa.array(a, f.type) for a, f in zip(arrays, fields, strict=True)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def test_whatever_a_table_holds_only_the_key_stays():
    table = blanking.as_written(strange_table())
    made = blanking.blanked(table, np.array([False, True, False]), "00000")
    assert made.schema == table.schema
    before, after = table.to_pylist(), made.to_pylist()
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1].pop("key") == "k1"
    nothing = (None, "", b"", 0, False, [], [0.0, 0.0], {"x": None, "y": None})
    nothing += (datetime.datetime(1970, 1, 1), datetime.date(1970, 1, 1), datetime.time(0))
    kept = {k: v for k, v in after[1].items() if v not in nothing}
    assert kept == {}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_urls_and_hashes_of_any_kind_of_text_are_looked_at(kind):
    text = {"url": "https://a.example/x", "fetched_sha256": "AB" * 32}
    for name, value in text.items():
        table = pa.table({"key": ["k", "l"], name: pa.array([value, None], kind)})
        table = blanking.as_written(table)
        asked = Tombstones(
            sha256s=frozenset(["ab" * 32]), urls=frozenset([url_hash("https://a.example/x")])
        )
        found = blanking.is_buried(table, asked, "00000")
        assert found.tolist() == [True, False]
        told = blanking.marks(table.filter(pa.array(found)), "00000")
        assert told.sha256s | told.urls < asked.sha256s | asked.urls


KILLED = """
import os, signal, sys
from pipeline import storage, takedown
from pipeline.tombstones import Tombstones
out, uids, stop = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
left = stop
original = storage._sync_folder
def count(folder):
    global left
    original(folder)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
storage._sync_folder = count
report, found = takedown.find(out, Tombstones(uids=frozenset(uids)))
takedown.take_down(out, report, found, "ticket 1")
print("whole", stop - left)
"""


def killed(out: Path, stop: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", KILLED, str(out), f"{UID},{THEIR_UID}", str(stop)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def everything(out: Path) -> dict[str, bytes]:
    def of(path: Path) -> bytes:
        data = path.read_bytes()
        if path.name.endswith("_stats.json"):
            return json.dumps(
                {k: v for k, v in json.loads(data).items() if k not in CLOCKS}
            ).encode()
        if path.name == "shards.parquet":  # it notes times of files
            rows_ = pq.read_table(path).drop_columns(["mtime_ns"]).to_pylist()
            return json.dumps(rows_).encode().replace(str(out.parent).encode(), b"")
        return data

    skipped = (".lock", "catalog.duckdb")
    return {
        p.relative_to(out).as_posix(): of(p)
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name not in skipped
    }


def check_killed(root: Path, stops: list[int] | None) -> None:
    """stops: after how many written files it is killed; None for all of them."""
    made = folder(root / "made")
    shutil.copytree(root / "made", root / "whole", symlinks=True)
    whole = replace(made, out=root / "whole/out")
    done = killed(whole.out, 10**6)
    assert done.stdout.startswith("whole"), done.stderr
    writes = int(done.stdout.split()[1])
    assert writes > 20
    expected = everything(whole.out)
    for stop in stops or range(1, writes + 1):
        out = root / f"killed{stop}/out"
        shutil.copytree(made.out, out)
        assert killed(out, stop).returncode == -signal.SIGKILL
        assert UID in tombstones.load(str(out)).uids  # first of all
        bury(replace(made, out=out), uids(UID, THEIR_UID))
        found = everything(out)
        assert {k for k in found if found[k] != expected.get(k)} == set(), stop
        assert found.keys() == expected.keys()
        assert holding(out, needles(KEY, 2)) == []
        assert not storage.list_files(str(out / "takedown"), ".json")


def test_killed_it_goes_on_to_the_same_end(tmp_path):
    check_killed(tmp_path, [1, 15])


@pytest.mark.slow
def test_killed_after_any_file_it_goes_on_to_the_same_end(tmp_path):
    check_killed(tmp_path, None)
