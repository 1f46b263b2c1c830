"""The moving average of the weights, kept in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from jobs.sharding import local


class Ema:
    """average <- average + (1 - decay_t) * (weights - average), over what is trained.

    Every `every` steps, the t-th time with decay_t = min(decay, (1 + t) / (10 + t)), so that the first
    weights are soon forgotten, as in TensorFlow's ExponentialMovingAverage with num_updates. Frozen
    parameters and buffers are not averaged: the model's own are used. Of weights that are sharded,
    each process averages its slices.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1) -> None:
        self.decay, self.every = decay, every
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averages = {n: p.detach().float().clone() for n, p in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call it after optimizer step 0, 1, ..."""
        number, rest = divmod(step + 1, self.every)
        if rest:
            return
        keep = min(self.decay, number / (9 + number))
        weights = [local(weight).detach().float() for weight in self._weights.values()]
        averages = [local(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, weights, 1 - keep)

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        for name, average in self.averages.items():
            local(average).copy_(local(averages[name]))

    @torch.no_grad()
    def put_in(self) -> None:
        """Overwrites the model's weights by their averages."""
        for name, weight in self._weights.items():
            local(weight).copy_(local(self.averages[name]))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the model for as long as the block lasts; then, bit by bit, the weights."""
        with torch.no_grad():
            weights = {name: local(weight).clone() for name, weight in self._weights.items()}
        self.put_in()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    local(weight).copy_(weights[name])
