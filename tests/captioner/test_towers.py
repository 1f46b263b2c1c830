"""Frozen towers: open_clip's own numbers, the scorer's and the cache's, of any model, on any thread, without gradients."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from captioner import scorer
from captioner.encoder import load_encoder
from captioner.text_encoders import load_text_encoder
from captioner.text_states import describe_text_states
from captioner.towers import ContrastiveTowers, load_towers
from pipeline.errors import UserError
from tests.support.shards import picture

SAID = ["a dog", "Two cats, sleeping on a mat!", ""]
LONG = "a brown dog runs over the green grass towards an old red barn with a tin roof " * 8
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
CONFIGS = {
    "towers-clip": {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT},
    "towers-custom": {
        "embed_dim": 48,
        "vision_cfg": VISION,
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "towers-cls": {
        "embed_dim": 48,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"embed_cls": True},
        "custom_text": True,
    },
}
CLIP = "towers-clip:random"


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models of open_clip's kinds, known by their names."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def towers() -> ContrastiveTowers:
    return load_towers(CLIP)


def images(count: int = 3) -> list[np.ndarray]:
    """Of several shapes."""
    sizes = [(80, 50), (33, 32), (40, 90)]
    return [
        np.asarray(picture(i).convert("RGB").resize(size)) for i, size in enumerate(sizes[:count])
    ]


@pytest.mark.parametrize(
    ("name", "mode"), [("clip", "shortest"), ("custom", "shortest"), ("custom", "squash")]
)
@torch.no_grad()
def test_embeddings_are_open_clips(name: str, mode: str, monkeypatch: pytest.MonkeyPatch):
    """Also of a model that sees no middle square, by the transform that open_clip makes for it."""
    name = f"towers-{name}:random"
    monkeypatch.setattr(scorer, "preprocessing_of", lambda name: {"resize_mode": mode})
    found = load_towers(name)
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(
        name.partition(":")[0], image_resize_mode=mode
    )
    pixels = torch.stack([transform(Image.fromarray(image)) for image in images()])
    prepared = torch.cat([found.prepare(image[None]) for image in images()])
    expected = model.eval().encode_image(pixels, normalize=True)
    torch.testing.assert_close(found.encode_image(prepared), expected, atol=1e-5, rtol=0)
    ids = open_clip.get_tokenizer(name.partition(":")[0])([*SAID, LONG])
    assert torch.equal(found.tokenize([*SAID, LONG]), ids)
    assert prepared.dtype == (torch.uint8 if mode == "shortest" else torch.float32)
    pooled = found.encode_text(ids)[2]
    expected = model.encode_text(ids, normalize=True)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [CLIP, "bundled", "coca_tiny:random"])
@torch.no_grad()
def test_one_model_says_the_same_everywhere(name: str):
    """As the scorer that curation uses, and as the states that a cache of texts holds."""
    found, encoder = load_towers(name), load_encoder(name, precision="fp32")
    seen = [encoder.prepare(image) for image in images()]
    prepared = torch.cat([found.prepare(image[None]) for image in images()])
    np.testing.assert_array_equal(prepared.numpy(), np.stack(seen))
    vectors = found.encode_image(prepared)
    np.testing.assert_allclose(vectors.numpy(), encoder.encode_image(seen), atol=1e-5)
    same_size = np.stack(
        [np.asarray(Image.fromarray(image).resize((64, 64))) for image in images()]
    )
    np.testing.assert_array_equal(
        found.embed(same_size), found.encode_image(found.prepare(same_size)).numpy()
    )

    texts = load_text_encoder(name, length=found.context).text_states([*SAID, LONG])
    states, mask, pooled = found.encode_text(found.tokenize([*SAID, LONG]))
    np.testing.assert_allclose(states[mask].numpy(), texts.states[mask.numpy()], atol=1e-5)
    np.testing.assert_array_equal(mask.sum(dim=1).numpy(), texts.lengths)
    unit = F.normalize(torch.from_numpy(texts.pooled), dim=-1)
    torch.testing.assert_close(pooled, unit, atol=1e-5, rtol=0)
    cached = found.text_states([*SAID, LONG])
    np.testing.assert_array_equal(cached.states, states.numpy())
    np.testing.assert_array_equal(cached.pooled, pooled.numpy())
    np.testing.assert_array_equal(cached.lengths, texts.lengths)
    assert cached.num_cut == texts.num_cut == 1


@pytest.mark.parametrize("name", [CLIP, "coca_tiny:random"])
def test_sizes_and_identity(name: str):
    found = load_towers(name)
    states, mask, pooled = found.encode_text(found.tokenize(["a dog"]))
    vectors = found.encode_image(found.prepare(np.zeros((2, 50, 40, 3), np.uint8)))
    assert vectors.shape == (2, found.embed_dim) and pooled.shape == (1, found.embed_dim)
    assert states.shape == (1, found.context, found.text_width)
    assert mask.dtype == torch.bool and mask.shape == (1, found.context)
    assert all(part.dtype == torch.float32 for part in (states, pooled, vectors))
    about = json.loads(json.dumps(found.about))
    assert about == found.about == load_towers(name, precision="bf16").about
    assert about.items() > describe_text_states(name).items()
    assert about["embed_dim"] == found.embed_dim and about["image_size"] == found.image_size


def test_the_mask_is_start_text_and_end(towers: ContrastiveTowers):
    """Also where a caption has the id that pads others: "!" before a sign is CLIP's 0."""
    ids = towers.tokenize(["", "a dog", "!< a dog"])
    mask = towers.encode_text(ids)[1]
    assert mask.sum(dim=1).tolist() == (ids.argmax(dim=1) + 1).tolist()
    assert mask[:, 0].all() and not mask[0, 2:].any()
    assert 0 in ids[2][mask[2]].tolist()


def test_nothing_of_them_is_trained_and_pixels_may_be(towers: ContrastiveTowers):
    prepared = towers.prepare(np.zeros((1, 40, 40, 3), np.uint8))
    assert not towers.encode_image(prepared).requires_grad
    assert not towers.encode_text(towers.tokenize(["a dog"]))[0].requires_grad
    pixels = torch.zeros(1, 3, 32, 32, requires_grad=True)
    towers.encode_image(pixels)[0, 0].backward()
    assert pixels.grad is not None and pixels.grad.abs().max() > 0


def test_autocast_around_them_changes_nothing(towers: ContrastiveTowers):
    ids = towers.tokenize(SAID)
    plain = towers.encode_text(ids)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(towers.encode_text(ids)[0], plain)
    rounded = load_towers(CLIP, precision="bf16")
    found = rounded.encode_text(ids)
    assert found[0].dtype == torch.float32 and not torch.equal(found[0], plain)
    torch.testing.assert_close(found[2].norm(dim=-1), torch.ones(3))


def test_weights_are_held_once():
    """A captioner's towers come without its decoder."""
    found = load_towers("coca_tiny:random")
    names = {name.partition(".")[0] for name, _ in found._module.named_parameters()}
    assert names == {"visual", "text"}
    assert found.to("cpu") is found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("towers-cls:random", "CLIP=towers-cls:random has no text tower"),
        ("nothing", "CLIP=nothing is neither"),
        ("short=bundled,long=bundled", "is a composition"),
    ],
)
def test_what_are_no_towers_is_told(name: str, message: str):
    with pytest.raises(UserError, match=message):
        load_towers(name)
