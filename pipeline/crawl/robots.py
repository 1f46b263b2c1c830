"""What robots.txt allows us: one fetch per origin, remembered (RFC 9309)."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from yarl import URL

from pipeline.crawl import exchange, urls
from pipeline.crawl.body import read_prefix
from pipeline.crawl.reasons import Refused
from pipeline.crawl.robots_rules import MAX_BYTES, Rules
from pipeline.crawl.settings import FetchSettings

KEPT_SEC = 24 * 3600.0  # RFC 9309 2.4
FAILURE_KEPT_SEC = 300.0
MAX_ORIGINS = 10_000
MAX_KEPT_BYTES = 16 * 2**20
"""Text of all files kept; parsed they take about ten times that."""
_REDIRECTS = 5  # RFC 9309 2.3.1.2

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    rules: Rules | None = None  # None: no rules, all is allowed
    failure: Refused | None = None
    num_bytes: int = 0


class Robots:
    """The robots.txt files of all origins met so far, least recently used ones forgotten first."""

    def __init__(self, session: aiohttp.ClientSession, settings: FetchSettings) -> None:
        self._session, self._settings = session, settings
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task] = {}
        self._num_bytes = 0

    async def delay_for(self, url: URL) -> float:
        """Return the crawl-delay that an origin asks for, once its rules allow this URL.

        Raises Refused: robots_denied, robots_unreachable where the rules cannot be had, and what
        stops every request to this origin (its name, its address, its connection, TLS).
        """
        known = await self._rules(url)
        if known.failure:
            failure = known.failure
            # It was tried again already, for all URLs of this origin together.
            raise Refused(failure.reason, failure.message)
        if known.rules is None:
            return 0.0
        if not known.rules.allows(str(url)):
            raise Refused("robots_denied", "robots.txt does not allow this URL")
        return min(known.rules.delay_sec, self._settings.max_crawl_delay_sec)

    async def close(self) -> None:
        """End the fetches under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _rules(self, url: URL) -> _Known:
        origin = urls.origin(url)
        known = self._known.get(origin)
        if known and asyncio.get_running_loop().time() < known.until:
            self._known.move_to_end(origin)
            return known
        if origin not in self._asking:
            self._asking[origin] = asyncio.ensure_future(self._ask(origin))
        return await asyncio.shield(self._asking[origin])

    async def _ask(self, origin: str) -> _Known:
        loop = asyncio.get_running_loop()
        try:
            text = await self._fetch(URL(origin) / "robots.txt")
            known = _Known(loop.time() + KEPT_SEC)
            if text:
                # Parsing the longest takes a good part of a second.
                names = self._settings.crawler_names
                rules = await loop.run_in_executor(None, Rules, text, names)
                known = _Known(known.until, rules, None, len(text))
        except Refused as failure:
            kept = Refused(failure.reason, failure.message)  # without what its traceback holds
            known = _Known(loop.time() + FAILURE_KEPT_SEC, failure=kept)
        finally:
            self._asking.pop(origin, None)
        self._keep(origin, known)
        return known

    def _keep(self, origin: str, known: _Known) -> None:
        before = self._known.pop(origin, None)
        self._known[origin] = known
        self._num_bytes += known.num_bytes - (before.num_bytes if before else 0)
        while len(self._known) > MAX_ORIGINS or (
            self._num_bytes > MAX_KEPT_BYTES and len(self._known) > 1
        ):
            _, old = self._known.popitem(last=False)
            self._num_bytes -= old.num_bytes

    async def _fetch(self, url: URL) -> bytes:
        """Return the rules, or b"" where there are none; raises Refused."""
        settings = self._settings
        for attempt in range(settings.retries + 1):
            try:
                async with asyncio.timeout(settings.timeout_sec):
                    return await self._hops(url)
            except TimeoutError:
                # All of one URL's patience went into it; a second try would cost the same.
                raise Refused("robots_unreachable", "robots.txt: no answer in time") from None
            except Refused as failure:
                if not failure.again or attempt == settings.retries:
                    raise
                pause = settings.backoff_sec * 2**attempt
                if failure.retry_after is not None:
                    pause = max(pause, failure.retry_after)
                if pause > settings.timeout_sec:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _hops(self, url: URL) -> bytes:
        for hop in range(_REDIRECTS + 1):
            try:
                async with exchange.get(self._session, url) as response:
                    if response.status in exchange.REDIRECTS:
                        location = response.headers.get("Location", "")
                    elif 400 <= response.status < 500 and response.status != 429:
                        return b""  # "unavailable": RFC 9309 2.3.1.3
                    else:
                        exchange.require_body(response)
                        return await read_prefix(response, MAX_BYTES)
                url = urls.follow(url, location)
            except Refused as failure:
                if hop == 0 and not failure.status and failure.reason in _ORIGIN_IS_OUT:
                    raise
                raise Refused(
                    "robots_unreachable",
                    f"robots.txt: {failure.message}",
                    again=failure.again,
                    retry_after=failure.retry_after,
                ) from failure
        return b""  # too many redirects are as good as none: RFC 9309 2.3.1.2


_ORIGIN_IS_OUT = {
    *("dns", "no_such_host", "connect", "timeout", "tls", "private_address", "bad_response"),
}
