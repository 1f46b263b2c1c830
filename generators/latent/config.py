"""The numbers that decide a latent diffusion model: its denoiser, what it reads, and how it is sampled from."""

from dataclasses import dataclass
from typing import Literal

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, plan
from generators.diffusion.schedule import Schedule
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    """A U-Net as stable diffusion has it (2112.10752, section 3.3), or a transformer (2212.09748) that
    reads as PixArt-alpha's does (2310.00426, section 2.3), on the latents of a first stage.
    """

    image_size: int
    """Pixels of a side that it is trained at; sides that `factor` divides are possible as well."""
    denoiser: Literal["unet", "dit"] = "unet"
    factor: int = 8
    """Pixels of a side for each latent: the first stage's."""
    latent_channels: int = 4
    """The first stage's."""
    text_width: int = 0
    """Width D of a caption's states, the text encoder's; 0 until `prepare` knows it."""

    channels: tuple[int, ...] = ()
    """unet: of each resolution, the full one first, each half of the one before."""
    layers: int = 2
    """unet: residual blocks per resolution on the way down; one more on the way up."""
    attention: tuple[bool, ...] = ()
    """unet: which of the resolutions attend; the middle always does."""
    heads: tuple[int, ...] = ()
    """Attention heads: of each resolution of a unet; one number for a dit."""
    norm_groups: int = 32
    linear_projection: bool = False
    """unet: linear layers around attention, as in stable diffusion 2, in place of convolutions."""
    modulated: bool = False
    """unet: the timestep scales and shifts what group normalisations give (2105.05233, section 3.1); else
    it is added before them."""

    width: int = 0
    """dit: of its tokens."""
    depth: int = 0
    """dit: blocks."""
    patch: int = 2
    """dit: latents of a side of each token."""

    schedule: str = "scaled_linear"
    timesteps: int = 1000
    prediction: str = "epsilon"
    """epsilon, v_prediction, or flow, which goes with the schedule flow."""
    shift: float = 1.0
    """Of the schedule flow: the root of how many times more pixels images have than those that 1 suits."""
    density: str = "uniform"
    """Of the timesteps that it is trained at: uniform, or logit_normal."""
    sampler: str = "dpm++"
    steps: str = "25"

    def __post_init__(self) -> None:
        for name in ("channels", "attention", "heads"):  # JSON knows lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.denoiser not in ("unet", "dit"):
            raise UserError(f"no denoiser is {self.denoiser!r}", "there are unet, dit")
        for name in ("image_size", "factor", "latent_channels", "layers", "norm_groups", "patch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is none", "give a number from 1 on")
        if self.image_size % self.unit:
            raise UserError(
                f"image_size {self.image_size} is not divisible by {self.unit}",
                "give a multiple: pixels per latent, times what the denoiser makes of them",
            )
        (self._require_unet if self.denoiser == "unet" else self._require_dit)()
        plan(self.process, self.sampling)  # raises where they are impossible

    def _require_unet(self) -> None:
        levels = len(self.channels)
        if not levels == len(self.attention) == len(self.heads) > 0:
            raise UserError(
                f"{levels} channels, {len(self.attention)} attention, {len(self.heads)} heads",
                "give one of each for every resolution",
            )
        for width, heads in zip(self.channels, self.heads, strict=True):
            if min(width, heads) < 1 or width % heads or width % self.norm_groups:
                raise UserError(
                    f"{width} channels are not divisible by {heads} heads and {self.norm_groups} groups",
                    "give a multiple of both",
                )

    def _require_dit(self) -> None:
        numbers = (self.width, self.depth, *self.heads)
        is_possible = len(self.heads) == 1 and min(numbers) >= 1
        # Sines and cosines of two axes tell a token where it is.
        if not is_possible or self.width % self.heads[0] or self.width % 4:
            raise UserError(
                f"width {self.width}, depth {self.depth} and heads {self.heads} make no transformer",
                "give one number of heads, a width that it and 4 divide, and a depth from 1 on",
            )

    @property
    def reduction(self) -> int:
        """Latents of a side have to be divisible by it."""
        return self.patch if self.denoiser == "dit" else 2 ** max(0, len(self.channels) - 1)

    @property
    def unit(self) -> int:
        """Pixels of a side have to be divisible by it."""
        return self.factor * self.reduction

    @property
    def latent_size(self) -> int:
        """Latents of a side at image_size."""
        return self.image_size // self.factor

    @property
    def process(self) -> Process:
        schedule = Schedule(self.schedule, self.timesteps, self.shift)
        return Process(schedule, self.prediction, density=self.density)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.sampler, self.steps, clip=0.0)
