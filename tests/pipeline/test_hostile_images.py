"""Images from strangers: each decodes to sane pixels or is refused with a reason, at a low price."""

import io
import json
import os
import stat
import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageOps

from pipeline import images, jpeg
from pipeline.images import IMAGE_REASONS, BadImage, decode, probe, square_crop, training_jpeg
from tests.support import real

# Where we decide otherwise than the Pillow of the manifest.
REFUSED_ALTHOUGH_PILLOW_DECODES = {
    # A mutated CMYK file: 23 bytes are left over after the last block, so blocks are missing.
    "files/gofuzz_b9a343113852.bin": "undecodable",
}
DECODED_ALTHOUGH_PILLOW_REFUSES = {
    # The manifest also counts layers and pages, which are broken; the picture itself is sound.
    "files/pillow_445699cb55a8.psd",
    "files/gofuzz_95f7725ad9e0.bin",
    "files/gofuzz_f4f7d079f085.bin",
}
# Pillow's warnings are silenced in earnest (test_nothing_is_printed), but pytest asks for all.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

ALL = (probe, decode, lambda data: square_crop(data, 64), training_jpeg)


def save(kind: str, size: tuple[int, int] = (90, 60), mode: str = "RGB", **options) -> bytes:
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])).astype(np.uint8)
    noise = np.random.default_rng(3).integers(0, 60, (size[1], size[0]), dtype=np.uint8)
    image = Image.fromarray(np.dstack([ramp, noise, ramp // 2 + noise])).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refusal(data: bytes) -> str:
    """The reason, the same from all that decodes."""
    reasons = set()
    for read in ALL[1:]:
        with pytest.raises(BadImage) as error:
            read(data)
        reasons.add(error.value.reason)
    (reason,) = reasons
    assert reason in IMAGE_REASONS
    return reason


# --- the collection ------------------------------------------------------------------------------


def test_every_odd_image_is_decoded_or_refused_as_pillow_does():
    folder = real.data() / "odd_images"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 418
    wrong, refused, decoded_anyway, decoded = {}, {}, set(), 0
    for row in rows:
        data = (folder / row["file"]).read_bytes()
        verdict = verdict_on(data)
        ok_by_pillow = row["pillow13"]["status"] == "ok"
        decoded += verdict == "ok"
        if row["pillow13"]["format"] == "TGA":
            # TGA has no signature, so that any bytes may pass as one, and the web does not use it.
            assert verdict == "not_an_image", row["file"]
        elif ok_by_pillow and verdict != "ok":
            refused[row["file"]] = verdict
        elif not ok_by_pillow and verdict == "ok":
            decoded_anyway.add(row["file"])
        elif verdict not in ("ok", *IMAGE_REASONS):
            wrong[row["file"]] = verdict
    assert wrong == {}
    assert refused == REFUSED_ALTHOUGH_PILLOW_DECODES
    assert decoded_anyway == DECODED_ALTHOUGH_PILLOW_REFUSES
    assert decoded >= 260


def verdict_on(data: bytes) -> str:
    """'ok' where all functions agree on sane pixels, a reason where all refuse, else what is odd."""
    verdicts, made = [], []
    for read in ALL:
        try:
            made.append(read(data))
            verdicts.append("ok")
        except BadImage as error:
            verdicts.append(error.reason)
    if verdicts[1:] != verdicts[1:2] * 3:
        return f"disagree: {verdicts}"
    if verdicts[1] != "ok":
        return verdicts[1]
    info, pixels, crop, training = made
    shape = (info.height, info.width, 3)
    sane = pixels.dtype == np.uint8 and pixels.shape == shape and crop.shape == (64, 64, 3)
    again = decode(training.data)
    if not sane or again.shape != shape or jpeg.header(training.data).orientation != 1:
        return f"odd shapes: {info}, {pixels.shape}, {crop.shape}, {again.shape}"
    # By the mean of either, which no codec shifts: that of training is quality 95 at worst.
    return "ok" if abs(again.mean() - pixels.mean()) < 3 else "training pixels differ"


def test_ordinary_odd_images_have_the_pixels_that_pillow_gives_them():
    compared = 0
    for _, data in real.odd_images():
        try:
            ours = decode(data)
        except BadImage:
            continue
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.mode in ("RGB", "L", "P", "1") and not image.has_transparency_data:
            expected = np.asarray(image.convert("RGB"))
            assert ours.shape == expected.shape
            assert np.abs(ours.astype(int) - expected).mean() < 0.01
            compared += 1
    assert compared >= 150


def test_nothing_is_printed():
    """Not by Pillow, its log, nor by the C libraries below it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline import images\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    for read in (images.probe, images.decode, images.training_jpeg):\n"
        "        try: read(path.read_bytes())\n"
        "        except images.BadImage: pass\n"
    )
    folder = str(real.data() / "odd_images/files")
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


JPEG = save("JPEG", quality=90)
SOF = JPEG.index(b"\xff\xc0")

# --- broken JPEGs --------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_jpegs(share, progressive):
    data = save("JPEG", (200, 150), progressive=progressive, optimize=True)
    assert refusal(data[: int(share * len(data))]) == "truncated"
    assert refusal(data[: int(share * len(data))] + b"\xff\xd9") == "undecodable"


@pytest.mark.parametrize("fill", [b"\x00", b"\x55", b"\xff\x00"])
def test_a_corrupt_middle_that_pillow_passes(fill):
    data = save("JPEG", (400, 300), quality=90)
    middle = len(data) // 2
    broken = data[:middle] + fill * (400 // len(fill)) + data[middle + 400 :]
    Image.open(io.BytesIO(broken)).load()
    assert refusal(broken) == "undecodable"


ICC = b"ICC_PROFILE\0\7\3" + bytes(20)
UNTIDY = {
    "garbage between segments": JPEG[:20] + b"garbage" + JPEG[20:],
    "garbage before the frame": JPEG[:SOF] + b"\0\0\0" + JPEG[SOF:],
    "zeros after the pixels": JPEG[:-2] + bytes(9) + JPEG[-2:],
    "padding after the pixels": JPEG[:-2] + b"\xab" * 30 + JPEG[-2:],
    "bytes after the end": JPEG + b"garbage" * 100,
    "no end marker": JPEG[:-2],
    "future JFIF": JPEG.replace(b"JFIF\0\1", b"JFIF\0\3"),
    "broken profile": JPEG[:20] + b"\xff\xe2" + struct.pack(">H", len(ICC) + 2) + ICC + JPEG[20:],
    "unknown Adobe transform": JPEG[:20] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x09" + JPEG[20:],
    "fill bytes": JPEG.replace(b"\xff\xdb", b"\xff\xff\xff\xdb"),
    "sequential scan with odd limits": (
        JPEG[: (at := JPEG.index(b"\xff\xda") + 11)] + b"\0\0\0" + JPEG[at + 3 :]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNTIDY)
def test_untidy_jpegs_are_accepted_with_all_their_pixels(kind):
    np.testing.assert_array_equal(decode(UNTIDY[kind]), decode(JPEG))
    assert np.abs(square_crop(UNTIDY[kind], 40).astype(int) - square_crop(JPEG, 40)).mean() < 3
    made = training_jpeg(UNTIDY[kind])
    assert not made.reencoded
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made.data))), decode(JPEG))


@pytest.mark.parametrize("kind", UNTIDY)
def test_untidiness_does_not_hide_damage(kind):
    """libjpeg reports its first warning only, here the harmless one."""
    data = UNTIDY[kind]
    start = data.index(b"\xff\xda") + 14
    assert refusal(data[: start + 700] + b"\x55" * 300 + data[start + 1000 :]) == (
        "truncated" if kind == "no end marker" else "undecodable"
    )


def test_simplejpeg_never_sees_what_it_cannot_scale(monkeypatch):
    """simplejpeg 1.9 writes beyond its array when a lossless JPEG is asked for at a scale."""
    called = []
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kwargs: called.append(args))
    for marker in (0xC3, 0xC7, 0xCB, 0xC5, 0xC6):
        other = JPEG[: SOF + 1] + bytes([marker]) + JPEG[SOF + 2 :]
        for read in ALL[1:]:
            with pytest.raises(BadImage):
                read(other)
    deep = JPEG[: SOF + 4] + b"\x0c" + JPEG[SOF + 5 :]
    with pytest.raises(BadImage):
        square_crop(deep, 10)
    assert called == []


# --- anything ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0", "not_an_image"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (bytes(1000), "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "undecodable"),
        (save("PNG")[:-40], "truncated"),
        (save("GIF")[:500], "undecodable"),
        (save("GIF")[:-40], "truncated"),
        (JPEG[:200], "truncated"),
        (save("TGA"), "not_an_image"),
    ],
)
def test_reasons(data, reason):
    assert refusal(data) == reason


def test_no_program_is_run(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, found by its name on the path."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    ghostscript.chmod(ghostscript.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not looked up yet
    eps = save("EPS")
    with suppress(OSError):
        Image.open(io.BytesIO(eps)).load()
    assert (tmp_path / "was-run").exists()  # Pillow would
    (tmp_path / "was-run").unlink()
    assert refusal(eps) == "not_an_image"
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (2, 3), (3, 2)])
def test_degenerate_sizes(size, kind):
    data = save(kind, size)
    assert decode(data).shape == (size[1], size[0], 3)
    assert decode(data, 64).shape == (size[1], size[0], 3)
    middle = decode(data)[size[1] // 2, size[0] // 2].astype(int)
    crop = square_crop(data, 224)
    assert crop.shape == (224, 224, 3)
    if min(size) == 1:  # a single pixel, enlarged, between its neighbours along one axis
        assert np.abs(crop.reshape(-1, 3).mean(0) - middle).max() < 40
    assert training_jpeg(data).width == size[0]


def test_sides_up_to_what_a_jpeg_can_hold():
    data = save("PNG", (1, images.MAX_SIDE))
    assert training_jpeg(data).height == images.MAX_SIDE
    assert square_crop(data, 224).shape == (224, 224, 3)
    assert refusal(save("PNG", (1, images.MAX_SIDE + 1))) == "too_many_pixels"


SEEDS = [
    JPEG,
    save("JPEG", (40, 30), progressive=True),
    save("JPEG", (40, 30), mode="CMYK"),
    save("PNG", (20, 15), mode="P"),
    save("PNG", (20, 15), mode="RGBA"),
    save("GIF", (20, 15)),
    save("WEBP", (20, 15)),
    save("WEBP", (20, 15), mode="RGBA", lossless=True),
    save("BMP", (20, 15)),
    save("TIFF", (20, 15), compression="tiff_lzw"),
    save("TIFF", (20, 15), mode="F"),
    save("AVIF", (20, 15)),
    save("JPEG2000", (20, 15)),
    save("PPM", (20, 15)),
    save("ICO", (20, 15)),
]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutated_files_never_raise_anything_else(data):
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    for read in ALL:
        try:
            read(bytes(mutated))
        except BadImage as error:
            assert error.reason in IMAGE_REASONS
