"""Bytes of samples: from a disk one by one, from an object store in blocks that are kept for their neighbours."""

import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from pipeline import storage
from pipeline.errors import UserError
from pipeline.loading.training_shard import AGAIN, gone, unreadable

_AT_ONCE = 16  # requests to an object store
_OPEN_FILES = 256
_MAX_BLOCK_BYTES = 64 << 20  # of larger blocks, samples are fetched one by one
_REMEMBERED = 1024  # blocks that had to go
_WAITS = (0.5, 2.0)  # seconds before an object store is asked again


@dataclass(frozen=True)
class Wanted:
    """Bytes start .. stop - 1 of a file, and the range around them that is worth fetching at once."""

    url: str
    start: int
    stop: int
    block: tuple[int, int]


class Ranges:
    """Reads parts of files; threads may share it.

    budget: bytes of fetched blocks that are kept. Local files are left to the system's own cache.
    Raises UserError where a file is gone, shorter than it was, or cannot be read.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._lock = Lock()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], tuple[Future[bytes], int]] = OrderedDict()
        self._held = 0
        self._dropped: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, wanted: Sequence[Wanted]) -> Iterator[bytes]:
        """All of it, in order; requests to a store run side by side, files are read one by one."""
        pending = [w if storage.is_local(w.url) else self._requested(w) for w in wanted]
        return (
            self._pread(p)
            if isinstance(p, Wanted)
            else p[0].result()[w.start - p[1] : w.stop - p[1]]
            for w, p in zip(wanted, pending, strict=True)
        )

    def close(self) -> None:
        """Forgets everything; what is asked for later is fetched anew."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._files.clear()
            self._blocks.clear()
            self._dropped.clear()
            self._held = 0
        if pool:
            pool.shutdown()

    def _pread(self, wanted: Wanted) -> bytes:
        with self._lock:
            file = self._files.get(wanted.url)
            if file is None:
                file = self._files[wanted.url] = _File(wanted.url)
            self._files.move_to_end(wanted.url)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)  # closed when the last thread is done with it
        return _whole(os.pread(file.number, wanted.stop - wanted.start, wanted.start), wanted)

    def _requested(self, wanted: Wanted) -> tuple[Future[bytes], int]:
        """A request for the sample's block, or for it alone, and where what it gives begins."""
        begin, end = wanted.block
        key = (wanted.url, begin)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_AT_ONCE, "ranges")
            known = self._blocks.get(key)
            if known and known[0].done() and known[0].exception():  # the store may be back
                self._held -= self._blocks.pop(key)[1]
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key][0], begin
            # A block that had to go before its turn was over would have to go again.
            if end - begin > min(_MAX_BLOCK_BYTES, self._budget) or key in self._dropped:
                alone = (wanted.start, wanted.stop)
                return self._pool.submit(_fetch, wanted.url, *alone), wanted.start
            future = self._pool.submit(_fetch, wanted.url, begin, end)
            self._blocks[key] = future, end - begin
            self._held += end - begin
            while self._held > self._budget:
                self._drop()
            return future, begin

    def _drop(self) -> None:
        """Lets the block go that was not used for longest, and remembers for a while that it did."""
        key, (_, size) = self._blocks.popitem(last=False)
        self._held -= size
        self._dropped[key] = None
        if len(self._dropped) > _REMEMBERED:
            self._dropped.popitem(last=False)


class _File:
    """An open local file, closed with the last reference to it."""

    def __init__(self, url: str) -> None:
        try:
            self.number = os.open(url, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as e:
            self.number = -1
            raise gone(url) from e
        except OSError as e:
            self.number = -1
            raise unreadable(url, e) from e

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def read_patiently(url: str, offset: int, size: int) -> bytes:
    """As `storage.read_range`; a store that fails is asked again before it is given up.

    Raises OSError, whatever the store raises.
    """
    for wait in (*(() if storage.is_local(url) else _WAITS), None):
        try:
            return storage.read_range(url, offset, size)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as e:  # stores raise whatever they like
            if wait is None:
                raise OSError(str(e)) from e
            time.sleep(wait)
    raise AssertionError


def _fetch(url: str, start: int, stop: int) -> bytes:
    try:
        data = read_patiently(url, start, stop - start)
    except FileNotFoundError as e:
        raise gone(url) from e
    except OSError as e:
        raise unreadable(url, e) from e
    return _whole(data, Wanted(url, start, stop, (start, stop)))


def _whole(data: bytes, wanted: Wanted) -> bytes:
    if len(data) > wanted.stop - wanted.start:
        raise UserError(
            f"SHARDS: the server of {storage.public(wanted.url)} gives whole files only, no ranges",
            "copy the shards to a disk or an object store",
        )
    if len(data) != wanted.stop - wanted.start:
        raise UserError(
            f"SHARDS: {storage.public(wanted.url)} ends before byte {wanted.stop}: it was changed or cut",
            AGAIN,
        )
    return data
