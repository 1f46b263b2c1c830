"""DataComp's subset files: uids as pairs of 64-bit numbers in an .npy, in lexicographic order.

Each uid's 32 hex digits are two `u8`: the first sixteen and the last (DataComp's resharder reads
dtype `u8,u8`, and searches in it as in a sorted list).
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.select import npy

KIND = np.dtype("u8,u8")
_DIGITS = 32
_ROWS_AT_ONCE = 1 << 20


def pairs_of(uids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 (N, 2) of uids; ValueError where one is not 32 hex digits."""
    chunks = uids.chunks if isinstance(uids, pa.ChunkedArray) else [uids]
    pairs = [_pairs(chunk) for chunk in chunks if len(chunk)]
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.uint64)


def _pairs(uids: pa.StringArray) -> np.ndarray:
    lengths = pc.binary_length(uids)
    if uids.null_count or not pc.all(pc.equal(lengths, _DIGITS)).as_py():
        raise ValueError("a uid has not 32 hex digits")
    first = np.frombuffer(uids.buffers()[1], np.int32, 1, 4 * uids.offset)[0]
    text = uids.buffers()[2].slice(first, len(uids) * _DIGITS).to_pybytes()
    packed = bytes.fromhex(text.decode("ascii"))
    if len(packed) != len(uids) * _DIGITS // 2:  # fromhex skips blanks
        raise ValueError("a uid has not 32 hex digits")
    return np.frombuffer(packed, ">u8").reshape(-1, 2).astype(np.uint64)


def uid_text(pair: Iterable[int]) -> str:
    """The uid of a pair."""
    first, last = (int(number) for number in pair)
    return f"{first:016x}{last:016x}"


class UidWriter:
    """Collects uids in any order, on disk where they do not fit, and writes them sorted, each once."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._database = duckdb.connect(str(Path(self._folder.name) / "uids.duckdb"))
        self._database.execute("SET memory_limit = '2GB'")
        self._database.execute("CREATE TABLE uids (first UBIGINT, last UBIGINT)")

    def __enter__(self) -> "UidWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(self, uids: pa.Array | pa.ChunkedArray) -> None:
        """Some uids; ValueError as `pairs_of`."""
        pairs = pairs_of(uids)
        table = pa.table({"first": pairs[:, 0].copy(), "last": pairs[:, 1].copy()})
        self._database.register("added", table)
        self._database.execute("INSERT INTO uids SELECT * FROM added")
        self._database.unregister("added")

    def write(self, url: str) -> int:
        """Writes the file, whole or not at all; returns how many uids are in it."""
        self._database.execute("CREATE TABLE distinct_uids AS SELECT DISTINCT * FROM uids")
        count = self._database.sql("SELECT count(*) FROM distinct_uids").fetchall()[0][0]
        ordered = self._database.sql("SELECT * FROM distinct_uids ORDER BY first, last")
        with storage.write_atomic(url) as part, part.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(KIND), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})
            for batch in ordered.to_arrow_reader(_ROWS_AT_ONCE):
                rows = np.empty(batch.num_rows, KIND)
                rows["f0"], rows["f1"] = (column.to_numpy() for column in batch.columns)
                file.write(rows.tobytes())
        return count


class UidFile:
    """A subset file opened for questions; sorted in memory only where it is not sorted already."""

    def __init__(self, url: str) -> None:
        """UserError where there is none, or it is not of DataComp's type."""
        try:
            rows = npy.open_array(url)
        except (OSError, ValueError) as e:
            raise _unusable(url, " ".join(storage.scrub(str(e), url).split())) from e
        if rows.dtype != KIND or rows.ndim != 1:
            raise _unusable(url, f"it holds {rows.dtype} {rows.shape}")
        self._rows = rows if _is_sorted(rows) else _sorted(rows)

    def __len__(self) -> int:
        """Entries, those that stand there twice counted twice."""
        return len(self._rows)

    def find(self, pairs: np.ndarray) -> np.ndarray:
        """Where pairs uint64 (N, 2) stand in the sorted file: int64 (N,), -1 where they do not.

        A search by halves for all of them at once, so that a mapped file is only read in places.
        """
        low = np.zeros(len(pairs), np.int64)
        high = np.full(len(pairs), len(self._rows), np.int64)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            here = self._rows[np.minimum(middle, len(self._rows) - 1)]
            less = here["f0"] < pairs[:, 0]
            less |= (here["f0"] == pairs[:, 0]) & (here["f1"] < pairs[:, 1])
            low = np.where(open_ & less, middle + 1, low)
            high = np.where(open_ & ~less, middle, high)
        if not len(self._rows):
            return np.full(len(pairs), -1)
        here = self._rows[np.minimum(low, len(self._rows) - 1)]
        found = (here["f0"] == pairs[:, 0]) & (here["f1"] == pairs[:, 1]) & (low < len(self._rows))
        return np.where(found, low, -1)

    def unseen(self, seen: np.ndarray, most: int) -> tuple[int, list[str]]:
        """How many different uids are not marked in `seen` (bool, by place), and the first of them."""
        count, names = 0, []
        for start in range(0, len(self._rows), _ROWS_AT_ONCE):
            rows = np.asarray(self._rows[start : start + _ROWS_AT_ONCE])
            before = self._rows[start - 1 : start] if start else rows[:0]
            again = _equals_previous(np.concatenate([before, rows]))[len(before) :]
            places = np.flatnonzero(~seen[start : start + _ROWS_AT_ONCE] & ~again)
            count += len(places)
            names += [uid_text(rows[place]) for place in places[: most - len(names)]]
        return count, names


def _is_sorted(rows: np.ndarray) -> bool:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = np.asarray(rows[start : start + _ROWS_AT_ONCE + 1])
        first, last = some["f0"], some["f1"]
        falls = (first[1:] < first[:-1]) | ((first[1:] == first[:-1]) & (last[1:] < last[:-1]))
        if falls.any():
            return False
    return True


def _sorted(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    return rows[np.lexsort((rows["f1"], rows["f0"]))]


def _equals_previous(rows: np.ndarray) -> np.ndarray:
    equal = np.zeros(len(rows), bool)
    equal[1:] = (rows["f0"][1:] == rows["f0"][:-1]) & (rows["f1"][1:] == rows["f1"][:-1])
    return equal


def _unusable(url: str, why: str) -> UserError:
    return UserError(
        f"FILE={storage.public(url)} is no list of uids: {why}",
        "give an .npy of dtype u8,u8, as DataComp's filters write it",
    )
