"""The rules of one robots.txt, also of those that are made to hurt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego

from pipeline.crawl.robots_rules import MAX_BYTES, Rules

URL = "http://a.test/private/1.jpg"


def allows(text: str, *names: str) -> bool:
    return Rules(text.encode(), names or ("recaption",)).allows(URL)


@pytest.mark.parametrize(
    ("text", "allowed"),
    {
        "": True,
        "Disallow: /": True,  # addressed to nobody
        "User-agent: *\nDisallow:": True,
        "User-agent: *\nDisallow: /": False,
        "\ufeffuser-AGENT : * # all\n  disallow : /private # this": False,
        "User-agent: *\r\nDisallow: /private\r\n": False,
        "User-agent: Recaption\nDisallow: /": False,
        "User-agent: recaption/0.1\nDisallow: /": False,
        "User-agent: rec\nDisallow: /": True,
        "User-agent: recaptionist\nDisallow: /": True,
        "User-agent: *\nDisallow: /\n\nUser-agent: recaption\nAllow: /": True,
        "User-agent: a\nUser-agent: recaption\nUser-agent: b\nDisallow: /": False,
        "User-agent: a\nDisallow: /\nUser-agent: b\nDisallow: /": True,
        "User-agent: recaption\nDisallow: /x\nUser-agent: b\nDisallow: /": True,
        "User-agent: recaption\nAllow: /\n\nUser-agent: recaption\nDisallow: /private": False,
        "User-agent: *\nDisallow: /\nAllow: /private/": True,
        "User-agent: *\nDisallow: /*.jpg$": False,
        "User-agent: *\nDisallow: /*.png$": True,
    }.items(),
)
def test_what_is_allowed(text, allowed):
    assert allows(text) is allowed


def test_all_of_our_names_must_be_allowed():
    text = "User-agent: otherbot\nDisallow: /"
    assert allows(text) and not allows(text, "recaption", "OtherBot")


def test_delays():
    text = "User-agent: *\nCrawl-delay: 2\n\nUser-agent: otherbot\nCrawl-delay: 9.5"
    assert Rules(text.encode(), ("recaption",)).delay_sec == 2.0
    assert Rules(text.encode(), ("recaption", "otherbot")).delay_sec == 9.5
    for odd in ("nan", "inf", "-1", "soon"):
        assert Rules(f"User-agent: *\nCrawl-delay: {odd}".encode(), ("me",)).delay_sec == 0.0


def test_a_web_page_has_no_rules_however_long():
    assert allows("<p>Not here</p>\n" * 20_000)


def test_more_rules_than_can_be_looked_at_allow_nothing():
    some = "User-agent: *\n" + "".join(f"Disallow: /{i}\n" for i in range(9_000))
    assert allows(some) and not allows(some * 2)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"User-agent: a{i}\n" for i in range(15_000)) + "Disallow: /a\n" * 15_000,
        "User-agent: *\n" + "".join(f"Disallow: /*{i}x\n" for i in range(25_000)),
        "User-agent: *\nDisallow: /" + "*a" * 250_000,
        "".join(f"User-agent: a{i}\nUser-agent: *\n" for i in range(10_000)) + "Disallow: /a\n",
    ],
)
def test_files_that_are_made_to_hurt_end(text):
    Rules(text.encode()[:MAX_BYTES], ("recaption",)).allows("http://a.test/" + "ab/" * 2000)


LINES = st.sampled_from(
    [
        *("User-agent: *", "User-agent: recaption", "User-agent: b", "User-agent: c", ""),
        *("Disallow: /", "Allow: /private", "Disallow: /private/1", "Disallow:"),
        *("Crawl-delay: 3", "Sitemap: /s", "x: y"),
    ]
)


@given(st.lists(LINES, max_size=15))
def test_nothing_is_lost_by_leaving_others_out(lines):
    text = "\n".join(lines)
    whole = Protego.parse(text)
    rules = Rules(text.encode(), ("recaption",))
    assert rules.allows(URL) == whole.can_fetch(URL, "recaption")
    assert rules.delay_sec == (whole.crawl_delay("recaption") or 0.0)


@given(st.binary(max_size=300))
def test_whatever_is_served_is_read(text):
    rules = Rules(text, ("recaption",))
    assert isinstance(rules.allows(URL), bool) and rules.delay_sec >= 0
