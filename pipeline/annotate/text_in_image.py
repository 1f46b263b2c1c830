"""text_in_image: how much of a picture is covered by text, in the spirit of T-MARS.

T-MARS (Maini et al., "T-MARS: Improving Visual Representations by Circumventing Text Feature
Learning", 2023) masks text and scores again; a share above some per cent says where that matters.
The detector is a cheap one: it finds lettering that was set or drawn, larger than about 8 pixels on
a picture of at most 512 x 384, horizontal or nearly so; of handwriting and of lettering on things
it finds some.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.annotate import text_detector
from pipeline.annotate.annotator import View
from pipeline.annotate.text_detector import TextDetector, TextFound

VERSION = 1
"""Raised whenever the same pixels may get another answer without other weights."""


class TextInImageAnnotator:
    """An annotator: text_share, of the picture's area; text_blocks, what hangs together of it."""

    name = "text_in_image"
    model = f"strokes-v{VERSION}"
    columns = (pa.field("text_share", pa.float32()), pa.field("text_blocks", pa.int32()))
    needs_pixels = True
    batch_size = 1

    def __init__(self) -> None:
        weights = hashlib.sha256(text_detector.WEIGHTS.read_bytes()).hexdigest()
        self.config = {"version": VERSION, "weights": weights}
        self._detector: TextDetector | None = None

    @property
    def environment(self) -> dict:
        return {"numpy": np.__version__}

    def setup(self) -> None:
        self._detector = TextDetector.load()

    def prepare(self, view: View) -> TextFound:
        """All the work: it is done in threads."""
        return self._detector.find(view.pixels)

    def annotate(self, prepared: Sequence[TextFound]) -> Sequence[dict]:
        return [{"text_share": found.share, "text_blocks": found.blocks} for found in prepared]
