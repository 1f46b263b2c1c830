"""More words for a captioner with a list of words: which ones, and the weights that they start with."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from captioner.checkpoint import Stack
from captioner.tokens import WORD, WordTokenizer

NOISE = 0.1  # of the spread that trained rows have; tells new words apart


def words_of(texts: Iterable[str], most: int) -> list[str]:
    """The most frequent words of some texts, at most `most`, in order."""
    seen = Counter(word for text in texts for word in WORD.findall(text.lower()))
    return sorted(sorted(seen, key=lambda word: (-seen[word], word))[:most])


def with_more_words(tokenizer: WordTokenizer, words: Iterable[str]) -> WordTokenizer:
    """The tokenizer with the words that it lacks behind its own; old ids stay."""
    known = set(tokenizer.words)
    return WordTokenizer([*tokenizer.words, *(word for word in words if word not in known)])


@torch.no_grad()
def extend_vocabulary(stack: Stack, size: int, seed: int = 0) -> None:
    """Make room for `size` words in a stack's embedding and vocabulary projection.

    A new row is the mean of the trained ones and a little noise: its logit then lies among the others',
    never above them all, so the first captions are those from before (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models").
    """
    draws = torch.Generator().manual_seed(seed)
    table = stack.text.token_embedding
    rows = _with_means(table.weight, size, draws)
    stack.text.token_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
    columns = _with_means(stack.text_decoder.text_projection.T, size, draws).T.contiguous()
    stack.text_decoder.text_projection = nn.Parameter(columns)


def _with_means(rows: Tensor, size: int, draws: torch.Generator) -> Tensor:
    """rows (V, D) -> (size, D)."""
    num_new = size - len(rows)
    if num_new < 0:
        raise ValueError(f"{len(rows)} words cannot become {size}")
    noise = torch.randn(num_new, rows.shape[1], generator=draws).to(rows)
    return torch.cat([rows, rows.mean(0) + NOISE * rows.std(0) * noise])
