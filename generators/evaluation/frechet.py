"""Frechet distance between two sets of features: FID, whichever network the features are of."""

# N samples, D features

from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of N feature vectors, in double precision."""

    num: int
    mean: np.ndarray
    covariance: np.ndarray


class MomentsSum:
    """Adds up batches of features without keeping them; shifted, so that nothing cancels."""

    def __init__(self) -> None:
        self._num = 0
        self._shift = self._sum = self._products = np.zeros(0)

    def add(self, features: np.ndarray) -> None:
        """features: (B, D), finite."""
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or not np.isfinite(features).all():
            raise ValueError(f"features of shape {features.shape} are not finite vectors")
        if not len(features):
            return
        if not self._num:
            width = features.shape[1]
            self._shift = features.mean(axis=0)
            self._sum, self._products = np.zeros(width), np.zeros((width, width))
        off = features - self._shift
        self._num += len(off)
        self._sum += off.sum(axis=0)
        self._products += off.T @ off

    def moments(self) -> Moments:
        """With the unbiased covariance, as every FID has it; UserError for fewer than two samples."""
        if self._num < 2:
            raise UserError(
                "a distance of distributions needs two images on each side", "give more"
            )
        mean = self._sum / self._num
        covariance = (self._products - self._num * np.outer(mean, mean)) / (self._num - 1)
        return Moments(self._num, mean + self._shift, covariance)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al. 2017 (1706.08500), Eq. 6.

    Squared, as FID is told everywhere. Both roots are of symmetric matrices, so that no imaginary
    part has to be thrown away: tr (C_a C_b)^(1/2) = tr (A C_b A)^(1/2) with A = C_a^(1/2).
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.shape} and {b.mean.shape} are not of one network")
    root = _symmetric_root(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    overlap = np.sqrt(eigenvalues.clip(min=0)).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return float(((a.mean - b.mean) ** 2).sum() + max(spread, 0.0))


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
