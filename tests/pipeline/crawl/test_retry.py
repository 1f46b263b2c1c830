"""Fetching again: only what may succeed, into new shards, each URL until it does not fail that way."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import manifest
from pipeline.crawl import plan, reasons, retry
from pipeline.runs import Run
from tests.support import crawling
from tests.support.hostile_server import hostile_server, picture
from tests.support.outputs import digest, leftovers

FLAGS = ("--retries", 0, "--timeout", 1)


@pytest.fixture(scope="module")
def server():
    with hostile_server() as running:
        yield running


def listed(server, tmp_path: Path, mark: str) -> str:
    """Seven URLs: two good, one that fails once, one twice, one always, and two never to be asked again."""
    paths = [
        f"/image/1.jpg?{mark}",
        f"/status/503/2.jpg?times=1&{mark}",
        f"/status/404/3.jpg?{mark}",
        f"/truncated/4.jpg?times=2&{mark}",
        f"/tag/5.jpg?tag=noai&{mark}",
        f"/status/500/6.jpg?{mark}",
        f"/image/7.jpg?{mark}",
    ]
    hashes = [hashlib.sha256(picture(i)).hexdigest() for i in range(1, 8)]
    return crawling.listed(
        tmp_path / "list.parquet", [server.url + p for p in paths], digest=hashes, n=range(7)
    )


def flags(*more: object) -> list:
    return [*FLAGS, "--shard-size", 3, "--keep-cols", "n", "--hash-col", "digest", *more]


def retried(out: Path) -> list[tuple]:
    found = [row for row in crawling.rows(out) if row["retry_of"]]
    return [(row["key"], row["n"], row["retry_of"], row["reason"]) for row in found]


def test_until_nothing_is_left_that_may_succeed(server, tmp_path, capsys):
    out = tmp_path / "out"
    assert crawling.crawl(out, listed(server, tmp_path, "a"), *flags()) == 0
    asked = server.seen["requests"]
    assert crawling.retry(out, *FLAGS) == 0
    assert retried(out) == [
        ("000030", 1, "00000/000001", None),
        ("000031", 3, "00001/000010", "truncated_body"),
        ("000032", 5, "00001/000012", "http_5xx"),
    ]
    for path in ("/image/1.jpg?a", "/status/404/3.jpg?a", "/tag/5.jpg?tag=noai&a"):
        assert server.requests(path) == asked[f"127.0.0.1 {path}"] == 1
    assert crawling.retry(out, *FLAGS) == 0
    assert retried(out)[3:] == [
        ("000040", 3, "00001/000010", None),
        ("000041", 5, "00001/000012", "http_5xx"),
    ]
    capsys.readouterr()
    assert crawling.retry(out, *FLAGS) == 3  # the last one still fails
    assert "1 in = 0 ok + 1 http_5xx" in capsys.readouterr().out
    assert retried(out)[5:] == [("000050", 5, "00001/000012", "http_5xx")]


def test_a_retried_sample_is_one_like_all_others(server, tmp_path):
    out = tmp_path / "out"
    assert crawling.crawl(out, listed(server, tmp_path, "b"), *flags()) == 0
    assert crawling.retry(out, *FLAGS) == 0
    names = [shard.name for shard in manifest.load(str(out))]
    assert names == ["00000", "00002", "00003"]  # 00001 held no image
    members = crawling.members(out / "shards/00003.tar")
    assert list(members) == ["000030.jpg", "000030.txt", "000030.json"]
    assert members["000030.txt"].decode() == "caption \u00e9 1"
    row = pq.read_table(out / "shards/00003.parquet").to_pylist()[0]
    assert row["sha256"] == hashlib.sha256(picture(2)).hexdigest()
    assert row["hash_check"] == "match"
    first = pq.read_schema(out / "shards/00000.parquet")
    assert pq.read_schema(out / "shards/00003.parquet").equals(first)


def test_nothing_left_to_retry(server, tmp_path, capsys):
    out = tmp_path / "out"
    urls = [f"{server.url}/image/1.jpg", f"{server.url}/status/404/1.jpg"]
    assert crawling.crawl(out, crawling.listed(tmp_path / "list.parquet", urls)) == 0
    before = digest(out)
    for _ in range(2):
        capsys.readouterr()
        assert crawling.retry(out) == 0
        assert "nothing left to retry" in capsys.readouterr().out
    assert digest(out) == before


def test_an_unfinished_round_is_finished_first(server, tmp_path, capsys):
    """A shard that was lost is made again; no second round begins."""
    out = tmp_path / "out"
    assert crawling.crawl(out, listed(server, tmp_path, "c"), *flags()) == 0
    assert crawling.retry(out, *FLAGS) == 0
    (out / "shards/00003_stats.json").unlink()
    capsys.readouterr()
    crawling.retry(out, *FLAGS)
    assert "1 shards are not written yet" in capsys.readouterr().out
    assert len(list((out / "shards").glob("*.parquet"))) == 4
    assert leftovers(out) == []


def test_the_crawl_itself_goes_on_after_a_retry(server, tmp_path):
    out = tmp_path / "out"
    url_list = listed(server, tmp_path, "d")
    assert crawling.crawl(out, url_list, *flags()) == 0
    assert crawling.retry(out, *FLAGS) == 0
    before = digest(out)
    assert crawling.crawl(out, url_list, *flags()) == 0
    assert digest(out) == before


def test_dry_run_writes_nothing(server, tmp_path, capsys):
    out = tmp_path / "out"
    assert crawling.crawl(out, listed(server, tmp_path, "e"), *flags()) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert crawling.retry(out, "--dry-run") == 0
    assert "3 URLs of 3 shards failed for reasons that may pass" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_without_a_crawl(tmp_path, capsys):
    assert crawling.retry(tmp_path / "out") == 2
    assert "no crawl wrote" in capsys.readouterr().err


def test_a_round_of_dead_links_is_no_collapse(server, tmp_path):
    """What failed before mostly fails again: that is a retry's lot, and no reason to stop."""
    out = tmp_path / "out"
    urls = [f"{server.url}/status/500/{i}.jpg" for i in range(250)]
    urls += [f"{server.url}/image/{i}.jpg" for i in range(50)]
    assert crawling.crawl(out, crawling.listed(tmp_path / "list.parquet", urls), *FLAGS) == 0
    assert crawling.retry(out, *FLAGS) == 3
    assert len(retried_reasons(out)) == 250


