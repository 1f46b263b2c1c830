"""The stage of a derived annotator: rows of other columns in, a row of its own for each out."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from pipeline.annotate.annotator import KIND, DerivedAnnotator, row_of, schema_of
from pipeline.derived import Source
from pipeline.reading import BadShard
from pipeline.schemas import OK, table_of

_ROWS_AT_ONCE = 1000  # also an embedding is some hundred Python numbers then


class DerivedStage:
    """A `pipeline.derived.RowStage` over the annotator's sources, in the order it names them."""

    def __init__(self, annotator: DerivedAnnotator) -> None:
        self.annotator = annotator
        self.schema = schema_of(annotator)

    @property
    def sources(self) -> list[Source]:
        """What is read."""
        needed = ("uid", "key", "status", "reason")
        return [
            Source(KIND, run, (*needed[:2], *columns, *needed[2:]))
            for run, columns in self.annotator.sources.items()
        ]

    def setup(self) -> None:
        self.annotator.setup()

    @property
    def environment(self) -> dict:
        return dict(self.annotator.environment)

    def __call__(self, *sources: Iterable[Mapping]) -> tuple[pa.Table, dict]:
        """A row for every row of the sources; BadShard where they speak of different samples."""
        names = tuple(self.annotator.sources)
        together = (dict(zip(names, rows, strict=True)) for rows in zip(*sources, strict=True))
        return table_of(self._rows(together), self.schema), {}

    def _rows(self, together: Iterator[dict[str, Mapping]]) -> Iterator[dict]:
        while some := list(itertools.islice(together, _ROWS_AT_ONCE)):
            reasons = [_refused(row) for row in some]
            asked = [row for row, reason in zip(some, reasons, strict=True) if not reason]
            answers = iter(self.annotator.annotate(asked) if asked else ())
            for row, reason in zip(some, reasons, strict=True):
                first = next(iter(row.values()))
                values = {"reason": reason} if reason else next(answers)
                yield row_of(first["uid"], first["key"], values, self.schema.names)


def _refused(row: dict[str, Mapping]) -> str | None:
    """Why a sample is not asked about."""
    if len({source["uid"] for source in row.values()}) > 1:
        raise BadShard(f"the columns {', '.join(row)} are out of step: make them again")
    return next((s["reason"] for s in row.values() if s["status"] != OK), None)
