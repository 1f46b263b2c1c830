"""CLIPScore and RefCLIPScore: the paper's arithmetic on known cosines, and the second half of long captions."""

import numpy as np
import pytest

from captioner.checkpoint import Checkpoint
from captioner.coca import CocaCaptioner
from captioner.metrics.clip_score import clip_score, clip_scores, ref_clip_score

LONG = "a dog on a red bench near the old town hall with a clock " * 12
DIRECTIONS = {"east": (1.0, 0.0), "north": (0.0, 1.0), "west": (-1.0, 0.0), "up": (0.6, 0.8)}


class Compass:
    """A scorer whose texts are directions; a text of several words has a chunk for each."""

    def encode_text(self, texts):
        means = np.array([np.mean([DIRECTIONS[w] for w in t.split()], axis=0) for t in texts])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def similarities(self, features, texts):
        found = []
        for feature, text in zip(features, texts, strict=True):
            cosines = [float(np.dot(feature, DIRECTIONS[word])) for word in text.split()]
            found.append((sum(cosines) / len(cosines), min(cosines)))
        return found


def test_the_papers_arithmetic():
    assert clip_score(np.array([0.3, 0.0, -0.2])) == pytest.approx([0.75, 0, 0])
    score = ref_clip_score(np.array([0.75, 0.75, 0.0, 0.75, 0.0]), np.array([0.8, -0.1, 0.9, 0, 0]))
    assert score == pytest.approx([2 * 0.75 * 0.8 / (0.75 + 0.8), 0, 0, 0, 0])
    assert np.isnan(ref_clip_score(np.array([0.75]), np.array([np.nan]))).all()


def test_mean_worst_and_best_reference():
    features = np.array([DIRECTIONS["east"]] * 3, dtype=np.float32)
    references = Compass().encode_text(["west", "up", "north", "north"])
    found = clip_scores(
        Compass(), features, ["east", "east north", "up"], references, np.array([0, 0, 1, 1])
    )
    assert found.mean == pytest.approx([2.5, 1.25, 1.5])
    assert found.worst == pytest.approx([2.5, 0, 1.5])
    nearest = [0.6, np.sqrt(0.5)]  # "up" to "east", "north" to "east north"
    harmonic = [2 * a * b / (a + b) for a, b in zip([2.5, 1.25], nearest, strict=True)]
    assert found.with_references == pytest.approx([*harmonic, np.nan], nan_ok=True)
    bare = clip_scores(Compass(), features[:1], ["east"])
    assert np.isnan(bare.with_references).all()


def test_the_second_half_of_a_long_caption_counts(tiny: Checkpoint):
    captioner = CocaCaptioner("tiny", tiny, precision="fp32")
    features = np.repeat(captioner.encode_text(["a dog on a bench"]), 3, axis=0)  # cosines above 0
    texts = [LONG, LONG + "two green cats sleep " * 20, "a dog on a red bench"]
    found = clip_scores(captioner, features, texts, captioner.encode_text(texts), np.arange(3))
    assert found.mean[0] != pytest.approx(found.mean[1], abs=1e-6)
    assert (found.worst <= found.mean + 1e-9).all()
    assert found.worst[1] < found.mean[1]
    assert found.mean[2] == found.worst[2]
    # a caption that is its own reference: the harmonic mean with 1
    wanted = 2 * found.mean / (found.mean + 1)
    assert found.with_references == pytest.approx(wanted, abs=1e-5)
