"""A set of images with texts, read through the `datasets` library: what it holds, and its rows in order.

Images are never decoded or encoded here, no code that comes with a set is run, and only formats
without pickles are read.
"""

import functools
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.limits import MAX_BYTES
from pipeline.set_columns import columns_of, kind_of
from pipeline.set_source import (
    HINT,
    Columns,
    OpenedSet,
    Row,
    SetName,
    Sources,
    identity_of,
    kept,
    texts_at,
    unreadable,
)
from pipeline.tar_set import TarSet, tar_files

if TYPE_CHECKING:
    from datasets import Features, IterableDataset

FORMATS = ("parquet", "arrow", "imagefolder")
_OF_SUFFIX = {".parquet": "parquet", ".arrow": "arrow"}
_BATCH = 100  # rows of a parquet file that are in memory at once


def open_set(name: SetName) -> OpenedSet:
    """A set by its name. Raises UserError where there is none, or none that can be read."""
    if files := tar_files(name.path):
        return TarSet(name, files)
    return ImageTextSet(name)


class ImageTextSet:
    """An opened set that is not in tars. Raises UserError as `open_set`."""

    def __init__(self, name: SetName) -> None:
        self.name = name
        try:
            self._dataset, self._builder = _open(name)
        except UserError:
            raise
        except Exception as e:  # datasets and the stores below it raise whatever they like
            raise unreadable(name, e) from e
        self.features: Features = self._dataset.features
        if self.features is None:
            raise UserError(f"DATASET={name.path} does not say what its columns are", HINT)
        for column, feature in self.features.items():
            if kind_of(feature) == "Image":
                self._dataset = self._dataset.cast_column(column, _undecoded())
        self.root = _root(name, self._builder)

    @functools.cached_property
    def identity(self) -> str:
        """A hash of which files it has, and of their content."""
        files = self._builder.config.data_files[self.name.split]
        return identity_of([str(file) for file in files], files.origin_metadata)

    def columns(self, image: str = "", caption: str = "") -> Columns:
        """The columns to read, as given or by their types and names. Raises UserError."""
        return columns_of(self.features, self.name.path, image, caption)

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
                raise unreadable(self.name, e) from e
            if row is None:
                return
            yield row

    def read(self, row: dict, columns: Columns) -> Row:
        """A row of `rows`, its image as it is stored."""
        image, reason = self._image_of(row.get(columns.image))
        texts = []
        for name in columns.caption:
            steps = [name] if name in row else name.split(".")
            texts += texts_at(row, steps)
        rest = {k: v for k, v in row.items() if k != columns.image and k not in columns.caption}
        named = {k: self._named(k, v) if k in columns.classes else v for k, v in rest.items()}
        return Row(image, reason, tuple(texts), told=kept(named))

    def _image_of(self, held: object) -> tuple[bytes, str]:
        """The bytes of an image as they are stored, or why there are none: ROW_REASONS."""
        if isinstance(held, bytes):
            return held, ""
        if not isinstance(held, dict):
            return b"", "no_image"
        if held.get("bytes") is not None:
            return held["bytes"], ""
        return self._file(held["path"]) if held.get("path") else (b"", "no_image")

    def _file(self, path: str) -> tuple[bytes, str]:
        """path: a file, or one in an archive as `zip://name::archive`; only of this set."""
        inner, _, outer = path.rpartition("::")
        try:
            place = "" if inner and not inner.startswith("zip://") else self._inside(outer)
            if not place:
                return b"", "elsewhere"
            with storage.open_read(place) as file:
                data = _zipped(file, inner.removeprefix("zip://")) if inner else _head(file)
        except Exception:  # zip files and stores raise whatever they like
            return b"", "unreadable"
        return (b"", "too_many_bytes") if len(data) > MAX_BYTES else (data, "")

    def _inside(self, path: str) -> str:
        """Where a file of the set lies, "" for any other; OSError or ValueError where it is none."""
        if not self.root or not storage.is_local(self.root):
            known = bool(self.root) and path.startswith(self.root) and ".." not in path.split("/")
            return path if known else ""
        if not storage.is_local(path):
            return ""
        place = Path(self.root, path).resolve()  # through every link
        if not place.is_relative_to(Path(self.root).resolve()):
            return ""
        if place.exists() and not place.is_file():  # reading a pipe would never end
            raise OSError(f"{place} is no file")
        return str(place)

    def _named(self, column: str, value: object) -> object:
        """The name of a class for its number."""
        feature = self.features[column]
        known = isinstance(value, int) and 0 <= value < feature.num_classes
        return feature.int2str(value) if known else value

    def _footers(self) -> list[int] | None:
        """Rows of every row group, where the sources are row groups."""
        if self._builder.name != "parquet":
            return None
        with ThreadPoolExecutor(16) as pool:
            files = self._builder.config.data_files[self.name.split]
            counts = [n for found in pool.map(_row_groups, map(str, files)) for n in found]
        return counts if len(counts) == self._dataset.num_shards else None


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
        hint = "name its .tar files by a glob" if builder.name == "webdataset" else HINT
        raise UserError(f"DATASET={name.path} is of format {builder.name}", hint)
    if builder.name == "parquet":
        options["batch_size"] = _BATCH
    files = builder.config.data_files or {}
    if name.split not in files:
        raise UserError(
            f"SPLIT={name.split}: {name.path} has {', '.join(map(str, files))}", "give one of them"
        )
    dataset = load_dataset(path, split=name.split, streaming=True, **options)
    return dataset.reshard(), builder


def _root(name: SetName, builder: object) -> str:
    """Where the paths of rows may lead, "" for nowhere: what a stranger's row names is no permission."""
    if storage.is_local(name.path) and Path(name.path).expanduser().is_dir():
        return storage.absolute(name.path).rstrip("/") + "/"
    base = str(builder.base_path or "")
    return base.rstrip("/") + "/" if base.startswith("hf://") else ""


def _head(file: IO[bytes]) -> bytes:
    return file.read(MAX_BYTES + 1)


def _zipped(file: IO[bytes], name: str) -> bytes:
    """The beginning of a member of a zip file."""
    with zipfile.ZipFile(file) as archive, archive.open(name) as member:
        return _head(member)


def _undecoded() -> object:
    from datasets import Image

    return Image(decode=False)


def _row_groups(url: str) -> list[int]:
    import pyarrow.parquet as pq

    with storage.open_read(url) as file:
        metadata = pq.ParquetFile(file).metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
