"""Samplers step as the schedulers of diffusers do, with the same network and the same noise."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, invert, plan, sample
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from pipeline.errors import UserError

RANGES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (0, 0)}
SEEDS = [5, 6, 7]
SHAPE = (2, 3, 4)
KINDS = [
    ("ddpm", "fixed_small", 0.0),
    ("ddpm", "fixed_large", 0.0),
    ("ddpm", "learned_range", 0.0),
    ("ddim", "fixed_small", 0.0),
    ("ddim", "fixed_small", 0.5),
    ("ddim", "fixed_small", 1.0),
    ("dpm++", "learned_range", 0.0),
]


def network(process: Process) -> Callable[[Tensor, Tensor], Tensor]:
    """Right for a normal x_0 with a deviation of one half, but for some waves."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        abar = torch.from_numpy(process.schedule.alphas_cumprod)[t].view(-1, 1, 1, 1)
        signal, rest, noisy = abar.sqrt(), (1 - abar).sqrt(), x.double()
        waves = 0.2 * rest * torch.sin(3 * noisy + t.view(-1, 1, 1, 1) / 100)
        clean = 0.25 * signal * noisy / (1 - 0.75 * abar) + waves
        epsilon = (noisy - signal * clean) / rest
        predicted = {
            "epsilon": epsilon,
            "sample": clean,
            "v_prediction": signal * epsilon - rest * clean,
        }[process.prediction]
        if process.variance == "learned_range":
            predicted = torch.cat([predicted, torch.sin(5 * noisy)], dim=1)
        return predicted.to(x.dtype)

    return predict


def scheduler(process: Process, way: Sampling, exact: bool) -> SchedulerMixin:
    """diffusers' own. exact: with its tables in fp64, of which its fp32 ones keep three digits."""
    start, end = RANGES[process.schedule.name]
    settings = {
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": process.schedule.name,
        "prediction_type": process.prediction,
    }
    visited = [step.t for step in plan(process, way)]
    if way.sampler == "ddim" and str(way.steps).startswith("ddim"):
        found = DDIMScheduler(1000, clip_sample=way.clip > 0, **settings)
    elif way.sampler == "ddpm":
        clipped = way.clip > 0
        found = DDPMScheduler(1000, variance_type=process.variance, clip_sample=clipped, **settings)
    else:  # of first order it is DDIM, between any timesteps
        order = 2 if way.sampler == "dpm++" else 1
        kind = "sde-dpmsolver++" if way.eta else "dpmsolver++"
        found = DPMSolverMultistepScheduler(
            1000, solver_order=order, algorithm_type=kind, **settings
        )
    if exact:
        found.alphas_cumprod = torch.cumprod(1 - torch.from_numpy(process.schedule.betas), dim=0)
        found.one = found.final_alpha_cumprod = torch.ones(()).double()
    if isinstance(found, DDIMScheduler):
        found.set_timesteps(len(visited))
    else:
        found.set_timesteps(timesteps=visited)
    assert found.timesteps.tolist() == visited
    if exact and isinstance(found, DPMSolverMultistepScheduler):
        abar = found.alphas_cumprod[visited]
        found.sigmas = torch.cat([((1 - abar) / abar).sqrt(), torch.zeros(1).double()])
    return found


def largest_error(process: Process, way: Sampling, exact: bool) -> float:
    """Of what the network sees at any step, and of the sample."""
    predict, start = network(process), SampleNoise([1, 2, 3]).normal(*SHAPE)
    seen: list[Tensor] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.clone())
        return predict(x, t)

    seen.append(sample(process, watched, start, way, SampleNoise(SEEDS)))
    peer = scheduler(process, way, exact)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    found = {"generator": generators, "return_dict": False}
    if isinstance(peer, DDIMScheduler):
        found |= {"eta": way.eta, "use_clipped_model_output": True}
    x, largest = start, 0.0
    for ours, t in zip(seen, [*peer.timesteps, None], strict=True):
        largest = max(largest, ((ours - x).abs().max() / x.abs().max().clamp(min=1)).item())
        if t is not None:
            output = predict(x, t.expand(len(x)))
            if isinstance(peer, DPMSolverMultistepScheduler):
                output = process.split(output)[0]
            x = peer.step(output, t, x, **found)[0]
    return largest


