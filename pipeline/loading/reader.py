"""From places to pixels and captions: reads samples of a mix, decodes and cuts them, and says what failed."""

# B samples, H W pixels of a batch

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.images import BadImage
from pipeline.loading.captions import BadCaption, Captions
from pipeline.loading.crops import Crop, cropped
from pipeline.loading.mixed import Mixed
from pipeline.loading.order import block_of
from pipeline.loading.ranges import Ranges, Wanted
from pipeline.places import Place
from pipeline.tombstones import TAKEN_DOWN


@dataclass(frozen=True)
class Prepared:
    """Samples as they were read, B of each.

    images: uint8 (B, H, W, 3), None where none were asked for. reasons: "" where all went well;
    the image of another is undefined. sources: of the captions, dropped or not.
    """

    images: np.ndarray | None
    texts: list[str]
    sources: list[str]
    dropped: list[bool]
    reasons: list[str]


class Reader:
    """Reads any samples of a mix, as pure functions of their places; threads may share it.

    block: samples that are fetched at once from an object store. budget: bytes of them that are
    kept.
    """

    def __init__(
        self, mixed: Mixed, captions: Captions, crop: Crop, flip: bool, block: int, budget: int
    ) -> None:
        self.mixed, self.captions = mixed, captions
        self._crop, self._flip, self._block, self._budget = crop, flip, block, budget
        self._ranges = Ranges(budget)

    def prepare(self, places: Sequence[Place], size: tuple[int, int] | None) -> Prepared:
        """Images of width and height `size` with their captions; without images where it is None."""
        text_member = "json" if self.captions.from_json else "txt"
        members = (text_member,) if size is None else ("jpg", text_member)
        found = [self.mixed.locate(place.index) for place in places]
        data = self._ranges.read([self._wanted(*where, members) for where in found])
        images = np.empty((len(places), size[1], size[0], 3), np.uint8) if size else None
        texts, sources, dropped, reasons = [], [], [], []
        for i, (place, (shard, row), held) in enumerate(zip(places, found, data, strict=True)):
            rows = self.mixed.rows(shard)
            first = rows.span(row, *members)[0]
            text, source, drop, reason = "", "", False, ""
            try:
                if row in rows.buried:
                    raise BadCaption(TAKEN_DOWN)
                begin, end = rows.span(row, text_member)
                caption = self.captions.of(
                    place,
                    held[begin - first : end - first],
                    self.mixed.mix_of(shard),
                    rows.source(row),
                )
                text, source, drop = caption.text, caption.source, caption.dropped
                if images is not None:
                    begin, end = rows.span(row, "jpg")
                    jpg = held[begin - first : end - first]
                    images[i] = cropped(jpg, self._crop, *size, place, self._flip)
            except (BadCaption, BadImage) as e:
                reason = e.reason
            texts.append(text)
            sources.append(source)
            dropped.append(drop)
            reasons.append(reason)
        return Prepared(images, texts, sources, dropped, reasons)

    def close(self) -> None:
        self._ranges.close()

    def _wanted(self, shard: int, row: int, members: Sequence[str]) -> Wanted:
        rows, of = self.mixed.rows(shard), self.mixed.shards[shard]
        first, behind = block_of(row, of.samples, self._block)
        block = (rows.span(first, *members)[0], rows.span(behind - 1, *members)[1])
        start, stop = rows.span(row, *members)
        # Offsets are read, not believed: a block that does not hold its sample is the sample.
        holds = block[0] <= start and stop <= block[1]
        return Wanted(of.url, start, stop, block if holds else (start, stop))

    def to_json(self) -> dict:
        """What `from_json` makes an equal one of, in another process."""
        return {
            "mixed": self.mixed.to_json(),
            "captions": self.captions.asked,
            "drop": self.captions.drop,
            "crop": self._crop,
            "flip": self._flip,
            "block": self._block,
            "budget": self._budget,
        }

    @classmethod
    def from_json(cls, value: Mapping) -> "Reader":
        captions = Captions(value["captions"], value["drop"])
        settings = {name: value[name] for name in ("crop", "flip", "block", "budget")}
        return cls(Mixed.from_json(value["mixed"]), captions, **settings)
