"""The diffusion decoder: a noisy image and latents at its size go in, the clean image comes out."""

# B samples, H W pixels, C h w of latents with h = H / factor, w = W / factor

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.consistency.config import COLOURS, Config
from generators.consistency.preconditioning import preconditioning
from generators.diffusion.initialise import zero_last_layers
from pipeline.errors import UserError

CLEAN = -1
"""The time at which nothing is left of the noise."""


class DecoderNetwork(nn.Module):
    """A convolutional U-Net (2105.05233 without attention) that sees latents, enlarged, beside x_t.

    `decoder_unet` is diffusers' UNet2DModel as ConsistencyDecoderVAE has it: of its 6 channels the last
    3, once a variance, are not used. `means`, `stds` (1, C, 1, 1) are of the first stage's unscaled
    latents, which the network sees whitened.
    """

    means: Tensor
    stds: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.process = config, config.process
        self.decoder_unet = _unet_class()(**unet_config(config))
        zero_last_layers(self.decoder_unet, self.decoder_unet.conv_out)
        self.register_buffer("means", torch.zeros(1, config.latent_channels, 1, 1))
        self.register_buffer("stds", torch.ones(1, config.latent_channels, 1, 1))

    @property
    def device(self) -> torch.device:
        return self.means.device

    def forward(self, noisy: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """x_t (B, 3, H, W), t (B,) long, unscaled latents (B, C, h, w) -> x_0 (B, 3, H, W) in fp32.

        Where t is CLEAN, x_t itself.
        """
        return self.answered(self.decoder_unet, noisy, t, latents)

    def answered(self, unet: nn.Module, noisy: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """The same, of some U-Net."""
        of = preconditioning(*self.levels(t, noisy.ndim), self.config.sigma_data)
        shown = torch.cat([of.into * noisy, self.enlarged(latents)], dim=1)
        said = unet(shown, t.clamp_min(0), return_dict=False)[0][:, :COLOURS]
        return of.skip * noisy + of.out * said.float()

    def levels(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) as (B, 1, ...); 1 and 0 where t is CLEAN."""
        signal, rest = self.process.levels(t.clamp_min(0), ndim)
        is_clean = (t < 0).view(-1, *[1] * (ndim - 1))
        return signal.masked_fill(is_clean, 1.0), rest.masked_fill(is_clean, 0.0)

    def enlarged(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> whitened ones (B, C, H, W)."""
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents {tuple(latents.shape)}, not of {self.config.latent_channels} channels"
            )
        whitened = (latents - self.means) / self.stds
        return F.interpolate(whitened, scale_factor=self.config.factor, mode="nearest")

    def image_size(self, latents: Tensor) -> tuple[int, int]:
        """H, W of what latents become; UserError where the network has no such size."""
        height, width = (self.config.factor * side for side in latents.shape[2:])
        stride = self.config.stride
        if height % stride or width % stride:
            raise UserError(
                f"this decoder makes no image of {width} x {height} pixels",
                f"give sides that {stride} divides",
            )
        return height, width

    def whiten(self, latents: Tensor) -> None:
        """Takes means and deviations from latents (N, C, h, w); UserError where a channel is constant."""
        found = latents.double().transpose(0, 1).flatten(1)
        means, stds = found.mean(dim=1), found.std(dim=1)
        if not bool((stds > 0).all()):
            raise UserError(
                f"{len(latents)} images have latents that never vary",
                "give more images, or a trained first stage",
            )
        self.means.copy_(means.view_as(self.means))
        self.stds.copy_(stds.view_as(self.stds))


def unet_config(config: Config) -> dict[str, Any]:
    """The configuration as diffusers' UNet2DModel has it."""
    levels = len(config.channels)
    return {
        "in_channels": COLOURS + config.latent_channels,
        "out_channels": 2 * COLOURS,
        "block_out_channels": config.channels,
        "down_block_types": ("ResnetDownsampleBlock2D",) * levels,
        "up_block_types": ("ResnetUpsampleBlock2D",) * levels,
        "layers_per_block": config.layers,
        "norm_num_groups": config.norm_groups,
        "add_attention": False,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": config.time,
        "num_train_timesteps": config.timesteps,
    }


def _unet_class() -> Any:
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise UserError(
            "decoders are made of diffusers' networks, which are not installed",
            "pip install 'recaption[train]'",
        ) from None
    return UNet2DModel
