"""scenes: renders scenes with exactly known content, and writes them as raw shards."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from jobs.job import Execution, execute, require

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.scenes.shards import SceneWork


@dataclass(frozen=True, kw_only=True)
class Scenes(Execution):
    """Write raw shards of rendered scenes: OUT/shards/<shard>.tar, or OUT/shards/<run>/ with RUN."""

    level: Literal["A4", "A16", "A", "B", "C"] = "B"
    """A: one thing on 32 pixels (A16: on 16). B: up to three on 64. C: up to five on 128."""
    n: int = 1000
    """How many scenes."""
    seed: int = 0
    """Another seed draws other scenes."""
    split: Literal["train", "test"] = "train"
    """`test` shows only the combinations of shape, colour and texture that `train` never shows."""
    noise: float = 1.0
    """Multiplies the rates of missing, irrelevant and wrong alt texts; 1 is as counted on the web."""
    damaged: float = 0.0
    """Share of images damaged on purpose: cut off, absent, no image, or of an odd format."""
    shard_size: int = 1000
    """Scenes per shard."""
    limit: int = 0
    """Only the first so many scenes, under a run name of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, n=(1, None), noise=(0, 3), damaged=(0, 1), shard_size=(1, 10_000))
        require(self, limit=(0, None))


def run(config: Scenes) -> "Summary":
    """Renders what is not rendered yet. Raises UserError, Stopped."""
    from pipeline import commit

    work = work_of(config)
    commit.refuse_foreign_shards(work.run, "rendered scenes")
    return execute(work, work.run, work.planned(), config, threads=1, gpu=False)


def work_of(config: Scenes) -> "SceneWork":
    """What is to be rendered, and where it is going to stand."""
    from pipeline import storage
    from pipeline.runs import Run
    from pipeline.scenes.shards import KIND, Recipe, SceneWork

    recipe = Recipe(
        level=config.level,
        n=min(config.n, config.limit or config.n),
        seed=config.seed,
        split=config.split,
        noise=config.noise,
        damaged=config.damaged,
        shard_size=config.shard_size,
    )
    out = storage.absolute(config.out)
    run = Run(out=out, kind=KIND, name=_run_name(config), config=asdict(recipe))
    return SceneWork(recipe, run)


def _run_name(config: Scenes) -> str:
    """RUN as given, often none; LIMIT runs are told apart."""
    limited = f"limit{config.limit}" if config.limit else ""
    return "-".join(part for part in (config.run, limited) if part)
