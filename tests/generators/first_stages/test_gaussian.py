"""The Gaussian bottleneck against torch's distributions, diffusers' AutoencoderKL, and a solved model."""

import math

import pytest
import torch
from diffusers import AutoencoderKL
from torch.distributions import Normal, kl_divergence

from generators.first_stages.backbone import FirstStageConfig, diffusers_config
from generators.first_stages.gaussian import DiagonalGaussian, GaussianFirstStage, gaussian_nll
from generators.first_stages.vae import LEVEL, bits_per_dim
from generators.noise import SampleNoise
from pipeline.errors import UserError

SMALL = FirstStageConfig(image_size=16, channels=(8, 16), norm_groups=4, attention_levels=1)


def small(seed: int = 0) -> GaussianFirstStage:
    torch.manual_seed(seed)
    return GaussianFirstStage(SMALL).eval()


def test_divergence_and_likelihood_are_those_of_torch():
    torch.manual_seed(0)
    mean, logvar = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3)
    posterior = DiagonalGaussian.of(torch.cat([mean, logvar], dim=1))
    peer = Normal(mean, (logvar / 2).exp())
    expected = kl_divergence(peer, Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.kl(), expected)
    pixels = torch.randn(5, 4, 3, 3)
    expected = -peer.log_prob(pixels).sum(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_nll(pixels, mean, logvar), expected)


def test_divergence_is_of_each_image_alone():
    moments = torch.randn(3, 8, 2, 2)
    whole = DiagonalGaussian.of(moments).kl()
    twice = DiagonalGaussian.of(torch.cat([moments, moments])).kl()
    torch.testing.assert_close(twice, whole.repeat(2))


def test_extreme_variances_stay_finite():
    posterior = DiagonalGaussian.of(torch.tensor([[0.0, 1e4], [0.0, -1e4]]))
    assert torch.isfinite(posterior.kl()).all()


def test_the_bound_on_a_model_whose_likelihood_is_known():
    """z ~ N(0, 1), x = 2 z + 0.5 noise: p(x) and p(z | x) are normal."""
    x, slope, spread = torch.tensor([[1.3]]), 2.0, 0.5
    likelihood = Normal(0.0, math.sqrt(slope**2 + spread**2)).log_prob(x).item()
    precision = 1 + slope**2 / spread**2
    right = (x * slope / spread**2 / precision).item(), -math.log(precision)
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))

    def bound(mean: float, logvar: float) -> float:
        posterior = DiagonalGaussian(torch.tensor([[mean]]), torch.tensor([[logvar]]))
        made = slope * posterior.at(noise)
        nll = gaussian_nll(x, made, torch.tensor(2 * math.log(spread)))
        return (-nll.mean() - posterior.kl()).item()

    assert bound(*right) == pytest.approx(likelihood, abs=0.01)
    assert bound(right[0] + 0.2, right[1]) < likelihood - 0.1
    assert bound(right[0], right[1] + 1) < likelihood - 0.1


def test_the_narrowest_decoder_spreads_one_image_over_the_levels():
    """What the bound in bits per dimension rests on: densities at the levels add up to 1."""
    levels = torch.arange(-300, 300).double() * LEVEL
    for mean in (0.0, 0.31 * LEVEL):
        terms = (levels - mean).square() / LEVEL**2 + 2 * math.log(LEVEL) + math.log(2 * math.pi)
        assert (torch.exp(-terms / 2).sum() * LEVEL).item() == pytest.approx(1, abs=1e-7)


def test_bits_of_a_uniform_density():
    """1 / 2 everywhere in [-1, 1] is one of 255 distances of two levels."""
    dims = 7
    assert bits_per_dim(torch.tensor(dims * math.log(0.5)), dims) == pytest.approx(math.log2(255))


def test_state_dicts_fit_diffusers_and_give_the_same_latents_and_pixels():
    torch.manual_seed(1)
    peer = AutoencoderKL(**diffusers_config(SMALL)).eval()
    ours = small(2)
    ours.load_state_dict(peer.state_dict())
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = peer.encode(pixels).latent_dist
        found = ours.posterior(pixels)
        torch.testing.assert_close(found.mean, expected.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.logvar, expected.logvar, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.kl(), expected.kl())
        latents = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(
            ours.decode(latents), peer.decode(latents).sample, atol=1e-5, rtol=1e-5
        )
    peer.load_state_dict(small(3).state_dict())


def test_noise_belongs_to_the_sample():
    model, pixels = small(), torch.rand(3, 3, 16, 16)
    whole = model(pixels, SampleNoise([5, 6, 7]), 0)["reconstruction"]
    torch.manual_seed(99)
    alone = model(pixels[1:2], SampleNoise([6]), 3)["reconstruction"]
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-5)
    other = model(pixels[1:2], SampleNoise([8]), 0)["reconstruction"]
    assert (other - alone).abs().max() > 1e-3


def test_gradients_reach_the_encoder_through_the_sample():
    model = small().train()
    model(torch.rand(2, 3, 16, 16), SampleNoise([0, 1]), 0)[
        "reconstruction"
    ].square().sum().backward()
    assert model.quant_conv.weight.grad.abs().amin(dim=(1, 2, 3)).min() > 0  # means and variances
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0


def test_samples_are_those_of_their_noise():
    model = small()
    assert model.sample(2, SampleNoise([0, 1])).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="3 samples with the noise of 2"):
        model.sample(3, SampleNoise([0, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 15}, "15 is not divisible by 2"),
        ({"channels": (8, 18)}, "not divisible by norm_groups 4"),
        ({"channels": ()}, "not possible"),
        ({"attention_levels": 3}, "there are 2 resolutions"),
    ],
)
def test_impossible_sizes(change, message):
    sizes = {"image_size": 16, "channels": (8, 16), "norm_groups": 4} | change
    with pytest.raises(UserError, match=message):
        FirstStageConfig(**sizes)
