"""Muon on kernels is Muon on the matrices that they are."""

import pytest
import torch
from torch import nn

from jobs.fit_settings import Fit
from jobs.optimizers import build


def stepped(shape: tuple[int, ...], steps: int = 3) -> torch.Tensor:
    """A parameter after some steps, drawn alike for every shape of as many numbers."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(72, generator=draws).view(shape))
    (muon,) = build(
        model, [{"params": [model.weight], "optimizer": "muon"}], Fit(lr=0.1, weight_decay=0.1)
    )
    for _ in range(steps):
        model.weight.grad = torch.randn(72, generator=draws).view(shape)
        muon.step()
    return model.weight.detach()


def test_a_kernel_is_trained_as_the_matrix_that_it_is():
    kernel, matrix = stepped((4, 2, 3, 3)), stepped((4, 18))
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(matrix, stepped((18, 4)).view(4, 18))


def test_a_kernel_that_is_no_matrix_in_memory_is_refused():
    model = nn.Module()
    values = torch.randn(4, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    model.weight = nn.Parameter(values)
    (muon,) = build(model, [{"params": [model.weight], "optimizer": "muon"}], Fit())
    model.weight.grad = torch.zeros_like(values)
    with pytest.raises(RuntimeError, match="view"):
        muon.step()
