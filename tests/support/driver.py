"""A job to be killed: captions with a stage of the tests, then mixes, as `recaption` does.

`python -m tests.support.driver OUT SHARDS EXECUTOR WORKERS [STAGE]`
"""

import sys

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


def caption(how: Execution, spec: str, stage: ColourStage) -> Summary:
    shards = manifest.register(how.out, specs.expand(spec))
    styles = {style: {} for style in stage.styles}
    config = {"captioner": "colour", "weights": "none", "styles": styles}
    run = Run(out=how.out, kind="captions", name="colour", config=config)
    return execute(SidecarWork(stage, run), run, shards, how, threads=1, gpu=False)


def main(out: str, spec: str, executor: str, workers: str, stage: str = "slow") -> None:
    how = {"out": out, "executor": executor, "workers": int(workers), "max_failed": 1.0}
    if stage == "hanging":
        how["shard_deadline"] = 2.0
    caption(Execution(**how), spec, STAGES[stage])
    mix.run(Mix(**how, captions="colour", run="mixed"))


if __name__ == "__main__":
    main(*sys.argv[1:])
