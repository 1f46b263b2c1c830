"""DALL-E's transformer: the words of a caption and then the tokens of its image, as one stream.

Ramesh et al., "Zero-Shot Text-to-Image Generation" (2102.12092), section 2.2 and appendix B.
"""

# B batch, T text tokens, N image tokens, S = T + N inputs, D width, H heads, C channels of a head
# V words, K codes of the image

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generators.dalle.attention import Rule, attend, rule
from generators.dalle.masks import Kind, Mask, layout
from pipeline.errors import UserError


@dataclass(frozen=True)
class Config:
    """The size of a model.

    image_size: pixels of a side. grid: image tokens of a side. text_vocabulary: words; a padding
    token for each of the `text_length` positions comes on top. sparse: the paper's masks, else
    every layer is plain causal. kernel: side of the last layer's convolutional mask.
    """

    image_size: int
    grid: int
    image_vocabulary: int
    text_vocabulary: int
    text_length: int
    width: int
    depth: int
    heads: int
    sparse: bool = True
    kernel: int = 11

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name != "sparse"}
        if any(type(value) is not int or value < 1 for value in sizes.values()):
            raise UserError(f"no DALL-E has the sizes {sizes}", "give whole numbers from 1 on")
        if self.width % self.heads or self.kernel % 2 == 0:
            raise UserError(
                f"width {self.width} with {self.heads} heads and kernel {self.kernel} is impossible",
                "give a width that the heads divide, and an odd kernel",
            )

    @property
    def image_length(self) -> int:
        """N."""
        return self.grid**2

    @property
    def prompt(self) -> int:
        """Inputs before the first image token: the start and the text."""
        return 1 + self.text_length

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Of each layer."""
        kinds: Sequence[Kind] = layout(self.depth, sparse=self.sparse)
        return tuple(Mask(kind, self.prompt, self.grid, self.kernel) for kind in kinds)


class Attention(nn.Module):
    """Multi-head attention with one packed projection, rows in the order q, k, v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, S, D) -> q, k, v, each (B, H, S, C)."""
        parts = self.qkv(x).chunk(3, dim=-1)
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)

    def merge(self, heads: Tensor) -> Tensor:
        """(B, H, S, C) -> (B, S, D)."""
        return self.out(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, rule: Rule) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.through(x, lambda q, k, v: attend(q, k, v, rule))

    def through(self, x: Tensor, attended: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """The same where `attended` says what comes of queries, keys and values."""
        x = x + self.attention.merge(attended(*self.attention.project(self.ln_1(x))))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The prior over captions and images.

    The inputs are a learned start, T text tokens and all image tokens but the last; each predicts
    the token after it, so the start predicts the first word and the last text position the first
    image token. A caption shorter than T is filled with padding tokens, each position its own
    (section 2.2): ids V to V + T - 1, which are predicted like words, so that the model knows where
    captions end, and every sample has equally many tokens of each kind.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, words = config.width, config.text_vocabulary + config.text_length
        self.start = nn.Parameter(torch.empty(1, 1, width))
        self.text_embedding = nn.Embedding(words, width)
        self.text_position = nn.Parameter(torch.empty(config.text_length, width))
        self.image_embedding = nn.Embedding(config.image_vocabulary, width)
        self.row_embedding = nn.Parameter(torch.empty(config.grid, 1, width))
        self.column_embedding = nn.Parameter(torch.empty(1, config.grid, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.ln_final = nn.LayerNorm(width)
        self.text_head = nn.Linear(width, words)
        self.image_head = nn.Linear(width, config.image_vocabulary)
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """Normal by fan-in, as wide models and narrow ones need; tables with deviation 0.1.

        What a block adds is scaled by 1 / sqrt(2 L) of L blocks, so that the stream's variance does
        not grow with depth (GPT-2, section 2.3). The last layers start near 0: every token is then
        equally likely.
        """
        for table in (self.text_embedding.weight, self.image_embedding.weight, self.start):
            nn.init.normal_(table, std=0.1)
        for table in (self.text_position, self.row_embedding, self.column_embedding):
            nn.init.normal_(table, std=0.1)
        for block in self.blocks:
            for linear in (block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                nn.init.zeros_(linear.bias)
            for linear in (block.attention.out, block.mlp[2]):
                linear.weight.mul_((2 * len(self.blocks)) ** -0.5)
        for head in (self.text_head, self.image_head):
            nn.init.normal_(head.weight, std=0.1 * head.in_features**-0.5)
            nn.init.zeros_(head.bias)

    def embed_text(self, text: Tensor) -> Tensor:
        """Ids (B, T) -> inputs (B, 1 + T, D), the start among them."""
        words = self.text_embedding(text) + self.text_position
        return torch.cat([self.start.expand(len(text), -1, -1), words], dim=1)

    def embed_image(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Ids (B, n) of the image tokens from number `first` on -> inputs (B, n, D)."""
        places = (self.row_embedding + self.column_embedding).flatten(0, 1)
        return self.image_embedding(tokens) + places[first : first + tokens.shape[1]]

    def text_logits(self, x: Tensor) -> Tensor:
        """(..., D) -> fp32 (..., V + T), whatever the precision around it."""
        with torch.autocast(x.device.type, enabled=False):
            return self.text_head(self.ln_final(x.float()))

    def image_logits(self, x: Tensor) -> Tensor:
        """(..., D) -> fp32 (..., K), whatever the precision around it."""
        with torch.autocast(x.device.type, enabled=False):
            return self.image_head(self.ln_final(x.float()))

    @torch.compiler.disable
    def rules(self, size: int, device: torch.device) -> list[Rule]:
        """The mask of each layer over the first `size` inputs."""
        return [rule(mask, size, device) for mask in self.config.masks]

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, T) and (B, N) -> fp32 logits of these (B, T, V + T) and (B, N, K).

        The last image token predicts nothing, so it may be left out, or with any others at the end:
        of n < N tokens n + 1 are predicted.
        """
        image = image[:, : self.config.image_length - 1]
        x = torch.cat([self.embed_text(text), self.embed_image(image)], dim=1)
        for block, mask in zip(self.blocks, self.rules(x.shape[1], x.device), strict=True):
            x = block(x, mask)
        length = self.config.text_length
        return self.text_logits(x[:, :length]), self.image_logits(x[:, length:])


def parameter_count(config: Config) -> int:
    """Of a model that need not fit in memory."""
    with torch.device("meta"):
        return sum(math.prod(p.shape) for p in Transformer(config).parameters())
