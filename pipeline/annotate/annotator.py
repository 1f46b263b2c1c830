"""An annotator: what it is asked of every sample, and what it answers in its own columns.

There are two kinds. An `Annotator` sees the sample itself, decoded once for all that are asked in
one command. A `DerivedAnnotator` sees only rows that other annotators wrote: heads on embeddings,
lists of hashes. Both know nothing of paths, Ray or retries, and are picklable before `setup`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.images import ImageInfo
from pipeline.runs import Run
from pipeline.samples import Sample
from pipeline.schemas import COLUMNS, OK

KIND = "columns"

DECODED_SIDE = 512
"""A JPEG is decoded at the smallest n/8 of its size that keeps its shorter side at this or above;
the same for every annotator, so that a column does not depend on which others were asked for."""


@dataclass(frozen=True, slots=True)
class View:
    """What annotators see of one sample. `pixels` and `info` are None exactly where `reason` says why."""

    sample: Sample
    info: ImageInfo | None = None  # of the whole image, upright
    pixels: np.ndarray | None = None  # uint8 (H, W, 3) upright RGB, perhaps reduced: DECODED_SIDE
    reason: str = ""  # of pipeline.images.IMAGE_REASONS or pipeline.reading.READING_REASONS


class Annotator(Protocol):
    """Columns of its own from samples. `columns/<name>@<model>` is where they go."""

    name: str  # of the stage: image, text, clip, ...
    model: str  # what computes it, with its version: fit for a folder's name
    columns: Sequence[pa.Field]  # its own, without uid, key, status and reason
    config: dict  # JSON values: everything that decides what the columns are
    needs_pixels: bool  # a sample without pixels then only has a row with the reason
    batch_size: int  # of `annotate`; 1 where it makes no difference

    def setup(self) -> None:
        """Loads what is needed once per worker; UserError where a model is missing."""

    @property
    def environment(self) -> dict:
        """Device, precision and the like, known after `setup`; {} where nothing matters."""

    def prepare(self, view: View) -> Any:
        """What is needed of one sample. Called in threads, while other samples are annotated.

        Must not keep the view's pixels or bytes.
        """

    def annotate(self, prepared: Sequence[Any]) -> Sequence[dict]:
        """A dict of its own columns for each; of up to `batch_size` samples of one shard, in order.

        An annotator that cannot answer for a sample gives {"reason": <its own closed list>}.
        """


class DerivedAnnotator(Protocol):
    """Columns from the columns of other runs: no image is read."""

    name: str
    model: str
    columns: Sequence[pa.Field]
    config: dict
    sources: Mapping[str, Sequence[str]]  # run of columns, e.g. "clip@ViT-B-32" -> its columns read

    def setup(self) -> None:
        """Loads what is needed once per worker; UserError where a model is missing."""

    @property
    def environment(self) -> dict:
        """As of an Annotator."""

    def annotate(self, rows: Sequence[Mapping[str, dict]]) -> Sequence[dict]:
        """A dict of its own columns, or {"reason": ...}, for each sample: {source: its row}.

        A sample of which any source has no `ok` row is not asked for; it gets that row's reason.
        """


def schema_of(annotator: "Annotator | DerivedAnnotator") -> pa.Schema:
    """The whole table: uid, key, its own columns, status, reason."""
    identity, verdict = [*COLUMNS][:2], [*COLUMNS][2:]
    return pa.schema([*identity, *annotator.columns, *verdict])


def row_of(uid: str, key: str, values: Mapping[str, Any], names: Sequence[str]) -> dict:
    """A sample's row: `values` are an annotator's columns, or {"reason": why there are none}."""
    reason = values.get("reason")
    verdict = {"status": "failed" if reason else OK, "reason": reason or None}
    return dict.fromkeys(names) | {"uid": uid, "key": key} | values | verdict


def run_of(annotator: "Annotator | DerivedAnnotator", out: str, limit: int = 0) -> Run:
    """Its run in a data folder; one of the first so many samples has a name of its own.

    Its columns are part of what decides it: files of other columns are not mistaken for its own.
    """
    name = f"{annotator.name}@{annotator.model}" + (f"-limit{limit}" if limit else "")
    columns = {field.name: str(field.type) for field in annotator.columns}
    config = annotator.config | {"limit": limit, "columns": columns}
    return Run(out=out, kind=KIND, name=name, config=config)
