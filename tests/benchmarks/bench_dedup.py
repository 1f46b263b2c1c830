"""Finding duplicates: a million perceptual hashes, and ten million rows for their bytes.

    python -m tests.benchmarks.bench_dedup [--quick]

Perceptual: groups of 1,000,000 hashes at radius 4, with planted near-duplicates, many pictures of
one hash, and hashes that crowd around it as those of nearly flat pictures do; exact against
comparing everything with everything on 20,000 of them, whose seconds are the peer's, times 2,500
for a million. Bar: 60 s on two cores.

Exact: the whole verb over 10,000,000 rows, a third of them copies, from sidecars to sidecars, in a
process of its own. Bar: 30 s and 8 GB, together with `select`; this is the part of `dedup`.

With --quick, a tenth of both.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import manifest
from pipeline.annotate.annotator import schema_of
from pipeline.annotate.image import ImageAnnotator
from pipeline.dedup import hamming, stars
from tests.support import dedup_columns

PERCEPTUAL_BAR_SEC, EXACT_BAR_SEC, EXACT_BAR_GB = 60.0, 30.0, 8.0
RADIUS = 4
CHECKED = 20_000
ROWS_PER_SHARD = 100_000


def crowded(count: int, seed: int = 0) -> np.ndarray:
    """Hashes of so many pictures: uint64, best first."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 2**64, count, dtype=np.uint64)
    tenth = count // 10
    hashes[:tenth] = flipped(hashes[tenth : 2 * tenth], 3, draw)  # copies that differ a little
    hashes[2 * tenth : 3 * tenth] = flipped(hashes[3 * tenth], 12, draw, tenth)  # crowd
    hashes[3 * tenth : 5 * tenth] = hashes[3 * tenth]  # one picture, everywhere
    draw.shuffle(hashes)
    return hashes


def flipped(
    hashes: np.ndarray, most: int, draw: np.random.Generator, count: int | None = None
) -> np.ndarray:
    """Hashes with up to `most` bits turned."""
    turned = np.broadcast_to(hashes, (count,)).copy() if count else hashes.copy()
    for _ in range(most):
        bits = np.uint64(1) << draw.integers(0, 64, turned.size, dtype=np.uint64)
        turned ^= np.where(draw.random(turned.size) < 0.7, bits, np.uint64(0))
    return turned


def brute(hashes: np.ndarray) -> np.ndarray:
    """Pairs i < j within the radius as i * n + j, by comparing all."""
    found = []
    for i in range(hashes.size):
        near = np.flatnonzero(np.bitwise_count(hashes[i + 1 :] ^ hashes[i]) <= RADIUS)
        found.append(i * hashes.size + i + 1 + near)
    return np.concatenate(found)


def perceptual(count: int) -> bool:
    some = crowded(CHECKED)
    start = time.perf_counter()
    expected = brute(some)
    peer_sec = (time.perf_counter() - start) * (count / CHECKED) ** 2
    got = [i * some.size + j for i, j in hamming.pairs_within(some, RADIUS)]
    same = np.array_equal(np.sort(np.concatenate(got)), np.sort(expected))
    hashes = crowded(count)
    start = time.perf_counter()
    distinct, first = np.unique(hashes, return_index=True)
    ordered = distinct[np.argsort(first)]
    keeper = stars.of_hashes(ordered, RADIUS)
    seconds = time.perf_counter() - start
    dropped = count - np.count_nonzero(keeper == np.arange(keeper.size))
    fine = same and seconds <= PERCEPTUAL_BAR_SEC * count / 1_000_000
    print(
        f"perceptual  {count} hashes, {distinct.size} distinct: {dropped} duplicates in "
        f"{seconds:.1f} s, {count / seconds:.0f}/s (all with all: {peer_sec:.0f} s)"
    )
    print(
        f"  {len(expected)} pairs of {CHECKED}: {'all found' if same else 'NOT THE SAME'}; "
        f"bar {PERCEPTUAL_BAR_SEC * count / 1_000_000:.0f} s  {'ok' if fine else 'MISSED'}"
    )
    return fine


def write_columns(out: str, count: int) -> None:
    """Image columns of so many rows, a third of them with the bytes of others."""
    draw = np.random.default_rng(0)
    raw = Path(out).parent / "raw"
    raw.mkdir()
    names = [f"{i:05d}" for i in range(count // ROWS_PER_SHARD)]
    for name in names:
        (raw / f"{name}.tar").write_bytes(name.encode())
    shards = manifest.register(out, [str(raw / f"{name}.tar") for name in names])
    schema = schema_of(ImageAnnotator())
    for shard in shards:
        n = ROWS_PER_SHARD
        picture = draw.integers(0, count * 8 // 7, n)
        other = {
            "uid": hexadecimal(draw.integers(0, 2**63, (n, 2))),
            "key": pa.array([f"{i:09d}" for i in range(n)]),
            "sha256": hexadecimal(np.stack([picture * k for k in (1, 3, 7, 11)], axis=1)),
            "phash": hexadecimal(draw.integers(0, 2**63, (n, 1))),
            "pdq_quality": pa.array(np.full(n, 100, np.int32)),
            "width": pa.array(draw.integers(200, 2000, n).astype(np.int32)),
            "height": pa.array(draw.integers(200, 2000, n).astype(np.int32)),
            "num_bytes": pa.array(draw.integers(10_000, 500_000, n)),
            "status": pa.array(["ok"] * n),
        }
        columns = [other.get(field.name, pa.nulls(n, field.type)) for field in schema]
        dedup_columns.write(
            out, dedup_columns.IMAGE, shard, pa.table(columns, names=schema.names).cast(schema)
        )


def hexadecimal(numbers: np.ndarray) -> pa.Array:
    """int64 (n, words) as strings of 16 digits a word."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    width = 16 * numbers.shape[1]
    fixed = pa.Array.from_buffers(pa.binary(width), len(numbers), [None, pa.py_buffer(digits)])
    return fixed.cast(pa.binary()).cast(pa.string())


def exact(count: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out"
        write_columns(out, count)
        command = [sys.executable, "-m", "tests.benchmarks.bench_dedup", "--work", out]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, searched, of_cores, gigabytes = map(float, done.stdout.splitlines()[-1].split())
    bar_sec = EXACT_BAR_SEC * count / 10_000_000
    fine = seconds <= bar_sec and gigabytes <= EXACT_BAR_GB
    print(next(line for line in done.stdout.splitlines() if "verdict" in line))
    print(
        f"exact       {count} rows in {seconds:.1f} s, {count / seconds:.0f}/s: {searched:.1f} s until "
        f"all are found; {of_cores:.1f} s of cores with start-up; peak {gigabytes:.1f} GB"
    )
    told = "ok" if fine else "MISSED"
    print(f"  bar, with select, {bar_sec:.0f} s, {EXACT_BAR_GB:.0f} GB  {told}")
    return fine


def work(out: str) -> None:
    """The verb; prints its seconds and its peak memory."""
    from jobs.dedup import Dedup, run
    from pipeline.dedup.search import Search

    searched, find = [], Search.find

    def timed(search: Search, *arguments: object) -> None:
        find(search, *arguments)
        searched.append(time.perf_counter() - start)

    Search.find = timed
    start = time.perf_counter()
    run(Dedup(out=out, kinds="exact", executor="inline"))
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(seconds, searched[0], used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)


def main(arguments: list[str]) -> bool:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    share = 10 if parser.parse_args(arguments).quick else 1
    return all([perceptual(1_000_000 // share), exact(10_000_000 // share)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    else:
        sys.exit(not main(sys.argv[1:]))
