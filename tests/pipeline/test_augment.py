"""Random crops: pure functions of their draws, parts of the image, within their bounds."""

import numpy as np
import pytest

from pipeline.augment import MOST_OBLONG, _box, random_crop
from pipeline.draws import Draws
from pipeline.images import BadImage, decode
from tests.support.shards import jpeg, png


def test_crops_differ_between_draws_and_repeat_with_them():
    data = jpeg(3, (160, 120))
    crops = [random_crop(data, 32, Draws(0, step, "crop"), 0.5) for step in (1, 2, 1)]
    assert all(crop.shape == (32, 32, 3) and crop.dtype == np.uint8 for crop in crops)
    assert np.array_equal(crops[0], crops[2]) and not np.array_equal(crops[0], crops[1])


def test_boxes_lie_inside_and_cover_enough():
    for step in range(500):
        left, top, right, bottom = _box(200, 150, Draws(step), 0.6)
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 150
        assert (right - left) * (bottom - top) >= 0.59 * 200 * 150
        assert 1 / MOST_OBLONG - 0.02 <= (right - left) / (bottom - top) <= MOST_OBLONG + 0.02


@pytest.mark.parametrize(("width", "height"), [(500, 333), (333, 500), (1920, 1080), (1000, 100)])
def test_oblong_images_lose_their_ends_by_chance(width, height):
    boxes = {_box(width, height, Draws(step), 0.9) for step in range(60)}
    short = min(width, height)
    frame = short * short * MOST_OBLONG
    assert len(boxes) > 20
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left) * (bottom - top) >= 0.85 * frame
        assert max(right - left, bottom - top) <= MOST_OBLONG * short + 1
    starts = [box[0] if width > height else box[1] for box in boxes]
    assert min(starts) < 0.2 * max(starts)


def test_a_line_of_pixels_is_cut_too():
    assert _box(1, 50, Draws(0), 0.9)[2] == 1 and _box(50, 1, Draws(0), 0.9)[3] == 1


def test_the_pixels_are_those_of_the_image():
    """A picture that is one ramp from left to right stays one."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    from io import BytesIO

    from PIL import Image

    stream = BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    crop = random_crop(stream.getvalue(), 24, Draws(5), 0.9).astype(int)
    assert (np.diff(crop[..., 0], axis=1) > 0).all() and np.ptp(crop, axis=0).max() <= 1
    assert decode(stream.getvalue()).shape == (100, 200, 3)


def test_what_is_no_image_is_refused():
    with pytest.raises(BadImage):
        random_crop(png(1)[:50], 16, Draws(0))
