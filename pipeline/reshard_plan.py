"""The plan of a resharding: where all samples lie, in their new order, cut into parts of equal size."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline import commit, storage
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.runs import Run, canonical
from pipeline.samples import Sample
from pipeline.schemas import OK, PLACES, table_of

PLACES_KIND = "places"
PLANS = "plans"
"""The folder of the plan: a table for each shard to be, and plan.json, which is written last."""

TOO_LARGE = "too_many_bytes"
MAX_SAMPLE_BYTES = 256 << 20  # all members of one sample
_DUCKDB_MEMORY = "2GB"  # then it goes on on disk
_PART = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("uid", "shard", "key")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("start", "size")),
    ]
)


class PlacesStage:
    """A stage: where the samples of a shard lie, and which of them go on (`ok`) or not (`dropped`)."""

    schema = PLACES
    environment: Mapping = {}

    def setup(self) -> None:
        pass

    def __call__(self, samples: Iterator[Sample]) -> pa.Table:
        return table_of((_place(sample) for sample in samples), PLACES)


def _place(sample: Sample) -> dict:
    start, end = sample.span
    reason = sample.reason or (TOO_LARGE if end - start > MAX_SAMPLE_BYTES else "")
    return {
        "uid": sample.uid,
        "key": sample.key,
        "start": start,
        "size": end - start,
        "status": "dropped" if reason else OK,
        "reason": reason or None,
    }


@dataclass(frozen=True)
class Plan:
    """What is cut into which shards. counts: samples of each; identity: of all places, and the cut."""

    folder: str
    counts: tuple[int, ...]
    identity: str

    def part(self, number: int) -> str:
        return storage.join(self.folder, f"{number:05d}.parquet")


def make_plan(places: Run, shards: Sequence[Shard], size: int, seed: int | None) -> Plan:
    """Orders all samples that go on, and cuts them into parts of `size`.

    seed: None for the order of the shards and of the samples in them; else by the hash of (seed,
    uid), which no number of workers or shards changes. A plan that is there is kept; UserError
    where it was made of other places, since shards are written once.
    """
    urls = {shard.name: places.file(f"{shard.name}.parquet") for shard in shards}
    made_of = {name: commit.sha256_file(url) for name, url in urls.items()}
    told = {"places": made_of, "size": size, "seed": seed}
    identity = hashlib.sha256(canonical(told).encode()).hexdigest()
    folder = storage.join(places.out, PLANS)
    told_url = storage.join(folder, "plan.json")
    if storage.exists(told_url):
        known = json.loads(storage.read_bytes(told_url))
        if known["identity"] != identity:
            raise UserError(
                f"TO={places.out} was made of other samples: shards or the keep-list changed since",
                "give another TO",
            )
        return Plan(folder, tuple(known["counts"]), identity)
    plan = Plan(folder, (), identity)
    counts = []
    for number, part in enumerate(_cut(_ordered(places, urls, seed), size)):
        counts.append(part.num_rows)
        with storage.write_atomic(plan.part(number)) as path:
            commit.write_parquet(part, path)
    record = {"identity": identity, "counts": counts}
    storage.write_bytes(told_url, json.dumps(record).encode())
    return Plan(folder, tuple(counts), identity)


def _ordered(places: Run, urls: Mapping[str, str], seed: int | None) -> Iterator[pa.RecordBatch]:
    """All samples that go on, in their new order, a few thousand at a time."""
    drawn = "" if seed is None else f"left(sha256('{seed:d}/' || uid), 32), uid, "
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as connection:
        if not storage.is_local(places.out):
            connection.register_filesystem(url_to_fs(places.out)[0])
        connection.execute(f"SET memory_limit = '{_DUCKDB_MEMORY}'")
        connection.execute("SET temp_directory = ?", [scratch])
        connection.execute("CREATE TABLE sources (shard VARCHAR, url VARCHAR)")
        connection.executemany("INSERT INTO sources VALUES (?, ?)", list(urls.items()))
        connection.execute("SET VARIABLE urls = (SELECT list(url ORDER BY shard) FROM sources)")
        query = (
            "SELECT uid, shard, key, start, size "
            "FROM read_parquet(getvariable('urls'), filename = true) p "
            f"JOIN sources s ON p.filename = s.url WHERE status = '{OK}' "
            f"ORDER BY {drawn}shard, start"
        )
        yield from connection.sql(query).to_arrow_reader(10_000)


def _cut(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Tables of exactly `size` rows, less in the last."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while rows + batch.num_rows >= size:
            head = batch.slice(0, size - rows)
            yield _part_of([*held, head])
            held, rows, batch = [], 0, batch.slice(head.num_rows)
        if batch.num_rows:
            held.append(batch)
            rows += batch.num_rows
    if rows:
        yield _part_of(held)


def _part_of(batches: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).combine_chunks().cast(_PART)
