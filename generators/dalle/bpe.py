"""The words of DALL-E: lower-cased byte-pair encoding, trained on the captions at hand, with BPE dropout."""

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from pipeline import storage
from pipeline.draws import Draws
from pipeline.errors import UserError

LONGEST_TEXT = 10_000  # characters that are read of a caption
LONGEST_KNOWN = 256  # bytes of a word that is remembered; what has no spaces is one word
LARGEST_FILE = 64 << 20  # bytes; one with 16,384 words has about 1 MB
BYTES = 256  # words that there always are, so nothing is unknown


class Bpe:
    """Texts as ids 0 to size - 1, and back.

    Texts are lower-cased, runs of white space become one space, and every word begins with one, so
    that it is the same wherever it stands. Pieces are merged from UTF-8 bytes, as in GPT-2 (section
    2.2).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer, self.size = tokenizer, tokenizer.get_vocab_size()
        self._ids: dict[str, int] = tokenizer.get_vocab()
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self._whole = lru_cache(1 << 16)(self._tokenized)

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.tokenizer.encode(readable(text)).ids

    def encode_dropped(self, text: str, dropout: float, draws: Draws) -> list[int]:
        """The ids of one of a text's many segmentations (BPE dropout, 1910.13267, algorithm 1).

        At each step of the merging every merge that is possible is forbidden with probability
        `dropout`, and the best of the others is made; a word is done when none is left.
        """
        if not dropout:
            return self.encode(text)
        drops = _Drops(dropout, draws)
        normal = self.tokenizer.normalizer.normalize_str(readable(text))
        found: list[int] = []
        for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            ids = self._whole(word) if len(word) <= LONGEST_KNOWN else self._tokenized(word)
            # Each merge on the way to the whole word asks once, as long as nothing is dropped.
            if drops.pass_over(len(word) - len(ids)):
                found += ids
            else:
                found += [self._ids[piece] for piece in self._merged(word, drops)]
        return found

    def _tokenized(self, word: str) -> list[int]:
        return [token.id for token in self.tokenizer.model.tokenize(word)]

    def _merged(self, word: str, drops: "_Drops") -> list[str]:
        pieces = list(word)
        after = list(range(1, len(word) + 1))  # where the next piece begins, and the one before
        before = list(range(-1, len(word)))
        possible: list[tuple[int, int]] = []  # (rank, place), a heap

        def offer(place: int) -> None:
            if place >= 0 and after[place] < len(word):
                rank = self._ranks.get((pieces[place], pieces[after[place]]))
                if rank is not None:
                    heappush(possible, (rank, place))

        for place in range(len(word)):
            offer(place)
        dropped: list[tuple[int, int]] = []
        while possible:
            rank, place = heappop(possible)
            end = after[place]
            pair = (pieces[place], pieces[end]) if end < len(word) else ("", "")
            if self._ranks.get(pair) != rank:
                continue  # one of the two has grown since, or is part of another
            if drops.next():
                dropped.append((rank, place))
                continue
            pieces[place] += pieces[end]
            pieces[end] = ""
            after[place] = after[end]
            before[after[end]] = place
            offer(before[place])
            offer(place)
            for again in dropped:
                heappush(possible, again)
            dropped.clear()
        return [piece for piece in pieces if piece]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, as it was normalised; padding tokens are left out."""
        return self.tokenizer.decode([i for i in ids if i < self.size]).strip()

    def save(self, path: Path | str) -> None:
        """Writes the JSON file of the `tokenizers` library."""
        storage.write_bytes(str(path), self.to_json())

    def to_json(self) -> bytes:
        return self.tokenizer.to_str(pretty=True).encode()

    @classmethod
    def load(cls, path: Path | str) -> "Bpe":
        """UserError where the file is none that `save` has written."""
        path = Path(path)
        hint = "train the model anew, or copy the file from where it was trained"
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise UserError(f"{path} has more than {LARGEST_FILE >> 20} MB", hint)
            found = cls(tokenizers.Tokenizer.from_buffer(path.read_bytes()))
        except UserError:
            raise
        except Exception as error:  # the library raises bare ones
            raise UserError(f"{path} holds no words: {error}", hint) from error
        if not found._is_ours():
            raise UserError(f"{path} splits texts in another way than DALL-E", hint)
        return found

    def _is_ours(self) -> bool:
        model = self.tokenizer.model
        is_plain = not (model.dropout or model.ignore_merges or model.byte_fallback)
        has_bytes = self._ids.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
        is_dense = sorted(self._ids.values()) == list(range(self.size))
        same = self.tokenizer.to_str() == _untrained(model).to_str()
        return is_plain and has_bytes and is_dense and same


def train(texts: Iterable[str], size: int) -> Bpe:
    """The `size` most useful pieces of the texts, fewer where they do not have as many.

    The same texts in the same order give the same words.
    """
    if size < BYTES:
        raise UserError(
            f"text_vocabulary {size} is too small", f"give at least {BYTES}, the bytes of UTF-8"
        )
    tokenizer = _untrained(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(map(readable, texts), trainer)
    return Bpe(tokenizer)


def readable(text: str) -> str:
    """Not endless, and without halves of characters, as JSON can hold them."""
    return text[:LONGEST_TEXT].encode("utf-8", "replace").decode()


def _untrained(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class _Drops:
    """A coin with the chance `dropout`, tossed as rarely as it can be: each draw says how many
    tosses it takes to the next drop.
    """

    def __init__(self, dropout: float, draws: Draws) -> None:
        self._draws, self._scale = draws, math.log1p(-dropout)
        self._left = self._gap()

    def _gap(self) -> int:
        """How many are kept before the next drop: geometric."""
        return int(math.log1p(-self._draws.uniform()) / self._scale)

    def pass_over(self, tosses: int) -> bool:
        """Whether none of so many is a drop; where one is, none of them has happened."""
        if tosses > self._left:
            return False
        self._left -= tosses
        return True

    def next(self) -> bool:
        if self._left:
            self._left -= 1
            return False
        self._left = self._gap()
        return True
