"""Bytes of bodies held in memory: who reads faster than the consumer takes has to wait."""

import asyncio


class ByteBudget:
    """At most `limit` bytes on hold, and one more body where nothing else could go on.

    `take`, `give` and `done` belong to the loop's thread, `free` to the consumer's. A body that is
    being read takes its bytes piece by piece; when it is whole they wait for the consumer, who
    frees them.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = limit
        self._loop = loop
        self._reading = 0  # bytes of bodies that are not whole yet
        self._finished = 0  # all bytes of whole bodies, ever
        self._freed = 0  # of which the consumer has taken; written by its thread alone
        self._overdrawn: object = None  # the body that may go on nevertheless
        self._waiting = 0
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether no new body should be begun."""
        return self._held >= self._limit

    @property
    def _held(self) -> int:
        return self._reading + self._finished - self._freed

    def fits(self, number: int) -> bool:
        """Take bytes if there is room for them now."""
        if self._held + number > self._limit:
            return False
        self._reading += number
        return True

    async def take(self, number: int, body: object) -> None:
        """Take bytes for a body, when there is room."""
        while not self.fits(number):
            # With nothing left for the consumer to free, only a body that ends makes room.
            is_stuck = self._finished == self._freed and self._overdrawn is None
            if is_stuck or self._overdrawn is body:
                self._overdrawn = body
                self._reading += number
                return
            await self.wait()

    async def wait(self) -> None:
        """Return when bytes may have come free."""
        self._changed.clear()
        self._waiting += 1
        try:
            # The consumer may have missed that somebody waits, hence the look now and then.
            await asyncio.wait_for(self._changed.wait(), 0.25)
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1

    def done(self, body: object, taken: int, kept: int) -> None:
        """End a body that took `taken` bytes, of which `kept` go to the consumer."""
        self._reading -= taken
        self._finished += kept
        if self._overdrawn is body:
            self._overdrawn = None
        self._changed.set()

    def free(self, number: int) -> None:
        """Give back what the consumer has taken; called in the consumer's thread."""
        self._freed += number
        if self._waiting:
            self._loop.call_soon_threadsafe(self._changed.set)
