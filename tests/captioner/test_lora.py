"""Adapters: nothing changes at first, only they learn, and merged they are the same model."""

import pytest
import torch

from captioner.checkpoint import copied_stack
from captioner.lora import LoraModel
from captioner.training import StyleModel
from tests.captioner.models import random_captions


@pytest.fixture
def pair(tiny):
    """A plain model and one with adapters, of the same weights."""
    return (
        StyleModel(tiny.base.visual, copied_stack(tiny.base)),
        LoraModel(StyleModel(tiny.base.visual, copied_stack(tiny.base)), rank=3),
    )


@pytest.fixture
def inputs(tiny_images):
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    return images, random_captions(3, 12, fill=12)


def learn(model, inputs, steps=3):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(steps):
        logits = model(*inputs)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), inputs[1][:, 1:].flatten(), ignore_index=0
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_step_zero_is_the_model_as_it_was(pair, inputs):
    plain, adapted = pair
    assert torch.equal(plain(*inputs), adapted(*inputs))


def test_adapters_learn_and_nothing_else_does(pair, inputs, tiny):
    _, adapted = pair
    before = {k: v.clone() for k, v in adapted.model.state_dict().items()}
    towers = {k: v.clone() for k, v in tiny.base.visual.state_dict().items()}
    first, last = learn(adapted, inputs, 1), learn(adapted, inputs, 20)
    assert last < first - 0.1
    assert all(torch.equal(v, before[k]) for k, v in adapted.model.state_dict().items())
    assert all(torch.equal(v, towers[k]) for k, v in tiny.base.visual.state_dict().items())


def test_only_adapters_are_kept_and_they_are_few(pair):
    plain, adapted = pair
    names = set(adapted.state_dict())
    assert names and all(name.startswith(("up.", "down.")) for name in names)
    # Three matrices with a bias each, and the projections of attention, in all six blocks.
    assert len(names) == 2 * 4 * 6
    size = sum(p.numel() for p in adapted.parameters())
    assert size < 0.1 * sum(p.numel() for p in plain.parameters())


def test_merged_is_the_same_model_without_adapters(pair, inputs, tiny):
    _, adapted = pair
    learn(adapted, inputs)
    expected = adapted(*inputs)
    stack = adapted.merged()
    merged = StyleModel(tiny.base.visual, stack)(*inputs)
    assert torch.allclose(merged, expected, atol=1e-5)
    assert torch.allclose(adapted(*inputs), expected, atol=1e-5), "merging twice must not add twice"


def test_tables_with_new_rows_are_trained_whole(tiny, inputs):
    whole = ("text.token_embedding.weight",)
    adapted = LoraModel(StyleModel(tiny.base.visual, copied_stack(tiny.base)), rank=2, whole=whole)
    before = adapted.model.stack.text.token_embedding.weight.clone()
    learn(adapted, inputs)
    after = adapted.merged().text.token_embedding.weight
    changed = (after != before).any(dim=1).nonzero()[:, 0].tolist()
    assert changed and set(changed) <= set(inputs[1].flatten().tolist())
