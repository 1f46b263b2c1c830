"""A server on loopback that speaks OpenAI's chat completions, counts what it is asked, and errs to order."""

import asyncio
import base64
import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

KEY = "sk-very-secret-1234567890"
MODEL = "org/model-1"
FAULTS = ("429", "500", "503", "slow", "cut", "malformed", "html", "endless", "doubled")
"""Faults that pass: with another request the same question is answered. `hang` does not end."""
IMAGE_TOKENS = 17


@dataclass(frozen=True)
class Asked:
    """One request as the server understood it."""

    prompt: str
    system: str
    image: bytes | None
    body: dict
    key: str  # of the Authorization header

    @property
    def name(self) -> str:
        """Names the question: of the image and the prompt."""
        return hashlib.sha256((self.image or b"") + self.prompt.encode()).hexdigest()[:12]


def describe(asked: Asked) -> str:
    """An answer that tells which question it belongs to."""
    return f"a picture called {asked.name} in front of a wall"


def understood(body: dict, key: str = "") -> Asked:
    """The parts of a request; raises where it is not one that a server would take."""
    *system, user = body["messages"]
    parts = user["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    image = None
    for part in parts:
        if part["type"] == "image_url":
            head, data = part["image_url"]["url"].split(",", 1)
            assert head in ("data:image/jpeg;base64", "data:image/png;base64")
            image = base64.b64decode(data, validate=True)
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return Asked(text, "".join(m["content"] for m in system), image, body, key)


class ChatServer:
    """Serves while it is entered; `stop` and `start` take it away and bring it back.

    answer: what is said to a request. fault: by the number of a request, how to err: a status, one
    of FAULTS, a whole body, or "" for not at all. key: what it wants to be shown. blind: drops
    images without a word, as some servers do. usage: whether it reports tokens.
    """

    def __init__(
        self,
        answer: Callable[[Asked], str] = describe,
        *,
        fault: Callable[[int], object] = lambda number: "",
        delay: float = 0.0,
        key: str = "",
        blind: bool = False,
        usage: bool = True,
        retry_after: str = "0.01",
    ) -> None:
        self.answer, self.fault, self.delay = answer, fault, delay
        self.key, self.blind, self.usage, self.retry_after = key, blind, usage, retry_after
        self.requests: Counter[str] = Counter()  # question -> requests
        self.answered: Counter[str] = Counter()  # question -> answers that were sent whole
        self.asked: list[Asked] = []
        self.statuses: Counter[int] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def name(self) -> str:
        """The name of its model for CAPTIONER."""
        return f"openai:{MODEL}@{self.url}"

    def __enter__(self) -> "ChatServer":
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def stop(self) -> None:
        """Refuses connections from now on, and cuts those that are open."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner:
            for connection in list(runner.server.connections):
                if connection.transport:
                    connection.transport.abort()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            response = await self._respond(request)
            self.statuses[response.status] += 1
            return response
        finally:
            self.in_flight -= 1

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = understood(json.loads(await request.read()), key)
        number = len(self.asked)
        self.asked.append(asked)
        self.requests[asked.name] += 1
        if self.key and key != self.key:
            return web.json_response({"error": {"message": f"wrong key {key}"}}, status=401)
        await asyncio.sleep(self.delay)
        fault = self.fault(number)
        body = self._completion(asked)
        if isinstance(fault, dict):
            return web.json_response(**{"status": 200} | fault)
        if fault and str(fault).isdigit():
            headers = {"Retry-After": self.retry_after} if str(fault) in ("429", "503") else {}
            error = {"error": {"message": "not now", "code": str(fault)}}
            return web.json_response(error, status=int(str(fault)), headers=headers)
        if fault == "html":
            return web.Response(text="<html><body>502</body></html>", content_type="text/html")
        if fault == "doubled":
            return web.Response(body=body + body, content_type="application/json")
        if fault == "malformed":
            return web.Response(body=body[: len(body) // 2], content_type="application/json")
        if fault in ("cut", "endless", "hang"):
            return await self._broken(str(fault), request, body)
        if fault == "slow":
            await asyncio.sleep(0.05)
        self.answered[asked.name] += 1
        return web.Response(body=body, content_type="application/json")

    async def _broken(self, fault: str, request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = None if fault == "endless" else len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if fault == "hang":
            await asyncio.sleep(30)
        with contextlib.suppress(ConnectionError):
            while fault == "endless":
                await response.write(b" " * 65536)
        if request.transport:
            request.transport.abort()
        return response

    def _completion(self, asked: Asked) -> bytes:
        text = self.answer(asked)
        prompt = len(f"{asked.system} {asked.prompt}".split()) + 5
        prompt += IMAGE_TOKENS if asked.image and not self.blind else 0
        written = len(text.split())
        limit = asked.body.get("max_tokens", 1 << 30)
        cut = written > limit
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": asked.body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": " ".join(text.split()[:limit]) if cut else text,
                    },
                    "finish_reason": "length" if cut else "stop",
                }
            ],
        }
        if self.usage:
            tokens = min(written, limit)
            completion["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": tokens,
                "total_tokens": prompt + tokens,
            }
        return json.dumps(completion).encode()
