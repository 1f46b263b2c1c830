"""What all first stages with a chosen bottleneck have in common: the model's methods, and its training."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generators.first_stages import quality
from generators.first_stages.backbone import FirstStageConfig
from generators.noise import SampleNoise
from generators.task import SHOWN, WATCHED, Batch, GeneratorTask
from pipeline.scenes.rendered import RenderedScenes

Outputs = dict[str, Tensor]


class FirstStage(nn.Module):
    """Encoder, bottleneck, decoder; subclasses have these and say what happens in between."""

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = config.factor

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), without noise."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, 3, H, W), not cut to [-1, 1]."""
        raise NotImplementedError

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same shape, as well as the bottleneck lets it."""
        return self.decode(self.encode(pixels))

    def forward(self, pixels: Tensor, noise: SampleNoise, step: int) -> Outputs:
        """All that the loss needs of a batch, in one call; among it `reconstruction` (B, 3, H, W)."""
        raise NotImplementedError


class ReconstructionTask(GeneratorTask):
    """Trains a first stage to give back what it is shown; subclasses add their bottleneck's terms."""

    model: FirstStage

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.pixels(batch)
        found = self.model(pixels, self.noise(batch, pixels.device), batch["step"])
        return self.objective(pixels, found)

    def objective(self, pixels: Tensor, found: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and scalars to log, from what the forward pass gave; here the squared error."""
        error = squared_error(found["reconstruction"], pixels)
        return error, {"mse": error.detach()}

    def evaluate(self) -> dict[str, float]:
        if self.held_out is None or self.held_out.images is None:
            return {}
        return self.figures(self.held_out.images[:WATCHED])

    def figures(self, images: np.ndarray) -> dict[str, float]:
        """Figures on uint8 (N, H, W, 3)."""
        return quality.reconstruction_figures(self.model, images)

    def pictures(self) -> dict[str, np.ndarray]:
        """Originals above what is made of them: (N, 2 H, W, 3)."""
        if self.held_out is None or self.held_out.images is None:
            return {}
        images = self.held_out.images[:SHOWN]
        made = quality.reconstructed(self.model, images)
        return {"reconstructions": np.concatenate([images, made], axis=1)}

    def blocks(self) -> list[nn.Module]:
        """The residual stages of both networks."""
        networks: list[Any] = [self.model.encoder, self.model.decoder]
        return [
            block
            for network in networks
            for stages in (getattr(network, "down_blocks", ()), getattr(network, "up_blocks", ()))
            for block in [*stages]
        ]


def measured(model: FirstStage, scenes: RenderedScenes) -> dict[str, float]:
    """The figures of a gate, on the first 512 scenes."""
    return quality.reconstruction_figures(model, scenes.first(512).images)


def squared_error(made: Tensor, pixels: Tensor) -> Tensor:
    """The mean over all values, in fp32."""
    return (made.float() - pixels.float()).square().mean()
