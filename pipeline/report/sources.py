"""The tables that a report draws columns of: those of the chosen runs, and of every annotator."""

from dataclasses import dataclass

import duckdb

from pipeline.catalog import identifier, quoted
from pipeline.report.chosen import Chosen


@dataclass(frozen=True)
class Source:
    """A table with a uid and columns about it."""

    title: str  # for people: `captions bundled`
    relation: str  # SQL that stands behind FROM
    columns: dict[str, str]  # name -> type of DuckDB


def sources(connection: duckdb.DuckDBPyConnection, chosen: Chosen) -> list[Source]:
    """The captions first, then their mix, the annotators' runs by name, and the keep-list."""
    named = [("captions", chosen.captions), ("mix", chosen.mix)]
    found = [_of_run(connection, kind, name) for kind, name in named if name]
    views = [name for (name,) in connection.sql("SELECT view_name FROM duckdb_views()").fetchall()]
    for stage in sorted(name for name in views if "@" in name):
        found.append(_source(connection, stage, identifier(stage)))
    if chosen.keep:
        found.append(_of_run(connection, "keep", chosen.keep))
    return found


def _of_run(connection: duckdb.DuckDBPyConnection, kind: str, name: str) -> Source:
    relation = f"(SELECT * FROM {kind} WHERE run = {quoted(name)})"
    return _source(connection, f"{kind} {name}", relation)


def _source(connection: duckdb.DuckDBPyConnection, title: str, relation: str) -> Source:
    described = connection.sql(f"DESCRIBE FROM {relation}").fetchall()
    return Source(title, relation, {name: kind for name, kind, *_ in described})
