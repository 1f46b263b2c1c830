"""Arcs between embeddings, and the direction from one caption to another."""

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp
from torch.nn import functional as F

from generators.unclip.manipulation import (
    natural_strength,
    slerp,
    text_diff,
    text_direction,
)


def units(num: int, width: int, seed: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, width, generator=draws, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_arcs_are_scipys(share):
    a, b = units(5, 8, 0), units(5, 8, 1)
    wanted = [
        geometric_slerp(x, y, np.array([share]))[0]
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert slerp(a, b, share).numpy() == pytest.approx(np.array(wanted), abs=1e-9)


def test_an_arc_is_walked_evenly_and_keeps_its_length():
    a, b = units(1, 16, 2), units(1, 16, 3)
    shares = torch.linspace(0, 1, 9, dtype=torch.float64)
    points = slerp(a.expand(9, -1), b.expand(9, -1), shares)
    assert points.norm(dim=1).numpy() == pytest.approx(np.ones(9), abs=1e-9)
    steps = (points[1:] * points[:-1]).sum(dim=1).acos()
    assert steps.numpy() == pytest.approx(np.full(8, steps.mean()), abs=1e-9)


def test_noise_stays_as_large_as_noise_is():
    """A straight line between two noises would halve their variance in the middle."""
    draws = torch.Generator().manual_seed(4)
    a, b = (torch.randn(2, 3, 32, 32, generator=draws) for _ in range(2))
    middle = slerp(a, b, 0.5)
    assert middle.shape == a.shape
    assert middle.std() == pytest.approx(1, abs=0.03)
    assert ((a + b) / 2).std() == pytest.approx(0.5**0.5, abs=0.03)


def test_equal_and_opposite_ends_give_numbers():
    a = units(2, 4, 5)
    assert torch.allclose(slerp(a, a, 0.3), a)
    assert slerp(a, -a, 0.5).isfinite().all()


def test_lengths_go_over_linearly():
    a, b = units(3, 4, 6), 3 * units(3, 4, 7)
    assert slerp(a, b, 0.5).norm(dim=1).numpy() == pytest.approx(np.full(3, 2.0))


def test_a_text_diff_turns_an_image_by_the_difference_of_captions():
    image, before, after = units(4, 8, 8), units(4, 8, 9), units(4, 8, 10)
    direction = text_direction(before, after)
    assert torch.allclose(text_diff(image, before, after, 0.0), image)
    assert torch.allclose(text_diff(image, before, after, 1.0), direction)
    nearness = [
        (text_diff(image, before, after, s) * direction).sum(dim=1) for s in (0.1, 0.3, 0.5)
    ]
    assert (nearness[0] < nearness[1]).all() and (nearness[1] < nearness[2]).all()


def test_captions_that_are_one_to_the_towers_change_nothing():
    image, before, after = units(2, 8, 8), units(2, 8, 9), units(2, 8, 10)
    after[0] = before[0]
    for strength in (None, 0.0, 0.5, 1.0):
        turned = text_diff(image, before, after, strength)
        torch.testing.assert_close(turned[0], image[0])
    assert not torch.allclose(turned[1], image[1])
    assert natural_strength(image, before, after)[0] == pytest.approx(0, abs=1e-6)


def test_without_a_strength_an_image_goes_as_far_as_the_captions_lie_apart():
    image, before, after = units(4, 8, 8), units(4, 8, 9), units(4, 8, 10)
    wanted = F.normalize(image + after - before, dim=-1)
    assert torch.allclose(text_diff(image, before, after), wanted)
    share = natural_strength(image, before, after)
    assert torch.allclose(text_diff(image, before, after, share), wanted, atol=1e-6)
    near = F.normalize(before + 0.1 * (after - before), dim=-1)
    assert (natural_strength(image, before, near) < share).all()
