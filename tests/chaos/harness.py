"""One job, disturbed as planned and started again until it ends: are its outputs what they should be?"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import faults
from tests.chaos.accounting import require_accounted
from tests.chaos.inputs import Inputs
from tests.chaos.nodes import Nodes
from tests.chaos.plan import KILLS, Strike, draw
from tests.chaos.verbs import VERBS
from tests.support.outputs import digest, leftovers

ROOT = Path(__file__).parents[2]
SECONDS = 1800  # after which a job hangs
_POLL_SEC = 0.002
_REFUSED = "is being written by another job"
_FULL = "cannot write in"


@dataclass
class Ended:
    """What became of one disturbed job."""

    moments: Counter[str] = field(
        default_factory=Counter
    )  # of kills: before, during, after the commits
    faults: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    wrong: str = ""  # what is not as it should be

    def __str__(self) -> str:
        moments = ", ".join(f"{n} {when}" for when, n in sorted(self.moments.items()))
        verdict = f"WRONG: {self.wrong}" if self.wrong else "identical"
        return "; ".join([verdict, *self.notes, f"kills {moments or 'none'}"])


class Undisturbed:
    """A verb's job that nobody disturbed: what the others are compared with."""

    def __init__(self, name: str, inputs: Inputs, folder: Path) -> None:
        self.name, self.verb, self.inputs = name, VERBS[name], inputs
        folder.mkdir(parents=True)
        out = folder / "out"
        self.verb.begin(inputs, out)
        before = self.verb.committed(out)
        command = [*self.verb.arguments(inputs, out), "--executor", "inline"]
        job = _Job(command, folder / "log", {})
        assert job.wait() == 0, job.said()
        self._counts = self._accounted(out, job.said())
        self._digest = digest(out)
        times = sorted(p.stat().st_mtime for p in self.verb.committed(out) - before)
        self.commits = len(times)
        self.interval = (times[-1] - times[0]) / (len(times) - 1)

    def require_same(self, out: Path, said: str) -> None:
        """AssertionError where the outputs, or what became of the samples, are others.

        said: what the job that ended last has printed.
        """
        counts = self._accounted(out, said)
        assert counts == self._counts, f"{counts} kept and dropped, not {self._counts}"
        found = digest(out)
        names = found.keys() | self._digest.keys()
        differ = sorted(n for n in names if found.get(n) != self._digest.get(n))
        assert not differ, f"other bytes: {' '.join(differ)}"
        assert not leftovers(out), leftovers(out)

    def _accounted(self, out: Path, said: str) -> tuple[int, int]:
        return require_accounted(out, self.verb.outputs, self.verb.samples(self.inputs), said)

    def __str__(self) -> str:
        kept, dropped = self._counts
        return (
            f"{self.name}: {self.commits} commits, {self.interval:.3f} s apart; "
            f"{kept + dropped} rows = {kept} kept + {dropped} dropped"
        )


class Harness:
    """Disturbs jobs in a folder; close it at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._inputs = Inputs(folder / "inputs")
        self._nodes = Nodes()
        self._undisturbed: dict[str, Undisturbed] = {}

    def close(self) -> None:
        self._nodes.close()
        self._inputs.close()

    def undisturbed(self, verb: str) -> Undisturbed:
        if verb not in self._undisturbed:
            self._undisturbed[verb] = Undisturbed(
                verb, self._inputs, self.folder / f"{verb}-undisturbed"
            )
        return self._undisturbed[verb]

    def disturb(self, verb: str, seed: int, executor: str) -> Ended:
        """One job of the plan that (seed, verb, executor) draws; its folder stays where it is wrong."""
        calm = self.undisturbed(verb)
        folder = self.folder / f"{verb}-{executor}-{seed}"
        ended = Ended()
        try:
            with _Run(calm, folder, executor, self._nodes, ended) as run:
                run.through(seed)
        except (AssertionError, subprocess.TimeoutExpired) as e:
            ended.wrong = " ".join(str(e).split())[-600:] or repr(e)
        if not ended.wrong:
            shutil.rmtree(folder)
        return ended


class _Job:
    """A process, what it says, and what it starts."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | faults.slow_disk() | environment,
            )
        self._family: list[faults.Process] = []

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def workers(self) -> list[faults.Process]:
        """Those of a Ray of its own."""
        everybody = faults.family(self.process.pid)
        return [one for one in everybody if one.command.startswith(b"ray::_Worker")]

    def kill(self) -> None:
        """kill -9 of the process alone: what it started is left to itself, as it would be."""
        self._family = faults.family(self.process.pid)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """kill -9 of all that is left of it."""
        if not self.ended():
            self.kill()
        faults.kill(self._family)


