"""Failures that speak of this side of the wire: a crawl that meets nearly nothing else has to stop."""

from collections import Counter, deque
from urllib.parse import urlsplit

from pipeline.crawl.resize import RESIZE_REASONS
from pipeline.errors import UserError

WINDOW = 200
"""URLs that are looked at together; fewer prove nothing."""

LEAST_HOSTS = 5
"""In the middle of a shard: a list may name a few dead hosts many times in a row."""

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


class Watch:
    """Sees how URLs end, in any order; `most` is the share of systemic failures that is borne."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._recent: deque[tuple[str, str]] = deque(maxlen=WINDOW)  # reason, host
        self._all: Counter[str] = Counter()
        self._images: deque[str] = deque(maxlen=WINDOW)  # of those whose bytes came
        self._example: dict[str, tuple[str, str]] = {}

    def see(self, url: str, reason: str, message: str) -> None:
        """Notes one; UserError where the last ones show that the crawl collapses."""
        self._recent.append((reason, _host(url)))
        self._all[reason] += 1
        if not reason or reason in RESIZE_REASONS:
            self._images.append(reason)
        if reason not in SYSTEMIC:
            return
        self._example.setdefault(reason, (url, message))
        ill = [host for why, host in self._recent if why in SYSTEMIC]
        if self._too_many(len(ill), len(self._recent)) and len(set(ill)) >= LEAST_HOSTS:
            raise self._error(Counter(why for why, _ in self._recent))
        spoilt = sum(why in SYSTEMIC for why in self._images)
        if self._too_many(spoilt, len(self._images)):
            raise self._error(Counter(self._images))

    def end(self) -> None:
        """The shard has no more: UserError where all of it shows the same."""
        ill = sum(n for why, n in self._all.items() if why in SYSTEMIC)
        if self._too_many(ill, self._all.total()):
            raise self._error(self._all)

    def _too_many(self, ill: int, seen: int) -> bool:
        return seen >= WINDOW and ill > self._most * seen

    def _error(self, seen: Counter[str]) -> UserError:
        ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{n} {why or 'ok'}" for why, n in ranked[:4])
        worst = next(why for why, _ in ranked if why in SYSTEMIC)
        url, message = self._example[worst]
        told = f": {message}" if message else ""
        return UserError(
            f"the crawl collapses: of {seen.total()} URLs {counts}; for example {url[:200]}{told}",
            f"{_REMEDIES[worst]}; then run the same command again (--max-failed 1 goes on anyway)",
        )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
