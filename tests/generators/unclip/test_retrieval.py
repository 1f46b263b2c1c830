"""The figures of the priors' gate against what they must be, and the best of several candidates."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from generators.noise import SampleNoise
from generators.preset import Beside
from generators.towers import TextCondition
from generators.unclip import best_of as best
from generators.unclip import retrieval
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

HELD_OUT = RenderedScenes("A16", "test", -1)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_figures_of_the_truth_of_its_mean_and_of_others():
    true = F.normalize(unit(64, 24) + unit(24, seed=1), dim=-1)
    perfect = retrieval.figures(3 * true[:, None], true)  # length does not matter
    assert perfect["r_at_1"] == 1
    assert perfect["cosine"] == pytest.approx(1, abs=1e-5)
    assert perfect["centred_cosine"] == pytest.approx(1, abs=1e-5)
    mean = true.mean(dim=0).expand(64, 1, 24)
    constant = retrieval.figures(mean, true)
    assert constant["above_mean"] == pytest.approx(0, abs=1e-5)
    assert constant["r_at_1"] <= 1 / 64 and constant["cosine"] > 0.6
    assert perfect["above_mean"] == pytest.approx(1 - constant["cosine"], abs=1e-5)
    others = retrieval.figures(true.roll(1, 0)[:, None], true)
    assert others["r_at_1"] == 0 and abs(others["centred_cosine"]) < 0.1 < others["cosine"]


def test_figures_are_those_of_a_loop():
    true, drawn = unit(12, 6), unit(12, 4, 6, seed=2) + unit(12, 1, 6)
    found = retrieval.Nearness.of(drawn, true)
    for n in range(12):
        for c in range(4):
            row = drawn[n, c] / drawn[n, c].norm()
            cosines = torch.tensor([float(row @ other) for other in true])
            assert found.is_first[n, c] == (cosines.argmax() == n)
            torch.testing.assert_close(found.cosine[n, c], cosines[n])
            a, b = row - true.mean(dim=0), true[n] - true.mean(dim=0)
            torch.testing.assert_close(found.centred[n, c], a @ b / a.norm() / b.norm())


def test_best_of_two_gains_where_captions_tell_and_not_where_they_do_not():
    true = unit(200, 16)
    drawn = true[:, None] + 0.3 * torch.randn(
        200, 4, 16, generator=torch.Generator().manual_seed(1)
    )
    drawn = F.normalize(drawn, dim=-1)
    told = retrieval.best_of_two(drawn, true, true)
    assert told["best_of_two_gain"] > 0.02
    assert told["best_of_two_r_at_1"] >= retrieval.figures(drawn, true)["r_at_1"]
    assert retrieval.best_of_two(drawn, true, -true)["best_of_two_gain"] < -0.02
    same = retrieval.best_of_two(drawn[:, :1].expand(-1, 4, -1), true, true)
    assert same["best_of_two_gain"] == pytest.approx(0, abs=1e-6)


class Drawing:
    """A prior whose embeddings are the caption's, and the sample's noise."""

    def __init__(self, noise: float = 0.5) -> None:
        self.noise = noise

    def parameters(self):
        return iter([torch.zeros(1)])

    def sample(self, text: TextCondition, noise: SampleNoise, scale: float = 1.0) -> Tensor:
        return scale * text.pooled + self.noise * noise.normal(text.pooled.shape[1])


def condition(num: int) -> TextCondition:
    pooled = unit(num, 8, seed=3)
    return TextCondition(pooled[:, None], torch.ones(num, 1, dtype=torch.bool), pooled)


def test_the_best_candidate_is_the_one_most_like_the_caption():
    text = condition(5)
    drawn = best.candidates(Drawing(), text, range(5), 3)
    chosen = best.best_of(Drawing(), text, range(5), 3)
    for row, several, pooled in zip(chosen, drawn, text.pooled, strict=True):
        dots = [float(one @ pooled) for one in several]
        assert torch.equal(row, several[dots.index(max(dots))])


def test_candidates_are_each_caption_s_own_however_many_there_are():
    text, options = condition(4), {"scale": 2.0}
    three = best.candidates(Drawing(), text, [7, 8, 9, 7], 3, **options)
    two = best.candidates(Drawing(), text, [7, 8, 9, 7], 2, **options)
    assert torch.equal(three[:, :2], two)
    noise = three - 2 * text.pooled[:, None]
    torch.testing.assert_close(noise[0], noise[3])  # of one seed
    assert not torch.allclose(noise[0], noise[1]) and not torch.allclose(noise[:, 0], noise[:, 1])
    with pytest.raises(ValueError, match="4 captions with 3 seeds"):
        best.candidates(Drawing(), text, [1, 2, 3], 2)


def test_the_gate_looks_at_256_different_held_out_scenes():
    examples = retrieval.distinct(HELD_OUT, 256)
    scenes = {HELD_OUT.scene(place.index) for place in examples.places}
    assert len(scenes) == len(examples.places) == 256
    assert [place.index for place in examples.places] != list(range(256))  # some came twice
    figures = retrieval.measure(Drawing(), HELD_OUT, Beside(LinearTowers()))
    assert retrieval.BARS.keys() <= figures.keys()
    assert figures["r_at_1"] < 0.1  # the captions' embeddings say nothing of these images'


def test_a_prior_that_knows_the_images_passes():
    towers = LinearTowers()
    examples = retrieval.distinct(HELD_OUT, 256)
    true = towers.encode_image(towers.prepare(examples.images))

    class Knowing(Drawing):
        def sample(self, text: TextCondition, noise: SampleNoise) -> Tensor:
            return true.repeat_interleave(2 * retrieval.PAIRS, dim=0)

    figures = retrieval.measure(Knowing(), HELD_OUT, Beside(towers))
    for name, (_, bar) in retrieval.BARS.items():
        assert figures[name] >= bar - 1e-6, name
