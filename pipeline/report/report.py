"""A report of a data folder, from its tables to `report/index.html`."""

import math
from dataclasses import dataclass

from pipeline import catalog, runs, storage
from pipeline.report import fates
from pipeline.report.chosen import Chosen, choose
from pipeline.report.histograms import MISSING, Column, histograms
from pipeline.report.page import page
from pipeline.report.rows import rows
from pipeline.report.sources import sources
from pipeline.report.style import agreement, style

FOLDER, FILE = "report", "index.html"


@dataclass(frozen=True)
class Asked:
    """What a report is to show; "" leaves a run to `choose`."""

    captions: str = ""
    compare: str = ""
    mix: str = ""
    keep: str = ""
    samples: int = 500


@dataclass(frozen=True)
class Made:
    """The report that was written."""

    url: str
    size: int  # bytes
    samples: int  # in the data folder
    shown: int


def make(out: str, asked: Asked) -> Made:
    """Writes the report of a data folder. Raises UserError, also where there is nothing to show."""
    chosen = choose(out, asked.captions, asked.compare, asked.mix, asked.keep)
    contents = gather(out, chosen, asked.samples)
    data = page(contents)
    url = storage.join(out, FOLDER, FILE)
    storage.write_bytes(url, data)
    return Made(url, len(data), contents["funnel"]["samples"], len(contents["rows"]))


def gather(out: str, chosen: Chosen, samples: int) -> dict:
    """Everything that the page shows, as JSON values."""
    with catalog.connect(out) as connection:
        fates.settle(connection, chosen)
        funnel = fates.funnel(connection, out, chosen)
        fates.draw(connection, samples, chosen)
        columns: list[Column] = []
        left_out: list[str] = []
        for source in sources(connection, chosen):
            own, undrawn = histograms(connection, source)
            columns += own
            left_out += [f"{source.title}: {name}" for name in undrawn]
        both = [run for run in (chosen.captions, chosen.compare) if run]
        contents = {
            "name": out.rstrip("/").rsplit("/", 1)[-1],
            "runs": _runs(out, chosen),
            "funnel": funnel,
            "columns": [column.shown() for column in columns],
            "left_out": left_out,
            "missing": MISSING,
            "rows": rows(connection, out, chosen, columns),
            "style": [style(connection, run) for run in both],
            "agreement": agreement(connection, *both) if len(both) == 2 else [],
        }
    return _finite(contents)


def _runs(out: str, chosen: Chosen) -> dict:
    """The names, and what wrote the captions of each run."""
    said = {"captions": chosen.captions, "compare": chosen.compare}
    said |= {"mix": chosen.mix, "keep": chosen.keep, "captioners": {}}
    for name in filter(None, (chosen.captions, chosen.compare)):
        config = (runs.load(out, "captions", name) or {}).get("config", {})
        said["captioners"][name] = str(config.get("captioner", ""))
    return said


def _finite(value: object) -> object:
    """Without NaN and infinities, which JSON lacks, and of floats no more digits than are read."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
