"""Files on disk or in an object store, read as streams and written whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from pipeline.errors import UserError

TEMPORARY = ".tmp"
"""Suffix of a file that is still being written; readers never look at such names."""


@dataclass(frozen=True)
class Fingerprint:
    """What can be known of a file's content without reading it."""

    size: int
    etag: str = ""  # object stores and web servers
    mtime_ns: int = 0  # local files


def is_local(url: str) -> bool:
    return "://" not in url


def join(base: str, *parts: str) -> str:
    return "/".join([base.removesuffix("/"), *parts]) if parts else base


def absolute(url: str) -> str:
    """The same place written so that it does not depend on the working directory."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    return os.path.abspath(Path(url).expanduser()) if is_local(url) else url  # noqa: PTH100


def public(url: str) -> str:
    """The URL without user, password, query and fragment: fit for a table or a log."""
    if is_local(url):
        return url
    url = re.split("[?#]", url, maxsplit=1)[0]
    if url.startswith("abfs"):  # abfs://container@account
        return url
    return re.sub("(?<=://)[^/]*@", "", url)


def scrub(text: str, url: str) -> str:
    """The text with every mention of a URL, or of what is secret in it, made public."""
    parts = urlsplit(url)
    text = text.replace(url, public(url))
    secrets = [parts.query, parts.netloc.rpartition("@")[0], parts.password]
    for secret in secrets if not is_local(url) else []:
        text = text.replace(secret, "***") if secret else text
    return text


def open_read(url: str) -> IO[bytes]:
    """A readable binary stream; raises OSError where there is none."""
    return open(url, "rb") if is_local(url) else fsspec.open(url, "rb").open()  # noqa: PTH123


def exists(url: str) -> bool:
    if is_local(url):
        return Path(url).exists()
    fs, path = url_to_fs(url)
    return fs.exists(path)


def read_bytes(url: str) -> bytes:
    with open_read(url) as f:
        return f.read()


def read_range(url: str, offset: int, size: int) -> bytes:
    """Some bytes of a file, fewer where it ends before; thread-safe."""
    if is_local(url):
        with open(url, "rb", buffering=0) as f:  # noqa: PTH123
            return os.pread(f.fileno(), size, offset)
    fs, path = url_to_fs(url)
    return fs.cat_file(path, start=offset, end=offset + size)


def fingerprint(url: str) -> Fingerprint:
    """Size and ETag (or modification time) of a file; raises FileNotFoundError."""
    if is_local(url):
        stat = Path(url).stat()
        return Fingerprint(size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    fs, path = url_to_fs(url)
    info = fs.info(path)
    etag = info.get("ETag") or info.get("etag") or info.get("blob_id") or ""
    return Fingerprint(size=int(info.get("size") or -1), etag=str(etag).strip('"'))


def list_files(folder: str, suffix: str) -> list[str]:
    """The files directly in a folder whose name ends so, sorted; none where it does not exist."""
    if is_local(folder):
        found = [str(p) for p in Path(folder).glob("*" + suffix)] if Path(folder).is_dir() else []
    else:
        fs, path = url_to_fs(folder)
        names = fs.ls(path, detail=False) if fs.isdir(path) else []
        found = [fs.unstrip_protocol(name) for name in names if name.endswith(suffix)]
    return sorted(f for f in found if not f.rsplit("/", 1)[-1].startswith("."))


def glob(folder: str, pattern: str) -> list[str]:
    """The files below a folder that match, sorted; what the folder is called is no pattern."""
    if is_local(folder):
        return sorted(str(path) for path in Path(folder).glob(pattern))
    fs, path = url_to_fs(folder)
    return sorted(fs.unstrip_protocol(name) for name in fs.glob(f"{path}/{pattern}"))


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
            fs, path = url_to_fs(url)
            fs.put_file(str(part), path)


def write_bytes(url: str, data: bytes) -> None:
    """Writes a small file atomically."""
    with write_atomic(url) as part:
        part.write_bytes(data)


def remove(url: str) -> None:
    """Deletes a file that may not exist."""
    if is_local(url):
        Path(url).unlink(missing_ok=True)
    else:
        fs, path = url_to_fs(url)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


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
    """UserError, before any work is done, where a local folder cannot be made or written to."""
    if not is_local(folder):
        return
    probe = _made(folder) / f".{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        probe.write_bytes(b"writable")
    except OSError as e:
        raise cannot_write(folder, e) from e
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


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
