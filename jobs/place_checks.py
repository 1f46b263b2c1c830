"""What the doctor checks of the places that a job reads and writes: names, credentials, access, space, clocks."""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from jobs.finding import Finding, fail, note, ok
from pipeline import storage
from pipeline.errors import UserError

GB = 1e9
_LEAST_FREE, _GOOD_FREE = 1 * GB, 10 * GB
_SYNCED_BYTES = 1 << 16
_SKEW_SEC = 60.0  # S3 refuses requests that are signed 15 minutes off
_PATIENCE_SEC = 10.0
_HUB = "huggingface.co"
_TAR_BLOCK = 512
_OLDEST = 1735689600.0  # 2025-01-01: before any version of this package


def names(urls: list[str]) -> list[Finding]:
    """Whether names become addresses: those in URLs, or else the one that weights come from."""
    hosts = sorted({host for url in urls if (host := _host(url))})
    if not hosts:
        if _resolves(_HUB):
            return [ok("dns", f"{_HUB} has an address")]
        return [note("dns", f"{_HUB} has no address: no downloads of weights, and no crawls")]
    lost = [host for host in hosts if not _resolves(host)]
    if lost:
        remedy = "check the spelling, /etc/resolv.conf, and the network or proxy of this machine"
        return [fail("dns", f"no address of {', '.join(lost)}", remedy)]
    return [ok("dns", f"addresses of {', '.join(hosts)}")]


def _host(url: str) -> str:
    """The host that a URL is asked of; a bucket's is the endpoint's."""
    if storage.is_local(url):
        return ""
    scheme = urlsplit(url).scheme
    if scheme in ("s3", "s3a"):
        return urlsplit(_endpoint()).hostname or "s3.amazonaws.com"
    known = {"gs": "storage.googleapis.com", "gcs": "storage.googleapis.com", "hf": _HUB}
    if scheme in known:
        return known[scheme]
    return urlsplit(url).hostname or "" if scheme in ("http", "https", "ray") else ""


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def credentials(urls: list[str]) -> list[Finding]:
    """Whether there are any for s3:// URLs; of what they are, nothing is told."""
    if not any(urlsplit(url).scheme in ("s3", "s3a") for url in urls):
        return []
    try:
        import s3fs  # noqa: F401
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session
    except ImportError:
        return [fail("s3", "s3fs is not installed", "pip install 'recaption[s3]'")]
    halves = [
        bool(os.environ.get(f"AWS_{name}")) for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    ]
    give = "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role to the machine"
    if halves[0] != halves[1]:
        which = "AWS_SECRET_ACCESS_KEY" if halves[0] else "AWS_ACCESS_KEY_ID"
        return [fail("s3", f"half of the credentials: {which} is not set", give)]
    try:
        found = get_session().get_credentials()
    except (BotoCoreError, OSError) as e:
        return [fail("s3", f"credentials cannot be read: {type(e).__name__}", give)]
    if found is None:
        return [fail("s3", "no credentials", give)]
    return [ok("s3", f"credentials by {found.method}")]


def output(out: str, needed: float = 0.0) -> list[Finding]:
    """Whether OUT can be written to and has space; needed: bytes of the images that go there."""
    if not storage.is_local(out):
        return [_store(out)]
    folder = next(p for p in (Path(out).absolute(), *Path(out).absolute().parents) if p.exists())
    found = [_written(out, folder)]
    usage = shutil.disk_usage(folder)
    saw = f"{usage.free / GB:.1f} of {usage.total / GB:.1f} GB free at {out}"
    if needed:
        saw += f", for {needed / GB:.1f} GB of shards"
    space = "free space, or another OUT"
    if usage.free < max(_LEAST_FREE, needed):
        found.append(fail("disk", saw, space))
    elif usage.free < _GOOD_FREE:
        found.append(note("disk", saw, space))
    else:
        found.append(ok("disk", saw))
    return found


