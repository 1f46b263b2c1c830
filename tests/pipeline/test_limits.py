"""What images may cost: bytes, pixels, memory, and that big ones take turns."""

import io
import pickle
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from pipeline import images
from pipeline.images import BadImage, decode, probe, square_crop, training_jpeg
from pipeline.limits import room

# Pillow's warnings are silenced in earnest, but pytest asks for all.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

ALL = (probe, decode, lambda data: square_crop(data, 64), training_jpeg)


def save(kind: str, size: tuple[int, int] = (90, 60), mode: str = "RGB", **options) -> bytes:
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])).astype(np.uint8)
    noise = np.random.default_rng(3).integers(0, 60, (size[1], size[0]), dtype=np.uint8)
    image = Image.fromarray(np.dstack([ramp, noise, ramp // 2 + noise])).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEG = save("JPEG", quality=90)
SOF = JPEG.index(b"\xff\xc0")


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )


def resized(data: bytes, at: int, layout: str, width: int, height: int) -> bytes:
    """The file with another size in its header."""
    return data[:at] + struct.pack(layout, width, height) + data[at + struct.calcsize(layout) :]


BOMBS = {
    "PNG": png_header(10_000, 10_001),
    "JPEG": resized(JPEG, SOF + 5, ">HH", 10_001, 10_000),
    "progressive JPEG": resized(
        PROGRESSIVE := save("JPEG", progressive=True), PROGRESSIVE.index(b"\xff\xc2") + 5, ">HH",
        10_000, 10_000,
    ),
    "GIF": resized(save("GIF"), 6, "<HH", 10_000, 10_000),
    "BMP": resized(save("BMP"), 18, "<ii", 10_000, 10_000),
    "WEBP": resized(save("WEBP", quality=80), 26, "<HH", 10_000, 10_000),
    "PPM": b"P6 10000 10000 255\n" + bytes(100),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 10_000, 10_000, 8, 3) + bytes(20),
    "too long": png_header(70_000, 1),
    "icon": b"\0\0\1\0\1\0\x20\x20\0\0\1\0\x20\0" + struct.pack("<II", 200, 22) + png_header(10_000, 10_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_from_their_header(kind, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: decoded.append(kind))
    for read in ALL:
        with pytest.raises(BadImage, match="too_many_pixels"):
            read(BOMBS[kind])
    assert decoded == []


def test_too_many_bytes_are_not_looked_at():
    data = JPEG + bytes(images.MAX_BYTES + 1 - len(JPEG))
    for read in ALL:
        with pytest.raises(BadImage, match="too_many_bytes"):
            read(data)


MEMORY = """
import io, sys
import simplejpeg
from PIL import Image, ImageFile
side = int(sys.argv[1])
bombs = []
for kind, mode, options in (
    ("WEBP", "RGBA", {"lossless": True, "quality": 0, "method": 0}),
    ("PNG", "RGBA", {"compress_level": 1}),
    ("JPEG", "CMYK", {"progressive": True, "quality": 10}),
    ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
):
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, kind, **options)
    bombs.append(file.getvalue())
sys.stdout.buffer.write(b"".join(len(b).to_bytes(4, "big") + b for b in bombs))
"""
DECODE_ALL = """
import resource, sys, threading
from pipeline import images
stream, bombs = sys.stdin.buffer, []
while size := stream.read(4):
    bombs.append(stream.read(int.from_bytes(size, "big")))
def work(data):
    for read in (images.decode, lambda d: images.square_crop(d, 224), images.training_jpeg):
        done.append(read(data) is not None)
done = []
threads = [threading.Thread(target=work, args=(data,)) for data in bombs]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(done), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_four_threads_on_the_worst_files_stay_below_two_gigabytes():
    """The largest pictures that pass the caps, of the formats that take most memory each."""
    make = [sys.executable, "-c", MEMORY, str(int(images.MAX_PIXELS**0.5))]
    bombs = subprocess.run(make, capture_output=True, check=True).stdout
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL], input=bombs, capture_output=True, check=True
    )
    count, megabytes = map(int, done.stdout.split())
    print(f"peak {megabytes} MB")
    assert count == 12
    assert 500 < megabytes < 2000


@pytest.mark.parametrize(("num_bytes", "together"), [(2**20, 4), (2**30, 1)])
def test_only_big_users_of_memory_take_turns(num_bytes, together):
    inside, most = [], []

    def work():
        with room(num_bytes):
            inside.append(1)
            time.sleep(0.05)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == together


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "progressive JPEG", "CMYK"])
def test_big_pictures_ask_for_room(kind, monkeypatch):
    options = {"progressive JPEG": {"kind": "JPEG", "progressive": True}, "CMYK": {"kind": "JPEG"}}
    data = save(**{"kind": kind, **options.get(kind, {})}, mode="CMYK" if kind == "CMYK" else "RGB")
    asked = []
    monkeypatch.setattr(images, "room", lambda num: asked.append(num) or nullcontext())
    for read in ALL[1:]:
        asked.clear()
        read(data)
        assert max(asked) >= 90 * 60 * (6 if "JPEG" in kind else 12)


def test_bad_image_travels_between_processes():
    error = pickle.loads(pickle.dumps(BadImage("truncated", "at byte 7")))
    assert (error.reason, error.detail, str(error)) == (
        "truncated",
        "at byte 7",
        "truncated: at byte 7",
    )
    with pytest.raises(AssertionError):
        BadImage("something_else")


def test_a_bug_of_ours_is_no_bad_image():
    with pytest.raises(NameError):
        limits.refusing(lambda data: nowhere_defined)(b"bytes")  # noqa: F821
