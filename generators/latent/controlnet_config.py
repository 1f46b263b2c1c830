"""The numbers that decide a ControlNet: those of the U-Net that it copies, and what it is shown."""

from dataclasses import dataclass
from typing import Literal

from generators.latent import config
from pipeline.errors import UserError

WIDTHS = (16, 32, 96, 256)
"""Of diffusers' ControlNets for stable diffusion, whose latents are of 8 x 8 pixels."""


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """The base model's own, and of the condition image."""

    hint: Literal["edges", "segments"] = "edges"
    """What of an image it is shown: see pipeline.loading.hints."""
    hint_widths: tuple[int, ...] = ()
    """Channels of the network that reads it, each of half the resolution of the one before, down to the
    latents'; empty: as many of `WIDTHS` as there have to be."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hint_widths", tuple(self.hint_widths))
        super().__post_init__()
        if self.denoiser != "unet":
            raise UserError(
                f"a ControlNet copies the encoder of a U-Net, and this is a {self.denoiser}",
                "give INIT=<a latent diffusion model with a U-Net>",
            )
        if self.hint not in ("edges", "segments"):
            raise UserError(f"no hint is {self.hint!r}", "there are edges, segments")
        widths = self.widths
        if self.factor != 1 << (len(widths) - 1):
            raise UserError(
                f"{len(widths)} hint_widths for a first stage of {self.factor} pixels per latent",
                "give a first stage whose factor is a power of two, and one width more than its power",
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """hint_widths, or those that stand for none."""
        return self.hint_widths or WIDTHS[: self.factor.bit_length()]
