"""The convolutional encoder and decoder that all first stages with a chosen bottleneck share."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C channels

from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.errors import UserError

COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """The networks of LDM's first stages (2112.10752, appendix G), whatever stands between them."""

    image_size: int
    """Pixels of a side that it is trained on; the networks take any multiple of `factor`."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Of each resolution, the full one first; the last one is the latents'."""
    layers: int = 1
    """Residual blocks per resolution; the decoder has one more."""
    latent_channels: int = 4
    attention_levels: int = 0
    """How many of the coarsest resolutions attend after each residual block."""
    mid_attention: bool = True
    """Whether the middle, at the latents' resolution, attends."""
    norm_groups: int = 32
    """Of the group normalisations, whose means are of the whole image; 0 is none, as in VQ-VAE's own
    networks. A latent then depends on its surroundings alone, which makes tokens easier to predict."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON knows lists only
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"channels {self.channels} are not possible", "give one per resolution")
        if self.norm_groups and any(width % self.norm_groups for width in self.channels):
            raise UserError(
                f"channels {self.channels} are not divisible by norm_groups {self.norm_groups}",
                "give multiples of it",
            )
        if self.image_size < self.factor or self.image_size % self.factor:
            raise UserError(
                f"image_size {self.image_size} is not divisible by {self.factor}",
                f"{len(self.channels)} resolutions halve it {len(self.channels) - 1} times",
            )
        if not 0 <= self.attention_levels <= len(self.channels):
            raise UserError(
                f"attention_levels {self.attention_levels} is not possible",
                f"there are {len(self.channels)} resolutions",
            )

    @property
    def factor(self) -> int:
        """Pixels per side of a latent."""
        return 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> int:
        """Latents per side of an image of `image_size`."""
        return self.image_size // self.factor


def encoder(config: FirstStageConfig, outputs: int, inputs: int = COLOURS) -> nn.Module:
    """(B, inputs, H, W) -> (B, outputs, h, w); the encoder of diffusers' AutoencoderKL and VQModel."""
    kinds = _kinds(config, "DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    network = _networks().Encoder(
        in_channels=inputs,
        out_channels=outputs,
        down_block_types=kinds,
        double_z=False,
        **_shared(config),
    )
    return network if config.norm_groups else _without_norms(network)


def decoder(config: FirstStageConfig, inputs: int, outputs: int = COLOURS) -> nn.Module:
    """(B, inputs, h, w) -> (B, outputs, H, W); the decoder of diffusers' AutoencoderKL and VQModel."""
    kinds = _kinds(config, "UpDecoderBlock2D", "AttnUpDecoderBlock2D")[::-1]
    network = _networks().Decoder(
        in_channels=inputs, out_channels=outputs, up_block_types=kinds, **_shared(config)
    )
    return network if config.norm_groups else _without_norms(network)


def diffusers_config(config: FirstStageConfig) -> dict[str, Any]:
    """What diffusers' AutoencoderKL and VQModel both call the fields of this configuration."""
    return {
        "in_channels": COLOURS,
        "out_channels": COLOURS,
        "down_block_types": _kinds(config, "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": _kinds(config, "UpDecoderBlock2D", "AttnUpDecoderBlock2D")[::-1],
        "latent_channels": config.latent_channels,
        "sample_size": config.image_size,
        **_shared(config),
    }


def _shared(config: FirstStageConfig) -> dict[str, Any]:
    return {
        "block_out_channels": config.channels,
        "layers_per_block": config.layers,
        "norm_num_groups": config.norm_groups or 1,
        "mid_block_add_attention": config.mid_attention,
    }


def _without_norms(network: nn.Module) -> nn.Module:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return network


def _kinds(config: FirstStageConfig, plain: str, attending: str) -> tuple[str, ...]:
    attends = config.attention_levels
    return (plain,) * (len(config.channels) - attends) + (attending,) * attends


def _networks() -> Any:
    try:
        from diffusers.models.autoencoders import vae
    except ImportError:
        raise UserError(
            "first stages are made of diffusers' networks, which are not installed",
            "pip install 'recaption[train]'",
        ) from None
    return vae
