"""The segments of a JPEG file: what its header says, and the same picture without its metadata.

Everything here works on bytes and decodes nothing. A JPEG is a row of segments (marker, length,
payload); entropy-coded pixels follow each SOS header up to the next real marker (ITU-T T.81, B.1).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

SOI, EOI, SOS, DQT, DHT, DAC, DRI, DNL, COM, TEM = (
    0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xCC, 0xDD, 0xDC, 0xFE, 0x01,
)  # fmt: skip
APP0, APP1, APP2, APP14, APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
SOF = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, DAC}
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})

# Each scan of a progressive file is a pass over the whole picture, and can cost a hostile writer
# a dozen bytes. Encoders use about ten; jpegtran's largest scripts stay well below this.
MAX_SCANS = 100

# Cameras write some dozens of segments; a file of nothing but empty ones would take seconds.
MAX_SEGMENTS = 5000

_MARKER = re.compile(rb"\xff[\x01-\xfe]", re.DOTALL)
# Inside a scan 0xFF00 is a stuffed byte and 0xFFD0..0xFFD7 are restarts; anything else ends it.
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_EXIF, _XMP, _ICC = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00", b"ICC_PROFILE\x00"
_JFIF, _ADOBE = b"JFIF\x00", b"Adobe"


class MalformedJpeg(ValueError):
    """The bytes break the structure of a JPEG; `reason` is 'truncated' or 'undecodable'."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        return MalformedJpeg, (self.reason, self.detail)


