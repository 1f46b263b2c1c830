"""Fetches many URLs at once: each ends as bytes or as a reason, none is lost, nothing hangs."""

import asyncio
import threading
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue

from pipeline.crawl.attempt import Job
from pipeline.crawl.budget import ByteBudget
from pipeline.crawl.connection import open_session
from pipeline.crawl.courtesy import Courtesy
from pipeline.crawl.resolver import Lookup, system_lookup
from pipeline.crawl.robots import Robots
from pipeline.crawl.round import Fetched, Means, Round
from pipeline.crawl.settings import FetchSettings

__all__ = ["IN_FLIGHT_BYTES", "Fetched", "Fetcher", "fetch_all"]

IN_FLIGHT_BYTES = 128 * 2**20
"""Bytes of bodies that wait for their consumer, before no more are asked for."""


def fetch_all(
    urls: Iterable[tuple[int, str]],
    settings: FetchSettings,
    *,
    deadline_sec: float,
    in_flight_bytes: int = IN_FLIGHT_BYTES,
) -> Iterator[tuple[int, Fetched]]:
    """Yield (index, what became of its URL) once for every URL, in order of completion.

    As `Fetcher.fetch_all`, with connections, addresses and robots rules for this call alone.
    """
    with Fetcher(settings) as fetcher:
        yield from fetcher.fetch_all(
            urls, deadline_sec=deadline_sec, in_flight_bytes=in_flight_bytes
        )


class Fetcher:
    """Connections, known addresses and robots rules, kept from one list to the next.

    Requests run in a thread of its own until `close`. One list at a time. lookup: what asks for a
    name's addresses, called in threads.
    """

    def __init__(self, settings: FetchSettings, lookup: Lookup = system_lookup) -> None:
        self._loop = asyncio.new_event_loop()
        opened: Future[Means] = Future()
        serve = (self._loop, _open(settings, lookup, opened))
        thread = threading.Thread(target=_serve, args=serve, name="fetch", daemon=True)
        thread.start()
        self._means = opened.result()
        self._finalizer = weakref.finalize(self, _stop, self._loop, thread)
        self._busy = threading.Lock()

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way, and close all connections."""
        self._finalizer()

    def fetch_all(
        self,
        urls: Iterable[tuple[int, str]],
        *,
        deadline_sec: float,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
    ) -> Iterator[tuple[int, Fetched]]:
        """Yield (index, what became of its URL) once for every URL, in order of completion.

        urls: read in this object's thread, as far ahead as `look_ahead` says. deadline_sec: for all
        of them, from the first `next`; what has no answer by then ends as `shard_deadline`.
        in_flight_bytes: of bodies that wait to be taken, beyond which no request is begun; those
        that are being read take up to three times as much. Raises RuntimeError while another list is being fetched, and what `urls` raises.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this Fetcher is busy with another list")
        loop, means = self._loop, self._means
        budget = ByteBudget(in_flight_bytes, loop)
        ready: SimpleQueue[tuple[int, Fetched] | None] = SimpleQueue()
        tasks: list[asyncio.Task] = []

        def begin() -> None:
            task = loop.create_task(Round(means, budget, ready.put).run(urls, deadline_sec))
            task.add_done_callback(lambda _: ready.put(None))
            tasks.append(task)

        def cancel() -> None:
            tasks[0].cancel()

        try:
            loop.call_soon_threadsafe(begin)
            try:
                while (item := ready.get()) is not None:
                    budget.free(item[1].cost)
                    yield item
            except BaseException:
                loop.call_soon_threadsafe(cancel)
                while (item := ready.get()) is not None:
                    budget.free(item[1].cost)  # what waits for it can end
                raise
        finally:
            self._busy.release()
        if tasks[0].cancelled():
            raise RuntimeError("this Fetcher was closed")
        tasks[0].result()


async def _open(settings: FetchSettings, lookup: Lookup, opened: Future) -> None:
    try:
        session = open_session(settings, lookup)
    except BaseException as error:
        opened.set_exception(error)
        return
    robots = Robots(session, settings)
    courtesy: Courtesy[Job] = Courtesy(
        settings.per_host,
        settings.host_delay_sec,
        settings.max_pause_sec,
        is_known=not settings.robots,
    )
    opened.set_result(Means(settings, session, session.connector.names, robots, courtesy))
    try:
        await asyncio.Event().wait()
    finally:
        await robots.close()
        await session.close()


def _serve(loop: asyncio.AbstractEventLoop, main: object) -> None:
    """Run a loop until `_stop`, and end all that is left in it."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main)
    except asyncio.CancelledError:
        pass
    finally:
        left = asyncio.all_tasks(loop)
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    if not loop.is_closed():
        loop.call_soon_threadsafe(cancel)
    thread.join()
