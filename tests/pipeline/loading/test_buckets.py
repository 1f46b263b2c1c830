"""Aspect buckets: the sizes that peers use, the nearest for each image, and batches of one size."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loading.buckets import Buckets, aspect_buckets

# Podell et al. 2023, appendix I: the wide half of its list.
SDXL = """1024x1024 1024x960 1088x960 1088x896 1152x896 1152x832 1216x832 1280x768 1344x768 1408x704
1472x704 1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512 1984x512 2048x512"""


def test_sizes_are_those_of_sdxl():
    listed = {tuple(map(int, size.split("x"))) for size in SDXL.split()}
    largest = {(w, h) for w, h in listed if not any(a >= w and b > h for a, b in listed)}
    found = aspect_buckets(1024, 64, 4.0)
    assert {(w, h) for w, h in found if w >= h} == largest
    assert set(found) == {(h, w) for w, h in found}
    assert found == sorted(found, key=lambda size: size[0] / size[1])
    assert aspect_buckets(256, 64, 1.0) == [(256, 256)]


def test_each_image_goes_to_the_nearest_ratio():
    sizes = aspect_buckets(256, 32)
    draw = np.random.default_rng(0)
    widths, heights = draw.integers(20, 900, (2, 500))
    buckets = Buckets(sizes, widths, heights)
    for i in range(500):
        own = np.log(widths[i] / heights[i])
        distances = [abs(np.log(w / h) - own) for w, h in sizes]
        assert distances[buckets.of[i]] == pytest.approx(min(distances))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=200), st.integers(1, 17), st.randoms())
def test_batches_of_one_bucket_hold_every_sample(kinds, batch_size, random):
    sizes = [(32, 64), (48, 48), (64, 32)]
    widths, heights = np.array([sizes[k] for k in kinds]).T
    buckets = Buckets(sizes, widths, heights)
    assert buckets.of.tolist() == kinds
    order = np.array(random.sample(range(len(kinds)), len(kinds)))
    schedule = buckets.schedule(order, batch_size)
    batches = [
        buckets.batch(schedule, number, batch_size).tolist()
        for number in range(buckets.batches(batch_size))
    ]
    seen = np.bincount(np.concatenate(batches), minlength=len(kinds))
    assert seen.min() >= 1
    for batch in batches:
        assert len(batch) == batch_size
        assert len({kinds[i] for i in batch}) == 1
    filled = buckets.filled(batch_size)
    assert seen.sum() - len(kinds) == sum(f.repeats for f in filled)
    for bucket, told in enumerate(filled):
        own = [i for i, kind in enumerate(kinds) if kind == bucket]
        assert told.samples == len(own)
        assert seen[own].sum() - len(own) == told.repeats < batch_size
        assert buckets.members(bucket).tolist() == own


def test_buckets_come_mixed_over_the_epoch():
    kinds = np.arange(4000) % 2
    buckets = Buckets([(32, 64), (64, 32)], 32 + 32 * kinds, 64 - 32 * kinds)
    schedule = buckets.schedule(np.random.default_rng(0).permutation(4000), 10)
    which = [int(buckets.of[buckets.batch(schedule, n, 10)[0]]) for n in range(400)]
    assert 150 < sum(a != b for a, b in itertools.pairwise(which)) < 350
