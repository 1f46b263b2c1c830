"""CoCa's weights laid out for inference: fused projections, packed matrices, folded normalisation.

The results are those of `captioner/model.py` up to rounding; only the layout differs. Everything
here runs without autograd, on one device, in one precision.
"""

# A rows, S tokens, n image tokens, D width, H heads, W vision width, E embedding, V vocabulary

from collections.abc import Iterator
from copy import deepcopy

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from captioner.text import PAD, Decoder, TextTower, cls_mask

NUM_REFINED = 32  # bf16 candidates computed anew in fp32; a wrong order reaches no further down


class Layout:
    """Where weights go and in which precision; on a CPU, matrices are packed for oneDNN.

    Packing once saves the reordering that a plain linear layer repeats at every call: at the 16 to 32
    rows of a decoding step it is 1.4 to 2.3 times as fast. `is_packed=False` keeps plain tensors, which
    a compiler can trace.
    """

    def __init__(self, device: str, dtype: torch.dtype, *, is_packed: bool | None = None) -> None:
        self.device, self.dtype = torch.device(device), dtype
        can_pack = self.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if dtype == torch.bfloat16:
            can_pack = can_pack and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.is_packed = can_pack if is_packed is None else is_packed

    def tensor(self, values: Tensor) -> Tensor:
        """`values` here, detached and contiguous."""
        return values.detach().to(self.device, self.dtype).contiguous()


class Linear:
    """y = x W^T + b, then GELU where asked."""

    def __init__(
        self, layout: Layout, weight: Tensor, bias: Tensor | None, *, gelu: bool = False
    ) -> None:
        self.weight = layout.tensor(weight)
        self.bias = None if bias is None else layout.tensor(bias)
        self.gelu, self.is_packed = gelu, layout.is_packed
        if self.is_packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 16)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        if self.is_packed:
            after = ("gelu", [], "none") if self.gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *after)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


class Norm:
    """Layer normalisation; torch keeps its statistics in fp32 whatever the precision."""

    def __init__(self, layout: Layout, module: torch.nn.LayerNorm) -> None:
        self.weight, self.bias = layout.tensor(module.weight), layout.tensor(module.bias)
        self.shape, self.eps = self.weight.shape, module.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of queries that carry the scale: (A, H, S, d) x (A, H, n, d) -> (A, S, H * d).

    bias: added to the scores, broadcast to (A, H, S, n); see `bias_of`. On a CPU two matrix products
    are 2 to 6 times as fast as torch's fused kernel for single queries (measured at head width 64). A
    cache stands first in its product: as the second, transposed, it would be copied at every call in
    bf16. In fp32 that order is faster for a few queries, too, by up to a third.
    """
    if q.device.type == "cpu":
        num = q.shape[2]
        if num == 1 or (q.dtype == torch.float32 and 4 * num <= k.shape[2]):
            # Contiguous: strides that depend on A would choose the product's rounding.
            q = q if num == 1 else q.contiguous()
            scores = (k @ q.transpose(-1, -2)).transpose(-1, -2)
        else:
            scores = q @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        out = scores.softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return out.transpose(1, 2).flatten(2)


def bias_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What hides keys when it is added to scores: bool, True = seen -> 0 or -inf."""
    return torch.zeros((), dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)


