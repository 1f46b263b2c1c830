"""A crawl that nearly wholly fails on this side stops; a list that is half dead does not stop it."""

import random
from pathlib import Path

import pytest

from pipeline.crawl import collapse, reasons
from pipeline.crawl.collapse import LEAST_HOSTS, SYSTEMIC, WINDOW, Watch
from pipeline.crawl.layout import REASONS
from pipeline.errors import UserError
from tests.support import crawling
from tests.support.hostile_server import hostile_server


def seen(ends: list[str], hosts: int = 50, most: float = 0.9) -> Watch:
    watch = Watch(most)
    for number, reason in enumerate(ends):
        watch.see(f"http://host{number % hosts}.test/{number}", reason, "it said so")
    watch.end()
    return watch


def mixed(total: int, **shares: float) -> list[str]:
    """So many ends, of which each reason has its share, well mixed; the rest is ok."""
    ends = [reason for reason, share in shares.items() for _ in range(round(total * share))]
    ends += [""] * (total - len(ends))
    random.Random(0).shuffle(ends)
    return ends


def test_all_its_reasons_are_of_the_closed_list():
    assert set(REASONS) >= SYSTEMIC
    assert not {"not_found", "gone", "opted_out", "robots_denied", "taken_down"} & SYSTEMIC
    assert set(collapse._REMEDIES) >= {"dns", "connect", "forbidden", "http_429", "timeout"}
    assert SYSTEMIC - set(reasons.REASONS) == {
        *("not_an_image", "undecodable", "truncated", "resize_failed")
    }


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {"no_such_host": 0.3, "not_found": 0.3, "connect": 0.1, "tls": 0.1},  # an old list
        {"not_found": 1.0},
        {"opted_out": 0.5, "robots_denied": 0.5},
        {"forbidden": 0.5, "http_429": 0.3},
        {"too_small": 1.0},
        {"hash_mismatch": 1.0},
        {"dns": 0.75},
    ],
)
def test_what_a_crawl_survives(shares):
    seen(mixed(5000, **shares))


@pytest.mark.parametrize(
    ("shares", "remedy"),
    [
        ({"dns": 1.0}, "resolve"),
        ({"no_such_host": 0.97, "not_found": 0.03}, "resolve"),
        ({"connect": 0.99}, "network"),
        ({"forbidden": 0.5, "http_429": 0.48}, "PER_HOST"),
        ({"timeout": 0.7, "deadline": 0.29}, "network"),
        ({"html_instead": 1.0}, "captive"),
        ({"private_address": 1.0}, "private"),
        ({"resize_failed": 0.96}, "installation"),
        ({"not_found": 0.8, "undecodable": 0.2}, "installation"),  # of those with bytes, all
    ],
)
def test_what_it_does_not(shares, remedy):
    with pytest.raises(UserError, match="the crawl collapses") as e:
        seen(mixed(5000, **shares))
    worst = max((r for r in shares if r in SYSTEMIC), key=lambda r: (shares[r], r))
    assert f" {worst}" in e.value.message
    assert "http://host" in e.value.message and "it said so" in e.value.message
    assert remedy in e.value.hint and "--max-failed" in e.value.hint
    assert "\n" not in e.value.message + e.value.hint


def test_it_stops_as_soon_as_it_knows():
    watch = Watch(0.9)
    with pytest.raises(UserError):
        for number in range(10_000):
            watch.see(f"http://host{number}.test/", "dns", "")
    assert number == WINDOW - 1


def test_a_good_beginning_does_not_hide_a_bad_end():
    with pytest.raises(UserError, match=f"of {WINDOW} URLs"):
        seen([""] * 20_000 + ["connect"] * 190)


def test_one_dead_host_in_a_sorted_list():
    ends = [""] * 3000 + ["connect"] * 1000 + [""] * 3000
    watch = Watch(0.9)
    for number, reason in enumerate(ends):
        watch.see("http://dead.test/" if reason else f"http://h{number}.test/", reason, "")
    watch.end()


def test_a_shard_of_one_host_that_blocks():
    with pytest.raises(UserError, match="forbidden"):
        seen(["forbidden"] * WINDOW, hosts=1)
    with pytest.raises(UserError, match="forbidden"):
        seen(["forbidden"] * WINDOW, hosts=LEAST_HOSTS - 1)


def test_few_urls_prove_nothing():
    seen(["dns"] * (WINDOW - 1))


def test_it_can_be_told_to_go_on():
    seen(["dns"] * 5000, most=1.0)


def test_of_any_bytes_as_a_url():
    seen(["not_found", "dns"] * 50, hosts=1)
    watch = Watch(0.9)
    for url in ("http://[::1", "", "\ud800", "http://\x00/"):
        watch.see(url, "bad_url", "")


def test_a_collapsed_shard_is_not_done(tmp_path, capsys):
    """Nothing is committed, so the same command goes on once the cause is mended."""
    with hostile_server() as server:
        dead = crawling.listed(
            tmp_path / "list.parquet", [f"{server.url}/status/403/{i}.jpg" for i in range(300)]
        )
        out = tmp_path / "out"
        flags = ["--shard-size", 250, "--retries", 0]
        assert crawling.crawl(out, dead, *flags) == 2
        said = capsys.readouterr().err
        assert "the crawl collapses: of 250 URLs 250 forbidden" in said and "PER_HOST" in said
        assert not list(Path(out, "shards").glob("0*"))
        assert crawling.crawl(out, dead, *flags, "--max-failed", 1) == 3
        assert [row["reason"] for row in crawling.rows(out)] == ["forbidden"] * 300


