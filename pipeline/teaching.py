"""Teaching shards: the samples that were drawn for a teacher, copied byte by byte into shards of their own."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pyarrow as pa

from pipeline import commit, images
from pipeline.images import BadImage
from pipeline.manifest import Shard
from pipeline.reading import MAX_JSON_BYTES, ReadReport, read_samples
from pipeline.runs import Run, canonical
from pipeline.samples import Sample
from pipeline.schemas import OK, TEACHING
from pipeline.stratify import HELD_OUT, TRAIN, Drawn
from pipeline.writing import ShardWriter

KIND = "shards"
SHARD_SIZE = 1000
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # others as Pillow names the format


class TeachingWork:
    """A writer: some of the samples that were drawn become one raw shard of img2dataset's shape.

    Those to learn from stand in the first shards, those held out in the last ones. The `.json` is
    the source's own with source_uid, source_shard, source_key, split and stratum. As in
    `scenes.shards`, the work items are the shards that are to be.
    """

    def __init__(
        self,
        drawn: Sequence[Drawn],
        sources: Sequence[Shard],
        run: Run,
        shard_size: int = SHARD_SIZE,
    ) -> None:
        self.run = run
        self.sources = {shard.name: shard for shard in sources}
        self._parts = [
            part[start : start + shard_size]
            for split in (TRAIN, HELD_OUT)
            if (part := sorted(d for d in drawn if d.split == split))
            for start in range(0, len(part), shard_size)
        ]

    def planned(self) -> list[Shard]:
        """The shards to write."""
        return [
            Shard(name=f"{i:05d}", url=self.run.file(f"{i:05d}.tar"), size=0, samples=len(part))
            for i, part in enumerate(self._parts)
        ]

    def urls(self, split: str) -> list[str]:
        """Where the shards of one split are going to stand."""
        shards = zip(self.planned(), self._parts, strict=True)
        return [shard.url for shard, part in shards if part[0].split == split]

    def setup(self) -> None:
        pass

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a shard that is whole, and of the samples that are to be in it."""
        record = commit.read_stats_record(self.run, shard.name)
        if record is None or record.config_hash != self.run.config_hash:
            return None
        inputs = dict(record.inputs)
        same = inputs.pop("drawn", "") == _digest(self._part(shard))
        still = inputs.keys() == {d.shard for d in self._part(shard)} and all(
            self.sources[name].is_still(identity) for name, identity in inputs.items()
        )
        return record if same and still else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Copies and commits one shard; raises BadShard where a source cannot be read."""
        inputs: dict = {"drawn": _digest(self._part(shard))}

        def rows(writer: ShardWriter) -> Iterator[dict]:
            for number, (sample, drawn) in enumerate(self._samples(shard, inputs)):
                reason = "killed_worker" if number in lost else sample.reason
                yield _write(f"{shard.name}{number:04d}", sample, drawn, reason, writer)

        def record(table: pa.Table) -> commit.Record:
            return commit.Record(
                shard=shard.name,
                config_hash=self.run.config_hash,
                inputs=inputs,
                environment={},
                counts={"samples": shard.samples, **commit.tally(table)},
            )

        return commit.write_shard(self.run, shard.name, TEACHING, rows, record)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some samples of a shard and keeps nothing: does the process survive?"""
        for number, (sample, _) in enumerate(self._samples(shard, {})):
            if number in indices and number not in lost and not sample.reason:
                images.probe(sample.image)

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples."""
        return dict(counts["reason"])

    def _part(self, shard: Shard) -> list[Drawn]:
        return self._parts[int(shard.name)]

    def _samples(self, shard: Shard, inputs: dict) -> Iterator[tuple[Sample, Drawn]]:
        """The samples of a shard that is to be; notes the identity of what they come from."""
        part = self._part(shard)
        for name in dict.fromkeys(d.shard for d in part):
            source, report = self.sources[name], ReadReport()
            wanted = {d.index: d for d in part if d.shard == name}
            for sample in read_samples(source, report):
                if sample.index in wanted:
                    yield sample, wanted[sample.index]
            inputs[name] = source.identity | {"sha256": report.sha256}


def suffix_of(format_: str) -> str:
    """What a file of a format (as Pillow names it) ends in."""
    return _SUFFIXES.get(format_, format_.lower())


def _digest(part: Sequence[Drawn]) -> str:
    lines = canonical([asdict(drawn) for drawn in part])
    return hashlib.sha256(lines.encode()).hexdigest()


def _write(key: str, sample: Sample, drawn: Drawn, reason: str, writer: ShardWriter) -> dict:
    """Appends a sample to the shard and returns its row; one that cannot be read only has a row."""
    row = dict.fromkeys(TEACHING.names) | {
        "key": key,
        "source_uid": sample.uid,
        "source_shard": drawn.shard,
        "source_key": sample.key,
        "split": drawn.split,
        "stratum": drawn.stratum,
        "caption": sample.text if sample.text_status == OK else None,
    }
    try:
        info = None if reason else images.probe(sample.image)
    except BadImage as e:
        info, reason = None, e.reason
    if info is None:
        return row | {"status": "failed", "reason": reason}
    row |= {"width": info.width, "height": info.height}
    row["sha256"] = hashlib.sha256(sample.image).hexdigest()
    members = {suffix_of(info.format): sample.image}
    if row["caption"] is not None:
        members["txt"] = row["caption"].encode()
    # Its `sha256`, where it has one, is of what was fetched, and stays.
    told = {k: v for k, v in row.items() if k not in ("sha256", "status", "reason")}
    writer.add_members(key, members | {"json": _json(sample.meta, told)})
    return row | {"status": OK}


def _json(meta: dict, told: dict) -> bytes:
    """The source's own `.json` with what we tell; only the latter where both are too much to read."""
    for values in (meta | told, told):
        # A lone surrogate can be escaped in JSON, but no UTF-8 can hold it.
        text = json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        if len(text) <= MAX_JSON_BYTES:
            break
    return text
