"""Counts what a job wrote against what it read, with nothing but tars, tables and its last words."""

import json
import re
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
from safetensors import safe_open

_SAMPLES = re.compile(r"^  samples   (\d+) in = (.*)$", re.M)
_SHARDS = re.compile(
    r"^  shards    (\d+) planned = (\d+) done now in [\d.]+ s \+ (\d+) done before"
    r" \+ (\d+) not reached \+ (\d+) failed$",
    re.M,
)


def require_accounted(
    out: Path, folders: tuple[str, ...], samples: int, said: str
) -> tuple[int, int]:
    """(kept, dropped) of all folders; AssertionError where a sample is missing, twice, or unexplained.

    folders: globs below `out`; all samples are rows in each. said: what the job printed last.
    """
    _require_said(said)
    kept = dropped = 0
    for pattern in folders:
        [folder] = [path for path in out.glob(pattern) if path.is_dir()]
        tensors = sorted(folder.glob("0*.safetensors"))
        counts = _of_tensors(tensors, samples) if tensors else _of_tables(folder, samples)
        kept, dropped = kept + counts[0], dropped + counts[1]
    return kept, dropped


def _require_said(said: str) -> None:
    """The job's own tables add up, and leave nothing undone."""
    tables = _SAMPLES.findall(said)
    shards = [tuple(map(int, found)) for found in _SHARDS.findall(said)]
    assert tables and len(tables) == len(shards), said
    for total, terms in tables:
        assert int(total) == sum(int(t.split()[0]) for t in terms.split(" + ")), terms
    for planned, now, before, missed, failed in shards:
        assert (planned, 0, 0) == (now + before, missed, failed), said


def _of_tables(folder: Path, samples: int) -> tuple[int, int]:
    uids: list[object] = []
    kept = 0
    for path in sorted(folder.glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        # Where raw shards are made, samples have no uid yet.
        uids += [row.get("uid") or (path.stem, row["key"]) for row in rows]
        stays = [row["keep"] if "keep" in row else row["status"] == "ok" for row in rows]
        unexplained = [r["key"] for r, s in zip(rows, stays, strict=True) if s == bool(r["reason"])]
        assert not unexplained, f"{path}: {unexplained} are neither kept nor dropped for a reason"
        kept += sum(stays)
        if path.with_name(f"{path.stem}_stats.json").exists():
            _require_shard(path, [r["key"] for r, s in zip(rows, stays, strict=True) if s])
    assert len(uids) == len(set(uids)) == samples, f"{folder}: {len(uids)} rows of {samples}"
    return kept, len(uids) - kept


def _require_shard(parquet: Path, keys: list[str]) -> None:
    """The tar holds the samples that are ok, once each, and the stats count them."""
    stats = json.loads(parquet.with_name(f"{parquet.stem}_stats.json").read_text())
    assert stats["successes"] == len(keys), parquet
    assert stats["count"] == sum(stats["status_dict"].values()), parquet
    tar = parquet.with_suffix(".tar")
    if not keys:
        assert not tar.exists(), parquet
        return
    with tarfile.open(tar) as opened:
        names = opened.getnames()
    assert len(names) == len(set(names)), tar
    assert list(dict.fromkeys(name.split(".")[0] for name in names)) == keys, tar


def _of_tensors(files: list[Path], samples: int) -> tuple[int, int]:
    """A cache has a row for each sample of the mix, which dropped before what it could not keep."""
    rows = 0
    for path in files:
        with safe_open(path, "numpy") as opened:
            names = opened.keys()
            [count] = {opened.get_slice(name).get_shape()[0] for name in names}
        rows += count
    assert rows == samples, f"{files[0].parent}: {rows} rows of {samples}"
    return rows, 0
