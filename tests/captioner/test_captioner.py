"""The public interface: a name, images, captions with scores."""

import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner import Caption, DecodeSettings, load_captioner
from captioner.captioner import image_bytes
from captioner.chunks import split_text
from captioner.coca import CocaCaptioner
from captioner.tokens import ClipTokenizer, WordTokenizer
from pipeline.errors import UserError

STATUSES = {"ok", "empty", "repetitive", "truncated", "off_image", "failed"}


def pictures(num, size=64, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(num)]


@pytest.fixture(scope="module")
def captioner(tiny) -> CocaCaptioner:
    return CocaCaptioner("tiny", tiny, precision="fp32")


def test_importing_the_package_loads_no_torch():
    code = "import captioner, sys; dir(captioner); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_captions_carry_scores(captioner):
    crops = pictures(5)
    results = captioner.caption(crops, [str(i) for i in range(5)])
    assert len(results) == 5
    for captions in results:
        assert tuple(captions) == ("short", "long")
        for style, caption in captions.items():
            assert isinstance(caption, Caption)
            assert caption.status in STATUSES
            assert caption.text and "\n" not in caption.text
            assert caption.num_tokens <= captioner.settings[style].decode.max_tokens
            assert caption.logprob <= 0 and caption.finish in ("stop", "length")
            assert -1 <= caption.similarity_min <= caption.similarity <= 1
    only = captioner.caption(crops, [str(i) for i in range(5)], ["long"])
    assert only == [{"long": captions["long"]} for captions in results]
    assert captioner.caption([], []) == []


def test_any_form_of_image_gives_the_same_captions(tmp_path, captioner):
    (array,) = pictures(1)
    image = Image.fromarray(array)
    path = tmp_path / "picture.png"
    image.save(path)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    results = captioner([path, str(path), stream.getvalue(), image, array], styles=["short"])
    assert len({str(result) for result in results}) == 1
    with pytest.raises(UserError, match="No such file"):
        captioner(["no/such/file.jpg"])
    with pytest.raises(UserError, match="cannot caption a float"):
        captioner([1.5])


def test_similarity_is_that_of_the_towers(captioner, tiny):
    crops = pictures(3)
    images = captioner.encode_image(crops)
    texts = captioner.encode_text(["a dog", "two cats on a red sofa", "a dog"])
    assert images.shape == texts.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    cosines = (images * texts).sum(axis=1)
    similarities = captioner.similarities(images, ["a dog", "two cats on a red sofa", "a dog"])
    np.testing.assert_allclose([mean for mean, _ in similarities], cosines, atol=1e-5)
    caption = captioner.caption(crops, ["a", "b", "c"], ["short"])[1]["short"]
    expected = (images[1] * captioner.encode_text([caption.text])[0]).sum()
    assert caption.similarity == pytest.approx(expected, abs=1e-5)


def test_long_texts_are_scored_in_chunks_of_whole_words(captioner):
    tokenizer = ClipTokenizer()
    words = [f"word{i}" for i in range(90)]
    chunks = split_text(" ".join(words), tokenizer, 74)
    assert len(chunks) > 1 and max(map(len, chunks)) <= 74
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 15
    assert " ".join(tokenizer.decode(c) for c in chunks).split()[:4] == ["word", "0", "word", "1"]
    assert split_text("", tokenizer, 74) == [[]]
    assert split_text("dog " * 74, tokenizer, 74) == [tokenizer.encode("dog") * 74]
    (mean, minimum), _ = captioner.similarities(
        captioner.encode_image(pictures(2)), [" ".join(words), "short"]
    )
    assert minimum < mean