class Block:
    """One pre-norm block; the attention's scale is folded into the query projection.

    `takes_keys` is False for a cross block, whose keys and values are computed once per image.
    """

    def __init__(
        self, layout: Layout, module: torch.nn.Module, heads: int, *, takes_keys: bool = True
    ) -> None:
        self.heads = heads
        self.ln_1, self.ln_2 = Norm(layout, module.ln_1), Norm(layout, module.ln_2)
        weight, bias = module.attn.in_proj_weight.detach(), module.attn.in_proj_bias.detach()
        width = weight.shape[1]
        rows = 3 * width if takes_keys else width
        factor = weight.new_ones(rows)
        factor[:width] = (width // heads) ** -0.5
        self.project = Linear(layout, weight[:rows] * factor[:, None], bias[:rows] * factor)
        self.out = Linear(layout, module.attn.out_proj.weight, module.attn.out_proj.bias)
        self.widen = Linear(layout, module.mlp.c_fc.weight, module.mlp.c_fc.bias, gelu=True)
        self.narrow = Linear(layout, module.mlp.c_proj.weight, module.mlp.c_proj.bias)

    def heads_of(self, x: Tensor) -> Tensor:
        """x (A, S, D) -> q, k and v in one tensor (3, A, H, S, d); a cross block gives q alone."""
        parts = self.project(self.ln_1(x)).unflatten(
            -1, (-1, self.heads, x.shape[-1] // self.heads)
        )
        return parts.permute(2, 0, 3, 1, 4)

    def add(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual sums behind the attention: both (A, S, D) -> (A, S, D)."""
        x = x + self.out(attended)
        return x + self.narrow(self.widen(self.ln_2(x)))

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The whole block over whole sequences: x (A, S, D) -> (A, S, D)."""
        return self.add(x, attend(*self.heads_of(x), bias))


class ImageEncoder:
    """open_clip's vision transformer with attention pooling; queries of the pooler precomputed.

    A tower without pooler is fused, too; a stem of convolutions runs as its own module.
    """

    def __init__(self, layout: Layout, tower: VisionTransformer, mean: list, std: list) -> None:
        self.dtype, self.device = layout.dtype, layout.device
        self.mean = torch.tensor(mean, device=layout.device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(std, device=layout.device).view(1, 3, 1, 1) * 255
        self.size = tower.image_size[0]
        self.embed = (
            Patches(layout, tower)
            if isinstance(tower.conv1, torch.nn.Conv2d)
            else Stem(layout, tower.conv1)
        )
        self.positions = layout.tensor(tower.positional_embedding)
        self.cls = layout.tensor(tower.class_embedding) + self.positions[0]
        self.ln_pre = Norm(layout, tower.ln_pre)
        heads = tower.transformer.resblocks[0].attn.num_heads
        self.blocks = [Block(layout, block, heads) for block in tower.transformer.resblocks]
        self.pooler = None if tower.attn_pool is None else Pooler(layout, tower.attn_pool)
        self.ln_post = Norm(layout, tower.ln_post)
        self.projection = Linear(layout, tower.proj.T, None)

    def pixels(self, crops: Tensor) -> Tensor:
        """uint8 crops (A, size, size, 3) -> normalised pixels (A, 3, size, size)."""
        if crops.shape[1:] != (self.size, self.size, 3) or crops.dtype != torch.uint8:
            raise ValueError(f"crops {tuple(crops.shape)} {crops.dtype}, expected {self.size} px")
        x = crops.to(self.device).permute(0, 3, 1, 2).float()
        return ((x - self.mean) / self.std).to(self.dtype)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels -> unit features (A, E) in fp32, image tokens (A, n, D)."""
        x = self.embed(pixels) + self.positions[1:]
        x = self.ln_pre(torch.cat([self.cls.expand(len(pixels), 1, -1), x], dim=1))
        for block in self.blocks:
            x = block(x)
        x = self.ln_post(x if self.pooler is None else self.pooler(x))
        features = self.projection(x[:, :2])[:, 0]  # never one row alone: see decode.MIN_ROWS
        return F.normalize(features.float(), dim=-1), x[:, 1:]


class Patches:
    """A convolution that is as wide as its stride, as one matrix product over patches."""

    def __init__(self, layout: Layout, tower: VisionTransformer) -> None:
        self.patch = tower.patch_size[0]
        self.grid = tower.image_size[0] // self.patch
        self.product = Linear(layout, tower.conv1.weight.flatten(1), None)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (A, 3, size, size) -> (A, patches, W)."""
        num, grid, patch = len(pixels), self.grid, self.patch
        x = pixels.view(num, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return self.product(x.reshape(num, grid * grid, -1))


class Stem:
    """A stack of convolutions."""

    def __init__(self, layout: Layout, stem: torch.nn.Sequential) -> None:
        self.stem = deepcopy(stem).to(layout.device, layout.dtype)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (A, 3, size, size) -> (A, patches, W)."""
        return self.stem(pixels).flatten(2).transpose(1, 2)


class Pooler:
    """Attention pooling: learnt queries over the patch tokens; CoCa (2205.01917), section 3.2."""

    def __init__(self, layout: Layout, pooler: torch.nn.Module) -> None:
        attn = pooler.attn
        width, self.heads = attn.embed_dim, attn.num_heads
        if attn.in_proj_weight is None:
            q_weight, k_weight, v_weight = (
                attn.q_proj_weight,
                attn.k_proj_weight,
                attn.v_proj_weight,
            )
        else:  # torch packs them where the vision width equals the decoder's
            q_weight, k_weight, v_weight = attn.in_proj_weight.chunk(3)
        bias = attn.in_proj_bias.detach()
        query = F.linear(pooler.ln_q(pooler.query), q_weight, bias[:width]).detach()
        query = query * (width // self.heads) ** -0.5
        self.query = layout.tensor(query.unflatten(-1, (self.heads, -1)).transpose(0, 1))[None]
        self.ln_k = Norm(layout, pooler.ln_k)
        self.keys_values = Linear(layout, torch.cat([k_weight, v_weight]), bias[width:])
        self.out = Linear(layout, attn.out_proj.weight, attn.out_proj.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Patch tokens (A, P, W) -> pooled tokens (A, queries, D)."""
        packed = self.keys_values(self.ln_k(x)).unflatten(-1, (2, self.heads, -1))
        k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(attend(self.query.expand(len(x), -1, -1, -1), k, v))


class TextEncoder:
    """The text tower: whole captions to contrastive features, and its blocks for decoding."""

    def __init__(self, layout: Layout, tower: TextTower, heads: int) -> None:
        self.embedding = layout.tensor(tower.token_embedding.weight)
        self.positions = layout.tensor(tower.positional_embedding)
        self.cls = layout.tensor(tower.cls_emb) + self.positions[-1]
        self.blocks = [Block(layout, block, heads) for block in tower.transformer.resblocks]
        self.ln_final = Norm(layout, tower.ln_final)
        self.projection = Linear(layout, tower.text_projection.T, None)
        self.contrastive_context = tower.contrastive_context
        self.correct_cls_mask = tower.correct_cls_mask
        self.device = layout.device

    def __call__(self, ids: Tensor) -> Tensor:
        """Captions (A, context), padded -> unit features (A, E) in fp32.

        No query ever sees a pad but the first, so the others are left out: exact, and a caption of
        ten tokens costs a fifth of a padded one.
        """
        longest = int((ids != PAD).sum(dim=1).max())
        ids = ids[:, : longest + 1].to(self.device)
        bias = bias_of(cls_mask(self, ids), self.embedding.dtype)
        x = self.embedding[ids] + self.positions[: ids.shape[1]]
        x = torch.cat([x, self.cls.expand(len(ids), 1, -1)], dim=1)
        for block in self.blocks:
            x = block(x, bias)
        features = self.projection(self.ln_final(x[:, -2:]))[:, -1]  # as in ImageEncoder
        return F.normalize(features.float(), dim=-1)


class DecoderWeights:
    """The decoder's blocks, and one matrix that gives all layers' keys and values of an image.

    All layers share the statistics of the image tokens, so these are normalised once and each layer's
    affine part goes into its matrix.
    """

    def __init__(self, layout: Layout, decoder: Decoder, heads: int) -> None:
        self.heads = heads
        self.self_blocks = [Block(layout, block, heads) for block in decoder.resblocks]
        self.cross_blocks = [
            Block(layout, block, heads, takes_keys=False) for block in decoder.cross_attn
        ]
        self.eps = decoder.cross_attn[0].ln_1_kv.eps
        self.keys_values = [self._fold(layout, block) for block in decoder.cross_attn]
        self.ln_final = Norm(layout, decoder.ln_final)
        self.vocabulary = Linear(layout, decoder.text_projection.T, None)
        self.word_rows = None  # (V, D), where the packed matrix is not precise enough
        if layout.dtype != torch.float32:
            self.word_rows = layout.tensor(decoder.text_projection.T)

    def logits(self, x: Tensor) -> Tensor:
        """Next-token logits in fp32: states (A, D) -> (A, V).

        A matrix product in bf16 rounds its results too, so that the best tokens often tie and the
        lowest id wins; the best candidates are therefore computed once more, summed and kept in fp32.
        """
        x = self.ln_final(x)
        logits = self.vocabulary(x).float()
        if self.word_rows is None:
            return logits
        best = logits.topk(min(NUM_REFINED, logits.shape[1]), dim=-1).indices
        rows = self.word_rows[best].float()  # (A, NUM_REFINED, D)
        return logits.scatter_(1, best, (rows @ x.float()[:, :, None])[:, :, 0])

    @staticmethod
    def _fold(layout: Layout, block: torch.nn.Module) -> Linear:
        width = block.ln_1_kv.weight.shape[0]
        weight = block.attn.in_proj_weight.detach()[width:]
        bias = block.attn.in_proj_bias.detach()[width:] + weight @ block.ln_1_kv.bias.detach()
        return Linear(layout, weight * block.ln_1_kv.weight.detach(), bias)

    def image_keys_values(self, image_tokens: Tensor) -> Iterator[Tensor]:
        """Keys and values of images, layer by layer: (A, n, D) -> (2, A, H, n, d) each."""
        x = F.layer_norm(image_tokens, image_tokens.shape[-1:], eps=self.eps)
        for linear in self.keys_values:
            yield linear(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
