"""Images of a model that knows no text: a VAE's or a GAN's, drawn from noise."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from generators.noise import SampleNoise
from generators.pixels import to_images
from pipeline.draws import key64

BATCH = 64  # images that are drawn at once


def draw(model: nn.Module, numbers: Sequence[int], seed: int) -> np.ndarray:
    """uint8 (N, H, W, 3); image `numbers[i]` follows from (seed, number) alone."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(numbers), BATCH):
        part = numbers[start : start + BATCH]
        noise = SampleNoise([key64(seed, number, "sample") for number in part], device)
        parts.append(to_images(model.sample(len(part), noise)))
    return np.concatenate(parts)
