"""How large a first stage's latents are, measured while it trains: what a diffusion model divides them by."""

# Shapes: B batch, C latent channels, h w latents of a side.

import torch
from torch import Tensor, nn

from generators.first_stages.adversarial import average
from pipeline.errors import UserError

_RECENT = 50  # batches that are looked back on
_LEAST, _MOST = 0.5, 2.0  # a deviation that still counts as 1


class LatentScale(nn.Module):
    """The latents' mean and deviation over about the last 50 training batches.

    LDM (2112.10752, appendix G) divides latents by their deviation over all channels, so that a
    diffusion model meets a variance of 1; its training fails quietly where that is forgotten.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(channels))
        self.register_buffer("squares", torch.zeros(channels))

    @torch.no_grad()
    def note(self, latents: Tensor, step: int) -> None:
        """Latents (B, C, h, w) of a training step; of several processes all call it."""
        share = max(1 / _RECENT, 1 / (step + 1))
        latents = latents.float()
        self.means.lerp_(average(latents.mean(dim=(0, 2, 3))), share)
        self.squares.lerp_(average(latents.square().mean(dim=(0, 2, 3))), share)

    def set(self, deviation: float) -> None:
        """A deviation that is known from elsewhere, around 0."""
        self.means.zero_()
        self.squares.fill_(deviation**2)

    @property
    def deviation(self) -> float:
        """Over all channels and images; UserError where nothing was measured yet."""
        variance = float(self.squares.double().mean() - self.means.double().mean().square())
        if not variance > 0:
            raise UserError(
                "the deviation of this first stage's latents was never measured", "train it"
            )
        return variance**0.5

    @property
    def factor(self) -> float:
        """What latents are multiplied by: `scaling_factor` in diffusers' configurations."""
        return 1 / self.deviation

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents as a diffusion model has them; UserError where they are not what was measured."""
        scaled = latents * self.factor
        found = float(scaled.detach().float().std())
        if not _LEAST <= found <= _MOST:
            raise UserError(
                f"the latents' deviation is {found:.3g} after scaling, and should be 1",
                "use the first stage, and the kind of images, that the scale was measured with",
            )
        return scaled

    def unscaled(self, latents: Tensor) -> Tensor:
        """The inverse, without the check."""
        return latents * self.deviation
