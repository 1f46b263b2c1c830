"""A web server on loopback that serves thousands of images, and every trick a bad server knows.

Runs in a process of its own (`hostile_server()`), counts every request, and owns listeners at
addresses that nobody may connect to. The answer to a request is named by its path:

    /image/N.jpg|png|webp?size=S     an image of its own for every N and S
    /delay/SECONDS/N.jpg             the same, later
    /status/CODE/N.jpg               an error; ?times=K: for K requests, then the image;
                                     ?retry_after=TEXT
    /redirect?to=URL&status=CODE     /redirects/K/N.jpg: K redirects, then the image;
                                     ?delay=SECONDS: each;   /loop
    /tag/N.jpg?tag=TEXT&tag=TEXT     an image with X-Robots-Tag headers;  /tdm/N.jpg?value=TEXT
    /truncated/N.jpg                 half of what was announced (?times=K);  /reset?times=K: nothing
    /endless  /drip  /silent         a body without end, a byte now and then, no answer at all
    /html  /html-as-jpeg  /wrong-type/N.jpg  /no-type/N.jpg
    /gzip/N.jpg  /deflate/N.jpg  /gzip-bomb  /brotli
    /bomb.png  /huge-header  /many-headers  /garbage  /empty  /no-content  /long/BYTES
    /raw/N                           the N-th of RAW, byte for byte
    /robots.txt                      by the name of the host, see ROBOTS
"""

import asyncio
import contextlib
import functools
import gzip
import io
import json
import shutil
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image

HTML = b"<!DOCTYPE html>\n<html><head><title>Not here</title></head><body>Nothing</body></html>"
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
TLS_NAME = "tls.test"

ROBOTS: dict[str, tuple[int, str]] = {
    "deny.test": (200, "User-agent: *\nDisallow: /\n"),
    "partial.test": (200, "User-agent: *\nDisallow: /image/1\nAllow: /image/1.jpg\n"),
    "named.test": (200, "User-agent: recaption\nDisallow: /\n\nUser-agent: *\nAllow: /\n"),
    "other.test": (200, "User-agent: otherbot\nDisallow: /\n"),
    "slow.test": (200, "User-agent: *\nCrawl-delay: 0.3\n"),
    "forbidden-robots.test": (403, ""),
    "broken-robots.test": (500, ""),
    "busy-robots.test": (429, ""),
    "html-robots.test": (200, HTML.decode()),
    "long-robots.test": (
        200,
        "# " + "x" * 500_000 + "\nUser-agent: *\nDisallow: /\n" + "#" * 99999,
    ),
    "late-robots.test": (200, "#" * 600_000 + "\nUser-agent: *\nDisallow: /\n"),
}
"""robots.txt by host name: status and text; 404 for all others."""

_OK = b"HTTP/1.1 200 OK\r\n"
RAW = (
    b"",
    b"\0" * 100,
    b"hello",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 999 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
    _OK + b"Content-Length: -5\r\n\r\nhello",
    _OK + b"Content-Length: 99999999999999999999999999\r\n\r\nhello",
    _OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    _OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    _OK + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFF\r\nhello",
    _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    _OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    _OK + b"Content-Encoding: \xff\r\nContent-Length: 5\r\n\r\nhello",
    _OK + b"Bad Header\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 301 x\r\nLocation: \xff\xfe\xe9\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 301 x\r\nLocation: http://\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 x\r\nRetry-After: Mon, 1 Jan 99999 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 x\r\nRetry-After: Mon, 1 Jan 2020 00:00:00 +99999999999\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    # From here on there is a body that is as good as any.
    b"HTTP/1.0 200 OK\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 10 + _OK + b"Content-Length: 5\r\n\r\nhello",
    _OK + b"Content-Type: \xff\xc3\xa9\r\nContent-Length: 5\r\n\r\nhello",
    _OK + b"X-Robots-Tag: unavailable_after: Mon, 99 Jan 2020\r\nContent-Length: 5\r\n\r\nhello",
    _OK + b"tdm-reservation: \xff1\r\nContent-Length: 5\r\n\r\nhello",
)
"""Answers that are no HTTP, or hardly."""
NUM_RAW_GOOD = 5


