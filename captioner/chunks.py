"""Texts beyond a model's context: cut into chunks of whole words that are encoded one by one.

What a stranger wrote may be as long as a shard allows, so what is looked at has limits: the first
MAX_CHARACTERS of a text, and of these at most MAX_CHUNKS chunks.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_CHARACTERS = 4096
MAX_CHUNKS = 16
MAX_WORD = 256
"""Characters; of a longer word each part is a word, since BPE takes the square of a word's length."""

LIMITS = {"characters": MAX_CHARACTERS, "chunks": MAX_CHUNKS, "word": MAX_WORD}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SLICE = 256  # chunks that are encoded at once: more than a batch of captions has

Chunk = TypeVar("Chunk")


class Encoder(Protocol):
    """As much of a tokenizer as is needed here."""

    def encode(self, text: str) -> list[int]:
        """Ids without start and end."""


def bounded(text: str, characters: int = MAX_CHARACTERS) -> str:
    """The text as far as it is looked at; one of ordinary length and words as it is."""
    text = text[:characters]
    if len(text) <= MAX_WORD:
        return text
    words = text.split()
    if max(map(len, words), default=0) <= MAX_WORD:
        return text
    return " ".join(w[i : i + MAX_WORD] for w in words for i in range(0, len(w), MAX_WORD))


def split_text(text: str, tokenizer: Encoder, room: int) -> list[list[int]]:
    """Token ids of a text in as few chunks of whole words as fit `room`, of about equal length.

    A word that does not fit, as all of a text in a script without spaces, is cut into equal parts.
    Only what `bounded` leaves is looked at, and no more than MAX_CHUNKS are given.
    """
    return _split_words(bounded(text), tokenizer, room)[:MAX_CHUNKS]


def split_sentences(text: str, tokenizer: Encoder, room: int) -> list[list[int]]:
    """Token ids of all of a text in few chunks that fit `room`, of whole sentences where these fit.

    A longer sentence is cut as `split_text` cuts. text: as `bounded` leaves it.
    """
    whole = tokenizer.encode(text)
    if len(whole) <= room:
        return [whole]
    chunks: list[list[int]] = [[]]
    for sentence in _SENTENCE_END.split(text.strip()):
        for part in _split_words(sentence, tokenizer, room):
            if len(chunks[-1]) + len(part) > room:
                chunks.append([])
            chunks[-1].extend(part)
    return chunks


def _split_words(text: str, tokenizer: Encoder, room: int) -> list[list[int]]:
    whole = tokenizer.encode(text)
    if len(whole) <= room:
        return [whole]
    words = [part for word in text.split() for part in _parts(tokenizer.encode(word), room)]
    if not words:
        return [whole[:room]]
    total = sum(map(len, words))
    target = math.ceil(total / math.ceil(total / room))
    chunks: list[list[int]] = [[]]
    for word in words:
        if len(chunks[-1]) >= target or len(chunks[-1]) + len(word) > room:
            chunks.append([])
        chunks[-1].extend(word)
    return chunks


def chunk_features(
    texts: Sequence[str],
    split: Callable[[str], Sequence[Chunk]],
    encode: Callable[[Sequence[Chunk]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Features (C, E) of all chunks of all texts, and which text each belongs to, int64 (C,).

    split: a text's chunks. encode: some chunks' features, unit length, on the CPU; called with few
    enough at a time that memory does not grow with the texts.
    """
    chunks = [split(text) for text in texts]
    owners = torch.tensor([i for i, parts in enumerate(chunks) for _ in parts], dtype=torch.long)
    flat = [part for parts in chunks for part in parts]
    starts = range(0, max(len(flat), 1), _SLICE)
    found = [encode(flat[start : start + _SLICE]) for start in starts]
    return found[0] if len(found) == 1 else torch.cat(found), owners


def mean_features(features: Tensor, owners: Tensor, count: int) -> Tensor:
    """A feature for each of `count` texts, unit length (count, E): the mean of its chunks'."""
    mean = torch.zeros(count, features.shape[1]).index_add_(0, owners, features)
    return F.normalize(mean, dim=-1)


def mean_and_lowest(features: Tensor, owners: Tensor, images: Tensor) -> list[tuple[float, float]]:
    """(mean, minimum) cosine of each text's chunks with its image's feature, a row of (B, E)."""
    cosines = (features * images[owners]).sum(dim=-1).tolist()
    by_text: list[list[float]] = [[] for _ in images]
    for owner, cosine in zip(owners.tolist(), cosines, strict=True):
        by_text[owner].append(cosine)
    return [(sum(values) / len(values), min(values)) for values in by_text]


def _parts(ids: list[int], room: int) -> list[list[int]]:
    """Ids in as few parts as fit `room`, the last one hardly shorter: it is scored like the others."""
    if len(ids) <= room:
        return [ids]
    size = math.ceil(len(ids) / math.ceil(len(ids) / room))
    return [ids[start : start + size] for start in range(0, len(ids), size)]
