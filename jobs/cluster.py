"""Runs tasks on Ray: the only file that imports it. Ray schedules and isolates; we decide."""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from jobs import clustered
from jobs.job import Stopped
from jobs.work import Outcome, Task, Work, attempt, require_set_up, set_up
from pipeline import storage
from pipeline.errors import UserError

_MAX_DEATHS_IN_SETUP = 3
_SHORTEST_DEADLINE_SEC = 60.0  # also a probe of one sample has to read its way to it
_OBJECT_STORE_BYTES = 128 << 20  # only tasks and records travel, never images
_PATIENCE_SEC = 7200  # processes of a training wait while the first one evaluates
_POLL_SEC = 0.5
_LOCAL_TRIES = 2  # once in many starts, Ray's first server never tells its port


def connect(address: str, cpus: int) -> None:
    """Joins the cluster at `address`, or starts a Ray of `cpus` cores on this machine's loopback."""
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (RayError, ConnectionError, OSError, ValueError, RuntimeError) as e:
            line = " ".join(str(e).split())[:200]
            hint = "ray status tells; a cluster that wants a token needs RAY_AUTH_MODE=token"
            raise UserError(f"ADDRESS={address}: no Ray there: {line}", hint) from e
        return
    for tries_left in reversed(range(_LOCAL_TRIES)):
        try:
            ray.init(
                address="local",  # whatever RAY_ADDRESS or a Ray left running here may say
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
            return
        except (RayError, ConnectionError, OSError, ValueError, RuntimeError) as e:
            if not tries_left:
                line = " ".join(str(e).split())[:200]
                raise UserError(
                    f"Ray does not start here: {line}", "EXECUTOR=inline needs none"
                ) from e


def disconnect() -> None:
    ray.shutdown()


def gpus() -> int:
    """GPUs of the cluster that is connected."""
    return int(ray.cluster_resources().get("GPU", 0))


def cores() -> int:
    """Cores of the cluster that is connected."""
    return int(ray.cluster_resources().get("CPU", 1))


def _require_room(threads: int, gpus: float) -> None:
    """UserError where no node could ever hold a worker: Ray would wait for one in silence."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= threads and n.get("GPU", 0) >= gpus for n in nodes):
        wanted = f"{threads} cores" + (f" and {gpus:g} GPU" if gpus else "")
        raise UserError(
            f"no node of this Ray has the {wanted} that a worker takes",
            "fewer THREADS, or DEVICE=cpu",
        )


def train(
    function: Callable[[object], object],
    config: object,
    out: str,
    address: str = "",
    workers: int = 0,
    *,
    threads: int = 1,
    device: str = "auto",
    max_failures: int = 3,
) -> None:
    """Calls `function(config)` in `workers` processes of a cluster that train one model, by Ray Train.

    They are one process group of torch, which jobs.ranks finds. A process that dies, or raises what
    another attempt may mend, is replaced together with the others up to `max_failures` times, and
    they go on from the last checkpoint in `out`, a folder that all machines share. What the first
    one prints is printed here.

    function: importable by its name. workers: 0 takes all GPUs of the cluster, or where it has none
    all of its cores. threads: cores of each. device: `cpu` takes no GPU. Raises UserError and
    Stopped as the function does, and KeyboardInterrupt.
    """
    cores_here = max(os.cpu_count() or 1, workers * threads)
    connect(address, cpus=cores_here)
    use_gpu = device != "cpu" and gpus() > 0
    room = gpus() if use_gpu else cores() // threads
    if not 0 < (workers or room) <= room:
        kind = "GPUs" if use_gpu else f"times {threads} cores"
        raise UserError(
            f"{workers or 'some'} processes do not fit this Ray, which has {room} {kind}",
            "fewer processes, or fewer THREADS",
        )
    _require_room(threads, 1.0 if use_gpu else 0.0)
    folder = Path(out).absolute() / clustered.FOLDER
    with storage.exclusive(str(folder / clustered.DRIVER), hint="wait for it, or give another OUT"):
        for path in folder.iterdir():  # of a command that was killed
            if path.name != clustered.DRIVER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        log = folder / clustered.LOG
        log.touch()
        trainer = _trainer(
            {"function": function, "config": config, "out": str(folder.parent)},
            workers=workers or room,
            resources={"CPU": threads} | ({"GPU": 1} if use_gpu else {}),
            folder=folder,
            local=not address,
            max_failures=max_failures,
        )
        try:
            error = _fitted(trainer, log)
        except KeyboardInterrupt:
            disconnect()  # which ends the processes
            raise KeyboardInterrupt(
                "stopped; run the same command to go on from the last checkpoint"
            ) from None
        verdict = clustered.verdict(folder)
        shutil.rmtree(folder, ignore_errors=True)
    if verdict is not None:
        raise verdict
    if error is not None:
        raise Stopped(
            f"the training failed more than {max_failures} times: {error}\n"
            "run the same command to go on from the last checkpoint"
        )


def _trainer(
    given: dict, *, workers: int, resources: dict, folder: Path, local: bool, max_failures: int
) -> object:
    # Read when Ray Train is imported or a trainer made. Paths stay what they are for the driver,
    # and what is printed goes where jobs.clustered sends it.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    from ray import train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = "GPU" in resources
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if local and sys.platform == "linux" else {}
    return TorchTrainer(
        clustered.work,
        train_loop_config=given,
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout_s=_PATIENCE_SEC,
        ),
        scaling_config=ray_train.ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=ray_train.RunConfig(
            name="train",
            storage_path=str(folder),
            failure_config=ray_train.FailureConfig(max_failures=max_failures),
            worker_runtime_env={"env_vars": loopback},
            logging_config=ray_train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _fitted(trainer: object, log: Path) -> Exception | None:
    """Waits for the training, printing what its first process writes; returns why it failed.

    Not in the main thread: there Ray takes Ctrl-C for itself, and ends with exit code 0.
    """
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as e:  # Ray Train's own kinds, told once below
            errors.append(e)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    with log.open() as lines:
        while thread.is_alive():
            thread.join(_POLL_SEC)
            _pass_on(lines)
        _pass_on(lines)
    return errors[0] if errors else None


def _pass_on(lines: TextIO) -> None:
    text = lines.read()
    if text:
        print(text, end="", flush=True)


class _Worker:
    """Holds the work, set up once, in a process of its own."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def set_up(self) -> Outcome:
        return set_up(self._work)

    def attempt(self, task: Task) -> Outcome:
        return attempt(self._work, task)


@dataclass
class _Running:
    actor: ActorHandle
    task: Task | None  # None while the worker is being set up
    since: float


class OnRay:
    """`slots` workers, each an actor; one that dies is replaced, and its task reported as died.

    threads: cores that Ray reserves per worker. deadline_sec: after this long a task is taken
    for hung, and its worker is killed.
    """

    def __init__(
        self, work: Work, *, slots: int, threads: int, gpus: float, deadline_sec: float
    ) -> None:
        self.slots = slots
        self._work = ray.put(work)
        self._actor = ray.remote(_Worker).options(
            num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )
        self._threads, self._gpus = threads, gpus
        self._deadline_sec = deadline_sec
        self._deaths_in_setup = 0
        self._running: dict[ray.ObjectRef, _Running] = {}
        self._idle: list[ActorHandle] = []
        self._waiting: list[Task] = []

    def start(self) -> None:
        """Starts the workers; raises UserError where none can be set up."""
        _require_room(self._threads, self._gpus)
        for _ in range(self.slots):
            self._launch()
        while not self._idle:
            self._collect()

    def submit(self, task: Task) -> None:
        self._waiting.append(task)
        self._assign()

    def wait(self) -> list[tuple[Task, Outcome]]:
        """What ended since; returns after a second at the latest, perhaps with nothing."""
        ended = self._collect()
        self._assign()
        return ended

    def close(self) -> None:
        """Kills the workers; what they had not committed is redone by the next job."""
        for actor in [r.actor for r in self._running.values()] + self._idle:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        self._running.clear()
        self._idle.clear()

    def _launch(self) -> None:
        actor = self._actor.remote(self._work)
        self._running[actor.set_up.remote()] = _Running(actor, None, time.monotonic())

    def _assign(self) -> None:
        while self._waiting and self._idle:
            actor, task = self._idle.pop(), self._waiting.pop(0)
            self._running[actor.attempt.remote(task)] = _Running(actor, task, time.monotonic())

    def _collect(self) -> list[tuple[Task, Outcome]]:
        """Up to a second of waiting, then every end that has come."""
        if not self._running:
            return []
        refs = list(self._running)
        ready, _ = ray.wait(refs, num_returns=1, timeout=1.0)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        ended = [self._end(ref) for ref in ready]
        ended += [self._end_hung(ref) for ref in self._hung()]
        return [(task, outcome) for task, outcome in ended if task is not None]

    def _end(self, ref: "ray.ObjectRef") -> tuple[Task | None, Outcome]:
        running = self._running.pop(ref)
        try:
            outcome = ray.get(ref)
        except RayError as e:
            return self._bury(running, " ".join(str(e).split())[:300])
        if running.task is None:
            require_set_up(outcome)
            self._deaths_in_setup = 0
        self._idle.append(running.actor)
        return running.task, outcome

    def _hung(self) -> list["ray.ObjectRef"]:
        now = time.monotonic()
        return [
            ref
            for ref, running in self._running.items()
            if now - running.since > self._deadline_of(running)
        ]

    def _deadline_of(self, running: _Running) -> float:
        share = running.task.share if running.task else 1.0
        return max(share * self._deadline_sec, min(_SHORTEST_DEADLINE_SEC, self._deadline_sec))

    def _end_hung(self, ref: "ray.ObjectRef") -> tuple[Task | None, Outcome]:
        running = self._running.pop(ref)
        ray.kill(running.actor)
        return self._bury(running, f"no end after {self._deadline_of(running):.0f} s")

    def _bury(self, running: _Running, why: str) -> tuple[Task | None, Outcome]:
        if running.task is None:
            self._deaths_in_setup += 1
        if self._deaths_in_setup == _MAX_DEATHS_IN_SETUP:
            raise UserError(
                f"{_MAX_DEATHS_IN_SETUP} workers died while they were loading: {why}",
                "fewer WORKERS need less memory",
            )
        self._launch()
        return running.task, Outcome("died", message=f"its worker died: {why}")
