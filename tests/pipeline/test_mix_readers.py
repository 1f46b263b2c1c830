"""Training shards, read by everybody who reads such shards: they all find the same in them."""

import functools
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from pipeline import images
from pipeline.samples import uid_of
from tests.support.mixing import Mixed, mixed
from tests.support.shards import encoded, jpeg, pair, pairs, picture, png, write_tar
from tests.support.stages import ColourStage, caption, status_of

os.environ["HF_HUB_OFFLINE"] = "1"
PLACE = "Latitude 48.8584 N"


@dataclass(frozen=True)
class World:
    """Two raw shards, captioned by two captioners, mixed from four sources."""

    raw: dict[str, list]  # shard -> what was packed
    made: Mixed
    samples: dict[str, dict[str, bytes]]  # uid -> members, as tarfile alone reads them
    order: list[str]  # uids in the order of the tars


def first_captions_fail(count: int) -> list:
    """Samples whose long captions are truncated, so that readers who look at the first few see none."""
    found, number = [], 0
    while len(found) < count:
        key = f"{number:09d}"
        if status_of(uid_of("00000", key), "long") != "ok":
            found.append(pair(key, number))
        number += 1
    return found


@pytest.fixture(scope="module", params=["made", "real"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    raw = made_up() if request.param == "made" else photographs(request.getfixturevalue("real"))
    urls = [write_tar(folder / f"raw/{name}.tar", samples) for name, samples in raw.items()]
    out = str(folder / "out")
    caption(out, urls)
    shards = caption(out, urls, run="other", stage=ColourStage(styles=("long",), prefix="I see "))
    made = mixed(out, shards, "long=5,short=2,other.long=2,original=1")
    samples = {}
    for tar in made.tars:
        for members in by_tarfile(tar):
            samples[json.loads(members["json"])["uid"]] = members
    return World(raw, made, samples, list(samples))


def made_up() -> dict[str, list]:
    exif = Image.Exif()
    exif[0x010E] = PLACE
    odd = [
        ("cat/1", {"png": png(3, mode="RGBA"), "txt": b"a cat"}),
        ("2b", {"webp": encoded(picture(4), "WEBP"), "json": b'{"exif": "%s"}' % PLACE.encode()}),
        ("3", {"jpg": jpeg(5, exif=exif), "txt": "\u732b \u00fc".encode()}),
        ("4", {"jpg": jpeg(6)[:-200], "txt": b"torn image"}),
        ("5", {"png": png(7, mode="L"), "json": b'{"url": "\\ud800", "x": {"y": [1, "\\udfff"]}}'}),
        ("6", {"txt": b"no image"}),
    ]
    return {"00000": first_captions_fail(8) + pairs(12, start=10**6), "00001": odd}


def photographs(real: Path) -> dict[str, list]:
    texts = [line.split("\t") for line in (real / "flickr8k_875/captions.tsv").open()][: 5 * 16 : 5]
    photos = [
        (str(i), {"jpg": (real / "flickr8k_875/images" / f).read_bytes(), "txt": t.encode()})
        for i, (f, t) in enumerate(texts)
    ]
    with (real / "noto_emoji/metadata.jsonl").open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(16), strict=False)]
    emoji = [
        (
            r["file_name"].split("/")[1].split(".")[0],
            {"png": (real / "noto_emoji" / r["file_name"]).read_bytes(), "txt": r["text"].encode()},
        )
        for r in rows
    ]
    return {"00000": photos, "00001": emoji}


def by_tarfile(tar: str) -> Iterator[dict[str, bytes]]:
    """Three members a sample, always in this order."""
    with tarfile.open(tar) as opened:
        members = [(m.name.split(".", 1), opened.extractfile(m).read()) for m in opened]
    for i in range(0, len(members), 3):
        three = members[i : i + 3]
        assert len({key for (key, _), _ in three}) == 1
        assert [suffix for (_, suffix), _ in three] == ["jpg", "txt", "json"]
        yield {suffix: data for (_, suffix), data in three}


def metas(world: World) -> list[dict]:
    return [json.loads(world.samples[uid]["json"]) for uid in world.order]


def test_what_is_in_them(world: World):
    """Members agree with each other, with the raw samples, and with what the captioners said."""
    assert sum(world.made.sizes.values()) == len(world.order) > 20
    sources = set()
    for uid, members in world.samples.items():
        meta = json.loads(members["json"])
        source = dict(world.raw[meta["source_shard"]])[meta["source_key"]]
        assert uid == uid_of(meta["source_shard"], meta["source_key"])
        assert meta["key"].isdigit()
        field = {"original": "caption"}.get(
            meta["caption_source"], "caption_" + meta["caption_source"].replace(".", "_")
        )
        assert members["txt"].decode() == meta[field] != ""
        assert meta["caption"] == source.get("txt", source.get("json", b"")).decode().strip() or (
            "txt" not in source and meta["caption"] == ""
        )
        assert (meta["caption_long"] == "") == (status_of(uid, "long") != "ok")
        assert (meta["caption_short"] == "") == (status_of(uid, "short") != "ok")
        assert meta["caption_long"] in ("", meta["caption_other_long"].removeprefix("I see "))
        assert all(isinstance(v, str | int | float) for v in meta.values())
        sources.add(meta["caption_source"])

        image = Image.open(io.BytesIO(members["jpg"]))
        assert (image.format, image.size) == ("JPEG", (meta["width"], meta["height"]))
        original = next(source[s] for s in ("jpg", "png", "webp") if s in source)
        ours, theirs = np.asarray(image.convert("RGB"), int), images.decode(original).astype(int)
        assert np.abs(ours - theirs).mean() < (0.01 if "jpg" in source else 3)
    assert sources == {"long", "short", "other.long", "original"}
    assert PLACE.encode() not in b"".join(Path(tar).read_bytes() for tar in world.made.tars)


