"""GLIDE's text encoder: a transformer that reads a caption in both directions, trained with its U-Net."""

# B captions, K words of each, padding included, D width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.dalle.transformer import Block


class BothWays(Block):
    """Pre-norm attention of all words to all words, and an MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, D)."""
        return self.through(x, F.scaled_dot_product_attention)


class TextTransformer(nn.Module):
    """Of 2112.10741, section 4.1. Ids from `vocabulary` on are padding, one for each position, each
    with a learned embedding of its own, so that nothing has to be masked.
    """

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary + length, width)
        self.position = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(BothWays(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """As DALL-E's blocks: normal by fan-in, and what a block adds shrinks with their number."""
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.normal_(self.position, std=0.1)
        for block in self.blocks:
            for linear in (block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                nn.init.zeros_(linear.bias)
            for linear in (block.attention.out, block.mlp[2]):
                linear.weight.mul_((2 * len(self.blocks)) ** -0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, K) -> states (B, K, D)."""
        x = self.embedding(ids) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
