"""Whose turn it is: requests per host, pauses between them, and nobody waits for a slow one."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Work = TypeVar("Work")

_MAX_IDLE_HOSTS = 50_000
_FORGET_STEP = 10_000  # hosts more, until it is worth to look through all of them again
_LONGEST_PAUSE_SEC = 3600.0  # that is remembered, unless the crawl itself waits longer


@dataclass(slots=True)
class _Host(Generic[Work]):
    limit: float  # requests at once; shrinks when the host says that it is busy
    delay: float
    waiting: deque[Work] = field(default_factory=deque)
    in_flight: int = 0
    last_start: float = float("-inf")
    paused_until: float = float("-inf")
    closed_until: float = float("-inf")
    is_known: bool = True  # one request at a time until it is
    turn: int = -1  # the one entry of the heap that counts; -1: none


class Courtesy(Generic[Work]):
    """Work waiting for its host's turn; knows no clock, every call is told the time.

    per_host: requests at once. delay_sec: least time between two starts. max_pause_sec: a host that
    asks for a longer pause is "closed": its work is handed out at once, to be given up.
    is_known: whether hosts are met with one request first, until `meet` says that they are known.
    Hosts take turns: the one that was asked longest ago is next.
    """

    def __init__(
        self,
        per_host: int,
        delay_sec: float = 0.0,
        max_pause_sec: float = 120.0,
        *,
        is_known: bool = True,
    ) -> None:
        self._per_host, self._delay, self._max_pause = per_host, delay_sec, max_pause_sec
        self._is_known = is_known
        self._hosts: dict[str, _Host[Work]] = {}
        self._most_hosts = _MAX_IDLE_HOSTS
        self._turns: list[tuple[float, int, str]] = []  # heap
        self._later: list[tuple[float, int, str, Work]] = []  # heap
        self._order = itertools.count()
        self._waiting = 0
        self._now = float("-inf")

    def __len__(self) -> int:
        return self._waiting

    def add(self, host: str, work: Work, *, at: float | None = None, first: bool = False) -> None:
        """Put work in its host's queue: at its end, at its front, or at a time at its front."""
        self._waiting += 1
        if at is not None:
            heapq.heappush(self._later, (at, next(self._order), host, work))
            return
        state = self._state(host)
        if first:
            state.waiting.appendleft(work)
        else:
            state.waiting.append(work)
        self._queue(host, state)

    def take(self, now: float) -> tuple[str, Work] | None:
        """Start the next request: (host, work), or None where all must wait."""
        self._now = now
        while self._later and self._later[0][0] <= now:
            _, _, host, work = heapq.heappop(self._later)
            self._waiting -= 1
            self.add(host, work, first=True)
        while self._turns and self._turns[0][0] <= now:
            _, turn, host = heapq.heappop(self._turns)
            state = self._hosts.get(host)
            if state is None or state.turn != turn:
                continue  # it has another turn by now
            state.turn = -1
            if self._ready_at(state) > now:
                self._queue(host, state)  # it was paused meanwhile
                continue
            work = state.waiting.popleft()
            self._waiting -= 1
            state.in_flight += 1
            if not self.is_closed(host):
                state.last_start = now
            self._queue(host, state)
            return host, work
        return None

    def next_at(self) -> float | None:
        """Return when `take` is worth the next call; None: not before `add` or `done`."""
        times = [heap[0][0] for heap in (self._turns, self._later) if heap]
        return min(times, default=None)

    def done(self, host: str) -> None:
        """End a request that `take` started."""
        state = self._hosts[host]
        state.in_flight -= 1
        self._queue(host, state)

    def meet(self, host: str, delay_sec: float = 0.0) -> None:
        """Note a host's own rules: from now on it is known, and asked no faster than it wants."""
        state = self._state(host)
        state.is_known = True
        state.delay = max(self._delay, delay_sec)
        self._queue(host, state)

    def calm(self, host: str) -> None:
        """Note that a host answers well: it may be asked by one more at once, up to the limit."""
        state = self._state(host)
        if state.limit < self._per_host:
            # A request more after as many good answers as there are at once.
            state.limit = min(self._per_host, state.limit + 1 / state.limit)
            self._queue(host, state)

    def pause(self, host: str, now: float, seconds: float) -> None:
        """Start nothing at a busy host for a while, and then with half the requests at once."""
        self._now = now
        state = self._state(host)
        state.limit = max(1.0, state.limit / 2)
        seconds = min(seconds, max(_LONGEST_PAUSE_SEC, self._max_pause + 1))
        if seconds > self._max_pause:
            state.closed_until = max(state.closed_until, now + seconds)
        else:
            state.paused_until = max(state.paused_until, now + seconds)
        self._queue(host, state)

    def is_closed(self, host: str) -> bool:
        """Say whether a host asked for a longer pause than is waited for."""
        state = self._hosts.get(host)
        return state is not None and state.closed_until > self._now

    def has_waiting(self, host: str) -> bool:
        """Say whether more is to be asked of a host."""
        state = self._hosts.get(host)
        return state is not None and bool(state.waiting)

    def drain(self, took: Callable[[Work], None]) -> None:
        """Hand over all work that waits."""
        for _, _, _, work in self._later:
            took(work)
        self._later.clear()
        for state in self._hosts.values():
            for work in state.waiting:
                took(work)
            state.waiting.clear()
            state.turn = -1
        self._turns.clear()
        self._waiting = 0

    def _state(self, host: str) -> _Host[Work]:
        state = self._hosts.get(host)
        if state is None:
            if len(self._hosts) >= self._most_hosts:
                self._forget()
            state = _Host(self._per_host, self._delay, is_known=self._is_known)
            self._hosts[host] = state
        return state

    def _forget(self) -> None:
        """Drop half of the hosts that have nothing to do: those asked longest ago, paused ones last.

        A pause that is forgotten costs its host one request too early; hosts that are kept for
        their pauses would fill the memory.
        """
        idle = [
            host for host, state in self._hosts.items() if not state.waiting and not state.in_flight
        ]

        def free_since(host: str) -> float:
            state = self._hosts[host]
            return max(state.last_start, state.paused_until, state.closed_until)

        idle.sort(key=free_since)
        for host in idle[: (len(idle) + 1) // 2]:
            del self._hosts[host]
        self._most_hosts = max(_MAX_IDLE_HOSTS, len(self._hosts) + _FORGET_STEP)

    def _ready_at(self, state: _Host[Work]) -> float:
        if state.closed_until > self._now:
            return float("-inf")
        return max(state.last_start + state.delay, state.paused_until)

    def _queue(self, host: str, state: _Host[Work]) -> None:
        """Give a host its next turn, unless it has one that is early enough."""
        is_closed = state.closed_until > self._now
        limit = int(state.limit) if state.is_known else 1
        if state.waiting and (is_closed or (state.turn < 0 and state.in_flight < limit)):
            state.turn = next(self._order)
            heapq.heappush(self._turns, (self._ready_at(state), state.turn, host))
