"""Latent diffusion against bare diffusers on the same weights: predictions, guidance, samples."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from generators.diffusion.samplers import Sampling
from generators.latent.config import Config
from generators.latent.model import LatentDiffusion, Text
from generators.noise import SampleNoise
from tests.generators.latent.test_denoisers import CONFIGS, DIT, UNET, bare, drawn, filled
from tests.generators.latent.test_denoisers import replace as changed

FLOW = {"schedule": "flow", "prediction": "flow", "sampler": "ddim", "steps": "10"}


def pair(config: Config) -> tuple[LatentDiffusion, nn.Module]:
    """Ours, and diffusers' class with the same weights."""
    model, network = LatentDiffusion(config), filled(bare(config))
    model.denoiser.load_state_dict(network.state_dict())
    return model.eval().requires_grad_(False), network


def told(network: nn.Module, noisy: Tensor, time: Tensor, text: Text) -> Tensor:
    return network(
        noisy,
        encoder_hidden_states=text.states,
        timestep=time,
        encoder_attention_mask=text.mask,
    ).sample


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [(4, 4), (6, 2), (2, 8)])
def test_predictions_are_diffusers(config, size):
    model, network = pair(config)
    noisy, t, states, mask = drawn(*size)
    text = Text(states, mask)
    assert torch.equal(model(noisy, t, text), told(network, noisy, t, text))
    assert {f"denoiser.{name}" for name in network.state_dict()} == set(model.state_dict())


@pytest.mark.parametrize("config", [UNET, DIT])
def test_flow_tells_a_thousand_times_sigma(config):
    config = changed(config, **FLOW, shift=3.0)
    model, network = pair(config)
    noisy, t, states, mask = drawn()
    text = Text(states, mask)
    sigma = 3 * (t + 1) / 1000 / (1 + 2 * (t + 1) / 1000)
    found = model(noisy, t, text)
    torch.testing.assert_close(
        found, told(network, noisy, 1000 * sigma, text), rtol=1e-4, atol=1e-4
    )
    assert (found - told(network, noisy, t, text)).abs().max() > 1e-2


@pytest.mark.parametrize("config", [UNET, DIT])
def test_guidance(config):
    model, network = pair(config)
    noisy, t, states, mask = drawn()
    text, empty = Text(states, mask), Text(states[:1] * 0.1, torch.arange(16)[None] < 2)
    full = told(network, noisy, t, text)
    null = told(network, noisy, t, empty.repeated(3))
    for guidance in (0.0, 0.5, 3.0):
        found = model.guided(text, empty, guidance)(noisy, t)
        wanted = null + guidance * (full - null)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # Guidance 1 is the conditional model itself, to the bit, and asks for no empty caption.
    assert torch.equal(model.guided(text, empty, 1.0)(noisy, t), full)
    assert torch.equal(model.guided(text)(noisy, t), full)
    assert (full - null).abs().max() > 1e-2
    with pytest.raises(ValueError, match='caption ""'):
        model.guided(text, None, 2.0)


def loop(
    scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler,
    predict: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("size", [None, (2, 6)])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("config", [UNET, DIT])
def test_samples_are_those_of_a_plain_loop(config, flow, size):
    """diffusers' network and scheduler, with guidance by two passes."""
    if flow:
        config, scheduler = changed(config, **FLOW), FlowMatchEulerDiscreteScheduler(1000)
    else:
        config = changed(config, prediction="v_prediction", sampler="ddim", steps="ddim10")
        scheduler = DDIMScheduler(
            1000,
            0.00085,
            0.012,
            "scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
        )
    model, network = pair(config)
    _, _, states, mask = drawn()
    text, empty = Text(states, mask), Text(states[:1] * 0.1, torch.arange(16)[None] < 2)
    found = model.sample(text, SampleNoise([7, 8, 9]), empty=empty, guidance=2.0, size=size)
    scheduler.set_timesteps(10)
    start = SampleNoise([7, 8, 9]).normal(4, *(size or (4, 4)))

    def predict(x: Tensor, time: Tensor) -> Tensor:
        null = told(network, x, time, empty.repeated(3))
        return null + 2.0 * (told(network, x, time, text) - null)

    wanted = loop(scheduler, predict, start)
    assert found.shape == start.shape
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("config", [UNET, DIT])
def test_a_row_does_not_depend_on_its_batch(config):
    model, _ = pair(config)
    _, _, states, mask = drawn()
    empty, way = Text(states[:1], mask[:1]), Sampling("dpm++", 4, clip=0)

    def sampled(rows: slice) -> Tensor:
        seeds = [5, 6, 7][rows]
        text = Text(states[rows], mask[rows])
        return model.sample(text, SampleNoise(seeds), empty=empty, guidance=3.0, sampling=way)

    torch.testing.assert_close(sampled(slice(3))[1:2], sampled(slice(1, 2)), rtol=1e-3, atol=1e-4)


def test_captions_of_a_batch():
    _, _, states, mask = drawn()
    text, empty = Text(states, mask), Text(torch.zeros(1, 16, 24), torch.arange(16)[None] < 1)
    mixed = text.where(torch.tensor([True, False, True]), empty)
    assert torch.equal(mixed.states[[0, 2]], states[[0, 2]]) and torch.equal(
        mixed.mask[[0, 2]], mask[[0, 2]]
    )
    assert torch.equal(mixed.states[1:2], empty.states) and torch.equal(mixed.mask[1:2], empty.mask)
    both = empty.repeated(2).joined(text)
    assert both.states.shape == (5, 16, 24) and both.mask.tolist()[2:] == mask.tolist()


@pytest.mark.parametrize("config", [UNET, DIT])
@pytest.mark.parametrize("size", ["whole", "half"])
def test_bfloat16_is_near(config, size):
    """In autocast, as the loop trains; and converted, as one samples."""
    model, _ = pair(changed(config, **FLOW))
    noisy, t, states, mask = drawn()
    wanted = model(noisy, t, Text(states, mask))
    if size == "half":
        with torch.autocast("cpu", torch.bfloat16):
            found = model(noisy, t, Text(states, mask))
    else:
        model.bfloat16()
        found = model(noisy.bfloat16(), t, Text(states.bfloat16(), mask))
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize("config", [UNET, DIT])
def test_every_weight_is_trained(config):
    model = LatentDiffusion(config).train()
    filled(model).requires_grad_(True)
    noisy, t, states, mask = drawn()
    model(noisy, t, Text(states, mask)).square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert not still
