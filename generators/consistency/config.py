"""The numbers that decide a diffusion decoder: its U-Net, the latents that it reads, the times it knows."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from generators.diffusion.process import Process
from generators.diffusion.schedule import Schedule
from pipeline.errors import UserError

COLOURS = 3
Time = Literal["learned", "positional"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The decoder that OpenAI released beside DALL-E 3, as diffusers' ConsistencyDecoderVAE has it; by
    default of that size.
    """

    image_size: int
    """Pixels of a side that it is trained at; it takes any that `stride` and `factor` divide."""
    factor: int = 8
    """Pixels of a side for each latent: the first stage's."""
    latent_channels: int = 4
    """The first stage's."""
    channels: tuple[int, ...] = (320, 640, 1024, 1024)
    """Of each resolution, the full one first; nothing attends."""
    layers: int = 3
    """Residual blocks per resolution on the way down; one more on the way up."""
    norm_groups: int = 32
    time: Time = "learned"
    """How timesteps are embedded: as a vector of its own for each, as released, or as sines, which a
    short training learns sooner."""
    timesteps: int = 1024
    """Of the cosine schedule."""
    sigma_data: float = 0.5
    """Deviation that pixels are taken to have."""
    scales: int = 64
    """Timesteps, evenly from 0 on, that distillation knows and two steps are taken from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON knows lists only
        if self.time not in get_args(Time):
            raise UserError(f"no time is {self.time!r}", f"there are {', '.join(get_args(Time))}")
        if not self.channels or min(self.channels) < 1 or self.layers < 1:
            raise UserError(
                f"channels {self.channels} with {self.layers} layers are not possible",
                "give one width per resolution, and at least one layer",
            )
        if self.norm_groups < 1 or any(width % self.norm_groups for width in self.channels):
            raise UserError(
                f"channels {self.channels} are not divisible by norm_groups {self.norm_groups}",
                "give multiples of it",
            )
        if self.factor < 1 or self.latent_channels < 1:
            raise UserError(
                f"factor {self.factor} with {self.latent_channels} channels are no latents",
                "give what the first stage has",
            )
        if self.image_size < 1 or self.image_size % self.factor or self.image_size % self.stride:
            raise UserError(
                f"image_size {self.image_size} is not divisible by {self.factor} and {self.stride}",
                "give a multiple of both: pixels per latent, and per place of the coarsest resolution",
            )
        if not 0 < self.sigma_data < float("inf"):
            raise UserError(f"sigma_data {self.sigma_data} is no deviation", "give 0.5")
        if self.timesteps < 2 or not 2 <= self.scales <= self.last + 1:
            raise UserError(
                f"scales {self.scales} of {self.timesteps} timesteps are not possible",
                "give 2 or more, and not more than there are timesteps",
            )

    @property
    def stride(self) -> int:
        """Pixels of a side per place of the coarsest resolution."""
        return 2 ** (len(self.channels) - 1)

    @property
    def process(self) -> Process:
        """Noise as it is added, and x_0 as what a network says of it."""
        return Process(Schedule("squaredcos_cap_v2", self.timesteps), "sample")

    @property
    def last(self) -> int:
        """The noisiest timestep in use: the beginning of the last of 64 parts, 1008 of 1024."""
        return self.timesteps - max(1, self.timesteps // 64)

    @property
    def times(self) -> tuple[int, ...]:
        """The timesteps of the scales, rising from 0 to `last`."""
        return tuple(np.linspace(0, self.last, self.scales).round().astype(int).tolist())

    def visited(self, steps: int) -> list[int]:
        """Timesteps of so many steps of consistency sampling, the noisiest first: of 64 scales those at
        shares 1 and 1/2 of them, 1008 and 512, for two. With nearly as many steps as there are scales
        the first one comes twice. UserError for what cannot be.
        """
        if not 1 <= steps <= self.scales:
            raise UserError(
                f"{steps} steps of a decoder with {self.scales} scales", f"give 1 to {self.scales}"
            )
        shares = (1 - i / steps for i in range(steps))
        return [self.times[min(self.scales - 1, int(s * self.scales + 0.5))] for s in shares]
