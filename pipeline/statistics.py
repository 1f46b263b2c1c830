"""The named statistics: one SQL file each in `queries/`, over the views of the catalog."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import duckdb

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
_MAX_ROWS = 10_000
_MAX_WIDTH = 160


def query(name: str) -> str:
    """The SQL of a named statistic; its parameters are $run, $mix and $keep, '' for every one."""
    return (files("pipeline") / "queries" / f"{name}.sql").read_text()


def named(
    connection: duckdb.DuckDBPyConnection, run: str = "", mix: str = "", keep: str = ""
) -> Iterator[tuple[str, str]]:
    """Title and table of every named statistic that has something to say."""
    for name in NAMES:
        sql = query(name)
        names = {"run": run, "mix": mix, "keep": keep}
        wanted = {k: v for k, v in names.items() if f"${k}" in sql}
        with _refusing():
            table = _show(connection.sql(sql, params=wanted))
        if table:
            title = sql.splitlines()[0].removeprefix("-- ")
            yield f"{name}: {title}", table


def answer(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The answer to any SQL, as a table; raises UserError where DuckDB refuses it."""
    with _refusing():
        relation = connection.sql(sql)
        return "" if relation is None else _show(relation) or "no rows"


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
