"""How good a decoder is: PSNR, and the error of edges, of what it makes of the latents of images."""

# N images, H W pixels

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from generators.first_stages.quality import PEAK, psnr
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model

BATCH = 64  # images that are decoded at a time


@torch.no_grad()
def decoded(decoder: Any, first_stage: nn.Module, images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> what a decoder makes of their latents, the same shape; image i has noise i.

    decoder: one of `decoders`; first_stage encodes.
    """
    device = decoder.model.device
    stage = first_stage.to(device)
    made = []
    for start in range(0, len(images), BATCH):
        latents = stage.encode(to_model(images[start : start + BATCH]).to(device))
        noise = SampleNoise(range(start, start + len(latents)), device)
        made.append(to_images(decoder.decode(latents, noise)))
    return np.concatenate(made)


def figures(made: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """`psnr` in dB and `edge_error`, means over images uint8 (N, H, W, 3), as files have them."""
    ours, true = to_model(made), to_model(images)
    return {
        "psnr": float(psnr(ours, true).mean()),
        "edge_error": float((edges(ours) - edges(true)).abs().mean()),
    }


def edges(pixels: Tensor) -> Tensor:
    """Sobel's gradients of (B, 3, H, W) in [-1, 1]: (B, 6, H - 2, W - 2), of each colour across and down.

    In shares of what pixels can differ by, per pixel: a step from -1 to 1 has 1/2 in both columns that
    it touches.
    """
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / (8 * PEAK)
    kernels = torch.stack([across, across.T])[:, None].to(pixels)
    colours = pixels.shape[1]
    return conv2d(pixels, kernels.repeat(colours, 1, 1, 1), groups=colours)
