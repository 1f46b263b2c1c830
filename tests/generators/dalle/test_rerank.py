"""Reranking: best first, by real contrastive towers and by towers that can be worked out by hand."""

import numpy as np

from captioner.encoder import ScorerEncoder
from generators.dalle import rerank as module
from generators.dalle.rerank import rerank

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class MeanColour:
    """Towers whose features are colours: a scorer of `captioner.metrics.clip_score`'s shape."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_image(self, prepared) -> np.ndarray:
        self.batches.append(len(prepared))
        means = np.stack([image.mean(axis=(0, 1)) for image in prepared]) + 1e-6
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def similarities(self, features, texts) -> list[tuple[float, float]]:
        words = np.array([COLOURS[text] for text in texts]) / 255
        cosines = (features * words).sum(axis=1)
        return [(float(c), float(c)) for c in cosines]


def images(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)


def test_best_first():
    pictures = images(6)
    pictures[2] = COLOURS["green"]
    pictures[4, :, :, 1] = 0
    towers = ScorerEncoder(MeanColour(), lambda image: image, {})
    found = rerank("green", pictures, towers)
    assert found.order[0] == 2 and found.order[-1] == 4
    assert (np.diff(found.scores[found.order]) <= 0).all()
    assert found.scores[2] > 0.999 and found.scores[4] < 0.01
    assert sorted(found.order) == list(range(6))


def test_scores_do_not_depend_on_batches(monkeypatch):
    pictures = images(10)
    scorer = MeanColour()
    towers = ScorerEncoder(scorer, lambda image: image, {})
    together = rerank("red", pictures, towers)
    monkeypatch.setattr(module, "BATCH", 4)
    apart = rerank("red", pictures, towers)
    assert scorer.batches == [10, 4, 4, 2]
    assert np.allclose(together.scores, apart.scores)
    assert np.array_equal(together.order, apart.order)


def test_of_equals_the_first_is_better_and_none_is_none():
    towers = ScorerEncoder(MeanColour(), lambda image: image, {})
    same = np.repeat(images(1), 5, axis=0)
    assert rerank("blue", same, towers).order.tolist() == [0, 1, 2, 3, 4]
    assert len(rerank("blue", [], towers).order) == 0
