"""N-best: candidates of a beam or of sampling, and the one that the towers find closest."""

import copy
import math

import numpy as np
import pytest
import torch

from captioner.checkpoint import Checkpoint, base_stack
from captioner.coca import CocaCaptioner
from captioner.config import model_config
from captioner.decode import find, search_of
from captioner.load import Style
from captioner.model import CoCa
from captioner.rerank import closest
from captioner.search import Decoded
from captioner.settings import DecodeSettings
from tests.captioner.models import WORDS

SAMPLES = DecodeSettings(max_tokens=12, temperature=1.0, candidates=5)
BEAM = DecodeSettings(max_tokens=12, beams=5, candidates=5)


def captioner(model: CoCa, settings: DecodeSettings) -> CocaCaptioner:
    config = copy.deepcopy(model_config("coca_tiny"))
    checkpoint = Checkpoint(
        model_config=config,
        base=model,
        stacks={"short": base_stack(model)},
        styles={"short": Style(76, settings)},
        tokenizer=WORDS,
    )
    return CocaCaptioner("worded", checkpoint, precision="fp32")


def pictures(num: int) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(num)]


def caption(score: float, finish: str = "stop") -> Decoded:
    return Decoded([5], [score], finish, score)


def test_the_closest_wins_and_of_equals_the_likeliest():
    likely, unlikely, failed = caption(-1.0), caption(-2.0), Decoded([], [], "failed")
    assert closest([likely, unlikely], [0.1, 0.2]) == 1
    assert closest([unlikely, likely, likely], [0.2, 0.2, 0.2]) == 1
    assert closest([failed, unlikely], [0.9, -0.9]) == 1
    assert closest([failed], [0.9]) == 0


@pytest.mark.parametrize("settings", [SAMPLES, BEAM], ids=("samples", "beam"))
def test_the_captioner_keeps_the_candidate_closest_to_the_image(worded, settings):
    model, crops, keys = captioner(worded, settings), pictures(6), [str(i) for i in range(6)]
    pixels = model._image_encoder.pixels(torch.from_numpy(np.stack(crops)))
    with torch.inference_mode():
        tokens = model._image_encoder(pixels)[1]
    search = search_of(WORDS, "short", settings)
    found = find(model._writers["short"], search, tokens, keys)
    written = model.caption(crops, keys)
    features = model.encode_image(crops)
    places = []
    for rows, feature, said in zip(found, features, written, strict=True):
        assert len(rows) == 5
        texts = [WORDS.decode(row.ids) for row in rows]
        cosines = model.encode_text(texts) @ feature
        places.append(int(cosines.argmax()))
        best = rows[places[-1]]
        assert said["short"].text == texts[places[-1]]
        assert said["short"].similarity == pytest.approx(cosines.max(), abs=1e-5)
        assert said["short"].logprob == pytest.approx(sum(best.logprobs) / len(best.logprobs))
        assert said["short"].finish == best.finish
    assert len(set(places)) > 1  # not always the likeliest


def test_samples_are_keyed_and_share_one_image(worded_writer, worded_images):
    images, keys = worded_images[:6], [f"key {i}" for i in range(6)]

    def samples(candidates: int, some: slice = slice(None)) -> list[list[Decoded]]:
        settings = DecodeSettings(max_tokens=12, temperature=1.0, candidates=candidates)
        search = search_of(WORDS, "short", settings)
        return find(worded_writer, search, images[some], keys[some])

    five = samples(5)
    assert all(len({tuple(row.ids) for row in rows}) > 2 for rows in five)
    # The first of them is what one sample would have been, and none depends on how many there are.
    for fewer in (1, 2):
        for rows, expected in zip(samples(fewer), five, strict=True):
            assert [row.ids for row in rows] == [row.ids for row in expected[:fewer]]
    assert samples(5, slice(2, 4)) == five[2:4]  # to the bit
    assert samples(5, slice(3, 4)) == five[3:4]
    for rows in five:
        for row in rows:
            assert row.score == pytest.approx(sum(row.logprobs) / len(row.logprobs))


def test_a_broken_image_has_no_candidates(worded, monkeypatch):
    model, crops, keys = captioner(worded, SAMPLES), pictures(3), ["a", "b", "c"]
    expected = model.caption(crops, keys)
    original = type(model._image_encoder).__call__

    def broken(self, pixels):
        features, tokens = original(self, pixels)
        tokens[1] = torch.nan
        return features, tokens

    monkeypatch.setattr(type(model._image_encoder), "__call__", broken)
    written = model.caption(crops, keys)
    assert written[1]["short"].status == "failed" and math.isnan(written[1]["short"].logprob)
    for i in (0, 2):
        assert written[i]["short"].text == expected[i]["short"].text
