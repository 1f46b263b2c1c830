"""Samples that are ready before their turn: kept in order, in little memory, the rest in a file."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Generic, TypeVar

from pipeline import storage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    told: T
    data: bytes | None  # None: in the file
    offset: int = 0
    size: int = 0


class Window(Generic[T]):
    """Takes (index, what is told of it, bytes) in any order and gives them back by index from 0.

    One slow sample holds up all that come after it: what they have beyond `memory_bytes` waits in
    a temporary file of this machine, which has no name and goes with the process.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._limit = memory_bytes
        self._waiting: dict[int, _Waiting[T]] = {}
        self._next = 0
        self._held = 0
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, index: int, told: T, data: bytes) -> None:
        """Each index once; UserError where that machine has no space for the file."""
        assert index >= self._next and index not in self._waiting, index
        if index == self._next or not data or self._held + len(data) <= self._limit:
            self._held += len(data)
            self._waiting[index] = _Waiting(told, data)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
            self._file.seek(self._end)
            self._file.write(data)
            self._file.flush()
        except OSError as e:
            raise storage.cannot_write(tempfile.gettempdir(), e) from e
        self._waiting[index] = _Waiting(told, None, self._end, len(data))
        self._end += len(data)

    def take(self) -> Iterator[tuple[int, T, bytes]]:
        """Those whose turn it is."""
        while (waiting := self._waiting.pop(self._next, None)) is not None:
            data = waiting.data
            if data is None:
                self._file.seek(waiting.offset)
                data = self._file.read(waiting.size)
            else:
                self._held -= len(data)
            yield self._next, waiting.told, data
            self._next += 1
        if not self._waiting:
            self._end = 0  # the file is used anew from its start

    def close(self) -> None:
        """Gives the file's space back."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of what could not be written before
                self._file.close()
