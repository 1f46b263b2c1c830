"""URL lists in the formats that img2dataset reads, streamed: no list is ever whole in memory."""

import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline import specs, storage
from pipeline.crawl import json_stream
from pipeline.errors import UserError

FORMATS = ("parquet", "csv", "tsv", "json", "jsonl", "txt")
SUFFIXES = tuple(f".{f}{gz}" for f in FORMATS for gz in ("", ".gz") if f != "parquet" or not gz)

BATCH_ROWS = 10_000
_BLOCK_BYTES = 1 << 18  # Arrow reads 32 of them ahead of a csv, in which a row must fit into one
_HEADER_BYTES = 1 << 13
_MAX_LINE_CHARS = 1 << 20
_MAX_COLUMNS = 4096
_AS_BYTES = {f"f{place}": pa.binary() for place in range(_MAX_COLUMNS)}
_UNREADABLE = (
    *(OSError, EOFError, zlib.error, ValueError, RecursionError, MemoryError),
    *(pa.ArrowException, OverflowError),
)
_SEEN_ROWS = 1000  # of a JSON file, whose rows may differ, to learn its columns from

Batch = dict[str, pa.Array | list]
"""Columns of some rows: Arrow arrays from parquet, strings from text, Python values from JSON."""


def find(spec: str, given: str = "", header: Sequence[str] = ()) -> "list[UrlList]":
    """The lists that a spec names, in order; a folder means the files of the one format in it.

    given: the format of all of them, where their names do not tell. header: names of the columns
    of csv and tsv files that do not begin with them. Raises UserError.
    """
    suffixes = tuple(s for s in SUFFIXES if not given or s.split(".")[1] == given)
    urls = specs.expand(spec, flag="URLS", suffixes=suffixes)
    lists = [_list(url, given, tuple(header)) for url in urls]
    kinds = sorted({found.format for found in lists})
    if len(kinds) > 1:
        raise UserError(
            f"URLS: {storage.public(spec)} holds lists of several formats: {', '.join(kinds)}",
            f"choose one: LIST_FORMAT={kinds[0]}",
        )
    return lists


def _list(url: str, given: str, header: tuple[str, ...]) -> "UrlList":
    path = url.split("?")[0]
    gz = path.endswith(".gz")
    kind = given or path.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in FORMATS:
        raise UserError(
            f"URLS: {storage.public(url)} has no known format",
            f"give LIST_FORMAT={'|'.join(FORMATS)}",
        )
    return UrlList(url, kind, gz, header if kind in ("csv", "tsv") else ())


