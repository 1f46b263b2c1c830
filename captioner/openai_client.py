"""Asks any server that speaks OpenAI's chat completions: many requests in flight, retried, bounded."""

import asyncio
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import aiohttp

from captioner import completions
from captioner.chat import Answer, Question, Usage
from pipeline.errors import UserError

ATTEMPTS = 8
"""Tries of one question before it is given up; one that timed out counts twice."""
FIRST_ATTEMPTS = 4
"""Tries at a server that has never answered before it is taken to be down."""
MAX_BARREN = 8
"""Questions given up, with no good answer between them, before it is the server that is broken."""
MAX_RESPONSE_BYTES = 1 << 20
LONGEST_PAUSE_SEC = 30.0  # between two tries
LONGEST_RETRY_AFTER_SEC = 600.0
_CONNECT_SEC = 10.0
_MAX_REASON = 200

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({401, 402, 403, 404, 405})

_GO_ON = "run the same command again: no answer is lost"

Arrived = Callable[[int, Answer], None]


@dataclass
class _Trouble(Exception):
    """A try that may be repeated."""

    reason: str
    retry_after: float = 0.0
    is_unreachable: bool = False  # not even a connection
    cost: int = 1


class OpenAIClient:
    """One server, one model. Requests run in a thread of their own; `ask` may be called from many.

    in_flight: requests at once, over all callers, who wait. deadline_sec: for one request, from
    its connection to its last byte. The key is taken from OPENAI_API_KEY and sent to this server
    alone: redirects are not followed, and proxies of the environment are not used.
    """

    def __init__(
        self,
        model: str,
        url: str,
        *,
        in_flight: int = 64,
        deadline_sec: float = 120.0,
        pause_sec: float = 0.5,
        usage: Usage | None = None,
    ) -> None:
        self.name = f"openai:{model}"
        self.usage = usage or Usage()  # of which it counts the retries
        self._model, self._url = model, url
        self._in_flight, self._deadline_sec = in_flight, deadline_sec
        self._pause_sec = pause_sec  # the first pause is up to this long, each later one twice that
        self._key = _key()
        self._heard: float | None = None  # when the server last answered anything at all
        self._barren = 0
        self._changes: frozenset[str] = frozenset()  # how this model wants to be asked otherwise
        self._slots = asyncio.Semaphore(in_flight)
        self._loop = asyncio.new_event_loop()
        opened: Future[aiohttp.ClientSession] = Future()
        serve = (self._loop, _open(self._key, deadline_sec), opened)
        thread = threading.Thread(target=_serve, args=serve, name="openai", daemon=True)
        thread.start()
        self._session = opened.result()
        # Also where nobody closes it: at the latest when the interpreter exits.
        self._finalizer = weakref.finalize(self, _stop, self._loop, thread)

    def ask(self, questions: Sequence[Question], arrived: Arrived | None = None) -> list[Answer]:
        """An answer for every question, in order; thread-safe.

        arrived: called with place and answer as each comes, in the client's thread; what it raises
        ends the call. Raises UserError where the server is down, broken, or refuses access.
        """
        work = self._ask(questions, arrived)
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise UserError(f"{self.name} was closed", "open it again") from None
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the requests in flight; their callers get an exception."""
        self._finalizer()

    async def _ask(self, questions: Sequence[Question], arrived: Arrived | None) -> list[Answer]:
        answers: dict[int, Answer] = {}
        places = iter(range(len(questions)))

        async def work() -> None:
            for place in places:
                async with self._slots:
                    answer = await self._answer(questions[place])
                answers[place] = answer
                if arrived:
                    arrived(place, answer)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._in_flight, len(questions))):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return [answers[place] for place in range(len(questions))]

    async def _answer(self, question: Question) -> Answer:
        """Tries until there is an answer, or no hope of one; raises UserError where for all."""
        spent = tries = 0
        away_since: float | None = None
        while True:
            try:
                answer = await self._attempt(question)
            except _Trouble as trouble:
                tries += 1
                if trouble.is_unreachable:  # a server may restart, which takes longer than tries do
                    away_since = away_since or time.monotonic()
                    self._require_alive(trouble, tries, away_since)
                    is_hopeless = time.monotonic() - away_since > self._deadline_sec
                else:
                    away_since, spent = None, spent + trouble.cost
                    is_hopeless = spent >= ATTEMPTS
                if is_hopeless:
                    return self._given_up(trouble)
                self.usage.retries += 1
                await asyncio.sleep(self._pause(trouble, tries))
            else:
                self._barren = 0
                return answer

    async def _attempt(self, question: Question) -> Answer:
        """One request, or as many as it takes to learn how this model wants to be asked.

        Raises _Trouble for what may pass, UserError for what will not.
        """
        while True:
            made = self._changes  # others may learn meanwhile
            body = completions.request_body(question, self._model, made)
            status, retry_after, text = await self._post(body)
            wanted = completions.change_wanted(question, status, text)
            if not wanted or wanted in made:
                return self._judge(status, retry_after, text)
            self._changes |= {wanted}
            self.usage.retries += 1

    async def _post(self, body: bytes) -> tuple[int, str, bytes]:
        """Status, Retry-After and body of a response; raises _Trouble where none comes."""
        try:
            async with self._session.post(
                f"{self._url}/chat/completions",
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                self._heard = time.monotonic()
                text = await _read(response)
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _Trouble("no connection in time", is_unreachable=True) from None
            raise _Trouble(f"no answer within {self._deadline_sec:g} s", cost=2) from None
        except aiohttp.ClientConnectorError as error:
            raise _Trouble(self._line(str(error)), is_unreachable=True) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            line = self._line(f"connection lost: {type(error).__name__} {error}")
            raise _Trouble(line) from None
        return response.status, response.headers.get("Retry-After", ""), text

    def _judge(self, status: int, retry_after: str, text: bytes) -> Answer:
        """What a response means."""
        body = completions.parse(text)
        if status == 200 and completions.is_completion(body):
            return completions.read_answer(body)
        said = completions.error_message(body, text)
        reason = self._line(f"status {status}: {said}" if said else f"status {status}")
        broke = status == 429 and completions.is_out_of_money(body)
        if status in _AGAIN and not broke:
            raise _Trouble(reason, retry_after=self._wait_asked(retry_after))
        if broke or status in _REFUSED or 300 <= status < 400:
            raise self._refused(status, reason)
        if 400 <= status < 500:
            return Answer("", "failed", reason)
        raise _Trouble(reason if said or status != 200 else "an answer that is no chat completion")

    def _refused(self, status: int, reason: str) -> UserError:
        has_key = "is set" if self._key else "is not set"
        key = f"give the right key in OPENAI_API_KEY, which {has_key}"
        broke = "the account has nothing left: pay, or ask another server"
        remedies = {
            **{401: key, 403: key, 402: broke, 429: broke},
            404: f"does it serve {self._model!r}, and is that its address, which often ends in /v1?",
        }
        return UserError(
            f"the server at {self._url} refuses: {reason}",
            remedies.get(status, "is that its address, up to the part before /chat/completions?"),
        )

    def _require_alive(self, trouble: _Trouble, tries: int, away_since: float) -> None:
        """UserError where nothing has been heard of the server for too long, though it was asked."""
        if self._heard is None:
            is_down = tries >= FIRST_ATTEMPTS
        else:
            silent_since = max(self._heard, away_since)  # nobody may have asked for hours
            is_down = time.monotonic() - silent_since > self._deadline_sec
        if is_down:
            raise UserError(
                f"no server answers at {self._url}: {trouble.reason}",
                f"start it, or mend the address; then {_GO_ON}",
            )

    def _given_up(self, trouble: _Trouble) -> Answer:
        self._barren += 1
        if self._barren >= MAX_BARREN:
            raise UserError(
                f"the server at {self._url} gives no good answer: {trouble.reason}",
                f"mend it, or ask it less at once; then {_GO_ON}",
            )
        return Answer("", "failed", trouble.reason)

    def _pause(self, trouble: _Trouble, tries: int) -> float:
        """Full jitter: anything up to a bound that doubles, after what the server asks for.

        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        most = min(LONGEST_PAUSE_SEC, self._deadline_sec, self._pause_sec * 2 ** (tries - 1))
        return trouble.retry_after + random.uniform(0, most)

    def _wait_asked(self, retry_after: str) -> float:
        seconds = completions.seconds_of(retry_after)
        if seconds > LONGEST_RETRY_AFTER_SEC:
            raise UserError(
                f"the server at {self._url} asks to wait {seconds:.0f} s", f"then {_GO_ON}"
            )
        return seconds

    def _line(self, text: str) -> str:
        """Text of a stranger as one short line, and never the key."""
        text = text.replace(self._key, "***") if self._key else text
        return completions.one_line(text, _MAX_REASON)


