"""What the experiment reads back of its data folders: the truth of raw shards, captions, and their manner."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.experiment_folders import CAPTIONS, raw

if TYPE_CHECKING:
    from pipeline.scenes.world import Scene


def truths(folder: str, most: int = 0) -> "Iterator[tuple[dict, Scene]]":
    """Rows of raw shards with the scene of each, in order; `most` of them, 0 for all."""
    from pipeline.scenes.shards import scene_of

    for row in _rows(raw(folder), most):
        yield row, scene_of(row)


def captions(folder: str, most: int = 0) -> Iterator[dict]:
    """Rows of the captioner's run, in the order of the raw shards."""
    from pipeline import storage

    yield from _rows(storage.join(folder, "captions", CAPTIONS), most)


def templates(folder: str, most: int) -> list[int]:
    """The template of each of the first descriptive captions that is word for word one of them.

    Drawing among these is to write as the captioner writes; all of LONG where it keeps to none.
    """
    from pipeline.scenes.captions import LONG, long_caption
    from pipeline.scenes.claims import parse

    found = []
    for row in captions(folder, most):
        text = row["caption_long"] or ""
        scene = parse(text).scene_or_none()
        if scene:
            same = (t for t in range(len(LONG)) if long_caption(scene, t) == text)
            found += [template for template in [next(same, -1)] if template >= 0]
    return found or list(range(len(LONG)))


def _rows(folder: str, most: int) -> Iterator[dict]:
    import io

    import pyarrow.parquet as pq

    from pipeline import storage

    left = most or 1 << 62
    for url in sorted(storage.list_files(folder, ".parquet")):
        rows = pq.read_table(io.BytesIO(storage.read_bytes(url))).slice(0, left).to_pylist()
        left -= len(rows)
        yield from rows
        if left <= 0:
            return
