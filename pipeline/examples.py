"""Samples of a mix to look at: the image that is trained on, and every caption it was given."""

from dataclasses import dataclass

from pipeline import catalog, storage
from pipeline.schemas import OK

_TITLES = {"caption": "original", "short": "short", "long": "descriptive"}
_SQL = """
SELECT m.shard, m.key, m.jpg_offset, m.jpg_size,
       c.caption AS caption_text, c.caption_status,
       c.caption_short AS short_text, c.short_status,
       c.caption_long AS long_text, c.long_status
FROM mix m JOIN captions c USING (uid)
WHERE m.run = $mix AND c.run = $captions AND m.status = 'ok'
ORDER BY uid LIMIT $count"""


@dataclass(frozen=True)
class Example:
    """One sample: captions has a text for `original`, `short` and `descriptive`, as far as asked for.

    Where a caption is not ok, its text is the status in parentheses.
    """

    key: str
    jpg: bytes
    captions: dict[str, str]


def examples(out: str, captions: str, mix: str, count: int) -> list[Example]:
    """The same few samples of a mix every time: uids are hashes, so these are drawn at random."""
    out = storage.absolute(out)
    with catalog.connect(out) as connection:
        asked = {"captions": captions, "mix": mix, "count": count}
        found = connection.sql(_SQL, params=asked)
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    return [_example(storage.join(out, "mix", mix), row) for row in rows]


def _example(folder: str, row: dict) -> Example:
    with storage.open_read(storage.join(folder, f"{row['shard']}.tar")) as tar:
        tar.seek(row["jpg_offset"])
        jpg = tar.read(row["jpg_size"])
    texts = {}
    for column, title in _TITLES.items():
        status = row[f"{column}_status"]
        if status != "absent":
            texts[title] = _plain(row[f"{column}_text"]) if status == OK else f"({status})"
    return Example(row["key"], jpg, texts)


def _plain(text: str) -> str:
    """On one line, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else "." for c in " ".join(text.split()))
