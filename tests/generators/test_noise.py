"""Noise of samples: the same in any batch, and of the right distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from generators.noise import SampleNoise


def test_a_sample_has_its_noise_whatever_it_is_drawn_with():
    whole, parts = (
        SampleNoise([3, 1, 4, 1]),
        [SampleNoise([3]), SampleNoise([1, 4]), SampleNoise([1])],
    )
    for kind in ("normal", "uniform", "gumbel"):
        together = getattr(whole, kind)(2, 5)
        assert together.shape == (4, 2, 5)
        assert torch.equal(together, torch.cat([getattr(part, kind)(2, 5) for part in parts]))
        assert torch.equal(together[1], together[3]) and not torch.equal(together[0], together[1])


@pytest.mark.parametrize(
    ("kind", "distribution"),
    [("normal", stats.norm), ("uniform", stats.uniform), ("gumbel", stats.gumbel_r)],
)
def test_distributions(kind, distribution):
    drawn = getattr(SampleNoise(range(100)), kind)(200).numpy().ravel()
    assert np.isfinite(drawn).all()
    assert stats.kstest(drawn, distribution.cdf).pvalue > 0.001
    assert stats.kstest(drawn + 0.05, distribution.cdf).pvalue < 0.001  # the test can tell
