"""The text encoder that a latent diffusion model is handed, and what it tells a training of each caption."""

# B captions, T tokens, D width of their states

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from generators.latent.model import Text
from generators.task import Batch
from pipeline.loading.examples import Examples


class TextEncoder(Protocol):
    """Frozen: T5, CLIP's text tower, or a captioner's; `tokenize` runs in threads, the rest on its device."""

    about: Mapping[str, Any]
    """JSON that identifies architecture, weights and length."""
    text_width: int  # D
    context: int  # T

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, T) int64, padded; what is longer loses its end. "" is a caption like others."""
        ...

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States (B, T, D) in fp32, mask (B, T) bool, and a vector (B, E) where there is one."""
        ...

    def to(self, device: torch.device | str) -> Self: ...


_EMPTY: WeakKeyDictionary[TextEncoder, dict[torch.device, Text]] = WeakKeyDictionary()


def add(batch: Batch, examples: Examples, encoder: TextEncoder, drop: float) -> None:
    """`ids` (B, T), or of a cache `states` (B, T, D) and `mask` (B, T); where any may be dropped, `kept`
    (B,), false where the caption is "".

    drop: share of the captions that become "", decided by each sample's place.
    """
    if drop:
        kept = [not place.draws("drop caption").chance(drop) for place in examples.places]
        batch["kept"] = torch.tensor(kept)
    cached = examples.encodings
    if "text" in cached:
        states = torch.from_numpy(cached["text"]).float()
        lengths = torch.from_numpy(cached["text_length"])
        batch["states"] = states
        batch["mask"] = torch.arange(states.shape[1]) < lengths[:, None]
    else:
        batch["ids"] = encoder.tokenize(examples.texts)


@torch.no_grad()
def read(batch: Batch, encoder: TextEncoder) -> Text:
    """What the batch's captions say, where one was dropped what "" says."""
    said = batch["ids"] if "ids" in batch else batch["states"]
    with torch.autocast(said.device.type, enabled=False):
        if "ids" in batch:
            found = Text(*encoder.to(said.device).encode_text(said)[:2])
        else:
            found = Text(said, batch["mask"])
        # Whether any is dropped is not looked at: that would wait for the GPU.
        return found.where(batch["kept"], empty(encoder, said.device)) if "kept" in batch else found


@torch.no_grad()
def encoded(texts: Sequence[str], encoder: TextEncoder, device: torch.device) -> Text:
    """Captions as the model takes them."""
    ids = encoder.tokenize(list(texts)).to(device)
    with torch.autocast(device.type, enabled=False):
        return Text(*encoder.to(device).encode_text(ids)[:2])


def empty(encoder: TextEncoder, device: torch.device) -> Text:
    """The caption "", one, read once for each device."""
    known = _EMPTY.setdefault(encoder, {})
    if device not in known:
        known[device] = encoded([""], encoder, device)
    return known[device]
