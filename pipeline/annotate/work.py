"""Annotators over shards: one read and one decode of each image give every annotator its sidecar."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline import images
from pipeline.annotate.annotator import DECODED_SIDE, Annotator, View, row_of, schema_of
from pipeline.commit import Record
from pipeline.images import BadImage
from pipeline.manifest import Shard
from pipeline.prefetch import prefetch
from pipeline.reading import ReadReport, read_samples
from pipeline.runs import Run
from pipeline.samples import Sample
from pipeline.schemas import OK
from pipeline.stage import SidecarWork, inputs_of

GONE = frozenset({"killed_worker", "taken_down"})
"""Reasons of samples that nobody is asked about, their texts included."""

_AHEAD = 64  # samples that are decoded before they are needed
_MOST_WAITING = 8  # batches' worth of samples without pixels, after which a batch is not waited for


class AnnotateWork:
    """Several annotators over one pass. A shard's sidecars are made where they are not there yet.

    What an annotator writes does not depend on which others are asked for: every image is decoded
    alike, and its batches are runs of one shard's samples that have what it needs.
    """

    def __init__(self, annotators: Sequence[tuple[Annotator, Run]], threads: int) -> None:
        self.annotators = [annotator for annotator, _ in annotators]
        self.sidecars = [SidecarWork(_Described(annotator), run) for annotator, run in annotators]
        self.threads = threads

    def setup(self) -> None:
        for annotator in self.annotators:
            annotator.setup()

    def done(self, shard: Shard) -> Record | None:
        """What the records of a shard's sidecars say together, where none is missing."""
        records = [sidecars.done(shard) for sidecars in self.sidecars]
        return None if None in records else _together(records)

    def perform(self, shard: Shard, lost: frozenset[int]) -> Record:
        """Computes and commits the sidecars of one shard that are not there yet."""
        records = [sidecars.done(shard) for sidecars in self.sidecars]
        missing = [i for i, record in enumerate(records) if record is None]
        report = ReadReport()
        tables = self._tables(read_samples(shard, report, lost), missing)
        inputs = inputs_of(shard, report)
        for i, table in zip(missing, tables, strict=True):
            records[i] = self.sidecars[i].commit_table(shard, table, inputs, report.samples)
        return _together(records)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some samples of a shard and keeps nothing: does the process survive?"""
        samples = (s for s in read_samples(shard, lost=lost) if s.index in indices)
        self._tables(samples, range(len(self.annotators)))

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples."""
        return dict(counts["reason"])

    def _tables(self, samples: Iterator[Sample], chosen: Sequence[int]) -> list[pa.Table]:
        """A table of each chosen annotator, in one pass over the samples."""
        annotators = [self.annotators[i] for i in chosen]
        columns = [_Columns(annotator) for annotator in annotators]
        pixels = any(annotator.needs_pixels for annotator in annotators)

        def prepare(sample: Sample) -> tuple[Sample, list[Any]]:
            view = view_of(sample, pixels)
            return replace(sample, image=b"", meta={}), [_prepared(a, view) for a in annotators]

        seen = prefetch(
            samples, prepare, threads=self.threads, depth=_AHEAD, size=lambda s: len(s.image)
        )
        for sample, prepared in seen:
            for own, what in zip(columns, prepared, strict=True):
                own.add(sample, what)
        return [own.table() for own in columns]


def view_of(sample: Sample, pixels: bool = True) -> View:
    """What annotators see of a sample; its image is only decoded where pixels are wanted."""
    if sample.reason or not pixels:
        return View(sample, reason=sample.reason)
    try:
        info = images.probe(sample.image)
        return View(sample, info, images.decode(sample.image, DECODED_SIDE))
    except BadImage as e:
        return View(sample, reason=e.reason)


class _Refused(str):
    """Why an annotator is not asked about a sample."""


def _prepared(annotator: Annotator, view: View) -> Any:
    refused = view.reason and (annotator.needs_pixels or view.reason in GONE)
    return _Refused(view.reason) if refused else annotator.prepare(view)


class _Columns:
    """The table of one annotator, as its samples pass."""

    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator
        self._schema = schema_of(annotator)
        self._waiting: list[tuple[Sample, Any]] = []
        self._asked = 0
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[dict] = []

    def add(self, sample: Sample, prepared: Any) -> None:
        self._waiting.append((sample, prepared))
        self._asked += not isinstance(prepared, _Refused)
        size = self._annotator.batch_size
        if self._asked == size or len(self._waiting) == _MOST_WAITING * size:
            self._annotate()

    def table(self) -> pa.Table:
        """Everything added; few large batches: Arrow holds some 50 KB per column of each."""
        self._annotate()
        self._pack()
        return pa.Table.from_batches(self._batches, schema=self._schema)

    def _annotate(self) -> None:
        asked = [p for _, p in self._waiting if not isinstance(p, _Refused)]
        answers = iter(self._annotator.annotate(asked) if asked else ())
        for sample, prepared in self._waiting:
            refused = isinstance(prepared, _Refused)
            values = {"reason": str(prepared)} if refused else next(answers)
            self._rows.append(row_of(sample.uid, sample.key, values, self._schema.names))
        self._waiting, self._asked = [], 0
        if len(self._rows) >= 1000:
            self._pack()

    def _pack(self) -> None:
        self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []


class _Described:
    """What a sidecar's record says of an annotator."""

    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator
        self.schema = schema_of(annotator)

    @property
    def environment(self) -> dict:
        return self._annotator.environment


def _together(records: Sequence[Record]) -> Record:
    """One record of a shard for the accounting: the counts of whichever stage has the fewest ok."""
    worst = min(records, key=lambda record: record.counts["status"].get(OK, 0))
    environment = {k: v for record in records for k, v in record.environment.items()}
    return replace(worst, environment=environment)
