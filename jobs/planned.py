"""Which shards a verb works on: registered in the data folder, all or the first so many samples."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.manifest import Shard
    from pipeline.runs import Run


def registered(out: str, urls: list[str], *, save: bool) -> "list[Shard]":
    """The shards at these URLs under their names in the data folder; save=False only looks."""
    from pipeline import manifest, storage

    if not save:
        return manifest.register(out, urls, save=False)
    storage.require_writable(out)
    with storage.exclusive(out, wait=True):
        storage.remove_temporaries(out)
        return manifest.register(out, urls)


def chosen(out: str, spec: str, *, save: bool) -> "list[Shard]":
    """The shards that a spec names, or without one all that the data folder knows, by name."""
    from pipeline import manifest, specs
    from pipeline.errors import UserError

    urls = specs.expand(spec) if spec else [shard.url for shard in manifest.load(out)]
    if not urls:
        raise UserError(f"OUT={out} knows no shards", "name some: SHARDS='raw/{00000..00099}.tar'")
    return sorted(registered(out, urls, save=save), key=lambda shard: shard.name)


def limited(shards: "list[Shard]", limit: int) -> "list[Shard]":
    """The first shards that together hold `limit` samples, the last of them read in part."""
    from pipeline.errors import UserError
    from pipeline.reading import BadShard, count_samples

    if limit <= 0:
        return shards
    chosen = []
    for shard in shards:
        try:
            count = count_samples(shard, stop=limit)
        except BadShard as e:
            raise UserError(
                f"LIMIT={limit}: {e}", "leave that shard out, or run without LIMIT"
            ) from e
        chosen.append(replace(shard, limit=limit))
        limit -= count
        if limit <= 0:
            break
    return chosen


def learn(out: str, summary: "Summary") -> None:
    """Notes in the manifest what reading taught about whole shards."""
    from pipeline import manifest, storage

    learned = {
        name: {"sha256": shard["sha256"] or None, "samples": record.counts["samples"]}
        for name, record in summary.records.items()
        if (shard := record.inputs["shard"])["limit"] is None
    }
    with storage.exclusive(out, wait=True):
        manifest.learn(out, learned)


def register_written(run: "Run", summary: "Summary") -> None:
    """Names the shards that a writer made in the manifest, as every later step reads them."""
    from pipeline import catalog, manifest, storage
    from pipeline.schemas import OK

    held = {name: r.counts["status"].get(OK, 0) for name, r in sorted(summary.records.items())}
    held = {run.file(f"{name}.tar"): count for name, count in held.items() if count}
    if not held:
        return
    with storage.exclusive(run.out, wait=True):
        storage.remove_temporaries(run.out)
        shards = manifest.register(run.out, held)
        manifest.learn(run.out, {s.name: {"samples": held[s.url]} for s in shards})
    catalog.refresh(run.out)
