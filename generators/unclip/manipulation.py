"""What is done with embeddings: spherical interpolation, and the direction from one caption to another."""

# B samples, E width of the contrastive space

import torch
from torch import Tensor
from torch.nn import functional as F

NEARLY_PARALLEL = 1e-6
"""Sine of an angle below which two directions are one, or opposite, and no arc joins them."""


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """A point on the arc from a (B, ...) to b (B, ...), `share` of the way; 0 is a, 1 is b.

    The angle is between the samples as flat vectors; lengths go over linearly. share: a number, or
    one for each sample (B,). 2204.06125, section 3.2.
    """
    share = torch.as_tensor(share, dtype=a.dtype, device=a.device)
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    length_a, length_b = (x.norm(dim=1, keepdim=True) for x in (flat_a, flat_b))
    share = share.expand(len(a))[:, None]
    cosine = (flat_a * flat_b).sum(dim=1, keepdim=True) / (length_a * length_b).clamp_min(1e-12)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    is_straight = sine < NEARLY_PARALLEL
    safe = torch.where(is_straight, torch.ones_like(sine), sine)
    of_a = torch.where(is_straight, 1 - share, ((1 - share) * angle).sin() / safe)
    of_b = torch.where(is_straight, share, (share * angle).sin() / safe)
    units = of_a * flat_a / length_a.clamp_min(1e-12) + of_b * flat_b / length_b.clamp_min(1e-12)
    return (units * ((1 - share) * length_a + share * length_b)).view_as(a)


def text_direction(before: Tensor, after: Tensor) -> Tensor:
    """The direction (B, E), unit length, from captions' embeddings to others' (2204.06125, section 3.3)."""
    return F.normalize(after - before, dim=-1)


def text_diff(
    image: Tensor, before: Tensor, after: Tensor, strength: float | Tensor | None = None
) -> Tensor:
    """Image embeddings (B, E) turned towards what one caption says and another does not.

    strength: share of the arc towards that direction, the paper's are up to 0.25 to 0.5; None goes as
    far as the captions lie from each other. Captions that are one to the towers change nothing.
    """
    if strength is None:
        return F.normalize(image + after - before, dim=-1) * image.norm(dim=-1, keepdim=True)
    is_one = (before == after).all(dim=-1, keepdim=True)
    return torch.where(is_one, image, slerp(image, text_direction(before, after), strength))


def natural_strength(image: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The share of the arc (B,) at which `text_diff` of no strength stops: it lies on the same one."""
    direction = text_direction(before, after)
    turned = text_diff(image, before, after)
    return _angle(image, turned) / _angle(image, direction).clamp_min(1e-6)


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos()
