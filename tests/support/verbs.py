"""Verbs, one after another, in a process of its own: `python -m tests.support.verbs < commands.json`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from botocore.retries.standard import ExponentialBackoff

from jobs.__main__ import main

_WAIT_SEC = 0.02
_EXIT = "\x1e exit "


@dataclass(frozen=True)
class Said:
    """What became of a verb: its exit code, and all that it printed."""

    code: int
    text: str


def run_verbs(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[Said]:
    """Runs them as a user would, but that a store is asked again after a moment instead of seconds."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.verbs"],
        input=json.dumps(commands),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    *parts, rest = done.stdout.split(_EXIT)
    codes = [int(part.split("\n")[0]) for part in [*parts[1:], rest]]
    texts = [parts[0], *(part.split("\n", 1)[1] for part in parts[1:])]
    return [Said(code, text) for code, text in zip(codes, texts, strict=True)]


def _serve() -> None:
    ExponentialBackoff.delay_amount = lambda self, context: _WAIT_SEC
    for command in json.load(sys.stdin):
        code = main(command)
        sys.stderr.flush()
        print(f"{_EXIT}{code}", flush=True)


if __name__ == "__main__":
    _serve()
