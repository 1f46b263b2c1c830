"""Reference captions: what people said of the images that a captioner describes."""

from collections.abc import Mapping

import duckdb

from pipeline import storage
from pipeline.caption_table import CaptionTable
from pipeline.errors import UserError

_FIELDS = {
    "uid": ("uid",),
    "shard || '/' || key": ("shard", "key"),
    "sha256": ("sha256",),
    "key": ("key",),
}
"""What a caption table may name an image by, and what that is made of."""


class References:
    """The captions of a table, image by image."""

    def __init__(self, captions: Mapping[str, list[str]], fields: tuple[str, ...]) -> None:
        self.fields = fields  # an image is named by these, with / between them
        self._captions = captions
        self._met: set[str] = set()

    def of(self, image: Mapping[str, str]) -> list[str]:
        """The captions of an image, given its uid, shard, key and sha256; [] where there are none."""
        name = "/".join(image.get(field, "") for field in self.fields)
        found = self._captions.get(name, [])
        if found:
            self._met.add(name)
        return found

    def strangers(self) -> int:
        """Images of the table that nobody has asked for so far."""
        return len(self._captions) - len(self._met)

    def __len__(self) -> int:
        return len(self._captions)


def read_references(spec: str) -> References:
    """Reads a parquet or JSON-lines file of captions; see `CaptionTable`. Raises UserError."""
    with duckdb.connect() as connection:
        try:
            named_by = CaptionTable(spec).create_view(connection, "")
        except UserError as error:
            raise UserError(
                error.message.replace("CAPTIONS=", "REFERENCES="), error.hint
            ) from error
        captions = dict(connection.sql("SELECT k, captions FROM said").fetchall())
    if not captions:
        raise UserError(f"REFERENCES={storage.public(spec)} holds no captions", "give another file")
    return References(captions, _FIELDS[named_by[0]])
