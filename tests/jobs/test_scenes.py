"""Rendered shards: the same bytes however they came about, readable by everyone, and true."""

import json
import signal
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from jobs.__main__ import main
from jobs.runner import Runner, find_done
from jobs.work import Outcome, attempt
from pipeline import images, storage
from pipeline.images import BadImage
from pipeline.manifest import Shard
from pipeline.reading import read_samples
from pipeline.runs import Run
from pipeline.scenes.alt_text import alt_text
from pipeline.scenes.render import render
from pipeline.scenes.shards import Recipe, SceneWork, scene_of
from pipeline.scenes.world import LEVELS, draw_scene
from pipeline.schemas import SCENES
from tests.support.outputs import digest, leftovers

SETTINGS = {"level": "A", "n": 50, "shard_size": 20, "seed": 3, "split": "test", "damaged": 0.4}


def scenes(out: Path, *flags: str, **named: object) -> int:
    given = SETTINGS | {"out": out, "executor": "inline"} | named
    return main(
        [
            "scenes",
            *flags,
            *(f for k, v in given.items() for f in (f"--{k.replace('_', '-')}", str(v))),
        ]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    assert scenes(out) == 0
    return out


def bytes_of(out: Path) -> dict[str, str]:
    return {name.split("/", 1)[1]: hash_ for name, hash_ in digest(out.parent).items()}


def test_the_same_scenes_give_the_same_bytes_in_the_files_of_img2dataset(made, tmp_path):
    assert scenes(tmp_path / "out") == 0
    assert bytes_of(tmp_path / "out") == bytes_of(made)
    assert set(bytes_of(made)) == {
        f"shards/0000{i}{end}" for i in range(3) for end in (".tar", ".parquet", "_stats.json")
    }


def test_scenes_do_not_depend_on_how_they_are_packed(made, tmp_path):
    assert scenes(tmp_path / "out", shard_size=50) == 0
    names = ["index", "background", "things", "caption", "damage", "sha256"]
    whole = pq.read_table(tmp_path / "out/shards/00000.parquet", columns=names)
    parts = [pq.read_table(made / f"shards/0000{i}.parquet", columns=names) for i in range(3)]
    assert whole.to_pylist() == [row for part in parts for row in part.to_pylist()]


def test_a_sample_is_what_its_index_stands_for(made):
    rows = pq.read_table(made / "shards/00002.parquet")
    assert rows.schema.equals(SCENES)
    shard = Shard("00002", str(made / "shards/00002.tar"), 0)
    samples = list(read_samples(shard))
    assert len(samples) == 10
    level = LEVELS["A"]
    for i, (row, sample) in enumerate(zip(rows.to_pylist(), samples, strict=True), start=40):
        scene = draw_scene(level, 3, i, "test")
        assert scene_of(row) == scene_of(sample.meta) == scene
        assert (row["key"], row["index"]) == (sample.key, i) == (f"00002{i - 40:04d}", i)
        assert row["caption"] == sample.text == alt_text(scene, 3, i).text
        assert sample.text_status == ("missing" if sample.text is None else "ok")
        if row["damage"] in ("", "png", "cmyk"):
            off = images.decode(sample.image).astype(int) - render(level, scene, 3, i)
            assert np.abs(off).mean() < (6 if row["damage"] else 3)


def test_damage_ends_as_the_reason_of_its_name_or_as_none(made):
    found = Counter()
    for i in range(3):
        for sample in read_samples(Shard(f"0000{i}", str(made / f"shards/0000{i}.tar"), 0)):
            reason = sample.reason
            try:
                reason or images.square_crop(sample.image, 32)
            except BadImage as e:
                reason = e.reason
            found[sample.meta["damage"], reason] += 1
    assert sum(found.values()) == 50
    assert set(found) == {
        ("", ""),
        ("png", ""),
        ("cmyk", ""),
        *((reason, reason) for reason in ("truncated", "not_an_image", "no_image")),
    }


def test_webdataset_reads_them(made):
    urls = [str(made / f"shards/0000{i}.tar") for i in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len({s["__key__"] for s in samples}) == 50
    assert {"jpg", "txt", "json"} <= set().union(*samples)
    assert all(json.loads(s["json"])["key"] == s["__key__"] for s in samples)


def test_a_rerun_does_nothing_and_says_what_is_there(made, capsys):
    before = bytes_of(made)
    assert scenes(made) == 0
    printed = capsys.readouterr().out
    assert "3 planned = 0 done now" in printed
    assert "samples   50 in = 50 ok" in printed
    assert "damage" in printed
    assert bytes_of(made) == before
    stats = json.loads((made / "shards/00002_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (10, 10)


def test_other_settings_are_refused_by_name(made, tmp_path, capsys):
    assert scenes(made, seed=4, n=60) == 2
    error = capsys.readouterr().err
    assert "n (was 50, is 60), seed (was 3, is 4)" in error
    assert "give another OUT" in error
    assert scenes(made, "--dry-run", seed=4) == 2
    assert scenes(made, run="more", n=5, seed=4) == 0
    assert (made / "shards/more/00000.tar").exists()
    foreign = tmp_path / "crawl/shards/00000.tar"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"of great value")
    assert scenes(tmp_path / "crawl") == 2
    assert "no rendered scenes" in capsys.readouterr().err
    assert foreign.read_bytes() == b"of great value"


def test_limit_has_a_folder_of_its_own_and_renders_the_first_scenes(made, tmp_path, capsys):
    assert scenes(tmp_path, "--dry-run", limit=25) == 0
    printed = capsys.readouterr().out
    assert "shards limit25  ->" in printed
    assert "2 shards: 0 done, 2 to do" in printed
    assert list(tmp_path.iterdir()) == []
    assert scenes(tmp_path, limit=25) == 0
    assert scenes(tmp_path, limit=5, run="few") == 0
    whole, part = made / "shards", tmp_path / "shards/limit25"
    assert (part / "00000.tar").read_bytes() == (whole / "00000.tar").read_bytes()
    first = pq.read_table(whole / "00001.parquet").slice(0, 5)
    assert pq.read_table(part / "00001.parquet").equals(first)
    assert pq.read_table(tmp_path / "shards/few-limit5/00000.parquet").num_rows == 5
    assert scenes(tmp_path) == 0  # the whole run stands beside them
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 3


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ({"noise": 4}, "--noise 4"),
        ({"n": 0}, "--n 0"),
        ({"limit": -1}, "--limit -1"),
        ({"shard_size": 10**5}, "--shard-size"),
    ],
)
def test_settings_out_of_range_are_mistakes(named, says, tmp_path, capsys):
    assert scenes(tmp_path, **named) == 2
    assert says in capsys.readouterr().err


def test_killed_and_run_again_it_ends_with_the_same_bytes(made, tmp_path):
    """kill -9 while the second shard's tar is about to get its name."""
    hook = (
        "import os, signal, sys\n"
        "from jobs.__main__ import main\n"
        "def hook(event, args):\n"
        "    if event == 'os.rename' and str(args[1]).endswith('00001.tar'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
        "main(sys.argv[1:])\n"
    )
    given = SETTINGS | {"out": tmp_path / "out", "executor": "inline"}
    flags = [f for k, v in given.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    killed = subprocess.run(
        [sys.executable, "-c", hook, "scenes", *flags], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert leftovers(tmp_path)
    assert len(list(tmp_path.glob("out/shards/*_stats.json"))) == 1
    assert scenes(tmp_path / "out") == 0
    assert leftovers(tmp_path) == []
    assert bytes_of(tmp_path / "out") == bytes_of(made)


class Fragile:
    """An executor whose worker dies at some samples of each shard."""

    slots = 1

    def __init__(self, work: SceneWork, deadly: set[int]) -> None:
        self._work, self._deadly, self._tasks = work, deadly, deque()

    def start(self) -> None:
        self._work.setup()

    def submit(self, task: object) -> None:
        self._tasks.append(task)

    def wait(self) -> list:
        task = self._tasks.popleft()
        touched = set(task.probe or range(task.shard.samples)) - task.lost
        dies = bool(self._deadly & touched)
        return [(task, Outcome("died") if dies else attempt(self._work, task))]

    def close(self) -> None:
        pass


def test_samples_that_kill_their_worker_are_rows_without_a_file(tmp_path):
    out = storage.absolute(str(tmp_path))
    work = SceneWork(Recipe("A16", 8), Run(out=out, kind="shards", name="", config={}))
    planned = work.planned()
    summary = find_done(work, planned)
    Runner(
        planned, Fragile(work, {2, 5}), summary=summary, max_failed=1.0, report=lambda _: None
    ).run()
    assert summary.totals["reason"] == {"killed_worker": 2}
    rows = pq.read_table(tmp_path / "shards/00000.parquet").to_pylist()
    assert [r["key"] for r in rows if r["reason"]] == ["000000002", "000000005"]
    assert len(list(read_samples(Shard("00000", planned[0].url, 0)))) == 6
