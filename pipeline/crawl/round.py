"""One list of URLs in the loop's thread: a window of it is known, each host has its turn."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import aiohttp

from pipeline.crawl import urls as addresses
from pipeline.crawl.attempt import Job, backoff, step
from pipeline.crawl.budget import ByteBudget, Room
from pipeline.crawl.courtesy import Courtesy
from pipeline.crawl.reasons import OK, Refused
from pipeline.crawl.resolver import Resolver
from pipeline.crawl.robots import Later, Robots
from pipeline.crawl.settings import FetchSettings

_SLICE_SEC = 0.01  # of reading URLs, before answers get their turn
_RESULT_BYTES = 512  # of a result without a body


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of one URL: its bytes, or a reason out of `reasons.REASONS`."""

    data: bytes
    reason: str  # "" where there are bytes
    message: str  # one line for people, without secrets; the same for the same answers
    http_status: int  # of the last answer; 0: there was none
    attempts: int  # tries of this URL; 0: it was never asked for
    content_type: str  # as the server says, not to be believed

    @property
    def cost(self) -> int:
        """Bytes that it takes of the budget until it is consumed."""
        return len(self.data) + _RESULT_BYTES


@dataclass(frozen=True, slots=True)
class Means:
    """What outlives a list: connections, and what is known of hosts and origins."""

    settings: FetchSettings
    session: aiohttp.ClientSession
    names: Resolver
    robots: Robots
    courtesy: Courtesy[Job]


class Round:
    """The fetching of one list; `put` is called with each result, once per index."""

    def __init__(
        self, means: Means, budget: ByteBudget, put: Callable[[tuple[int, Fetched]], None]
    ) -> None:
        self._settings, self._session, self._names = means.settings, means.session, means.names
        self._robots, self._courtesy = means.robots, means.courtesy
        self._budget, self._put = budget, put
        self._room = Room.beside(budget, means.settings.concurrency)
        self._turns: dict[asyncio.Task, tuple[str, Job]] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self, urls: Iterable[tuple[int, str]], deadline_sec: float) -> None:
        """Fetch all; raises what `urls` raises."""
        listed = iter(urls)
        clock = asyncio.timeout(deadline_sec)
        try:
            async with clock:
                await self._dispatch(listed)
        except TimeoutError:
            if not clock.expired():
                raise
        finally:
            turns = dict(self._turns)
            for task in turns:
                task.cancel()
            await asyncio.gather(*turns, return_exceptions=True)
            late = [job for task, (_, job) in turns.items() if task.cancelled()]
            self._courtesy.drain(late.append)
        for job in late:
            self._end(job.index, _TOO_LATE, job)
        for index, _ in listed:
            while self._budget.is_full:
                await self._budget.wait()
            self._end(index, _TOO_LATE)

    async def _dispatch(self, listed: Iterator[tuple[int, str]]) -> None:
        """Start requests as turns come, until nothing is left."""
        is_more = True
        while True:
            self._changed.clear()
            is_more = is_more and self._look_ahead(listed)
            while len(self._turns) < self._settings.concurrency and not self._budget.is_full:
                turn = self._courtesy.take(self._loop.time())
                if turn is None:
                    break
                task = self._loop.create_task(self._work(*turn))
                self._turns[task] = turn
                task.add_done_callback(self._done)
            if self._budget.is_full:
                await self._budget.wait()
            elif is_more and len(self._courtesy) < self._settings.look_ahead:
                await asyncio.sleep(0)
            elif self._turns or len(self._courtesy):
                await self._wait()
            elif not is_more:
                return

    async def _wait(self) -> None:
        """Return when a request has ended, or when a turn has come."""
        at = self._courtesy.next_at()
        is_idle = len(self._turns) < self._settings.concurrency
        alarm = self._loop.call_at(at, self._changed.set) if at is not None and is_idle else None
        await self._changed.wait()
        if alarm:
            alarm.cancel()

    def _done(self, task: asyncio.Task) -> None:
        host, _ = self._turns.pop(task)
        self._courtesy.done(host)
        self._changed.set()

    def _look_ahead(self, listed: Iterator[tuple[int, str]]) -> bool:
        """Read on in the list; return whether there may be more of it."""
        until = self._loop.time() + _SLICE_SEC
        while self._loop.time() < until:
            if len(self._courtesy) >= self._settings.look_ahead or self._budget.is_full:
                return True
            entry = next(listed, None)
            if entry is None:
                return False
            index, text = entry
            try:
                url = addresses.parse(text)
            except Refused as failure:
                self._end(index, failure)
            else:
                job = Job(index, url, url)
                self._courtesy.add(job.host, job)
        return True

    async def _work(self, host: str, job: Job) -> None:
        """Make one request of a job; then it is ended, or put back for its next."""
        try:
            body = await self._step(host, job)
        except Later as later:
            self._courtesy.pause(host, self._loop.time(), later.seconds)
            self._courtesy.add(host, job, first=True)
        except Refused as failure:
            self._fail(host, job, failure)
        except Exception as error:  # a server may yet find a way that nobody thought of
            self._end(job.index, Refused("internal", type(error).__name__), job)
        else:
            self._courtesy.calm(host)
            if body is None:
                self._courtesy.add(job.host, job, first=True)
            else:
                fetched = Fetched(body, OK, "", job.status, job.tries, job.content_type)
                self._finish(job.index, fetched)

    async def _step(self, host: str, job: Job) -> bytes | None:
        if self._courtesy.is_closed(host):
            raise Refused("host_paused", "the host asked for a long pause")
        await self._names.admit(host)
        if self._settings.robots:
            self._courtesy.meet(host, await self._robots.delay_for(job.url))
        keep_open = self._courtesy.has_waiting(host)
        return await step(job, self._session, self._settings, self._room, keep_open=keep_open)

    def _fail(self, host: str, job: Job, failure: Refused) -> None:
        """Try a job again later if that may help, and if its time allows; or end it."""
        settings = self._settings
        now, pause = self._loop.time(), backoff(job, settings)
        if failure.retry_after is not None:
            pause = max(pause, failure.retry_after)
        if failure.status in (429, 503):
            self._courtesy.pause(host, now, pause)
        has_time = job.spent_sec + pause < settings.timeout_sec
        if not failure.again or job.tries > settings.retries or not has_time:
            self._end(job.index, failure, job)
            return
        job.spent_sec += pause
        job.restart()
        self._courtesy.add(job.host, job, at=now + pause)

    def _end(self, index: int, failure: Refused, job: Job | None = None) -> None:
        status = failure.status or (job.status if job else 0)
        tries, kind = (job.tries, job.content_type) if job else (0, "")
        fetched = Fetched(b"", failure.reason, failure.message, status, tries, kind)
        self._finish(index, fetched)

    def _finish(self, index: int, fetched: Fetched) -> None:
        self._budget.keep(fetched.cost)
        self._put((index, fetched))


_TOO_LATE = Refused("shard_deadline", "the time for all URLs was over")
