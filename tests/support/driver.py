"""A job to be killed: captions with a stage of the tests, then perhaps a mix, as `recaption` does.

`python -m tests.support.driver --out OUT --shards RAW [--stage slow] [--no-mixed] ...`
"""

import sys
from dataclasses import dataclass

from jobs import __main__ as command_line
from jobs import mix
from jobs.job import Execution, execute
from jobs.mix import Mix
from jobs.runner import Summary
from pipeline import manifest, specs
from pipeline.runs import Run
from pipeline.stage import SidecarWork
from tests.support.killer import KillerStage, SlowStage
from tests.support.stages import ColourStage

STAGES = {
    "colour": ColourStage(),
    "killer": KillerStage(),
    "slow": SlowStage(),
    "hanging": SlowStage(seconds=0.0, hang_at="hang"),
}


@dataclass(frozen=True, kw_only=True)
class Driven(Execution):
    """Write captions of a stage without a model, and the mix of them."""

    shards: str
    """The raw shards."""
    stage: str = "slow"
    """Of colour, killer, slow, hanging."""
    mixed: bool = True
    """Whether to mix them afterwards."""


def run(config: Driven) -> list[Summary]:
    """What the verbs `caption` and `mix` do, with another captioner."""
    stage = STAGES[config.stage]
    shards = manifest.register(config.out, specs.expand(config.shards))
    styles = {style: {} for style in stage.styles}
    recorded = {"captioner": "colour", "weights": "none", "styles": styles}
    captions = Run(out=config.out, kind="captions", name="colour", config=recorded)
    summaries = [
        execute(SidecarWork(stage, captions), captions, shards, config, threads=1, gpu=False)
    ]
    if config.mixed:
        how = {name: getattr(config, name) for name in Execution.__dataclass_fields__}
        summaries.append(mix.run(Mix(**how | {"run": "mixed"}, captions="colour")))
    return summaries


if __name__ == "__main__":
    sys.exit(command_line._run(sys.modules[__name__], Driven, "driver", sys.argv[1:]))
