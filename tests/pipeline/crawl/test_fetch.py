"""Fetching from a server that tries everything; nothing here leaves loopback."""

import asyncio
import contextlib
import gzip
import itertools
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import pytest

from pipeline.crawl.exchange import retry_after
from pipeline.crawl.fetch import Fetched, Fetcher, fetch_all
from pipeline.crawl.reasons import MAY_PASS, REASONS
from pipeline.crawl.settings import FetchSettings
from pipeline.errors import UserError
from tests.support.hostile_server import (
    NUM_RAW_GOOD,
    RAW,
    TLS_NAME,
    HostileServer,
    bomb,
    hostile_server,
    picture,
)

HOSTS = tuple(
    f"{name}=127.0.0.1"
    for name in ("a.test", "b.test", "c.test", "deny.test", "slow.test", "busy.test", TLS_NAME)
)


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server
        assert server.seen["forbidden"] == {}  # whatever the tests tried


def settings(**changes: object) -> FetchSettings:
    values = {
        "allow_private": ("127.0.0.1/32",),
        "hosts": HOSTS,
        "backoff_sec": 0.01,
        "timeout_sec": 5.0,
        "max_bytes": 1_000_000,
        "per_host": 64,
    }
    return FetchSettings(**(values | changes))


def fetched(urls: list[str], deadline_sec: float = 60, **changes: object) -> list[Fetched]:
    """What became of each URL, in the order of the list; every one exactly once."""
    found = list(fetch_all(enumerate(urls), settings(**changes), deadline_sec=deadline_sec))
    results = dict(found)
    assert len(found) == len(results) == len(urls)
    assert all(result.reason in REASONS | {""} for result in results.values())
    assert all(bool(result.data) != bool(result.reason) for result in results.values())
    return [results[index] for index in range(len(urls))]


def fetched_one(url: str, **changes: object) -> Fetched:
    return fetched([url], **changes)[0]


IMAGES = {
    "/image/1.jpg": picture(1),
    "/image/2.png": picture(2, "png"),
    "/image/3.webp": picture(3, "webp"),
    "/image/4.jpg?size=300": picture(4, size=300),
    "/delay/0.1/5.jpg": picture(5),
    "/redirects/5/6.jpg": picture(6),
    "/tag/7.jpg?tag=nofollow&tag=otherbot:noai": picture(7),
    "/tdm/8.jpg?value=0": picture(8),
    "/wrong-type/9.jpg": picture(9),
    "/no-type/9.jpg": picture(9),
    "/gzip/10.jpg": picture(10),
    "/deflate/11.jpg": picture(11),
    "/bomb.png": bomb(),  # the decoder's to find out
    "/long/1000000": b"\xff" * 1_000_000,
}
FAILURES = {
    "/status/404/a": ("not_found", 404, 1),
    "/status/410/a": ("gone", 410, 1),
    "/status/401/a": ("unauthorized", 401, 1),
    "/status/403/a": ("forbidden", 403, 1),
    "/status/451/a": ("http_4xx", 451, 1),
    "/status/501/a": ("http_5xx", 501, 1),
    "/status/500/a": ("http_5xx", 500, 3),
    "/status/304/a": ("http_other", 304, 1),
    "/status/206/a": ("http_other", 206, 1),
    "/redirects/6/1.jpg": ("too_many_redirects", 302, 1),
    "/loop": ("too_many_redirects", 301, 1),
    "/redirect": ("bad_redirect", 302, 1),
    "/redirect?to=file:///etc/passwd": ("bad_scheme", 302, 1),
    "/redirect?to=http://[::1/": ("bad_redirect", 302, 1),
    "/redirect?to=http://10.0.0.1/": ("private_address", 302, 1),
    "/redirect?to=http://169.254.169.254/latest/meta-data/": ("private_address", 302, 1),
    "/redirect?to=http://127.0.0.1:22/": ("bad_port", 302, 1),
    "/tag/1.jpg?tag=noai": ("opted_out", 200, 1),
    "/tag/1.jpg?tag=nofollow,+unavailable_after:+25+Jun+2010+15:00:00+PST": ("opted_out", 200, 1),
    "/tag/1.jpg?tag=otherbot:all&tag=recaption:+noml": ("opted_out", 200, 1),
    "/tdm/1.jpg": ("opted_out", 200, 1),
    "/truncated/1.jpg": ("truncated_body", 200, 3),
    "/reset": ("connect", 0, 3),
    "/endless": ("too_many_bytes", 200, 1),
    "/long/1000001": ("too_many_bytes", 200, 1),
    "/gzip-bomb": ("too_many_bytes", 200, 1),
    "/brotli": ("bad_encoding", 200, 1),
    "/html": ("html_instead", 200, 1),
    "/html-as-jpeg": ("html_instead", 200, 1),
    "/empty": ("empty_body", 200, 1),
    "/no-content": ("empty_body", 204, 1),
    "/huge-header": ("bad_response", 0, 1),
    "/many-headers": ("bad_response", 0, 1),
    "/garbage": ("bad_response", 0, 1),
}


