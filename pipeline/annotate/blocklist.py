"""Block-lists: hashes of images that must not be used, read from files; perceptual ones in a radius."""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.annotate.hash_index import HashIndex
from pipeline.errors import UserError
from pipeline.hashes import RELIABLE_QUALITY

DIGITS = {"md5": 32, "sha256": 64, "phash": 16, "pdq": 64}
"""Kinds of hashes, named as the columns of stage `image`, and their numbers of hex digits."""
RADIUS = {"phash": 6, "pdq": 31}
"""Bits in which the perceptual ones may differ, by default: 31 is PDQ's own advice."""
WIDEST = {"phash": 15, "pdq": 63}
"""Beyond, a list of any length matches strangers."""
MAX_BYTES = 2**31

COLUMNS = {
    "md5": ("md5", "fetched_md5"),
    "sha256": ("sha256", "fetched_sha256"),
    "phash": ("phash",),
    "pdq": ("pdq",),
}
"""The columns of stage `image` that a kind is looked for in."""

_NAMES = {kind: kind for kind in DIGITS} | {"pdq_hash": "pdq", "hash": "", "value": ""}
_BY_DIGITS = {16: "phash", 32: "md5"}
_HASH = re.compile(r"[0-9a-f]+")

Values = Iterator[tuple[int, str]]  # line or row, from 1, and what stands there


