"""A real S3 server on loopback, and a proxy before it that answers badly on purpose."""

import asyncio
import hashlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
import botocore.session
from aiohttp import web
from moto.server import ThreadedMotoServer
from yarl import URL

FAULTS = ("500", "503", "reset", "lost", "cut", "slow")
"""InternalError; SlowDown; a connection closed before the server was asked, or after it did what it was
asked; half of an answer; an answer that takes its time."""

BUCKET = "bucket"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAQ7EXAMPLE4LOOPBK",
    "AWS_SECRET_ACCESS_KEY": "hush+Mh9vT2n/EXAMPLEKEY0loopback7Zq",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEXAMPLEloopback//token=",
}
_SLOW_SEC = 0.2
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_XML = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
}


@dataclass
class FaultyS3:
    """The store as tests see it.

    rate: share of the requests that go wrong, drawn by (seed, method, path, how often it was asked
    before). only: method -> the faults it meets; all by default. One fault more, `short`, is half of
    an answer that says it is whole. `met` counts what was answered.
    """

    address: str = ""  # of the proxy
    direct: str = ""  # of the server behind it
    rate: float = 0.0
    seed: int = 0
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    met: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._asked: Counter[tuple[str, str]] = Counter()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use the store through the proxy."""
        return SECRETS | {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> object:
        """botocore's own, straight to the server."""
        session = botocore.session.Session()
        session.set_credentials("direct", "direct")
        return session.create_client("s3", region_name="us-east-1", endpoint_url=self.direct)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Key -> content of everything that is stored below a prefix."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {k: client.get_object(Bucket=BUCKET, Key=k)["Body"].read() for k in sorted(keys)}

    def unfinished(self) -> list[str]:
        """Keys of multipart uploads that were begun, and neither completed nor aborted."""
        found = self.client().list_multipart_uploads(Bucket=BUCKET)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    def fault(self, method: str, path: str) -> str:
        """What happens to the next request of this kind, "" where nothing does."""
        times = self._asked[method, path]
        self._asked[method, path] += 1
        drawn = hashlib.sha256(f"{self.seed}/{method}/{path}/{times}".encode()).digest()
        if int.from_bytes(drawn[:4], "big") >= self.rate * 2**32:
            return ""
        faults = self.only.get(method, ()) if self.only else FAULTS
        return faults[drawn[4] % len(faults)] if faults else ""


@contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    """An S3 server with an empty bucket, and the proxy, until the block ends."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = FaultyS3(direct=f"http://{host}:{port}")
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(store, ready, stop)))
    thread.start()
    try:
        assert ready.wait(60)
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
        server.stop()


async def _serve(store: FaultyS3, ready: threading.Event, stop: asyncio.Event) -> None:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        application = web.Application(client_max_size=1 << 30)

        async def answer(request: web.Request) -> web.StreamResponse:
            return await _answer(store, session, request)

        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        store.address = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()


async def _answer(
    store: FaultyS3, session: aiohttp.ClientSession, request: web.Request
) -> web.StreamResponse:
    body = await request.read()
    fault = store.fault(request.method, request.path)
    store.met[fault or "none"] += 1
    if fault in _XML:
        status, code, message = _XML[fault]
        return web.Response(status=status, text=_ERROR.format(code, message))
    if fault == "reset":
        return _abort(request)
    headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
    url = URL(store.direct + request.raw_path, encoded=True)
    async with session.request(
        request.method, url, headers=headers, data=body, allow_redirects=False
    ) as found:
        data = await found.read()
        kept = {k: v for k, v in found.headers.items() if k.lower() not in _HOP_BY_HOP}
        if request.method == "HEAD" and "Content-Length" in found.headers:
            kept["Content-Length"] = found.headers["Content-Length"]
    if fault == "slow":
        await asyncio.sleep(_SLOW_SEC)
    if fault == "lost" or (fault == "cut" and len(data) < 2):
        return _abort(request)
    if fault == "short":
        return web.Response(status=found.status, headers=kept, body=data[: len(data) // 2])
    if fault == "cut":
        response = web.StreamResponse(status=found.status, headers=kept)
        response.content_length = len(data)
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        return _abort(request, response)
    return web.Response(status=found.status, headers=kept, body=data)


def _abort(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()
