"""The network of latent diffusion: noisy latents and a caption's states, to what the process predicts of them."""

# B samples, C h w of latents, T tokens of a caption, D width of their states

from typing import NamedTuple

import torch
from torch import Tensor, nn

from generators.diffusion import samplers
from generators.diffusion.samplers import Predict, Sampling
from generators.latent import denoisers
from generators.latent.config import Config
from generators.noise import SampleNoise


class Text(NamedTuple):
    """What a text encoder makes of B captions. states: (B, T, D). mask: (B, T) bool, the tokens that are
    a caption's.
    """

    states: Tensor
    mask: Tensor

    def where(self, kept: Tensor, other: "Text") -> "Text":
        """These where `kept` (B,) is true, elsewhere the one caption of `other`, as many tokens long."""
        return Text(
            torch.where(kept[:, None, None], self.states, other.states),
            torch.where(kept[:, None], self.mask, other.mask),
        )

    def repeated(self, num: int) -> "Text":
        """Of one caption, `num` times."""
        return Text(self.states.expand(num, -1, -1), self.mask.expand(num, -1))

    def joined(self, other: "Text") -> "Text":
        """Both, one batch after the other."""
        return Text(torch.cat([self.states, other.states]), torch.cat([self.mask, other.mask]))


class LatentDiffusion(nn.Module):
    """2112.10752, section 3: all of it on scaled latents; first stage and text encoder are not part of it.

    `denoiser` is diffusers' module. residuals: what a ControlNet adds to its U-Net's skips.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.process = config, config.process
        self.denoiser = denoisers.build(config)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def forward(self, noisy: Tensor, t: Tensor, text: Text, **residuals: Tensor) -> Tensor:
        """x_t (B, C, h, w), t (B,) -> the same shape: epsilon, v or flow, as the config says."""
        return self.denoiser(
            noisy,
            encoder_hidden_states=text.states,
            timestep=self.process.network_time(t),
            encoder_attention_mask=text.mask,
            return_dict=False,
            **residuals,
        )[0]

    def guided(self, text: Text, empty: Text | None = None, guidance: float = 1.0) -> Predict:
        """A prediction with classifier-free guidance (2207.12598); 1 is the conditional model itself,
        at half the cost. empty: the caption "", one.
        """
        if guidance == 1:
            return lambda noisy, t: self(noisy, t, text)
        if empty is None:
            raise ValueError('guidance needs what the caption "" says')
        both = empty.repeated(len(text.states)).joined(text)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            output = self(torch.cat([noisy, noisy]), torch.cat([t, t]), both)
            null, full = output.chunk(2)
            return null + guidance * (full - null)

        return predict

    @torch.no_grad()
    def sample(
        self,
        text: Text,
        noise: SampleNoise,
        *,
        empty: Text | None = None,
        guidance: float = 1.0,
        sampling: Sampling | None = None,
        size: tuple[int, int] | None = None,
        predict: Predict | None = None,
    ) -> Tensor:
        """Scaled latents (B, C, h, w) of captions.

        sampling: the config's own, where None. size: latents (h, w), by default those of image_size.
        predict: in place of `guided`, as where something else than a caption tells what to draw.
        """
        height, width = size or (self.config.latent_size,) * 2
        start = noise.normal(self.config.latent_channels, height, width)
        predict = predict or self.guided(text, empty, guidance)
        return samplers.sample(
            self.process, predict, start, sampling or self.config.sampling, noise
        )
