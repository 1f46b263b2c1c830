"""The plan of a crawl: its URL lists cut into parts of a shard each, once, before anything is fetched."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import commit, runs, storage, tombstones
from pipeline.crawl.column_types import normalised, part_schema
from pipeline.crawl.presets import Columns
from pipeline.crawl.url_lists import UrlList
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.runs import Run

KIND = "urls"
FILE = "plan.json"


@dataclass(frozen=True)
class Part:
    """Some rows of a list: what becomes one shard. `OUT/urls/<name>.parquet` holds them."""

    name: str
    rows: int
    sha256: str
    retries: bool = False  # rows of other parts, fetched again


@dataclass(frozen=True)
class Plan:
    """Every part of a crawl, in order; it only ever grows, by what is to be retried."""

    folder: str
    shard_size: int
    lists: tuple[dict, ...]  # identity of each list
    parts: tuple[Part, ...] = field(repr=False)

    def url(self, part: str) -> str:
        return storage.join(self.folder, f"{part}.parquet")

    def shards(self, run: Run, parts: Iterable[Part]) -> list[Shard]:
        """The shards that are to be made of these parts."""
        return [
            Shard(name=p.name, url=run.file(f"{p.name}.tar"), size=0, samples=p.rows) for p in parts
        ]


def folder_of(run: Run) -> str:
    """Where the plan of a run of shards stands."""
    return storage.join(run.out, KIND, *([run.name] if run.name else []))


def index_digits(shard_size: int) -> int:
    """Digits of a sample's number in its key, as img2dataset counts them."""
    return math.ceil(math.log10(shard_size))


def key_of(shard: str, index: int, shard_size: int) -> str:
    """Shard name and number of a sample, both padded: 00003 and 7 of 10,000 make 000030007."""
    digits = index_digits(shard_size)
    return f"{shard}{index:0{digits}d}" if digits else shard


def load(run: Run) -> Plan | None:
    """The plan of a run, None where it is not whole yet; UserError where the file is damaged."""
    found = _load(run)
    return _plan(run, found) if found and found["parts"] is not None else None


def make(
    run: Run, lists: Sequence[UrlList], columns: Columns, shard_size: int, limit: int = 0
) -> Plan:
    """Plans what is not planned yet; the lists are read as streams, and each once.

    A shard never holds rows of two files, so that shards have the numbers that img2dataset gives
    them. limit: only the first so many rows. Raises UserError where the folder was planned with
    other settings, or from lists that had other content; the message names the first of them. A
    plan that was never finished binds nobody.
    """
    storage.require_writable(folder_of(run))
    before = _load(run)
    whole = before is not None and before["parts"] is not None
    if whole:
        runs.refuse_other_config(run, before["config"])
    identities = _identities(lists, before["lists"] if before else [])
    if whole:
        _refuse_other_lists(run, before["lists"], identities)
        return _plan(run, before)
    record = {"config": run.config, "lists": identities, "parts": None}
    _save(run, record)  # before the first part, which is of these lists and of no others
    storage.remove_temporaries(folder_of(run))
    for left in storage.list_files(folder_of(run), ".parquet"):
        storage.remove(left)  # perhaps of other lists
    schema = part_schema(columns, lists)
    tables = cut(lists, columns, schema, shard_size, limit)
    parts = [_commit_part(run, f"{i:05d}", table) for i, table in enumerate(tables)]
    if not parts:
        raise UserError(f"URLS: {lists[0].name} holds no rows", "give a list with URLs")
    record["parts"] = [asdict(part) for part in parts]
    _save(run, record)
    return _plan(run, record)


def extend(run: Run, tables: Iterable[pa.Table]) -> list[Part]:
    """Adds parts to be fetched again to the plan, numbered after its last one; returns them."""
    record = _load(run)
    first = len(record["parts"])
    parts = [
        _commit_part(run, f"{first + i:05d}", table, retries=True) for i, table in enumerate(tables)
    ]
    record["parts"] += [asdict(part) for part in parts]
    if parts:
        _save(run, record)
    return parts


def preview(
    run: Run, lists: Sequence[UrlList], columns: Columns, shard_size: int, limit: int = 0
) -> Plan:
    """The same plan, as far as it can be told without writing anything."""
    known = load(run)
    if known:
        return known
    schema = pa.schema([("url", pa.string())])
    bare = Columns(url=columns.url)
    counts = (len(table) for table in cut(lists, bare, schema, shard_size, limit))
    parts = tuple(Part(f"{i:05d}", count, "") for i, count in enumerate(counts))
    return Plan(folder_of(run), shard_size, (), parts)


