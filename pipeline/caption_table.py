"""Captions from elsewhere: a parquet or JSON-lines file, keyed by uid, by shard and key, or by sha256."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import duckdb
import fsspec

from pipeline import storage
from pipeline.errors import UserError

_KEYS = {
    ("uid",): ("uid",),
    ("shard", "key"): ("shard || '/' || key", "stem || '/' || key"),
    ("sha256",): ("sha256", "source_sha256"),
}
"""Columns that name a sample, the first that are there; and what they equal in a table of samples."""

_PARQUET = (".parquet", ".pq")
_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".json")
_EXAMPLE = "give .parquet or .jsonl with uid, shard and key, or sha256, and caption or captions"


@dataclass(frozen=True)
class CaptionTable:
    """A file, or a folder of them such as a caption run."""

    spec: str

    def files(self) -> list[str]:
        """What is read; UserError where there is nothing."""
        found = [self.spec]
        if not self.spec.endswith((*_PARQUET, *_LINES)):
            found = [f for s in (*_PARQUET, *_LINES) for f in storage.list_files(self.spec, s)]
            found = [f for f in found if not f.endswith("/run.json")]
        try:
            missing = [file for file in found if not storage.exists(file)]
        except OSError as e:
            raise UserError(f"CAPTIONS={storage.public(self.spec)}: {e.strerror}", _EXAMPLE) from e
        if missing or not found:
            raise UserError(
                f"CAPTIONS={storage.public(self.spec)}: there is no such file", _EXAMPLE
            )
        if len({_reader(file) for file in found}) > 1:
            raise UserError(f"CAPTIONS={storage.public(self.spec)} mixes formats", _EXAMPLE)
        return found

    def identity(self) -> list:
        """Changes with the content of every file."""
        return [[Path(file).name, _content(file)] for file in self.files()]

    def create_view(self, connection: duckdb.DuckDBPyConnection, style: str) -> tuple[str, ...]:
        """Makes the table `said` (k, captions); returns what k equals in a table of samples.

        A style's own column (`caption_short`) comes before `captions` and `caption`; beside a status
        column only captions that are ok count. Rows of one key are several captions of one sample.
        Raises UserError where no key or no caption is among the columns.
        """
        if not storage.is_local(self.spec):
            connection.register_filesystem(fsspec.filesystem(self.spec.split("://")[0]))
        files = ", ".join(map(_quoted, self.files()))
        is_parquet = _reader(self.files()[0]) == _PARQUET
        try:
            columns = (_of_parquet if is_parquet else _of_json)(connection, files)
            key = next((names for names in _KEYS if set(names) <= set(columns)), None)
            text, where = _text(columns, style)
            if key is None or not text:
                raise UserError(
                    f"CAPTIONS={storage.public(self.spec)} has the columns {', '.join(columns)}",
                    _EXAMPLE,
                )
            k = " || '/' || ".join(columns[name] for name in key)
            connection.sql(
                "CREATE TEMP TABLE said AS SELECT k, list(t ORDER BY place) AS captions FROM ("
                f"SELECT k, trim(regexp_replace(t, '\\s+', ' ', 'g')) AS t, row_number() OVER () "
                f"AS place FROM (SELECT {k} AS k, unnest({text}) AS t FROM given WHERE {where})) "
                "WHERE t <> '' AND k IS NOT NULL GROUP BY k"
            )
        except duckdb.Error as e:
            line = " ".join(str(e).split())[:300]
            raise UserError(
                f"CAPTIONS={storage.public(self.spec)}: {storage.scrub(line, self.spec)}", _EXAMPLE
            ) from e
        return _KEYS[key]

    @property
    def data_folder(self) -> str:
        """The folder whose shards.parquet names the shards: a caption run lies two levels below it."""
        folder = self.spec.rstrip("/").rsplit("/", 2)[0]
        return folder if storage.exists(storage.join(folder, "shards.parquet")) else ""


def _content(file: str) -> str:
    """What an object store says of its content, else the hash of its bytes."""
    if not storage.is_local(file) and (etag := storage.fingerprint(file).etag):
        return etag
    with storage.open_read(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _reader(file: str) -> tuple[str, ...]:
    return _PARQUET if file.endswith(_PARQUET) else _LINES


def _of_parquet(connection: duckdb.DuckDBPyConnection, files: str) -> dict[str, str]:
    """Makes the view `given`; column -> SQL of its text, of a list of texts for `..[]`."""
    connection.sql(f"CREATE TEMP VIEW given AS FROM read_parquet([{files}])")
    types = connection.sql("DESCRIBE given").fetchall()
    return {
        name: f'CAST("{name}" AS VARCHAR[])'
        if str(kind).endswith("[]")
        else f'CAST("{name}" AS VARCHAR)'
        for name, kind, *_ in types
    }


def _of_json(connection: duckdb.DuckDBPyConnection, files: str) -> dict[str, str]:
    """The same of JSON, whose values are taken as they stand: no text is guessed to be a time."""
    connection.sql(f"CREATE TEMP TABLE given AS FROM read_json_objects([{files}])")
    names = connection.sql("SELECT DISTINCT unnest(json_keys(json)) FROM given").fetchall()
    return {name: f"(json ->> {_quoted(_pointer(name))})" for (name,) in sorted(names)}


def _pointer(name: str) -> str:
    """A member of an object, whatever is in its name (RFC 6901)."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _text(columns: dict[str, str], style: str) -> tuple[str, str]:
    """The SQL of a list with a row's captions, and which rows count."""
    for name in (f"caption_{style}", "captions", "caption", "text"):
        if name not in columns:
            continue
        text = columns[name]
        if text.startswith("(json"):
            value = f"json_extract(json, {_quoted(_pointer(name))})"
            one = f"CASE json_type({value}) WHEN 'VARCHAR' THEN [{text}] ELSE [] END"
            many = f"from_json({value}, '[\"VARCHAR\"]')"
            text = f"CASE json_type({value}) WHEN 'ARRAY' THEN {many} ELSE {one} END"
        elif not text.endswith("[])"):
            text = f"[{text}]"
        status = f"{name.removeprefix('caption_')}_status"
        has_status = name == f"caption_{style}" and status in columns
        return text, f"{columns[status]} = 'ok'" if has_status else "true"
    return "", ""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
