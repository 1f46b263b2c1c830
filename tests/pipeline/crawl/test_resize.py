"""Fetched bytes to images: img2dataset's resize modes on pixels that are right, and no metadata."""

import io
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.crawl.resize import (
    MODES,
    RESIZE_REASONS,
    Imaging,
    NotResized,
    ResizeSettings,
    _module_of,
)
from pipeline.errors import UserError
from tests.support import img2dataset_peer as peer
from tests.support import real, shards

pytest.importorskip("img2dataset")

SIZES = ((300, 200), (200, 300), (100, 60), (64, 64), (31, 257))


def imaging(*, blurs: bool = False, **settings: object) -> Imaging:
    made = Imaging(ResizeSettings(**settings), blurs=blurs)
    made.setup()
    return made


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def exif(orientation: int, **more: object) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x0110] = "a camera that knows where it is"
    return tags.tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("encode_format", ["png", "webp", "jpg"])
def test_as_img2dataset_resizes_a_png(mode, only_if_bigger, encode_format):
    """Where both decode the same pixels, the bytes that come out are the same."""
    quality = 9 if encode_format == "png" else 90
    ours = imaging(
        mode=mode,
        size=100,
        only_if_bigger=only_if_bigger,
        encode_format=encode_format,
        encode_quality=quality,
    )
    theirs = peer.module("resizer").Resizer(
        image_size=100,
        resize_mode=mode,
        resize_only_if_bigger=only_if_bigger,
        encode_format=encode_format,
        encode_quality=quality,
    )
    for number, size in enumerate(SIZES):
        for colour in ("RGB", "L"):
            data = shards.png(number, size, colour)
            made = ours(data)
            told = (made.width, made.height, made.original_width, made.original_height)
            expected, *sizes, error = theirs(io.BytesIO(data))
            assert error is None
            assert told == tuple(sizes)
            assert opened(made.data).size == told[:2]
            kept = encode_format == "jpg" and (
                mode == "no" or (only_if_bigger and _fits(mode, size))
            )
            assert kept or made.data == expected


def _fits(mode: str, size: tuple[int, int]) -> bool:
    return (min if mode in ("keep_ratio", "center_crop") else max)(size) <= 100


def test_no_resize_keeps_the_original_bytes():
    data = shards.jpeg(3, (301, 203))
    made = imaging()(data)
    assert made.data == images.training_jpeg(data).data
    assert np.array_equal(opened(made.data), opened(data))


@pytest.mark.parametrize("mode", ["no", "keep_ratio"])
def test_no_metadata_comes_along(mode):
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>home address</x:xmpmeta>"
    data = shards.encoded(shards.picture(1), "JPEG", exif=exif(1), xmp=xmp, comment=b"by me")
    assert b"knows where" in data and b"home address" in data
    made = imaging(mode=mode, size=40)(data).data
    assert not any(told in made for told in (b"knows where", b"home address", b"Exif", b"by me"))


def test_the_colour_profile_stays():
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = shards.encoded(shards.picture(1), "JPEG", icc_profile=icc)
    assert opened(imaging()(data).data).info["icc_profile"] == icc


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["no", "keep_ratio"])
def test_upright(mode, orientation):
    picture = shards.picture("red", (96, 64))
    picture.paste((0, 0, 255), (0, 0, 48, 32))
    data = shards.encoded(picture, "JPEG", exif=exif(orientation), quality=95)
    made = imaging(mode=mode, size=64)(data)
    upright = images.decode(data)
    assert (made.original_height, made.original_width) == upright.shape[:2]
    found = np.asarray(opened(made.data), np.int16)
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 6


def test_sixteen_bits_and_cmyk():
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (64, 1))
    deep = shards.encoded(Image.fromarray(ramp), "PNG")
    found = np.asarray(opened(imaging(mode="keep_ratio", size=64)(deep).data).convert("L"), int)
    assert np.abs(found - np.linspace(0, 255, 256)).max() < 12  # img2dataset: white
    cmyk = shards.encoded(shards.picture("red").convert("CMYK"), "JPEG")
    red, green, _ = np.asarray(opened(imaging(mode="keep_ratio", size=40)(cmyk).data))[20, 20]
    assert red > 200 > 80 > green


def test_a_damaged_picture_is_refused():
    data = bytearray(shards.jpeg(5, (200, 200), quality=95))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff\xd0" * 20
    for mode in ("no", "border"):
        with pytest.raises(NotResized) as e:
            imaging(mode=mode)(bytes(data))
        assert e.value.reason in images.IMAGE_REASONS


@pytest.mark.parametrize(
    ("settings", "size", "reason"),
    [
        ({"min_size": 65}, (200, 64), "too_small"),
        ({"max_area": 9999}, (100, 100), "area_too_large"),
        ({"max_aspect_ratio": 3.0}, (301, 100), "aspect_ratio_too_large"),
        ({"min_size": 64, "max_area": 10_000, "max_aspect_ratio": 3.0}, (150, 64), None),
    ],
)
def test_bounds_by_the_header_alone(settings, size, reason):
    """The pixels are cut off: only a header can have been read."""
    data = shards.jpeg(1, size)
    if reason is None:
        assert imaging(**settings)(data).width == size[0]
        return
    header = data[: data.index(b"\xff\xda") + 14]
    with pytest.raises(NotResized) as e:
        imaging(**settings)(header)
    assert e.value.reason == reason


