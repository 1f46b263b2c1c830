"""The best of N images: the ones that contrastive towers find nearest to the caption come first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.annotate.clip import Encoder

BATCH = 64  # images that are encoded at once


@dataclass(frozen=True)
class Ranking:
    """order: (N,) the places of the images, best first. scores: (N,) of the images as they came."""

    order: np.ndarray
    scores: np.ndarray


def rerank(prompt: str, images: Sequence[np.ndarray], towers: Encoder) -> Ranking:
    """Images by how near they are to a prompt (2102.12092, section 2.6: the best of 512).

    images: N of uint8 (H, W, 3). towers: a contrastive model, ours or one of open_clip's, as
    `captioner.encoder.load_encoder` gives it. Scores are cosines; of equal ones the first is better.
    """
    scores: list[float] = []
    for start in range(0, len(images), BATCH):
        part = [towers.prepare(image) for image in images[start : start + BATCH]]
        found = towers.similarities(towers.encode_image(part), [prompt] * len(part))
        scores += [mean for mean, _ in found]
    values = np.array(scores, dtype=np.float64)
    return Ranking(np.argsort(-values, kind="stable"), values)
