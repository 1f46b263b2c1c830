"""Selecting among 10,000,000 samples by their columns, against DuckDB alone on the same files.

    python -m tests.benchmarks.bench_select [--rows N] [--quick] [--folder DIR]

Sidecars of two stages (image and text, 10,000 samples each) are made up in a scratch folder, below
3 GB, and deleted afterwards. Ours is the verb as it is: every sidecar checked, every sample judged
by six conditions, every shard's keep-list committed. The peer is what an analyst writes: one query
in DuckDB that joins the two stages and counts what passes, and keeps nothing. Fails (exit 1) above
the bar of seconds or memory, or where the two counts differ.
"""

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import select_samples
from jobs.select_samples import SelectSamples
from pipeline import commit, runs
from pipeline.commit import Record
from pipeline.runs import Run
from pipeline.schemas import OK, SHARDS

BAR_SECONDS = 30.0
BAR_BYTES = 8e9
PER_SHARD = 10_000
WHERE = (
    "language = 'en' and words > 2 and characters > 5 and least(width, height) >= 200 "
    "and greatest(width, height) <= 3 * least(width, height) and similarity > 0.28"
)
TOP = "30 % by similarity"


def make(out: Path, shards: int) -> None:
    """A data folder with columns for so many shards; no images."""
    names = [f"{number:05d}" for number in range(shards)]
    rows = [
        {"name": n, "url": f"shards/{n}.tar", "size": 1, "sha256": n, "samples": PER_SHARD}
        for n in names
    ]
    out.mkdir(parents=True)
    commit.write_parquet(pa.Table.from_pylist(rows, schema=SHARDS), out / "shards.parquet")
    for stage in ("image@1", "text@1"):
        runs.begin(Run(out=str(out), kind="columns", name=stage, config={"made": "up"}), names)
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(_make_shard, [str(out)] * shards, names, chunksize=16))


def _make_shard(out: str, shard: str) -> None:
    draw = np.random.default_rng(int(shard))
    uids = [draw.bytes(16).hex() for _ in range(PER_SHARD)]
    lost = draw.random(PER_SHARD) < 0.01
    verdict = {
        "status": pa.array(np.where(lost, "failed", OK)),
        "reason": pa.array(np.where(lost, "undecodable", None), pa.string()),
    }
    same = {"uid": pa.array(uids), "key": pa.array([f"{i:09d}" for i in range(PER_SHARD)])}

    def whole(low: int, high: int) -> pa.Array:
        return pa.array(draw.integers(low, high, PER_SHARD), pa.int32(), mask=lost)

    stages = {
        "image@1": {
            "width": whole(50, 2000),
            "height": whole(50, 2000),
            "similarity": pa.array(draw.normal(0.3, 0.05, PER_SHARD), pa.float32(), mask=lost),
            "phash": pa.array([draw.bytes(8).hex() for _ in range(PER_SHARD)]),
        },
        "text@1": {
            "language": pa.array(draw.choice(["en", "en", "de", "fr"], PER_SHARD)),
            "words": whole(1, 30),
            "characters": whole(1, 200),
        },
    }
    for stage, own in stages.items():
        run = Run(out=out, kind="columns", name=stage, config={"made": "up"})
        identity = {"size": 1, "etag": "", "sha256": shard, "limit": None}
        counts = {"samples": PER_SHARD, "rows": PER_SHARD}
        record = Record(shard, run.config_hash, {"shard": identity}, {}, counts)
        commit.write_sidecar(run.file(f"{shard}.parquet"), pa.table(same | own | verdict), record)


def ours(out: str, top: str) -> None:
    """The verb, in a process of its own; says its peak memory at the end."""
    config = SelectSamples(out=out, where=WHERE, top=top, run="top" if top else "plain")
    start = time.perf_counter()
    summary = select_samples.run(config)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    busy = used.ru_utime + used.ru_stime
    Path(out, "answer").write_text(f"{seconds} {busy} {used.ru_maxrss * 1024} {summary.ok}")


def measured(out: Path, top: str) -> tuple[float, float, float, int]:
    """(seconds, seconds of all cores, peak bytes, kept) of our verb."""
    job = multiprocessing.get_context("forkserver").Process(target=ours, args=(str(out), top))
    job.start()
    job.join()
    seconds, busy, peak, kept = (out / "answer").read_text().split()
    return float(seconds), float(busy), float(peak), int(kept)


def peer(out: Path) -> tuple[float, int]:
    """(seconds, kept) of one query that keeps nothing."""
    start = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '8GB'")
        image, text = (f"read_parquet('{out}/columns/{s}@1/*.parquet')" for s in ("image", "text"))
        counted = connection.sql(
            f"SELECT count(*) FROM {image} JOIN {text} USING (uid) WHERE {WHERE}"
        ).fetchall()
    return time.perf_counter() - start, counted[0][0]


def main() -> int:
    """Makes, measures, deletes; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows")
    parser.add_argument("--folder", help="where there is room; by default a temporary folder")
    options = parser.parse_args()
    shards = max(1, options.rows // PER_SHARD // (20 if options.quick else 1))
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        out = folder / "out"
        make(out, shards)
        used = sum(path.stat().st_size for path in out.rglob("*.parquet"))
        print(f"{shards * PER_SHARD:,} samples in {shards} shards, {used / 1e9:.2f} GB of columns")
        seconds, busy, peak, kept = measured(out, "")
        top_seconds, top_busy, top_peak, top_kept = measured(out, TOP)
        peer_seconds, peer_kept = peer(out)
        lists = sorted(out.glob("keep/plain/*.parquet"))
        listed = sum(pc.sum(commit.read_sidecar(str(p)).column("keep")).as_py() for p in lists[:20])
    finally:
        shutil.rmtree(folder)
    for name, clock, cores, memory, count in (
        ("select", seconds, busy, peak, kept),
        (f"select, {TOP}", top_seconds, top_busy, top_peak, top_kept),
    ):
        print(
            f"{name:28} {clock:6.1f} s, busy {cores:5.1f} s, {memory / 1e9:.2f} GB, {count:,} kept"
        )
    print(f"{'one query, nothing written':28} {peer_seconds:6.1f} s, {peer_kept:,} pass")
    scale = shards * PER_SHARD / 10_000_000
    passed = seconds <= BAR_SECONDS * scale and max(peak, top_peak) < BAR_BYTES
    passed &= kept == peer_kept and listed > 0 and top_kept == int(0.3 * kept)
    print(
        f"bar {BAR_SECONDS * scale:.1f} s, {BAR_BYTES / 1e9:.0f} GB: {'passed' if passed else 'FAILED'}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
