"""Sampling image tokens one after the other, with the keys and values of earlier ones kept."""

# B samples, T text tokens, N image tokens, P = 1 + T inputs before the image, H heads, C channels,
# K codes, D width

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from generators.dalle.attention import Rule, attend
from generators.dalle.masks import Mask
from generators.dalle.transformer import Config, Transformer
from pipeline.draws import Draws
from pipeline.errors import UserError

_COLDEST = 1e-30  # nearer to 0, 0 / 0 would come of it; at this one, only equals have a chance


@dataclass(frozen=True)
class Choice:
    """How a token is chosen among the codes of the image.

    temperature: 0 takes the likeliest. top_k: among so many, 0 for all. top_p: among the likeliest
    that together have this mass (1904.09751, section 3.1). guidance: s of classifier-free guidance,
    logits of the empty caption + s (those of the caption - those of the empty one); 1 is without.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: impossible",
                "give a temperature and top_k from 0 on, and a top_p above 0 and up to 1",
            )
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance {self.guidance} is impossible", "give a number")

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """fp32 logits (B, K) and uniforms (B,) on [0, 1) -> ids (B,), by the inverse of the CDF."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        num, order = logits.shape[-1], None
        logits = logits - logits.amax(dim=-1, keepdim=True)
        logits = logits / max(self.temperature, _COLDEST)
        if 0 < self.top_k < num or self.top_p < 1:
            logits, order = logits.topk(min(self.top_k or num, num), dim=-1)
        mass = logits.double().softmax(dim=-1)
        if self.top_p < 1:  # a code stays while the mass before it is below top_p
            mass = mass.masked_fill(mass.cumsum(dim=-1) - mass >= self.top_p, 0.0)
        mass = mass.cumsum(dim=-1)
        at = uniforms[:, None] * mass[:, -1:]
        index = torch.searchsorted(mass, at, right=True).clamp_(max=mass.shape[-1] - 1)
        return (index if order is None else order.gather(1, index))[:, 0]


def uniforms(streams: Sequence[Draws], num: int) -> Tensor:
    """`num` numbers in [0, 1) of each stream: float64 (B, num)."""
    words = np.stack([stream.bytes(8 * num).view("<u8") for stream in streams])
    return torch.from_numpy((words >> np.uint64(11)) * 2.0**-53)


@torch.no_grad()
def draw(
    model: Transformer,
    text: Tensor,
    streams: Sequence[Draws],
    choice: Choice,
    prefix: Tensor | None = None,
) -> Tensor:
    """Image tokens (B, N) for texts (B, T), on the model's device.

    streams: of each sample, so that a sample does not depend on the others of its batch. prefix:
    image tokens (B, n) to go on from. Only the codes of the image are chosen among.
    """
    config, num = model.config, len(text)
    draws = uniforms(streams, config.image_length).to(text.device)
    tokens = text.new_empty(num, config.image_length)
    start = 0 if prefix is None else prefix.shape[1]
    if start:
        tokens[:, :start] = prefix
    if start == config.image_length:
        return tokens
    copies = 1 if choice.guidance == 1 else 2
    if copies == 2:
        text = torch.cat([text, empty_text(config, text.device).expand_as(text)])
    cached = Cached(model, text, tokens[:, :start].repeat(copies, 1))
    for place in range(start, config.image_length):
        logits = cached.logits
        if copies == 2:
            told, untold = logits.chunk(2)
            logits = untold + choice.guidance * (told - untold)
        tokens[:, place] = choice.choose(logits, draws[:, place])
        if place + 1 < config.image_length:
            cached.advance(tokens[:, place].repeat(copies), place)
    return tokens


def empty_text(config: Config, device: torch.device) -> Tensor:
    """(1, T): padding alone, what a dropped caption is."""
    words = config.text_vocabulary
    return torch.arange(words, words + config.text_length, device=device)[None]


class Cached:
    """A batch that is being sampled; `logits` (B, K) are those of the next image token."""

    def __init__(self, model: Transformer, text: Tensor, prefix: Tensor) -> None:
        self.model = model
        self.layers = [KeyValues(mask, text.device) for mask in model.config.masks]
        x = torch.cat([model.embed_text(text), model.embed_image(prefix)], dim=1)
        rules = model.rules(x.shape[1], x.device)
        for block, layer, rule in zip(model.blocks, self.layers, rules, strict=True):
            x = block.through(x, lambda q, k, v, to=layer, rule=rule: to.begin(q, k, v, rule))
        self.logits = model.image_logits(x[:, -1])

    def advance(self, tokens: Tensor, place: int) -> None:
        """Takes the image tokens (B,) at a place."""
        x = self.model.embed_image(tokens[:, None], place)
        for block, layer in zip(self.model.blocks, self.layers, strict=True):
            x = block.through(x, lambda q, k, v, to=layer: to.go_on(q, k, v, place))
        self.logits = self.model.image_logits(x[:, -1])


class KeyValues:
    """Keys and values of a layer.

    What a token sees of the image is copied to a free space just before the text, so that attention
    runs over one dense piece of memory, and reads nothing that the mask hides.
    """

    def __init__(self, mask: Mask, device: torch.device) -> None:
        self.mask = mask
        self.seen, self.counts = ((), ()) if mask.kind == "causal" else neighbours(mask, device)
        self.space = max(self.counts, default=0)
        self.text_end = self.space + mask.prompt

    def begin(self, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Attention of the first inputs among themselves: (B, H, P + n, C)."""
        batch, heads, size, channels = k.shape
        most = self.text_end + self.mask.grid**2 - 1
        self.kept = k.new_empty(2, batch, heads, most, channels)
        self.kept[0, :, :, self.space : self.space + size] = k
        self.kept[1, :, :, self.space : self.space + size] = v
        return attend(q, k, v, rule)

    def go_on(self, q: Tensor, k: Tensor, v: Tensor, place: int) -> Tensor:
        """Attention of an image token to what it sees: (B, H, 1, C)."""
        at = self.text_end + place
        self.kept[0, :, :, at : at + 1] = k
        self.kept[1, :, :, at : at + 1] = v
        first, end = 0, at + 1
        if self.space:
            first, end = self.space - self.counts[place], self.text_end
            near = self.seen[place, first:] + self.text_end
            self.kept[:, :, :, first : self.space] = self.kept.index_select(3, near)
        return F.scaled_dot_product_attention(q, *self.kept[:, :, :, first:end])


@cache
def neighbours(mask: Mask, device: torch.device) -> tuple[Tensor, list[int]]:
    """What each image token sees of the image, (N, most), filled up on the left; and of how many."""
    seen = mask.neighbours()
    with torch.inference_mode(False):
        table = pad_sequence(seen, batch_first=True, padding_side="left").to(device)
    return table, [len(row) for row in seen]
