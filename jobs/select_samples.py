"""select: chooses samples by SQL over their columns into a keep-list, and prints the funnel."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jobs.job import Execution, execute, require, say

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.manifest import Shard
    from pipeline.select.column_runs import ColumnRun
    from pipeline.select.expression import Expression
    from pipeline.select.rules import Rules
    from pipeline.select.target import Target


@dataclass(frozen=True, kw_only=True)
class SelectSamples(Execution):
    """Write a keep-list: OUT/keep/<run>/<shard>.parquet, for every sample whether it stays, or why not."""

    where: str = ""
    """SQL over the columns, for example "similarity > 0.28 and width >= 256 and language = 'en'";
    the first condition that fails is a sample's reason. Two runs of one stage: "clip@ViT-B-32".similarity."""
    preset: str = ""
    """Published conditions, before those of WHERE: datacomp-basic, clip-score-30, image-based, dalle1,
    laion-aesthetic, laion-aesthetic-5, laion-aesthetic-6, safe."""
    before: str = ""
    """More conditions, read on their own, between those of PRESET and of WHERE; what curate asks."""
    top: str = ""
    """Of what is left, the best: '30 % by similarity', or a count: '100000 by aesthetic'."""
    target: str = ""
    """Keep only clusters of images near a target set: a data folder, or an .npy of embeddings."""
    clusters: int = 1000
    """How many clusters the samples make, where there is a TARGET."""
    runs: str = ""
    """Which runs of columns are meant where there are several: image@1,clip@ViT-B-32,captions/first."""
    limit: int = 0
    """Only the first so many samples, under a run name of their own."""
    executor: Literal["ray", "inline"] = "inline"
    """`inline` works in this process; `ray` is for very many shards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, clusters=(1, 1_000_000), limit=(0, None))


@dataclass(frozen=True)
class _Asked:
    """What the flags say, before any column is looked for."""

    conditions: "list[tuple[str, Expression]]"
    top: str
    clusters: bool


def run(config: SelectSamples) -> "Summary":
    """Judges what is not judged yet, and prints the funnel. Raises UserError, Stopped."""
    from pipeline import keep_list, storage, tombstones
    from pipeline.runs import Run
    from pipeline.select import column_runs, funnel, target, top
    from pipeline.select.rules import resolve
    from pipeline.select.survey import Survey
    from pipeline.select.work import Pool, SelectWork

    out = storage.absolute(config.out)
    asked = _asked(config)
    found = column_runs.known(out, config.runs)
    _require_stages(config, found, out)
    names = column_runs.Names(found, out)
    limit = top.parse(asked.top) if asked.top else None
    rules = resolve(names, found, asked.conditions, limit, asked.clusters)
    shards = _planned(out, [r for r in found if r.title in rules.runs], config.limit)
    aim = target.load(config.target, rules.embedding) if rules.embedding else None
    settings = _settings(config, rules, found, aim)
    work_run = Run(out=out, kind=keep_list.KIND, name=run_name(config, settings), config=settings)
    taken_down = tombstones.load(out).uids
    survey = Survey(out, shards, rules, taken_down, aim, config.clusters)
    following = shards if config.executor == "inline" else ()
    work = SelectWork(rules, work_run, Pool(survey.identity()), taken_down, following)
    if config.dry_run:
        summary = execute(work, work_run, shards, config, threads=1, gpu=False)
        pool = survey.pool()
        say(funnel.funnel_of(survey.counts(pool), rules, pool.threshold).table())
        return summary
    before = funnel.said_before(work_run, work.pool.identity)
    if rules.needs_pool and not (before and all(map(work.done, shards))):
        before = None
        work = SelectWork(rules, work_run, survey.pool(), taken_down, following)
    summary = execute(work, work_run, shards, config, threads=1, gpu=False)
    ended = before["top_ends_at"] if before else work.pool.threshold
    made = funnel.funnel_of(summary.totals, rules, ended)
    if not summary.failed:
        made.write(work_run, work.pool.identity)
    say(made.table())
    return summary


def _asked(config: SelectSamples) -> _Asked:
    """The conditions in order, the preset's first; UserError where nothing is asked."""
    from pipeline.errors import UserError
    from pipeline.select import presets
    from pipeline.select.expression import conditions

    preset = presets.find(config.preset) if config.preset else presets.Preset("", ())
    texts = [("PRESET", preset.where), ("BEFORE", config.before), ("WHERE", config.where)]
    found = [(flag, e) for flag, text in texts if text for e in conditions(text, flag)]
    if preset.clusters and not config.target:
        raise UserError(
            f"PRESET={config.preset} compares with a target set",
            "give TARGET=<data folder or .npy>",
        )
    top = config.top or preset.top
    if not (found or top or config.target):
        raise UserError(
            "nothing is asked of the samples",
            'give WHERE="similarity > 0.28", a PRESET, a TOP or a TARGET',
        )
    return _Asked(found, top, bool(config.target))


def _require_stages(config: SelectSamples, found: "list[ColumnRun]", out: str) -> None:
    """UserError that names the stages that a preset needs and nobody has run."""
    from pipeline.select import column_runs, presets

    needed = presets.find(config.preset).stages if config.preset else ()
    lacking = [stage for stage in needed if stage not in {run.stage for run in found}]
    if lacking:
        what = f"PRESET={config.preset} reads columns of {', '.join(lacking)}, which {out} has not"
        raise column_runs.missing(lacking, what, out)


def _planned(out: str, read: "list[ColumnRun]", limit: int) -> "list[Shard]":
    """The shards that every run was to cover, by name; says how many are left out."""
    from jobs.planned import limited
    from pipeline import manifest
    from pipeline.errors import UserError

    known = manifest.load(out)
    covered = frozenset.intersection(*(run.shards for run in read))
    shards = [shard for shard in known if shard.name in covered]
    if not shards:
        titles = ", ".join(run.title for run in read)
        raise UserError(f"OUT={out}: no shard has columns of all of {titles}", "annotate it first")
    if len(shards) < len(known):
        say(f"note: {len(known) - len(shards)} of {len(known)} shards are not annotated: left out")
    return limited(shards, limit)


def _settings(
    config: SelectSamples, rules: "Rules", found: "list[ColumnRun]", aim: "Target | None"
) -> dict:
    """What decides the keep-list, for its run.json."""
    hashes = {run.title: run.config_hash for run in found if run.title in rules.runs}
    return {
        "preset": config.preset,
        "conditions": [condition.text for condition in rules.conditions],
        "top": rules.top.text if rules.top else "",
        "target": {"identity": aim.identity, "clusters": config.clusters} if aim else None,
        "columns": hashes,
        "limit": config.limit,
    }


def run_name(config: SelectSamples, settings: dict) -> str:
    """RUN as given, or the preset, and where there is more, eight digits of what was asked."""
    from pipeline.runs import canonical

    name = config.run
    if not name:
        asked = {k: v for k, v in settings.items() if k not in ("columns", "limit")}
        own = (config.before, config.where, config.top, config.target, config.runs)
        more = any(own) or not config.preset
        digest = hashlib.sha256(canonical([asked, config.runs]).encode()).hexdigest()[:8]
        name = "-".join([config.preset or "where", *([digest] if more else [])])
    return f"{name}-limit{config.limit}" if config.limit else name
