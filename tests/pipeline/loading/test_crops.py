"""Crops: what Pillow makes of the same part, never distorted, drawn from the place alone."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.loading.crops import cropped
from pipeline.places import Place
from tests.support.real import data as real_data
from tests.support.shards import encoded

PLACES = [Place(0, step, 0, index) for step in range(10) for index in range(30)]


def ramp(width: int, height: int, **exif: object) -> bytes:
    """A smooth picture in which red tells the column and green the row, both in 0 .. 1 of 250."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.rint(250 * (np.arange(width) + 0.5) / width)
    pixels[..., 1] = np.rint(250 * (np.arange(height) + 0.5) / height)[:, None]
    return encoded(Image.fromarray(pixels), "JPEG", quality=98, subsampling=0, **exif)


def seen(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """Which part of a ramp it is: left, right, top and bottom, in 0 .. 1."""
    red, green = (pixels[4:-4, 4:-4, c].astype(float) / 250 for c in (0, 1))
    height, width = pixels.shape[:2]
    across, down = red.mean(axis=0), green.mean(axis=1)
    (dx, x), (dy, y) = (
        np.polyfit(np.arange(4, n - 4) + 0.5, v, 1) for n, v in ((width, across), (height, down))
    )
    return x, x + dx * width, y, y + dy * height


@pytest.mark.parametrize("crop", ["centre", "random"])
@pytest.mark.parametrize(
    ("source", "size"),
    [((300, 200), (64, 64)), ((200, 300), (96, 64)), ((900, 500), (64, 128)), ((40, 30), (64, 64))],
)
def test_images_are_covered_and_never_distorted(crop, source, size):
    width, height = source
    scale = max(size[0] / width, size[1] / height)
    wide, high = size[0] / scale / width, size[1] / scale / height  # shares of the image
    lefts, tops = [], []
    for place in PLACES[:40]:
        pixels = cropped(ramp(*source), crop, *size, place)
        assert pixels.shape == (size[1], size[0], 3)
        assert pixels.flags.c_contiguous
        left, right, top, bottom = seen(pixels)
        assert (right - left, bottom - top) == pytest.approx((wide, high), abs=0.03)
        assert min(left, top) > -0.03
        assert max(right, bottom) < 1.03
        lefts.append(left)
        tops.append(top)
    if crop == "centre":
        assert lefts[0] == pytest.approx((1 - wide) / 2, abs=0.03)
        assert tops[0] == pytest.approx((1 - high) / 2, abs=0.03)
    else:
        for offsets, slack in ((lefts, 1 - wide), (tops, 1 - high)):
            assert np.ptp(offsets) >= 0.8 * slack - 0.03


@pytest.mark.parametrize("kind", ["jpeg", "png", "turned"])
def test_a_part_is_what_pillow_makes_of_it(kind):
    """Also where Pillow decodes it, and where it must be turned first."""
    source = Image.open(io.BytesIO(ramp(331, 240)))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = source.rotate(90, expand=True) if kind == "turned" else source
    data = {
        "jpeg": lambda: encoded(source, "JPEG", quality=97, subsampling=0),
        "png": lambda: encoded(source, "PNG"),
        "turned": lambda: encoded(stored, "JPEG", quality=97, subsampling=0, exif=exif),
    }[kind]()
    for box, size in [((20.5, 10.25, 200, 150), (100, 75)), ((0, 0, 331, 240), (331, 240))]:
        left, top, width, height = box
        ours = images.part(data, lambda w, h, box=box: box, *size)
        theirs = source.resize(
            size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
        )
        assert np.abs(ours.astype(int) - np.asarray(theirs)).mean() < 1.0
        assert ours.shape == (size[1], size[0], 3)


def test_an_image_of_the_size_keeps_its_pixels():
    data = ramp(100, 64)
    whole = images.decode(data)
    np.testing.assert_array_equal(cropped(data, "centre", 64, 64, PLACES[0]), whole[:, 18:82])
    found = {cropped(data, "random", 64, 64, place).tobytes() for place in PLACES}
    assert found == {whole[:, left : left + 64].tobytes() for left in range(37)}


def test_dalle_crops_are_those_of_the_paper():
    """Appendix A.2, step by step, beside ours in one."""
    width, height, size = 300, 200, 64
    data = ramp(width, height)
    sides, middles = [], []
    for place in PLACES:
        pixels = cropped(data, "dalle", size, size, place)
        assert pixels.shape == (size, size, 3)
        left, right, top, bottom = seen(pixels)
        across, down = (right - left) * width, (bottom - top) * height
        assert across == pytest.approx(down, abs=6)  # not distorted
        assert 8 / 9 * height - 6 < down < height + 6
        sides.append(down)
        square = height
        slack = width - square
        assert 3 / 8 * slack - 6 < left * width < 5 / 8 * slack + square / 9 + 6
        middles.append((left + right) / 2 * width)
    assert np.ptp(sides) > 0.9 * height / 9
    assert np.mean(middles) == pytest.approx(width / 2, abs=3)
    assert np.ptp(middles) > slack / 8


def test_crops_are_decided_by_the_place_alone():
    """And by no thread's neighbour: decoders reuse their memory."""
    pictures = [ramp(90 + 13 * i, 80 + 7 * i) for i in range(12)]
    for crop in ("centre", "random", "dalle"):

        def one(i: int, crop: str = crop) -> bytes:
            return cropped(pictures[i % 12], crop, 48, 48, PLACES[i], flip=True).tobytes()

        alone = [one(i) for i in range(60)]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(one, range(60))) == alone


def test_half_are_mirrored_where_asked_for():
    data = ramp(64, 64)
    plain = cropped(data, "centre", 64, 64, PLACES[0])
    made = [cropped(data, "centre", 64, 64, place, flip=True) for place in PLACES]
    mirrored = [np.array_equal(pixels, plain[:, ::-1]) for pixels in made]
    assert all(m or np.array_equal(p, plain) for m, p in zip(mirrored, made, strict=True))
    assert 0.4 < np.mean(mirrored) < 0.6


def test_photographs_look_as_pillow_makes_them():
    """But for what the decoder reduces itself."""
    off = []
    found = sorted((real_data() / "flickr8k_875/images").glob("*.jpg"))[:12]
    for path in found:
        ours = cropped(path.read_bytes(), "centre", 128, 96, PLACES[0])
        image = Image.open(path).convert("RGB")
        scale = max(128 / image.width, 96 / image.height)
        left = (round(image.width * scale) - 128) // 2 / scale
        top = (round(image.height * scale) - 96) // 2 / scale
        box = (left, top, left + 128 / scale, top + 96 / scale)
        theirs = np.asarray(image.resize((128, 96), Image.Resampling.BICUBIC, box=box))
        off.append(np.abs(ours.astype(int) - theirs).mean())
    assert np.mean(off) < 3
