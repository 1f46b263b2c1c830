"""Samples of a webdataset tar, streamed: nothing is extracted, unpickled or run."""

import hashlib
import itertools
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO

from pipeline import storage, tombstones
from pipeline.limits import MAX_BYTES
from pipeline.manifest import Shard
from pipeline.samples import Sample, uid_of

IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    *("jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "tga", "ico", "psd", "heic", "heif", "img", "bin"),
)
"""A sample's image is its first member with one of these suffixes, in this order of preference."""

READING_REASONS = ("no_image", "empty", "too_many_bytes", "killed_worker", tombstones.TAKEN_DOWN)
"""Why a sample comes without its image; what decoding finds is in `pipeline.images`."""

STUB = "__taken_down__/"
"""Begins the name of the member that stands where a sample was cut out: the rest is its key, the
content its uid. Readers of webdatasets skip it, as `__meta__` members; ours yields a sample without
content, so that rows made before and after have the same order."""

MAX_TEXT_BYTES = 1 << 16
MAX_JSON_BYTES = 1 << 20
MAX_JSON_DEPTH = 64
MAX_MEMBERS_PER_KEY = 64
_UID = re.compile(r"[0-9a-f]{32}\Z")
_READ_BYTES = 1 << 20
_MAX_EXTENSION_BYTES = 1 << 20
_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset: up to the first dot of the name


class BadShard(Exception):
    """The shard as a whole cannot be used: torn, not a tar, or its members in disorder."""


@dataclass
class ReadReport:
    """What reading a shard to its end found; complete once the iterator is exhausted."""

    samples: int = 0
    sha256: str = ""  # empty where the ETag identifies the content, or only a part was read
    ignored: int = 0  # members that belong to no sample


@dataclass
class _Group:
    key: str
    members: dict[str, bytes | None] = field(default_factory=dict)  # None: over its limit
    offsets: dict[str, int] = field(default_factory=dict)  # of the members' bytes in the tar
    start: int = 0  # of the first member's header
    end: int = 0  # of the last member, its padding included
    buried: str | None = None  # the uid that a stub tells


def read_samples(
    shard: Shard, report: ReadReport | None = None, lost: frozenset[int] = frozenset()
) -> Iterator[Sample]:
    """Yields every sample of a shard in order; memory does not grow with the shard.

    What its data folder buried comes without image, text and meta, TAKEN_DOWN as the reason.

    lost: indices of samples that killed the process before; they come without their image.
    Raises BadShard, naming the shard and the cause, for a torn tar, a tar that holds fewer
    samples than its stats promise, and members of one key that are not adjacent.
    """
    report = report if report is not None else ReadReport()
    expected = _promised(shard)
    buried = tombstones.at(shard.tombstones)
    try:
        with storage.open_read(shard.url) as file:
            stream = _Hashing(file, wanted=not shard.etag)
            for group in _groups(shard, stream, report):
                if shard.limit is not None and report.samples == shard.limit:
                    break
                sample = _sample(shard.name, report.samples, group, lost)
                if buried and sample.reason != tombstones.TAKEN_DOWN and buried.bury(sample):
                    sample = _buried(sample.index, sample.uid, sample.key)
                yield sample
                report.samples += 1
            if shard.limit is None or storage.is_local(shard.url):
                report.sha256 = stream.finish()
    except (EOFError, tarfile.TarError) as e:
        raise _bad(shard, f"torn: {e}") from e
    except FileNotFoundError as e:
        raise _bad(shard, "does not exist any more") from e
    if shard.limit is None and expected is not None and report.samples < expected:
        raise _bad(shard, f"holds {report.samples} samples where its stats promise {expected}")


def count_samples(shard: Shard, stop: int | None = None) -> int:
    """How many samples the shard holds, counting no further than `stop`."""
    return sum(1 for _ in itertools.islice(read_samples(shard), stop))


def _promised(shard: Shard) -> int | None:
    """The number of samples, from our manifest or the stats that img2dataset wrote beside it."""
    if shard.samples is not None or not shard.url.endswith(".tar"):
        return shard.samples
    beside = shard.url.removesuffix(".tar") + "_stats.json"
    try:
        stats = json.loads(storage.read_bytes(beside))
        return int(stats["successes"])
    except Exception:  # stores raise whatever they like; no promise is no harm
        return None


