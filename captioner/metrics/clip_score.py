"""CLIPScore and RefCLIPScore: how near a caption is to its image, and to what people said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

WEIGHT = 2.5  # spreads cosines of CLIP over 0 to 1


_NONE = np.zeros(0, dtype=np.int64)


class Scorer(Protocol):
    """Contrastive towers; `captioner.scorer.load_scorer` gives one. Features have unit length."""

    def prepare(self, data: bytes) -> np.ndarray:
        """Encoded image -> what the image tower takes; raises `pipeline.images.BadImage`."""

    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images: float32 (B, E)."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Features of texts, long ones the mean of their chunks': float32 (B, E)."""

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(mean, minimum) cosine of each text's chunks with its image's feature, a row of (B, E)."""


@dataclass(frozen=True)
class ClipScores:
    """Scores of captions, each (B,) float64 in 0 to 2.5."""

    mean: np.ndarray  # over the chunks of a caption that is longer than the towers' context
    worst: np.ndarray  # of its chunks: a good first half does not hide a bad second one
    with_references: np.ndarray  # RefCLIPScore; nan where there is no reference


def clip_score(cosine: np.ndarray) -> np.ndarray:
    """CLIPScore of cosines of image and caption (Hessel et al. 2021, 2104.08718, section 3)."""
    return WEIGHT * np.maximum(cosine, 0)


def ref_clip_score(score: np.ndarray, reference_cosine: np.ndarray) -> np.ndarray:
    """RefCLIPScore: the harmonic mean of CLIPScore and the largest cosine of caption and reference.

    0 where either is; nan where a reference cosine is (section 3, equation of RefCLIP-S).
    """
    nearness = np.maximum(reference_cosine, 0)
    both = score + nearness
    return np.divide(2 * score * nearness, both, out=both * 0, where=both != 0)


def clip_scores(
    scorer: Scorer,
    features: np.ndarray,
    captions: Sequence[str],
    references: np.ndarray | None = None,
    images: np.ndarray = _NONE,
) -> ClipScores:
    """Scores captions of images whose features, (B, E), are known.

    references: (R, E) features of references, by `encode_text`; images: (R,) which caption each of
    them belongs to.
    """
    cosines = np.array(scorer.similarities(features, captions), dtype=np.float64).reshape(-1, 2)
    mean, worst = clip_score(cosines[:, 0]), clip_score(cosines[:, 1])
    best = np.full(len(captions), -np.inf)
    if references is not None and len(images):
        said = scorer.encode_text(captions)
        np.maximum.at(best, images, (references * said[images]).sum(axis=1))
    best[np.isneginf(best)] = np.nan
    return ClipScores(mean, worst, ref_clip_score(mean, best))
