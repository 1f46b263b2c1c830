"""The numbers that decide a pixel decoder: its U-Net, what it is told, and how it is sampled from."""

from dataclasses import dataclass

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling
from generators.diffusion.schedule import Schedule
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    """A text-conditional ADM U-Net (2105.05233) as GLIDE (2112.10741) and unCLIP (2204.06125) have it.

    With `embed_dim` it is told an image's embedding. Its text is either what frozen towers make of a
    caption, or, with `text_layers`, what a transformer of its own makes of words.
    """

    image_size: int
    """Pixels of a side."""
    channels: tuple[int, ...]
    """Of each resolution, the full one first, each half of the one before."""
    layers: int
    """Residual blocks per resolution on the way down; one more on the way up."""
    attention: tuple[int, ...]
    """Resolutions, in pixels of a side, that attend after each of these; the coarsest always does."""
    head_dim: int = 64
    """Channels of an attention head."""
    context_dim: int
    """Width of the tokens that the U-Net attends to besides its own pixels."""
    norm_groups: int = 32
    dropout: float = 0.0

    embed_dim: int = 0
    """Width E of the image embeddings; 0 has none, which is GLIDE."""
    image_tokens: int = 4
    """Tokens of context that an image embedding becomes."""
    text_width: int = 0
    """Width D of the towers' states, where text comes from towers."""
    text_layers: int = 0
    """Of a transformer of its own, as wide as `context_dim`; 0 takes the towers' text."""
    text_heads: int = 8
    text_length: int = 128
    """Words; a longer caption is cut."""
    text_vocabulary: int = 0

    inpaint: bool = False
    """Whether it is shown the known pixels of an image, and which are known."""

    schedule: str = "squaredcos_cap_v2"
    timesteps: int = 1000
    prediction: str = "epsilon"
    """What of the noised image is predicted, as `Process` names it. The papers' is epsilon; what an image
    shows at large is learned many times faster by the others, for near pure noise tells nothing of it.
    """
    sampler: str = "ddim"
    """Where nothing else is asked for."""
    steps: str = "50"

    def __post_init__(self) -> None:
        for name in ("channels", "attention"):  # JSON knows lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.channels or any(width % self.norm_groups for width in self.channels):
            raise UserError(
                f"channels {self.channels} are not divisible by norm_groups {self.norm_groups}",
                "give multiples of it",
            )
        if self.image_size % 2 ** (len(self.channels) - 1):
            raise UserError(
                f"image_size {self.image_size} is not divisible by {2 ** (len(self.channels) - 1)}",
                f"{len(self.channels)} resolutions halve it {len(self.channels) - 1} times",
            )
        if strangers := set(self.attention) - set(self.resolutions):
            raise UserError(
                f"attention {sorted(strangers)} is at no resolution",
                f"give some of {self.resolutions}",
            )
        if any(width % self.head_dim for width in self.attending):
            raise UserError(
                f"channels {self.attending} are not divisible by head_dim {self.head_dim}",
                "give a divisor of them",
            )
        if self.text_layers and self.context_dim % self.text_heads:
            raise UserError(
                f"context_dim {self.context_dim} is not divisible by text_heads {self.text_heads}",
                "give a divisor of it",
            )
        self.process, self.sampling  # raise where they are impossible  # noqa: B018

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Pixels of a side, the full ones first."""
        return tuple(self.image_size >> i for i in range(len(self.channels)))

    @property
    def attending(self) -> tuple[int, ...]:
        """Channels of the resolutions that attend, the coarsest one's at the end."""
        pairs = zip(self.resolutions, self.channels, strict=True)
        return tuple(width for side, width in pairs if side in self.attention) + self.channels[-1:]

    @property
    def time_dim(self) -> int:
        """Width of the timestep's embedding."""
        return 4 * self.channels[0]

    @property
    def process(self) -> Process:
        return Process(Schedule(self.schedule, self.timesteps), self.prediction, "learned_range")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.sampler, self.steps)
