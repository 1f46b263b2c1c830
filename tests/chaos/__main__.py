"""Jobs killed and disturbed at random, and their outputs compared: `python -m tests.chaos`."""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.chaos.harness import Ended, Harness
from tests.chaos.plan import KILLS
from tests.chaos.verbs import VERBS

DURING = 0.8
"""The least share of runs that are killed between the first and the last commit."""


def main() -> int:
    """A line per job, one per verb, and 1 where outputs differ or too few kills met work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbs", default=",".join(VERBS), help="some of %(default)s")
    parser.add_argument("--runs", type=int, default=50, help="jobs per verb and executor")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--executor", choices=tuple(KILLS), help="one alone instead of both")
    options = parser.parse_args()
    verbs = options.verbs.split(",")
    if options.runs < 1 or not set(verbs) <= set(VERBS):
        parser.error(f"runs are at least 1, verbs of {','.join(VERBS)}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    harness = Harness(folder)
    bad = 0
    try:
        for verb in verbs:
            print(harness.undisturbed(verb), flush=True)
            for executor in [options.executor] if options.executor else KILLS:
                ends = []
                for seed in range(options.seed, options.seed + options.runs):
                    ends.append(harness.disturb(verb, seed, executor))
                    print(f"{verb} {executor} {seed}: {ends[-1]}", flush=True)
                bad += not _summed_up(f"{verb} {executor}", ends)
    finally:
        harness.close()
    if bad:
        print(f"{bad} campaigns failed; see {folder}")
    else:
        shutil.rmtree(folder)
    return bool(bad)


def _summed_up(title: str, ends: list[Ended]) -> bool:
    """Prints what became of a verb's jobs; whether that is good enough."""
    same = sum(not ended.wrong for ended in ends)
    moments = sum((ended.moments for ended in ends), Counter())
    faults = sum((ended.faults for ended in ends), Counter())
    met = sum(ended.moments["during"] > 0 for ended in ends)
    told = ", ".join(f"{n} {fault}" for fault, n in sorted(faults.items()))
    print(
        f"== {title}: {same} of {len(ends)} identical and accounted for; {met} killed at work; "
        f"kills {moments['before']} before, {moments['during']} during, {moments['after']} after "
        f"the commits; {told}",
        flush=True,
    )
    return same == len(ends) and met >= DURING * len(ends)


if __name__ == "__main__":
    sys.exit(main())
