"""dedup: finds exact, near and semantic duplicates, and what is in evaluation sets; columns say which."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from jobs.job import Execution, execute, require, say

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.dedup.evaluation import EvaluationSet
    from pipeline.dedup.search import Search
    from pipeline.dedup.semantic import ClusterWork
    from pipeline.dedup.settings import Settings
    from pipeline.dedup.sources import Sources
    from pipeline.runs import Run

_LARGEST = 5  # groups of each kind that are printed


@dataclass(frozen=True, kw_only=True)
class Dedup(Execution):
    """Find duplicates: OUT/columns/dedup@<run>/<shard>.parquet, a row for every sample.

    What is contaminated leaves first, then each kind finds the duplicates among what the kinds
    before it left. A group is a star: every duplicate is near the copy that stays.
    """

    kinds: str = "exact,perceptual"
    """Of exact (the same bytes), perceptual (alike to the eye), semantic (alike in meaning)."""
    radius: int = 4
    """Bits in which the 64-bit hashes of perceptual duplicates may differ."""
    min_quality: int = 50
    """Pictures of less pdq_quality are too plain to be compared by their hash; 0 compares all."""
    similarity_above: float = 0.97
    """Cosine of the embeddings of semantic duplicates: 1 - epsilon."""
    clusters: int = 0
    """Embeddings are compared within clusters; 0 makes them of some thousand each."""
    keep_rule: Literal["auto", "largest", "similarity", "first"] = "auto"
    """Which copy stays: the largest (pixels, then bytes), the one most similar to its text, or the
    first in the data folder; auto is similarity for semantic duplicates and largest for others."""
    image: str = ""
    """The run of columns with hashes (image@...); by default the only one."""
    clip: str = ""
    """The run of columns with embeddings (clip@...), where one is needed; by default the only one."""
    evaluation: str = ""
    """Evaluation sets to keep out, `;` between: folders of images, shards, data folders, hash lists."""
    memory_gb: float = 4.0
    """Memory of DuckDB; what is more goes to disk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, radius=(0, 16), min_quality=(0, 100), clusters=(0, 1_000_000))
        require(self, similarity_above=(0, 1), memory_gb=(0.25, None))


def run(config: Dedup) -> "Summary":
    """Marks duplicates, unless nothing changed since. Raises UserError, Stopped."""
    from pipeline import storage
    from pipeline.dedup.evaluation import find_sets
    from pipeline.dedup.work import DedupWork

    out = storage.absolute(config.out)
    settings = _settings(config)
    sources = _sources(config, settings, out)
    sets = find_sets(config.evaluation, sources.image, sources.clip)
    work_run = _run(config, settings, sources, sets, out)
    digest = ",".join(f"{found.name}:{found.digest}" for found in sets)
    with ExitStack() as ends:
        work = DedupWork(
            sources,
            digest,
            work_run,
            find=lambda: _search(config, settings, sources, sets, digest, work_run, ends),
        )
        # The search hands every shard its part, so that is done in this process; its clusters are
        # what is worth spreading.
        here = replace(config, executor="inline")
        summary = execute(work, work_run, sources.shards, here, threads=1, gpu=False)
        if work.verdicts is not None and not summary.failed.keys() - sources.bad.keys():
            work.verdicts.close(done=True)
    if not config.dry_run:
        _say_groups(out, work_run.name, settings.kinds, summary)
    return summary


def run_name(config: Dedup) -> str:
    """What stands in OUT/columns."""
    return f"dedup@{config.run or 'default'}"


def _settings(config: Dedup) -> "Settings":
    from pipeline.dedup.settings import Settings, parse_kinds

    return Settings(
        kinds=parse_kinds(config.kinds),
        radius=config.radius,
        min_quality=config.min_quality,
        similarity_above=config.similarity_above,
        clusters=config.clusters,
        keep_rule=config.keep_rule,
    )


