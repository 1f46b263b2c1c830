"""Mixing one shard: what is kept, why the rest is not, and when it must be done again."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import blend, card, commit, manifest, mix, runs
from pipeline.commit import Record
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.mix import MixWork, Recipe
from pipeline.reading import BadShard, read_samples
from pipeline.runs import Run
from pipeline.samples import Sample, uid_of
from pipeline.schemas import KEEP, MIX
from pipeline.stage import SidecarWork
from tests.support.mixing import Mixed, mixed, table
from tests.support.shards import jpeg, pair, pairs, write_tar
from tests.support.stages import ColourStage, caption, status_of


@pytest.fixture
def shards(tmp_path: Path, out: str) -> list[Shard]:
    """Two captioned shards."""
    urls = [write_tar(tmp_path / f"raw/{i:05d}.tar", pairs(30, start=100 * i)) for i in range(2)]
    return caption(out, urls)


def keep_list(out: str, shard: Shard, verdicts: dict[str, tuple[bool, str | None]]) -> None:
    """Writes a keep-list `good` of a shard: key -> (keep, reason)."""
    rows = [
        {"uid": uid_of(shard.name, key), "key": key, "keep": keep, "reason": reason}
        for key, (keep, reason) in verdicts.items()
    ]
    kept = pa.Table.from_pylist(rows, schema=KEEP)
    counts = {"samples": len(rows), **commit.tally(kept)}
    record = Record(shard.name, "", {"shard": shard.identity}, {}, counts)
    commit.write_sidecar(f"{out}/keep/good/{shard.name}.parquet", kept, record)


def texts(made: Mixed) -> dict[str, str]:
    """uid -> the `.txt` of each sample."""
    found = {}
    for tar in made.tars:
        with tarfile.open(tar) as opened:
            data = {m.name: opened.extractfile(m).read() for m in opened}
        for name in data:
            if name.endswith(".json"):
                uid = json.loads(data[name])["uid"]
                found[uid] = data[name.removesuffix("json") + "txt"].decode()
    return found


CLOCKS = ("start_time", "end_time", "duration")


def contents(made: Mixed) -> dict[str, bytes]:
    """Every file of a mix, stats less their clocks, without what its name decides."""
    found = {}
    for path in sorted(Path(made.run.folder).iterdir()):
        data = path.read_bytes()
        if path.name.endswith("_stats.json"):
            stats = json.loads(data)
            data = json.dumps({k: v for k, v in stats.items() if k not in CLOCKS}).encode()
        found[path.name] = data.replace(made.run.name.encode(), b"NAME")
    return found


def test_two_runs_give_the_same_bytes(out: str, shards: list[Shard]):
    first, second = (mixed(out, shards, name=name) for name in ("mix-1", "mix-2"))
    assert contents(first) == contents(second)
    assert sorted(contents(first)) == [
        *("00000.parquet", "00000.tar", "00000_stats.json"),
        *("00001.parquet", "00001.tar", "00001_stats.json", "README.md", "run.json", "sizes.json"),
    ]
    for shard in shards:
        assert first.work.done(shard) == first.records[int(shard.name)]
        assert commit.read_sidecar(first.run.file(f"{shard.name}.parquet")).schema == MIX
    assert first.sizes == {"00000.tar": 30, "00001.tar": 30}
    reseeded = mixed(out, shards, "50", name="seed", seed=1)
    assert texts(reseeded) != texts(mixed(out, shards, "50", name="none"))
    assert [r["uid"] for r in table(reseeded, "00000")] == [
        uid_of("00000", key) for key, _ in pairs(30)
    ]


def test_synthetic_shares_nest_and_fallbacks_are_counted(out: str, shards: list[Shard]):
    rows = {}
    for share in ("0", "50", "95", "100"):
        made = mixed(out, shards, share, name=share)
        rows[share] = table(made, "00000") + table(made, "00001")
        for row in rows[share]:
            drawn = blend.draw(blend.parse(share), row["uid"])
            ok = {s for s in ("short", "long") if status_of(row["uid"], s) == "ok"} | {"original"}
            wanted = [drawn, "long", "short", "original"]
            assert row["caption_drawn"] == drawn
            assert row["caption_source"] == next(s for s in wanted if s in ok)
        counts = sum((Counter(r.counts["fallback"]) for r in made.records), Counter())
        fell = [(r["caption_drawn"], r["caption_source"]) for r in rows[share]]
        assert counts == Counter(f"{a} to {b}" for a, b in fell if a != b)
    assert sum(counts.values()) > 0
    drawn = {s: {r["uid"] for r in rows[s] if r["caption_drawn"] == "long"} for s in rows}
    assert set() == drawn["0"] < drawn["50"] < drawn["95"] < drawn["100"]


ODD = [
    pair("000000001", 1),
    pair("cat", 2),
    ("000000003", {"jpg": jpeg(3)[:300], "txt": b"torn"}),
    ("000000004", {"txt": b"no image"}),
    ("000000005", {"jpg": jpeg(5)}),
    ("000000006", {"jpg": b"<html>", "txt": b"html"}),
    ("000000007", {"jpg": jpeg(7), "txt": b""}),
    ("0000000001", {"jpg": jpeg(8), "txt": b"takes the name that the cat would get"}),
    ("8" * 200, {"jpg": jpeg(9), "txt": b"a name too long for a tar"}),
]


def odd_shard(folder: Path) -> str:
    return write_tar(folder / "00000.tar", ODD, format=tarfile.PAX_FORMAT)


def test_what_is_dropped_has_its_reason(tmp_path: Path, out: str):
    """Without captions, so that a sample without a text has nothing to train with."""
    shards = manifest.register(out, [odd_shard(tmp_path)])
    made = mixed(out, shards, "0", captions="")
    rows = {row["source_key"]: row for row in table(made, "00000")}
    assert {key: row["reason"] for key, row in rows.items()} == {
        **dict.fromkeys(["000000001", "cat", "0000000001", "8" * 200]),
        "000000003": "truncated",
        "000000004": "no_image",
        "000000005": "no_caption",
        "000000006": "not_an_image",
        "000000007": "no_caption",
    }
    [record] = made.records
    assert record.counts["samples"] == 9 == 4 + sum(record.counts["reason"].values())
    assert record.counts["status"] == {"dropped": 5, "ok": 4}
    assert made.work.failures(record.counts) == record.counts["reason"]
    assert made.sizes == {"00000.tar": 4}
    keys = [row["key"] for row in rows.values()]
    assert keys[:2] == ["000000001", "0000000001"]
    assert rows["0000000001"]["key"] == "00000000010"
    assert len(set(keys)) == 9
    assert all(key.isdigit() and len(key) < 32 for key in keys)
    assert len(texts(made)) == 4


def test_captions_stand_in_for_missing_originals(tmp_path: Path, out: str):
    shards = caption(out, [odd_shard(tmp_path)])
    made = mixed(out, shards, "0")
    rows = {row["source_key"]: row for row in table(made, "00000")}
    assert rows["000000005"]["caption_source"] in ("long", "short")
    assert rows["000000003"]["reason"] == "truncated"
    assert Counter(r["status"] for r in rows.values()) == {"ok": 6, "dropped": 3}


def test_only_what_a_keep_list_keeps_is_captioned(out: str, shards: list[Shard]):
    seen = []

    class Seeing(ColourStage):
        def captions(self, sample: Sample) -> dict[str, str]:
            seen.append(sample.key)
            return super().captions(sample)

    shard = shards[0]
    every = [s.key for s in read_samples(shard)]
    keep_list(out, shard, {key: (i % 3 == 0, "not a third") for i, key in enumerate(every)})
    run = Run(
        out=out, kind="captions", name="some", config=runs.load(out, "captions", "colour")["config"]
    )
    runs.begin(run, [shard.name])
    work = SidecarWork(Seeing(), run, keep="good")
    work.setup()
    record = work.perform(shard, frozenset())
    assert seen == every[::3]
    assert record.counts["reason"]["not_kept"] == len(every) - len(every[::3])
    assert "not_kept" not in work.failures(record.counts)
    assert work.done(shard) is not None
    made = mixed(out, [shard], keep="good", captions="some")
    assert made.records[0].counts["reason"] == {"not a third": len(every) - len(every[::3])}
    keep_list(out, shard, {key: (i % 3 == 1, None) for i, key in enumerate(every)})
    assert work.done(shard) is None
    Path(out, "keep/good/00000.parquet").unlink()
    assert work.done(shard) is None
    with pytest.raises(BadShard, match="00000 has no keep-list good"):
        work.perform(shard, frozenset())


def test_a_keep_list_keeps_what_it_says(out: str, shards: list[Shard]):
    every = [key for key, _ in pairs(30)]
    verdicts = dict.fromkeys(every[:20], (True, None)) | dict.fromkeys(
        every[20:25], (False, "small")
    )
    keep_list(out, shards[0], verdicts | {every[25]: (False, None)})
    keep_list(out, shards[1], {})
    made = mixed(out, shards, keep="good")
    assert made.records[0].counts["reason"] == {"not_kept": 5, "small": 5}
    assert made.work.failures(made.records[0].counts) == {}
    assert made.sizes == {"00000.tar": 20}
    assert made.records[1].counts["reason"] == {"not_kept": 30}
    assert not Path(made.run.file("00001.tar")).exists()
    assert made.work.done(shards[1]) == made.records[1]
    assert "| kept | 20 |" in Path(made.run.file(card.FILE)).read_text()

    keep_list(out, shards[0], dict.fromkeys(every, (False, "all")))
    assert made.work.done(shards[0]) is None
    made.work.perform(shards[0], frozenset())
    assert not Path(made.run.file("00000.tar")).exists()
    Path(out, "keep/good/00001.parquet").unlink()
    assert made.work.done(shards[1]) is None
    with pytest.raises(BadShard, match="00001 has no keep-list good"):
        made.work.perform(shards[1], frozenset())


def change_raw(out: str, shard: Shard) -> None:
    write_tar(shard.url, pairs(30, start=500))


def recaption(out: str, shard: Shard) -> None:
    config = runs.require(out, "captions", "colour")["config"]
    runs.begin(Run(out, "captions", "colour", config), [])
    caption(out, [shard.url], stage=ColourStage(prefix=""), run="colour")
    url = f"{out}/captions/colour/{shard.name}.parquet"
    captions = commit.read_sidecar(url)
    texts = pa.array(["rewritten"] * captions.num_rows)
    index = captions.schema.get_field_index("caption_long")
    record = commit.read_sidecar_record(url)
    commit.write_sidecar(url, captions.set_column(index, "caption_long", texts), record)


def drop(name: str) -> Callable[[str, Shard], None]:
    return lambda out, shard: Path(out, "mix", "m", name).unlink()


def tear(name: str) -> Callable[[str, Shard], None]:
    return lambda out, shard: os.truncate(Path(out, "mix", "m", name), 100)


@pytest.mark.parametrize(
    ("harm", "differs"),
    [
        (change_raw, True),
        (recaption, True),
        (tear("00000_stats.json"), False),
        (drop("00000_stats.json"), False),
        (tear("00000.tar"), False),
        (drop("00000.tar"), False),
        (tear("00000.parquet"), False),
    ],
)
def test_what_is_torn_or_outdated_is_redone(
    out: str, shards: list[Shard], harm: Callable, differs: bool
):
    made = mixed(out, shards)
    before = contents(made)
    harm(out, shards[0])
    shards = manifest.register(out, [shard.url for shard in shards])
    assert made.work.done(shards[0]) is None
    assert made.work.done(shards[1]) is not None
    if harm is change_raw:
        with pytest.raises(BadShard, match="changed since run colour: caption it again"):
            made.work.perform(shards[0], frozenset())
        shards = caption(out, [shard.url for shard in shards])
    again = made.work.perform(shards[0], frozenset())
    assert made.work.done(shards[0]) == again
    after = contents(made)
    assert (after != before) == differs
    assert {k: v for k, v in after.items() if "00000" not in k} == {
        k: v for k, v in before.items() if "00000" not in k
    }


def test_a_mix_that_dies_halfway_is_not_done(out: str, shards: list[Shard]):
    """The marker of the mix before goes first: else old stats would stand beside a new tar."""
    made = mixed(out, shards)
    good = Path(shards[0].url).read_bytes()
    os.truncate(shards[0].url, len(good) - 30_000)
    with pytest.raises(BadShard, match="torn"):
        made.work.perform(shards[0], frozenset())
    assert made.work.done(shards[0]) is None
    assert not list(Path(made.run.folder).glob(".*.tmp"))
    Path(shards[0].url).write_bytes(good)
    assert made.work.perform(shards[0], frozenset()) == made.records[0]


def test_sidecars_that_are_missing_or_damaged_are_named(out: str, shards: list[Shard]):
    made = mixed(out, shards)
    url = f"{out}/captions/colour/00000.parquet"
    data = bytearray(Path(url).read_bytes())
    page = pq.read_metadata(url).row_group(0).column(0).dictionary_page_offset
    data[page + 200] ^= 1
    Path(url).write_bytes(data)
    with pytest.raises(BadShard, match=r"00000\.parquet is damaged"):
        made.work.perform(shards[0], frozenset())
    Path(url).unlink()
    with pytest.raises(BadShard, match="00000 has no captions of run colour"):
        made.work.perform(shards[0], frozenset())
    with pytest.raises(UserError, match="has no run captions/nobody"):
        mix.config(Recipe("nobody", blend.parse("95")), out)


def test_a_mix_of_limited_captions_is_of_the_same_samples(out: str, shards: list[Shard]):
    """And a second captioner that saw every sample can be its other source."""
    limited = [replace(shards[0], limit=7)]
    config = {"captioner": "colour", "weights": {}, "styles": {"long": {}, "short": {}}}
    work_run = Run(out, "captions", "few", config)
    runs.begin(work_run, ["00000"])
    from pipeline.stage import SidecarWork

    work = SidecarWork(ColourStage(), work_run)
    work.setup()
    work.perform(limited[0], frozenset())
    made = mixed(out, shards[:1], "long=1,colour.long=1", captions="few")
    assert made.sizes == {"00000.tar": 7}
    assert {row["caption_drawn"] for row in table(made, "00000")} == {"long", "colour.long"}
    assert made.work.done(shards[0]) == made.records[0]


@pytest.mark.parametrize(
    "meta",
    [
        rb'{"url": "\ud800", "a\udfff": ["\ud83d"]}',
        b'{"url": 7, "x": NaN, "y": 1e999, "z": [-0.5, 1E+3, -Infinity]}',
        b'{"x": ' + b"[" * 970 + b"]" * 970 + b"}",
        b'{"uid": "stolen", "caption_source": null, "source_json": {}}',
        b'{"' + b"k" * 100_000 + b'": "\\u0000"}',
    ],
)
def test_hostile_metadata_are_only_data(tmp_path: Path, out: str, meta: bytes):
    url = write_tar(tmp_path / "00000.tar", [("0", {"jpg": jpeg(), "txt": b"fine", "json": meta})])
    made = mixed(out, manifest.register(out, [url]), "0", captions="")
    with tarfile.open(made.tars[0]) as opened:
        found = json.loads(opened.extractfile("0.json").read())
    assert found["uid"] == uid_of("00000", "0")
    assert found["caption_source"] == "original"
    json.loads(found["source_json"], parse_constant=pytest.fail)


def test_a_sample_that_kills_is_dropped_and_probing_leaves_nothing(out: str, shards: list[Shard]):
    work = mixed(out, shards, name="other").work
    made = MixWork(work.recipe, replace(work.run, name="m"))
    made.probe(shards[0], frozenset({1}), range(3))
    assert not Path(made.run.folder).exists()
    record = made.perform(shards[0], frozenset({1, 4}))
    assert record.counts["reason"] == {"killed_worker": 2}


def test_sizes_on_the_card_are_those_of_the_hub():
    wanted = {0: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 10**6: "1M<n<10M", 10**12 - 1: "100B<n<1T"}
    assert {count: card._size_category(count) for count in wanted} == wanted
