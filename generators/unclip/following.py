"""Whether samples show what was asked for, how they differ, and how guidance trades one for the other."""

# P prompts, N samples of each, H W pixels of a side

from collections.abc import Callable, Sequence

import numpy as np

from generators.evaluation.prompt_following import Following, follow

SCALES = (0.5, 1.0, 1.5, 2.0, 4.0)
"""1 is the conditional model itself, which may already be right; below, the condition has only a part."""


def followed(texts: Sequence[str], images: np.ndarray, level: str) -> Following:
    """Of P texts and their images uint8 (P, H, W, 3)."""
    rows = zip(texts, images, strict=True)
    return sum((follow(text, image, level) for text, image in rows), Following())


def attributes(texts: Sequence[str], images: np.ndarray, level: str) -> float:
    """Share of the stated attributes that the images show."""
    return followed(texts, images, level).figures()["attributes"]


def diversity(images: np.ndarray) -> float:
    """Mean distance between two samples of a prompt, of pixels (P, N, H, W, 3): the root of the mean
    squared difference, in levels of 255.
    """
    flat = images.astype(np.float64).reshape(*images.shape[:2], -1)
    i, j = np.triu_indices(flat.shape[1], k=1)
    return float(np.sqrt(np.square(flat[:, i] - flat[:, j]).mean(axis=2)).mean())


def swept(
    draw: Callable[[float], np.ndarray], texts: Sequence[str], level: str
) -> dict[str, float]:
    """What guidance of each scale does: `following_<scale>`, `diversity_<scale>`; `guidance_rise`,
    what the scale of most attributes adds to the least scale, and `guidance_rise_above_1`, what one
    above 1 adds to 1; `diversity_fall`, from the least scale to the largest.

    draw: guidance -> images (P, N, H, W, 3) of the texts, with the same noise at every scale.
    """
    figures, rights, widths = {}, [], []
    for scale in SCALES:
        images = draw(scale)
        repeated = [text for text in texts for _ in range(images.shape[1])]
        rights.append(attributes(repeated, images.reshape(-1, *images.shape[2:]), level))
        widths.append(diversity(images))
        figures[f"following_{scale:g}"] = rights[-1]
        figures[f"diversity_{scale:g}"] = widths[-1]
    one = SCALES.index(1.0)
    return figures | {
        "guidance_rise": max(rights[1:]) - rights[0],
        "guidance_rise_above_1": max(rights[one + 1 :]) - rights[one],
        "diversity_fall": widths[0] - widths[-1],
    }
