"""Images per second of a whole crawl from loopback to 256 px shards, ours against img2dataset.

    python -m tests.benchmarks.bench_crawl [--data FOLDER] [--quick]

One list, one server in a process of its own, and as many processes and requests in flight on both
sides: `crawl` on Ray, and img2dataset's own multiprocessing distributor. In turns; the time is that
from the first shard's beginning to the last one's end, as both write it into `_stats.json`, so that
nobody's start-up counts. Fails (exit 1) where a ratio is below the bar.
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from jobs.__main__ import main as jobs
from tests.support import crawling, shards
from tests.support import img2dataset_peer as peer

BAR = 1.0
SIZE = 256
PROCESSES = 2
IN_FLIGHT = 64  # per process
_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"


def small(data: bytes) -> bytes:
    """A JPEG of about 17 KB: its shorter side has 256 pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    sides = [max(1, round(side * scale)) for side in image.size]
    return shards.encoded(image.resize(sides, Image.Resampling.BICUBIC), "JPEG", quality=80)


def pictures(folder: str, count: int) -> dict[str, list[bytes]]:
    """Real photos where there are some, else rendered ones: small, and of mixed sizes as they are."""
    found = [
        p for name in ("flickr8k_875", "alt_permissive") for p in Path(folder, name).rglob("*.jp*g")
    ]
    random.Random(0).shuffle(found)
    mixed = [path.read_bytes() for path in sorted(found[:count])] if folder else []
    if not mixed:
        draw = random.Random(0)
        sizes = [(draw.randint(200, 900), draw.randint(200, 700)) for _ in range(200)]
        mixed = [shards.jpeg(i, size) for i, size in enumerate(sizes)]
    return {"17 KB": [small(data) for data in mixed[:500]], "mixed": mixed}


class _Answering(asyncio.Protocol):
    """HTTP/1.1 with keep-alive and nothing else: what it costs is not to be what is measured."""

    images: tuple[bytes, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].rsplit(b"/", 1)[-1]
            if not path.removesuffix(b".jpg").isdigit():
                self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            body = self.images[int(path.removesuffix(b".jpg")) % len(self.images)]
            self._transport.write(_HEAD.format(len(body)).encode() + body)
            if b"connection: close" in head.lower():
                self._transport.close()


def _serve(images: list[bytes], ready: Connection) -> None:
    async def listen() -> None:
        _Answering.images = tuple(images)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Answering, "127.0.0.1", 0, backlog=1024)
        ready.send(server.sockets[0].getsockname()[1])
        async with server:
            await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def served(images: list[bytes]) -> Iterator[str]:
    """The address of a server of these images, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(images, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def rate(folder: Path) -> float:
    """Images per second, from the stats that both sides write."""
    stats = [json.loads(path.read_text()) for path in folder.glob("*_stats.json")]
    images = sum(each["successes"] for each in stats)
    assert images == sum(each["count"] for each in stats) > 0, f"{folder}: not all succeeded"
    start = min(each["start_time"] for each in stats)
    return images / (max(each["end_time"] for each in stats) - start)


def ours(url_list: str, out: Path, shard_size: int) -> float:
    asked = ["--shard-size", shard_size, "--resize", "border", "--size", SIZE]
    asked += ["--workers", PROCESSES, "--concurrency", IN_FLIGHT]
    given = crawling.arguments(out, url_list, *asked, "--executor", "ray")
    per_host = str(PROCESSES * IN_FLIGHT)
    assert jobs([*given, "--per-host", per_host]) == 0
    return rate(out / "shards")


def theirs(url_list: str, out: Path, shard_size: int) -> float:
    peer.download(
        url_list=url_list,
        input_format="parquet",
        caption_col="text",
        output_folder=str(out),
        output_format="webdataset",
        number_sample_per_shard=shard_size,
        resize_mode="border",
        image_size=SIZE,
        processes_count=PROCESSES,
        thread_count=IN_FLIGHT,
        max_shard_retry=0,
    )
    return rate(out)


def main(arguments: list[str]) -> bool:
    """Whether every ratio reaches the bar."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    count, rounds = (2000, 1) if options.quick else (4000, 3)
    # Ray's workers give way to every other process of the machine, the peer's do not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    sets = pictures(options.data, count)
    with ExitStack() as stack:  # before there is a Ray, after which no process can be spawned
        servers = {name: stack.enter_context(served(images)) for name, images in sets.items()}
        return min(compare(name, sets[name], url, count, rounds) for name, url in servers.items())


def compare(name: str, images: list[bytes], url: str, count: int, rounds: int) -> bool:
    """Whether ours reaches the bar on these images."""
    found: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        urls = [f"{url}/{number}.jpg" for number in range(count)]
        url_list = crawling.listed(Path(folder) / "list.parquet", urls)
        for turn in range(rounds):
            for side, side_rates in zip((ours, theirs), found, strict=True):
                out = Path(folder) / f"{side.__name__}{turn}"
                side_rates.append(side(url_list, out, count // (2 * PROCESSES)))
    ratio = statistics.median(a / b for a, b in zip(*found, strict=True))
    mine, other = map(statistics.median, found)
    size = sum(map(len, images)) / len(images) / 1000
    print(f"{name:6} {size:5.1f} KB each: ours {mine:.0f} images/s, img2dataset {other:.0f}")
    print(f"       ratio {ratio:.2f}  bar {BAR}  {'ok' if ratio >= BAR else 'MISSED'}")
    return ratio >= BAR


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