@pytest.mark.parametrize("path", IMAGES)
def test_images_come_as_they_are(server, path):
    found = fetched_one(server.url + path)
    assert (found.data, found.reason, found.message) == (IMAGES[path], "", "")
    assert (found.http_status, found.attempts) == (200, 1)


@pytest.mark.parametrize("path", FAILURES)
def test_each_trick_has_its_own_reason_and_is_tried_again_only_where_that_may_help(server, path):
    found = fetched_one(server.of("a.test") + path)
    assert (found.reason, found.http_status, found.attempts) == FAILURES[path]
    assert found.message and "\n" not in found.message
    if path.startswith(("/redirects", "/loop", "/reset")):
        return  # several requests per try
    assert server.requests(path, "a.test") == FAILURES[path][2]


def test_all_of_them_together_among_a_thousand_images(server):
    tricks = [server.url + path for path in FAILURES]
    images = [f"{server.url}/image/{number}.jpg?size=16" for number in range(1000)]
    found = fetched(tricks + images)
    assert [one.reason for one in found[: len(tricks)]] == [r for r, _, _ in FAILURES.values()]
    assert [one.data for one in found[len(tricks) :]] == [picture(n, size=16) for n in range(1000)]


def test_answers_that_are_hardly_http_have_their_reasons_too(server):
    found = fetched([f"{server.url}/raw/{number}" for number in range(len(RAW))], retries=0)
    reasons = [one.reason for one in found]
    # Of those at the end, one has an end that nobody can read.
    assert sorted(reasons[-NUM_RAW_GOOD:]) == [""] * (NUM_RAW_GOOD - 1) + ["opted_out"]
    assert not {"", "internal", "deadline"} & set(reasons[:-NUM_RAW_GOOD])
    assert all(f"{one.message}{one.content_type}".isascii() for one in found)


def test_urls_that_are_none(server):
    urls = [
        "",
        "no url",
        "file:///etc/passwd",
        "http://10.0.0.1/x",
        "http://[fe80::1]/",
        "http://x:22/",
    ]
    reasons = ["bad_url", "bad_url", "bad_scheme", "private_address", "private_address", "bad_port"]
    found = fetched(urls)
    assert [one.reason for one in found] == reasons
    assert all(one.attempts == 0 for one in found)


def spellings(server: HostileServer) -> list[str]:
    own, four, six = server.port, server.forbidden["127.0.0.2"], server.forbidden.get("::1", 1)
    hosts = [
        *("127.0.0.2", "2130706434", "0x7f000002", "0177.0.0.2", "127.2", "0x7f.0.0.0x2"),
        *("[::ffff:127.0.0.2]", "[::ffff:7f00:2]", "[64:ff9b::7f00:2]", "[2002:7f00:2::]"),
        *("\uff11\uff12\uff17.0.0.2", "%31%32%37.0.0.2", "u:p@127.0.0.2", "[::127.0.0.2]"),
    ]
    urls = [f"http://{host}:{port}/image/1.jpg" for host in hosts for port in (own, four)]
    return urls + [f"http://{host}:{port}/x" for host in ("[::1]", "[0::1]") for port in (own, six)]


