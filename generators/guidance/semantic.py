"""Semantic diffusion guidance: by a text, or by an image's content, structure or style, and mixtures of these."""

# B batch, E width of the contrastive space, C h w of a feature map; x_t noised pixels (B, 3, H, W)

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generators.diffusion.process import Process
from generators.diffusion.samplers import Gradient
from generators.guidance.gradients import clip_gradient, gradient_of

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two maps (B, C, h, w) -> (B,)."""


@dataclass(frozen=True)
class Reference:
    """An image to be guided by, which guides see as noisy as the sample is (2112.05744, section 3.3).

    process: what noises samples. pixels: (B, 3, H, W) in [-1, 1], or (1, 3, H, W) for all samples.
    noise: standard normal (B, 3, H, W), each sample's own; the same at every step.
    """

    process: Process
    pixels: Tensor
    noise: Tensor

    def at(self, t: Tensor) -> Tensor:
        """x'_t (B, 3, H, W) at timesteps (B,)."""
        if len(self.noise) != len(t):
            raise ValueError(f"noise of {len(self.noise)} samples for {len(t)}")
        return self.process.noised(self.pixels.expand_as(self.noise), self.noise, t)


def text(model: nn.Module, embedding: Tensor, scale: float = 1.0) -> Gradient:
    """Towards a text's unit embedding (B, E) or (1, E); model: a noised CLIP."""
    return clip_gradient(model, embedding, scale)


def content(model: nn.Module, reference: Reference, scale: float = 1.0) -> Gradient:
    """Towards what an image shows, wherever it stands: f(x_t, t) . f(x'_t, t) (2112.05744, section 3.3).

    model: a noised CLIP, by whose temperature the product is divided.
    """

    def score(noisy: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            wanted, _ = model(reference.at(t), t)
        found, temperature = model(noisy, t)
        return temperature.detach() * (found * wanted).sum(dim=1)

    return gradient_of(score, scale)


def structure(
    model: nn.Module, reference: Reference, scale: float = 1.0, maps: Sequence[int] = ()
) -> Gradient:
    """Towards an image's layout: minus the squared distance of feature maps, position by position.

    model: a noised CLIP or a classifier. maps: which of its `maps`, by number, negative ones from the
    coarsest; all where none are given. Each counts by its mean.
    """
    return _maps_gradient(model, reference, scale, maps, structure_distance)


def style(
    model: nn.Module, reference: Reference, scale: float = 1.0, maps: Sequence[int] = ()
) -> Gradient:
    """Towards an image's colours and textures: minus the squared distance of maps' Gram matrices.

    The arguments are those of `structure`.
    """
    return _maps_gradient(model, reference, scale, maps, style_distance)


def mixture(parts: Sequence[tuple[float, Gradient]]) -> Gradient:
    """The weighted sum of guides (2112.05744, section 3.4)."""
    if not parts:
        raise ValueError("a mixture of no guides")

    def gradient(noisy: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        return sum(weight * guide(noisy, t, clean) for weight, guide in parts)

    return gradient


def structure_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of maps (B, C, h, w): (B,)."""
    return (found - wanted).square().flatten(1).mean(dim=1)


def style_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices of maps (B, C, h, w): (B,)."""
    return (gram(found) - gram(wanted)).square().flatten(1).mean(dim=1)


def gram(maps: Tensor) -> Tensor:
    """Products of channels, averaged over positions (1508.06576): (B, C, h, w) -> (B, C, C)."""
    rows = maps.flatten(2)
    return rows @ rows.transpose(1, 2) / rows.shape[2]


def _maps_gradient(
    model: nn.Module,
    reference: Reference,
    scale: float,
    chosen: Sequence[int],
    distance: Distance,
) -> Gradient:
    def score(noisy: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = model.maps(reference.at(t), t)
        found = model.maps(noisy, t)
        numbers = chosen or range(len(found))
        return -sum(distance(found[i].float(), wanted[i].float()) for i in numbers)

    return gradient_of(score, scale)
