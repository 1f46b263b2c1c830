"""The annotator `image`: known answers, agreement with plain Pillow and numpy, odd pictures."""

import hashlib
import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from pipeline.annotate.annotator import DECODED_SIDE, View, schema_of
from pipeline.annotate.image import ImageAnnotator
from pipeline.annotate.pixel_statistics import Statistics, statistics_of
from pipeline.images import BadImage, decode, probe
from pipeline.luma import FINE_PIXELS, FINE_SIDE, coarse_luma, fine_luma
from pipeline.samples import Sample
from tests.support import plain_image, real

MEASURED = ("entropy", "contrast", "sharpness", "colourfulness", "border_share", "flat_share")


def view(data: bytes, min_side: int = DECODED_SIDE) -> View:
    return View(Sample(0, "", "", image=data), probe(data), decode(data, min_side=min_side))


def annotate(data: bytes, min_side: int = DECODED_SIDE) -> dict:
    annotator = ImageAnnotator()
    annotator.setup()
    (row,) = annotator.annotate([annotator.prepare(view(data, min_side))])
    return row


def save(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def statistics(pixels: np.ndarray) -> Statistics:
    pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, 2)
    fine = fine_luma(pixels)
    return statistics_of(pixels, fine, coarse_luma(fine))


def noise(*shape: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape, dtype=np.uint8)


def photographs(step: int) -> list[bytes]:
    folder = real.data() / "flickr8k_875/images"
    return [path.read_bytes() for path in sorted(folder.iterdir())[::step]]


def web(step: int) -> list[bytes]:
    folder = real.data() / "alt_permissive/images"
    return [path.read_bytes() for path in sorted(folder.iterdir())[::step]]


# --- known answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (40, 50), (700, 900)])
def test_a_flat_picture(level, shape):
    row = annotate(save(np.full((*shape, 3), level, np.uint8)))
    assert [row[name] for name in MEASURED] == [0, 0, 0, 0, 1, 1]
    assert (row["width"], row["height"], row["aspect"]) == (*shape[::-1], shape[1] / shape[0])
    assert (row["phash"], row["pdq"], row["pdq_quality"]) == ("8" + "0" * 15, "0" * 64, 0)


def test_entropy_and_contrast_of_two_levels_and_of_all():
    two = np.zeros((64, 64), np.uint8)
    two[:, 32:] = 255
    assert statistics(two)[:2] == (1, 0.5)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert statistics(every).entropy == pytest.approx(8)
    assert statistics(every).contrast == pytest.approx(np.sqrt((256**2 - 1) / 12) / 255)


def test_sharpness_of_noise_is_twenty_times_its_variance():
    grey = noise(400, 400)
    assert statistics(grey).sharpness == pytest.approx(20 * (256**2 - 1) / 12, rel=0.05)


@pytest.mark.parametrize("size", [(200, 300), (600, 500), (1400, 1100)])
def test_blur_lowers_sharpness(size):
    image = Image.fromarray(noise(*size, 3))
    found = [
        statistics(
            np.asarray(
                image.filter(ImageFilter.GaussianBlur(radius * max(1, min(size) / FINE_SIDE)))
            )
        )
        for radius in (0.5, 1, 2)
    ]
    values = [one.sharpness for one in found]
    assert all(after < before / 3 for before, after in pairwise(values)), values


@pytest.mark.parametrize(
    ("top", "bottom", "left", "right"),
    [(0, 0, 0, 0), (20, 20, 0, 0), (0, 0, 10, 30), (8, 24, 16, 0), (0, 100, 0, 0)],
)
def test_border_share_is_the_area_of_the_borders(top, bottom, left, right):
    height, width = 100, 120
    pixels = noise(height, width, 3)
    # The four borders need not have one colour.
    pixels[:, :left], pixels[:, width - right :] = 255, 40
    pixels[:top], pixels[height - bottom :] = 0, 0
    inside = (height - top - bottom) * (width - left - right)
    if not (left and top):
        assert statistics(pixels).border_share == pytest.approx(1 - inside / (height * width))
    else:
        # What is left of a column beside a border of another colour is not flat.
        rows = (height - top - bottom) * width
        assert statistics(pixels).border_share == pytest.approx(1 - rows / (height * width))


