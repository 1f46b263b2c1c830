"""A set of images with texts, read through the `datasets` library: what it holds, and its rows in order.

Images are never decoded or encoded here, no code that comes with a set is run, and only formats
without pickles are read.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.limits import MAX_BYTES
from pipeline.runs import canonical

if TYPE_CHECKING:
    from datasets import Features, IterableDataset

FORMATS = ("parquet", "arrow", "imagefolder", "webdataset")
_OF_SUFFIX = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
CAPTION_NAMES = (
    *("caption", "captions", "text", "txt", "alt", "alt_text", "title", "description"),
    *("sentence", "sentences", "raw", "prompt", "json.caption"),
)
"""Columns that are taken for the caption, in this order; of other names, the only one of strings."""

ROW_REASONS = (
    "no_image",
    "too_many_bytes",
    "elsewhere",  # the row names a file that is not one of the set
    "unreadable",  # the file that it names cannot be read
)
"""Why a row has no image."""

_BATCH = 100  # rows of a parquet file that are in memory at once


@dataclass(frozen=True)
class SetName:
    """Which set is meant. path: a name on the hub, a folder, or files (a glob) of one format."""

    path: str
    subset: str = ""
    split: str = "train"
    revision: str = ""


@dataclass(frozen=True)
class Columns:
    """Where images and captions are. image: alternatives, of which a row has one."""

    image: tuple[str, ...]
    caption: tuple[str, ...]  # none where nothing looks like a caption; `a.b` is b of a struct
    classes: tuple[str, ...]  # columns of class numbers, which are written as the classes' names


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


class ImageTextSet:
    """An opened set. Raises UserError where there is none, or none that can be read."""

    def __init__(self, name: SetName) -> None:
        self.name = name
        try:
            self._dataset, self._builder = _open(name)
        except UserError:
            raise
        except Exception as e:  # datasets and the stores below it raise whatever they like
            raise _unreadable(name, e) from e
        self.features: Features = self._dataset.features
        if self.features is None:
            raise UserError(f"DATASET={name.path} does not say what its columns are", _HINT)
        for column, feature in self.features.items():
            if _kind(feature) == "Image":
                self._dataset = self._dataset.cast_column(column, _undecoded())
        self.root = _root(name, self._builder)

    @property
    def identity(self) -> str:
        """A hash of which files it has, and of what is known of their content without reading it."""
        files = self._builder.config.data_files[self.name.split]
        known = [[str(file) for file in files], files.origin_metadata]
        return hashlib.sha256(canonical(known).encode()).hexdigest()

    def columns(self, image: str = "", caption: str = "") -> Columns:
        """The columns to read, as given or by their types and names. Raises UserError."""
        classes = [n for n, f in self.features.items() if _kind(f) == "ClassLabel"]
        return Columns(self._images(image), self._captions(caption), tuple(classes))

    def sources(self, limit: int = 0) -> Sources:
        """Counts the rows, no further than `limit` asks: from footers where it is parquet, else by
        going through them once."""
        counts = self._footers()
        if counts is None:
            counts = []
            for source in range(self._dataset.num_shards):
                if limit and sum(counts) >= limit:
                    break
                counts.append(sum(1 for _ in self.rows(source)))
        return Sources(tuple(counts), self.identity)

    def rows(self, source: int, start: int = 0, count: int | None = None) -> Iterator[dict]:
        """Some rows of one source; images as {"bytes", "path"}."""
        part = self._dataset.shard(self._dataset.num_shards, source)
        part = part.skip(start) if start else part
        rows = iter(part if count is None else part.take(count))
        while True:
            try:
                row = next(rows, None)
            except Exception as e:
                raise _unreadable(self.name, e) from e
            if row is None:
                return
            yield row

    def image_of(self, row: dict, columns: Columns) -> tuple[bytes, str]:
        """The bytes of a row's image as they are stored, or why there are none: ROW_REASONS."""
        held = next((row[name] for name in columns.image if row.get(name) is not None), None)
        if isinstance(held, bytes):
            return held, ""
        if not isinstance(held, dict):
            return b"", "no_image"
        if held.get("bytes") is not None:
            return held["bytes"], ""
        return self._file(held["path"]) if held.get("path") else (b"", "no_image")

    def _file(self, path: str) -> tuple[bytes, str]:
        """path: a file, or one in an archive as `zip://name::archive`; only of this set."""
        inner, _, archive = path.rpartition("::")
        place = archive if not storage.is_local(archive) else storage.absolute(archive)
        outside = not self.root or not place.startswith(self.root) or ".." in place.split("/")
        if outside or (inner and not inner.startswith("zip://")):
            return b"", "elsewhere"
        try:
            with storage.open_read(f"{inner}::{place}" if inner else place) as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, KeyError, ValueError):
            return b"", "unreadable"
        return (b"", "too_many_bytes") if len(data) > MAX_BYTES else (data, "")

    def class_name(self, column: str, value: object) -> object:
        """The name of a class for its number."""
        feature = self.features[column]
        known = isinstance(value, int) and 0 <= value < feature.num_classes
        return feature.int2str(value) if known else value

    def _images(self, given: str) -> tuple[str, ...]:
        if given:
            self._require(given, "IMAGE_COL")
            if _kind(self.features[given]) not in ("Image", "bytes"):
                raise UserError(f"IMAGE_COL={given} holds no images", self._listing())
            return (given,)
        found = [n for n, f in self.features.items() if _kind(f) == "Image"]
        found = found or [n for n, f in self.features.items() if _kind(f) == "bytes"]
        if not found or (len(found) > 1 and self._builder.name != "webdataset"):
            what = f"several columns of images: {', '.join(found)}" if found else "no images"
            raise UserError(f"DATASET={self.name.path} has {what}", f"IMAGE_COL: {self._listing()}")
        return tuple(found)

    def _captions(self, given: str) -> tuple[str, ...]:
        if given:
            names = tuple(name.strip() for name in given.split(",") if name.strip())
            for name in names:
                self._require(name.split(".")[0], "CAPTION_COL")
            return names
        texts = {n for n, f in self.features.items() if _kind(f) in ("str", "list of str")}
        texts |= {
            f"{n}.{inner}"
            for n, f in self.features.items()
            if isinstance(f, dict)
            for inner, g in f.items()
            if _kind(g) == "str"
        }
        named = [name for name in CAPTION_NAMES if name in texts]
        plain = [name for name in sorted(texts) if "." not in name and not name.startswith("__")]
        if named:
            return (named[0],)
        if len(plain) > 1:
            raise UserError(
                f"DATASET={self.name.path}: none of its texts is called a caption",
                f"CAPTION_COL: {self._listing()}",
            )
        return tuple(plain)

    def _require(self, column: str, flag: str) -> None:
        if column not in self.features:
            raise UserError(f"{flag}={column} is no column of {self.name.path}", self._listing())

    def _listing(self) -> str:
        return "one of " + ", ".join(f"{n} ({_kind(f)})" for n, f in self.features.items())

    def _footers(self) -> list[int] | None:
        """Rows of every row group, where the sources are row groups."""
        if self._builder.name != "parquet":
            return None
        with ThreadPoolExecutor(16) as pool:
            files = self._builder.config.data_files[self.name.split]
            counts = [n for found in pool.map(_row_groups, map(str, files)) for n in found]
        return counts if len(counts) == self._dataset.num_shards else None


