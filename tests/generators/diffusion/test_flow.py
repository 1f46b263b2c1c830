"""Flow matching: the straight way between samples and noise, what is learned of it, and when."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from scipy import special, stats

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, invert, plan, sample
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from pipeline.errors import UserError
from tests.generators.diffusion.mixture import even_noise, line, plane

TIMES = torch.tensor([0, 1, 500, 998, 999])


def flow(steps: int = 1000, shift: float = 1.0, **settings) -> Process:
    return Process(Schedule("flow", steps, shift), "flow", **settings)


def drawn(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=draws) * 2 - 1
    return clean, torch.randn(shape, generator=draws)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_levels(steps, shift):
    schedule = Schedule("flow", steps, shift)
    share = np.arange(1, steps + 1) / steps
    # 2403.03206, equation 23, where shift is sqrt(m / n).
    sigma = shift * share / (1 + (shift - 1) * share)
    np.testing.assert_allclose(np.sqrt(schedule.variances), np.stack([1 - sigma, sigma], 1))
    assert schedule.variances.dtype == np.float64 and schedule.variances[-1].tolist() == [0, 1]
    signal, rest = Process(schedule, "flow").levels(torch.arange(steps), 3)
    assert signal.shape == rest.shape == (steps, 1, 1) and rest.dtype == torch.float32
    torch.testing.assert_close(signal + rest, torch.ones(steps, 1, 1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_and_time_are_diffusers(shift):
    clean, noise = drawn(1000, 3)
    process, peer = flow(shift=shift), FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    t = torch.arange(999, -1, -1)  # as theirs run
    told = process.network_time(t)
    torch.testing.assert_close(told, peer.timesteps, rtol=1e-6, atol=1e-4)
    theirs = peer.scale_noise(clean, peer.timesteps, noise)
    torch.testing.assert_close(process.noised(clean, noise, t), theirs, rtol=0, atol=1e-6)


def test_other_schedules_tell_timesteps():
    assert torch.equal(Process().network_time(TIMES), TIMES)


def test_the_target_is_the_derivative_of_the_way():
    clean, noise = drawn(5, 2, 3)
    process = flow()
    target = process.target(clean, noise, TIMES)
    assert torch.equal(target, noise - clean)
    noisy = process.noised(clean, noise, TIMES)
    torch.testing.assert_close(process.clean(target, noisy, TIMES), clean, rtol=0, atol=1e-6)
    for t in (0, 400, 998):
        now, then = (
            process.noised(clean.double(), noise.double(), torch.full((5,), at))
            for at in (t, t + 1)
        )
        torch.testing.assert_close((then - now) * 1000, target.double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["scaled_linear", "squaredcos_cap_v2"])
def test_v_is_the_derivative_by_the_angle(name):
    """Where signal and rest are cosine and sine of phi (2202.00512, appendix D)."""
    clean, noise = (x.double() for x in drawn(5, 3))
    process = Process(Schedule(name), "v_prediction")
    signal, rest = process.levels(TIMES, 2)
    phi = torch.atan2(rest.double(), signal.double())
    by_angle = [torch.cos(p) * clean + torch.sin(p) * noise for p in (phi - 1e-5, phi + 1e-5)]
    velocity = (by_angle[1] - by_angle[0]) / 2e-5
    torch.testing.assert_close(process.target(clean, noise, TIMES), velocity, rtol=0, atol=1e-6)


def test_the_loss_is_a_squared_error():
    clean, noise = drawn(5, 3, 4)
    output = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    found = flow().loss(output, clean, noise, TIMES)
    error = (output - (noise - clean)).square().mean(dim=(1, 2))
    torch.testing.assert_close(found, error)
    assert flow().loss(noise - clean, clean, noise, TIMES).max() == 0


def test_logit_normal_timesteps():
    process, number = flow(50, density="logit_normal"), 10_000
    t = process.timesteps(SampleNoise(range(number)))
    assert t.dtype == torch.long and t.shape == (number,)
    edges = special.logit(np.arange(51) / 50)
    wanted = number * np.diff(stats.norm.cdf(edges))
    counts = torch.bincount(t, minlength=50).numpy()
    assert len(counts) == 50 and stats.chisquare(counts, wanted).pvalue > 1e-3
    assert torch.equal(t[3:5], process.timesteps(SampleNoise([3, 4])))
    # And it is diffusers' density of the same name.
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", number, 0.0, 1.0, generator=torch.Generator().manual_seed(0)
    )
    assert stats.ks_2samp((theirs * 50).long().numpy(), t.numpy()).statistic < 0.03


def test_timesteps_of_the_farthest_draws_exist(monkeypatch):
    noise, far = SampleNoise([0, 1]), torch.tensor([200.0, -200.0])
    monkeypatch.setattr(noise, "normal", lambda: far)
    assert flow(density="logit_normal").timesteps(noise).tolist() == [999, 0]


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 250), ("dpm++", 30)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("mixture", [plane, line])
def test_moments_of_a_mixture(mixture, shift, sampler, steps):
    known, process = mixture(), flow(shift=shift)
    start = even_noise(known.means.shape[1], 1024)
    way = Sampling(sampler, steps, clip=0)
    found = sample(process, known.predict(process), start, way, SampleNoise([0]))[0].double()
    mean, covariance = known.moments()
    spread = covariance.diagonal().max()
    assert (found.mean(dim=1) - mean).abs().max() < 0.02 * spread.sqrt()
    assert (torch.cov(found).view_as(covariance) - covariance).abs().max() < 0.02 * spread


def test_euler_is_of_first_order_and_dpm_of_second():
    """Of a single Gaussian, whose particles keep their place: x_0 is mean + deviation * noise."""
    known, process = line().component(0), flow(100_000)
    start = even_noise(1, 64)
    exact = known.means[0] + known.covariances[0].sqrt() * start

    def error(sampler: str, steps: int) -> float:
        predict = known.predict(process)
        found = sample(process, predict, start, Sampling(sampler, steps, clip=0), SampleNoise([0]))
        return (found - exact).abs().max().item()

    assert 1.7 < error("ddim", 40) / error("ddim", 80) < 2.4
    assert error("dpm++", 40) < 0.2 * error("ddim", 40)


@pytest.mark.parametrize(("evaluations", "bound"), [(3, 1e-3), (6, 1e-4)])
def test_inversion_finds_the_noise(evaluations, bound):
    known, process = plane(), flow()
    clean, way = known.draw(500, seed=3), Sampling("ddim", 250, clip=0)
    predict = known.predict(process)

    def off(number: int) -> torch.Tensor:
        noise = invert(process, predict, clean, way, evaluations=number)
        return sample(process, predict, noise, way, SampleNoise([0])) - clean

    assert off(evaluations).square().mean().sqrt() < bound
    assert off(1).square().mean().sqrt() > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 1000, "ddim2", "fast27", "12,8,7"])
def test_any_number_of_steps_ends_finite(sampler, steps):
    process, start = flow(shift=2.0), SampleNoise([5, 6, 7]).normal(2, 3)
    way = Sampling(sampler, steps, clip=0)
    found = sample(process, lambda x, t: x + t.view(-1, 1, 1) / 1000, start, way, SampleNoise([0]))
    assert found.isfinite().all() and found.shape == start.shape
    steps = plan(process, way)
    assert all(math.isfinite(x) for s in steps for x in (s.noisy, s.clean, s.before))
    assert min(step.t for step in steps) >= 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prediction": "epsilon"}, "prediction epsilon does not go with the schedule flow"),
        ({"prediction": "v_prediction"}, "v_prediction does not go"),
        ({"prediction": "flow", "schedule": Schedule()}, "flow does not go with .*squaredcos"),
        ({"prediction": "flow", "variance": "learned_range"}, "variance learned_range"),
        ({"prediction": "flow", "variance": "fixed_large"}, "variance fixed_large"),
        ({"prediction": "flow", "density": "normal"}, "no density is 'normal'"),
    ],
)
def test_processes_that_are_none(settings, told):
    with pytest.raises(UserError, match=told) as caught:
        Process(**{"schedule": Schedule("flow"), **settings})
    assert caught.value.hint and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [("flow", 10, 0.0), ("flow", 10, math.nan), ("flow", 10, math.inf), ("linear", 9, 2)],
)
def test_shifts_that_are_none(settings):
    with pytest.raises(UserError, match="has no shift"):
        Schedule(*settings)


def test_what_adds_noise_is_refused():
    for way in (Sampling("ddpm", 10), Sampling("ddim", 10, eta=0.5)):
        with pytest.raises(UserError, match="adds noise") as caught:
            plan(flow(), way)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gradient"):
        start = torch.zeros(1, 2)
        noise = SampleNoise([0])
        sample(flow(), lambda x, t: x, start, Sampling(), noise, gradient=lambda x, t, c: x)
    with pytest.raises(ValueError, match="no betas"):
        flow().posterior(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
