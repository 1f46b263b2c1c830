"""URLs of a list as they go on the wire: http or https, a checked host and port, nothing else."""

import ipaddress
import re
from ipaddress import IPv4Address
from urllib.parse import quote, unquote, urljoin, urlsplit

from yarl import URL

from pipeline.crawl.reasons import Refused

MAX_CHARACTERS = 8_000
"""Longest URL; servers refuse far shorter ones."""

_PORTS = {"http": 80, "https": 443}
# Ports of other protocols, whose servers could be made to act on a request (the "bad ports" of
# the Fetch standard, 2.9).
_OTHERS = (
    "0 1 7 9 11 13 15 17 19 20 21 22 23 25 37 42 43 53 69 77 79 87 95 101 102 103 104 109 110 111 "
    "113 115 117 119 123 135 137 139 143 161 179 389 427 465 512 513 514 515 526 530 531 532 540 "
    "548 554 556 563 587 601 636 989 990 993 995 1719 1720 1723 2049 3659 4045 4190 5060 5061 6000 "
    "6566 6665 6666 6667 6668 6669 6679 6697 10080"
)
_BAD_PORTS = frozenset(map(int, _OTHERS.split()))
# What may stand in a path or a query as it is (RFC 3986 3.3, 3.4, and what browsers leave alone);
# the percent sign too: what is encoded already is sent byte for byte, or signatures would break.
_SAFE = "!$%&'()*+,-./:;=?@_~[]|"
_MAX_HOST = 253  # RFC 1035 2.3.4
_HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")  # blogs have names like "-a-"
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def parse(text: str) -> URL:
    """Read a URL of a list: percent-encoded, IDNA host, without credentials and fragment.

    Hosts that are numbers become plain IPv4 addresses ("0x7f.1" is 127.0.0.1), dots in paths are
    resolved (RFC 3986 5.2.4), so that robots rules see the path that the server will. Raises
    Refused (bad_url, bad_scheme, bad_port).
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        raise Refused("bad_url", f"longer than {MAX_CHARACTERS} characters")
    try:
        parts = urlsplit(text)
        scheme, host = parts.scheme, parts.hostname or ""
    except ValueError:
        raise Refused("bad_url", "not a URL") from None
    if not scheme:
        raise Refused("bad_url", "no scheme")
    if scheme not in _PORTS:
        raise Refused("bad_scheme", f"{scheme[:20]}: is neither http nor https")
    if "\\" in parts.netloc:
        raise Refused("bad_url", "a backslash in the host")
    host = _host(host)
    netloc = f"[{host}]" if ":" in host else host
    port = _port(parts)
    if port != _PORTS[scheme]:
        netloc += f":{port}"
    url = f"{scheme}://{netloc}{_without_dots(_quoted(parts.path))}"
    if parts.query:
        url += "?" + _quoted(parts.query)
    return URL(url, encoded=True)


def follow(url: URL, location: str) -> URL:
    """Resolve the Location of a redirect (RFC 9110 10.2.2), with the checks of `parse`."""
    if not location.strip():
        raise Refused("bad_redirect", "a redirect without Location")
    try:
        return parse(urljoin(str(url), location.strip()))
    except ValueError:
        raise Refused("bad_redirect", "the redirect's Location is no URL") from None


def literal(host: str) -> str | None:
    """Return the address that a host spells out, or None where it is a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def origin(url: URL) -> str:
    """Name a URL's server: scheme, host and port; safe to show."""
    return str(url.origin())


def _quoted(text: str) -> str:
    try:
        data = text.encode("utf-8", "surrogateescape")  # a header's bytes that are no UTF-8
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")
    return quote(data, _SAFE)


def _without_dots(path: str) -> str:
    """Resolve "." and ".." as a server will, also where they are percent-encoded."""
    if "/." not in path and "/%2" not in path:
        return path or "/"
    kept: list[str] = []
    parts = path.split("/")[1:]
    for place, part in enumerate(parts):
        dots = re.sub("%2e", ".", part, flags=re.I)
        if dots not in (".", ".."):
            kept.append(part)
            continue
        if dots == ".." and kept:
            kept.pop()
        if place == len(parts) - 1:
            kept.append("")  # what a path of a folder ends in
    return "/" + "/".join(kept)


def _port(parts: object) -> int:
    try:
        port = parts.port
    except ValueError:
        raise Refused("bad_port", "the port is no port") from None
    port = _PORTS[parts.scheme] if port is None else port
    if port in _BAD_PORTS:
        raise Refused("bad_port", f"port {port} is not for web servers")
    return port


def _host(host: str) -> str:
    """Give a host in its one spelling; raises Refused."""
    if ":" in host:
        try:
            # A zone ("%eth0") is of meaning on one machine only.
            return str(ipaddress.IPv6Address(host.replace("%", "!")))
        except ValueError:
            raise Refused("bad_url", "the host is no IPv6 address") from None
    host = unquote(host)
    if len(host) > _MAX_HOST + 1:  # with a dot at its end; before IDNA, whose time grows fast
        raise Refused("bad_url", "the host is no domain name")
    if not host.isascii():
        try:
            host = URL.build(scheme="http", host=host).raw_host or ""
        except ValueError:
            raise Refused("bad_url", "the host is no domain name") from None
    host = host.lower().removesuffix(".")
    if len(host) > _MAX_HOST or not _HOST.fullmatch(host):
        raise Refused("bad_url", "the host is no domain name")
    return _legacy(host) if _NUMBER.fullmatch(host.rpartition(".")[2]) else host


def _legacy(host: str) -> str:
    """Read an IPv4 address as the system would: of one to four parts, octal, decimal or hex."""
    *front, last = host.split(".")
    try:
        numbers = [_number(part) for part in front]
        if len(front) > 3 or any(number > 255 for number in numbers):
            raise ValueError
        number = _number(last)
        if number >= 256 ** (4 - len(front)):
            raise ValueError
    except ValueError:
        raise Refused("bad_url", "the host is no IPv4 address") from None
    for place, part in enumerate(numbers):
        number += part << 8 * (3 - place)
    return str(IPv4Address(number))


def _number(text: str) -> int:
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if len(text) > 1 and text.startswith("0") else 10)
