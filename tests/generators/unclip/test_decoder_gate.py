"""The decoder's gate: its figures tell of decoders and priors that are known to be right or wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from generators.pixels import to_model
from generators.preset import Beside
from generators.unclip import decoder_gate
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

SCENES = RenderedScenes("A16", "test", -1)


class Remembers:
    """Knows the scene of each true embedding, draws that of the nearest, and with guidance always the
    same of its samples."""

    device = torch.device("cpu")

    def __init__(self, towers: LinearTowers) -> None:
        self.images = SCENES.first(decoder_gate.SCENES).images
        self.embeddings = towers.encode_image(towers.prepare(self.images))

    def sample(self, embedding, text, noise, *, empty, guidance, sampling):
        nearest = (embedding @ self.embeddings.T).argmax(dim=1)
        drawn = to_model(self.images[nearest.numpy()])
        return drawn if guidance > 1 else drawn + 0.004 * noise.normal(3, 16, 16).sign()


class Prior(nn.Module):
    """Half of its embeddings are right."""

    def __init__(self, decoder: Remembers) -> None:
        super().__init__()
        self.embeddings = decoder.embeddings

    def sample(self, text, noise):
        found = self.embeddings.clone()
        found[::2] = found[::2].roll(1, dims=0)
        return found


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    towers = LinearTowers(width=48)
    with pytest.MonkeyPatch.context() as patch:
        for name, fewer in (("SCENES", 64), ("CAPTIONED", 16), ("SWEPT", 4)):
            patch.setattr(decoder_gate, name, fewer)
        decoder = Remembers(towers)
        beside = Beside(towers, {decoder_gate.PRIOR: Prior(decoder)})
        return decoder_gate.measure(decoder, SCENES, beside)


def test_the_order_of_the_three_embeddings_is_told(figures):
    assert figures["attributes"] == pytest.approx(1, abs=0.02)
    assert 0.5 < figures["attributes_prior"] < 0.9
    assert figures["attributes_text"] < figures["attributes_prior"]
    assert figures["order_true_prior"] > 0.1
    assert figures["order_prior_text"] > 0
    assert figures["attributes_captioned"] == pytest.approx(1, abs=0.02)


def test_guidance_is_swept(figures):
    assert figures["diversity_fall"] > 0.5 and figures["diversity_4"] == 0
    assert np.isfinite(figures["guidance_rise"])


def test_all_bars_are_of_figures(figures):
    assert decoder_gate.GATE.bars.keys() <= figures.keys()
