"""The decoder's network and its scalings, against diffusers' scheduler and network."""

from dataclasses import replace

import pytest
import torch
from diffusers import ConsistencyDecoderVAE
from diffusers.schedulers import ConsistencyDecoderScheduler
from torch import nn
from torch.nn import functional as F

from generators.consistency import consistency_decoder, latent_decoder
from generators.consistency.config import Config
from generators.consistency.network import CLEAN, DecoderNetwork
from generators.consistency.preconditioning import preconditioning
from pipeline.errors import UserError
from tests.generators.consistency.small_decoders import CONFIG, network

RELEASED = Config(image_size=256)
LATENTS = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))


# --- Times and scalings


def test_scalings_are_the_released_ones():
    """By their formulas, and as diffusers has them: in fp32, of which 1 - abar keeps 3 digits at first."""
    theirs = ConsistencyDecoderScheduler()
    signal, rest = RELEASED.process.levels(torch.arange(1024), 1)
    found = preconditioning(signal, rest, RELEASED.sigma_data)
    inverse = 1 / torch.from_numpy(RELEASED.process.schedule.alphas_cumprod)
    variance, s = inverse - 1 + 0.25, (inverse - 1).sqrt()
    exact = inverse.sqrt() * 0.25 / variance, s * 0.5 / variance.sqrt(), (inverse / variance).sqrt()
    peers = theirs.c_skip, theirs.c_out, theirs.c_in
    for ours, wanted, peer in zip(found, exact, peers, strict=True):
        torch.testing.assert_close(ours[:1009].double(), wanted[:1009], rtol=1e-5, atol=0)
        torch.testing.assert_close(ours[:1009], peer[:1009], rtol=1e-3, atol=0)


def test_two_steps_are_the_released_ones():
    theirs = ConsistencyDecoderScheduler()
    theirs.set_timesteps(2)
    assert RELEASED.visited(2) == theirs.timesteps.tolist() == [1008, 512]
    assert RELEASED.visited(1) == [1008]
    assert RELEASED.visited(4) == [1008, 768, 512, 256]
    assert RELEASED.times == tuple(range(0, 1024, 16))
    for steps in range(1, 65):
        visited = RELEASED.visited(steps)
        assert len(visited) == steps and visited[0] == 1008 and min(visited) > 0
        assert visited == sorted(visited, reverse=True) and len(set(visited)) >= steps - 1
    signal, rest = RELEASED.process.levels(torch.tensor([1008, 512]), 1)
    # As measured of the released decoder: sigma 43.8 and 1.016.
    torch.testing.assert_close(rest / signal, torch.tensor([43.8, 1.016]), rtol=1e-3, atol=0)


def test_times_of_fewer_scales_have_the_same_ends():
    for scales in (2, 8, 17):
        times = replace(RELEASED, scales=scales).times
        assert times[0] == 0 and times[-1] == 1008 and len(set(times)) == scales
        assert replace(RELEASED, scales=scales).visited(2)[0] == 1008


@pytest.mark.parametrize("steps", [0, 9])
def test_steps_that_cannot_be(steps: int):
    with pytest.raises(UserError, match="8 scales"):
        CONFIG.visited(steps)


def test_input_and_target_of_the_network_have_unit_variance():
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(40_000, generator=generator)
    noise = torch.randn(40_000, generator=generator)
    for t in (0, 300, 700, 1008):
        signal, rest = RELEASED.process.levels(torch.tensor([t]), 1)
        noisy = signal * clean + rest * noise
        of = preconditioning(signal, rest, 0.5)
        assert float((of.into * noisy).std()) == pytest.approx(1, rel=0.02)
        assert float(((clean - of.skip * noisy) / of.out).std()) == pytest.approx(1, rel=0.02)


def test_without_noise_an_image_is_its_own_answer():
    """The boundary condition, whatever the weights are."""
    pixels = torch.randn(2, 3, 16, 16)
    model = network()
    clean = torch.full((2,), CLEAN)
    assert torch.equal(model(pixels, clean, LATENTS), pixels)
    assert not torch.allclose(model(pixels, clean + 1, LATENTS), pixels, atol=1e-6)


def test_fresh_weights_answer_what_the_noisy_image_is_worth():
    model = DecoderNetwork(CONFIG)
    noisy, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 900])
    signal, rest = model.process.levels(t, 4)
    skip = preconditioning(signal, rest, 0.5).skip
    torch.testing.assert_close(model(noisy, t, LATENTS), skip * noisy)


# --- The network


def test_the_released_size():
    """621 million parameters, in the layout of diffusers."""
    with torch.device("meta"):
        mine = latent_decoder.Model(latent_decoder.PRESETS["openai"]().config).decoder_unet
        theirs = ConsistencyDecoderVAE().decoder_unet
    assert sum(weight.numel() for weight in mine.parameters()) == pytest.approx(621e6, rel=2e-3)
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {name: weight.shape for name, weight in mine.state_dict().items()} == shapes
    assert consistency_decoder.PRESETS["openai"]().config.visited(2) == [1008, 512]


def test_latents_are_whitened_and_repeated():
    model = network()
    latents = torch.randn(50, 4, 4, 4) * 3 + torch.arange(4.0).view(1, 4, 1, 1)
    model.whiten(latents)
    shown = model.enlarged(latents)
    assert shown.shape == (50, 4, 16, 16)
    torch.testing.assert_close(shown.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(shown.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(F.avg_pool2d(shown, 4), shown[:, :, ::4, ::4])
    with pytest.raises(UserError, match="never vary"):
        model.whiten(torch.ones(2, 4, 4, 4))


def test_the_answer_depends_on_all_it_is_given():
    model, t = network(), torch.tensor([500, 500])
    noisy = torch.randn(2, 3, 16, 16)
    before = model(noisy, t, LATENTS)
    for changed in (
        model(noisy + 1, t, LATENTS),
        model(noisy, t - 200, LATENTS),
        model(noisy, t, -LATENTS),
    ):
        assert (changed - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="4 channels"):
        model(noisy, t, LATENTS[:, :3])


def test_every_weight_in_use_has_a_gradient():
    model = network().requires_grad_(True)
    model(torch.randn(2, 3, 16, 16), torch.tensor([5, 900]), LATENTS).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
    assert model.decoder_unet.conv_out.weight.grad[3:].abs().max() == 0  # once a variance


def test_other_sizes():
    model = network()
    wide = torch.randn(1, 4, 2, 6)
    assert model(torch.randn(1, 3, 8, 24), torch.tensor([3]), wide).shape == (1, 3, 8, 24)
    odd = network(factor=2, channels=(8, 8, 8))
    with pytest.raises(UserError, match="6 x 8 pixels"):
        odd.image_size(torch.zeros(1, 4, 4, 3))
    assert odd.image_size(torch.zeros(1, 4, 4, 6)) == (8, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": "fourier"}, "fourier"),
        ({"channels": ()}, "channels"),
        ({"layers": 0}, "layers"),
        ({"norm_groups": 3}, "norm_groups"),
        ({"factor": 0}, "factor"),
        ({"image_size": 18}, "image_size 18"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"scales": 1}, "scales 1"),
        ({"scales": 2000}, "scales 2000"),
    ],
)
def test_bad_configs(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **changes)


def test_nothing_attends():
    with torch.device("meta"):
        made = DecoderNetwork(RELEASED)
    kinds = {
        type(m) for m in made.decoder_unet.modules() if next(m.parameters(False), None) is not None
    }
    assert kinds == {nn.Conv2d, nn.GroupNorm, nn.Linear, nn.Embedding}
