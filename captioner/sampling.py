"""Choosing the next token: what is forbidden, greedy choice, and sampling that depends on the key."""

# A rows still decoding, V vocabulary, t tokens so far (start token included)

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captioner.settings import DecodeSettings


def sample_uniforms(keys: Sequence[str], style: str, settings: DecodeSettings) -> Tensor:
    """One uniform per row and step, (rows, max_tokens) float64: a function of (seed, key, style).

    So a caption does not depend on the batch it was written in. Philox's raw stream is fixed by
    numpy's policy, unlike the methods built on it.
    """
    rows = []
    for key in keys:
        seed = hashlib.blake2b(f"{settings.seed}\0{key}\0{style}".encode(), digest_size=16).digest()
        stream = np.random.Philox(key=int.from_bytes(seed, "little"))
        rows.append((stream.random_raw(settings.max_tokens) >> np.uint64(11)) * 2.0**-53)
    return torch.from_numpy(np.stack(rows))


def forbid_repeats(logits: Tensor, history: Tensor, size: int, pad: int) -> None:
    """Set to -inf, in place, every token that would repeat a run of `size` tokens of its own row.

    logits (A, V), history (A, t). `pad` is a column that is forbidden already.
    """
    if history.shape[1] < size:
        return
    runs = history.unfold(1, size, 1)  # (A, t - size + 1, size)
    tail = history[:, history.shape[1] - size + 1 :]
    is_repeat = (runs[:, :, :-1] == tail[:, None]).all(dim=-1)
    logits.scatter_(1, torch.where(is_repeat, runs[:, :, -1], pad), -torch.inf)


def choose(logits: Tensor, uniforms: Tensor, settings: DecodeSettings) -> Tensor:
    """The next token of each row: fp32 logits (A, V) and uniforms (A,) in [0, 1) -> ids (A,)."""
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
