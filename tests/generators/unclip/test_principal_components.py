"""Principal components against numpy's SVD, buckets of equal mass, and what a round trip leaves."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from generators.unclip.principal_components import Buckets, PrincipalComponents, principal_axes
from pipeline.errors import UserError


def embeddings(num: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated, of different variances, and not around 0."""
    draws = torch.Generator().manual_seed(seed)
    scales = torch.linspace(2.0, 0.02, width)
    mix = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(9)))[0]
    return torch.randn(num, width, generator=draws) * scales @ mix + torch.linspace(-1, 1, width)


def fitted(values: torch.Tensor, components: int, buckets: int) -> PrincipalComponents:
    found = PrincipalComponents(values.shape[1], components, buckets)
    found.fit(values, principal_axes(values))
    return found


@pytest.mark.parametrize("num", [400, 7])
def test_axes_are_those_of_the_singular_value_decomposition(num):
    values = embeddings(num, 12)
    axes = principal_axes(values)
    centred = values.double().numpy() - values.double().numpy().mean(axis=0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    rank = min(num - 1, 12)
    variances = singular[:rank] ** 2 / num
    np.testing.assert_allclose(axes.variances[:rank], variances, rtol=1e-9)
    assert axes.variances[rank:].abs().max() < 1e-12 if rank < 12 else True
    overlap = np.abs((axes.rows[:rank].numpy() * rows[:rank]).sum(axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-9)
    assert (axes.variances.diff() <= 0).all() and (axes.variances >= 0).all()
    torch.testing.assert_close(axes.rows @ axes.rows.T, torch.eye(12, dtype=torch.float64))


def test_signs_do_not_depend_on_the_order_of_samples():
    values = embeddings(300, 10)
    axes, turned = principal_axes(values), principal_axes(values.flip(0))
    torch.testing.assert_close(axes.rows, turned.rows, rtol=0, atol=1e-9)
    largest = axes.rows.gather(1, axes.rows.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    # Of the mirrored data the axes are the same ones again.
    torch.testing.assert_close(principal_axes(-values).rows, axes.rows, rtol=0, atol=1e-9)


def test_enough_is_the_fewest_components_with_that_share():
    values = embeddings(500, 16)
    axes = principal_axes(values)
    shares = (axes.variances.cumsum(0) / axes.variances.sum()).tolist()
    for share in (0.0, 0.3, 0.9, 0.99):
        num = axes.enough(share)
        assert shares[num - 1] >= share and (num == 1 or shares[num - 2] < share)
    num = axes.enough(0.99)
    assert num < 16
    # On what it was fitted on, PCA keeps exactly that share.
    kept = fitted(values, num, 4).figures(values)["retained_variance"]
    assert kept == pytest.approx(shares[num - 1], abs=1e-5)


def test_coordinates_are_uncorrelated_and_restored_without_loss():
    values = embeddings(600, 8)
    components = fitted(values, 8, 16)
    coordinates = components.project(values)
    covariance = coordinates.T @ coordinates / len(values)
    expected = torch.diag(principal_axes(values).variances.float())
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(components.restore(coordinates), values, rtol=0, atol=1e-5)


def test_round_trip_error_falls_with_buckets_and_components():
    values, others = embeddings(4000, 12), embeddings(500, 12, seed=1)

    def error(components: int, buckets: int) -> float:
        codec = fitted(values, components, buckets)
        return float((codec.decode(codec.encode(others)) - others).square().mean())

    by_buckets = [error(12, buckets) for buckets in (2, 4, 16, 64, 512)]
    assert all(more < 0.7 * less for less, more in pairwise(by_buckets))
    by_components = [error(components, 512) for components in (1, 4, 8, 12)]
    assert sorted(by_components, reverse=True) == by_components
    figures = fitted(values, 12, 512).figures(others)
    assert figures["round_trip_cosine"] > 0.999
    assert figures["retained_variance"] == pytest.approx(1, abs=1e-5)


def test_buckets_have_equal_mass_and_means_of_their_values():
    draws = torch.Generator().manual_seed(0)
    values = torch.stack(
        [torch.randn(1000, generator=draws), torch.rand(1000, generator=draws) ** 6], dim=1
    )
    buckets = Buckets(2, 20)
    buckets.fit(values)
    ids = buckets.encode(values)
    for column in (0, 1):
        assert torch.bincount(ids[:, column], minlength=20).tolist() == [50] * 20
        by_hand = values[:, column].sort().values.unflatten(0, (20, 50)).mean(dim=1)
        torch.testing.assert_close(buckets.centres[column], by_hand)
    assert torch.equal(buckets.encode(buckets.decode(ids)), ids)


def test_a_larger_value_has_no_smaller_id():
    buckets = Buckets(3, 17)
    buckets.fit(embeddings(200, 3))
    line = torch.linspace(-9, 9, 5001)[:, None].expand(-1, 3)
    ids = buckets.encode(line)
    assert (ids.diff(dim=0) >= 0).all()
    assert ids.min() == 0 and ids.max() == 16
    assert (buckets.centres.diff(dim=1) > 0).all()
    assert (buckets.decode(ids).diff(dim=0) >= 0).all()


def test_quantiles_are_the_upper_half_and_never_an_empty_bucket():
    buckets = Buckets(1, 10)
    buckets.fit(torch.arange(100.0)[:, None])
    shares = torch.linspace(0.5, 0.9999, 64)[:, None]
    assert set(buckets.quantile(shares).flatten().tolist()) == {5, 6, 7, 8, 9}
    assert buckets.quantile(torch.ones(1, 1)).item() == 9
    # Six of ten values are the same: all the quantiles among them are its bucket.
    tied = torch.tensor([0.0, 1, 5, 5, 5, 5, 5, 5, 8, 9])[:, None]
    buckets.fit(tied)
    used = buckets.encode(tied)
    found = buckets.quantile((torch.arange(10)[:, None] + 0.5) / 10)
    assert torch.equal(found, used)
    assert len(set(used.flatten().tolist())) == 5


@pytest.mark.parametrize(
    "values",
    [
        embeddings(5, 32),  # fewer samples than numbers
        embeddings(2, 8),
        embeddings(1, 8).expand(40, -1),  # all the same
        torch.cat([embeddings(6, 8)] * 30),  # few different ones
        torch.outer(torch.linspace(-1, 1, 50), torch.ones(8)),  # of rank 1
    ],
)
def test_degenerate_embeddings_come_back(values):
    width = values.shape[1]
    axes = principal_axes(values)
    codec = fitted(values, width, 64)
    assert all(buffer.isfinite().all() for buffer in codec.buffers())
    assert (codec.buckets.centres.diff(dim=1) >= 0).all()
    back = codec.decode(codec.encode(values))
    torch.testing.assert_close(back, values, rtol=0, atol=1e-2)
    assert 1 <= axes.enough(0.99) <= min(width, len(values))
    assert codec.figures(values)["retained_variance"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 4), torch.zeros(0, 4), torch.full((9, 4), torch.nan)]
)
def test_embeddings_without_components_are_refused(bad):
    with pytest.raises(UserError):
        principal_axes(bad)


def test_ids_are_not_those_of_bf16():
    values = embeddings(500, 16)
    codec = fitted(values, 16, 256)
    expected = codec.encode(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(values), expected)
        assert torch.equal(codec.decode(expected), codec.decode(expected).float())


def test_statistics_are_in_the_state_dict():
    values = embeddings(300, 8)
    codec = fitted(values, 5, 32)
    other = PrincipalComponents(8, 5, 32)
    other.load_state_dict(codec.state_dict())
    assert torch.equal(other.decode(other.encode(values)), codec.decode(codec.encode(values)))
    assert not list(codec.parameters())
