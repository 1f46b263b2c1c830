"""Why a URL gave no image: the closed list of reasons, and which of them may pass with time."""

from functools import partial

OK = ""

MAY_PASS = frozenset(
    {
        "dns",  # the name server had no answer just now
        "connect",  # refused, unreachable, or the connection broke before an answer
        "timeout",  # no connection in time
        "deadline",  # the URL's own time was used up
        "shard_deadline",  # the shard's time was used up before the URL had its answer
        "host_paused",  # the host asked for a longer pause than this crawl waits
        "truncated_body",  # fewer bytes came than were announced
        "http_408",
        "http_425",
        "http_429",
        "http_5xx",
        "robots_unreachable",  # no word from robots.txt, which RFC 9309 2.3.1.4 reads as "no"
        "internal",  # a failure that nobody foresaw; its message says which
    }
)
"""Reasons that a later try can clear: the network, a busy server, or our own lack of time."""

STAYS = frozenset(
    {
        "bad_url",
        "bad_scheme",  # neither http nor https
        "bad_port",  # out of range, or another protocol's
        "private_address",  # not public, and not among those allowed
        "no_such_host",  # the name does not exist
        "tls",  # no connection that can be trusted
        "downgrade",  # https that redirects to http
        "too_many_redirects",
        "bad_redirect",  # a redirect to nowhere
        "not_found",
        "gone",
        "forbidden",
        "unauthorized",
        "http_4xx",  # any other
        "http_other",  # neither a body nor an error
        "bad_response",  # not HTTP, or headers over the limits
        "bad_encoding",  # a Content-Encoding that was not asked for and cannot be undone
        "too_many_bytes",
        "empty_body",
        "html_instead",  # a web page where an image was listed
        "opted_out",  # X-Robots-Tag or TDM reservation
        "robots_denied",
    }
)
"""Reasons that stay: asking again would be useless, or rude."""

REASONS = MAY_PASS | STAYS


class Refused(Exception):
    """A URL's failure on its way through the crawl: a reason of `REASONS`, and a line for people.

    again: whether this run may try once more. retry_after: the seconds that the server asked for.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        again: bool = False,
        status: int = 0,
        retry_after: float | None = None,
        content_type: str = "",
    ) -> None:
        super().__init__(message)
        self.reason, self.message, self.again = reason, message, again
        self.status, self.retry_after, self.content_type = status, retry_after, content_type

    def __reduce__(self) -> tuple:
        options = {
            "again": self.again,
            "status": self.status,
            "retry_after": self.retry_after,
            "content_type": self.content_type,
        }
        return partial(Refused, **options), (self.reason, self.message)
