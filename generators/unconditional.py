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
    return _drawn(model, [key64(seed, number, "sample") for number in numbers])


def sampled(model: nn.Module, n: int) -> np.ndarray:
    """uint8 (n, H, W, 3), always the same ones."""
    return _drawn(model, range(n))


def _drawn(model: nn.Module, seeds: Sequence[int]) -> np.ndarray:
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(seeds), BATCH):
        part = seeds[start : start + BATCH]
        parts.append(to_images(model.sample(len(part), SampleNoise(part, device))))
    return np.concatenate(parts)
