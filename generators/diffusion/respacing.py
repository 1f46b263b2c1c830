"""Which of a schedule's timesteps a sampler visits."""

from itertools import pairwise

import numpy as np

from pipeline.errors import UserError

FAST27 = "10,10,3,2,2"
"""GLIDE's 27 steps for its upsampler, most of them where little noise is left."""


def timesteps(spec: str | int, total: int) -> list[int]:
    """Timesteps of `total`, falling.

    `27`: evenly from the last to 0 (diffusers' `linspace`). `ddim27`: every floor(total / 27)th from
    0 on (diffusers' `leading`). `10,10,3`: as many sections of equal length as there are numbers, so
    many steps in each, the first has least noise (guided-diffusion). `fast27`: GLIDE's.
    """
    text = FAST27 if spec == "fast27" else str(spec)
    try:
        found = _found(text, total)
    except ValueError:
        found = []
    if not found:
        raise UserError(
            f"STEPS={spec} fits no schedule of {total}",
            f"give a number from 1 to {total}, ddim27, fast27, or sections as 10,10,5",
        )
    return found[::-1]


def _found(text: str, total: int) -> list[int]:
    """Rising; empty where there cannot be so many."""
    if text.startswith("ddim"):
        number = int(text.removeprefix("ddim"))
        return [i * (total // number) for i in range(number)] if 1 <= number <= total else []
    counts = [int(part) for part in text.split(",")]
    edges = [total * i // len(counts) for i in range(len(counts) + 1)]
    found: list[int] = []
    for count, (start, end) in zip(counts, pairwise(edges), strict=True):
        if not 1 <= count <= end - start:
            return []
        # The last of one number of steps is the noisiest: sampling starts from noise.
        first = start if count > 1 else end - 1
        found += np.linspace(first, end - 1, count).round().astype(int).tolist()
    return found
