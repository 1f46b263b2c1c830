"""The catalog: DuckDB views over everything a data folder holds, by paths relative to it."""

import re
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline import manifest, storage
from pipeline.errors import UserError
from pipeline.schemas import (
    CAPTIONS,
    COLUMNS,
    EVALUATED_CAPTIONS,
    EVALUATIONS,
    EXPERIMENT,
    GENERATED,
    GENERATOR_EVALUATIONS,
    KEEP,
    MIX,
    SHARDS,
    STYLES,
)

FILE = "catalog.duckdb"
VIEWS = (
    *("shards", "samples", "columns", "captions", "caption_texts", "keep", "mix", "runs"),
    *("evaluations", "evaluated_captions", "generator_evaluations", "generated"),
    "experiment",
)

_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.list_(pa.float32()): "FLOAT[]",
    pa.list_(pa.string()): "VARCHAR[]",
}
_RUNS = {
    "kind": "VARCHAR",
    "run": "VARCHAR",
    "config_hash": "VARCHAR",
    "config": "JSON",
    "environment": "JSON",
    "shards": "VARCHAR[]",
}
_RUN = "split_part(filename, '/', -2) AS run"
_SHARD = "regexp_replace(split_part(filename, '/', -1), '[.]parquet$', '') AS shard"
_RUN_AND_SHARD = f"{_RUN}, {_SHARD}"
_COLUMN_RUN = re.compile(r"[a-z_]+@[^*?\[]+")  # <stage>@<model>
_EVALUATION = "split_part(filename, '/', -2) AS evaluation"


def connect(out: str) -> duckdb.DuckDBPyConnection:
    """A connection with the views of a data folder, from any working directory.

    The views are in memory, so nothing is locked and what was written last is seen.
    Raises UserError where `out` is no data folder.
    """
    out = storage.absolute(out)
    if not storage.exists(storage.join(out, manifest.FILE)):
        raise UserError(f"OUT={out} is no data folder", f"it has no {manifest.FILE} yet")
    connection = duckdb.connect()
    if not storage.is_local(out):
        connection.register_filesystem(url_to_fs(out)[0])
    connection.execute("SET python_enable_replacements = false")  # only views have names
    _create_views(connection, out, prefix=_literal(out.rstrip("/") + "/"))
    return connection


def refresh(out: str) -> None:
    """Writes catalog.duckdb anew, for the plain DuckDB shell; it holds views, not data."""
    if not storage.exists(storage.join(out, manifest.FILE)):
        return
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / FILE
        try:
            with duckdb.connect(str(database)) as connection:
                _create_views(connection, out, prefix=_searched(connection, out, Path(folder)))
        except duckdb.IOException as e:
            raise storage.cannot_write(folder, OSError(str(e))) from e
        storage.write_bytes(storage.join(out, FILE), database.read_bytes())


def _searched(connection: duckdb.DuckDBPyConnection, out: str, folder: Path) -> str:
    """What paths in the views begin with: nothing, where a search path can lead DuckDB to the files.

    It looks at them as it makes the views. The search path is split at commas, so it is a link.
    """
    if not storage.is_local(out):
        connection.register_filesystem(url_to_fs(out)[0])
        return out.rstrip("/") + "/"
    link = folder / "out"
    link.symlink_to(storage.absolute(out))
    connection.execute(f"SET file_search_path = {_quoted(str(link))}")
    return ""


def _create_views(connection: duckdb.DuckDBPyConnection, out: str, prefix: str) -> None:
    for name, body in _views(out, prefix).items():
        try:
            connection.execute(f"CREATE OR REPLACE VIEW {_identifier(name)} AS {body}")
        except (duckdb.InvalidInputException, duckdb.BinderException) as e:  # of the first file
            why = " ".join(str(e).split())
            raise UserError(f"OUT={out}: no view of {name}: {why}", "make that file again") from e


