"""reshard: balanced shards in a folder of their own, the same bytes however often killed."""

import json

import pytest
import webdataset

from jobs.__main__ import main
from pipeline import commit, manifest, tombstones
from pipeline.reading import read_samples
from pipeline.schemas import KEEP, table_of
from tests.support.killed import kill_at
from tests.support.outputs import digest, leftovers
from tests.support.shards import cut, pairs, write_tar


def arguments(out, to, *flags: str) -> list[str]:
    given = ["--out", str(out), "--to", str(to), "--executor", "inline"]
    return ["reshard", *given, "--shard-size", "8", *flags]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder of three ragged shards, 30 samples, with a keep-list of every second one."""
    out = tmp_path_factory.mktemp("data") / "out"
    sizes = ((0, 13), (20, 2), (40, 15))
    urls = [
        write_tar(out / f"shards/{i:05d}.tar", pairs(count, start))
        for i, (start, count) in enumerate(sizes)
    ]
    for shard in manifest.register(str(out), urls):
        rows = [
            {"uid": s.uid, "key": s.key, "keep": s.index % 2 == 0, "reason": None}
            for s in read_samples(shard)
        ]
        record = commit.Record(shard.name, "", {}, {}, {"samples": len(rows), "rows": len(rows)})
        commit.write_sidecar(
            f"{out}/keep/second/{shard.name}.parquet", table_of(rows, KEEP), record
        )
    (out / "keep/second/run.json").write_text(json.dumps({"config": {}, "shards": []}))
    return out


@pytest.fixture(scope="module")
def made(out, tmp_path_factory):
    to = tmp_path_factory.mktemp("made") / "to"
    assert main(arguments(out, to, "--seed", "4")) == 0
    return to


def uids(folder) -> list[str]:
    return [s.uid for shard in manifest.load(str(folder)) for s in read_samples(shard)]


def test_a_folder_of_equal_shards_that_others_read(out, made):
    shards = manifest.load(str(made))
    assert [s.samples for s in shards] == [8, 8, 8, 6]
    assert sorted(uids(made)) == sorted(uids(out))
    assert len(list(webdataset.WebDataset([s.url for s in shards], shardshuffle=False))) == 30
    sizes = json.loads((made / "shards/sizes.json").read_text())
    assert sizes == {f"0000{i}.tar": n for i, n in enumerate([8, 8, 8, 6])}


def test_of_a_keep_list_into_the_folder_of_its_name(out, capsys):
    flags = ["--out", str(out), "--keep", "second", "--executor", "inline", "--shard-size", "5"]
    assert main(["reshard", *flags]) == 0
    printed = capsys.readouterr().out
    assert "30 in = 16 ok + 14 not_kept" in printed
    assert "16 samples into 4 shards" in printed
    kept = [
        s.uid for shard in manifest.load(str(out)) for s in read_samples(shard) if s.index % 2 == 0
    ]
    assert uids(out / "reshard/second") == kept


def test_what_was_taken_down_is_not_moved_and_does_not_come_back(tmp_path, capsys):
    data, to = tmp_path / "out", tmp_path / "to"
    manifest.register(str(data), [write_tar(data / "shards/00000.tar", pairs(10))])
    all_of_them = uids(data)
    buried = tombstones.Tombstones(uids=frozenset(all_of_them[:2]))
    tombstones.add(str(data), buried, "asked")
    assert main(arguments(data, to)) == 0
    assert "10 in = 8 ok + 2 taken_down" in capsys.readouterr().out
    assert uids(to) == all_of_them[2:]
    assert tombstones.load(str(to)) == tombstones.load(str(data))
    before = digest(to)
    assert main(arguments(data, to)) == 0
    assert digest(to) == before


@pytest.mark.parametrize(
    ("ending", "after"),
    [
        ("00001.parquet", 0),
        ("00002.parquet", 1),
        ("plan.json", 0),
        ("00001.tar", 0),
        ("_stats.json", 2),
    ],
)
def test_killed_and_run_again_it_ends_with_the_same_bytes(out, made, tmp_path, ending, after):
    to = tmp_path / "to"
    flags = arguments(out, to, "--seed", "4")
    kill_at(ending, *flags, after=after)
    assert main(flags) == 0
    assert leftovers(to) == []
    assert digest(to) == digest(made)


@pytest.mark.slow
@pytest.mark.ray
def test_workers_of_a_ray_write_the_same(out, made, tmp_path):
    flags = arguments(out, tmp_path / "to", "--seed", "4", "--workers", "2")
    flags[flags.index("inline")] = "ray"
    assert main(flags) == 0
    assert digest(tmp_path / "to") == digest(made)


def test_a_rerun_does_nothing(out, made, capsys):
    before = digest(made)
    assert main(arguments(out, made, "--seed", "4")) == 0
    assert capsys.readouterr().out.count("= 0 done now") == 2
    assert digest(made) == before


def test_dry_run_and_limit(out, tmp_path, capsys):
    assert main(arguments(out, tmp_path / "to", "--dry-run")) == 0
    assert "3 shards: 0 done, 3 to do" in capsys.readouterr().out
    assert not (tmp_path / "to").exists()
    assert main(arguments(out, tmp_path / "to", "--limit", "14")) == 0
    assert uids(tmp_path / "to") == uids(out)[:14]


def test_mistakes_are_told_in_a_line(out, made, tmp_path, capsys):
    assert main(arguments(out, made, "--seed", "5")) == 2
    assert "seed (was 4, is 5)" in capsys.readouterr().err
    assert main(arguments(out, out)) == 2
    assert "is OUT" in capsys.readouterr().err
    assert main(arguments(out, tmp_path / "to", "--keep", "none")) == 2
    assert "has no run keep/none" in capsys.readouterr().err
    assert main(arguments(tmp_path / "nothing", tmp_path / "to")) == 2
    assert "knows no shards" in capsys.readouterr().err


def test_a_torn_source_stops_it_before_anything_is_moved(tmp_path, capsys):
    whole = write_tar(tmp_path / "out/shards/00000.tar", pairs(5))
    torn = write_tar(tmp_path / "out/shards/00001.tar", pairs(5, 10))
    cut(torn, 3000)
    manifest.register(str(tmp_path / "out"), [whole, torn])
    assert main(arguments(tmp_path / "out", tmp_path / "to")) == 3
    assert "1 of 2 shards cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "to/shards").exists()
