"""Training what looks at noised images: timesteps and noise of samples, and how well it does at each of some."""

# B batch; x_t noised pixels (B, 3, H, W), t timesteps (B,)

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from generators.diffusion.process import Process
from generators.noise import SampleNoise
from generators.pixels import to_model
from generators.task import Batch
from pipeline.draws import key64
from pipeline.errors import UserError
from pipeline.loading.examples import Examples

BATCH = 64  # images that are looked at at once
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)
"""Of all timesteps: where figures are taken."""


def noised(pixels: Tensor, process: Process, noise: SampleNoise) -> tuple[Tensor, Tensor]:
    """x_t and t, uniform, each sample's own."""
    t = process.timesteps(noise)
    return process.noised(pixels, noise.normal(*pixels.shape[1:]), t), t


def seen(
    images: np.ndarray, process: Process, t: int | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x_t, t) of uint8 images (N, H, W, 3) at one timestep, in batches; None is without noise, at 0.

    An image's noise is the same at every call.
    """
    for start in range(0, len(images), BATCH):
        pixels = to_model(images[start : start + BATCH]).to(device)
        times = torch.full((len(pixels),), t or 0, device=device)
        if t is not None:
            seeds = [key64("seen", start + row) for row in range(len(pixels))]
            normal = SampleNoise(seeds, device).normal(*pixels.shape[1:])
            pixels = process.noised(pixels, normal, times)
        yield pixels, times


def times(process: Process) -> dict[str, int | None]:
    """Where figures are taken, by name: `clean`, and t<timestep>."""
    steps = process.schedule.steps
    found: dict[str, int | None] = {"clean": None}
    return found | {f"t{t}": t for t in (round(share * steps) for share in SHARES)}


def falls(curve: Mapping[str, float]) -> float:
    """From the least noise to the most, how much less right: of figures by name."""
    noisy = [value for name, value in curve.items() if not name.endswith("clean")]
    return noisy[0] - noisy[-1]


def require_images(batch: Batch, size: int) -> None:
    """UserError where a batch has no images of that size."""
    shape = tuple(batch["images"].shape[1:]) if "images" in batch else None
    if shape != (size, size, 3):
        told = "no images" if shape is None else f"images of shape {shape}"
        raise UserError(
            f"a guide of {size} pixels was given {told}", "leave CACHE out, or take another PRESET"
        )


def images_of(examples: Examples | None) -> np.ndarray | None:
    """Held-out images, where there are any."""
    return None if examples is None else examples.images


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
