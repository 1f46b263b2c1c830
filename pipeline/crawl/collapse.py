"""Failures that speak of this side of the wire: a crawl that meets nearly nothing else has to stop."""

from collections import Counter, deque
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.crawl.resize import RESIZE_REASONS
from pipeline.errors import UserError

WINDOW = 200
"""URLs that are looked at together; fewer prove nothing."""

LEAST_HOSTS = 5
"""Of which they have to be: a list may name a few dead hosts many times in a row."""

_NAMES = (
    "check that names resolve on this machine (resolv.conf, a resolver of its own such as knot)"
)
_NETWORK = "check the network, the proxy and the firewall"
_BLOCKED = (
    "ask less of a host: a lower PER_HOST, a HOST_DELAY, and a CONTACT that owners can turn to"
)
_PATIENCE = "fewer at once (CONCURRENCY, WORKERS), or more TIMEOUT"
_DECODER = (
    "these are no pictures, or the decoders are broken: look at one, then at the installation"
)

_REMEDIES = {
    "dns": _NAMES,
    "no_such_host": _NAMES,
    "connect": _NETWORK,
    "tls": _NETWORK + ", and the certificates of this machine",
    "timeout": _NETWORK,
    "deadline": _PATIENCE,
    "shard_deadline": "give a longer DEADLINE, or a smaller SHARD_SIZE",
    "host_paused": _BLOCKED,
    "private_address": "names resolve to private addresses: a proxy's or a captive network's doing?",
    "truncated_body": _NETWORK,
    "http_429": _BLOCKED,
    "http_5xx": _NETWORK,
    "forbidden": _BLOCKED,
    "unauthorized": _BLOCKED,
    "bad_response": _NETWORK,
    "html_instead": "a proxy or a captive network may answer in place of the servers",
    "robots_unreachable": _NETWORK,
    "internal": "this is a fault of ours: the message says more",
    "not_an_image": _DECODER,
    "undecodable": _DECODER,
    "truncated": _NETWORK,
    "resize_failed": _DECODER,
}
SYSTEMIC = frozenset(_REMEDIES)
"""Reasons that hit one URL by itself, or nearly all of them where something here is wrong.

Dead pages, opt-outs, hash mismatches and pictures of the wrong size are not among them: those say
something of the list.
"""


class Collapse(UserError):
    """Nearly everything fails, for reasons on this side; what was written of it proves nothing."""


class Watch:
    """Sees how URLs end, shard after shard; `most` is the share of systemic failures that is borne.

    In the order of the list: those that end last are those that time out, and they would make any
    list look bad at its end.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._recent: deque[tuple[str, str]] = deque(maxlen=WINDOW)  # reason, host
        self._images: deque[tuple[str, str]] = deque(maxlen=WINDOW)  # of those whose bytes came
        self._unjudged: Counter[tuple[str, str]] = Counter()  # of shards too small by themselves
        self._alive: set[str] = set()  # a few hosts that gave an image
        self._example: dict[str, tuple[str, str]] = {}

    def see(self, url: str, reason: str, message: str) -> None:
        """Notes the next one; Collapse where the last ones show that the crawl collapses."""
        end = (reason, _host(url))
        self._unjudged[end] += 1
        if not reason and len(self._alive) <= LEAST_HOSTS:
            self._alive.add(end[1])
        if reason in SYSTEMIC:
            self._example.setdefault(reason, (url, message))
        if reason == "shard_deadline":
            return  # from some moment on it ends all that is left, of a good list, too
        self._recent.append(end)
        if _has_bytes(reason):
            self._images.append(end)
        if reason in SYSTEMIC:
            for last in (self._recent, self._images):
                self._judge(Counter(last), anywhere=False)

    def end(self) -> None:
        """The shard has no more: Collapse where all of it, and of small ones before, is the same."""
        if self._unjudged.total() < WINDOW:
            return
        self._judge(self._unjudged, anywhere=True)
        images = {end: n for end, n in self._unjudged.items() if _has_bytes(end[0])}
        self._judge(Counter(images), anywhere=True)
        self._unjudged.clear()

    def _judge(self, seen: Counter[tuple[str, str]], *, anywhere: bool) -> None:
        """anywhere: few hosts are enough where no other one ever gave an image."""
        total = seen.total()
        ill = [(end, n) for end, n in seen.items() if end[0] in SYSTEMIC]
        if total < WINDOW or sum(n for _, n in ill) <= self._most * total:
            return
        hosts = {host for (_, host), _ in ill}
        if len(hosts) >= LEAST_HOSTS or (anywhere and self._alive <= hosts):
            raise self._error(seen)

    def _error(self, seen: Counter[tuple[str, str]]) -> Collapse:
        reasons: Counter[str] = Counter()
        for (why, _), n in seen.items():
            reasons[why] += n
        ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{n} {why or 'ok'}" for why, n in ranked[:4])
        worst = next(why for why, _ in ranked if why in SYSTEMIC)
        url, message = self._example[worst]
        told = f": {message}" if message else ""
        # Queries are signed, users have passwords.
        shown = " ".join(storage.public(url.strip()).split())[:200]
        return Collapse(
            f"the crawl collapses: of {seen.total()} URLs {counts}; for example {shown}{told}",
            f"{_REMEDIES[worst]}; then run the same command again (--max-failed 1 goes on anyway)",
        )


def _has_bytes(reason: str) -> bool:
    return not reason or reason in RESIZE_REASONS


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
