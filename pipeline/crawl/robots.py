"""What robots.txt allows us: one fetch per origin, remembered (RFC 9309)."""

import asyncio
from dataclasses import dataclass

import aiohttp
from yarl import URL

from pipeline.crawl import exchange, urls
from pipeline.crawl.answers import Answer, Answers
from pipeline.crawl.body import read_prefix
from pipeline.crawl.reasons import Refused
from pipeline.crawl.robots_rules import MAX_BYTES, Rules
from pipeline.crawl.settings import FetchSettings

KEPT_SEC = 24 * 3600.0  # RFC 9309 2.4
FAILURE_KEPT_SEC = 300.0
MAX_KEPT_BYTES = 32 * 2**20
"""Memory of all rules that are kept, each file's own estimate."""
_ENTRY_BYTES = 600  # of an origin without rules
_REDIRECTS = 5  # RFC 9309 2.3.1.2


@dataclass(frozen=True, slots=True)
class _Known:
    rules: Rules | None = None  # None: no rules, all is allowed
    failure: Refused | None = None
    tries: int = 0  # that have failed until now, and are to be followed by another ...
    pause_sec: float = 0.0  # ... after this


class Later(Exception):
    """The rules of a host cannot be had just now; `seconds`: after which to ask for them again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Robots:
    """The robots.txt files of all origins met so far, least recently used ones forgotten first."""

    def __init__(self, session: aiohttp.ClientSession, settings: FetchSettings) -> None:
        self._session, self._settings = session, settings
        self._origins: Answers[_Known] = Answers(self._ask, MAX_KEPT_BYTES)

    async def delay_for(self, url: URL) -> float:
        """Return the crawl-delay that an origin asks for, once its rules allow this URL.

        Raises Refused: robots_denied, robots_unreachable where the rules cannot be had, and what
        stops every request to this origin (its name, its address, its connection, TLS). Raises
        Later where its host should be left alone for a while, and then be asked again.
        """
        known = await self._origins.get(urls.origin(url))
        if known.tries:
            raise Later(known.pause_sec)
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
        await self._origins.close()

    async def _ask(
        self, origin: str, before: _Known | None, begun: asyncio.Event
    ) -> Answer[_Known]:
        begun.set()
        tries = before.tries + 1 if before else 1
        try:
            text = await self._fetch(URL(origin) / "robots.txt")
        except Refused as failure:
            pause = self._pause(failure, tries)
            if pause is not None:
                return Answer(_Known(tries=tries, pause_sec=pause), 0.0, _ENTRY_BYTES)
            kept = Refused(failure.reason, failure.message)  # without what its traceback holds
            return Answer(_Known(failure=kept), FAILURE_KEPT_SEC, _ENTRY_BYTES)
        if not text:
            return Answer(_Known(), KEPT_SEC, _ENTRY_BYTES)
        # Parsing the longest takes a good part of a second.
        loop, names = asyncio.get_running_loop(), self._settings.crawler_names
        rules = await loop.run_in_executor(None, Rules, text, names)
        return Answer(_Known(rules), KEPT_SEC, _ENTRY_BYTES + rules.num_bytes)

    def _pause(self, failure: Refused, tries: int) -> float | None:
        """Return the seconds before the next try; None where there is none."""
        settings = self._settings
        pause = settings.backoff_sec * 2 ** (tries - 1)
        if failure.retry_after is not None:
            pause = max(pause, failure.retry_after)
        is_worth_it = failure.again and tries <= settings.retries and pause <= settings.timeout_sec
        return pause if is_worth_it else None

    async def _fetch(self, url: URL) -> bytes:
        """Return the rules, or b"" where there are none; raises Refused."""
        try:
            async with asyncio.timeout(self._settings.timeout_sec):
                return await self._hops(url)
        except TimeoutError:
            # All of one URL's patience went into it; a second try would cost the same.
            raise Refused("robots_unreachable", "robots.txt: no answer in time") from None

    async def _hops(self, url: URL) -> bytes:
        for hop in range(_REDIRECTS + 1):
            try:
                async with exchange.get(self._session, url) as response:
                    if response.status in exchange.REDIRECTS:
                        location = response.headers.get("Location", "")
                    elif response.status in (204, 205):
                        return b""
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


_ORIGIN_IS_OUT = {"dns", "no_such_host", "connect", "timeout", "tls", "private_address"}
