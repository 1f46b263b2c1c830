"""The named queries: one SQL file each in `queries/`, over the views of the catalog; and answers to any SQL."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import duckdb
import fsspec

from pipeline.errors import UserError

NAMES = (
    "keep",
    "lengths",
    "vocabulary",
    "first_words",
    "repetition",
    "drift",
    "similarity",
    "evaluations",
    "statuses",
    "blend",
    "fallbacks",
    "failures",
)
"""The queries that `stats` answers where none is named, in its order."""

PARAMETERS = ("run", "mix", "keep")
"""What a query may be narrowed to: a caption run, a mix, a keep-list; '' is every one."""

_REMOTE = re.compile(r"['\"]([a-z][a-z0-9+]*)://")
_MAX_ROWS = 10_000
_MAX_WIDTH = 160


def names() -> list[str]:
    """Every named query: the statistics in their order, then the others by name."""
    found = (file.name for file in (files("pipeline") / "queries").iterdir())
    others = {name.removesuffix(".sql") for name in found if name.endswith(".sql")}
    return [*NAMES, *sorted(others - set(NAMES))]


def query(name: str) -> str:
    """The SQL of a named query, its parameters as $run, $mix and $keep; UserError for no name."""
    if name not in names():
        raise UserError(f"QUERY={name} is no named query", f"one of {', '.join(names())}")
    return (files("pipeline") / "queries" / f"{name}.sql").read_text()


def title(name: str) -> str:
    """What a named query tells: the comment in its first line."""
    return query(name).splitlines()[0].removeprefix("-- ")


def table(connection: duckdb.DuckDBPyConnection, name: str, **narrowed: str) -> str:
    """The answer of a named query, "" where it has no rows; narrowed: PARAMETERS it is limited to."""
    sql = query(name)
    wanted = {k: narrowed.get(k, "") for k in PARAMETERS if f"${k}" in sql}
    with _refusing():
        return _show(connection.sql(sql, params=wanted))


def named(
    connection: duckdb.DuckDBPyConnection, run: str = "", mix: str = "", keep: str = ""
) -> Iterator[tuple[str, str]]:
    """Title and table of every statistic that has something to say."""
    for name in NAMES:
        told = table(connection, name, run=run, mix=mix, keep=keep)
        if told:
            yield f"{name}: {title(name)}", told


def answer(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The answers to SQL, a table for each statement; raises UserError where DuckDB refuses it.

    Files of any store that fsspec knows can be named: DuckDB reads them through it, and downloads
    no extension.
    """
    answers = []
    with _refusing():
        for statement in connection.extract_statements(sql):
            _reach(connection, statement.query)
            relation = connection.sql(statement)
            if relation is not None:
                answers.append(_show(relation) or "no rows")
    return "\n\n".join(answers)


def is_whole(text: str) -> bool:
    """Whether SQL ends with a semicolon that is none of a string's or a comment's."""
    tokens = [at for at, kind in duckdb.tokenize(text) if kind != duckdb.token_type.comment]
    return bool(tokens) and text[tokens[-1] :].startswith(";")


def _reach(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Registers the stores that a statement names."""
    for protocol in sorted(set(_REMOTE.findall(sql)) - {"file"}):
        if connection.filesystem_is_registered(protocol):
            continue
        try:
            connection.register_filesystem(fsspec.filesystem(protocol))
        except (ImportError, ValueError) as e:
            raise UserError(
                f"SQL: no files of {protocol}:// can be read: {e}",
                "install the fsspec package of that store",
            ) from e


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as e:
        raise UserError(
            f"SQL: {' '.join(str(e).split())}", "make sql OUT=... lists the views"
        ) from e


def _show(relation: duckdb.DuckDBPyRelation) -> str:
    """Rows with aligned columns, numbers to the right, nothing where there are none."""
    names = [_cell(name) for name in relation.columns]
    rows = [[_cell(v) for v in row] for row in relation.limit(_MAX_ROWS + 1).fetchall()]
    if not rows:
        return ""
    more, rows = rows[_MAX_ROWS:], rows[:_MAX_ROWS]
    numeric = [str(t) not in ("VARCHAR", "JSON", "BOOLEAN") for t in relation.types]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [names, ["-" * width for width in widths], *rows]
    ]
    if more:
        lines.append(f"(the first {_MAX_ROWS} rows)")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
    text = "".join(c if c.isprintable() else "." for c in text)
    return text if len(text) <= _MAX_WIDTH else text[: _MAX_WIDTH - 3] + "..."