@functools.lru_cache(maxsize=20_000)
def picture(number: int, kind: str = "jpg", size: int = 64) -> bytes:
    """An image file: the same for the same number, another one for every other."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    image = small.resize((size * 5 // 4, size), Image.Resampling.BICUBIC)
    image.save(file, FORMATS[kind], quality=85)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 2.5 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


@dataclass(frozen=True)
class HostileServer:
    """Where a running server listens."""

    port: int
    tls_port: int  # 0: there is no openssl here to make a certificate with
    certificate: str  # file of the TLS listener's own certificate, for TLS_NAME
    forbidden: dict[str, int] = field(default_factory=dict)  # address -> port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, host: str) -> str:
        """The address of one of its host names, for settings that map it to 127.0.0.1."""
        return f"http://{host}:{self.port}"

    @property
    def seen(self) -> dict:
        """What it has seen: `requests` by host and path with query, `forbidden` connections by
        address, `most_in_flight` by host, `starts` by host (seconds), `agents`, `headers` (of the
        latest request)."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/_seen", timeout=10) as response:
            return json.load(response)

    def requests(self, path: str, host: str = "127.0.0.1") -> int:
        """How often it was asked for a path (with its query)."""
        return self.seen["requests"].get(f"{host} {path}", 0)

    @property
    def forbidden_connections(self) -> int:
        return sum(self.seen["forbidden"].values())