def test_flat_share_counts_blocks():
    pixels = noise(80, 160)
    pixels[:, 80:] = 200
    assert statistics(pixels).flat_share == 0.5
    pixels[:, 80:] = noise(80, 80, low=200, high=209)  # what a JPEG leaves is flat, too
    assert statistics(pixels).flat_share == 0.5
    pixels[:, 80:] = np.linspace(200, 250, 80)  # a slope of five levels in a block
    assert statistics(pixels).flat_share == 0.5


def test_colourfulness():
    grey = noise(70, 70)
    assert statistics(np.stack([grey] * 3, 2)).colourfulness == 0
    red = np.zeros((10, 10, 3), np.uint8)
    red[..., 0] = 200  # rg = 200 and yb = 100 everywhere
    assert statistics(red).colourfulness == pytest.approx(0.3 * np.hypot(200, 100))


@given(arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30), st.just(3))))
@settings(max_examples=60)
def test_statistics_are_finite_and_in_range(pixels):
    found = statistics(pixels)
    assert np.isfinite(found).all()
    assert 0 <= found.entropy <= 8
    assert 0 <= found.contrast <= 0.5 + 1e-9
    assert 0 <= found.border_share <= 1
    assert 0 <= found.flat_share <= 1
    assert found.sharpness >= 0
    assert found.colourfulness >= 0


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=25, deadline=None)
def test_planes_are_bounded_and_keep_the_aspect(height, width):
    plane = fine_luma(np.zeros((height, width), np.uint8))
    assert min(plane.shape) <= FINE_SIDE
    assert plane.size <= FINE_PIXELS * 1.01
    scale = plane.shape[0] / height
    assert plane.shape[1] == pytest.approx(width * scale, abs=1 + width / height)
    assert min(coarse_luma(plane).shape) <= FINE_SIDE // 2


def test_a_large_picture_is_converted_in_bands():
    pixels = noise(1300, 1700, 3)
    whole = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(fine_luma(pixels), fine_luma(whole))


# --- the file ------------------------------------------------------------------------------------


def test_checksums_and_sizes_of_the_file():
    data = save(noise(30, 40, 3), "WEBP")
    row = annotate(data)
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert row["md5"] == hashlib.md5(data).hexdigest()
    assert row["num_bytes"] == len(data)
    assert (row["format"], row["mode"], row["aspect"]) == ("WEBP", "RGB", 40 / 30)


def clear(mode: str) -> Image.Image:
    image = Image.new(mode, (20, 20), 0)
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGBA", (20, 20)), "PNG", True),
        (Image.new("LA", (20, 20)), "PNG", True),
        (Image.new("RGBA", (20, 20)), "WEBP", True),
        (clear("P"), "PNG", True),
        (clear("L"), "PNG", True),
        (clear("P"), "GIF", True),
        (Image.new("P", (20, 20)), "PNG", False),
        (Image.new("P", (20, 20)), "GIF", False),
        (Image.new("RGB", (20, 20)), "PNG", False),
        (Image.new("RGB", (20, 20)), "JPEG", False),
        (Image.new("CMYK", (20, 20)), "JPEG", False),
    ],
)
def test_has_alpha(image, kind, expected):
    options = {"transparency": 0} if "transparency" in image.info else {}
    assert annotate(save(image, kind, **options))["has_alpha"] is expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_everything_is_upright(orientation):
    upright = Image.fromarray(noise(6, 9, 3)).resize((180, 120), Image.Resampling.BICUBIC)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(turn) if turn is not None else upright
    row, wanted = annotate(save(stored, "PNG", exif=exif)), annotate(save(upright))
    assert row["orientation"] == orientation
    about_the_file = ("orientation", "sha256", "md5", "num_bytes")
    assert {k: v for k, v in row.items() if k not in about_the_file} == {
        k: v for k, v in wanted.items() if k not in about_the_file
    }


# --- the contract --------------------------------------------------------------------------------


