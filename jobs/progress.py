"""One progress line, owned by the driver."""

import sys
import time

from jobs.runner import Summary

_SECONDS_BETWEEN_PLAIN_LINES = 30.0


class Progress:
    """Rewrites one line on a terminal; elsewhere prints a plain line now and then."""

    def __init__(self, title: str, summary: Summary) -> None:
        self._title = title
        self._start = self._printed = time.monotonic()
        self._samples_before = summary.samples
        self._terminal = sys.stderr.isatty()

    def __call__(self, summary: Summary) -> None:
        """Call it at every change; it prints when it is time to."""
        now = time.monotonic()
        if self._terminal:
            print(f"\r\x1b[K{self._line(summary, now)}", end="", file=sys.stderr, flush=True)
        elif now - self._printed >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._printed = now
            print(self._line(summary, now), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _line(self, summary: Summary, now: float) -> str:
        elapsed = max(now - self._start, 1e-6)
        done = len(summary.records)
        rate = (summary.samples - self._samples_before) / elapsed
        parts = [f"{self._title}  {done}/{summary.planned} shards", f"{rate:.1f} samples/s"]
        if summary.samples:
            parts.append(f"{100 * summary.ok / summary.samples:.1f}% ok")
        if summary.fresh:
            left = elapsed / summary.fresh * (summary.planned - done)
            parts.append(f"{_duration(left)} left")
        if summary.failed:
            parts.append(f"{len(summary.failed)} shards failed")
        for reason, count in summary.failing.most_common(1):
            parts.append(f"most common failure: {reason} ({count})")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}" if hours else f"{minutes}:{seconds:02d}"
