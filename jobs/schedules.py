"""The learning rate's factor as a pure function of the step: nothing to save, nothing to resume."""

import math

from jobs.fit_settings import Fit


def factor(step: int, settings: Fit) -> float:
    """What step 0, 1, ... multiplies `lr` by: warm-up, then the schedule down to min_lr_ratio.

    The schedule ends after `schedule_steps`, where they are given, and its end stays.
    """
    if step < settings.warmup_steps:
        return warmup(step, settings.warmup_steps)
    length = max(1, (settings.schedule_steps or settings.steps) - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / length)
    return SCHEDULES[settings.schedule](progress, settings.min_lr_ratio)


def warmup(step: int, steps: int) -> float:
    """Linear from 1 / steps to 1. Goyal et al. (1706.02677), section 2.2, gradual warmup."""
    return (step + 1) / steps


def cosine(progress: float, least: float) -> float:
    """Half a cosine from 1 to least. Loshchilov and Hutter, SGDR (1608.03983), Eq. 5, no restart."""
    return least + (1 - least) * (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float, least: float) -> float:
    """A line from 1 to least. Devlin et al., BERT (1810.04805), appendix A.2."""
    return 1 - (1 - least) * progress


def constant(progress: float, least: float) -> float:
    """1 for ever; the only schedule that does not know where it ends."""
    return 1.0


SCHEDULES = {"cosine": cosine, "linear": linear, "constant": constant}
