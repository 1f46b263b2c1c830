"""Noise schedules: how much of the clean sample is left at each timestep."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.errors import UserError

Name = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
"""`diffusers`' names. linear: of DDPM (2006.11239); scaled_linear: of latent diffusion, linear in the
root of beta; squaredcos_cap_v2: the cosine of 2102.09672, equation 17."""


@dataclass(frozen=True)
class Schedule:
    """T = `steps` timesteps, of which 0 is the least noisy."""

    name: Name = "squaredcos_cap_v2"
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.name not in Name.__args__ or self.steps < 1:
            raise UserError(
                f"no noise schedule is {self.name!r} with {self.steps} steps",
                f"there are {', '.join(Name.__args__)}, from 1 step on",
            )

    @cached_property
    def betas(self) -> np.ndarray:
        """Variance that each step adds: float64 (T,)."""
        if self.name == "squaredcos_cap_v2":
            left = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - left[1:] / left[:-1], 0.999)
        # Published for 1,000 steps; fewer and larger ones destroy as much.
        scale = 1000 / self.steps
        if self.name == "linear":
            return np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, self.steps), 0.999)
        roots = np.linspace(0.00085**0.5, 0.012**0.5, self.steps)
        return np.minimum(scale * roots**2, 0.999)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """abar_t, the share of the clean sample's variance that is left: float64 (T,)."""
        return np.cumprod(1 - self.betas)
