"""Noise schedules: how much of the clean sample is left at each timestep, and how much noise there is."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.errors import UserError

Name = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "flow"]
"""`diffusers`' names. linear: of DDPM (2006.11239); scaled_linear: of latent diffusion, linear in the
root of beta; squaredcos_cap_v2: the cosine of 2102.09672, equation 17; flow: the straight way between
sample and noise of rectified flows (2209.03003) and flow matching (2210.02747)."""


@dataclass(frozen=True)
class Schedule:
    """T = `steps` timesteps, of which 0 is the least noisy. UserError for what is none.

    shift: flow's, by which timesteps move to more noise, as larger images need it (2403.03206,
    equation 23); 1 does not.
    """

    name: Name = "squaredcos_cap_v2"
    steps: int = 1000
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in Name.__args__ or self.steps < 1:
            raise UserError(
                f"no noise schedule is {self.name!r} with {self.steps} steps",
                f"there are {', '.join(Name.__args__)}, from 1 step on",
            )
        if not 0 < self.shift < np.inf or (self.shift != 1 and not self.is_flow):
            raise UserError(
                f"the noise schedule {self.name} has no shift of {self.shift}",
                "leave it at 1, or give the schedule flow a number above 0",
            )

    @property
    def is_flow(self) -> bool:
        """Whether x_t is (1 - sigma) x_0 + sigma noise; of the others, squares add up to 1."""
        return self.name == "flow"

    @cached_property
    def betas(self) -> np.ndarray:
        """Variance that each step adds: float64 (T,). ValueError for flow, whose steps add none."""
        if self.is_flow:
            raise ValueError("flow matching has no betas")
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
        """abar_t, the share of the clean sample's variance that is left: float64 (T,), not of flow."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def variances(self) -> np.ndarray:
        """Squares of what x_0 and noise are multiplied with in x_t: float64 (T, 2).

        abar_t and 1 - abar_t; of flow (1 - sigma_t)^2 and sigma_t^2, where sigma_t = (t + 1) / T before
        its shift, so that the last timestep is noise alone.
        """
        if not self.is_flow:
            return np.stack([self.alphas_cumprod, 1 - self.alphas_cumprod], axis=1)
        even = np.arange(1, self.steps + 1) / self.steps
        sigma = self.shift * even / (1 + (self.shift - 1) * even)
        return np.stack([(1 - sigma) ** 2, sigma**2], axis=1)
