"""The catalog: DuckDB views over everything a data folder holds, by paths relative to it."""

import duckdb
import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline import manifest, storage
from pipeline.errors import UserError
from pipeline.schemas import CAPTIONS, COLUMNS, KEEP, MIX, SHARDS, STYLES

FILE = "catalog.duckdb"
VIEWS = ("shards", "samples", "columns", "captions", "caption_texts", "keep", "mix", "runs")

_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
}
_RUNS = {
    "kind": "VARCHAR",
    "run": "VARCHAR",
    "config_hash": "VARCHAR",
    "config": "JSON",
    "environment": "JSON",
    "shards": "VARCHAR[]",
}
_RUN_AND_SHARD = (
    "split_part(filename, '/', -2) AS run, "
    "regexp_replace(split_part(filename, '/', -1), '[.]parquet$', '') AS shard"
)


def connect(out: str) -> duckdb.DuckDBPyConnection:
    """A connection with the views of a data folder, from any working directory.

    The views are in memory, so nothing is locked and what was written last is seen.
    Raises UserError where `out` is no data folder.
    """
    out = storage.absolute(out)
    if not storage.exists(storage.join(out, manifest.FILE)):
        raise UserError(f"OUT={out} is no data folder", f"it has no {manifest.FILE} yet")
    connection = duckdb.connect()
    _prepare(connection, out)
    return connection


def refresh(out: str) -> None:
    """Writes catalog.duckdb anew, for the plain DuckDB shell; it holds views, not data."""
    if not storage.exists(storage.join(out, manifest.FILE)):
        return
    with storage.write_atomic(storage.join(out, FILE)) as part:
        try:
            with duckdb.connect(str(part)) as connection:
                _prepare(connection, out)
        except duckdb.IOException as e:
            raise storage.cannot_write(out, OSError(str(e))) from e


def _prepare(connection: duckdb.DuckDBPyConnection, out: str) -> None:
    prefix = ""
    if storage.is_local(out):
        connection.execute("SET file_search_path = " + _quoted(out))
    else:
        connection.register_filesystem(url_to_fs(out)[0])
        prefix = out.rstrip("/") + "/"
    for name, body in _views(out, prefix).items():
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {body}")


def _views(out: str, prefix: str) -> dict[str, str]:
    def over(glob: str, schema: pa.Schema, columns: str) -> str:
        """A view over files, or, where there are none, an empty one of the same types."""
        if _any(out, glob):
            return f"SELECT {columns} FROM read_parquet({_quoted(prefix + glob)})"
        files = _empty(schema, {"filename": "VARCHAR"})
        return f"SELECT {columns} FROM ({files})"

    return {
        "shards": over(manifest.FILE, SHARDS, _names(SHARDS)),
        "captions": over("captions/*/*.parquet", CAPTIONS, f"{_RUN_AND_SHARD}, {_names(CAPTIONS)}"),
        "keep": over("keep/*/*.parquet", KEEP, f"{_RUN_AND_SHARD}, {_names(KEEP)}"),
        "mix": over("mix/*/*.parquet", MIX, f"{_RUN_AND_SHARD}, {_names(MIX)}"),
        "columns": over(
            "columns/*/*.parquet",
            COLUMNS,
            _RUN_AND_SHARD.replace("AS run", "AS stage") + f", {_names(COLUMNS)}",
        ),
        "samples": _SAMPLES,
        "caption_texts": " UNION ALL ".join([_ORIGINALS, *map(_synthetic, STYLES)]),
        "runs": _runs(out, prefix),
    }


_SAMPLES = """
SELECT uid, min(key) AS key, min(shard) AS shard, min(caption) AS caption,
       min(reason) AS reason
FROM (SELECT uid, key, shard, caption, reason FROM captions
      UNION ALL SELECT uid, source_key, source_shard, caption, NULL FROM mix
      UNION ALL SELECT uid, key, shard, NULL, NULL FROM columns)
GROUP BY uid"""

_ORIGINALS = """
SELECT run, shard, uid, 'original' AS style, caption AS text, caption_status AS status,
       NULL::INTEGER AS tokens, NULL::FLOAT AS logprob, NULL::VARCHAR AS finish,
       NULL::FLOAT AS similarity, NULL::FLOAT AS similarity_min
FROM captions"""


def _synthetic(style: str) -> str:
    scores = ("status", "tokens", "logprob", "finish", "similarity", "similarity_min")
    columns = ", ".join(f"{style}_{name}" for name in scores)
    return (
        f"SELECT run, shard, uid, '{style}', caption_{style}, {columns} "
        f"FROM captions WHERE {style}_status <> 'absent'"
    )


def _runs(out: str, prefix: str) -> str:
    globs = [g for g in (f"{kind}/*/run.json" for kind in _KINDS) if _any(out, g)]
    if not globs:
        return _empty(pa.schema([]), _RUNS)
    files = ", ".join(_quoted(prefix + glob) for glob in globs)
    types = ", ".join(f"{name}: {_quoted(kind)}" for name, kind in _RUNS.items())
    return f"SELECT {', '.join(_RUNS)} FROM read_json([{files}], columns = {{{types}}})"


_KINDS = ("columns", "captions", "keep", "mix")


def _any(out: str, glob: str) -> bool:
    fs, path = url_to_fs(storage.join(out, glob))
    return bool(fs.glob(path))


def _empty(schema: pa.Schema, more: dict[str, str]) -> str:
    types = {field.name: _SQL_TYPES[field.type] for field in schema} | more
    columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in types.items())
    return f"SELECT {columns} WHERE false"


def _names(schema: pa.Schema) -> str:
    return ", ".join(schema.names)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
