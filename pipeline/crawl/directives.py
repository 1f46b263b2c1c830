"""Opt-outs in the headers of an answer: X-Robots-Tag, and the TDM reservation protocol.

X-Robots-Tag as its inventor describes it (developers.google.com/search/docs/crawling-indexing/
robots-meta-tag), `noai` and `noimageai` as DeviantArt introduced them, TDM reservation as the W3C
community group's report has it (www.w3.org/community/reports/tdmrep).
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from pipeline.crawl.dates import read_date

X_ROBOTS_TAG = "X-Robots-Tag"
TDM_RESERVATION = "tdm-reservation"

# Directives whose value follows a colon; any other word before a colon names whom it is for.
_WITH_VALUE = {
    *("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"),
    *("rating", "content-signal"),
}
_PLAIN = {
    *("all", "index", "follow", "noindex", "nofollow", "none", "noarchive", "nocache"),
    *("nosnippet", "noimageindex", "notranslate", "indexifembedded", "noodp", "noydir"),
    *("nositelinkssearchbox", "noai", "noimageai", "noml"),
}
# Whatever stands before these, they are meant for crawlers like this one, unless it is the name of
# another crawler.
_OF_TRAINING = {"noai", "noimageai", "noml"}
_CRAWLER = re.compile(
    r"bot|crawl|spider|slurp|scrap|fetch|archive|dataset|agent|extended|google|bing|yandex|baidu"
    r"|[-_]ai\b|[\d/]"
)
# What follows a comma inside of a date ("Jun 25, 2010", "Fri, 25 Jun 2010 15:00:00 GMT").
_MORE_DATE = re.compile(r"\s*\d{1,4}(?=[\s:.-]|$)")


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
    `unavailable_after` counts as well, unless its date is after `now`.
    """
    names = {"", "*", *(name.lower() for name in names)}
    for tag in tags:
        for scope, directive, value in _directives(tag):
            is_ours = re.split(r"[\s/]", scope, maxsplit=1)[0] in names
            if not is_ours and (directive not in _OF_TRAINING or _CRAWLER.search(scope)):
                continue
            if directive in opt_outs:
                return directive
            if directive == "unavailable_after" and _is_past(value, now):
                return directive
    if any(value.strip() == "1" for text in reservations for value in text.split(",")):
        return TDM_RESERVATION
    return ""


def _directives(tag: str) -> Iterator[tuple[str, str, str]]:
    """Split one header into (whom it is for or "", directive, value), the first two in lower case.

    A crawler's name stands before the first of its directives, and holds until the next name.
    """
    scope = ""
    pieces = re.split(r"[,;]", tag.replace('"', "").replace("'", ""))
    for place, piece in enumerate(pieces):
        if _MORE_DATE.match(piece):
            continue
        before, colon, rest = piece.partition(":")
        words = before.lower().split()
        if colon and not any(_is_directive(word) for word in words):
            scope = " ".join(words)
            before, _, rest = rest.partition(":")
            words = before.lower().split()
        for word in words:
            name = word.partition("=")[0]
            value = rest if name == "unavailable_after" else ""
            if value:
                more = itertools.takewhile(_MORE_DATE.match, pieces[place + 1 :])
                value = ", ".join(part.strip() for part in (value, *more))
            yield scope, name, value


def _is_directive(word: str) -> bool:
    name = word.partition("=")[0]
    return name in _PLAIN or name in _WITH_VALUE or name.startswith("max-")


def _is_past(text: str, now: datetime) -> bool:
    """Say whether a time is over; whoever gave one that nobody can read meant that some time is."""
    date = read_date(text)
    return date is None or date < now
