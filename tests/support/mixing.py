"""Mixes for tests, made in this process by the same calls that the mix job makes."""

from collections import Counter
from dataclasses import dataclass

from pipeline import blend, card, commit, mix, runs
from pipeline.commit import Record
from pipeline.manifest import Shard
from pipeline.mix import MixWork, Recipe
from pipeline.runs import Run


@dataclass(frozen=True)
class Mixed:
    """A mix that was made: where it is, and what it says of itself."""

    work: MixWork
    records: list[Record]
    sizes: dict[str, int]

    @property
    def run(self) -> Run:
        return self.work.run

    @property
    def tars(self) -> list[str]:
        return [self.run.file(name) for name in self.sizes]


def mixed(
    out: str, shards: list[Shard], asked: str = "95", name: str = "m", **recipe: object
) -> Mixed:
    """Writes the mix of some shards whole: tars, tables, stats, sizes and card."""
    made = Recipe(**{"captions": "colour", "blend": blend.parse(asked)} | recipe)
    run = Run(out=out, kind=mix.KIND, name=name, config=mix.config(made, out))
    runs.begin(run, [shard.name for shard in shards])
    work = MixWork(made, run)
    work.setup()
    records = [work.perform(shard, frozenset()) for shard in shards]
    totals: dict[str, Counter[str]] = {}
    for record in records:
        for column, counts in record.counts.items():
            if isinstance(counts, dict):
                totals.setdefault(column, Counter()).update(counts)
    sizes = mix.write_sizes(run, records)
    card.write(run, made, totals, sizes)
    return Mixed(work, records, sizes)


def table(made: Mixed, shard: str) -> list[dict]:
    """The rows of a training shard's parquet."""
    return commit.read_sidecar(made.run.file(f"{shard}.parquet")).to_pylist()
