"""Importing: rows of a `datasets` set become raw shards of img2dataset's shape, image bytes untouched."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline import commit, images, storage, tombstones
from pipeline.errors import UserError
from pipeline.image_text_set import Columns, ImageTextSet, SetName, Sources
from pipeline.images import BadImage
from pipeline.manifest import Shard
from pipeline.reading import MAX_JSON_BYTES, MAX_TEXT_BYTES
from pipeline.runs import Run
from pipeline.samples import Sample, uid_of
from pipeline.schemas import IMPORTED, OK
from pipeline.teaching import suffix_of
from pipeline.writing import ShardWriter

KIND = "shards"
PLANS = "imports"
"""The folder in OUT that keeps how many rows each source has, so that a rerun need not count them."""

_NOT_KEPT = ("__url__", "exif", "xmp", "gps")  # where an archive lay, or a person was


@dataclass(frozen=True)
class Recipe:
    """What is imported; every field decides bytes."""

    source: SetName
    columns: Columns
    shard_size: int  # at most 10,000: a key ends in four digits
    limit: int = 0  # only the first so many rows


def make_plan(run: Run, opened: ImageTextSet, limit: int, *, save: bool = True) -> Sources:
    """The rows of a set, counted or as they were counted before; UserError where it changed since."""
    url = storage.join(run.out, PLANS, f"{run.name or KIND}.json")
    if storage.exists(url):
        found = json.loads(storage.read_bytes(url))
        known = Sources(tuple(found["counts"]), found["identity"])
        if known.identity != opened.identity:
            raise _changed(run, opened.name)
        return known
    sources = opened.sources(limit)
    if save:
        storage.write_bytes(url, json.dumps(asdict(sources)).encode())
    return sources


class ImportWork:
    """A writer: a range of a set's rows becomes one raw shard.

    As in `scenes.shards`, the work items are the shards that are to be, all full but the last.
    Each opens the set once per worker, and goes to its rows by row groups (parquet) or files (tars,
    arrow); within these it has to pass over the rows before its own. The first of several captions
    is the text; all stand in the `.json`, with the row's other columns, less what is no JSON.
    """

    def __init__(self, recipe: Recipe, sources: Sources, run: Run) -> None:
        self.recipe = recipe
        self.sources = sources
        self.run = run
        self._set: ImageTextSet | None = None

    def planned(self) -> list[Shard]:
        """The shards to write."""
        size = self.recipe.shard_size
        rows = min(self.sources.rows, self.recipe.limit or self.sources.rows)
        return [
            Shard(
                name=f"{start // size:05d}",
                url=self.run.file(f"{start // size:05d}.tar"),
                size=0,
                samples=min(size, rows - start),
                tombstones=storage.join(self.run.out, tombstones.FILE),
            )
            for start in range(0, rows, size)
        ]

    def setup(self) -> None:
        """Opens the set; UserError where it is not what was planned."""
        opened = ImageTextSet(self.recipe.source)
        if opened.identity != self.sources.identity:
            raise _changed(self.run, self.recipe.source)
        self._set = opened

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a shard that is whole, and of the set as it is planned."""
        record = commit.read_stats_record(self.run, shard.name)
        true = record and record.config_hash == self.run.config_hash
        return record if true and record.inputs == self._inputs(shard) else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Writes and commits one shard."""
        buried = tombstones.at(shard.tombstones)

        def rows(writer: ShardWriter) -> Iterator[dict]:
            for index, row in enumerate(self._rows(shard)):
                yield self._write(shard, index, row, index in lost, buried, writer)

        def record(table: pa.Table) -> commit.Record:
            return commit.Record(
                shard=shard.name,
                config_hash=self.run.config_hash,
                inputs=self._inputs(shard),
                environment={},
                counts={"samples": shard.samples, **commit.tally(table)},
            )

        return commit.write_shard(self.run, shard.name, IMPORTED, rows, record)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some rows of a shard and keeps nothing: does the process survive?"""
        for index, row in enumerate(self._rows(shard)):
            if index in indices and index not in lost:
                self._image(row)

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples."""
        return dict(counts["reason"])

    def _start(self, shard: Shard) -> int:
        return int(shard.name) * self.recipe.shard_size

    def _inputs(self, shard: Shard) -> dict:
        return {"set": self.sources.identity, "rows": shard.samples}

    def _rows(self, shard: Shard) -> Iterator[dict]:
        start = self._start(shard)
        for source, first, count in self.sources.pieces(start, start + shard.samples):
            yield from self._set.rows(source, first, count)

    def _image(self, row: dict) -> tuple[bytes, images.ImageInfo | None, str]:
        """The bytes of a row's image, what they are, and why they are none that can be used."""
        data, reason = self._set.image_of(row, self.recipe.columns)
        if reason:
            return data, None, reason
        try:
            info = images.probe(data)
            images.decode(data, min_side=1)  # proves the pixels, at the smallest size there is
        except BadImage as e:
            return data, None, e.reason
        return data, info, ""

    def _write(
        self,
        shard: Shard,
        index: int,
        row: dict,
        is_lost: bool,
        buried: tombstones.Tombstones,
        writer: ShardWriter,
    ) -> dict:
        """Appends a sample to the shard and returns its row; one without image only has a row."""
        key = f"{shard.name}{index:04d}"
        told = dict.fromkeys(IMPORTED.names) | {"key": key, "row": self._start(shard) + index}
        data, info, reason = (b"", None, "killed_worker") if is_lost else self._image(row)
        meta = self._named(kept(row, self.recipe.columns))
        if buried and buried.bury(Sample(index, uid_of(shard.name, key), key, data, meta=meta)):
            return told | {
                "caption_status": "missing",
                "status": "failed",
                "reason": tombstones.TAKEN_DOWN,
            }
        told |= _captions(texts_of(row, self.recipe.columns))
        if info is None:
            return told | {"status": "failed", "reason": reason}
        told |= {"width": info.width, "height": info.height}
        told["sha256"] = hashlib.sha256(data).hexdigest()
        members = {suffix_of(info.format): data}
        if told["caption_status"] == OK:
            members["txt"] = told["caption"].encode()
        writer.add_members(key, members | {"json": _json(meta, told)})
        return told | {"status": OK}

    def _named(self, meta: dict) -> dict:
        """With the names of classes for their numbers."""
        classes = self.recipe.columns.classes
        return {k: self._set.class_name(k, v) if k in classes else v for k, v in meta.items()}


