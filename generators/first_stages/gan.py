"""A plain GAN: images from noise alone, by a generator against the first stages' PatchGAN."""

# Shapes: B batch, H = W pixels of a side, Z latent numbers.

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from generators.first_stages import quality
from generators.first_stages.adversarial import (
    Form,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from generators.first_stages.patchgan import PatchGAN, require_patch
from generators.noise import SampleNoise
from generators.preset import Gate, Preset
from generators.task import SHOWN, Batch, GeneratorTask, decayed
from generators.unconditional import sampled
from pipeline.errors import UserError
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES

_SLOPE = 0.2  # of leaky ReLU below zero
_MEASURED = 1024  # samples that a gate looks at
_KINDS = {
    "shapes": len(SHAPES),
    "colours": len(COLOURS),
    "sizes": len(SIZES),
    "positions": len(POSITIONS),
    "backgrounds": len(BACKGROUNDS),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Both players' sizes."""

    image_size: int
    latent_size: int = 100
    hidden: tuple[int, ...] = ()
    """Widths of the generator's dense layers."""
    channels: tuple[int, ...] = (1024, 512, 256, 128)
    """Of the generator's maps, coarsest first; each next one, and the image, is twice as large. Without
    any, dense layers draw the pixels, as in the first GAN."""
    disc_width: int = 64
    disc_layers: int = 3
    """Of PatchGAN: a patch is 34 pixels with 2 layers, 70 with 3, and may be larger than the image."""
    disc_norm: bool = True
    """Whether PatchGAN normalises; without it, it needs a gradient penalty."""

    def __post_init__(self) -> None:
        for name in ("hidden", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists only
        if self.image_size % 2 ** len(self.channels):
            raise UserError(
                f"image_size {self.image_size} is not possible",
                f"{len(self.channels)} maps double it as often: give a multiple of "
                f"{2 ** len(self.channels)}",
            )
        require_patch(self.image_size, self.disc_layers)

    @property
    def coarsest(self) -> int:
        """Pixels of a side of the first map."""
        return self.image_size >> len(self.channels)


class Generator(nn.Module):
    """Dense layers as in 1406.2661, then DCGAN's transposed convolutions (1511.06434, section 3).

    GroupNorm stands for DCGAN's BatchNorm: a sample does not depend on what it is drawn together with.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        side, channels = config.coarsest, [*config.channels, 3]
        layers: list[nn.Module] = []
        for before, after in pairwise([config.latent_size, *config.hidden]):
            layers += [nn.Linear(before, after), nn.LeakyReLU(_SLOPE)]
        before = [config.latent_size, *config.hidden][-1]
        layers += [
            nn.Linear(before, channels[0] * side**2),
            nn.Unflatten(1, (channels[0], side, side)),
        ]
        for before, after in pairwise(channels):
            layers += [
                nn.GroupNorm(min(32, before // 4), before),
                nn.ReLU(),
                nn.ConvTranspose2d(before, after, 4, 2, 1),
            ]
        self.body = nn.Sequential(*layers, nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        """(B, Z) -> (B, 3, H, W) in [-1, 1]."""
        return self.body(latents)


class Model(nn.Module):
    """Both players."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = PatchGAN(
            config.disc_width, config.disc_layers, is_normalised=config.disc_norm
        )

    def forward(
        self, real: Tensor, noise: SampleNoise, form: Form, penalty: float
    ) -> dict[str, Tensor]:
        """Scalars: the losses `generator` and `discriminator`, mean logits, and the weighted R1
        `penalty` where it has a weight.
        """
        fake = self.generator(noise.normal(self.config.latent_size))
        verdict = discriminator_loss(self.discriminator, real, fake, form)
        found = {
            "generator": generator_loss(self.discriminator, fake, form),
            "discriminator": verdict.loss,
            "logit_real": verdict.real,
            "logit_fake": verdict.fake,
        }
        if penalty:
            found["penalty"] = penalty / 2 * gradient_penalty(self.discriminator, real)
        return found

    @torch.no_grad()
    def sample(self, n: int, noise: SampleNoise) -> Tensor:
        """(n, 3, H, W)."""
        latents = noise.normal(self.config.latent_size)
        if len(latents) != n:
            raise ValueError(f"{n} samples with the noise of {len(latents)}")
        return self.generator(latents)


class Task(GeneratorTask):
    """Both players learn in one step, see adversarial.

    r1: weight of the discriminator's gradient penalty, taken every `r1_every` steps with that many
    times the weight (1912.04958, section 3.1). disc_lr: the discriminator's learning rate, relative
    to the generator's.
    """

    model: Model

    def __init__(
        self,
        *args: Any,
        form: Form = "non_saturating",
        r1: float = 0.0,
        r1_every: int = 1,
        disc_lr: float = 1.0,
        **named: Any,
    ) -> None:
        super().__init__(*args, **named)
        self.form, self.r1, self.r1_every, self.disc_lr = form, r1, r1_every, disc_lr

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(self.model, FSDPModule):
            raise UserError(
                "a GAN needs a discriminator that is whole on each process",
                "train with --parallel ddp",
            )
        pixels = self.pixels(batch)
        penalty = 0.0 if batch["step"] % self.r1_every else self.r1 * self.r1_every
        found = self.model(pixels, self.noise(batch, pixels.device), self.form, penalty)
        loss = found["generator"] + found["discriminator"]
        if "penalty" in found:
            loss = loss + found["penalty"]
        return loss, {name: value.detach() for name, value in found.items()}

    def parameter_groups(self) -> list[dict]:
        players = self.model.generator, self.model.discriminator
        mine, other = (player.parameters() for player in players)
        return decayed(mine) + decayed(other, lr_scale=self.disc_lr)

    def pictures(self) -> dict[str, np.ndarray]:
        return {"samples": sampled(self.model, SHOWN)}

    def blocks(self) -> list[nn.Module]:
        """The discriminator is not called as it is, see adversarial.held."""
        return [self.model.generator]


def toy() -> Preset:
    """Dense layers draw 16 px; one patch covers the image."""
    size = Config(
        image_size=16,
        latent_size=64,
        hidden=(512, 512, 512),
        channels=(),
        disc_width=32,
        disc_layers=2,
        disc_norm=False,
    )
    fit = {
        "steps": 5000,
        "batch_size": 64,
        "lr": 2e-3,
        "betas": (0.0, 0.99),
        "schedule": "linear",
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "ema": 0.995,
    }
    return Preset(size, fit, {"r1": 0.2, "r1_every": 4})


def dcgan() -> Preset:
    """DCGAN's generator at 64 px, its learning rate and betas (1511.06434, sections 3 and 4)."""
    fit = {
        "steps": 200_000,
        "batch_size": 128,
        "lr": 2e-4,
        "schedule": "constant",
        "betas": (0.5, 0.999),
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    return Preset(Config(image_size=64), fit)


def coverage(images: np.ndarray, level: str) -> dict[str, float]:
    """What scenes uint8 (N, H, W, 3) show: `valid`, the share that is read as one, and of these
    `covered`, the share of all shapes, colours, sizes, positions and backgrounds that occur, and the
    same of each.
    """
    scenes = [scene for image in images if (scene := read_scene(image, level))]
    things = [scene.things[0] for scene in scenes]
    seen = {
        "shapes": {thing.shape for thing in things},
        "colours": {thing.colour for thing in things},
        "sizes": {thing.size for thing in things},
        "positions": {thing.position for thing in things},
        "backgrounds": {scene.background for scene in scenes},
    }
    shares = {name: len(seen[name]) / of for name, of in _KINDS.items()}
    covered = sum(map(len, seen.values())) / sum(_KINDS.values())
    return {"valid": len(scenes) / len(images), "covered": covered, **shares}


def _measure(model: Model, scenes: RenderedScenes) -> dict[str, float]:
    found = coverage(sampled(model, _MEASURED), scenes.level)

    def call(pixels: Tensor) -> list[Tensor]:
        return [model.discriminator(pixels).flatten(1).mean(dim=1)]

    real, fake = (
        float(quality.batched(model, call, images)[0].mean())
        for images in (scenes.first(512).images, sampled(model, 512))
    )
    return found | {"logit_gap": real - fake}


PRESETS = {"toy": toy, "dcgan": dcgan}
GATE = Gate("A16", {"covered": (">=", 1.0), "valid": (">=", 0.1)}, _measure)
