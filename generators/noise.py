"""Noise that belongs to a sample: the same in whatever batch, process or order it is drawn."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class SampleNoise:
    """Random tensors whose row i depends on `seeds[i]`, and on how often it was asked before, alone.

    One generator per sample: a batch of 64 costs 64 small launches, which no training step notices.
    """

    def __init__(self, seeds: Tensor | Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]
        self.device = torch.device(device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal (B, *shape)."""
        return self._stacked(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1): (B, *shape)."""
        return self._stacked(torch.rand, shape)

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel (B, *shape): -ln(-ln u)."""
        tiny = torch.finfo(torch.float32).tiny
        # In place: of 8192 codes this is the largest tensor of a step.
        drawn = self.uniform(*shape).clamp_min_(tiny)
        return drawn.log_().neg_().clamp_min_(tiny).log_().neg_()

    def _stacked(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        rows = [draw(shape, generator=g, device=self.device) for g in self._generators]
        return torch.stack(rows)
