"""What importing knows of a set of images with texts: its name, its rows, and what it holds now."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline import storage
from pipeline.errors import UserError
from pipeline.runs import canonical

ROW_REASONS = (
    "no_image",
    "too_many_bytes",
    "elsewhere",  # the row names a file that is not one of the set
    "unreadable",  # the file that it names cannot be read
)
"""Why a row has no image."""

HINT = "a name on the hub, a folder of images with metadata, or parquet, arrow or .tar files"

_NOT_KEPT = ("exif", "xmp", "gps")  # where a person was
_WHOLE_BYTES = 1 << 16  # files up to this size are hashed whole
_BLOCKS, _BLOCK_BYTES = 16, 1 << 12  # of larger ones, spread evenly
_MAX_FOOTER_BYTES = 1 << 28


@dataclass(frozen=True)
class SetName:
    """Which set is meant. path: a name on the hub, a folder, or files (a glob) of one format."""

    path: str
    subset: str = ""
    split: str = "train"
    revision: str = ""


@dataclass(frozen=True)
class Columns:
    """Where a row's image and captions are."""

    image: str
    caption: tuple[str, ...]  # none where nothing looks like a caption; `a.b` is b of a struct
    classes: tuple[str, ...] = ()  # columns of class numbers, written as the classes' names


@dataclass(frozen=True)
class Row:
    """A row of a set. reason: why there is no image, or none that can be read."""

    image: bytes
    reason: str
    texts: tuple[str, ...]  # all captions, in order
    text_status: str = ""  # of TEXT_STATUSES, where the set itself says what is wrong with its text
    told: dict[str, Any] = field(default_factory=dict)  # what else it has, as JSON holds it


@dataclass(frozen=True)
class Sources:
    """How many rows each piece that can be read by itself has; identity: what the set is now."""

    counts: tuple[int, ...]
    identity: str

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Which (source, first row, rows) make up the rows from start to stop of the whole set."""
        found, before = [], 0
        for source, count in enumerate(self.counts):
            first, last = max(start, before), min(stop, before + count)
            if first < last:
                found.append((source, first - before, last - first))
            before += count
        return found


class OpenedSet(Protocol):
    """A set that can be read: `image_text_set.ImageTextSet` or `tar_set.TarSet`."""

    name: SetName
    identity: (
        str  # a hash of which files it has, and of their content; not of when they were written
    )

    def columns(self, image: str = "", caption: str = "") -> Columns:
        """The columns to read, as given or by their types and names. Raises UserError."""

    def sources(self, limit: int = 0) -> Sources:
        """Counts the rows, no further than `limit` asks."""

    def rows(self, source: int, start: int = 0, count: int | None = None) -> Iterator[Any]:
        """Some rows of one source, as the set stores them."""

    def read(self, row: Any, columns: Columns) -> Row:
        """A row of `rows`, its image as it is stored."""


def kept(values: Mapping) -> dict[str, Any]:
    """Of a row's values those that JSON can hold, less what locates a person."""
    told = {str(name): value for name, value in values.items() if _is_json(value)}
    return {name: value for name, value in told.items() if name.lower() not in _NOT_KEPT}


def texts_at(value: object, steps: Sequence[str] = ()) -> Iterator[str]:
    """The texts of a value, in order: of lists each, of structs the field that is the next step."""
    if isinstance(value, list):
        for one in value:
            yield from texts_at(one, steps)
    elif isinstance(value, dict) and steps:
        yield from texts_at(value.get(steps[0]), steps[1:])
    elif isinstance(value, str) and not steps:
        yield value


def identity_of(files: Sequence[str], known: object = None) -> str:
    """A hash of a set's files: of local ones by their content, of others by size and ETag.

    known: what a hub says of all of them, its commit for example; then no store is asked. Of large
    files only some blocks are read, of parquet the footer, which knows every page's size.
    """
    if all(map(storage.is_local, files)) or known is None:
        with ThreadPoolExecutor(16) as pool:
            known = list(pool.map(_content, files))
    told = [[storage.public(file) for file in files], known]
    return hashlib.sha256(canonical(told).encode()).hexdigest()


def _content(url: str) -> list:
    if not storage.is_local(url):
        now = storage.fingerprint(url)
        return [now.size, now.etag]
    size = Path(url).stat().st_size
    digest = hashlib.sha256()
    with Path(url).open("rb") as file:
        for start, count in _looked_at(url, size, file):
            file.seek(start)
            digest.update(file.read(count))
    return [size, digest.hexdigest()]


def _looked_at(url: str, size: int, file: Any) -> list[tuple[int, int]]:
    """(start, bytes) of what stands for a file's content."""
    if size <= _WHOLE_BYTES:
        return [(0, size)]
    if url.endswith(".parquet"):
        file.seek(size - 8)
        footer = int.from_bytes(file.read(4), "little") + 8
        footer = min(footer, size, _MAX_FOOTER_BYTES)
        return [(size - footer, footer)]
    step = (size - _BLOCK_BYTES) // (_BLOCKS - 1)
    starts = [*(i * step for i in range(_BLOCKS - 1)), size - _BLOCK_BYTES]
    return [(start, _BLOCK_BYTES) for start in starts]


def unreadable(name: SetName, error: Exception) -> UserError:
    """One line of what a library, a store or a file is to blame for."""
    why = " ".join(storage.scrub(f"{type(error).__name__}: {error}", name.path).split())[:300]
    return UserError(f"DATASET={storage.public(name.path)} cannot be read: {why}", HINT)


def _is_json(value: object, depth: int = 8) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(
            isinstance(k, str) and _is_json(v, depth - 1) for k, v in value.items()
        )
    if isinstance(value, list):
        return depth > 0 and all(_is_json(v, depth - 1) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)
