"""Inpainting: what is known of an image, random gaps to train on, and a model widened to be shown both."""

# B samples, H W pixels of a side

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.draws import Draws
from pipeline.errors import UserError

ALL_UNKNOWN = 0.2  # of training's samples, so that it still draws without an image
BRUSHED = 0.5  # of the others; the rest loses rectangles


@dataclass(frozen=True)
class Known:
    """pixels: (B, 3, H, W) in [-1, 1]. mask: (B, 1, H, W) bool, true where they are known."""

    pixels: Tensor
    mask: Tensor

    @classmethod
    def of(cls, pixels: Tensor, mask: Tensor) -> "Known":
        """pixels (B, 3, H, W); mask (B, 1, H, W), or (B, H, W), true or not 0 where they are known."""
        mask = mask if mask.ndim == 4 else mask[:, None]
        if pixels.ndim != 4 or mask.shape[2:] != pixels.shape[2:] or mask.shape[1] != 1:
            raise ValueError(f"a mask of {tuple(mask.shape)} for pixels of {tuple(pixels.shape)}")
        return cls(pixels.float(), mask.to(pixels.device).bool())

    def channels(self) -> Tensor:
        """What an inpainting model is shown: (B, 4, H, W), unknown pixels as 0 (2112.10741, section 4.4)."""
        return torch.cat([self.pixels * self.mask, self.mask.to(self.pixels.dtype)], dim=1)

    def twice(self) -> "Known":
        """For both sides of guidance."""
        return Known(*(torch.cat([part, part]) for part in (self.pixels, self.mask)))

    def impose(self, clean: Tensor) -> Tensor:
        """(B, 3, H, W) with the known pixels in it, as they are."""
        return torch.where(self.mask, self.pixels, clean)


def draw_mask(draws: Draws, size: int) -> np.ndarray:
    """Which pixels stay known in training, bool (size, size): all but rectangles, or strokes of a brush."""
    if draws.chance(ALL_UNKNOWN):
        return np.zeros((size, size), bool)
    return ~(_strokes(draws, size) if draws.chance(BRUSHED) else _rectangles(draws, size))


def _rectangles(draws: Draws, size: int) -> np.ndarray:
    """One to three, each with sides of a quarter to all of the image."""
    gap = np.zeros((size, size), bool)
    for _ in range(draws.between(1, 3)):
        height, width = (draws.between(max(1, size // 4), size) for _ in range(2))
        top, left = draws.below(size - height + 1), draws.below(size - width + 1)
        gap[top : top + height, left : left + width] = True
    return gap


def _strokes(draws: Draws, size: int) -> np.ndarray:
    """A walk of a round brush."""
    y, x = np.mgrid[:size, :size] + 0.5
    gap = np.zeros((size, size), bool)
    at = (draws.uniform() * size, draws.uniform() * size)
    for _ in range(draws.between(3, 8)):
        angle, length = 2 * math.pi * draws.uniform(), size * (0.15 + 0.45 * draws.uniform())
        radius = size * (0.05 + 0.1 * draws.uniform())
        to = tuple(
            min(max(a + length * step, 0.0), float(size))
            for a, step in zip(at, (math.sin(angle), math.cos(angle)), strict=True)
        )
        gap |= _distance(y, x, at, to) <= radius
        at = to
    return gap


def _distance(y: np.ndarray, x: np.ndarray, start: tuple, end: tuple) -> np.ndarray:
    """Of each pixel from a line between two points."""
    dy, dx = end[0] - start[0], end[1] - start[1]
    along = ((y - start[0]) * dy + (x - start[1]) * dx) / max(dy * dy + dx * dx, 1e-12)
    along = along.clip(0, 1)
    return np.hypot(y - start[0] - along * dy, x - start[1] - along * dx)


def widened(weights: Mapping[str, Tensor], name: str, shape: torch.Size) -> dict[str, Tensor]:
    """A base model's weights for one that is shown more channels: those have weight 0 at first, so that
    it says what the base model says (2112.10741, section 4.4).

    name: of the first convolution's kernel. shape: that it has in the wider model. UserError where
    the kernels differ in more than that.
    """
    found = dict(weights)
    kernel = found.get(name)
    if kernel is None or kernel.shape[0] != shape[0] or kernel.shape[2:] != shape[2:]:
        raise UserError(
            "the model that inpainting starts from has another first layer",
            "give INIT=<folder of the same model without inpainting>",
        )
    wide = kernel.new_zeros(shape)
    wide[:, : kernel.shape[1]] = kernel
    return found | {name: wide}
