"""ROUGE-L of a caption: the longest run of words, gaps allowed, that it shares with a reference."""

from collections.abc import Sequence

from captioner.metrics.ngrams import Words

BETA = 1.2  # coco-caption's weight of recall


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """ROUGE-L in 0 to 1 (Lin 2004, section 3), with the best precision and the best recall.

    As in coco-caption, these may come from different references.
    """
    shared = [longest_common(candidate, reference) for reference in references]
    if not any(shared):
        return 0.0
    precision = max(shared) / len(candidate)
    recall = max(n / len(words) for n, words in zip(shared, references, strict=True) if n)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence.

    One bit per word of the first (Crochemore et al. 2001, "A fast and practical bit-vector
    algorithm for the longest common subsequence problem"): a step per word of the second.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = (1 << len(first)) - 1
    row = everywhere  # a zero for every step up of the table's row
    for word in second:
        here = row & places.get(word, 0)
        row = (row + here | row - here) & everywhere
    return len(first) - row.bit_count()
