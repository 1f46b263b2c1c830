"""One sidecar opened for a few of its columns: its record, their bytes' hash, and their values."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import commit, storage
from pipeline.reading import BadShard
from pipeline.runs import canonical


class Sidecar:
    """Reads no more of the file than the columns asked for: embeddings beside them stay unread."""

    def __init__(self, url: str) -> None:
        """BadShard where the file is absent, torn or not ours."""
        self.url = url
        try:
            self._buffer = _opened(url)
            self._file = pq.ParquetFile(self._buffer, page_checksum_verification=True)
            self.record = commit.record_in(self._file.metadata)
        except FileNotFoundError as e:
            raise BadShard(f"{storage.public(url)} does not exist: make it first") from e
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as e:
            raise self._damaged() from e

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def digest(self, columns: Sequence[str]) -> str:
        """A hash of the stored bytes of some columns and of what the record says they came from."""
        made_of = (self.record.config_hash, self.record.inputs, self.record.environment)
        digest = hashlib.sha256(canonical([made_of, sorted(columns)]).encode())
        for stored in self._stored(columns):
            digest.update(stored)
        return digest.hexdigest()

    def stores_the_same(self, other: "Sidecar", column: str) -> bool:
        """Whether both files hold a column in the same bytes; if not, it may still be equal."""
        pairs = zip_longest(self._stored([column]), other._stored([column]))
        return all(mine == theirs for mine, theirs in pairs)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns, every row, in order; BadShard where their bytes are damaged."""
        try:
            return self._file.read(columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as e:
            raise self._damaged() from e

    def _stored(self, columns: Sequence[str]) -> Iterator[bytes]:
        """The bytes of the chunks of some columns, in the file's order."""
        footer = self._file.metadata
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                chunk = footer.row_group(group).column(number)
                if chunk.path_in_schema.split(".")[0] in columns:
                    self._buffer.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
                    yield self._buffer.read(chunk.total_compressed_size)

    def _damaged(self) -> BadShard:
        return BadShard(f"{storage.public(self.url)} is damaged: delete it and make it again")


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column of a table whose chunks are combined."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _opened(url: str) -> pa.NativeFile:
    return pa.memory_map(url) if storage.is_local(url) else commit.in_memory(url)
