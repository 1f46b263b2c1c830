"""Two players in one step: what a generator and a discriminator each lose, and how the two are weighed.

pix2pix, VQGAN and LDM let them move in turn: the discriminator's step comes after the generator's.
Here both move at once, from the weights that both had before: the sum of their losses, none of which
has a gradient for the other player, takes one backward pass and one optimizer step.
"""

# Shapes: B batch, H W pixels, h w patches.

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

_LEAST_SLOPE = 1e-4
_MOST_WEIGHT = 1e4

Form = Literal["hinge", "non_saturating"]


class Verdict(NamedTuple):
    """What the discriminator learns from a batch; scalars."""

    loss: Tensor  # without gradient for the generator
    real: Tensor  # mean logits, without gradient
    fake: Tensor


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor, form: Form) -> Verdict:
    """Half of the loss on real plus that on generated images (B, 3, H, W), a mean over patches.

    hinge: 1705.02894 and 1802.05957, equation 16. non_saturating: 1406.2661, equation 1.
    Logits that run ever further apart, or meet, say that one player has won.
    """
    on_real, on_fake = discriminator(real).float(), discriminator(fake.detach()).float()
    of_real, of_fake, _ = _FORMS[form]
    loss = (of_real(on_real).mean() + of_fake(on_fake).mean()) / 2
    return Verdict(loss, on_real.detach().mean(), on_fake.detach().mean())


def generator_loss(discriminator: nn.Module, fake: Tensor, form: Form) -> Tensor:
    """How little the discriminator is fooled: a scalar without gradient for its weights.

    hinge: 1802.05957, equation 17. non_saturating: 1406.2661, section 3.
    """
    return _FORMS[form][2](held(discriminator, fake).float()).mean()


def held(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Its logits, whose gradient reaches the images and not its weights."""
    weights = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    return functional_call(discriminator, weights, (images,))


_FORMS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "hinge": (lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), torch.neg),
    "non_saturating": (lambda x: F.softplus(-x), F.softplus, lambda x: F.softplus(-x)),
}


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How much the generator's adversarial loss counts beside the reconstruction's: a scalar.

    |d reconstruction / d last| / (|d adversarial / d last| + 1e-4), at most 1e4 (VQGAN, 2012.09841,
    equation 7; last: the weight of the decoder's last layer). Of several processes, the gradients are
    averaged before, so that the weight is that of their whole batch; of several micro-batches each
    has its own.
    """
    of_reconstruction, of_adversarial = (
        average(torch.autograd.grad(loss, last, retain_graph=True)[0].float()).norm()
        for loss in (reconstruction, adversarial)
    )
    weight = of_reconstruction / (of_adversarial + _LEAST_SLOPE)
    return weight.clamp(0, _MOST_WEIGHT).detach()


def average(value: Tensor) -> Tensor:
    """The mean over the processes of a run; it has no gradient."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gradient_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1 (1801.04406, equation 9) without its weight: the logits' squared slope at real images.

    A scalar, whose gradient is the discriminator's; of an image's patches the mean logit counts.
    """
    real = real.detach().requires_grad_()
    logits = discriminator(real).float().flatten(1).mean(dim=1)
    (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return slope.flatten(1).square().sum(dim=1).mean()
