"""Every verb on a real S3 server of which each fifth answer is bad: nothing lost, doubled or told."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from safetensors.numpy import load

from jobs.__main__ import main
from pipeline.loading.loader import Loader
from pipeline.samples import uid_of
from tests.support import crawling, sets
from tests.support.faulty_s3 import BUCKET, FAULTS, SECRETS, FaultyS3, faulty_s3
from tests.support.hostile_server import hostile_server
from tests.support.outputs import CLOCKS
from tests.support.shards import jpeg
from tests.support.verbs import Said, run_verbs

BURIED = uid_of("00000", "000000003")
S3 = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A list of URLs that somebody serves, and a set to import."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "set").mkdir()
    sets.parquet(folder / "set/train.parquet", [jpeg(i) for i in range(8)], caption=["c"] * 8)
    with hostile_server(images=10) as server:
        paths = [*(f"/image/{i}.jpg" for i in range(8)), "/status/404/1.jpg", "/html"]
        crawling.listed(folder / "urls.parquet", [server.url + path for path in paths])
        yield folder


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyS3]:
    with faulty_s3() as running:
        yield running


def commands(root: str, sources: Path) -> list[list[str]]:
    """Every verb that writes a data folder, as its users give it."""
    out = f"--out {root}/data"
    fetch = f"--out {root}/crawled --allow-private 127.0.0.1/32"
    inline = (
        f"scenes {out} --level B --n 16 --shard-size 8 --split test --seed 10 --damaged 0.1",
        f"annotate {out} --shards {root}/data/shards --stages image,text",
        f"dedup {out}",
        f"select {out} --where width>=16 --run kept",
        f"caption {out} --shards {root}/data/shards/*.tar --threads 1 --run first",
        f"mix {out} --captions first --keep kept --run mixed",
        f"reshard {out} --keep kept --shard-size 5",
        f"encode {out} --shards {root}/data/mix/mixed --text bundled --threads 1 --run cached",
        f"recaption {out} --shards {root}/data/shards/{{00000..00001}}.tar --limit 3 --threads 1",
        f"import --out {root}/imported --dataset {sources}/set --shard-size 3",
        f"crawl {fetch} --urls {sources}/urls.parquet --caption-col text --shard-size 5",
        f"crawl-retry {fetch}",
    )
    here = (
        f"keep-export {out} --keep kept",
        f"evaluate-captions {out} --run first",
        f"stats {out} --run first --mix mixed",
    )
    given = [*(f"{command} --executor inline" for command in inline), *here]
    asked = ["--q", "SELECT count(*) AS samples FROM captions"]
    return [*(command.split() for command in given), ["stats", *out.split(), *asked]]


def taking_down(root: str, sources: Path) -> list[list[str]]:
    """Removes a sample, and encodes anew what a mix has without it."""
    encode = next(given for given in commands(root, sources) if given[0] == "encode")
    return [["takedown", "--out", f"{root}/data", "--uids", BURIED], encode]


class Sides:
    """What the verbs said and wrote: on a disk, in a store that is well, and in one that is not."""

    def __init__(self, store: FaultyS3, sources: Path, folder: Path) -> None:
        self.said: dict[str, list[Said]] = {}
        self.wrote: dict[str, dict[str, bytes]] = {}
        self.local = folder
        for side, rate in (("disk", 0.0), ("well", 0.0), ("faulty", 0.2)):
            store.rate = rate
            root = str(folder) if side == "disk" else S3
            environment = {} if side == "disk" else store.environment
            for step, given in (
                ("", commands(root, sources)),
                (" after", taking_down(root, sources)),
            ):
                self.said[side + step] = run_verbs(given, environment)
                found = on_disk(folder) if side == "disk" else store.objects()
                self.wrote[side + step] = found
            if side == "well":
                for key in store.objects():
                    store.client().delete_object(Bucket=BUCKET, Key=key)
                store.met.clear()
        store.rate = 0.0


def on_disk(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in files)
    return {name: path.read_bytes() for name, path in named if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def sides(store: FaultyS3, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(store, sources, tmp_path_factory.mktemp("disk"))


STEPS = ("", " after")


def test_every_verb_ends_as_on_a_disk(sides: Sides):
    for side in ("disk", "well", "faulty"):
        for step in STEPS:
            for number, said in enumerate(sides.said[side + step]):
                expected = sides.said[f"disk{step}"][number]
                assert (said.code, said.text if said.code else "") == (0, ""), side
                assert funnel(said.text) == funnel(expected.text)
    assert funnel(sides.said["disk"][0].text)


def funnel(text: str) -> list[str]:
    """The lines of a verb's accounting."""
    return re.findall(r"\d+ in = .*", text)


@pytest.mark.parametrize("step", STEPS)
def test_faults_leave_no_trace_in_any_byte(sides: Sides, store: FaultyS3, step: str):
    well, faulty = sides.wrote[f"well{step}"], sides.wrote[f"faulty{step}"]
    assert list(faulty) == list(well)
    assert len(well) > 60
    for key in well:
        assert comparable(key, faulty[key]) == comparable(key, well[key]), key
    assert all(store.met[fault] > 10 for fault in FAULTS), store.met
    assert sum(store.met[f] for f in FAULTS) > 0.15 * store.met.total()
    assert store.unfinished() == []


