"""Data folders with columns but without images, for tests of what selects by them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline import commit, manifest, runs
from pipeline.commit import Record
from pipeline.manifest import Shard
from pipeline.runs import Run
from pipeline.samples import uid_of
from pipeline.schemas import COLUMNS, OK

Row = Mapping[str, object]
"""A sample's columns of one run; `reason` alone where the stage has no answer."""


def shards_of(out: Path | str, count: int, size: int = 1) -> list[Shard]:
    """Registers so many shards, files of no use, in a data folder."""
    folder = Path(out) / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    urls = []
    for number in range(count):
        path = folder / f"{number:05d}.tar"
        if not path.exists() or path.stat().st_size != size:
            path.write_bytes(bytes([number]) * size)
        urls.append(str(path))
    return manifest.register(str(out), urls)


def annotated(
    out: Path | str,
    shards: Sequence[Shard],
    run: str,
    rows: Sequence[Sequence[Row]],
    schema: Mapping[str, pa.DataType],
    *,
    kind: str = "columns",
    version: int = 1,
) -> Run:
    """Writes a run of columns as annotate does: `rows[i]` are those of the i-th shard."""
    made = Run(out=str(out), kind=kind, name=run, config={"version": version})
    runs.begin(made, [shard.name for shard in shards])
    fields = [pa.field(name, kind_) for name, kind_ in schema.items()]
    whole = pa.schema([*list(COLUMNS)[:2], *fields, *list(COLUMNS)[2:]])
    for shard, own in zip(shards, rows, strict=True):
        table = pa.Table.from_pylist(
            [_row(shard, i, row, schema) for i, row in enumerate(own)], schema=whole
        )
        record = Record(
            shard=shard.name,
            config_hash=made.config_hash,
            inputs={"shard": shard.identity},
            environment={},
            counts={"samples": len(own), **commit.tally(table)},
        )
        commit.write_sidecar(made.file(f"{shard.name}.parquet"), table, record)
    return made


def uid_at(shard: Shard | str, index: int) -> str:
    """The uid of a sample of `annotated`."""
    name = shard if isinstance(shard, str) else shard.name
    return uid_of(name, f"{index:09d}")


def _row(shard: Shard, index: int, row: Row, schema: Mapping[str, pa.DataType]) -> dict:
    reason = row.get("reason")
    return dict.fromkeys(schema) | {
        "uid": uid_at(shard, index),
        "key": f"{index:09d}",
        "status": "failed" if reason else OK,
        "reason": None,
        **row,
    }


def kept(out: Path | str, run: str, shards: Sequence[Shard]) -> list[list[str | None]]:
    """The reasons that a keep-list gives, shard by shard; None where a sample is kept."""
    found = []
    for shard in shards:
        rows = commit.read_sidecar(f"{out}/keep/{run}/{shard.name}.parquet").to_pylist()
        assert [row["uid"] for row in rows] == [uid_at(shard, i) for i in range(len(rows))]
        assert all(row["keep"] == (row["reason"] is None) for row in rows)
        found.append([row["reason"] for row in rows])
    return found
