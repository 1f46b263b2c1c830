"""Perceptual hashes: right bits, near for copies, far for strangers; Hamming distances and hex."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.annotate.annotator import DECODED_SIDE
from pipeline.hashes import from_hex, hamming, pdq256, phash64, to_hex
from pipeline.images import decode

RADIUS = 6


def differing(a: int | bytes, b: int | bytes) -> int:
    a, b = (x if isinstance(x, int) else int.from_bytes(x, "big") for x in (a, b))
    return (a ^ b).bit_count()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scene(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """Large soft shapes, as photographs have them: uint8 (height, width, 3)."""
    small = Image.fromarray(noise(9, 12, 3, seed=seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def wave(down: int, across: int, cells: int, size: int) -> np.ndarray:
    """One frequency of the DCT of `cells` cells, as a picture of size x size.

    Rounded at random, since a row of errors that repeats is a feature of its own.
    """
    place = (np.arange(size) // (size // cells) + 0.5) * np.pi / cells
    values = np.cos(down * place)[:, None] * np.cos(across * place)
    random = np.random.default_rng(0).random((size, size))
    return np.floor(128 + 100 * values + random).astype(np.uint8)


# --- the bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (50, 70, 3), (300, 400, 3), (1100, 600)])
def test_a_flat_picture_has_no_features(level, shape):
    pixels = np.full(shape, level, np.uint8)
    assert phash64(pixels) == 1 << 63
    assert pdq256(pixels) == (bytes(32), 0)


@pytest.mark.parametrize(("down", "across"), [(0, 1), (1, 0), (1, 2), (3, 5), (7, 7), (7, 0)])
def test_phash_of_one_frequency_has_its_bit_alone(down, across):
    bit = 63 - (8 * down + across)
    assert phash64(wave(down, across, 32, 256)) == 1 << 63 | 1 << bit


def reference_pdq(luma: np.ndarray) -> list[bool]:
    """Bit 0 first, in floats, from the exact means of 64 x 64 cells."""
    height, width = luma.shape
    cells = luma.astype(float).repeat(64, 0).repeat(64, 1).reshape(64, height, 64, width)
    place = np.arange(64) + 0.5
    cosines = np.cos(np.arange(1, 17)[:, None] * place * np.pi / 64)
    found = (cosines @ cells.mean((1, 3)) @ cosines.T).ravel()
    return list(found > np.median(found))


@pytest.mark.parametrize("shape", [(64, 64), (65, 63), (100, 37), (30, 200), (5, 5), (129, 191)])
def test_pdq_is_the_dct_of_exact_means(shape):
    luma = scene(*shape)[..., 0]
    value = int.from_bytes(pdq256(luma)[0], "big")
    wanted = reference_pdq(luma)
    wrong = sum(bool(value >> k & 1) != bit for k, bit in enumerate(wanted))
    assert wrong <= 6  # those that are next to the median, or noise beside it


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_repeating_pixels_changes_no_bit(luma, down, across):
    larger = luma.repeat(down, 0).repeat(across, 1)
    assert phash64(larger) == phash64(luma)
    assert pdq256(larger) == pdq256(luma)


def test_grey_pictures_and_views():
    pixels = scene()
    grey = np.ascontiguousarray(pixels[..., 1])
    assert phash64(np.stack([grey] * 3, 2)) == phash64(grey)
    turned = pixels[::-1, ::-1]
    assert phash64(turned) == phash64(np.ascontiguousarray(turned))
    assert differing(phash64(turned), phash64(pixels)) > RADIUS


@pytest.mark.parametrize("seed", range(5))
def test_brightness_and_contrast_matter_little(seed):
    pixels = scene(seed=seed)
    paler = (pixels * 0.6 + 60).astype(np.uint8)
    assert differing(phash64(paler), phash64(pixels)) <= RADIUS
    assert differing(pdq256(paler)[0], pdq256(pixels)[0]) <= 31


def test_noise_on_a_plain_picture_sets_no_bits():
    """Where there is nothing but what a JPEG leaves, half of the bits would be drawn by lot."""
    plain = np.full((200, 300, 3), 128, np.uint8)
    plain[:, 150:] = 131
    copies = [phash64(decode(jpeg(Image.fromarray(plain), quality))) for quality in (30, 50, 75)]
    grain = phash64((plain + noise(*plain.shape) % 3 - 1).astype(np.uint8))
    assert max(differing(hash, phash64(plain)) for hash in [*copies, grain]) <= 2


def test_quality_tells_plain_from_rich():
    assert pdq256(noise(64, 64))[1] == 100
    faint = np.full((64, 64), 100, np.uint8)
    faint[:, 32:] = 110
    assert pdq256(faint)[1] == 2  # 64 steps of int(10 * 100 / 255) = 3 over 90


def test_refuses_what_is_no_picture():
    for bad in (np.zeros((4, 4)), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            phash64(bad)


# --- copies and strangers ------------------------------------------------------------------------


def copies(data: bytes) -> dict[str, bytes]:
    image = Image.open(io.BytesIO(data)).convert("RGB")

    def resized(scale: float) -> Image.Image:
        return image.resize([max(1, round(side * scale)) for side in image.size])

    return {
        "half": jpeg(resized(0.5), 90),
        "three quarters": jpeg(resized(0.75), 90),
        "quality 50": jpeg(image, 50),
        "quality 75": jpeg(image, 75),
    }


def web_images(real, step: int) -> list[bytes]:
    folder = real / "alt_permissive"
    lines = (folder / "metadata.jsonl").read_text().splitlines()[::step]
    return [(folder / json.loads(line)["file_name"]).read_bytes() for line in lines]


def hashes_of(data: bytes) -> tuple[int, bytes]:
    pixels = decode(data, min_side=DECODED_SIDE)
    return phash64(pixels), pdq256(pixels)[0]


def measure(images: list[bytes]) -> tuple[dict[str, float], dict[str, float], float]:
    """Shares of copies within RADIUS of 64 and 31 of 256 bits, and of strangers within RADIUS."""
    near, near_pdq, hashes = {}, {}, []
    for data in images:
        phash, pdq = hashes_of(data)
        hashes.append(phash)
        for kind, copy in copies(data).items():
            other, other_pdq = hashes_of(copy)
            near.setdefault(kind, []).append(differing(phash, other) <= RADIUS)
            near_pdq.setdefault(kind, []).append(differing(pdq, other_pdq) <= 31)
    all_hashes = np.array(hashes, np.uint64)[:, None]
    first, second = np.triu_indices(len(hashes), 1)
    strangers = (hamming(all_hashes[first], all_hashes[second]) <= RADIUS).mean()
    shares = [{kind: np.mean(hits) for kind, hits in side.items()} for side in (near, near_pdq)]
    return *shares, float(strangers)


def check(images: list[bytes]) -> None:
    near, near_pdq, strangers = measure(images)
    print(f"{len(images)} images: {near}, pdq {near_pdq}, strangers {strangers:.5%}")
    assert min(near.values()) >= 0.98
    assert min(near_pdq.values()) >= 0.95
    assert strangers < 0.001


def test_copies_are_near_and_strangers_are_not(real):
    check(web_images(real, 12))


@pytest.mark.slow
def test_copies_are_near_and_strangers_are_not_on_all(real):
    check(web_images(real, 1))


def test_a_reduced_decode_changes_few_bits(real):
    for data in web_images(real, 60):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = 1300 / min(image.size)
        if scale * max(image.size) > 4000:
            continue
        large = jpeg(image.resize([round(side * scale) for side in image.size]), 85)
        full = decode(large)
        assert full.shape > decode(large, min_side=DECODED_SIDE).shape
        phash, pdq = hashes_of(large)
        assert differing(phash, phash64(full)) <= 4
        assert differing(pdq, pdq256(full)[0]) <= 20


# --- distances and hex ---------------------------------------------------------------------------

WORDS = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=20))
def test_hex_and_distances_agree_with_whole_numbers(rows):
    numbers = [sum(word << 64 * i for i, word in enumerate(reversed(row))) for row in rows]
    texts = [f"{number:064x}" for number in numbers]
    words = from_hex(texts)
    assert words.dtype == np.uint64
    assert words.tolist() == [list(row) for row in rows]
    assert to_hex(words) == texts
    distances = hamming(words[:, None], words[None])
    assert distances.tolist() == [[(a ^ b).bit_count() for b in numbers] for a in numbers]


def test_hex_of_no_hashes():
    assert from_hex([]).shape == (0, 1)
    assert to_hex(from_hex([])) == []
    assert from_hex(["ABCDEF0123456789"]) == from_hex(["abcdef0123456789"])


@pytest.mark.parametrize(
    "bad", [[""], ["12"], ["x" * 16], ["0" * 16, "0" * 32], ["0" * 15 + "\n"], ["0x" + "0" * 14]]
)
def test_refuses_what_is_no_hash(bad):
    with pytest.raises(ValueError, match="not a hash"):
        from_hex(bad)
