"""What the doctor checks of this machine: memory, shared memory, limits of the process, temporary files."""

import os
import resource
import shutil
import tempfile
from pathlib import Path

from jobs.finding import Finding, fail, note, ok

GB = 1e9
_LEAST_MEMORY, _GOOD_MEMORY = 2 * GB, 8 * GB  # Ray and one worker; two with a CoCa ViT-L
_LEAST_SHARED = 256e6  # Ray's store takes 128 MB of it here; containers have 64 MB unless told
_LEAST_FILES, _GOOD_FILES = 1024, 4096
_LEAST_PROCESSES = 1024  # threads count: a Ray of two cores has some 500
_LEAST_TEMPORARY = 1 * GB


def machine() -> list[Finding]:
    """What every verb needs of the machine it is started on."""
    return [_memory(), _shared_memory(), _files(), _processes(), _temporary()]


def _memory() -> Finding:
    free = {
        "of this machine": _meminfo(),
        "left to this container": _container_memory(),
        "allowed by ulimit -v": _address_space(),
    }
    known = {whence: size for whence, size in free.items() if size is not None}
    if not known:
        return note("memory", "cannot tell how much there is")
    whence, least = min(known.items(), key=lambda item: item[1])
    saw = f"{least / GB:.1f} GB {whence}"
    if least < _LEAST_MEMORY:
        return fail(
            "memory",
            f"{saw}; Ray and one worker take {_LEAST_MEMORY / GB:.0f} GB",
            "a larger machine or container, ulimit -v unlimited, or EXECUTOR=inline",
        )
    if least < _GOOD_MEMORY:
        return note("memory", saw, "WORKERS=1 if workers die")
    return ok("memory", saw)


def _meminfo() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
    return float(kilobytes["MemAvailable"]) * 1024 if "MemAvailable" in kilobytes else None


def _container_memory() -> float | None:
    limit, used = (_cgroup(f"memory.{name}") for name in ("max", "current"))
    return None if limit is None or used is None else limit - used


def _address_space() -> float | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else float(limit)


def _cgroup(name: str) -> float | None:
    """A number of this container's control group (version 2); None where there is no limit."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2]
        text = Path(f"/sys/fs/cgroup{own}/{name}").read_text().strip()
    except OSError:
        return None
    return None if text == "max" else float(text)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return note("/dev/shm", "this system has none, so Ray keeps objects in temporary files")
    saw = f"{free / GB:.2f} GB free"
    if free < _LEAST_SHARED:
        return fail(
            "/dev/shm",
            f"{saw}; Ray and loaders of batches need {_LEAST_SHARED / GB:.2f} GB",
            "docker run --shm-size=2g; in Kubernetes an emptyDir of medium Memory at /dev/shm",
        )
    return ok("/dev/shm", saw)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    saw = f"{soft} may be open at once (ulimit -n), {hard} at most"
    remedy = "ulimit -n 65536, in a container docker run --ulimit nofile=65536"
    if soft < _LEAST_FILES:
        return fail("open files", f"{saw}; Ray needs {_LEAST_FILES}", remedy)
    if soft < _GOOD_FILES:
        return note("open files", f"{saw}; few for the head of a cluster", remedy)
    return ok("open files", saw)


def _processes() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [] if soft == resource.RLIM_INFINITY or os.geteuid() == 0 else [float(soft)]
    allowed = _cgroup("pids.max")
    if allowed is not None:
        limits.append(allowed - (_cgroup("pids.current") or 0))
    if not limits:
        return ok("processes", "no limit")
    saw = f"{min(limits):.0f} processes and threads are allowed"
    if min(limits) < _LEAST_PROCESSES:
        return fail(
            "processes",
            f"{saw}; Ray needs {_LEAST_PROCESSES}",
            "ulimit -u 65536, docker run --pids-limit=-1, or EXECUTOR=inline",
        )
    return ok("processes", saw)


def _temporary() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    saw = f"{free / GB:.1f} GB free in {folder}"
    if free < _LEAST_TEMPORARY:
        return fail(
            "temporary",
            f"{saw}; Ray's logs and uploads to object stores lie there",
            "free space, or TMPDIR=<a larger folder>",
        )
    return ok("temporary", saw)
