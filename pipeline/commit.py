"""How outputs come into being: whole, with a record of what they were made from, or not at all.

A sidecar is one parquet file that carries its record in its footer. A shard is a tar, a parquet
and a `_stats.json`; the last is its record, is written last, and marks it done.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import runs, storage
from pipeline.errors import UserError
from pipeline.runs import Run, canonical
from pipeline.schemas import OK, table_of
from pipeline.writing import ShardWriter

_METADATA = b"recaption"
_ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class Record:
    """What an output says of itself. No clocks: the same work gives the same record."""

    shard: str
    config_hash: str
    inputs: dict  # name of the input -> its identity
    environment: dict  # device, precision, threads of the worker
    counts: dict = field(default_factory=dict)  # see tally; "samples" is what was read

    @classmethod
    def from_dict(cls, values: dict) -> "Record":
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


def tally(table: pa.Table) -> dict:
    """Rows, and how often each value of each `*status` and `reason` column stands in them."""
    counts: dict = {"rows": table.num_rows}
    for name in table.column_names:
        if name.endswith("status") or name == "reason":
            values = table.column(name).drop_null().value_counts()
            pairs = zip(*(values.field(i).to_pylist() for i in (0, 1)), strict=True)
            counts[name] = dict(sorted(pairs))
    return counts


def require_accounted(record: Record) -> None:
    """Every sample that was read is a row: anything else is a bug of ours."""
    samples, rows = record.counts["samples"], record.counts["rows"]
    if samples != rows:
        raise RuntimeError(f"shard {record.shard}: {samples} samples in, {rows} rows out")


def write_sidecar(url: str, table: pa.Table, record: Record) -> None:
    """Commits one sidecar. Same table and record, same bytes."""
    require_accounted(record)
    with storage.write_atomic(url) as part:
        write_parquet(recorded(table, record), part)


def recorded(table: pa.Table, record: Record) -> pa.Table:
    """A sidecar's table with its record, as its file holds them."""
    return table.replace_schema_metadata({_METADATA: canonical(asdict(record)).encode()})


def write_parquet(table: pa.Table, path: object) -> None:
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_sidecar_record(url: str) -> Record | None:
    """The record in a sidecar's footer; None where the file is absent, torn or not ours."""
    try:
        with storage.open_read(url) as f:
            footer = pq.ParquetFile(f)
            record = record_in(footer.metadata)
            return record if footer.metadata.num_rows == record.counts["rows"] else None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def record_in(footer: pq.FileMetaData) -> Record:
    """The record in a footer; KeyError, ValueError or TypeError where there is none."""
    return Record.from_dict(json.loads((footer.metadata or {})[_METADATA]))


def read_sidecar(url: str, columns: list[str] | None = None) -> pa.Table:
    """A sidecar's table, page checksums verified; raises OSError where bytes are damaged."""
    return pq.read_table(in_memory(url), columns=columns, page_checksum_verification=True)


def sidecar_rows(url: str, columns: list[str]) -> Iterator[dict]:
    """A sidecar's rows in order, a few unpacked at a time; raises OSError as `read_sidecar`."""
    file = pq.ParquetFile(in_memory(url), page_checksum_verification=True)
    for batch in file.iter_batches(_ROWS_PER_BATCH, columns=columns):
        yield from batch.to_pylist()


def in_memory(url: str) -> pa.BufferReader:
    """A small file for Arrow to read, in memory of Arrow's own.

    Never a Python file, nor Python's bytes: Arrow's threads may still hold those when the
    interpreter exits, and then the process aborts.
    """
    data = storage.read_bytes(url)
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    return pa.BufferReader(buffer)


def sha256_file(url: str) -> str:
    with storage.open_read(url) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_shard(
    run: Run,
    shard: str,
    schema: pa.Schema,
    rows: Callable[[ShardWriter], Iterable[dict]],
    record: Callable[[pa.Table], Record],
    stats: Callable[[pa.Table], dict] | None = None,
) -> Record:
    """Commits one shard; no tar where its record counts no status `ok`.

    rows: writes samples and gives a row for each. record: what the shard says of itself, asked for
    when all rows are there. stats: what its `_stats.json` says in other words than `write_stats`
    would, asked for after that.
    """
    start = time.time()
    storage.remove(stats_url(run, shard))  # what it marks ends here
    tar, parquet = f"{shard}.tar", f"{shard}.parquet"
    files = {}
    with storage.write_atomic(run.file(tar)) as part:
        with ShardWriter(part) as writer:
            table = table_of(rows(writer), schema)
        made = record(table)
        require_accounted(made)
        if made.counts["status"].get(OK):
            files[tar] = {"size": writer.size, "sha256": writer.sha256}
        else:
            part.unlink()
            storage.remove(run.file(tar))
    with storage.write_atomic(run.file(parquet)) as part:
        write_parquet(table, part)
        files[parquet] = {"size": part.stat().st_size, "sha256": sha256_file(str(part))}
    end = time.time()
    clocks = {"start_time": start, "end_time": end, "duration": end - start}
    write_stats(run, made, files, clocks, stats(table) if stats else {})
    return made


def refuse_foreign_shards(run: Run, what: str) -> None:
    """Raw shards are written once: UserError where some stand in the folder of a run that never was.

    what: the shards that were to be written, in words.
    """
    if runs.load(run.out, run.kind, run.name) or not storage.list_files(run.folder, ".tar"):
        return
    raise UserError(
        f"OUT={run.out}: {run.folder} holds shards that are no {what}",
        "give another OUT; to recaption these shards, name them: SHARDS=...",
    )


def stats_url(run: Run, shard: str) -> str:
    return run.file(f"{shard}_stats.json")


def write_stats(
    run: Run, record: Record, files: dict[str, dict], clocks: dict, told: dict | None = None
) -> None:
    """Marks a shard done. files: name -> {"size", "sha256"}; the names img2dataset uses, too.

    told: replaces what is said here of failures to download and to resize, and of messages.
    """
    require_accounted(record)
    status = record.counts["status"]
    stats = {
        "count": record.counts["rows"],
        "successes": status.get("ok", 0),
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "status_dict": {**{"success": status.get("ok", 0)}, **record.counts["reason"]},
        **(told or {}),
        **clocks,
        "files": files,
        "record": asdict(record),
    }
    storage.write_bytes(stats_url(run, record.shard), json.dumps(stats, indent=1).encode())


def read_stats_record(run: Run, shard: str) -> Record | None:
    """The record of a shard that is done; None where a part is missing or has another size."""
    try:
        stats = json.loads(storage.read_bytes(stats_url(run, shard)))
        for name, file in stats["files"].items():
            if storage.fingerprint(run.file(name)).size != file["size"]:
                return None
        return Record.from_dict(stats["record"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
