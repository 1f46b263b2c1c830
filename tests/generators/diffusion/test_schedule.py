"""Schedules are those of diffusers, and of the papers' closed forms."""

import numpy as np
import pytest
from diffusers import DDPMScheduler

from generators.diffusion.schedule import Schedule
from pipeline.errors import UserError

RANGES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (0, 0)}


@pytest.mark.parametrize("name", RANGES)
def test_diffusers(name):
    start, end = RANGES[name]
    peer = DDPMScheduler(1000, beta_start=start, beta_end=end, beta_schedule=name)
    ours = Schedule(name)
    np.testing.assert_allclose(ours.betas, peer.betas.numpy(), rtol=1e-5)
    # What is left after all the steps is 2e-9 of the cosine, of which fp32 keeps few digits.
    abar = peer.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(ours.alphas_cumprod, abar, rtol=1e-4, atol=0)
    np.testing.assert_allclose(ours.alphas_cumprod, abar, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 100, 1000, 4000])
def test_cosine(steps):
    ours = Schedule(steps=steps)
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    wanted = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
    np.testing.assert_allclose(ours.alphas_cumprod[:-1], wanted[1:-1], rtol=1e-9)
    assert ours.betas[-1] == 0.999 and 0 < ours.alphas_cumprod[-1] < 1e-3 * wanted[-2] * 1.001


@pytest.mark.parametrize("name", RANGES)
def test_fewer_steps_destroy_as_much(name):
    whole, few = Schedule(name, 1000), Schedule(name, 250)
    assert (np.diff(whole.alphas_cumprod) < 0).all() and (np.diff(few.alphas_cumprod) < 0).all()
    assert whole.betas.dtype == np.float64 and (whole.betas > 0).all()
    # At equal shares of the way: the signal's share agrees.
    np.testing.assert_allclose(few.alphas_cumprod[:-1], whole.alphas_cumprod[3:-1:4], atol=0.01)


def test_linear_is_a_sum_of_logarithms():
    ours = Schedule("linear")
    betas = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    np.testing.assert_allclose(ours.alphas_cumprod, np.exp(np.log1p(-betas).cumsum()), rtol=1e-10)


@pytest.mark.parametrize(("name", "steps"), [("cosine", 1000), ("linear", 0)])
def test_a_schedule_that_is_none(name, steps):
    with pytest.raises(UserError, match="no noise schedule"):
        Schedule(name, steps)
