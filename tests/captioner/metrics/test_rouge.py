"""ROUGE-L: coco-caption's figure, the textbook's table, and cases computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.rouge import longest_common, rouge_l
from tests.captioner.metrics.examples import coco

words = st.lists(st.sampled_from("abcd"), max_size=80)


def test_equals_coco_caption():
    candidates, references, expected = coco()
    found = np.mean([rouge_l(c, r) for c, r in zip(candidates, references, strict=True)])
    assert found == pytest.approx(expected["ROUGE_L"], abs=1e-9)


@given(words, words)
def test_longest_common_equals_the_table(first, second):
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            both = table[i - 1, j - 1] + 1
            table[i, j] = both if a == b else max(table[i - 1, j], table[i, j - 1])
    assert longest_common(first, second) == table[-1, -1]


def test_by_hand():
    reference = ["police", "killed", "the", "gunman"]  # Lin's example
    beta = 1.2**2
    for text, both in (("police kill the gunman", 3), ("the gunman kill police", 2)):
        share = both / 4
        wanted = (1 + beta) * share * share / (share + beta * share)
        assert rouge_l(text.split(), [reference]) == pytest.approx(wanted) == pytest.approx(share)
    # precision 2/2 comes from the first reference, recall 1/1 from the second
    assert rouge_l(["a", "b"], [["a", "b", "c", "d"], ["a"]]) == pytest.approx(1)
    assert rouge_l(["a", "b"], [["a", "b", "c", "d"]]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))


def test_the_perfect_the_empty_and_the_foreign_caption():
    assert rouge_l(["a", "b"], [["a", "b"]]) == pytest.approx(1)
    assert rouge_l([], [["a"]]) == rouge_l(["a"], [[]]) == rouge_l(["a"], []) == 0
    assert rouge_l(["x"], [["a"]]) == 0
