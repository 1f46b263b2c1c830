"""A run name stands for one configuration; what is written under it says of what it was made."""

import copy
import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import commit, manifest, runs, storage
from pipeline.commit import Record
from pipeline.errors import UserError
from pipeline.reading import BadShard
from pipeline.runs import Run
from pipeline.schemas import CAPTIONS
from pipeline.stage import SidecarWork
from tests.support.shards import pairs, write_tar
from tests.support.stages import ColourStage, caption

CONFIG = {
    "captioner": "c",
    "limit": 0,
    "styles": {"short": {"tokens": 30, "top": 1.0}, "long": {}},
    "sizes": [1, 2],
    "none": None,
}


def changed(**paths: object) -> dict:
    config = copy.deepcopy(CONFIG)
    for path, value in paths.items():
        *parents, last = path.split("__")
        inner = config
        for name in parents:
            inner = inner[name]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return config


def test_a_run_goes_on_with_the_same_settings_and_more_shards(out: str):
    run = Run(out=out, kind="captions", name="r", config=CONFIG)
    assert runs.load(out, "captions", "r") is None
    assert runs.begin(run, ["00001", "00000"]) == []
    before = storage.read_bytes(run.file("run.json"))
    assert runs.begin(run, ["00000"]) == []
    assert storage.read_bytes(run.file("run.json")) == before
    same = Run(out=out, kind="captions", name="r", config=changed(sizes=(1, 2)))
    assert runs.begin(same, ["00002"]) == []
    record = runs.require(out, "captions", "r")
    assert record["shards"] == ["00000", "00001", "00002"]
    assert record["config"] == CONFIG
    assert record["config_hash"] == run.config_hash == same.config_hash
    assert record["environment"]["pyarrow"] == pa.__version__
    assert record["environment"]["recaption"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (changed(limit=5), "limit (was 0, is 5)"),
        (changed(styles__short__tokens=9), "styles.short.tokens (was 30, is 9)"),
        (changed(styles__long__tokens=9), "styles.long.tokens (was absent, is 9)"),
        (changed(styles__long=...), "styles.long (was {}, is absent)"),
        (changed(none=...), "none (was null, is absent)"),
        (changed(new=None), "new (was absent, is null)"),
        (changed(styles__short__top=1), "styles.short.top (was 1.0, is 1)"),
        (changed(limit=False), "limit (was 0, is false)"),
        (changed(sizes=[2, 1]), "sizes (was [1,2], is [2,1])"),
    ],
)
def test_other_settings_are_refused_by_name(out: str, config: dict, says: str):
    """Whatever changes the hash is refused: else every shard would be redone without a word."""
    first = Run(out=out, kind="captions", name="r", config=CONFIG)
    runs.begin(first, ["00000"])
    before = storage.read_bytes(first.file("run.json"))
    other = Run(out=out, kind="captions", name="r", config=config)
    assert other.config_hash != first.config_hash
    with pytest.raises(UserError) as e:
        runs.begin(other, ["00000"])
    assert says in e.value.message
    assert "RUN=r: captions/r was made with other settings" in e.value.message
    assert storage.read_bytes(first.file("run.json")) == before
    assert runs.begin(Run(out=out, kind="captions", name="r2", config=config), []) == []


def test_another_environment_is_reported_and_recorded(out: str, monkeypatch: pytest.MonkeyPatch):
    run = Run(out=out, kind="captions", name="r", config=CONFIG)
    runs.begin(run, [])
    now = runs.environment()
    monkeypatch.setattr(runs, "environment", lambda: now | {"torch": "9.9"})
    assert runs.begin(run, []) == [f"torch was {now['torch']}, is 9.9"]
    assert runs.begin(run, []) == []


def test_what_is_not_there_or_damaged_is_told(out: str):
    with pytest.raises(UserError, match="has no run captions/r"):
        runs.require(out, "captions", "r")
    storage.write_bytes(f"{out}/captions/r/run.json", b'{"config": ')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        runs.begin(Run(out=out, kind="captions", name="r", config=CONFIG), [])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", ".hidden", "a b", "a\n", "a*", "\x00"]
)
def test_names_that_are_no_folders(out: str, name: str):
    with pytest.raises(UserError, match="is no name for a folder"):
        Run(out=out, kind="captions", name=name, config={})


