"""reshard: moves samples into shards of equal size, all or those that a keep-list keeps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.job import Execution, Stopped, execute, require, say
from jobs.planned import chosen, learn, limited, register_written

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.manifest import Shard
    from pipeline.runs import Run


@dataclass(frozen=True, kw_only=True)
class Reshard(Execution):
    """Write TO/shards/<shard>.tar, a data folder of its own, from the shards that OUT knows.

    All shards but the last hold SHARD_SIZE samples. Images and texts keep their bytes, samples their
    uid. Training shards (SHARDS='OUT/mix/<run>/*.tar') are moved as they are. What OUT knows of its
    samples, columns and captions, stays there; it is joined on the uid.
    """

    shards: str = ""
    """Some shards instead of all: a tar, a folder, a glob, a brace pattern, or @list.txt."""
    keep: str = ""
    """A keep-list of OUT: only the samples it keeps are moved."""
    to: str = ""
    """The new data folder; by default OUT/reshard/<run>."""
    shard_size: int = 10_000
    """Samples per shard."""
    seed: int = -1
    """Shuffle all samples: by the hash of seed and uid. Without it they keep their order."""
    limit: int = 0
    """Only the first so many samples, into a folder of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, shard_size=(1, 10_000), seed=(-1, None), limit=(0, None))


def run(config: Reshard) -> "list[Summary]":
    """Finds places, plans, and copies what is not copied yet. Raises UserError, Stopped."""
    from pipeline import commit, reshard_plan, resharding, runs, storage
    from pipeline import mix as mixing
    from pipeline.runs import Run

    out = storage.absolute(config.out)
    if config.keep:
        runs.require(out, "keep", config.keep)
    to = _destination(config, out)
    sources = limited(chosen(out, config.shards, save=not config.dry_run), config.limit)
    settings = {"keep": config.keep, "limit": config.limit, "from": storage.public(out)}
    cut = {"shard_size": config.shard_size, "seed": config.seed}
    run = Run(out=to, kind=resharding.KIND, name="", config=settings | cut)
    commit.refuse_foreign_shards(run, "reshard of these settings")
    if before := runs.load(to, run.kind, run.name):
        runs.refuse_other_config(run, before["config"])
    places = Run(out=to, kind=reshard_plan.PLACES_KIND, name="sources", config=settings)
    found = _find_places(config, places, sources, out)
    if config.dry_run:
        return [found]
    if found.failed:
        raise Stopped(
            f"{len(found.failed)} of {found.planned} shards cannot be read, see above; mend them "
            "or leave them out with SHARDS, and run the same command again"
        )
    learn(out, found)
    plans = storage.join(to, reshard_plan.PLANS)
    with storage.exclusive(plans):
        storage.remove_temporaries(plans)
        resharding.inherit_tombstones(out, to)
        seed = config.seed if config.seed >= 0 else None
        plan = reshard_plan.make_plan(places, sources, config.shard_size, seed)
        say(f"  {sum(plan.counts)} samples into {len(plan.counts)} shards")
        work = resharding.ReshardWork(plan, sources, run)
        summary = execute(work, run, work.planned(), config, threads=2, gpu=False)
        if plan.counts:
            mixing.write_sizes(run, summary.records.values())
        register_written(run, summary)
    return [found, summary]


def _destination(config: Reshard, out: str) -> str:
    """The folder that is written, as given or named after what is done."""
    from pipeline import storage
    from pipeline.errors import UserError

    if config.to and config.run:
        raise UserError(
            f"RUN={config.run} names a folder in OUT/reshard", "give RUN or TO, not both"
        )
    if config.to:
        to = storage.absolute(config.to)
        if to.rstrip("/") == out.rstrip("/"):
            raise UserError(f"TO={config.to} is OUT", "the new shards need a folder of their own")
        return to
    drawn = f"seed{config.seed}" if config.seed >= 0 else ""
    name = config.run or "-".join(part for part in (config.keep or "all", drawn) if part)
    limited_ = f"-limit{config.limit}" if config.limit else ""
    return storage.join(out, "reshard", name + limited_)


def _find_places(config: Reshard, places: "Run", sources: "list[Shard]", out: str) -> "Summary":
    """Where the samples of every source lie, and which of them go on."""
    from pipeline.keep_list import KeepList
    from pipeline.reshard_plan import PlacesStage
    from pipeline.stage import SidecarWork

    work = SidecarWork(PlacesStage(), places)
    work.keep = KeepList(out, config.keep) if config.keep else None
    return execute(work, places, sources, config, threads=1, gpu=False)