class Segment(NamedTuple):
    """One marker: `data[start:end]` is all of it, `data[body:tail]` its payload.

    `tail` differs from `end` for SOS only, where `data[tail:end]` are the entropy-coded bytes.
    """

    marker: int
    start: int
    body: int
    tail: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What the segments before the first scan say; sizes are in pixels and as stored."""

    width: int
    height: int
    components: int
    precision: int  # bits per sample
    sof: int  # the SOF marker, which names the coding process
    orientation: int  # EXIF (else XMP) orientation, 1..8; 1 where absent or unreadable

    @property
    def progressive(self) -> bool:
        """Whether the picture comes in several passes over all of it."""
        return self.sof in PROGRESSIVE


def segments(data: bytes) -> Iterator[Segment]:
    """Walk the segments from SOI to EOI; bytes after EOI are not looked at.

    Garbage and fill bytes between segments are skipped, as every decoder does. A missing EOI just
    ends the walk. Raises MalformedJpeg for a length that lies or runs past the end.
    """
    if data[:2] != b"\xff\xd8":
        raise MalformedJpeg("undecodable", "no JPEG start marker")
    yield Segment(SOI, 0, 2, 2, 2)
    at = 2
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(data, at)
        if match is None:
            return
        start, body = match.span()
        marker = data[start + 1]
        if marker == EOI:
            yield Segment(EOI, start, body, body, body)
            return
        if marker == SOI:
            raise MalformedJpeg("undecodable", f"second start marker at byte {start}")
        if marker == TEM or 0xD0 <= marker <= 0xD7:  # stand-alone, and without a meaning here
            at = body
            continue
        tail = body + int.from_bytes(data[body : body + 2], "big")
        if max(tail, body + 2) > len(data):
            raise MalformedJpeg("truncated", f"segment 0x{marker:02x} runs past the end")
        if tail < body + 2:
            raise MalformedJpeg("undecodable", f"segment length below 2 at byte {start}")
        at = tail
        if marker == SOS:
            scan_end = _SCAN_END.search(data, tail)
            at = scan_end.start() if scan_end else len(data)
        yield Segment(marker, start, body + 2, tail, at)
    raise MalformedJpeg("undecodable", f"more than {MAX_SEGMENTS} segments")


def header(data: bytes) -> Header:
    """Read size, coding process and orientation; stops at the first scan.

    Raises MalformedJpeg where there is no frame header, or one that no decoder accepts.
    """
    frame: tuple[int, int, int, int, int] | None = None
    exif = xmp = 0
    for seg in segments(data):
        if seg.marker in SOF:
            if frame is not None:
                raise MalformedJpeg("undecodable", "two frame headers")
            frame = _frame(seg.marker, data[seg.body : seg.tail])
        elif seg.marker == APP1:
            if not exif and data.startswith(_EXIF, seg.body):
                exif = _exif_orientation(data[seg.body + len(_EXIF) : seg.tail])
            elif not xmp and data.startswith(_XMP, seg.body):
                found = _XMP_ORIENTATION.search(data, seg.body, seg.tail)
                xmp = int(found[1]) if found else 0
        elif seg.marker in (SOS, EOI):
            break
    else:
        raise MalformedJpeg("truncated", "ends before the first scan")
    if frame is None:
        raise MalformedJpeg("undecodable", "no frame header before the first scan")
    orientation = exif or xmp
    return Header(*frame, orientation if 1 <= orientation <= 8 else 1)


def _frame(marker: int, body: bytes) -> tuple[int, int, int, int, int]:
    """Width, height, components, precision and marker of a SOF payload."""
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise MalformedJpeg("undecodable", "frame header too short")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if not (width and height and body[5]):
        raise MalformedJpeg("undecodable", f"empty frame {width} x {height} x {body[5]}")
    return width, height, body[5], body[0], marker


def _exif_orientation(tiff: bytes) -> int:
    """Orientation of the first directory of an EXIF block, 0 where absent or unreadable."""
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return 0
    at = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[at : at + 2], order)
    # An entry has 12 bytes, so what the block can hold bounds the loop, whatever the count says.
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == 0x0112:
            size = {1: 1, 3: 2, 4: 4}.get(int.from_bytes(tiff[entry + 2 : entry + 4], order), 0)
            return int.from_bytes(tiff[entry + 8 : entry + 8 + size], order)
    return 0


def icc_profile(data: bytes) -> bytes | None:
    """The embedded colour profile, or None where there is none or a part of it is missing."""
    chunks: dict[int, bytes] = {}
    totals = set()
    for seg in segments(data):
        if seg.marker == SOS:
            break
        if _is_icc(data, seg):
            number, total = data[seg.body + 12], data[seg.body + 13]
            if number in chunks:
                return None
            chunks[number] = data[seg.body + 14 : seg.tail]
            totals.add(total)
    if len(totals) != 1 or sorted(chunks) != list(range(1, totals.pop() + 1)):
        return None
    return b"".join(chunks[number] for number in sorted(chunks))


def _is_icc(data: bytes, seg: Segment) -> bool:
    return seg.marker == APP2 and data.startswith(_ICC, seg.body) and seg.tail - seg.body >= 14


def strip(data: bytes) -> bytes:
    """The same picture without EXIF, XMP, IPTC, comments, thumbnails, MPF and trailing bytes.

    Tables, frame, scans and their entropy-coded bytes are copied as they are, so the decoded
    pixels are the same. Kept besides: the JFIF header (without its thumbnail), the Adobe marker
    and a complete ICC profile, since all three change how the pixels are read. A missing EOI is
    added. Raises MalformedJpeg.
    """
    keep_icc = icc_profile(data) is not None
    return b"".join(_kept(data, keep_icc))


def _kept(data: bytes, keep_icc: bool) -> Iterator[bytes]:
    """The parts of the stripped file, in order."""
    scans = frames = 0
    for seg in segments(data):
        if seg.marker == APP0:
            # A JFIF header says "YCbCr" and the pixel density; the thumbnail follows them.
            if data.startswith(_JFIF, seg.body) and seg.tail - seg.body >= 14:
                yield b"\xff\xe0\x00\x10" + data[seg.body : seg.body + 12] + b"\x00\x00"
        elif seg.marker == APP14:
            if data.startswith(_ADOBE, seg.body) and seg.tail - seg.body >= 12:
                yield b"\xff\xee\x00\x0e" + data[seg.body : seg.body + 12]
        elif seg.marker == APP2:
            if keep_icc and _is_icc(data, seg):
                yield data[seg.start : seg.end]
        elif APP0 <= seg.marker <= APP15 or seg.marker in (COM, DNL):
            continue
        elif seg.marker in (SOI, DQT, DHT, DAC, DRI, SOS) or seg.marker in SOF:
            frames += seg.marker in SOF
            scans += seg.marker == SOS
            if scans > MAX_SCANS:
                raise MalformedJpeg("undecodable", f"more than {MAX_SCANS} scans")
            yield data[seg.start : seg.end]
        elif seg.marker != EOI:
            raise MalformedJpeg("undecodable", f"unknown marker 0x{seg.marker:02x}")
    if not scans or frames != 1:
        raise MalformedJpeg("truncated" if not scans else "undecodable", "no picture inside")
    yield b"\xff\xd9"


def count_scans(data: bytes) -> int:
    """How many scans the file holds; raises MalformedJpeg."""
    return sum(seg.marker == SOS for seg in segments(data))


def ends(data: bytes) -> bool:
    """Whether the file reaches its EOI marker, so is not cut off; raises MalformedJpeg."""
    last = SOI
    for seg in segments(data):
        last = seg.marker
    return last == EOI


def bare(data: bytes) -> bytes:
    """A file with the same entropy-coded data and nothing else that a decoder could warn about.

    libjpeg reports only its first warning, so a harmless one hides a serious one behind it. In
    this copy the harmless causes are gone: it has no APPn, no bytes between segments, no zero bytes after a scan, sequential scans say so, and EOI is there. Its
    colours may be wrong: it is for proving that the data decode, not for looking at.
    """
    parts = []
    sof = 0
    for seg in segments(data):
        if seg.marker in SOF:
            sof = seg.marker
        if seg.marker == SOS:
            head = bytearray(data[seg.start : seg.tail])
            if sof not in PROGRESSIVE | LOSSLESS and len(head) >= 8:
                head[-3:] = b"\x00\x3f\x00"  # first and last coefficient, no approximation
            scan = data[seg.tail : seg.end]
            # A coder pads its last byte with ones, so a scan ends in zero only as 0xFF00.
            trimmed = scan.rstrip(b"\x00")
            if trimmed.endswith(b"\xff") and len(trimmed) < len(scan):
                trimmed += b"\x00"
            parts += [bytes(head), trimmed]
        elif seg.marker in (SOI, DQT, DHT, DAC, DRI) or seg.marker in SOF:
            parts.append(data[seg.start : seg.end])
    return b"".join(parts) + b"\xff\xd9"
