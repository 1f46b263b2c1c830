"""kill -9 at any moment, run again: the outputs are those of a job that was never killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import shards
from tests.support.outputs import digest, leftovers

NUM_SHARDS = 6
PER_SHARD = 15


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("raw")
    for i in range(NUM_SHARDS):
        shards.write_tar(folder / f"{i:05d}.tar", shards.pairs(PER_SHARD, start=PER_SHARD * i))
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(out, raw, "inline", 1).wait(120) == 0
    return digest(out)


def start(out: Path, raw: str, executor: str, workers: int) -> subprocess.Popen:
    command = ["tests.support.driver", str(out), raw, executor, str(workers), "slow"]
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def commits(out: Path) -> int:
    return len(list(out.glob("captions/*/*.parquet")) + list(out.glob("mix/*/*_stats.json")))


def kill_within(job: subprocess.Popen, out: Path, after_commits: int, pause: float) -> bool:
    """Kills the driver a moment after so many commits; False where it ended before."""
    while commits(out) < after_commits:
        if job.poll() is not None:
            return False
        time.sleep(0.005)
    time.sleep(pause)
    job.send_signal(signal.SIGKILL)
    return job.wait() == -signal.SIGKILL


def workers_of(job: subprocess.Popen) -> list[int]:
    """Processes of Ray's workers that the job started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            session = os.getsid(int(folder.name))
        except (OSError, ProcessLookupError):
            continue
        if command.startswith(b"ray::_Worker") and session == os.getsid(job.pid):
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_driver_killed_inline(seed, raw, undisturbed, tmp_path):
    chance = random.Random(seed)
    killed = 0
    for _ in range(3):
        job = start(tmp_path, raw, "inline", 1)
        after = commits(tmp_path) + chance.randint(1, 3)
        killed += kill_within(job, tmp_path, after, chance.uniform(0, 0.3))
    assert killed >= 2
    assert start(tmp_path, raw, "inline", 1).wait(120) == 0
    assert digest(tmp_path) == undisturbed
    assert leftovers(tmp_path) == []


@pytest.mark.ray
def test_driver_killed_on_ray(raw, undisturbed, tmp_path):
    job = start(tmp_path, raw, "ray", 2)
    assert kill_within(job, tmp_path, after_commits=2, pause=0.1)
    job = start(tmp_path, raw, "ray", 1)
    assert job.wait(120) == 0, job.stderr.read()
    assert digest(tmp_path) == undisturbed


@pytest.mark.ray
def test_workers_killed_on_ray(raw, undisturbed, tmp_path):
    job = start(tmp_path, raw, "ray", 2)
    killed = 0
    while job.poll() is None:
        if killed < 3 and commits(tmp_path) > killed:
            for pid in workers_of(job)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    assert job.returncode == 0, job.stderr.read()
    assert killed == 3
    assert digest(tmp_path) == undisturbed
    assert leftovers(tmp_path) == []
