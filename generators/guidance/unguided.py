"""Samples of a text-to-image model that is told nothing but by a guide."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from generators.diffusion.samplers import Gradient, Sampling
from generators.guidance.gradients import require_schedule
from generators.guidance.noised import device_of
from generators.noise import SampleNoise
from generators.pixels import to_images
from pipeline.draws import key64

BATCH = 64  # images that are drawn at once
SAMPLING = Sampling("ddim", "50")


def draw(
    glide: Any,
    guide: nn.Module,
    number: int,
    gradient: Callable[[slice], Gradient],
    sampling: Sampling = SAMPLING,
) -> np.ndarray:
    """uint8 (number, H, W, 3) of GLIDE with the caption "", image i from the same noise at every call.

    guide: what the gradients are of. gradient: of the images of a run of numbers.
    """
    decoder = glide.model
    require_schedule(decoder.process, guide)
    parts = []
    for start in range(0, number, BATCH):
        run = slice(start, min(start + BATCH, number))
        seeds = [key64("unguided", i) for i in range(run.start, run.stop)]
        noise = SampleNoise(seeds, device_of(decoder))
        text = decoder.read([""] * len(seeds))
        pixels = decoder.sample(None, text, noise, sampling=sampling, gradient=gradient(run))
        parts.append(to_images(pixels))
    return np.concatenate(parts)
