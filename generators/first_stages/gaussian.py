"""A diagonal Gaussian as bottleneck: the posterior of a VAE, and the networks around it."""

# B batch, H W pixels of a side, h w = H / factor, W / factor, C latent channels

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generators.first_stages import backbone
from generators.first_stages.backbone import FirstStageConfig
from generators.first_stages.family import FirstStage, Outputs
from generators.noise import SampleNoise

LEAST, MOST = -30.0, 20.0  # of ln variance, as in LDM's code: exp stays finite


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normals; `mean` and `logvar` are (B, C, ...)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> "DiagonalGaussian":
        """From (B, 2 C, ...): the means, then ln of the variances; in fp32."""
        mean, logvar = moments.float().chunk(2, dim=1)
        return cls(mean, logvar.clamp(LEAST, MOST))

    def at(self, noise: Tensor) -> Tensor:
        """The reparameterised sample (1312.6114, section 2.4) of standard normal noise."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """(B,): nats from the standard normal, summed over an image (1312.6114, appendix B)."""
        terms = self.mean.square() + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)


def gaussian_nll(pixels: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """(B,): -ln of the density of pixels under N(mean, exp(logvar)), summed over an image, in nats."""
    error = (pixels.float() - mean.float()).square()
    terms = error / logvar.exp() + logvar + math.log(2 * math.pi)
    return 0.5 * terms.flatten(1).sum(dim=1)


class GaussianFirstStage(FirstStage):
    """Networks under the names of diffusers' AutoencoderKL, whose state dicts fit both ways."""

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__(config)
        latents = config.latent_channels
        self.encoder = backbone.encoder(config, 2 * latents)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        self.decoder = backbone.decoder(config, latents)

    def posterior(self, pixels: Tensor) -> DiagonalGaussian:
        """q(z | x), with mean and logvar (B, C, h, w)."""
        return DiagonalGaussian.of(self.quant_conv(self.encoder(pixels)))

    def encode(self, pixels: Tensor) -> Tensor:
        """The posterior's mean."""
        return self.posterior(pixels).mean

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, pixels: Tensor, noise: SampleNoise, step: int) -> Outputs:
        """`reconstruction` of one sample of the posterior, and `kl` (B,), nats per image."""
        posterior = self.posterior(pixels)
        latents = posterior.at(noise.normal(*posterior.mean.shape[1:]))
        return {"reconstruction": self.decode(latents), "kl": posterior.kl()}

    @torch.no_grad()
    def sample(self, n: int, noise: SampleNoise) -> Tensor:
        """(n, 3, H, W): what latents of the prior show; of a model whose KL term has weight."""
        side = self.config.grid
        latents = noise.normal(self.config.latent_channels, side, side)
        if len(latents) != n:
            raise ValueError(f"{n} samples with the noise of {len(latents)}")
        return self.decode(latents)
