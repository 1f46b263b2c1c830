"""What a training run tells: metrics.jsonl, a tracker, and one progress line."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from jobs.fit_settings import Fit
from pipeline import storage
from pipeline.draws import key64
from pipeline.errors import UserError

T = TypeVar("T")
CLOCK = ("samples_per_sec", "wait_share", "tflops", "mfu")
"""Fields of a line that differ from run to run; all others are the same to the last bit."""
_SECONDS_BETWEEN_PLAIN_LINES = 30.0
_SECONDS_BETWEEN_TERMINAL_LINES = 0.2
_STARVED = 0.2  # share of the time from which on waiting for batches is worth a word


class Window:
    """Weighted sums on the device of what is logged, read only when a line is due."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        for name, value in values.items():
            share = value.detach().float() * weight
            self.sums[name] = self.sums[name] + share if name in self.sums else share
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        """The averages; the window is empty afterwards."""
        found = {name: float(total) / self.weights[name] for name, total in self.sums.items()}
        self.sums, self.weights = {}, {}
        return found


class Meter:
    """Samples per second and the share of time spent waiting for batches, pauses left out."""

    def __init__(self) -> None:
        self._restart()

    def waiting(self, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return call()
        finally:
            self._waited += time.perf_counter() - start

    def paused(self, call: Callable[[], T]) -> T:
        """Evaluations and checkpoints are not training."""
        start = time.perf_counter()
        try:
            return call()
        finally:
            self._start += time.perf_counter() - start

    def add(self, samples: int) -> None:
        self._samples += samples

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        found = {
            "samples_per_sec": round(self._samples / elapsed, 4),
            "wait_share": round(self._waited / elapsed, 4),
        }
        self._restart()
        return found

    def _restart(self) -> None:
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0


class Tracker(Protocol):
    """Where metrics go besides the file."""

    def log(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class Untracked:
    def log(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, out: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise _missing("tensorboard") from e
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; the run's id follows from its folder, so that a resumed run goes on."""

    def __init__(self, out: Path, settings: Fit) -> None:
        try:
            import wandb
        except ImportError as e:
            raise _missing("wandb") from e
        name = f"{key64(str(out.absolute())):x}"
        self._run = wandb.init(
            project="recaption",
            name=out.name,
            id=name,
            resume="allow",
            dir=out,
            config=asdict(settings),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def tracker(settings: Fit, out: Path, step: int) -> Tracker:
    if settings.tracker == "tensorboard":
        return TensorBoard(out, step)
    return WandB(out, settings) if settings.tracker == "wandb" else Untracked()


def _missing(package: str) -> UserError:
    return UserError(f"--tracker {package} needs a package", f"pip install {package}")


class Metrics:
    """metrics.jsonl: one line per window, each step once, however often the run was stopped."""

    def __init__(self, path: Path, step: int) -> None:
        """Cuts what was written after the step that the run goes on from."""
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            storage.write_bytes(str(path), "".join(kept).encode())
        self.last = json.loads(kept[-1]) if kept else {}
        self._file = path.open("a")

    def write(self, line: dict[str, float]) -> None:
        self.last = {k: v if math.isfinite(v) else None for k, v in line.items()}
        self._file.write(json.dumps(self.last) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Call it before a checkpoint, which must not outlive the lines of its steps."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> float:
    """The step of a line; infinite where a kill left half of one."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


class Line:
    """Rewrites one line on a terminal; elsewhere prints a plain line now and then."""

    def __init__(self, title: str, settings: Fit, step: int) -> None:
        self._title, self._settings, self._first = title, settings, step
        self._start = self._printed = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._every = (
            _SECONDS_BETWEEN_TERMINAL_LINES if self._terminal else _SECONDS_BETWEEN_PLAIN_LINES
        )

    def __call__(self, step: int, last: dict[str, float], speed: Callable[[dict], str]) -> None:
        """Call it at every step; it prints when it is time to. speed: what to say of a line's."""
        now = time.monotonic()
        if now - self._printed < self._every:
            return
        self._printed = now
        before, end = ("\r\x1b[K", "") if self._terminal else ("", "\n")
        print(
            f"{before}{self._line(step, last, now, speed(last))}",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _line(self, step: int, last: dict[str, float], now: float, speed: str) -> str:
        per_step = (now - self._start) / (step - self._first)
        parts = [
            f"{self._title}  {step}/{self._settings.steps} steps",
            f"{self._settings.batch_size / per_step:.1f} samples/s",
        ]
        if speed:
            parts.append(speed)
        if last.get("loss") is not None:
            parts.append(f"loss {last['loss']:.4g}")
        if last.get("wait_share", 0) > _STARVED:
            parts.append(f"{last['wait_share']:.0%} of the time waiting for batches")
        parts.append(f"{timedelta(seconds=round(per_step * (self._settings.steps - step)))} left")
        return "  ".join(parts)
