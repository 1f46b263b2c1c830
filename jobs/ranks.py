"""The processes of one training run: how many there are, what they agree on, how they end together."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from jobs.job import Stopped
from pipeline.errors import UserError

T = TypeVar("T")
_PATIENCE = timedelta(hours=2)  # the others wait while the first one evaluates, or publishes
_LEAVE_TAKING = 5.0  # seconds in which a process notices that another one failed
_groups = count()


class Ended(SystemExit):
    """Another process ended the run and said why; this one goes in silence, with its exit code."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run; alone where nobody started more than one.

    What it offers is asked for by all of them in the same order. A value that is told is made of
    what JSON knows.
    """

    rank: int = 0
    world: int = 1
    local: int = 0  # the rank among those on this machine

    @property
    def is_first(self) -> bool:
        """The one that writes files and tells the user."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process; UserError where there is none of that name."""
        has_gpu = torch.cuda.is_available()
        name = name if name != "auto" else "cuda" if has_gpu else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            raise UserError(f"--device {name} is no device", "give cpu, cuda or cuda:0") from None
        if device.type == "cuda" and not has_gpu:
            raise UserError(f"--device {name}: torch sees no GPU here", "give --device cpu")
        if device.type != "cuda" or self.world == 1:
            return device
        if device.index is not None:
            raise UserError(f"--device {name} is one for {self.world} processes", "give cuda")
        if self.local >= (gpus := torch.cuda.device_count()):
            raise UserError(
                f"process {self.rank} is number {self.local + 1} on a machine with {gpus} GPUs",
                f"torchrun --nproc-per-node {gpus}, or --device cpu",
            )
        device = torch.device("cuda", self.local)
        torch.cuda.set_device(device)  # NCCL's and the default one
        return device

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of them; returns when all have asked. No GPU is waited for."""
        if self.world == 1:
            return flag
        told = torch.tensor(int(flag))
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def gathered(self, value: Any) -> list:
        """What each of them told, in order of rank."""
        if self.world == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(map(int, sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def of_first(self, call: Callable[[], T]) -> T:
        """What the first one's call returns; the others do not call, and wait for it."""
        if self.world == 1:
            return call()
        return self.gathered(call() if self.is_first else None)[0]

    def means(self, values: list[Tensor], device: torch.device) -> list[Tensor]:
        """Scalars, each averaged over all of them, bit by bit the same on each."""
        if self.world == 1:
            return values
        packed = torch.stack([value.detach().float().to(device) for value in values])
        dist.all_reduce(packed)
        return list(packed / self.world)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model as its loss calls it, so that a gradient is the mean over all of them.

        What a forward pass changes in buffers (BatchNorm's averages) is what the first one's does.
        `find_unused_parameters` leaves what a step does not use without a gradient, as one process
        does. It also keeps the buckets of gradients as they are, which else change after the first
        step of a process: with more than two ranks a bucket's layout decides the order of its sums,
        and a resumed run would differ in the last bits.
        """
        if self.world == 1:
            return model
        return DistributedDataParallel(_WithUnused(model), find_unused_parameters=True)


class _WithUnused(nn.Module):
    """A model and a parameter that no step uses.

    Without one, torch warns that `find_unused_parameters` is for nothing, past Python's filters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(next(model.parameters()).new_zeros(1))

    def forward(self, *inputs: object, **named: object) -> object:
        return self.model(*inputs, **named)


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started; a group that there is already is kept.

    Where one of them fails, it alone raises what happened. The others, which wait for it or fail
    because it is gone, raise Ended; one that waits on its GPU waits until torchrun ends it.
    """
    if dist.is_available() and dist.is_initialized():
        yield here()
        return
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Ranks()
        return
    # Keys of the group before, in the same store, would be taken for this one's.
    store = dist.PrefixStore(f"recaption/{next(_groups)}", _store())
    rank = int(os.environ["RANK"])
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    try:
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE
        )
        ranks = here()
        ranks.any(False)  # none goes before all are here,
        yield ranks
        ranks.any(False)  # nor before all are done
    except BaseException as e:
        code = _code_told_before(store, rank, e)
        if dist.is_initialized():
            dist.destroy_process_group()  # wakes those that wait
        if rank == 0:
            _see_off(store, world)
        if code is None:
            raise
        raise Ended(code) from None
    dist.destroy_process_group()


def here() -> Ranks:
    """This process in the group that there is."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    rank = dist.get_rank()
    return Ranks(rank, dist.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))


@cache  # as long as the process: the others' would lose theirs with the first one's
def _store() -> dist.Store:
    """Where the processes find each other, as the environment says."""
    try:
        return next(rendezvous("env://", timeout=timedelta(minutes=10)))[0]
    except ValueError as e:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {e}",
            "start several processes with torchrun, or unset WORLD_SIZE",
        ) from None


def _code_told_before(store: dist.Store, rank: int, error: BaseException) -> int | None:
    """The exit code of the process that failed first; None where that is this one."""
    mine = f"{rank} {_exit_code(error)}"
    try:
        first = store.compare_set("failed", "", mine).decode()
        store.add("gone", 1)
    except RuntimeError:  # its host is gone
        return None
    return None if first == mine else int(first.split()[1])


def _see_off(store: dist.Store, world: int) -> None:
    """The store may go with the first process, so that stays until the others have asked it."""
    end = time.monotonic() + _LEAVE_TAKING
    try:
        while store.add("gone", 0) < world and time.monotonic() < end:
            time.sleep(0.01)
    except RuntimeError:  # it went with torchrun
        return


def _exit_code(error: BaseException) -> int:
    """As `python -m jobs` ends."""
    if isinstance(error, UserError):
        return 2
    if isinstance(error, Stopped):
        return 3
    return 130 if isinstance(error, KeyboardInterrupt) else 1
