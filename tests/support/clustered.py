"""Trainings on one local Ray, each as a verb: `python -m tests.support.clustered OUT WHAT ...`.

Prints `WHAT ended with CODE` after each.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from jobs import __main__ as command_line
from jobs import cluster
from pipeline.errors import UserError


@dataclass(frozen=True)
class Asked:
    """What a training on the cluster is told: frozen and picklable, as a verb's settings."""

    what: str
    out: str


def run(asked: Asked) -> None:
    cluster.train(here, asked, asked.out, workers=2, max_failures=1)


def here(asked: Asked) -> None:
    """In each of the processes."""
    import torch

    from jobs import ranks
    from jobs.fit import fit
    from tests.support.fitting import Net
    from tests.support.ranked import SMOOTH

    torch.set_num_threads(1)
    with ranks.joined() as group:
        task = Net(dropout=0, noise=0)
        once = Path(asked.out) / "once"
        if asked.what == "killed" and group.rank == 1 and not once.exists():
            once.touch()
            task.kill_at = 3
        if asked.what == "refused" and group.rank == 1:
            raise UserError("a shard is gone", "look for it")
        if asked.what == "broken":
            raise RuntimeError("a bug of ours")
        fitted = fit(task, replace(SMOOTH, checkpoint_every=2), Path(asked.out) / "training")
        if group.is_first:
            print(f"{asked.what} resumed from {fitted.resumed_from}, {group.world} processes")


def main(out: str, *whats: str) -> None:
    for what in whats:
        flags = ["--what", what, "--out", f"{out}/{what}"]
        code = command_line._run(sys.modules[__name__], Asked, "clustered", flags)
        print(f"{what} ended with {code}", flush=True)


if __name__ == "__main__":
    from tests.support import clustered  # under its name, by which the processes import it

    clustered.main(*sys.argv[1:])
