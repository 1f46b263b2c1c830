"""Every odd and broken image through the whole job, on Ray and in one process."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.mix import SAMPLE_REASONS
from pipeline.schemas import CAPTION_STATUSES
from tests.support import real, shards
from tests.support.captioners import save_tiny

MAX_PEAK_MB = 2048
CODE = """
import resource, sys
from jobs.__main__ import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    samples = [(f"{i:06d}", {suffix: image}) for i, (suffix, image) in enumerate(real.odd_images())]
    shards.write_tar(folder / "00000.tar", samples)
    return folder / "00000.tar"


def recaption(shard: Path | str, out: Path, captioner: str, *flags: str) -> int:
    """Runs the main job in a process of its own; returns its peak memory in MB."""
    command = ["recaption", "--shards", str(shard), "--out", str(out), "--captioner", captioner]
    command += ["--threads", "2", "--run", "odd", "--max-failed", "1", *flags]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return int(done.stdout.split()[-1])


def test_every_file_becomes_a_row_in_bounded_memory(odd, tmp_path):
    captioner = save_tiny(tmp_path / "captioner")
    good = shards.write_tar(tmp_path / "00000.tar", shards.pairs(4))
    model = recaption(good, tmp_path / "good", captioner, "--executor", "inline")
    peak = recaption(odd, tmp_path / "out", captioner, "--executor", "inline")
    assert peak - model < MAX_PEAK_MB
    check_rows(tmp_path / "out")


@pytest.mark.ray
def test_no_worker_dies_for_good(odd, tmp_path):
    captioner = save_tiny(tmp_path / "captioner")
    recaption(odd, tmp_path / "out", captioner, "--workers", "1")
    check_rows(tmp_path / "out")


def check_rows(out: Path) -> None:
    captions = pq.read_table(out / "captions/odd/00000.parquet").to_pylist()
    mixed = pq.read_table(out / "mix/odd/00000.parquet").to_pylist()
    assert len(captions) == len(mixed) == 418
    statuses = Counter(row["status"] for row in captions)
    assert statuses["ok"] > 200
    assert statuses["failed"] > 80
    for row in captions:
        assert (row["status"] == "ok") == (row["reason"] is None)
        assert row["reason"] is None or row["reason"] in SAMPLE_REASONS
        assert row["caption_status"] == "missing"
        assert {row["short_status"], row["long_status"]} <= {*CAPTION_STATUSES} - {"absent"}
    for row in mixed:
        assert (row["status"] == "ok") == (row["reason"] is None)
    assert {row["reason"] for row in mixed} - {None} <= {*SAMPLE_REASONS}
    # No text came with these images, so what has no usable synthetic caption has none at all.
    assert {row["caption_source"] for row in mixed} <= {"long", "short", None}
