"""One style's text tower and decoder at work: a step over the next tokens, with keys and values kept."""

# A images, R rows (A x samples x beams), T places in a cache, H heads, d head width, D width,
# V vocabulary, n image tokens

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.fused import Block, DecoderWeights, TextEncoder, attend, bias_of

if TYPE_CHECKING:
    from captioner.graphs import Graphs

ROOM_STEP = 16  # places by which caches grow


class Caches:
    """Keys and values of one batch: those of the images, and `room` tokens' in each text stack.

    An image is stored once however many captions are written of it: they are queries of one attention.
    `samples` of an image have nothing in common but the image. `beams` share a pool of places for
    their tokens, so that no cache is copied when beams change places: a mask says whose is whose.

    Attention runs over the whole room, with a mask over what is not yet written: slices would be
    copied by every product, and a room of fixed size lets one compiled or captured step serve all
    positions. So the room grows in steps, not by one.
    """

    def __init__(
        self,
        writer: "Writer",
        image_tokens: Tensor,
        room: int,
        *,
        samples: int = 1,
        beams: int = 1,
        capacity: int = 0,
    ) -> None:
        """Of image tokens (A, n, D). capacity: images that fit, more than A where it is greater."""
        self.beams = beams
        num, length, _ = image_tokens.shape
        num, decoder = max(num, capacity), writer.decoder
        block = decoder.self_blocks[0]
        heads, head_width = block.heads, len(block.ln_1.weight) // block.heads
        shape = (2, num, heads, length, head_width)
        self.image = [image_tokens.new_empty(shape) for _ in decoder.cross_blocks]
        # Zeros, not empty memory: unwritten places are multiplied by a weight of zero.
        shape = (2, num, samples, heads, room * beams, head_width)
        self.text = [image_tokens.new_zeros(shape) for _ in writer.text.blocks]
        self.decoder = [image_tokens.new_zeros(shape) for _ in decoder.self_blocks]
        self._load_image(decoder, image_tokens)

    def _load_image(self, decoder: DecoderWeights, image_tokens: Tensor) -> None:
        values = decoder.image_keys_values(image_tokens)
        for cache, value in zip(self.image, values, strict=True):
            cache[:, : len(image_tokens)] = value

    def load(self, writer: "Writer", image_tokens: Tensor) -> None:
        """Begin anew in the same memory, with other images."""
        self._load_image(writer.decoder, image_tokens)
        for cache in (*self.text, *self.decoder):
            cache.zero_()  # what a broken row left, nan times zero, would break the next

    def __len__(self) -> int:
        """How many images."""
        return self.image[0].shape[1]

    @property
    def room(self) -> int:
        """How many tokens fit."""
        return self.text[0].shape[4] // self.beams

    def grow(self, room: int) -> None:
        """Make room for more tokens."""
        more = (room - self.room) * self.beams
        for group in (self.text, self.decoder):
            for i, cache in enumerate(group):
                group[i] = F.pad(cache, (0, 0, 0, more))

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Overwrite images `targets` by images `sources`."""
        if len(targets):
            for cache in (*self.image, *self.text, *self.decoder):
                cache[:, targets] = cache[:, sources]

    def narrow(self, num: int, room: int) -> "Caches":
        """The first images and places, in the same memory."""
        part = object.__new__(Caches)
        part.beams = self.beams
        part.image = [cache[:, :num] for cache in self.image]
        places = room * self.beams
        part.text = [cache[:, :num, :, :, :places] for cache in self.text]
        part.decoder = [cache[:, :num, :, :, :places] for cache in self.decoder]
        return part


class Writer:
    """One style's text tower and decoder, ready to decode."""

    def __init__(self, text: TextEncoder, decoder: DecoderWeights) -> None:
        self.text, self.decoder = text, decoder
        self.graphs: Graphs | None = None  # captured steps, where the device has such

    def step(
        self, ids: Tensor, position: Tensor, caches: Caches, ancestry: Tensor | None = None
    ) -> Tensor:
        """Next-token logits in fp32: ids (R,) at `position`, a tensor (1,) -> (R, V).

        ancestry: for beams, bool (A, beams, T), the places that hold a beam's own tokens, the present
        ones included. Rows are ordered by image, then by sample or beam.
        """
        x = self.text.embedding[ids] + self.text.positions[position]  # (R, D)
        x = x.unflatten(0, (-1, caches.beams))
        if ancestry is None:
            seen = (torch.arange(caches.room, device=ids.device) <= position)[None, None, None]
            places = position
        else:
            seen = ancestry[:, None]
            places = position * caches.beams + torch.arange(caches.beams, device=ids.device)
        bias = bias_of(seen, x.dtype)
        for block, cache in zip(self.text.blocks, caches.text, strict=True):
            x = _cached_block(block, x, cache, places, bias)
        decoder = self.decoder
        for i, block in enumerate(decoder.self_blocks):
            x = _cached_block(block, x, caches.decoder[i], places, bias)
            cross = decoder.cross_blocks[i]
            y = x.view(len(caches), -1, x.shape[-1])  # all that is written of an image
            (q,) = cross.heads_of(y)
            x = cross.add(y, attend(q, *caches.image[i])).view(x.shape)
        return decoder.logits(x.flatten(0, 1))


def _cached_block(block: Block, x: Tensor, cache: Tensor, places: Tensor, bias: Tensor) -> Tensor:
    """x (rows of the cache, beams, D); their keys and values go to `places` of the cache."""
    parts = block.heads_of(x)
    cache = cache.view(2, len(x), *cache.shape[3:])  # (2, rows, H, T, d)
    cache.index_copy_(3, places, parts[1:])
    return block.add(x, attend(parts[0], *cache, bias))
