"""How a network's input, and what it says, are scaled so that it is the identity where there is no noise."""

from typing import NamedTuple

from torch import Tensor


class Preconditioning(NamedTuple):
    """f(x_t) = skip x_t + out F(into x_t). Where no noise is left, skip is 1 and out is 0."""

    skip: Tensor
    out: Tensor
    into: Tensor


def preconditioning(signal: Tensor, rest: Tensor, sigma_data: float) -> Preconditioning:
    """Of x_t = signal x_0 + rest noise, with x_0 of deviation `sigma_data`.

    2206.00364, table 1, with x_t / signal as its x and rest / signal as its sigma: input and target of
    F have unit variance. 2303.01469, appendix C, shifts sigma by its least value, so that f is the
    identity there; here the identity is at sigma 0 itself, as in the released decoder.
    """
    variance = rest.square() + signal.square() * sigma_data**2
    return Preconditioning(
        signal * sigma_data**2 / variance,
        rest * sigma_data / variance.sqrt(),
        1 / variance.sqrt(),
    )
