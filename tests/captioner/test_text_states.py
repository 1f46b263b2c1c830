"""Text towers: open_clip's own states and vectors, our captioners' tower, and what has none."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.text_encoders import load_text_encoder
from captioner.text_states import describe_text_states
from captioner.tokens import to_tensor
from pipeline.errors import UserError

SAID = ["a dog", "Two cats, sleeping on a mat!", ""]
LONG = "a brown dog runs over the green grass towards an old red barn with a tin roof " * 8
TOWER = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
CONFIGS = {
    "states-clip": {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TOWER},
    "states-custom": {
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": TOWER | {"context_length": 20},
        "custom_text": True,
    },
    "states-cls": {
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": TOWER | {"embed_cls": True},
        "custom_text": True,
    },
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models of open_clip's kinds, known by their names."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def by_hand(text: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States after the last norm, and the end token's projected, from the tower's parts."""
    x = text.token_embedding(ids) + text.positional_embedding[: ids.shape[1]]
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask))
    return x, x[torch.arange(len(ids)), ids.argmax(dim=1)] @ text.text_projection


@pytest.mark.parametrize("name", ["states-clip", "states-custom"])
@torch.no_grad()
def test_states_and_vectors_are_open_clips(name: str):
    context = CONFIGS[name]["text_cfg"]["context_length"]
    encoder = load_text_encoder(f"{name}:random", length=context)
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    ids = open_clip.get_tokenizer(name)([*SAID, LONG])
    states, pooled = by_hand(getattr(model, "text", model), ids)
    found = encoder.text_states([*SAID, LONG])
    own = np.arange(context) < found.lengths[:, None]
    np.testing.assert_allclose(found.states[own], states.numpy()[own], atol=1e-5)
    np.testing.assert_allclose(found.pooled, pooled.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.pooled, model.encode_text(ids).numpy(), atol=1e-5)
    assert found.lengths.tolist() == [4, 10, 2, context]
    assert (ids.argmax(dim=1) + 1).tolist() == found.lengths.tolist()
    assert found.num_cut == 1


@torch.no_grad()
def test_a_captioners_tower_serves_as_well(tiny: Checkpoint):
    encoder = load_text_encoder("coca_tiny:random", length=76)
    base = load_checkpoint("coca_tiny:random").base
    ids = to_tensor(tiny.tokenizer, [tiny.tokenizer.encode(text) for text in SAID], 76)
    pooled, states = base.text(ids)
    found = encoder.text_states(SAID)
    own = np.arange(76) < found.lengths[:, None]
    np.testing.assert_allclose(found.states[own], states.numpy()[own], atol=1e-6)
    np.testing.assert_allclose(found.pooled, pooled.numpy(), atol=1e-6)
    assert found.lengths.tolist() == [4, 10, 2]


def test_an_identity_is_of_the_weights(tmp_path: Path):
    random = describe_text_states("states-clip:random")
    assert random["architecture"] == "states-clip"
    assert random != describe_text_states("states-custom:random")
    assert describe_text_states("bundled")["weights"].startswith("sha256:")


def test_towers_without_a_state_per_token_are_refused():
    with pytest.raises(UserError, match="TEXT=states-cls:random has no text tower"):
        load_text_encoder("states-cls:random")


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="TEXT=nothing is neither"):
        describe_text_states("nothing")
