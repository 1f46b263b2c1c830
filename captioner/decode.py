"""Cached autoregressive decoding: from image tokens to captions.

Both text stacks keep the keys and values of earlier tokens, those of the image are computed once, the
vocabulary projection sees one position, and rows that are done leave the batch.
"""

# A rows still decoding, T places in the cache, H heads, d head width, D width, V vocabulary

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.fused import Block, DecoderWeights, TextEncoder, attend
from captioner.sampling import choose, forbid_repeats, sample_uniforms
from captioner.settings import DecodeSettings
from captioner.text import PAD
from captioner.tokens import Tokenizer

# oneDNN computes a single row by another kernel, with other rounding; from two rows on, a row's bits
# do not depend on how many there are. So a batch never gets smaller than this.
MIN_ROWS = 2
ROOM_STEP = 16  # places by which caches grow


@dataclass(frozen=True)
class Decoded:
    """One caption: its ids without start and end, the log-probability of each token written."""

    ids: list[int]
    logprobs: list[float]  # untempered; the end token's is the last where finish is 'stop'
    finish: str  # 'stop', 'length', or 'failed' where the logits were not finite


class Caches:
    """Keys and values of one batch: those of the image, and `room` places for tokens in each stack.

    Attention runs over the whole room, with a mask over what is not yet written: slices would be
    copied by every product, and a room of fixed size lets one compiled or captured step serve all
    positions. So the room grows in steps, not by one.
    """

    def __init__(self, writer: "Writer", image_tokens: Tensor, room: int) -> None:
        decoder = writer.decoder
        self.image = decoder.image_cache(image_tokens)
        num, heads, _, head_width = self.image[0].shape[1:]
        # Zeros, not empty memory: unwritten places are multiplied by a weight of zero.
        shape = (2, num, heads, room, head_width)
        self.text = [image_tokens.new_zeros(shape) for _ in writer.text.blocks]
        self.decoder = [image_tokens.new_zeros(shape) for _ in decoder.self_blocks]

    @property
    def room(self) -> int:
        """How many tokens fit."""
        return self.text[0].shape[3]

    def grow(self, room: int) -> None:
        """Make room for more tokens."""
        for group in (self.text, self.decoder):
            for i, cache in enumerate(group):
                group[i] = F.pad(cache, (0, 0, 0, room - cache.shape[3]))

    def move(self, sources: Tensor, targets: Tensor, num_kept: int) -> None:
        """Overwrite rows `targets` by rows `sources`, then keep the first `num_kept` rows."""
        for group in (self.image, self.text, self.decoder):
            for i, cache in enumerate(group):
                if len(targets):
                    cache[:, targets] = cache[:, sources]
                group[i] = cache[:, :num_kept]


class Writer:
    """One style's text tower and decoder, ready to decode."""

    def __init__(self, text: TextEncoder, decoder: DecoderWeights) -> None:
        self.text, self.decoder = text, decoder

    def step(self, ids: Tensor, position: Tensor, caches: Caches) -> Tensor:
        """Next-token logits in fp32: ids (A,) at `position`, a tensor (1,) -> (A, V)."""
        x = (self.text.embedding[ids] + self.text.positions[position])[:, None]  # (A, 1, D)
        mask = torch.arange(caches.room, device=ids.device) <= position
        for block, cache in zip(self.text.blocks, caches.text, strict=True):
            x = _cached_block(block, x, cache, position, mask)
        decoder = self.decoder
        for i, block in enumerate(decoder.self_blocks):
            x = _cached_block(block, x, caches.decoder[i], position, mask)
            cross = decoder.cross_blocks[i]
            (q,) = cross.heads_of(x)
            x = cross.add(x, attend(q, *caches.image[i]))
        return decoder.logits(x[:, 0])


def _cached_block(block: Block, x: Tensor, cache: Tensor, position: Tensor, mask: Tensor) -> Tensor:
    q, k, v = block.heads_of(x)  # (A, H, 1, d) each
    cache[0].index_copy_(2, position, k)
    cache[1].index_copy_(2, position, v)
    return block.add(x, attend(q, *cache, mask))