@dataclass(frozen=True)
class UrlList:
    """One file of URLs; everything that reads it raises UserError naming it."""

    url: str
    format: str
    gz: bool = False
    header: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What people see of it."""
        return storage.public(self.url)

    def schema(self) -> pa.Schema | None:
        """Names and types of the columns of a parquet file; None for others."""
        if self.format != "parquet":
            return None
        with self.reading(), self._bytes() as file:
            return pq.read_schema(file)

    def columns(self) -> list[str]:
        """Names of its columns; of JSON those of the first rows."""
        with self.reading():
            if self.format == "parquet":
                return self.schema().names
            if self.format == "txt":
                return ["url"]
            if self.format in ("csv", "tsv"):
                return list(self.header) or _texts(self._csv_header())
            some = itertools.islice(self._json_rows(), _SEEN_ROWS)
            return list(dict.fromkeys(name for row in some for name in row))

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """These columns of all rows in order, some thousand rows at a time.

        A column that it lacks is null. Empty lines of a txt file are no rows.
        """
        with self.reading():
            if self.format == "parquet":
                yield from self._parquet(columns)
            elif self.format in ("csv", "tsv"):
                yield from self._csv(columns)
            elif self.format == "txt":
                urls = (line.strip() for line in self._lines())
                for some in _grouped(url for url in urls if url):
                    yield {c: some if c == "url" else [None] * len(some) for c in columns}
            else:
                for some in _grouped(self._json_rows()):
                    yield {c: [row.get(c) for row in some] for c in columns}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Whatever goes wrong with what is read, said in one line as UserError."""
        try:
            yield
        except FileNotFoundError as e:
            raise UserError(f"URLS: {self.name} does not exist", "check the path or pattern") from e
        except _UNREADABLE as e:
            why = " ".join(storage.scrub(str(e), self.url).split())[:300]
            raise UserError(
                f"URLS: {self.name} cannot be read as {self.format}: {why}",
                "mend the list, or give its LIST_FORMAT",
            ) from e

    # --- how each format is read -------------------------------------------------------------

    def _parquet(self, columns: Sequence[str]) -> Iterator[Batch]:
        with self._bytes() as file:
            table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BLOCK_BYTES)
            there = [c for c in columns if c in table.schema_arrow.names]
            # Without threads: none may hold the file when the interpreter exits.
            for batch in table.iter_batches(BATCH_ROWS, columns=there, use_threads=False):
                nulls = pa.nulls(batch.num_rows)
                yield {c: batch.column(c) if c in there else nulls for c in columns}

    def _csv(self, columns: Sequence[str]) -> Iterator[Batch]:
        names = self.columns()
        there = {c: f"f{names.index(c)}" for c in columns if c in names}
        # A file may begin with the header that was given for those that do not.
        skip = not self.header or _texts(self._csv_header()) == names
        for batch in self._csv_batches(list(there.values())):
            if skip and batch.num_rows:
                batch, skip = batch.slice(1), False
            found = {c: decoded(batch.column(place)) for c, place in there.items()}
            yield {c: found.get(c, pa.nulls(batch.num_rows)) for c in columns}

    def _csv_header(self) -> list[bytes]:
        """The first row; a larger piece of the file is read only where that takes it."""
        try:
            return self._csv_first(_HEADER_BYTES)
        except pa.ArrowInvalid:
            return self._csv_first(_BLOCK_BYTES)

    def _csv_first(self, block_bytes: int) -> list[bytes]:
        for batch in self._csv_batches(None, block_bytes):
            for row in batch.slice(0, 1).to_pylist():
                if len(row) > _MAX_COLUMNS:
                    raise ValueError(f"it has more than {_MAX_COLUMNS} columns")
                return list(row.values())
        return []

    def _csv_batches(
        self, places: list[str] | None, block_bytes: int = _BLOCK_BYTES
    ) -> Iterator[pa.RecordBatch]:
        """All rows, the header too, of the columns f0, f1, ... (None: all), as bytes.

        Bytes, since one name in another encoding is no reason to refuse the list.
        """
        # A table without a header comes from a program that knew no quoting either, if it has tabs.
        bare = bool(self.header) and self.format == "tsv"
        with self._bytes() as file:
            yield from pa_csv.open_csv(
                file,
                pa_csv.ReadOptions(
                    use_threads=False, block_size=block_bytes, autogenerate_column_names=True
                ),
                pa_csv.ParseOptions(
                    delimiter="\t" if self.format == "tsv" else ",",
                    quote_char=False if bare else '"',
                    newlines_in_values=not bare,
                ),
                pa_csv.ConvertOptions(column_types=_AS_BYTES, include_columns=places),
            )

    def _json_rows(self) -> Iterator[dict]:
        if self.format == "json":
            yield from json_stream.rows(lambda: _text(self._bytes_opened()))
            return
        for number, line in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise json_stream.BadJson(f"line {number} is no object")
            yield row

    def _lines(self) -> Iterator[str]:
        with _text(self._bytes_opened()) as file:
            while line := file.readline(_MAX_LINE_CHARS):
                if len(line) == _MAX_LINE_CHARS:
                    raise ValueError(f"it has a line of more than {_MAX_LINE_CHARS} characters")
                yield line

    def _bytes_opened(self) -> IO[bytes]:
        file = storage.open_read(self.url)
        return gzip.GzipFile(fileobj=file) if self.gz else file

    @contextmanager
    def _bytes(self) -> Iterator[IO[bytes]]:
        with self._bytes_opened() as file:
            yield file


def _text(file: IO[bytes]) -> IO[str]:
    """UTF-8, with or without a mark of it; what is none becomes a replacement character."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace")


def decoded(column: pa.Array) -> pa.Array:
    """Bytes, or a text that may be none, as text; what is no UTF-8 becomes replacement characters."""
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array(_texts(column.cast(pa.binary()).to_pylist()), pa.string())
    return text


def _texts(raw: Sequence[bytes | None]) -> list[str | None]:
    return [None if value is None else value.decode("utf-8", "replace") for value in raw]


def _grouped(rows: Iterator) -> Iterator[list]:
    while some := list(itertools.islice(rows, BATCH_ROWS)):
        yield some


def finite(value: object) -> object:
    """The value with None for NaN and infinities, which JSON cannot hold, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(v) for v in value]
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return value
