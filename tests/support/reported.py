"""A data folder for reports: hostile captions, two caption runs, a keep-list and a mix."""

from pathlib import Path

import pyarrow as pa

from pipeline import commit, runs
from pipeline.commit import Record
from pipeline.runs import Run
from pipeline.schemas import KEEP
from tests.support.mixing import mixed
from tests.support.shards import pair, write_tar
from tests.support.stages import ColourStage, caption

SAMPLES, DROPPED, BROKEN = 40, 8, 2
CONDITION = "short_tokens >= 256"
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '<img src="https://example.org/x.png" onerror="window.hacked = 1">',
    "</script><script>window.hacked = 1</script><!--<script>",
    '"><svg onload=window.hacked=1><a href="javascript:window.hacked=1">click</a>',
    "‮reversed‬   {{policy}} {{scripts}}",
)


def fill(out: str) -> None:
    """40 samples: 8 dropped by a keep-list, 2 that are no images, hostile texts among the first."""
    packed = []
    for i in range(SAMPLES):
        text = HOSTILE[i] if i < len(HOSTILE) else f"a zebra number {i}" if i == 20 else None
        packed.append(pair(f"{i:09d}", i, text))
    for key, members in packed[-BROKEN:]:
        members["jpg"] = b"this is no image"
        assert key
    url = write_tar(Path(out).parent / "raw" / "00000.tar", packed)
    caption(out, [url], run="second", stage=ColourStage(prefix="it is "))
    shards = caption(out, [url], run="first")
    keep = Run(out, "keep", "good", {})
    known = commit.read_sidecar(f"{out}/captions/first/00000.parquet").to_pylist()
    rows = [
        {"uid": row["uid"], "key": row["key"], "keep": i not in _DROPPED}
        | {"reason": CONDITION if i in _DROPPED else None}
        for i, row in enumerate(known)
    ]
    runs.begin(keep, ["00000"])
    table = pa.Table.from_pylist(rows, schema=KEEP)
    record = Record("00000", keep.config_hash, {}, {}, {"samples": SAMPLES, "rows": SAMPLES})
    commit.write_sidecar(keep.file("00000.parquet"), table, record)
    mixed(out, shards, "0.5", name="m", captions="first", keep="good")


_DROPPED = range(8, 8 + DROPPED)
