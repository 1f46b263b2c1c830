"""Pixels as files have them, uint8 (B, H, W, 3), and as every model here has them, (B, 3, H, W) in [-1, 1]."""

import numpy as np
import torch
from torch import Tensor


def to_model(images: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    images = torch.as_tensor(images)
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def to_images(pixels: Tensor) -> np.ndarray:
    """(B, 3, H, W), cut to [-1, 1] -> uint8 (B, H, W, 3), rounded."""
    scaled = pixels.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
