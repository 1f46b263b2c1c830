"""The encoder half of ADM's U-Net with attention pooling: one vector of a noised image, and its feature maps."""

# B batch, H W pixels of a side, C_j channels of resolution j, whose sides are H / 2^j, O outputs

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.diffusion.initialise import zero_last_layers
from generators.diffusion.process import Process
from generators.diffusion.schedule import Schedule
from pipeline.errors import UserError

COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class HalfUnetConfig:
    """The network (2105.05233, section 4 and its table of classifiers), and the noise it knows."""

    image_size: int
    """Pixels of a side; the attention pooling has positions of this size alone."""
    channels: tuple[int, ...] = (128, 256, 384, 512)
    """Of each resolution, the full one first."""
    layers: int = 4
    """Residual blocks per resolution."""
    attention: tuple[int, ...] = (32, 16, 8)
    """Sides of the maps that attend after each residual block; the middle always does."""
    head_dim: int = 64
    """Channels of an attention head."""
    norm_groups: int = 32
    dropout: float = 0.0
    schedule: str = "squaredcos_cap_v2"
    """Of the noise in what it sees; a model that it guides has the same."""
    timesteps: int = 1000

    def __post_init__(self) -> None:
        for name in ("channels", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists only
        unit = self.norm_groups, self.head_dim
        if not self.channels or any(
            width < 1 or width % u for width in self.channels for u in unit
        ):
            raise UserError(
                f"channels {self.channels} are not possible with {unit[0]} groups and heads of "
                f"{unit[1]} channels",
                "give multiples of both, one per resolution",
            )
        factor = 2 ** (len(self.channels) - 1)
        if self.image_size < factor or self.image_size % factor:
            raise UserError(
                f"image_size {self.image_size} is not divisible by {factor}",
                f"{len(self.channels)} resolutions halve it {len(self.channels) - 1} times",
            )
        if self.layers < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"layers {self.layers} with dropout {self.dropout} are not possible",
                "give at least one layer, and dropout from 0 to below 1",
            )
        self.process  # noqa: B018  a schedule that is none is said now

    @property
    def process(self) -> Process:
        """How what it sees was noised."""
        return Process(Schedule(self.schedule, self.timesteps))


class AttentionPool(nn.Module):
    """CLIP's attention pooling (2103.00020, section 2.4): the mean of all positions asks all of them.

    Parameters have the names of CLIP's, whose weights fit.
    """

    def __init__(self, side: int, width: int, head_dim: int, outputs: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, O)."""
        tokens = maps.flatten(2).transpose(1, 2)
        if tokens.shape[1] + 1 != len(self.positional_embedding):
            raise ValueError(
                f"maps of shape {tuple(maps.shape)} for {len(self.positional_embedding) - 1} positions"
            )
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        query, key, value = (
            projection(rows).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for projection, rows in (
                (self.q_proj, tokens[:, :1]),
                (self.k_proj, tokens),
                (self.v_proj, tokens),
            )
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(found.transpose(1, 2).flatten(1))


class HalfUnet(nn.Module):
    """Residual blocks that the timestep scales and shifts, BigGAN's downsampling, attention, pooling."""

    def __init__(self, config: HalfUnetConfig, outputs: int) -> None:
        super().__init__()
        blocks, embeddings = _diffusers()
        self.config = config
        width, time_width = config.channels[0], 4 * config.channels[0]
        self.time_proj = embeddings.Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = embeddings.TimestepEmbedding(width, time_width)
        self.conv_in = nn.Conv2d(COLOURS, width, 3, padding=1)
        common: dict[str, Any] = {
            "temb_channels": time_width,
            "resnet_eps": 1e-5,
            "resnet_act_fn": "silu",
            "resnet_groups": config.norm_groups,
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": config.head_dim,
            "dropout": config.dropout,
        }
        self.down_blocks = nn.ModuleList()
        side = config.image_size
        for i, channels in enumerate(config.channels):
            attends = side in config.attention
            is_last = i + 1 == len(config.channels)
            block = blocks.get_down_block(
                "AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D",
                num_layers=config.layers,
                in_channels=width,
                out_channels=channels,
                add_downsample=not is_last,
                downsample_type="resnet",
                **common,
            )
            self.down_blocks.append(block)
            width, side = channels, side if is_last else side // 2
        self.mid_block = blocks.UNetMidBlock2D(
            in_channels=width, attn_groups=config.norm_groups, **common
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, width)
        self.pool = AttentionPool(side, width, config.head_dim, outputs)
        zero_last_layers(self)

    def forward(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of x_t (B, 3, H, W) and t (B,): the vector (B, O), and maps (B, C_j, H / 2^j, W / 2^j).

        There is one map per resolution, the last before it is halved, and the middle's.
        """
        time = self.time_embedding(self.time_proj(t).to(self.conv_in.weight.dtype))
        hidden, maps = self.conv_in(noisy), []
        for block in self.down_blocks:
            hidden, outputs = block(hidden, time)
            maps.append(outputs[self.config.layers - 1])
        hidden = self.mid_block(hidden, time)
        return self.pool(F.silu(self.norm_out(hidden))), (*maps, hidden)

    def blocks(self) -> list[nn.Module]:
        """What is compiled, sharded and recomputed one by one."""
        return [*self.down_blocks, self.mid_block]


def _diffusers() -> tuple[Any, Any]:
    try:
        from diffusers.models import embeddings
        from diffusers.models.unets import unet_2d_blocks
    except ImportError:
        raise UserError(
            "guides are made of diffusers' blocks, which are not installed",
            "pip install 'recaption[train]'",
        ) from None
    return unet_2d_blocks, embeddings