def test_a_text_without_spaces_is_scored_to_its_end(captioner):
    tokenizer = ClipTokenizer()
    text = "\u4e00\u53ea\u68d5\u8272\u7684\u72d7" * 20
    for before in ("", "a dog "):
        chunks = split_text(before + text, tokenizer, 74)
        assert [i for chunk in chunks for i in chunk] == tokenizer.encode(before + text)
        assert len(chunks) > 2 and max(map(len, chunks)) <= 74
    _, last = split_text(text, tokenizer, len(tokenizer.encode(text)) - 1)
    assert len(last) > 20  # no scrap of a token or two
    features = captioner.encode_text([text, text + "\u732b", text[:60]])
    assert len(np.unique(features.round(4), axis=0)) == 3


def test_a_broken_row_fails_alone(captioner, monkeypatch):
    crops = pictures(3)
    expected = captioner.caption(crops, ["a", "b", "c"])
    encoder = captioner._image_encoder
    original = type(encoder).__call__

    def broken(self, pixels):
        features, tokens = original(self, pixels)
        tokens[1] = torch.nan
        return features, tokens

    monkeypatch.setattr(type(encoder), "__call__", broken)
    results = captioner.caption(crops, ["a", "b", "c"])
    assert {caption.status for caption in results[1].values()} == {"failed"}
    assert results[1]["short"].text == "" and math.isnan(results[1]["short"].similarity)
    assert [results[0]["short"].text, results[2]["short"].text] == [
        expected[0]["short"].text,
        expected[2]["short"].text,
    ]


def test_thresholds_and_settings_are_used(tiny, captioner):
    crops = pictures(2)
    wanted = {"short": DecodeSettings(max_tokens=7, temperature=1.0)}
    other = CocaCaptioner("tiny", tiny, precision="fp32", decode=wanted)
    assert all(c["short"].num_tokens <= 7 for c in other.caption(crops, ["a", "b"]))
    for decode, message in (
        ({"long": DecodeSettings(max_tokens=300)}, "exceeds its context"),
        ({"haiku": DecodeSettings()}, "no style 'haiku'"),
    ):
        with pytest.raises(UserError, match=message):
            CocaCaptioner("tiny", tiny, decode=decode)
    with pytest.raises(UserError, match="writes no 'haiku'"):
        captioner.caption(crops, ["a", "b"], ["haiku"])
    for places, message in (
        ({"precision": "int4"}, "precision 'int4'"),
        ({"device": "toaster"}, "device 'toaster'"),
        ({"device": "cuda:99"}, "no GPU is visible"),
    ):
        if "GPU" in message and torch.cuda.is_available():
            continue
        with pytest.raises(UserError, match=message):
            load_captioner("no/such/captioner", **places)
    with pytest.raises(UserError, match="max_tokens=0"):
        DecodeSettings(max_tokens=0)


def test_two_captioners_behind_one_interface():
    name = "short=coca_tiny:random,long=coca_tiny:random"
    both = load_captioner(name, precision="fp32")
    alone = load_captioner("coca_tiny:random", precision="fp32")
    images = [image_bytes(crop) for crop in pictures(2)]
    said = [c.caption([c.prepare(i) for i in images], ["a", "b"]) for c in (both, alone)]
    assert both.name == name and both.styles == ("short", "long")
    assert said[0] == said[1]
    assert both.parts["short"] is both.parts["long"]
    assert both.environment == alone.environment and both.environment["precision"] == "fp32"


def test_words_of_a_small_captioner(tiny):
    import dataclasses

    words = WordTokenizer([f"w{i}" for i in range(40)])
    small = CocaCaptioner("w", dataclasses.replace(tiny, tokenizer=words), precision="fp32")
    captions = small.caption(pictures(2), ["a", "b"], ["short"])
    assert all(c["short"].text.split()[0].startswith(("w", "<")) for c in captions)


@pytest.mark.skipif(
    "RECAPTION_TEST_DATA" not in os.environ, reason="RECAPTION_TEST_DATA names no folder of data"
)
def test_real_photographs(captioner):
    folder = Path(os.environ["RECAPTION_TEST_DATA"]) / "flickr8k_875" / "images"
    results = captioner(sorted(folder.iterdir())[:8])
    assert len({result["short"].text for result in results}) > 1
    assert all(c.status in STATUSES for result in results for c in result.values())
