"""One step back along the path that a diffusion model's noise takes, by its own idea of the clean image."""

# B samples

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, ...), t (B,) -> x_0 (B, ...)."""
Levels = tuple[Tensor, Tensor]
"""x_t = signal x_0 + rest noise: the two as (B, 1, ...)."""


def step_back(
    denoise: Denoise, noisy: Tensor, t: Tensor, s: Tensor, at: Levels, to: Levels, *, is_heun: bool
) -> Tensor:
    """x_s (B, ...) of x_t, where s (B,) has less noise than t; `at`, `to`: their levels.

    DDIM's step (2010.02502, equation 13), which is Euler's in x / signal over rest / signal; Heun's
    (2206.00364, algorithm 1) repeats it with the mean of the slopes at both ends, but not where `to` is
    without noise, as there is no slope.
    """
    (signal, rest), (signal_s, rest_s) = at, to
    clean = denoise(noisy, t)
    epsilon = (noisy - signal * clean) / rest
    found = signal_s * clean + rest_s * epsilon
    if not is_heun:
        return found
    has_noise = rest_s > 0
    slope = (found - signal_s * denoise(found, s)) / torch.where(has_noise, rest_s, 1.0)
    length = rest_s / signal_s - rest / signal
    mended = signal_s * (noisy / signal + length * (epsilon + slope) / 2)
    return torch.where(has_noise, mended, found)
