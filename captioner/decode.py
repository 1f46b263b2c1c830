"""Cached autoregressive decoding: from image tokens to captions.

Both text stacks keep the keys and values of earlier tokens, those of the image are computed once, the
vocabulary projection sees one position, and images that are done leave the batch.
"""

# A images still decoding, n image tokens, D width

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captioner.beam import BeamSearch
from captioner.sampling import Rules, Sampling
from captioner.search import Decoded, Search
from captioner.settings import DecodeSettings
from captioner.tokens import Tokenizer
from captioner.writer import ROOM_STEP, Caches, Writer

# oneDNN computes a single row by another kernel, with other rounding; from two rows on, a row's bits
# do not depend on how many there are. So a batch never gets smaller than this.
MIN_ROWS = 2
# Asking whether a row is done waits for the device: on a GPU worth it only now and then.
CHECK_EVERY = {"cpu": 1, "cuda": 8}


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
    """Write one caption per image, the likeliest of several: (A, n, D) -> A results in order.

    `keys` seed the sampling, so a row's caption does not depend on its neighbours. `is_compacted=False`
    keeps finished rows in the batch; captions are the same.
    """
    search = search_of(tokenizer, style, settings)
    found = find(writer, search, image_tokens, keys, is_compacted=is_compacted)
    return [max(captions, key=lambda caption: caption.score) for captions in found]


def search_of(tokenizer: Tokenizer, style: str, settings: DecodeSettings) -> Search:
    """The search that settings ask for."""
    rules = Rules.of(tokenizer, settings)
    if settings.beams == 1:
        return Sampling(rules, settings, style)
    return BeamSearch(
        rules, settings.max_tokens, settings.beams, settings.length_penalty, settings.candidates
    )


@torch.inference_mode()
def find(
    writer: Writer,
    search: Search,
    image_tokens: Tensor,
    keys: Sequence[str],
    *,
    is_compacted: bool = True,
    check_every: int = 0,
) -> list[list[Decoded]]:
    """Every caption that a search finds of each image, best first (samples: in their order).

    check_every: steps between looks at what is done; 0 leaves it to the device.
    """
    num = len(image_tokens)
    if len(keys) != num:
        raise ValueError(f"{len(keys)} keys for {num} images")
    least = math.ceil(MIN_ROWS / (search.samples * search.beams))
    if num < least:
        images, keys = image_tokens.expand(least, -1, -1), [*keys] * least
        return find(writer, search, images, keys, is_compacted=is_compacted)[:num]
    check_every = check_every or CHECK_EVERY[image_tokens.device.type]
    order = list(range(num))  # which image each row of the batch belongs to
    found: dict[int, list[Decoded]] = {}
    begin = Batch if writer.graphs is None else writer.graphs.begin
    with contextlib.closing(begin(writer, search, image_tokens, keys)) as batch:
        for t in range(search.steps):
            batch.advance()
            is_last = t + 1 == search.steps
            if not is_last and (t + 1) % check_every:
                continue
            done = batch.rows["done"].all(dim=1).tolist()
            new = [i for i, n in enumerate(order) if (is_last or done[i]) and n not in found]
            if not new:
                continue
            captions = batch.search.collect(batch.rows, new, is_last=is_last)
            found |= {order[i]: caption for i, caption in zip(new, captions, strict=True)}
            if len(found) == num:
                break
            if is_compacted:
                left = [i for i, n in enumerate(order) if n not in found]
                order = [order[i] for i in batch.keep(left, least)]
    return [found[n] for n in range(num)]


class Batch:
    """Images that are written about together: their caches, and the tensors of a search."""

    def __init__(
        self, writer: Writer, search: Search, image_tokens: Tensor, keys: Sequence[str]
    ) -> None:
        device = image_tokens.device
        self.writer, self.search = writer, search
        self.rows = search.rows(keys, device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.num_written = 0
        self.caches = Caches(
            writer,
            image_tokens,
            min(ROOM_STEP, search.steps),
            samples=search.samples,
            beams=search.beams,
        )

    def advance(self) -> None:
        """Write one token in every row."""
        if self.num_written == self.caches.room:
            self.caches.grow(min(self.num_written + ROOM_STEP, self.search.steps))
        self.search.step(self.writer, self.caches, self.rows, self.position)
        self.position += 1
        self.num_written += 1

    def keep(self, left: list[int], least: int) -> list[int]:
        """Let the other rows go, down to `least`; returns the rows that stay, in their new order."""
        num = len(self.rows["done"])
        kept, moves = pack(left, num, max(len(left), least))
        self._move(moves)
        self.caches = self.caches.narrow(len(kept), self.caches.room)
        self.rows = {name: row[: len(kept)] for name, row in self.rows.items()}
        return kept

    def _move(self, moves: list[tuple[int, int]]) -> None:
        if moves:
            sources, targets = torch.tensor(moves, device=self.position.device).unbind(1)
            self.caches.move(sources, targets)
            for row in self.rows.values():
                row[targets] = row[sources]

    def close(self) -> None:
        """Nothing to give back."""


def pack(left: list[int], num: int, size: int) -> tuple[list[int], list[tuple[int, int]]]:
    """How to bring rows `left` of `num` to the front, in `size` rows: (who stands where, moves).

    Only holes are filled, so a row that ends costs one copy of a row's caches. Where `size` exceeds
    what is left, rows that are done stay as company.
    """
    company = size - len(left)
    staying = set(left)
    for row in range(num):
        if company and row not in staying:
            staying.add(row)
            company -= 1
    holes = [row for row in range(size) if row not in staying]
    movers = [row for row in range(size, num) if row in staying]
    moves = list(zip(movers, holes, strict=True))
    order = list(range(size))
    for source, target in moves:
        order[target] = source
    return order, moves
