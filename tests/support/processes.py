"""Several processes of one run, started as torchrun starts them, without importing torch anew."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SECONDS = 60  # after which a process hangs


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def run_together(target: Callable, *arguments: object, world: int, logs: Path) -> list[Ended]:
    """Calls target(*arguments) in each of `world` processes, and waits for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.ranked", "torch._dynamo"])
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = []
    for rank in range(world):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        log = str(logs / f"rank{rank}")
        jobs.append(context.Process(target=_become, args=(environment, log, target, arguments)))
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(SECONDS)
    hung = [rank for rank, job in enumerate(jobs) if job.is_alive()]
    for job in jobs:
        job.kill()
        job.join()
    texts = [
        [Path(f"{logs}/rank{rank}.{name}").read_text() for name in ("out", "err")]
        for rank in range(world)
    ]
    assert not hung, f"processes {hung} hang: {texts}"
    return [Ended(job.exitcode, *text) for job, text in zip(jobs, texts, strict=True)]


def _become(environment: dict, log: str, target: Callable, arguments: Sequence[object]) -> None:
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        with Path(f"{log}.{name}").open("w") as f:
            os.dup2(f.fileno(), number)
    torch.set_num_threads(1)
    target(*arguments)