def comparable(key: str, data: bytes) -> bytes:
    """What must be the same bytes; all but clocks, and a database that DuckDB writes as it likes."""
    if key.endswith("_stats.json"):
        return json.dumps({k: v for k, v in json.loads(data).items() if k not in CLOCKS}).encode()
    return b"" if key.endswith("catalog.duckdb") else data


@pytest.mark.parametrize("step", STEPS)
def test_a_store_holds_what_a_disk_would(sides: Sides, step: str):
    """All but the identity of inputs, which has ETags in a store and hashes on a disk."""
    disk, faulty = sides.wrote[f"disk{step}"], sides.wrote[f"faulty{step}"]
    assert sorted(faulty) == sorted(disk)
    for key in disk:
        assert content(key, faulty[key]) == content(key, disk[key]), key


def content(key: str, data: bytes) -> object:
    """A file without what a store cannot have in common with a disk."""
    if key.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data)).replace_schema_metadata()
        if key.endswith("shards.parquet"):
            return table.select(["name", "url", "size", "samples"])
        return table
    if key.endswith(".safetensors"):
        return {name: array.tobytes() for name, array in load(data).items()}
    if key.endswith("_stats.json"):
        stats = {k: v for k, v in json.loads(data).items() if k not in (*CLOCKS, "record")}
        return stats | {"tar": stats.pop("files")}
    if key.endswith(".json") or key.endswith(("catalog.duckdb", "README.md")):
        return None  # paths and identities
    return data


def test_no_secret_is_told(sides: Sides):
    for side, verbs in sides.said.items():
        for said in verbs:
            for name, secret in SECRETS.items():
                assert secret not in said.text, (side, name)
            assert "X-Amz-" not in said.text and "Authorization" not in said.text
    for side, files in sides.wrote.items():
        for key, data in files.items():
            assert not any(secret.encode() in data for secret in SECRETS.values()), (side, key)


def test_a_rerun_does_nothing(sides: Sides, store: FaultyS3, sources: Path):
    store.rate = 0.2
    done = run_verbs(commands(S3, sources)[:2], store.environment)
    assert [said.code for said in done] == [0, 0]
    assert all("2 planned = 0 done now" in said.text for said in done), done


def test_a_training_reads_what_it_would_from_a_disk(
    sides: Sides, store: FaultyS3, monkeypatch: pytest.MonkeyPatch
):
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store.rate = 0.2

    def batches(root: str) -> list:
        cache = f"{root}/data/cache/cached"
        loader = Loader(f"{root}/data/mix/mixed", size=32, images=True, cache=cache)
        return list(loader.batches(4, steps=4))

    try:
        here, there = batches(str(sides.local)), batches(S3)
    finally:
        store.rate = 0.0
        s3fs.S3FileSystem.clear_instance_cache()
    for ours, theirs in zip(here, there, strict=True):
        assert ours.texts == theirs.texts
        np.testing.assert_array_equal(ours.images, theirs.images)
        assert ours.encodings.keys() == theirs.encodings.keys() and ours.encodings
        for name, values in ours.encodings.items():
            np.testing.assert_array_equal(values, theirs.encodings[name])


@pytest.mark.ray
def test_on_ray(store: FaultyS3, monkeypatch: pytest.MonkeyPatch):
    """Workers write and the driver sees it, whatever it listed before."""
    scenes = ["--level", "A", "--n", "40", "--shard-size", "10"]
    given = ["scenes", "--out", f"{S3}/ray", *scenes, "--executor", "ray", "--workers", "2"]
    store.rate = 0.2
    (said,) = run_verbs([given], store.environment)
    store.rate = 0.0
    assert said.code == 0, said.text
    assert "40 in = " in said.text
    tars = [key for key in store.objects("ray/") if key.endswith(".tar")]
    assert tars == [f"ray/shards/{i:05d}.tar" for i in range(4)]
    assert not any(secret in said.text for secret in SECRETS.values())


LOCAL: Mapping[str, list[str]] = {
    "train": ["--model", "dvae", "--shards", "x"],
    "captioner-train": ["--shards", "x", "--style", "short", "--init", "x"],
    "captioner": [],
    "sample": ["--ckpt", "x", "--prompt", "x"],
    "edit": ["--ckpt", "x", "--edit", "variations", "--image", "x"],
    "export": ["--model", "x", "--first-stage", "x", "--text", "x"],
    "teach": ["--shards", "x", "--teacher", "x"],
    "experiment": [],
    "calibrate": ["--captioner", "x", "--shards", "x"],
}


@pytest.mark.parametrize("verb", LOCAL)
def test_what_needs_a_disk_says_so(verb: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([verb, *LOCAL[verb], "--out", "s3://key:hush@b/x"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: OUT=s3://b/x is no folder of this machine, and this verb writes only to one\n"
        "  try: give a local OUT, and copy it when it is done\n"
    )
    assert list(tmp_path.iterdir()) == []
