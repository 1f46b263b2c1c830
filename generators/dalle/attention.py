"""Attention under a mask: FlexAttention's blocks for long sequences on CUDA, torch's own elsewhere."""

# B batch, H heads, S inputs, C channels of a head

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    create_mask,
    flex_attention,
)
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from generators.dalle.masks import Mask

LONG = 512  # inputs; in shorter sequences hardly a block is empty
Rule = Tensor | BlockMask | None
"""A mask as `attend` takes it; None is plain causal attention."""


@cache
def rule(mask: Mask, size: int, device: torch.device) -> Rule:
    """What `attend` needs of a mask over S inputs. Made once per device."""
    if mask.kind == "causal":
        return None
    with torch.inference_mode(False):  # it outlives whoever asks first, and is saved for backward
        if device.type == "cuda" and size >= LONG:
            return blocks(mask, size, device)
        return mask.dense(size).to(device)


def blocks(mask: Mask, size: int, device: torch.device) -> BlockMask:
    """Which blocks of 128 x 128 a mask leaves empty, for FlexAttention to pass over."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask.sees(query, key)

    return create_block_mask(sees, None, None, size, size, device=str(device))


def attend(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """q, k, v (B, H, S, C) -> (B, H, S, C): one softmax over all that a token sees."""
    if isinstance(rule, BlockMask) and is_in_torch_dispatch_mode(include_infra_modes=False):
        # As while operations are counted: FlexAttention cannot be called then.
        size = q.shape[2]
        rule = create_mask(rule.mask_mod, None, None, size, size, device=q.device)
    if isinstance(rule, BlockMask):
        is_inside = torch.compiler.is_compiling()  # of a block that is compiled as a whole
        flex = _compiled() if q.is_cuda and not is_inside else flex_attention
        return flex(q, k, v, block_mask=rule)
    if q.device.type == "cpu" and q.shape[2] < LONG and q.requires_grad:
        return _plain(q, k, v, rule)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=rule, is_causal=rule is None)


def _plain(q: Tensor, k: Tensor, v: Tensor, rule: Tensor | None) -> Tensor:
    """The formula as it stands: in bf16 on a CPU, forward and backward take half of torch's time."""
    size = q.shape[2]
    seen = q.new_ones(size, size, dtype=torch.bool).tril() if rule is None else rule
    hidden = q.new_zeros(size, size).masked_fill(~seen, -math.inf)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores + hidden).softmax(dim=-1) @ v


@cache
def _compiled() -> Callable[..., Tensor]:
    """Uncompiled, FlexAttention would write out all S x S scores."""
    return torch.compile(flex_attention, dynamic=False)
