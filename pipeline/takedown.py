"""The take-down: samples removed from everything that a data folder holds, and kept out of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pipeline import catalog, runs, storage, tombstones
from pipeline.crawl import plan
from pipeline.holdings import SIDECARS, Holdings
from pipeline.removal import Removal, Report
from pipeline.takedown_search import Found, search
from pipeline.tombstones import Tombstones


def find(out: str, asked: Tombstones) -> tuple[Report, Found]:
    """Everything that is asked for, and all other samples with the same bytes or URL.

    asked: by uid, by the image's bytes, by URL. What is buried already counts as found.
    """
    holdings, known = Holdings(out), tombstones.load(out)
    found = search(holdings, known | asked)
    report = Report(unread=found.unread, buried=found.marks)
    report.missing = Tombstones(*_less(found.lacks(asked), known))
    own = (holdings.raw, holdings.apart, holdings.mixed)
    report.elsewhere = {
        storage.public(place): len(keys)
        for place, keys in found.places.items()
        if not any(place in tars for tars in own)
    }
    report.others = holdings.others()
    return report, found


def take_down(out: str, report: Report, found: Found, reason: str) -> None:
    """Buries what was found, then removes it from every file that is ours; killed, it goes on.

    The tombstones are written first: from then on nothing yields these samples, whatever becomes of
    this process. Every file is replaced whole. UserError where a job is writing to the folder.
    """
    with _alone(out):
        tombstones.add(out, report.buried, reason)
        Removal(Holdings(out), report, found).run()
    catalog.refresh(out)


@contextmanager
def _alone(out: str) -> Iterator[None]:
    """Holds the folder and all of its runs."""
    kinds = ("shards", "mix", "urls", "cache", *SIDECARS)
    patterns = [f"{kind}/*/{runs.FILE}" for kind in kinds]
    plans = [f"urls/{plan.FILE}", f"urls/*/{plan.FILE}"]  # a crawl holds its plan first
    holdings = Holdings(out)
    files = [*holdings.paths(f"shards/{runs.FILE}", *patterns, *plans), *holdings.unfinished()]
    folders = {storage.join(out, file.rpartition("/")[0]) for file in files}
    with ExitStack() as locks:
        for folder in (out, *sorted(folders)):
            locks.enter_context(storage.exclusive(folder, hint="wait for it, then try again"))
        for folder in Holdings(out).folders():  # they may hold what is to go
            storage.remove_temporaries(folder)
        yield


def _less(some: Tombstones, known: Tombstones) -> tuple[frozenset[str], ...]:
    return some.uids - known.uids, some.sha256s - known.sha256s, some.urls - known.urls
