"""The noising process against Bayes' rule, diffusers and torch.distributions, and the hybrid loss."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

from generators.diffusion.process import Process
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from pipeline.errors import UserError

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
TIMES = torch.tensor([0, 1, 500, 998, 999])


def drawn(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=draws) * 2 - 1
    return clean, torch.randn(shape, generator=draws)


def peer(name: str, **settings) -> DDPMScheduler:
    start, end = {"scaled_linear": (0.00085, 0.012)}.get(name, (1e-4, 0.02))
    return DDPMScheduler(1000, beta_start=start, beta_end=end, beta_schedule=name, **settings)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_and_velocity_are_diffusers(name):
    clean, noise = drawn(5, 3, 4, 4)
    process, scheduler = Process(Schedule(name), "v_prediction"), peer(name)
    noisy, velocity = process.noised(clean, noise, TIMES), process.target(clean, noise, TIMES)
    assert (noisy - scheduler.add_noise(clean, noise, TIMES)).abs().max() < 1e-5
    assert (velocity - scheduler.get_velocity(clean, noise, TIMES)).abs().max() < 1e-5


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_target_means_the_clean_sample(name, prediction):
    clean, noise = drawn(5, 2, 3)
    process = Process(Schedule(name), prediction)
    noisy = process.noised(clean, noise, TIMES)
    found = process.clean(process.target(clean, noise, TIMES), noisy, TIMES)
    # fp32's rounding of x_t, 1e-7, is as large for x_0 as the signal left in epsilon is small.
    signal, _ = process.levels(TIMES, 3)
    bound = 1e-6 / signal if prediction == "epsilon" else 1e-5
    assert ((found - clean).abs() <= bound).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_posterior_is_that_of_bayes(name):
    clean, noise = (x.double() for x in drawn(3, 7))
    t = torch.tensor([1, 400, 999])
    process = Process(Schedule(name))
    noisy = process.noised(clean, noise, t)
    mean, log_variance = process.posterior(clean, noisy, t)
    for i, at in enumerate(t.tolist()):
        beta, before = process.schedule.betas[at], process.schedule.alphas_cumprod[at - 1]
        # x_s ~ N(sqrt(abar_s) x_0, 1 - abar_s), and x_t ~ N(sqrt(1 - beta) x_s, beta) is seen.
        precision = 1 / (1 - before) + (1 - beta) / beta
        weighed = (
            math.sqrt(before) * clean[i] / (1 - before) + math.sqrt(1 - beta) * noisy[i] / beta
        )
        torch.testing.assert_close(mean[i], weighed / precision, rtol=1e-5, atol=1e-6)
        assert log_variance[i].item() == pytest.approx(-math.log(precision), abs=1e-5)
    # Of the first step nothing is left to be said: it is x_0.
    first, _ = process.posterior(clean[:1], noisy[:1], torch.tensor([0]))
    torch.testing.assert_close(first, clean[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_learned_variance_is_diffusers(name):
    said = torch.linspace(-1, 1, 5).view(1, 5)
    process = Process(Schedule(name), variance="learned_range")
    scheduler = peer(name, variance_type="learned_range")
    small, large = Process(Schedule(name)), Process(Schedule(name), variance="fixed_large")
    for at in (1, 2, 300, 998):
        t = torch.tensor([at])
        ours = process.log_variance(said, t, 2)
        # 1 - abar of the least noisy steps has three digits in diffusers' fp32.
        assert (ours - scheduler._get_variance(at, said)).abs().max() < (3e-3 if at < 3 else 1e-4)
        assert ours[0, 0].item() == pytest.approx(small.log_variance(None, t, 2).item(), abs=1e-6)
        assert ours[0, 4].item() == pytest.approx(large.log_variance(None, t, 2).item(), abs=1e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_is_a_divergence(name, variance):
    process = Process(Schedule(name), variance=variance)
    t = torch.tensor([1, 2, 50, 500, 900, 990])
    clean, noise = drawn(6, 3, 4, 4)
    noisy = process.noised(clean, noise, t)
    draws = torch.Generator().manual_seed(1)
    guessed = clean + 0.3 * torch.randn(clean.shape, generator=draws)
    said = torch.randn(clean.shape, generator=draws) if variance == "learned_range" else None
    bound = process.bound(guessed, said, clean, noisy, t)
    for i, at in enumerate(t.tolist()):
        abar, before = (process.schedule.alphas_cumprod[k] for k in (at, at - 1))
        beta = process.schedule.betas[at]
        small = beta * (1 - before) / (1 - abar)
        weight = beta * math.sqrt(before) / (1 - abar)
        rest = math.sqrt(1 - beta) * (1 - before) / (1 - abar) * noisy[i].double()
        wanted = Normal(weight * clean[i].double() + rest, math.sqrt(small))
        if said is None:
            spread = torch.tensor(math.sqrt(beta if variance == "fixed_large" else small))
        else:
            share = (said[i].double() + 1) / 2
            spread = (share * math.log(beta) + (1 - share) * math.log(small)).mul(0.5).exp()
        model = Normal(weight * guessed[i].double() + rest, spread.double())
        divergence = kl_divergence(wanted, model).mean().item()
        assert bound[i].item() == pytest.approx(divergence, rel=1e-3, abs=1e-6)
    assert (bound >= 0).all()
    perfect = process.bound(
        clean, None if said is None else -torch.ones_like(said), clean, noisy, t
    )
    if variance == "fixed_large":  # too wide, where it is right
        assert (perfect >= 0).all() and (perfect > 0).any()
    else:
        assert perfect.abs().max() < 1e-6


def test_the_last_term_is_a_likelihood_of_pixels():
    process = Process(Schedule("linear"), variance="learned_range")
    values = (torch.arange(256) / 127.5 - 1).view(256, 1)
    t = torch.zeros(256, dtype=torch.long)
    # noisy: at t = 0 the mean is the guess itself. From mid range, at both ends, far outside.
    for guess, said in ((0.1, 0.0), (-1.0, -1.0), (0.999, 1.0), (3.0, 0.5), (0.0, 40.0)):
        guessed, width = torch.full((256, 1), guess), torch.full((256, 1), said)
        nll = process.bound(guessed, width, values, torch.zeros(256, 1), t)
        assert (nll >= 0).all() and nll.isfinite().all()
        assert (-nll.double()).exp().sum().item() == pytest.approx(1, abs=1e-4)
        spread = process.log_variance(width[:1], t[:1], 2).mul(0.5).exp().double().item()
        model, edges = Normal(torch.tensor(guess, dtype=torch.float64), spread), 1 / 255
        middle = values[1:-1, 0].double()
        wanted = model.cdf(middle + edges) - model.cdf(middle - edges)
        seen = wanted > 1e-9
        ours = (-nll[1:-1].double()).exp()
        torch.testing.assert_close(ours[seen], wanted[seen], rtol=2e-3, atol=0)


def test_an_improbable_pixel_still_teaches():
    process = Process(Schedule(), variance="learned_range")
    said = torch.zeros(1, 4, requires_grad=True)
    clean = torch.tensor([[-1.0, -0.5, 0.5, 1.0]])
    t = torch.tensor([0])
    bound = process.bound(-clean, said, clean, clean, t)
    bound.sum().backward()
    assert bound.isfinite().all() and (said.grad < 0).all()  # it wants a larger variance


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_hybrid_loss(prediction):
    process = Process(Schedule(), prediction, "learned_range")
    clean, noise = drawn(4, 3, 4, 4)
    t = torch.tensor([0, 3, 400, 999])
    output = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = process.loss(output, clean, noise, t)
    assert loss.shape == (4,)
    grown = torch.autograd.grad(loss.sum(), output)[0]
    predicted, said = output[:, :3], output[:, 3:]
    error = (predicted - process.target(clean, noise, t)).square().mean(dim=(1, 2, 3))
    noisy = process.noised(clean, noise, t)
    guessed = process.clean(predicted, noisy, t).detach()
    bound = process.bound(guessed, said, clean, noisy, t)
    torch.testing.assert_close(loss, error + 1000 * bound / 1000 / math.log(2))
    # The prediction is trained by its error alone, the variance by the bound alone.
    by_error = torch.autograd.grad(error.sum(), output, retain_graph=True)[0]
    by_bound = torch.autograd.grad(bound.sum() / math.log(2), output)[0]
    torch.testing.assert_close(grown[:, :3], by_error[:, :3])
    torch.testing.assert_close(grown[:, 3:], by_bound[:, 3:])
    assert by_error[:, 3:].abs().max() == 0 and by_bound[:, :3].abs().max() == 0
    assert grown[:, 3:].abs().amax(dim=(1, 2, 3)).min() > 0


def test_the_best_variance_is_learned():
    """Minimising the loss over the variance finds the error's own, within the range."""
    process = Process(Schedule(), "sample", "learned_range")
    t = torch.full((1,), 20)
    draws = torch.Generator().manual_seed(0)
    clean = torch.zeros(1, 1, 40_000)
    small, large = process.log_variance(torch.tensor([[[-1.0, 1.0]]]), t, 3).flatten().tolist()
    weight = (process.posterior(torch.ones_like(clean), torch.zeros_like(clean), t)[0]).mean()
    extra = math.exp(small) * 0.01
    guessed = clean + math.sqrt(extra) / weight * torch.randn(clean.shape, generator=draws)
    said = torch.zeros(1, 1, 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([said], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        output = torch.cat([guessed, said.expand_as(clean)], dim=1)
        loss = process.loss(output, clean, torch.zeros_like(clean), t).sum() * 1e4
        loss.backward()
        return loss

    optimizer.step(closure)
    found = small + (said.item() + 1) / 2 * (large - small)
    assert found == pytest.approx(math.log(math.exp(small) + extra), abs=1e-3)


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_a_samples_loss_is_its_own(variance):
    process = Process(variance=variance)
    clean, noise = drawn(6, 2, 5)
    channels = 4 if variance == "learned_range" else 2
    output = torch.randn(6, channels, 5, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 1, 10, 100, 500, 999])
    whole = process.loss(output, clean, noise, t)
    for i in range(6):
        alone = process.loss(output[i : i + 1], clean[i : i + 1], noise[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-6, atol=0)
    assert whole.isfinite().all() and process.loss(output.bfloat16(), clean, noise, t).dtype == (
        torch.float32
    )


def test_timesteps_of_training():
    process = Process(Schedule(steps=10))
    t = process.timesteps(SampleNoise(range(20_000)))
    assert t.dtype == torch.long and t.shape == (20_000,)
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10 and (counts - 2000).abs().max() < 5 * math.sqrt(2000)
    assert torch.equal(t[3:5], process.timesteps(SampleNoise([3, 4])))


def test_tables_made_while_sampling_serve_training():
    process = Process(Schedule("linear", 123), variance="learned_range")
    clean, noise = drawn(2, 1, 3)
    t = torch.tensor([0, 50])
    with torch.inference_mode():
        process.loss(torch.zeros(2, 2, 3), clean, noise, t)
    output = torch.zeros(2, 2, 3, requires_grad=True)
    clean = clean.requires_grad_()
    process.loss(output, clean, noise, t).sum().backward()
    assert output.grad.isfinite().all()


def test_a_process_that_is_none():
    with pytest.raises(UserError, match=r"no prediction is 'noise'.*epsilon, sample"):
        Process(prediction="noise")
    with pytest.raises(UserError, match="no variance is 'learned'"):
        Process(variance="learned")
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) for \(2, 6, 4\)"):
        Process(variance="learned_range").loss(
            torch.zeros(2, 6, 4), *drawn(2, 6, 4), torch.tensor([1, 2])
        )
    with pytest.raises(ValueError, match="of the variance"):
        Process(variance="learned_range").log_variance(None, torch.tensor([1]), 2)