@torch.inference_mode()
def decode(
    writer: Writer,
    tokenizer: Tokenizer,
    image_tokens: Tensor,
    keys: Sequence[str],
    style: str,
    settings: DecodeSettings,
    *,
    is_compacted: bool = True,
) -> list[Decoded]:
    """Write one caption per image: image tokens (B, n, D) -> B results in order.

    `keys` seed the sampling, so a row's caption does not depend on its neighbours. `is_compacted=False`
    keeps finished rows in the batch; captions are the same.
    """
    num, device, steps = len(image_tokens), image_tokens.device, settings.max_tokens
    if len(keys) != num:
        raise ValueError(f"{len(keys)} keys for {num} images")
    if num < MIN_ROWS:
        images, keys = image_tokens.expand(MIN_ROWS, -1, -1), [*keys] * MIN_ROWS
        rows = decode(writer, tokenizer, images, keys, style, settings, is_compacted=is_compacted)
        return rows[:num]
    caches = Caches(writer, image_tokens, min(ROOM_STEP, steps))
    history = torch.full((num, steps + 1), tokenizer.start, device=device)
    logprobs = torch.full((num, steps), torch.nan, device=device)
    uniforms = sample_uniforms(keys, style, settings).to(device)
    positions = torch.arange(steps, device=device)
    forbidden = torch.tensor([PAD, tokenizer.start], device=device)
    order = list(range(num))  # which image each row of the batch belongs to
    done = torch.zeros(num, dtype=torch.bool, device=device)
    written: dict[int, Decoded] = {}
    # Asking whether a row is done waits for the device: on a GPU worth it only now and then.
    check_every = 1 if device.type == "cpu" else 8

    for t in range(steps):
        if t == caches.room:
            caches.grow(min(t + ROOM_STEP, steps))
        logits = writer.step(history[: len(order), t], positions[t : t + 1], caches)
        total = logits.logsumexp(dim=-1)
        logits[:, tokenizer.size :] = -torch.inf
        logits.index_fill_(1, forbidden, -torch.inf)
        if t < settings.min_tokens:
            logits[:, tokenizer.end] = -torch.inf
        if settings.no_repeat_ngram:
            forbid_repeats(logits, history[: len(order), : t + 1], settings.no_repeat_ngram, PAD)
        chosen = choose(logits, uniforms[: len(order), t], settings)
        history[: len(order), t + 1] = chosen
        logprobs[: len(order), t] = logits.gather(1, chosen[:, None])[:, 0] - total
        # A row whose logits are not finite can write nothing more that is worth its time.
        done |= (chosen == tokenizer.end) | ~total.isfinite()
        is_last = t + 1 == steps
        if not is_last and ((t + 1) % check_every or not done.any()):
            continue
        for row in range(len(order)) if is_last else done.nonzero()[:, 0].tolist():
            if order[row] not in written:
                written[order[row]] = _collect(
                    history[row, 1 : t + 2], logprobs[row], tokenizer.end
                )
        if len(written) == num:
            break
        if is_compacted:
            if len(order) - int(done.sum()) < MIN_ROWS:
                done[done.nonzero()[:MIN_ROWS, 0]] = False  # done, but they stay as company
            num_kept = len(order) - int(done.sum())
            # Only holes are filled, so a row that ends costs one copy of a row's caches.
            targets = done[:num_kept].nonzero()[:, 0]
            sources = (~done[num_kept:]).nonzero()[:, 0] + num_kept
            caches.move(sources, targets, num_kept)
            for rows in (history, logprobs, uniforms):
                rows[targets] = rows[sources]
            for target, source in zip(targets.tolist(), sources.tolist(), strict=True):
                order[target] = order[source]
            del order[num_kept:]
            done = done.new_zeros(num_kept)
    return [written[row] for row in range(num)]


def _collect(ids: Tensor, logprobs: Tensor, end: int) -> Decoded:
    """Cut one row, (t,) ids and their log-probabilities, behind its first end token."""
    ids = ids.tolist()
    is_stopped = end in ids
    num_kept = ids.index(end) + 1 if is_stopped else len(ids)
    values = logprobs[:num_kept].tolist()
    if not all(map(math.isfinite, values)):
        return Decoded([], [], "failed")
    finish = "stop" if is_stopped else "length"
    return Decoded(ids[: num_kept - is_stopped], values, finish)