def test_a_small_list_that_wholly_fails_is_no_success(tmp_path, capsys):
    with hostile_server() as server:
        dead = crawling.listed(tmp_path / "list.parquet", [f"{server.url}/status/404/1.jpg"] * 3)
        assert crawling.crawl(tmp_path / "out", dead) == 3
        said = capsys.readouterr()
        assert "not one sample is ok" in said.err
        assert "3 in = 0 ok + 3 not_found" in said.out


def test_signed_and_private_urls_are_not_told():
    watch = Watch(0.9)
    with pytest.raises(UserError) as e:
        for number in range(WINDOW):
            url = f" http://me:hunter2@h{number}.test/a\nb.jpg?token=SECRET"
            watch.see(url, "dns", "")
    assert "h0.test" in e.value.message
    assert not any(told in str(e.value) for told in ("hunter2", "SECRET", "\n"))


def test_small_shards_are_judged_together():
    watch = Watch(0.9)
    for shard in range(4):
        for number in range(50):
            watch.see(f"http://h.test/{number}", "connect", "")
        if shard < 3:
            watch.end()
    with pytest.raises(UserError, match="of 200 URLs 200 connect"):
        watch.end()


@pytest.mark.parametrize("others", [0, 1])
def test_a_dead_host_that_fills_shards(others):
    """It stops nothing where another host answered, in whatever shard that was."""
    watch = Watch(0.9)
    for _ in range(others):
        watch.see("http://alive.test/", "", "")
    watch.end()
    for number in range(3 * WINDOW):
        watch.see(f"http://dead.test/{number}", "connect", "")
    if others:
        watch.end()
    else:
        with pytest.raises(UserError, match="connect"):
            watch.end()


def test_a_host_of_broken_pictures_is_no_broken_decoder():
    watch = Watch(0.9)
    for number in range(5 * WINDOW):
        broken = 100 < number < 4 * WINDOW
        url = "http://broken.test/" if broken else f"http://h{number}.test/"
        watch.see(url, "undecodable" if broken else "", "")
    watch.end()


def test_what_a_deadline_ends_is_no_collapse_unless_it_is_nearly_all():
    seen([""] * 300 + ["shard_deadline"] * 500)
    with pytest.raises(UserError, match="shard_deadline") as e:
        seen([""] * 50 + ["shard_deadline"] * 950)
    assert "DEADLINE" in e.value.hint


NAMES = ("127.0.0.1", "127.1", "127.0.1", "0x7f.1", "2130706433", "0177.0.0.1", "0x7f000001")
"""One server under many names, so that its answers look like those of many hosts."""


def many_hosts(server, folder: Path, paths: list[str]) -> str:
    urls = [f"http://{NAMES[i % 7]}:{server.port}{path}" for i, path in enumerate(paths)]
    return crawling.listed(folder / "list.parquet", urls)


def test_those_that_end_last_are_no_collapse(tmp_path):
    """Each sixth URL is silent: when all others are done, only these are left."""
    paths = [f"/image/{i % 9}.jpg?size=16" if i % 6 else f"/silent?{i}" for i in range(1200)]
    with hostile_server() as server:
        flags = ["--retries", 0, "--timeout", 3, "--concurrency", 300, "--per-host", 400]
        url_list = many_hosts(server, tmp_path, paths)
        assert crawling.crawl(tmp_path / "out", url_list, *flags) == 0
    found = [row["reason"] or "" for row in crawling.rows(tmp_path / "out")]
    assert found.count("deadline") == 200 and found.count("") == 1000


def test_a_deadline_is_no_collapse(tmp_path):
    paths = [f"/image/{i % 9}.jpg?size=16" for i in range(400)]
    paths += [f"/silent?{i}" for i in range(250)]
    with hostile_server() as server:
        flags = ["--retries", 0, "--timeout", 60, "--deadline", 4]
        url_list = many_hosts(server, tmp_path, paths)
        assert crawling.crawl(tmp_path / "out", url_list, *flags) == 0
    found = [row["reason"] or "" for row in crawling.rows(tmp_path / "out")]
    assert found == [""] * 400 + ["shard_deadline"] * 250


def test_small_shards_of_a_collapse_are_not_done(tmp_path, capsys):
    """Good ones are; the ill ones before it was noticed are fetched again by the same command."""
    paths = [f"/image/{i % 9}.jpg?size=16" for i in range(250)]
    paths += [f"/status/403/{i}.jpg?times=1" for i in range(200)]
    paths += [f"/image/{i % 9}.jpg?size=16" for i in range(100)]
    with hostile_server() as server:
        url_list = many_hosts(server, tmp_path, paths)
        out = tmp_path / "out"
        flags = ["--retries", 0, "--shard-size", 50, "--concurrency", 8]
        assert crawling.crawl(out, url_list, *flags) == 2
        said = capsys.readouterr().err
        assert "the crawl collapses" in said and "delete" not in said
        assert len(list(out.glob("shards/*_stats.json"))) == 5
        assert crawling.crawl(out, url_list, *flags) == 0
        assert len(list(out.glob("shards/*_stats.json"))) == 11
