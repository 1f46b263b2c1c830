"""A crawl of thousands of URLs, hostile ones among them: each its own reason, little memory, no hang."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.reading import read_samples
from tests.support import crawling
from tests.support.hostile_server import hostile_server

IMAGES = 3000

EACH = 5
"""How often each of these stands in the list."""
HOSTILE = {
    "/status/404/{i}.jpg": "not_found",
    "/status/410/{i}.jpg": "gone",
    "/status/403/{i}.jpg": "forbidden",
    "/status/503/{i}.jpg": "http_5xx",
    "/status/429/{i}.jpg?retry_after=9999": "host_paused",
    "/tag/{i}.jpg?tag=noai": "opted_out",
    "/tag/{i}.jpg?tag=otherbot:+noindex&tag=recaption:+noindex": "opted_out",
    "/tdm/{i}.jpg?value=1": "opted_out",
    "/html?{i}": "html_instead",
    "/html-as-jpeg?{i}": "html_instead",
    "/bomb.png?{i}": "too_many_pixels",
    "/gzip-bomb?{i}": "too_many_bytes",
    "/endless?{i}": "too_many_bytes",
    "/empty?{i}": "empty_body",
    "/truncated/{i}.jpg": "truncated_body",
    "/silent?{i}": "deadline",
    "/drip?{i}": "deadline",
    "/loop?{i}": "too_many_redirects",
    "/redirect?{i}&to=file:///etc/passwd": "bad_scheme",
    "/redirect?{i}&to=http://10.0.0.1/{i}.jpg": "private_address",
    "/redirect?{i}&to=http://169.254.169.254/latest/meta-data": "private_address",
    "/redirect?{i}&to=http://[::1]:{loopback6}/{i}.jpg": "private_address",
    "/redirect?{i}&to=http://127.0.0.2:{loopback2}/{i}.jpg": "private_address",
    "/redirects/2/{i}.jpg": "",
    "/status/503/{i}.jpg?times=1": "",
    "/wrong-type/{i}.jpg": "",
    "/delay/0.5/{i}.jpg": "",
}

MEASURED = """
import json, sys
from jobs.__main__ import main
code = main(sys.argv[1:])
# Not ru_maxrss, which a process inherits from the one that starts it.
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if "VmHWM" in l) / 1024
print(json.dumps({"code": code, "peak_mb": peak}))
"""


@pytest.fixture(scope="module")
def server():
    with hostile_server() as running:
        yield running


def test_thousands_of_urls_and_every_trick(server, tmp_path: Path):
    ports = {
        "loopback2": server.forbidden["127.0.0.2"],
        "loopback6": server.forbidden.get("::1", 1),
    }
    expected = {f"{server.url}/image/{i}.jpg": "" for i in range(IMAGES)}
    for number, (path, reason) in enumerate(HOSTILE.items()):
        # A host of its own for each trick: one that asks for a pause gets it for all of its URLs.
        root = server.of(f"h{number}.test")
        for i in range(EACH):
            expected[root + path.format(i=i, **ports)] = reason
    for i in range(EACH):
        expected[f"http://127.0.0.2:{ports['loopback2']}/{i}.jpg"] = "private_address"
        expected[f"http://0x7f000002:{ports['loopback2']}/{i}.jpg"] = "private_address"
        expected[f"ftp://h0.test/{i}.jpg"] = "bad_scheme"
    urls = list(expected)
    random.Random(0).shuffle(urls)
    hosts = [f"h{number}.test=127.0.0.1" for number in range(len(HOSTILE))]
    given = crawling.arguments(
        tmp_path / "out",
        crawling.listed(tmp_path / "list.parquet", urls),
        *("--shard-size", 1000, "--timeout", 4, "--retries", 1, "--max-bytes", 3_000_000),
        *("--threads", 2, "--hosts", ",".join(hosts)),
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *given],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == 0, done.stderr
    assert told["peak_mb"] < 1024
    rows = crawling.rows(tmp_path / "out")
    assert [row["url"] for row in rows] == urls
    # Of a host that asks for a long pause, the first URLs heard it; the others were not asked.
    paused = {"http_429": "host_paused"}
    found = {row["url"]: paused.get(row["reason"], row["reason"] or "") for row in rows}
    assert {u: (r, expected[u]) for u, r in found.items() if r != expected[u]} == {}
    assert server.forbidden_connections == 0
    ok = Counter(expected.values())[""]
    assert f"samples   {len(urls)} in = {ok} ok" in done.stdout
    shards = manifest.load(str(tmp_path / "out"))
    assert sum(1 for shard in shards for _ in read_samples(shard)) == ok
