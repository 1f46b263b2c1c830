"""The verbs over shards, as jobs to be disturbed: what each reads, writes and commits."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.inputs import SAMPLES, Inputs
from tests.support.crawling import LOOPBACK

_DRIVER = "tests.support.driver"


@dataclass(frozen=True)
class Verb:
    """A job of a few seconds.

    command: `python -m ...` without OUT and executor. outputs: the folders below OUT, as globs, in
    which every sample is a row. begun: the data folder that OUT starts as. out: the flag of OUT.
    """

    command: Callable[[Inputs], list[object]]
    outputs: tuple[str, ...]
    begun: Callable[[Inputs], Path] | None = None
    out: str = "--out"
    samples: Callable[[Inputs], int] = lambda inputs: SAMPLES
    commits: tuple[str, ...] = ()  # files that mark a part done; by default those of `outputs`
    spread: bool = True  # whether Ray has workers for it; without, only drivers are killed

    def begin(self, inputs: Inputs, out: Path) -> None:
        """Makes OUT what it is before the job."""
        if self.begun is None:
            out.mkdir(parents=True)
        else:
            shutil.copytree(self.begun(inputs), out)

    def arguments(self, inputs: Inputs, out: Path) -> list[str]:
        return [str(a) for a in (*self.command(inputs), self.out, out)]

    def committed(self, out: Path) -> set[Path]:
        """Files that mark a part of the job done."""
        return {path for pattern in self.marks for path in out.glob(pattern)}

    @property
    def marks(self) -> tuple[str, ...]:
        return self.commits or tuple(f"{folder}/*.parquet" for folder in self.outputs)


def _encode(inputs: Inputs) -> list[object]:
    given = ["--shards", inputs.mixed, "--first-stage", inputs.stage, "--text", "bundled"]
    return ["jobs", "encode", *given, "--run", "encoded", "--threads", 1, "--batch-size", 4]


def _mixed(inputs: Inputs) -> int:
    sizes = json.loads((inputs.mixed / "sizes.json").read_text())
    return sum(sizes.values())


def _crawl(inputs: Inputs) -> list[object]:
    flags = [flag for flag in LOOPBACK if flag not in ("--executor", "inline")]
    given = ["--urls", inputs.urls, "--caption-col", "text", "--shard-size", 10]
    return ["jobs", "crawl", *given, "--concurrency", 4, *flags]


SHARD_MARKS = ("shards/*_stats.json",)
WHERE = "width >= 100 and sharpness > 20"

VERBS = {
    "crawl": Verb(_crawl, ("shards",), commits=SHARD_MARKS),
    "import": Verb(
        lambda i: ["jobs", "import", "--dataset", i.dataset, "--shard-size", 10],
        ("shards",),
        commits=SHARD_MARKS,
    ),
    "annotate": Verb(
        lambda i: ["jobs", "annotate", "--shards", i.raw, "--stages", "image,text", "--threads", 1],
        ("columns/image@*", "columns/text@*"),
    ),
    "dedup": Verb(
        lambda i: ["jobs", "dedup", "--kinds", "exact,perceptual"],
        ("columns/dedup@default",),
        begun=lambda i: i.annotated,
        spread=False,
    ),
    "select": Verb(
        lambda i: ["jobs", "select", "--where", WHERE, "--top", "60 % by sharpness", "--run", "k"],
        ("keep/k",),
        begun=lambda i: i.annotated,
    ),
    "reshard": Verb(
        lambda i: ["jobs", "reshard", "--out", i.annotated, "--shard-size", 9, "--seed", 4],
        ("shards",),
        out="--to",
        commits=("places/*/*.parquet", "plans/*.parquet", *SHARD_MARKS),
    ),
    "caption": Verb(lambda i: [_DRIVER, "--shards", i.raw, "--no-mixed"], ("captions/colour",)),
    "mix": Verb(
        lambda i: ["jobs", "mix", "--captions", "colour", "--run", "mixed"],
        ("mix/mixed",),
        begun=lambda i: i.captioned,
        commits=("mix/*/*_stats.json",),
    ),
    "recaption": Verb(
        lambda i: [_DRIVER, "--shards", i.raw],
        ("captions/colour", "mix/mixed"),
        commits=("captions/*/*.parquet", "mix/*/*_stats.json"),
    ),
    "encode": Verb(
        _encode, ("cache/encoded",), samples=_mixed, commits=("cache/*/0*.safetensors",)
    ),
}
"""Captions are those of a stage without a model; all else is what users run."""
