"""What every verb over shards shares: its settings, and one job from plan to accounting."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jobs.runner import Executor, Summary
    from jobs.work import Work
    from pipeline.manifest import Shard
    from pipeline.runs import Run


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a verb over shards is run; none of this changes what it writes."""

    out: str
    """The data folder: a path or any fsspec URL."""
    run: str = ""
    """A name for the outputs; by default one that says what was done."""
    workers: int = 0
    """Worker processes; 0 takes all cores (or GPUs)."""
    executor: Literal["ray", "inline"] = "ray"
    """`inline` works in this process, without Ray."""
    address: str = ""
    """A Ray cluster; by default a Ray of this machine's own, on loopback."""
    max_failed: float = 0.5
    """Stop when one reason fails more than this share of the samples, after the first thousand."""
    shard_deadline: float = 6 * 3600.0
    """Seconds after which a worker that has not finished its shard is taken for hung."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def __post_init__(self) -> None:
        require(self, workers=(0, None), max_failed=(0, 1), shard_deadline=(1, None))


def require(config: object, **ranges: tuple[float, float | None]) -> None:
    """UserError for the first setting outside its range (least, most or None)."""
    from pipeline.errors import UserError

    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if not least <= value <= (float("inf") if most is None else most):
            allowed = f"at least {least}" if most is None else f"from {least} to {most}"
            raise UserError(
                f"--{name.replace('_', '-')} {value} is not possible", f"give {allowed}"
            )


class Stopped(Exception):
    """The job ended before its time; the message says how to go on. Exit code 3."""


def execute(
    work: "Work",
    run: "Run | Sequence[Run]",
    shards: Iterable["Shard"],
    how: Execution,
    *,
    threads: int,
    gpu: bool,
    watched: bool = False,
) -> "Summary":
    """Does what is left to do of a run, prints its accounting, and returns its summary.

    run: several, all of one kind, where the work writes to all of them at once. watched: the work
    itself stops where most samples fail.
    """
    from jobs import accounting
    from jobs.progress import Progress
    from jobs.runner import Runner, Systemic, find_done
    from pipeline import catalog, runs, storage

    shards = list(shards)
    together = list(run) if isinstance(run, Sequence) else [run]
    title = " and ".join(r.title for r in together)
    if how.dry_run:
        for r in together:
            before = runs.load(r.out, r.kind, r.name)
            if before:
                runs.refuse_other_config(r, before["config"])
        summary = find_done(work, shards)
        accounting.print_plan(together, shards, summary, how)
        return summary
    for r in together:
        storage.require_writable(r.folder)
    with ExitStack() as locks:
        for r in together:
            locks.enter_context(storage.exclusive(r.folder))
            for change in runs.begin(r, (s.name for s in shards)):
                print(f"note: environment of {r.title} changed: {change}")
            storage.remove_temporaries(r.folder)
        summary = find_done(work, shards)
        progress = Progress(title, summary)
        start = time.monotonic()
        executor = _executor(work, how, threads, gpu, len(shards) - summary.reused)
        runner = Runner(
            shards,
            executor,
            summary=summary,
            max_failed=how.max_failed,
            watched=watched,
            report=progress,
        )
        try:
            with _interruptible():
                runner.run()
        except Systemic as e:
            remedy = "run the same command again"
            if e.written:
                remedy = "delete " + " and ".join(r.folder for r in together)
            raise Stopped(
                f"stopped after {len(summary.records)} of {summary.planned} shards: {e}; "
                f"mend the cause and {remedy}, or allow it with a higher --max-failed"
            ) from None
        except KeyboardInterrupt:
            done, planned = len(summary.records), summary.planned
            raise KeyboardInterrupt(
                f"stopped after {done} of {planned} shards; run the same command to go on"
            ) from None
        finally:
            progress.close()
        accounting.print_summary(title, summary, time.monotonic() - start)
        for r in together:
            accounting.write_failures(r, summary)
    catalog.refresh(together[0].out)
    return summary


def _executor(work: "Work", how: Execution, threads: int, gpu: bool, todo: int) -> "Executor":
    if how.executor == "inline" or not todo:  # nothing to do is no reason to start a Ray
        from jobs.inline import Inline

        return Inline(work)
    from jobs import cluster

    cores = os.cpu_count() or 1
    if how.workers * threads > cores and not how.address:
        say(
            f"note: {how.workers} workers of {threads} threads share {cores} cores; fewer are faster"
        )
    cluster.connect(how.address, cpus=max(cores, max(1, how.workers) * threads))
    room = cluster.gpus() if gpu else cluster.cores() // threads
    return cluster.OnRay(
        work,
        slots=max(1, min(how.workers or room, todo)),
        threads=threads,
        gpus=1.0 if gpu else 0.0,
        deadline_sec=how.shard_deadline,
    )


@contextmanager
def _interruptible() -> Iterable[None]:
    """A polite kill ends a job like Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(line: str = "") -> None:
    print(line, flush=True)


def complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
