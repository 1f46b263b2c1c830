"""The scale of embeddings: 17.2 or measured, there and back, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from generators.unclip.embedding_scale import EmbeddingScale, first_examples, image_embeddings
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

SCENES = RenderedScenes("A16", "train", 0, size=600)


def embeddings(num: int = 500, width: int = 12) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 2, width)
    return F.normalize(torch.randn(num, width, generator=draws) * spread + 1, dim=-1)


def test_whitened_embeddings_have_mean_0_and_deviation_1():
    found = embeddings()
    white = EmbeddingScale.whitening(found).scaled(found)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(white.std(dim=0), torch.ones(12), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "scale", [EmbeddingScale.whitening(embeddings()), EmbeddingScale.constant(12)]
)
def test_there_and_back_is_the_same_and_changes_nothing_in_place(scale):
    found = embeddings()
    before = found.clone()
    torch.testing.assert_close(scale.unscaled(scale.scaled(found)), found, atol=1e-6, rtol=0)
    assert torch.equal(found, before)


def test_the_paper_s_factor():
    found = embeddings()
    torch.testing.assert_close(EmbeddingScale.constant(12).scaled(found), 17.2 * found)


def test_what_never_varies_stays_near_0_and_comes_back():
    found = embeddings()
    found[:, 3] = 0.25
    scale = EmbeddingScale.whitening(found)
    white = scale.scaled(found)
    assert white.isfinite().all() and white[:, 3].abs().max() < 1e-5
    torch.testing.assert_close(scale.unscaled(white), found, atol=1e-6, rtol=0)
    assert 0.01 < float(scale.std[3]) < 1  # a network's small error stays one


def test_too_few_or_equal_embeddings_are_refused():
    with pytest.raises(UserError, match="at least two"):
        EmbeddingScale.whitening(embeddings(1))
    with pytest.raises(UserError, match="all the same"):
        EmbeddingScale.whitening(embeddings(1).expand(9, -1))


def test_embeddings_of_a_source_are_the_same_at_every_call_and_each_sample_s():
    towers = LinearTowers()
    found = image_embeddings(SCENES, towers)
    assert torch.equal(found, image_embeddings(SCENES, towers))
    assert found.shape == (768, 16)  # whole batches of 256
    first = next(first_examples(SCENES))
    torch.testing.assert_close(found[:256], towers.encode_image(towers.prepare(first.images)))
    assert len({place.index for place in first.places}) == 256
    assert len(image_embeddings(SCENES, towers, 100)) == 256


class Cached(RenderedScenes):
    """Examples of a cache, without images."""

    def batch(self, places):
        rows = np.stack([np.full(16, place.index + 1, np.float32) for place in places])
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True) * self.length(places)
        return replace(super().batch(places), images=None, encodings={"embedding": unit})

    def length(self, places) -> float:
        return 1.0


class LongOnes(Cached):
    def length(self, places) -> float:
        return 9.0


def test_cached_embeddings_need_no_image_and_have_unit_length():
    assert image_embeddings(Cached("A16", size=300), LinearTowers()).shape == (512, 16)
    with pytest.raises(UserError, match="norms from 9 to 9"):
        image_embeddings(LongOnes("A16", size=300), LinearTowers())
    broken = LinearTowers()
    broken.encode_image = lambda prepared: 3 * LinearTowers.encode_image(broken, prepared)
    with pytest.raises(UserError, match="norms from 3 to 3"):
        image_embeddings(SCENES, broken)
