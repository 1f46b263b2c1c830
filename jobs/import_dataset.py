"""import: turns any image-text set that `datasets` reads into raw shards, image bytes untouched."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.job import Execution, execute, require, say
from jobs.planned import register_written

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.importing import Recipe
    from pipeline.runs import Run
    from pipeline.set_source import OpenedSet, SetName


@dataclass(frozen=True, kw_only=True)
class ImportDataset(Execution):
    """Write raw shards of a data set: OUT/shards/<shard>.tar, or OUT/shards/<run>/ with RUN.

    Nothing is downloaded but the rows that are read. Several captions of one image: the first is the
    text, all stand in the .json. A row without a usable image is a row of the shard's parquet, with
    the reason. Tars are read in order, all of them; their captions are the .txt, or fields of the
    .json that CAPTION_COL names. A row's own uid, key and other names that mean something here are
    kept in the .json as dataset_uid, dataset_key and so on. Sets that hold URLs instead of images
    are for `crawl`, shards of ours for `reshard`.
    """

    dataset: str
    """A name on the hub, a folder (images with metadata, parquet, arrow, .tar), or files of one kind:
    a path, a glob, of tars also braces."""
    subset: str = ""
    """The configuration of the set, where it has several."""
    split: str = "train"
    """Which split."""
    revision: str = ""
    """A branch, tag or commit of a set on the hub."""
    image_col: str = ""
    """The column of images; by default the one whose type says so."""
    caption_col: str = ""
    """The column of captions, or several separated by commas; by default the one called so."""
    shard_size: int = 10_000
    """Rows per shard."""
    limit: int = 0
    """Only the first so many rows, under a run name of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, shard_size=(1, 10_000), limit=(0, None))


def run(config: ImportDataset) -> "Summary":
    """Counts the set's rows, and writes what is not written yet. Raises UserError, Stopped."""
    from pipeline import commit, importing, storage
    from pipeline.image_text_set import open_set

    opened = open_set(source_of(config))
    recipe = recipe_of(config, opened)
    _say_columns(opened, recipe)
    out = storage.absolute(config.out)
    settings = importing.config_of(recipe, opened.identity)
    run = _run_of(config, out, settings)
    commit.refuse_foreign_shards(run, "import")
    plans = storage.join(out, importing.PLANS)
    with nullcontext() if config.dry_run else storage.exclusive(plans):
        save = not config.dry_run
        if save:
            storage.remove_temporaries(plans)
        sources = importing.make_plan(run, opened, config.limit, save=save)
        say(f"  {sources.rows} rows in {len(sources.counts)} pieces")
        work = importing.ImportWork(recipe, sources, run)
        summary = execute(work, run, work.planned(), config, threads=1, gpu=False)
        if save:
            register_written(run, summary)
    return summary


def source_of(config: ImportDataset) -> "SetName":
    """The set that is meant, a local one by its absolute path."""
    from pathlib import Path

    from pipeline import storage
    from pipeline.set_source import SetName

    path = config.dataset.strip()
    is_here = storage.is_local(path) and (
        Path(path).expanduser().exists() or any(c in path for c in "*?[{")
    )
    return SetName(
        path=storage.absolute(path) if is_here else path,
        subset=config.subset,
        split=config.split,
        revision=config.revision,
    )


def recipe_of(config: ImportDataset, opened: "OpenedSet") -> "Recipe":
    """What is to be imported, its columns found; UserError."""
    from pipeline.importing import Recipe

    columns = opened.columns(config.image_col, config.caption_col)
    return Recipe(opened.name, columns, config.shard_size, config.limit)


def _run_of(config: ImportDataset, out: str, settings: dict) -> "Run":
    from pipeline import importing
    from pipeline.runs import Run

    limited = f"limit{config.limit}" if config.limit else ""
    name = "-".join(part for part in (config.run, limited) if part)
    return Run(out=out, kind=importing.KIND, name=name, config=settings)


def _say_columns(opened: "OpenedSet", recipe: "Recipe") -> None:
    columns = recipe.columns
    captions = ", ".join(columns.caption) or "none"
    say(f"{opened.name.path}: images {columns.image}; captions {captions}")
