"""Variety: against slow definitions, and what must not change it."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from captioner.metrics.bleu import bleu_counts
from captioner.metrics.diversity import Sample, Texts, distinct, self_bleu, type_token_ratio
from tests.captioner.metrics.examples import grams, random_captions


def slow_self_bleu(captions):
    scores = []
    for i, words in enumerate(captions):
        others = captions[:i] + captions[i + 1 :]
        scores.append(bleu_counts([words], [others]).scores()[0][min(4, max(1, len(words))) - 1])
    return np.mean(scores)


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_is_bleu_against_all_others(seed):
    captions, _ = random_captions(seed, images=25)
    assert self_bleu(captions) == pytest.approx(slow_self_bleu(captions))
    random.Random(0).shuffle(captions)
    assert self_bleu(captions) == pytest.approx(slow_self_bleu(captions))


def test_self_bleu_of_twins_and_strangers():
    twins = [["a", "dog"], ["two", "cats", "sleep", "on", "a", "mat"]] * 2
    assert self_bleu(twins) == pytest.approx(1)
    assert self_bleu([["a", "b"], ["c", "d"]]) < 1e-5
    assert math.isnan(self_bleu([["a"]])) and math.isnan(self_bleu([]))


def test_type_token_ratio():
    words = Counter(["a", "dog", "and", "a", "cat", "and", "a", "bird"])
    assert type_token_ratio(words) == 5 / 8
    assert type_token_ratio(words, 8) == pytest.approx(5 / 8)
    assert type_token_ratio(words, 1) == pytest.approx(1)
    assert math.isnan(type_token_ratio(words, 9)) and math.isnan(type_token_ratio(Counter()))
    draw = random.Random(0)
    drawn = [len(set(draw.sample(list(words.elements()), 4))) / 4 for _ in range(20_000)]
    assert type_token_ratio(words, 4) == pytest.approx(np.mean(drawn), abs=0.005)


def test_the_ratio_at_one_size_does_not_depend_on_the_corpus():
    draw = np.random.default_rng(0)
    words = [f"w{n}" for n in draw.zipf(1.3, 200_000) if n < 10**6]
    small, large = Counter(words[:20_000]), Counter(words)
    assert type_token_ratio(small) > 1.5 * type_token_ratio(large)
    assert type_token_ratio(small, 10_000) == pytest.approx(
        type_token_ratio(large, 10_000), rel=0.02
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct(n):
    captions, _ = random_captions(4)
    every = [gram for words in captions for gram in grams(words, n)]
    assert distinct(captions, n) == pytest.approx(len(set(every)) / len(every))
    assert math.isnan(distinct([[]], n))


def test_the_sample_depends_on_the_uids_alone():
    rows = [(f"{random.Random(i).getrandbits(128):032x}", [str(i)]) for i in range(500)]
    found = []
    for order in (rows, rows[::-1], sorted(rows)):
        sample = Sample(20)
        for uid, words in order:
            sample.add(uid, words)
        found.append(sample.captions())
    assert found[0] == found[1] == found[2] == [words for _, words in sorted(rows)[:20]]
    few = Sample(20)
    few.add(*rows[0])
    assert few.captions() == [rows[0][1]]


def test_shared_captions():
    texts = Texts()
    assert texts.shared() == 0
    for text in ("a dog", "a cat", "a dog", "A dog", "a dog", "\ud800"):
        texts.add(text)
    assert texts.shared() == 3 / 6
