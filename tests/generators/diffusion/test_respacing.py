"""Respaced timesteps are those of guided-diffusion's sections and diffusers' spacings."""

from fractions import Fraction

import pytest
from diffusers import DDIMScheduler

from generators.diffusion.respacing import timesteps
from pipeline.errors import UserError


def sections(counts: list[int], total: int) -> list[Fraction]:
    """guided-diffusion's rule before it rounds: rising."""
    found: list[Fraction] = []
    start = 0
    for i, count in enumerate(counts):
        size = total // len(counts) + (i < total % len(counts))
        stride = Fraction(size - 1, count - 1) if count > 1 else Fraction(1)
        found += [start + stride * j for j in range(count)]
        start += size
    return found


@pytest.mark.parametrize("total", [1000, 1001, 1004, 100, 37])
@pytest.mark.parametrize("spec", ["27", "2", "10,10,3,2,2", "fast27", "5,1,2", "1,4", "3,3,3,3"])
def test_sections(spec, total):
    counts = [10, 10, 3, 2, 2] if spec == "fast27" else [int(part) for part in spec.split(",")]
    if any(count > total // len(counts) for count in counts):
        with pytest.raises(UserError):
            timesteps(spec, total)
        return
    found = timesteps(spec, total)
    exact = sections(counts, total)
    assert len(found) == len(exact)
    # Where the exact place is halfway, floating point decides there, as it does in ours.
    pairs = zip(found[::-1], exact, strict=True)
    assert all(abs(ours - place) <= Fraction(1, 2) for ours, place in pairs)
    assert found[0] == total - 1 and found[-1] == 0


@pytest.mark.parametrize("number", [2, 7, 27, 50, 64, 250, 999, 1000])
def test_numbers_are_diffusers_spacings(number):
    for spec, spacing in ((number, "linspace"), (f"ddim{number}", "leading")):
        peer = DDIMScheduler(1000, timestep_spacing=spacing)
        peer.set_timesteps(number)
        assert timesteps(spec, 1000) == peer.timesteps.tolist()


def test_all_steps_and_one():
    assert timesteps(1000, 1000) == timesteps("ddim1000", 1000) == list(range(999, -1, -1))
    assert timesteps(1, 1000) == timesteps("1", 1000) == [999]
    # Sampling starts from noise: so does the only step of the noisiest section.
    assert timesteps("3,1", 1000) == [999, 499, 250, 0]
    assert timesteps("1", 1) == [0]


@pytest.mark.parametrize(
    "spec", ["0", "1001", "ddim0", "ddim1001", "ddim", "-5", "", "10,", "600,1", "3.5", "fast28", 0]
)
def test_steps_that_fit_no_schedule(spec):
    with pytest.raises(UserError, match=f"STEPS={spec} fits no schedule of 1000") as caught:
        timesteps(spec, 1000)
    assert "\n" not in str(caught.value)
