"""Images: the pixels are right whatever the format, mode or orientation; training bytes keep them."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from pipeline import jpeg
from pipeline.images import decode, probe, square_crop, training_jpeg
from tests.support import real

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_ICC = SRGB[:16] + b"GRAY" + SRGB[20:]


def scene(width: int = 120, height: int = 80) -> np.ndarray:
    """Smooth, different at every corner, so that no turn of it is another."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    blue = 127 + 120 * np.sin(x / 9) * np.cos(y / 7)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def save(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_orientation(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossy = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    return save(scene(), kind, exif=exif, **lossy.get(kind, {}))


def difference(ours: np.ndarray, theirs: np.ndarray | Image.Image) -> float:
    """Mean absolute difference in grey levels."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(int) - theirs).mean()


def by_pillow(data: bytes) -> Image.Image:
    """Upright RGB as Pillow makes it."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def full_size_crop(image: Image.Image, size: int, shift: int = 0) -> np.ndarray:
    """The reference of square_crop: antialiased bicubic from all pixels, shifted if asked."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    shift_x, shift_y = (shift, 0) if image.width > image.height else (0, shift)
    box = (left + shift_x, top + shift_y, left + shift_x + side, top + shift_y + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


LOSSLESS = [
    ("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {}), ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_decodes_each_format(kind, options):
    data = save(scene(), kind, **options)
    assert difference(decode(data), scene()) < (1 if kind == "AVIF" else 1e-9)
    info = probe(data)
    assert (info.format, info.width, info.height, info.orientation) == (kind, 120, 80, 1)
    assert info.mode == "RGB"


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}]
)
def test_decodes_jpeg_as_pillow_does(options):
    data = save(scene(), "JPEG", **options)
    assert difference(decode(data), by_pillow(data)) == 0
    assert decode(data).flags.c_contiguous


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_out_upright(kind, orientation):
    # EXIF 2.32, 4.6.4 A: what stands at the stored origin, and so what brings it back.
    upright = {
        1: scene(),
        2: scene()[:, ::-1],
        3: np.rot90(scene(), 2),
        4: scene()[::-1],
        5: scene().transpose(1, 0, 2),
        6: np.rot90(scene(), -1),
        7: np.rot90(scene().transpose(1, 0, 2), 2),
        8: np.rot90(scene(), 1),
    }[orientation]
    data = with_orientation(kind, orientation)
    pixels = decode(data)
    assert difference(pixels, upright) < 1.5
    assert difference(pixels, by_pillow(data)) == 0
    info = probe(data)
    assert (info.height, info.width) == upright.shape[:2]
    assert info.orientation == (1 if kind == "TIFF" else orientation)

    crop = square_crop(data, 40)
    assert difference(crop, full_size_crop(Image.fromarray(upright), 40)) < 2

    made = training_jpeg(data)
    assert (made.height, made.width) == upright.shape[:2]
    assert made.reencoded == (kind != "JPEG" or orientation > 1)
    assert jpeg.header(made.data).orientation == 1
    assert difference(decode(made.data), upright) < 2


def test_orientation_that_stands_behind_the_pixels_of_a_png():
    data = with_orientation("PNG", 6)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert probe(late).orientation == 6
    assert difference(decode(late), by_pillow(late)) == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_does_not_cost_the_picture():
    data = save(scene(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20))
    assert difference(decode(data), scene()) == 0


def test_alpha_is_laid_on_white():
    alpha = np.linspace(0, 255, 120).astype(np.uint8)[None].repeat(80, 0)
    rgba = np.dstack([scene(), alpha])
    share = alpha[..., None] / 255
    expected = np.rint(scene() * share + 255 * (1 - share)).astype(np.uint8)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(decode(save(rgba, kind, **options)).astype(int) - expected).max() <= 1
    made = training_jpeg(save(rgba, "PNG"))
    assert made.reencoded
    assert difference(decode(made.data), expected) < 1.5


def test_transparent_palettes_and_key_colours():
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    pixels = decode(save(palette, "GIF", transparency=5))
    assert (pixels[0, 5] == 255).all()
    assert (pixels[0, 6] == np.asarray(palette.convert("RGB"))[0, 6]).all()
    keyed = decode(save(scene(), "PNG", transparency=tuple(map(int, scene()[3, 3]))))
    assert (keyed[3, 3] == 255).all()
    assert (keyed[3, 4] == scene()[3, 4]).all()


def test_deep_grey_is_scaled_and_not_clipped():
    levels = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    expected = np.rint(levels / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        pixels = decode(save(Image.fromarray(levels), kind))
        np.testing.assert_array_equal(pixels, expected[..., None].repeat(3, 2))
    dark = decode(save(Image.fromarray(levels // 16), "PNG"))
    assert dark.max() == 16
    square = square_crop(save(Image.fromarray(levels), "PNG"), 64)
    assert difference(square, expected[..., None].repeat(3, 2)) < 0.01


@pytest.mark.parametrize(("low", "high", "darkest", "lightest"), [(0, 1, 0, 255), (0, 200, 0, 200), (-3, 7, 0, 255), (5, 900, 0, 255)])  # fmt: skip
def test_floats_are_scaled(low, high, darkest, lightest):
    values = np.linspace(low, high, 100, dtype=np.float32).reshape(10, 10)
    pixels = decode(save(Image.fromarray(values), "TIFF"))
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (darkest, lightest)
    assert (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()


def test_floats_that_are_no_numbers_become_black():
    values = np.array([[0, 1, np.nan], [np.inf, -np.inf, 0.5]], np.float32)
    assert decode(save(Image.fromarray(values), "TIFF"))[..., 0].tolist() == [
        [0, 255, 0],
        [0, 0, 128],
    ]


def test_cmyk_is_inverted_where_adobe_inverts_it():
    cmyk = Image.fromarray(scene()).convert("CMYK")
    data = save(cmyk, "JPEG", quality=95, subsampling=0)
    assert b"Adobe" in data
    assert difference(decode(data), scene()) < 2
    assert difference(square_crop(data, 80), full_size_crop(Image.fromarray(scene()), 80)) < 2
    assert probe(data).mode == "CMYK"
    made = training_jpeg(data)
    assert made.reencoded
    assert jpeg.header(made.data).components == 3
    assert difference(decode(made.data), scene()) < 2


def test_lab():
    lab = np.array([[[100, 0, 0], [0, 0, 0], [50, 60, 0]]], float)  # white, black, a pink
    stored = np.dstack([lab[..., 0] * 2.55, lab[..., 1], lab[..., 2]]).astype(np.int16)
    image = Image.fromarray(stored.astype(np.uint8), "LAB")
    pixels = decode(save(image, "TIFF")).astype(int)
    assert (pixels[0, 0] > 250).all()
    assert (pixels[0, 1] < 5).all()
    assert pixels[0, 2, 0] > pixels[0, 2, 1] + 80


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = save(frames[0], kind, save_all=True, append_images=frames[1:])
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert difference(decode(data), np.full((10, 20, 3), (255, 0, 0))) < 3


@pytest.mark.parametrize("min_side", [1, 9, 50, 79, 80, 81, 500])
def test_reduced_decoding_keeps_the_shorter_side(min_side):
    data = save(scene(), "JPEG", quality=95)
    height, width, _ = decode(data, min_side).shape
    assert min(height, 80) >= min(min_side, 80)
    assert abs(width / height - 1.5) < 0.2
    reduced = Image.fromarray(scene()).resize((width, height), Image.Resampling.BOX)
    assert difference(decode(data, min_side), reduced) < 5
    if min_side <= 50:
        assert height < 80
    assert difference(decode(save(scene(), "PNG"), min_side), scene()) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "shape", [(60, 61), (300, 200), (200, 333), (1000, 640), (225, 224), (224, 900)]
)
def test_square_crop_is_the_antialiased_middle(shape, kind):
    source = Image.fromarray(scene(*shape))
    data = save(source, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    crop = square_crop(data, 224)
    assert crop.shape == (224, 224, 3)
    assert crop.flags.c_contiguous
    assert difference(crop, full_size_crop(by_pillow(data), 224)) < 1


@pytest.mark.parametrize("size", [1, 7, 32, 600])
def test_square_crop_at_any_size(size):
    data = save(scene(301, 200), "JPEG", quality=95, subsampling=0)
    assert difference(square_crop(data, size), full_size_crop(by_pillow(data), size)) < 1.5
    with pytest.raises(ValueError, match="size"):
        square_crop(data, 0)


def test_no_aliasing():
    """A fine grid must turn grey, not into a coarse pattern."""
    grid = (np.indices((900, 900)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    for kind in ("PNG", "JPEG"):
        crop = square_crop(save(grid, kind), 224).astype(int)
        assert abs(crop.mean() - 127.5) < 2
        assert crop[8:-8, 8:-8].std() < 6


def test_quality_of_the_crop_on_photographs():
    """Against all pixels, antialiased: enlarged ones are exact, DCT-reduced ones close by."""
    enlarged, reduced = [], []
    for path in sorted((real.data() / "flickr8k_875/images").glob("*.jpg"))[::7]:
        data = path.read_bytes()
        image, crop = by_pillow(data), square_crop(data, 224)
        error = difference(crop, full_size_crop(image, 224))
        shifted = min(difference(crop, full_size_crop(image, 224, by)) for by in (-1, 1))
        assert error < 0.6 * shifted, path.name
        (enlarged if min(image.size) <= 224 else reduced).append((error, shifted))
    assert len(enlarged) > 30
    assert len(reduced) > 30
    means = np.mean(enlarged, axis=0), np.mean(reduced, axis=0)
    print(f"grey levels off, and if shifted by a pixel: enlarged {means[0]}, reduced {means[1]}")
    assert means[0][0] < 0.2
    assert means[1][0] < 2.5
    assert min(means[0][1], means[1][1]) > 5


def test_training_keeps_the_bytes_of_a_plain_jpeg():
    exif = Image.Exif()
    exif[0x010F] = "camera"
    for mode in ("RGB", "L"):
        plain = save(
            Image.fromarray(scene()).convert(mode), "JPEG", quality=80, progressive=mode == "L"
        )
        tagged = save(
            Image.fromarray(scene()).convert(mode), "JPEG", quality=80, progressive=mode == "L",
            exif=exif, comment=b"secret", xmp=b"<x/>",
        )  # fmt: skip
        made = training_jpeg(tagged + b"trailing")
        assert (made.data, made.width, made.height, made.reencoded) == (plain, 120, 80, False)
        assert training_jpeg(tagged, check=False).data == plain
        assert training_jpeg(tagged, max_side=120).data == plain


def test_training_keeps_profiles_that_fit():
    for data in (save(scene(), "JPEG", icc_profile=SRGB), save(scene(), "PNG", icc_profile=SRGB)):
        assert Image.open(io.BytesIO(training_jpeg(data).data)).info["icc_profile"] == SRGB
    grey = Image.fromarray(scene()).convert("L")
    made = training_jpeg(save(grey, "PNG", icc_profile=GREY_ICC))
    assert Image.open(io.BytesIO(made.data)).info["icc_profile"] == GREY_ICC
    assert Image.open(io.BytesIO(made.data)).mode == "L"
    for data in (
        save(grey, "PNG", icc_profile=SRGB),
        save(
            Image.fromarray(scene()).convert("CMYK"),
            "JPEG",
            icc_profile=SRGB[:16] + b"CMYK" + SRGB[20:],
        ),
    ):
        assert "icc_profile" not in Image.open(io.BytesIO(training_jpeg(data).data)).info


def test_training_resizes_only_when_asked_and_needed():
    data = save(scene(300, 200), "JPEG", quality=95, subsampling=0)
    made = training_jpeg(data, max_side=150)
    assert (made.width, made.height, made.reencoded) == (150, 100, True)
    expected = Image.fromarray(scene(300, 200)).resize((150, 100), Image.Resampling.BICUBIC)
    assert difference(decode(made.data), expected) < 2
    assert not training_jpeg(data, max_side=300).reencoded
    assert training_jpeg(save(scene(2, 300), "PNG"), max_side=100).width == 1


def test_training_bytes_do_not_depend_on_the_run():
    data = save(np.dstack([scene(), scene()[..., 0]]), "PNG", compress_level=1)
    assert training_jpeg(data) == training_jpeg(data)


def test_threads_do_not_disturb_each_other():
    files = [save(scene(200 + 7 * n, 300 - 5 * n), "JPEG", quality=90) for n in range(12)] * 6
    expected = [square_crop(data, 224) for data in files[:12]] * 6
    with ThreadPoolExecutor(8) as pool:
        for ours, alone in zip(
            pool.map(lambda d: square_crop(d, 224), files), expected, strict=True
        ):
            np.testing.assert_array_equal(ours, alone)


def test_emoji_on_white():
    paths = sorted((real.data() / "noto_emoji").rglob("*.png"))[::40]
    assert len(paths) > 30
    for path in paths:
        rgba = np.asarray(Image.open(path).convert("RGBA")).astype(float)
        share = rgba[..., 3:] / 255
        expected = np.rint(rgba[..., :3] * share + 255 * (1 - share))
        ours = decode(path.read_bytes())
        assert np.abs(ours - expected).max() <= 1, path.name
        assert (ours[rgba[..., 3] == 0] == 255).all()
