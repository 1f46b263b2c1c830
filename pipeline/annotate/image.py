"""The annotator `image`: what the header says, what the pixels look like, and hashes of both.

Its columns are a pure function of the image's bytes, less two hashes that the sample's `.json` tells.
Of an image that is refused there is only a row with the reason.
"""

import hashlib
import io
import re
from collections.abc import Sequence

import pyarrow as pa
from PIL import Image

from pipeline import hashes, luma
from pipeline.annotate import pixel_statistics
from pipeline.annotate.annotator import DECODED_SIDE, View
from pipeline.annotate.pixel_statistics import statistics_of
from pipeline.hashes import hashes_of
from pipeline.limits import FORMATS

VERSION = 1  # of the columns: to be raised with whatever changes a value

_HEX = re.compile("[0-9a-f]+")
_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
# Formats in which any mode may name one colour, or palette entries, as transparent.
_KEYED_FORMATS = frozenset({"PNG", "GIF"})


class ImageAnnotator:
    """Sizes, format, statistics of the pixels, perceptual hashes and checksums of every image."""

    name = "image"
    model = f"pixels-{VERSION}"
    needs_pixels = True
    batch_size = 1
    columns: Sequence[pa.Field] = (
        pa.field("format", pa.string()),  # as Pillow names it: JPEG, PNG, WEBP, ...
        pa.field("mode", pa.string()),  # Pillow's, as stored: RGB, L, P, CMYK, I;16, ...
        pa.field("width", pa.int32()),  # pixels, upright, as all that follows
        pa.field("height", pa.int32()),
        pa.field("aspect", pa.float32()),  # width / height
        pa.field("orientation", pa.int32()),  # EXIF, 1..8; 1 is upright, or not said
        pa.field("has_alpha", pa.bool_()),  # an alpha channel or a transparent colour, used or not
        # See pixel_statistics.Statistics for units and sources.
        pa.field("entropy", pa.float32()),  # bits, 0..8
        pa.field("contrast", pa.float32()),  # 0..0.5
        pa.field("sharpness", pa.float32()),  # the measure of blur: low is blurred
        pa.field("colourfulness", pa.float32()),  # 0 is grey
        pa.field("border_share", pa.float32()),  # 0..1
        pa.field("flat_share", pa.float32()),  # 0..1
        # See pipeline.hashes. Where pdq_quality is below hashes.RELIABLE_QUALITY, a picture is too
        # plain for its hashes to tell it from others.
        pa.field("phash", pa.string()),  # 64 bits in hex
        pa.field("pdq", pa.string()),  # 256 bits in hex
        pa.field("pdq_quality", pa.int32()),  # 0..100
        # Of the image's bytes as they stand in the shard.
        pa.field("sha256", pa.string()),
        pa.field("md5", pa.string()),
        # Of the bytes as they were fetched, where the sample's `.json` says so: block-lists hold
        # these, and a crawl that resizes or strips metadata changes the bytes.
        pa.field("fetched_sha256", pa.string()),
        pa.field("fetched_md5", pa.string()),
        pa.field("num_bytes", pa.int64()),
    )

    def __init__(self) -> None:
        self.config: dict = {
            "version": VERSION,
            "hashes": hashes.VERSION,
            "decoded_side": DECODED_SIDE,
            "fine_side": luma.FINE_SIDE,
            "fine_pixels": luma.FINE_PIXELS,
            "block": pixel_statistics.BLOCK,
            "flat_range": pixel_statistics.FLAT_RANGE,
            "border_range": pixel_statistics.BORDER_RANGE,
            "colour_samples": pixel_statistics.COLOUR_SAMPLES,
        }

    def setup(self) -> None:
        """Nothing to load."""

    @property
    def environment(self) -> dict:
        """Nothing that matters beside the packages' versions."""
        return {}

    def prepare(self, view: View) -> dict:
        """All columns of one sample."""
        info, data, pixels = view.info, view.sample.image, view.pixels
        fine = luma.fine_luma(pixels)
        coarse = luma.coarse_luma(fine)
        perceptual = hashes_of(coarse)
        return {
            "format": info.format,
            "mode": info.mode,
            "width": info.width,
            "height": info.height,
            "aspect": info.width / info.height,
            "orientation": info.orientation,
            "has_alpha": _has_alpha(info.format, info.mode, data),
            **statistics_of(pixels, fine, coarse)._asdict(),
            "phash": f"{perceptual.phash:016x}",
            "pdq": perceptual.pdq.hex(),
            "pdq_quality": perceptual.pdq_quality,
            "sha256": hashlib.sha256(data).hexdigest(),
            "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "fetched_sha256": _hash(view.sample.meta.get("sha256"), 64),
            "fetched_md5": _hash(view.sample.meta.get("md5"), 32),
            "num_bytes": len(data),
        }

    def annotate(self, prepared: Sequence[dict]) -> Sequence[dict]:
        """What `prepare` made."""
        return prepared


def _hash(value: object, digits: int) -> str | None:
    """What a stranger's `.json` calls a hash, if it is one."""
    text = value.lower() if isinstance(value, str) and len(value) == digits else ""
    return text if _HEX.fullmatch(text) else None


def _has_alpha(kind: str, mode: str, data: bytes) -> bool:
    if mode in _ALPHA_MODES:
        return True
    if kind not in _KEYED_FORMATS:
        return False
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads no pixels
        return image.has_transparency_data
