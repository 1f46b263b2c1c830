"""Tokenizers: CLIP's byte-pair vocabulary through open_clip, and a list of words for small captioners."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from captioner.text import PAD
from pipeline.errors import UserError

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


class Tokenizer(Protocol):
    """Text to ids and back; id 0 is the pad of every CoCa."""

    start: int
    end: int
    size: int
    unwritten: tuple[int, ...]
    """Ids that no caption may hold: pad, start, and what stands for unknown words."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ClipTokenizer:
    """The vocabulary of CLIP and of open_clip's CoCa; it lower-cases, so captions have no capitals."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer()
        self.start, self.end = self._bpe.sot_token_id, self._bpe.eot_token_id
        self.size = self._bpe.vocab_size
        self.unwritten = (PAD, self.start)

    def encode(self, text: str) -> list[int]:
        """Ids without start and end."""
        return self._bpe.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without start and end, on one line."""
        return " ".join(self._bpe.decode(ids).split())


class WordTokenizer:
    """One id per word, punctuation mark or fixed phrase, from a list that travels with its captioner.

    Ids 0 to 3 are pad, start, end and unknown; the list follows in its order. A phrase ("at the top
    left") is one id wherever it occurs, which makes captions shorter to write.
    """

    start, end, unknown = 1, 2, 3
    unwritten = (PAD, start, unknown)

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: i + 4 for i, word in enumerate(self.words)}
        self.size = len(self.words) + 4
        phrases = sorted((w for w in self.words if " " in w), key=len, reverse=True)
        self._token = re.compile(
            "|".join([*(rf"\b{re.escape(p)}\b" for p in phrases), WORD.pattern])
        )

    def encode(self, text: str) -> list[int]:
        """Ids without start and end; the text is lower-cased."""
        text = " ".join(text.lower().split())
        return [self._ids.get(word, self.unknown) for word in self._token.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without start and end; no space before a closing mark."""
        words = ["<unknown>" if i < 4 else self.words[i - 4] for i in ids]
        return re.sub(r" ([.,;:!?])", r"\1", " ".join(words))


def read_tokenizer(path: Path | None) -> Tokenizer:
    """CLIP's tokenizer, or the list of words in a JSON file written by `write_tokenizer`."""
    if path is None:
        return ClipTokenizer()
    try:
        words = json.loads(path.read_text())["words"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a tokenizer of words", "copy the captioner anew") from error
    return WordTokenizer(words)


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> bool:
    """Write a list of words; False for CLIP's tokenizer, which open_clip brings along."""
    if isinstance(tokenizer, ClipTokenizer):
        return False
    path.write_text(json.dumps({"words": tokenizer.words}, indent=1) + "\n")
    return True


def to_tensor(tokenizer: Tokenizer, captions: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """Ids between start and end, padded with 0: (B, length) int64. Longer captions raise ValueError."""
    out = torch.full((len(captions), length), PAD)
    for row, ids in zip(out, captions, strict=True):
        if len(ids) > length - 2:
            raise ValueError(f"caption of {len(ids)} tokens does not fit a context of {length}")
        row[: len(ids) + 2] = torch.tensor([tokenizer.start, *ids, tokenizer.end])
    return out