@dataclass(frozen=True, eq=False)
class Blocklist:
    """The distinct hashes of one file. They stand in no message and no representation."""

    name: str  # of the file, without folders
    kind: str  # of DIGITS
    sha256: str  # of the file's bytes
    hashes: np.ndarray = field(repr=False)  # uint64 (N, digits / 16), sorted

    @property
    def title(self) -> str:
        """What column `blocked` says of a match: `known.txt:md5`."""
        return f"{self.name}:{self.kind}"

    @property
    def config(self) -> dict:
        """What a run records of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sha256": self.sha256,
            "count": len(self.hashes),
        }


def read_blocklist(spec: str, flag: str = "BLOCKLISTS") -> Blocklist:
    """Reads `[kind:]file`: txt (a hash per line, # for comments), csv or tsv, or parquet.

    Hashes are hex digits of either case, all of one kind. Where no kind is given, the name of the
    column tells it (md5, sha256, phash, pdq), else the number of digits; 64 digits may be sha256 or
    pdq, and are refused. file: a path or any fsspec URL. Raises UserError, which never shows a hash.
    """
    prefix, _, rest = spec.partition(":")
    kind, url = (prefix, rest) if prefix in DIGITS else ("", spec)
    what = f"{flag}={storage.public(spec)}"
    data = _read(url, what)
    name = storage.public(url).rstrip("/").rsplit("/", 1)[-1]
    try:
        kind, values = _values(data, name, kind, what)
        kind, found = _parsed(values, kind, what)
    except csv.Error as error:
        raise UserError(f"{what} is no readable csv file", "write it anew") from error
    words = np.frombuffer(found, ">u8").reshape(-1, DIGITS[kind] // 16).astype(np.uint64)
    return Blocklist(name, kind, hashlib.sha256(data).hexdigest(), np.unique(words, axis=0))


def _read(url: str, what: str) -> bytes:
    try:
        size = storage.fingerprint(url).size
        if size <= MAX_BYTES:
            return storage.read_bytes(url)
    except OSError as error:
        raise UserError(
            f"{what} cannot be read ({type(error).__name__})", "check the path"
        ) from error
    raise UserError(f"{what} has {size} bytes", f"split it into lists of at most {MAX_BYTES}")


def _values(data: bytes, name: str, kind: str, what: str) -> tuple[str, Values]:
    """The kind, where it was given or the column names it, and what stands in its column."""
    if data[:4] == b"PAR1":
        return _parquet(data, kind, what)
    text = data.decode("utf-8-sig", "replace")
    if name.endswith((".csv", ".tsv")):
        return _table(text, "\t" if name.endswith(".tsv") else ",", kind, what)
    lines = (line.partition("#")[0] for line in io.StringIO(text))
    return kind, enumerate(lines, 1)


def _table(text: str, delimiter: str, kind: str, what: str) -> tuple[str, Values]:
    """Of a csv with a header, or without one where its first row holds a hash."""
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    first = next(rows, [])
    hashes = [i for i, cell in enumerate(first) if len(_cleaned(cell)) in DIGITS.values()]
    hashes = [i for i in hashes if _HASH.fullmatch(_cleaned(first[i]))]
    if hashes:
        column, start = hashes[0], 1
        rows = chain([first], rows)
    else:
        column, kind = _chosen(first, kind, what)
        start = 2
    return kind, (
        (i, row[column] if len(row) > column else "") for i, row in enumerate(rows, start)
    )


def _parquet(data: bytes, kind: str, what: str) -> tuple[str, Values]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        column, kind = _chosen(names, kind, what)
        type_ = file.schema_arrow.field(column).type
        read = file.read(columns=[names[column]]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{what} is no readable parquet file", "write it anew") from error
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return kind, enumerate((v or "" for v in _each(read)), 1)
    if pa.types.is_fixed_size_binary(type_) or pa.types.is_binary(type_):
        return kind, enumerate(((v or b"").hex() for v in _each(read)), 1)
    raise UserError(f"{what}: column {names[column]} is {type_}", "store hex digits as strings")


def _each(column: pa.ChunkedArray) -> Iterator:
    for chunk in column.chunks:
        for start in range(0, len(chunk), 1 << 14):
            yield from chunk.slice(start, 1 << 14).to_pylist()


def _chosen(names: Sequence[str], kind: str, what: str) -> tuple[int, str]:
    """The column to read and its kind; "" where its name does not tell."""
    cleaned = [name.strip().lower() for name in names]
    known = [(i, _NAMES[name]) for i, name in enumerate(cleaned) if name in _NAMES]
    fitting = [pair for pair in known if pair[1] == kind] if kind else []
    fitting = fitting or [pair for pair in known if not (kind and pair[1])]
    if len(fitting) == 1:
        return fitting[0][0], fitting[0][1] or kind
    asked = f"one column {kind or 'of hashes'}"
    raise UserError(
        f"{what} must have {asked}, it has {len(fitting)}",
        f"name the column {', '.join(DIGITS)}, and with several of them give <kind>:<file>",
    )


def _cleaned(text: str) -> str:
    return text.strip().strip("\"'").lower()


def _parsed(values: Values, kind: str, what: str) -> tuple[str, bytes]:
    """The kind, and all hashes one after another; empty lines say nothing."""
    found = bytearray()
    for line, value in values:
        digits = _cleaned(value)
        if not digits:
            continue
        kind = kind or _BY_DIGITS.get(len(digits), "")
        if not kind and len(digits) == 64:
            raise UserError(
                f"{what}: hashes of 64 digits are sha256 or pdq",
                "write sha256:<file> or pdq:<file>",
            )
        if not kind or len(digits) != DIGITS[kind] or not _HASH.fullmatch(digits):
            expected = f"{kind} of {DIGITS[kind]} hex digits" if kind else "hash that is known"
            raise UserError(
                f"{what}, line {line}: no {expected}",
                f"known are {', '.join(f'{k} ({n} digits)' for k, n in DIGITS.items())}",
            )
        found += bytes.fromhex(digits)
    if not found:
        raise UserError(f"{what} holds no hash", "give one hash per line, or leave it out")
    return kind, bytes(found)


# --- matching ------------------------------------------------------------------------------------


def check_radii(lists: Sequence[Blocklist], radius: Mapping[str, int]) -> dict[str, int]:
    """The radius of each kind that is there; UserError where one is too wide to mean anything."""
    kinds = sorted({one.kind for one in lists} & RADIUS.keys())
    chosen = {kind: radius.get(kind, RADIUS[kind]) for kind in kinds}
    for kind, bits in chosen.items():
        if not 0 <= bits <= WIDEST[kind]:
            raise UserError(
                f"{kind} radius {bits} is out of range", f"give 0 to {WIDEST[kind]} bits"
            )
    return chosen


class Blocker:
    """Lists that are ready to be asked; index memory as `HashIndex` says."""

    def __init__(self, lists: Sequence[Blocklist], radius: Mapping[str, int]) -> None:
        ready = [(one, HashIndex(one.hashes, radius.get(one.kind, 0))) for one in lists]
        self._asked = [(one, index, c) for one, index in ready for c in COLUMNS[one.kind]]

    def matches(self, rows: Sequence[Mapping]) -> list[tuple[str, int] | None]:
        """(title of the list, distance) for each row of stage `image`, None where none matches.

        The nearest match; of equally near ones, that of the list given first. Pictures below
        RELIABLE_QUALITY are compared by their exact hashes only: plain ones are all alike.
        """
        best: list[tuple[str, int] | None] = [None] * len(rows)
        for one, index, column in self._asked:
            asked = [i for i, row in enumerate(rows) if _comparable(row, one.kind, column)]
            words = _words([rows[i][column] for i in asked], DIGITS[one.kind])
            _, distances = index.nearest(words)
            for i, distance in zip(asked, distances.tolist(), strict=True):
                before = best[i]
                if distance >= 0 and (before is None or distance < before[1]):
                    best[i] = (one.title, distance)
        return best


def _words(hashes: Sequence[str], digits: int) -> np.ndarray:
    """Hex digits as uint64 (N, digits / 16)."""
    data = np.frombuffer(bytes.fromhex("".join(hashes)), ">u8")
    return data.reshape(-1, digits // 16).astype(np.uint64)


def _comparable(row: Mapping, kind: str, column: str) -> bool:
    if kind in RADIUS and (row.get("pdq_quality") or 0) < RELIABLE_QUALITY:
        return False
    return row[column] is not None
