"""The denoising autoencoder: it is shown a corrupted image, and asked for the clean one."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generators.first_stages import ae, quality, recipes
from generators.first_stages.backbone import FirstStageConfig
from generators.first_stages.family import Outputs, ReconstructionTask
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from generators.preset import Gate, Preset
from generators.task import SHOWN
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes


@dataclass(frozen=True, kw_only=True)
class Config(FirstStageConfig):
    """The networks, and how an image is corrupted: one way, the other, or both."""

    sigma: float = 0.5
    """Standard deviation of Gaussian noise, of pixels in [-1, 1]."""
    masked: float = 0.0
    """Share of the pixels that are grey, that is 0, in every channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma < 0 or not 0 <= self.masked < 1 or self.sigma == self.masked == 0:
            raise UserError(
                f"sigma {self.sigma} with masked {self.masked} is no corruption",
                "give a sigma above 0, or a masked share above 0 and below 1",
            )


class Model(ae.Model):
    """An autoencoder that removes noise (Vincent et al. 2008, "Extracting and Composing Robust
    Features with Denoising Autoencoders", and 2010, "Stacked Denoising Autoencoders", section 3.3).
    """

    config: Config

    def corrupted(self, pixels: Tensor, noise: SampleNoise) -> Tensor:
        """(B, 3, H, W), each sample with its own noise; not cut to [-1, 1]."""
        _, _, height, width = pixels.shape
        if self.config.sigma:
            pixels = pixels + self.config.sigma * noise.normal(*pixels.shape[1:])
        if self.config.masked:
            order = noise.uniform(height * width).argsort(dim=1)
            num = round(self.config.masked * height * width)
            mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :num], value=True)
            pixels = pixels.masked_fill(mask.view(-1, 1, height, width), 0)
        return pixels

    def forward(self, pixels: Tensor, noise: SampleNoise, step: int) -> Outputs:
        return {"reconstruction": self.reconstruct(self.corrupted(pixels, noise))}


class Task(ReconstructionTask):
    """The squared error to the clean image."""

    model: Model

    def figures(self, images: np.ndarray) -> dict[str, float]:
        return denoising_figures(self.model, images)

    def pictures(self) -> dict[str, np.ndarray]:
        """Besides: originals, above corrupted, above denoised ones (N, 3 H, W, 3)."""
        found = super().pictures()
        if found:
            images = self.held_out.images[:SHOWN]
            noisy, made = denoised(self.model, images)
            rows = [images, to_images(noisy), to_images(made)]
            found["denoised"] = np.concatenate(rows, axis=1)
        return found


def denoised(model: Model, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 (N, H, W, 3) -> corrupted, always alike, and what is made of them: (N, 3, H, W)."""
    seeds = iter(range(len(images)))

    def call(pixels: Tensor) -> tuple[Tensor, Tensor]:
        noise = SampleNoise([next(seeds) for _ in pixels], pixels.device)
        noisy = model.corrupted(pixels, noise)
        return noisy, model.reconstruct(noisy)

    noisy, made = quality.batched(model, call, images)
    return noisy, made


def denoising_figures(model: Model, images: np.ndarray) -> dict[str, float]:
    """Those of any first stage; psnr_noisy of corrupted and psnr_denoised of mended images."""
    noisy, made = denoised(model, images)
    pixels = to_model(images)
    found = quality.reconstruction_figures(model, images)
    found["psnr_noisy"] = float(quality.psnr(noisy, pixels).mean())
    found["psnr_denoised"] = float(quality.psnr(made, pixels).mean())
    found["denoised_gain"] = found["psnr_denoised"] - found["psnr_noisy"]
    found["denoised_over_baseline"] = found["psnr_denoised"] - found["baseline"]
    return found


def toy() -> Preset:
    size = Config(**recipes.TOY, latent_channels=8, sigma=0.4, masked=0.1)
    return Preset(size, recipes.TOY_FIT)


def f8() -> Preset:
    """256 px to 32 x 32 of 4 numbers."""
    return Preset(Config(**recipes.F8, latent_channels=4), recipes.FIT)


def _measure(model: Model, scenes: RenderedScenes) -> dict[str, float]:
    return denoising_figures(model, scenes.first(512).images)


PRESETS = {"toy": toy, "f8": f8}
GATE = Gate(
    "A16",
    {"denoised_gain": (">=", 5.0), "denoised_over_baseline": (">=", 5.0)},
    _measure,
)
