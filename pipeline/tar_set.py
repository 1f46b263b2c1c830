"""A set of images with texts that lies in webdataset tars, read as every shard is read.

Nothing of it is unpacked or decoded but the text, the `.json` and the one image of a sample, each
within its limit.
"""

import itertools
from collections.abc import Iterator, Sequence

from pipeline import specs, storage
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.reading import BadShard, count_samples, read_samples
from pipeline.samples import Sample
from pipeline.schemas import OK
from pipeline.set_source import (
    Columns,
    Row,
    SetName,
    Sources,
    identity_of,
    kept,
    texts_at,
    unreadable,
)

TEXT = "txt"
"""The column of a sample's own text: its `.txt`, or without one the `caption` of its `.json`."""

OWN_KEY = "key"
_LOOKED_AT = 100  # samples, to learn which fields their `.json` have


class TarSet:
    """Tars in the order given. Raises UserError where one does not exist.

    A sample's `.json` gives the row's other columns; what it is called in its tar is its `key`,
    unless the `.json` tells another.
    """

    def __init__(self, name: SetName, files: Sequence[str]) -> None:
        if name.split != "train":
            raise UserError(f"SPLIT={name.split}: tars have none", "name its tars by a glob")
        self.name = name
        self.files = tuple(files)
        try:
            self.identity = identity_of(self.files)
        except Exception as e:  # stores raise whatever they like
            raise unreadable(name, e) from e

    def columns(self, image: str = "", caption: str = "") -> Columns:
        """`txt`, or fields of the `.json`, as given. Raises UserError where no sample has one."""
        if image:
            raise UserError(f"IMAGE_COL={image}: a sample of a tar has one image", "leave it out")
        names = tuple(part.strip() for part in caption.split(",") if part.strip()) or (TEXT,)
        wanted = [name for name in names if name != TEXT]
        seen = self._first() if wanted else []
        for name in wanted:
            if not any(_texts(sample, name) for sample in seen):
                fields = sorted({field for sample in seen for field in sample.meta})
                raise UserError(
                    f"CAPTION_COL={name}: no text of that name in the first {len(seen)} samples",
                    "one of " + ", ".join([TEXT, *fields]),
                )
        return Columns("image", names)

    def sources(self, limit: int = 0) -> Sources:
        """Counts the samples of every tar, no further than `limit` asks, by reading it."""
        counts: list[int] = []
        for source in range(len(self.files)):
            left = limit - sum(counts) if limit else None
            if left == 0:
                break
            try:
                counts.append(count_samples(self._shard(source), stop=left))
            except (BadShard, OSError) as e:
                raise unreadable(self.name, e) from e
        return Sources(tuple(counts), self.identity)

    def rows(self, source: int, start: int = 0, count: int | None = None) -> Iterator[Sample]:
        """Some samples of one tar; BadShard where it is torn."""
        stop = None if count is None else start + count
        yield from itertools.islice(read_samples(self._shard(source)), start, stop)

    def read(self, row: Sample, columns: Columns) -> Row:
        """A sample as a row."""
        told = {OWN_KEY: row.key} | row.meta
        if columns.caption == (TEXT,):
            status = "" if row.text_status in (OK, "missing", "empty") else row.text_status
            texts: tuple[str, ...] = () if row.text is None else (row.text,)
            return Row(row.image, row.reason, texts, status, kept(told))
        texts = tuple(text for name in columns.caption for text in _texts(row, name))
        own = {} if TEXT in columns.caption or row.text is None else {TEXT: row.text}
        told = {name: value for name, value in told.items() if name not in columns.caption}
        return Row(row.image, row.reason, texts, told=kept(own | told))

    def _first(self) -> list[Sample]:
        samples = itertools.chain.from_iterable(map(self.rows, range(len(self.files))))
        try:
            return list(itertools.islice(samples, _LOOKED_AT))
        except (BadShard, OSError) as e:
            raise unreadable(self.name, e) from e

    def _shard(self, source: int) -> Shard:
        return Shard(f"{source:05d}", self.files[source], size=0)


def tar_files(path: str) -> list[str]:
    """The tars that a path means, in order: a tar, a glob, braces, a folder that holds some.

    [] where it means something else; UserError where it means tars that are not there.
    """
    if path.endswith((".tar", ".tar}")):
        return specs.expand(path, flag="DATASET")
    return storage.list_files(path, ".tar") if storage.is_local(path) else []


def _texts(sample: Sample, name: str) -> list[str]:
    if name == TEXT:
        return [] if sample.text is None else [sample.text]
    steps = [name] if name in sample.meta else name.split(".")
    return list(texts_at(sample.meta, steps))
