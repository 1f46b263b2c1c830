"""A cache's file: a safetensors file whose rows are written block by block and read one by one."""

# N rows of the shard

import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.commit import Record
from pipeline.loading.ranges import read_patiently
from pipeline.runs import canonical

SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 1 << 22
_RECORD_BYTES = 1 << 16  # kept free for the record, which is known when all rows are written
_METADATA = "recaption"
_DTYPES = {"U8": "|u1", "U16": "<u2", "I32": "<i4", "F16": "<f2", "F32": "<f4"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_AT_ONCE = 16  # requests to an object store
_stores = ThreadPoolExecutor(_AT_ONCE, "cache")  # starts no thread before it is used

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Array:
    """Where an array's bytes are in the file."""

    dtype: np.dtype
    shape: Shape
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        return self.row_bytes * self.shape[0]


class CacheWriter:
    """Writes a file of arrays (N, ...); rows that are never put are zeros.

    arrays: name -> dtype, one of those in `_DTYPES`, and shape. The same rows and record give the
    same bytes, in whatever blocks they are put.
    """

    def __init__(self, part: Path, arrays: Mapping[str, tuple[str | np.dtype, Shape]]) -> None:
        typed = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in arrays.items()}
        # Wide numbers first, so that each array begins at a multiple of its item's size.
        order = sorted(typed, key=lambda name: (-typed[name][0].itemsize, name))
        self._entries, end = {}, 0
        for name in order:
            dtype, shape = typed[name]
            start, end = end, end + dtype.itemsize * math.prod(shape)
            self._entries[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        bare = len(canonical(self._entries)) + _RECORD_BYTES
        self._header_bytes = -(-bare // 4096) * 4096 - 8
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"{len(arrays)} arrays need a header of {self._header_bytes} bytes")
        self._arrays = _arrays(self._entries, self._header_bytes + 8)
        self._file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.truncate(self._file, self._header_bytes + 8 + end)

    def put(self, name: str, first: int, rows: np.ndarray) -> None:
        """Writes rows (n, ...) of an array, from row `first` on."""
        array = self._arrays[name]
        if rows.shape[1:] != array.shape[1:] or first + len(rows) > array.shape[0]:
            raise ValueError(f"{name}: rows {rows.shape} from {first} do not fit {array.shape}")
        data = memoryview(np.ascontiguousarray(rows, array.dtype)).cast("B")
        offset = array.offset + first * array.row_bytes
        while data:  # the system may write less than it is given
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written

    def finish(self, record: Record) -> None:
        """Writes the header, with the record in it, and closes the file."""
        metadata = {_METADATA: canonical(asdict(record))}
        header = canonical(self._entries | {"__metadata__": metadata}).encode()
        if len(header) > self._header_bytes:
            raise ValueError(f"a record of {len(header)} bytes has no room in the header")
        length = self._header_bytes.to_bytes(8, "little")
        os.pwrite(self._file, length + header.ljust(self._header_bytes), 0)
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@dataclass(frozen=True)
class CacheFile:
    """What the header of a cache's file says: its arrays, and the record of how it was made."""

    url: str
    arrays: Mapping[str, Array]
    record: Record

    def whole(self, name: str) -> np.ndarray:
        """A small array, all of it: (N, ...)."""
        array = self.arrays[name]
        return np.frombuffer(self.read(array.offset, array.size), array.dtype).reshape(array.shape)

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes; OSError where it ends before."""
        data = read_patiently(self.url, offset, size)
        if len(data) != size:
            raise OSError(f"{storage.public(self.url)} ends before byte {offset + size}")
        return data


def open_cache_file(url: str) -> CacheFile:
    """Reads a header; OSError where there is no such file, ValueError where it is no file of ours."""
    head = read_patiently(url, 0, 1 << 18)
    header_bytes = int.from_bytes(head[:8], "little")
    if len(head) < 8 or header_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"{storage.public(url)} has no header")
    if len(head) < 8 + header_bytes:
        head += read_patiently(url, len(head), 8 + header_bytes - len(head))
    try:
        entries = json.loads(head[8 : 8 + header_bytes])
        record = Record.from_dict(json.loads(entries.pop("__metadata__")[_METADATA]))
        arrays = _arrays(entries, 8 + header_bytes)
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError) as e:
        raise ValueError(f"{storage.public(url)} is no file of a cache: {e}") from e
    size = storage.fingerprint(url).size
    if any(array.offset + array.size > size for array in arrays.values()):
        raise ValueError(f"{storage.public(url)} is torn")
    return CacheFile(url, arrays, record)


def _arrays(entries: Mapping[str, dict], start: int) -> dict[str, Array]:
    """What the entries of a header describe; ValueError, KeyError or TypeError where they are wrong."""
    found = {}
    for name, entry in entries.items():
        first, end = entry["data_offsets"]
        array = Array(np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), start + first)
        if not array.shape or min(array.shape) < 0 or first < 0 or first + array.size != end:
            raise ValueError(f"array {name} of shape {array.shape} is not {end - first} bytes long")
        found[name] = array
    return found


@dataclass(frozen=True)
class RowRequest:
    """A row of an array of a file."""

    file: CacheFile
    name: str
    row: int


def read_rows(requests: Sequence[RowRequest]) -> list[np.ndarray]:
    """The rows that are asked for, and no byte else. Raises OSError and IndexError."""
    remote = any(not storage.is_local(request.file.url) for request in requests)
    return list((_stores.map if remote else map)(_row, requests))


def _row(request: RowRequest) -> np.ndarray:
    array = request.file.arrays[request.name]
    if not 0 <= request.row < array.shape[0]:
        raise IndexError(f"{request.file.url}: row {request.row} of {array.shape[0]}")
    data = request.file.read(array.offset + request.row * array.row_bytes, array.row_bytes)
    return np.frombuffer(data, array.dtype).reshape(array.shape[1:])
