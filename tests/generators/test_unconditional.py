"""Images drawn from noise alone: each follows from its own number."""

import numpy as np

from generators import unconditional
from tests.support.first_stages import saved


def test_an_image_follows_from_its_seed_and_number_alone(tmp_path, monkeypatch):
    model = saved(tmp_path, "gan")
    whole = unconditional.draw(model, range(5), seed=3)
    assert whole.shape == (5, 16, 16, 3) and len({image.tobytes() for image in whole}) == 5
    monkeypatch.setattr(unconditional, "BATCH", 2)
    parts = unconditional.draw(model, [4, 0, 2], seed=3).astype(int)
    assert np.abs(parts - whole[[4, 0, 2]]).max() <= 1  # a rounding's
    assert not np.array_equal(unconditional.draw(model, range(5), seed=4), whole)


def test_pictures_are_always_the_same_ones(tmp_path):
    model = saved(tmp_path, "vae")
    few, more = (unconditional.sampled(model, n) for n in (2, 70))
    assert more.shape == (70, 16, 16, 3)
    assert np.abs(more[:2].astype(int) - few).max() <= 1
