"""crawl-retry: fetches again what a crawl failed to fetch for reasons that may pass, into new shards."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.crawl import Fetching, alone, crawl, settled, work_of
from jobs.job import say
from jobs.planned import register_written

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.runs import Run


@dataclass(frozen=True, kw_only=True)
class CrawlRetry(Fetching):
    """Fetch again into new shards of the same crawl; each URL's last attempt is the one that counts.

    Columns, sizes and rules are those of the crawl. A round that was interrupted is finished first.
    """


def run(config: CrawlRetry) -> "Summary | None":
    """One round over all that failed and may succeed; None where nothing did. Raises UserError, Stopped."""
    from pipeline import storage

    run = _run_of(config, storage.absolute(config.out))
    if config.dry_run:
        return _retry(config, run)
    with alone(run):
        return _retry(config, run)


def _retry(config: CrawlRetry, run: "Run") -> "Summary | None":
    from jobs.runner import find_done
    from pipeline.crawl import plan, retry
    from pipeline.errors import UserError

    planned = plan.load(run)
    if planned is None:
        raise UserError(f"OUT={run.out}: its crawl is not even planned", "make crawl first")
    work = work_of(settled(config), run, planned)
    done = find_done(work, work.planned())
    if not config.dry_run:
        register_written(run, done)  # which a killed command could not
    missing = [shard for shard in work.planned() if shard.name not in done.records]
    if missing:
        say(f"{len(missing)} shards are not written yet; they come first")
        return crawl(config, run, planned, missing)
    if config.dry_run:
        count = sum(1 for _ in retry.failed(run, planned))
        say(f"{count} URLs of {len(planned.parts)} shards failed for reasons that may pass")
        return None
    parts = plan.extend(run, retry.tables(run, planned))
    if not parts:
        say(f"nothing left to retry: no URL of {run.folder} failed for a reason that may pass")
        return None
    grown = plan.load(run)
    return crawl(config, run, grown, grown.shards(run, parts))


def _run_of(config: CrawlRetry, out: str) -> "Run":
    """The run of the crawl, with the settings that it was begun with."""
    from pipeline import runs
    from pipeline.crawl.work import KIND
    from pipeline.errors import UserError
    from pipeline.runs import Run

    saved = runs.load(out, KIND, config.run)
    if not saved or "policy" not in saved["config"]:
        folder = Run(out=out, kind=KIND, name=config.run, config={}).folder
        raise UserError(
            f"OUT={out}: no crawl wrote {folder}",
            "make crawl URLS=... first, with this OUT and RUN",
        )
    return Run(out=out, kind=KIND, name=config.run, config=saved["config"])
