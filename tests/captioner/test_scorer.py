"""Scorers: open_clip's own features for any of its models, our captioners' towers, and clear refusals."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captioner.coca import CocaCaptioner
from captioner.scorer import PREFIX, OpenClipScorer, load_scorer, scorer_identity
from pipeline.errors import UserError
from pipeline.images import BadImage
from tests.support.shards import jpeg, picture

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
LONG = "a brown dog runs over the green grass towards an old red barn with a tin roof " * 8


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of open_clip's kind, known by name, with weights in a file."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "small-clip.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(3)
    model = open_clip.create_model("small-clip")
    save_file(model.state_dict(), folder / "weights.safetensors")
    return f"small-clip:{folder}/weights.safetensors"


def test_features_are_open_clips(small: str):
    scorer = load_scorer(small)
    assert isinstance(scorer, OpenClipScorer)
    model, _, preprocess = open_clip.create_model_and_transforms(
        "small-clip", pretrained=small.partition(":")[2]
    )
    pixels = torch.stack([preprocess(picture(i)) for i in range(3)])
    tokens = open_clip.get_tokenizer("small-clip")(
        [PREFIX + "a dog", PREFIX + "Two cats, sleeping."]
    )
    with torch.inference_mode():
        images = model.eval().encode_image(pixels, normalize=True).numpy()
        texts = model.encode_text(tokens, normalize=True).numpy()
    as_png = [_png(picture(i)) for i in range(3)]
    found = scorer.encode_image([scorer.prepare(data) for data in as_png])
    assert found == pytest.approx(images, abs=1e-5)
    said = ["a dog", "Two cats, sleeping."]
    assert scorer.encode_text(said) == pytest.approx(texts, abs=1e-5)
    cosines = scorer.similarities(found[:2], said)
    assert cosines == [pytest.approx([c, c], abs=1e-5) for c in (images[:2] * texts).sum(axis=1)]


def test_long_texts_are_scored_to_their_end(small: str):
    scorer = load_scorer(small)
    image = scorer.encode_image([scorer.prepare(jpeg(1))])
    ((mean, worst),) = scorer.similarities(image, [LONG])
    ((changed, lower),) = scorer.similarities(image, [LONG + "two cats sleep " * 20])
    assert mean != pytest.approx(changed, abs=1e-4)
    assert lower < changed
    assert worst <= mean + 1e-6
    assert np.linalg.norm(scorer.encode_text([LONG, "a cat"]), axis=1) == pytest.approx([1, 1])
    assert scorer.similarities(image[:0], []) == []


def test_a_bad_image_is_refused_as_everywhere(small: str):
    with pytest.raises(BadImage):
        load_scorer(small).prepare(b"no image")


def test_captioners_are_scorers():
    scorer = load_scorer("bundled")
    assert isinstance(scorer, CocaCaptioner)
    crop = scorer.prepare(jpeg(1))
    assert scorer.encode_image([crop]).shape[0] == 1
    assert scorer_identity("bundled").startswith("sha256:")


def test_identity_is_that_of_the_weights(small: str, tmp_path: Path):
    copy = tmp_path / "other.safetensors"
    copy.write_bytes(Path(small.partition(":")[2]).read_bytes())
    assert scorer_identity(small) == scorer_identity(f"small-clip:{copy}")
    assert scorer_identity("small-clip:random") != scorer_identity(small)
    first, again = (load_scorer("small-clip:random").encode_text(["a dog"]) for _ in range(2))
    assert (first == again).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", "neither a directory nor"),
        ("nothing:random", "neither a directory nor"),
        ("openai:gpt@http://127.0.0.1:1/v1", "neither a directory nor"),
        ("small-clip:/nowhere/weights.safetensors", "no checkpoint at"),
        ("short=bundled,long=bundled", "is a composition"),
    ],
)
def test_what_is_no_scorer_is_told(small: str, name: str, message: str):
    with pytest.raises(UserError, match=message):
        load_scorer(name)


def test_weights_of_another_model_are_told(small: str, tmp_path: Path):
    save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="cannot be loaded") as e:
        load_scorer(f"small-clip:{tmp_path}/x.safetensors")
    assert "\n" not in str(e.value)


def _png(image: Image.Image) -> bytes:
    from tests.support.shards import encoded

    return encoded(image, "PNG")
