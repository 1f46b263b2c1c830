"""The noising process, and what a network predicts of it: epsilon, sample, v or flow, and its variance."""

# B samples, C channels of a sample, T timesteps

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.special import log_ndtr

from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from pipeline.errors import UserError

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
Density = Literal["uniform", "logit_normal"]
Level = Tensor | float
VLB_SHARE = 1 / 1000 / math.log(2)
"""Of the bound in nats: the hybrid loss (2102.09672, equation 16) has it in bits."""


@dataclass(frozen=True)
class Process:
    """x_t = signal * x_0 + rest * noise: sqrt(abar_t) and sqrt(1 - abar_t), or of the schedule flow
    1 - sigma_t and sigma_t. prediction, variance: `diffusers`' names; UserError for others.

    Of learned_range the network has 2 C channels, the second half of which interpolates between the
    logarithms of the posterior's variance and of beta (2102.09672, equation 15). flow is noise - x_0
    (2209.03003, equation 1), and goes with that schedule only. density: of the timesteps to train at;
    logit_normal has more of those in the middle (2403.03206, section 3.1, of location 0 and scale 1).
    """

    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = "epsilon"
    variance: Variance = "fixed_small"
    density: Density = "uniform"

    def __post_init__(self) -> None:
        known = {"prediction": Prediction, "variance": Variance, "density": Density}
        for name, names in known.items():
            if getattr(self, name) not in names.__args__:
                raise UserError(
                    f"no {name} is {getattr(self, name)!r}",
                    f"there are {', '.join(names.__args__)}",
                )
        if self.schedule.is_flow != (self.prediction == "flow"):
            raise UserError(
                f"prediction {self.prediction} does not go with the schedule {self.schedule.name}",
                "give flow for both, or for none",
            )
        if self.schedule.is_flow and self.variance != "fixed_small":
            raise UserError(
                f"variance {self.variance} does not go with the schedule flow, whose steps add none",
                "leave it out",
            )

    def timesteps(self, noise: SampleNoise) -> Tensor:
        """Timesteps to train at, each by its own sample's seed: (B,) long."""
        steps = self.schedule.steps
        if self.density == "uniform":
            return (noise.uniform() * steps).long()
        # A sigmoid may round to 1.
        return (noise.normal().sigmoid() * steps).long().clamp_(max=steps - 1)

    def network_time(self, t: Tensor) -> Tensor:
        """What a network of diffusers is told of timesteps (B,): as its flow schedulers do, T sigma_t."""
        return self.levels(t, 1)[1] * self.schedule.steps if self.schedule.is_flow else t

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of x_0 (B, ...), noise (B, ...) and timesteps (B,)."""
        signal, rest = self.levels(t, clean.ndim)
        return signal * clean + rest * noise

    def levels(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """signal and rest at t as (B, 1, ...), to be multiplied with (B, ...)."""
        return _rows(_levels(self.schedule, t.device), t, ndim)

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network shall predict of x_t."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        of_noise, of_clean = self.velocity(*self.levels(t, clean.ndim))
        return of_noise * noise - of_clean * clean

    def velocity(self, signal: Level, rest: Level) -> tuple[Level, Level]:
        """p and q of p * noise - q * x_0, the direction in which x_t goes: v (2202.00512, section 4), or
        flow. In both x_0 = p * x_t - rest * velocity.
        """
        return (1.0, 1.0) if self.schedule.is_flow else (signal, rest)

    def clean(self, predicted: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The x_0 that a prediction (without its variance) of x_t means."""
        return self.solve(predicted, noisy, *self.levels(t, noisy.ndim))

    def solve(self, predicted: Tensor, noisy: Tensor, signal: Level, rest: Level) -> Tensor:
        """`clean`, where signal and rest are known."""
        if self.prediction == "sample":
            return predicted
        if self.prediction == "epsilon":
            return (noisy - rest * predicted) / signal
        return self.velocity(signal, rest)[0] * noisy - rest * predicted

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction, and what was said of the variance, where it is learned."""
        if self.variance != "learned_range":
            return output, None
        predicted, said = output.chunk(2, dim=1)
        return predicted, said

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Of each sample (B,): the prediction's mean squared error, and where the variance is learned
        1/1000 of the variational bound in bits, which then trains it alone (2102.09672, section 3.1).
        """
        predicted, said = self.split(output.float())
        wanted = self.target(clean, noise, t)
        if predicted.shape != wanted.shape:
            shapes = tuple(predicted.shape), tuple(wanted.shape)
            raise ValueError(f"a prediction of {shapes[0]} for {shapes[1]}")
        loss = (predicted - wanted).square().flatten(1).mean(dim=1)
        if said is None:
            return loss
        noisy = self.noised(clean, noise, t)
        bound = self.bound(self.clean(predicted.detach(), noisy, t), said, clean, noisy, t)
        return loss + VLB_SHARE * self.schedule.steps * bound

    def bound(
        self, guessed: Tensor, said: Tensor | None, clean: Tensor, noisy: Tensor, t: Tensor
    ) -> Tensor:
        """The term L_t of the variational bound, nats per dimension (B,) (2006.11239, equation 5).

        guessed: the x_0 that the network means. said: of its variance, None where that is fixed. At
        t = 0 it is the negative log-likelihood of 8-bit pixels in [-1, 1] (section 3.3 there).
        """
        mean, log_variance = self.posterior(clean, noisy, t)
        guess, _ = self.posterior(guessed, noisy, t)
        log_guess = self.log_variance(said, t, clean.ndim).expand_as(clean)
        ratio = log_variance - log_guess
        kl = 0.5 * (ratio.exp() - 1 - ratio + (mean - guess).square() * (-log_guess).exp())
        nll = -_log_of_bin(clean, guess, log_guess)
        is_last = (t == 0).view(-1, *[1] * (clean.ndim - 1))
        return torch.where(is_last, nll, kl).flatten(1).mean(dim=1)

    def posterior(self, clean: Tensor, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of x_{t-1} given x_t and x_0 (2006.11239, equation 7)."""
        by_clean, by_noisy, small, _ = _rows(_posterior(self.schedule, t.device), t, clean.ndim)
        return by_clean * clean + by_noisy * noisy, small

    def log_variance(self, said: Tensor | None, t: Tensor, ndim: int) -> Tensor:
        """Of x_{t-1}, as this process has it: (B, 1, ...), or as `said` (B, C, ...)."""
        if (said is None) == (self.variance == "learned_range"):
            raise ValueError(f"{self.variance}, but of the variance a network said {said}")
        _, _, small, large = _rows(_posterior(self.schedule, t.device), t, ndim)
        if said is None:
            return small if self.variance == "fixed_small" else large
        share = (said + 1) / 2
        return share * large + (1 - share) * small


def _rows(table: Tensor, t: Tensor, ndim: int) -> tuple[Tensor, ...]:
    """The columns of a table (T, n) at t (B,), each as (B, 1, ...)."""
    return table[t].view(len(t), -1, *[1] * (ndim - 1)).unbind(dim=1)


@lru_cache(16)
def _levels(schedule: Schedule, device: torch.device) -> Tensor:
    """(T, 2)."""
    return _kept(list(torch.from_numpy(schedule.variances).sqrt().unbind(dim=1)), device)


@lru_cache(16)
def _posterior(schedule: Schedule, device: torch.device) -> Tensor:
    """(T, 4): weights of x_0 and x_t in the mean, log of the posterior's variance, log of beta.

    At t = 0 that variance is 0; its logarithm is taken from t = 1, as in 2102.09672's code.
    """
    beta, abar = torch.from_numpy(schedule.betas), torch.from_numpy(schedule.alphas_cumprod)
    before = torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
    small = beta * (1 - before) / (1 - abar)
    small[0] = small[1] if len(small) > 1 else beta[0]
    columns = [
        beta * before.sqrt() / (1 - abar),
        (1 - beta).sqrt() * (1 - before) / (1 - abar),
        small.log(),
        beta.log(),
    ]
    return _kept(columns, device)


def _kept(columns: list[Tensor], device: torch.device) -> Tensor:
    """(T, n) in fp32, made as no inference tensor: who asks first may sample, who asks next trains."""
    with torch.inference_mode(False):
        return torch.stack(columns, dim=1).float().to(device)


def _log_of_bin(clean: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability of the 8-bit bin around each value of [-1, 1], open-ended at both ends."""
    scale = (-0.5 * log_variance).exp()
    upper, lower = ((clean - mean + half) * scale for half in (1 / 255, -1 / 255))
    # A bin above the mean is as probable as its mirror image below, where small probabilities, and
    # their gradients, keep their digits.
    mirrored = clean > mean
    end = log_ndtr(torch.where(mirrored, -lower, upper))
    start = log_ndtr(torch.where(mirrored, -upper, lower))
    inside = end + (-torch.expm1(start - end)).log()
    inside = torch.where(clean > 0.999, log_ndtr(-lower), inside)
    return torch.where(clean < -0.999, log_ndtr(upper), inside)
