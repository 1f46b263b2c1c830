"""Which samples a step trains on, and their batches, prepared ahead of the model."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.fit_settings import Fit
from pipeline.places import Place
from pipeline.prefetch import prefetch

Batch = Any  # tensors, or tuples, lists and dicts of batches


def split(samples: Sequence[Place], parts: int) -> list[Sequence[Place]]:
    """Parts, in order, whose sizes differ by one at most."""
    n = len(samples)
    return [samples[i * n // parts : (i + 1) * n // parts] for i in range(parts)]


def feed(
    prepare: Callable[[Sequence[Place]], Batch],
    order: Callable[[int], Sequence[Place]],
    settings: Fit,
    *,
    start: int,
    pin: bool,
    rank: int = 0,
    world: int = 1,
) -> Generator[tuple[Sequence[Place], Batch]]:
    """Micro-batches of the steps from `start` on, in order, `settings.prefetch` of them ahead.

    order: the samples of step 0, 1, ..., over all ranks. Of each micro-batch, one of `world` ranks
    gets neighbours, which a source may keep together: in order of rank they are those of one process.
    """

    def items() -> Iterator[Sequence[Place]]:
        for step in range(start, settings.steps):
            for micro in split(order(step), settings.accumulate):
                yield split(micro, world)[rank]

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
