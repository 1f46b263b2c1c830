"""Spherical k-means: embeddings of unit length into clusters, the same ones for the same points."""

import numpy as np

_CHUNK_NUMBERS = 1 << 24  # similarities held at once: 64 MB
MAX_ROUNDS = 25
SETTLED = 0.001
"""Rounds end once fewer than this share of the points change their cluster."""


def normalised(points: np.ndarray) -> np.ndarray:
    """float32 (N, D), each row of unit length; rows of zeros stay so. Takes any float type."""
    points = np.asarray(points, np.float32)
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), np.float32(1e-12))


def fit(
    points: np.ndarray, clusters: int, *, seed: int = 0, rounds: int = MAX_ROUNDS
) -> np.ndarray:
    """Centroids float32 (K, D) of unit length of `points`, float (N, D) of unit length.

    K is `clusters`, or the number of points where that is less. Lloyd's iterations by cosine
    (Dhillon and Modha 2001), begun from points drawn by the seed; a cluster that loses all its
    points takes the point that fits its own cluster worst.
    """
    count = min(clusters, len(points))
    if count < 1:
        raise ValueError(f"{clusters} clusters of {len(points)} points")
    drawn = np.random.default_rng(seed).choice(len(points), count, replace=False)
    centroids = normalised(points[np.sort(drawn)])
    labels = np.full(len(points), -1, np.int64)
    for _ in range(rounds):
        before = labels
        labels, similarity = nearest(points, centroids)
        _fill_empty(labels, similarity, count)
        centroids = normalised(_sums(points, labels, count))
        if np.count_nonzero(labels != before) <= SETTLED * len(points):
            break
    return centroids


def nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of N points, which centroid is nearest by cosine: int64 (N,), and that cosine."""
    labels = np.empty(len(points), np.int64)
    similarity = np.empty(len(points), np.float32)
    step = max(1, _CHUNK_NUMBERS // max(1, len(centroids)))
    for start in range(0, len(points), step):
        some = slice(start, start + step)
        cosines = normalised(points[some]) @ centroids.T
        labels[some] = cosines.argmax(axis=1)
        similarity[some] = cosines.max(axis=1)
    return labels, similarity


def _sums(points: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The sum of each cluster's points, float64 (K, D), added in one order whatever the threads."""
    sums = np.zeros((count, points.shape[1]))
    order = np.argsort(labels, kind="stable")
    step = max(1, _CHUNK_NUMBERS // max(1, points.shape[1]))
    for start in range(0, len(order), step):
        some = order[start : start + step]
        present, first = np.unique(labels[some], return_index=True)
        sums[present] += np.add.reduceat(points[some].astype(np.float64), first, axis=0)
    return sums


def _fill_empty(labels: np.ndarray, similarity: np.ndarray, count: int) -> None:
    """Gives each cluster without points one that fits its own worst, of those with company."""
    sizes = np.bincount(labels, minlength=count)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return
    worst = iter(np.argsort(similarity, kind="stable"))
    for cluster in empty:
        point = next(p for p in worst if sizes[labels[p]] > 1)
        sizes[labels[point]] -= 1
        labels[point] = cluster
        sizes[cluster] += 1
