"""Work ahead of a consumer: threads prepare the next items while the current ones are used."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

BUDGET_BYTES = 256 << 20
"""Encoded images that may wait at once, so that large ones do not fill the memory."""


def prefetch(
    items: Iterable[Item],
    prepare: Callable[[Item], Result],
    *,
    threads: int,
    depth: int,
    size: Callable[[Item], int],
) -> Iterator[Result]:
    """Yields prepare(item) in the order of items, up to `depth` of them ahead.

    Reading `items` happens in a thread of its own. size: bytes an item holds until it is
    prepared. What `items` or `prepare` raise is raised here, at its place in the order.
    """
    ahead: queue.Queue[Future | BaseException | None] = queue.Queue(maxsize=depth)
    budget = _Budget(BUDGET_BYTES)
    stopped = threading.Event()

    def put(entry: Future | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ahead.put(entry, timeout=0.1)
                return

    def one(item: Item, held: int) -> Result:
        try:
            return prepare(item)
        finally:
            budget.give_back(held)

    def feed() -> None:
        try:
            for item in items:
                held = size(item)
                budget.take(held, stopped)
                if stopped.is_set():
                    return
                put(pool.submit(one, item, held))
        except BaseException as e:  # handed to the consumer
            put(e)
        else:
            put(None)

    with ThreadPoolExecutor(threads) as pool:
        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        try:
            while (entry := ahead.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                yield entry.result()
        finally:
            stopped.set()
            budget.wake()
            feeder.join()
            pool.shutdown(cancel_futures=True)


class _Budget:
    """Bytes that may be held; one item larger than the budget may pass alone."""

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._changed = threading.Condition()

    def take(self, held: int, stopped: threading.Event) -> None:
        with self._changed:
            self._changed.wait_for(lambda: stopped.is_set() or min(held, self._total) <= self._free)
            self._free -= held

    def give_back(self, held: int) -> None:
        with self._changed:
            self._free += held
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
