"""Weights and temperatures that change during training, as pure functions of the step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end` within the first `steps` steps, then `end`.

    2102.12092, appendix A.2: annealing the temperature linearly instead often made runs diverge.
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        """The value at step 0, 1, ..."""
        progress = min(1.0, step / self.steps) if self.steps else 1.0
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2
