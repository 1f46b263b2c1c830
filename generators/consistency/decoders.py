"""What makes pixels of latents in a first stage's place: a distilled decoder in two steps, its teacher in forty."""

# B samples, C h w of latents, H W pixels

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from generators.consistency.config import COLOURS
from generators.consistency.network import DecoderNetwork
from generators.diffusion import samplers
from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from pipeline.errors import UserError


@dataclass(frozen=True)
class Decoder:
    """Drop-in for a first stage's `decode`, but that it is told noise.

    first_stage: the one whose latents it learned, where it is at hand. about: what identifies it, as
    `generators.encoders.describe_first_stage` says; {} where that is not known. steps: evaluations of
    the network. clip: the largest absolute value of a guessed pixel; 0 does not clip.
    """

    model: DecoderNetwork
    first_stage: nn.Module | None = None
    about: Mapping[str, Any] | None = None
    steps: int = 2
    clip: float = 1.0
    what: ClassVar[str] = "a decoder"

    def decode(self, latents: Tensor, noise: SampleNoise) -> Tensor:
        """Latents (B, C, h, w), unscaled, as the first stage gives them -> pixels (B, 3, H, W).

        Row i follows from row i of latents and its own noise. UserError for sizes it cannot make.
        """
        raise NotImplementedError

    def require_first_stage(self, about: Mapping[str, Any], flag: str = "DECODER") -> None:
        """UserError where latents are of another first stage than `about` describes."""
        own = (self.about or {}).get("weights")
        if own is None or own != about.get("weights"):
            raise UserError(
                f"{flag} is {self.what} for the latents of another first stage",
                "give the one that was trained with this FIRST_STAGE",
            )

    def _clipped(self, pixels: Tensor) -> Tensor:
        return pixels.clamp(-self.clip, self.clip) if self.clip else pixels


class ConsistencyDecoder(Decoder):
    """Multistep consistency sampling (2303.01469, algorithm 1): an image, noise added again, an image."""

    what = "a consistency decoder"

    @torch.no_grad()
    def decode(self, latents: Tensor, noise: SampleNoise) -> Tensor:
        height, width = self.model.image_size(latents)
        levels = self.model.process.levels
        pixels = torch.zeros(len(latents), COLOURS, height, width, device=latents.device)
        for time in self.model.config.visited(self.steps):
            t = torch.full((len(latents),), time, device=latents.device)
            signal, rest = levels(t, pixels.ndim)
            noisy = signal * pixels + rest * noise.normal(COLOURS, height, width)
            pixels = self._clipped(self.model(noisy, t, latents))
        return pixels


@dataclass(frozen=True)
class DiffusionDecoder(Decoder):
    """The teacher: DDIM (2010.02502) from noise."""

    steps: int = 40
    what = "a diffusion decoder"

    @torch.no_grad()
    def decode(self, latents: Tensor, noise: SampleNoise) -> Tensor:
        start = noise.normal(COLOURS, *self.model.image_size(latents))
        return samplers.sample(
            self.model.process,
            lambda noisy, t: self.model(noisy, t, latents),
            start,
            Sampling("ddim", self.steps, clip=self.clip),
            noise,
        )
