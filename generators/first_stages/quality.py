"""How good a first stage is: PSNR, SSIM, the use of its codebook, and its distance from the mean colour."""

# B N batch, H W pixels of a side, K codes

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from generators.pixels import to_images, to_model

PEAK = 2.0  # of pixels in [-1, 1]
BATCH = 64  # images that are measured at a time
_LEAST_ERROR = 1e-10  # equal images have a PSNR of 106 dB, not of infinity
_WINDOW, _SIGMA = 11, 1.5  # SSIM's
_K1, _K2 = 0.01, 0.03


def psnr(made: Tensor, pixels: Tensor) -> Tensor:
    """(B,): dB of the peak signal above the squared error of each image, both cut to [-1, 1]."""
    error = (made.float().clamp(-1, 1) - pixels.float().clamp(-1, 1)).square()
    return 10 * torch.log10(PEAK**2 / error.flatten(1).mean(dim=1).clamp_min(_LEAST_ERROR))


def ssim(made: Tensor, pixels: Tensor) -> Tensor:
    """(B,): structural similarity, at most 1, of (B, C, H, W), both cut to [-1, 1] and seen as [0, 1].

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", section III.C: a Gaussian window of 11 pixels with sigma 1.5, where it lies
    within the image, per channel; images below 11 pixels raise ValueError.
    """
    if min(pixels.shape[2:]) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} pixels a side, not {tuple(pixels.shape)}")
    # Luminances are compared by their ratio, so that black has to be 0.
    x, y = ((i.double().clamp(-1, 1) + 1).flatten(0, 1)[:, None] / 2 for i in (made, pixels))
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x**2
    variance_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).view(len(pixels), -1).mean(dim=1).float()


def mean_colours(pixels: Tensor) -> Tensor:
    """Each image's mean colour all over it: what any first stage must beat."""
    return pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)


def code_counts(tokens: Tensor, codes: int) -> Tensor:
    """(K,): how often each code occurs in tokens of any shape."""
    return torch.bincount(tokens.flatten(), minlength=codes)


def code_figures(tokens: Tensor, codes: int) -> dict[str, float]:
    """`codes_used`: the share of codes that occur; `perplexity`: exp of the entropy of their use."""
    shares = code_counts(tokens, codes).double() / tokens.numel()
    return {
        "codes_used": float((shares > 0).double().mean()),
        "perplexity": math.exp(-float(torch.special.xlogy(shares, shares).sum())),
    }


def reconstruction_figures(model: Any, images: np.ndarray) -> dict[str, float]:
    """Means over images, uint8 (N, H, W, 3), as they come back as files.

    psnr, ssim; baseline: the PSNR of each image's mean colour; gain: how far psnr is above it. Of
    models with `tokens` also codes_used and perplexity, over all tokens of these images.
    """
    made, original = to_model(reconstructed(model, images)), to_model(images)
    found = {
        "psnr": float(psnr(made, original).mean()),
        "baseline": float(psnr(mean_colours(original), original).mean()),
        "ssim": float(ssim(made, original).mean()),
    }
    found["gain"] = found["psnr"] - found["baseline"]
    if hasattr(model, "tokens"):
        (tokens,) = batched(model, lambda pixels: [model.tokens(pixels)], images)
        found |= code_figures(tokens, model.vocabulary)
    return found


def reconstructed(model: Any, images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> what a first stage gives back, the same shape."""
    (made,) = batched(model, lambda pixels: [model.reconstruct(pixels)], images)
    return to_images(made)


@torch.no_grad()
def batched(
    model: nn.Module, call: Callable[[Tensor], Sequence[Tensor]], images: np.ndarray
) -> list[Tensor]:
    """What a call gives of pixels (B, 3, H, W) on the model's device, for uint8 (N, H, W, 3).

    Each of its results (B, ...) comes whole, (N, ...), on the CPU.
    """
    device = next(model.parameters()).device
    starts = range(0, len(images), BATCH)
    parts = [call(to_model(images[start : start + BATCH]).to(device)) for start in starts]
    return [torch.cat(part).cpu() for part in zip(*parts, strict=True)]


def _blurred(x: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 1, H - 10, W - 10), with the Gaussian window."""
    at = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    window = torch.exp(-(at**2) / (2 * _SIGMA**2))
    window = window / window.sum()
    return conv2d(conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