@pytest.mark.parametrize("robots", [True, False])
def test_no_spelling_of_a_forbidden_address_is_connected_to(server, robots):
    urls = spellings(server)
    urls += [f"{server.url}/redirect?to={url.replace('%', '%25')}" for url in urls]
    found = fetched(urls, robots=robots)
    assert {one.reason for one in found} == {"private_address"}
    assert server.seen["forbidden"] == {}


@pytest.mark.parametrize("robots", [True, False])
def test_names_that_lead_to_forbidden_addresses(server, robots):
    """One that changes between two look-ups, one of both kinds, and one of this machine."""
    answers = {"turn.test": iter([["127.0.0.1"]] + [["127.0.0.2"]] * 9)}

    def lookup(name: str) -> list[str]:
        return next(answers[name])

    hosts = (
        *("both.test=127.0.0.2", "both.test=127.0.0.1", "both.test=::1"),
        *("inner.test=127.0.0.2", "inner.test=::1"),
    )
    names = ["both.test", "inner.test", "inside.localhost", "turn.test"]
    urls = [f"http://{name}:{server.port}/image/1.jpg" for name in names]
    with Fetcher(settings(hosts=hosts, robots=robots), lookup) as fetcher:
        first = dict(fetcher.fetch_all(enumerate(urls), deadline_sec=20))
    assert [first[i].reason for i in range(4)] == ["", "private_address", "", ""]
    with Fetcher(settings(hosts=(), robots=robots), lookup) as fetcher:
        ((_, second),) = fetcher.fetch_all([(0, urls[3])], deadline_sec=20)
    assert second.reason == "private_address"
    assert server.seen["forbidden"] == {}


def test_a_connection_that_ends_elsewhere_is_dropped(server, monkeypatch):
    """Where the system itself sends it to another address than it was told."""
    connect = socket.socket.connect

    def diverted(self: socket.socket, address: tuple) -> None:
        connect(self, ("127.0.0.3", address[1]) if address[0] == "127.0.0.1" else address)

    listener = socket.create_server(("127.0.0.3", server.port))
    with listener:
        monkeypatch.setattr(socket.socket, "connect", diverted)
        found = fetched_one(f"http://a.test:{server.port}/image/1.jpg", retries=0)
        monkeypatch.undo()
        assert found.reason == "private_address"
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(100) == b""  # not one byte was sent


def test_what_is_sent(server):
    url = server.url.replace("//", "//me:secret@") + "/image/1.jpg"
    assert not fetched_one(url, contact="https://recaption.test/crawler").reason
    headers = dict(server.seen["headers"])
    assert headers["User-Agent"].startswith("recaption/")
    assert headers["User-Agent"].endswith(" (+https://recaption.test/crawler)")
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Referer"} & set(headers)


def test_nothing_of_the_environment_is_used(server, monkeypatch, tmp_path):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.2:{server.forbidden['127.0.0.2']}")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert not fetched_one(server.url + "/image/1.jpg").reason
    assert "Authorization" not in dict(server.seen["headers"])


def test_odd_letters_in_urls_arrive(server):
    urls = [server.url + path for path in ("/image/1.jpg?a b=c d", "/image/2.jpg?\u00e9\u65e5")]
    assert [one.reason for one in fetched(urls)] == ["", ""]
    assert server.requests("/image/1.jpg?a%20b=c%20d") == 1
    assert server.requests("/image/2.jpg?%C3%A9%E6%97%A5") == 1


@pytest.mark.parametrize("path", ["/status/429/1.jpg", "/status/503/2.jpg", "/status/500/3.jpg"])
@pytest.mark.parametrize("after", ["", "&retry_after=0"])
def test_what_passes_is_had_after_all(server, path, after):
    found = fetched_one(f"{server.url}{path}?times=2{after}")
    assert (found.reason, found.attempts) == ("", 3)


