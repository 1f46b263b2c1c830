"""Rows of a JSON file of any size, a piece at a time: an array of objects, or an object of columns.

The second is what pandas writes by default: {"url": {"0": ..., "1": ...}, "text": {...}}. Its columns
stand one behind the other, so each is read through an opening of its own, side by side.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import IO

MAX_VALUE_CHARS = 1 << 24
_READ_BYTES = 1 << 16
_SPACE = " \t\n\r"


class BadJson(ValueError):
    """No JSON, or none of the two shapes."""


class _Scanner:
    """Reads one JSON text from a stream, value by value."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of those wanted."""
        found = self.peek()
        if not found or found not in wanted:
            raise BadJson(f"{' or '.join(wanted)} expected, found {found or 'the end'}")
        self._at += 1
        return found

    def value(self) -> object:
        """The next value whole; BadJson where it is none, or larger than MAX_VALUE_CHARS."""
        self.peek()
        while True:
            with contextlib.suppress(ValueError, RecursionError):
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE_CHARS:
                raise BadJson(f"a value of more than {MAX_VALUE_CHARS} characters, or none at all")
            if not self._more():
                raise BadJson("broken or cut off")

    def _more(self) -> bool:
        # Twice as much each time, since a value that was cut off is read again from its start.
        wanted = max(_READ_BYTES, len(self._text) - self._at)
        piece = "" if self._ended else self._file.read(wanted)
        self._ended = self._ended or not piece
        self._text = self._text[self._at :] + piece
        self._at = 0
        return bool(piece)

    def members(self) -> Iterator[str]:
        """The names in an object, of which the caller reads or skips each value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            name = self.value()
            if not isinstance(name, str):
                raise BadJson("a name expected")
            self.take(":")
            yield name
            if self.take(",}") == "}":
                return

    def elements(self) -> Iterator[None]:
        """The places of an array's values, of which the caller reads each."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield
            if self.take(",]") == "]":
                return


def rows(opened: Callable[[], IO[str]]) -> Iterator[dict]:
    """The rows of a file in either shape; raises BadJson. `opened` opens it anew at each call."""
    with opened() as file:
        scanner = _Scanner(file)
        if scanner.peek() == "{":
            yield from _from_columns(opened)
            return
        for _ in scanner.elements():
            row = scanner.value()
            if not isinstance(row, dict):
                raise BadJson("an array of objects expected")
            yield row
        if scanner.peek():
            raise BadJson("there is more behind its end")


def _from_columns(opened: Callable[[], IO[str]]) -> Iterator[dict]:
    with opened() as file:
        scanner = _Scanner(file)
        names = [_skipped(name, scanner) for name in scanner.members()]
    with contextlib.ExitStack() as stack:
        columns = [_column(stack.enter_context(opened()), name) for name in names]
        for cells in zip(*columns, strict=True):
            if len({label for label, _ in cells}) > 1:
                raise BadJson("its columns differ in their rows")
            yield dict(zip(names, (value for _, value in cells), strict=True))


def _skipped(name: str, scanner: _Scanner) -> str:
    if scanner.peek() != "{":
        raise BadJson("an array of objects, or an object of columns, expected")
    for _ in scanner.members():
        scanner.value()
    return name


def _column(file: IO[str], wanted: str) -> Iterator[tuple[str, object]]:
    """Label and value of every row of one column."""
    scanner = _Scanner(file)
    for name in scanner.members():
        if name != wanted:
            _skipped(name, scanner)
            continue
        for label in scanner.members():
            yield label, scanner.value()
        return
