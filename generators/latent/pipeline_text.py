"""What a text encoder says of captions as the pipelines of diffusers take it: prompt_embeds, and masks where they have any."""

# B captions, T tokens, D width of their states, L tokens that a pipeline is given

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from generators.latent import text
from generators.latent.model import Text
from generators.latent.text import TextEncoder
from pipeline.errors import UserError

MOST_TOKENS = 1 << 14


def embeds(
    captions: Sequence[str],
    encoder: TextEncoder,
    pipe: Any,
    *,
    negative: str = "",
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Arguments of a StableDiffusionPipeline, or PixArtAlphaPipeline, in place of its prompt.

    The former has no masks. Attention to tokens that all stand there equally often is attention to
    these tokens once: each caption's own are repeated up to a common multiple L of their numbers.
    UserError where that is beyond MOST_TOKENS, as of many captions at once.
    """
    device = torch.device(device)
    told = text.encoded(captions, encoder, device)
    against = text.encoded([negative], encoder, device).repeated(len(captions))
    if not hasattr(pipe, "unet"):
        return {
            "prompt_embeds": told.states,
            "prompt_attention_mask": told.mask.long(),
            "negative_prompt": None,  # by default "", which goes with no embeddings
            "negative_prompt_embeds": against.states,
            "negative_prompt_attention_mask": against.mask.long(),
        }
    tokens = math.lcm(*(n for side in (told, against) for n in side.mask.sum(dim=1).tolist()))
    if tokens > MOST_TOKENS:
        raise UserError(
            f"captions of these lengths are equally long at {tokens:,} tokens only",
            "draw them one at a time",
        )
    return {
        "prompt_embeds": _repeated(told, tokens),
        "negative_prompt_embeds": _repeated(against, tokens),
    }


def _repeated(told: Text, tokens: int) -> Tensor:
    """(B, L, D)."""
    rows = [states[mask] for states, mask in zip(told.states, told.mask, strict=True)]
    return torch.stack([row.repeat(tokens // len(row), 1) for row in rows])
