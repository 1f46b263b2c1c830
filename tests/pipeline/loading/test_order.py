"""The order of an epoch: a permutation whatever the shards, shuffled, and cheap to enter anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loading import order
from pipeline.loading.order import Order, block_of

shard_counts = st.lists(st.integers(1, 90), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(shard_counts, st.integers(1, 40), st.integers(0, 60), st.integers(0, 2**40), st.data())
def test_every_sample_comes_once_wherever_one_enters(counts, block, more, seed, data):
    made, size = Order(counts, block, block + more), sum(counts)
    whole = made.indices(seed, 3, 0, size)
    assert sorted(whole.tolist()) == list(range(size))
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    fresh = Order(counts, block, block + more)
    np.testing.assert_array_equal(fresh.indices(seed, 3, start, stop), whole[start:stop])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(1, 64))
def test_blocks_cut_a_shard_evenly(samples, block):
    cuts = [block_of(row, samples, block) for row in range(samples)]
    assert all(start <= row < stop <= start + block for row, (start, stop) in enumerate(cuts))
    blocks = sorted(set(cuts))
    assert [start for start, _ in blocks[1:]] == [stop for _, stop in blocks[:-1]]
    sizes = [stop - start for start, stop in blocks]
    assert max(sizes) - min(sizes) <= 1
    assert len(blocks) == -(-samples // block)


def test_the_blocks_of_the_order_are_those_that_are_fetched():
    """With a delay of nothing the blocks come whole: a window of one sample, as it were."""
    counts, block = [100, 37, 5], 8
    made = Order(counts, block, 64)
    firsts = np.cumsum([0, *counts])
    wanted = {
        (int(first) + start, int(first) + stop)
        for first, count in zip(firsts, counts, strict=False)
        for start, stop in (block_of(row, count, block) for row in range(count))
    }
    starts, sizes = made._starts, made._sizes
    assert {(int(a), int(a + n)) for a, n in zip(starts, sizes, strict=True)} == wanted


def test_epochs_and_seeds_differ():
    made = Order([3000, 500], 16, 256)
    orders = [made.indices(s, e, 0, 3500).tolist() for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        same = sum(x == y for x, y in zip(orders[a], orders[b], strict=True))
        assert same < 12  # a random permutation keeps one in place, on average


def test_neighbours_are_torn_apart_and_samples_go_everywhere():
    size, block, window = 64_000, 32, 2048
    made = Order([1000] * 64, block, window)
    position = np.empty(size, np.int64)
    position[made.indices(5, 0, 0, size)] = np.arange(size)
    # Two of a block are as far apart as two uniform delays are: a third of a window, on average.
    apart = np.abs(np.diff(position.reshape(64, 1000)[:, : block - 1]))
    assert abs(apart.mean() - window / 3) < 0.1 * window
    # Any sample may come anywhere: its place in the epoch says nothing of its place in the set.
    assert abs(np.corrcoef(position, np.arange(size))[0, 1]) < 0.1
    in_first_tenth = np.flatnonzero(position < size // 10) // 1000
    assert np.bincount(in_first_tenth, minlength=64).max() < 400  # of 100 per shard on average


def test_a_set_in_one_window_is_shuffled_sample_by_sample():
    """Each sample comes first about equally often, and neighbours follow each other no more often."""
    size, epochs = 12, 3000
    made = Order([7, 5], 4, 64)
    orders = np.array([made.indices(0, epoch, 0, size) for epoch in range(epochs)])
    for place in (0, 5, 11):
        seen = np.bincount(orders[:, place], minlength=size)
        assert ((seen - epochs / size) ** 2 / (epochs / size)).sum() < 31.3  # chi2(11), 0.1 %
    follows = (np.diff(orders, axis=1) == 1).sum() / epochs  # 11 pairs, each with chance 1/12
    assert abs(follows - 11 / 12) < 0.08


def test_live_blocks_stay_within_about_a_window():
    """What an object store's blocks hold in memory, between their first and their last sample."""
    size, block, window = 40_000, 20, 2000
    made = Order([size], block, window)
    number = made.indices(1, 0, 0, size) // block
    first, last = np.full(size // block, size), np.zeros(size // block, int)
    np.minimum.at(first, number, np.arange(size))
    np.maximum.at(last, number, np.arange(size))
    live = [((first <= at) & (last >= at)).sum() * block for at in range(0, size, 500)]
    assert max(live) <= 1.1 * window


@pytest.mark.parametrize("size", [10**6, 4 * 10**6])
def test_the_last_position_draws_no_more_than_the_first(size, monkeypatch):
    """Numbers drawn, not seconds: they are the work of entering an epoch."""
    drawn = []
    words = order._words
    monkeypatch.setattr(order, "_words", lambda n, *key: drawn.append(n) or words(n, *key))

    def work(start: int) -> int:
        drawn.clear()
        Order([10_000] * (size // 10_000), 32, 8192).indices(0, 0, start, start + 64)
        return sum(drawn)

    first, last = work(0), work(size - 64)
    assert last <= first + 4 * 8192
    assert first < size / 25


def test_positions_outside_are_bugs():
    with pytest.raises(ValueError, match="outside"):
        Order([5], 1, 8).indices(0, 0, 3, 6)
