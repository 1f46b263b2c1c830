"""A verb killed (kill -9) in this very moment: when a file of some name is about to get its name."""

import signal
import subprocess
import sys

_HOOK = (
    "import os, signal, sys\n"
    "from jobs.__main__ import main\n"
    "ending, after = sys.argv[1], int(sys.argv[2])\n"
    "def hook(event, args):\n"
    "    global after\n"
    "    if event == 'os.rename' and str(args[1]).endswith(ending):\n"
    "        if not after:\n"
    "            os.kill(os.getpid(), signal.SIGKILL)\n"
    "        after -= 1\n"
    "sys.addaudithook(hook)\n"
    "main(sys.argv[3:])\n"
)


def kill_at(ending: str, *arguments: str, after: int = 0) -> None:
    """Runs a verb in a process of its own until it would rename to a file of this ending, the
    `after`-th time but one."""
    command = [sys.executable, "-c", _HOOK, ending, str(after), *arguments]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
