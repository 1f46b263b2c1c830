"""What a crawl may fetch again: failures that can pass, each of them until it does not fail that way."""

import re
import tempfile
from collections.abc import Iterator
from itertools import groupby

import duckdb
import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline import storage
from pipeline.crawl import reasons
from pipeline.crawl.plan import Plan, index_digits, read_part
from pipeline.runs import Run

_ROWS = 10_000
_MEMORY = "1GB"  # beyond, DuckDB goes to disk

# Of each URL the last attempt counts: a row that a later shard tried again is history.
_QUERY = """
WITH attempts AS (
    SELECT key, reason, retry_of,
           coalesce(retry_of, left(key, length(key) - $digits) || '/' || key) AS root
    FROM read_parquet($files, hive_partitioning = false)
)
SELECT key, root FROM attempts a
WHERE list_contains($may_pass, reason) AND NOT EXISTS (
    SELECT 1 FROM attempts later
    WHERE later.retry_of = a.root
      AND (length(later.key), later.key) > (length(a.key), a.key)
)
ORDER BY length(key), key
"""


def failed(run: Run, plan: Plan) -> Iterator[tuple[str, str]]:
    """Key, and shard/key of the first attempt, of every URL that may be fetched again, in order.

    Every part of the plan must be a shard by now. Out of core.
    """
    files = [_literal(run.file(f"{part.name}.parquet")) for part in plan.parts]
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as connection:
        if not storage.is_local(run.out):
            connection.register_filesystem(url_to_fs(run.out)[0])
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(f"SET temp_directory = '{scratch}'")
        values = {
            "files": files,
            "digits": index_digits(plan.shard_size),
            "may_pass": sorted(reasons.MAY_PASS),
        }
        found = connection.execute(_QUERY, values)
        while some := found.fetchmany(_ROWS):
            yield from some


def tables(run: Run, plan: Plan) -> Iterator[pa.Table]:
    """The rows to fetch again as their lists gave them, in tables of a shard each."""
    digits = index_digits(plan.shard_size)
    known = {part.name: part for part in plan.parts}
    waiting: list[pa.Table] = []
    by_part = groupby(failed(run, plan), lambda row: row[0][: len(row[0]) - digits])
    for name, rows in by_part:
        rows = list(rows)
        indices = [int(key[len(name) :] or 0) for key, _ in rows]
        listed = read_part(plan, known[name]).take(indices)
        roots = pa.array([root for _, root in rows], pa.string())
        place = listed.schema.get_field_index("retry_of")
        waiting.append(listed.set_column(place, listed.schema.field(place), roots))
        while sum(map(len, waiting)) >= plan.shard_size:
            table = pa.concat_tables(waiting)
            yield table.slice(0, plan.shard_size)
            waiting = [table.slice(plan.shard_size)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _literal(path: str) -> str:
    """A path in which DuckDB sees no pattern."""
    return re.sub(r"([*?\[])", r"[\1]", path)
