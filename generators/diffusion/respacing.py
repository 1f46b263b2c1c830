"""Which of a schedule's timesteps a sampler visits: evenly, by a stride, or more of them in some sections."""

import numpy as np

from pipeline.errors import UserError

FAST27 = "10,10,3,2,2"
"""GLIDE's 27 steps for its upsampler, most of them where little noise is left."""


def timesteps(spec: str | int, total: int) -> list[int]:
    """Timesteps of `total`, falling.

    `27`: evenly from the last to 0 (diffusers' `linspace`, and a single section as below). `ddim27`:
    every floor(total / 27)th from 0 on (diffusers' `leading`; guided-diffusion's where 27 divides
    total, other numbers it refuses or starts higher). `10,10,3`: as many sections as there are
    numbers, of equal length but for one more in the first ones, so many steps in each, the first has
    least noise (guided-diffusion). A single step of a section is its least noisy one, but of the
    noisiest section its last (guided-diffusion: its first), as sampling starts from noise. `fast27`:
    GLIDE's. UserError for what fits no schedule of `total`.
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
    length, longer = divmod(total, len(counts))
    found: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        last = start + length - (i >= longer)
        if not 1 <= count <= last - start + 1:
            return []
        if count == 1 and i + 1 == len(counts):
            found.append(last)
        else:
            found += (start + np.linspace(0, last - start, count).round().astype(int)).tolist()
        start = last + 1
    return found
