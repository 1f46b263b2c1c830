"""Embeddings as short rows of whole numbers: their principal components, each in buckets of equal mass.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (2204.06125),
section 2.2.
"""

# B embeddings, N those that are fitted, E their width, P components, K buckets

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import UserError


@dataclass(frozen=True)
class Axes:
    """Of some embeddings: mean (E,), axes (E, E) in rows, and variances (E,) along them, falling.

    fp64. Axes are orthonormal; the entry of each that is largest by its absolute value is positive,
    the first of equal ones, so that one set of embeddings has one set of axes.
    """

    mean: Tensor
    rows: Tensor
    variances: Tensor

    def enough(self, share: float) -> int:
        """The fewest components, at least 1, that have this share of all variance."""
        kept = self.variances.cumsum(0)
        return 1 + int((kept[:-1] < share * kept[-1]).sum())


def principal_axes(embeddings: Tensor) -> Axes:
    """The principal components of embeddings (N, E): eigenvectors of their covariance.

    N may be less than E, and rows may be equal: variances are then 0 from some axis on.
    """
    if len(embeddings) < 2 or not bool(embeddings.isfinite().all()):
        raise UserError(
            f"{len(embeddings)} embeddings, all of them finite or not, have no principal components",
            "give at least two samples, encoded anew",
        )
    values = embeddings.double()
    mean = values.mean(dim=0)
    centred = values - mean
    variances, columns = torch.linalg.eigh(centred.T @ centred / len(values))
    rows = columns.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    # Rounding leaves variances that are 0 a little above or below it.
    return Axes(mean, rows * largest.sign(), variances.flip(0).clamp_min(0))


class Buckets(nn.Module):
    """P numbers as P ids below K, each dimension cut where its values fall into K equal shares.

    Equal shares and not equal widths: whatever a dimension's scale and tails, all ids are about as
    frequent, and half of them are its upper half. An id stands for the mean of its values. Where
    values are equal, or fewer than K, some buckets hold none.
    """

    edges: Tensor
    centres: Tensor

    def __init__(self, dimensions: int, buckets: int) -> None:
        super().__init__()
        self.register_buffer("edges", torch.zeros(dimensions, buckets - 1))
        self.register_buffer("centres", torch.zeros(dimensions, buckets))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Sets edges and centres by values (N, P)."""
        num, buckets = len(values), self.centres.shape[1]
        ordered = values.sort(dim=0).values
        first = (torch.arange(1, buckets) * num / buckets).round().long().clamp_(1, num - 1)
        # Values themselves: what begins at an edge then is never empty.
        self.edges.copy_(ordered[first].T)
        ids = self.encode(values)
        counts = torch.zeros(buckets, values.shape[1], dtype=torch.float64)
        sums = torch.zeros_like(counts).scatter_add_(0, ids, values.double())
        counts.scatter_add_(0, ids, torch.ones_like(values, dtype=torch.float64))
        empty = torch.cat([self.edges, ordered[-1:].T], dim=1).T
        self.centres.copy_(torch.where(counts > 0, sums / counts, empty).T)

    def encode(self, values: Tensor) -> Tensor:
        """(B, P) -> ids (B, P) long; a larger value has no smaller id."""
        return torch.searchsorted(self.edges, values.T.contiguous(), right=True).T.contiguous()

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (B, P) -> the mean of the fitted values in each bucket (B, P)."""
        return self.centres.gather(1, ids.T).T

    def quantile(self, shares: Tensor) -> Tensor:
        """Shares (B, P) in [0, 1) -> the ids below which these shares of the fitted values are."""
        found = (shares * self.centres.shape[1]).long().clamp_(max=self.centres.shape[1] - 1)
        # An empty bucket lies between equal edges; what holds these values begins there.
        return self.encode(self.decode(found))


class PrincipalComponents(nn.Module):
    """Embeddings (B, E) as ids (B, P), the component with most variance first, and back."""

    mean: Tensor
    axes: Tensor

    def __init__(self, embed_dim: int, components: int, buckets: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("axes", torch.zeros(components, embed_dim))
        self.buckets = Buckets(components, buckets)

    @torch.no_grad()
    def fit(self, embeddings: Tensor, axes: Axes) -> None:
        """Takes the first axes, and cuts buckets by the embeddings (N, E) that they are of."""
        self.mean.copy_(axes.mean)
        self.axes.copy_(axes.rows[: len(self.axes)])
        self.buckets.fit(self.project(embeddings))

    def project(self, embeddings: Tensor) -> Tensor:
        """(B, E) -> fp32 coordinates (B, P), whatever the precision around it."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return (embeddings.float() - self.mean) @ self.axes.T

    def restore(self, coordinates: Tensor) -> Tensor:
        """(B, P) -> the nearest embeddings (B, E) that have these coordinates."""
        with torch.autocast(coordinates.device.type, enabled=False):
            return coordinates.float() @ self.axes + self.mean

    def encode(self, embeddings: Tensor) -> Tensor:
        """(B, E) -> ids (B, P)."""
        return self.buckets.encode(self.project(embeddings))

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (B, P) -> embeddings (B, E), about as long as those that were fitted."""
        return self.restore(self.buckets.decode(ids))

    def figures(self, embeddings: Tensor) -> dict[str, float]:
        """What is left of embeddings (B, E).

        `retained_variance`: share of the squared distance from the mean that the components keep;
        1 where there is none. `round_trip_cosine`: between embeddings and what their ids decode to, both
        less the mean.
        """
        centred = embeddings.float() - self.mean
        lost = self.restore(self.project(embeddings)) - embeddings
        total = centred.square().sum()
        retained = 1 - lost.square().sum() / total if total else torch.ones(())
        back = self.decode(self.encode(embeddings)) - self.mean
        cosine = torch.cosine_similarity(back, centred, dim=1).mean()
        return {"retained_variance": float(retained), "round_trip_cosine": float(cosine)}
