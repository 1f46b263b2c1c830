"""SIGINT and SIGTERM as a wish to stop, that the work asks for when it suits."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.job import complain
from jobs.ranks import here


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives whether SIGINT or SIGTERM came; the second one interrupts at once."""
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if here().is_first:
            complain("stopping after this step")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked  # only the main thread gets signals
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
