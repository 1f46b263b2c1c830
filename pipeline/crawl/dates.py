"""Dates as other people's servers write them."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def read_date(text: str) -> datetime | None:
    """Read a date of RFC 9110 5.6.7, RFC 822, RFC 850 or ISO 8601, UTC where it names no zone.

    None where it is none of these.
    """
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            date = read(text.strip())
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None
