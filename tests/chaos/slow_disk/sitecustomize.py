"""Python runs this at its start, where PYTHONPATH names the folder: files get their names slowly.

On a fast machine the first and the last commit of a small job are milliseconds apart; with this,
a kill between them meets every machine at work.
"""

import os
import select
import sys
import time

_SECONDS = 0.03


def _sleep(seconds: float) -> None:
    """time.sleep asks for a moment of the monotonic clock, which libfaketime 0.9 shifts by mistake."""
    select.select([], [], [], seconds)


def _wait(event: str, arguments: tuple) -> None:
    if event == "os.rename":
        _sleep(_SECONDS)


sys.addaudithook(_wait)
if "FAKETIME" in os.environ:
    time.sleep = _sleep
