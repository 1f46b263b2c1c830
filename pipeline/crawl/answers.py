"""Answers by name: asked for once, whoever waits for them, and remembered while they are good."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value]):
    """What is remembered of a name: for how long, and what it weighs."""

    value: Value
    kept_sec: float
    weight: int = 1


Ask = Callable[[str, Value | None, asyncio.Event], Awaitable[Answer[Value]]]


@dataclass(slots=True, eq=False)
class _Asking(Generic[Value]):
    begun: asyncio.Event
    task: "asyncio.Task[Value] | None" = None
    waiting: int = 0


class Answers(Generic[Value]):
    """The answers of `ask`, least recently used ones forgotten first.

    ask: given a name, the answer that was remembered last (None: none), and an event to set when
    it begins in earnest; until then it is cancelled when nobody waits any more, from then on it
    goes on for those who come later. most: the weight of all that is remembered.
    """

    def __init__(self, ask: Ask, most: int) -> None:
        self._ask, self._most = ask, most
        self._known: OrderedDict[str, tuple[float, Answer[Value]]] = OrderedDict()
        self._asking: dict[str, _Asking[Value]] = {}
        self._weight = 0

    def knows(self, name: str) -> bool:
        """Say whether there is an answer that is still good."""
        until, _ = self._known.get(name, (float("-inf"), None))
        return asyncio.get_running_loop().time() < until

    async def get(self, name: str) -> Value:
        """Give the answer, or wait for it; raises what `ask` raises."""
        if self.knows(name):
            self._known.move_to_end(name)
            return self._known[name][1].value
        asking = self._join(name)
        try:
            # Who gives up waiting does not take the answer from the others.
            return await asyncio.shield(asking.task)
        finally:
            self._leave(name, asking)

    async def begin(self, name: str) -> None:
        """Return when there is nothing to wait for but the answer itself."""
        if self.knows(name):
            return
        asking = self._join(name)
        try:
            await asking.begun.wait()
        finally:
            self._leave(name, asking)

    async def close(self) -> None:
        """End all that is being asked."""
        tasks = [asking.task for asking in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self, name: str) -> _Asking[Value]:
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = _Asking(asyncio.Event())
            asking.task = asyncio.ensure_future(self._answer(name, asking))
        asking.waiting += 1
        return asking

    def _leave(self, name: str, asking: _Asking[Value]) -> None:
        asking.waiting -= 1
        if not asking.waiting and not asking.begun.is_set():
            asking.task.cancel()
            self._forget_asking(name, asking)  # who comes now asks anew

    def _forget_asking(self, name: str, asking: _Asking[Value]) -> None:
        if self._asking.get(name) is asking:
            del self._asking[name]

    async def _answer(self, name: str, asking: _Asking[Value]) -> Value:
        _, before = self._known.get(name, (0.0, None))
        try:
            answer = await self._ask(name, before and before.value, asking.begun)
        finally:
            asking.begun.set()
            self._forget_asking(name, asking)
        self._keep(name, answer)
        return answer.value

    def _keep(self, name: str, answer: Answer[Value]) -> None:
        _, before = self._known.pop(name, (0.0, None))
        until = asyncio.get_running_loop().time() + answer.kept_sec
        self._known[name] = (until, answer)
        self._weight += answer.weight - (before.weight if before else 0)
        while self._weight > self._most and len(self._known) > 1:
            _, (_, old) = self._known.popitem(last=False)
            self._weight -= old.weight