_HINT = "a name on the hub, a folder of images with metadata, or parquet, arrow or .tar files"


def _open(name: SetName) -> "tuple[IterableDataset, Any]":
    from datasets import load_dataset, load_dataset_builder
    from datasets.utils import logging

    logging.set_verbosity_error()
    path, options = name.path, {}
    suffix = next((s for s in _OF_SUFFIX if path.endswith(s)), "")
    if suffix:
        path, options = _OF_SUFFIX[suffix], {"data_files": {name.split: name.path}}
    elif name.subset:
        options = {"name": name.subset}
    if name.revision:
        options["revision"] = name.revision
    builder = load_dataset_builder(path, **options)
    if builder.name not in FORMATS:
        raise UserError(f"DATASET={name.path} is of format {builder.name}", _HINT)
    if builder.name == "parquet":
        options["batch_size"] = _BATCH
    files = builder.config.data_files or {}
    if name.split not in files:
        raise UserError(
            f"SPLIT={name.split}: {name.path} has {', '.join(map(str, files))}", "give one of them"
        )
    dataset = load_dataset(path, split=name.split, streaming=True, **options)
    return dataset.reshard(), builder


def _unreadable(name: SetName, error: Exception) -> UserError:
    why = " ".join(storage.scrub(f"{type(error).__name__}: {error}", name.path).split())[:300]
    return UserError(f"DATASET={storage.public(name.path)} cannot be read: {why}", _HINT)


def _root(name: SetName, builder: object) -> str:
    """Where the paths of rows may lead, "" for nowhere: what a stranger's row names is no permission."""
    if storage.is_local(name.path) and Path(name.path).expanduser().is_dir():
        return storage.absolute(name.path).rstrip("/") + "/"
    base = str(builder.base_path or "")
    return base.rstrip("/") + "/" if base.startswith("hf://") else ""


def _undecoded() -> object:
    from datasets import Image

    return Image(decode=False)


def _kind(feature: object) -> str:
    """What a column holds, in a word."""
    from datasets import ClassLabel, Image, List, Value

    if isinstance(feature, Image):
        return "Image"
    if isinstance(feature, ClassLabel):
        return "ClassLabel"
    if isinstance(feature, List):
        return f"list of {_kind(feature.feature)}"
    if isinstance(feature, dict):
        held = {inner: _kind(f) for inner, f in feature.items()}
        return "bytes" if held.get("bytes") == "bytes" else "struct"
    if isinstance(feature, Value):
        kinds = {"string": "str", "large_string": "str", "binary": "bytes", "large_binary": "bytes"}
        return kinds.get(feature.dtype, feature.dtype)
    return type(feature).__name__


def _row_groups(url: str) -> list[int]:
    import pyarrow.parquet as pq

    with storage.open_read(url) as file:
        metadata = pq.ParquetFile(file).metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
