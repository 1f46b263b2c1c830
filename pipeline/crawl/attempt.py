"""One URL on its way: each step is one request, and tells what comes next."""

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from yarl import URL

from pipeline.crawl import exchange, urls
from pipeline.crawl.body import read_body
from pipeline.crawl.budget import Room
from pipeline.crawl.directives import TDM_RESERVATION, X_ROBOTS_TAG, opted_out
from pipeline.crawl.reasons import Refused
from pipeline.crawl.settings import FetchSettings

_MAX_BACKOFF_SEC = 60.0


@dataclass(slots=True, eq=False)
class Job:
    """One URL of the list: where it stands, and how much of its time is spent."""

    index: int
    listed: URL
    url: URL  # of the next request: the listed one, or where it was redirected to
    tries: int = 0
    hops: int = 0
    spent_sec: float = 0.0
    status: int = 0
    content_type: str = ""

    @property
    def host(self) -> str:
        """Whose turn the next request waits for."""
        return self.url.raw_host or ""

    def restart(self) -> None:
        """Go back to the listed URL: redirects are often good for one time only."""
        self.url, self.hops = self.listed, 0
        self.status, self.content_type = 0, ""


async def step(
    job: Job,
    session: aiohttp.ClientSession,
    settings: FetchSettings,
    room: Room,
    *,
    keep_open: bool,
) -> bytes | None:
    """Make a job's next request; return its body, or None where it is redirected.

    Raises Refused, among others with `deadline` when the job's time is spent. What the answer says
    about its use is looked at before its body is read.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    if not job.hops:
        job.tries += 1
    clock = asyncio.timeout(max(0.0, settings.timeout_sec - job.spent_sec))
    try:
        async with clock, exchange.get(session, job.url, keep_open=keep_open) as response:
            job.status, job.content_type = response.status, exchange.content_type(response)
            if response.status < 400 and settings.respect_directives:
                _require_consent(response, settings)
            if response.status in exchange.REDIRECTS:
                _redirect(job, response.headers.get("Location", ""), settings)
                return None
            exchange.require_body(response)
            with room.body(job.host) as body:
                return await read_body(response, settings.max_bytes, body.grow)
    except TimeoutError:
        raise Refused("deadline", f"not done in {settings.timeout_sec:g} s") from None
    finally:
        job.spent_sec += loop.time() - started


def backoff(job: Job, settings: FetchSettings) -> float:
    """Return the seconds before a job's next try: doubled each time, spread by the URL's hash."""
    text = f"{job.listed}\n{job.tries}".encode()
    spread = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest()) / 2**32
    pause = settings.backoff_sec * 2 ** (job.tries - 1) * (0.5 + spread)
    return min(pause, _MAX_BACKOFF_SEC)


def _require_consent(response: aiohttp.ClientResponse, settings: FetchSettings) -> None:
    directive = opted_out(
        response.headers.getall(X_ROBOTS_TAG, ()),
        response.headers.getall(TDM_RESERVATION, ()),
        names=settings.crawler_names,
        opt_outs=settings.opt_outs,
        now=datetime.now(UTC),
    )
    if directive:
        raise Refused("opted_out", f"the server opts out: {directive}")


def _redirect(job: Job, location: str, settings: FetchSettings) -> None:
    """Point a job to where it is redirected; raises Refused."""
    try:
        target = urls.follow(job.url, location)
    except Refused as failure:
        raise Refused(failure.reason, f"redirect: {failure.message}") from None
    if job.hops == settings.max_redirects:
        raise Refused("too_many_redirects", f"more than {settings.max_redirects} redirects")
    if (job.url.scheme, target.scheme) == ("https", "http") and not settings.allow_downgrade:
        # Nothing vouches for what comes over http, and the list asked for what is vouched for.
        raise Refused("downgrade", "redirect from https to http")
    job.url = target
    job.hops += 1
