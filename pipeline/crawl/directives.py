"""Opt-outs in the headers of an answer: X-Robots-Tag, and the TDM reservation protocol.

X-Robots-Tag as its inventor describes it (developers.google.com/search/docs/crawling-indexing/
robots-meta-tag), `noai` and `noimageai` as DeviantArt introduced them, TDM reservation as the W3C
community group's report has it (www.w3.org/community/reports/tdmrep).
"""

import re
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from pipeline.crawl.dates import read_date

X_ROBOTS_TAG = "X-Robots-Tag"
TDM_RESERVATION = "tdm-reservation"

# Directives whose value follows a colon; any other word before a colon names a crawler.
_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
_PLAIN = {"all", "index", "follow", "noindex", "nofollow", "none", "noarchive", "nocache"} | {
    *(
        "nosnippet",
        "noimageindex",
        "notranslate",
        "indexifembedded",
        "noodp",
        "nositelinkssearchbox",
    ),
    *("noai", "noimageai", "noml", "noydir"),
}
_WEEKDAY = re.compile(r"(mon|tues?|wed(nes)?|thu(rs)?|fri|sat(ur)?|sun)(day)?", re.I)


def opted_out(
    tags: Iterable[str],
    reservations: Iterable[str],
    *,
    names: Collection[str],
    opt_outs: Collection[str],
    now: datetime,
) -> str:
    """Return the directive by which an answer opts out, or "" where it does not.

    tags, reservations: the values of all X-Robots-Tag and tdm-reservation headers. names: what this
    crawler is called; directives for others do not count. opt_outs: the directives that do, and
    `unavailable_after` with a date before `now` counts as well.
    """
    names = {name.lower() for name in names}
    for tag in tags:
        for scope, directive, value in _directives(tag):
            if scope not in ("", "*") and scope.partition("/")[0] not in names:
                continue
            if directive in opt_outs:
                return directive
            if directive == "unavailable_after" and _is_past(value, now):
                return directive
    if any(value.strip() == "1" for text in reservations for value in text.split(",")):
        return TDM_RESERVATION
    return ""


def _directives(tag: str) -> Iterator[tuple[str, str, str]]:
    """Split one header into (crawler or "", directive, value), all but the value in lower case.

    A crawler's name stands before the first of its directives, and holds until the next name.
    """
    scope = ""
    pieces = iter(re.split(r"[,;]", tag))
    for piece in pieces:
        name, colon, rest = (part.strip() for part in piece.partition(":"))
        name = name.lower()
        if colon and name not in _WITH_VALUE and name not in _PLAIN:
            scope = name
            name, _, rest = (part.strip() for part in rest.partition(":"))
            name = name.lower()
        if name == "unavailable_after" and _WEEKDAY.fullmatch(rest):
            rest = f"{rest}, {next(pieces, '').strip()}"  # the comma was the date's own
        if name:
            yield scope, name, rest


def _is_past(text: str, now: datetime) -> bool:
    date = read_date(text)
    return date is not None and date < now
