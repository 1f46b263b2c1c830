"""DDPM, DDIM and DPM-Solver++: each step is a sum of what is there, what it shall become, and noise."""

# B samples; x_t what is there at timestep t, x_0 what the network takes it for

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generators.diffusion.process import Process
from generators.diffusion.respacing import timesteps
from generators.noise import SampleNoise
from pipeline.errors import UserError

Name = Literal["ddpm", "ddim", "dpm++"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, ...) and t (B,) -> the network's output (B, C, ...), or (B, 2 C, ...)."""
Refine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x_0, x_t (B, ...), t (B,) -> a better x_0."""
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x_t (B, ...), t (B,), and the x_0 that is guessed -> gradient of a log probability by x_t."""


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    sampler: ddpm, with the process's own variance (2006.11239); ddim (2010.02502); dpm++, the second-order
    multistep solver of 2211.01095. steps: as `respacing.timesteps` reads it. eta: DDIM's share of
    noise, 0 to 1. clip: the largest absolute value of x_0; 0 does not clip.
    """

    sampler: Name = "ddim"
    steps: str | int = 50
    eta: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.sampler not in Name.__args__:
            raise UserError(
                f"SAMPLER={self.sampler} is none", f"there are {', '.join(Name.__args__)}"
            )
        if self.eta and self.sampler != "ddim":
            raise UserError(f"ETA={self.eta} is DDIM's", "leave it out, or give SAMPLER=ddim")


@dataclass(frozen=True)
class Step:
    """x_s = noisy * x_t + clean * x_0 + before * (x_0 of the step before) + noise * normal.

    learned: (log of the least, log of the largest variance) between which a network says its own.
    """

    t: int
    noisy: float
    clean: float
    before: float = 0.0
    noise: float = 0.0
    learned: tuple[float, float] | None = None


def plan(process: Process, sampling: Sampling) -> list[Step]:
    """The steps of a sampler, the noisiest first; the last one arrives at x_0."""
    visited = timesteps(sampling.steps, process.schedule.steps)
    abar = process.schedule.alphas_cumprod
    levels = [float(abar[t]) for t in visited] + [1.0]
    make = {"ddpm": _ddpm, "ddim": _ddim, "dpm++": _dpm}[sampling.sampler]
    return make(process, sampling, visited, levels)


def sample(
    process: Process,
    predict: Predict,
    start: Tensor,
    sampling: Sampling,
    noise: SampleNoise,
    *,
    gradient: Gradient | None = None,
    refine: Refine | None = None,
) -> Tensor:
    """x_0 (B, ...) of noise `start` (B, ...), in fp32.

    noise: drawn from at the steps that add any. gradient: guides, by a shift of the mean in ddpm and
    of epsilon in the others (2105.05233, algorithms 1 and 2). refine: mends each guessed x_0, as
    where some of it is known.
    """
    x, before = start.float(), None
    for step in plan(process, sampling):
        t = torch.full((len(x),), step.t, device=x.device)
        predicted, said = process.split(predict(x, t).float())
        clean = process.clean(predicted, x, t)
        shift = gradient(x, t, clean) if gradient else None
        if shift is not None and sampling.sampler != "ddpm":
            signal, rest = process.levels(t, x.ndim)
            clean = clean + rest.square() / signal * shift
        if sampling.clip:
            clean = clean.clamp(-sampling.clip, sampling.clip)
        if refine:
            clean = refine(clean, x, t)
        found = step.noisy * x + step.clean * clean
        if step.before:
            found += step.before * before
        scale = _scale(step, said)
        if shift is not None and sampling.sampler == "ddpm":
            found += scale**2 * shift
        if step.noise:
            found += scale * noise.normal(*x.shape[1:])
        x, before = found, clean
    return x


def invert(process: Process, predict: Predict, clean: Tensor, sampling: Sampling) -> Tensor:
    """The noise (B, ...) that DDIM with eta 0 makes `clean` (B, ...) of: its steps, backwards
    (2105.05233, appendix F). The more steps, the nearer.
    """
    raise NotImplementedError


def _scale(step: Step, said: Tensor | None) -> Tensor | float:
    """Deviation of the noise that a step adds."""
    if step.learned is None or said is None:
        return step.noise
    low, high = step.learned
    return (0.5 * (low + (said + 1) / 2 * (high - low))).exp()


def _ddpm(
    process: Process, sampling: Sampling, visited: list[int], levels: list[float]
) -> list[Step]:
    """The posterior of x_s given x_t and x_0 (2006.11239, equation 7), between any two timesteps."""
    variances = []
    for now, then in zip(levels, levels[1:], strict=False):
        beta = 1 - now / then
        variances.append((beta * (1 - then) / (1 - now), beta))
    # The last step's posterior has none: the smallest is then that of the step before.
    if len(variances) > 1:
        variances[-1] = (variances[-2][0], variances[-1][1])
    steps = []
    for i, t in enumerate(visited):
        now, then = levels[i], levels[i + 1]
        small, beta = variances[i]
        is_last = i + 1 == len(visited)
        kept = small if process.variance == "fixed_small" else beta
        noise = 0.0 if is_last else math.sqrt(kept)
        learned = None
        if process.variance == "learned_range" and small > 0:
            learned = (math.log(small), math.log(beta))
        steps.append(
            Step(
                t,
                noisy=math.sqrt(now / then) * (1 - then) / (1 - now),
                clean=math.sqrt(then) * beta / (1 - now) if now < 1 else 1.0,
                noise=noise,
                learned=learned,
            )
        )
    return steps


def _ddim(
    process: Process, sampling: Sampling, visited: list[int], levels: list[float]
) -> list[Step]:
    """2010.02502, equation 12, with epsilon taken from x_t and x_0."""
    steps = []
    for t, now, then in zip(visited, levels, levels[1:], strict=False):
        sigma = sampling.eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        rest = math.sqrt(max(1 - then - sigma**2, 0.0) / (1 - now))
        steps.append(
            Step(t, noisy=rest, clean=math.sqrt(then) - rest * math.sqrt(now), noise=sigma)
        )
    return steps


def _dpm(
    process: Process, sampling: Sampling, visited: list[int], levels: list[float]
) -> list[Step]:
    """2211.01095, algorithm 2; the first step and the last are of first order."""
    steps: list[Step] = []
    last_h = 0.0
    for i, (t, now, then) in enumerate(zip(visited, levels, levels[1:], strict=False)):
        if then == 1.0:
            steps.append(Step(t, noisy=0.0, clean=1.0))
            continue
        h = _half_log_snr(then) - _half_log_snr(now)
        grown = -math.expm1(-h) * math.sqrt(then)
        noisy = math.sqrt((1 - then) / (1 - now))
        extra = 0.5 * h / last_h if i else 0.0
        steps.append(Step(t, noisy, grown * (1 + extra), -grown * extra))
        last_h = h
    return steps


def _half_log_snr(abar: float) -> float:
    """lambda, log(alpha / sigma)."""
    return 0.5 * math.log(abar / (1 - abar))