def test_webdataset(world: World):
    read = list(wds.WebDataset(world.made.tars, shardshuffle=False).decode("pil"))
    assert [r["json"] for r in read] == metas(world)
    assert [r["txt"] for r in read] == [world.samples[uid]["txt"].decode() for uid in world.order]
    assert [r["__key__"] for r in read] == [m["key"] for m in metas(world)]
    assert all(r["jpg"].size == (r["json"]["width"], r["json"]["height"]) for r in read)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by", ["files", "card"])
def test_hugging_face_datasets(world: World, tmp_path: Path, by: str, streaming: bool):
    """Types are inferred from the first five samples, some of whose captions failed."""
    import datasets

    datasets.disable_progress_bars()
    how = {"split": "train", "cache_dir": str(tmp_path), "streaming": streaming}
    if by == "files":
        loaded = datasets.load_dataset("webdataset", data_files=world.made.tars, **how)
    else:
        loaded = datasets.load_dataset(world.made.run.folder, **how)
    if not streaming:
        assert loaded.features["json"]["long_logprob"].dtype == "float64"
        assert loaded.features["json"]["caption_long"].dtype == "string"
    rows = list(loaded)
    assert [row["json"] for row in rows] == metas(world)
    assert [row["txt"].encode() for row in rows] == [world.samples[u]["txt"] for u in world.order]
    assert [row["jpg"].size for row in rows] == [(m["width"], m["height"]) for m in metas(world)]


def test_open_clips_trainer(world: World, monkeypatch: pytest.MonkeyPatch):
    """Its own loader: sizes from sizes.json, every sample once in evaluation, full batches in training."""
    from open_clip_train import data
    from open_clip_train.data import get_dataset_size, get_wds_dataset

    # Release 3.3.0 does not know the marks that webdataset since puts between shards.
    unmarked = functools.partial(data.tar_file_expander, eof_value=None)
    monkeypatch.setattr(data, "tar_file_expander", unmarked)

    pattern = world.made.run.file("{00000..00001}.tar")
    assert get_dataset_size(pattern) == (len(world.order), 2)
    texts: list[str] = []

    def tokenizer(text: str) -> list[int]:
        texts.append(text)
        return [len(texts) - 1]

    args = SimpleNamespace(
        train_data=pattern,
        val_data=pattern,
        val_num_samples=len(world.order),
        train_num_samples=None,
        train_data_upsampling_factors=None,
        **{"batch_size": 5, "workers": 0, "world_size": 1, "seed": 0},
    )

    def load(is_train: bool) -> list:
        info = get_wds_dataset(
            args, lambda image: np.asarray(image).shape, is_train, tokenizer=tokenizer
        )
        return list(info.dataloader)

    evaluated = load(is_train=False)
    assert sum(len(ids) for _, ids in evaluated) == len(world.order)
    assert texts == [world.samples[uid]["txt"].decode() for uid in world.order]
    assert {len(ids) for _, ids in load(is_train=True)} == {5}


def test_open_clips_choice_of_a_json_key(world: World):
    """--json-text-key 'caption_long;caption_short;caption': the first that the sample has."""
    for meta in metas(world):
        keys = ("caption_long", "caption_short", "caption")
        text = next(meta.get(key) for key in keys if meta.get(key))
        assert isinstance(text, str)
        assert text.startswith("a picture") == (meta["long_status"] == "ok")


def test_duckdb_and_random_access(world: World):
    """The table has each member's place in the tar, so any sample is one read away."""
    with duckdb.connect() as connection:
        table = connection.sql(
            f"SELECT *, replace(filename, '.parquet', '.tar') AS tar "
            f"FROM read_parquet('{world.made.run.folder}/*.parquet') ORDER BY filename, jpg_offset"
        ).to_arrow_table()
    rows = table.to_pylist()
    assert len(rows) == sum(map(len, world.raw.values()))
    kept = [row for row in rows if row["status"] == "ok"]
    assert [row["uid"] for row in kept] == world.order
    for row in kept:
        with Path(row["tar"]).open("rb") as f:
            for suffix, wanted in world.samples[row["uid"]].items():
                f.seek(row[f"{suffix}_offset"])
                assert f.read(row[f"{suffix}_size"]) == wanted
        meta = json.loads(world.samples[row["uid"]]["json"])
        same = ("key", "caption_source", "width", "height", "sha256", "sha256_out", "source_key")
        assert {k: row[k] for k in same} == {k: meta[k] for k in same}
        assert row["text"] == world.samples[row["uid"]]["txt"].decode()
    for row in rows:
        if row["status"] != "ok":
            assert row["reason"] in ("truncated", "no_image", "undecodable")
            assert row["jpg_offset"] is row["text"] is None