def test_rows_fit_the_schema():
    annotator = pickle.loads(pickle.dumps(ImageAnnotator()))
    row = annotate(save(noise(30, 40, 3)))
    assert list(row) == [field.name for field in annotator.columns]
    whole = {"uid": "u", "key": "k", **row, "status": "ok", "reason": None}
    table = pa.Table.from_pylist([whole], schema=schema_of(annotator))
    assert table.to_pylist()[0]["phash"] == row["phash"]
    assert json.loads(json.dumps(annotator.config)) == annotator.config


def test_threads_change_nothing():
    images = [save(noise(40 + i, 300 - i, 3)) for i in range(40)]
    alone = [annotate(data) for data in images]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(annotate, images)) == alone


# --- real pictures -------------------------------------------------------------------------------


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


@pytest.mark.parametrize("source", [photographs, web])
def test_agrees_with_plain_pillow_and_numpy(source):
    phashes, pdqs, qualities = [], [], []
    for data in source(12):
        ours, plain = annotate(data), plain_image.columns(data)
        phashes.append(distance(ours.pop("phash"), plain.pop("phash")))
        pdqs.append(distance(ours.pop("pdq"), plain.pop("pdq")))
        qualities.append(abs(ours.pop("pdq_quality") - plain.pop("pdq_quality")))
        for name in MEASURED:
            assert ours.pop(name) == pytest.approx(plain.pop(name), rel=1e-5, abs=1e-9)
        assert (ours.pop("fetched_sha256"), ours.pop("fetched_md5")) == (None, None)
        assert ours == plain
    # Pillow's resize has other filters than exact means, and rounds to whole grey levels.
    assert np.percentile(phashes, 90) <= 4
    assert np.percentile(pdqs, 90) <= 10
    assert np.percentile(qualities, 90) <= 2


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"sha256": "AB" * 32, "md5": "0f" * 16}, ("ab" * 32, "0f" * 16)),
        ({"sha256": "ab" * 16, "md5": "zz" * 16}, (None, None)),
        ({"sha256": ["ab" * 32], "md5": 7}, (None, None)),
    ],
)
def test_hashes_of_what_was_fetched_are_those_of_the_json(told, known):
    data = save(Image.new("RGB", (8, 8)), "PNG")
    sample = Sample(0, "", "", image=data, meta=told)
    found = ImageAnnotator().prepare(View(sample, probe(data), decode(data)))
    assert (found["fetched_sha256"], found["fetched_md5"]) == known


def test_a_reduced_decode_gives_nearly_the_same():
    """Columns say little about at which n/8 a large JPEG was decoded."""
    for data in photographs(40):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = 1200 / min(image.size)
        large = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        data = save(large, "JPEG", quality=90)
        assert view(data).pixels.shape < view(data, min_side=0).pixels.shape
        reduced, full = annotate(data), annotate(data, min_side=0)
        assert reduced["entropy"] == pytest.approx(full["entropy"], abs=0.05)
        assert reduced["contrast"] == pytest.approx(full["contrast"], abs=0.005)
        assert reduced["colourfulness"] == pytest.approx(full["colourfulness"], rel=0.1)
        assert reduced["sharpness"] == pytest.approx(full["sharpness"], rel=0.5)
        assert reduced["flat_share"] == pytest.approx(full["flat_share"], abs=0.05)
        assert distance(reduced["phash"], full["phash"]) <= 4


def test_photographs_are_sharper_than_their_blurred_copies():
    for data in photographs(40):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        blurred = save(image.filter(ImageFilter.GaussianBlur(2)), "JPEG", quality=90)
        assert annotate(blurred)["sharpness"] < annotate(data)["sharpness"] / 4


def test_every_odd_image_has_a_finite_row_or_a_reason():
    done = 0
    for _, data in real.odd_images():
        try:
            seen = view(data)
        except BadImage:
            continue
        annotator = ImageAnnotator()
        row = annotator.prepare(seen)
        assert all(np.isfinite(row[name]) for name in (*MEASURED, "aspect"))
        pa.Table.from_pylist([row], schema=pa.schema(annotator.columns))
        done += 1
    assert done > 200
