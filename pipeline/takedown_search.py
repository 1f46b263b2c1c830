"""Where samples are that are to be taken down: read from every shard and table that a folder knows."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import blanking, commit, storage, tombstones
from pipeline.holdings import Holdings, tar_of
from pipeline.manifest import Shard
from pipeline.reading import BadShard, read_samples
from pipeline.samples import Sample
from pipeline.tombstones import NONE, TAKEN_DOWN, Tombstones

_THREADS = 4
_COLUMNS = ("uid", "sha256", "fetched_sha256", "sha256_out", "url", "reason")


@dataclass
class Found:
    """What a search met. places: where -> key -> uid of each sample, of tars only."""

    marks: Tombstones = (
        NONE  # everything that the samples are known by, what was asked for included
    )
    told: Tombstones = NONE  # of that, what tars and tables tell
    places: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    stubs: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[str, int] = field(default_factory=dict)  # table or journal -> rows that tell of them
    unread: dict[str, str] = field(default_factory=dict)  # shard -> why
    keys: dict[str, set[str]] = field(default_factory=dict)  # tar -> keys that its table tells of

    def lacks(self, asked: Tombstones) -> Tombstones:
        """Of what was asked for, what is nowhere."""
        return Tombstones(
            asked.uids - self.told.uids,
            asked.sha256s - self.told.sha256s,
            asked.urls - self.told.urls,
        )


def search(holdings: Holdings, asked: Tombstones) -> Found:
    """All samples that are asked for, and all others with the same bytes or URL, to the last.

    Two samples belong together where any hash of their bytes (as fetched, as stored, as a mix has
    them) or their URL is the same, told by a tar or by a table; so do those that belong together
    with a third. Tables are cheap to read, tars are not: the tars are read whole for what all tables
    together tell, and again only where they told something new.
    """
    marks, tars, read_for = asked, Found(), None
    while True:
        found = _in_tables(holdings, marks, tars)
        is_all_told = found.marks <= marks
        if is_all_told and read_for == (marks, found.keys):
            break
        if is_all_told:
            tars, read_for = _in_tars(holdings, marks, found.keys), (marks, found.keys)
        marks |= found.marks | tars.marks
    tars.told, tars.marks, tars.rows = tars.marks | found.marks, marks, found.rows
    return tars


def _in_tars(holdings: Holdings, asked: Tombstones, keys: Mapping[str, set[str]]) -> Found:
    """Reads every tar whole. keys: further ones that are asked for, by the path of a raw shard."""
    found = Found()
    shards = [
        *((path, shard) for path, shard in holdings.raw.items()),
        *((path, shard) for path, shard in holdings.apart.items()),
        *((path, shard) for path, shard in holdings.mixed.items()),
        *((shard.url, shard) for shard in holdings.elsewhere),
    ]

    def of(place: str) -> set[str]:
        return keys.get(place.replace("quarantine/", "shards/", 1), set())

    with ThreadPoolExecutor(_THREADS) as pool:
        for (place, _), seen in zip(
            shards,
            pool.map(lambda item: _in_shard(item[1], asked, of(item[0])), shards),
            strict=True,
        ):
            _note(found, place, seen)
    return found


def _in_tables(holdings: Holdings, asked: Tombstones, tars: Found) -> Found:
    """Reads of every table the columns that tell who a row is of, and the journals."""
    found = Found()
    for path in holdings.tables:
        _in_table(found, holdings, path, asked, tars)
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


def _in_shard(
    shard: Shard, asked: Tombstones, keys: set[str]
) -> "list[tuple[Sample, Tombstones]] | str":
    """The samples of a shard that are asked for, and all stubs, without their bytes; or why not."""
    try:
        return list(_matching(shard, asked, keys))
    except BadShard as e:
        return storage.scrub(str(e), shard.url)
    except Exception as e:  # stores raise whatever they like
        return storage.scrub(" ".join(f"{type(e).__name__}: {e}".split()), shard.url)


def _matching(
    shard: Shard, asked: Tombstones, keys: set[str]
) -> Iterator[tuple[Sample, Tombstones]]:
    for sample in read_samples(shard):
        bare = Sample(sample.index, sample.uid, sample.key, reason=sample.reason)
        if sample.reason == TAKEN_DOWN:
            known = Tombstones(uids=asked.uids & {sample.uid})
            yield bare, known
        elif sample.key in keys or asked.bury(sample):
            yield bare, tombstones.marks_of(sample)


def _in_table(found: Found, holdings: Holdings, path: str, asked: Tombstones, tars: Found) -> None:
    """Notes what the rows of a table that are asked for are known by, and how many are not blank
    yet; nothing of a file that is torn."""
    url, is_raw = holdings.url(path), path in holdings.raw_tables
    try:
        there = pq.read_schema(commit.in_memory(url)).names
        # What a raw table is, all of its columns tell.
        table = commit.read_sidecar(url, None if is_raw else [c for c in _COLUMNS if c in there])
        table = blanking.as_written(table)
    except (OSError, pa.ArrowException):
        return
    rows = buried_rows(holdings, path, table, asked, tars)
    if not rows.any():
        return
    table = table.filter(pa.array(rows))
    found.marks |= blanking.marks(table, holdings.tables[path], holdings.is_alone(path))
    if is_raw and "key" in table.column_names:
        found.keys[tar_of(path)] = {key for key in table.column("key").to_pylist() if key}
    number = table.num_rows
    if "reason" in table.column_names:
        number -= table.column("reason").to_pylist().count(TAKEN_DOWN)
    found.rows |= {path: number} if number else {}


def buried_rows(
    holdings: Holdings, path: str, table: pa.Table, buried: Tombstones, tars: Found
) -> np.ndarray:
    """Which rows of a table are of buried samples: as it tells itself, or as the tar beside it."""
    rows = blanking.is_buried(table, buried, holdings.tables[path], holdings.is_alone(path))
    if path in holdings.raw_tables and "key" in table.column_names:
        tar = tar_of(path)
        stubs = {k: uid for k, uid in tars.stubs.get(tar, {}).items() if uid in buried.uids}
        gone = {**tars.places.get(tar, {}), **stubs}
        rows |= np.array([key in gone for key in table.column("key").to_pylist()], bool)
    return rows


def journal_lines(url: str) -> Iterator[tuple[bytes, str]]:
    """(line, uid) of a journal of answers; a line that is torn has no uid."""
    with storage.open_read(url) as stream:
        for line in stream:
            try:
                uid = json.loads(line)["uid"]
            except (ValueError, KeyError, TypeError):
                uid = ""
            yield line, uid if isinstance(uid, str) else ""
