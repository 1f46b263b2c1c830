"""keep-import: a DataComp uid file becomes a keep-list over all known samples."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jobs.job import Execution, execute, say

if TYPE_CHECKING:
    from jobs.runner import Summary


@dataclass(frozen=True, kw_only=True)
class KeepImport(Execution):
    """Write OUT/keep/<run> from a list of uids: an .npy of dtype `u8,u8`."""

    file: str
    """The list: a path or any fsspec URL."""
    shards: str = ""
    """Only these shards; by default all that the data folder knows."""
    executor: Literal["ray", "inline"] = "inline"
    """`inline` works in this process; `ray` is for very many shards."""


def run(config: KeepImport) -> "Summary":
    """Marks what is not marked yet, and tells which uids no sample has. Raises UserError, Stopped."""
    from jobs.planned import chosen
    from pipeline import commit, keep_list, storage, tombstones
    from pipeline.runs import Run
    from pipeline.select import column_runs
    from pipeline.select.imported import ImportWork, unknown_uids
    from pipeline.select.uid_file import UidFile

    out, url = storage.absolute(config.out), storage.absolute(config.file)
    listed = len(UidFile(url))
    settings = {"uids": storage.public(url).rsplit("/", 1)[-1], "sha256": commit.sha256_file(url)}
    name = config.run or _name_of(settings["uids"])
    work_run = Run(out=out, kind=keep_list.KIND, name=name, config=settings)
    shards = chosen(out, config.shards, save=not config.dry_run)
    found = column_runs.known(out)
    titles = tuple(r.title for r in sorted(found, key=lambda r: r.stage != "image"))
    following = shards if config.executor == "inline" else ()
    work = ImportWork(url, work_run, titles, tombstones.load(out).uids, following)
    summary = execute(work, work_run, shards, config, threads=1, gpu=False)
    if config.dry_run:
        return summary
    unknown, some = unknown_uids(url, work_run, sorted(summary.records))
    say(f"  {listed} uids in the list, {summary.ok} samples kept")
    if unknown:
        more = ", ..." if unknown > len(some) else ""
        say(f"  {unknown} uids are of no known sample: {', '.join(some)}{more}")
    return summary


def _name_of(file: str) -> str:
    return re.sub(r"[^\w@+=,.-]", "-", file.removesuffix(".npy")).lstrip(".") or "imported"
