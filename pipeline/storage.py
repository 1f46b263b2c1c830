"""Files on disk or in an object store, read as streams and written whole or not at all."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fsspec import AbstractFileSystem

from pipeline import object_store
from pipeline.errors import StoreError, UserError
from pipeline.object_store import is_local as is_local
from pipeline.object_store import public as public
from pipeline.object_store import scrub as scrub

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written; readers never look at such names."""


@dataclass(frozen=True)
class Fingerprint:
    """What can be known of a file's content without reading it."""

    size: int
    etag: str = ""  # object stores and web servers
    mtime_ns: int = 0  # local files


def join(base: str, *parts: str) -> str:
    return "/".join([base.removesuffix("/"), *parts]) if parts else base


def absolute(url: str) -> str:
    """The same place written so that it does not depend on the working directory."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return os.path.abspath(Path(url).expanduser()) if is_local(url) else url  # noqa: PTH100


def open_read(url: str) -> IO[bytes]:
    """A readable binary stream; raises OSError where there is none."""
    return open(url, "rb") if is_local(url) else object_store.open_read(url)  # noqa: PTH123


def exists(url: str) -> bool:
    if is_local(url):
        return Path(url).exists()
    return object_store.ask(url, lambda fs, path: fs.exists(path))


def read_bytes(url: str) -> bytes:
    return Path(url).read_bytes() if is_local(url) else object_store.read_bytes(url)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Some bytes of a file, fewer where it ends before; thread-safe."""
    if not is_local(url):
        return object_store.read_range(url, offset, size)
    with open(url, "rb", buffering=0) as f:  # noqa: PTH123
        return os.pread(f.fileno(), size, offset)


def fingerprint(url: str) -> Fingerprint:
    """Size and ETag (or modification time) of a file; raises FileNotFoundError."""
    if is_local(url):
        stat = Path(url).stat()
        return Fingerprint(size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    info = object_store.ask(url, lambda fs, path: fs.info(path))
    etag = info.get("ETag") or info.get("etag") or info.get("blob_id") or ""
    size = info.get("size")  # servers need not tell it
    return Fingerprint(size=-1 if size is None else int(size), etag=str(etag).strip('"'))


def list_files(folder: str, suffix: str) -> list[str]:
    """The files directly in a folder whose name ends so, sorted; none where it does not exist."""
    if is_local(folder):
        found = [str(p) for p in Path(folder).glob("*" + suffix)] if Path(folder).is_dir() else []
    else:
        urls = object_store.ask(folder, _listed)
        found = [url for url in urls if url.endswith(suffix)]
    return sorted(f for f in found if not f.rsplit("/", 1)[-1].startswith("."))


def _listed(fs: AbstractFileSystem, path: str) -> list[str]:
    names = fs.ls(path, detail=False) if fs.isdir(path) else []
    return [fs.unstrip_protocol(name) for name in names]


def glob(folder: str, pattern: str) -> list[str]:
    """The files below a folder that match, sorted; what the folder is called is no pattern."""
    if is_local(folder):
        return sorted(str(path) for path in Path(folder).glob(pattern))

    def found(fs: AbstractFileSystem, path: str) -> list[str]:
        return sorted(fs.unstrip_protocol(name) for name in fs.glob(f"{path}/{pattern}"))

    return object_store.ask(folder, found)


@contextlib.contextmanager
def write_atomic(url: str) -> Iterator[Path]:
    """Gives a local path to write to; on leaving the block it becomes `url`, whole, or nothing does.

    Local: a hidden file beside the target, synced, then renamed, then the folder synced.
    Object stores: a local temporary file, then one upload. Deleting the path abandons the write.
    """
    folder = str(Path(url).parent) if is_local(url) else tempfile.gettempdir()
    try:
        with _renamed(Path(url)) if is_local(url) else _uploaded(url) as part:
            yield part
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise cannot_write(folder, e) from e
        raise


@contextlib.contextmanager
def _renamed(target: Path) -> Iterator[Path]:
    part = _made(str(target.parent)) / f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        yield part
        if part.exists():
            with part.open("rb") as f:
                os.fsync(f.fileno())
            part.replace(target)
            _sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _uploaded(url: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / "part"
        yield part
        if part.exists():
            try:
                object_store.upload(str(part), url)
            except StoreError as e:
                if e.refused:
                    raise UserError(f"OUT: cannot write {e.url}: {e.why}", e.hint) from e
                raise


def write_bytes(url: str, data: bytes) -> None:
    """Writes a small file atomically."""
    with write_atomic(url) as part:
        part.write_bytes(data)


def remove(url: str) -> None:
    """Deletes a file that may not exist."""
    if is_local(url):
        Path(url).unlink(missing_ok=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            object_store.ask(url, lambda fs, path: fs.rm_file(path))


def remove_folder(folder: str) -> None:
    """Removes a local folder that is empty; object stores have none."""
    if is_local(folder):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def remove_temporaries(folder: str) -> None:
    """Deletes what writers that were killed left behind; call it under `exclusive`."""
    if is_local(folder) and Path(folder).is_dir():
        for part in Path(folder).glob(f".*{TEMPORARY}"):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(
    folder: str, *, wait: bool = False, hint: str = "wait for it, or give another RUN"
) -> Iterator[None]:
    """Holds a local folder for one job; UserError where another job holds it, unless it may wait.

    The lock is the kernel's, so it goes with the process, however that ends. Object stores and
    some network file systems have no such lock: there, two jobs on one run do the same work
    twice and write the same bytes.
    """
    if not is_local(folder):
        yield
        return
    try:
        lock = (_made(folder) / ".lock").open("w")
    except OSError as e:
        raise cannot_write(folder, e) from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being written by another job", hint) from None
        except OSError as e:
            if e.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        yield


def _made(folder: str) -> Path:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise cannot_write(folder, e) from e
    return path


def require_writable(folder: str) -> None:
    """UserError, before any work is done, where a folder cannot be made or written to."""
    if not is_local(folder):
        probe = join(folder, f".{uuid.uuid4().hex[:8]}{TEMPORARY}")
        write_bytes(probe, b"writable")
        remove(probe)
        return
    probe = _made(folder) / f".{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        probe.write_bytes(b"writable")
    except OSError as e:
        raise cannot_write(folder, e) from e
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def require_local(folder: str, flag: str = "OUT") -> None:
    """UserError where what needs a disk of its own is to be written to an object store."""
    if not is_local(folder):
        raise UserError(
            f"{flag}={public(folder)} is no folder of this machine, and this verb writes only to one",
            f"give a local {flag}, and copy it when it is done",
        )


def cannot_write(folder: str, error: OSError) -> UserError:
    path = Path(folder)
    existing = next((p for p in (path, *path.parents) if p.exists()), path)
    free = ""
    with contextlib.suppress(OSError):
        free = f", {shutil.disk_usage(existing).free / 1e9:.1f} GB free"
    why = os.strerror(error.errno) if error.errno else str(error)
    return UserError(
        f"OUT: cannot write in {folder}: {why}{free}",
        "free space or give a folder that you may write to, then run the same command again",
    )


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
