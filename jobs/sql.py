"""sql: a prompt over the catalog's views, with the named queries at hand."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_HELP = """\
.queries                  the named queries
.query NAME [run=RUN] [mix=MIX] [keep=LIST]   the answer of one
.text NAME                its SQL, to copy and change
.views                    the views; DESCRIBE <view>; has the columns of one
.quit                     the end (or Ctrl-D); Ctrl-C drops a statement, or stops a running one"""


@dataclass(frozen=True, kw_only=True)
class Sql:
    """Ask the catalog in SQL, line by line; `.help` lists what else there is, `.quit` ends it.

    From a file or a pipe, statements are answered until the first that cannot be.
    """

    out: str
    """The data folder."""


def run(config: Sql) -> None:
    """Reads statements that end in a semicolon and prints their answers. Raises UserError."""
    from pipeline import catalog, storage
    from pipeline.errors import UserError

    with catalog.connect(storage.absolute(config.out)) as connection:
        if not sys.stdin.isatty():
            for statement in _statements(lambda _: sys.stdin.readline(), end=""):
                _say(_answer(connection, statement))
            return
        print(f"views: {', '.join(catalog.views(connection))}")
        print("End a statement with ;  named queries with .queries  leave with .quit")
        with _line_editing([*catalog.views(connection), *_columns(connection)]):
            for statement in _statements(_prompted, end=None):
                start = time.monotonic()
                try:
                    _say(_answer(connection, statement))
                    print(f"({time.monotonic() - start:.2f} s)")
                except UserError as e:
                    print(f"error: {e}")
                except (KeyboardInterrupt, RuntimeError) as e:  # DuckDB says it in its own words
                    if isinstance(e, RuntimeError) and "interrupted" not in str(e).lower():
                        raise
                    print("interrupted")


def _statements(read: Callable[[str], str | None], end: str | None) -> Iterator[str]:
    """Whole statements and dot commands, as lines come in; what the last line leaves open, too."""
    from pipeline import statistics

    statement = ""
    while True:
        try:
            line = read("...> " if statement else "sql> ")
        except KeyboardInterrupt:
            print()
            statement = ""
            continue
        if line == end:
            break
        if not statement and line.strip() in (".quit", ".exit"):
            return
        if not statement and (line.startswith(".") or not line.strip()):
            if line.strip():
                yield line.strip()
            continue
        statement += line.removesuffix("\n") + "\n"
        if statistics.is_whole(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def _prompted(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        print()
        return None


def _answer(connection: "DuckDBPyConnection", statement: str) -> str:
    from jobs.stats import listed
    from pipeline import catalog, statistics
    from pipeline.errors import UserError

    if not statement.startswith("."):
        return statistics.answer(connection, statement)
    command, *rest = statement.split()
    if command == ".help":
        return _HELP
    if command == ".queries":
        return listed()
    if command == ".views":
        return "\n".join(catalog.views(connection))
    if command == ".text" and len(rest) == 1:
        return statistics.query(rest[0]).rstrip()
    narrowed = dict(word.partition("=")[::2] for word in rest[1:])
    if command == ".query" and rest and narrowed.keys() <= set(statistics.PARAMETERS):
        return statistics.table(connection, rest[0], **narrowed) or "no rows"
    raise UserError(f"{statement} is no command", ".help lists them")


def _say(answer: str) -> None:
    if answer:
        print(answer, flush=True)


def _columns(connection: "DuckDBPyConnection") -> list[str]:
    found = connection.sql("SELECT DISTINCT column_name FROM duckdb_columns() WHERE NOT internal")
    return [name for (name,) in found.fetchall()]


@contextlib.contextmanager
def _line_editing(words: list[str]) -> Iterator[None]:
    """Arrow keys, a history that outlives the prompt, and Tab for names; without, where there is none."""
    try:
        import readline
    except ImportError:  # Python was built without it
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    history = state / "recaption" / "sql_history"

    def complete(text: str, number: int) -> str | None:
        fitting = [word for word in sorted(words) if word.startswith(text)]
        return fitting[number] if number < len(fitting) else None

    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a prompt works without a home
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)  # statements may name what is nobody else's business
            readline.write_history_file(history)