TABLE = pa.table(
    {
        "uid": [f"{i:032x}" for i in range(3000)],
        "status": ["ok", "failed", "ok"] * 1000,
        "reason": [None, "empty", None] * 1000,
        "long_status": ["ok", "failed", "truncated"] * 1000,
    }
)
RECORD = Record(
    shard="00000",
    config_hash="c" * 64,
    inputs={"shard": {"size": 1, "etag": "", "sha256": "s", "limit": None}},
    environment={"device": "cpu"},
    counts={"samples": 3000, **commit.tally(TABLE)},
)


def test_counts_add_up_or_nothing_is_written(tmp_path: Path):
    assert RECORD.counts == {
        "samples": 3000,
        "rows": 3000,
        "status": {"failed": 1000, "ok": 2000},
        "reason": {"empty": 1000},
        "long_status": {"failed": 1000, "ok": 1000, "truncated": 1000},
    }
    url = str(tmp_path / "x.parquet")
    lost = replace(RECORD, counts=RECORD.counts | {"samples": 3001})
    with pytest.raises(RuntimeError, match="00000: 3001 samples in, 3000 rows out"):
        commit.write_sidecar(url, TABLE, lost)
    run = Run(out=str(tmp_path), kind="mix", name="m", config={})
    with pytest.raises(RuntimeError, match="3001 samples in"):
        commit.write_stats(run, lost, {}, {})
    assert list(tmp_path.rglob("*.*")) == []


