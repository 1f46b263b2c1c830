"""The upsampler: a U-Net of convolutions alone that removes noise, shown the small image beside it."""

# B samples, H W pixels of the image, h w = H / factor, W / factor of the small one

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from generators.diffusion.initialise import zero_last_layers
from generators.diffusion.process import Prediction, Process, Variance
from generators.diffusion.samplers import Name, Sampling, plan, sample
from generators.diffusion.schedule import Name as ScheduleName
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from generators.unclip.degradations import Degradation, Interpolation, enlarged, quantised
from pipeline.errors import UserError

COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """An upsampler of 2204.06125, section 2.1 and table 3: unconditional but for the small image."""

    image_size: int
    """Pixels of a side of what it makes; the network takes any multiple of `stride`."""
    factor: int = 4
    """How many times smaller the image is that it starts from."""
    crop: float = 0.25
    """Share of a side that it is trained on."""
    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Of the channels at each resolution, the full one first."""
    res_blocks: int = 3
    """Residual blocks per resolution; on the way up there is one more."""
    dropout: float = 0.0
    norm_groups: int = 32
    degradation: Degradation = "blur"
    """What is done to small images in training."""
    degraded: float = 1.0
    """Share of small images that it is done to; the others are only averaged."""
    interpolation: Interpolation = "bilinear"
    """How the small image gets to full size, where the network sees it."""
    rounded: bool = True
    """Whether the small image is first rounded to 8 bits, as files in training were; Karlo's is not."""
    schedule: ScheduleName = "squaredcos_cap_v2"
    diffusion_steps: int = 1000
    prediction: Prediction = "epsilon"
    """epsilon, as in the paper, learns fine grain first and what the image shows last; with `sample` the
    small image is used from the first steps of a training on."""
    variance: Variance = "fixed_small"
    sampler: Name = "ddim"
    """How it is sampled from, where nothing else is asked for."""
    steps: str = "fast27"
    """Of that sampler, as `respacing.timesteps` reads them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # JSON knows lists only
        if not self.multipliers or min(self.multipliers) < 1:
            raise UserError(
                f"multipliers {self.multipliers} are not possible", "give one per resolution"
            )
        if self.channels < 2 or self.channels % self.norm_groups or self.channels % 2:
            raise UserError(
                f"channels {self.channels} are odd, or not divisible by norm_groups "
                f"{self.norm_groups}",
                "give a multiple of both",
            )
        for name, value, known in (
            ("degradation", self.degradation, Degradation),
            ("interpolation", self.interpolation, Interpolation),
        ):
            if value not in get_args(known):
                raise UserError(
                    f"{name} {value!r} is none", f"there are {', '.join(get_args(known))}"
                )
        if self.factor < 1:
            raise UserError(f"factor {self.factor} is not possible", "give 1 or more, as 4")
        if not 0 <= self.degraded <= 1:
            raise UserError(f"degraded {self.degraded} is no share", "give a number from 0 to 1")
        for name, size in {"image_size": self.image_size, "the crop": self.crop_size}.items():
            if size < 1 or size % self.factor or size % self.stride or size > self.image_size:
                raise UserError(
                    f"{name} cannot have {size} of {self.image_size} pixels a side",
                    f"give what is divisible by factor {self.factor} and by {self.stride}, as "
                    f"{len(self.multipliers)} resolutions need",
                )

    @property
    def crop_size(self) -> int:
        """Pixels of a side of what it is trained on."""
        return round(self.image_size * self.crop)

    @property
    def stride(self) -> int:
        """Pixels of a side per place of the coarsest resolution."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def process(self) -> Process:
        schedule = Schedule(self.schedule, self.diffusion_steps)
        return Process(schedule, self.prediction, self.variance)

    @property
    def sampling(self) -> Sampling:
        """The sampler that is used where none is asked for."""
        return Sampling(self.sampler, self.steps)


class Model(nn.Module):
    """ADM's network (2105.05233) without attention; `unet` is as diffusers' unCLIP folders have it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.unet = _unet_class()(**unet_config(config))
        zero_last_layers(self.unet, self.unet.conv_out)

    def forward(self, noisy: Tensor, t: Tensor, shown: Tensor) -> Tensor:
        """x_t (B, 3, H, W), t (B,), the small image at full size (B, 3, H, W) -> what the
        process predicts (B, 3, H, W), and 3 channels of the variance more, where it is learned.
        """
        return self.unet(torch.cat([noisy, shown], dim=1), t, return_dict=False)[0]

    @torch.no_grad()
    def sample(
        self,
        low: Tensor,
        noise: SampleNoise,
        sampling: Sampling | None = None,
        *,
        last: "Model | None" = None,
    ) -> Tensor:
        """(B, 3, h, w) in [-1, 1], of any size -> (B, 3, H, W) in [-1, 1].

        sampling: by default `config.sampling`. last: another network for the last step alone, as
        Karlo's, which learned to mend what few steps leave. Row i follows from row i of low and its
        own noise. UserError where the network's strides do not fit the size.
        """
        config, process = self.config, self.config.process
        sampling = sampling or config.sampling
        height, width = (config.factor * length for length in low.shape[2:])
        if height % config.stride or width % config.stride:
            raise UserError(
                f"an image of {low.shape[3]} x {low.shape[2]} pixels cannot be enlarged "
                f"{config.factor} times by this network",
                f"give sides whose {config.factor}-fold is divisible by {config.stride}",
            )
        low = quantised(low.float()) if config.rounded else low.float()
        shown = enlarged(low, config.factor, config.interpolation)
        final = plan(process, sampling)[-1].t if last else -1

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            # Only who has a second network waits for the GPU to say which step it is.
            network = last if last and int(t[0]) == final else self
            return network(noisy, t, shown)

        start = noise.normal(COLOURS, height, width)
        return sample(process, predict, start, sampling, noise).clamp(-1, 1)


def unet_config(config: Config) -> dict[str, Any]:
    """The configuration as diffusers' UNet2DModel has it, laid out as Karlo's `super_res_first`."""
    num = len(config.multipliers)
    is_learned = config.variance == "learned_range"
    return {
        "sample_size": config.image_size,
        "in_channels": 2 * COLOURS,
        "out_channels": 2 * COLOURS if is_learned else COLOURS,
        "down_block_types": ("ResnetDownsampleBlock2D",) * num,
        "up_block_types": ("ResnetUpsampleBlock2D",) * num,
        "block_out_channels": tuple(config.channels * m for m in config.multipliers),
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.norm_groups,
        "dropout": config.dropout,
        "resnet_time_scale_shift": "scale_shift",
        "add_attention": False,
    }


def _unet_class() -> Any:
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise UserError(
            "upsamplers are made of diffusers' networks, which are not installed",
            "pip install 'recaption[train]'",
        ) from None
    return UNet2DModel
