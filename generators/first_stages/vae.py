"""The variational autoencoder: latents with a known prior, and a bound on each image's likelihood."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generators.first_stages import quality, recipes
from generators.first_stages.annealing import Cosine
from generators.first_stages.backbone import FirstStageConfig
from generators.first_stages.family import Outputs, ReconstructionTask
from generators.first_stages.gaussian import GaussianFirstStage, gaussian_nll
from generators.noise import SampleNoise
from generators.preset import Gate, Preset
from generators.task import SHOWN, Batch
from generators.unconditional import sampled
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.rendered import RenderedScenes

LEVEL = 1 / 127.5  # one of 256 levels, of pixels in [-1, 1]
START = -4.0  # of ln of both variances; from 0 on, saving the KL pays more than learning


@dataclass(frozen=True, kw_only=True)
class Config(FirstStageConfig):
    """Nothing beside the networks."""


class Model(GaussianFirstStage):
    """Auto-Encoding Variational Bayes (1312.6114), with a Gaussian decoder of one learned variance.

    The variance is at least that of one grey level. Then the density at the 256 levels, times their
    distance, adds up to 1 within 1e-8, and the bound holds for images as files have them.
    """

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__(config)
        self.logvar = nn.Parameter(torch.full((1,), START))  # FSDP shards no scalars
        # Narrow posteriors at the beginning: else their noise hides what the encoder has to say.
        nn.init.constant_(self.quant_conv.bias[config.latent_channels :], START)

    def forward(self, pixels: Tensor, noise: SampleNoise, step: int) -> Outputs:
        """Besides: `nll` (B,), -ln p(x | z) in nats per image, of the density in [-1, 1]."""
        found = super().forward(pixels, noise, step)
        logvar = self.logvar.clamp_min(2 * math.log(LEVEL))
        return found | {"nll": gaussian_nll(pixels, found["reconstruction"], logvar)}


class Task(ReconstructionTask):
    """The bound, per dimension.

    beta: the weight of its KL term, other than 1 for a beta-VAE (Higgins et al. 2017). warmup: steps
    over which it rises from 0, along a cosine, so that latents tell something before they cost
    (1602.02282, section 2.3); figures are always those of the bound itself.
    """

    model: Model

    def __init__(self, *args: Any, beta: float = 1.0, warmup: int = 0, **named: Any) -> None:
        super().__init__(*args, **named)
        self.weight = Cosine(0.0, beta, warmup)

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.pixels(batch)
        found = self.model(pixels, self.noise(batch, pixels.device), batch["step"])
        nll, kl = found["nll"].mean(), found["kl"].mean()
        dims = pixels[0].numel()
        values = {"bits_per_dim": bits_per_dim(-(nll + kl), dims), "kl": kl, "nll": nll}
        loss = (nll + self.weight(batch["step"]) * kl) / dims
        return loss, {name: value.detach() for name, value in values.items()}

    def figures(self, images: np.ndarray) -> dict[str, float]:
        return quality.reconstruction_figures(self.model, images) | bound(self.model, images)

    def pictures(self) -> dict[str, np.ndarray]:
        """Besides: what the prior shows."""
        found = super().pictures()
        return found | {"samples": sampled(self.model, SHOWN)}


def bits_per_dim(elbo: Tensor, dims: int) -> Tensor:
    """Of the 8 bits of a value, from ln of a density in [-1, 1] over that many values."""
    return -elbo / (dims * math.log(2)) - math.log2(LEVEL)


def bound(model: Model, images: np.ndarray) -> dict[str, float]:
    """elbo and kl in nats per image, one posterior sample each, always alike; bits_per_dim."""
    seeds = iter(range(len(images)))

    def call(pixels: Tensor) -> tuple[Tensor, Tensor]:
        noise = SampleNoise([next(seeds) for _ in pixels], pixels.device)
        found = model(pixels, noise, 0)
        return -found["nll"] - found["kl"], found["kl"]

    elbo, kl = (values.mean() for values in quality.batched(model, call, images))
    bits = bits_per_dim(elbo, images[0].size)
    return {"elbo": float(elbo), "bits_per_dim": float(bits), "kl": float(kl)}


def toy() -> Preset:
    """16 px to 2 x 2 of 32 numbers: few enough places for the prior to agree with itself at times."""
    size = Config(**recipes.TOY | {"channels": (16, 32, 64, 64)}, latent_channels=32)
    return Preset(size, recipes.TOY_FIT | {"steps": 3500, "lr": 2e-3}, {"warmup": 1000})


def f8() -> Preset:
    """256 px to 32 x 32 of 4 numbers."""
    return Preset(Config(**recipes.F8, latent_channels=4), recipes.FIT)


def _measure(model: Model, scenes: RenderedScenes) -> dict[str, float]:
    images = scenes.first(512).images
    found = quality.reconstruction_figures(model, images) | bound(model, images)
    samples = sampled(model, 512)
    found["valid_samples"] = float(
        np.mean([read_scene(i, scenes.level) is not None for i in samples])
    )
    return found


PRESETS = {"toy": toy, "f8": f8}
GATE = Gate(
    "A16",
    {"gain": (">=", 5.0), "bits_per_dim": ("<=", 6.4), "valid_samples": (">=", 0.05)},
    _measure,
)
