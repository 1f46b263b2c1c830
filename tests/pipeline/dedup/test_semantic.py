"""Semantic duplicates: exact products, stars of them, and clusters that keep near ones together."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import kmeans
from pipeline.dedup import semantic
from pipeline.dedup.embeddings import MAX_WIDTH, SCALE, UNIT, products, threshold, whole


def planted(count: int, copies: int, width: int, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """Random directions, of which the last `copies` are near the first ones."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((count, width)) / width**0.5
    vectors[count - copies :] = vectors[:copies] + noise * draw.standard_normal((copies, width))
    return vectors.astype(np.float16)


@pytest.mark.parametrize("width", [1, 7, 512, MAX_WIDTH])
def test_products_are_exact_whole_numbers(width):
    draw = np.random.default_rng(width)
    a, b = (whole(draw.standard_normal((n, width))) for n in (40, 30))
    a[0] = whole(np.ones((1, width)))[0]  # the largest sums there are
    exact = a.astype(np.int64) @ b.astype(np.int64).T
    assert np.array_equal(products(a, b), exact)
    own = (a[0].astype(np.int64) ** 2).sum()
    assert products(a[:1], a[:1])[0, 0] == own < 2**24


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 900))
def test_similarities_are_those_of_the_embeddings(seed, width):
    vectors = np.random.default_rng(seed).standard_normal((12, width)) * 3
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    told = products(whole(vectors), whole(vectors)) / UNIT
    assert np.abs(told - unit @ unit.T).max() < 1.5e-3
    assert np.array_equal(whole(vectors), whole(vectors * 2.0))  # the length means nothing


def test_what_has_no_direction_is_nothing():
    made = whole(np.array([[0, 0], [np.nan, 1], [np.inf, 1], [3, 0]]))
    assert made.tolist() == [[0, 0], [0, 0], [0, 0], [SCALE, 0]]
    with pytest.raises(ValueError, match="at most"):
        whole(np.zeros((1, MAX_WIDTH + 1)))


def plain_stars(vectors: np.ndarray, similarity_above: float) -> list[int]:
    exact = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    keeper = list(range(len(vectors)))
    for i in range(len(vectors)):
        if keeper[i] == i:
            for j in range(i + 1, len(vectors)):
                if keeper[j] == j and exact[i, j] > threshold(similarity_above):
                    keeper[j] = i
    return keeper


@pytest.mark.parametrize("at_once", [1 << 24, 3000])
def test_stars_are_those_of_the_rule(monkeypatch, at_once):
    monkeypatch.setattr(semantic, "_AT_ONCE", at_once)
    vectors = whole(
        np.concatenate([planted(300, 100, 16), planted(100, 50, 16, seed=1, noise=0.1)])
    )
    keeper, product = semantic.stars(vectors, 0.9)
    assert keeper.tolist() == plain_stars(vectors, 0.9)
    assert 100 < np.count_nonzero(keeper != np.arange(len(vectors))) < 150
    gone = keeper != np.arange(len(vectors))
    own = (vectors[gone].astype(np.int64) * vectors[keeper[gone]]).sum(axis=1)
    assert np.array_equal(product[gone], own) and (own > threshold(0.9)).all()


def test_planted_pairs_meet_in_one_cluster():
    vectors = whole(planted(3000, 500, 32))
    points = kmeans.normalised(vectors.astype(np.float32))
    centroids = whole(kmeans.fit(points, 8))
    labels = semantic.assign(vectors, centroids)
    exact = vectors.astype(np.int64) @ centroids.astype(np.int64).T
    assert np.array_equal(labels, exact.argmax(axis=1))
    pairs = np.flatnonzero(np.equal(labels[:500], labels[2500:]))
    assert len(pairs) >= 470  # a border runs between the others


def test_clusters_are_the_same_for_any_number_of_threads():
    code = (
        "import hashlib, numpy as np\n"
        "from pipeline import kmeans\n"
        "points = kmeans.normalised(np.random.default_rng(0).standard_normal((4000, 96)))\n"
        "print(hashlib.sha256(kmeans.fit(points, 40).tobytes()).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(told) == 1


def test_few_vectors_are_one_cluster_and_many_are_many():
    assert [semantic.suggested_clusters(n) for n in (1, 3999, 8000, 10**6, 10**8)] == [
        *(1, 1, 2, 250),
        10_000,
    ]
