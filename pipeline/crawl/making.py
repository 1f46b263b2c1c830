"""One fetched URL to its sample: hashes checked against the list and the buried, the image made."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline import images
from pipeline.crawl import layout
from pipeline.crawl.fetch import Fetched
from pipeline.crawl.layout import MATCH, MISMATCH, NEAR_DUPLICATE
from pipeline.crawl.presets import Columns
from pipeline.crawl.resize import Imaging, NotResized
from pipeline.images import BadImage
from pipeline.tombstones import Tombstones

PHASH_RADIUS = 6  # bits of 64 in which a perceptual hash may differ from the list's
_HASH_SIDE = 512  # a JPEG need not be decoded any larger for its hash


@dataclass(frozen=True, slots=True)
class Made:
    """What a URL's row says beyond its list; `data` goes into the shard or into the quarantine."""

    fields: Mapping[str, object]
    data: bytes = b""
    reason: str = ""
    message: str = ""
    quarantined: bool = False


@dataclass(frozen=True)
class Maker:
    """Makes samples, from any thread; `listed` is what the list says of the URL."""

    columns: Columns
    imaging: Imaging
    tombstones: Tombstones
    verify: bool = True

    def __call__(self, fetched: Fetched, listed: Mapping[str, object]) -> Made:
        fields = {"http_status": fetched.http_status or None, "attempts": fetched.attempts}
        if fetched.reason:
            message = fetched.message or fetched.reason
            return Made(fields, reason=fetched.reason, message=message)
        fields |= self._hashes(fetched.data)
        if fields["sha256"] in self.tombstones.sha256s:
            return taken_down(fields)
        fields["hash_check"] = self._checked(fetched.data, fields, listed)
        if fields["hash_check"] == MISMATCH:
            message = "hash mismatch"  # as img2dataset says it
            return Made(fields, fetched.data, "hash_mismatch", message, quarantined=True)
        try:
            made = self.imaging(fetched.data, self._boxes(listed))
        except NotResized as e:
            return Made(fields, reason=e.reason, message=e.message)
        fields |= {
            "width": made.width,
            "height": made.height,
            "original_width": made.original_width,
            "original_height": made.original_height,
            "exif": "{}",  # img2dataset tells all of it; it may tell where a person was
        }
        return Made(fields, made.data)

    def _hashes(self, data: bytes) -> dict[str, object]:
        kinds = {*layout.ALWAYS, *([self.columns.hash_type] if self.columns.hash else [])}
        return {
            kind: hashlib.new(kind, data, usedforsecurity=False).hexdigest()
            for kind in sorted(kinds)
        }

    def _checked(
        self, data: bytes, fields: Mapping[str, object], listed: Mapping[str, object]
    ) -> str | None:
        """None where the list promises nothing."""
        columns = self.columns
        promised = listed.get(columns.hash_type) if columns.hash else None
        alike = listed.get(columns.phash) if columns.phash else None
        if not self.verify or not (promised or alike):
            return None
        if promised and str(promised).strip().lower() == fields[columns.hash_type]:
            return MATCH
        return NEAR_DUPLICATE if alike and _looks_like(data, str(alike)) else MISMATCH

    def _boxes(self, listed: Mapping[str, object]) -> list[list[float]]:
        """What is to be blurred; NotResized where that cannot be told: a face may be in it."""
        found = listed.get(self.columns.boxes) if self.columns.boxes else None
        try:
            found = json.loads(found) if isinstance(found, str) and found.strip() else found
            boxes = [[float(v) for v in box] for box in found or []]
        except (ValueError, TypeError) as e:
            raise NotResized("bad_boxes", f"{self.columns.boxes} cannot be read: {e}") from e
        if not all(math.isfinite(side) for box in boxes for side in box):
            raise NotResized("bad_boxes", f"{self.columns.boxes} has a side that is no number")
        if any(len(box) != 4 for box in boxes):
            raise NotResized("bad_boxes", f"{self.columns.boxes} has a box without four sides")
        return boxes


def taken_down(fields: Mapping[str, object]) -> Made:
    return Made(fields, reason="taken_down", message="taken down")


def _looks_like(data: bytes, promised: str) -> bool:
    """Whether the image's perceptual hash is near that of the list, 16 digits in hex."""
    from pipeline.hashes import phash64

    try:
        found = phash64(images.decode(data, _HASH_SIDE))
        return (found ^ int(promised, 16)).bit_count() <= PHASH_RADIUS
    except (BadImage, ValueError):
        return False
