"""CIDEr-D: coco-caption's figure, a slow implementation's, and what document frequencies may do."""

import math
from collections import Counter

import numpy as np
import pytest

from captioner.metrics.cider import DocumentFrequencies, cider
from tests.captioner.metrics.examples import coco, grams, random_captions


def slow_cider(candidates, references, corpus, plain=False):
    """The paper's definition, n-gram by n-gram. corpus: the references that frequencies are of."""
    found: Counter = Counter()
    for group in corpus:
        found.update({(n, g) for r in group for n in range(1, 5) for g in grams(r, n)})

    def vector(words, n):
        return {
            gram: times * (math.log(len(corpus)) - math.log(max(1, found[n, gram])))
            for gram, times in Counter(grams(words, n)).items()
        }

    scores = []
    for words, group in zip(candidates, references, strict=True):
        total = 0.0
        for reference in group:
            away = max(0, len(words) - 1) - max(0, len(reference) - 1)
            for n in range(1, 5):
                ours, theirs = vector(words, n), vector(reference, n)
                norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
                dot = sum(
                    (w if plain else min(w, theirs[g])) * theirs[g]
                    for g, w in ours.items()
                    if g in theirs
                )
                if norms:
                    total += dot / norms * (1 if plain else math.exp(-(away**2) / 72))
        scores.append(10 * total / 4 / len(group))
    return scores


def test_equals_coco_caption():
    candidates, references, expected = coco()
    frequencies = DocumentFrequencies.of(references)
    assert cider(candidates, references, frequencies).mean() == pytest.approx(
        expected["CIDEr"], abs=1e-9
    )


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_slow_implementation(seed, plain):
    candidates, references = random_captions(seed, words="abcdefghijkl")
    found = cider(candidates, references, DocumentFrequencies.of(references), plain=plain)
    assert found == pytest.approx(slow_cider(candidates, references, references, plain))
    _, others = random_captions(seed + 100, images=50)
    found = cider(candidates, references, DocumentFrequencies.of(others), plain=plain)
    assert found == pytest.approx(slow_cider(candidates, references, others, plain))


def test_by_hand():
    """Two images of one reference: what both say weighs nothing, anything else log 2."""
    references = [[["a", "dog", "runs"]], [["a", "cat"]]]
    frequencies = DocumentFrequencies.of(references)
    perfect = cider([["a", "dog", "runs"], ["a", "cat"]], references, frequencies)
    # no 4-grams in the first, no 3-grams in the second
    assert perfect == pytest.approx([7.5, 5])
    assert cider([["a"], ["a", "dog"]], references, frequencies) == pytest.approx([0, 0])
    half = cider([["dog"], []], references, frequencies)[0]
    assert half == pytest.approx(10 / 4 / math.sqrt(2) * math.exp(-(2**2) / 72))


def test_clipping_and_length_tell_cider_d_from_cider():
    references = [[["dog", "runs"]], [["cat"]]]
    frequencies = DocumentFrequencies.of(references)
    gamed = [["dog"] * 9, ["cat"]]
    plain = cider(gamed, references, frequencies, plain=True)
    strict = cider(gamed, references, frequencies)
    assert plain[0] == pytest.approx(10 / 4 / math.sqrt(2))
    assert strict[0] == pytest.approx(10 / 4 / 9 / math.sqrt(2) * math.exp(-(7**2) / 72))
    assert plain[1] == strict[1] == pytest.approx(2.5)


def test_frequencies_depend_neither_on_order_nor_on_parts(monkeypatch):
    monkeypatch.setattr("captioner.metrics.cider._BUFFER", 50)  # merged at nearly every step
    candidates, references = random_captions(1, images=80)
    whole = cider(candidates, references, DocumentFrequencies.of(references))
    parts = DocumentFrequencies()
    for start in range(75, -1, -5):
        parts.add(references[start : start + 5])
    assert parts.num_images == 80
    assert cider(candidates, references, parts) == pytest.approx(whole)
    order = np.random.default_rng(0).permutation(80)
    shuffled = [references[i][::-1] for i in order]
    again = cider([candidates[i] for i in order], shuffled, parts)
    assert again == pytest.approx(whole[order])


def test_other_captions_score_against_the_same_frequencies():
    candidates, references = random_captions(2, words="abcdefghij")
    frequencies = DocumentFrequencies.of(references)
    before = cider(candidates, references, frequencies)
    constant = cider([["a", "b"]] * 30, references, frequencies)
    perfect = cider([group[0] for group in references], [g[:1] for g in references], frequencies)
    assert constant.mean() < perfect.mean()
    assert cider(candidates, references, frequencies) == pytest.approx(before)
    alone = cider(candidates[4:5], references[4:5], frequencies)
    assert alone == pytest.approx(before[4:5])


def test_corpora_of_one_image_and_of_none():
    one = DocumentFrequencies.of([[["a", "dog"]]])
    assert cider([["a", "dog"]], [[["a", "dog"]]], one).tolist() == [0]  # log(1) = 0
    assert cider([["a"]], [[["a"]]], DocumentFrequencies()).tolist() == [0]
    assert cider([], [], one).shape == (0,)
    assert np.isnan(cider([["a"], ["a"]], [[["a"]], []], one)).tolist() == [False, True]


def test_frequencies_of_a_corpus_hold_across_processes():
    """Codes of words do not depend on Python's hash seed."""
    import subprocess
    import sys

    code = (
        "from captioner.metrics.ngrams import count\n"
        "print(*(g.codes.tolist() for g in count([['a', 'dog', 'runs']]).grams))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
