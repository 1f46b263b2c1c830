"""A noised CLIP: an encoder of noised images into the space of frozen towers, whose gradient guides to a text."""

# B batch, E width of the contrastive space; x_t noised pixels (B, 3, H, W), t timesteps (B,)

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.guidance import noised, noised_clip_gate
from generators.guidance.contrastive import contrastive_loss
from generators.guidance.half_unet import HalfUnet, HalfUnetConfig
from generators.preset import Materials, Prepared, Preset
from generators.task import WATCHED, Batch, GeneratorTask, Optimizer
from generators.towers import Towers
from generators.unclip import conditions
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource

FIRST_TEMPERATURE, LARGEST = 1 / 0.07, 100.0  # inverse ones, CLIP's (2103.00020, section 2.5)

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Config(HalfUnetConfig):
    """The network, and the space that it encodes into."""

    embed_dim: int = 0
    """Width E of the towers' space; theirs, where 0."""


class Model(nn.Module):
    """f(x_t, t) of 2112.10741, section 2.4, for a half U-Net."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.embed_dim < 1:
            raise ValueError(f"embed_dim {config.embed_dim}: prepare takes it from towers")
        self.config, self.process = config, config.process
        self.network = HalfUnet(config, config.embed_dim)
        # Of one dimension: FSDP takes no scalars.
        self.log_temperature = nn.Parameter(torch.full((1,), math.log(FIRST_TEMPERATURE)))

    def forward(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, E), unit length, fp32, and the inverse temperature (1,)."""
        found = F.normalize(self.network(noisy, t)[0].float(), dim=1)
        return found, self.log_temperature.exp().clamp(max=LARGEST)

    def maps(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, finest first, see HalfUnet: what structure and style are told by."""
        return self.network(noisy, t)[1]


class Task(GeneratorTask):
    """Contrastive, against the towers' embeddings of captions, as 2112.10741, and of the images without
    noise, as 2112.05744, section 3.3; t uniform. With the latter it learns from images alone, too.

    towers: frozen. text_weight: the captions' share of the loss, 0 to 1.
    """

    model: Model

    def __init__(
        self,
        model: Model,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        optimizer: Optimizer = "adamw",
        towers: Towers,
        text_weight: float = 0.5,
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        if not 0 <= text_weight <= 1:
            raise UserError(f"text_weight {text_weight} is no share", "give 0 to 1")
        if towers.embed_dim != model.config.embed_dim:
            raise UserError(
                f"towers of {towers.embed_dim} dimensions, a noised CLIP of {model.config.embed_dim}",
                "give the towers that it was trained with",
            )
        self.config: Config = model.config
        self.towers, self.text_weight = towers, text_weight

    def tensors(self, examples: Examples) -> Batch:
        """`images`, and what the towers take of images and captions, or a cache has of them."""
        batch = super().tensors(examples)
        noised.require_images(batch, self.config.image_size)
        conditions.add_image(batch, examples, self.towers)
        conditions.add_text(batch, examples, self.towers)
        return batch

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean of both halves, each over the pairs of all processes."""
        pixels = self.pixels(batch)
        noisy, t = noised.noised(pixels, self.config.process, self.noise(batch, pixels.device))
        towers = self.towers.to(pixels.device)
        image = conditions.image_embedding(batch, towers)
        text = conditions.text_condition(batch, towers).pooled
        found, temperature = self.model(noisy, t)
        of_text = contrastive_loss(found, text, temperature)
        of_image = contrastive_loss(found, image, temperature)
        loss = self.text_weight * of_text + (1 - self.text_weight) * of_image
        return loss, {
            "text": of_text.detach(),
            "image": of_image.detach(),
            "temperature": temperature.detach().mean(),
        }

    def evaluate(self) -> dict[str, float]:
        """R@1 of held-out captions, without noise and at some timesteps."""
        images = noised.images_of(self.held_out)
        if images is None or self.held_out is None:
            return {}
        texts = list(self.held_out.texts[:WATCHED])
        return noised_clip_gate.retrieved(self.model, images[:WATCHED], texts, self.towers)

    def blocks(self) -> list[nn.Module]:
        return self.model.network.blocks()


def prepare(config: Config, materials: Materials) -> Prepared:
    """The preset with the width of the towers that were given, which the model's record names."""
    towers = materials.towers
    if towers is None:
        raise UserError(
            "a noised CLIP learns the space of contrastive towers, and none are given",
            "give CLIP=<an open_clip model, or the folder of a captioner>",
        )
    fitted = replace(config, embed_dim=towers.embed_dim)
    return Prepared(fitted, {"towers": towers}, {"towers": dict(towers.about)})


def _toy() -> Preset:
    """Level A at 16 pixels; see the gate."""
    config = Config(
        image_size=16, channels=(32, 64), layers=1, attention=(), head_dim=32, norm_groups=8
    )
    fit = {
        "steps": 2_000,
        "batch_size": 64,
        "lr": 3e-3,
        "warmup_steps": 50,
        "weight_decay": 0.05,
        "ema": 0.99,
    }
    return Preset(config, fit, {"optimizer": "muon"})


def _adm_64() -> Preset:
    """A half U-Net of ADM's classifier's size, for GLIDE's 64 pixels."""
    fit = {
        "steps": 300_000,
        "batch_size": 2048,
        "lr": 3e-4,
        "warmup_steps": 2_000,
        "betas": (0.9, 0.98),
        "weight_decay": 0.2,
        "precision": "bf16",
    }
    return Preset(Config(image_size=64), fit)


PRESETS: dict[str, Callable[[], Preset]] = {"toy": _toy, "adm-64": _adm_64}

GATE = noised_clip_gate.GATE
