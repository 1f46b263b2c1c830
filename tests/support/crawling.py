"""Crawls from loopback, for tests: lists, commands, and what became of them."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.__main__ import main

LOOPBACK = ("--executor", "inline", "--allow-private", "127.0.0.1/32", "--per-host", "64")


def listed(path: Path, urls: Sequence[str | None], **columns: Sequence[object]) -> str:
    """A parquet list of URLs, each with a caption of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = [f"caption \u00e9 {number}" for number in range(len(urls))]
    columns = {"url": pa.array(urls, pa.string()), "text": captions} | columns
    pq.write_table(pa.table(columns), path)
    return str(path)


def arguments(out: Path, urls: str, *flags: object) -> list[str]:
    given = [str(flag) for flag in flags]
    column = [] if "--caption-col" in given else ["--caption-col", "text"]
    return ["crawl", "--urls", str(urls), "--out", str(out), *column, *LOOPBACK, *given]


def crawl(out: Path, urls: str, *flags: object) -> int:
    """`crawl`, in this process; its exit code."""
    return main(arguments(out, urls, *flags))


def retry(out: Path, *flags: object) -> int:
    return main(["crawl-retry", "--out", str(out), *LOOPBACK, *map(str, flags)])


def started(out: Path, urls: str, *flags: object) -> subprocess.Popen:
    """The same in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments(out, urls, *flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )


def rows(out: Path, run: str = "") -> list[dict]:
    """The rows of all shards, in order."""
    files = sorted((out / "shards" / run).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def members(tar: Path) -> dict[str, bytes]:
    """Name -> bytes, in the order of the tar."""
    with tarfile.open(tar) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened.getmembers()}


def stats(out: Path, shard: str) -> dict:
    return json.loads((out / "shards" / f"{shard}_stats.json").read_text())
