"""The logit-Laplace likelihood against integrals and scipy; annealing against its formula."""

import math

import dall_e
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from generators.first_stages import logit_laplace
from generators.first_stages.annealing import Cosine


@pytest.mark.parametrize("mu", [-2.0, 0.0, 0.7])
@pytest.mark.parametrize("b", [0.05, 0.5, 0.9])
def test_the_density_integrates_to_one(mu, b):
    def density(x: float) -> float:
        values = torch.tensor([x, mu, math.log(b)], dtype=torch.float64)
        return math.exp(-logit_laplace.nll(*values).item())

    middle = special.expit(mu)  # where the density has its kink
    parts = [integrate.quad(density, *ends, limit=200) for ends in ((0, middle), (middle, 1))]
    assert sum(part[0] for part in parts) == pytest.approx(1, abs=1e-6)


def test_it_is_the_density_of_a_laplace_variables_sigmoid():
    generator = np.random.default_rng(0)
    x = generator.uniform(0.01, 0.99, 1000)
    mu, ln_b = generator.normal(0, 2, 1000), generator.normal(-1, 1, 1000)
    laplace = stats.laplace.logpdf(special.logit(x), mu, np.exp(ln_b))
    wanted = -(laplace - np.log(x * (1 - x)))  # |d logit / d x| = 1 / (x (1 - x))
    ours = logit_laplace.nll(*(torch.from_numpy(value) for value in (x, mu, ln_b)))
    np.testing.assert_allclose(ours, wanted, rtol=1e-10)


def test_pixels_are_mapped_as_in_the_published_package():
    pixels = torch.linspace(-1, 1, 60).view(1, 3, 4, 5)
    mapped = logit_laplace.to_open_interval(pixels)
    torch.testing.assert_close(mapped, dall_e.map_pixels((pixels + 1) / 2))
    assert (mapped.min().item(), mapped.max().item()) == pytest.approx((0.1, 0.9))
    torch.testing.assert_close(logit_laplace.from_open_interval(mapped), pixels)


def test_the_likeliest_location_gives_the_pixels_back():
    pixels = torch.linspace(-1, 1, 101, dtype=torch.float64)
    mu = torch.logit(logit_laplace.to_open_interval(pixels))
    torch.testing.assert_close(logit_laplace.median(mu), pixels)
    beyond = logit_laplace.median(torch.tensor([-30.0, 30.0]))
    assert beyond.tolist() == [-1, 1]  # of what is outside, the nearest pixel


def test_the_best_scale_is_the_mean_distance():
    """d nll / d ln b = 1 - |logit x - mu| / b: zero, on average, where b is the mean distance."""
    x, mu = torch.rand(500, dtype=torch.float64) * 0.8 + 0.1, torch.tensor(0.3)
    ln_b = (torch.logit(x) - mu).abs().mean().log().requires_grad_()
    logit_laplace.nll(x, mu, ln_b).mean().backward()
    assert ln_b.grad.item() == pytest.approx(0, abs=1e-12)


def test_a_cosine_goes_from_start_to_end_and_stays():
    tau = Cosine(1, 1 / 16, 150_000)
    assert tau(0) == 1
    assert tau(75_000) == pytest.approx((1 + 1 / 16) / 2)
    assert tau(150_000) == tau(3_000_000) == 1 / 16
    steps = [tau(step) for step in range(0, 150_001, 1000)]
    assert steps == sorted(steps, reverse=True)
    slope = (tau(50_001) - tau(49_999)) / 2
    assert slope == pytest.approx(-15 / 32 * math.pi / 150_000 * math.sin(math.pi / 3), rel=1e-6)
    assert Cosine(0, 6.6, 0)(0) == 6.6
