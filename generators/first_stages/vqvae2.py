"""VQ-VAE-2: a coarse grid of codes for what is large, and a fine one for what that leaves open."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, D width of a code; the top's grid is
# coarser than the bottom's (h, w) by 2 per resolution that it adds

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from generators.first_stages import backbone, quality, recipes, vqvae
from generators.first_stages.backbone import FirstStageConfig
from generators.first_stages.family import FirstStage, Outputs
from generators.first_stages.quantized import QuantizedConfig
from generators.noise import SampleNoise
from generators.pixels import to_model
from generators.preset import Gate, Preset
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

Level = Literal["top", "bottom"]
LEVELS: tuple[Level, ...] = ("top", "bottom")


@dataclass(frozen=True, kw_only=True)
class Config(QuantizedConfig):
    """The bottom's networks, and the top's; both codebooks have `codes` codes of `code_channels`."""

    top_channels: tuple[int, ...]
    """Of the top's resolutions; the first one is the bottom grid's."""
    top_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "top_channels", tuple(self.top_channels))
        if len(self.top_channels) < 2:
            raise UserError(
                f"top_channels {self.top_channels} make no coarser grid", "give two or more"
            )
        self.top  # noqa: B018  it checks the rest

    @property
    def top(self) -> FirstStageConfig:
        """The top's networks, whose image is the bottom's grid."""
        return FirstStageConfig(
            image_size=self.grid,
            channels=self.top_channels,
            layers=self.top_layers,
            latent_channels=self.latent_channels,
            mid_attention=self.mid_attention,
            norm_groups=self.norm_groups,
        )


class Model(FirstStage):
    """Two levels of codes (1906.00446, section 3.1 and algorithm 1).

    The top is quantised first; its decoding is seen by what is quantised at the bottom. Latents are the
    bottom's codes beside the top's, enlarged to the bottom's grid: (B, 2 D, h, w).
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        latents, width, top = config.latent_channels, config.code_channels, config.top
        self.vocabulary = config.codes
        self.encoder = backbone.encoder(config, latents)
        self.top_encoder = backbone.encoder(top, latents, inputs=latents)
        self.top_quant_conv = nn.Conv2d(latents, width, 1)
        self.top_quantize = config.quantizer()
        self.top_decoder = backbone.decoder(top, width, outputs=latents)
        self.quant_conv = nn.Conv2d(2 * latents, width, 1)
        self.quantize = config.quantizer()
        self.decoder = backbone.decoder(config, 2 * width)

    def level_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The top's tokens (B, h', w'), then the bottom's (B, h, w)."""
        coarse = self.encoder(pixels)
        top = self.top_quantize.tokens(self._top(coarse))
        seen = self._bottom(coarse, self.top_quantize.vectors(top))
        return top, self.quantize.tokens(seen)

    def decode_tokens(self, top: Tensor, bottom: Tensor) -> Tensor:
        """(B, 3, H, W) of the tokens of both levels."""
        return self.decode(
            self._latents(self.top_quantize.vectors(top), self.quantize.vectors(bottom))
        )

    def encode(self, pixels: Tensor) -> Tensor:
        top, bottom = self.level_tokens(pixels)
        return self._latents(self.top_quantize.vectors(top), self.quantize.vectors(bottom))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def of_one_level(self, pixels: Tensor, level: Level) -> Tensor:
        """The reconstruction (B, 3, H, W) from one level's codes, the other's all at their mean."""
        tokens = dict(zip(LEVELS, self.level_tokens(pixels), strict=True))
        vectors = []
        for name, quantizer in (("top", self.top_quantize), ("bottom", self.quantize)):
            found = quantizer.vectors(tokens[name])
            blank = quantizer.mean().view(1, -1, 1, 1).expand_as(found)
            vectors.append(found if name == level else blank)
        return self.decode(self._latents(*vectors))

    def forward(self, pixels: Tensor, noise: SampleNoise, step: int) -> Outputs:
        """`reconstruction`, and the sums of both quantisers' `codebook_loss` and `commitment`."""
        self.config.require_unsharded(self)
        coarse = self.encoder(pixels)
        top = self.top_quantize(self._top(coarse), noise, step)
        bottom = self.quantize(self._bottom(coarse, top.vectors), noise, step)
        return {
            "reconstruction": self.decode(self._latents(top.vectors, bottom.vectors)),
            "codebook_loss": top.codebook_loss + bottom.codebook_loss,
            "commitment": top.commitment + bottom.commitment,
        }

    def _top(self, coarse: Tensor) -> Tensor:
        return self.top_quant_conv(self.top_encoder(coarse))

    def _bottom(self, coarse: Tensor, top: Tensor) -> Tensor:
        return self.quant_conv(torch.cat([coarse, self.top_decoder(top)], dim=1))

    def _latents(self, top: Tensor, bottom: Tensor) -> Tensor:
        return torch.cat([bottom, interpolate(top, size=bottom.shape[2:], mode="nearest")], dim=1)


class Task(vqvae.Task):
    """VQ-VAE's loss, with the terms of both levels."""

    model: Model

    def figures(self, images: np.ndarray) -> dict[str, float]:
        return level_figures(self.model, images)

    def blocks(self) -> list[nn.Module]:
        top = [*self.model.top_encoder.down_blocks, *self.model.top_decoder.up_blocks]
        return [*super().blocks(), *top]


def level_figures(model: Model, images: np.ndarray) -> dict[str, float]:
    """Those of any first stage; of each level codes_used, perplexity, and the PSNR of it alone."""
    found = quality.reconstruction_figures(model, images)
    tokens = quality.batched(model, model.level_tokens, images)
    alone = quality.batched(
        model, lambda x: [model.of_one_level(x, level) for level in LEVELS], images
    )
    for level, of_level, made in zip(LEVELS, tokens, alone, strict=True):
        figures = quality.code_figures(of_level, model.vocabulary)
        figures["psnr"] = float(quality.psnr(made, to_model(images)).mean())
        found |= {f"{level}_{name}": value for name, value in figures.items()}
    found["over_one_level"] = found["psnr"] - max(found["top_psnr"], found["bottom_psnr"])
    return found


def toy() -> Preset:
    """4 tokens and 16 tokens of 6 bits each: 120 bits, fewer than the toy VQ-VAE has."""
    levels = {"top_channels": (64, 64), "latent_channels": 64, "codes": 64, "code_channels": 16}
    return Preset(Config(**recipes.TOY, **levels, decay=0.95), recipes.TOY_FIT)


def imagenet() -> Preset:
    """256 px to 32 x 32 and 64 x 64 tokens, K = 512, D = 64 (1906.00446, table of appendix A)."""
    levels = {"top_channels": (512, 512), "top_layers": 2, "latent_channels": 128}
    return Preset(
        Config(**recipes.F4, **levels, codes=512, code_channels=64), recipes.FIT | {"lr": 3e-4}
    )


def _measure(model: Model, scenes: RenderedScenes) -> dict[str, float]:
    return level_figures(model, scenes.first(512).images)


PRESETS = {"toy": toy, "imagenet": imagenet}
GATE = Gate("A16", {"gain": (">=", 5.0), "over_one_level": (">=", 1.0)}, _measure)
