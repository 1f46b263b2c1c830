"""The transformer: who sees whom by gradient, its scale at every depth, and its sizes."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from generators.dalle.masks import Mask
from generators.dalle.presets import PRESETS
from generators.dalle.transformer import Config, Transformer, parameter_count
from pipeline.errors import UserError

CONFIG = Config(
    image_size=16,
    grid=5,
    image_vocabulary=11,
    text_vocabulary=13,
    text_length=6,
    width=32,
    depth=4,
    heads=2,
    kernel=3,
)


def ids(config: Config, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    words = config.text_vocabulary + config.text_length
    text = torch.randint(words, (batch, config.text_length), generator=draws)
    image = torch.randint(config.image_vocabulary, (batch, config.image_length), generator=draws)
    return text, image


def influences(model: Transformer, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """bool (S, S): which outputs (rows) have a gradient by which inputs (columns)."""
    seen = []
    size = model.config.text_length + model.config.image_length
    for output in range(size):
        inputs = {}

        def keep(module, args, result, store=inputs):
            result.retain_grad()
            store[module] = result

        tables = (model.text_embedding, model.image_embedding)
        hooks = [table.register_forward_hook(keep) for table in tables]
        logits = model(text, image)
        for hook in hooks:
            hook.remove()
        model.start.grad = None
        length = model.config.text_length
        chosen = logits[0][:, output] if output < length else logits[1][:, output - length]
        chosen.square().sum().backward()
        grads = [
            torch.zeros(inputs[t].shape) if inputs[t].grad is None else inputs[t].grad
            for t in tables
        ]
        by_start = model.start.grad.abs().sum().view(1)
        seen.append(torch.cat([by_start, *(grad.abs().sum(dim=(0, 2)) for grad in grads)]) > 0)
    return torch.stack(seen)


@pytest.mark.parametrize("kind", ["row", "column", "conv", "causal"])
def test_gradient_of_one_layer_is_its_mask(kind, monkeypatch):
    mask = Mask(kind, CONFIG.prompt, CONFIG.grid, CONFIG.kernel)
    monkeypatch.setattr(Config, "masks", (mask,))
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, depth=1))
    found = influences(model, *ids(CONFIG, batch=1))
    assert torch.equal(found, mask.dense(len(found)))


@pytest.mark.parametrize("sparse", [True, False])
def test_gradient_of_many_layers_never_runs_backwards(sparse):
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, sparse=sparse))
    found = influences(model, *ids(CONFIG, batch=1))
    assert not found.triu(1).any()
    # Rows and columns together reach everything before, as the paper means them to.
    assert torch.equal(found, torch.ones_like(found).tril())


def test_tokens_predict_the_next_one_and_the_last_none():
    torch.manual_seed(0)
    model = Transformer(CONFIG).eval()
    text, image = ids(CONFIG)
    before = model(text, image)
    image[:, -1] = (image[:, -1] + 1) % CONFIG.image_vocabulary
    after = model(text, image)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    fewer = model(text, image[:, :3])
    assert fewer[1].shape == (2, 4, CONFIG.image_vocabulary)
    torch.testing.assert_close(fewer[1], before[1][:, :4])


def test_place_of_an_image_token_is_its_row_and_its_column():
    model = Transformer(CONFIG)
    tokens = torch.zeros(1, CONFIG.image_length, dtype=torch.long)
    found = (model.embed_image(tokens) - model.image_embedding.weight[0])[0]
    for place, vector in enumerate(found):
        row, column = divmod(place, CONFIG.grid)
        expected = model.row_embedding[row, 0] + model.column_embedding[0, column]
        torch.testing.assert_close(vector, expected)
    torch.testing.assert_close(
        model.embed_image(tokens[:, :1], first=7)[0, 0], model.embed_image(tokens)[0, 7]
    )


def test_logits_are_fp32_under_bf16():
    model = Transformer(CONFIG)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*ids(CONFIG))
    assert {logits.dtype for logits in found} == {torch.float32}
    exact = model(*ids(CONFIG))
    for rough, fine in zip(found, exact, strict=True):
        assert (rough - fine).abs().max() < 0.02


def test_a_new_model_knows_nothing():
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    text, image = ids(CONFIG, batch=64)
    for logits, truth, num in zip(model(text, image), (text, image), (19, 11), strict=True):
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), truth.flatten())
        assert nll.item() == pytest.approx(math.log(num), abs=0.03)


@pytest.mark.parametrize("depth", [2, 64])
def test_the_stream_does_not_grow_with_depth(depth):
    torch.manual_seed(0)
    config = replace(CONFIG, depth=depth, width=64)
    model = Transformer(config)
    text, image = ids(config)
    x = torch.cat([model.embed_text(text), model.embed_image(image[:, :-1])], dim=1)
    for block, mask in zip(model.blocks, model.rules(x.shape[1], x.device), strict=True):
        x = block(x, mask)
    assert 0.4 < x.std().item() < 1.5
    loss = model(text, image)[1].square().mean()
    loss.backward()
    first, last = (model.blocks[i].mlp[0].weight.grad.norm() for i in (0, -1))
    assert 0.2 < (first / last).item() < 5


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("toy", 0.5e6, 2e6), ("s", 0.1e9, 0.15e9), ("1.3b", 1.25e9, 1.35e9), ("12b", 11.9e9, 12.4e9)],
)
def test_presets_have_the_size_they_say(name, low, high):
    assert low < parameter_count(PRESETS[name]().config) < high


def test_the_largest_preset_is_the_paper_s():
    config, fit = PRESETS["12b"]().config, PRESETS["12b"]().fit
    assert (config.depth, config.heads, config.width // config.heads) == (64, 62, 64)
    # Twelve matrices of width x width per layer, and the tables: counted by hand.
    d, words = config.width, 16384 + 256
    layer = 12 * d * d + 13 * d
    ends = (words + 8192) * (2 * d + 1) + (1 + 256 + 32 + 32 + 2) * d
    assert parameter_count(config) == 64 * layer + ends
    assert fit["betas"] == (0.9, 0.96) and fit["lr"] * fit["min_lr_ratio"] == 4.5e-4 / 32


@pytest.mark.parametrize("bad", [{"heads": 3}, {"kernel": 2}, {"depth": 0}, {"width": 3.5}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(UserError):
        replace(CONFIG, **bad)