@pytest.mark.parametrize(("sampler", "variance", "eta"), KINDS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", RANGES)
def test_diffusers(name, prediction, sampler, variance, eta):
    process = Process(Schedule(name), prediction, variance)
    for clip in (0.0, 1.0)[: 1 if sampler == "dpm++" else 2]:  # diffusers' solver cannot clip
        assert largest_error(process, Sampling(sampler, "ddim20", eta, clip), exact=False) < 1e-5
    for steps in (17, "12,8,7"):
        if sampler == "ddpm" or eta != 0.5:  # no scheduler has a share of noise at any timesteps
            assert largest_error(process, Sampling(sampler, steps, eta, 0.0), exact=True) < 1e-5


@pytest.mark.parametrize("steps", [17, "fast27"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("name", RANGES)
def test_unclipped_epsilon_is_no_worse_than_in_diffusers(name, sampler, steps):
    """fp32's rounding of epsilon is magnified by the little signal that is left, in whatever code."""
    process, way = Process(Schedule(name)), Sampling(sampler, steps, clip=0)
    predict, start = network(process), SampleNoise([1, 2, 3]).normal(*SHAPE)

    exact, before = start.double(), torch.zeros(())
    for step in plan(process, way):  # the same steps in fp64
        epsilon = predict(exact, torch.full((3,), step.t))
        clean = (exact - step.rest * epsilon) / step.signal
        exact, before = step.noisy * exact + step.clean * clean + step.before * before, clean
    peer, x = scheduler(process, way, exact=False), start
    for t in peer.timesteps:
        x = peer.step(predict(x, t.expand(3)), t, x, return_dict=False)[0]
    ours = sample(process, predict, start, way, SampleNoise(SEEDS))
    assert (ours - exact).abs().max() <= (x - exact).abs().max() + 1e-6


@pytest.mark.parametrize(("sampler", "variance", "eta"), KINDS)
def test_diffusers_at_every_timestep(sampler, variance, eta):
    process = Process(variance=variance)
    assert largest_error(process, Sampling(sampler, "ddim1000", eta, 0.0), exact=True) < 1e-5


@pytest.mark.parametrize("number", [1, 2, 10, 20, 27, 999])
def test_dpm_visits_the_timesteps_of_diffusers(number):
    peer = DPMSolverMultistepScheduler(1000, beta_schedule="squaredcos_cap_v2")
    peer.set_timesteps(number)
    found = [step.t for step in plan(Process(), Sampling("dpm++", number))]
    assert found == peer.timesteps.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("sampler", "variance", "eta"), KINDS)
def test_any_number_of_steps_ends_finite(sampler, variance, eta, prediction):
    """Of the cosine 5e-5 of the signal are left at first: an x_0 unclipped of epsilon is huge."""
    process = Process(Schedule(), prediction, variance)
    start = SampleNoise(SEEDS).normal(*SHAPE)
    for steps in (1, 2, 3, "ddim2", "fast27"):
        for clip in (0.0, 1.0):
            way = Sampling(sampler, steps, eta, clip)
            found = sample(process, network(process), start, way, SampleNoise(SEEDS))
            assert found.isfinite().all() and (not clip or found.abs().max() <= 1)
    t = torch.full((3,), 999)
    guess = process.split(network(process)(start, t))[0]
    one = sample(process, network(process), start, Sampling(sampler, 1, eta, 0), SampleNoise(SEEDS))
    torch.testing.assert_close(one, process.clean(guess, start, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("variance", "ends"), [("fixed_small", 0), ("fixed_large", 1)])
def test_learned_variance_lies_between_the_respaced_ones(variance, ends):
    learned = plan(Process(variance="learned_range"), Sampling("ddpm", 27))
    fixed = plan(Process(variance=variance), Sampling("ddpm", 27))
    abar = Schedule().alphas_cumprod
    for i, (one, other) in enumerate(zip(learned[:-1], fixed[:-1], strict=True)):
        assert math.sqrt(math.exp(one.learned[ends])) == pytest.approx(other.noise, rel=1e-12)
        beta = 1 - abar[one.t] / abar[learned[i + 1].t]
        assert math.exp(one.learned[1]) == pytest.approx(beta, rel=1e-12)
    assert learned[-1].learned is None and (learned[-1].noisy, learned[-1].clean) == (0, 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("sampler", "variance", "eta"), KINDS)
def test_rows_are_independent(sampler, variance, eta, prediction):
    process = Process(Schedule(), prediction, variance)
    way, predict = Sampling(sampler, 12, eta), network(process)

    def drawn(seeds: list[int]) -> Tensor:
        noise = SampleNoise(seeds)
        return sample(process, predict, noise.normal(*SHAPE), way, noise)

    together = drawn([3, 9, 4])
    for i, seed in enumerate([3, 9, 4]):
        assert torch.equal(together[i : i + 1], drawn([seed]))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(("sampler", "variance", "eta"), KINDS)
def test_what_is_known_stays(sampler, variance, eta):
    process = Process(variance=variance)
    known = torch.linspace(-0.9, 0.9, 12).view(1, 3, 4).expand(3, 1, 3, 4)

    def refine(clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (3,) and x.shape == clean.shape
        return torch.cat([known, clean[:, 1:]], dim=1)

    start = SampleNoise(SEEDS).normal(*SHAPE)
    way = Sampling(sampler, 10, eta)
    parts = process, network(process), start, way
    found = sample(
        *parts, SampleNoise(SEEDS), refine=refine, gradient=lambda x, t, clean: torch.ones_like(x)
    )
    assert torch.equal(found[:, :1], known)
    free = sample(*parts, SampleNoise(SEEDS))
    assert not torch.equal(found[:, 1:], free[:, 1:])


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_is_guided_by_variance_times_gradient(variance):
    process = Process(variance=variance)
    start, push = SampleNoise(SEEDS).normal(*SHAPE), 0.7
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    for guided in (False, True):

        def watched(x: Tensor, t: Tensor, found: list[Tensor] = seen[guided]) -> Tensor:
            found.append(x.clone())
            return network(process)(x, t)

        gradient = (lambda x, t, clean: torch.full_like(x, push)) if guided else None
        way = Sampling("ddpm", 9)
        sample(process, watched, start, way, SampleNoise(SEEDS), gradient=gradient)
    step = plan(process, Sampling("ddpm", 9))[0]
    _, said = process.split(network(process)(start, torch.full((3,), 999)))
    spread = step.noise**2
    if said is not None:
        low, high = step.learned
        spread = (low + (said + 1) / 2 * (high - low)).exp()
    moved = seen[True][1] - seen[False][1]
    torch.testing.assert_close(moved, torch.ones_like(moved) * spread * push, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_others_are_guided_by_a_shift_of_epsilon(sampler, prediction):
    process = Process(Schedule("linear"), prediction)
    start, way = SampleNoise(SEEDS).normal(*SHAPE), Sampling(sampler, 10, clip=0)
    predict = network(process)

    def push(x: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        return torch.sin(x)

    def shifted(x: Tensor, t: Tensor) -> Tensor:
        signal, rest = process.levels(t, 4)
        clean = process.clean(predict(x, t), x, t)
        epsilon = (x - signal * clean) / rest - rest * push(x, t, clean)
        return process.target((x - rest * epsilon) / signal, epsilon, t)

    guided = sample(process, predict, start, way, SampleNoise(SEEDS), gradient=push)
    other = sample(process, shifted, start, way, SampleNoise(SEEDS))
    torch.testing.assert_close(guided, other, rtol=1e-4, atol=1e-4)


def test_a_gradient_may_differentiate_and_no_graph_is_kept():
    process, weight = Process(), torch.ones((), requires_grad=True)
    shown: list[Tensor] = []

    def gradient(x: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        shown.append(clean)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(-(weight * leaf - 1).square().sum(), leaf)[0]

    start = SampleNoise(SEEDS).normal(*SHAPE)
    before = start.clone()
    way = Sampling("ddim", 5)
    found = sample(
        process,
        lambda x, t: weight * network(process)(x, t),
        start,
        way,
        SampleNoise(SEEDS),
        gradient=gradient,
    )
    assert not found.requires_grad and torch.equal(start, before) and len(shown) == 5
    assert all(clean.abs().max() <= 1 for clean in shown)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sampler": "euler"}, "SAMPLER=euler"),
        ({"eta": 1.5}, "ETA=1.5"),
        ({"eta": -0.1}, "ETA=-0.1"),
        ({"sampler": "ddpm", "eta": 0.5}, "ETA=0.5 is DDIM's"),
        ({"clip": -1.0}, "CLIP=-1.0"),
        ({"clip": math.nan}, "CLIP=nan"),
    ],
)
def test_a_sampling_that_is_none(settings, told):
    with pytest.raises(UserError, match=told) as caught:
        Sampling(**settings)
    assert caught.value.hint and "\n" not in str(caught.value)


def test_networks_that_do_not_fit():
    start, way = torch.zeros(1, *SHAPE), Sampling("ddim", 5)
    with pytest.raises(UserError, match="STEPS=50 fits no schedule of 10"):
        sample(Process(Schedule(steps=10)), lambda x, t: x, start, Sampling(), SampleNoise([0]))
    with pytest.raises(ValueError, match=r"\(1, 1, 3, 4\) for \(1, 2, 3, 4\)"):
        sample(Process(variance="learned_range"), lambda x, t: x, start, way, SampleNoise([0]))
    with pytest.raises(ValueError, match="0 evaluations"):
        invert(Process(), lambda x, t: x, start, way, evaluations=0)
