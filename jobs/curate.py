"""curate: URL lists in, training shards out: crawl, annotate, dedup, select, recaption, mix, stats."""

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeVar

from jobs import annotate, crawl, dedup, recaption, select_samples
from jobs.annotate import Annotate
from jobs.crawl import Crawl
from jobs.dedup import Dedup
from jobs.job import say
from jobs.recaption import Recaption
from jobs.select_samples import SelectSamples

if TYPE_CHECKING:
    from jobs.runner import Summary

Config = TypeVar("Config")

NO_DUPLICATES = "duplicate_kind is null"


@dataclass(frozen=True, kw_only=True)
class Curate(Crawl):
    """From URL lists to blended training shards. A rerun goes on where an earlier one stopped.

    Each step is a verb of its own, with settings that are not here, too; `--preset` names the
    columns of the list.
    """

    stages: str = "image,text"
    """What is measured; see annotate."""
    clip: str = ""
    """The model of stage clip."""
    aesthetic_head: str = ""
    """The head of stage aesthetic."""
    nsfw_head: str = ""
    """Of stage safety."""
    watermark_head: str = ""
    """Of stage safety."""
    blocklists: str = ""
    """Files of hashes that must not be, of stage safety."""
    face_detector: str = ""
    """The detector of stage faces."""
    kinds: str = "exact,perceptual"
    """Duplicates to leave out: exact, perceptual, semantic; none where it is empty."""
    radius: int = 4
    """Bits in which the perceptual hashes of duplicates may differ."""
    select: str = ""
    """A preset of select, for example datacomp-basic."""
    where: str = ""
    """SQL over the columns, for example "similarity > 0.28 and width >= 256"."""
    top: str = ""
    """Of what is left, the best: '30 % by similarity'."""
    captioner: str = ""
    """As of recaption."""
    styles: str = ""
    """As of recaption."""
    blend: str = "95"
    """As of mix."""
    seed: int = 0
    """Another seed draws other captions."""
    max_side: int = 0
    """Shrink images of the mix whose longer side exceeds this many pixels; 0 keeps every size."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models compute."""


def run(config: Curate) -> "list[Summary]":
    """Runs the verbs one after another. Raises UserError, Stopped."""
    from pipeline import storage
    from pipeline.select import expression, presets

    if config.where:
        expression.conditions(config.where, "WHERE")  # before hours of fetching
    if config.select:
        presets.find(config.select)
    folder = crawl.folder_of(config)
    crawled = crawl.run(_as(Crawl, config))
    if config.dry_run:
        _say_plan(config)
        return [crawled]
    if not storage.list_files(folder, ".tar"):
        return [crawled]  # whose exit code tells that not one image came
    summaries = [crawled]
    _say_step("annotate")
    summaries += annotate.run(_as(Annotate, config, shards=folder))
    if config.kinds:
        _say_step("dedup")
        summaries.append(dedup.run(_as(Dedup, config, clip="")))  # its columns, not a model
    keep = _keep_name(config)
    if keep:
        _say_step("select")
        summaries.append(select_samples.run(_selecting(config)))
    _say_step("recaption")
    return summaries + recaption.run(_as(Recaption, config, shards=folder, keep=keep))


def _selecting(config: Curate) -> SelectSamples:
    name = _keep_name(config)
    return _as(SelectSamples, config, preset=config.select, before=_before(config), run=name)


def _before(config: Curate) -> str:
    """What is asked before WHERE, and whatever that says."""
    return NO_DUPLICATES if config.kinds else ""


def _keep_name(config: Curate) -> str:
    """The keep-list: eight digits of what is asked behind its preset; "" where nothing is."""
    from pipeline.runs import canonical

    asked = [config.select, _before(config), config.where, config.top]
    if not any(asked):
        return ""
    digest = hashlib.sha256(canonical(asked).encode()).hexdigest()[:8]
    return f"{config.select or 'curated'}-{digest}"


def _as(kind: type[Config], config: Curate, **own: object) -> Config:
    """The settings of one verb: those of the same name, and its own. LIMIT is the crawl's."""
    theirs = {f.name for f in fields(kind)} - {"preset", "run", "limit", "batch_size"}
    if kind is Crawl:
        theirs |= {"preset", "run", "limit"}
    shared = {f.name: getattr(config, f.name) for f in fields(config) if f.name in theirs}
    return kind(**shared | own)


def _say_step(name: str) -> None:
    say()
    say(f"-- {name}")


def _say_plan(config: Curate) -> None:
    say(f"then annotate {config.stages}")
    say(f"     dedup {config.kinds}" if config.kinds else "     no dedup")
    asked = (config.select, _before(config), config.where, config.top)
    say(f"     select {' and '.join(filter(None, asked))}" if any(asked) else "     no select")
    say(f"     recaption with {config.captioner or 'bundled'}, blend {config.blend}")
