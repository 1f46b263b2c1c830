"""What an upsampler is shown in training: a crop, and a small, spoiled image of the same region."""

# B samples, H W pixels of an image, h w = H / factor, W / factor

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from generators.unclip import bsr
from pipeline.places import Place

Degradation = Literal["none", "blur", "bsr"]
Interpolation = Literal["bilinear", "bicubic"]
BLUR_SIZE, BLUR_SIGMA = 3, 0.6  # of GLIDE (2112.10741) and unCLIP's first upsampler


def cropped(image: np.ndarray, size: int, factor: int, place: Place) -> np.ndarray:
    """A random square (size, size, 3) of (H, W, 3), on the grid of the small image's pixels."""
    draws = place.draws("crop")
    top, left = (factor * draws.between(0, (length - size) // factor) for length in image.shape[:2])
    return image[top : top + size, left : left + size]


def small(image: np.ndarray, factor: int, kind: Degradation, place: Place) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (h, w, 3): averaged and, as asked, blurred; or degraded by BSR.

    bsr has downsamplings of its own. The only rounding is the last step's, but for JPEG's.
    """
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    if kind == "bsr":
        pixels = bsr.degraded(pixels, factor, place)
    else:
        pixels = F.avg_pool2d(pixels[None], factor)[0]
        if kind == "blur":
            pixels = blurred(pixels)
    return pixels.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def blurred(pixels: Tensor) -> Tensor:
    """(C, H, W) -> the same, by a Gaussian with BLUR_SIGMA on BLUR_SIZE x BLUR_SIZE pixels."""
    return bsr.convolved(pixels, bsr.gaussian(BLUR_SIZE, [BLUR_SIGMA**2] * 2))


def quantised(pixels: Tensor) -> Tensor:
    """Values in [-1, 1], those that 8 bits can hold; beyond it they are cut.

    A small image that a file holds, and training saw, and one that a decoder just made, are then alike.
    """
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def enlarged(low: Tensor, factor: int, how: Interpolation) -> Tensor:
    """(B, 3, h, w) -> (B, 3, H, W). bicubic is as diffusers' unCLIP pipelines have it."""
    # Antialiasing changes nothing where images grow, but has a bicubic kernel of its own.
    return F.interpolate(low, scale_factor=factor, mode=how, antialias=how == "bicubic")