def cut(
    lists: Sequence[UrlList], columns: Columns, schema: pa.Schema, shard_size: int, limit: int = 0
) -> Iterator[pa.Table]:
    """The rows of the lists in tables of `shard_size`; each list ends with a shorter one."""
    left = limit or math.inf
    for found in lists:
        if left <= 0:
            return
        waiting: list[pa.RecordBatch] = []
        for batch in found.batches(columns.read):
            with found.reading():
                rows = normalised(batch, columns, schema)
            rows = rows.slice(0, int(min(left, rows.num_rows)))
            left -= rows.num_rows
            waiting.append(rows)
            while sum(b.num_rows for b in waiting) >= shard_size:
                table = pa.Table.from_batches(waiting, schema)
                yield table.slice(0, shard_size)
                waiting = table.slice(shard_size).to_batches()
            if left <= 0:
                break
        if any(b.num_rows for b in waiting):
            yield pa.Table.from_batches(waiting, schema)


def read_part(plan: Plan, part: Part) -> pa.Table:
    """The rows of a part; RuntimeError where they are not those that were planned."""
    table = pq.read_table(commit.in_memory(plan.url(part.name)), page_checksum_verification=True)
    if table.num_rows != part.rows:
        raise RuntimeError(f"{plan.url(part.name)} holds {table.num_rows} of {part.rows} rows")
    return table


def _commit_part(run: Run, name: str, table: pa.Table, retries: bool = False) -> Part:
    """Writes one part, always the same bytes for the same rows; without what was taken down."""
    from pipeline import blanking  # which knows the layout of all that a crawl writes

    buried = tombstones.load(run.out)
    rows = blanking.is_buried(table, buried, blanking.NO_UIDS)
    if rows.any():
        table = blanking.blanked(table, rows, blanking.NO_UIDS)
    url = storage.join(folder_of(run), f"{name}.parquet")
    with storage.write_atomic(url) as path:
        # One chunk per column, however the rows came: their division would show in the bytes.
        commit.write_parquet(table.combine_chunks(), path)
        sha256 = commit.sha256_file(str(path))
    return Part(name, table.num_rows, sha256, retries)


def _identities(lists: Sequence[UrlList], before: list[dict]) -> list[dict]:
    known = {(b["name"], b["size"], b["etag"], b["mtime_ns"]): b for b in before}
    return [_identity(found, known) for found in lists]


def _identity(found: UrlList, known: dict) -> dict:
    """What a list is: hashed where the store has no ETag, and not hashed twice while untouched."""
    try:
        now = storage.fingerprint(found.url)
    except Exception as e:  # stores raise whatever they like
        why = " ".join(storage.scrub(str(e), found.url).split())
        absent = isinstance(e, FileNotFoundError)
        raise UserError(
            f"URLS: {found.name} {'does not exist' if absent else 'cannot be read: ' + why}",
            "check the path or pattern",
        ) from e
    identity = {"name": found.name, **asdict(now)}
    before = known.get((found.name, now.size, now.etag, now.mtime_ns))
    if before:
        return before
    return identity | {"sha256": "" if now.etag else commit.sha256_file(found.url)}


def _refuse_other_lists(run: Run, before: list[dict], now: list[dict]) -> None:
    what, hint = "", "give another OUT (or RUN), or the lists as they were"
    for old, new in zip(before, now, strict=False):
        if any(old[k] != new[k] for k in ("size", "etag", "sha256")):
            what = f"{new['name']} is not the list that was planned there"
            what += f" ({old['name']} of {old['size']} bytes; it has {new['size']} now)"
            break
    else:
        if len(before) != len(now):
            what = f"{len(before)} lists were planned there, now there are {len(now)}"
            longer = max(before, now, key=len)
            what += f": {longer[min(len(before), len(now))]['name']}"
    if what:
        raise UserError(f"OUT={run.out}: {what}", hint)


def _plan(run: Run, record: dict) -> Plan:
    parts = tuple(Part(**part) for part in record["parts"])
    return Plan(folder_of(run), record["config"]["shard_size"], tuple(record["lists"]), parts)


def _load(run: Run) -> dict | None:
    url = storage.join(folder_of(run), FILE)
    try:
        return json.loads(storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as e:
        raise UserError(f"OUT={run.out}: {url} is damaged: {e}", "give another OUT") from e


def _save(run: Run, record: dict) -> None:
    url = storage.join(folder_of(run), FILE)
    storage.write_bytes(url, json.dumps(record, indent=1, ensure_ascii=False).encode())
