"""import: sets become data folders that every later step reads, the same however often killed."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
import webdataset

from jobs.__main__ import main
from pipeline import manifest
from pipeline.reading import read_samples
from tests.support import sets
from tests.support.killed import kill_at
from tests.support.outputs import digest, leftovers
from tests.support.real import data
from tests.support.shards import jpeg


def arguments(path, out, *flags: str) -> list[str]:
    given = ["--dataset", str(path), "--out", str(out), "--executor", "inline"]
    return ["import", *given, "--shard-size", "10", *flags]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder of two parquet files: 34 rows, of which two have no image."""
    path = tmp_path_factory.mktemp("set")
    images = [jpeg(i) for i in range(34)]
    images[5], images[30] = b"no image", None
    for part, rows in (("a", slice(0, 20)), ("b", slice(20, 34))):
        captions = [f"caption {i}" for i in range(34)][rows]
        numbers = list(range(34))[rows]
        name = path / f"train-{part}.parquet"
        sets.parquet(name, images[rows], caption=captions, number=numbers)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, dataset):
    out = tmp_path_factory.mktemp("made") / "out"
    assert main(arguments(dataset, out)) == 0
    return out


def test_the_folder_is_one_that_every_later_step_reads(made, capsys):
    shards = manifest.load(str(made))
    assert [(s.name, s.samples) for s in shards] == [
        ("00000", 9),
        ("00001", 10),
        ("00002", 10),
        ("00003", 3),
    ]
    samples = [s for shard in shards for s in read_samples(shard)]
    assert [s.meta["number"] for s in samples] == [i for i in range(34) if i not in (5, 30)]
    urls = [shard.url for shard in shards]
    assert len(list(webdataset.WebDataset(urls, shardshuffle=False))) == 32
    stats = json.loads((made / "shards/00000_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (10, 9)
    assert stats["status_dict"] == {"success": 9, "not_an_image": 1}
    rows = pq.read_table(made / "shards/00003.parquet").to_pylist()
    assert [r["reason"] for r in rows] == ["no_image", None, None, None]
    assert main(["annotate", "--out", str(made), "--stages", "text", "--executor", "inline"]) == 0
    assert "32 ok" in capsys.readouterr().out


def test_a_rerun_does_nothing_and_says_what_it_found(made, dataset, capsys):
    before = digest(made.parent)
    assert main(arguments(dataset, made)) == 0
    printed = capsys.readouterr().out
    assert "images image; captions caption" in printed
    assert "34 rows" in printed
    assert "= 0 done now" in printed
    assert "34 in = 32 ok + 1 no_image + 1 not_an_image" in printed
    assert digest(made.parent) == before


def test_a_set_that_was_touched_is_still_done(dataset, tmp_path, capsys):
    path, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(dataset, path)
    assert main(arguments(path, out)) == 0
    before = digest(out)
    for file in path.iterdir():
        os.utime(file, ns=(1, 1))
    assert main(arguments(path, out)) == 0
    assert "= 0 done now" in capsys.readouterr().out.split("shards\n")[-1]
    assert digest(out) == before


@pytest.mark.parametrize(
    ("ending", "after"),
    [
        ("00001.tar", 0),
        pytest.param("shards.json", 0, marks=pytest.mark.slow),
        pytest.param("run.json", 0, marks=pytest.mark.slow),
        pytest.param("_stats.json", 1, marks=pytest.mark.slow),
        pytest.param("shards.parquet", 0, marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again_it_ends_with_the_same_bytes(made, dataset, tmp_path, ending, after):
    out = tmp_path / "out"
    kill_at(ending, *arguments(dataset, out), after=after)
    assert main(arguments(dataset, out)) == 0
    assert leftovers(out) == []
    assert digest(out) == {k: v for k, v in digest(made).items() if not k.startswith("columns/")}
    assert [s.samples for s in manifest.load(str(out))] == [9, 10, 10, 3]


@pytest.mark.slow
@pytest.mark.ray
def test_workers_of_a_ray_write_the_same(made, dataset, tmp_path):
    out = tmp_path / "out"
    flags = arguments(dataset, out, "--workers", "2")
    flags[flags.index("inline")] = "ray"
    assert main(flags) == 0
    assert digest(out) == {k: v for k, v in digest(made).items() if not k.startswith("columns/")}


def test_limit_and_dry_run(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(dataset, out, "--dry-run")) == 0
    assert "4 shards: 0 done, 4 to do" in capsys.readouterr().out
    assert not out.exists()
    assert main(arguments(dataset, out, "--limit", "12")) == 0
    rows = [pq.read_table(out / f"shards/limit12/0000{i}.parquet").num_rows for i in range(2)]
    assert rows == [10, 2]


def test_other_settings_and_foreign_shards_are_refused(made, dataset, tmp_path, capsys):
    assert main(arguments(dataset, made, "--shard-size", "5")) == 2
    assert "shard_size (was 10, is 5)" in capsys.readouterr().err
    foreign = tmp_path / "out/shards/00000.tar"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"of great value")
    assert main(arguments(dataset, tmp_path / "out")) == 2
    assert "that are no import" in capsys.readouterr().err
    assert foreign.read_bytes() == b"of great value"


def test_photographs_of_people_with_five_captions_each(tmp_path):
    """The same captions and the very bytes of a real folder, through a folder with metadata."""
    real = data()
    captions: dict[str, list[str]] = {}
    for line in (real / "flickr8k_875/captions.tsv").read_text().splitlines():
        name, caption = line.split("\t")[:2]
        captions.setdefault(name, []).append(caption)
    chosen = [n for n in captions if (real / "flickr8k_875/images" / n).exists()][:40]
    folder = tmp_path / "set"
    folder.mkdir()
    for name in chosen:
        (folder / name).write_bytes((real / "flickr8k_875/images" / name).read_bytes())
    lines = [json.dumps({"file_name": n, "captions": captions[n]}) for n in chosen]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    assert main(arguments(folder, tmp_path / "out")) == 0
    samples = [s for shard in manifest.load(str(tmp_path / "out")) for s in read_samples(shard)]
    found = {s.image: s.meta["captions"] for s in samples}
    assert found == {(folder / n).read_bytes(): captions[n] for n in chosen}
    assert all(s.text == s.meta["captions"][0] for s in samples)
