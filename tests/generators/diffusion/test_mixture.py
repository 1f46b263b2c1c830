"""Samplers draw a Gaussian mixture whose score is known, guidance one of its components."""

import pytest
import torch
from diffusers import DDIMInverseScheduler

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, invert, sample
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from tests.generators.diffusion.mixture import Mixture, even_noise, line, plane


def errors(samples: torch.Tensor, wanted: Mixture) -> tuple[float, float]:
    """Of the mean, in deviations, and of the covariance, in the largest of its entries."""
    mean, covariance = (moment.double() for moment in wanted.moments())
    found = samples[0].double()
    off_mean = (found.mean(dim=1) - mean).abs().max() / covariance.diagonal().max().sqrt()
    off = (torch.cov(found).view_as(covariance) - covariance).abs().max() / covariance.abs().max()
    return off_mean.item(), off.item()


@pytest.mark.parametrize(
    ("mixture", "variance", "number"),
    [
        (plane, "fixed_small", 20_000),
        (line, "fixed_large", 20_000),
        (line, "learned_range", 20_000),
    ],
)
def test_ddpm(mixture, variance, number):
    known = mixture(torch.float32)
    process = Process(variance=variance)
    network = known.predict(process)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        predicted = network(x, t)
        if variance != "learned_range":
            return predicted
        return torch.cat([predicted, torch.zeros_like(predicted)], dim=1)  # halfway

    start = SampleNoise([1]).normal(known.means.shape[1], number)
    found = sample(process, predict, start, Sampling("ddpm", 1000, clip=0), SampleNoise([2]))
    assert max(errors(found, known)) < 0.02


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 200), ("dpm++", 30)])
@pytest.mark.parametrize("mixture", [plane, line])
def test_few_steps(mixture, sampler, steps, name, prediction):
    known = mixture()
    process = Process(Schedule(name), prediction)
    start = even_noise(known.means.shape[1], 1024)
    way = Sampling(sampler, steps, clip=0)
    found = sample(process, known.predict(process), start, way, SampleNoise([0]))
    assert max(errors(found, known)) < 0.02


def test_noise_of_ddim():
    known, process = line(torch.float32), Process()
    start, way = SampleNoise([1]).normal(1, 30_000), Sampling("ddim", 250, 0.5, 0)
    found = sample(process, known.predict(process), start, way, SampleNoise([2]))
    assert max(errors(found, known)) < 0.02


@pytest.mark.parametrize("component", [0, 2])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_guidance_draws_the_component(sampler, component):
    known, process = plane(), Process()
    start, one = even_noise(2, 512), known.component(component)
    way = Sampling(sampler, 300, clip=0)

    def guided(share: float) -> torch.Tensor:
        towards = known.towards(process, component)
        return sample(
            process,
            known.predict(process),
            start,
            way,
            SampleNoise([0]),
            gradient=lambda x, t, clean: share * towards(x, t, clean),
        )

    # The scores add up: it is what the component's own network does.
    alone = sample(process, one.predict(process), start, way, SampleNoise([0]))
    found = guided(1.0)
    assert (found - alone).abs().max() < 1e-3
    assert max(errors(found, one)) < 0.04  # of the component's own small covariance
    assert max(errors(found, known)) > 0.3 and max(errors(guided(0.0), known)) < 0.02


def test_guidance_shifts_the_mean_of_ddpm():
    known, process = line(torch.float32), Process()
    found = sample(
        process,
        known.predict(process),
        SampleNoise([1]).normal(1, 10_000),
        Sampling("ddpm", 1000, clip=0),
        SampleNoise([2]),
        gradient=known.towards(process, 1),
    )
    # 10,000 draws: deviations of 1 % in the mean, 1.4 % in the variance.
    assert max(errors(found, known.component(1))) < 0.04


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("evaluations", "typical", "largest"), [(3, 1e-4, 5e-3), (6, 1e-5, 1e-3)])
def test_inversion_finds_the_noise(evaluations, typical, largest, prediction):
    known, process = plane(), Process(prediction=prediction)
    clean, way = known.draw(500, seed=3), Sampling("ddim", 250, clip=0)
    predict = known.predict(process)

    def off(number: int) -> torch.Tensor:
        noise = invert(process, predict, clean, way, evaluations=number)
        return sample(process, predict, noise, way, SampleNoise([0])) - clean

    found = off(evaluations)
    assert found.square().mean().sqrt() < typical and found.abs().max() < largest
    # One evaluation leaves an error of the first order in the step.
    assert off(1).square().mean().sqrt() > 1e-3


def test_inverted_noise_is_normal():
    known, process = plane(), Process()
    way = Sampling("ddim", 250, clip=0)
    noise = invert(process, known.predict(process), known.draw(4000, seed=4), way)
    normal = Mixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    assert max(errors(noise, normal)) < 0.06


def test_sampling_then_inverting_gives_the_noise_back():
    known, process = plane(), Process()
    predict, way, start = known.predict(process), Sampling("ddim", 250, clip=0), even_noise(2, 256)
    made = sample(process, predict, start, way, SampleNoise([0]))
    assert (invert(process, predict, made, way, evaluations=5) - start).abs().max() < 1e-3


@pytest.mark.parametrize("steps", [25, 50])
def test_one_evaluation_inverts_as_diffusers(steps):
    known, process = plane(), Process(Schedule("linear"))
    clean, predict = known.draw(64, seed=5), known.predict(process)
    scheduler = DDIMInverseScheduler(1000, beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(steps)
    x = clean
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t[None]), int(t), x, return_dict=False)[0]
    way = Sampling("ddim", f"ddim{steps}", clip=0)
    ours = invert(process, predict, clean, way, evaluations=1)
    assert (ours - x).abs().max() < 1e-5 * x.abs().max()