@contextmanager
def hostile_server(images: int = 0, size: int = 64) -> Iterator[HostileServer]:
    """Runs the server in a process of its own until the block ends.

    images: how many JPEGs of `size` are ready at the start; others are made when asked for.
    """
    command = [sys.executable, "-m", "tests.support.hostile_server", str(images), str(size)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    try:
        line = process.stdout.readline()
        assert line, "the hostile server did not start"
        yield HostileServer(**json.loads(line))
    finally:
        process.stdin.close()  # at which it ends, also when this process is killed
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class _Seen:
    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.forbidden: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.most_in_flight: Counter[str] = Counter()
        self.starts: dict[str, list[float]] = {}
        self.agents: Counter[str] = Counter()
        self.headers: list[list[str]] = []


class _Server:
    """The routes."""

    def __init__(self) -> None:
        self.seen = _Seen()
        self.bomb = gzip.compress(b"\0" * 200_000_000, 1)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Counts a request and answers it."""
        seen, host = self.seen, request.host.partition(":")[0]
        if request.path == "/_seen":
            return web.json_response({k: v for k, v in vars(seen).items() if k != "in_flight"})
        seen.requests[f"{host} {request.raw_path}"] += 1
        seen.agents[request.headers.get("User-Agent", "")] += 1
        seen.headers = [list(pair) for pair in request.headers.items()]
        seen.starts.setdefault(host, []).append(time.monotonic())
        seen.in_flight[host] += 1
        seen.most_in_flight[host] = max(seen.most_in_flight[host], seen.in_flight[host])
        try:
            return await self._route(request, host)
        finally:
            seen.in_flight[host] -= 1

    async def _route(self, request: web.Request, host: str) -> web.StreamResponse:
        name, *rest = request.path.strip("/").split("/")
        if name == "robots.txt":
            status, text = ROBOTS.get(host, (404, ""))
            return web.Response(status=status, text=text)
        times = int(request.query.get("times", 1 << 30))
        if self.seen.requests[f"{host} {request.raw_path}"] > times:
            return self._image(request, rest)
        method = getattr(self, "_" + name.replace("-", "_").replace(".", "_"), None)
        if method is None:
            return web.Response(status=404, body=HTML, content_type="text/html")
        answer = method(request, rest)
        return await answer if asyncio.iscoroutine(answer) else answer

    def _image(
        self, request: web.Request, rest: list[str], content_type: str = "", **headers: str
    ) -> web.Response:
        number, _, kind = (rest[-1] if "." in "".join(rest) else "0.jpg").partition(".")
        data = picture(int(number), kind, int(request.query.get("size", 64)))
        content_type = content_type or "image/" + FORMATS[kind].lower()
        return web.Response(body=data, headers={"Content-Type": content_type} | headers)

    async def _delay(self, request: web.Request, rest: list[str]) -> web.Response:
        await asyncio.sleep(float(rest[0]))
        return self._image(request, rest)

    def _status(self, request: web.Request, rest: list[str]) -> web.Response:
        after = request.query.get("retry_after")
        headers = {"Retry-After": after} if after else {}
        return web.Response(status=int(rest[0]), headers=headers)

    def _redirect(self, request: web.Request, rest: list[str]) -> web.Response:
        headers = {"Location": request.query["to"]} if "to" in request.query else {}
        return web.Response(status=int(request.query.get("status", 302)), headers=headers)

    async def _redirects(self, request: web.Request, rest: list[str]) -> web.Response:
        await asyncio.sleep(float(request.query.get("delay", 0)))
        left = int(rest[0])
        if not left:
            return self._image(request, rest)
        return web.Response(
            status=302, headers={"Location": f"../{left - 1}/{rest[1]}?{request.query_string}"}
        )

    def _loop(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(status=301, headers={"Location": "/loop"})

    def _tag(self, request: web.Request, rest: list[str]) -> web.Response:
        response = self._image(request, rest)
        for tag in request.query.getall("tag", []):
            response.headers.add("X-Robots-Tag", tag)
        return response

    def _tdm(self, request: web.Request, rest: list[str]) -> web.Response:
        return self._image(request, rest, **{"TDM-Reservation": request.query.get("value", "1")})

    async def _truncated(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        data = picture(0)
        return await self._write(request, data[: len(data) // 2], length=len(data))

    async def _reset(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        request.transport.abort()
        return web.Response()

    async def _endless(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        response = await self._begin(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"\xff" * 65536)
        return response

    async def _drip(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        response = await self._begin(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"\xff")
                await asyncio.sleep(0.02)
        return response

    async def _silent(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        await asyncio.sleep(3600)
        return web.Response()

    def _html(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(body=HTML, content_type="text/html")

    def _html_as_jpeg(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(body=HTML, content_type="image/jpeg")

    def _wrong_type(self, request: web.Request, rest: list[str]) -> web.Response:
        return self._image(request, rest, "text/html")

    def _no_type(self, request: web.Request, rest: list[str]) -> web.Response:
        return self._image(request, rest, "")

    def _gzip(self, request: web.Request, rest: list[str]) -> web.Response:
        body = gzip.compress(picture(int(rest[0].partition(".")[0])))
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    def _deflate(self, request: web.Request, rest: list[str]) -> web.Response:
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(picture(int(rest[0].partition(".")[0]))) + packer.flush()
        return web.Response(body=body, headers={"Content-Encoding": "deflate"})

    def _gzip_bomb(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(body=self.bomb, headers={"Content-Encoding": "gzip"})

    def _brotli(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(body=b"\x0b\x02\x80", headers={"Content-Encoding": "br"})

    def _bomb_png(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(body=bomb(), content_type="image/png")

    def _huge_header(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(body=picture(0), headers={"X-Long": "x" * 1_000_000})

    def _many_headers(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(body=picture(0), headers={f"X-{i}": "x" for i in range(20_000)})

    async def _garbage(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        request.transport.write(b"\x16\x03\x01 this is no HTTP at all\r\n\r\n")
        await asyncio.sleep(0.01)
        request.transport and request.transport.close()
        return web.Response()

    async def _raw(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        request.transport.write(RAW[int(rest[0])])
        await asyncio.sleep(0.01)
        request.transport and request.transport.close()
        return web.Response()

    def _empty(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(content_type="image/jpeg")

    def _no_content(self, request: web.Request, rest: list[str]) -> web.Response:
        return web.Response(status=204)

    async def _long(self, request: web.Request, rest: list[str]) -> web.StreamResponse:
        length = int(rest[0])
        response = await self._begin(request, length)
        with contextlib.suppress(ConnectionError):
            for start in range(0, length, 65536):
                await response.write(b"\xff" * min(65536, length - start))
        return response

    async def _begin(self, request: web.Request, length: int | None = None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        response.content_length = length
        await response.prepare(request)
        return response

    async def _write(self, request: web.Request, data: bytes, length: int) -> web.StreamResponse:
        response = await self._begin(request, length)
        await response.write(data)
        request.transport.close()
        return response


def _certificate(folder: str) -> ssl.SSLContext | None:
    """A certificate that nobody signed but itself; None where openssl is missing."""
    if not shutil.which("openssl"):
        return None
    command = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "3650",
    ]
    names = ["-subj", f"/CN={TLS_NAME}", "-addext", f"subjectAltName=DNS:{TLS_NAME}"]
    files = ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/certificate.pem"]
    subprocess.run(["openssl", *command, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/certificate.pem", f"{folder}/key.pem")
    return context


async def _serve(images: int, size: int, folder: str) -> None:
    for number in range(images):
        picture(number, "jpg", size)
    server = _Server()
    runner = web.ServerRunner(web.Server(server.answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()

    async def listen(address: str, tls: ssl.SSLContext | None = None) -> int:
        site = web.TCPSite(runner, address, 0, ssl_context=tls, backlog=1024)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    port = await listen("127.0.0.1")
    tls = _certificate(folder)
    tls_port = await listen("127.0.0.1", tls) if tls else 0
    forbidden = {}
    # The server's own port, too, for the spellings in which only the address is another one.
    for address, at in (("127.0.0.2", port), ("127.0.0.2", 0), ("::1", port), ("::1", 0)):

        def count(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str = address
        ) -> None:
            server.seen.forbidden[address] += 1
            writer.close()

        with contextlib.suppress(OSError):  # a machine without IPv6
            listener = await asyncio.start_server(count, address, at)
            forbidden[address] = listener.sockets[0].getsockname()[1]
            server.__dict__.setdefault("listeners", []).append(listener)
    ready = {"port": port, "tls_port": tls_port, "forbidden": forbidden}
    print(json.dumps(ready | {"certificate": f"{folder}/certificate.pem"}), flush=True)

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), folder))
