"""Object stores and web servers: asked patiently, read to the byte, and their refusals told in one line."""

import errno
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from pipeline.errors import StoreError, UserError

_Found = TypeVar("_Found")

_S3_SCHEMES = ("s3", "s3a")
_SHARED = (*_S3_SCHEMES, "gs", "gcs", "abfs", "abfss", "az")
"""Stores that other processes write to while this one runs."""

_S3 = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"mode": "standard", "total_max_attempts": 6},
    }
}
"""botocore asks again after 5xx, SlowDown, resets and timeouts, and waits longer each time; s3fs asks
again where an answer was cut."""

_WAITS = (0.5, 2.0)
"""Seconds before everything is tried once more that failed nevertheless."""

_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CREDENTIALS = re.compile(r"(?<=https://)[^/\s@]*@|(?<=http://)[^/\s@]*@")
_QUERY = re.compile(r"(https?://[^\s?#'\"]+)[?#][^\s'\")]*")
_BUFFER_BYTES = 1 << 20
_PART_BYTES = 1 << 29  # s3fs sends what is smaller than two parts by one request
_LEAST_SECRET = 6  # characters: masking shorter ones would garble messages


def is_local(url: str) -> bool:
    return "://" not in url


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system that answers for a URL, and the URL's path there.

    It keeps no listings: those of a store age as soon as another process writes to it.
    """
    options = {"use_listings_cache": False} if _scheme(url) in _SHARED else {}
    return url_to_fs(url, **options | (_S3 if _scheme(url) in _S3_SCHEMES else {}))


def _scheme(url: str) -> str:
    return url.split("://")[0]


def ask(url: str, question: Callable[[AbstractFileSystem, str], _Found]) -> _Found:
    """question(file system, path), asked again where a store fails; it must be fit for that.

    Raises FileNotFoundError, StoreError.
    """
    return _patiently(url, lambda: question(*filesystem(url)))


def _patiently(url: str, question: Callable[[], _Found]) -> _Found:
    for wait in _WAITS:
        try:
            with told(url):
                return question()
        except StoreError as e:
            if e.refused:
                raise
            time.sleep(wait)
    with told(url):
        return question()


@contextmanager
def told(url: str) -> Iterator[None]:
    """Makes a StoreError of whatever a store's library raises; FileNotFoundError stays."""
    try:
        yield
    except (StoreError, UserError):
        raise
    except Exception as e:  # stores raise whatever they like
        if isinstance(e, FileNotFoundError) and not _is_of_bucket(e):
            raise
        why = " ".join(scrub(str(e) or type(e).__name__, url).split())[:300]
        remedy = _remedy(e)
        raise StoreError(
            public(url),
            why,
            remedy or "see whether it can be reached, and go on",
            refused=bool(remedy),
        ) from e


def _remedy(error: Exception) -> str:
    """What the user can do where asking again is of no use, else nothing."""
    kind = type(error).__name__
    if _is_of_bucket(error):
        return "make that bucket, or name another"
    if "Credential" in kind or isinstance(error, PermissionError):
        return "check your credentials and what they permit"
    if isinstance(error, ImportError):
        return "install that package"
    is_invalid = isinstance(error, OSError) and error.errno == errno.EINVAL
    if is_invalid or isinstance(error, ValueError) or kind == "ParamValidationError":
        return "check the address"
    return ""


def _is_of_bucket(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) and "bucket does not exist" in str(error)


class Stream(io.RawIOBase):
    """A file of a store, whole: an answer that ends early is asked for again, never taken for the end."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._file = ask(url, lambda fs, path: fs.open(path, "rb"))
        self._size: int | None = getattr(self._file, "size", None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:
        return _patiently(self._url, lambda: self._read_into(buffer))

    def _read_into(self, buffer: memoryview) -> int:
        data = self._file.read(len(buffer))
        if not data and len(buffer) and self._size is not None and self.tell() < self._size:
            why = f"was sent only to byte {self.tell()} of {self._size}"
            raise StoreError(public(self._url), why, "run the same command again")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_read(url: str) -> io.BufferedReader:
    """A readable binary stream; raises FileNotFoundError, StoreError."""
    return io.BufferedReader(Stream(url), _BUFFER_BYTES)


def read_bytes(url: str) -> bytes:
    with open_read(url) as f:
        return b"".join(iter(lambda: f.read(_BUFFER_BYTES), b""))


def upload(path: str, url: str) -> None:
    """Puts a local file in its place: whole, or nothing; up to 1 GiB by one request.

    A large file's parts stay where nobody sees them if the answer to the first request is lost.
    """
    parts = {"chunksize": _PART_BYTES, "max_concurrency": 1} if _scheme(url) in _S3_SCHEMES else {}
    ask(url, lambda fs, place: fs.put_file(path, place, **parts))


def read_range(url: str, offset: int, size: int) -> bytes:
    """Some bytes of a file, fewer only where it ends before."""
    data = b""
    while True:
        start, left = offset + len(data), size - len(data)
        part = ask(url, partial(_part, start=start, size=left))
        data += part
        if len(part) >= left or start + len(part) >= ask(url, _size):
            return data
        if not part:
            why = f"was sent only to byte {start} of {offset + size}"
            raise StoreError(public(url), why, "run the same command again")


def _part(fs: AbstractFileSystem, path: str, start: int, size: int) -> bytes:
    try:
        return fs.cat_file(path, start=start, end=start + size)
    except OSError as e:  # S3 has no range behind the end
        if e.errno == errno.EINVAL and start >= _size(fs, path):
            return b""
        raise


def _size(fs: AbstractFileSystem, path: str) -> int:
    """0 where a server does not tell: then what came is all."""
    return int(fs.info(path).get("size") or 0)


def public(url: str) -> str:
    """The URL without user, password, query and fragment: fit for a table or a log."""
    if is_local(url):
        return url
    url = re.split("[?#]", url, maxsplit=1)[0]
    if url.startswith("abfs"):  # abfs://container@account
        return url
    return re.sub("(?<=://)[^/]*@", "", url)


def scrub(text: str, url: str) -> str:
    """The text with every mention of a URL, or of what is secret in it or in the environment, made public.

    Libraries quote URLs in another spelling than they were given, or those that a server led them to.
    """
    secrets = [os.environ.get(name) for name in _SECRETS]
    if not is_local(url):
        parts = urlsplit(url)
        text = text.replace(url, public(url))
        text = text.replace(parts.query, "***") if parts.query else text
        values = (value for _, value in parse_qsl(parts.query) if len(value) >= _LEAST_SECRET)
        secrets += [parts.netloc.rpartition("@")[0], parts.password, *values]
    for secret in secrets:
        text = text.replace(secret, "***") if secret else text
    return _QUERY.sub(r"\1", _CREDENTIALS.sub("", text))
