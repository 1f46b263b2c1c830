"""A Ray head of the tests' own: with a job server, a Prometheus endpoint and a token, on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
_PATIENCE_SEC = 600


@dataclass(frozen=True)
class Head:
    port: int
    jobs: str  # URL of the job server
    metrics: str  # URL of the Prometheus endpoint
    environment: dict[str, str]  # of whoever talks to it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(token: str) -> dict[str, str]:
    """This one, in which `python` is the tests', with a token."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return own | {
        "PATH": f"{Path(sys.executable).parent}:{own['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_worker_niceness": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


@contextlib.contextmanager
def head(token: str) -> Iterator[Head]:
    """Starts one of two cores, and ends what it started, nothing else."""
    port, jobs, metrics = (free_port() for _ in range(3))
    given = environment(token)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short names
    command = [
        *(*RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={jobs}"),
        *(f"--metrics-export-port={metrics}", "--object-store-memory=134217728"),
    ]
    log = Path(folder) / "start.log"
    with log.open("w") as out:
        ray = subprocess.Popen(command, env=given, stdout=out, stderr=out, start_new_session=True)
    try:
        _await(ray, jobs, log)
        yield Head(port, f"http://127.0.0.1:{jobs}", f"http://127.0.0.1:{metrics}/metrics", given)
    finally:
        ray.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            ray.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ray.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _await(ray: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SEC
    while time.monotonic() < deadline and ray.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    raise RuntimeError(f"no head: {log.read_text()[-2000:]}")
