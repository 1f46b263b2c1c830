"""What an adversarial first stage has besides: a discriminator, its part in the loss, and its record."""

# Shapes: B batch, H W pixels of a side.

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from generators.first_stages.adversarial import (
    Form,
    adaptive_weight,
    average,
    discriminator_loss,
    generator_loss,
)
from generators.first_stages.backbone import FirstStageConfig
from generators.first_stages.family import FirstStage, Outputs, ReconstructionTask
from generators.first_stages.patchgan import PatchGAN, require_patch
from generators.first_stages.perceptual import distance
from generators.first_stages.perceptual import load as load_features
from generators.first_stages.quality import batched, psnr
from generators.task import Batch, decayed
from pipeline.errors import UserError

_RECENT = 50  # micro-batches that the record looks back on
_LOGGED = (
    *("adversarial", "discriminator", "adaptive_weight", "psnr_change"),
    *("logit_real", "logit_fake"),
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How an adversarial first stage is trained; steps count from 0."""

    disc_start: int
    """The first step in which the discriminator's opinion reaches the first stage."""
    disc_weight: float = 0.5
    """Of that opinion, times the adaptive weight."""
    disc_warmup: int = 0
    """Steps before disc_start in which the discriminator learns already; the papers have 0, and the
    first stage then follows one that knows nothing yet."""
    form: Form = "hinge"
    perceptual: nn.Module | None = None
    """A `perceptual.Features`, or none."""
    perceptual_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CriticConfig(FirstStageConfig):
    """PatchGAN's size."""

    disc_width: int = 64
    disc_layers: int = 3


class Critic(nn.Module):
    """PatchGAN, and how well the first stage did before it had a say and since.

    The record (means over about the last 50 batches of PSNR, and of the adaptive weight) goes with the
    model, so that a resumed run has it: a discriminator that ruins reconstruction is seen as a
    `psnr_change` far below zero.
    """

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.patches = PatchGAN(config.disc_width, config.disc_layers)
        self.register_buffer("psnr_before", torch.zeros(1))
        self.register_buffer("psnr_since", torch.zeros(1))
        self.register_buffer("weight", torch.zeros(1))

    def forward(
        self, pixels: Tensor, made: Tensor, nll: Tensor, last: Tensor, step: int, rules: Rules
    ) -> Outputs:
        """Both players' terms of the loss, and what is logged; the record goes on.

        made: the reconstruction of pixels (B, 3, H, W). nll: the scalar that it is trained with.
        last: the weight of the decoder's last layer. Gives `adversarial`, whose gradient reaches the
        first stage alone, and `discriminator`, whose gradient reaches this module alone, each 0
        before its time.
        """
        found = {"adversarial": torch.zeros_like(nll), "discriminator": torch.zeros_like(nll)}
        with torch.no_grad():
            recent = average(psnr(made, pixels).mean())
        if step < rules.disc_start:
            _blend(self.psnr_before, recent, step)
        else:
            fooled = generator_loss(self.patches, made, rules.form)
            weight = adaptive_weight(nll, fooled, last)
            _blend(self.psnr_since, recent, step - rules.disc_start)
            _blend(self.weight, weight, step - rules.disc_start)
            found["adversarial"] = rules.disc_weight * weight * fooled
            found |= {"adaptive_weight": weight, "psnr_change": self.psnr_change()}
        if step >= rules.disc_start - rules.disc_warmup:
            verdict = discriminator_loss(self.patches, pixels, made, rules.form)
            found |= {"discriminator": verdict.loss}
            found |= {"logit_real": verdict.real, "logit_fake": verdict.fake}
        return found

    def psnr_change(self) -> Tensor:
        """dB of the reconstruction since the discriminator had a say, over before: a scalar."""
        return (self.psnr_since - self.psnr_before).squeeze()


def apart(pixels: Tensor, made: Tensor, rules: Rules) -> Tensor:
    """(B, 3, H, W): absolute differences, plus each image's perceptual distance at all of its values."""
    found = (pixels - made.float()).abs()
    if rules.perceptual is not None:
        unlike = distance(rules.perceptual, pixels, made)
        found = found + rules.perceptual_weight * unlike[:, None, None, None]
    return found


def _blend(mean: Tensor, value: Tensor, count: int) -> None:
    """A mean of the first values, then a moving one."""
    mean.lerp_(value.to(mean.dtype).expand_as(mean), max(1 / _RECENT, 1 / (count + 1)))


class AdversarialTask(ReconstructionTask):
    """A first stage against its discriminator, which is a parameter group of its own.

    perceptual: see perceptual.load. disc_lr: the discriminator's learning rate, relative to the
    first stage's. Others: see Rules.

    Both learn in one step (see adversarial). Clipping by the norm of all gradients would let the
    larger one decide for both: presets turn it off, as the papers do.
    """

    def __init__(
        self,
        model: FirstStage,
        source: Any,
        *,
        perceptual: str = "",
        disc_lr: float = 1.0,
        held_out: Any = None,
        **rules: Any,
    ) -> None:
        super().__init__(model, source, held_out=held_out)
        require_patch(model.config.image_size, model.config.disc_layers)  # before disc_start
        self.rules = Rules(perceptual=load_features(perceptual), **rules)
        self.disc_lr = disc_lr

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.pixels(batch)
        if self.rules.perceptual is not None:
            self.rules.perceptual.to(pixels.device)
        if isinstance(self.model, FSDPModule):
            raise UserError(
                "an adversarial loss needs a discriminator that is whole on each process",
                "train with --parallel ddp",
            )
        found = self.model(pixels, self.noise(batch, pixels.device), batch["step"], self.rules)
        loss, values = self.objective(pixels, found)
        # In an order of their own: the processes of a run average them by position.
        values |= {name: found[name].detach() for name in _LOGGED if name in found}
        return loss + found["adversarial"] + found["discriminator"], values

    def parameter_groups(self) -> list[dict]:
        critic = set(self.model.critic.parameters())
        own = [parameter for parameter in self.model.parameters() if parameter not in critic]
        return decayed(own) + decayed(self.model.critic.parameters(), lr_scale=self.disc_lr)


def judged(model: FirstStage, images: np.ndarray) -> dict[str, float]:
    """What a gate wants to know of a trained model's discriminator, on uint8 images (N, H, W, 3).

    psnr_change: from the training's record. adaptive_weight: the last ones' mean. logit_gap: by how
    much real images' mean logit is above their reconstructions'; 0 is one that sees no difference, a
    large one is never fooled.
    """

    def call(pixels: Tensor) -> list[Tensor]:
        made = model.reconstruct(pixels)
        return [model.critic.patches(image).flatten(1).mean(dim=1) for image in (pixels, made)]

    real, fake = batched(model, call, images)
    return {
        "psnr_change": float(model.critic.psnr_change()),
        "adaptive_weight": float(model.critic.weight),
        "logit_gap": float(real.mean() - fake.mean()),
    }


def per_sample_lr(batch_size: int) -> dict[str, Any]:
    """Settings of LDM's and taming-transformers' trainings: Adam at 4.5e-6 per sample of a batch.

    Neither tells its steps; these leave the discriminator several times as long as the first stage
    had alone.
    """
    return {
        "steps": 300_000,
        "batch_size": batch_size,
        "lr": 4.5e-6 * batch_size,
        "schedule": "constant",
        "betas": (0.5, 0.9),
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
