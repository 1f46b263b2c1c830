"""The two text stacks of CoCa: text tower and multimodal decoder, under open_clip's key names.

Here they are plain modules, for training and for teacher-forced scoring; `captioner/fused.py` lays
their weights out for decoding. CoCa (2205.01917), section 3.2.
"""

# B batch, S tokens, n image tokens, D width, H heads, V vocabulary, E embedding of both modalities

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD = 0


class Attention(nn.Module):
    """Multi-head attention with one packed projection, rows in the order q, k, v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """x (B, S, D) attends to `memory` (B, n, D), or to itself; mask (B, 1, S, S), True = seen."""
        if memory is None:
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            q = F.linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width])
            packed = F.linear(memory, self.in_proj_weight[width:], self.in_proj_bias[width:])
            k, v = packed.chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and MLP; a cross block normalises the image tokens with `ln_1_kv`."""

    def __init__(self, width: int, heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        if cross:
            self.ln_1_kv = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width)
            )
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """x (B, S, D) -> (B, S, D)."""
        if memory is not None:
            memory = self.ln_1_kv(memory)
        x = x + self.attn(self.ln_1(x), memory, mask, causal=causal)
        return x + self.mlp(self.ln_2(x))


def init_blocks(blocks: nn.ModuleList) -> None:
    """Initialise blocks as CLIP's text tower: residual outputs shrink with depth.

    open_clip does this for the text tower and, by a bug, not for the decoder.
    """
    width = blocks[0].ln_1.weight.shape[0]
    out_std = width**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=out_std)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=out_std)
        for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
            nn.init.zeros_(linear.bias)


class TextTower(nn.Module):
    """The unimodal half: causal over tokens, with a CLS token at the end for the contrastive feature.

    The last row of `positional_embedding` belongs to CLS whatever the context, so an extended tower
    (`extend_context`) gives the features it gave before. `contrastive_context` is the number of
    tokens that CLS was trained on.
    """

    def __init__(self, config: Mapping, embed_dim: int) -> None:
        super().__init__()
        width, heads = config["width"], config["heads"]
        self.contrastive_context = self.context_length = config["context_length"]
        self.correct_cls_mask = config.get("correct_cls_mask", False)
        self.token_embedding = nn.Embedding(config["vocab_size"], width)
        self.cls_emb = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length + 1, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            Block(width, heads) for _ in range(config["layers"])
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))

    def init_parameters(self) -> None:
        """Fill with CLIP's initial distribution, drawn from torch's global generator."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.cls_emb, std=0.01)
        init_blocks(self.transformer.resblocks)
        nn.init.normal_(self.text_projection, std=self.cls_emb.shape[0] ** -0.5)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token states for the decoder: ids (B, S) -> (B, S, D), before `ln_final`, without CLS."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer.resblocks:
            x = block(x, causal=True)
        return x

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """One pass for both losses: ids (B, S) -> contrastive feature (B, E), token states (B, S, D).

        The feature is that of `ids` padded to the contrastive context, also where S is shorter;
        a shorter S must still hold one pad after each caption that does not fill that context.
        """
        tokens = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        cls = (self.cls_emb + self.positional_embedding[-1]).expand(ids.shape[0], 1, -1)
        x, mask = torch.cat([tokens, cls], dim=1), cls_mask(self, ids)
        for block in self.transformer.resblocks:
            x = block(x, mask=mask)
        return self.ln_final(x[:, -1]) @ self.text_projection, x[:, :-1]

    @torch.no_grad()
    def extend_context(self, context_length: int) -> None:
        """Make room for longer captions; inputs of the old length keep their exact results.

        New rows repeat the last trained one, plus the initial noise that tells them apart.
        """
        old = self.positional_embedding
        num_new = context_length - self.context_length
        if num_new < 0:
            raise ValueError(f"context {self.context_length} cannot shrink to {context_length}")
        noise = torch.empty(num_new, old.shape[1]).normal_(
            std=0.01, generator=torch.Generator().manual_seed(0)
        )
        new = old[-2:-1] + noise.to(old)
        self.positional_embedding = nn.Parameter(torch.cat([old[:-1], new, old[-1:]]))
        self.context_length = context_length


def cls_mask(tower: TextTower, ids: Tensor) -> Tensor:
    """Who sees whom in a text tower with CLS: ids (B, S) -> bool (B, 1, S + 1, S + 1), True = seen.

    Published weights were trained with the pad mask one place late: CLS sees the caption and one pad,
    and itself only where nothing is padded. `correct_cls_mask` (open_clip #1084) mends it.
    """
    batch, size = ids.shape
    is_token = ids != PAD
    seen = is_token.new_ones(batch, 1)
    if tower.correct_cls_mask:
        keys = torch.cat([is_token, seen], dim=1)
    else:
        keys = torch.cat([seen, is_token], dim=1)
        if size < tower.contrastive_context:  # padded further, the last id would be a pad
            keys[:, -1] = False
    causal = torch.ones(size + 1, size + 1, dtype=torch.bool, device=ids.device).tril()
    return (keys[:, None, :] & causal)[:, None]


class Decoder(nn.Module):
    """The multimodal half: causal blocks over token states, each followed by one over the image."""

    def __init__(self, config: Mapping, vocab_size: int) -> None:
        super().__init__()
        width, heads, layers = config["width"], config["heads"], config["layers"]
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.cross_attn = nn.ModuleList(Block(width, heads, cross=True) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, vocab_size))

    def init_parameters(self) -> None:
        """Fill as the text tower; open_clip leaves `text_projection` as uninitialised memory."""
        init_blocks(self.resblocks)
        init_blocks(self.cross_attn)
        nn.init.normal_(self.text_projection, std=self.text_projection.shape[0] ** -0.5)

    def forward(self, image_tokens: Tensor, token_states: Tensor) -> Tensor:
        """Next-token logits: image tokens (B, n, D), token states (B, S, D) -> (B, S, V)."""
        x = token_states
        for block, cross in zip(self.resblocks, self.cross_attn, strict=True):
            x = cross(block(x, causal=True), image_tokens)
        return self.ln_final(x) @ self.text_projection
