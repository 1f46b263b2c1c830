"""LDM's continuous first stage: a Gaussian bottleneck, trained with adversarial and perceptual loss."""

# Shapes: B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels.

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generators.first_stages import quality, recipes
from generators.first_stages.critic import (
    AdversarialTask,
    Critic,
    CriticConfig,
    Rules,
    apart,
    judged,
    per_sample_lr,
)
from generators.first_stages.family import Outputs
from generators.first_stages.gaussian import GaussianFirstStage
from generators.first_stages.latent_scale import LatentScale
from generators.noise import SampleNoise
from generators.preset import Gate, Preset
from pipeline.scenes.rendered import RenderedScenes


@dataclass(frozen=True, kw_only=True)
class Config(CriticConfig):
    """The networks, and the discriminator's size."""


class Model(GaussianFirstStage):
    """LDM's KL-regularised autoencoder (2112.10752, section 3.1 and appendix G).

    Its encoder and decoder are those of diffusers' AutoencoderKL: see diffusers_folder. With so small
    a weight of the KL term, latents drawn from N(0, 1) show nothing: what the prior is for, a
    diffusion model learns. `scale` knows by how much that has to scale latents.
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.logvar = nn.Parameter(torch.zeros(1))
        self.scale = LatentScale(config.latent_channels)
        self.critic = Critic(config)

    def forward(
        self, pixels: Tensor, noise: SampleNoise, step: int, rules: Rules | None = None
    ) -> Outputs:
        """`reconstruction` of one sample of the posterior, `kl` (B,) in nats per image; under rules
        also `nll`, a scalar, and what Critic gives.

        nll is a sum over an image's values, of their distances times exp(-logvar), plus logvar.
        """
        posterior = self.posterior(pixels)
        latents = posterior.at(noise.normal(*posterior.mean.shape[1:]))
        made = self.decode(latents)
        found = {"reconstruction": made, "kl": posterior.kl()}
        if rules is None:
            return found
        self.scale.note(latents, step)
        terms = apart(pixels, made, rules) / self.logvar.exp() + self.logvar
        nll = terms.flatten(1).sum(dim=1).mean()
        last = self.decoder.conv_out.weight
        return found | {"nll": nll} | self.critic(pixels, made, nll, last, step, rules)


class Task(AdversarialTask):
    """kl_weight: of the KL term, which like nll is a sum over an image, and a mean over images.

    logvar is learned; in the code that LDM published it is declared so, and no optimizer has it.
    """

    model: Model

    def __init__(self, *args: Any, kl_weight: float = 1e-6, **named: Any) -> None:
        super().__init__(*args, **named)
        self.kl_weight = kl_weight

    def objective(self, pixels: Tensor, found: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        nll, kl = found["nll"], found["kl"].mean()
        return nll + self.kl_weight * kl, {"nll": nll.detach(), "kl": kl.detach()}

    def figures(self, images: np.ndarray) -> dict[str, float]:
        return super().figures(images) | latent_figures(self.model, images)


def latent_figures(model: Model, images: np.ndarray) -> dict[str, float]:
    """kl: nats per image. latent_std: the deviation of sampled latents after scaling."""
    seeds = iter(range(len(images)))

    def call(pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = model.posterior(pixels)
        noise = SampleNoise([next(seeds) for _ in pixels], pixels.device)
        return posterior.at(noise.normal(*posterior.mean.shape[1:])), posterior.kl()

    latents, kl = quality.batched(model, call, images)
    return {"kl": float(kl.mean()), "latent_std": float(latents.std()) * model.scale.factor}


def toy() -> Preset:
    """16 px to 4 x 4 of 4 numbers."""
    size = Config(**recipes.TOY, latent_channels=4, disc_width=16, disc_layers=1)
    fit = recipes.TOY_FIT | {"steps": 2000, "lr": 2e-3, "betas": (0.5, 0.9), "clip_norm": 0.0}
    task = {
        "disc_start": 1400,
        "disc_warmup": 100,
        "disc_lr": 0.3,
        "perceptual": "random",
        "perceptual_weight": 0.1,
    }
    return Preset(size, fit, task | {"kl_weight": 1e-3})


def toy_latent() -> Preset:
    """16 px to 8 x 8 of 6 numbers, for a diffusion model on them: of the 64 numbers of `toy` no scene can
    be drawn whose texture, shape and size are all as they were. It learns by absolute differences alone.
    """
    size = recipes.TOY | {"channels": (16, 32), "latent_channels": 6}
    fit = recipes.TOY_FIT | {"steps": 1500, "lr": 4e-3, "betas": (0.5, 0.9), "clip_norm": 0.0}
    task = {"disc_start": 1500, "kl_weight": 1e-4}
    return Preset(Config(**size, disc_width=8, disc_layers=1), fit, task)


def f8() -> Preset:
    """256 px to 32 x 32 of 4 numbers, as stable diffusion has them."""
    return Preset(
        Config(**recipes.F8, latent_channels=4), per_sample_lr(24), {"disc_start": 50_001}
    )


def f4() -> Preset:
    """256 px to 64 x 64 of 3 numbers."""
    return Preset(
        Config(**recipes.F4, latent_channels=3), per_sample_lr(24), {"disc_start": 50_001}
    )


def _measure(model: Model, scenes: RenderedScenes) -> dict[str, float]:
    images = scenes.first(512).images
    found = quality.reconstruction_figures(model, images) | judged(model, images)
    return found | latent_figures(model, images)


PRESETS = {"toy": toy, "toy-latent": toy_latent, "f8": f8, "f4": f4}
GATE = Gate(
    "A16",
    {
        "gain": (">=", 5.0),
        "psnr_change": (">=", -0.5),
        "adaptive_weight": ("<=", 9999.0),  # of a bound of 1e4
        "logit_gap": ("<=", 4.0),
        "latent_std": (">=", 0.8),
    },
    _measure,
)
