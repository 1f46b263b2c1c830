"""A verb that is killed in its middle, and started again until it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_SEC = 300


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen:
    """`python -m jobs ...` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def kill_after(arguments: Sequence[str], out: Path, files: int, pause: float = 0.0) -> bool:
    """Kills the verb a moment after `out` has so many more files; False where it ended before."""
    job = start(arguments)
    wanted = _written(out) + files
    until = time.monotonic() + TIMEOUT_SEC
    while _written(out) < wanted:
        if job.poll() is not None:
            return False
        assert time.monotonic() < until, "it neither writes nor ends"
        time.sleep(0.005)
    time.sleep(pause)
    os.killpg(job.pid, signal.SIGKILL)
    return job.wait() == -signal.SIGKILL


def finish(arguments: Sequence[str], code: int = 0) -> None:
    """Runs the verb to its end, which must be a good one."""
    job = start(arguments)
    _, errors = job.communicate(timeout=TIMEOUT_SEC)
    assert job.returncode == code, errors


def _written(out: Path) -> int:
    """Committed files; those that are being written are hidden."""
    return sum(1 for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
