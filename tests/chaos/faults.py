"""The faults themselves: processes killed, a disk that fills, files torn, a clock that is wrong."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

DISK_BYTES = 64 << 20
_SLOW_DISK = Path(__file__).parent / "slow_disk"
_FAKETIME = "faketime/libfaketimeMT.so.1"


@dataclass(frozen=True)
class Process:
    """A process of this machine; its number may be given again, but not with the same start."""

    pid: int
    start: int  # ticks since the machine's boot
    parent: int
    command: bytes

    def is_still(self) -> bool:
        return any((p.pid, p.start) == (self.pid, self.start) for p in _looked_at([self.pid]))


def family(pid: int) -> list[Process]:
    """A process and all that it started, those before what they started."""
    everybody = _looked_at(int(path.name) for path in Path("/proc").glob("[0-9]*"))
    found = [process for process in everybody if process.pid == pid]
    for one in found:
        found += [process for process in everybody if process.parent == one.pid]
    return found


def _looked_at(pids: Iterable[int]) -> list[Process]:
    found = []
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
            found.append(Process(pid, int(after_name[19]), int(after_name[1]), command))
    return found


def kill(processes: Iterable[Process]) -> int:
    """kill -9; how many of them there still were."""
    killed = 0
    for process in processes:
        if process.is_still():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    return killed


def holds_lock(pid: int, out: Path) -> bool:
    """Whether a process holds the lock of a run in a data folder, not only that of the folder."""
    runs = {path.stat().st_ino for path in out.glob("*/**/.lock")}
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = {int(f[5].rpartition(":")[2]) for f in locks if (f[1], f[4]) == ("FLOCK", str(pid))}
    return bool(held & runs)


class Disk:
    """A small file system that can be full; a mere folder where none may be mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(folder)]
        self.mounted = _runs(command)

    def fill(self) -> None:
        """To the last byte."""
        with (self._folder / "ballast").open("wb", buffering=0) as f:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        f.write(bytes(size))

    def free(self) -> None:
        (self._folder / "ballast").unlink()

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


def slow_disk() -> dict[str, str]:
    """The environment of Python processes whose files get their names slowly."""
    paths = [str(_SLOW_DISK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def clock(skew: str) -> dict[str, str]:
    """The environment of a process whose clock is wrong by so much; empty without libfaketime.

    Only the clock: files keep their times, and no timeout is cut short.
    """
    found = [*Path("/usr/lib").glob(f"*/{_FAKETIME}"), Path(os.environ.get("LIBFAKETIME", "/-"))]
    library = next((path for path in found if path.is_file()), None)
    if library is None:
        return {}
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": skew,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def tear(committed: list[Path], chance: Random) -> list[str]:
    """Leaves what torn uploads leave: cut files, a tar without its marker, half a temporary file."""
    torn = []
    for path in chance.sample(committed, min(2, len(committed))):
        stem = path.name.removesuffix("_stats.json").removesuffix(path.suffix)
        whole = sorted(path.parent.glob(f"{stem}.*"))
        victim = chance.choice([p for p in whole if p.suffix in (".tar", ".parquet")] or [path])
        data = victim.read_bytes()
        victim.write_bytes(data[: chance.randrange(len(data))])
        if victim.suffix == ".tar" and chance.random() < 0.5:
            path.unlink()
        (victim.parent / f".{victim.name}.0badf00d.tmp").write_bytes(data[: len(data) // 2])
        torn.append(victim.name)
    return torn
