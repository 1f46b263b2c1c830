"""What a worker does with one task, and the one place where its exceptions end."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline import storage
from pipeline.commit import Record
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.reading import BadShard


class Work(Protocol):
    """A stage or a writer over shards, picklable before `setup`."""

    def setup(self) -> None: ...
    def done(self, shard: Shard) -> Record | None: ...
    def perform(self, shard: Shard, lost: frozenset[int]) -> Record: ...
    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None: ...
    def failures(self, counts: dict) -> dict[str, int]:
        """Of a record's counts, those that speak of failure: reason -> samples."""


@dataclass(frozen=True)
class Task:
    """One shard to do, or (probe) some of its samples to go through without keeping anything."""

    shard: Shard
    lost: frozenset[int] = frozenset()  # samples that killed their worker
    probe: range | None = None
    share: float = 1.0  # of the time that a whole shard may take


@dataclass(frozen=True)
class Outcome:
    """How a task ended: `done`, `bad` (no retry helps), `error`, `died`, `fatal` (for the job)."""

    kind: str
    record: Record | None = None
    message: str = ""  # one line
    hint: str = ""
    trace: str = ""


def attempt(work: Work, task: Task) -> Outcome:
    """Performs a task; whatever it raises becomes an outcome."""

    def perform() -> Outcome:
        if task.probe is not None:
            work.probe(task.shard, task.lost, task.probe)
            return Outcome("done")
        return Outcome("done", record=work.perform(task.shard, task.lost))

    return _guarded(perform, task.shard.url)


def set_up(work: Work) -> Outcome:
    """Prepares a worker: `done`, `fatal` where the user can mend it, `error` for a bug of ours."""

    def perform() -> Outcome:
        work.setup()
        return Outcome("done")

    return _guarded(perform)


def require_set_up(outcome: Outcome) -> None:
    """Raises where a worker could not be prepared: another one could not, either."""
    if outcome.kind == "fatal":
        raise UserError(outcome.message, outcome.hint)
    if outcome.kind != "done":
        raise RuntimeError(f"a worker cannot be set up: {outcome.message}\n{outcome.trace}")


def _guarded(perform: Callable[[], Outcome], url: str = "") -> Outcome:
    """url: where the input is, which messages of libraries may quote with its secrets."""
    try:
        return perform()
    except UserError as e:
        return Outcome("fatal", message=e.message, hint=e.hint)
    except BadShard as e:
        return Outcome("bad", message=storage.scrub(str(e), url))
    except Exception as e:
        line = " ".join(f"{type(e).__name__}: {e}".split())[:500]
        trace = storage.scrub(traceback.format_exc(), url)
        return Outcome("error", message=storage.scrub(line, url), trace=trace)
