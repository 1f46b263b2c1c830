"""VQ-VAE: images as a grid of codes out of a learned codebook."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels, K codes

from dataclasses import replace
from typing import Any

from torch import Tensor

from generators.first_stages import recipes
from generators.first_stages.family import Outputs, ReconstructionTask, measured, squared_error
from generators.first_stages.quantized import QuantizedConfig as Config
from generators.first_stages.quantized import QuantizedFirstStage as Model
from generators.preset import Gate, Preset

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task"]


class Task(ReconstructionTask):
    """The three terms of 1711.00937, equation 3; beta weighs the commitment."""

    model: Model

    def __init__(self, *args: Any, beta: float = 0.25, **named: Any) -> None:
        super().__init__(*args, **named)
        self.beta = beta

    def objective(self, pixels: Tensor, found: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        error = squared_error(found["reconstruction"], pixels)
        loss = error + found["codebook_loss"] + self.beta * found["commitment"]
        return loss, {"mse": error.detach(), "commitment": found["commitment"].detach()}


def toy() -> Preset:
    """16 tokens of 8 bits: 128 bits."""
    size = Config(**recipes.TOY, latent_channels=64, codes=256, code_channels=16, decay=0.95)
    return Preset(size, recipes.TOY_FIT)


def toy_fine() -> Preset:
    """64 tokens of 9 bits: level A's things of 6 px stay readable, as DALL-E's gate needs it."""
    size = Config(
        **recipes.TOY | {"channels": (16, 48)},
        latent_channels=48,
        codes=512,
        code_channels=16,
        decay=0.98,
    )
    return Preset(size, recipes.TOY_FIT | {"steps": 2400, "warmup_steps": 100})


def toy_quick() -> Preset:
    """64 tokens of 8 bits, enough for things that stand in four places: fewer to tell apart."""
    return replace(toy_fine(), config=replace(toy_fine().config, codes=256))


def toy_64() -> Preset:
    """Level B's 64 px to 16 x 16 tokens of 10 bits; for a GPU."""
    size = Config(
        **recipes.TOY | {"image_size": 64, "channels": (32, 64, 96)},
        latent_channels=64,
        codes=1024,
        code_channels=16,
        decay=0.98,
    )
    return Preset(size, recipes.TOY_FIT | {"steps": 2400, "batch_size": 64, "warmup_steps": 100})


def imagenet() -> Preset:
    """128 px to 32 x 32 tokens, K = 512, D = 64 (1711.00937, section 4.1)."""
    size = recipes.F4 | {"image_size": 128, "channels": (128, 256, 256)}
    return Preset(Config(**size, latent_channels=256, codes=512, code_channels=64), recipes.FIT)


PRESETS = {
    "toy": toy,
    "toy-fine": toy_fine,
    "toy-quick": toy_quick,
    "toy-64": toy_64,
    "imagenet": imagenet,
}
GATE = Gate("A16", {"gain": (">=", 5.0), "codes_used": (">=", 0.9)}, measured)
