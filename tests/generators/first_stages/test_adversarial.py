"""The two players' losses: closed forms, whom a gradient reaches, and how the two are weighed."""

import math

import pytest
import torch
from torch import nn

from generators.first_stages.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from generators.first_stages.patchgan import PatchGAN


class Constant(nn.Module):
    """Logits that are the images' first values."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.gain * images[:, :1, :1, :1]


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()


def test_hinge_losses_are_those_of_the_paper():
    real, fake = images(2.0, 0.5), images(-3.0, 0.25)
    found = discriminator_loss(Constant(), real, fake, "hinge")
    assert float(found.loss.detach()) == pytest.approx(((0 + 0.5) / 2 + (0 + 1.25) / 2) / 2)
    assert (float(found.real), float(found.fake)) == (1.25, -1.375)
    assert float(generator_loss(Constant(), fake, "hinge").detach()) == pytest.approx(
        (3 - 0.25) / 2
    )


def test_non_saturating_losses_are_those_of_the_paper():
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    real, fake = images(2.0), images(-3.0)
    found = discriminator_loss(Constant(), real, fake, "non_saturating")
    expected = -(math.log(sigmoid(2)) + math.log(1 - sigmoid(-3))) / 2
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-5)
    fooled = generator_loss(Constant(), fake, "non_saturating")
    assert float(fooled) == pytest.approx(-math.log(sigmoid(-3)), rel=1e-5)


@pytest.mark.parametrize("form", ["hinge", "non_saturating"])
def test_a_gradient_reaches_its_player_alone(form):
    torch.manual_seed(0)
    discriminator, generator = PatchGAN(8, 1), nn.Conv2d(3, 3, 1)
    real, noise = torch.randn(2, 2, 3, 16, 16)
    fake = generator(noise)

    generator_loss(discriminator, fake, form).backward(retain_graph=True)
    assert all(weight.grad is None for weight in discriminator.parameters())
    of_generator = [weight.grad.clone() for weight in generator.parameters()]
    assert all(float(slope.abs().sum()) > 0 for slope in of_generator)

    discriminator_loss(discriminator, real, fake, form).loss.backward()
    assert all(weight.grad is not None for weight in discriminator.parameters())
    for weight, before in zip(generator.parameters(), of_generator, strict=True):
        assert torch.equal(weight.grad, before)


def test_held_weights_give_the_gradient_that_others_would():
    """Of the images; only the discriminator's own is left out."""
    torch.manual_seed(0)
    discriminator = PatchGAN(8, 1)
    fake, other = (torch.ones(2, 3, 16, 16, requires_grad=True) for _ in range(2))
    generator_loss(discriminator, fake, "hinge").backward()
    (-discriminator(other).mean()).backward()
    torch.testing.assert_close(fake.grad, other.grad)


def test_adaptive_weight_is_the_ratio_of_gradients():
    """Of losses whose gradients at the last layer's weight are known."""
    last = torch.tensor([[3.0, 4.0]], requires_grad=True)
    hidden = torch.tensor([2.0, -1.0])
    made = last @ hidden  # 2
    reconstruction = 5 * made.sum()  # slope 5 * hidden
    adversarial = (made**2).sum()  # slope 2 * 2 * hidden
    length = math.sqrt(5)
    expected = 5 * length / (4 * length + 1e-4)
    found = adaptive_weight(reconstruction, adversarial, last)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert not found.requires_grad
    assert last.grad is None  # nothing is left for the optimizer
    (reconstruction + adversarial).backward()  # and the graph is still there
    torch.testing.assert_close(last.grad, (9 * hidden)[None])


def test_adaptive_weight_ends_at_its_bound():
    last = torch.ones(1, requires_grad=True)
    assert float(adaptive_weight(1e9 * last.sum(), 0 * last.sum(), last)) == pytest.approx(1e4)
    assert float(adaptive_weight(0 * last.sum(), last.sum(), last)) == 0


def test_gradient_penalty_of_a_known_slope():
    """Logits w . x: the slope is w everywhere, the penalty |w|^2, its gradient 2 w."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

        def forward(self, images):
            return (images * self.weight[:, None, None]).sum(dim=1, keepdim=True)

    network = Linear()
    found = gradient_penalty(network, torch.randn(4, 3, 1, 1))
    assert float(found.detach()) == pytest.approx(5.25)
    found.backward()
    torch.testing.assert_close(network.weight.grad, 2 * network.weight.detach())


@pytest.mark.parametrize("form", ["hinge", "non_saturating"])
def test_losses_are_fp32_under_autocast(form):
    """The logits are of half precision there, and 1 + 1/1000 is no bf16 number."""
    torch.manual_seed(0)
    discriminator, (real, fake) = PatchGAN(8, 1), torch.randn(2, 2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(fake)
        verdict = discriminator_loss(discriminator, real, fake, form)
        fooled = generator_loss(discriminator, fake, form)
        penalty = gradient_penalty(discriminator, real)
    assert logits.dtype == torch.bfloat16
    assert {value.dtype for value in (*verdict, fooled, penalty)} == {torch.float32}
    if form == "hinge":
        torch.testing.assert_close(fooled, -logits.float().mean(), rtol=1e-6, atol=0)