def _bad(shard: Shard, why: str) -> BadShard:
    return BadShard(f"{storage.public(shard.url)}: {why}")


class _Hashing:
    """A forward-only stream that hashes what passes."""

    def __init__(self, file: IO[bytes], wanted: bool) -> None:
        self._file = file
        self._hash = hashlib.sha256() if wanted else None

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if self._hash:
            self._hash.update(data)
        return data

    def finish(self) -> str:
        """Reads what is left and returns the hash of everything, or "" where none was wanted."""
        if not self._hash:
            return ""
        while self.read(_READ_BYTES):
            pass
        return self._hash.hexdigest()


class _Header(tarfile.TarInfo):
    """tarfile ends silently at a damaged or missing header; this notes which it was.

    It also refuses a long name or PAX block of absurd size, which tarfile would read at once.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > _MAX_EXTENSION_BYTES:
            raise tarfile.InvalidHeaderError(f"a name or extension of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tar: "_Tar") -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as e:
            tar.ended_by = e
            raise


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    ended_by: tarfile.HeaderError | None = None


def _groups(shard: Shard, stream: _Hashing, report: ReadReport) -> Iterator[_Group]:
    """Runs of members with one key."""
    seen: set[str] = set()
    group: _Group | None = None
    options = {"bufsize": _READ_BYTES, "encoding": "utf-8"}
    with _Tar.open(fileobj=stream, mode="r|", **options) as tar:
        for member in tar:
            tar.members.clear()  # else tarfile keeps every header
            name = member.name.encode("utf-8", "backslashreplace").decode().removeprefix("./")
            found = key_and_suffix(name) if member.isreg() else None
            if found is None:
                report.ignored += not member.isdir()
                continue
            key, suffix = found
            if group is None or key != group.key:
                if group is not None:
                    yield group
                if key in seen:
                    raise _bad(shard, f"members of key {key!r} are not adjacent; repack it by key")
                seen.add(key)
                group = _Group(key, start=member.offset)
            if name.startswith(STUB):
                group.buried = _told(tar, member)
            if suffix in group.members or len(group.members) == MAX_MEMBERS_PER_KEY:
                raise _bad(shard, f"key {key!r} has {suffix!r} twice, or too many members")
            group.members[suffix] = _content(tar, member, suffix)
            group.offsets[suffix] = member.offset_data
            group.end = (
                member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            )
        _check_end(shard, tar)
    if group is not None:
        yield group


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """Which sample a member belongs to, and as what; None for one that belongs to no sample.

    A key is what stands before the first dot of the file's name. A stub has no suffix.
    """
    if name.startswith(STUB):
        return name.removeprefix(STUB), ""
    match = _KEY.match(name)
    if not match or _is_no_sample(name.rsplit("/", 1)[-1]):
        return None
    return match[1], match[2].lower()


def _told(tar: tarfile.TarFile, stub: tarfile.TarInfo) -> str:
    return tar.extractfile(stub).read(64).decode("ascii", "replace")


def _is_no_sample(name: str) -> bool:
    """webdataset's `__meta__` members, and hidden files such as macOS puts beside each file."""
    return name.startswith(".") or (name.startswith("__") and name.endswith("__"))


def _check_end(shard: Shard, tar: _Tar) -> None:
    """A tar cut between two members has no end mark, and then its last sample may be cut, too; one
    with a hole of zeros, or several tars in one file, have more behind their mark."""
    if isinstance(tar.ended_by, tarfile.EmptyHeaderError):
        raise _bad(shard, "torn: it ends without an end-of-archive mark; fetch or pack it anew")
    if not isinstance(tar.ended_by, tarfile.EOFHeaderError):
        raise _bad(shard, f"torn: {tar.ended_by or 'it is no tar'}")
    while rest := tar.fileobj.read(_READ_BYTES):
        if rest.count(0) < len(rest):
            raise _bad(shard, "has data behind its end-of-archive mark; fetch or pack it anew")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> bytes | None:
    """The bytes of a member that we use, None where it is over its limit."""
    limit = _limit(suffix)
    if limit == 0:
        return b""
    if member.size > limit:
        return None
    data = tar.extractfile(member).read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name!r} is cut off")
    return data


