"""Threads for calls that block: as many as there are calls, and no exit waits for them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue


class DaemonThreads:
    """Runs each call at once, in a thread that is free or in a new one; the caller limits them.

    Those of an executor are joined when the interpreter ends, whatever they wait for.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future, Callable, tuple] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._number = 0

    def submit(self, call: Callable, *arguments: object) -> Future:
        """Begin a call; not for several threads at once."""
        future: Future = Future()
        self._calls.put((future, call, arguments))
        if not self._idle.acquire(blocking=False):
            self._number += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end, each when its call is done."""
        for _ in range(self._number):
            self._calls.put(None)
        self._number = 0

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call, arguments = item
            if future.set_running_or_notify_cancel():
                try:
                    result = call(*arguments)
                except BaseException as error:  # the caller's to handle
                    future.set_exception(error)
                else:
                    future.set_result(result)
            item = future = result = None  # holds nothing while it is idle
            self._idle.release()
