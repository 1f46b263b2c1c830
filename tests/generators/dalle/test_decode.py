"""Cached sampling: the same tokens as without a cache, and choices with the right distribution."""

from dataclasses import replace

import pytest
import torch

from generators.dalle.decode import Choice, draw, empty_text, uniforms
from generators.dalle.transformer import Config, Transformer
from pipeline.draws import Draws
from pipeline.errors import UserError

CONFIG = Config(
    image_size=24,
    grid=6,
    image_vocabulary=40,
    text_vocabulary=20,
    text_length=5,
    width=48,
    depth=6,
    heads=3,
    kernel=3,
)


def model_of(config: Config = CONFIG) -> Transformer:
    """With heads as a trained model has them: some tokens are far likelier than others."""
    torch.manual_seed(0)
    model = Transformer(config).eval().requires_grad_(False)
    model.image_head.weight.mul_(15)
    return model


def texts(config: Config, num: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(config.text_vocabulary, (num, config.text_length), generator=draws)


def streams(num: int) -> list[Draws]:
    return [Draws(3, i) for i in range(num)]


def uncached(model, text, numbers, choice, prefix=None) -> torch.Tensor:
    """Every token by a whole pass over all tokens before it."""
    tokens = text.new_empty(len(text), 0) if prefix is None else prefix
    empty = empty_text(model.config, text.device).expand_as(text)
    while (place := tokens.shape[1]) < model.config.image_length:
        logits = model(text, tokens)[1][:, -1]
        if choice.guidance != 1:
            untold = model(empty, tokens)[1][:, -1]
            logits = untold + choice.guidance * (logits - untold)
        tokens = torch.cat([tokens, choice.choose(logits, numbers[:, place])[:, None]], dim=1)
    return tokens


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    "choice",
    [Choice(), Choice(temperature=0), Choice(0.7, top_k=9), Choice(top_p=0.8, guidance=2.5)],
)
def test_cache_changes_no_token(sparse, choice):
    model = model_of(replace(CONFIG, sparse=sparse))
    text = texts(CONFIG, 5)
    found = draw(model, text, streams(5), choice)
    expected = uncached(model, text, uniforms(streams(5), CONFIG.image_length), choice)
    assert torch.equal(found, expected)
    assert len(set(found.flatten().tolist())) > 5


@pytest.mark.parametrize("kernel", [1, 5, 11])
def test_cache_changes_no_token_whatever_the_kernel(kernel):
    model = model_of(replace(CONFIG, kernel=kernel, depth=2))
    text = texts(CONFIG, 2)
    expected = uncached(model, text, uniforms(streams(2), 36), Choice())
    assert torch.equal(draw(model, text, streams(2), Choice()), expected)


@pytest.mark.parametrize("length", [1, 6, 20, 35, 36])
def test_cache_goes_on_from_a_prefix(length):
    model = model_of()
    text = texts(CONFIG, 3)
    whole = draw(model, text, streams(3), Choice())
    # What was drawn, given back as a prefix, is gone on with as if nothing had happened.
    assert torch.equal(draw(model, text, streams(3), Choice(), whole[:, :length]), whole)
    other = (whole[:, :length] + 1) % CONFIG.image_vocabulary
    found = draw(model, text, streams(3), Choice(guidance=1.5), other)
    numbers = uniforms(streams(3), 36)
    assert torch.equal(found, uncached(model, text, numbers, Choice(guidance=1.5), other))


def test_a_sample_does_not_depend_on_its_batch():
    model = model_of()
    text = texts(CONFIG, 7)
    together = draw(model, text, streams(7), Choice())
    for i in (0, 3, 6):
        alone = draw(model, text[i : i + 1], [Draws(3, i)], Choice())
        assert torch.equal(alone[0], together[i])


def test_guidance_of_one_is_none_and_of_zero_forgets_the_caption():
    model = model_of()
    text = texts(CONFIG, 3)
    untold = draw(model, text, streams(3), Choice(guidance=0))
    empty = empty_text(CONFIG, text.device).expand_as(text)
    assert torch.equal(untold, draw(model, empty, streams(3), Choice()))
    assert not torch.equal(untold, draw(model, text, streams(3), Choice()))


def test_uniforms_are_those_of_their_stream():
    found = uniforms([Draws("a"), Draws("b")], 2000)
    assert found.shape == (2, 2000) and found.dtype == torch.float64
    assert ((found >= 0) & (found < 1)).all()
    assert torch.equal(found[1], uniforms([Draws("b")], 2000)[0])
    assert (found.mean(dim=1) - 0.5).abs().max() < 0.03
    assert found[0].unique().numel() == 2000


def frequencies(choice: Choice, logits: torch.Tensor, num: int = 40_000) -> torch.Tensor:
    """How often each token is chosen when the uniforms lie evenly in [0, 1)."""
    grid = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    chosen = choice.choose(logits.expand(num, -1), grid)
    return torch.bincount(chosen, minlength=len(logits)) / num


def test_choices_follow_the_distribution():
    logits = torch.tensor([1.0, -0.5, 2.0, 0.0, 1.9])
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(frequencies(Choice(), logits), logits.softmax(0), **close)
    warm = frequencies(Choice(temperature=2.0), logits)
    torch.testing.assert_close(warm, (logits / 2).softmax(0), **close)
    top = frequencies(Choice(top_k=2), logits)
    expected = torch.tensor([-torch.inf, -torch.inf, 2.0, -torch.inf, 1.9]).softmax(0)
    torch.testing.assert_close(top, expected, **close)
    # .40 + .36 < .8 <= .40 + .36 + .15: the three likeliest are the nucleus.
    nucleus = frequencies(Choice(top_p=0.8), logits)
    expected = torch.tensor([1.0, -torch.inf, 2.0, -torch.inf, 1.9]).softmax(0)
    torch.testing.assert_close(nucleus, expected, **close)
    assert frequencies(Choice(temperature=0), logits)[2] == 1
    assert frequencies(Choice(top_p=1e-9), logits)[2] == 1
    for coldest in (1e-4, 1e-40, 5e-324):
        assert frequencies(Choice(coldest), logits)[2] == 1
        assert frequencies(Choice(coldest, top_k=3, top_p=0.9), logits)[2] == 1
    torch.testing.assert_close(frequencies(Choice(top_k=99), logits), logits.softmax(0), **close)


def test_the_edges_of_the_uniforms_choose_tokens_that_can_be():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert Choice().choose(logits, ends).tolist() == [1, 2]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"temperature": float("nan")},
        {"guidance": float("inf")},
        {"guidance": float("nan")},
    ],
)
def test_impossible_choices_are_refused(bad):
    with pytest.raises(UserError):
        Choice(**bad)
