"""DDPM, DDIM and DPM-Solver++: each step is a sum of what is there, what it shall become, and noise."""

# B samples; x_t what is there at timestep t, x_0 what the network takes it for

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from generators.diffusion.process import Process
from generators.diffusion.respacing import timesteps
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from pipeline.errors import UserError

Name = Literal["ddpm", "ddim", "dpm++"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, ...) and t (B,) -> the network's output (B, C, ...), or (B, 2 C, ...)."""
Levels = list[tuple[float, float]]
"""Of each visited timestep the variances of signal and noise, see `Schedule.variances`."""
Refine = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x_0, x_t (B, ...), t (B,) -> a better x_0."""
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x_t (B, ...), t (B,), and the x_0 that is guessed -> gradient of a log probability by x_t. It is
called where no graph is built: what differentiates opens `torch.enable_grad()` itself."""


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn; UserError for what is no such way.

    sampler: ddpm, with the process's own variance (2006.11239); ddim (2010.02502); dpm++, the
    second-order multistep solver of 2211.01095. steps: as `respacing.timesteps` reads it, but a bare
    number leaves timestep 0 out in dpm++ (as in diffusers): the leap there, over more noise levels
    than all others, is the one that a second order gets wrong. eta: DDIM's share of noise, 0 to 1.
    clip: the largest absolute value of x_0, whence follows epsilon (as in GLIDE; diffusers'
    `use_clipped_model_output`); 0 does not clip. Of flow matching ddim is Euler's method, dpm++ begins
    one timestep before the last, which has no signal (as in diffusers), and nothing adds noise.
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
        if not 0 <= self.eta <= 1:
            raise UserError(f"ETA={self.eta} is no share of noise", "give 0 to 1")
        if self.eta and self.sampler != "ddim":
            raise UserError(f"ETA={self.eta} is DDIM's", "leave it out, or give SAMPLER=ddim")
        if not 0 <= self.clip < math.inf:
            raise UserError(f"CLIP={self.clip} bounds nothing", "give a number, or 0 not to clip")


@dataclass(frozen=True)
class Step:
    """x_s = noisy * x_t + clean * x_0 + before * (x_0 of the step before) + noise * normal.

    x_t is signal * x_0 + rest * epsilon. learned: (log of the least, log of the largest variance)
    between which a network says its own.
    """

    t: int
    signal: float
    rest: float
    noisy: float
    clean: float
    before: float = 0.0
    noise: float = 0.0
    learned: tuple[float, float] | None = None


def plan(process: Process, sampling: Sampling) -> list[Step]:
    """The steps of a sampler, the noisiest first; the last one is x_0 itself. UserError where the
    process has no such steps.
    """
    schedule = process.schedule
    if schedule.is_flow and (sampling.sampler == "ddpm" or sampling.eta):
        raise UserError(
            f"SAMPLER={sampling.sampler} with ETA={sampling.eta} adds noise, which flow matching has not",
            "give SAMPLER=ddim or dpm++, without ETA",
        )
    visited = _visited(sampling, schedule)
    levels: Levels = [tuple(schedule.variances[t].tolist()) for t in visited]
    make = {"ddpm": _ddpm, "ddim": _ddim, "dpm++": _dpm}[sampling.sampler]
    moves = [*make(process, sampling, levels), {"noisy": 0.0, "clean": 1.0}]
    return [
        Step(t, math.sqrt(signal), math.sqrt(rest), **move)
        for t, (signal, rest), move in zip(visited, levels, moves, strict=True)
    ]


def _visited(sampling: Sampling, schedule: Schedule) -> list[int]:
    text, total = str(sampling.steps), schedule.steps
    if sampling.sampler == "dpm++" and text.isdecimal() and 0 < int(text) < total:
        found = timesteps(int(text) + 1, total)[:-1]
        return [t - 1 for t in found] if schedule.is_flow else found
    return timesteps(text, total)


