"""JPEG segments: what a header says, and stripping that leaves the picture as it was."""

import io
import struct
import time

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipeline import jpeg
from tests.support import real

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
ALLOWED = {"APP0", "APP2", "APP14"}


def picture(mode: str = "RGB", size: tuple[int, int] = (75, 50)) -> Image.Image:
    """Smooth colours with some noise, no two pixels of a row alike."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[: size[1], : size[0]]
    planes = [x * 3, y * 5, x + y * 2]
    pixels = np.stack(planes, axis=2) + rng.integers(0, 20, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def exif(orientation: int, order: str = "II") -> bytes:
    """An EXIF block with three tags, written by hand in either byte order."""
    e = "<" if order == "II" else ">"
    entries = [(0x010F, 2, 4, b"cam\0"), (0x0112, 3, 1, struct.pack(e + "HH", orientation, 0))]
    entries.append((0x0128, 3, 1, struct.pack(e + "HH", 2, 0)))
    body = b"".join(struct.pack(e + "HHI", tag, kind, n) + value for tag, kind, n, value in entries)
    head = order.encode() + struct.pack(e + "HI", 42, 8) + struct.pack(e + "H", len(entries))
    return b"Exif\0\0" + head + body + bytes(4)


def insert(data: bytes, *parts: bytes, before: bytes = b"\xff\xdb") -> bytes:
    """The parts put before the first marker of a kind."""
    at = data.index(before)
    return data[:at] + b"".join(parts) + data[at:]


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


FILES = {
    "RGB": encode(picture()),
    "no chroma subsampling": encode(picture(), subsampling=0),
    "grey": encode(picture("L")),
    "CMYK": encode(picture("CMYK")),
    "progressive": encode(picture(), progressive=True),
    "restart markers": encode(picture(), restart_marker_blocks=2),
    "EXIF": encode(picture(), exif=exif(1)),
    "XMP": encode(picture(), xmp=XMP),
    "ICC": encode(picture(), icc_profile=SRGB),
    "ICC in parts": encode(picture(), icc_profile=SRGB * 150),
    "comment": encode(picture(), comment=b"taken by A. Person"),
    "stored as RGB": encode(picture(), keep_rgb=True, subsampling=0),
    "all at once": encode(
        picture(), exif=exif(1), xmp=XMP, icc_profile=SRGB, comment=b"hello", progressive=True
    ),
    "IPTC": insert(FILE := encode(picture()), segment(0xED, b"Photoshop 3.0\0" + bytes(200))),
    "JFIF thumbnail": b"\xff\xd8"
    + segment(0xE0, b"JFIF\0\x01\x02\0\0\x01\0\x01\x02\x02" + b"a_thumbnail!")
    + segment(0xE0, b"JFXX\0\x13" + bytes(60))
    + FILE[20:],
    "pictures after it": insert(FILE, segment(0xE2, b"MPF\0" + bytes(80))) + FILE * 2,
    "fill bytes": FILE.replace(b"\xff\xdb", b"\xff\xff\xff\xdb").replace(
        b"\xff\xda", b"\xff\xff\xda"
    ),
    "garbage between segments": insert(FILE, b"\x00garbage\xff\x00"),
    "no end marker": FILE[:-2],
    "fake end in EXIF": insert(FILE, segment(0xE1, b"Exif\0\0\xff\xd9\xff\xd8\xff\xda")),
}


def entropy_coded(data: bytes) -> bytes:
    """What stands between the first SOS and the last EOI, by plain search."""
    return data[data.rindex(b"\xff\xda") : data.rindex(b"\xff\xd9")]


def pixels(data: bytes) -> np.ndarray:
    """By Pillow, which accepts untidy files, all but those without an end."""
    return np.asarray(Image.open(io.BytesIO(data + b"\xff\xd9")))


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
@pytest.mark.parametrize("kind", FILES)
def test_strip_leaves_pixels_and_drops_the_rest(kind):
    data = FILES[kind]
    stripped = jpeg.strip(data)
    np.testing.assert_array_equal(pixels(stripped), pixels(data))
    image = Image.open(io.BytesIO(stripped))
    assert {name for name, _ in image.applist} <= ALLOWED
    assert not image.getexif()
    assert "comment" not in image.info
    assert b"A. Person" not in stripped
    assert image.info.get("icc_profile") == Image.open(io.BytesIO(data)).info.get("icc_profile")
    assert stripped.endswith(b"\xff\xd9")
    assert len(stripped) <= len(data) + 2
    assert jpeg.strip(stripped) == stripped
    # The strict decoder has nothing to complain about either.
    colorspace = {"grey": "GRAY", "CMYK": "CMYK"}.get(kind, "RGB")
    simplejpeg.decode_jpeg(stripped, colorspace)


@pytest.mark.parametrize("kind", ["RGB", "grey", "restart markers", "EXIF", "fill bytes", "ICC"])
def test_strip_copies_entropy_coded_data(kind):
    stripped = jpeg.strip(FILES[kind])
    assert entropy_coded(stripped) == entropy_coded(FILES[kind])


def test_strip_of_a_clean_file_is_that_file():
    assert jpeg.strip(FILES["RGB"]) == FILES["RGB"]
    assert jpeg.strip(FILES["RGB"] + b"trailing bytes") == FILES["RGB"]


def test_thumbnails_are_gone():
    stripped = jpeg.strip(FILES["JFIF thumbnail"])
    assert b"a_thumbnail!" not in stripped
    assert b"JFXX" not in stripped
    assert Image.open(io.BytesIO(stripped)).info["jfif_version"] == (1, 2)


def test_colour_interpretation_survives():
    """Without its Adobe marker this file would be read as YCbCr."""
    data = bytearray(FILES["stored as RGB"])
    for seg in list(jpeg.segments(bytes(data))):
        # libjpeg takes components called R, G and B for what they are: number them.
        first, step = {jpeg.SOS: (1, 2), 0xC0: (6, 3)}.get(seg.marker, (0, 0))
        for number in range(3 if step else 0):
            data[seg.body + first + step * number] = number + 1
    data = bytes(data)
    without = b"".join(data[s.start : s.end] for s in jpeg.segments(data) if s.marker != 0xEE)
    assert np.abs(pixels(without).astype(int) - pixels(data)).mean() > 10
    np.testing.assert_array_equal(pixels(jpeg.strip(data)), pixels(data))


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, order):
    data = encode(picture(), exif=exif(orientation, order))
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
    assert jpeg.header(data).orientation == orientation


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientation_out_of_range_counts_as_upright(value):
    assert jpeg.header(encode(picture(), exif=exif(value))).orientation == 1


def test_orientation_from_xmp_where_exif_has_none():
    assert jpeg.header(FILES["XMP"]).orientation == 6
    assert jpeg.header(encode(picture(), xmp=XMP, exif=exif(3))).orientation == 3


def test_header():
    head = jpeg.header(FILES["progressive"])
    assert (head.width, head.height, head.components, head.precision) == (75, 50, 3, 8)
    assert head.progressive
    assert not jpeg.header(FILES["grey"]).progressive
    assert jpeg.header(FILES["CMYK"]).components == 4


def test_icc_profile():
    assert jpeg.icc_profile(FILES["ICC"]) == SRGB
    assert jpeg.icc_profile(FILES["ICC in parts"]) == SRGB * 150
    assert jpeg.icc_profile(FILES["RGB"]) is None


def test_an_icc_profile_with_a_missing_part_is_dropped():
    data = FILES["ICC in parts"]
    parts = [s for s in jpeg.segments(data) if s.marker == jpeg.APP2]
    assert len(parts) > 1
    torn = data[: parts[0].start] + data[parts[0].end :]
    assert jpeg.icc_profile(torn) is None
    assert b"ICC_PROFILE" not in jpeg.strip(torn)


def test_ends():
    assert jpeg.ends(FILES["RGB"])
    assert jpeg.ends(FILES["restart markers"])
    assert not jpeg.ends(FILES["no end marker"])
    assert not jpeg.ends(FILES["fake end in EXIF"][:-2])


def test_counts_scans():
    assert jpeg.count_scans(FILES["RGB"]) == 1
    assert jpeg.count_scans(FILES["restart markers"]) == 1
    assert jpeg.count_scans(FILES["progressive"]) == 10  # libjpeg's script for YCbCr


def test_a_pile_of_scans_is_refused():
    data = FILES["progressive"]
    last = [s for s in jpeg.segments(data) if s.marker == jpeg.SOS][-1]
    pile = data[:-2] + data[last.start : last.end] * jpeg.MAX_SCANS + data[-2:]
    with pytest.raises(jpeg.MalformedJpeg, match="scans"):
        jpeg.strip(pile)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "undecodable"),
        (b"GIF89a", "undecodable"),
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff\xd9", "undecodable"),
        (FILE[:3], "truncated"),
        (FILE[:100], "truncated"),
        (FILE[: FILE.index(b"\xff\xc0") + 6], "truncated"),
        (insert(FILE, b"\xff\xe1\x00\x01"), "undecodable"),
        (insert(FILE, b"\xff\xd8"), "undecodable"),
        (insert(FILE, FILE[FILE.index(b"\xff\xc0") :][:19]), "undecodable"),
        (
            FILE.replace(b"\xff\xc0\x00\x11\x08\x00\x32", b"\xff\xc0\x00\x11\x08\x00\x00"),
            "undecodable",
        ),
        (FILE.replace(b"\xff\xc0\x00\x11", b"\xff\xc0\x00\x09"), "undecodable"),
    ],
)
def test_malformed_headers(data, reason):
    with pytest.raises(jpeg.MalformedJpeg) as error:
        jpeg.header(data)
    assert error.value.reason == reason
    assert error.value.detail


def test_unknown_markers_are_refused():
    with pytest.raises(jpeg.MalformedJpeg, match="0x5e"):
        jpeg.strip(insert(FILE, segment(0x5E, b"")))


MUTABLE = [FILES["all at once"], FILES["restart markers"], FILES["ICC"], FILES["CMYK"]]


@settings(max_examples=400, deadline=1000)
@given(st.data())
def test_mutated_files_are_refused_or_stay_what_they_are(data):
    """Never another exception, never a loop; and what is stripped decodes as it did before."""
    mutated = bytearray(data.draw(st.sampled_from(MUTABLE)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        length = data.draw(st.integers(0, 3))
        mutated[at : at + length] = data.draw(st.binary(max_size=4))
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(2, len(mutated))) :]
    check_any(bytes(mutated))


@settings(max_examples=200, deadline=1000)
@given(st.binary(max_size=300))
def test_any_bytes_after_the_start_marker(data):
    check_any(b"\xff\xd8" + data)


def check_any(data: bytes) -> None:
    for read in (jpeg.header, jpeg.icc_profile, jpeg.ends, jpeg.count_scans, jpeg.bare):
        try:
            read(data)
        except jpeg.MalformedJpeg as error:
            assert error.reason in ("truncated", "undecodable")
    try:
        head, stripped = jpeg.header(data), jpeg.strip(data)
    except jpeg.MalformedJpeg:
        return
    assert jpeg.APP1 not in {s.marker for s in jpeg.segments(stripped)}
    assert jpeg.strip(stripped) == stripped
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return
    # Both must see the same frame: images.py trusts this walk in what it lets simplejpeg decode.
    assert (head.width, head.height) == (width, height)
    if width * height > 10**6 or head.sof in jpeg.LOSSLESS:
        return
    colorspace = "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB"
    try:
        before = simplejpeg.decode_jpeg(data, colorspace)
    except ValueError:
        return
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(stripped, colorspace), before)


@pytest.mark.parametrize(
    "filling",
    [b"\xff", b"\xff\x01", b"\xff\xd0", b"\xff\xe1\x00\x02", b"\x00\xff\x00", b"\xff\xda\x00\x02"],
    ids=lambda filling: filling.hex(),
)
def test_hostile_fillings_cost_no_time(filling):
    data = insert(FILE, filling * (4_000_000 // len(filling)))
    start = time.process_time()
    for read in (jpeg.header, jpeg.strip, jpeg.bare, jpeg.ends, jpeg.count_scans):
        try:
            read(data)
        except jpeg.MalformedJpeg as error:
            assert error.reason == "undecodable"
    # Linear work takes a tenth of a second; anything worse, minutes.
    assert time.process_time() - start < 20


def test_strips_every_plain_jpeg_of_the_odd_images():
    checked = 0
    for _, data in real.odd_images():
        if data[:3] != b"\xff\xd8\xff":
            continue
        try:
            stripped = jpeg.strip(data)
            before = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            continue
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(stripped, "RGB"), before)
        assert not Image.open(io.BytesIO(stripped)).getexif()
        checked += 1
    assert checked >= 40