def retried_reasons(out: Path) -> list[str]:
    return [row["reason"] for row in crawling.rows(out) if row["retry_of"]]


def test_parts_of_a_round_are_full(tmp_path):
    """Rows of many parts fill the shards of a round, in the order of the list."""
    run = Run(out=str(tmp_path), kind="shards", name="", config={"shard_size": 4})
    from pipeline.crawl.presets import Columns
    from pipeline.crawl.url_lists import find

    (tmp_path / "list.txt").write_text("".join(f"http://a/{i}\n" for i in range(40)))
    plan.make(run, find(str(tmp_path / "list.txt")), Columns(), 4)
    planned = plan.load(run)
    for part in planned.parts:
        table = plan.read_part(planned, part)
        keys = [plan.key_of(part.name, i, 4) for i in range(part.rows)]
        numbers = [int(url.rsplit("/", 1)[1]) for url in table.column("url").to_pylist()]
        why = ["dns" if n % 3 == 0 else "not_found" if n % 3 == 1 else None for n in numbers]
        found = table.append_column("key", [keys]).append_column("reason", [why])
        Path(run.folder).mkdir(exist_ok=True)
        pq.write_table(found, run.file(f"{part.name}.parquet"))
    tables = list(retry.tables(run, planned))
    assert [len(t) for t in tables] == [4, 4, 4, 2]
    urls = [url for t in tables for url in t.column("url").to_pylist()]
    assert urls == [f"http://a/{i}" for i in range(0, 40, 3)]
    roots = [root for t in tables for root in t.column("retry_of").to_pylist()]
    assert roots == [f"{i // 4:05d}/{i // 4:05d}{i % 4}" for i in range(0, 40, 3)]
    assert "dns" in reasons.MAY_PASS and "not_found" not in reasons.MAY_PASS


@pytest.mark.parametrize("lost", ["nothing", "a shard"])
def test_shards_that_a_killed_crawl_made_reach_the_manifest(server, tmp_path, lost):
    """Killed before it could say what it had made, and perhaps before the last shard."""
    out = tmp_path / "out"
    assert crawling.crawl(out, listed(server, tmp_path, f"f{lost[0]}"), *flags()) == 0
    assert crawling.retry(out, *FLAGS) == 0
    names = [shard.name for shard in manifest.load(str(out))]
    assert names == ["00000", "00002", "00003"]
    (out / "shards.parquet").unlink()
    if lost == "a shard":
        (out / "shards/00003_stats.json").unlink()
    crawling.retry(out, *FLAGS)
    assert [shard.name for shard in manifest.load(str(out))][:2] == names[:2]
    assert {shard.name for shard in manifest.load(str(out))} >= {"00000", "00002"}
    made = {path.stem for path in (out / "shards").glob("*.tar")}
    assert {shard.name for shard in manifest.load(str(out))} == made


def test_thousands_of_dead_links_are_retried_as_one(server, tmp_path):
    """No other mechanism stops a round, either, whose URLs mostly failed before."""
    out = tmp_path / "out"
    urls = [f"{server.url}/status/500/{i}.jpg" for i in range(1100)]
    urls += [f"{server.url}/image/{i}.jpg" for i in range(200)]
    url_list = crawling.listed(tmp_path / "list.parquet", urls)
    flags = ("--retries", 0, "--shard-size", 650, "--max-failed", 1)
    assert crawling.crawl(out, url_list, *flags) == 0
    assert crawling.retry(out, "--retries", 0) == 3
    assert retried_reasons(out) == ["http_5xx"] * 1100


def test_a_folder_that_looks_like_a_partition(server, tmp_path):
    out = tmp_path / "key=5" / "reason=dns"
    assert crawling.crawl(out, listed(server, tmp_path, "g"), *flags()) == 0
    assert crawling.retry(out, *FLAGS) == 0
    assert retried(out)[0] == ("000030", 1, "00000/000001", None)
