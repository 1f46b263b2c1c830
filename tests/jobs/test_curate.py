"""The verb curate: one command from a list of URLs to training shards, killed anywhere."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from tests.support import crawling
from tests.support.crawling import LOOPBACK
from tests.support.hostile_server import hostile_server
from tests.support.killed import kill_at
from tests.support.outputs import digest, leftovers


@pytest.fixture(scope="module")
def server():
    with hostile_server(images=40) as running:
        yield running


@pytest.fixture(scope="module")
def urls(server, tmp_path_factory) -> str:
    """Forty images, two of them twice, one gone, one that is no image, and a thin caption."""
    paths = [f"/image/{i}.jpg?size={64 if i % 4 else 40}" for i in range(36)]
    paths += [paths[1], paths[2], "/status/404/1.jpg", "/html"]
    captions = [f"a picture of many colours, the number {i} of them" for i in range(40)]
    captions[5] = "logo"
    urls = [server.url + path for path in paths]
    folder = tmp_path_factory.mktemp("lists")
    return crawling.listed(folder / "list.parquet", urls, text=captions)


def arguments(out: Path, urls: str, **more: object) -> list[str]:
    given = {
        "urls": urls,
        "out": out,
        "caption_col": "text",
        "shard_size": 15,
        "where": "width > 60 and words > 2 -- what is left",
        "captioner": "bundled",
    }
    flags = [f"--{k.replace('_', '-')} {v}".split(" ", 1) for k, v in (given | more).items()]
    return ["curate", *LOOPBACK, *(part for flag in flags for part in flag)]


@pytest.fixture(scope="module")
def curated(urls, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("curated")
    assert main(arguments(out, urls)) == 0
    return out


def column(out: Path, pattern: str, name: str) -> list:
    files = sorted(out.glob(pattern))
    assert files
    return [value for file in files for value in pq.read_table(file)[name].to_pylist()]


def test_everything_is_counted_from_the_list_to_the_mix(curated):
    assert len(column(curated, "shards/*.parquet", "key")) == 40
    reasons = column(curated, "keep/*/*.parquet", "reason")
    assert len(reasons) == 38  # a 404 and a web page are rows of the crawl only
    assert {r: reasons.count(r) for r in set(reasons)} == {
        None: 26,
        "duplicate_kind is null": 2,
        "width > 60": 9,
        "words > 2": 1,
    }
    mixed = column(curated, "mix/*/*.parquet", "reason")
    assert mixed == reasons
    captions = column(curated, "captions/*/*.parquet", "reason")
    assert captions.count("not_kept") == 12  # and nobody captioned them
    assert len(list(curated.glob("mix/*/*.tar"))) == 3


def test_a_rerun_does_nothing(server, urls, curated, capsys):
    before, asked = digest(curated), server.seen["requests"]
    assert main(arguments(curated, urls)) == 0
    assert digest(curated) == before
    assert server.seen["requests"] == asked
    printed = capsys.readouterr().out
    assert printed.count("= 0 done now") == 6


def test_killed_in_every_step_the_bytes_are_the_same(urls, curated, tmp_path):
    moments = [
        ("shards/00001_stats.json", 0),
        ("shards.parquet", 0),
        ("columns/text@lid.176/00001.parquet", 0),
        ("columns/dedup@default/00001.parquet", 0),
        ("funnel.json", 0),
        ("bundled-curated-3626ee20/00001.parquet", 0),
        ("-95/00001_stats.json", 0),
    ]
    for ending, after in moments:
        kill_at(ending, *arguments(tmp_path, urls), after=after)
    assert main(arguments(tmp_path, urls)) == 0
    assert digest(tmp_path) == digest(curated)
    assert leftovers(tmp_path) == []


def test_other_conditions_share_what_is_done(urls, curated, capsys):
    assert main(arguments(curated, urls, where="width > 60", blend="80")) == 0
    printed = capsys.readouterr().out
    assert printed.count("= 0 done now") == 3  # crawl, annotate, dedup
    assert len(list(curated.glob("keep/*"))) == 2


def test_no_condition_can_undo_another(urls, curated, capsys):
    assert main(arguments(curated, urls, where="width > 5000) or (width < 5000")) == 2
    assert "WHERE" in capsys.readouterr().err


def test_without_dedup_and_conditions_everything_is_kept(urls, tmp_path):
    assert main(arguments(tmp_path, urls, where="", kinds="")) == 0
    assert not (tmp_path / "keep").exists()
    assert column(tmp_path, "mix/*/*.parquet", "reason") == [None] * 38


def test_a_dry_run_tells_the_steps_and_asks_nobody(server, urls, tmp_path, capsys):
    asked = server.seen["requests"]
    assert main([*arguments(tmp_path / "out", urls), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for step in ("annotate image,text", "dedup exact,perceptual", "width > 60", "bundled"):
        assert step in printed
    assert not (tmp_path / "out").exists()
    assert server.seen["requests"] == asked


def test_where_nothing_came_nothing_is_said_to_be_done(server, tmp_path, capsys):
    dead = [f"{server.url}/status/404/{i}.jpg" for i in range(5)]
    assert main(arguments(tmp_path, crawling.listed(tmp_path / "l.parquet", dead))) == 3
    printed = capsys.readouterr()
    assert "5 not_found" in printed.out
    assert "not one sample is ok" in printed.err
    assert not (tmp_path / "columns").exists()
