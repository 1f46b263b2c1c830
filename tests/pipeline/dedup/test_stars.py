"""Stars: the best copy stays, and each duplicate is near it, not only near another duplicate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dedup import stars
from tests.pipeline.dedup.test_hamming import look_alikes


def plain_greedy(hashes: np.ndarray, radius: int) -> list[int]:
    """The rule as it is told: from the best on, what is not taken stays, and takes what is near."""
    numbers = [int(number) for number in hashes]
    keeper = list(range(len(numbers)))
    for i, number in enumerate(numbers):
        if keeper[i] == i:
            for j in range(i + 1, len(numbers)):
                if keeper[j] == j and (number ^ numbers[j]).bit_count() <= radius:
                    keeper[j] = i
    return keeper


def test_a_chain_does_not_link_its_ends():
    chain = np.array([0b1111, 0b0011, 0b0000], np.uint64)  # two bits from one to the next
    assert stars.of_hashes(chain, 2).tolist() == [0, 0, 2]
    assert stars.of_hashes(chain[[1, 0, 2]], 2).tolist() == [0, 0, 0]  # the middle one is best


@pytest.mark.parametrize("max_pairs", [stars.MAX_PAIRS, 200, 1])
def test_hashes_are_grouped_by_the_rule_however_few_pairs_fit(max_pairs):
    hashes = np.unique(look_alikes(700, seed=1))
    hashes = np.random.default_rng(2).permutation(hashes)
    got = stars.of_hashes(hashes, 4, max_pairs)
    assert got.tolist() == plain_greedy(hashes, 4)
    assert (np.bitwise_count(hashes ^ hashes[got]) <= 4).all()
    assert (got[got] == got).all()


def test_a_crowd_in_which_all_are_near_needs_little_memory():
    draw = np.random.default_rng(0)
    ball = np.zeros(4000, np.uint64)
    for _ in range(2):
        ball |= np.uint64(1) << draw.integers(0, 64, ball.size, dtype=np.uint64)
    ball = draw.permutation(np.unique(ball))  # any two differ in four bits at most
    assert ball.size > 1000
    assert stars.of_hashes(ball, 4, max_pairs=1000).tolist() == [0] * ball.size


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=60), st.randoms())
def test_the_order_of_pairs_means_nothing(pairs, random):
    near = sorted((i, j) for i, j in pairs if i < j)
    expected = list(range(20))
    for i, j in near:
        if expected[i] == i and expected[j] == j:
            expected[j] = i
    random.shuffle(near)
    cut = len(near) // 2
    parts = [np.array(part, np.int64).reshape(-1, 2).T for part in (near[:cut], near[cut:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stars.hamming, "pairs_within", lambda hashes, radius: iter(map(tuple, parts)))
        assert stars.of_hashes(np.arange(20, dtype=np.uint64), 1).tolist() == expected
