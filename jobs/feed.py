"""Which samples a step trains on, and their batches, prepared ahead of the model."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.fit_settings import Fit
from pipeline.places import Place, places
from pipeline.prefetch import prefetch

Batch = Any  # tensors, or tuples, lists and dicts of batches


def split(samples: Sequence[Place], parts: int) -> list[Sequence[Place]]:
    """Micro-batches, in order, whose sizes differ by one at most."""
    n = len(samples)
    return [samples[i * n // parts : (i + 1) * n // parts] for i in range(parts)]


def feed(
    prepare: Callable[[Sequence[Place]], Batch],
    size: int,
    settings: Fit,
    *,
    start: int,
    pin: bool,
    rank: int = 0,
    world: int = 1,
) -> Generator[tuple[Sequence[Place], Batch]]:
    """Micro-batches of the steps from `start` on, in order, `settings.prefetch` of them ahead.

    Of each, one of `world` ranks gets its own samples: together they are those of one process.
    """

    def items() -> Iterator[Sequence[Place]]:
        for step in range(start, settings.steps):
            of_step = places(step, seed=settings.seed, size=size, batch_size=settings.batch_size)
            for micro in split(of_step, settings.accumulate):
                yield micro[rank::world]

    def prepared(samples: Sequence[Place]) -> tuple[Sequence[Place], Batch]:
        batch = prepare(samples)
        return samples, mapped(Tensor.pin_memory, batch) if pin else batch

    if settings.prefetch:
        yield from prefetch(
            items(),
            prepared,
            threads=settings.threads,
            depth=settings.prefetch,
            size=lambda samples: 0,  # what is ahead is bounded by its number
        )
    else:
        yield from map(prepared, items())


def moved(batch: Batch, device: torch.device) -> Batch:
    return mapped(lambda tensor: tensor.to(device, non_blocking=True), batch)


def mapped(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The batch with every tensor in it changed; what is no tensor stays."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: mapped(change, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple
        return type(batch)(*(mapped(change, value) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(mapped(change, value) for value in batch)
    return batch
