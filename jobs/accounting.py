"""What a job prints at its end: samples in, what became of each, which shards failed and why."""

from collections import Counter
from typing import TYPE_CHECKING

from jobs.runner import Summary
from pipeline import storage
from pipeline.manifest import Shard
from pipeline.runs import Run, flat
from pipeline.schemas import OK, STYLES

if TYPE_CHECKING:
    from jobs.job import Execution

FAILURES = "failures.log"
_MOST_FAILED_SHARDS = 20
_FIRST = ("caption_status", *(f"{style}_status" for style in STYLES), "source", "fallback")


def print_plan(
    together: list[Run], shards: list[Shard], summary: Summary, how: "Execution"
) -> None:
    """For --dry-run: settings, what is done, what would run."""
    for run in together:
        print(f"{run.title}  ->  {run.folder}")
        for key, value in sorted(flat(run.config).items()):
            print(f"  {key} = {value}")
    print(f"  {len(shards)} shards: {summary.reused} done, {len(shards) - summary.reused} to do")
    for shard in shards[:5]:
        size = f"{shard.size} bytes" if shard.size else f"{shard.samples} samples"
        print(f"    {shard.name}  {storage.public(shard.url)}  {size}")
    if len(shards) > 5:
        print(f"    ... and {len(shards) - 5} more")
    print(f"  executor = {how.executor}, workers = {how.workers or 'all cores'}")


def print_summary(title: str, summary: Summary, seconds: float) -> None:
    """The accounting table; every sample that came in is in one of its numbers."""
    status = summary.totals.get("status", Counter())
    print(title)
    print(
        f"  shards    {summary.planned} planned = {summary.fresh} done now in {seconds:.1f} s"
        f" + {summary.reused} done before"
        f" + {summary.planned - len(summary.records) - len(summary.failed)} not reached"
        f" + {len(summary.failed)} failed"
    )
    reasons = summary.totals.get("reason", Counter())
    verdicts = [f"{status[OK]} ok", *(f"{n} {r}" for r, n in _ranked(reasons))]
    print(f"  samples   {summary.samples} in = {' + '.join(verdicts)}")
    if summary.samples != status[OK] + reasons.total():
        raise RuntimeError(f"{title}: the accounting does not add up: {summary.totals}")
    for column in sorted(summary.totals, key=_place):
        if column in ("status", "reason"):
            continue
        line = "  ".join(f"{value} {n}" for value, n in _ranked(summary.totals[column]))
        print(
            f"  {column.removesuffix('_status'):9} {line}" if line else "", end="\n" if line else ""
        )
    if len(summary.environments) > 1:
        print("  note      its shards were written in different environments:")
        for environment, shards in summary.environments.most_common():
            print(f"            {shards} shards in {environment}")
    for name, outcome in sorted(summary.failed.items())[:_MOST_FAILED_SHARDS]:
        print(f"  FAILED    {name}: {outcome.message}")
    if len(summary.failed) > _MOST_FAILED_SHARDS:
        print(f"  FAILED    {len(summary.failed) - _MOST_FAILED_SHARDS} more, in {FAILURES}")


def _place(column: str) -> tuple[int, str]:
    """Where a column is printed: the same place whether its shards were done now or before."""
    return (_FIRST.index(column) if column in _FIRST else len(_FIRST), column)


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first; what is equally frequent by name, not by who came first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def write_failures(run: Run, summary: Summary) -> None:
    """failures.log: every failed shard with its cause and trace; gone when there is none."""
    url = run.file(FAILURES)
    if not summary.failed:
        storage.remove(url)
        return
    entries = [
        f"{name}: {outcome.message}\n{outcome.trace}"
        for name, outcome in sorted(summary.failed.items())
    ]
    storage.write_bytes(url, "\n".join(entries).encode())
