"""One process that trains as if it were several: FSDP cuts the weights, and it has every slice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from jobs import sharding
from jobs.fit import Fit, Task
from jobs.ranks import Ranks


@contextmanager
def in_slices(task: Task) -> Iterator[None]:
    """What `jobs.training` does of `--parallel fsdp` before the first step; the task is then spent."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        device, blocks = torch.device("cpu"), dict.fromkeys(task.blocks())
        sharding.shard(task.model, blocks, Fit(steps=1, parallel="fsdp"), device, Ranks())
        yield
    finally:
        dist.destroy_process_group()