def _limit(suffix: str) -> int:
    """Most bytes of a member, 0 for one that is of no use to us."""
    last = suffix.rsplit(".", 1)[-1]
    limits = {"txt": MAX_TEXT_BYTES, "json": MAX_JSON_BYTES}
    return limits.get(suffix, MAX_BYTES if last in IMAGE_SUFFIXES else 0)


def sample_of(shard: str, key: str, members: Mapping[str, bytes]) -> Sample:
    """The sample that the members of a key make (suffix -> bytes), as `read_samples` yields it."""
    held = {s: data if len(data) <= _limit(s) else None for s, data in members.items()}
    return _sample(shard, 0, _Group(key, held), frozenset())


def _sample(shard: str, index: int, group: _Group, lost: frozenset[int]) -> Sample:
    if group.buried is not None:
        known = bool(_UID.match(group.buried))
        return _buried(index, group.buried if known else uid_of(shard, group.key), group.key)
    image, reason, member = _image(group.members)
    if index in lost:
        image, reason = b"", "killed_worker"
    meta, meta_status = _meta(group.members)
    ours = is_ours(meta)
    text, text_status = _text({} if ours else group.members, meta)
    return Sample(
        index=index,
        uid=meta["uid"] if ours or is_moved(meta) else uid_of(shard, group.key),
        key=group.key,
        span=(group.start, group.end),
        image=image,
        offset=group.offsets.get(member, -1),
        reason=reason,
        text=text,
        text_status=text_status,
        meta=meta,
        meta_status=meta_status,
    )


def _buried(index: int, uid: str, key: str) -> Sample:
    return Sample(index=index, uid=uid, key=key, reason=tombstones.TAKEN_DOWN)


def is_ours(meta: dict) -> bool:
    """From a training shard of ours: it keeps its uid, and its `.txt` is not the original text."""
    uid = meta.get("uid")
    return "caption_source" in meta and isinstance(uid, str) and bool(_UID.match(uid))


def is_moved(meta: dict) -> bool:
    """From a resharded raw shard: it tells whence it came, and its uid is the one of that place."""
    came = meta.get("source_shard"), meta.get("source_key")
    return all(isinstance(v, str) for v in came) and meta.get("uid") == uid_of(*came)


def _image(members: dict[str, bytes | None]) -> tuple[bytes, str, str]:
    """The image's bytes, or why there are none, and which member it is."""
    whole = [s for s in IMAGE_SUFFIXES if s in members]
    compound = sorted(m for m in members if m.rsplit(".", 1)[-1] in IMAGE_SUFFIXES)
    chosen = (whole or compound or [None])[0]
    if chosen is None:
        return b"", "no_image", ""
    data = members[chosen]
    if data is None:
        return b"", "too_many_bytes", chosen
    return data, "" if data else "empty", chosen


def _meta(members: dict[str, bytes | None]) -> tuple[dict, str]:
    if "json" not in members:
        return {}, "missing"
    try:
        meta = json.loads(members["json"] or b"", parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        meta = None
    usable = isinstance(meta, dict) and not _is_deeper(meta, MAX_JSON_DEPTH)
    return (meta, "ok") if usable else ({}, "invalid")


def _finite(number: str) -> float | None:
    """None for NaN and infinities: Python would read them, and then write what nobody reads."""
    value = float(number)
    return value if math.isfinite(value) else None


def _is_deeper(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(v, depth - 1) for v in inner)


def _text(members: dict[str, bytes | None], meta: dict) -> tuple[str | None, str]:
    """The original caption: `.txt`, or where there is none the `caption` of the `.json`."""
    if "txt" not in members:
        caption = meta.get("caption")
        if not isinstance(caption, str):
            return None, "missing"
        raw = caption.encode("utf-8", "surrogatepass")
    else:
        raw = members["txt"]
    if raw is None or len(raw) > MAX_TEXT_BYTES:
        return None, "too_long"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), "invalid_utf8"
    text = text.replace("\x00", "").strip()
    return text, "ok" if text else "empty"
