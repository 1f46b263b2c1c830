"""Shards of rendered scenes: what a crawl would have brought home, with the truth beside it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipeline import commit
from pipeline.manifest import Shard
from pipeline.runs import Run
from pipeline.scenes.alt_text import alt_text
from pipeline.scenes.damage import draw_damage, encode
from pipeline.scenes.render import render
from pipeline.scenes.world import LEVELS, Scene, Split, Thing, draw_scene
from pipeline.schemas import OK, SCENES
from pipeline.writing import ShardWriter, json_bytes

KIND = "shards"


@dataclass(frozen=True)
class Recipe:
    """What is rendered; every field decides bytes."""

    level: str
    n: int  # scenes
    seed: int = 0
    split: Split = "train"
    noise: float = 1.0  # multiplies the rates of bad alt texts
    damaged: float = 0.0  # share of images that are damaged on purpose
    shard_size: int = 1000  # at most 10,000: a key ends in four digits


class SceneWork:
    """A writer: a range of scenes becomes one raw shard of img2dataset's shape.

    Nothing is read, so the work items are the shards that are to be: `planned` gives each its name,
    the place where it is going to stand, and how many samples it will hold. A runner needs no more.
    """

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe = recipe
        self.run = run

    def planned(self) -> list[Shard]:
        """The shards to write, all full but the last."""
        size = self.recipe.shard_size
        counts = [min(size, self.recipe.n - start) for start in range(0, self.recipe.n, size)]
        names = (f"{number:05d}" for number in range(len(counts)))
        return [
            Shard(name=name, url=self.run.file(f"{name}.tar"), size=0, samples=count)
            for name, count in zip(names, counts, strict=True)
        ]

    def setup(self) -> None:
        pass

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a shard that is whole."""
        record = commit.read_stats_record(self.run, shard.name)
        return record if record and record.config_hash == self.run.config_hash else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Renders and commits one shard."""

        def rows(writer: ShardWriter) -> Iterator[dict]:
            return (self._write(shard, row, row in lost, writer) for row in range(shard.samples))

        def record(table: pa.Table) -> commit.Record:
            return commit.Record(
                shard=shard.name,
                config_hash=self.run.config_hash,
                inputs={},
                environment={},
                counts={"samples": shard.samples, **commit.tally(table), **_kinds(table)},
            )

        return commit.write_shard(self.run, shard.name, SCENES, rows, record)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Renders some samples of a shard and keeps nothing: does the process survive?"""
        for row in indices:
            if row not in lost:
                self._members(shard, row)

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples; damage on purpose is no failure."""
        return dict(counts["reason"])

    def _write(self, shard: Shard, row: int, is_lost: bool, writer: ShardWriter) -> dict:
        """Appends a sample to the shard and returns its row; a lost one only has a row."""
        members, meta = ({}, self._truth(shard, row)) if is_lost else self._members(shard, row)
        if members:
            writer.add_members(meta["key"], members)
        return meta | {
            "status": "failed" if is_lost else OK,
            "reason": "killed_worker" if is_lost else None,
        }

    def _members(self, shard: Shard, row: int) -> tuple[dict[str, bytes], dict]:
        """The files of a sample, suffix -> bytes, and what its `.json` says."""
        meta = self._truth(shard, row)
        image = render(self.recipe.level, scene_of(meta), self.recipe.seed, meta["index"])
        suffix, data = encode(image, meta["damage"])
        meta |= {"width": image.shape[1], "height": image.shape[0]}
        meta["sha256"] = hashlib.sha256(data).hexdigest() if suffix else ""
        members = {suffix: data} if suffix else {}
        if meta["caption"] is not None:
            members["txt"] = meta["caption"].encode()
        return members | {"json": json_bytes(meta)}, meta

    def _truth(self, shard: Shard, row: int) -> dict:
        """What is known of a sample before it is rendered: flat, under the names of SCENES."""
        recipe = self.recipe
        index = int(shard.name) * recipe.shard_size + row
        scene = draw_scene(LEVELS[recipe.level], recipe.seed, index, recipe.split)
        alt = alt_text(scene, recipe.seed, index, recipe.noise)
        return {
            "key": f"{shard.name}{row:04d}",
            "caption": alt.text,
            "level": recipe.level,
            "seed": recipe.seed,
            "index": index,
            "split": recipe.split,
            "background": scene.background,
            "things": json.dumps([asdict(thing) for thing in scene.things]),
            "alt_text": alt.kind,
            "damage": draw_damage(recipe.seed, index, recipe.damaged),
        }


def scene_of(meta: Mapping[str, object]) -> Scene:
    """The scene that a sample's `.json` (or its row in the parquet) tells."""
    things = (Thing(**thing) for thing in json.loads(meta["things"]))
    return Scene(meta["background"], tuple(things))


def _kinds(table: pa.Table) -> dict:
    """How often each kind of alt text and of damage was drawn."""
    counts = {}
    for column in ("alt_text", "damage"):
        values = Counter(v for v in table.column(column).to_pylist() if v)
        counts[column] = dict(sorted(values.items()))
    return counts
