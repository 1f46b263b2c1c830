"""Importing: rows of somebody's set become raw shards of img2dataset's shape, image bytes untouched."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from pipeline import images, storage, tombstones
from pipeline.errors import UserError
from pipeline.image_text_set import open_set
from pipeline.images import BadImage
from pipeline.manifest import Shard
from pipeline.reading import MAX_JSON_BYTES, MAX_TEXT_BYTES
from pipeline.runs import Run
from pipeline.samples import Sample, uid_of
from pipeline.schemas import IMPORTED, OK
from pipeline.set_source import Columns, OpenedSet, Row, SetName, Sources
from pipeline.shards_to_be import ShardsToBe
from pipeline.teaching import suffix_of
from pipeline.writing import ShardWriter

KIND = "shards"
PLANS = "imports"
"""The folder in OUT that keeps how many rows each source has, so that a rerun need not count them."""

PREFIX = "dataset_"
"""Before the name of a row's own value that would pass as one of ours: `uid` becomes `dataset_uid`."""

_IDENTITY = ("uid", "key", "caption_source", "source_uid", "source_shard", "source_key")
_DESCRIPTION = ("caption", "captions", "width", "height", "sha256")
"""What steps after this one believe of a sample's `.json`; a description may say the same as ours."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")


@dataclass(frozen=True)
class Recipe:
    """What is imported; every field decides bytes."""

    source: SetName
    columns: Columns
    shard_size: int  # at most 10,000: a key ends in four digits
    limit: int = 0  # only the first so many rows


def make_plan(run: Run, opened: OpenedSet, limit: int, *, save: bool = True) -> Sources:
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


class ImportWork(ShardsToBe):
    """A writer: a range of a set's rows becomes one raw shard.

    Each opens the set once per worker, and goes to its rows by row groups (parquet) or files (tars,
    arrow); within these it has to pass over the rows before its own. The first of several captions
    is the text; all stand in the `.json`, with the row's other columns, less what is no JSON.

    What a stranger's row says of itself is no proof: its uid, its key and a caption of a column that
    was not asked for are kept under names with PREFIX, so that nothing takes them for ours. Only a
    row's sha256 and md5 stay, which are of the file as it was fetched; that of the bytes in the
    shard is in the parquet in any case.
    """

    schema = IMPORTED

    def __init__(self, recipe: Recipe, sources: Sources, run: Run) -> None:
        self.recipe = recipe
        self.sources = sources
        self.run = run
        self._set: OpenedSet | None = None

    def counts(self) -> list[int]:
        """Rows of each shard."""
        size = self.recipe.shard_size
        rows = min(self.sources.rows, self.recipe.limit or self.sources.rows)
        return [min(size, rows - start) for start in range(0, rows, size)]

    def made_of(self) -> dict:
        """The set, as it was planned."""
        return {"set": self.sources.identity}

    def setup(self) -> None:
        """Opens the set; UserError where it is not what was planned."""
        opened = open_set(self.recipe.source)
        if opened.identity != self.sources.identity:
            raise _changed(self.run, self.recipe.source)
        self._set = opened

    def written(self, shard: Shard, lost: frozenset[int], writer: ShardWriter) -> Iterator[dict]:
        """A row of IMPORTED for each of the set's."""
        buried = tombstones.at(shard.tombstones)
        for index, row in enumerate(self._rows(shard)):
            yield self._write(shard, index, row, index in lost, buried, writer)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some rows of a shard and keeps nothing: does the process survive?"""
        for index, row in enumerate(self._rows(shard)):
            if index in indices and index not in lost:
                _looked_at(row)

    def _start(self, shard: Shard) -> int:
        return int(shard.name) * self.recipe.shard_size

    def _rows(self, shard: Shard) -> Iterator[Row]:
        start = self._start(shard)
        for source, first, count in self.sources.pieces(start, start + shard.samples):
            for row in self._set.rows(source, first, count):
                yield self._set.read(row, self.recipe.columns)

    def _write(
        self,
        shard: Shard,
        index: int,
        row: Row,
        is_lost: bool,
        buried: tombstones.Tombstones,
        writer: ShardWriter,
    ) -> dict:
        """Appends a sample to the shard and returns its row; one without image only has a row."""
        key = f"{shard.name}{index:04d}"
        told = dict.fromkeys(IMPORTED.names) | {"key": key, "row": self._start(shard) + index}
        sample = Sample(index, uid_of(shard.name, key), key, row.image, meta=row.told)
        if buried and buried.bury(sample):
            return told | {
                "caption_status": "missing",
                "status": "failed",
                "reason": tombstones.TAKEN_DOWN,
            }
        told |= _captions(row)
        info, reason = (None, "killed_worker") if is_lost else _looked_at(row)
        if info is None:
            return told | {"status": "failed", "reason": reason}
        told |= {"width": info.width, "height": info.height}
        told["sha256"] = hashlib.sha256(row.image).hexdigest()
        members = {suffix_of(info.format): row.image}
        if told["caption_status"] == OK:
            members["txt"] = told["caption"].encode()
        writer.add_members(key, members | {"json": _json(row.told, told)})
        return told | {"status": OK}


def _looked_at(row: Row) -> tuple[images.ImageInfo | None, str]:
    """What a row's image is, or why it is none that can be used."""
    if row.reason:
        return None, row.reason
    try:
        info = images.probe(row.image)
        images.decode(row.image, min_side=1)  # proves the pixels, at the smallest size there is
    except BadImage as e:
        return None, e.reason
    return info, ""