def test_every_odd_image_ends_well():
    make, small = imaging(), imaging(mode="border", size=32)
    for _, data in real.odd_images():
        ended = []
        for each in (make, small):
            try:
                made = each(data)
                assert max(opened(made.data).size) == max(made.width, made.height)
                ended.append("ok")
            except NotResized as e:
                assert e.reason in RESIZE_REASONS
                ended.append(e.reason)
        assert ended[0] == ended[1]


@pytest.mark.parametrize("mode", ["no", "keep_ratio"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_faces_are_blurred_where_they_are(mode, orientation):
    """Boxes speak of the stored picture; a checkerboard goes grey in the box, and stays elsewhere."""
    board = np.indices((120, 160)).sum(0) // 4 % 2 * 255
    stored = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    data = shards.encoded(stored, "JPEG", exif=exif(orientation), quality=95)
    made = imaging(mode=mode, size=120, blurs=True)(data, [[0.1, 0.1, 0.4, 0.4]])
    found = opened(made.data).convert("L")
    stored_again = np.asarray(found.rotate({1: 0, 3: 180, 6: 90}[orientation], expand=True), float)
    height, width = stored_again.shape
    inside = stored_again[
        int(0.2 * height) : int(0.3 * height), int(0.2 * width) : int(0.3 * width)
    ]
    outside = stored_again[int(0.7 * height) :, int(0.7 * width) :]
    assert inside.std() < 40 < 80 < outside.std()


def test_blurring_leaves_the_random_numbers_alone():
    make = imaging(blurs=True)
    random.seed(7)
    np.random.seed(7)
    expected = random.Random(7).random(), np.random.RandomState(7).random_sample()
    make(shards.jpeg(1), [[0.2, 0.2, 0.5, 0.5]])
    assert (random.random(), np.random.random_sample()) == expected


def test_threads_leave_standard_output_alone(capfd):
    make = imaging(mode="border", size=48)
    files = [shards.png(i, (80, 60)) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, files * 3))
    assert made == [make(data) for data in files] * 3
    os.write(1, b"still here\n")
    assert capfd.readouterr().out == "still here\n"


def test_nothing_but_the_resizer_is_imported():
    import subprocess

    code = (
        "import sys, os\n"
        "from pipeline.crawl.resize import Imaging, ResizeSettings\n"
        "assert 'cv2' not in sys.modules\n"
        "made = Imaging(ResizeSettings(mode='border')); made.setup()\n"
        "assert 'cv2' in sys.modules\n"
        "assert not {'wandb', 'pandas', 'torch', 'img2dataset'} & set(sys.modules)\n"
        "assert 'NO_ALBUMENTATIONS_UPDATE' not in os.environ"
    )
    environ = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], env=environ, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_without_img2dataset(monkeypatch):
    for name in list(sys.modules):
        if "img2dataset_resizer" in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="img2dataset") as e:
        _module_of("resizer")
    assert "recaption[crawl]" in e.value.hint
    imaging()  # without resizing nothing is missing


def test_impossible_quality():
    with pytest.raises(UserError, match="ENCODE_QUALITY=95"):
        ResizeSettings(encode_format="png")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("length", [4000, 16_000, 65_000])
@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop"])
def test_a_line_is_not_made_a_wall(mode, length, turned):
    """A hundred bytes, of which the resizer would make gigabytes: the header alone refuses it."""
    data = shards.png(1, (1, length) if turned else (length, 1))
    with pytest.raises(NotResized) as e:
        imaging(mode=mode, size=256)(data)
    assert e.value.reason in ("area_too_large", "aspect_ratio_too_large")


def test_how_long_a_line_may_be():
    assert imaging(mode="center_crop", size=64)(shards.png(1, (2000, 1))).width == 64
    assert imaging(mode="keep_ratio", size=64)(shards.png(1, (1000, 1))).width == 64_000
    for kind, width in (("jpg", 1024), ("webp", 256)):
        with pytest.raises(NotResized) as e:
            imaging(mode="keep_ratio", size=64, encode_format=kind)(shards.png(1, (width, 1)))
        assert e.value.reason == "aspect_ratio_too_large"
    assert imaging(mode="border")(shards.png(1, (4000, 1))).height == 256


def test_the_resizer_is_given_room_for_what_it_makes(monkeypatch):
    from contextlib import nullcontext

    from pipeline.crawl import resize

    asked = []
    monkeypatch.setattr(resize, "room", lambda size: asked.append(size) or nullcontext())
    imaging(mode="keep_ratio", size=1000)(shards.png(1, (30, 10)))
    assert asked == [3000 * 1000 * resize._RESIZE_BYTES]


@pytest.mark.parametrize("settings", [{}, {"mode": "border", "size": 900, "only_if_bigger": True}])
def test_quality_where_nothing_is_resized(settings):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    data = shards.encoded(Image.fromarray(noise), "PNG")
    sizes = [len(imaging(encode_quality=q, **settings)(data).data) for q in (10, 50, 95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2
    plain = imaging(encode_quality=10, **settings)(shards.jpeg(1, (300, 200)))
    assert plain.data == imaging(**settings)(shards.jpeg(1, (300, 200))).data
