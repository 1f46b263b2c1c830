"""Masks against definitions by row and column of the image grid, and the order of layers."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from generators.dalle.attention import attend, blocks, rule
from generators.dalle.masks import Mask, layout

KINDS = ("row", "column", "conv", "causal")
PROMPT = 7


def test_layers_lie_as_in_the_paper():
    kinds = layout(64)
    assert len(kinds) == 64
    assert [i for i, kind in enumerate(kinds, 1) if kind == "conv"] == [64]
    columns = [i for i, kind in enumerate(kinds, 1) if kind == "column"]
    assert columns == list(range(2, 64, 4))
    assert set(kinds[:-1]) == {"row", "column"}
    assert layout(8) == ("row", "column", "row", "row", "row", "column", "row", "conv")


def test_layers_without_sparsity_are_causal():
    assert layout(5, sparse=False) == ("causal",) * 5


def image_keys(kind: str, place: int, grid: int, kernel: int) -> set[int]:
    """Figure 11 of 2102.12092, cell by cell."""
    row, column = divmod(place, grid)
    if kind == "row":  # itself, and back to the same column of the row above
        return {at for at in range(grid**2) if place - grid <= at <= place}
    if kind == "column":
        return {r * grid + column for r in range(row + 1)}
    if kind == "causal":
        return set(range(place + 1))
    reach = kernel // 2
    square = itertools.product(range(-reach, reach + 1), repeat=2)
    # Stepping over an edge goes on in the row above or below, as raster order does.
    around = {(row + down) * grid + column + right for down, right in square if down <= 0}
    return {at for at in around if 0 <= at <= place}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "kernel"), [(4, 3), (6, 5), (5, 11), (16, 11)])
def test_mask_is_that_of_the_paper(kind, grid, kernel):
    size = PROMPT + grid**2 - 1
    dense = Mask(kind, PROMPT, grid, kernel).dense(size)
    for query in range(size):
        expected = set(range(min(query + 1, PROMPT)))  # text: what comes before; image: all of it
        if query >= PROMPT:
            near = image_keys(kind, query - PROMPT, grid, kernel)
            expected |= {PROMPT + at for at in near}
        assert set(dense[query].nonzero()[:, 0].tolist()) == expected


def test_paper_size_counts():
    counts = {kind: len(Mask(kind, 257, 32).neighbours()[600]) for kind in KINDS}
    assert counts == {"row": 33, "column": 19, "conv": 5 * 11 + 6, "causal": 601}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_flex_attention_equals_the_dense_mask(kind):
    mask = Mask(kind, 50, 10, 5)
    size = 50 + 99
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, size, 16)
    dense = rule(mask, size, torch.device("cpu"))
    by_hand = F.softmax((q @ k.mT / 4).masked_fill(~dense, -torch.inf), dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v, dense), by_hand, rtol=0, atol=2e-6)
    sparse = blocks(mask, size, torch.device("cpu"))
    torch.testing.assert_close(attend(q, k, v, sparse), by_hand, rtol=0, atol=2e-6)
    with FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(attend(q, k, v, sparse), by_hand, rtol=0, atol=2e-6)
    assert counter.get_total_flops() == 2 * 2 * size * size * 16 * 2 * 2


@pytest.mark.parametrize("bad", [{"kind": "diagonal"}, {"kind": "conv", "kernel": 4}])
def test_no_such_mask(bad):
    with pytest.raises(ValueError, match="no mask"):
        Mask(prompt=3, grid=4, **bad)


@pytest.mark.parametrize("kind", KINDS)
def test_short_training_on_a_cpu_equals_torchs_attention(kind):
    """The formula written out, and its gradients, against scaled_dot_product_attention."""
    mask = Mask(kind, 5, 4, 3)
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 20, 8, requires_grad=True) for _ in range(3)]
    found = attend(*inputs, rule(mask, 20, torch.device("cpu")))
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask.dense(20))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
