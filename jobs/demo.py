"""The demo: what `recaption` does without shards. Renders some, and shows what became of them."""

import shutil
import textwrap
from typing import TYPE_CHECKING

from jobs import scenes
from jobs.caption import PUBLISHED
from jobs.job import say
from jobs.scenes import Scenes

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.examples import Example

OUT = "data/demo"
PICTURE = "samples.png"
SCENES = {
    "level": "B",
    "n": 300,
    "seed": 10,  # every kind of damage occurs
    "split": "test",  # combinations that the bundled captioner never saw
    "damaged": 0.04,
    "shard_size": 150,
}
_PRINTED, _PICTURED = 4, 8
_MOST_COLUMNS = 110


def refuse_foreign(out: str) -> None:
    """UserError where a data folder holds shards that are not the demo's.

    Somebody who forgot SHARDS must not find rendered scenes among their training data.
    """
    from pipeline import manifest, runs, storage
    from pipeline.errors import UserError

    work = scenes.work_of(_scenes(out))
    run = work.run
    before = runs.load(run.out, run.kind, run.name)
    rendered = before is not None and before["config_hash"] == run.config_hash
    own = {storage.public(shard.url) for shard in work.planned()} if rendered else set()
    known = [shard.url for shard in manifest.load(run.out)]
    found = [*known, *shards(out), *storage.list_files(run.out, ".tar")]
    foreign = [url for url in map(storage.public, found) if url not in own]
    if foreign:
        raise UserError(
            f"SHARDS is missing, and OUT={out} is no demo: it has {foreign[0]}",
            "name your shards, SHARDS=...; the demo, which runs without, needs an OUT of its own",
        )


def shards(out: str) -> list[str]:
    """The demo's raw shards that are there."""
    from pipeline import storage

    return storage.list_files(scenes.work_of(_scenes(out)).run.folder, ".tar")


def render(out: str, dry_run: bool) -> "Summary":
    """Writes the demo's shards, in this process: that takes a second or two."""
    say(f"no SHARDS given, so this is the demo: {SCENES['n']} rendered scenes, in {out}")
    return scenes.run(_scenes(out, dry_run))


def _scenes(out: str, dry_run: bool = False) -> Scenes:
    return Scenes(out=out, executor="inline", dry_run=dry_run, **SCENES)


def show(out: str, captions: str, mix: str) -> None:
    """Prints a few samples, draws some more, and says what to type next."""
    from pipeline import storage
    from pipeline.contact_sheet import contact_sheet
    from pipeline.examples import examples

    found = examples(out, captions, mix, _PICTURED)
    say("samples: what each image came with, and what was written for it")
    for example in found[:_PRINTED]:
        say(_printed(example))
    picture = storage.join(storage.absolute(out), PICTURE)
    storage.write_bytes(picture, contact_sheet(found))
    say(_next(out, mix))


def _printed(example: "Example") -> str:
    columns = min(shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns, _MOST_COLUMNS)
    indent = " " * (len(example.key) + 4)
    lines = []
    for title, text in example.captions.items():
        first = f"  {example.key if not lines else '':{len(example.key)}}  {title:13}"
        lines += textwrap.wrap(
            text, columns, initial_indent=first, subsequent_indent=indent + " " * 13
        )
    return "\n".join(lines)


def _next(out: str, mix: str) -> str:
    return f"""
picture   {out}/{PICTURE}
training  {out}/mix/{mix}/
ask       make stats OUT={out} Q="select caption_source, count(*) from mix group by all"
next      make recaption SHARDS='raw/*.tar' OUT=data/mine CAPTIONER={PUBLISHED} \\
               BLEND='short=0.95,original=0.05'
          The captioner `bundled` only knows rendered scenes. For real photographs, CAPTIONER= takes
            {PUBLISHED}   published, fetched once; writes short captions
            coca_ViT-B-32:weights.safetensors                  <model>:<file>, a checkpoint of yours
            my-captioner/                                      a directory that Recaption saved
          and short=<name>,long=<name> composes two of them."""
