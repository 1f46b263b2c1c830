"""CoCa against open_clip: keys, features, logits; and what open_clip cannot do: longer contexts."""

import copy

import pytest
import torch

from captioner.config import check_config
from captioner.model import CoCa, random_model
from captioner.text import TextTower
from captioner.writer import Caches
from pipeline.errors import UserError
from tests.captioner.models import (
    make_encoder,
    make_peer,
    make_writer,
    random_captions,
    shallow_config,
)

ATOL = 2e-5


def test_state_dict_loads_strictly_in_both_directions(config, model, peer):
    CoCa(config).load_state_dict(peer.state_dict(), strict=True)
    assert set(model.state_dict()) == set(peer.state_dict())


@torch.no_grad()
def test_image_features_and_tokens_equal_open_clip(model, peer, pixels):
    expected_features, expected_tokens = peer._encode_image(pixels)
    for encode in (model.encode_image, make_encoder(model)):
        features, tokens = encode(pixels)
        torch.testing.assert_close(features, expected_features, atol=ATOL, rtol=0)
        torch.testing.assert_close(tokens, expected_tokens, atol=ATOL * 10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("is_correct", [False, True])
@pytest.mark.parametrize("fill", [12, 76])
def test_text_features_equal_open_clip_padded(is_correct, fill):
    config = shallow_config(correct_cls_mask=is_correct)
    model = random_model(config, seed=3)
    ids = random_captions(5, 76, fill=fill)
    expected = make_peer(config, model).encode_text(ids)
    torch.testing.assert_close(model.encode_text(ids), expected, atol=ATOL, rtol=0)
    fused = make_writer(model, config).text
    torch.testing.assert_close(fused(ids), expected, atol=ATOL, rtol=0)


@torch.no_grad()
def test_logits_equal_open_clip(model, peer, pixels):
    ids = random_captions(4, 76, fill=76, seed=4)[:, :60]
    expected = peer(pixels, ids, output_labels=False)["logits"]
    logits = model.logits(model.encode_image(pixels)[1], ids)
    is_token = ids != 0
    assert expected.std() > 0.5
    assert (logits - expected)[is_token].abs().max() <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["coca_ViT-L-14", "coca_base"])
def test_other_published_architectures(architecture):
    """L/14 pools with heads of width 96; coca_base has no pooler."""
    config = shallow_config(architecture)
    model = random_model(config, seed=0)
    peer = make_peer(config, model)
    size = config["vision_cfg"]["image_size"]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(6))
    expected_features, expected_tokens = peer._encode_image(pixels)
    features, tokens = make_encoder(model)(pixels)
    torch.testing.assert_close(features, expected_features, atol=ATOL, rtol=0)
    torch.testing.assert_close(tokens, expected_tokens, atol=ATOL * 10, rtol=0)
    ids = random_captions(2, 76, fill=12)[:, :10]
    expected = peer.text_decoder(tokens, peer.text(ids)[1])
    writer = make_writer(model, config)
    caches = Caches(writer, tokens, 10)
    for t in range(10):
        logits = writer.step(ids[:, t], torch.tensor([t]), caches)
        assert (logits - expected[:, t])[ids[:, t] != 0].abs().le(1e-4).all()


@torch.no_grad()
def test_one_pass_of_the_text_tower_serves_both_losses(model):
    ids = random_captions(3, 76, fill=30)
    features, states = model.text(ids)
    is_token = ids != 0
    alone = model.text.embed_tokens(ids)
    torch.testing.assert_close(states[is_token], alone[is_token], atol=ATOL, rtol=0)
    short = ids[:, :31]  # one pad behind the longest caption is enough
    torch.testing.assert_close(model.text(short)[0], features, atol=ATOL, rtol=0)


def test_no_logit_depends_on_a_later_token(model, pixels):
    ids = random_captions(1, 76, fill=20)[:, :16]
    tokens = model.encode_image(pixels[:1])[1].detach()
    states = model.text.token_embedding(ids).detach().requires_grad_()
    x = states + model.text.positional_embedding[:16]
    for block in model.text.transformer.resblocks:
        x = block(x, causal=True)
    logits = model.text_decoder(tokens, x)
    (gradient,) = torch.autograd.grad(logits[0, 7].sum(), states)
    assert gradient[0, 8:].abs().max() == 0
    assert gradient[0, :8].abs().min(dim=0).values.max() > 0


@torch.no_grad()
def test_extended_context_keeps_logits_and_features(tiny):
    model, extended = tiny.base, copy.deepcopy(tiny.base)
    extended.text.extend_context(192)
    assert extended.text.positional_embedding.shape[0] == 193
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = model.encode_image(images)[1]
    ids = random_captions(4, 76, fill=40)
    assert torch.equal(extended.logits(tokens, ids), model.logits(tokens, ids))
    assert torch.equal(extended.encode_text(ids), model.encode_text(ids))
    full = random_captions(4, 76, fill=76)  # without a pad CLS sees itself: the row must be its own
    assert torch.equal(extended.encode_text(full), model.encode_text(full))
    long = random_captions(2, 192, fill=192)
    assert extended.logits(tokens[:2], long).isfinite().all()


def test_context_cannot_shrink(config):
    with pytest.raises(ValueError, match="cannot shrink"):
        TextTower(config["text_cfg"], 512).extend_context(20)


def test_random_weights_depend_on_the_seed_alone(config, model):
    torch.manual_seed(123)
    again, other = random_model(config, 0).state_dict(), random_model(config, 1).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, again[key]), key
    assert not torch.equal(other["text.cls_emb"], again["text.cls_emb"])
    assert abs(again["text_decoder.text_projection"].std().item() * 512**0.5 - 1) < 0.01


def test_unsupported_configurations_are_named():
    with pytest.raises(UserError, match="hf_model_name"):
        check_config(shallow_config(hf_model_name="roberta-base"))
    with pytest.raises(UserError, match="no captions"):
        check_config({"embed_dim": 512})
