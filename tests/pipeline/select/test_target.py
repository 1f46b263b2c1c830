"""Clusters against a target set: what lies where the target lies stays."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline import kmeans
from pipeline.errors import UserError
from pipeline.select.column_runs import Column
from pipeline.select.target import Sample, clusters_of, load
from tests.support.selecting import annotated, shards_of

CLIP = Column("columns/clip@m", "embedding")
EMBEDDINGS = {"embedding": pa.list_(pa.float16())}


def blobs(count: int, each: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """Points around orthogonal axes: float32 (count * each, width), `each` after `each`."""
    noise = np.random.default_rng(seed).normal(scale=0.05, size=(count * each, width))
    return kmeans.normalised(np.repeat(np.eye(width)[:count], each, axis=0) + noise)


def test_blobs_are_clusters_of_their_own():
    points = blobs(5, 40)
    labels, cosines = kmeans.nearest(points, kmeans.fit(points, 5))
    groups = labels.reshape(5, 40)
    if len(set(groups[:, 0])) == 5:  # no two began in one blob
        assert (groups == groups[:, :1]).all() and cosines.min() > 0.9
    more = kmeans.nearest(points, kmeans.fit(points, 20))[0].reshape(5, 40)
    assert not set.intersection(*map(set, more[:2]))


def test_the_same_points_give_the_same_clusters():
    points = blobs(4, 100, seed=1)
    one, two = kmeans.fit(points, 7), kmeans.fit(points, 7)
    assert one.tobytes() == two.tobytes()
    assert kmeans.fit(points, 7, seed=1).tobytes() != one.tobytes()
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)


def test_no_cluster_is_empty_even_of_equal_points():
    points = np.repeat(np.eye(3, dtype=np.float32), [50, 1, 1], axis=0)
    centroids = kmeans.fit(points, 4)
    assert centroids.shape == (4, 3) and np.isfinite(centroids).all()
    assert len(kmeans.fit(points[:2], 9)) == 2
    with pytest.raises(ValueError):
        kmeans.fit(points[:0], 3)


def test_lloyd_does_not_make_it_worse():
    points = kmeans.normalised(np.random.default_rng(3).normal(size=(500, 8)))
    fits = [kmeans.nearest(points, kmeans.fit(points, 10, rounds=n))[1].mean() for n in (1, 3, 25)]
    assert fits[0] < fits[1] <= fits[2] + 1e-4


def test_nearest_is_brute_force(monkeypatch):
    points, centroids = blobs(3, 30, seed=4), kmeans.normalised(np.eye(16)[:7])
    labels, cosines = kmeans.nearest(points, centroids)
    np.testing.assert_array_equal(labels, (points @ centroids.T).argmax(1))
    monkeypatch.setattr(kmeans, "_CHUNK_NUMBERS", 50)  # a few points at a time
    again, close = kmeans.nearest(points.astype(np.float16), centroids)
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_allclose(close, cosines, atol=2e-3)


def test_only_clusters_with_a_target_stay(tmp_path):
    points = blobs(6, 50)
    np.save(tmp_path / "target.npy", blobs(6, 2, seed=9)[[0, 1, 6]])  # of the blobs 0 and 3
    target = load(str(tmp_path / "target.npy"), CLIP)
    stays = clusters_of(target, points, 12).lets_in(points).reshape(6, 50)
    assert stays[[0, 3]].any(axis=1).all() and not stays[[1, 2, 4, 5]].any()


def test_a_target_folder_is_read_in_the_same_run(out):
    shards = shards_of(out, 2)
    rows = [
        [{"embedding": [1, 0]}, {"reason": "truncated"}],
        [{"embedding": [0, 1]}, {"embedding": None}],
    ]
    annotated(out, shards, "clip@m", rows, EMBEDDINGS)
    target = load(out, CLIP)
    assert target.embeddings.tolist() == [[1, 0], [0, 1]]
    annotated(out, shards, "clip@m", rows[::-1], EMBEDDINGS)
    assert load(out, CLIP).identity != target.identity
    with pytest.raises(UserError, match="no embeddings in columns/clip@other"):
        load(out, Column("columns/clip@other", "embedding"))


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros((2, 2), int), np.zeros((0, 4)), np.full((2, 2), np.nan)]
)
def test_what_is_no_target(tmp_path, array):
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(UserError, match="TARGET"):
        load(str(tmp_path / "t.npy"), CLIP)


def test_another_width(tmp_path):
    np.save(tmp_path / "t.npy", np.eye(4))
    with pytest.raises(UserError, match="4 numbers, those of the samples 16"):
        clusters_of(load(str(tmp_path / "t.npy"), CLIP), blobs(2, 5), 2)


def test_nothing_to_cluster(tmp_path):
    np.save(tmp_path / "t.npy", np.eye(4))
    made = clusters_of(load(str(tmp_path / "t.npy"), CLIP), Sample(5).embeddings(), 2)
    assert not made.lets_in(np.eye(4)).any()


def test_the_sample_is_that_of_the_smallest_uids_in_any_order():
    rng = np.random.default_rng(0)
    uids = [f"{n:032x}" for n in rng.permutation(100)]
    points = np.array([[int(uid, 16)] for uid in uids], np.float32)
    for order in (range(100), range(99, -1, -1)):
        sample = Sample(7)
        for i in order:
            sample.add([uids[i]], points[i : i + 1])
        assert sample.embeddings().tolist() == [[n] for n in range(7)]
