"""The decoder's gate: its figures tell of decoders and priors that are known to be right or wrong."""

import numpy as np
import pytest

from generators.preset import Beside
from generators.unclip import decoder_gate, edits_quality
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.knowing import HalfPrior, KnowingDecoder, KnowingTowers

SCENES = RenderedScenes("A16", "test", -1)


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        for name, fewer in (("SCENES", 48), ("CAPTIONED", 8), ("SWEPT", 4), ("INVERSION", "5")):
            patch.setattr(decoder_gate, name, fewer)
        for name, fewer in (("EDITED", 5), ("INPAINTED", 2)):
            patch.setattr(edits_quality, name, fewer)
        beside = Beside(KnowingTowers(), {decoder_gate.PRIOR: HalfPrior()})
        return decoder_gate.measure(KnowingDecoder().eval(), SCENES, beside)


def test_the_order_of_the_three_embeddings_is_told(figures):
    assert figures["attributes"] == pytest.approx(1, abs=0.02)
    assert 0.5 < figures["attributes_prior"] < 0.9
    assert figures["attributes_text"] < figures["attributes_prior"]
    assert figures["fid"] < figures["fid_prior"] and figures["order_true_prior"] > 0
    assert figures["order_prior_text"] > 0
    assert figures["attributes_captioned"] == pytest.approx(1, abs=0.02)


def test_guidance_is_swept(figures):
    assert figures["diversity_fall"] > 0.5 and figures["diversity_4"] == 0
    assert np.isfinite(figures["guidance_rise"])


def test_edits_are_measured(figures):
    for name in ("variations_kept", "text_diff_right", "inpainting_equal"):
        assert figures[name] == 1


def test_all_bars_are_of_figures(figures):
    assert decoder_gate.GATE.bars.keys() <= figures.keys()
