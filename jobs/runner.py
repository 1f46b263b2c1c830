"""Work over shards: skips what is done, retries what failed, narrows down what kills, accounts."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from jobs.narrowing import MAX_LOST, Narrowing
from jobs.work import Outcome, Task, Work
from pipeline import storage
from pipeline.commit import Record
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.reading import count_samples
from pipeline.runs import canonical

MAX_ERRORS = 3
"""A shard that raised this often is given up."""

DEATHS_BEFORE_NARROWING = 2
MAX_NARROWINGS = 3
MAX_DEATHS_IN_A_ROW = 40
"""More than narrowing down one sample in a million takes: it is the workers that are ill."""

SYSTEMIC_AFTER_SHARDS = 10
SYSTEMIC_AFTER = 1000
"""Samples before a share of failures means anything."""


class Executor(Protocol):
    """Where tasks run: in this process, or on Ray."""

    slots: int

    def start(self) -> None: ...
    def submit(self, task: Task) -> None: ...
    def wait(self) -> list[tuple[Task, Outcome]]:
        """What ended since; returns after a second at the latest, perhaps with nothing."""

    def close(self) -> None: ...


class Systemic(Exception):
    """One cause fails most of it: going on would only spread the damage.

    written: whether samples that failed by it stand in outputs, which count as done.
    """

    def __init__(self, message: str, *, written: bool = False) -> None:
        super().__init__(message)
        self.written = written


class Summary:
    """The state of a job over shards, with running totals of everything its records count."""

    def __init__(self, planned: int, failures: Callable[[dict], dict[str, int]]) -> None:
        self.planned = planned
        self.records: dict[str, Record] = {}  # shard name -> record
        self.reused = 0  # of these, done by an earlier job
        self.failed: dict[str, Outcome] = {}  # shard name -> how
        self.samples = 0
        self.totals: dict[str, Counter[str]] = {}  # counted column -> value -> rows
        self.failing: Counter[str] = Counter()  # reason -> samples
        self.environments: Counter[str] = Counter()  # of the workers that wrote the shards
        self.failures = failures  # of a record's counts: reason -> samples

    def add(self, record: Record) -> None:
        self.records[record.shard] = record
        self.samples += record.counts["samples"]
        self.environments[canonical(record.environment)] += 1
        self.failing.update(self.failures(record.counts))
        for column, counts in record.counts.items():
            if isinstance(counts, dict):
                self.totals.setdefault(column, Counter()).update(counts)

    @property
    def fresh(self) -> int:
        """Shards done by this job."""
        return len(self.records) - self.reused

    @property
    def ok(self) -> int:
        return self.totals.get("status", Counter())["ok"]


def find_done(work: Work, shards: Iterable[Shard]) -> Summary:
    """Which shards are there already and still true."""
    shards = list(shards)
    summary = Summary(len(shards), work.failures)
    with ThreadPoolExecutor(16) as pool:
        for record in pool.map(work.done, shards):
            if record is not None:
                summary.add(record)
                summary.reused += 1
    return summary


class Runner:
    """Drives one job. `summary` is true at every moment; `report` is called as it changes.

    watched: the work itself stops where most samples fail.
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        executor: Executor,
        *,
        summary: Summary,
        max_failed: float,
        watched: bool = False,
        report: Callable[[Summary], None],
    ) -> None:
        self.summary = summary
        self._executor = executor
        self._max_failed = max_failed
        self._watched = watched
        self._report = report
        self._seen = 0  # samples of the shards that this job did
        self._failing: Counter[str] = Counter()  # of these
        self._todo = deque(Task(s) for s in shards if s.name not in summary.records)
        self._errors: Counter[str] = Counter()
        self._deaths: Counter[str] = Counter()
        self._narrowings: dict[str, Narrowing] = {}
        self._rounds: Counter[str] = Counter()
        self._deaths_in_a_row = 0

    def run(self) -> None:
        """Works until every shard is done or given up.

        Raises UserError for what stops every shard (a full disk, a missing checkpoint) and
        Systemic where one reason fails more than `max_failed` of the samples.
        """
        if not self._todo:
            return
        running = 0
        try:
            self._executor.start()
            while self._todo or running:
                while self._todo and running < self._executor.slots:
                    self._executor.submit(self._todo.popleft())
                    running += 1
                for task, outcome in self._executor.wait():
                    running -= 1
                    self._handle(task, outcome)
                self._report(self.summary)
        finally:
            self._executor.close()

    def _handle(self, task: Task, outcome: Outcome) -> None:
        if outcome.kind == "fatal":
            raise UserError(outcome.message, outcome.hint)
        self._deaths_in_a_row = self._deaths_in_a_row + 1 if outcome.kind == "died" else 0
        if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
            raise Systemic(f"{self._deaths_in_a_row} workers died in a row: {outcome.message}")
        if task.probe is not None:
            self._handle_probe(task, outcome)
        elif outcome.kind == "done":
            self._accept(outcome.record)
        elif outcome.kind == "died":
            self._deaths[task.shard.name] += 1
            if self._deaths[task.shard.name] < DEATHS_BEFORE_NARROWING:
                self._todo.append(task)
            else:
                self._narrow(task, outcome)
        else:
            self._errors[task.shard.name] += 1
            if outcome.kind == "bad" or self._errors[task.shard.name] == MAX_ERRORS:
                self._give_up(task, outcome)
            else:
                self._todo.append(task)

    def _accept(self, record: Record) -> None:
        self.summary.add(record)
        self._seen += record.counts["samples"]
        self._failing.update(self.summary.failures(record.counts))
        reason, count = next(iter(self._failing.most_common(1)), ("", 0))
        too_many = self._seen >= SYSTEMIC_AFTER and count > self._max_failed * self._seen
        if too_many and not self._watched:
            raise Systemic(f"{count} of the first {self._seen} samples: {reason}", written=True)

    def _narrow(self, task: Task, outcome: Outcome) -> None:
        name = task.shard.name
        self._rounds[name] += 1
        if self._rounds[name] > MAX_NARROWINGS:
            self._give_up(task, outcome)
            return
        shard = task.shard
        try:
            known = shard.samples if shard.limit is None else None
            count = count_samples(shard) if known is None else known
        except Exception as e:  # stores raise whatever they like, and quote URLs in it
            message = f"{outcome.message}; then {storage.scrub(str(e), shard.url)}"
            self._give_up(task, Outcome("bad", message=message))
            return
        self._narrowings[name] = Narrowing(count, task.lost)
        self._probe_next(shard)

    def _handle_probe(self, task: Task, outcome: Outcome) -> None:
        narrowing = self._narrowings[task.shard.name]
        if outcome.kind == "died":
            narrowing.died(task.probe)
        if len(narrowing.lost) > MAX_LOST:
            self._give_up(task, outcome)
        else:
            self._probe_next(task.shard)

    def _probe_next(self, shard: Shard) -> None:
        narrowing = self._narrowings[shard.name]
        probe = narrowing.next()
        share = 1.0 if probe is None else len(probe) / narrowing.num_samples
        self._todo.append(Task(shard, frozenset(narrowing.lost), probe, share))

    def _give_up(self, task: Task, outcome: Outcome) -> None:
        self.summary.failed[task.shard.name] = outcome
        failed, ended = len(self.summary.failed), len(self.summary.failed) + self.summary.fresh
        if ended >= SYSTEMIC_AFTER_SHARDS and failed > self._max_failed * ended:
            raise Systemic(f"{failed} of the first {ended} shards failed: {outcome.message}")
