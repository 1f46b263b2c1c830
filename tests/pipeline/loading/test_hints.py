"""Edges are those of an independent Canny, segments are the regions of an image, and both take any image."""

import numpy as np
import pytest
from PIL import Image

from pipeline.loading.canny import LEAST, canny, otsu
from pipeline.loading.hints import HINTS, edges, segments
from pipeline.loading.islands import islands
from pipeline.loading.regions import LEAST as LEAST_SHARE
from pipeline.loading.regions import regions
from pipeline.scenes.rendered import RenderedScenes
from tests.support.real import data


def photographs(num: int, size: int = 128) -> list[np.ndarray]:
    """Middle squares, the first by name."""
    found = []
    for path in sorted((data() / "flickr8k_875/images").iterdir())[:num]:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        found.append(np.asarray(image.crop((0, 0, side, side)).resize((size, size))))
    return found


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def square(inside=(220, 60, 40), outside=(30, 90, 60), side: int = 40) -> np.ndarray:
    image = np.full((side, side, 3), outside, np.uint8)
    image[10:30, 8:24] = inside
    return image


@pytest.mark.parametrize("thresholds", [(100, 200), (50, 150.5), (0, 0), (30, 30)])
@pytest.mark.parametrize("grey", [False, True])
def test_edges_are_those_of_opencv_pixel_by_pixel(thresholds, grey):
    cv2 = pytest.importorskip("cv2")
    scenes = list(RenderedScenes("B", "test", -1).first(4).images)
    for image in [*photographs(6), *scenes, noise(61, 43, 3), noise(1, 9, 3), noise(7, 1, 3)]:
        image = np.ascontiguousarray(image[..., 0]) if grey else image
        low, high = thresholds
        wanted = cv2.Canny(image, low, high, L2gradient=True) > 0
        assert np.array_equal(canny(image, sigma=0, low=low, high=high), wanted)


def test_a_squares_edges_are_its_outline_one_pixel_wide():
    found = canny(square(), sigma=0)
    outline = np.zeros((40, 40), bool)
    outline[9:31, 7:25] = True
    outline[11:29, 9:23] = False
    assert not (found & ~outline).any()  # beside the step, on either side of it
    assert found[12:28].sum(axis=1).tolist() == [2] * 16  # left and right
    assert found[:, 10:22].sum(axis=0).tolist() == [2] * 12


def test_colours_of_one_brightness_have_an_edge():
    """Luma alone would see none."""
    image = square((255, 0, 0), (0, 130, 0))
    luma = np.asarray(Image.fromarray(image).convert("L"))
    assert np.ptp(luma) < 2
    assert edges(image).any() and not edges(np.repeat(luma[..., None], 3, axis=2)).any()


def test_a_weak_line_is_kept_where_a_strong_one_leads_to_it():
    image = np.zeros((20, 60), np.uint8)
    image[10:, :20] = 200
    image[10:, 20:] = 60
    alone = image.copy()
    alone[:, :22] = 0
    thresholds = {"sigma": 0, "low": 100, "high": 500}
    assert canny(image, **thresholds)[8:12, 40:].any()
    assert not canny(alone, **thresholds)[8:12, 40:].any()


def test_faint_noise_and_flat_images_have_no_edges():
    assert not edges(np.full((32, 32, 3), 77, np.uint8)).any()
    faint = (noise(64, 64, 3) % 5 + 100).astype(np.uint8)
    assert not edges(faint).any()
    assert LEAST == 4 * 8  # a step of 8 levels, by Sobel's kernel