@torch.no_grad()
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

    noise: drawn from at the steps that add any. gradient: guides, by a shift of the mean by variance
    times gradient in ddpm (2105.05233, algorithm 1; none at the last step, whose variance is 0), of
    epsilon in the others (algorithm 2). refine: mends each guessed x_0, as where some of it is known;
    what it says at the last step is returned as it is.
    """
    if gradient and process.schedule.is_flow:
        raise UserError(
            "a gradient guides no flow matching, which begins where no signal is left",
            "guide a model of another schedule",
        )
    x, before = start.float(), None
    steps = plan(process, sampling)
    for step, t in zip(steps, _times(steps, x), strict=True):
        guess, said = _guess(process, predict, x, step, t, sampling.clip)
        shift = gradient(x, t, guess) if gradient else None
        if shift is not None and sampling.sampler != "ddpm":
            guess = _clipped(guess + step.rest**2 / step.signal * shift, sampling.clip)
            shift = None
        if refine:
            guess = refine(guess, x, t)
        x, before = _moved(step, x, guess, before, said, shift, noise), guess
    return x


@torch.no_grad()
def invert(
    process: Process, predict: Predict, clean: Tensor, sampling: Sampling, *, evaluations: int = 3
) -> Tensor:
    """The noise (B, ...) from which DDIM with eta 0 makes `clean` (B, ...): its steps, backwards
    (2105.05233, appendix F). Of `sampling` the steps and the bound of x_0 count.

    evaluations: of the network at each step. The first is at the sample as it is, before the step
    (diffusers' `DDIMInverseScheduler`), and leaves an error that falls with the number of steps only;
    each further one is where the one before arrived, and comes nearer to the very point from which
    DDIM would step back.
    """
    if evaluations < 1:
        raise ValueError(f"{evaluations} evaluations invert nothing")
    x = clean.float()
    ddim = Sampling("ddim", sampling.steps, clip=sampling.clip)
    steps = plan(process, ddim)[::-1]
    signal, rest = 1.0, 0.0
    for step, t in zip(steps, _times(steps, x), strict=True):
        # Between two levels x turns by an angle: x_s = cos x_t - sin v_t (2202.00512, appendix D). In
        # flow matching it goes straight: the same with a cosine of 1, and the way for a sine.
        of_noise, of_clean = process.velocity(step.signal, step.rest)
        cos, sin = signal * of_noise + rest * of_clean, signal * step.rest - rest * step.signal
        before = x
        for i in range(evaluations):
            guess, _ = _guess(process, predict, x, step, t, ddim.clip)
            if i == 0:
                epsilon = (x - step.signal * guess) / step.rest
                x = (step.signal * before + sin * epsilon) / signal
            else:
                velocity = (of_noise * x - guess) / step.rest
                x = (before + sin * velocity) / cos
        signal, rest = step.signal, step.rest
    return x


def _times(steps: list[Step], x: Tensor) -> tuple[Tensor, ...]:
    """t (B,) of each step: copied to the device once."""
    return (
        torch.tensor([step.t for step in steps], device=x.device)[:, None]
        .repeat(1, len(x))
        .unbind()
    )


def _guess(
    process: Process, predict: Predict, x: Tensor, step: Step, t: Tensor, clip: float
) -> tuple[Tensor, Tensor | None]:
    """The x_0 that the network means, and what it says of the variance."""
    predicted, said = process.split(predict(x, t).float())
    if predicted.shape != x.shape:
        raise ValueError(f"a prediction of {tuple(predicted.shape)} for {tuple(x.shape)}")
    return _clipped(process.solve(predicted, x, step.signal, step.rest), clip), said


def _clipped(x: Tensor, bound: float) -> Tensor:
    return x.clamp(-bound, bound) if bound else x


def _moved(
    step: Step,
    x: Tensor,
    guess: Tensor,
    before: Tensor | None,
    said: Tensor | None,
    shift: Tensor | None,
    noise: SampleNoise,
) -> Tensor:
    """x_s."""
    if not step.noisy:
        return guess
    found = torch.mul(guess, step.clean).add_(x, alpha=step.noisy)
    if step.before:
        found.add_(before, alpha=step.before)
    if step.learned is not None:
        low, high = step.learned
        scale = torch.mul(said, (high - low) / 4).add_((high + low) / 4).exp_()
        if shift is not None:
            found.addcmul_(scale.square(), shift)
        return found.addcmul_(scale, noise.normal(*x.shape[1:]))
    if shift is not None:
        found.add_(shift, alpha=step.noise**2)
    if step.noise:
        found.add_(noise.normal(*x.shape[1:]), alpha=step.noise)
    return found


def _ddpm(process: Process, sampling: Sampling, levels: Levels) -> list[dict]:
    """The posterior of x_s given x_t and x_0 (2006.11239, equation 7), between any two timesteps."""
    moves = []
    for (now, much), (then, less) in pairwise(levels):
        beta = 1 - now / then
        small = beta * less / much
        move = {
            "noisy": math.sqrt(now / then) * less / much,
            "clean": math.sqrt(then) * beta / much,
        }
        if process.variance == "learned_range":
            move["learned"] = (math.log(small), math.log(beta))
        else:
            move["noise"] = math.sqrt(small if process.variance == "fixed_small" else beta)
        moves.append(move)
    return moves


def _ddim(process: Process, sampling: Sampling, levels: Levels) -> list[dict]:
    """2010.02502, equation 12, with epsilon taken from x_t and x_0."""
    moves = []
    for (now, much), (then, less) in pairwise(levels):
        sigma = sampling.eta * math.sqrt(less / much * (1 - now / then))
        rest = math.sqrt((less - sigma**2) / much)
        clean = math.sqrt(then) - rest * math.sqrt(now)
        moves.append({"noisy": rest, "clean": clean, "noise": sigma})
    return moves


def _dpm(process: Process, sampling: Sampling, levels: Levels) -> list[dict]:
    """2211.01095, algorithm 2; the first step and the last are of first order."""
    moves = []
    last_h = math.inf
    for (now, much), (then, less) in pairwise(levels):
        h = _half_log_snr(then, less) - _half_log_snr(now, much)
        grown = -math.expm1(-h) * math.sqrt(then)
        extra = 0.5 * h / last_h if moves else 0.0
        noisy = math.sqrt(less / much)
        moves.append({"noisy": noisy, "clean": grown * (1 + extra), "before": -grown * extra})
        last_h = h
    return moves


def _half_log_snr(signal: float, rest: float) -> float:
    """lambda, log(alpha / sigma), of the variances; -inf of noise alone, from where a step is Euler's."""
    return 0.5 * math.log(signal / rest) if signal else -math.inf