@pytest.mark.parametrize("path", ["/truncated/4.jpg?times=2", "/reset/5.jpg?times=2"])
def test_broken_connections_are_tried_again(server, path):
    assert fetched_one(server.url + path).data == picture(int(path.split("/")[2][0]))


def test_retry_after_is_waited_for_by_all_of_its_host_and_by_nobody_else(server):
    busy = server.of("b.test") + "/status/503/1.jpg?times=1&retry_after=1"
    urls = [busy, *(f"{server.of('b.test')}/image/{n}.jpg?wait" for n in range(3))]
    urls += [f"{server.of('c.test')}/image/{n}.jpg?wait" for n in range(3)]
    order = [
        index for index, _ in fetch_all(enumerate(urls), settings(per_host=1), deadline_sec=30)
    ]
    assert sorted(order[:3]) == [4, 5, 6] and sorted(order[3:]) == [0, 1, 2, 3]
    starts = server.seen["starts"]["b.test"][-6:]  # robots.txt, the busy one, and what waited
    assert starts[2] - starts[1] > 0.5


@pytest.mark.parametrize(
    ("text", "seconds"),
    {
        "120": 120.0,
        " 7.5 ": 7.5,
        "120, 120": 120.0,
        "0": 0.0,
        "9999999999": 365 * 86400.0,
        "9" * 8000: 365 * 86400.0,
        "Thu, 01 Jan 2026 00:01:00 GMT": 60.0,
        "Thu, 01 Jan 1970 00:00:00 GMT": 0.0,
        "Fri, 31 Dec 9999 23:59:59 GMT": 365 * 86400.0,
        "": None,
        "-5": None,
        "5 minutes": None,
        "1e3": None,
    }.items(),
)
def test_retry_after(text, seconds):
    assert retry_after(text, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


def test_a_pause_longer_than_the_urls_time_ends_it_at_once(server):
    found = fetched_one(server.url + "/status/429/9.jpg?retry_after=3600")
    assert (found.reason, found.attempts) == ("http_429", 1)


def test_a_host_that_asks_for_a_very_long_pause_is_left_for_later(server):
    root = server.of("b.test")
    urls = [f"{root}/status/503/8.jpg?retry_after=3600"]
    urls += [f"{root}/image/{number}.jpg?later" for number in range(20)]
    found = fetched(urls, per_host=1)
    assert [one.reason for one in found] == ["http_5xx"] + ["host_paused"] * 20
    assert all(one.reason in MAY_PASS and one.attempts < 2 for one in found)
    assert server.requests("/image/0.jpg?later", "b.test") == 0


def test_a_server_that_never_answers_and_one_that_never_ends(server):
    urls = [server.url + path for path in ("/silent", "/drip", "/image/1.jpg?beside")]
    found = fetched(urls, timeout_sec=0.5)
    assert [one.reason for one in found] == ["deadline", "deadline", ""]


def test_redirects_and_retries_share_the_time_of_a_url(server):
    urls = [server.url + "/redirects/5/1.jpg?delay=0.25", server.url + "/status/500/1.jpg?shared"]
    assert [one.reason for one in fetched(urls)] == ["", "http_5xx"]
    late, tried = fetched(urls, timeout_sec=1.0, retries=1000, backoff_sec=0.2)
    assert late.reason == "deadline"
    assert tried.reason == "http_5xx" and 2 <= tried.attempts <= 4


def test_a_retry_begins_at_the_listed_url(server):
    url = server.of("c.test") + "/redirect?to=/status/500/1.jpg?times=1"
    assert fetched_one(url).attempts == 2
    assert server.requests("/redirect?to=/status/500/1.jpg?times=1", "c.test") == 2


def test_a_body_that_says_it_is_too_long_is_not_read(server):
    assert "announced" in fetched_one(server.url + "/long/1000001").message
    assert "announced" not in fetched_one(server.url + "/endless").message


def test_a_host_that_was_busy_is_asked_for_more_when_it_is_well_again(server):
    root = server.of("busy.test")
    urls = [f"{root}/status/503/1.jpg?times=1"]
    urls += [f"{root}/delay/0.03/{number}.jpg" for number in range(12)]
    assert not any(one.reason for one in fetched(urls, per_host=2))
    assert server.seen["most_in_flight"]["busy.test"] == 2


def test_a_port_where_nobody_answers_the_connection(server):
    """A full backlog: the kernel takes no more connections, and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        full = [socket.socket() for _ in range(4)]
        for one in full:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        found = fetched_one(f"http://127.0.0.1:{port}/", connect_timeout_sec=0.2, retries=1)
        for one in full:
            one.close()
    assert found.reason == "timeout"


def test_when_the_time_for_all_is_over_the_rest_is_told_so(server):
    urls = [f"{server.url}/image/{n}.jpg?early" for n in range(5)]
    urls += [f"{server.url}/silent?{n}" for n in range(500)]
    found = fetched(urls, deadline_sec=1.0, timeout_sec=60, look_ahead=100, concurrency=20)
    assert [one.reason for one in found] == [""] * 5 + ["shard_deadline"] * 500


def test_one_slow_host_does_not_keep_the_others_waiting(server):
    urls = [f"{server.of('slow.test')}/delay/0.3/{n}.jpg" for n in range(10_000)]
    urls += [f"{server.url}/image/{n}.jpg?quick" for n in range(50)]
    done = []
    with Fetcher(settings(per_host=1, concurrency=4)) as fetcher:
        for index, result in fetcher.fetch_all(enumerate(urls), deadline_sec=60):
            assert not result.reason
            done.append(index)
            if len(done) == 45:
                break
    assert sum(index >= 10_000 for index in done) >= 40


def test_requests_of_a_host_are_few_at_once_and_apart():
    with hostile_server() as fresh:
        urls = [f"{fresh.of('a.test')}/delay/0.05/{n}.jpg" for n in range(12)]
        urls += [f"{fresh.of('b.test')}/image/{n}.jpg" for n in range(4)]
        assert not any(one.reason for one in fetched(urls, per_host=3))
        assert fresh.seen["most_in_flight"]["a.test"] == 3
        urls = [f"{fresh.of('c.test')}/image/{n}.jpg" for n in range(4)]
        assert not any(one.reason for one in fetched(urls, host_delay_sec=0.3))
        starts = fresh.seen["starts"]["c.test"][1:]  # after robots.txt
        assert all(b - a > 0.1 for a, b in itertools.pairwise(starts))
        urls = [f"{fresh.of('slow.test')}/image/{n}.jpg" for n in range(3)]
        assert not any(one.reason for one in fetched(urls))
        starts = fresh.seen["starts"]["slow.test"][1:]  # robots.txt asks for 0.2 s
        assert all(b - a > 0.1 for a, b in itertools.pairwise(starts))


def test_robots_are_asked_once_also_for_where_a_redirect_leads(server):
    url = f"{server.of('c.test')}/redirect?to={server.of('deny.test')}/image/1.jpg"
    found = fetched([url] * 20)
    assert {one.reason for one in found} == {"robots_denied"}
    assert server.requests("/image/1.jpg", "deny.test") == 0
    assert server.requests("/robots.txt", "deny.test") == 1
    assert not fetched_one(f"{server.of('deny.test')}/image/1.jpg", robots=False).reason


def test_opt_outs_can_be_narrowed_and_widened(server):
    url = server.url + "/tag/1.jpg?tag=otherbot:noimageai"
    assert fetched_one(url, crawler_names=("recaption", "otherbot")).reason == "opted_out"
    assert not fetched_one(server.url + "/tag/1.jpg?tag=noindex", opt_outs=("noai",)).reason
    assert not fetched_one(server.url + "/tag/1.jpg?tag=noai", respect_directives=False).reason


def test_tls_is_verified(server, monkeypatch):
    if not server.tls_port:
        pytest.skip("no openssl to make a certificate with")
    url = f"https://{TLS_NAME}:{server.tls_port}/image/1.jpg"
    untrusted = fetched_one(url)
    assert (untrusted.reason, untrusted.message) == ("tls", "self-signed certificate")
    monkeypatch.setenv("SSL_CERT_FILE", server.certificate)
    assert fetched_one(url).data == picture(1)
    wrong_name = fetched_one(f"https://a.test:{server.tls_port}/image/1.jpg")
    assert wrong_name.reason == "tls"
    down = f"https://{TLS_NAME}:{server.tls_port}/redirect?to={server.url}/image/1.jpg"
    assert fetched_one(down).reason == "downgrade"
    assert not fetched_one(down, allow_downgrade=True).reason


def test_a_slow_consumer_slows_the_reading(server):
    urls = [f"{server.url}/long/100000?{n}" for n in range(200)]
    limits = settings(concurrency=4)
    found = fetch_all(enumerate(urls), limits, deadline_sec=60, in_flight_bytes=400_000)
    next(found)
    time.sleep(0.5)
    asked = sum(" /long/100000?" in path for path in server.seen["requests"])
    assert asked <= 1 + 4 + 4 + 1  # taken, held, being read, and one more
    assert sum(len(one.data) for _, one in found) == 199 * 100_000


def test_a_budget_smaller_than_any_body_still_lets_them_through(server):
    urls = [f"{server.url}/long/500000?small{n}" for n in range(8)]
    found = fetch_all(enumerate(urls), settings(), deadline_sec=60, in_flight_bytes=1)
    assert sorted((index, len(one.data)) for index, one in found) == [
        (n, 500_000) for n in range(8)
    ]


def test_who_stops_early_leaves_nothing_behind(server):
    before = threading.active_count()
    found = fetch_all(
        ((n, f"{server.url}/silent?{n}") for n in range(10**9)), settings(), deadline_sec=60
    )
    bad = fetch_all(((n, "bad") for n in range(10**9)), settings(), deadline_sec=60)
    assert next(bad)[1].reason == "bad_url"
    bad.close()
    found.close()
    assert threading.active_count() == before


def test_who_leaves_while_all_is_full_is_let_go(server):
    """A cancellation that meets the news of free bytes was lost, and the wait had no end."""
    with Fetcher(settings(robots=False, concurrency=8)) as fetcher:
        for number in range(60):
            urls = [(n, f"{server.url}/image/{n}.jpg?leave") for n in range(100)]
            found = fetcher.fetch_all(urls, deadline_sec=60, in_flight_bytes=2_000)
            for _ in range(1 + number % 4):
                next(found)
            found.close()
        assert list(fetcher.fetch_all([], deadline_sec=9)) == []


def scripted(answer: Callable[[str, str], bytes | None]) -> contextlib.AbstractContextManager:
    """A server of its own: `answer` gives the bytes for a host and a path; None: no more comes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                host = next(line[6:] for line in head if line.lower().startswith("host: "))
                writer.write(answer(host.partition(":")[0], head[0].split()[1]))
                await writer.drain()
        writer.close()

    @contextlib.contextmanager
    def running() -> Iterator[int]:
        loop = asyncio.new_event_loop()
        listener = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:

            async def end() -> None:
                listener.close()
                others = asyncio.all_tasks() - {asyncio.current_task()}
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)

            asyncio.run_coroutine_threadsafe(end(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return running()


def body(
    data: bytes, length: int | None = None, status: str = "200 OK", headers: str = ""
) -> bytes:
    length = len(data) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + data


def test_bodies_that_stall_do_not_keep_small_ones_from_being_read():
    """They are nearly as long as they may be, many, and of several hosts."""

    def answer(host: str, path: str) -> bytes:
        return body(b"\xff" * 900_000, 1_000_000) if path == "/stall" else body(b"\xff" * 2000)

    with scripted(answer) as port:
        urls = [f"http://{host}.test:{port}/stall" for host in "aabbaabb"]
        urls += [f"http://c.test:{port}/{number}" for number in range(100)]
        found = fetch_all(
            enumerate(urls),
            settings(robots=False, timeout_sec=2.0, retries=0, per_host=4, concurrency=20),
            deadline_sec=60,
            in_flight_bytes=1_000_000,
        )
        reasons = [(index, one.reason) for index, one in found]
    assert sorted(reasons[:100]) == [(n, "") for n in range(8, 108)]
    assert sorted(reasons[100:]) == [(n, "deadline") for n in range(8)]


def test_the_memory_of_bodies_is_bounded_while_nobody_takes_them():
    """What is begun is read to its end, and not one more is begun."""
    asked = []

    def answer(host: str, path: str) -> bytes:
        asked.append(path)
        return body(b"\xff" * 100_000)

    with scripted(answer) as port, Fetcher(settings(robots=False, concurrency=4)) as fetcher:
        urls = [f"http://a.test:{port}/{number}" for number in range(50)]
        found = fetcher.fetch_all(enumerate(urls), deadline_sec=60, in_flight_bytes=300_000)
        next(found)
        while len(asked) < 4:
            time.sleep(0.001)
        time.sleep(0.3)
        assert len(asked) <= 1 + 3 + 4
        assert len(list(found)) == 49


def test_robots_that_are_busy_hold_no_place_and_are_asked_again_after_their_pause():
    """Sixteen hosts whose rules cannot be had for a while, and eight places."""
    asked: list[str] = []

    def answer(host: str, path: str) -> bytes:
        asked.append(f"{host}{path}")
        if path != "/robots.txt":
            return body(b"\xff\xd8")
        if host.startswith("busy") and asked.count(f"{host}{path}") == 1:
            return body(b"", status="503 x", headers="Retry-After: 1\r\n")
        return body(b"", status="404 x")

    busy = [f"busy{number}.test" for number in range(16)]
    hosts = (*HOSTS, *(f"{name}=127.0.0.1" for name in busy))
    with scripted(answer) as port:
        urls = [f"http://{name}:{port}/x" for name in busy]
        urls += [f"http://a.test:{port}/{number}" for number in range(50)]
        limits = settings(hosts=hosts, concurrency=8)
        found = [(n, one.reason) for n, one in fetch_all(enumerate(urls), limits, deadline_sec=30)]
    assert sorted(found[:50]) == [(n, "") for n in range(16, 66)]  # before all that waits
    assert sorted(found[50:]) == [(n, "") for n in range(16)]
    assert all(asked.count(f"{name}/robots.txt") == 2 for name in busy)


def test_all_members_of_a_gzip_are_unpacked():
    whole = b"".join(gzip.compress(bytes([200 + n]) * 1000) for n in range(5))
    zipped = {
        "/members": whole,
        "/padded": whole + b"\0" * 100,
        "/garbage": whole + b"hello" + gzip.compress(b"x"),
        "/cut": whole[:-4],
        "/many": gzip.compress(b"") * 5000,
        "/long": gzip.compress(b"\xff" * 400_000) * 3,
    }

    def answer(host: str, path: str) -> bytes:
        pieces = [zipped[path][at : at + 7] for at in range(0, len(zipped[path]), 7)]
        chunks = b"".join(f"{len(one):x}\r\n".encode() + one + b"\r\n" for one in pieces)
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + chunks + b"0\r\n\r\n"

    with scripted(answer) as port:
        urls = [f"http://a.test:{port}{path}" for path in zipped]
        found = dict(zip(zipped, fetched(urls, robots=False, retries=0), strict=True))
    plain = b"".join(bytes([200 + n]) * 1000 for n in range(5))
    assert all(found[path].data == plain for path in ("/members", "/padded", "/garbage"))
    assert found["/cut"].reason == "truncated_body"
    assert found["/many"].reason == "bad_encoding"
    assert found["/long"].reason == "too_many_bytes"


def test_names_that_take_long_leave_the_others_their_time(server):
    """More than there are threads; each look-up lasts longer than a connection may take."""
    slow = threading.Event()

    def lookup(name: str) -> list[str]:
        if name.startswith("good"):
            return ["127.0.0.1"]
        slow.wait(1.0)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    urls = [f"http://bad{number}.x:{server.port}/" for number in range(12)]
    urls += [f"http://good{number}.x:{server.port}/image/1.jpg" for number in range(10)]
    limits = settings(
        hosts=(), concurrency=8, connect_timeout_sec=0.5, timeout_sec=0.9, retries=0, robots=False
    )
    with Fetcher(limits, lookup) as fetcher:
        fetcher._means.names._gate = asyncio.Semaphore(4)  # fewer threads than it has places
        found = dict(fetcher.fetch_all(enumerate(urls), deadline_sec=60))
    assert [found[12 + number].reason for number in range(10)] == [""] * 10
    assert {found[number].reason for number in range(12)} == {"timeout"}


def test_no_exit_waits_for_look_ups():
    """A process that ends leaves those behind that hang, and begins none that nobody needs."""
    code = """
import sys, threading
from pipeline.crawl.fetch import Fetcher
from pipeline.crawl.settings import FetchSettings
def lookup(name):
    print(name, flush=True)
    threading.Event().wait()
limits = FetchSettings(connect_timeout_sec=0.1, timeout_sec=0.3, concurrency=4, retries=0)
fetcher = Fetcher(limits, lookup)
found = fetcher.fetch_all(((n, f"http://bad{n}.x/") for n in range(300)), deadline_sec=60)
print(next(found)[1].reason, flush=True)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert "timeout" in ended.stdout and ended.stdout.count("bad") <= 64 + 1
    assert not ended.stderr


def test_what_the_list_raises_is_raised(server):
    def urls() -> Iterator[tuple[int, str]]:
        yield 0, f"{server.url}/image/1.jpg"
        raise UserError("the list is torn")

    with pytest.raises(UserError, match="torn"):
        list(fetch_all(urls(), settings(), deadline_sec=60))


def test_a_fetcher_serves_one_list_after_the_other(server):
    with Fetcher(settings()) as fetcher:
        for round_ in range(3):
            urls = [(n, f"{server.of('b.test')}/image/{n}.jpg?{round_}") for n in range(5)]
            assert sorted(n for n, one in fetcher.fetch_all(urls, deadline_sec=9) if one.data) == [
                *range(5)
            ]
        first = fetcher.fetch_all([(0, f"{server.url}/silent")], deadline_sec=0.2)
        second = fetcher.fetch_all([], deadline_sec=9)
        assert next(first)[1].reason == "shard_deadline"
        with pytest.raises(RuntimeError, match="busy"):
            next(second)
        first.close()
        assert list(fetcher.fetch_all([], deadline_sec=9)) == []


def test_a_fetcher_that_is_closed_says_so(server):
    fetcher = Fetcher(settings())
    found = fetcher.fetch_all(
        [(0, f"{server.url}/image/1.jpg"), (1, f"{server.url}/silent")], deadline_sec=60
    )
    assert next(found)[0] == 0
    fetcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(found)
    with pytest.raises(RuntimeError):
        list(fetcher.fetch_all([], deadline_sec=1))


def test_settings_travel():
    wanted = settings(crawler_names=("recaption", "img2dataset"))
    assert pickle.loads(pickle.dumps(wanted)) == wanted
    assert json.loads(json.dumps(asdict(wanted)))["max_bytes"] == 1_000_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"per_host": 0},
        {"max_bytes": 0},
        {"timeout_sec": 0.0},
        {"retries": -1},
        {"hosts": ("a.test",)},
        {"hosts": ("a.test=b.test",)},
        {"allow_private": ("loopback",)},
        {"user_agent": "me\r\nX: y"},
        {"crawler_names": ("",)},
        {"crawler_names": ()},
        {"max_crawl_delay_sec": -1.0},
    ],
)
def test_settings_that_cannot_be_meant(wrong):
    (flag,) = wrong
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')}"):
        FetchSettings(**wrong)
