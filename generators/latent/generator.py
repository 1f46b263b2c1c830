"""A trained latent diffusion model as one uses it: captions in, images out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from generators.diffusion.samplers import Sampling
from generators.latent import text
from generators.latent.model import LatentDiffusion
from generators.latent.text import TextEncoder
from generators.noise import SampleNoise
from generators.pixels import to_images
from pipeline.draws import key64
from pipeline.errors import UserError


@dataclass(frozen=True)
class Latent:
    """`Latent(model, first_stage, encoder).sample("a red heart on grass", 4)`: images, (4, H, W, 3).

    decoder: what makes pixels of latents, where not the first stage does: a consistency decoder.
    batch_size: images that are drawn at once, which bounds memory.
    """

    model: LatentDiffusion
    first_stage: nn.Module
    encoder: TextEncoder
    decoder: Any = None
    batch_size: int = 64

    def sample(
        self,
        prompt: str,
        n: int = 1,
        *,
        seed: int = 0,
        guidance: float = 3.0,
        steps: str | int = "",
        sampler: str = "",
        eta: float = 0.0,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """n images of a prompt: uint8 (n, H, W, 3). Image i follows from (seed, prompt, i) alone.

        guidance: 1 is without. steps, sampler, eta: of `samplers.Sampling`; the model's own where "".
        size: height and width in pixels.
        """
        how = self.sampling(steps, sampler, eta)
        return self.images(
            [prompt] * n, range(n), seed=seed, guidance=guidance, sampling=how, size=size
        )

    @torch.no_grad()
    def images(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        *,
        seed: int = 0,
        guidance: float = 3.0,
        sampling: Sampling | None = None,
        size: tuple[int, int] | None = None,
        more: Any = None,
    ) -> np.ndarray:
        """Image number `numbers[b]` of `prompts[b]` in row b: uint8 (B, H, W, 3).

        more: run of rows -> what else `LatentDiffusion.sample` takes for them.
        """
        latents = self.latent_size(size)
        height, width = (side * self.model.config.factor for side in latents)
        found = [np.empty((0, height, width, 3), np.uint8)]
        rows = zip(prompts, numbers, strict=True)
        all_seeds = [key64(seed, prompt, number, "sample") for prompt, number in rows]
        for start in range(0, len(prompts), self.batch_size):
            run = slice(start, start + self.batch_size)
            seeds = all_seeds[run]
            drawn = self.model.sample(
                text.encoded(prompts[run], self.encoder, self.device),
                SampleNoise(seeds, self.device),
                empty=text.empty(self.encoder, self.device),
                guidance=guidance,
                sampling=sampling,
                size=latents,
                **(more(run) if more else {}),
            )
            found.append(to_images(self.decode(drawn, seeds)))
        return np.concatenate(found)

    def decode(self, latents: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pixels (B, 3, H, W); seeds: of a decoder's noise."""
        unscaled = self.first_stage.scale.unscaled(latents)
        if self.decoder is None:
            return self.first_stage.decode(unscaled)
        noise = SampleNoise([key64(seed, "decoder") for seed in seeds], latents.device)
        return self.decoder.decode(unscaled, noise)

    def latent_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Latents (h, w) of an image of (H, W) pixels; UserError where there are none."""
        config = self.model.config
        height, width = size or (config.image_size,) * 2
        unit = config.unit
        if min(height, width) < unit or height % unit or width % unit:
            raise UserError(f"SIZE={width}x{height} is impossible", f"give multiples of {unit}")
        return height // config.factor, width // config.factor

    def sampling(self, steps: str | int = "", sampler: str = "", eta: float = 0.0) -> Sampling:
        """The model's own where nothing is given."""
        own = self.model.config.sampling
        return Sampling(sampler or own.sampler, str(steps) or own.steps, eta, clip=0.0)

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.model.config.image_size

    @property
    def device(self) -> torch.device:
        return self.model.device
