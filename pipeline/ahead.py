"""Shards worked on ahead of whoever asks for them one by one: reading, computing and syncing overlap."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from pipeline.manifest import Shard

Result = TypeVar("Result")

_THREADS = 3
_AHEAD = 4  # shards


class Ahead(Generic[Result]):
    """Performs what is asked for, and meanwhile what will be asked for next. For one asking thread.

    perform: is called in several threads at once, once for every time that a shard is asked for.
    following: the shards in the order in which they will be asked for; without any, nothing is
    done ahead. wanted: whether a shard will be asked for at all.
    """

    def __init__(
        self,
        perform: Callable[[Shard], Result],
        following: Sequence[Shard] = (),
        wanted: Callable[[Shard], bool] = lambda shard: True,
    ) -> None:
        self._perform, self._wanted = perform, wanted
        self._following = list(following)
        self._places = {shard.name: i for i, shard in enumerate(self._following)}
        self._next = 0
        self._begun: dict[str, Future[Result]] = {}
        self._pool = ThreadPoolExecutor(_THREADS)

    def __call__(self, shard: Shard) -> Result:
        """What `perform` returns; what it raises, when nothing that was begun goes on any more."""
        if not self._following:
            return self._perform(shard)
        result = self._begun.pop(shard.name, None) or self._pool.submit(self._perform, shard)
        self._begin(self._places.get(shard.name, -1))
        try:
            return result.result()
        except BaseException:
            wait(self._begun.values())
            raise

    def _begin(self, place: int) -> None:
        self._next = max(self._next, place + 1)
        while len(self._begun) < _AHEAD and self._next < len(self._following):
            shard = self._following[self._next]
            self._next += 1
            if self._wanted(shard):
                self._begun[shard.name] = self._pool.submit(self._perform, shard)
