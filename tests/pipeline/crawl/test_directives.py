"""Opt-outs as servers write them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.dates import read_date
from pipeline.crawl.directives import opted_out
from pipeline.crawl.settings import FetchSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OPT_OUTS = FetchSettings().opt_outs


def verdict(*tags: str, tdm: tuple[str, ...] = (), names: tuple[str, ...] = ("recaption",)) -> str:
    return opted_out(tags, tdm, names=names, opt_outs=OPT_OUTS, now=NOW)


@pytest.mark.parametrize("directive", OPT_OUTS)
@pytest.mark.parametrize(
    "tag",
    [
        "{}",
        "  {}  ",
        "{upper}",
        "nofollow, {}",
        "nofollow,{},noarchive",
        "max-image-preview:large, {}",
        "max-snippet: 10, max-video-preview: -1,{}",
        "unavailable_after: 25 Jun 2030 15:00:00 PST, {}",
        "{}, unavailable_after: 25 Jun 2030 15:00:00 PST",
        "unavailable_after: Fri, 25 Jun 2030 15:00:00 GMT, {}",
        "recaption: {}",
        "Recaption: nofollow, {}",
        "recaption/0.1: {}",
        "*: {}",
        "otherbot: nofollow, recaption: {}",
        "otherbot: max-snippet: 5, recaption: max-snippet: 5, {}",
        "nofollow; {}",
        "{}: true",
        "{}=1",
        '"{}"',
        "nofollow {} noarchive",
        "recaption: nofollow {}",
        "rating: adult, {}",
        "content-signal: search=yes, {}",
        "max-anything: 3, {}",
        "unavailable_after: Jun 25, 2030, {}",
    ],
)
def test_opt_outs_for_us(directive, tag):
    assert verdict(tag.format(directive, upper=directive.upper())) == directive


@pytest.mark.parametrize(
    "tag",
    [
        "",
        ",,;:",
        "all",
        "nofollow, nosnippet, noarchive",
        "max-image-preview:none",  # a value, no directive
        "max-snippet:0",
        "otherbot: noai",
        "otherbot: nofollow, noai, noindex",
        "otherbot:noai, thirdbot: noindex",
        "recaption: all, otherbot: noai",
        "recaptionbot: noai",
        "recaptionist/2.0: noai",
        "Google-Extended: noai",
        "img: noindex",
        "noaimageai",
        "unavailable_after: 25 Jun 2030 15:00:00 PST",
        "unavailable_after: Jun 25, 2030",
        "unavailable_after: 1 Jan 2030",
        "otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST",
    ],
)
def test_what_is_no_opt_out_for_us(tag):
    assert verdict(tag) == ""


@pytest.mark.parametrize(
    "date",
    [
        "25 Jun 2010 15:00:00 PST",
        "Fri, 25 Jun 2010 15:00:00 GMT",
        "Friday, 25-Jun-10 15:00:00 UTC",
        "2010-06-25",
        "2010-06-25T15:00:00Z",
        "2010-06-25T15:00:00+02:00",
        "Wed, 31 Dec 2025 23:59:59 GMT",
        "2010-06-25 15:00:00 PST",
        "2010-06-25 15:00",
        "1 Jan 2000",
        "1st January 2000",
        "Jun 25, 2010",
        "June 25 2010 15:00:00 EST",
        "Saturday 01 Jan 2000 00:00:00 GMT",
        "Sat, 01 Jan 2000",
        "01/02/2030",  # whatever is first: nobody can read it
        "soon",
        "",
    ],
)
def test_a_time_that_is_over_is_an_opt_out(date):
    assert verdict(f"unavailable_after: {date}") == "unavailable_after"
    assert verdict(f"nofollow, unavailable_after:{date}, nosnippet") == "unavailable_after"


@pytest.mark.parametrize("directive", ["noai", "noimageai", "noml"])
def test_what_speaks_of_training_counts_unless_it_names_another_crawler(directive):
    for scope in ("img", "image", "page", "training"):
        assert verdict(f"{scope}: {directive}") == directive
        assert verdict(f"{scope}: x, {directive}") == directive
    for scope in ("googlebot", "bingbot", "Bytespider", "anthropic-ai", "ia_archiver", "x/1.0"):
        assert verdict(f"{scope}: x, {directive}") == ""


def test_dates_that_are_nearly_those_of_a_standard():
    assert read_date("2010-06-25 15:00:00 PST") == datetime(2010, 6, 25, 23, tzinfo=UTC)
    assert read_date("Jun 25, 2010 15:00 +02:00") == datetime(2010, 6, 25, 13, tzinfo=UTC)
    assert read_date("Saturday 01 Jan 2000 00:00:00 GMT") == datetime(2000, 1, 1, tzinfo=UTC)
    for text in ("99 Jan 2020", "2010-13-01 1:00 PST", "Foo 1, 2000", "1 Jan", "2000"):
        assert read_date(text) is None


def test_several_headers_are_read_each_by_itself():
    assert verdict("otherbot: nofollow", "noai") == "noai"
    assert verdict("otherbot: noai", "nofollow") == ""


def test_other_names_of_ours_count_and_other_lists_of_opt_outs():
    assert verdict("img2dataset: noai", names=("recaption", "img2dataset")) == "noai"
    assert opted_out(["noindex"], (), names=(), opt_outs=("noai",), now=NOW) == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [(("1",), True), ((" 1 ",), True), (("0",), False), (("",), False), (("0", "1"), True)],
)
def test_tdm_reservation(values, expected):
    assert verdict(tdm=values) == ("tdm-reservation" if expected else "")


@given(st.lists(st.text(max_size=200)), st.lists(st.text(max_size=20)))
def test_whatever_a_server_writes_is_read(tags, reservations):
    verdict(*tags, tdm=tuple(reservations))


@given(st.lists(st.text(alphabet=" ,:;-+0123456789JanFeb GMTZPST", max_size=40)))
def test_whatever_date_a_server_writes_is_read(texts):
    for text in texts:
        date = read_date(text)
        assert date is None or date.tzinfo is UTC


@given(st.datetimes(timezones=st.just(UTC)))
def test_dates_are_read_back(date):
    date = date.replace(microsecond=0)
    assert read_date(date.isoformat()) == date
