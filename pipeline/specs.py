"""What SHARDS or URLS may say: a file, a folder, a glob, a brace pattern, or @list.txt, here or remote."""

from braceexpand import braceexpand
from fsspec.core import url_to_fs

from pipeline import storage
from pipeline.errors import UserError


def expand(spec: str, *, flag: str = "SHARDS", suffixes: tuple[str, ...] = (".tar",)) -> list[str]:
    """The URLs of the shards (or other files) that a spec names, in a fixed order, each once.

    flag: what users call the spec. suffixes: a folder means its files that end in one of these.
    Raises UserError where nothing matches; whether each file of a brace pattern or a list exists
    is found out when it is opened.
    """
    spec = spec.strip()
    if not spec:
        raise UserError(
            f"{flag} is empty", f"give a {suffixes[0][1:]}, a folder, a glob, braces or @list.txt"
        )
    if spec.startswith("@"):
        lines = _list_lines(spec[1:], flag)
        urls = [url for line in lines for url in _expand_one(line, flag, suffixes)]
    else:
        urls = _expand_one(spec, flag, suffixes)
    if not urls:
        holds = " or ".join(f"*{suffix}" for suffix in suffixes)
        raise UserError(
            f"{flag}: nothing matches {storage.public(spec)}", f"a folder must hold {holds} files"
        )
    return list(dict.fromkeys(storage.absolute(url) for url in urls))


def _list_lines(path: str, flag: str) -> list[str]:
    try:
        text = storage.read_bytes(storage.absolute(path)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"{flag}: cannot read the list {storage.public(path)}: {storage.scrub(str(e), path)}",
            f"a list names one of {flag} a line",
        ) from e
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _expand_one(spec: str, flag: str, suffixes: tuple[str, ...]) -> list[str]:
    if spec.startswith(("pipe:", "-")):
        raise UserError(f"{flag}: {spec} is not a file", f"{flag} are read, never run")
    try:
        patterns = list(braceexpand(spec))
    except ValueError as e:
        raise UserError(
            f"{flag}: {storage.public(spec)}: {type(e).__name__}",
            f"for example 'raw/{{00000..00099}}{suffixes[0]}'",
        ) from e
    return [url for pattern in patterns for url in _files(pattern, flag, suffixes)]


def _files(pattern: str, flag: str, suffixes: tuple[str, ...]) -> list[str]:
    scheme = pattern.split("://")[0] if "://" in pattern else ""
    is_glob = any(c in pattern for c in "*?[")
    if scheme in ("http", "https") or (pattern.endswith(suffixes) and not is_glob):
        return [pattern]  # a file by its name: asking a store about each would take minutes
    url = storage.absolute(pattern)
    try:
        fs, path = url_to_fs(url)
        if is_glob and not (storage.is_local(url) and fs.exists(path)):
            return sorted(_url(fs, p, scheme) for p in fs.glob(path) if not _is_hidden(p, path))
        if fs.isdir(path):
            return sorted(file for s in suffixes for file in storage.list_files(url, s))
    except Exception as e:  # stores raise whatever they like
        why = " ".join(storage.scrub(str(e), pattern).split())
        raise UserError(
            f"{flag}: {storage.public(pattern)}: {why}", "check the address and your credentials"
        ) from e
    return [pattern]


def _is_hidden(path: str, pattern: str) -> bool:
    name, wanted = path.rsplit("/", 1)[-1], pattern.rsplit("/", 1)[-1]
    return name.startswith(".") and not wanted.startswith(".")


def _url(fs: object, path: str, scheme: str) -> str:
    return fs.unstrip_protocol(path) if scheme else path
