"""The captions of a run, row by row, with all that they are measured against."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captioner.metrics.clip_score import Scorer
from captioner.metrics.evaluation import ORIGINAL, Row
from captioner.metrics.references import References
from pipeline import commit, storage
from pipeline.errors import UserError
from pipeline.images import BadImage
from pipeline.manifest import Shard
from pipeline.prefetch import prefetch
from pipeline.reading import BadShard, read_samples
from pipeline.samples import Sample
from pipeline.scenes.shards import scene_of
from pipeline.scenes.world import Scene
from pipeline.schemas import OK

Item = TypeVar("Item")

_TRUTH = ("background", "things")
_UNWRITTEN = ("failed", "absent")


@dataclass(frozen=True)
class Corpus:
    """A caption run of a data folder, in the order of its shards."""

    out: str
    run: str
    styles: tuple[str, ...]
    shards: tuple[Shard, ...]
    references: References | None = None  # None: the original captions
    limit: int = 0  # only the first so many images; 0 for all

    def sidecar(self, shard: Shard) -> str:
        """Where the captions of a shard are."""
        return storage.join(self.out, "captions", self.run, f"{shard.name}.parquet")

    def rows(self) -> Iterator[Row]:
        """Every image, one at a time; raises UserError where a file cannot be read."""
        every = itertools.chain.from_iterable(map(self._rows, self.shards))
        return itertools.islice(every, self.limit or None)

    def rows_with_features(self, scorer: Scorer, *, batch: int, threads: int) -> Iterator[Row]:
        """The same, with the features of the images that can be read."""
        every = (self._encoded(shard, scorer, batch, threads) for shard in self.shards)
        return itertools.islice(itertools.chain.from_iterable(every), self.limit or None)

    def _encoded(self, shard: Shard, scorer: Scorer, batch: int, threads: int) -> Iterator[Row]:
        images = prefetch(
            read_samples(shard),
            lambda sample: (sample.uid, _prepared(scorer, sample)),
            threads=threads,
            depth=2 * batch,
            size=lambda sample: len(sample.image),
        )
        with _reading(shard), closing(images):  # it may hold more than was captioned of it
            for rows in batches(self._rows(shard), batch):
                yield from _with_features(scorer, shard, rows, images)

    def _rows(self, shard: Shard) -> Iterator[Row]:
        beside = _beside(shard)
        by_content = self.references is not None and "sha256" in self.references.fields
        is_hashed = any(own.get("sha256") for own in beside.values())
        hashed = _hashes(shard) if by_content and not is_hashed else None
        scores = ("status", "similarity", "similarity_min")
        columns = ["uid", "key", "caption", "caption_status"]
        for style in self.styles:
            columns += [f"caption_{style}", *(f"{style}_{score}" for score in scores)]
        try:
            for values in commit.sidecar_rows(self.sidecar(shard), columns):
                own = beside.get(values["key"], {})
                hashes = [own.get("sha256") or ""]
                if hashed is not None:
                    hashes = _next(shard, hashed, values["uid"])
                yield self._row(shard, values, own, hashes)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.sidecar(shard)}: {' '.join(str(error).split())}", "caption that shard again"
            ) from error

    def _row(self, shard: Shard, values: Mapping, beside: Mapping, hashes: Sequence[str]) -> Row:
        captions, statuses, similarities = {}, {}, {}
        for style in self.styles:
            text, status = values[f"caption_{style}"], values[f"{style}_status"]
            if status in _UNWRITTEN or text is None:
                continue
            captions[style], statuses[style] = text, status
            similarity = values[f"{style}_similarity"], values[f"{style}_similarity_min"]
            if None not in similarity:
                similarities[style] = similarity
        if values["caption_status"] == OK:
            captions[ORIGINAL] = values["caption"]
        if self.references is None:
            references = [captions[ORIGINAL]] if ORIGINAL in captions else []
        else:
            names = {"uid": values["uid"], "key": values["key"], "shard": shard.name}
            found = (self.references.of(names | {"sha256": sha256}) for sha256 in hashes)
            references = next(filter(None, found), [])
        return Row(
            uid=values["uid"],
            key=values["key"],
            captions=captions,
            statuses=statuses,
            similarities=similarities,
            references=references,
            scene=_scene(shard, beside) if all(name in beside for name in _TRUTH) else None,
        )


def _beside(shard: Shard) -> dict[str, dict]:
    """What the parquet beside a raw shard says of its samples, by key: content, and truth if any."""
    url = shard.url.removesuffix(".tar") + ".parquet"
    if url == shard.url + ".parquet" or not storage.exists(url):
        return {}
    try:
        data = commit.in_memory(url)
        there = set(pq.read_schema(data).names)
        columns = [name for name in ("key", "sha256", *_TRUTH) if name in there]
        data.seek(0)
        rows = pq.read_table(data, columns=columns).to_pylist() if "key" in there else []
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{url}: {' '.join(str(error).split())}", "make that file again") from error
    return {row["key"]: row for row in rows}


def _scene(shard: Shard, beside: Mapping) -> Scene:
    try:
        return scene_of(beside)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"shard {shard.name}: the parquet beside it tells no scene: {error}", "render it again"
        ) from error


def _hashes(shard: Shard) -> Iterator[tuple[str, list[str]]]:
    """uid and SHA-256 of every image, then that of what was fetched, where its .json tells it."""
    with _reading(shard):
        for sample in read_samples(shard):
            own = [hashlib.sha256(sample.image).hexdigest()] if sample.image else []
            source = sample.meta.get("sha256")
            yield sample.uid, [*own, source] if isinstance(source, str) and source else own


@contextmanager
def _reading(shard: Shard) -> Iterator[None]:
    """UserError where the images cannot be read."""
    try:
        yield
    except (BadShard, OSError) as error:
        why = storage.scrub(str(error), shard.url)
        raise UserError(f"SHARDS: {why}", "give shards that can be read") from error


def _prepared(scorer: Scorer, sample: Sample) -> np.ndarray | None:
    if sample.reason:
        return None
    try:
        return scorer.prepare(sample.image)
    except BadImage:
        return None


def _with_features(
    scorer: Scorer,
    shard: Shard,
    rows: Sequence[Row],
    images: Iterator[tuple[str, np.ndarray | None]],
) -> Iterator[Row]:
    """Rows with the features of their images; each must be of the same sample."""
    crops = [_next(shard, images, row.uid) for row in rows]
    seen = [crop for crop in crops if crop is not None]
    features = iter(scorer.encode_image(seen) if seen else [])
    for row, crop in zip(rows, crops, strict=True):
        yield row if crop is None else replace(row, feature=next(features))


def _next(shard: Shard, samples: Iterator[tuple[str, Item]], uid: str) -> Item:
    """What is told of the next sample, which must be this one."""
    found, item = next(samples, ("", None))
    if found != uid:
        raise UserError(
            f"shard {shard.name} holds other samples than were captioned",
            "give SHARDS=<where the captioned ones are>",
        )
    return item


def batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Runs of so many items, the last one shorter."""
    while some := list(itertools.islice(items, size)):
        yield some