def _captions(row: Row) -> dict:
    """The caption, all captions, and the state of the first; one that is no text is only shown."""
    texts = [text.replace("\x00", "").strip() for text in row.texts]
    told = [text for text in texts if text]
    if row.text_status:
        return {"caption": told[0] if told else None, "caption_status": row.text_status}
    if not told:
        return {"caption_status": "empty" if texts else "missing"}
    if len(told[0].encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        return {"caption_status": "too_long"}
    several = {"captions": told} if len(told) > 1 else {}
    return {"caption": told[0], "caption_status": OK, **several}


def _json(theirs: Mapping, told: Mapping) -> bytes:
    """A row's own values with what we tell; without the former where that is too much."""
    is_text = told["caption_status"] == OK
    names = ("key", *(("caption", "captions") if is_text else ()), "width", "height", "sha256")
    ours = {name: told[name] for name in names if told[name]}
    shown = {} if is_text or not told["caption"] else {"caption": told["caption"]}
    both = ours | renamed(shown | dict(theirs), ours)
    short = {name: value for name, value in ours.items() if name != "captions"}
    for values in (both, ours, short):
        text = json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        if len(text) <= MAX_JSON_BYTES:
            break
    return text


def renamed(theirs: Mapping, ours: Mapping) -> dict:
    """A row's own values, those under names of ours with PREFIX; what says the same as ours is ours."""
    found = {name: value for name, value in theirs.items() if not _claims(name, value)}
    for name, value in theirs.items():
        if _claims(name, value) and (name in _IDENTITY or ours.get(name) != value):
            new = PREFIX + name
            while new in theirs:
                new = PREFIX + new
            found[new] = value
    return found


def _claims(name: str, value: object) -> bool:
    is_hash = name == "sha256" and _is_sha256(value)
    return name in (*_IDENTITY, *_DESCRIPTION) and not is_hash


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.match(value))


def _changed(run: Run, source: SetName) -> UserError:
    return UserError(
        f"DATASET={source.path} changed since its rows were counted for {run.folder}",
        "give another OUT, or the set as it was (REVISION=<commit> of the hub)",
    )


def config_of(recipe: Recipe, identity: str) -> dict:
    """For run.json."""
    return asdict(recipe) | {"identity": identity}