def _views(out: str, prefix: str) -> dict[str, str]:
    def over(glob: str, schema: pa.Schema, columns: str) -> str:
        """A view over files, or, where there are none, an empty one of the same types."""
        if storage.glob(out, glob):
            return f"SELECT {columns} FROM read_parquet({_quoted(prefix + glob)})"
        files = _empty(schema, {"filename": "VARCHAR"})
        return f"SELECT {columns} FROM ({files})"

    fixed = {
        "shards": over(manifest.FILE, SHARDS, _names(SHARDS)),
        "captions": over("captions/*/*.parquet", CAPTIONS, f"{_RUN_AND_SHARD}, {_names(CAPTIONS)}"),
        "keep": over("keep/*/*.parquet", KEEP, f"{_RUN_AND_SHARD}, {_names(KEEP)}"),
        "mix": over("mix/*/*.parquet", MIX, f"{_RUN_AND_SHARD}, {_names(MIX)}"),
        "columns": over(
            "columns/*/*.parquet",
            COLUMNS,
            _RUN_AND_SHARD.replace("AS run", "AS stage") + f", {_names(COLUMNS)}",
        ),
        "evaluations": over(
            "evaluations/*/metrics.parquet", EVALUATIONS, f"{_EVALUATION}, {_names(EVALUATIONS)}"
        ),
        "evaluated_captions": over(
            "evaluations/*/captions.parquet",
            EVALUATED_CAPTIONS,
            f"{_EVALUATION}, {_names(EVALUATED_CAPTIONS)}",
        ),
        "generator_evaluations": over(
            "evaluations/*/figures.parquet",
            GENERATOR_EVALUATIONS,
            f"{_EVALUATION}, {_names(GENERATOR_EVALUATIONS)}",
        ),
        "generated": _generated(out, prefix),
        "experiment": over("results/*/table.parquet", EXPERIMENT, f"{_RUN}, {_names(EXPERIMENT)}"),
        "samples": _SAMPLES,
        "caption_texts": " UNION ALL ".join([_ORIGINALS, *map(_synthetic, STYLES)]),
        "runs": _runs(out, prefix),
    }
    return fixed | _stages(out, prefix)


def _stages(out: str, prefix: str) -> dict[str, str]:
    """What annotators wrote, with their own columns: `"clip@ViT-B-32"`, one view for each run;
    `clip`, all runs of that stage with their `model`; and `annotations`, everything in one row per
    sample, of the stages that have but one run."""
    views, stages = {}, {}
    for run in _column_runs(out):
        files = _quoted(f"{prefix}columns/{run}/*.parquet")
        views[run] = f"SELECT {_SHARD}, * FROM read_parquet({files})"
        stages.setdefault(run.split("@")[0], []).append(run)
    for stage, of_it in stages.items():
        models = [(_quoted(run.partition("@")[2]), _identifier(run)) for run in of_it]
        views[stage] = " UNION ALL BY NAME ".join(
            f"SELECT {model} AS model, * FROM {run}" for model, run in models
        )
    single = {stage: runs[0] for stage, runs in stages.items() if len(runs) == 1}
    return views | ({"annotations": _annotations(single)} if single else {})


def _annotations(single: dict[str, str]) -> str:
    identity = "uid, key, shard, status, reason"
    own = ", ".join(
        f"{s}.* EXCLUDE ({identity}), {s}.status AS {s}_status, {s}.reason AS {s}_reason"
        for s in single
    )
    joins = " ".join(
        f"LEFT JOIN {_identifier(run)} AS {s} USING (uid)" for s, run in single.items()
    )
    samples = "SELECT uid, min(key) AS key, min(shard) AS shard FROM columns GROUP BY uid"
    return f"SELECT sample.uid, sample.key, sample.shard, {own} FROM ({samples}) AS sample {joins}"


def _column_runs(out: str) -> list[str]:
    """The runs of columns that hold anything, by name."""
    files = storage.glob(out, "columns/*/*.parquet")
    found = {file.rsplit("/", 2)[-2] for file in files}
    return sorted(run for run in found if _COLUMN_RUN.fullmatch(run))


def _generated(out: str, prefix: str) -> str:
    """The pictures of all evaluations of generators, with whatever columns any of them has."""
    glob = "evaluations/*/samples.parquet"
    typed = _empty(GENERATED, {"filename": "VARCHAR"})
    typed = f"SELECT {_EVALUATION}, * EXCLUDE filename FROM ({typed})"
    if not storage.glob(out, glob):
        return typed
    files = f"read_parquet({_quoted(prefix + glob)}, union_by_name = true)"
    return f"{typed} UNION ALL BY NAME SELECT {_EVALUATION}, * FROM {files}"


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
    globs = [g for g in (f"{kind}/*/run.json" for kind in _KINDS) if storage.glob(out, g)]
    if not globs:
        return _empty(pa.schema([]), _RUNS)
    files = ", ".join(_quoted(prefix + glob) for glob in globs)
    types = ", ".join(f"{name}: {_quoted(kind)}" for name, kind in _RUNS.items())
    return f"SELECT {', '.join(_RUNS)} FROM read_json([{files}], columns = {{{types}}})"


_KINDS = ("columns", "captions", "keep", "mix", "evaluations", "results")


def _empty(schema: pa.Schema, more: dict[str, str]) -> str:
    types = {field.name: _SQL_TYPES[field.type] for field in schema} | more
    columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in types.items())
    return f"SELECT {columns} WHERE false"


def _names(schema: pa.Schema) -> str:
    return ", ".join(schema.names)


def _literal(path: str) -> str:
    """A path in which DuckDB sees no pattern."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
