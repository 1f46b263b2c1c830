"""DALL-E 1's convolutional encoder and decoder, under the published parameter names."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# B batch, C channels, H W pixels, K codes, h w the grid: H / factor, W / factor

ENCODER_KERNELS = (3, 3, 3, 1)
DECODER_KERNELS = (1, 3, 3, 3)


class Conv(nn.Module):
    """A convolution of odd kernel that keeps height and width: `w` (out, in, k, k), `b` (out,).

    is_exact: fp32 also under autocast, as the two layers of one channel per code are.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, *, is_exact: bool = False) -> None:
        super().__init__()
        spread = (n_in * kernel**2) ** -0.5
        self.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) * spread)
        self.b = nn.Parameter(torch.zeros(n_out))
        self.padding, self.is_exact = kernel // 2, is_exact

    def forward(self, x: Tensor) -> Tensor:
        if not (self.is_exact and torch.amp.is_autocast_available(x.device.type)):
            return F.conv2d(x, self.w, self.b, padding=self.padding)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.w.float(), self.b.float(), padding=self.padding)


class Block(nn.Module):
    """A bottleneck residual block; `gain` is its branch's: 1 / layers^2, of all blocks of a stack."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = nn.Identity() if n_in == n_out else Conv(n_in, n_out, 1)
        widths = [n_in, *(len(kernels) - 1) * [n_out // 4], n_out]
        self.res_path = nn.Sequential()
        for i, kernel in enumerate(kernels):
            self.res_path.add_module(f"relu_{i + 1}", nn.ReLU())
            self.res_path.add_module(f"conv_{i + 1}", Conv(widths[i], widths[i + 1], kernel))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class Encoder(nn.Module):
    """Mapped pixels (B, 3, H, W) -> fp32 logits of codes (B, K, h, w), h = H / 2^(groups - 1).

    Ramesh et al. (2102.12092), appendix A.1, and openai/DALL-E's encoder: max-pooling after every
    group of blocks but the last, whose widths double from n_hid on.
    """

    def __init__(self, n_hid: int, groups: int, blocks: int, vocabulary: int) -> None:
        super().__init__()
        widths = [n_hid, *(n_hid << i for i in range(groups))]
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=Conv(3, n_hid, 7))
        for i in range(groups):
            group = _group(widths[i], widths[i + 1], blocks, ENCODER_KERNELS, groups * blocks)
            if i < groups - 1:
                group.add_module("pool", nn.MaxPool2d(2))
            parts[f"group_{i + 1}"] = group
        parts["output"] = _output(Conv(widths[-1], vocabulary, 1, is_exact=True))
        self.blocks = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x.contiguous(memory_format=torch.channels_last))


class Decoder(nn.Module):
    """One-hot codes, or a mixture of them, (B, K, h, w) -> maps (B, 6, H, W): mu, then ln b.

    The encoder's mirror image: 2102.12092, appendix A.1, and openai/DALL-E's decoder, with
    nearest-neighbour upsampling.
    """

    def __init__(self, n_hid: int, n_init: int, groups: int, blocks: int, vocabulary: int) -> None:
        super().__init__()
        widths = [n_init, *(n_hid << i for i in reversed(range(groups)))]
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            input=Conv(vocabulary, n_init, 1, is_exact=True)
        )
        for i in range(groups):
            group = _group(widths[i], widths[i + 1], blocks, DECODER_KERNELS, groups * blocks)
            if i < groups - 1:
                group.add_module("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
            parts[f"group_{i + 1}"] = group
        parts["output"] = _output(Conv(n_hid, 6, 1))
        self.blocks = nn.Sequential(parts)

    def forward(self, codes: Tensor) -> Tensor:
        return self.blocks(codes)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Of (B, h, w): what their one-hot maps give, without making these."""
        first = self.blocks.input
        x = F.embedding(tokens, first.w[:, :, 0, 0].T) + first.b
        return self.blocks[1:](x.permute(0, 3, 1, 2))


def _group(n_in: int, n_out: int, blocks: int, kernels: tuple[int, ...], layers: int) -> nn.Module:
    group = nn.Sequential()
    for i in range(blocks):
        block = Block(n_out if i else n_in, n_out, kernels, layers**-2)
        group.add_module(f"block_{i + 1}", block)
    return group


def _output(conv: Conv) -> nn.Module:
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv))
