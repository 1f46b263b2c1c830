"""A real server in a process of its own, on a free port of loopback, gone when the test is."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

# The server dies with whoever holds the other end of its standard input, however that one dies.
_RUN = """
import os, runpy, signal, sys, threading
def watch():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(
    module: str, arguments: Sequence[str], port: int, start_sec: float = 600, **environ: str
) -> Iterator[str]:
    """Runs `python -m module arguments` until the block ends; gives its address once it is healthy.

    Offline, with one thread, and with `environ`; raises AssertionError with what the server said
    where it does not come up.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, module, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | offline | environ,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + start_sec
            while not _healthy(address):
                ended = process.poll() is not None
                if ended or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-4000:]
                    raise AssertionError(f"{module} {'ended' if ended else 'is slow'}:\n{said}")
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
            process.stdin.close()
            process.wait()


def _healthy(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
