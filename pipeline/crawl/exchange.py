"""One request and its answer: every way in which it can fail has its reason."""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
from yarl import URL

from pipeline.crawl.dates import read_date
from pipeline.crawl.reasons import Refused

_MAX_TYPE = 100
_LONGEST_SEC = 365 * 24 * 3600.0
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REASONS = {401: "unauthorized", 403: "forbidden", 404: "not_found", 410: "gone"}
_MAY_PASS = {408: "http_408", 425: "http_425", 429: "http_429"}
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@asynccontextmanager
async def get(
    session: aiohttp.ClientSession, url: URL, *, keep_open: bool = True
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask for a URL and give the answer as soon as its headers are there.

    keep_open: whether the connection is of use afterwards; a body that is not read to its end costs
    it in any case. Raises Refused where there is no answer; what is raised inside of the block, and
    by the connector as Refused, goes through as it is.
    """
    try:
        # Connections to thousands of hosts that are never asked again would pile up.
        headers = None if keep_open else {"Connection": "close"}
        response = await session.get(url, allow_redirects=False, headers=headers)
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        raise Refused("tls", _tls_message(error)) from error
    except TimeoutError as error:
        raise Refused("timeout", "no connection in time", again=True) from error
    except (aiohttp.ClientConnectionError, ConnectionError) as error:
        raise Refused("connect", _connect_message(error), again=True) from error
    except aiohttp.InvalidURL as error:
        raise Refused("bad_url", "not a URL") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise Refused(
            "bad_response", "the answer is not HTTP, or its headers are too long"
        ) from error
    try:
        yield response
    finally:
        response.release()  # which closes the connection where there is more to come


def require_body(response: aiohttp.ClientResponse) -> None:
    """Raise Refused for an answer that is neither a body nor a redirect."""
    status = response.status
    if status in (200, 203):
        return
    kind = content_type(response)
    if status in (204, 205):
        raise Refused("empty_body", f"HTTP {status}", status=status, content_type=kind)
    if status in _MAY_PASS:
        reason = _MAY_PASS[status]
    elif 500 <= status < 600:
        reason = "http_5xx"
    elif 400 <= status < 500:
        reason = _REASONS.get(status, "http_4xx")
    else:
        reason = "http_other"
    raise Refused(
        reason,
        f"HTTP {status}",
        again=status in _AGAIN,
        status=status,
        content_type=kind,
        retry_after=retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC)),
    )


def content_type(response: aiohttp.ClientResponse) -> str:
    """Return what an answer says it is, without parameters; "" where it says nothing."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    # Whatever bytes a header has, tables take only text.
    return kind[:_MAX_TYPE].encode("ascii", "replace").decode()


def retry_after(text: str, now: datetime) -> float | None:
    """Read a Retry-After header (RFC 9110 10.2.3), seconds or a date, as seconds from now.

    Of several the first one counts; None where it is neither.
    """
    number = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:[,;]|$)", text, re.A)
    if number:
        return min(float(number[1]), _LONGEST_SEC)
    date = read_date(text)
    return min(max(0.0, (date - now).total_seconds()), _LONGEST_SEC) if date else None


def _tls_message(error: Exception) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    return getattr(cause, "verify_message", "") or "no TLS connection"


def _connect_message(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or "no connection"
    return "the connection broke before an answer"
