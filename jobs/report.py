"""report: one page that shows a data folder, to be opened from disk."""

import time
from dataclasses import dataclass

from jobs.job import require, say


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write OUT/report/index.html: funnel, columns, captions side by side, what was dropped, style."""

    out: str
    """The data folder."""
    run: str = ""
    """The caption run; needed where several would fit."""
    compare: str = ""
    """Another caption run, to be shown side by side with RUN."""
    mix: str = ""
    """The mix; by default the one that was made of RUN."""
    keep: str = ""
    """The keep-list; by default the one that the mix was made with."""
    samples: int = 500
    """How many samples the page shows, drawn by hash: the same in every report."""

    def __post_init__(self) -> None:
        require(self, samples=(1, 5000))


def run(config: Report) -> None:
    """Writes the report and says where it is. Raises UserError."""
    from pipeline import storage
    from pipeline.report.report import Asked, make

    start = time.perf_counter()
    out = storage.absolute(config.out)
    asked = Asked(config.run, config.compare, config.mix, config.keep, config.samples)
    made = make(out, asked)
    say(
        f"report    {made.shown} of {made.samples} samples, {made.size / 1e6:.1f} MB,"
        f" in {time.perf_counter() - start:.1f} s\nopen      {storage.public(made.url)}"
    )