def test_otsus_threshold_is_the_best_of_all():
    """Against every threshold in turn."""
    values = np.concatenate([noise(300) * 0.2, 120 + noise(100, seed=1) * 0.5])

    def apart(threshold: float) -> float:
        low, high = values[values < threshold], values[values >= threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(apart(t) for t in np.unique(values)[1:])
    assert apart(otsu(values, bins=4096)) > 0.999 * best
    assert otsu(np.full(9, 3.0)) == 0


def test_islands_are_scipys_components():
    graph = pytest.importorskip("scipy.sparse.csgraph")
    sparse = pytest.importorskip("scipy.sparse")
    draws = np.random.default_rng(0)
    for num, count in ((1, 0), (200, 90), (200, 180), (3000, 2900)):
        pairs = draws.integers(0, num, (2, count))
        matrix = sparse.coo_matrix((np.ones(count), pairs), (num, num))
        wanted = graph.connected_components(matrix, directed=False)[1]
        found = islands(num, pairs)
        assert len(np.unique(np.stack([found, wanted]), axis=1)[0]) == len(np.unique(wanted))
        assert all(found[label] == label <= node for node, label in enumerate(found))
    chain = np.stack([np.arange(4999), np.arange(1, 5000)])
    assert not islands(5000, chain[:, ::-1]).any()


@pytest.mark.parametrize("side", [20, 40, 200])
def test_segments_of_two_colours_are_these_two(side):
    """Of a pixel each, and of superpixels, which follow the outline."""
    image = np.asarray(Image.fromarray(square()).resize((side, side), Image.Resampling.NEAREST))
    assert np.array_equal(segments(image), image)
    assert regions(image).max() == 1


def test_a_segment_has_the_mean_colour_of_its_pixels():
    for image in photographs(3):
        labels, shown = regions(image), segments(image)
        assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
        for label in range(labels.max() + 1):
            mean = image[labels == label].astype(float).mean(axis=0)
            assert np.abs(shown[labels == label] - mean).max() <= 0.5 + 1e-9


def test_photographs_have_a_few_large_segments_that_are_near_to_them():
    """They say more than as many even squares: less of the image's variance is left."""
    for image in photographs(8):
        labels = regions(image)
        sizes = np.bincount(labels.ravel())
        assert 3 <= len(sizes) <= 100 and sizes.min() >= LEAST_SHARE * labels.size
        cells = int(np.ceil(np.sqrt(len(sizes))))
        rows = np.arange(128) * cells // 128
        even = rows[:, None] * cells + rows
        assert left_over(image, labels) < 0.7 * left_over(image, even)


def left_over(image: np.ndarray, labels: np.ndarray) -> float:
    flat, pixels = labels.ravel(), image.reshape(-1, 3).astype(float)
    means = np.stack([np.bincount(flat, plane) / np.bincount(flat) for plane in pixels.T], axis=1)
    return float(np.square(pixels - means[flat]).mean())


@pytest.mark.parametrize("name", HINTS)
@pytest.mark.parametrize(
    "image",
    [
        noise(1, 1, 3),
        noise(1, 50, 3),
        noise(50, 1, 3),
        noise(2, 3, 3),
        noise(33, 97, 3),
        noise(256, 256, 3),
        np.zeros((64, 48, 3), np.uint8),
        np.full((64, 48, 3), 255, np.uint8),
        np.repeat(noise(40, 40, 1), 3, axis=2),
        np.ascontiguousarray(noise(40, 60, 3)[:, ::-1])[::2, ::-1],
        np.tile(noise(30, 20, 3), (20, 30, 1)),
    ],
    ids=lambda image: f"{image.shape[0]}x{image.shape[1]}",
)
def test_any_image_has_a_hint_of_its_size_the_same_each_time(name, image):
    before, found = image.copy(), HINTS[name](image)
    shape = image.shape[:2] if name == "edges" else image.shape
    assert found.dtype == np.uint8 and found.shape == shape
    if name == "edges":
        assert set(np.unique(found)) <= {0, 255}
    assert np.array_equal(found, HINTS[name](image)) and np.array_equal(before, image)


@pytest.mark.parametrize("name", HINTS)
def test_what_is_no_image_is_our_own_mistake(name):
    shapes = (0, 4, 3), (5,), (4, 4, 1), (4, 4, 2), (4, 4, 4), (2, 4, 4, 3)
    for bad in (np.zeros((4, 4, 3)), *(np.zeros(shape, np.uint8) for shape in shapes)):
        with pytest.raises(ValueError, match="uint8"):
            HINTS[name](bad)


def test_a_rendered_things_colour_is_a_segments():
    """Where it is drawn the segments are of its colour, and the background's texture is mostly gone."""
    scenes = RenderedScenes("A", "test", -1)
    for image in scenes.first(30).images:
        shown = segments(image)
        ground = np.median(image.reshape(-1, 3), axis=0)
        thing = np.abs(image.astype(int) - ground).sum(axis=2) > 250
        if thing.sum() > 30:
            inside = shown[thing].astype(int) - image[thing]
            assert np.median(np.abs(inside).sum(axis=1)) < 60
        assert len(np.unique(shown.reshape(-1, 3), axis=0)) < 0.3 * 32**2
