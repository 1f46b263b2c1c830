"""Training pairs: every sample accounted for, captions by every key, bytes where they are said to be."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from pipeline import manifest, pairs, storage
from pipeline.caption_table import CaptionTable
from pipeline.errors import UserError
from pipeline.pairs import Recipe, gather
from pipeline.samples import uid_of
from tests.support.shards import jpeg, pair, png, write_tar
from tests.support.shards import pairs as good_pairs


@pytest.fixture
def shards(tmp_path):
    """Two shards, five good samples, and three that are not."""
    write_tar(tmp_path / "00000.tar", good_pairs(3))
    broken = ("90", {"jpg": jpeg(9)[:200], "txt": b"cut off"})
    silent = ("91", {"jpg": jpeg(8)})
    imageless = ("92", {"txt": b"nothing to see"})
    write_tar(tmp_path / "00001.tar", [*good_pairs(2, start=3), broken, silent, imageless])
    return tmp_path


def recipe(shards, style="base", captions=None, **more):
    urls = [str(shards / "00000.tar"), str(shards / "00001.tar")]
    found = manifest.register(str(shards / "out"), urls, save=False)
    table = CaptionTable(str(captions)) if captions else None
    return Recipe(tuple(found), style, table, **more)


def table(path):
    return pq.read_table(path).to_pylist()


def test_every_sample_is_a_row_and_every_loss_has_its_reason(shards, tmp_path):
    path = tmp_path / "pairs.parquet"
    found = gather(recipe(shards, held_out=1), path)
    assert (found.train, found.held_out, found.samples) == (4, 1, 8)
    assert found.dropped["no_caption"] == 1 and found.dropped["no_image"] == 1
    assert found.dropped.total() == 3
    rows = table(path)
    assert [row["shard"] for row in rows] == ["00000"] * 3 + ["00001"] * 5
    assert all((row["reason"] is None) == (row["status"] == "ok") for row in rows)
    assert not list(tmp_path.glob("samples.parquet"))


def test_the_bytes_are_where_the_row_says(shards, tmp_path):
    wanted = recipe(shards)
    gather(wanted, tmp_path / "pairs.parquet")
    urls = {shard.name: shard.url for shard in wanted.shards}
    rows = [row for row in table(tmp_path / "pairs.parquet") if row["status"] == "ok"]
    for row in rows:
        data = storage.read_range(urls[row["shard"]], row["offset"], row["size"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
    assert len(rows) == 5


@pytest.mark.parametrize("key", ["uid", "shard", "sha256", "source"])
def test_captions_come_by_any_key_and_strangers_are_counted(shards, tmp_path, key):
    write_tar(
        shards / "00000.tar",
        [pair("7", 1, "own", sha256="fetched"), pair("8", 2, "own"), pair("9", 3, "own")],
    )
    data = {"7": jpeg(1), "8": jpeg(2)}
    names = {
        "uid": lambda k: {"uid": uid_of("00000", k)},
        "shard": lambda k: {"shard": "00000", "key": k},
        "sha256": lambda k: {"sha256": hashlib.sha256(data[k]).hexdigest()},
        "source": lambda k: {"sha256": "fetched" if k == "7" else "of no sample"},
    }
    unknown = {"uid": {"uid": "none"}, "shard": {"shard": "9", "key": "9"}}
    stranger = unknown.get(key, {"sha256": "nobody"}) | {"caption": "of no sample here"}
    rows = [names[key](k) | {"caption": f"{k} again"} for k in ("7", "8")]
    rows += [names[key]("7") | {"caption": "7 once more"}, stranger]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = gather(recipe(shards, "short", path), tmp_path / "pairs.parquet")
    said = {row["key"]: row["captions"] for row in table(tmp_path / "pairs.parquet")}
    assert said["7"] == ["7 again", "7 once more"]
    assert said["8"] == ([] if key == "source" else ["8 again"])
    assert said["9"] == []
    assert found.strangers == (2 if key == "source" else 1)
    assert found.dropped["no_caption"] >= 1 and found.samples == 8


def test_a_style_takes_its_own_caption_from_the_json(shards, tmp_path):
    meta = {"caption_short": "short", "caption_long": "long", "captions": ["one", " two "]}
    write_tar(
        shards / "00000.tar", [pair("1", 1, "text", **meta), pair("2", 2, "text", captions=[3])]
    )
    said = {}
    for style in ("base", "short", "long"):
        gather(recipe(shards, style), tmp_path / f"{style}.parquet")
        said[style] = {row["key"]: row["captions"] for row in table(tmp_path / f"{style}.parquet")}
    assert [said[s]["1"] for s in said] == [["one", "two"], ["short"], ["long"]]
    assert all(said[s]["2"] == ["text"] for s in said)


def test_what_is_held_out_depends_on_seed_and_uid_alone(shards, tmp_path):
    splits = []
    for i, more in enumerate(({}, {"seed": 1}, {"seed": 2}, {"held_out": 3})):
        gather(recipe(shards, **({"held_out": 2} | more)), tmp_path / f"{i}.parquet")
        rows = table(tmp_path / f"{i}.parquet")
        splits.append({row["uid"] for row in rows if row["split"] == "held_out"})
    assert len({frozenset(split) for split in splits[:3]}) > 1
    assert splits[0] < splits[3]


def test_the_same_again_reads_nothing_and_another_recipe_is_refused(shards, tmp_path):
    path = tmp_path / "pairs.parquet"
    first = gather(recipe(shards), path)
    stamp = path.stat().st_mtime_ns
    assert gather(recipe(shards), path) == first and path.stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="other shards, captions or settings"):
        gather(recipe(shards, held_out=1), path)


def test_nothing_to_train_on_is_one_line_and_no_file(shards, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"uid": "none", "caption": "x"}')
    for wanted, word in (
        (recipe(shards, "short", path), "belongs to a sample"),
        (recipe(shards, held_out=9), "no pair to train on"),
    ):
        with pytest.raises(UserError, match=word):
            gather(wanted, tmp_path / "pairs.parquet")
        assert not (tmp_path / "pairs.parquet").exists()
    (shards / "00001.tar").write_bytes((shards / "00001.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"00001\.tar.*torn"):
        gather(recipe(shards), tmp_path / "pairs.parquet")
    assert not list(tmp_path.glob("*.parquet"))


def test_any_format_is_a_pair(shards, tmp_path):
    write_tar(shards / "00000.tar", [("1", {"png": png(1), "txt": b"a png"})])
    gather(recipe(shards), tmp_path / "pairs.parquet")
    found = pairs.read(tmp_path / "pairs.parquet", "train").to_pylist()[0]
    data = storage.read_range(str(shards / "00000.tar"), found["offset"], found["size"])
    assert data == png(1) and found["captions"] == ["a png"]


def test_captions_by_shard_mean_the_file_where_numbers_would_be_guessed(tmp_path):
    for name in ("trees", "boats"):
        write_tar(tmp_path / f"{name}.tar", [pair("1", len(name), name)])
    lines = [{"shard": "trees", "key": "1", "caption": "a tree"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    urls = [str(tmp_path / "boats.tar"), str(tmp_path / "trees.tar")]
    shards = manifest.register(str(tmp_path / "out"), urls, save=False)
    table = CaptionTable(str(tmp_path / "c.jsonl"))
    gather(Recipe(tuple(shards), "short", table, are_names_known=False), tmp_path / "p.parquet")
    found = pairs.read(tmp_path / "p.parquet", "train").to_pylist()
    assert [row["captions"] for row in found] == [["a tree"]]
    assert found[0]["shard"] == shards[1].name


def test_names_that_would_be_guessed_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "00000.tar", [pair("1", 1, "x")])
        write_tar(tmp_path / folder / "trees.tar", [pair("1", 1, "x")])

    def refused(names, line):
        (tmp_path / "c.jsonl").write_text(json.dumps(line))
        urls = [str(tmp_path / name) for name in names]
        shards = manifest.register(str(tmp_path / "out"), urls, save=False)
        table = CaptionTable(str(tmp_path / "c.jsonl"))
        recipe = Recipe(tuple(shards), "short", table, are_names_known=False)
        with pytest.raises(UserError) as e:
            gather(recipe, tmp_path / "p.parquet")
        return e.value.message

    both = ("a/00000.tar", "b/00000.tar")
    by_shard = {"shard": "00000", "key": "1", "caption": "said"}
    assert "one file name" in refused(both, by_shard)
    by_uid = {"uid": uid_of("00000", "1"), "caption": "said"}
    assert "keyed by uid" in refused(("b/trees.tar",), by_uid)
    assert not list(tmp_path.glob("*.parquet"))
