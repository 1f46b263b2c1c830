"""The Frechet distance against scipy's matrix root, Gaussians with a known answer, and torch-fidelity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from generators.evaluation.frechet import MomentsSum, frechet_distance
from pipeline.errors import UserError


def moments(features, parts=1):
    total = MomentsSum()
    for part in np.array_split(features, parts):
        total.add(part)
    return total.moments()


def by_scipy(a, b):
    """The formula as every FID script has it."""
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(ca @ cb).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.floats(-100, 100))
def test_equals_scipys_matrix_root(seed, width, shift):
    draws = np.random.default_rng(seed)
    mixing = draws.normal(size=(width, width))
    a = draws.normal(size=(60, width)) @ mixing + shift
    b = draws.normal(size=(50, width)) * 2 + shift + 1
    found = frechet_distance(moments(a, parts=4), moments(b))
    assert found == pytest.approx(by_scipy(a, b), rel=1e-6, abs=1e-6)


def test_moments_are_numpys_far_from_the_origin_too():
    features = np.random.default_rng(0).normal(size=(400, 5)) + 1e6
    found = moments(features, parts=7)
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        found.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-8
    )


def test_gaussians_with_a_known_distance():
    """Diagonal Gaussians: |m_a - m_b|^2 + sum (s_a - s_b)^2; here 9 + 4 + 1."""
    draws = np.random.default_rng(1).normal(size=(200_000, 2))
    found = frechet_distance(moments(draws * [1, 2]), moments(draws[::-1] * [3, 1] + [3, 0]))
    assert found == pytest.approx(14, rel=0.01)


def test_a_set_is_no_distance_from_itself_even_with_fewer_samples_than_features():
    features = np.random.default_rng(2).normal(size=(10, 64))
    # The root of rounding errors: of 54 directions without variance each counts 1e-8 or so.
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0, abs=1e-5)


def test_equals_torch_fidelitys():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    draws = np.random.default_rng(3)
    a, b = draws.normal(size=(500, 32)), draws.normal(size=(400, 32)) * 1.5 + 0.2
    sides = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (a, b)]
    theirs = fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(theirs, rel=1e-6)


def test_too_few_or_broken_features_are_refused():
    with pytest.raises(UserError, match="two images"):
        moments(np.ones((1, 4)))
    with pytest.raises(ValueError, match="finite"):
        moments(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="one network"):
        frechet_distance(moments(np.eye(4)), moments(np.eye(5)))
