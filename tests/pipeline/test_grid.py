"""Images side by side."""

import numpy as np
import pytest

from pipeline.grid import grid


def shades(num: int, height: int = 2, width: int = 3) -> np.ndarray:
    ramp = np.arange(num, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(ramp, (num, height, width, 3)).copy()


def test_rows_of_images_with_white_between_and_behind():
    found = grid(shades(5))
    assert found.shape == (2 * 2 + 2, 3 * 3 + 2 * 2, 3)
    assert found.dtype == np.uint8
    assert [found[0, x, 0] for x in (0, 5, 10)] == [0, 1, 2]
    assert [found[4, x, 0] for x in (0, 5, 10)] == [3, 4, 255]
    assert (found[2:4] == 255).all()
    assert (found[:, 3:5] == 255).all()


@pytest.mark.parametrize(
    ("num", "columns", "shape"),
    [(1, None, (2, 3)), (16, None, (14, 18)), (6, 6, (2, 28)), (2, 9, (2, 8)), (7, 2, (14, 8))],
)
def test_columns_are_as_asked_or_make_a_square(num, columns, shape):
    assert grid(shades(num), columns).shape == (*shape, 3)


@pytest.mark.parametrize(
    "images",
    [shades(0), shades(3)[0], shades(3).astype(float), shades(3)[..., :1]],
)
def test_what_is_no_row_of_images_is_refused(images):
    with pytest.raises(ValueError, match="a grid needs uint8"):
        grid(images)
