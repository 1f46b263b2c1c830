"""Where the time of a task goes: seconds and samples of its parts, counted as it is performed."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

READ, PREPARE, WAIT = "read", "prepare", "wait"
"""Parts that every pass over images has: its shard's bytes, decoding in threads, and the time in
which whoever consumes the images (a model, as a rule) had none."""


class Spent(NamedTuple):
    """Seconds of one part, summed over threads, and how many samples they were spent on."""

    seconds: float = 0.0
    samples: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds + other.seconds, self.samples + other.samples)


class Stopwatch:
    """Adds up parts; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, Spent] = {}

    def add(self, part: str, seconds: float, samples: int = 0) -> None:
        with self._lock:
            self._parts[part] = self._parts.get(part, Spent()) + Spent(seconds, samples)

    @contextmanager
    def measuring(self, part: str, samples: int = 0) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - start, samples)

    def timed(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; what counts is the time that getting each of them takes."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.add(part, time.perf_counter() - start, 0)
            self.add(part, 0.0, 1)
            yield item

    def taken(self) -> dict[str, Spent]:
        """What was added since the last time that somebody asked."""
        with self._lock:
            parts, self._parts = self._parts, {}
        return parts


TASK = Stopwatch()
"""Of this process: a worker performs one task at a time."""
