"""mix: joins shards with their captions and writes blended training shards."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.job import Execution, execute, require, say
from jobs.planned import limited

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.blend import Blend
    from pipeline.manifest import Shard
    from pipeline.mix import Recipe


@dataclass(frozen=True, kw_only=True)
class Mix(Execution):
    """Write training shards: OUT/mix/<run>/<shard>.tar with .parquet, sizes and a dataset card."""

    shards: str = ""
    """Where the raw shards are, if not where they were captioned (moved, or a URL with a token)."""
    captions: str = ""
    """The caption run that `short` and `long` mean."""
    keep: str = ""
    """A keep-list: only the samples it keeps are mixed."""
    blend: str = "95"
    """Percent of descriptive captions, or name=weight,... over original, short, long, <run>.<style>."""
    seed: int = 0
    """Another seed draws other captions."""
    max_side: int = 0
    """Shrink images whose longer side exceeds this many pixels; 0 keeps every size."""
    limit: int = 0
    """Only the first so many samples, under a run name of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, max_side=(0, None), limit=(0, None))


def run(config: Mix) -> "Summary":
    """Mixes what is not mixed yet. Raises UserError, Stopped."""
    from pipeline import card, storage
    from pipeline import mix as mixing
    from pipeline.runs import Run

    out = storage.absolute(config.out)
    recipe = recipe_of(config)
    check_sources(recipe, out)
    settings = mixing.config(recipe, out) | {"limit": config.limit}
    work = Run(out=out, kind=mixing.KIND, name=run_name(config), config=settings)
    shards = limited(_planned(out, recipe, config), config.limit)
    summary = execute(mixing.MixWork(recipe, work), work, shards, config, threads=1, gpu=False)
    if not config.dry_run:
        sizes = mixing.write_sizes(work, summary.records.values())
        card.write(work, recipe, summary.totals, sizes)
        _say_blend(summary, recipe.blend)
    return summary


def recipe_of(config: Mix) -> "Recipe":
    """What the settings ask for; raises UserError for a blend that cannot be read."""
    from pipeline import blend
    from pipeline.mix import Recipe

    return Recipe(
        captions=config.captions,
        blend=blend.parse(config.blend),
        keep=config.keep,
        seed=config.seed,
        max_side=config.max_side,
    )


def run_name(config: Mix) -> str:
    """RUN as given, or the caption run, the keep-list and the blend."""
    from pipeline import blend

    label = blend.parse(config.blend).label
    keep = "" if config.captions.endswith(f"-{config.keep}") else config.keep  # named there
    name = config.run or "-".join(part for part in (config.captions, keep, label) if part)
    return f"{name}-limit{config.limit}" if config.limit else name


def check_sources(recipe: "Recipe", out: str, styles: tuple[str, ...] = ()) -> None:
    """UserError where the blend names a run or a style that does not exist.

    styles: what the current caption run is going to have, where it has not begun yet.
    """
    from pipeline import mix as mixing
    from pipeline import runs
    from pipeline.errors import UserError

    if recipe.keep:
        runs.require(out, "keep", recipe.keep)
    fields = [mixing.json_field(source) for source in recipe.sources()]
    if len(set(fields)) < len(fields):
        raise UserError(
            f"BLEND={recipe.blend} has two sources for one field of the .json",
            "rename one of the caption runs: only letters and digits tell them apart",
        )
    for source, (run_, style) in recipe.sources().items():
        if not dict(recipe.blend.weights).get(source):
            continue
        if not run_:
            raise UserError(
                f"BLEND={recipe.blend} takes {source} captions of no run",
                "give CAPTIONS=<run>, or BLEND=0 for original captions only",
            )
        if styles and run_ == recipe.captions:
            has = styles
        else:
            has = tuple(runs.require(out, "captions", run_)["config"]["styles"])
        if style not in has:
            raise UserError(
                f"BLEND takes {source} captions, but their captioner writes {','.join(has)} only",
                f"for example BLEND='{has[0]}=0.95,original=0.05', or compose two "
                "captioners: CAPTIONER='short=<name>,long=<name>'",
            )


def _planned(out: str, recipe: "Recipe", config: Mix) -> "list[Shard]":
    """The shards that the caption run was to caption; without one, all that are known."""
    from pipeline import manifest, runs, specs, storage
    from pipeline.errors import UserError

    names = {shard.name for shard in manifest.load(out)}
    if recipe.captions:
        names &= set(runs.require(out, "captions", recipe.captions)["shards"])
    urls = specs.expand(config.shards) if config.shards else []
    save = not config.dry_run
    with storage.exclusive(out, wait=True) if save else nullcontext():
        given = {s.name: s for s in manifest.register(out, urls, save=save)}
        known = [s.url for s in manifest.load(out) if s.name in names - given.keys()]
        shards = [*given.values(), *manifest.register(out, known, save=save)]
    chosen = sorted((s for s in shards if s.name in names or not recipe.captions), key=_by_name)
    if not chosen:
        raise UserError(
            f"OUT={out} knows no shards", "caption some first: make recaption SHARDS=..."
        )
    return chosen


def _by_name(shard: "Shard") -> str:
    return shard.name


def _say_blend(summary: "Summary", blend: "Blend") -> None:
    used, fallback = (summary.totals.get(k, {}) for k in ("source", "fallback"))
    total = sum(used.values())
    if not total:
        return
    realised = "  ".join(f"{source} {100 * n / total:.2f}%" for source, n in used.items())
    say(f"  blend     asked {blend}")
    say(f"            realised {realised}  ({sum(fallback.values())} fell back)")
