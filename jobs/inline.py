"""Runs tasks in this process: for a debugger, and for machines without Ray."""

from collections import deque

from jobs.work import Outcome, Task, Work, attempt, require_set_up, set_up


class Inline:
    """One worker, this process. A sample that kills it kills the job; Ray survives that."""

    slots = 1

    def __init__(self, work: Work) -> None:
        self._work = work
        self._tasks: deque[Task] = deque()

    def start(self) -> None:
        """Loads what the work needs; raises UserError where that fails."""
        require_set_up(set_up(self._work))

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self) -> list[tuple[Task, Outcome]]:
        """Performs the tasks submitted so far."""
        ended = [(task, attempt(self._work, task)) for task in self._tasks]
        self._tasks.clear()
        return ended

    def close(self) -> None:
        self._tasks.clear()