def _key() -> str:
    """The key of the environment; UserError, which does not show it, where no header can hold it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()  # `$(cat file)` strips, other ways do not
    if not key.isprintable():
        raise UserError(
            "OPENAI_API_KEY holds a control character", "give the key alone, on a single line"
        )
    return key


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, as long as it is not too much."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_RESPONSE_BYTES:
            raise _Trouble(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


async def _open(key: str, deadline_sec: float) -> aiohttp.ClientSession:
    headers = {"Accept-Encoding": "identity", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # the client's slots are the limit
        timeout=aiohttp.ClientTimeout(
            total=deadline_sec, sock_connect=min(_CONNECT_SEC, deadline_sec)
        ),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # nothing compressed is asked for, and a bomb stays small
        trust_env=False,
    )


def _serve(
    loop: asyncio.AbstractEventLoop,
    opening: Coroutine[None, None, aiohttp.ClientSession],
    opened: "Future[aiohttp.ClientSession]",
) -> None:
    """The life of a client's thread; it holds no client, so that those can be collected."""
    session = loop.run_until_complete(opening)
    opened.set_result(session)
    loop.run_forever()
    loop.run_until_complete(_end(session))
    loop.close()


async def _end(session: aiohttp.ClientSession) -> None:
    asking = asyncio.all_tasks() - {asyncio.current_task()}
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await session.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join()