def test_the_same_table_and_record_give_the_same_bytes(tmp_path: Path):
    """However the table came together."""
    pieces = pa.concat_tables(TABLE.slice(i, 7) for i in range(0, 3000, 7))
    for name, table in (
        ("a", TABLE),
        ("b", TABLE.replace_schema_metadata({"x": "y"})),
        ("c", pieces),
    ):
        commit.write_sidecar(str(tmp_path / name), table, RECORD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()
    assert commit.read_sidecar_record(str(tmp_path / "c")) == RECORD
    assert commit.read_sidecar(str(tmp_path / "c"), ["uid"]) == TABLE.select(["uid"])


def test_torn_and_foreign_sidecars_have_no_record(tmp_path: Path):
    url = str(tmp_path / "x.parquet")
    commit.write_sidecar(url, TABLE, RECORD)
    data = Path(url).read_bytes()
    for size in (0, 1, 4, 8, len(data) // 2, len(data) - 200, len(data) - 8, len(data) - 1):
        Path(url).write_bytes(data[:size])
        assert commit.read_sidecar_record(url) is None, size
    for record in (b"{}", b"[]", b"1", b"not json", b'{"shard": "00000"}'):
        pq.write_table(TABLE.replace_schema_metadata({b"recaption": record}), url)
        assert commit.read_sidecar_record(url) is None
    pq.write_table(TABLE, url)
    assert commit.read_sidecar_record(url) is None
    wrong = pq.read_metadata(url)
    assert wrong.num_rows == 3000
    assert commit.read_sidecar_record(str(tmp_path / "none.parquet")) is None


def test_flipped_bits_in_pages_are_found(tmp_path: Path):
    """The footer of such a file is fine; without checksums some flips give other captions."""
    url = str(tmp_path / "x.parquet")
    draw = random.Random(0)
    table = pa.table({"text": [draw.randbytes(20).hex() for _ in range(500)]})
    counts = {"samples": 500, **commit.tally(table)}
    commit.write_sidecar(url, table, replace(RECORD, counts=counts))
    data = Path(url).read_bytes()
    column = pq.read_metadata(url).row_group(0).column(0)
    first = column.dictionary_page_offset or column.data_page_offset
    silent = 0
    for _ in range(40):
        at = draw.randrange(first + 100, first + column.total_compressed_size)
        damaged = bytearray(data)
        damaged[at] ^= 1 << draw.randrange(8)
        Path(url).write_bytes(damaged)
        try:
            silent += commit.read_sidecar(url) != table
        except OSError:
            continue
    assert silent == 0


def test_a_shard_is_done_when_every_part_is_there(tmp_path: Path):
    run = Run(out=str(tmp_path), kind="mix", name="m", config={})
    storage.write_bytes(run.file("00000.tar"), b"x" * 100)
    files = {"00000.tar": {"size": 100, "sha256": ""}}
    assert commit.read_stats_record(run, "00000") is None
    commit.write_stats(run, RECORD, files, {"start_time": 1.5})
    assert commit.read_stats_record(run, "00000") == RECORD
    stats = json.loads(Path(run.file("00000_stats.json")).read_text())
    assert (stats["count"], stats["successes"], stats["start_time"]) == (3000, 2000, 1.5)
    assert stats["status_dict"] == {"success": 2000, "empty": 1000}

    data = Path(run.file("00000_stats.json")).read_bytes()
    bad = [data[: len(data) * i // 8] for i in range(8)] + [b"[]", b"1", b"{}", b'{"files": []}']
    for torn in bad:
        Path(run.file("00000_stats.json")).write_bytes(torn)
        assert commit.read_stats_record(run, "00000") is None
    Path(run.file("00000_stats.json")).write_bytes(data)
    for size in (0, 99, 101):
        Path(run.file("00000.tar")).write_bytes(b"x" * size)
        assert commit.read_stats_record(run, "00000") is None
    Path(run.file("00000.tar")).unlink()
    assert commit.read_stats_record(run, "00000") is None


def test_a_sidecar_is_redone_when_it_or_its_input_changed(tmp_path: Path, out: str):
    url = write_tar(tmp_path / "00000.tar", pairs(12))
    [shard] = caption(out, [url])
    run = Run(out, "captions", "colour", runs.require(out, "captions", "colour")["config"])
    work = SidecarWork(ColourStage(), run)
    first = work.done(shard)
    assert first.counts["samples"] == 12
    written = Path(run.file("00000.parquet")).read_bytes()
    assert commit.read_sidecar(run.file("00000.parquet")).schema == CAPTIONS

    assert work.done(replace(shard, limit=3)) is None
    assert SidecarWork(ColourStage(), replace(run, config={})).done(shard) is None
    shutil.copy(run.file("00000.parquet"), tmp_path / "kept")
    Path(run.file("00000.parquet")).write_bytes(written[:-9])
    assert work.done(shard) is None
    work.setup()
    assert work.perform(shard, frozenset()) == first
    assert Path(run.file("00000.parquet")).read_bytes() == written

    write_tar(url, pairs(12, start=1))
    [changed_shard] = manifest.register(out, [url])
    assert work.done(changed_shard) is None
    write_tar(url, pairs(11))
    [shorter] = manifest.register(out, [url])
    assert work.done(shorter) is None
    Path(url).write_bytes(Path(url).read_bytes()[:5000])
    [torn] = manifest.register(out, [url])
    with pytest.raises(BadShard):
        work.perform(torn, frozenset())
    assert Path(run.file("00000.parquet")).read_bytes() == written
    assert not list(Path(run.folder).glob(".*.tmp"))


def test_a_stage_with_another_schema_is_a_bug(tmp_path: Path, out: str):
    class Wrong(ColourStage):
        def __call__(self, samples):
            return super().__call__(itertools.islice(samples, 2)).drop_columns(["reason"])

    url = write_tar(tmp_path / "00000.tar", pairs(2))
    with pytest.raises(TypeError, match=r"Wrong: (?s:.*) is not its schema"):
        caption(out, [url], stage=Wrong())

    class Loses(ColourStage):
        def __call__(self, samples):
            return super().__call__(samples).slice(1)

    with pytest.raises(RuntimeError, match="2 samples in, 1 rows out"):
        caption(out, [url], run="loses", stage=Loses())
