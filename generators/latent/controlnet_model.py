"""ControlNet: a copy of a U-Net's encoder that is shown a condition image, and adds to the U-Net's skips."""

# B samples, C h w of latents, H W of pixels, T tokens of a caption, D width of their states

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from generators.diffusion.samplers import Sampling
from generators.latent import config as base_config
from generators.latent import denoisers
from generators.latent.controlnet_config import Config
from generators.latent.model import LatentDiffusion, Text
from generators.noise import SampleNoise

_MASKED = -10_000.0  # diffusers' U-Net adds it where a caption has no token
_COPIED = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")


class ControlNet(nn.Module):
    """2302.05543, section 3: the frozen model, and what is trained. It draws as LatentDiffusion does.

    `controlnet` is diffusers' module, the only one among the weights. What it controls is set by `of`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.process = config, config.process
        with torch.device("meta"):  # only its shape is read
            unet = denoisers.build(of_base(config))
        self.controlnet = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=config.widths,
            load_weights_from_unet=False,
        )
        self._base: tuple[LatentDiffusion, ...] = ()

    def of(self, base: LatentDiffusion) -> Self:
        """Controls this model, which is frozen; ValueError where it is of another shape."""
        own = replace(of_base(self.config), image_size=base.config.image_size)
        if base.config != own:
            raise ValueError(f"{base.config} is not what this controls: {own}")
        # In a tuple, torch takes it for no part of this module: it is not saved, averaged or cut.
        self._base = (base.eval().requires_grad_(False),)
        return self

    @property
    def base(self) -> LatentDiffusion:
        """The frozen model, on this one's device."""
        if not self._base:
            raise ValueError("what the ControlNet controls was not set: call `of`")
        return self._base[0].to(self.device)

    @property
    def device(self) -> torch.device:
        return self.controlnet.conv_in.weight.device

    def forward(
        self, noisy: Tensor, t: Tensor, text: Text, hint: Tensor, scale: float = 1.0
    ) -> Tensor:
        """What the base predicts of x_t (B, C, h, w) and t (B,), where it is told the hint as well.

        hint: (B, 3, H, W) in [0, 1]. scale: of what is added to the base's skips; 0 is the base.
        """
        return self.base(noisy, t, text, **self.residuals(noisy, t, text, hint, scale))

    def residuals(
        self, noisy: Tensor, t: Tensor, text: Text, hint: Tensor, scale: float = 1.0
    ) -> dict[str, Any]:
        """What is added to the U-Net's skips and to its middle, by the names of its arguments.

        diffusers' own forward takes its mask for one of pixels, in self-attention; here tokens that
        are none of the caption's are hidden from cross-attention, as in the base.
        """
        net = self.controlnet
        time = net.time_proj(self.process.network_time(t)).to(noisy.dtype)
        bias = (1 - text.mask.to(noisy.dtype)) * _MASKED
        told = {
            "temb": net.time_embedding(time),
            "encoder_hidden_states": text.states,
            "encoder_attention_mask": bias[:, None],
        }
        plain = {"temb": told["temb"]}
        x = net.conv_in(noisy) + net.controlnet_cond_embedding(hint)
        skips = [x]
        for block in net.down_blocks:
            x, own = block(x, **(told if getattr(block, "has_cross_attention", False) else plain))
            skips += own
        middle = net.controlnet_mid_block(net.mid_block(x, **told))
        added = [
            out(skip) * scale for out, skip in zip(net.controlnet_down_blocks, skips, strict=True)
        ]
        return {
            "down_block_additional_residuals": added,
            "mid_block_additional_residual": middle * scale,
        }

    @torch.no_grad()
    def sample(
        self,
        text: Text,
        noise: SampleNoise,
        *,
        hint: Tensor,
        scale: float = 1.0,
        empty: Text | None = None,
        guidance: float = 1.0,
        sampling: Sampling | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Scaled latents (B, C, h, w): see `LatentDiffusion.sample`; under guidance both of its sides
        are told the hint (B, 3, H, W).
        """
        predict = Told(self, hint, scale).guided(text, empty, guidance)
        size = size or (self.config.latent_size,) * 2
        return self.base.sample(text, noise, sampling=sampling, size=size, predict=predict)


@dataclass(frozen=True)
class Told:
    """A ControlNet with its hint: what is left is what LatentDiffusion takes."""

    model: ControlNet
    hint: Tensor
    scale: float = 1.0

    def __call__(self, noisy: Tensor, t: Tensor, text: Text) -> Tensor:
        hint = self.hint.repeat(len(noisy) // len(self.hint), 1, 1, 1)  # guidance asks twice
        return self.model(noisy, t, text, hint, self.scale)

    guided = LatentDiffusion.guided


def of_base(config: Config) -> base_config.Config:
    """The part of a config that is the base's."""
    names = base_config.Config.__dataclass_fields__
    values = asdict(config)
    return base_config.Config(**{name: values[name] for name in names})


def adapt(model: ControlNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A base's weights as a ControlNet starts with them: its encoder and middle, copied (2302.05543,
    section 3.1); all else is the model's own, the last layers 0.
    """
    own = model.state_dict()
    copied = {
        name: weights[f"denoiser.{name.removeprefix('controlnet.')}"]
        for name in own
        if name.removeprefix("controlnet.").startswith(_COPIED)
    }
    return own | copied


def condition(hints: np.ndarray | Tensor) -> Tensor:
    """Hints uint8 (B, H, W) or (B, H, W, 3) as a ControlNet is shown them: (B, 3, H, W) in [0, 1]."""
    found = torch.as_tensor(hints)
    if found.ndim == 3:
        found = found[..., None].expand(-1, -1, -1, 3)
    return found.permute(0, 3, 1, 2).float().div(255).contiguous()
