"""The logit-Laplace distribution: a likelihood of pixels that, unlike Laplace's, stays between 0 and 1."""

import torch
from torch import Tensor

EPS = 0.1
"""How far mapped pixels keep from 0 and 1, where the density is infinite: 2102.12092, appendix A.3."""


def to_open_interval(pixels: Tensor) -> Tensor:
    """[-1, 1] -> [EPS, 1 - EPS], linearly; 2102.12092, appendix A.3, Eq. 4, of pixels from 0 to 1."""
    return (1 - 2 * EPS) * (pixels + 1) / 2 + EPS


def from_open_interval(x: Tensor) -> Tensor:
    """The inverse, cut to [-1, 1]."""
    return ((x - EPS) / (1 - 2 * EPS) * 2 - 1).clamp(-1, 1)


def median(mu: Tensor) -> Tensor:
    """The pixels in [-1, 1] that a location stands for, whatever the scale."""
    return from_open_interval(torch.sigmoid(mu))


def nll(x: Tensor, mu: Tensor, ln_b: Tensor) -> Tensor:
    """-ln f(x | mu, b) of each value, in nats: ln(2 b x (1 - x)) + |logit(x) - mu| / b.

    x is in (0, 1). 2102.12092, appendix A.3, Eq. 3: of a Laplace variable's sigmoid.
    """
    distance = (torch.logit(x) - mu).abs()
    return torch.log(2 * x * (1 - x)) + ln_b + distance * torch.exp(-ln_b)