class _Run:
    """The starts of one job, in a folder of its own."""

    def __init__(
        self, calm: Undisturbed, folder: Path, executor: str, nodes: Nodes, ended: Ended
    ) -> None:
        self._calm, self._executor, self._nodes, self._ended = calm, executor, nodes, ended
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = folder
        self._disk = faults.Disk(folder / "disk")
        self._out = folder / "disk/out"
        self._jobs: list[_Job] = []

    def __enter__(self) -> "_Run":
        self._calm.verb.begin(self._calm.inputs, self._out)
        self._begun = self._calm.verb.committed(self._out)
        return self

    def __exit__(self, *error: object) -> None:
        for job in self._jobs:
            job.end()
        self._disk.close()

    def through(self, seed: int) -> None:
        """All strikes, and a last start that must end well; AssertionError where something is wrong."""
        calm, out = self._calm, self._out
        kills = KILLS[self._executor] if calm.verb.spread else KILLS["inline"]
        plan = draw(seed, f"{calm.name} {self._executor}", kills, calm.interval)
        for strike in plan.strikes:
            self._strike(strike)
        if plan.torn:
            committed = sorted(calm.verb.committed(out) - self._begun)
            self._note("torn", " ".join(faults.tear(committed, plan.chance)) or "nothing yet")
        job = self._start()
        code = job.wait()
        assert code == 0, f"the last start ended with {code}: {job.said()}"
        calm.require_same(out, job.said())

    def _start(self, *flags: object, **environment: str) -> _Job:
        workers = ["--workers", 2] if self._executor == "ray" else []
        arguments = self._calm.verb.arguments(self._calm.inputs, self._out)
        how = map(str, ["--executor", self._executor, *workers, *flags])
        log = self._folder / f"{len(self._jobs)}.log"
        self._jobs.append(_Job([*arguments, *how], log, environment))
        return self._jobs[-1]

    def _strike(self, strike: Strike) -> None:
        flags, environment = [], {}
        if strike.fault == "node":
            self._nodes.complete()
            flags = ["--address", self._nodes.address]
        if strike.skew:
            environment = faults.clock(strike.skew)
            self._note("clock", strike.skew if environment else "skipped: no libfaketime here")
        done = self._commits()
        after = done + int(strike.share * max(self._calm.commits - done - 1, 0))
        job = self._start(*flags, **environment)
        while self._commits() < after and not job.ended():
            time.sleep(_POLL_SEC)
        time.sleep(strike.pause)
        if strike.rival:
            self._be_rival_of(job)
        if job.ended():
            assert job.wait() == 0, f"it ended by itself: {job.said()}"
            self._ended.notes.append(f"{strike.fault} too late")
        else:
            strikes = {
                "driver": self._kill_driver,
                "worker": self._kill_worker,
                "node": self._kill_node,
                "disk": self._fill_disk,
            }
            strikes[strike.fault](job)

    def _kill_driver(self, job: _Job) -> None:
        job.kill()
        self._killed("driver")

    def _kill_worker(self, job: _Job) -> None:
        """One of Ray's workers, or the first that there is."""
        while not faults.kill(job.workers()[:1]):
            if job.ended():
                self._ended.notes.append("worker too late")
                return
            time.sleep(_POLL_SEC)
        self._killed("worker")
        code = job.wait()
        assert code == 0, f"ended with {code} after its worker was killed: {job.said()}"

    def _kill_node(self, job: _Job) -> None:
        """The driver survives, unless it was connected to that very node."""
        self._nodes.kill()
        self._killed("node")
        self._ended.notes.append(f"the job ended with {job.wait()}")

    def _fill_disk(self, job: _Job) -> None:
        """The job says so in one line and ends with exit code 2, unless nothing was left to write."""
        if not self._disk.mounted:
            self._note("disk", "skipped: no right to mount")
            return self._kill_driver(job)
        self._disk.fill()
        code = job.wait()
        self._note("disk", f"{self._commits()}/{self._calm.commits}")
        self._disk.free()
        if code:
            refused = [line for line in job.said().splitlines() if line.startswith("error: ")]
            clean = code == 2 and len(refused) == 1 and _FULL in refused[0]
            assert clean, f"a full disk: it ended with {code}: {job.said()}"
        return None

    def _be_rival_of(self, job: _Job) -> None:
        """A second driver of the run that is being worked on: one line, and exit code 2."""
        while True:
            job.process.send_signal(signal.SIGSTOP)
            if faults.holds_lock(job.process.pid, self._out) or job.ended():
                break
            job.process.send_signal(signal.SIGCONT)
            time.sleep(_POLL_SEC)
        if not job.ended():
            rival = self._start()
            code = rival.wait()
            refused = [line for line in rival.said().splitlines() if line.startswith("error: ")]
            clean = code == 2 and len(refused) == 1 and _REFUSED in refused[0]
            assert clean, f"a second driver ended with {code}: {rival.said()}"
            self._note("rival", "refused")
        job.process.send_signal(signal.SIGCONT)

    def _killed(self, what: str) -> None:
        done = self._commits()
        moment = "before" if not done else "during" if done < self._calm.commits else "after"
        self._ended.moments[moment] += 1
        self._note(what, f"{done}/{self._calm.commits}")

    def _note(self, fault: str, what: str) -> None:
        self._ended.faults[f"{fault} skipped" if "skipped" in what else fault] += 1
        self._ended.notes.append(f"{fault} {what}")

    def _commits(self) -> int:
        return len(self._calm.verb.committed(self._out) - self._begun)