def kept(row: dict, columns: Columns) -> dict:
    """What a row has beside image and caption, as JSON can hold it; other values are left out."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in columns.image or name in columns.caption:
            continue
        is_json = isinstance(value, dict) and name == "json"  # of a webdataset: the sample's own
        told = value if is_json else {"source_key" if name == "__key__" else name: value}
        found |= {str(k): v for k, v in told.items() if k.lower() not in _NOT_KEPT and _is_json(v)}
    return found


def texts_of(row: dict, columns: Columns) -> list[str]:
    """All captions of a row, in order; a text of a list that is none is left out."""
    found: list[str] = []
    for name in columns.caption:
        outer, _, inner = name.partition(".")
        value = row.get(outer)
        value = value.get(inner) if inner and isinstance(value, dict) else value
        found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    return found


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


def _captions(texts: Sequence[str]) -> dict:
    """The caption, all captions, and the state of the first."""
    texts = [text.replace("\x00", "").strip() for text in texts]
    told = [text for text in texts if text]
    if not told:
        return {"caption_status": "empty" if texts else "missing"}
    if len(told[0].encode()) > MAX_TEXT_BYTES:
        return {"caption_status": "too_long"}
    several = {"captions": told} if len(told) > 1 else {}
    return {"caption": told[0], "caption_status": OK, **several}


def _json(meta: dict, told: dict) -> bytes:
    """A row's own values with what we tell; of the former fewer, from the last, where it is too much."""
    ours = {
        k: told[k] for k in ("key", "caption", "width", "height", "sha256") if told[k] is not None
    }
    several = {"captions": told["captions"]} if told["captions"] else {}
    for values in (meta | several | ours, several | ours, ours):
        text = json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        if len(text) <= MAX_JSON_BYTES:
            break
    return text


def _changed(run: Run, source: SetName) -> UserError:
    return UserError(
        f"DATASET={source.path} changed since its rows were counted for {run.folder}",
        "give another OUT, or the set as it was (REVISION=<commit> of the hub)",
    )


def config_of(recipe: Recipe, identity: str) -> dict:
    """For run.json."""
    return asdict(recipe) | {"identity": identity}
