"""Where samples are that are to be taken down: read from every shard and table that a folder knows."""

import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import blanking, commit, storage, tombstones
from pipeline.holdings import Holdings
from pipeline.manifest import Shard
from pipeline.reading import BadShard, read_samples
from pipeline.samples import Sample
from pipeline.tombstones import NONE, TAKEN_DOWN, Tombstones

_THREADS = 4
_COLUMNS = ("uid", "key", "sha256", "url", "reason")


@dataclass
class Found:
    """What a search met. places: where -> key -> uid of each sample, of tars only."""

    marks: Tombstones = NONE  # everything that the samples are known by
    places: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    stubs: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[str, int] = field(default_factory=dict)  # table or journal -> rows that tell of them
    unread: dict[str, str] = field(default_factory=dict)  # shard -> why

    def lacks(self, asked: Tombstones) -> Tombstones:
        """Of what was asked for, what is nowhere."""
        return Tombstones(
            asked.uids - self.marks.uids,
            asked.sha256s - self.marks.sha256s,
            asked.urls - self.marks.urls,
        )


def search(holdings: Holdings, asked: Tombstones) -> Found:
    """Reads every tar whole, and of every table the columns that tell who a row is of."""
    found = Found()
    shards = [
        *((path, shard) for path, shard in holdings.raw.items()),
        *((path, shard) for path, shard in holdings.apart.items()),
        *((path, shard) for path, shard in holdings.mixed.items()),
        *((shard.url, shard) for shard in holdings.elsewhere),
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        for (place, _), seen in zip(
            shards, pool.map(lambda item: _in_shard(item[1], asked), shards), strict=True
        ):
            _note(found, place, seen)
    for path, name in holdings.tables.items():
        told, number = _in_table(holdings.url(path), name, asked)
        found.marks |= told
        found.rows |= {path: number} if number else {}
    for path in holdings.journals:
        uids = [uid for _, uid in journal_lines(holdings.url(path)) if uid in asked.uids]
        found.marks |= Tombstones(uids=frozenset(uids))
        found.rows |= {path: len(uids)} if uids else {}
    return found


def _note(found: Found, place: str, seen: "list[tuple[Sample, Tombstones]] | str") -> None:
    if isinstance(seen, str):
        found.unread[storage.public(place)] = seen
        return
    for sample, marks in seen:
        is_stub = sample.reason == TAKEN_DOWN
        (found.stubs if is_stub else found.places)[place][sample.key] = sample.uid
        found.marks |= marks


def _in_shard(shard: Shard, asked: Tombstones) -> "list[tuple[Sample, Tombstones]] | str":
    """The samples of a shard that are asked for, and all stubs, without their bytes; or why not."""
    try:
        return list(_matching(shard, asked))
    except BadShard as e:
        return storage.scrub(str(e), shard.url)
    except Exception as e:  # stores raise whatever they like
        return storage.scrub(" ".join(f"{type(e).__name__}: {e}".split()), shard.url)


def _matching(shard: Shard, asked: Tombstones) -> Iterator[tuple[Sample, Tombstones]]:
    for sample in read_samples(shard):
        bare = Sample(sample.index, sample.uid, sample.key, reason=sample.reason)
        if sample.reason == TAKEN_DOWN:
            known = Tombstones(uids=asked.uids & {sample.uid})
            yield bare, known
        elif asked.bury(sample):
            yield bare, tombstones.marks_of(sample)


def _in_table(url: str, name: str, asked: Tombstones) -> tuple[Tombstones, int]:
    """What the rows of a table that are asked for are known by, and how many are not blank yet;
    nothing of a file that is torn."""
    try:
        there = pq.read_schema(commit.in_memory(url)).names
        table = commit.read_sidecar(url, [c for c in _COLUMNS if c in there])
    except (OSError, pa.ArrowException):
        return NONE, 0
    rows = blanking.is_buried(table, asked, name)
    if not rows.any():
        return NONE, 0
    told = blanking.marks(table, rows, name)
    if "reason" in table.column_names:
        rows &= np.array([r != TAKEN_DOWN for r in table.column("reason").to_pylist()], bool)
    return told, int(rows.sum())


def journal_lines(url: str) -> Iterator[tuple[bytes, str]]:
    """(line, uid) of a journal of answers; a line that is torn has no uid."""
    with storage.open_read(url) as stream:
        for line in stream:
            try:
                uid = json.loads(line)["uid"]
            except (ValueError, KeyError, TypeError):
                uid = ""
            yield line, uid if isinstance(uid, str) else ""
