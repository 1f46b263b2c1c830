"""Dates as other people's servers write them."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_WEEKDAY = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?\s*,?\s*", re.I)
_DATE = re.compile(
    r"""(?:
        (?P<year>\d{4})-(?P<month>\d\d?)-(?P<day>\d\d?)
        | (?P<day2>\d\d?)(?:st|nd|rd|th)?[\s-]+(?P<name2>[a-z]{3})[a-z]*\.?,?[\s-]+(?P<year2>\d{4})
        | (?P<name3>[a-z]{3})[a-z]*\.?\s+(?P<day3>\d\d?)(?:st|nd|rd|th)?\s*,?\s*(?P<year3>\d{4})
    )
    (?:[t\s,]+(?P<time>\d\d?:\d\d(?::\d\d)?)(?:\.\d{1,9})?)?
    \s*(?P<zone>[a-z]{1,5}|[+-]\d\d:?\d\d)?""",
    re.I | re.X,
)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def read_date(text: str) -> datetime | None:
    """Read a date of RFC 9110 5.6.7, RFC 822, RFC 850 or ISO 8601, or one much like them.

    A day alone is its midnight; UTC where it names no zone. None where it is no date.
    """
    for read in (datetime.fromisoformat, _read_loosely, parsedate_to_datetime):
        try:
            date = read(text.strip())
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None


def _read_loosely(text: str) -> datetime:
    """Put a date into the one form that has every zone; raises ValueError."""
    weekday = _WEEKDAY.match(text)
    found = _DATE.fullmatch(text[weekday.end() :] if weekday else text)
    if not found:
        raise ValueError("no date")
    name = found["name2"] or found["name3"]
    month = _MONTHS.index(name.lower()) if name else int(found["month"]) - 1
    day = found["day"] or found["day2"] or found["day3"]
    year = found["year"] or found["year2"] or found["year3"]
    if not 0 <= month < len(_MONTHS):
        raise ValueError("no month")
    time, zone = found["time"] or "00:00:00", (found["zone"] or "GMT").replace(":", "")
    return parsedate_to_datetime(f"{day} {_MONTHS[month]} {year} {time} {zone}")
