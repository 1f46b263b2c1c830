"""Token by token: what is forbidden, greedy choice, and sampling that depends on the key alone."""

# R rows still decoding, V vocabulary, T places for tokens (start token included)

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioner.search import Decoded, cut
from captioner.settings import DecodeSettings
from captioner.text import PAD
from captioner.tokens import Tokenizer
from captioner.writer import Caches, Writer


def sample_uniforms(keys: Sequence[str], style: str, settings: DecodeSettings) -> Tensor:
    """One uniform per key, candidate and step: (keys, candidates, max_tokens) float64.

    A function of (seed, key, style, candidate), so a caption does not depend on the batch it was
    written in. Philox's raw stream is fixed by numpy's policy, unlike the methods built on it.
    """
    rows = []
    for key, number in itertools.product(keys, range(settings.candidates)):
        name = f"{settings.seed}\0{key}\0{style}" + (f"\0{number}" if number else "")
        seed = hashlib.blake2b(name.encode(), digest_size=16).digest()
        stream = np.random.Philox(key=int.from_bytes(seed, "little"))
        rows.append((stream.random_raw(settings.max_tokens) >> np.uint64(11)) * 2.0**-53)
    return torch.from_numpy(np.stack(rows)).unflatten(0, (-1, settings.candidates))


@dataclass(frozen=True)
class Rules:
    """Which tokens may come next, whatever chooses among them."""

    start: int
    end: int
    unwritten: tuple[int, ...]  # pad, start, unknown words
    size: int  # of the vocabulary; a model's may be larger
    min_tokens: int
    no_repeat_ngram: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, settings: DecodeSettings) -> "Rules":
        """The rules of one style."""
        parts = tokenizer.start, tokenizer.end, tokenizer.unwritten, tokenizer.size
        return cls(*parts, settings.min_tokens, settings.no_repeat_ngram)

    def restrict(self, logits: Tensor, history: Tensor, position: Tensor) -> None:
        """Set to -inf, in place, what may not follow the tokens up to `position` (1,).

        logits (R, V), history (R, T), start token included. Nothing here waits for the device, and
        no shape depends on the position: a captured step can replay it.
        """
        logits[:, self.size :].fill_(-torch.inf)
        for token in self.unwritten:
            logits[:, token].fill_(-torch.inf)
        logits[:, self.end].masked_fill_(position < self.min_tokens, -torch.inf)
        if self.no_repeat_ngram:
            forbid_repeats(logits, history, position, self.no_repeat_ngram)


def forbid_repeats(logits: Tensor, history: Tensor, position: Tensor, size: int) -> None:
    """Set to -inf, in place, every token that would repeat a run of `size` tokens of its own row.

    logits (R, V), history (R, T), of which the places up to `position` (1,) are written. The pad is
    forbidden by the way.
    """
    if history.shape[1] < size:
        return
    runs = history.unfold(1, size, 1)  # (R, T - size + 1, size)
    ends = torch.arange(size - 1, history.shape[1], device=history.device)
    places = (position + torch.arange(2 - size, 1, device=history.device)).clamp(min=0)
    tail = history.index_select(1, places)
    is_repeat = (runs[:, :, :-1] == tail[:, None]).all(dim=-1) & (ends <= position)
    logits.scatter_(1, runs[:, :, -1].masked_fill(~is_repeat, PAD), -torch.inf)


def choose(logits: Tensor, uniforms: Tensor, settings: DecodeSettings) -> Tensor:
    """The next token of each row: fp32 logits (R, V) and uniforms (R,) in [0, 1) -> ids (R,)."""
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / settings.temperature
    order = None
    num_kept = min(settings.top_k or logits.shape[1], logits.shape[1])
    if num_kept < logits.shape[1] or settings.top_p < 1:
        logits, order = logits.topk(num_kept, dim=-1)
    probs = logits.softmax(dim=-1)
    if settings.top_p < 1:  # a token stays while the mass before it is below top_p
        before = probs.double().cumsum(dim=-1) - probs
        probs = probs.masked_fill(before >= settings.top_p, 0.0)
    mass = probs.double().cumsum(dim=-1)
    # The first token whose cumulative mass exceeds the draw; it has mass of its own, always.
    draw = uniforms.to(mass)[:, None] * mass[:, -1:]
    index = torch.searchsorted(mass, draw, right=True).clamp_(max=mass.shape[1] - 1)
    return (index if order is None else order.gather(1, index))[:, 0]


@dataclass(frozen=True)
class Sampling:
    """Greedy choice, or `candidates` samples of each image, drawn independently."""

    rules: Rules
    settings: DecodeSettings
    style: str

    beams = 1

    @property
    def steps(self) -> int:
        return self.settings.max_tokens

    @property
    def samples(self) -> int:
        return self.settings.candidates

    def rows(self, keys: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Tensors (A, samples, ...): tokens, their log-probabilities, draws, and what is done."""
        shape = (len(keys), self.samples)
        return {
            "history": torch.full((*shape, self.steps + 1), self.rules.start, device=device),
            "logprobs": torch.full((*shape, self.steps), torch.nan, device=device),
            "uniforms": sample_uniforms(keys, self.style, self.settings).to(device),
            "done": torch.zeros(shape, dtype=torch.bool, device=device),
        }

    def step(
        self, writer: Writer, caches: Caches, rows: dict[str, Tensor], position: Tensor
    ) -> None:
        """Write one token; see `Search`."""
        history, logprobs, uniforms = (
            rows[name].view(-1, rows[name].shape[-1])
            for name in ("history", "logprobs", "uniforms")
        )
        logits = writer.step(history.index_select(1, position)[:, 0], position, caches)
        total = logits.logsumexp(dim=-1)
        self.rules.restrict(logits, history, position)
        draws = uniforms.index_select(1, position)[:, 0]
        chosen = choose(logits, draws, self.settings)[:, None]
        history.index_copy_(1, position + 1, chosen)
        logprobs.index_copy_(1, position, logits.gather(1, chosen) - total[:, None])
        # A row whose logits are not finite can write nothing more that is worth its time.
        done = rows["done"].view(-1)
        done |= (chosen[:, 0] == self.rules.end) | ~total.isfinite()

    def collect(
        self, rows: dict[str, Tensor], chosen: Sequence[int], *, is_last: bool
    ) -> list[list[Decoded]]:
        """The samples of chosen rows; see `Search`."""
        which = torch.tensor(chosen, device=rows["done"].device)
        ids = rows["history"][which, :, 1:].tolist()
        logprobs = rows["logprobs"][which].tolist()
        end, penalty = self.rules.end, self.settings.length_penalty
        return [
            [cut(*sample, end, penalty) for sample in zip(*image, strict=True)]
            for image in zip(ids, logprobs, strict=True)
        ]
