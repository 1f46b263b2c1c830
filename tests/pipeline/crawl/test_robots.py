"""robots.txt, served by real hosts of many names."""

import asyncio
from collections.abc import Iterator

import pytest
from yarl import URL

from pipeline.crawl import robots
from pipeline.crawl.connection import open_session
from pipeline.crawl.reasons import MAY_PASS, Refused
from pipeline.crawl.robots import Later, Robots
from pipeline.crawl.settings import FetchSettings
from tests.support.hostile_server import ROBOTS, HostileServer, hostile_server

HOSTS = tuple(f"{name}=127.0.0.1" for name in (*ROBOTS, "none.test", "many.test"))


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


def verdicts(*urls: str, **changes: object) -> list:
    """For each URL, one after the other, its crawl-delay or the reason."""
    values = {"allow_private": ("127.0.0.1",), "hosts": HOSTS, "backoff_sec": 0.001, "retries": 1}
    settings = FetchSettings(**(values | changes))

    async def run() -> list:
        found = []
        async with open_session(settings) as session:
            rules = Robots(session, settings)
            for url in urls:
                while True:
                    try:
                        found.append(await rules.delay_for(URL(url, encoded=True)))
                    except Later as later:
                        assert later.seconds >= settings.backoff_sec
                        continue
                    except Refused as refused:
                        assert not refused.again
                        found.append(refused.reason)
                    break
            await rules.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "verdict"),
    {
        "none.test": 0.0,
        "deny.test": "robots_denied",
        "named.test": "robots_denied",
        "other.test": 0.0,
        "slow.test": 0.3,
        "forbidden-robots.test": 0.0,  # 4xx: there are no rules
        "broken-robots.test": "robots_unreachable",  # 5xx: nobody knows the rules
        "busy-robots.test": "robots_unreachable",
        "html-robots.test": 0.0,
        "long-robots.test": "robots_denied",
        "late-robots.test": 0.0,  # beyond what is read
    }.items(),
)
def test_hosts(server, host, verdict):
    assert verdicts(server.of(host) + "/image/1.jpg") == [verdict]


def test_paths_follow_the_longest_rule(server):
    root = server.of("partial.test")
    paths = ["/image/1.png", "/image/1.jpg", "/image/2.jpg", "/"]
    assert verdicts(*(root + path for path in paths)) == ["robots_denied", 0.0, 0.0, 0.0]


def test_other_names_of_ours_are_obeyed_as_well(server):
    url = server.of("other.test") + "/image/1.jpg"
    assert verdicts(url, crawler_names=("recaption", "otherbot")) == ["robots_denied"]
    assert verdicts(server.of("named.test") + "/x", crawler_names=("thirdbot",)) == [0.0]


def test_one_fetch_per_origin_whatever_it_says(server):
    before = server.seen["requests"]
    for host in ("many.test", "deny.test", "broken-robots.test"):
        verdicts(*[f"{server.of(host)}/image/{number}.jpg" for number in range(5)])
    after = server.seen["requests"]
    made = [
        after[f"{h} /robots.txt"] - before.get(f"{h} /robots.txt", 0)
        for h in ("many.test", "deny.test", "broken-robots.test")
    ]
    assert made == [1, 1, 2]  # the last one was tried again, for all five together


def test_what_may_pass_is_told_from_what_stays():
    assert "robots_unreachable" in MAY_PASS and "robots_denied" not in MAY_PASS


def test_an_origin_that_is_out_says_why(server):
    closed = f"http://127.0.0.2:{server.port}/x"
    assert verdicts(closed, "http://nowhere.test/x", hosts=("nowhere.test=127.0.0.1",)) == [
        "private_address",
        "connect",
    ]
    assert verdicts(f"https://127.0.0.1:{server.port}/x") == ["tls"]
    assert server.forbidden_connections == 0


def test_a_delay_has_a_limit(server):
    assert verdicts(server.of("slow.test") + "/x", max_crawl_delay_sec=0.1) == [0.1]


def test_only_so_much_is_remembered(server, monkeypatch):
    monkeypatch.setattr(robots, "MAX_KEPT_BYTES", 1)
    before = server.requests("/robots.txt", "other.test")
    urls = [server.of(host) + "/x" for host in ("other.test", "none.test", "other.test")]
    assert verdicts(*urls) == [0.0] * 3
    assert server.requests("/robots.txt", "other.test") - before == 2


def answered(*heads: str) -> list:
    """The verdicts of hosts whose robots.txt are answered with these very bytes."""
    answers = iter(heads)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(answers).encode())
        await writer.drain()
        writer.close()

    async def run() -> list:
        found = []
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        names = [f"{number}.test" for number in range(len(heads))]
        settings = FetchSettings(
            allow_private=("127.0.0.1",), hosts=tuple(f"{name}=127.0.0.1" for name in names)
        )
        async with server, open_session(settings) as session:
            rules = Robots(session, settings)
            for name in names:
                try:
                    found.append(await rules.delay_for(URL(f"http://{name}:{port}/x")))
                except Refused as refused:
                    found.append(refused.reason)
                except Later as later:
                    found.append(later.seconds)
        return found

    return asyncio.run(run())


def test_an_empty_answer_has_no_rules():
    assert answered("HTTP/1.1 204 No\r\n\r\n", "HTTP/1.1 205 No\r\n\r\n") == [0.0, 0.0]


def test_a_broken_answer_may_be_better_another_time():
    heads = f"HTTP/1.1 200 OK\r\nX: {'x' * 20_000}\r\n\r\n", "hello\r\n\r\n"
    assert answered(*heads) == ["robots_unreachable"] * 2


def test_the_pause_is_the_one_that_is_asked_for():
    busy = "HTTP/1.1 503 x\r\nContent-Length: 0\r\nRetry-After: {}\r\n\r\n"
    assert answered(busy.format("7, 9"), busy.format("99999999999")) == [7.0, "robots_unreachable"]
