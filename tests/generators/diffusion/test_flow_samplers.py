"""What latent diffusion is sampled with steps as diffusers' schedulers do when they are left to themselves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, sample
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise

SHAPE = (2, 3, 4)


def network(x: Tensor, time: Tensor) -> Tensor:
    """Some field that is told times as networks of diffusers are."""
    time = time.double().view(-1, 1, 1, 1)
    found = 0.6 * x.double() + 0.3 * torch.sin(3 * x.double() + time / 100) - 0.1
    return found.to(x.dtype)


def ours(process: Process, way: Sampling, start: Tensor) -> tuple[Tensor, list[float]]:
    """The sample, and the times that the network was told."""
    told: list[float] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        time = process.network_time(t)
        told.append(float(time[0]))
        return network(x, time)

    return sample(process, predict, start, way, SampleNoise([0])), told


def theirs(peer: SchedulerMixin, start: Tensor) -> Tensor:
    x = start
    for t in peer.timesteps:
        x = peer.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


def check(process: Process, way: Sampling, peer: SchedulerMixin) -> None:
    start = SampleNoise([1, 2, 3]).normal(*SHAPE)
    found, told = ours(process, way, start)
    np.testing.assert_allclose(told, peer.timesteps.numpy(), rtol=1e-6)
    assert (found - theirs(peer, start)).abs().max() < 1e-5 * found.abs().max().clamp(min=1)


# Numbers of steps at which diffusers' flow schedulers visit whole timesteps, which are ours.
@pytest.mark.parametrize("steps", [4, 10, 28, 1000])
def test_flow_by_euler(steps):
    peer = FlowMatchEulerDiscreteScheduler(1000)
    peer.set_timesteps(steps)
    check(Process(Schedule("flow"), "flow"), Sampling("ddim", steps, clip=0), peer)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shifted_flow_by_euler(shift):
    peer = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    # Left to itself it shifts the last of these twice.
    peer.set_timesteps(sigmas=np.linspace(1, 1 / 1000, 28))
    check(Process(Schedule("flow", 1000, shift), "flow"), Sampling("ddim", 28, clip=0), peer)


# 1024 timesteps: of 1000 theirs are whole numbers but for rounding, which they cut off.
@pytest.mark.parametrize("steps", [1, 3, 11, 31, 33, 93])
def test_flow_by_dpm(steps):
    peer = DPMSolverMultistepScheduler(
        1024, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    peer.set_timesteps(steps)
    check(Process(Schedule("flow", 1024), "flow"), Sampling("dpm++", steps, clip=0), peer)


def test_shifted_flow_by_dpm():
    peer = DPMSolverMultistepScheduler(
        1024, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    peer.set_timesteps(33)
    peer.timesteps = peer.sigmas[:-1] * 1024  # whose fractions it cuts off
    check(Process(Schedule("flow", 1024, 3.0), "flow"), Sampling("dpm++", 33, clip=0), peer)


@pytest.mark.parametrize(
    ("make", "sampler", "steps"),
    [
        (DDIMScheduler, "ddim", "ddim25"),
        (DDIMScheduler, "ddim", "ddim50"),
        (DPMSolverMultistepScheduler, "dpm++", 20),
        (DPMSolverMultistepScheduler, "dpm++", 25),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_scaled_linear(
    prediction: str, make: Callable[..., SchedulerMixin], sampler: str, steps: str | int
):
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
    }
    if make is DDIMScheduler:
        settings |= {"clip_sample": False, "set_alpha_to_one": True}
    peer = make(1000, **settings)
    peer.set_timesteps(int(str(steps).removeprefix("ddim")))
    way = Sampling(sampler, steps, clip=0)
    check(Process(Schedule("scaled_linear"), prediction), way, peer)
