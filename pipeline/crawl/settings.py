"""What a crawl may ask of other people's servers, and how: one set of settings for all fetching."""

import re
from dataclasses import dataclass
from importlib import metadata

from pipeline.crawl.addresses import networks
from pipeline.errors import UserError

CRAWLER_NAME = "recaption"


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """Settings of fetching; picklable, and plain JSON by `dataclasses.asdict`.

    Raises UserError for values that cannot be meant.
    """

    user_agent: str = ""
    """User-Agent header; empty: "recaption/<version>", with `contact` where it is given."""
    contact: str = ""
    """Web page or mail address that a server's owner can turn to; part of the user agent."""
    crawler_names: tuple[str, ...] = (CRAWLER_NAME,)
    """Names by which robots.txt and X-Robots-Tag may address this crawler."""
    max_bytes: int = 32 * 2**20
    """Longest body that is read, as sent and as decoded."""
    timeout_sec: float = 30.0
    """Time of one URL: its requests, redirects, retries and the pauses between them.

    Waiting for a host's turn, for its robots.txt or for a thread to look it up does not count.
    """
    connect_timeout_sec: float = 10.0
    """Time of one connection: name, TCP and TLS."""
    retries: int = 2
    """Further tries of a URL that failed for a reason that may pass."""
    backoff_sec: float = 0.5
    """Pause before the first retry; each later one is twice as long."""
    max_pause_sec: float = 120.0
    """Longest pause asked for by a host that is waited for; beyond, its URLs are left for later."""
    max_redirects: int = 5
    """Redirects followed per try."""
    allow_downgrade: bool = False
    """Follow redirects from https to http, which give up what was verified until then."""
    concurrency: int = 64
    """Requests in flight per worker."""
    per_host: int = 8
    """Requests in flight per host and worker."""
    host_delay_sec: float = 0.0
    """Least time between the starts of two requests to one host."""
    max_crawl_delay_sec: float = 30.0
    """Longest delay that a robots.txt can ask for; beyond, this one is kept."""
    allow_private: tuple[str, ...] = ()
    """CIDR ranges that may be connected to although they are not public."""
    robots: bool = True
    """Fetch and obey robots.txt."""
    respect_directives: bool = True
    """Obey X-Robots-Tag and the TDM reservation header."""
    opt_outs: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "none", "noml")
    """X-Robots-Tag directives that count as an opt-out."""
    hosts: tuple[str, ...] = ()
    """Fixed addresses, as in a hosts file: "name=address"; several of a name are all its own."""
    look_ahead: int = 20_000
    """URLs known at once, among which those of slow hosts wait while others are fetched."""

    def __post_init__(self) -> None:
        networks(self.allow_private)
        for flag in ("concurrency", "per_host", "max_bytes", "look_ahead"):
            _require(getattr(self, flag) >= 1, flag, getattr(self, flag), "at least 1")
        for flag in ("timeout_sec", "connect_timeout_sec"):
            _require(getattr(self, flag) > 0, flag, getattr(self, flag), "more than 0")
        for flag in (
            *("retries", "max_redirects", "backoff_sec"),
            *("host_delay_sec", "max_pause_sec", "max_crawl_delay_sec"),
        ):
            _require(getattr(self, flag) >= 0, flag, getattr(self, flag), "0 or more")
        names = self.crawler_names
        _require(bool(names), "crawler_names", names, "at least one name")
        for name in names:
            _require(bool(re.fullmatch(r"[\w.-]+", name, re.A)), "crawler_names", name, "a token")
        for entry in self.hosts:
            name, _, address = entry.partition("=")
            _require(bool(name and address), "hosts", entry, "name=address")
            networks((address,), "--hosts")
        agent = self.agent
        _require(agent.isascii() and agent.isprintable(), "user_agent", agent, "one line of ASCII")

    @property
    def agent(self) -> str:
        """The User-Agent header that is sent."""
        if self.user_agent:
            return self.user_agent
        try:
            version = metadata.version(CRAWLER_NAME)
        except metadata.PackageNotFoundError:
            version = "0"
        return f"{CRAWLER_NAME}/{version}" + (f" (+{self.contact})" if self.contact else "")


def _require(holds: bool, flag: str, value: object, wanted: str) -> None:
    if not holds:
        raise UserError(f"--{flag.replace('_', '-')} {value!r} cannot be", f"give {wanted}")
