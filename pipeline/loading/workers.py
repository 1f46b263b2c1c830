"""Several processes that prepare samples, each its part of a batch; gone when their owner is."""

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.loading.reader import Prepared, Reader
from pipeline.places import Place

_LISTS = ("texts", "sources", "dropped", "reasons")


class Workers:
    """Does what a Reader does, in processes of its own. They import neither torch nor the caller's
    script, so they can be started from anywhere; they end when their input does, however that
    comes about.
    """

    def __init__(self, reader: Reader, num: int) -> None:
        config = json.dumps(reader.to_json()).encode() + b"\n"
        self._workers = [_Worker(config) for _ in range(num)]

    def prepare(self, places: Sequence[Place], size: tuple[int, int] | None) -> Prepared:
        """As `Reader.prepare`. Neighbours go to the same process, which has fetched their block."""
        images = np.empty((len(places), size[1], size[0], 3), np.uint8) if size else None
        num, total = len(self._workers), len(places)
        parts = [slice(i * total // num, (i + 1) * total // num) for i in range(num)]
        asked = [
            worker.threads.submit(
                worker.ask, places[part], size, images[part] if images is not None else None
            )
            for worker, part in zip(self._workers, parts, strict=True)
            if part.start < part.stop
        ]
        told = [answer.result() for answer in asked]
        return Prepared(
            images, *([value for answer in told for value in answer[name]] for name in _LISTS)
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process, asked by one thread after the other."""

    def __init__(self, config: bytes) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            # -P: nothing of the working directory is imported.
            [sys.executable, "-P", "-m", "pipeline.loading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # the terminal's Ctrl-C is for the owner
        )
        self._config = config
        self.threads = ThreadPoolExecutor(1, "loader-worker")
        self._end = weakref.finalize(self, _end, self._process)

    def ask(
        self, places: Sequence[Place], size: tuple[int, int] | None, into: np.ndarray | None
    ) -> dict:
        """Texts and reasons of some samples; their pixels go into (n, H, W, 3)."""
        rows = [(place.seed, place.step, place.epoch, place.index) for place in places]
        request = json.dumps({"places": rows, "size": size}).encode() + b"\n"
        try:
            self._process.stdin.write(self._config + request)
            self._process.stdin.flush()
            self._config = b""
            told = json.loads(self._process.stdout.readline() or "null")
        except (BrokenPipeError, ValueError):
            told = None
        if told is not None and into is not None and "texts" in told:
            view = memoryview(into).cast("B")
            told = told if self._process.stdout.readinto(view) == len(view) else None
        if told is None:
            code = self._process.wait()
            raise UserError(
                f"a process of the loader ended with code {code}",
                "it may have run out of memory: give fewer workers",
            )
        if "user_error" in told:
            raise UserError(*told["user_error"])
        if "error" in told:
            raise RuntimeError(f"in a process of the loader:\n{told['error']}")
        return told

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)
        self._end()


def _end(process: subprocess.Popen) -> None:
    """Ends a process that nobody asks any more."""
    with suppress(OSError):
        process.stdin.close()
    process.terminate()  # it may be in the middle of something, and holds nothing that is ours
    process.wait()
    process.stdout.close()
