"""VQGAN: images as a grid of codes, trained with adversarial and perceptual loss."""

# Shapes: B batch, H W pixels of a side, h w = H / factor, W / factor, K codes.

from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
from generators.first_stages.quantized import QuantizedConfig, QuantizedFirstStage
from generators.noise import SampleNoise
from generators.preset import Gate, Preset
from pipeline.scenes.rendered import RenderedScenes


@dataclass(frozen=True, kw_only=True)
class Config(CriticConfig, QuantizedConfig):
    """The networks, the codebook, and the discriminator's size."""


class Model(QuantizedFirstStage):
    """VQGAN (2012.09841, section 3.1), and LDM's VQ-regularised autoencoder (2112.10752, appendix G).

    Its networks are those of diffusers' VQModel: see diffusers_folder.
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.critic = Critic(config)

    def forward(
        self, pixels: Tensor, noise: SampleNoise, step: int, rules: Rules | None = None
    ) -> Outputs:
        """What QuantizedFirstStage gives; under rules also `nll`, a mean over an image's values, and
        what Critic gives.
        """
        found = super().forward(pixels, noise, step)
        if rules is None:
            return found
        made = found["reconstruction"]
        nll = apart(pixels, made, rules).mean()
        last = self.decoder.conv_out.weight
        return found | {"nll": nll} | self.critic(pixels, made, nll, last, step, rules)


class Task(AdversarialTask):
    """The codebook's terms as in VQ-VAE (1711.00937, equation 3): beta weighs the commitment.

    The published weights of taming-transformers and LDM were trained with beta on the other term.
    """

    model: Model

    def __init__(self, *args: Any, beta: float = 0.25, **named: Any) -> None:
        super().__init__(*args, **named)
        self.beta = beta

    def objective(self, pixels: Tensor, found: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        codebook, commitment = found["codebook_loss"], found["commitment"]
        values = {"nll": found["nll"], "commitment": commitment}
        loss = found["nll"] + codebook + self.beta * commitment
        return loss, {name: value.detach() for name, value in values.items()}


def toy() -> Preset:
    """16 tokens of 10 bits."""
    size = Config(
        **recipes.TOY,
        latent_channels=64,
        codes=1024,
        code_channels=16,
        disc_width=16,
        disc_layers=1,
    )
    fit = recipes.TOY_FIT | {"steps": 2000, "lr": 2e-3, "betas": (0.5, 0.9), "clip_norm": 0.0}
    task = {
        "disc_start": 1400,
        "disc_warmup": 100,
        "disc_lr": 0.3,
        "perceptual": "random",
        "perceptual_weight": 0.1,
    }
    return Preset(size, fit, task)


def f4() -> Preset:
    """LDM's: 256 px to 64 x 64 of 8,192 codes of 3 numbers."""
    size = Config(**recipes.F4, latent_channels=3, codes=8192, code_channels=3, **_LEARNED)
    return Preset(size, per_sample_lr(24), {"disc_start": 50_001})


def f16() -> Preset:
    """taming-transformers': 256 px to 16 x 16 of 1,024 codes."""
    size = Config(
        image_size=256,
        channels=(128, 128, 256, 256, 512),
        layers=2,
        latent_channels=256,
        attention_levels=1,
        codes=1024,
        code_channels=256,
        **_LEARNED,
    )
    return Preset(size, per_sample_lr(12), {"disc_start": 10_000, "disc_weight": 0.8})


_LEARNED: dict[str, Any] = {"codebook": "loss", "revive_after": 0}  # as published


def _measure(model: Model, scenes: RenderedScenes) -> dict[str, float]:
    images = scenes.first(512).images
    return quality.reconstruction_figures(model, images) | judged(model, images)


PRESETS = {"toy": toy, "f4": f4, "f16": f16}
GATE = Gate(
    "A16",
    {
        "gain": (">=", 5.0),
        "psnr_change": (">=", -0.5),
        "adaptive_weight": ("<=", 9999.0),  # of a bound of 1e4
        "logit_gap": ("<=", 4.0),
        "codes_used": (">=", 0.9),
    },
    _measure,
)
