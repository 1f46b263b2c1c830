"""BLEU: coco-caption's figures, a slow implementation's, and cases computed by hand."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from captioner.metrics.bleu import bleu_counts, corpus_bleu
from captioner.metrics.tokens import tokenise
from tests.captioner.metrics.examples import coco, grams, random_captions
from tests.support import real


def slow_bleu(candidates, references):
    """Papineni's definition, n-gram by n-gram, with coco-caption's constants."""
    correct, guessed = [0] * 4, [0] * 4
    length = closest = 0
    for words, group in zip(candidates, references, strict=True):
        length += len(words)
        closest += min((abs(len(r) - len(words)), len(r)) for r in group)[1]
        for n in range(1, 5):
            said = Counter(grams(words, n))
            guessed[n - 1] += sum(said.values())
            for gram, times in said.items():
                correct[n - 1] += min(times, max(Counter(grams(r, n))[gram] for r in group))
    scores, product = [], 1.0
    ratio = (length + 1e-15) / (closest + 1e-9)
    for n in range(4):
        product *= (correct[n] + 1e-15) / (guessed[n] + 1e-9)
        penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1
        scores.append(product ** (1 / (n + 1)) * penalty)
    return scores


def test_equals_coco_caption():
    candidates, references, expected = coco()
    assert corpus_bleu(candidates, references) == pytest.approx(
        [expected[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-9
    )
    total = bleu_counts(candidates, references).total()
    assert total.guessed.tolist() == [expected["bleu_guess"]]
    assert total.correct.tolist() == [expected["bleu_correct"]]


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_equals_what_clipscores_authors_publish_for_raw_captions(kind):
    folder = real.data() / "caption_metrics"
    expected = json.loads((folder / "expected.json").read_text())
    expected = next(v for k, v in expected.items() if k.startswith("clipscore") and kind in k)
    said = json.loads((folder / f"clipscore_example/{kind}_captions.json").read_text())
    shown = json.loads((folder / "clipscore_example/refs.json").read_text())
    candidates = [tokenise(said[image]) for image in said]
    references = [[tokenise(text) for text in shown[image]] for image in said]
    found = corpus_bleu(candidates, references)
    assert found == pytest.approx([expected[f"Bleu_{n}"] for n in range(1, 5)], abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_slow_implementation(seed):
    candidates, references = random_captions(seed)
    assert corpus_bleu(candidates, references) == pytest.approx(slow_bleu(candidates, references))
    own = bleu_counts(candidates, references).scores()
    for row, words, group in zip(own, candidates, references, strict=True):
        assert row == pytest.approx(slow_bleu([words], [group]), abs=1e-12)


def test_by_hand():
    counts = bleu_counts([["the"] * 7], [[["the", "cat", "is", "on", "the", "mat"], ["a", "the"]]])
    assert counts.correct.tolist() == [[2, 0, 0, 0]]  # Papineni's example: clipped at 2
    assert counts.guessed.tolist() == [[7, 6, 5, 4]]
    assert counts.closest.tolist() == [6]
    brief = corpus_bleu([["a", "b"]], [[["a", "b", "c", "d"]]])
    assert brief[:2] == pytest.approx([math.exp(-1)] * 2)  # exp(1 - 4/2)
    tie = bleu_counts([["a", "b", "c"]], [[["a", "b", "c", "d"], ["a", "b"]]])
    assert tie.closest.tolist() == [2]  # the shorter of two that are as close


def test_parts_add_up_to_the_corpus_in_any_order():
    candidates, references = random_captions(7)
    whole = corpus_bleu(candidates, references)
    parts = [
        bleu_counts(candidates[a:b], references[a:b]) for a, b in ((0, 11), (11, 12), (12, 30))
    ]
    total = parts[2].total() + parts[0].total() + parts[1].total()
    assert total.scores()[0] == pytest.approx(whole)
    order = np.random.default_rng(0).permutation(len(candidates))
    shuffled = [candidates[i] for i in order], [references[i][::-1] for i in order]
    assert corpus_bleu(*shuffled) == pytest.approx(whole)


def test_the_perfect_and_the_empty_caption():
    _, references = random_captions(3, words="abcdefghij")
    perfect = [max(group, key=len) for group in references]
    assert corpus_bleu(perfect, references) == pytest.approx([1.0] * 4)
    assert corpus_bleu([[]], [[["a", "b"]]])[0] == 0
    for candidates, nobody in (([], []), ([["a"]], [[]])):
        with pytest.raises(ValueError, match="a reference"):
            corpus_bleu(candidates, nobody)
