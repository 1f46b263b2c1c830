"""The verb crawl: its flags, what later steps find, kills at any moment, and Ray."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.crawl import Crawl, settled, work_of
from jobs.inline import Inline
from jobs.job import Execution
from jobs.runner import Runner, Summary, Systemic
from pipeline import manifest
from pipeline.commit import Record
from pipeline.crawl import plan, presets, resize
from pipeline.manifest import Shard
from pipeline.reading import read_samples
from pipeline.runs import Run
from tests.support import crawling
from tests.support.hostile_server import hostile_server, picture
from tests.support.killed import kill_at
from tests.support.outputs import digest, leftovers


@pytest.fixture(scope="module")
def server():
    with hostile_server(images=60) as running:
        yield running


def mixed(server, folder: Path, delay: float = 0.0) -> str:
    """Sixty URLs, most of them good, some with a wrong hash."""
    paths = [f"/delay/{delay}/{i}.jpg" if delay else f"/image/{i}.jpg" for i in range(54)]
    paths += [f"/status/404/{i}.jpg" for i in range(3)]
    paths += ["/html", "/tag/1.jpg?tag=noai", "/bomb.png"]
    random.Random(1).shuffle(paths)
    hashes = ["0" * 64 if "/7.jpg" in path else None for path in paths]
    return crawling.listed(folder / "list.parquet", [server.url + p for p in paths], digest=hashes)


FLAGS = ("--shard-size", 10, "--hash-col", "digest")


def test_what_later_steps_find(server, tmp_path, capsys):
    out = tmp_path / "out"
    assert crawling.crawl(out, mixed(server, tmp_path), *FLAGS) == 0
    said = capsys.readouterr().out
    assert "60 in = 53 ok + 3 not_found + 1 hash_mismatch + 1 html_instead + 1 opted_out" in said
    assert "hash_check mismatch 1" in said
    assert "1 answers of another hash than listed" in said and "quarantine" in said
    shards = manifest.load(str(out))
    assert [shard.name for shard in shards] == [f"{i:05d}" for i in range(6)]
    samples = [sample for shard in shards for sample in read_samples(shard)]
    assert len(samples) == 53 == sum(shard.samples for shard in shards)
    assert len({sample.uid for sample in samples}) == 53
    assert all(sample.text_status == "ok" and sample.image for sample in samples)
    assert (out / "catalog.duckdb").exists()
    with duckdb.connect() as connection:
        query = f"SELECT reason, count(*) FROM '{out}/shards/*.parquet' GROUP BY 1"
        assert dict(connection.execute(query).fetchall())["not_found"] == 3
    assert leftovers(out) == []


def test_a_rerun_asks_nobody(server, tmp_path, capsys):
    out = tmp_path / "out"
    url_list = mixed(server, tmp_path)
    assert crawling.crawl(out, url_list, *FLAGS) == 0
    before, asked = digest(out), server.seen["requests"]
    capsys.readouterr()
    assert crawling.crawl(out, url_list, *FLAGS) == 0
    assert "0 done now" in capsys.readouterr().out
    assert digest(out) == before
    assert server.seen["requests"] == asked


def test_a_torn_shard_is_fetched_again(server, tmp_path):
    out = tmp_path / "out"
    url_list = mixed(server, tmp_path)
    assert crawling.crawl(out, url_list, *FLAGS) == 0
    before = digest(out)
    tar = out / "shards/00002.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    (out / "shards/00004.parquet").unlink()
    (out / "shards/00005_stats.json").write_bytes(b"")
    assert crawling.crawl(out, url_list, *FLAGS) == 0
    assert digest(out) == before


def test_other_settings_and_other_lists_are_refused(server, tmp_path, capsys):
    out = tmp_path / "out"
    url_list = mixed(server, tmp_path)
    assert crawling.crawl(out, url_list, *FLAGS) == 0
    for flags, message in (
        (("--resize", "border"), 'resize.mode (was "no", is "border")'),
        (("--no-robots",), "policy.robots (was true, is false)"),
        (("--shard-size", 20), "shard_size (was 10, is 20)"),
    ):
        assert crawling.crawl(out, url_list, *FLAGS, *flags) == 2
        assert message in capsys.readouterr().err
    other = crawling.listed(tmp_path / "other.parquet", ["http://a/1"], digest=[None])
    assert crawling.crawl(out, other, *FLAGS) == 2
    assert "other.parquet is not the list that was planned" in capsys.readouterr().err
    harder = ("--timeout", 9, "--retries", 5, "--concurrency", 3, "--contact", "me@example.org")
    assert crawling.crawl(out, url_list, *FLAGS, *harder) == 0


def test_foreign_shards_are_not_overwritten(server, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    (out / "shards/00000.tar").write_bytes(b"precious")
    assert crawling.crawl(out, mixed(server, tmp_path), *FLAGS) == 2
    assert "holds shards that are no crawl" in capsys.readouterr().err
    assert (out / "shards/00000.tar").read_bytes() == b"precious"


def test_two_lists_in_one_folder(server, tmp_path):
    """Each under its own RUN; the manifest tells their shards apart."""
    out = tmp_path / "out"
    for name, number in (("one", 1), ("two", 2)):
        url_list = crawling.listed(
            tmp_path / f"{name}.parquet", [f"{server.url}/image/{number}.jpg"]
        )
        assert crawling.crawl(out, url_list, "--run", name) == 0
    shards = manifest.load(str(out))
    assert [shard.name for shard in shards] == ["00000", "00001"]
    images = {shard.name: next(read_samples(shard)).meta["url"] for shard in shards}
    assert images == {f"0000{i}": f"{server.url}/image/{i + 1}.jpg" for i in range(2)}


def test_limit_and_dry_run(server, tmp_path, capsys):
    out = tmp_path / "out"
    url_list = mixed(server, tmp_path)
    asked = server.seen["requests"]
    assert crawling.crawl(out, url_list, *FLAGS, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "6 shards: 0 done, 6 to do" in said and "10 samples" in said
    assert not out.exists()
    assert server.seen["requests"] == asked
    assert crawling.crawl(out, url_list, *FLAGS, "--limit", 12) == 0
    counts = [len(pq.read_table(f)) for f in sorted((out / "shards/limit12").glob("*.parquet"))]
    assert counts == [10, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--urls", "none.parquet"), "none.parquet does not exist"),
        (("--url-col", "URL"), "URL_COL=URL"),
        (("--caption-col", "TEXT"), "it has: url, text, digest"),
        (("--preset", "laion"), "URL_COL=URL"),
        (("--keep-cols", "text,key"), "KEEP_COLS"),
        (("--shard-size", 0), "--shard-size 0"),
        (("--encode-format", "png"), "ENCODE_QUALITY=95"),
        (("--allow-private", "everything"), "everything"),
        (("--deadline", 30_000), "--deadline 30000"),
        (("--user-agent", "two\nlines"), "user"),
    ],
)
def test_mistakes_are_one_line(server, tmp_path, capsys, flags, message):
    url_list = mixed(server, tmp_path)
    assert crawling.crawl(tmp_path / "out", url_list, *FLAGS, *flags) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2


def test_presets(server, tmp_path):
    """The DataComp schema: its uid and scores are kept, its hash is verified, its faces are blurred."""
    pytest.importorskip("img2dataset")
    import hashlib

    table = {
        "uid": ["0" * 31 + str(i) for i in range(3)],
        "url": [f"{server.url}/image/{i}.jpg" for i in range(3)],
        "text": ["a", "b", "c"],
        "original_width": [80] * 3,
        "original_height": [64] * 3,
        "clip_b32_similarity_score": [0.1, 0.2, 0.3],
        "clip_l14_similarity_score": [0.1, 0.2, 0.3],
        "face_bboxes": pa.array(
            [[], [[0.1, 0.1, 0.6, 0.6]], None], pa.list_(pa.list_(pa.float64()))
        ),
        "sha256": [hashlib.sha256(picture(i)).hexdigest() for i in range(3)],
    }
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    out = tmp_path / "out"
    flags = ["--urls", tmp_path / "list.parquet", "--out", out, "--preset", "datacomp"]
    assert main(["crawl", *map(str, flags), *crawling.LOOPBACK]) == 0
    found = crawling.rows(out)
    assert [row["hash_check"] for row in found] == ["match"] * 3
    assert [row["uid"] for row in found] == table["uid"]
    assert found[1]["clip_l14_similarity_score"] == 0.2
    members = crawling.members(out / "shards/00000.tar")
    plain = [
        members[row["key"] + ".jpg"] == resize.Imaging(resize.ResizeSettings())(picture(i)).data
        for i, row in enumerate(found)
    ]
    assert plain == [True, False, True]


def test_politeness_does_not_depend_on_the_number_of_workers(tmp_path):
    asked = {"urls": "x", "out": str(tmp_path), "per_host": 8, "host_delay": 0.5}
    config = {
        "columns": presets.Columns().__dict__,
        "shard_size": 10,
        "resize": resize.ResizeSettings().__dict__,
        "policy": {"robots": True, "directives": True, "verify": True, "max_bytes": 1000},
    }
    run = Run(out=str(tmp_path), kind="shards", name="", config=config)
    empty = plan.Plan(str(tmp_path), 10, (), ())
    for workers, per_host, delay in ((1, 8, 0.5), (4, 2, 2.0), (100, 1, 50.0)):
        fetch = work_of(Crawl(**asked, workers=workers), run, empty).effort.fetch
        assert (fetch.per_host, fetch.host_delay_sec) == (per_host, delay)
    assert settled(Crawl(**asked)).workers == (os.cpu_count() or 1)
    assert settled(Crawl(**asked, executor="inline")).workers == 1


def test_one_crawl_of_a_folder_at_a_time(server, tmp_path, capsys):
    from pipeline import storage

    out = tmp_path / "out"
    url_list = mixed(server, tmp_path)
    with storage.exclusive(str(out / "urls")):
        assert crawling.crawl(out, url_list, *FLAGS) == 2
    assert "is being written by another job" in capsys.readouterr().err


def test_every_flag_of_execution_is_there():
    fields = set(Crawl.__dataclass_fields__)
    assert set(Execution.__dataclass_fields__) <= fields


class _Failing:
    """Work of ten shards of 200 samples, of which all fail."""

    def setup(self) -> None:
        pass

    def perform(self, shard: Shard, lost: frozenset[int]) -> Record:
        counts = {"samples": 200, "rows": 200, "status": {"failed": 200}, "reason": {"dns": 200}}
        return Record(shard.name, "", {}, {}, counts)

    def failures(self, counts: dict) -> dict[str, int]:
        return counts["reason"]


@pytest.mark.parametrize("watched", [False, True])
def test_what_an_earlier_job_wrote_stops_no_other(watched):
    """Ten shards that were reused say nothing of how things are now."""
    work = _Failing()
    shards = [Shard(name=f"{i:05d}", url="", size=0, samples=200) for i in range(20)]
    summary = Summary(len(shards), work.failures)
    for shard in shards[:10]:
        summary.add(work.perform(shard, frozenset()))
        summary.reused += 1
    runner = Runner(
        shards,
        Inline(work),
        summary=summary,
        max_failed=0.9,
        watched=watched,
        report=lambda _: None,
    )
    if watched:
        runner.run()
        assert summary.fresh == 10
        return
    with pytest.raises(Systemic, match="1000 of the first 1000 samples: dns") as e:
        runner.run()
    assert summary.fresh == 5 and e.value.written


def test_quality_without_resizing(server, tmp_path):
    url_list = crawling.listed(tmp_path / "list.parquet", [f"{server.url}/image/1.png?size=300"])
    sizes = []
    for value in (10, 95):
        assert crawling.crawl(tmp_path / str(value), url_list, "--encode-quality", value) == 0
        members = crawling.members(tmp_path / str(value) / "shards/00000.tar")
        sizes.append(len(members["000000000.jpg"]))
    assert sizes[0] < sizes[1] / 2


def test_values_that_no_type_holds(server, tmp_path):
    """A lone surrogate, numbers of all sizes, and lists of all kinds reach the shard."""
    kept = [["caf\ud83d"], [True, 2], 2**63, {"a": "\ud800"}]
    rows = [{"url": f"{server.url}/image/{i}.jpg", "text": "x", "k": k} for i, k in enumerate(kept)]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    assert crawling.crawl(out, path, "--keep-cols", "k") == 0
    expected = ['["caf?"]', "[true, 2]", str(2**63), '{"a": "?"}']
    assert [row["k"] for row in crawling.rows(out)] == expected


def test_a_plan_that_failed_does_not_lock_its_folder(server, tmp_path, capsys):
    path, out = tmp_path / "list.csv", tmp_path / "out"
    path.write_text("url,text\n")
    assert crawling.crawl(out, path) == 2
    assert "holds no rows" in capsys.readouterr().err
    path.write_text(f"url,text\n{server.url}/image/1.jpg,x\n")
    assert crawling.crawl(out, path, "--resize", "border") == 0


# --- kill -9 -------------------------------------------------------------------------------------

KILL_FLAGS = (*FLAGS, "--concurrency", 4)


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> tuple[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    url_list = mixed(server, folder, delay=0.03)
    assert crawling.crawl(folder / "out", url_list, *KILL_FLAGS) == 0
    return url_list, everything(folder / "out")


def everything(out: Path) -> dict[str, str]:
    """Shards and what stands beside them, the plan less the times of its lists."""
    found = digest(out)
    found |= {p.name: p.read_bytes().hex() for p in (out / "quarantine").glob("*.tar")}
    return found | {p.name: p.read_bytes().hex() for p in (out / "urls").glob("*.parquet")}


def kill_after(job: subprocess.Popen, out: Path, shards: int, pause: float) -> bool:
    """Kills a crawl a moment after so many shards; False where it ended before."""
    while job.poll() is None and len(list(out.glob("shards/*_stats.json"))) < shards:
        time.sleep(0.005)
    time.sleep(pause)
    job.send_signal(signal.SIGKILL)
    return job.wait() == -signal.SIGKILL


def test_killed_again_and_again(undisturbed, tmp_path):
    url_list, expected = undisturbed
    out = tmp_path / "out"
    chance = random.Random(5)
    killed = 0
    for shards in (0, 1, 3, 4):
        job = crawling.started(out, url_list, *KILL_FLAGS)
        killed += kill_after(job, out, shards, chance.uniform(0.0, 0.1))
        job.stdout.close()
    assert killed >= 3
    assert crawling.crawl(out, url_list, *KILL_FLAGS) == 0
    assert everything(out) == expected
    assert leftovers(out) == []


@pytest.mark.ray
def test_on_ray(undisturbed, tmp_path):
    """Two workers, killed once: the same bytes as one process that was never disturbed."""
    url_list, expected = undisturbed
    out = tmp_path / "out"
    ray = ("--executor", "ray", "--workers", 2)
    job = crawling.started(out, url_list, *KILL_FLAGS, *ray)
    assert kill_after(job, out, 1, 0.05)
    job.stdout.close()
    job = crawling.started(out, url_list, *KILL_FLAGS, *ray)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert everything(out) == expected
    assert leftovers(out) == []


def test_a_retry_that_is_killed_ends_with_the_same_bytes(server, tmp_path):
    urls = [f"{server.url}/status/503/{i}.jpg?times=1" for i in range(900, 924)]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    flags = ("--shard-size", 6, "--retries", 0, "--max-failed", 1)
    crawling.crawl(whole, crawling.listed(tmp_path / "busy.parquet", urls), *flags)
    assert {row["reason"] for row in crawling.rows(whole)} == {"http_5xx"}  # each was asked once
    shutil.copytree(whole, torn)
    assert crawling.retry(whole, "--retries", 3) == 0
    assert sum(row["reason"] is None for row in crawling.rows(whole)) == len(urls)
    asked = ("crawl-retry", "--out", str(torn), *crawling.LOOPBACK, "--retries", "3")
    kill_at("_stats.json", *asked, after=1)
    kill_at(".tar", *asked, after=0)
    assert crawling.retry(torn, "--retries", 3) == 0
    assert digest(torn) == digest(whole)
    assert leftovers(torn) == []
