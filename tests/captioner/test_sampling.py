"""Choosing tokens: exact distributions, filters, and repeats."""

import torch

from captioner.sampling import choose, forbid_repeats, sample_uniforms
from captioner.settings import DecodeSettings


def draws(logits, settings, num=4000):
    uniforms = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    ids = choose(torch.tensor(logits).expand(num, -1), uniforms, settings)
    return torch.bincount(ids, minlength=len(logits)) / num


def test_plain_sampling_follows_the_softmax():
    logits = [1.0, -2.0, 0.5, 3.0]
    share = draws(logits, DecodeSettings(temperature=1.0))
    torch.testing.assert_close(share, torch.tensor(logits).softmax(0), atol=1e-3, rtol=0)


def test_temperature_comes_before_the_filters():
    # At temperature 2 the best token has 0.506 of the mass, below top_p: the second stays.
    logits = [2.0, 0.0, 0.0, -torch.inf]
    share = draws(logits, DecodeSettings(temperature=2.0, top_p=0.6))
    assert share[0] > 0 and share[1] > 0 and share[2] == share[3] == 0
    assert draws(logits, DecodeSettings(temperature=1.0, top_p=0.6))[0] == 1


def test_top_k_keeps_the_k_best():
    share = draws([0.0, 1.0, 2.0, 3.0], DecodeSettings(temperature=1.0, top_k=2))
    expected = torch.tensor([0, 0, *torch.tensor([2.0, 3.0]).softmax(0)])
    torch.testing.assert_close(share, expected, atol=1e-3, rtol=0)


def test_a_token_without_mass_is_never_drawn():
    logits = torch.full((2, 1000), -torch.inf)
    logits[:, 500] = 0.0
    uniforms = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for settings in (DecodeSettings(temperature=1.0), DecodeSettings(temperature=1.0, top_p=0.5)):
        assert choose(logits, uniforms, settings).tolist() == [500, 500]


def test_uniforms_are_fixed_by_seed_key_and_style():
    settings = DecodeSettings(max_tokens=3)
    uniforms = sample_uniforms(["a", "b"], "short", settings)[:, 0]
    assert uniforms.shape == (2, 3) and uniforms.min() >= 0 and uniforms.max() < 1
    assert torch.equal(sample_uniforms(["b"], "short", settings)[0, 0], uniforms[1])
    assert not torch.equal(sample_uniforms(["a"], "long", settings)[0, 0], uniforms[0])
    # Fixed for ever: captions of old runs must be reproducible.
    assert uniforms[0].tolist() == GOLDEN


def test_repeats_are_forbidden_per_row():
    history = torch.tensor([[9, 1, 2, 3, 1, 2], [9, 1, 2, 3, 2, 1]])
    logits = torch.zeros(2, 10)
    logits[:, 0] = -torch.inf
    forbid_repeats(logits, history, torch.tensor([5]), 3)
    assert logits[0].isinf().nonzero()[:, 0].tolist() == [0, 3]
    assert logits[1].isinf().nonzero()[:, 0].tolist() == [0]
    # What stands behind the position is not written yet, and forbids nothing.
    logits = torch.zeros(2, 10)
    forbid_repeats(logits, torch.cat([history, history], dim=1), torch.tensor([5]), 3)
    assert logits[0].isinf().nonzero()[:, 0].tolist() == [0, 3]
    assert logits[1].isinf().nonzero()[:, 0].tolist() == [0]


GOLDEN = [0.49859043211831555, 0.05766496318864944, 0.26437529511384616]
