"""recaption: the main job. Captions shards, mixes training shards, prints statistics; or shows a demo."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from jobs import caption, demo, mix, stats
from jobs.caption import Caption
from jobs.job import say
from jobs.mix import Mix
from jobs.stats import Stats

if TYPE_CHECKING:
    from jobs.runner import Summary


@dataclass(frozen=True, kw_only=True)
class Recaption(Caption):
    """Raw shards in, blended training shards and a catalog out: caption, mix and stats in one.

    Without shards it is a demo: the same on a few hundred rendered scenes, and a look at the result.
    """

    shards: str = ""
    """A tar, a folder of tars, a glob, a brace pattern, or @list.txt; local or any fsspec URL."""
    out: str = ""
    """The data folder: a path or any fsspec URL; data/demo for the demo."""
    keep: str = ""
    """A keep-list: only the samples it keeps are mixed."""
    blend: str = "95"
    """Percent of descriptive captions, or name=weight,... over original, short, long, <run>.<style>."""
    seed: int = 0
    """Another seed draws other captions."""
    max_side: int = 0
    """Shrink images whose longer side exceeds this many pixels; 0 keeps every size."""


def run(config: Recaption) -> "list[Summary]":
    """Runs the verbs; a later run of the same command does only what is missing."""
    from pipeline.errors import UserError

    if not config.shards:
        return _demo(config)
    if not config.out:
        raise UserError("OUT is missing", "name a data folder, for example OUT=data/mine")
    return _recaption(config)


def _demo(config: Recaption) -> "list[Summary]":
    out = config.out or demo.OUT
    demo.refuse_foreign(out)
    config = replace(config, out=out, captioner=caption.captioner_of(config))
    mixing = _mix(config, caption.run_name(config))
    _check_mix(config, mixing)
    rendered = demo.render(out, config.dry_run)
    if config.dry_run:
        return [rendered]
    summaries = _recaption(config, demo.shards(out))
    demo.show(out, mixing.captions, mix.run_name(mixing))
    return [rendered, *summaries]


def _recaption(config: Recaption, urls: list[str] | None = None) -> "list[Summary]":
    own = {f.name: getattr(config, f.name) for f in fields(Caption)}
    run_name = caption.run_name(config)
    mixing = _mix(config, run_name)
    _check_mix(config, mixing)
    captions = caption.run(Caption(**own), urls)
    if config.dry_run:
        say(f"mix {mix.run_name(mixing)}  ->  {config.out}/mix/{mix.run_name(mixing)}")
        return [captions]
    mixed = mix.run(mixing)
    say()
    stats.run(Stats(out=config.out, run=run_name, mix=mix.run_name(mixing), keep=config.keep))
    return [captions, mixed]


def _mix(config: Recaption, captions: str) -> Mix:
    shared = {f.name: getattr(config, f.name) for f in fields(Mix) if f.name != "captions"}
    mixing = Mix(**shared | {"limit": 0}, captions=captions)  # the captions are limited already
    return replace(mixing, run=captions) if config.run else mixing


def _check_mix(config: Recaption, mixing: Mix) -> None:
    """A mix that cannot be made is refused before any image is captioned."""
    from captioner.load import describe_captioner
    from pipeline import mix as mixes
    from pipeline import runs, storage
    from pipeline.runs import Run

    out = storage.absolute(config.out)
    info = describe_captioner(caption.captioner_of(config))
    recipe = mix.recipe_of(mixing)
    mix.check_sources(recipe, out, caption.chosen_styles(config.styles, info))
    wanted = mixes.settings(recipe)
    run = Run(out=out, kind=mixes.KIND, name=mix.run_name(mixing), config=wanted)
    before = runs.load(out, mixes.KIND, run.name)
    if before:
        runs.refuse_other_config(run, {key: before["config"][key] for key in wanted})
