"""Which sample stands where: a sample of a training step, as the source of everything random in it."""

from dataclasses import dataclass

from pipeline.draws import Draws, key64, permuted


@dataclass(frozen=True, slots=True)
class Place:
    """One sample of one step; all of its randomness follows from (seed, step, index)."""

    seed: int
    step: int
    epoch: int
    index: int

    def key(self, purpose: str) -> int:
        """63 bits: a seed for a generator of any library."""
        return key64(self.seed, self.step, self.index, purpose)

    def draws(self, purpose: str) -> Draws:
        return Draws(self.seed, self.step, self.index, purpose)


def places(step: int, *, seed: int, size: int, batch_size: int) -> list[Place]:
    """The samples of a step's global batch; each of `size` comes once per epoch.

    A pure function, so a resumed run needs no loader's position.
    """
    found = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, size)
        found.append(Place(seed, step, epoch, permuted(offset, size, seed, epoch, "order")))
    return found
