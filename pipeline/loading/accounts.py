"""What became of the samples that were loaded, and when too many of them are corrupt."""

from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Literal

from pipeline.errors import UserError

OnCorrupt = Literal["replace", "stop"]
ON_CORRUPT: tuple[OnCorrupt, ...] = ("replace", "stop")
FIRST = 1000
"""Samples after which a share of corrupt ones says something."""
_SHOWN = 5


class Accounts:
    """Counts, of all samples that this process prepared; threads may share it.

    on_corrupt: `stop` at the first corrupt sample, or `replace` it until more than the share
    `most` of them, and of FIRST, is corrupt.
    """

    def __init__(self, on_corrupt: OnCorrupt, most: float) -> None:
        self._on_corrupt, self._most = on_corrupt, most
        self._lock = Lock()
        self._samples = 0
        self._dropped = 0
        self._sources: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._examples: list[str] = []

    def add(self, sources: Counter[str], dropped: int) -> None:
        """Samples that went out, by the source of their captions; of `dropped`, the caption did not."""
        with self._lock:
            self._samples += sources.total()
            self._dropped += dropped
            self._sources += sources

    def corrupt(self, reason: str, name: Callable[[], str]) -> None:
        """One that could not be used, by its name; UserError where that is one too many."""
        with self._lock:
            self._reasons[reason] += 1
            if len(self._examples) < _SHOWN:
                self._examples.append(f"{name()}: {reason}")
            bad = self._reasons.total()
            if self._on_corrupt == "stop":
                raise UserError(
                    f"corrupt sample {name()}: {reason}", "mix again, or give --corrupt replace"
                )
            if bad > self._most * max(FIRST, self._samples + bad):
                reasons = ", ".join(f"{n} {reason}" for reason, n in self._reasons.most_common())
                raise UserError(
                    f"{bad} of {self._samples + bad} samples are corrupt ({reasons}), "
                    f"for example {'; '.join(self._examples)}",
                    "check the shards: their mix may be damaged",
                )

    @property
    def counts(self) -> dict:
        """samples, corrupt (reason -> times), captions (source -> times), dropped (captions)."""
        with self._lock:
            return {
                "samples": self._samples,
                "corrupt": dict(sorted(self._reasons.items())),
                "captions": dict(sorted(self._sources.items())),
                "dropped": self._dropped,
            }
