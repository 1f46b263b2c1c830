"""The plain autoencoder: few numbers per place, and nothing else between encoder and decoder."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels

from dataclasses import dataclass

from torch import Tensor

from generators.first_stages import backbone, recipes
from generators.first_stages.backbone import FirstStageConfig
from generators.first_stages.family import FirstStage, Outputs, ReconstructionTask, measured
from generators.noise import SampleNoise
from generators.preset import Gate, Preset


@dataclass(frozen=True, kw_only=True)
class Config(FirstStageConfig):
    """Nothing beside the networks."""


class Model(FirstStage):
    """Latents are what the encoder says: their number alone limits what they tell."""

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__(config)
        self.encoder = backbone.encoder(config, config.latent_channels)
        self.decoder = backbone.decoder(config, config.latent_channels)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def forward(self, pixels: Tensor, noise: SampleNoise, step: int) -> Outputs:
        return {"reconstruction": self.reconstruct(pixels)}


class Task(ReconstructionTask):
    """The squared error alone."""


def toy() -> Preset:
    return Preset(Config(**recipes.TOY, latent_channels=8), recipes.TOY_FIT | {"steps": 600})


def f8() -> Preset:
    """256 px to 32 x 32 of 4 numbers, as LDM's KL-f8 without its KL."""
    return Preset(Config(**recipes.F8, latent_channels=4), recipes.FIT)


PRESETS = {"toy": toy, "f8": f8}
GATE = Gate("A16", {"gain": (">=", 5.0)}, measured)