def _sources(config: Dedup, settings: "Settings", out: str) -> "Sources":
    """The sidecars of the shards that stage `image` was to see."""
    from pipeline import manifest, runs
    from pipeline.annotate.annotator import KIND
    from pipeline.dedup.sources import Sources, find_run

    image = find_run(out, "image", config.image, "--image")
    needs_clip = settings.needs_similarity or config.clip
    clip = find_run(out, "clip", config.clip, "--clip") if needs_clip else ""
    names = set(runs.require(out, KIND, image)["shards"])
    urls = [shard.url for shard in manifest.load(out) if shard.name in names]
    shards = manifest.register(out, urls, save=False)
    return Sources(
        out, image, clip, settings.min_quality, sorted(shards, key=lambda shard: shard.name)
    )


def _run(
    config: Dedup, settings: "Settings", sources: "Sources", sets: "list[EvaluationSet]", out: str
) -> "Run":
    from pipeline import runs
    from pipeline.annotate.annotator import KIND
    from pipeline.runs import Run

    read = {
        run: runs.require(out, KIND, run)["config_hash"]
        for run in (sources.image, sources.clip)
        if run
    }
    evaluation = {"evaluation": [found.name for found in sets]} if sets else {}
    recorded = settings.config | {"version": 2, "columns": read} | evaluation
    return Run(out=out, kind=KIND, name=run_name(config), config=recorded)


def _search(
    config: Dedup,
    settings: "Settings",
    sources: "Sources",
    sets: "list[EvaluationSet]",
    digest: str,
    run: "Run",
    ends: ExitStack,
) -> "Search":
    """Everything that looks at all samples at once."""
    from pipeline import storage
    from pipeline.dedup.contamination import Contamination
    from pipeline.dedup.search import Search

    if storage.is_local(run.folder):
        folder = storage.join(run.folder, ".work")
    else:
        folder = ends.enter_context(TemporaryDirectory(prefix="dedup-"))
    search = Search(
        settings, sources, folder, evaluation=digest, memory_gb=config.memory_gb, say=say
    )
    ends.callback(search.close, done=False)
    contamination = None
    if sets:
        items = (item for found in sets for item in found.items(settings.min_quality))
        contamination = Contamination(items, settings.radius)
        known = ", ".join(f"{count} by {way}" for way, count in contamination.sizes.items())
        say(f"evaluation: {len(contamination.names)} items to keep out: {known}")
    search.load(contamination)
    search.find(lambda work: _cluster(config, work, local=storage.is_local(run.folder)))
    return search


def _cluster(config: Dedup, work: "ClusterWork", *, local: bool) -> None:
    """Compares within clusters: on Ray, where its workers can see the vectors."""
    from pipeline.errors import UserError

    alone = len(work.planned()) == 1 or not local
    how = replace(config, executor="inline") if alone else config
    summary = execute(work, work.run, work.planned(), how, threads=1, gpu=False)
    if summary.failed:
        name, outcome = next(iter(sorted(summary.failed.items())))
        raise UserError(
            f"{len(summary.failed)} of {summary.planned} clusters failed: {name}: {outcome.message}",
            "more --clusters are smaller ones; run the same command to go on",
        )


def _say_groups(out: str, name: str, kinds: tuple[str, ...], summary: "Summary") -> None:
    """Groups of each kind, and the largest of them."""
    from pipeline import catalog

    if not summary.records:
        return
    with catalog.connect(out) as connection:
        for kind in kinds:
            largest = connection.sql(
                f'WITH groups AS (SELECT {kind}_group AS uid, count(*) AS n FROM "{name}" '
                f"WHERE {kind}_group IS NOT NULL GROUP BY ALL) "
                "SELECT uid, n, count(*) OVER (), sum(n) OVER () FROM groups "
                f"ORDER BY n DESC, uid LIMIT {_LARGEST}"
            ).fetchall()
            if largest:
                told = ", ".join(f"{n} like {uid}" for uid, n, *_ in largest)
                _, _, count, members = largest[0]
                say(f"  {kind:10} {count} groups of {members} samples; the largest: {told}")
