"""What a process of a training on a Ray cluster does: trains, tells the driver through files, and how it ended."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.job import Stopped
from pipeline import storage
from pipeline.errors import UserError

if TYPE_CHECKING:
    from jobs.ranks import Ranks

FOLDER = ".ray"
"""Inside OUT, which all machines share: what is here is of one command, and goes with it."""
LOG, VERDICT = "first.log", "verdict.json"
DRIVER = "driver"
"""Inside FOLDER: locked by the command that started the training."""
_PATIENCE_SEC = 300.0  # for a process that was killed to be gone
_KINDS = {"UserError": UserError, "Stopped": Stopped}


def work(given: dict[str, Any]) -> None:
    """One process, in the group that Ray Train made: calls `function(config)`.

    given: function, config and out. What no other attempt would mend is written down for the
    driver, and then a later attempt does nothing. Of others, Ray starts all processes anew, and the
    training goes on from its last checkpoint.
    """
    from jobs.ranks import here

    out, ranks = Path(given["out"]), here()
    function: Callable[[object], object] = given["function"]
    folder = out / FOLDER
    if verdict(folder) is not None:
        return
    with _told(folder / LOG, ranks):
        try:
            if ranks.is_first:  # one that was killed may still hold what it wrote to
                for lock in (*out.glob(".lock"), *out.glob("*/.lock")):
                    _await(lock.parent)
            function(given["config"])
        except (UserError, Stopped) as error:
            is_user = isinstance(error, UserError)
            told = [error.message, error.hint] if is_user else [str(error)]
            record = {"kind": "UserError" if is_user else "Stopped", "told": told}
            storage.write_bytes(str(folder / VERDICT), json.dumps(record).encode())
            raise


def verdict(folder: Path) -> Exception | None:
    """What ended the training for good, as the process that met it raised it."""
    try:
        record = json.loads((folder / VERDICT).read_bytes())
    except FileNotFoundError:
        return None
    return _KINDS[record["kind"]](*record["told"])


def _await(folder: Path) -> None:
    """Until nobody holds a folder; UserError where somebody goes on doing so."""
    deadline = time.monotonic() + _PATIENCE_SEC
    while True:
        try:
            with storage.exclusive(str(folder), hint="wait for it, or give another OUT"):
                return
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


@contextlib.contextmanager
def _told(log: Path, ranks: "Ranks") -> Iterator[None]:
    """What the first process prints goes to the driver; the others are silent."""
    path = log if ranks.is_first else Path(os.devnull)
    with (
        path.open("a", buffering=1) as lines,
        contextlib.redirect_stdout(lines),
        contextlib.redirect_stderr(lines),
    ):
        yield
