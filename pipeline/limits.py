"""What an image from a stranger may cost, and the closed list of reasons to refuse it."""

import ctypes
import functools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from PIL import Image, UnidentifiedImageError

from pipeline.jpeg import MalformedJpeg

P = ParamSpec("P")
R = TypeVar("R")

# Every reason for which an image is refused.
IMAGE_REASONS = (
    "empty",  # no bytes at all
    "too_many_bytes",  # more than MAX_BYTES
    "too_many_pixels",  # more than MAX_PIXELS, or a side above MAX_SIDE
    "not_an_image",  # the signature of none of FORMATS
    "truncated",  # the file ends before its pixels do
    "undecodable",  # the signature is known, but the rest is corrupt or of an unsupported kind
)
MAX_BYTES = 100 * 2**20
MAX_PIXELS = 89_478_485  # Pillow's own line between a large picture and a bomb
MAX_SIDE = 65_500  # the largest side that libjpeg writes

# Formats with a signature that Pillow decodes by itself. Left out are EPS and WMF (they run or
# call other programs), TGA (it has no signature, so that any bytes may pass as one), containers
# whose frames are other files, and what the web does not carry.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "PSD")

# Work whose estimated need is above this waits for other work like it, so that four threads stay
# below 2 GB on the worst files that pass the caps (one such file alone takes up to 1.4 GB).
_BIG_BYTES = 128 * 2**20
_BIG = threading.RLock()

_TRUNCATED = re.compile("truncat|not enough|premature end|unexpected end", re.IGNORECASE)

try:
    _malloc_trim = ctypes.CDLL(None).malloc_trim
except (AttributeError, OSError, TypeError):  # only glibc has it, and only glibc needs it
    _malloc_trim = None


class BadImage(Exception):
    """The bytes are no image we accept: `reason` is one of IMAGE_REASONS, `detail` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in IMAGE_REASONS, reason
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        return BadImage, (self.reason, self.detail)


def refusing(read: Callable[Concatenate[bytes, P], R]) -> Callable[Concatenate[bytes, P], R]:
    """Turn whatever a function that reads image bytes raises into BadImage.

    Its first argument are the bytes, whose number is checked. What is raised carries no traceback
    into the function, which would keep a whole picture alive.
    """

    @functools.wraps(read)
    def guarded(data: bytes, *args: P.args, **kwargs: P.kwargs) -> R:
        if not data:
            raise BadImage("empty")
        if len(data) > MAX_BYTES:
            raise BadImage("too_many_bytes", f"{len(data)} bytes")
        try:
            return read(data, *args, **kwargs)
        except (NameError, ImportError):
            raise  # a bug of ours, or a broken installation: no fault of the file
        except Exception as error:
            # Decoders meet hostile bytes with nearly every exception there is, and MemoryError.
            reason, detail = _verdict(error, data)
        raise BadImage(reason, detail[:200])

    return guarded


def _verdict(error: Exception, data: bytes) -> tuple[str, str]:
    if isinstance(error, BadImage | MalformedJpeg):
        return error.reason, error.detail
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels", str(error)
    if isinstance(error, UnidentifiedImageError):
        # Pillow says this also where a decoder of the right format gave up in the header.
        if any(Image.OPEN[kind][1](data[:16]) is True for kind in FORMATS):
            return "undecodable", "header cannot be read"
        return "not_an_image", "no known signature"
    reason = "truncated" if _TRUNCATED.search(str(error)) else "undecodable"
    return reason, f"{type(error).__name__}: {error}"


def check_size(width: int, height: int) -> None:
    """Raise BadImage for more pixels than may be decoded."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadImage("too_many_pixels", f"{width} x {height}")


@contextmanager
def room(num_bytes: float) -> Iterator[None]:
    """Hold this while using about so many bytes: big users take turns."""
    if num_bytes <= _BIG_BYTES:
        yield
        return
    with _BIG:
        # Threads leave what they freed with their own parts of the heap: before, with those that
        # hold a picture for a moment longer; after, our own.
        _give_back_memory()
        yield
        _give_back_memory()


def _give_back_memory() -> None:
    if _malloc_trim is not None:
        _malloc_trim(0)
