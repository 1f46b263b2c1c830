"""Encoder, vector quantiser and decoder: the model of VQ-VAE, and of VQGAN without its critic."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels, D width of a code

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from generators.first_stages import backbone
from generators.first_stages.backbone import FirstStageConfig
from generators.first_stages.family import FirstStage, Outputs
from generators.first_stages.quantizer import VectorQuantizer
from generators.noise import SampleNoise
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class QuantizedConfig(FirstStageConfig):
    """A first stage with K codes; see quantizer.VectorQuantizer on the last three."""

    codes: int
    """K, the size of the vocabulary of tokens."""
    code_channels: int
    """D, the width of a code."""
    codebook: Literal["loss", "ema"] = "ema"
    decay: float = 0.99
    revive_after: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook not in ("loss", "ema"):
            raise UserError(f"codebook {self.codebook!r} is none", "give loss or ema")
        if self.codes < 2:
            raise UserError(f"codes {self.codes} are too few", "give 2 or more")

    def quantizer(self) -> VectorQuantizer:
        return VectorQuantizer(
            self.codes,
            self.code_channels,
            codebook=self.codebook,
            decay=self.decay,
            revive_after=self.revive_after,
        )

    def require_unsharded(self, model: nn.Module) -> None:
        """UserError where FSDP would lose what reviving writes into a trained codebook."""
        if self.codebook == "loss" and self.revive_after and isinstance(model, FSDPModule):
            raise UserError(
                "a codebook that is learned by its loss cannot be revived under FSDP",
                "train with DDP, with codebook ema, or with revive_after 0",
            )


class QuantizedFirstStage(FirstStage):
    """Networks under the names of diffusers' VQModel, whose state dicts fit both ways.

    The averages of an `ema` codebook and the idle counts of reviving are additional.
    """

    config: QuantizedConfig

    def __init__(self, config: QuantizedConfig) -> None:
        super().__init__(config)
        latents, width = config.latent_channels, config.code_channels
        self.vocabulary = config.codes
        self.encoder = backbone.encoder(config, latents)
        self.quant_conv = nn.Conv2d(latents, width, 1)
        self.quantize = config.quantizer()
        self.post_quant_conv = nn.Conv2d(width, latents, 1)
        self.decoder = backbone.decoder(config, latents)

    def continuous(self, pixels: Tensor) -> Tensor:
        """What is quantised: (B, D, h, w)."""
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: Tensor) -> Tensor:
        """The codes of `tokens`: (B, D, h, w)."""
        return self.quantize.vectors(self.tokens(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w) long, below `vocabulary`."""
        return self.quantize.tokens(self.continuous(pixels))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, h, w) -> (B, 3, H, W)."""
        return self.decode(self.quantize.vectors(tokens))

    def forward(self, pixels: Tensor, noise: SampleNoise, step: int) -> Outputs:
        """`reconstruction`, `tokens`, and the quantiser's `codebook_loss` and `commitment`."""
        self.config.require_unsharded(self)
        found = self.quantize(self.continuous(pixels), noise, step)
        return {
            "reconstruction": self.decode(found.vectors),
            "tokens": found.tokens,
            "codebook_loss": found.codebook_loss,
            "commitment": found.commitment,
        }
