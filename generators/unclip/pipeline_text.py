"""Frozen towers as diffusers' UnCLIPPipeline reads captions by them: its text encoder and its tokenizer."""

# B captions, T tokens, D width of their states, E width of the contrastive space

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from generators.towers import Towers


class TowersTextEncoder(nn.Module):
    """`text_encoder` of UnCLIPPipeline: what towers make of ids, exactly, whichever towers they are."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers, self.dtype = towers, torch.float32
        self.register_buffer("_where", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the pipeline puts its inputs; its `to` moves the towers as well."""
        return self._where.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TowersTextEncoder":
        found = super()._apply(fn, recurse)
        self.towers = self.towers.to(self.device)
        return found

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Ids (B, T) -> text_embeds (B, E) and last_hidden_state (B, T, D)."""
        states, _, pooled = self.towers.encode_text(input_ids)
        return SimpleNamespace(text_embeds=pooled, last_hidden_state=states)


def text_parts(towers: Towers) -> dict[str, Any]:
    """`text_encoder` and `tokenizer`, to be handed to UnCLIPPipeline.from_pretrained."""
    encoder = TowersTextEncoder(towers)
    return {"text_encoder": encoder, "tokenizer": TowersTokenizer(encoder)}


class TowersTokenizer:
    """`tokenizer` of UnCLIPPipeline. A caption that is too long loses its end without a warning."""

    def __init__(self, encoder: TowersTextEncoder) -> None:
        self.encoder, self.model_max_length = encoder, encoder.towers.context

    @torch.no_grad()
    def __call__(self, texts: str | Sequence[str], **options: Any) -> SimpleNamespace:
        """input_ids and attention_mask (B, T), whatever `options` ask for: all that the pipeline needs."""
        towers = self.encoder.towers
        ids = towers.tokenize([texts] if isinstance(texts, str) else list(texts))
        mask = towers.encode_text(ids.to(self.encoder.device))[1].cpu()
        return SimpleNamespace(input_ids=ids, attention_mask=mask.long())
