"""metrics.jsonl of a job over shards: speed, where the workers' time goes, and what a million samples cost."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.job import complain
from pipeline import storage
from pipeline.errors import UserError
from pipeline.runs import Run
from pipeline.stopwatch import WAIT, Spent

if TYPE_CHECKING:
    from jobs.prices import Prices
    from jobs.runner import Executor, Summary

FILE = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 10.0
_LEAST_SAID_SEC = 60.0  # of a shorter job, most is the start of its workers
_SECONDS_BETWEEN_UPLOADS = 60.0  # an object store takes the whole file each time


@dataclass(frozen=True)
class Held:
    """What a job holds of its machines: workers, each with some cores and perhaps a GPU."""

    workers: int
    cores: float
    gpus: float


class JobMetrics:
    """Writes a line every ten seconds and one at the end; the same numbers go to Ray's metrics.

    Everything but `samples_per_sec_now` is since the job began; shards of earlier jobs count only in
    `shards_done`.
    """

    def __init__(
        self,
        run: Run,
        summary: "Summary",
        executor: "Executor",
        held: Held,
        prices: "Prices | None",
    ) -> None:
        self._run, self._executor = run, executor
        self._held, self._prices = held, prices
        self._samples_before = summary.samples
        self._start = self._last = time.monotonic()
        self._samples_last = 0
        self._job = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._lines: _Lines | None = None
        self._is_broken = False

    def __call__(self, summary: "Summary") -> None:
        """Call it at every change; it writes when it is time to."""
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._write(summary, final=False)

    def close(self, summary: "Summary") -> list[str]:
        """Writes the last line; returns what is worth to be said of it, a line each."""
        if not summary.fresh and not summary.failed:
            return []
        line = self._write(summary, final=True)
        is_long = line["elapsed_sec"] >= _LEAST_SAID_SEC
        return _told(line) if is_long or self._prices else []

    def _write(self, summary: "Summary", *, final: bool) -> dict:
        line = self._line(summary, final)
        self._keep(json.dumps(line), final)
        numbers = {k: float(v) for k, v in line.items() if isinstance(v, int | float)}
        parts = {f"{p}_samples_per_sec": own["samples_per_sec"] for p, own in line["parts"].items()}
        self._executor.publish(self._run.title, numbers | parts)
        return line

    def _keep(self, text: str, final: bool) -> None:
        """A job does not end because its metrics cannot be written; what it makes will tell."""
        if self._is_broken:
            return
        try:
            self._lines = self._lines or _Lines(self._run.file(FILE))
            self._lines.add(text, final)
        except (OSError, UserError) as e:
            self._is_broken = True
            complain(f"note: no more {FILE}: {storage.scrub(str(e), self._run.folder)}")

    def _line(self, summary: "Summary", final: bool) -> dict:
        now = time.monotonic()
        elapsed, window = max(now - self._start, 1e-6), max(now - self._last, 1e-6)
        samples = summary.samples - self._samples_before
        now_rate = (samples - self._samples_last) / window
        self._last, self._samples_last = now, samples
        line = {
            "job": self._job,
            "time": round(time.time(), 3),
            "elapsed_sec": round(elapsed, 3),
            "final": final,
            "workers": self._held.workers,
            "shards_planned": summary.planned,
            "shards_done": len(summary.records),
            "shards_failed": len(summary.failed),
            "samples": samples,
            "samples_per_sec": round(samples / elapsed, 4),
            "samples_per_sec_now": round(now_rate, 4),
            "busy_share": round(summary.busy_sec / (self._held.workers * elapsed), 4),
            "wait_share": _wait_share(summary),
            "parts": {name: _part(spent) for name, spent in sorted(summary.spent.items())},
        }
        if self._prices:
            cost = self._prices.of(
                elapsed,
                cores=self._held.workers * self._held.cores,
                gpus=self._held.workers * self._held.gpus,
            )
            per_million = round(cost / samples * 1e6, 4) if samples else None
            line |= {"currency": self._prices.currency, "cost": round(cost, 6)}
            line |= {"cost_per_million": per_million}
        return line


def _wait_share(summary: "Summary") -> float | None:
    """Of the time that workers were at their tasks, the share in which the model had no data."""
    if WAIT not in summary.spent or not summary.busy_sec:
        return None
    return round(summary.spent[WAIT].seconds / summary.busy_sec, 4)


def _part(spent: Spent) -> dict[str, float | None]:
    rate = spent.samples / spent.seconds if spent.seconds > 0 else 0.0
    return {
        "seconds": round(spent.seconds, 4),
        "samples": spent.samples,
        "samples_per_sec": round(rate, 4),
    }


def _told(line: dict) -> list[str]:
    count = line["workers"]
    said = [f"{count} worker{'s' * (count != 1)} at work {line['busy_share']:.0%} of the time"]
    if line["wait_share"] is not None:
        said.append(f"of which they waited for data {line['wait_share']:.0%}")
    told = [f"  speed     {line['samples_per_sec']:.1f} samples/s; {', '.join(said)}"]
    if line.get("cost_per_million") is not None:
        told.append(
            f"  cost      {line['cost']:.4f} {line['currency']} for these cores and GPUs, "
            f"{line['cost_per_million']:.2f} {line['currency']} per million samples"
        )
    return told


class _Lines:
    """Appends to a local file, line by line; an object store gets all lines again, now and then."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_local = storage.is_local(url)
        before = storage.read_bytes(url) if storage.exists(url) else b""
        whole = before[: before.rfind(b"\n") + 1]  # a kill may have left half a line
        if self._is_local and whole != before:
            storage.write_bytes(url, whole)
        self._text, self._uploaded = whole.decode("utf-8", "replace"), time.monotonic()

    def add(self, line: str, final: bool) -> None:
        if self._is_local:
            with Path(self._url).open("a") as file:
                file.write(line + "\n")
            return
        self._text += line + "\n"
        now = time.monotonic()
        if final or now - self._uploaded >= _SECONDS_BETWEEN_UPLOADS:
            storage.write_bytes(self._url, self._text.encode())
            self._uploaded = now
