"""Sidecars of stages `image` and `clip` as annotate writes them, of rows that a test made up."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import commit, manifest, runs
from pipeline.annotate.annotator import KIND, schema_of
from pipeline.annotate.clip import ClipAnnotator
from pipeline.annotate.image import ImageAnnotator
from pipeline.manifest import Shard
from pipeline.runs import Run
from pipeline.samples import uid_of

IMAGE, CLIP = "image@made-up", "clip@made-up"
_CLIP_SCHEMA = schema_of(ClipAnnotator(load=dict, model="made-up", settings={}))


def uid(shard: str, key: str) -> str:
    return uid_of(shard, key)


def fill(out: Path | str, shards: Mapping[str, Sequence[Mapping]]) -> list[Shard]:
    """Writes a data folder: shard name -> rows. A row has a key and what matters of the columns.

    phash may be a number. Rows without `sha256` have bytes of their own; those with a `reason`
    failed. Sidecars of stage clip are written where any row has an embedding or a similarity.
    """
    raw = Path(out).parent / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in shards:
        (raw / f"{name}.tar").write_bytes(name.encode())  # only annotate would read it
    registered = manifest.register(str(out), [str(raw / f"{name}.tar") for name in shards])
    clip = any("embedding" in row or "similarity" in row for r in shards.values() for row in r)
    for shard, rows in zip(registered, shards.values(), strict=True):
        write(out, IMAGE, shard, pa.Table.from_pylist([_image(shard, r) for r in rows], _IMAGES))
        if clip:
            table = pa.Table.from_pylist([_clip(shard, row) for row in rows], _CLIP_SCHEMA)
            write(out, CLIP, shard, table)
    return registered


def write(out: Path | str, run: str, shard: Shard, table: pa.Table) -> None:
    """Commits one sidecar of a run of columns."""
    made = Run(out=str(out), kind=KIND, name=run, config={"made": "up"})
    runs.begin(made, [shard.name])
    record = commit.Record(
        shard=shard.name,
        config_hash=made.config_hash,
        inputs={"shard": shard.identity},
        environment={},
        counts={"samples": len(table), **commit.tally(table)},
    )
    commit.write_sidecar(made.file(f"{shard.name}.parquet"), table, record)


_IMAGES = schema_of(ImageAnnotator())


def _image(shard: Shard, row: Mapping) -> dict:
    who = {"uid": uid(shard.name, row["key"]), "key": row["key"]}
    if row.get("reason"):
        return dict.fromkeys(_IMAGES.names) | who | {"status": "failed", "reason": row["reason"]}
    usual = {"width": 10, "height": 10, "num_bytes": 100, "pdq_quality": 100, "status": "ok"}
    usual["sha256"] = f"{int(who['uid'], 16):064x}"
    made = dict.fromkeys(_IMAGES.names) | usual | who
    made |= {name: value for name, value in row.items() if name in made}
    if isinstance(made["phash"], int | np.integer):
        made["phash"] = f"{int(made['phash']):016x}"
    return made


def _clip(shard: Shard, row: Mapping) -> dict:
    made = dict.fromkeys(_CLIP_SCHEMA.names) | {
        "uid": uid(shard.name, row["key"]),
        "key": row["key"],
        "status": "failed" if row.get("reason") else "ok",
        "reason": row.get("reason"),
        "similarity": row.get("similarity"),
    }
    if row.get("embedding") is not None:
        made["embedding"] = np.asarray(row["embedding"], np.float16)
    return made
