"""What upsamplers are shown: the same region twice, one of them small and spoiled as it was asked for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from generators.unclip import bsr, degradations
from pipeline.draws import Draws
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes

IMAGE = RenderedScenes("B").image(3)  # 64 x 64
PIXELS = torch.from_numpy(IMAGE.copy()).permute(2, 0, 1).float() / 255


def place(index: int = 0) -> Place:
    return Place(0, 1, 0, index)


def averaged(image: np.ndarray, factor: int) -> np.ndarray:
    h, w, _ = image.shape
    blocks = image.reshape(h // factor, factor, w // factor, factor, 3).astype(np.float64)
    return blocks.mean(axis=(1, 3))


def test_small_images_are_means_of_blocks():
    found = degradations.small(IMAGE, 4, "none", place())
    assert found.dtype == np.uint8 and found.shape == (16, 16, 3)
    assert np.abs(found - averaged(IMAGE, 4)).max() <= 0.5 + 1e-4


def test_a_crop_and_its_small_image_are_one_region():
    """The small image of a crop is a crop of the small image."""
    whole, corners = degradations.small(IMAGE, 4, "none", place()), set()
    for index in range(60):
        crop = degradations.cropped(IMAGE, 16, 4, place(index))
        assert crop.shape == (16, 16, 3)
        low = degradations.small(crop, 4, "none", place(index))
        at = [
            (y, x)
            for y in range(0, 49, 4)
            for x in range(0, 49, 4)
            if np.array_equal(IMAGE[y : y + 16, x : x + 16], crop)
        ]
        y, x = at[0]
        np.testing.assert_array_equal(low, whole[y // 4 : y // 4 + 4, x // 4 : x // 4 + 4])
        corners.add((y, x))
    ys, xs = zip(*corners, strict=True)
    assert min(ys) == min(xs) == 0 and max(ys) == max(xs) == 48  # up to both ends
    assert len(corners) > 30


def test_the_blur_is_a_gaussian_with_sigma_0_6_on_3_pixels():
    weight = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * 0.6**2))
    kernel = np.outer(weight, weight) / weight.sum() ** 2
    wanted = ndimage.convolve(averaged(IMAGE, 4), kernel[:, :, None], mode="nearest")
    found = degradations.small(IMAGE, 4, "blur", place())
    assert np.abs(found - wanted).max() <= 0.5 + 1e-3
    assert np.abs(found - averaged(IMAGE, 4)).max() > 10


def test_quantising_is_what_a_file_does():
    values = torch.linspace(-1.2, 1.2, 3 * 64).view(1, 3, 8, 8)
    found = degradations.quantised(values)
    torch.testing.assert_close(found, to_model(to_images(values)))
    inside = torch.linspace(-1, 1, 99)
    wanted = ((inside + 1) * 127.5).round() / 127.5 - 1
    torch.testing.assert_close(degradations.quantised(inside), wanted)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_enlarging_keeps_constants_and_ramps(how: str):
    """In the middle, where no edge is near, both are exact for what is linear."""
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    found = degradations.enlarged(ramp, 4, how)
    at = (torch.arange(64) + 0.5) / 4 - 0.5
    wanted = -1 + 2 * at / 15
    torch.testing.assert_close(found[0, 0, 30, 12:52], wanted[12:52], atol=1e-5, rtol=0)


def test_bsr_follows_from_its_place_alone():
    found = [degradations.small(IMAGE, 4, "bsr", place(i)) for i in (5, 6, 5)]
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).any()
    torch.manual_seed(3)
    np.testing.assert_array_equal(found[0], degradations.small(IMAGE, 4, "bsr", place(5)))


@pytest.mark.parametrize(("shape", "factor"), [((64, 64), 4), ((16, 16), 4), ((32, 48), 2)])
def test_bsr_gives_small_images_of_the_right_size(shape: tuple[int, int], factor: int):
    image = IMAGE[: shape[0], : shape[1]]
    for index in range(30):
        found = degradations.small(image, factor, "bsr", place(index))
        assert found.dtype == np.uint8
        assert found.shape == (shape[0] // factor, shape[1] // factor, 3)


def test_bsr_spoils_but_keeps_what_is_shown():
    clean = degradations.small(IMAGE, 4, "none", place()).astype(float)
    errors = [
        np.abs(degradations.small(IMAGE, 4, "bsr", place(i)) - clean).mean() for i in range(40)
    ]
    assert min(errors) > 0.5 and max(errors) < 40
    assert np.std(errors) > 1  # some mildly, some badly
    shuffled = np.abs(clean - clean[::-1, ::-1]).mean()
    assert np.mean(errors) < shuffled


def test_bsr_does_all_of_its_operations_at_their_rates(monkeypatch):
    """Each is counted as it runs; a half and a shrink by size go through `resized` as well."""
    names = ("blurred", "shrunk", "resized", "noised", "compressed", "sensed")
    counts = dict.fromkeys(names, 0)

    def counted(name: str):
        real = getattr(bsr, name)

        def call(*args, **named):
            counts[name] += 1
            return real(*args, **named)

        return call

    for name in names:
        monkeypatch.setattr(bsr, name, counted(name))
    number = 300
    for index in range(number):
        bsr.degraded(PIXELS[:, :16, :16], 4, place(index))
    assert counts["blurred"] == counts["shrunk"] == counts["noised"] == number
    assert counts["compressed"] / number == pytest.approx(1.9, abs=0.06)
    assert counts["sensed"] / number == pytest.approx(0.25, abs=0.08)
    assert counts["resized"] / number == pytest.approx(1 + 0.8 + 0.25, abs=0.12)


def test_bsr_shuffles_but_arrives_at_its_size_last():
    names = ["blur", "shrink", "resize", "noise", "jpeg", "sensor"]
    orders = [bsr.order(list(names), Draws("order", i)) for i in range(400)]
    assert all(sorted(found) == sorted(names) for found in orders)
    assert all(found.index("shrink") < found.index("resize") for found in orders)
    for name in names:
        if name not in ("shrink", "resize"):
            assert {found.index(name) for found in orders} == set(range(6))


def test_jpeg_is_a_jpeg():
    """Equal to what a file of that quality gives back, whichever of the qualities was drawn."""
    found = bsr.compressed(PIXELS, Draws("jpeg"))
    array = (found * 255).round().byte().permute(1, 2, 0).numpy()

    def of_quality(quality: int) -> np.ndarray:
        data = io.BytesIO()
        Image.fromarray(IMAGE).save(data, "JPEG", quality=quality)
        return np.array(Image.open(data))

    equal = [q for q in range(1, 101) if np.array_equal(of_quality(q), array)]
    assert equal and 80 <= equal[0] <= 95
    assert (array != IMAGE).any()


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_kernels_have_their_moments(angle: float):
    kernel = bsr.gaussian(41, [4.0, 9.0], angle, centre=1.5).double()
    at = torch.arange(41, dtype=torch.float64) - 20
    y, x = torch.meshgrid(at, at, indexing="ij")
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    means = [float((kernel * v).sum()) for v in (x, y)]
    assert means == pytest.approx([1.5, 1.5], abs=1e-3)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-np.sin(angle), np.cos(angle)])
    wanted = 4 * np.outer(along, along) + 9 * np.outer(across, across)
    offsets = [x - 1.5, y - 1.5]
    found = np.array([[float((kernel * a * b).sum()) for a in offsets] for b in offsets])
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_convolution_is_scipys():
    kernel = bsr.gaussian(7, [1.0, 3.0], 0.4)
    found = bsr.convolved(PIXELS, kernel).numpy()
    # What slides over an image without being turned is scipy's `correlate`.
    wanted = [ndimage.correlate(c, kernel.numpy(), mode="nearest") for c in PIXELS.numpy()]
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-5)


def test_leaving_out_pixels_does_not_shift():
    """A ramp stays where it is: its small image is that of averaging."""
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64).contiguous()
    seed = next(i for i in range(100) if not Draws(i).chance(bsr.RESIZED))
    found = bsr.shrunk(ramp, 4, Draws(seed))
    assert found.shape == (3, 16, 16)
    wanted = torch.nn.functional.avg_pool2d(ramp[None], 4)[0]
    torch.testing.assert_close(found[:, :, 4:12], wanted[:, :, 4:12], atol=1e-4, rtol=0)


def test_noise_has_its_strength_and_its_kinds():
    grey = torch.full((3, 64, 64), 0.5)
    is_grey, stds = [], []
    for i in range(150):
        drawn = bsr.noised(grey, Draws("n", i), SampleNoise([i])) - grey
        stds.append(float(drawn.std()) * 255)
        is_grey.append(bool((drawn[0] == drawn[1]).all() and (drawn[0] == drawn[2]).all()))
    assert min(stds) > 0.1 and max(stds) < 2.2
    assert np.mean(is_grey) == pytest.approx(0.4, abs=0.12)


def test_a_sensor_sees_flat_light_with_noise_and_no_shift():
    grey = torch.full((3, 64, 64), 0.5)
    found = bsr.sensed(grey, Draws("s"), SampleNoise([0]))
    assert found.min() >= 0 and found.max() <= 1
    assert 0.001 < float(found.std()) < 0.1
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    shown = bsr.sensed(PIXELS, Draws("s"), SampleNoise([0]))
    assert 0.005 < float((shown - PIXELS).abs().mean()) < 0.1  # a mosaic loses fine colours
