"""Finding the samples that kill their worker, by halves."""

from collections import Counter

MAX_LOST = 32
"""More killers than this in one shard means that the samples are not to blame."""


class Narrowing:
    """Suspects of one shard. Ask `next`, probe that range, report where it `died`.

    A single sample is only blamed when it kills twice: workers also die of other things.
    """

    def __init__(self, num_samples: int, lost: frozenset[int] = frozenset()) -> None:
        self.num_samples = num_samples
        self._suspects = [range(num_samples)]
        self._deaths: Counter[range] = Counter()
        self.lost = set(lost)

    def next(self) -> range | None:
        """The next range to probe, None when all is known."""
        return self._suspects.pop() if self._suspects else None

    def died(self, probed: range) -> None:
        """Something in this range kills: its halves are suspects now."""
        middle = (probed.start + probed.stop) // 2
        if len(probed) > 1:
            self._suspects += [range(middle, probed.stop), range(probed.start, middle)]
            return
        self._deaths[probed] += 1
        if self._deaths[probed] == 2:
            self.lost.add(probed.start)
        else:
            self._suspects.append(probed)
