"""What SHARDS may say: a file, a folder, a glob, a brace pattern, or @list.txt, here or remote."""

from braceexpand import braceexpand
from fsspec.core import url_to_fs

from pipeline import storage
from pipeline.errors import UserError


def expand(spec: str) -> list[str]:
    """The shard URLs that a spec names, in a fixed order, each once.

    A folder means its `*.tar` files. Raises UserError where nothing matches; whether each file
    of a brace pattern or a list exists is found out when it is registered.
    """
    spec = spec.strip()
    if not spec:
        raise UserError("SHARDS is empty", "give a tar, a folder, a glob, a brace pattern or @list.txt")
    if spec.startswith("@"):
        urls = [url for line in _list_lines(spec[1:]) for url in _expand_one(line)]
    else:
        urls = _expand_one(spec)
    if not urls:
        raise UserError(f"SHARDS: nothing matches {spec}", "a folder must hold *.tar files")
    return list(dict.fromkeys(storage.absolute(url) for url in urls))


def _list_lines(path: str) -> list[str]:
    try:
        text = storage.read_bytes(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"SHARDS: cannot read the list {path}: {e}", "one shard a line") from e
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def _expand_one(spec: str) -> list[str]:
    if spec.startswith(("pipe:", "-")):
        raise UserError(f"SHARDS: {spec} is not a file", "shards are read, never run")
    try:
        patterns = list(braceexpand(spec))
    except ValueError as e:
        raise UserError(f"SHARDS: {spec}: {e}", "for example 'raw/{00000..00099}.tar'") from e
    return [url for pattern in patterns for url in _files(pattern)]


def _files(pattern: str) -> list[str]:
    scheme = pattern.split("://")[0] if "://" in pattern else ""
    if scheme in ("http", "https"):
        return [pattern]
    try:
        fs, path = url_to_fs(storage.absolute(pattern))
    except (ImportError, ValueError) as e:
        raise UserError(f"SHARDS: {storage.public(pattern)}: {e}", "install what it names") from e
    if any(c in path for c in "*?["):
        return sorted(_url(fs, p, scheme) for p in fs.glob(path))
    if fs.isdir(path):
        return storage.list_files(storage.absolute(pattern), ".tar")
    return [pattern]


def _url(fs: object, path: str, scheme: str) -> str:
    return fs.unstrip_protocol(path) if scheme else path
