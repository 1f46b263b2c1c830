"""The noise process of a latent diffusion model as a scheduler of diffusers has it, and back."""

from typing import Any

import numpy as np

from generators.diffusers_parts import Parts, defaults, require_bounded, short
from generators.diffusion.process import Process
from generators.diffusion.schedule import Schedule
from generators.latent.config import Config
from pipeline.errors import UserError

FOLDER, FILE = "scheduler", "scheduler_config.json"
_KNOWN = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
)
"""Classes whose folders are read; how each of them samples is no matter."""
_READ = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type", "use_flow_sigmas", "flow_shift"),
)
_NUDGE, _DIGITS = 1e-7, 6
"""Of a shift: diffusers cuts what the network is told off to whole timesteps, 443.9999999 to 443."""


def scheduler(config: Config) -> Any:
    """DPM-Solver++, of second order in place of dpm++ and ddpm, and of first, which is DDIM without
    noise (2206.00927, section 4.1), in place of ddim. Raises UserError for a schedule it has not.

    It visits the timesteps that dpm++ visits here, and like that leaves out the last one, 0. Of flow
    matching they are the same where the number of steps divides `timesteps` - 1, as 27 does of 1000, and
    shift is 1; else levels of noise are no whole timesteps there, but what the network is told is.
    """
    from diffusers import DPMSolverMultistepScheduler

    schedule = config.process.schedule
    more: dict[str, Any] = {"prediction_type": config.prediction, "beta_schedule": schedule.name}
    if schedule.is_flow:
        more = {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": schedule.shift * (1 + _NUDGE),
        }
    elif schedule.name != "squaredcos_cap_v2":
        first, *_, last = schedule.betas.tolist()
        more |= {"beta_start": first, "beta_end": last}
    found = DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.steps,
        solver_order=1 if config.sampler == "ddim" else 2,
        timestep_spacing="linspace",
        steps_offset=1,  # of no use with that spacing; pipelines take other numbers for outdated
        **more,
    )
    if not schedule.is_flow and not _are_same(found, schedule):
        raise UserError(
            f"diffusers has no schedule {schedule.name} of {schedule.steps} timesteps",
            "train with more of them, as 1000",
        )
    return found


def read(parts: Parts) -> Process:
    """What `scheduler/` reverses. UserError where it is no process of ours."""
    import diffusers

    settings = parts.unbounded_json(FOLDER, FILE)
    kind, path = settings.get("_class_name"), parts.path / FOLDER
    if kind not in _KNOWN:
        raise UserError(f"{path} holds a {short(kind)}", f"give one of {', '.join(_KNOWN)}")
    with parts.understood(FOLDER):
        told = {key: settings[key] for key in _READ if key in settings}
        require_bounded(told)
        known = defaults(getattr(diffusers, kind))
        found = getattr(diffusers, kind)(**{key: told[key] for key in told if key in known})
        own = found.config
        if own.get("use_flow_sigmas"):
            prediction = {"flow_prediction": "flow"}.get(own.prediction_type, own.prediction_type)
            shift = round(float(own.flow_shift), _DIGITS)
            return Process(Schedule("flow", own.num_train_timesteps, shift), prediction)
        schedule = Schedule(own.beta_schedule, own.num_train_timesteps)
        if not _are_same(found, schedule):
            raise ValueError(
                f"its betas, {float(found.betas[0]):.4g} to {float(found.betas[-1]):.4g}, are not ours,"
                f" {schedule.betas[0]:.4g} to {schedule.betas[-1]:.4g}"
            )
        return Process(schedule, own.prediction_type)


def _are_same(theirs: Any, ours: Schedule) -> bool:
    return np.allclose(theirs.betas.numpy(), ours.betas, rtol=1e-4, atol=0)