def _written(out: str, folder: Path) -> Finding:
    """Writes, syncs, locks and removes a file where OUT is or will be."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor", suffix=".tmp") as probe:
            probe.write(b"\0" * _SYNCED_BYTES)
            probe.flush()
            os.fsync(probe.fileno())
            written = os.fstat(probe.fileno()).st_mtime
            locks = True
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                locks = False
    except OSError as e:
        why = storage.cannot_write(out, e)
        return fail("out", why.message, "free space, or give a folder that you may write to")
    if abs(written - time.time()) > _SKEW_SEC:
        return fail(
            "out",
            f"{out} is on a machine whose clock is {abs(written - time.time()):.0f} s off",
            "set both clocks by NTP",
        )
    if not locks:
        return note("out", f"{out} has no locks: two jobs on one RUN would not see each other")
    return ok("out", f"{out} can be written to")


def _store(out: str) -> Finding:
    """Puts an object and removes it."""
    url = storage.join(out, f".doctor-{os.getpid()}.tmp")
    try:
        storage.write_bytes(url, b"writable")
        storage.remove(url)
    except Exception as e:  # stores raise whatever they like
        remedy = "check the bucket's name and region, and that your credentials may put objects"
        return fail("out", f"cannot write in {storage.public(out)}: {_line(e, out)}", remedy)
    return ok("out", f"{storage.public(out)} can be written to")


def shards(spec: str) -> tuple[list[Finding], list[str]]:
    """Whether SHARDS names any, and the first can be read; and their URLs."""
    from pipeline import specs

    try:
        urls = specs.expand(spec)
    except UserError as e:
        return [fail("shards", e.message, e.hint)], []
    url, public = urls[0], storage.public(urls[0])
    try:
        head = storage.read_range(url, 0, _TAR_BLOCK)
    except Exception as e:  # stores raise whatever they like
        saw = f"cannot read {public}: {_line(e, url)}"
        return [fail("shards", saw, "check the address and your credentials")], urls
    if len(head) < _TAR_BLOCK or head[257:262] != b"ustar":
        return [fail("shards", f"{public} is no tar", "SHARDS are webdataset tars")], urls
    return [ok("shards", f"{len(urls)}, of which the first can be read: {public}")], urls


def local_bytes(urls: list[str]) -> float:
    """Bytes of the shards that are on this machine; those elsewhere are not asked for."""
    total = 0
    for url in urls:
        if storage.is_local(url):
            with contextlib.suppress(OSError):
                total += Path(url).stat().st_size
    return float(total)


def clock(urls: list[str]) -> list[Finding]:
    """This machine's clock against the servers of the URLs."""
    now = time.time()
    if now < _OLDEST:
        day = time.strftime("%Y-%m-%d", time.gmtime(now))
        return [fail("clock", f"it says {day}", "set the clock by NTP: timedatectl set-ntp true")]
    asked = {}
    for url in urls:
        scheme, host = urlsplit(url).scheme, _host(url)
        if scheme in ("http", "https"):
            asked[host] = storage.public(url)
        elif host:
            asked[host] = _endpoint() or f"https://{host}/"
    told = {host: then for host, url in asked.items() if (then := _time_at(url)) is not None}
    off = {host: then - time.time() for host, then in told.items()}
    wrong = [f"{abs(by):.0f} s {'behind' if by > 0 else 'ahead of'} {h}" for h, by in off.items()]
    wrong = [text for text, by in zip(wrong, off.values(), strict=True) if abs(by) > _SKEW_SEC]
    if wrong:
        remedy = "set the clock by NTP: timedatectl set-ntp true"
        return [fail("clock", f"this machine's is {', '.join(wrong)}", remedy)]
    return [ok("clock", f"as that of {', '.join(told)}" if told else "plausible")]


def _time_at(url: str) -> float | None:
    """The time that a web server tells with whatever it answers; None where it tells none."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_SEC) as answer:
            told = answer.headers.get("Date")
    except urllib.error.HTTPError as e:
        told = e.headers.get("Date")
    except (OSError, ValueError):
        return None
    try:
        return parsedate_to_datetime(told).timestamp() if told else None
    except ValueError:
        return None


def _line(error: Exception, url: str) -> str:
    return storage.scrub(" ".join(f"{type(error).__name__}: {error}".split())[:200], url)
