"""Embeddings in whole numbers, so that every similarity is exact and the same on every machine.

A unit vector times SCALE, rounded, has at most SCALE + sqrt(d) / 2 as its length, and by Cauchy and
Schwarz no partial sum of a product of two such vectors exceeds the square of that: below 2 ** 24
for up to MAX_WIDTH dimensions. float32 holds every whole number up to there, so a matrix product of
float32 has no rounding at all, whatever the order of its sums, its blocks or its threads. The price
is an error of about 1e-4 in a similarity.
"""

import numpy as np

SCALE = 4000
MAX_WIDTH = 4096
UNIT = SCALE * SCALE
"""What the product of a vector with itself is, but for rounding."""

_AT_ONCE = 4096  # rows in float64


def whole(embeddings: np.ndarray) -> np.ndarray:
    """float (n, d) of any length to int16 (n, d) of length SCALE; zeros where one has no direction.

    Raises ValueError for more than MAX_WIDTH dimensions.
    """
    if embeddings.shape[1] > MAX_WIDTH:
        raise ValueError(f"embeddings have at most {MAX_WIDTH} numbers, not {embeddings.shape[1]}")
    parts = [
        _whole(embeddings[start : start + _AT_ONCE])
        for start in range(0, len(embeddings), _AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(embeddings.shape, np.int16)


def _whole(embeddings: np.ndarray) -> np.ndarray:
    values = embeddings.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.sqrt((values * values).sum(axis=1))
    fine = np.isfinite(length) & (length > 0)
    values[~fine] = 0
    values[fine] *= (SCALE / length[fine])[:, None]
    return np.rint(values).astype(np.int16)


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of int16 or float32 whole numbers (n, d) and (m, d): float32 (n, m), exact, in units of UNIT."""
    return a.astype(np.float32, copy=False) @ b.astype(np.float32, copy=False).T


def threshold(similarity: float) -> float:
    """The product above which two vectors are more similar than this."""
    return similarity * UNIT
