"""Bytes of bodies held in memory: who reads faster than the consumer takes has to wait."""

import asyncio

_LEAST_SMALL = 1 << 16


class ByteBudget:
    """Whole bodies that wait for the consumer: at `limit` bytes nothing new should be begun.

    `keep` and `wait` belong to the loop's thread, `free` to the consumer's.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.limit = limit
        self._loop = loop
        self._kept = 0  # all bytes, ever
        self._freed = 0  # of which the consumer has taken; written by its thread alone
        self._waiting = 0
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether no new body should be begun."""
        return self._kept - self._freed >= self.limit

    def keep(self, number: int) -> None:
        """Count the bytes of a body that is whole."""
        self._kept += number

    def free(self, number: int) -> None:
        """Give back what the consumer has taken; called in the consumer's thread."""
        self._freed += number
        if self._waiting:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self) -> None:
        """Return when bytes may have come free."""
        self._changed.clear()
        self._waiting += 1
        # The consumer may have missed that somebody waits, hence the look now and then. No
        # `wait_for`, which loses a cancellation that comes together with what is waited for.
        alarm = self._loop.call_later(0.25, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            alarm.cancel()
            self._waiting -= 1


class Room:
    """Room for bodies that are not whole yet: small ones have theirs, large ones share the rest.

    A large body has its room for all that it may come to, or waits for it without any: none waits
    for another that waits. small: bytes up to which a body is small. limit: bytes of all large
    bodies; one host may have a quarter of it, or one body.
    """

    def __init__(self, limit: int, small: int) -> None:
        self.small = small
        self._limit, self._share = limit, limit // 4
        self._total = 0
        self._of_host: dict[str, int] = {}
        self._waiting: list[tuple[str, int, asyncio.Future[None]]] = []

    @classmethod
    def beside(cls, budget: ByteBudget, requests: int) -> "Room":
        """Make room that takes about three times the bytes that `budget` lets wait."""
        return cls(2 * budget.limit, max(_LEAST_SMALL, budget.limit // requests))

    def body(self, host: str) -> "Body":
        """Begin a body of a host, in a `with` block that ends with it."""
        return Body(self, host)

    async def claim(self, host: str, number: int) -> None:
        """Take bytes, when it is this one's turn."""
        if not self._waiting and self._fits(host, number):
            self._take(host, number)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((host, number, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(host, number)
            else:
                self._waiting = [one for one in self._waiting if one[2] is not turn]
                self._serve()
            raise

    def release(self, host: str, number: int) -> None:
        """Give back what was claimed."""
        self._take(host, -number)
        self._serve()

    def _serve(self) -> None:
        """Give the waiting their turn in order, past those whose own host has too much."""
        left, is_over = [], False
        for host, number, turn in self._waiting:
            if turn.done():
                continue
            if not is_over and self._fits(host, number):
                self._take(host, number)
                turn.set_result(None)
                continue
            # Who waits for the others' bytes is not overtaken by smaller ones for ever.
            is_over = is_over or self._has_share(host, number)
            left.append((host, number, turn))
        self._waiting = left

    def _has_share(self, host: str, number: int) -> bool:
        held = self._of_host.get(host, 0)
        return not held or held + number <= self._share

    def _fits(self, host: str, number: int) -> bool:
        is_over = self._total and self._total + number > self._limit
        return not is_over and self._has_share(host, number)

    def _take(self, host: str, number: int) -> None:
        self._total += number
        held = self._of_host.get(host, 0) + number
        if held:
            self._of_host[host] = held
        else:
            self._of_host.pop(host, None)


class Body:
    """The room of one body."""

    def __init__(self, room: Room, host: str) -> None:
        self._room, self._host = room, host
        self._claimed = 0

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, *error: object) -> None:
        if self._claimed:
            self._room.release(self._host, self._claimed)
            self._claimed = 0

    async def grow(self, size: int, most: int) -> None:
        """Return when the body may have `size` bytes; `most`: what it may come to."""
        if size > self._room.small and not self._claimed:
            await self._room.claim(self._host, most)
            self._claimed = most
