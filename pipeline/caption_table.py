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
    ("shard", "key"): ("shard || '/' || key",),
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
        relation = f"{_reader(self.files()[0])}([{', '.join(map(_quoted, self.files()))}])"
        if not storage.is_local(self.spec):
            connection.register_filesystem(fsspec.filesystem(self.spec.split("://")[0]))
        try:
            types = {
                row[0]: str(row[1])
                for row in connection.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()
            }
            key = next((columns for columns in _KEYS if set(columns) <= set(types)), None)
            text, where = _text(types, style)
            if key is None or not text:
                raise UserError(
                    f"CAPTIONS={storage.public(self.spec)} has the columns {', '.join(types)}",
                    _EXAMPLE,
                )
            k = " || '/' || ".join(f'CAST("{column}" AS VARCHAR)' for column in key)
            connection.sql(
                "CREATE TEMP TABLE said AS SELECT k, list(t ORDER BY place) AS captions FROM ("
                f"SELECT {k} AS k, trim(regexp_replace(t, '\\s+', ' ', 'g')) AS t, row_number() OVER () "
                f"AS place FROM (SELECT *, {text} AS t FROM {relation} WHERE {where})) "
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


def _reader(file: str) -> str:
    return "read_parquet" if file.endswith(_PARQUET) else "read_json_auto"


def _text(types: dict[str, str], style: str) -> tuple[str, str]:
    """The SQL of a row's captions, and which rows count."""
    for name in (f"caption_{style}", "captions", "caption", "text"):
        if name in types:
            text = f'unnest("{name}")' if types[name].endswith("[]") else f'"{name}"'
            status = f"{name.removeprefix('caption_')}_status"
            has_status = name == f"caption_{style}" and status in types
            return text, f"\"{status}\" = 'ok'" if has_status else "true"
    return "", ""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
